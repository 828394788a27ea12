"""Dask clusters: a local cluster with one worker for each GPU, and workers that have proven to compute the same.

Scheduling, retries, lost workers and the dashboard are Dask's own. A worker plugin loads the job in every worker that
is there or comes later. A worker that passes the check gets a resource named after the job, which all tasks require;
any other worker stays without tasks, and its reason is reported.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from dask import config
from distributed import Client, LocalCluster, Status, Worker, WorkerPlugin, as_completed

from autodistil_search.base.errors import ExecutorError, InputError
from autodistil_search.base.jobs import KEPT, Job, Team, explained, load_job, run_task, unload_job
from autodistil_search.base.plugins import shown
from autodistil_search.base.progress import Reporter

_RETRIES = 2
"""Times that Dask runs a task again after an error."""
_BEFORE_START = "distributed.nanny.pre-spawn-environ"
"""Setting of Dask: environment variables that are set before a worker process starts."""
_MALLOC = {"MALLOC_TRIM_THRESHOLD_": 2**27, "MALLOC_MMAP_THRESHOLD_": 2**25}
"""Bytes from which glibc gives memory back. Dask's 2**16 makes every large tensor a new mapping, page by page."""
_LOGGERS = ("distributed", "distributed.client", "tornado.application")
"""Loggers of Dask, whose errors this package tells in its own words."""
_TRIES_TO_REGISTER = 3
_SECONDS_BETWEEN_LINES = 60.0
_BETWEEN_LOOKS = 0.05
"""Seconds between two looks at workers that load a job."""
_TASKS = 2**20
"""Amount of a job's resource that a worker has; a task needs 1, so it never limits the tasks of a worker."""


class _Preparation(WorkerPlugin):
    """Worker plugin that loads a job, and offers the job's resource if the worker would compute the same numbers."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.name = job.token

    async def setup(self, worker: Worker) -> None:
        """Load the job in a thread, so that the worker goes on answering the scheduler."""
        try:
            await asyncio.to_thread(load_job, self._job)
        except Exception as error:
            refusal = {"worker": worker.address, "reason": str(error)}
            worker.log_event(self._job.token, refusal)
            return
        await worker.set_resources(**{self._job.token: _TASKS})
        # The scheduler gives waiting tasks to a worker that begins to run, not to one that gets a resource.
        worker.status = Status.paused
        worker.status = Status.running

    async def teardown(self, worker: Worker) -> None:
        """Free the memory of the job."""
        await worker.set_resources(**{self._job.token: 0})
        await asyncio.to_thread(unload_job, self._job.token)


@dataclass(frozen=True)
class _ClusterTeam(Team):
    """Workers of a cluster that have the resource of a job."""

    _client: Client
    _job: Job

    def results(self, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yield the index and the result of each task; see `Team`."""
        run, needed = partial(run_task, self._job), {self._job.token: 1}
        futures = self._client.map(run, tasks, pure=False, retries=_RETRIES, resources=needed)
        left = {future.key: (index, future) for index, future in enumerate(futures)}
        try:
            for future, result in as_completed(futures, with_results=True, raise_errors=False):
                index, _ = left.pop(future.key)
                if future.status != "finished":
                    yield from [(other, known.result()) for other, known in left.values() if known.status == "finished"]
                    error = result[1] if future.status == "error" else CancelledError()
                    raise explained(tasks[index], error) from error
                yield index, result
        finally:
            self._client.cancel([future for _, future in left.values()])


@contextmanager
def open_cluster_team(client: Client, job: Job, reporter: Reporter) -> Iterator[Team]:
    """Yield the workers of `client` that have loaded `job` and would compute the same numbers.

    Workers that come later are prepared as well. A refused worker is reported with its reason.

    Raises:
        InputError: if all workers are refused; the message has the reason of the first.
    """
    reported: dict[str, str] = {}

    def report(event: tuple[float, dict[str, str]]) -> None:
        _, refusal = event
        if reported.setdefault(refusal["worker"], refusal["reason"]) is refusal["reason"]:
            reporter.say(f"worker {refusal['worker']} gets no tasks: {refusal['reason']}")

    _wait_for_a_worker(client, reporter)
    client.subscribe_topic(job.token, report)
    try:
        _register(client, _Preparation(job))
        _wait_for_a_prepared_worker(client, job, reporter)
        yield _ClusterTeam(client, job)
    finally:
        if client.status == "running":  # otherwise the scheduler is gone, and each call would wait for it
            with suppress(OSError):  # a worker may die at this moment
                client.unsubscribe_topic(job.token)
                client.unregister_worker_plugin(job.token)


def _wait_for_a_worker(client: Client, reporter: Reporter) -> None:
    """Wait for the first worker without a limit, because a queue of a cluster may be long; say so every minute."""
    begun = time.monotonic()
    while not (info := client.scheduler_info(n_workers=-1))["workers"]:
        minutes = int(time.monotonic() - begun) // 60
        so_far = f", for {minutes} min so far" if minutes else ""
        reporter.say(f"waiting for a worker of the Dask scheduler at {info['address']}{so_far}")
        with suppress(TimeoutError):
            client.wait_for_workers(1, timeout=_SECONDS_BETWEEN_LINES)


