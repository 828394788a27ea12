"""Damage to a finished folder: each file that is read back is named in one line, and nothing goes on with it."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from autodistil_search import SearchConfig, load_run, search
from autodistil_search.base.errors import InputError
from autodistil_search.base.manifest import KINDS, LOGS, MANIFEST, NAMES_MANIFEST, kind_of, reopen
from autodistil_search.base.progress import Reporter
from autodistil_search.cli.main import main
from autodistil_search.distillation.checkpoints import load_finished
from autodistil_search.exporting.student_folder import export_student
from autodistil_search.exporting.student_source import find_exportable
from autodistil_search.runs.distil import distil
from autodistil_search.runs.finetune import finetune, model_source
from autodistil_search.settings.distil import DistilConfig
from autodistil_search.settings.export import ExportOptions
from autodistil_search.settings.finetune import FinetuneConfig
from autodistil_search.teachers.loading import load_as_student, load_teacher

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def made(_toy_settings: SearchConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search, a student distilled from it, that student fine-tuned and exported: each in its folder."""
    base = tmp_path_factory.mktemp("made")
    search(replace(_toy_settings, out=str(base / "search"), held_out_every=1))
    distil(DistilConfig(run=str(base / "search"), steps=2, precision="fp32", out=str(base / "distil")))
    rows = "".join(f"w{i % 40} w{i % 7},{'ab'[i % 40 < 20]}\n" for i in range(60))
    (base / "task.csv").write_text("text,label\n" + rows)
    finetune(_finetuning(base))
    export_student(base / "finetune", base / "export", ExportOptions(format="own"))
    return base


def _finetuning(base: Path) -> FinetuneConfig:
    return FinetuneConfig(
        model=str(base / "distil"),
        task=str(base / "task.csv"),
        epochs=1,
        seeds=1,
        max_length=16,
        precision="fp32",
        out=str(base / "finetune"),
    )


def _exportable(folder: Path) -> object:
    return find_exportable(folder, None, None, False, Reporter())


READERS: dict[str, Callable[[Path], object]] = {
    "search": lambda base: load_run(base / "search"),
    "search/superlm/debug": lambda base: load_run(base / "search").student(),
    "distil": lambda base: _exportable(base / "distil"),
    "distil/student": lambda base: _exportable(base / "distil"),
    "finetune": lambda base: _exportable(base / "finetune"),
    "finetune/seed-0": lambda base: finetune(_finetuning(base)),
    "export": lambda base: _exportable(base / "export"),
}
"""What reads the files of a folder."""
NOT_READ = {"search/superlm/debug": {"trainer_state.json"}}


def _digit(path: Path) -> None:
    """Change one digit, or in weights one bit."""
    content = bytearray(path.read_bytes())
    places = [i for i, byte in enumerate(content) if byte in b"0123456789"] or [len(content) - 1]
    content[places[len(places) // 2]] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a digit": _digit,
    "cut": lambda path: path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2]),
    "other JSON": lambda path: path.write_text('{"a": [1]}'),
    "missing": Path.unlink,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@contextmanager
def damaged(path: Path, damage: Callable[[Path], object]) -> Iterator[None]:
    """Damage a file inside, and put it back."""
    content = path.read_bytes()
    damage(path)
    try:
        yield
    finally:
        if path.is_dir():
            path.rmdir()
        path.write_bytes(content)


@contextmanager
def as_of_an_earlier_version(folder: Path) -> Iterator[None]:
    """Let a folder have no manifest inside, and results that name none; put both back."""
    results = folder / KINDS[str(kind_of(folder))].results
    content = {key: value for key, value in json.loads(results.read_text()).items() if key != NAMES_MANIFEST}
    with damaged(folder / MANIFEST, Path.unlink), damaged(results, lambda path: path.write_text(json.dumps(content))):
        yield


@pytest.mark.parametrize("place", READERS)
def test_each_damaged_file_is_named_in_one_line(made: Path, place: str) -> None:
    names = json.loads((made / place / MANIFEST).read_text())["files"].keys() - {*LOGS} - NOT_READ.get(place, set())
    assert len(names) >= 2
    read = READERS[place]
    for name in [*sorted(names), MANIFEST]:
        several = DAMAGE if name in ("frontier.csv", "model.safetensors", "summary.json") else ("a digit", "missing")
        for damage in several:
            if name == "archive.log" and damage == "missing":
                continue  # only the search reads it
            with (
                damaged(made / place / name, DAMAGE[damage]),
                pytest.raises(InputError, match=rf"^[^\n]*{re.escape(name)} is (damaged|missing)[^\n]*$"),
            ):
                read(made)
    read(made)


