"""Device and precision of the arithmetic, and the free memory of the device."""

from __future__ import annotations

import copy
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from autodistil_search.base.distributed import Processes, processes
from autodistil_search.base.errors import InputError
from autodistil_search.base.resources import FreeMemory, free_memory

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")

_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Device:
    """Device and the precision of its matrix products; softmax, norms and relations stay in float32."""

    name: str
    precision: str

    @property
    def type(self) -> str:
        """Kind of device, `cpu` or `cuda`, without the index of a GPU."""
        return self.name.partition(":")[0]

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the numbers in matrix products."""
        return _HALVES.get(self.precision, torch.float32)

    @property
    def processes(self) -> Processes:
        """Processes that were launched together, connected as this kind of device needs."""
        return processes(on_cpu=self.type == "cpu")

    def place(self, module: torch.nn.Module) -> None:
        """Move `module` to this device."""
        module.to(self.name)

    def free_memory(self) -> FreeMemory | None:
        """Return the memory that this process can still allocate on this device; None if the system does not say."""
        if self.type != "cuda":
            return free_memory()
        cached = torch.cuda.memory_reserved(self.name) - torch.cuda.memory_allocated(self.name)
        return FreeMemory(torch.cuda.mem_get_info(self.name)[0] + cached, self.name)

    def cast(self, module: torch.nn.Module) -> torch.nn.Module:
        """Return a copy of `module` on this device with weights in this precision; in float32, `module` itself."""
        if self.precision == "fp32":
            return module.to(self.name)
        return copy.deepcopy(module).to(self.name, _HALVES[self.precision])

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which models run: autocast, or nothing in float32."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.type, dtype=_HALVES[self.precision])

    def scaler(self) -> torch.amp.GradScaler:
        """Return a loss scaler that keeps gradients within the range of float16; it is idle in other precisions."""
        return torch.amp.GradScaler(self.type, enabled=self.precision == "fp16")


def choose_device(device: str = "auto", precision: str = "auto") -> Device:
    """Return the device and precision of two settings; "auto" prefers CUDA, and bf16 if the hardware supports it.

    `accelerate launch --mixed_precision` overrides the "auto" precision. A CPU without bfloat16 instructions gets fp32,
    because it emulates bf16 many times slower. With several GPUs, each launched process takes its own.

    Args:
        device: One of `DEVICES`.
        precision: One of `PRECISIONS`.

    Raises:
        InputError: for an unknown value, or for "cuda" on a machine without CUDA.
    """
    if device not in DEVICES or precision not in PRECISIONS:
        raise InputError(
            f"--device {device!r}, --precision {precision!r}; allowed: {', '.join(DEVICES)} and {', '.join(PRECISIONS)}"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda, but torch sees no CUDA device here; allowed: auto, cpu")
    name = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    if precision == "auto":
        launched_with = os.environ.get("ACCELERATE_MIXED_PRECISION")
        precision = str(launched_with) if launched_with in _HALVES else "bf16" if has_bf16(name) else "fp32"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    return Device(name, precision)


def has_bf16(device: str) -> bool:
    """Return True if a kind of device, `cpu` or `cuda`, computes natively in bfloat16, without emulation."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
