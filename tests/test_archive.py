"""The archive: what was recorded is found, survives a kill at any byte, and is a plain Optuna study."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autodistil_search.base.errors import InputError
from autodistil_search.nas.archive import Archive
from autodistil_search.nas.evaluation import Evaluation
from autodistil_search.nas.objectives import FLOPS, RELATION_LOSS, Objective
from autodistil_search.nas.pareto import is_on_frontier
from autodistil_search.spaces.search_space import SearchSpace, load_space

OBJECTIVES = [RELATION_LOSS, FLOPS]


@pytest.fixture
def space():
    return load_space("debug")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "archive.log"


def evaluation_of(space, genome, n=0):
    measured = {"relation_loss": 1 / 3 + n % 5, "flops": 1_000_000_007 - 10 * n, "params": 17 + n}
    return Evaluation(space.name, space.decode(genome), measured)


def evaluations_of(space, n):
    return [evaluation_of(space, genome, i) for i, genome in enumerate(list(space.genomes())[:n])]


def filled(path, space, n):
    archive = Archive(path, [space], OBJECTIVES)
    for evaluation in evaluations_of(space, n):
        archive.record(evaluation)
    return archive


def study_at(path):
    return optuna.load_study(study_name="search", storage=JournalStorage(JournalFileBackend(str(path))))


def test_what_was_recorded_is_found_and_nothing_else(path, space):
    archive = filled(path, space, 5)
    recorded = evaluations_of(space, 6)
    assert [archive.find(space.name, each.subnet) for each in recorded] == [*recorded[:5], None]
    assert archive.find("elsewhere", recorded[0].subnet) is None


def test_a_reopened_archive_has_equal_evaluations_in_order(path, space):
    recorded = evaluations_of(space, 8)[::-1]
    archive = Archive(path, [space], OBJECTIVES)
    for evaluation in recorded:
        archive.record(evaluation)
    reopened = Archive(path, [space], OBJECTIVES)
    assert archive.evaluations == reopened.evaluations == recorded
    assert reopened.find(space.name, recorded[3].subnet) == recorded[3]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"flops":1000000007', '"flops":1000000006'),
        ('"values":[0.3333333333333333,1000000007]', '"values":[0.3333333333333333,2]'),
        ('"measured":{', '"measurec":{'),
        ('"params":17', '"params":"a"'),
    ],
)
def test_a_trial_whose_numbers_are_not_those_written_is_refused(path, space, before, after):
    filled(path, space, 2)
    text = path.read_text()
    path.write_text(text.replace(before, after))
    assert path.read_text() != text
    with pytest.raises(InputError, match=r"archive\.log is damaged: the parameters or values of trial 0 are not"):
        Archive(path, [space], OBJECTIVES)


def test_a_trial_with_another_subnet_than_was_written_is_refused(path, space):
    filled(path, space, 2)
    lines = path.read_text().splitlines()
    trials = [i for i, line in enumerate(lines) if '"params":{' in line]
    first, second = (json.loads(lines[i]) for i in trials)
    first["params"] = second["params"]
    lines[trials[0]] = json.dumps(first)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="values of trial 0"):
        Archive(path, [space], OBJECTIVES)


def test_a_fixed_value_that_is_not_the_one_written_is_refused(path, space):
    box = {"flops": [0.0, 12345.5], 1: None}
    archive = filled(path, space, 1)
    assert archive.fixed("box", lambda: box) == {"flops": [0.0, 12345.5], "1": None}
    assert Archive(path, [space], OBJECTIVES).fixed("box", dict) == {"flops": [0.0, 12345.5], "1": None}
    path.write_text(path.read_text().replace("12345.5", "12346.5"))
    with pytest.raises(InputError, match=r"archive\.log is damaged: its value of 'box' is not as written"):
        Archive(path, [space], OBJECTIVES).fixed("box", dict)


def test_trials_without_a_digest_are_read(path, space):
    archive = filled(path, space, 2)
    for line in (text := path.read_text()).splitlines():
        if "trial sha256" in line:
            entry = json.loads(line)
            entry["user_attrs"].pop("trial sha256")
            text = text.replace(line, json.dumps(entry))
    path.write_text(text)
    assert Archive(path, [space], OBJECTIVES).evaluations == archive.evaluations


def test_an_empty_archive_can_be_reopened(path, space):
    Archive(path, [space], OBJECTIVES)
    assert Archive(path, [space], OBJECTIVES).evaluations == []


@pytest.mark.parametrize("name", ["tiny", "small", "base"])
def test_every_subnet_of_a_shipped_space_comes_back_as_it_was(path, name):
    space = load_space(name)
    corners = [(i, j, k, i) for i in (0, 3) for j in range(4) for k in range(4)]
    archive = Archive(path, [space], [FLOPS])
    for n, genome in enumerate(corners):
        archive.record(evaluation_of(space, genome, n))
    found = [evaluation.subnet for evaluation in Archive(path, [space], [FLOPS]).evaluations]
    assert found == [space.decode(genome) for genome in corners]


def test_subnets_of_two_spaces_are_kept_apart(path):
    shared = {"layers": [2], "hidden_size": [32], "mlp_ratio": [2], "heads": [2], "relation_heads": 4}
    narrow, wide = SearchSpace("narrow", head_dim=8, **shared), SearchSpace("wide", head_dim=16, **shared)
    archive = Archive(path, [narrow, wide], OBJECTIVES)
    for n, space in enumerate((narrow, wide)):
        archive.record(evaluation_of(space, (0, 0, 0, 0), n))
    reopened = Archive(path, [narrow, wide], OBJECTIVES)
    assert [(each.space, each.subnet.head_dim) for each in reopened.evaluations] == [("narrow", 8), ("wide", 16)]
    assert reopened.find("narrow", narrow.smallest).measured["params"] == 17
    assert reopened.find("wide", wide.smallest).measured["params"] == 18
    assert reopened.find("wide", narrow.smallest) is None


def test_numbers_come_back_to_the_last_bit(path, space):
    measured = {"relation_loss": 0.1 + 0.2, "flops": 2**53 - 1, "params": 1e-308}
    Archive(path, [space], OBJECTIVES).record(Evaluation(space.name, space.smallest, measured))
    (found,) = Archive(path, [space], OBJECTIVES).evaluations
    assert found.measured == measured


def test_a_record_torn_at_any_byte_is_all_that_is_lost(path, space):
    recorded = evaluations_of(space, 4)
    filled(path, space, 2)
    before = path.stat().st_size
    filled(path, space, 0).record(recorded[2])
    whole = path.read_bytes()
    for size in range(before, len(whole)):
        path.write_bytes(whole[:size])
        archive = Archive(path, [space], OBJECTIVES)
        assert archive.evaluations == recorded[:2], size
        archive.record(recorded[3])
        assert Archive(path, [space], OBJECTIVES).evaluations == [*recorded[:2], recorded[3]], size


def test_a_file_torn_at_any_byte_before_the_first_record_is_an_empty_archive(path, space):
    recorded = evaluations_of(space, 1)
    filled(path, space, 0)
    header = path.read_bytes()
    for size in range(len(header)):
        path.write_bytes(header[:size])
        archive = Archive(path, [space], OBJECTIVES)
        assert archive.evaluations == [], size
        archive.record(recorded[0])
        assert Archive(path, [space], OBJECTIVES).evaluations == recorded, size
        assert study_at(path).metric_names == ["relation_loss", "flops"]


def test_it_is_a_study_that_optuna_reads(path, space):
    better_high = Objective("accuracy", "accuracy", "share", "maximize")
    archive = Archive(path, [space], [better_high, FLOPS])
    for n, genome in enumerate(space.genomes()):
        measured = {"accuracy": (n * 7) % 16, "flops": (n * n * 5) % 16}
        archive.record(Evaluation(space.name, space.decode(genome), measured))
    study = study_at(path)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["accuracy", "flops"]
    values = np.array([[-each.measured["accuracy"], each.measured["flops"]] for each in archive.evaluations])
    assert sorted(trial.number for trial in study.best_trials) == np.flatnonzero(is_on_frontier(values)).tolist()
    trial = study.trials[5]
    subnet = archive.evaluations[5].subnet
    assert trial.state == optuna.trial.TrialState.COMPLETE
    assert trial.params == {
        "space": "debug",
        "layers": subnet.layers,
        "hidden_size": subnet.hidden_size,
        "mlp_ratio": subnet.mlp_ratio,
        "heads": subnet.heads,
    }


def test_with_one_objective_optunas_best_trial_is_the_lowest(path, space):
    archive = Archive(path, [space], [FLOPS])
    for evaluation in evaluations_of(space, 6):
        archive.record(evaluation)
    assert study_at(path).best_trial.number == 5


def test_a_lock_left_by_a_killed_process_holds_nobody_up(path, space, monkeypatch):
    filled(path, space, 1)
    Path(f"{path}.lock").symlink_to(path)  # what Optuna's journal holds while it writes
    waited = []
    clock = SimpleNamespace(monotonic=lambda: sum(waited), sleep=waited.append)
    monkeypatch.setattr("optuna.storages.journal._file.time", clock)
    archive = Archive(path, [space], OBJECTIVES)
    archive.record(evaluations_of(space, 2)[1])
    assert archive.evaluations == evaluations_of(space, 2)
    assert sum(waited) < 1