def _wait_for_a_prepared_worker(client: Client, job: Job, reporter: Reporter) -> None:
    """Wait until a worker has loaded the job.

    The refusal of a worker can arrive after its plugin is set up, because workers collect their events.

    Raises:
        InputError: if all workers are refused; the message has the reason of the first.
    """
    while True:
        _wait_for_a_worker(client, reporter)
        refused = {refusal["worker"]: refusal["reason"] for _, refusal in client.get_events(job.token)}
        workers = client.scheduler_info(n_workers=-1)["workers"]
        if any(worker["resources"].get(job.token) for worker in workers.values()):
            return
        if workers and all(address in refused for address in workers):
            who = "the only worker is" if len(workers) == 1 else f"all {len(workers)} workers are"
            raise InputError(f"{who} refused: {next(iter(refused.values()))}")
        time.sleep(_BETWEEN_LOOKS)


def _register(client: Client, plugin: WorkerPlugin) -> None:
    """Set up a plugin in all workers, again if a worker dies meanwhile.

    Raises:
        ExecutorError: if the scheduler is gone, or workers die each time.
        InputError: if a worker cannot read the plugin, as without this package.
    """
    for left in reversed(range(_TRIES_TO_REGISTER)):
        try:
            client.register_plugin(plugin)
            return
        except OSError as error:  # of the scheduler, or of a worker that was asked by the scheduler
            if not left or client.status != "running":
                raise ExecutorError(f"the Dask scheduler or a worker does not answer; {KEPT}") from error
        except Exception as error:
            unreadable = f"a worker cannot read the job: {shown(error)}"
            raise InputError(f"{unreadable}; allowed: workers with this package") from error


@contextmanager
def open_client(address: str, workers: int | None, threads: int, reporter: Reporter) -> Iterator[Client]:
    """Yield a client of the scheduler at an address, or of a new local cluster.

    Args:
        address: Address of a scheduler, such as tcp://host:8786, or path of its JSON file; empty for a local cluster.
        workers: Number of workers of the local cluster; by default one for each GPU, or for each `threads` CPUs.
        threads: Number of CPU threads of a task.
        reporter: Receiver of messages.

    Raises:
        InputError: if no scheduler answers at the address.
    """
    for logger in _LOGGERS:
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    if not address:
        with _local_cluster(workers, threads, reporter) as cluster, Client(cluster) as client:
            client.register_plugin(_Uninterrupted())
            yield client
        return
    where: dict[str, Any] = {"scheduler_file": address} if address.endswith(".json") else {"address": address}
    try:
        client = Client(**where)
    except (OSError, ValueError, TypeError, RuntimeError) as error:  # the last: encryption is required
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"--executor dask:{address}: no scheduler answers there: {reason:.200}") from None
    with client:
        reporter.say(f"Dask: {len(client.scheduler_info(n_workers=-1)['workers'])} workers at {address}")
        yield client


class _Uninterrupted(WorkerPlugin):
    """Worker plugin that ignores SIGINT: Ctrl-C reaches all processes of a terminal, but only the search answers it."""

    name = "uninterrupted"

    def setup(self, worker: Worker) -> None:  # noqa: ARG002
        """Ignore SIGINT in the process of the worker."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class _OneGpuEach(LocalCluster):
    """Local cluster whose workers see one GPU each, and do not spin while they wait for a CPU."""

    def new_worker_spec(self) -> dict[Any, Any]:
        """Return the specification of a further worker; see `distributed.SpecCluster`."""
        gpus = visible_gpus()
        spec = {}
        for name, entry in super().new_worker_spec().items():
            env = {"GOMP_SPINCOUNT": "0", "OMP_WAIT_POLICY": "PASSIVE"}
            if gpus:
                env["CUDA_VISIBLE_DEVICES"] = gpus[int(name) % len(gpus)]
            spec[name] = {**entry, "options": {**entry["options"], "env": env}}
        return spec


def visible_gpus() -> list[str]:
    """Return the CUDA devices that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    import torch

    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named or [str(index) for index in range(torch.cuda.device_count())]


@contextmanager
def _restored_environment() -> Iterator[None]:
    """Undo changes of the environment variables, which Dask makes for the workers that it starts."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _local_cluster(workers: int | None, threads: int, reporter: Reporter) -> Iterator[LocalCluster]:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = len(visible_gpus())
    count = workers or gpus or max(1, cpus // threads)
    share = f"{count} workers with {threads} CPU threads each"
    with (
        _restored_environment(),
        config.set({_BEFORE_START: {**config.get(_BEFORE_START), **_MALLOC}}),
        _OneGpuEach(
            n_workers=0,
            threads_per_worker=1,
            memory_limit=1 / count,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,  # an error of a task is told once, by this process
        ) as cluster,
    ):
        cluster.scale(count)
        reporter.say(f"Dask: {share}; dashboard {cluster.dashboard_link}")
        if not gpus and count * threads > cpus:
            reporter.say(f"{share} share {cpus} CPUs; OMP_NUM_THREADS=1 is faster, and numbers change by rounding")
        yield cluster
