"""`plan`: an estimate of the time and memory of a training, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd
import torch

from autodistil_search.base.device import Device
from autodistil_search.base.errors import InputError
from autodistil_search.base.progress import Reporter
from autodistil_search.distillation import step_cost
from autodistil_search.distillation.plan import Plan, make_plan, together
from autodistil_search.distillation.step_cost import Rates
from autodistil_search.nas.objectives import parse_amount
from autodistil_search.runs.training_inputs import resolve_training
from autodistil_search.settings.common import Count, check_value, flag, steps_of
from autodistil_search.settings.train import TrainConfig

_GIB = 2**30


@dataclass(frozen=True)
class PlannedTraining:
    """Estimated cost of a training.

    Args:
        plans: Plan of each space.
        speed: Origin of the seconds of a step, in words.
        keep: Number of checkpoints on disk at a time.
    """

    plans: Sequence[Plan]
    speed: str
    keep: int

    @property
    def hours(self) -> float:
        """Return the hours of all spaces, which train together and share the teacher."""
        return together(self.plans).hours

    @property
    def hours_apart(self) -> float:
        """Return the hours of all spaces, if each is trained alone."""
        return sum(plan.hours for plan in self.plans)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Return the numbers of each space; times in seconds and hours, memory in bytes."""
        return [
            {
                "space": plan.name,
                "steps": plan.steps,
                "tokens": plan.steps * plan.devices * plan.rows * plan.seq_len,
                "devices": plan.devices,
                "rows_per_device": plan.rows,
                "seq_len": plan.seq_len,
                "step_flops_per_device": plan.flops,
                "step_seconds": plan.seconds,
                "teacher_seconds": plan.teacher_seconds,
                "bounds_seconds": {name.replace(" ", "_").lower(): seconds for name, seconds in plan.bounds.items()},
                "hours": plan.hours,
                "device_hours": plan.hours * plan.devices,
                "memory_bytes": {**asdict(plan.memory), "total": plan.memory.total},
                "checkpoint_bytes": plan.checkpoint,
                "checkpoints_bytes": self.keep * plan.checkpoint,
            }
            for plan in self.plans
        ]

    @property
    def table(self) -> pd.DataFrame:
        """Return the main numbers of each space: steps, seconds of a step, hours, and memory in GiB."""
        rows = [
            {
                "space": plan.name,
                "steps": plan.steps,
                "step_seconds": plan.seconds,
                "hours": plan.hours,
                "device_memory_gib": plan.memory.total / _GIB,
                "checkpoint_gib": plan.checkpoint / _GIB,
            }
            for plan in self.plans
        ]
        return pd.DataFrame(rows).set_index("space")

    def __repr__(self) -> str:
        return f"{self.table.to_string(float_format='{:.4g}'.format)}\ntotal: {self.hours:.4g} hours ({self.speed})"

    def _repr_html_(self) -> str:
        """Return the table as HTML for notebooks."""
        frame = self.table.to_html(float_format="{:.4g}".format)
        return f"{frame}<p>total: {self.hours:.4g} hours ({self.speed})</p>"


def plan(
    config: TrainConfig,
    reporter: Reporter | None = None,
    *,
    steps: int | None = None,
    tokens: str | float | None = None,
    devices: int = 1,
    batch_size: int | None = None,
    device_name: str | None = None,
    flops_per_second: str | float | None = None,
    bandwidth: str | float | None = None,
    launch_microseconds: str | float | None = None,
) -> PlannedTraining:
    """Return an estimate of the steps, hours, device memory and checkpoints of a training.

    The arguments are those of `autodistil_search.plan`; without a reporter, nothing is shown.

    Raises:
        InputError: if an input cannot be used, or a device is unknown.
    """
    if steps is None and tokens is None:
        raise InputError("--steps or --tokens is required")
    check_value("--devices", devices, Count)
    if batch_size is not None:
        check_value("--batch-size", batch_size, Count)
    config = replace(config, batch_size=TrainConfig.batch_size * devices if batch_size is None else batch_size)
    if config.batch_size < devices:
        raise InputError(f"--batch-size {config.batch_size}; allowed: at least one block for each of {devices} devices")
    given = {"flops_per_second": flops_per_second, "bandwidth": bandwidth, "launch_microseconds": launch_microseconds}
    amounts = [parse_amount(value, flag(name)) for name, value in given.items()]
    stated = _Stated(device_name, *amounts)
    config = stated.with_precision(config)
    if tokens is not None:
        steps, note = steps_of({"steps": steps, "tokens": tokens}, config.batch_size, config.seq_len)
        (reporter or Reporter()).say(note)
    assert steps is not None
    config = replace(config, steps=steps)
    inputs = resolve_training(config, needs_text=False)
    rates = stated.rates(inputs.device)
    plans = [
        make_plan(space, inputs.teacher, inputs.options, config.seq_len, inputs.device, devices, rates, reporter)
        for space in inputs.spaces
    ]
    return PlannedTraining(plans, _origin(rates, stated, inputs.device), config.keep)


def _origin(rates: Rates | None, stated: _Stated, device: Device) -> str:
    """Return the origin of the seconds of a step, in words."""
    if rates is None:
        return f"measured here, {device.name} {device.precision}"
    return f"{stated.device_name} {device.precision}, by formula" if stated.device_name else "as stated"


@dataclass(frozen=True)
class _Stated:
    """Rates that the caller states about a device."""

    device_name: str | None
    flops: float | None
    bandwidth: float | None
    launch_microseconds: float | None

    def with_precision(self, config: TrainConfig) -> TrainConfig:
        """Return the settings with a precision in place of "auto", if a device is named: half precision.

        Raises:
            InputError: if the device is unknown, or lacks the precision.
        """
        if self.device_name is None:
            return config
        has_bf16 = step_cost.known_peak(self.device_name).bf16
        if config.precision == "bf16" and not has_bf16:
            raise InputError(f"--precision bf16 with --device-name {self.device_name}; allowed: auto, fp32, fp16")
        return replace(config, precision="bf16" if has_bf16 else "fp16") if config.precision == "auto" else config

    def rates(self, device: Device) -> Rates | None:
        """Return the stated rates, completed by the known rates of the device; None to time steps on `device`.

        Raises:
            InputError: if a rate is stated, but not the FLOP/s.
        """
        name = self.device_name
        if name is None and self.flops is None:
            if self.bandwidth or self.launch_microseconds:
                raise InputError(
                    "--bandwidth and --launch-microseconds need the FLOP/s of the device; allowed: with --device-name "
                    "or --flops-per-second"
                )
            return None
        if name is None and device.type == "cuda":
            name = torch.cuda.get_device_name(device.name)
        peak = step_cost.peak_of(name) if name else None
        if peak is not None:
            rates = step_cost.Rates.of(peak, device.precision)
        else:
            assert self.flops is not None  # an unknown --device-name is refused before
            rates = step_cost.Rates(self.flops, None)
        return replace(
            rates,
            flops=self.flops or rates.flops,
            bandwidth=self.bandwidth or rates.bandwidth,
            launch_seconds=1e-6 * self.launch_microseconds if self.launch_microseconds else rates.launch_seconds,
        )