@pytest.mark.parametrize("name", LOGS)
def test_a_damaged_log_is_told_and_stops_nothing(made: Path, name: str) -> None:
    path = made / "search" / "superlm" / "debug" / name
    with (
        damaged(path, lambda path: path.write_text(path.read_text().replace("0.", "1.", 1))),
        pytest.warns(UserWarning, match=f"{name} changed after training wrote it"),
    ):
        load_run(made / "search")


CSV = {
    "frontier.csv": ("cut", "without a column", "a word", "without a row", "two knees"),
    "evaluations.csv": ("cut", "without a column", "a word", "without a row"),
    "progress.csv": ("a word", "without a row"),
    "baselines.csv": ("without a column",),
    "summary.json": ("{}", "[]", '{"title": 3}'),
}


def _changed(text: str, change: str) -> str:
    head, *rows = text.splitlines(keepends=True)
    if change == "cut":
        return text[: len(text) - len(rows[-1]) // 2]
    if change == "without a column":
        return text.replace(head.split(",")[1], "other", 1)
    if change == "a word":
        return "".join([head, ",".join("x" if "." in cell else cell for cell in rows[0].split(",")), *rows[1:]])
    if change == "without a row":
        return "".join([head, *rows[:-1]])
    return text.replace("False", "True") if change == "two knees" else change


@pytest.mark.parametrize(("name", "change"), [(name, change) for name, changes in CSV.items() for change in changes])
def test_a_table_of_another_shape_is_named_also_where_no_digest_tells(
    made: Path, tmp_path: Path, name: str, change: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(made / "search", folder)
    reopen(folder)  # which leaves it as an earlier version did
    path = folder / name
    before = path.read_text()
    path.write_text(_changed(before, change))
    assert path.read_text() != before
    with pytest.raises(InputError, match=rf"^[^\n]*{re.escape(name)} is damaged[^\n]*$") as refusal:
        load_run(folder)
    assert "delete it" in str(refusal.value)
    path.write_text(before)
    assert "has no manifest.json" in str(load_run(folder).report.findings[-1])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("distil/distil.json", "{}"),
        ("distil/distil.yaml", "steps: 2"),
        ("finetune/summary.json", '{"model": "seed-0"}'),
        ("finetune/finetune.yaml", "epochs: 1"),
    ],
)
def test_what_a_folder_says_of_its_model_is_named_if_it_says_something_else(
    made: Path, name: str, content: str
) -> None:
    """Also where no digest tells."""
    path = made / name
    with (
        as_of_an_earlier_version(path.parent),
        damaged(path, lambda path: path.write_text(content)),
        pytest.raises(InputError, match=rf"^[^\n]*{re.escape(path.name)} is damaged[^\n]*$"),
    ):
        _exportable(path.parent)
    _exportable(path.parent)


def test_a_model_whose_weights_are_not_its_own_is_refused_also_where_no_digest_tells(
    made: Path, toy_config: SearchConfig, tmp_path: Path
) -> None:
    teacher, weights = load_teacher(toy_config.teacher), load_file(made / "distil" / "student" / "model.safetensors")
    name = "layers.0.query.bias"
    for change, told in (
        ({name: None}, f"lacks 1 weights, '{name}' first"),
        ({"stranger": torch.zeros(2)}, "has in excess 1 weights, 'stranger' first"),
        ({name: torch.zeros(7)}, "is damaged"),
        ({name: weights[name] * float("nan")}, f"weights of {name} are not finite"),
    ):
        folder = tmp_path / "student"
        shutil.copytree(made / "distil" / "student", folder, ignore=shutil.ignore_patterns(MANIFEST, "trainer_state*"))
        kept = {key: tensor for key, tensor in {**weights, **change}.items() if tensor is not None}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(InputError, match=told):
            load_as_student(str(folder), teacher)
        shutil.rmtree(folder)


def test_a_damaged_model_of_ours_is_no_teacher_and_is_not_fine_tuned(made: Path) -> None:
    folder = made / "export"
    with damaged(folder / "model.safetensors", _digit):
        for read in (load_teacher, model_source):
            with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
                read(str(folder))
    assert model_source(str(folder)) == str(folder)


