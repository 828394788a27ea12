"""A search whose subnets are scored and whose baselines are trained by workers: the tables of one process alone."""

import json
import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from autodistil_search import Objective, Plugins, SubnetProblem, open_subnets, search
from autodistil_search.base.errors import ExecutorError, InputError
from autodistil_search.base.files import cache_folder
from autodistil_search.runs.search_inputs import resolve_search

pytestmark = pytest.mark.usefixtures("undrawn")

TABLES = ("evaluations.csv", "frontier.csv", "progress.csv", "baselines.csv")


@pytest.fixture(scope="module")
def processes():
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def assert_same_tables(run, other, names=TABLES):
    for name in names:
        assert (run.folder / name).read_bytes() == (other.folder / name).read_bytes(), name
    assert run.summary["hypervolume"] == other.summary["hypervolume"]


@pytest.mark.parametrize("engine", ["nsga2", "surrogate", "optuna-nsga2", "exhaustive"])
def test_tables_do_not_depend_on_the_executor(engine, toy_config, processes, tmp_path):
    config = replace(toy_config, engine=engine, evaluations=12)
    alone = search(replace(config, out=str(tmp_path / "alone")))
    with ThreadPoolExecutor(3) as threads:
        for name, executor in {"threads": threads, "processes": processes}.items():
            run = search(replace(config, out=str(tmp_path / name)), executor=executor)
            assert_same_tables(run, alone)


def test_baselines_trained_by_workers_are_those_of_one_process(toy_config, processes, tmp_path, monkeypatch):
    config = replace(toy_config, baselines="random,truncated", steps=2, evaluations=4)
    alone = search(replace(config, out=str(tmp_path / "alone")))
    monkeypatch.setenv("AUTODISTIL_SEARCH_CACHE", str(tmp_path / "cache"))
    run = search(replace(config, out=str(tmp_path / "shared")), executor=processes)
    trained = [Path(folder) for folder in run.baselines["weights"]]
    assert len(run.baselines) == 4
    assert all(folder.is_relative_to(tmp_path / "cache") for folder in trained)
    columns = ["name", "how", "relation_loss", "flops", "params"]
    assert run.baselines[columns].equals(alone.baselines[columns])


def slow_then_dead(student):
    """Kill the worker of the fourth measurement, once."""
    folder = Path(os.environ["TOY_MARKS"])
    (folder / f"{time.monotonic_ns()}").touch()
    if len(list(folder.iterdir())) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return float(len(student.layers))


def test_a_killed_worker_loses_nothing_that_was_scored(toy_config, tmp_path, monkeypatch):
    """A process pool is broken by it, and the search ends; the same search goes on."""
    marks = tmp_path / "marks"
    marks.mkdir()
    monkeypatch.setenv("TOY_MARKS", str(marks))
    depth = Objective("depth", "depth", "layers", "minimize", measure=slow_then_dead)
    config, plugins = replace(toy_config, objectives="depth,params"), Plugins(objectives={"depth": depth})
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool, pytest.raises(ExecutorError, match="has died"):
        search(config, plugins=plugins, executor=pool)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        run = search(config, plugins=plugins, executor=pool)
    assert len(run.evaluations) == 8
    ends = 2  # measured for the reference point of the hypervolume
    assert len(list(marks.iterdir())) == 8 + ends + 1  # the subnet whose worker was killed is the only one twice


def test_on_dask_the_subnet_of_a_killed_worker_is_scored_by_another(toy_config, tmp_path, monkeypatch):
    marks = tmp_path / "marks"
    marks.mkdir()
    monkeypatch.setenv("TOY_MARKS", str(marks))
    depth = Objective("depth", "depth", "layers", "minimize", measure=slow_then_dead)
    config = replace(toy_config, objectives="depth,acc", population=8, executor="dask", workers=2)
    run = search(config, plugins=Plugins(objectives={"depth": depth}))
    assert run.evaluations["depth"].tolist() == run.evaluations["layers"].tolist()
    assert len(run.evaluations) == 8
    assert len(list(marks.iterdir())) >= 8 + 2 + 1
    trials = [json.loads(line) for line in (run.folder / "archive.log").read_text().splitlines()]
    scored = [json.dumps(trial["params"], sort_keys=True) for trial in trials if "params" in trial]
    assert len(scored) == len(set(scored)) == 8
    config = replace(toy_config, population=8, out=str(tmp_path / "alone"))
    pd.testing.assert_frame_equal(run.evaluations.drop(columns="depth"), search(config).evaluations)


@pytest.mark.parametrize("missing", ["superlm", "cache"])
def test_a_worker_that_does_not_see_the_files_is_refused(missing, toy_config, processes, tmp_path, monkeypatch):
    """What the workers see is moved away between the check of this process and theirs."""
    config = replace(toy_config, baselines="random", steps=1)
    real = ProcessPoolExecutor.submit

    def submit(self, *given):
        folder = config.folder / "superlm" / "debug" if missing == "superlm" else cache_folder() / ".id"
        if folder.exists():
            folder.rename(folder.with_name("away"))
        return real(self, *given)

    monkeypatch.setenv("AUTODISTIL_SEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ProcessPoolExecutor, "submit", submit)
    message = {
        "superlm": "superlm/debug holds no SuperLM; allowed: workers that see the folder of the search",
        "cache": r"would compute other numbers: cache of baselines is 'missing' there and '\w+' here",
    }
    with pytest.raises(InputError, match=message[missing]):
        search(config, executor=processes)


def test_a_worker_with_another_version_of_a_plug_in_is_refused(toy_config, monkeypatch):
    from autodistil_search.runs.scoring import Scorer

    size = Objective("size", "size", "", "minimize", cost=lambda subnet, _: float(subnet.layers))
    config, plugins = replace(toy_config, objectives="size,params"), Plugins(objectives={"size": size})
    inputs = resolve_search(config.absolute(plugins), plugins=plugins)
    conditions = Scorer(inputs, {}, plugins).conditions()
    assert conditions["plug-in size"] == "'size' of objectives (given in Python)"
    assert {"teacher_model", "version of torch", "columns", "spaces"} <= conditions.keys()


def test_a_population_of_pymoo_is_scored_by_the_workers(toy_config, processes):
    with open_subnets(toy_config, executor=processes) as subnets:
        problem = SubnetProblem(subnets)
        together = problem.evaluate([[0] * problem.n_var, list(problem.xu)])
        each = [subnets.evaluate(problem.subnet(x)) for x in ([0] * problem.n_var, list(problem.xu))]
    assert together.tolist() == [[one["relation_loss"], one["flops"]] for one in each]
