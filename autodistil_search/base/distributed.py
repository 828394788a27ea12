"""Processes that train one model together, on one machine or several.

`accelerate launch` and `torchrun` start the processes and number them by environment variables. Without a launcher
there is one process. Training is data-parallel: each process holds the whole model and computes its rows of each batch.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_SECONDS_BETWEEN_LOOKS = 0.1


def machine() -> str:
    """Return a description of this machine; times compare only between machines of the same description."""
    words = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        words = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), words)
    return f"{words}, {os.cpu_count()} cores"


class Processes:
    """Single process, which has nothing to exchange; the interface of several processes."""

    rank = 0
    count = 1

    @property
    def main(self) -> bool:
        """True for the process that writes files and messages."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """Return this process's slice of the `rows` of a batch; the slices of all ranks make up the batch."""
        return slice(rows * self.rank // self.count, rows * (self.rank + 1) // self.count)

    def begin_sum(self, tensor: Tensor) -> None:
        """Begin to sum `tensor`, in place, over all processes; `add_up` waits for the end."""

    def add_up(self, gradients: Iterable[Tensor], numbers: Tensor) -> None:
        """Sum `gradients` and `numbers`, in place, over all processes."""

    def from_main(self, value: Any) -> Any:
        """Return the main process's `value` on every process."""
        return value

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite `tensors` with those of the main process."""

    def gather(self, value: Any) -> list[Any]:
        """Return the `value` of every process, by rank."""
        return [value]

    def once(self, work: Callable[[], Any]) -> Any:
        """Run `work` on the main process, and return its result, which is JSON, everywhere, however long it takes."""
        return work()

    def meet(self) -> None:
        """Wait until every process is here, however long it takes."""


class _Launched(Processes):
    """Process among several, connected by accelerate: NCCL between GPUs, Gloo between CPUs."""

    def __init__(self, on_cpu: bool) -> None:
        import torch
        from accelerate import PartialState

        self._torch = torch

        self._state = PartialState(cpu=on_cpu)
        self.rank = self._state.process_index
        self.count = self._state.num_processes
        self._begun: list[Any] = []
        self._meetings = 0

    def begin_sum(self, tensor: Tensor) -> None:
        self._begun.append(self._torch.distributed.all_reduce(tensor, async_op=True))

    def add_up(self, gradients: Iterable[Tensor], numbers: Tensor) -> None:
        for tensor in (*gradients, numbers):
            self.begin_sum(tensor)
        for work in self._begun:
            work.wait()
        self._begun.clear()

    def from_main(self, value: Any) -> Any:
        holder = [value]
        self._torch.distributed.broadcast_object_list(holder, src=0)
        return holder[0]

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            self._torch.distributed.broadcast(tensor, src=0)

    def gather(self, value: Any) -> list[Any]:
        gathered: list[Any] = [None] * self.count
        self._torch.distributed.all_gather_object(gathered, value)
        return gathered

    def once(self, work: Callable[[], Any]) -> Any:
        return self._told([0], json.dumps(work()) if self.main else None)

    def meet(self) -> None:
        self._told(range(self.count), "null")

    def _told(self, ranks: Sequence[int], own: str | None) -> Any:
        """Leave `own` in the store of the processes; once all of `ranks` have, return what the first has left.

        A collective would end after its timeout: 10 minutes for NCCL.
        """
        store = self._torch.distributed.distributed_c10d._get_default_store()
        self._meetings += 1
        keys = [f"autodistil_search/{self._meetings}/{rank}" for rank in ranks]
        if own is not None:
            store.set(keys[self.rank], own)
        while not store.check(keys):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return json.loads(store.get(keys[0]))


_group: Processes | None = None


def processes(on_cpu: bool = True) -> Processes:
    """Return the group of processes that this process belongs to; the first call connects them.

    Args:
        on_cpu: True if the processes compute on CPUs, even if the machine has GPUs.
    """
    global _group
    if _group is None:
        _group = _Launched(on_cpu) if launched() > 1 else Processes()
    return _group


def launched() -> int:
    """Return the number of processes that were launched together; it is known before they are connected."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Return True for the process that writes messages; it is known before the processes are connected."""
    return os.environ.get("RANK", "0") == "0"


def is_first_on_host() -> bool:
    """Return True for one process of each host."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
