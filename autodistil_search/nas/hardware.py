"""Latency, throughput and memory of a student on this machine, measured on the exported module.

The student is cast to the precision of the device once, before the measurement, as in deployment. Autocast would cast
every weight again at each pass. Processes of this machine measure one at a time. Inputs are random token ids: neither
time nor memory depends on their values.

A latency comes with the share of the processors' time that other processes took meanwhile, where the system states it.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from autodistil_search.base.device import Device
from autodistil_search.base.resources import cpu_seconds
from autodistil_search.nas.evaluation import DISTURBANCE

_WARM_UP = 3
_LEAST_PASSES, _MOST_PASSES = 10, 200
_SECONDS = 0.5
"""Seconds for which passes are repeated, within the numbers of passes above."""

_LEAST_WATCHED = 0.1
"""Seconds of a measurement from which the share of other processes is stated. Linux counts in hundredths."""


@dataclass(frozen=True)
class Passes:
    """Forward passes that were timed.

    Attributes:
        seconds: Seconds of each pass, ascending, without the warm-up passes.
        disturbance: Share of the processors' time that other processes took meanwhile; None if it is not known.
    """

    seconds: list[float]
    disturbance: float | None


@dataclass(frozen=True)
class Load:
    """Inputs and device of a measurement.

    Attributes:
        batch: Number of sequences in a batch.
        seq_len: Number of tokens in each sequence.
        device: Device to run on, and precision to which the student is cast.
    """

    batch: int
    seq_len: int
    device: Device

    @property
    def words(self) -> str:
        """Return a description for the reader of a report."""
        precision = self.device.precision if self.device.precision == "fp32" else f"{self.device.precision} weights"
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        return f"{self.batch} x {self.seq_len} tokens, {self.device.name} {precision}{threads}"


def timed_passes(model: nn.Module, load: Load) -> Passes:
    """Return the times of many forward passes."""
    with _prepared(model, load) as (_, run):
        return _timed(run)


def latency(model: nn.Module, load: Load) -> dict[str, float]:
    """Return the median milliseconds of a forward pass as `latency`, and their interquartile range as `latency_iqr`.

    The entry `evaluation.DISTURBANCE` is there if it is known.
    """
    return _latency(timed_passes(model, load))


def call_latency(run: Callable[[], object]) -> dict[str, float]:
    """Return the `latency` of any call, while no other process measures."""
    with FileLock(_lock_path(), mode=0o666):
        return _latency(_timed(run))


def _timed(run: Callable[[], object]) -> Passes:
    for _ in range(_WARM_UP):
        run()
    share_of_others = _watch()
    seconds: list[float] = []
    while len(seconds) < _LEAST_PASSES or (sum(seconds) < _SECONDS and len(seconds) < _MOST_PASSES):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return Passes(sorted(seconds), share_of_others())


def _watch() -> Callable[[], float | None]:
    """Return a function that states the share of the processors' time that other processes have taken since now."""
    before, own = cpu_seconds(), time.process_time()

    def share() -> float | None:
        now = cpu_seconds()
        if before is None or now is None or now.total - before.total < _LEAST_WATCHED:
            return None
        others = now.busy - before.busy - (time.process_time() - own)
        return min(1.0, max(0.0, others / (now.total - before.total)))

    return share


def _latency(passes: Passes) -> dict[str, float]:
    milliseconds = [1000 * duration for duration in passes.seconds]
    low, median, high = statistics.quantiles(milliseconds, n=4, method="inclusive")
    numbers = {"latency": median, "latency_iqr": high - low}
    return numbers if passes.disturbance is None else {**numbers, DISTURBANCE: passes.disturbance}


def throughput(model: nn.Module, load: Load) -> float:
    """Return the sequences per second of the median pass."""
    return load.batch / statistics.median(timed_passes(model, load).seconds)


def peak_bytes(model: nn.Module, load: Load) -> int:
    """Return the most bytes that weights and a forward pass hold at one time, by torch's allocations.

    The pass runs on the CPU if the backend of an accelerator does not count its allocations.
    """
    if not load.device.counts_memory:
        load = replace(load, device=Device("cpu", load.device.precision))
    with _prepared(model, load) as (shipped, run):
        weights = sum(tensor.nbytes for tensor in (*shipped.parameters(), *shipped.buffers()))
        run()
        if load.device.counts_memory:
            before = load.device.allocated_memory()
            load.device.reset_peak_memory()
            run()
            return weights + load.device.peak_memory() - before
        return weights + most_allocated(run)


def most_allocated(work: Callable[[], object]) -> int:
    """Return the most bytes that `work` holds on the CPU beyond earlier allocations."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler logs its start and stop to standard error
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    total = most = 0
    for event in sorted(
        (event for event in events if event["name"] == "[memory]"), key=lambda event: float(event["ts"])
    ):
        total += event["args"]["Bytes"]
        most = max(most, total)
    return most


@contextmanager
def _prepared(model: nn.Module, load: Load) -> Iterator[tuple[nn.Module, Callable[[], None]]]:
    """Yield the student in the device's precision and a function that runs a forward pass.

    No other process measures in the meantime. The function returns when the pass is complete.
    """
    device = load.device
    shipped = device.cast(model).eval()
    vocabulary: int = model.config.vocab_size  # type: ignore[union-attr,assignment]
    generator = torch.Generator().manual_seed(0)
    ids: Tensor = torch.randint(vocabulary, (load.batch, load.seq_len), generator=generator)
    ids = ids.to(device.name)

    @torch.inference_mode()
    def run() -> None:
        shipped(input_ids=ids)
        device.synchronize()

    with FileLock(_lock_path(), mode=0o666):
        yield shipped, run


def _lock_path() -> Path:
    return Path(tempfile.gettempdir()) / "autodistil-search-measures.lock"
