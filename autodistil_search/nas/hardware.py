"""What a student takes on this machine: time and memory of a forward pass, measured on the module that ships.

The student is cast to the precision of the device once, before it is measured, as one that serves would be: autocast
would cast every weight again at each pass. A measurement is taken while no other one is, whatever process of this
machine takes it. SearchInputs are random token ids: neither time nor memory depends on which they are.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from autodistil_search.base.device import Device

_WARM_UP = 3
_LEAST_PASSES, _MOST_PASSES = 10, 200
_SECONDS = 0.5
"""Passes are repeated for so long, within these numbers."""


@dataclass(frozen=True)
class Load:
    """What a student is given.

    batch: sequences at once; seq_len: tokens in each; device: where it runs, and the precision it is cast to.
    """

    batch: int
    seq_len: int
    device: Device

    @property
    def words(self) -> str:
        """For the reader of a report."""
        precision = self.device.precision if self.device.precision == "fp32" else f"{self.device.precision} weights"
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        return f"{self.batch} x {self.seq_len} tokens, {self.device.name} {precision}{threads}"


def pass_seconds(model: nn.Module, load: Load) -> list[float]:
    """Seconds of each of many forward passes, ascending; the first ones do not count."""
    with _prepared(model, load) as (_, run):
        return _timed(run)


def latency(model: nn.Module, load: Load) -> dict[str, float]:
    """Median milliseconds of a forward pass as `latency`, and the distance of its quartiles as `latency_iqr`."""
    return _latency(pass_seconds(model, load))


def call_latency(run: Callable[[], object]) -> dict[str, float]:
    """`latency` of any call, while no other process measures."""
    with FileLock(_lock_path(), mode=0o666):
        return _latency(_timed(run))


def _timed(run: Callable[[], object]) -> list[float]:
    for _ in range(_WARM_UP):
        run()
    seconds: list[float] = []
    while len(seconds) < _LEAST_PASSES or (sum(seconds) < _SECONDS and len(seconds) < _MOST_PASSES):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)


def _latency(seconds: Sequence[float]) -> dict[str, float]:
    milliseconds = [1000 * each for each in seconds]
    low, median, high = statistics.quantiles(milliseconds, n=4, method="inclusive")
    return {"latency": median, "latency_iqr": high - low}


def throughput(model: nn.Module, load: Load) -> float:
    """Sequences a second, by the median pass."""
    return load.batch / statistics.median(pass_seconds(model, load))


def peak_bytes(model: nn.Module, load: Load) -> int:
    """The most bytes that weights and a forward pass hold at one time, by the allocations that torch makes."""
    with _prepared(model, load) as (shipped, run):
        weights = sum(tensor.nbytes for tensor in (*shipped.parameters(), *shipped.buffers()))
        run()
        if load.device.type == "cuda":
            before = torch.cuda.memory_allocated(load.device.name)
            torch.cuda.reset_peak_memory_stats(load.device.name)
            run()
            return weights + torch.cuda.max_memory_allocated(load.device.name) - before
        return weights + most_allocated(run)


def most_allocated(work: Callable[[], object]) -> int:
    """The most bytes that `work` allocates on the CPU beyond what stood before it."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler tells standard error of its starts and stops
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    total = most = 0
    for event in sorted((each for each in events if each["name"] == "[memory]"), key=lambda each: float(each["ts"])):
        total += event["args"]["Bytes"]
        most = max(most, total)
    return most


@contextmanager
def _prepared(model: nn.Module, load: Load) -> Iterator[tuple[nn.Module, Callable[[], None]]]:
    """The student as it serves and a forward pass to call, while no other process measures.

    On a GPU the call returns when the pass is done.
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
        if device.type == "cuda":
            torch.cuda.synchronize(device.name)

    with FileLock(_lock_path(), mode=0o666):
        yield shipped, run


def _lock_path() -> Path:
    return Path(tempfile.gettempdir()) / "autodistil-search-measures.lock"
