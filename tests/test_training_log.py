"""The logs of a training: rows of every step once, closed on errors, and never a reason for training to stop."""

import itertools

import pytest

from autodistil_search.base.files import UnwritableError
from autodistil_search.distillation import training_log
from autodistil_search.distillation.sampling import Drawn
from autodistil_search.distillation.training_log import HELD_OUT_CSV, HIDDEN, TRAINING_CSV, TrainingLog, read_log
from autodistil_search.spaces.search_space import load_space

SUBNET = load_space("debug").smallest


def write_steps(folder, steps, first=0, hidden=False):
    with TrainingLog(folder, first) as log:
        for step in range(first + 1, steps + 1):
            log.write(step, [Drawn(SUBNET, "smallest", 1.0)], [1.0 / step, *([2.0] if hidden else [])], 64, 1e-3)
            log.write_held_out(step, [("smallest", SUBNET, 1.5)])


@pytest.mark.parametrize("hidden", [False, True])
def test_the_rows_after_the_step_resumed_from_are_replaced(tmp_path, hidden):
    write_steps(tmp_path, 5, hidden=hidden)
    whole = (tmp_path / TRAINING_CSV).read_bytes()
    write_steps(tmp_path, 5, first=3, hidden=hidden)
    assert (tmp_path / TRAINING_CSV).read_bytes() == whole
    table = read_log(tmp_path / TRAINING_CSV)
    assert table["step"].tolist() == [1, 2, 3, 4, 5]
    assert table["loss"].iloc[3] == 0.25
    assert table[HIDDEN].isna().all() != hidden


@pytest.mark.parametrize("name", [TRAINING_CSV, HELD_OUT_CSV])
@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (lambda lines: [lines[0], b"\xff\x00" + lines[1], *lines[2:]], [1]),
        (lambda lines: [*lines[:2], lines[2].replace(b".", b"x"), *lines[3:]], [2]),
        (lambda lines: [*lines[:3], b"\x00\x93", *lines[3:]], []),
        (lambda lines: [b"ste", *lines[1:]], []),
        (lambda lines: [*lines[:2], lines[2].rstrip() + lines[3], *lines[4:]], [2, 3]),
    ],
)
def test_a_damaged_log_is_cut_to_its_good_rows_with_a_word(tmp_path, name, damage, lost):
    write_steps(tmp_path, 4)
    path = tmp_path / name
    path.write_bytes(b"\n".join(damage(path.read_bytes().split(b"\n"))))
    with pytest.warns(UserWarning, match=f"1 lines of .*{name} are damaged and left out"):
        assert read_log(path)["step"].tolist() == [step for step in range(1, 5) if step not in lost]
    with pytest.warns(UserWarning, match=f"{name} are damaged"):
        write_steps(tmp_path, 5, first=4)
    assert read_log(path)["step"].tolist() == [step for step in range(1, 6) if step not in lost]


def test_a_line_that_a_killed_process_left_half_is_no_damage(tmp_path):
    write_steps(tmp_path, 3)
    path = tmp_path / TRAINING_CSV
    path.write_bytes(path.read_bytes()[:-4])
    assert read_log(path)["step"].tolist() == [1, 2]
    write_steps(tmp_path, 3, first=2)
    assert read_log(path)["step"].tolist() == [1, 2, 3]


def test_a_log_without_rows_is_an_empty_table(tmp_path):
    with TrainingLog(tmp_path, 0):
        pass
    assert read_log(tmp_path / HELD_OUT_CSV).empty
    (tmp_path / HELD_OUT_CSV).write_bytes(b"")
    assert read_log(tmp_path / HELD_OUT_CSV).empty


def test_a_log_is_rewritten_whole_or_not_at_all(tmp_path, monkeypatch):
    write_steps(tmp_path, 3)
    before = (tmp_path / TRAINING_CSV).read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("autodistil_search.base.files.os.fsync", full)
        with pytest.raises(UnwritableError, match=r"training\.csv cannot be written: No space left on device"):
            TrainingLog(tmp_path, 1)
    assert (tmp_path / TRAINING_CSV).read_bytes() == before


def test_a_log_is_closed_on_errors(tmp_path):
    with pytest.raises(FloatingPointError), TrainingLog(tmp_path, 0) as log:
        raise FloatingPointError
    assert log._training._file.closed
    assert log._held_out._file.closed


def test_each_step_is_in_the_file_once_it_is_written(tmp_path):
    with TrainingLog(tmp_path, 0) as log:
        for step in (1, 2):
            log.write(step, [Drawn(SUBNET, "smallest", 1.0)], [0.5], 64, 1e-3)
            assert read_log(tmp_path / TRAINING_CSV)["step"].tolist() == [*range(1, step + 1)]


def test_of_a_long_log_rows_from_all_over_it_are_read(tmp_path, monkeypatch):
    write_steps(tmp_path, 1000)
    path, row = tmp_path / TRAINING_CSV, len("1000,smallest,2,32,1.5,2,8,0.001000,")
    with path.open("ab") as file:
        file.write(b"1001,smal")  # killed
    monkeypatch.setattr(training_log, "_WINDOWS", 10)
    monkeypatch.setattr(training_log, "_WINDOW_BYTES", 5 * row)
    table = read_log(path)
    steps = table["step"].tolist()
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (1, 1000)
    assert 10 * 3 < len(steps) < 10 * 7
    assert max(after - before for before, after in itertools.pairwise(steps)) < 1000 / 8
    assert table["loss"].tolist() == pytest.approx([1 / step for step in steps], abs=1e-6)
