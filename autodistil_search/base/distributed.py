"""The processes that train one model together, on one machine or many; one alone unless something launched more.

`accelerate launch` and `torchrun` start them and say by environment variables who is who. Each holds the whole model,
as every process of data-parallel training does, and works on its own rows of each batch.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def machine() -> str:
    """What this machine is, in words: times measured on machines with other words do not compare."""
    words = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        words = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), words)
    return f"{words}, {os.cpu_count()} cores"


class Processes:
    """One process alone: everything is its own, and nothing has to be exchanged."""

    rank = 0
    count = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """Which of the `rows` of a batch are this process's; all shares, by rank, are the batch."""
        return slice(rows * self.rank // self.count, rows * (self.rank + 1) // self.count)

    def add_up(self, parameters: Iterable[nn.Parameter], numbers: Sequence[float]) -> list[float]:
        """Add up gradients, in place, and `numbers` over all processes; one reduction for all of them."""
        return list(numbers)

    def from_main(self, value: Any) -> Any:
        """The main process's `value`, on every process."""
        return value

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite `tensors` with the main process's."""

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value`, by rank."""
        return [value]


class _Launched(Processes):
    """One of several, connected by accelerate: NCCL between GPUs, Gloo between CPUs."""

    def __init__(self, on_cpu: bool) -> None:
        import torch
        from accelerate import PartialState

        self._torch = torch

        self._state = PartialState(cpu=on_cpu)
        self.rank = self._state.process_index
        self.count = self._state.num_processes

    def add_up(self, parameters: Iterable[nn.Parameter], numbers: Sequence[float]) -> list[float]:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        own = self._torch.tensor(numbers, dtype=self._torch.float32, device=self._state.device)
        flat = self._torch.cat([*(gradient.reshape(-1) for gradient in gradients), own])
        self._torch.distributed.all_reduce(flat)
        *parts, summed = flat.split([*(gradient.numel() for gradient in gradients), len(own)])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return [float(number) for number in summed.tolist()]

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


_group: Processes | None = None


def processes(on_cpu: bool = True) -> Processes:
    """The processes that this one belongs to; connects with them when first called.

    on_cpu: whether they compute on CPUs, though there may be GPUs.
    """
    global _group
    if _group is None:
        _group = _Launched(on_cpu) if launched() > 1 else Processes()
    return _group


def launched() -> int:
    """How many processes were started together; known before they are connected."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one to talk to the user; known before they are connected."""
    return os.environ.get("RANK", "0") == "0"
