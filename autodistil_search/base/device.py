"""Device and precision of the arithmetic, and the memory of the device.

A device is the CPU, or the accelerator that `torch.accelerator` names: CUDA (also for ROCm), MPS, XPU, or a backend
that a package adds to torch. Backends differ in their functions; this module has a replacement for each missing one.
"""

from __future__ import annotations

import copy
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from autodistil_search.base.distributed import Processes, processes
from autodistil_search.base.errors import InputError
from autodistil_search.base.resources import FreeMemory, free_memory
from autodistil_search.base.user_input import meant, quoted

DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")
"""Well-known devices; a package can add another one to torch."""
PRECISIONS = ("auto", "fp32", "bf16", "fp16")

_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_FAST_FP16 = (7, 0)
"""Least compute capability of CUDA devices with matrix units for float16: Volta."""


@dataclass(frozen=True)
class Device:
    """Device and the precision of its matrix products. Relations and sums of gradients are always in float32."""

    name: str
    precision: str

    @property
    def type(self) -> str:
        """Kind of device, such as `cpu` or `cuda`, without the index."""
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

    def synchronize(self) -> None:
        """Wait until the device has completed all work."""
        if self.type != "cpu":
            torch.accelerator.synchronize(self.name)

    def free_memory(self) -> FreeMemory | None:
        """Return the memory that this process can still allocate on this device; None if the system does not say.

        An accelerator whose backend does not say is taken to share the memory of the machine, as MPS does.
        """
        if not self.counts_memory:
            return free_memory()
        cached = self._backend.memory_reserved(self.name) - self._backend.memory_allocated(self.name)
        return FreeMemory(self._backend.mem_get_info(self.name)[0] + cached, self.name)

    @property
    def counts_memory(self) -> bool:
        """True if the backend of the device counts its allocations."""
        return self.type != "cpu" and hasattr(self._backend, "max_memory_allocated")

    def reset_peak_memory(self) -> None:
        """Reset `peak_memory`; allowed if the device counts its memory."""
        self._backend.reset_peak_memory_stats(self.name)

    def peak_memory(self) -> int:
        """Return the most bytes of tensors since the reset; allowed if the device counts its memory."""
        return int(self._backend.max_memory_allocated(self.name))

    def allocated_memory(self) -> int:
        """Return the bytes of tensors; allowed if the device counts its memory."""
        return int(self._backend.memory_allocated(self.name))

    @property
    def _backend(self) -> Any:
        return torch.get_device_module(self.type)

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


def accelerator() -> str | None:
    """Return the kind of the accelerator of this machine, such as "cuda"; None if torch sees none."""
    found = torch.accelerator.current_accelerator()  # what torch is built for
    return found.type if found is not None and torch.accelerator.is_available() else None


def choose_device(device: str = "auto", precision: str = "auto") -> Device:
    """Return the device and precision of two settings; "auto" prefers an accelerator.

    The "auto" precision is bf16 if the hardware computes in it. Otherwise it is fp16 on a CUDA device with matrix units
    for float16 (V100, T4), and fp32 elsewhere. `accelerate launch --mixed_precision` overrides it. With several
    devices, each launched process takes its own.

    Args:
        device: One of `DEVICES`, or another name that `torch.accelerator` gives.
        precision: One of `PRECISIONS`.

    Raises:
        InputError: for an unknown value, or for a device that this machine does not have.
    """
    here = ["auto", "cpu", *filter(None, [accelerator()])]
    if device not in here:
        if device in DEVICES:
            raise InputError(f"--device {device}, but torch sees no {device} device here; allowed: {', '.join(here)}")
        known = [*DEVICES, *(name for name in here if name not in DEVICES)]
        raise InputError(f"--device {quoted(device)}{meant(device, known)}; allowed: {', '.join(known)}")
    if precision not in PRECISIONS:
        raise InputError(
            f"--precision {quoted(precision)}{meant(precision, PRECISIONS)}; allowed: {', '.join(PRECISIONS)}"
        )
    name = here[-1] if device == "auto" else device
    if precision == "auto":
        launched_with = os.environ.get("ACCELERATE_MIXED_PRECISION")
        precision = str(launched_with) if launched_with in _HALVES else fastest_precision(name)
    if name != "cpu" and "LOCAL_RANK" in os.environ:
        # As accelerate does it: a launcher may show each process a single device.
        name = f"{name}:{int(os.environ['LOCAL_RANK']) % max(1, torch.accelerator.device_count())}"
    return Device(name, precision)


def fastest_precision(kind: str) -> str:
    """Return the precision that "auto" selects for a kind of device, such as `cpu` or `cuda`."""
    if has_bf16(kind):
        return "bf16"
    return "fp16" if kind == "cuda" and torch.cuda.get_device_capability() >= _FAST_FP16 else "fp32"


def has_bf16(kind: str) -> bool:
    """Return True if a kind of device, such as `cpu` or `cuda`, computes natively in bfloat16, without emulation."""
    if kind == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    supported = getattr(torch.get_device_module(kind), "is_bf16_supported", None)
    return supported is not None and bool(supported(including_emulation=False))


def send(tensor: Tensor, device: str) -> Tensor:
    """Return a tensor of the CPU on another device, without waiting for the work that the device has still to do."""
    if device.partition(":")[0] in ("cpu", "mps"):  # MPS shares the memory of the CPU
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@cache
def has_float64(kind: str) -> bool:
    """Return True if a kind of device has tensors in float64; MPS does not. Unknown backends count as without."""
    if kind in ("cpu", "cuda"):
        return True
    try:
        return torch.float64 in torch.accelerator.get_device_capability(kind)["supported_dtypes"]
    except (AttributeError, RuntimeError):  # an older torch, or a backend that does not say
        return False


def as_float64(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, on the CPU if its device has no float64."""
    return (tensor if has_float64(tensor.device.type) else tensor.cpu()).double()
