"""Independent tasks in this process, on executors of the standard library, and on real Dask clusters."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from distributed import Client, LocalCluster
from toy_job import LOADED, ToyJob, ToyLoaded, toy_job

from autodistil_search.base import dask_cluster
from autodistil_search.base.dask_cluster import open_client, visible_gpus
from autodistil_search.base.errors import ExecutorError, InputError
from autodistil_search.base.executors import open_executor, open_team
from autodistil_search.base.progress import Reporter


class Said(Reporter):
    def __init__(self):
        self.lines = []

    def say(self, message):
        self.lines.append(message)


@dataclass(frozen=True)
class Described(ToyLoaded):
    """A loaded job that is described to workers by another job."""

    by: ToyJob

    def job(self):
        return self.by


def results_of(executor, tasks, job=None, reporter=None):
    with open_team(executor, Described("same", job or toy_job()), reporter or Reporter()) as team:
        return dict(team.results(tasks))


@pytest.fixture(scope="module")
def processes():
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture(scope="module")
def cluster():
    """The client of a local cluster of two workers, each of them a process."""
    with open_client("", 2, 1, Reporter()) as client:
        client.wait_for_workers(2, timeout=300)
        yield client


@pytest.fixture(params=["none", "threads", "processes", "cluster"])
def executor(request):
    if request.param == "none":
        yield None
    elif request.param == "threads":
        with ThreadPoolExecutor(3) as pool:
            yield pool
    else:
        yield request.getfixturevalue(request.param)


def test_each_task_is_run_once_with_the_threads_of_the_job(executor):
    tasks = [("worker",), ("number", 1), ("number", 2), ("worker",)]
    results = results_of(executor, tasks, toy_job(threads=3) if executor is not None else None)
    assert [results[1], results[2]] == tasks[1:3]
    threads = {results[index][1] for index in (0, 3)}
    assert threads == {torch.get_num_threads() if executor is None else 3}


def run_into(error, executor, tasks, after_each=lambda: None):
    """Run tasks that end with an error; return the message and the indices of the results before it."""
    done = []

    def run(team):
        for index, _ in team.results(tasks):
            done.append(index)
            after_each()

    with open_team(executor, LOADED, Reporter()) as team, pytest.raises(error) as caught:
        run(team)
    return str(caught.value), done


def test_other_results_are_yielded_before_the_error_of_a_task(executor):
    tasks = [("number", 0), ("sleep", 0.2), ("fail", InputError("that is bad"))]
    message, done = run_into(InputError, executor, tasks)
    assert message == "that is bad"
    assert 0 in done
    assert 2 not in done


def test_an_error_without_a_message_for_the_user_gets_one(cluster):
    with pytest.raises(ExecutorError, match=r"\('fail'.* could not be done by any worker: ZeroDivisionError: by 0; "):
        results_of(cluster, [("fail", ZeroDivisionError("by 0"))])


def test_a_worker_loads_a_job_once_and_frees_it_in_the_end(processes, cluster, tmp_path):
    for executor in (processes, cluster):
        folder = tmp_path / type(executor).__name__
        folder.mkdir()
        workers = {process for process, *_ in results_of(executor, [("worker",)] * 9, toy_job(folder=folder)).values()}
        assert len(workers) <= len(list(folder.iterdir())) <= 2
    kept = cluster.run(lambda: len(sys.modules["autodistil_search.base.jobs"]._loaded))
    assert set(kept.values()) == {0}


def test_workers_forked_from_this_process_are_refused():
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool,
        pytest.raises(InputError, match="forked from this process"),
    ):
        results_of(pool, [("worker",)])


def test_a_worker_with_other_data_is_refused_by_the_name_of_what_differs(processes):
    message = "worker .* would compute other numbers: data is 'same' there and 'else' here"
    with pytest.raises(InputError, match=message):
        results_of(processes, [("number", 1)], toy_job(conditions={"data": "else"}))


def test_a_cluster_without_a_worker_of_the_same_data_is_refused(cluster):
    said = Said()
    with pytest.raises(InputError, match=r"all 2 workers are refused: worker .*: data is 'same' there and 'else' here"):
        results_of(cluster, [("number", 1)], toy_job(conditions={"data": "else"}), said)


def test_a_killed_worker_of_a_process_pool_is_one_line():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in range(2):  # the pool is broken for good
            with pytest.raises(ExecutorError, match="a worker process of the executor has died; everything"):
                results_of(pool, [("number", 1), ("die",)])


def test_a_task_whose_worker_is_killed_runs_on_another(cluster, tmp_path):
    tasks = [("die once", str(tmp_path / "died")), *(("number", number) for number in range(5))]
    assert results_of(cluster, tasks) == dict(enumerate(tasks))
    assert (tmp_path / "died").exists()


def test_a_task_that_kills_every_worker_ends_with_its_reason(cluster):
    with pytest.raises(ExecutorError, match=r"\('die',\) could not be done by any worker: KilledWorker: "):
        results_of(cluster, [("die",)])
    assert results_of(cluster, [("number", 1)]) == {0: ("number", 1)}  # the cluster has new workers


def test_an_interrupt_of_the_terminal_leaves_the_workers_of_a_local_cluster_alone(cluster):
    before = set(cluster.run(os.getpid).values())
    cluster.run(lambda: os.kill(os.getpid(), signal.SIGINT))
    assert set(cluster.run(os.getpid).values()) == before


class Dask:
    """A scheduler and workers, started by the commands of Dask."""

    def __init__(self, folder):
        self._folder, self._processes = folder, []
        self.file = folder / "scheduler.json"
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")

    def _start(self, what, *options, **env):
        command = [sys.executable, "-m", "distributed.cli.dask_" + what, *options, "--scheduler-file", str(self.file)]
        path = os.pathsep.join(filter(None, sys.path))
        with (self._folder / f"{what}-{len(self._processes)}.log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": path} | env)
        self._processes.append(process)
        return process

    def start_worker(self, **env):
        options = ("--nthreads", "1", "--no-dashboard", "--death-timeout", "600")
        return self._start("worker", *options, "--local-directory", str(self._folder / "work"), **env)

    def stop(self):
        for process in reversed(self._processes):
            process.kill()  # a worker ends with the process that watches it
            process.wait()


@pytest.fixture
def dask(tmp_path):
    started = Dask(tmp_path)
    yield started
    started.stop()


def test_a_late_worker_is_waited_for_with_a_line_now_and_then(monkeypatch):
    def refused(_):
        raise InputError("worker a would compute other numbers")

    monkeypatch.setattr(dask_cluster, "_SECONDS_BETWEEN_LINES", 0.2)
    arrived, get_events = [], Client.get_events

    def late(client, topic):
        arrived.append(get_events(client, topic))
        return arrived[-1] if len(arrived) > 1 else ()  # a worker sends its events a moment later

    monkeypatch.setattr(dask_cluster, "load_job", refused)
    monkeypatch.setattr(Client, "get_events", late)
    said = Said()
    with LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster, Client(cluster) as client:
        threading.Timer(1.0, cluster.scale, [1]).start()
        with pytest.raises(InputError, match=r"^the only worker is refused: worker a would compute other numbers$"):
            results_of(client, [("number", 1)], reporter=said)
        line = f"waiting for a worker of the Dask scheduler at {cluster.scheduler_address}"
    assert said.lines.count(line) > 2


def test_a_refused_worker_gets_no_task_while_others_work(dask):
    said = Said()
    dask.start_worker(TOY_DATA="missing")
    dask.start_worker(TOY_DATA="other")
    dask.start_worker()
    with open_client(str(dask.file), None, 1, said) as client:
        client.wait_for_workers(3, timeout=300)
        tasks = [("sleep", 0.01 * number) for number in range(6)]
        assert results_of(client, tasks, reporter=said) == dict(enumerate(tasks))
    refused = [line for line in said.lines if "gets no tasks" in line]
    assert len(refused) == 2
    assert any("the data are missing" in line for line in refused)
    assert any("data is 'other' there and 'same' here" in line for line in refused)


def test_a_worker_that_is_killed_while_it_loads_is_replaced(dask, tmp_path):
    dask.start_worker(TOY_DATA="die once", TOY_MARK=str(tmp_path / "mark"))
    with open_client(str(dask.file), None, 1, Reporter()) as client:
        assert results_of(client, [("number", 1)]) == {0: ("number", 1)}
    assert (tmp_path / "mark").exists()


def test_a_killed_scheduler_ends_the_tasks_with_one_line(dask, caplog):
    dask.start_worker()
    with open_client(str(dask.file), None, 1, Reporter()) as client:
        message, done = run_into(ExecutorError, client, [("number", 0), ("sleep", 60)], dask.scheduler.kill)
    assert message.startswith("the executor has cancelled its tasks or lost its scheduler; everything")
    assert done == [0]
    assert [record for record in caplog.records if record.name.startswith("distributed")] == []


def test_what_is_no_executor_is_refused():
    with (
        pytest.raises(InputError, match=r"executor 'dask' \(str\); allowed: a concurrent\.futures executor, or a "),
        open_executor(None, None, Reporter(), "dask"),
    ):
        pass


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [("timeouts.connect", "0.5s", "Timed out"), ("require-encryption", True, "encryption required")],
)
def test_an_address_without_a_scheduler_is_refused(setting, value, reason):
    from dask import config

    with (
        config.set({f"distributed.comm.{setting}": value}),
        pytest.raises(InputError, match=rf"--executor dask:tcp://127\.0\.0\.1:1: no scheduler answers there: {reason}"),
        open_client("tcp://127.0.0.1:1", None, 1, Reporter()),
    ):
        pass


@pytest.mark.parametrize(
    ("visible", "count", "named"), [("", 2, ["0", "1"]), ("3,5", 2, ["3", "5"]), ("", 0, []), ("GPU-a", 1, ["GPU-a"])]
)
def test_the_gpus_of_this_process_have_the_names_that_cuda_takes(visible, count, named, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert visible_gpus() == named


def test_a_local_cluster_has_one_worker_for_each_gpu(monkeypatch):
    monkeypatch.setattr(dask_cluster, "visible_gpus", lambda: ["3", "5"])
    before = dict(os.environ)
    with open_client("", None, 1, Reporter()) as client:
        client.wait_for_workers(2, timeout=300)
        assert set(client.run(lambda: os.environ["MALLOC_MMAP_THRESHOLD_"]).values()) == {str(2**25)}
        seen = client.run(lambda: (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_WAIT_POLICY"]))
    assert sorted(seen.values()) == [("3", "PASSIVE"), ("5", "PASSIVE")]
    assert dict(os.environ) == before
