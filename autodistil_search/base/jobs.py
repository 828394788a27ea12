"""Jobs whose tasks run in this process or in workers, with equal results.

A `Job` says what a process loads once (teacher, text, model), and the loaded job runs any number of tasks. The result
of a task depends neither on the process nor on the order of the tasks. A worker therefore proves by digests that it has
loaded the same, computes with as many threads as the process that asks, and runs one task at a time.
"""

from __future__ import annotations

import os
import platform
import threading
import uuid
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, CancelledError
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from autodistil_search.base.errors import ExecutorError, InputError, Terminated
from autodistil_search.base.plugins import shown
from autodistil_search.base.progress import Reporter

_MOST_LOADED = 2
"""Jobs that a worker keeps in memory, such as those of two searches on one cluster; the next replaces the oldest."""
KEPT = "everything done so far is kept, and the same command continues"
_OUR_ERRORS = (InputError, FloatingPointError, MemoryError, OSError, Terminated)
"""Errors of a task that have a message for the user."""


class LoadedJob(Protocol):
    """Job with everything in memory that its tasks need."""

    def job(self) -> Job:
        """Return the description by which workers load the same; it is called where the job was first loaded."""

    def conditions(self) -> Mapping[str, str]:
        """Return digests and settings by name: everything on which the results depend."""

    def run(self, task: Any) -> Any:
        """Return the result of a task."""


@dataclass(frozen=True, kw_only=True)
class Job(ABC):
    """Description of a job, small enough to be sent with every task.

    Attributes:
        conditions: Conditions of this process, which those of each worker must equal.
        threads: Number of CPU threads that compute.
        token: Name of the job in the memory of a worker.
    """

    conditions: Mapping[str, str]
    threads: int
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @abstractmethod
    def load(self) -> LoadedJob:
        """Load what the tasks need, in a worker.

        Raises:
            InputError: if an input is missing or cannot be used.
        """


class Team(ABC):
    """Processes that have loaded a job and run its tasks.

    Attributes:
        alone: True if this process runs all tasks, one after another.
    """

    alone: ClassVar[bool] = False

    @abstractmethod
    def results(self, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yield the index and the result of each task, in the order in which they are done.

        Raises:
            ExecutorError: if no worker can run a task, or the executor fails; all other results are yielded before.
        """

    def all_results(self, tasks: Sequence[Any], reporter: Reporter, title: str, unit: str) -> list[Any]:
        """Return the results of all tasks, in the order of the tasks, with a progress bar.

        Args:
            tasks: Tasks of the job.
            reporter: Owner of the progress bar.
            title: Title of the bar.
            unit: Unit of the bar, which counts tasks.

        Raises:
            ExecutorError: see `results`.
        """
        done: dict[int, Any] = {}
        with reporter.bar(title, unit, len(tasks)) as bar:
            for index, result in self.results(tasks):
                done[index] = result
                bar.advance()
        return [done[index] for index in range(len(tasks))]


def explained(task: Any, error: BaseException) -> BaseException:
    """Return the error of a task, or of its executor, as an error with a message for the user."""
    if isinstance(error, _OUR_ERRORS):
        return error
    if isinstance(error, CancelledError):
        return ExecutorError(f"the executor has cancelled its tasks or lost its scheduler; {KEPT}")
    if isinstance(error, BrokenExecutor):
        return ExecutorError(f"a worker process of the executor has died; {KEPT}")
    return ExecutorError(f"{task} could not be done by any worker: {shown(error)}; {KEPT}")


_loaded: OrderedDict[str, tuple[int, LoadedJob]] = OrderedDict()
"""Loaded jobs of this process by token, each with the id of the process that loaded it."""
_one_at_a_time = threading.RLock()
"""Held by a task: random state, number of threads and devices belong to the process, not to a thread."""


def run_task(job: Job, task: Any) -> Any:
    """Return the result of a task; runs in a worker, which loads the job for its first task.

    Raises:
        InputError: if this worker cannot load the job, or has other conditions.
    """
    with _one_at_a_time:
        _compute_with(job.threads)
        return _loaded_here(job).run(task)


def load_job(job: Job) -> None:
    """Load a job in this worker, unless it is loaded.

    Raises:
        InputError: if this worker cannot load the job, or has other conditions.
    """
    with _one_at_a_time:
        _compute_with(job.threads)
        _loaded_here(job)


def keep_loaded(job: Job, loaded: LoadedJob) -> None:
    """Keep a job that this process has loaded, for workers that are threads of this process."""
    _loaded[job.token] = (os.getpid(), loaded)


def unload_job(token: str) -> None:
    """Free the memory of a job in this worker, once no task uses it."""
    _loaded.pop(token, None)


def _loaded_here(job: Job) -> LoadedJob:
    if job.token in _loaded:
        process, loaded = _loaded[job.token]
        if process != os.getpid():
            raise InputError(
                "the worker processes were forked from this process, whose threads do not exist in them; allowed: "
                "ProcessPoolExecutor(mp_context=multiprocessing.get_context('spawn'))"
            )
        return loaded
    while len(_loaded) >= _MOST_LOADED:
        _loaded.popitem(last=False)
    from threadpoolctl import threadpool_limits

    loaded = job.load()
    threadpool_limits(limits=job.threads)  # of NumPy and scikit-learn, whose libraries are loaded by now
    worker = f"worker {platform.node()}, process {os.getpid()}"
    # The message is read where the job was first loaded: "there" is the worker.
    refuse_other_conditions(loaded.conditions(), job.conditions, f"{worker} would compute other numbers")
    _loaded[job.token] = (os.getpid(), loaded)
    return loaded


def refuse_other_conditions(there: Mapping[str, str], here: Mapping[str, str], what: str, or_else: str = "") -> None:
    """Refuse conditions that differ.

    Args:
        there: Conditions of the worker or study that is refused.
        here: Conditions where the message is read.
        what: Statement that the message explains.
        or_else: What is allowed instead of equal conditions.

    Raises:
        InputError: if a condition differs; the message names each of them with both values.
    """
    if unlike := [key for key in {**there, **here} if there.get(key) != here.get(key)]:
        details = "; ".join(f"{key} is {there.get(key)!r:.80} there and {here.get(key)!r:.80} here" for key in unlike)
        raise InputError(f"{what}: {details}; allowed: the same values{or_else and f', or {or_else}'}")


def _compute_with(threads: int) -> None:
    """Set the number of CPU threads of torch for this thread, which new threads of the process take over."""
    import torch

    torch.set_num_threads(threads)