def test_weights_without_a_manifest_are_those_that_training_wrote(made: Path, toy_config: SearchConfig) -> None:
    """As folders of earlier versions have a digest only in `trainer_state.json`."""
    folder, teacher = made / "distil" / "student", load_teacher(toy_config.teacher)
    with as_of_an_earlier_version(folder):
        load_as_student(str(folder), teacher)
        with (
            damaged(folder / "model.safetensors", _digit),
            pytest.raises(InputError, match=r"model\.safetensors is not the file that training wrote"),
        ):
            load_as_student(str(folder), teacher)


def test_a_deleted_file_is_written_again_by_its_command(made: Path, toy_config: SearchConfig) -> None:
    for name in ("frontier.csv", "summary.json", MANIFEST):
        path = made / "search" / name
        before = path.read_bytes()
        path.unlink()
        with pytest.warns(UserWarning, match=f"{name} is missing and will be written again"):
            search(replace(toy_config, out=str(made / "search"), held_out_every=1))
        assert path.read_bytes() == before or name in ("summary.json", MANIFEST)  # the one has the seconds, too
        load_run(made / "search")


@pytest.mark.parametrize(
    ("command", "folder", "told"),
    [
        (["report"], "finetune", "is the folder of a finetune; allowed: the --out folder of a search that ended"),
        (["report"], "export", "is an export; allowed"),
        (["report"], "distil/student", "is a trained student; allowed"),
        (["report"], "search/superlm/debug", "is a SuperLM; allowed"),
        (["distil"], "distil", "is the folder of a distil; allowed"),
        (["validate-proxy"], "export", "is an export; allowed"),
        (["finetune"], "search", "is the folder of a search; allowed"),
        (["search", "--superlm"], "finetune", "is the folder of a finetune; allowed: the --out folder of a train"),
        (["search", "--teacher"], "search", "is the folder of a search; allowed"),
    ],
)
def test_a_folder_of_another_kind_is_told_by_what_it_is(
    made: Path, refusal: Callable[[list[str]], str], tmp_path: Path, command: list[str], folder: str, told: str
) -> None:
    task = ["--task", str(made / "task.csv")] if command == ["finetune"] else []
    to = [] if command == ["report"] else ["--out", str(tmp_path / "new")]
    assert told in refusal([*command, str(made / folder), *task, *to])
    assert main(["report", str(made / "search"), "--quiet"]) == 0


@pytest.mark.parametrize(
    ("place", "results"),
    [("search", "summary.json"), ("search/superlm/debug", "trainer_state.json"), ("distil", "distil.json")],
)
def test_a_folder_without_a_manifest_is_read_unless_its_results_name_one(made: Path, place: str, results: str) -> None:
    """Folders of earlier versions have neither."""
    assert json.loads((made / place / results).read_text())["manifest"] == MANIFEST
    with as_of_an_earlier_version(made / place):
        READERS[place](made)
    missing = pytest.raises(InputError, match=rf"{MANIFEST} is missing, though {results} names it; ")
    with damaged(made / place / MANIFEST, Path.unlink), missing:
        READERS[place](made)


def test_a_model_whose_manifest_is_missing_gets_one_after_a_check_of_its_weights(made: Path, tmp_path: Path) -> None:
    """As after a kill between the last two files of a training."""
    folder = tmp_path / "superlm"
    shutil.copytree(made / "search" / "superlm" / "debug", folder)
    before, model = (folder / MANIFEST).read_bytes(), load_run(made / "search").superlm("debug")
    settings = json.loads((folder / "trainer_state.json").read_text())["settings"]
    (folder / MANIFEST).unlink()
    with (
        damaged(folder / "model.safetensors", _digit),
        pytest.raises(InputError, match="is not the file that train"),
    ):
        load_finished(folder, model, settings)
    with pytest.warns(UserWarning, match=rf"{MANIFEST} is missing and will be written again"):
        assert load_finished(folder, model, settings)
    assert (folder / MANIFEST).read_bytes() == before


def test_a_fine_tuned_model_killed_before_its_manifest_is_trained_from_its_end(made: Path) -> None:
    folder = made / "finetune" / "seed-0"
    before = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).unlink()
    with pytest.raises(InputError, match=rf"{MANIFEST} is missing, though result\.json names it; delete its folder"):
        finetune(_finetuning(made))
    rate = pd.read_csv(made / "finetune" / "results.csv")["lr"][0]
    folder.rename(killed := folder.with_name(f"lr-{rate:g}-seed-0"))
    (killed / "training").mkdir()
    finetune(_finetuning(made))
    assert (folder / MANIFEST).read_bytes() == before
    READERS["finetune"](made)
