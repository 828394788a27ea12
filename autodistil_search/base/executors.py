"""Independent tasks of a job, run in this process or by the workers of any `concurrent.futures` executor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from autodistil_search.base.errors import InputError
from autodistil_search.base.jobs import Job, LoadedJob, Team, explained, keep_loaded, run_task, unload_job
from autodistil_search.base.plugins import shown
from autodistil_search.base.progress import Reporter

if TYPE_CHECKING:
    from distributed import Client

    AnyExecutor: TypeAlias = Executor | Client


@contextmanager
def open_executor(
    name: str | None, workers: int | None, reporter: Reporter, given: AnyExecutor | None = None
) -> Iterator[AnyExecutor | None]:
    """Yield the executor that the settings name, or one that a Python caller has given; None for this process alone.

    Args:
        name: "dask" for a local cluster, or "dask:ADDRESS".
        workers: Number of workers of the local cluster.
        reporter: Receiver of messages.
        given: Executor that takes precedence over `name`; it stays open.

    Raises:
        InputError: if `given` is no executor, Dask is not installed, or no scheduler answers at the address.
    """
    if not (given is None or isinstance(given, Executor) or hasattr(given, "get_executor")):
        raise InputError(f"executor {shown(given)}; allowed: a concurrent.futures executor, or a distributed.Client")
    if given is not None or name is None:
        yield given
        return
    try:
        from autodistil_search.base.dask_cluster import open_client
    except ImportError as error:
        raise InputError(f"--executor {name}: {error}; run pip install 'autodistil_search[distributed]'") from None
    import torch

    with open_client(name.partition(":")[2], workers, torch.get_num_threads(), reporter) as client:
        yield client


@contextmanager
def open_team(executor: AnyExecutor | None, loaded: LoadedJob, reporter: Reporter) -> Iterator[Team]:
    """Yield the workers of an executor, which load the same job; without an executor, this process.

    Args:
        executor: Any `concurrent.futures` executor, or a `distributed.Client`.
        loaded: Job, loaded in this process.
        reporter: Receiver of messages.

    Raises:
        InputError: if the workers of a `Client` have other conditions than this process.
    """
    if executor is None:
        yield _ThisProcess(loaded)
        return
    job = loaded.job()
    keep_loaded(job, loaded)
    try:
        if isinstance(executor, Executor):
            yield _Workers(executor, job)
            return
        from autodistil_search.base.dask_cluster import open_cluster_team  # extra "distributed"

        with open_cluster_team(executor, job, reporter) as team:
            yield team
    finally:
        unload_job(job.token)


@dataclass(frozen=True)
class _ThisProcess(Team):
    _job: LoadedJob
    alone: ClassVar[bool] = True

    def results(self, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for index, task in enumerate(tasks):
            yield index, self._job.run(task)


@dataclass(frozen=True)
class _Workers(Team):
    _executor: Executor
    _job: Job

    def results(self, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        futures: dict[Future[Any], int] = {}
        try:
            for index, task in enumerate(tasks):
                futures[self._submit(task)] = index
            for future in as_completed(list(futures)):
                index = futures.pop(future)
                if (error := _error_of(future)) is not None:
                    yield from [(futures[other], other.result()) for other in futures if _has_succeeded(other)]
                    raise explained(tasks[index], error) from error
                yield index, future.result()
        finally:
            for future in futures:
                future.cancel()

    def _submit(self, task: Any) -> Future[Any]:
        try:
            return self._executor.submit(run_task, self._job, task)
        except (BrokenExecutor, RuntimeError) as error:  # broken or shut down before
            raise explained(task, error) from error


def _error_of(future: Future[Any]) -> BaseException | None:
    """Return the error of a future that is done; None if it has a result."""
    return CancelledError() if future.cancelled() else future.exception()


def _has_succeeded(future: Future[Any]) -> bool:
    return future.done() and _error_of(future) is None
