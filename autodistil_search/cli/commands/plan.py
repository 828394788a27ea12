"""`plan`: an estimate of the time and memory of a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from autodistil_search.base.errors import InputError
from autodistil_search.cli.command import Command, Outcome, json_record
from autodistil_search.cli.parser import CommandParser, add_settings, add_tokens, as_text, as_whole_number
from autodistil_search.nas.objectives import parse_amount
from autodistil_search.runs.named_parts import check_names
from autodistil_search.settings.common import Count, check_value, flag, steps_of
from autodistil_search.settings.train import TrainConfig

if TYPE_CHECKING:
    from rich.console import Console

    from autodistil_search.base.device import Device
    from autodistil_search.base.progress import Reporter
    from autodistil_search.distillation.plan import Plan
    from autodistil_search.distillation.step_cost import Rates

_PLANNED = (
    *("space", "depth", "teacher", "teacher_layer", "seq_len", "loss", "relations", "relation_heads", "sampling"),
    *("random_subnets", "subnet_weights", "in_place", "hidden", "seed", "device", "precision", "keep"),
)
"""Settings on which a plan depends."""


def _add_plan(parser: CommandParser) -> None:
    parser.add_argument("-n", "--steps", type=as_whole_number, metavar="N", help="Training steps.")
    add_tokens(parser)
    parser.add_argument(
        "--devices", type=as_whole_number, default=1, metavar="N", help="Devices that share each step (default: 1)."
    )
    parser.add_argument(
        *("-b", "--batch-size"),
        type=as_whole_number,
        metavar="N",
        help="Blocks of a step on all devices; by default 4 per device.",
    )
    parser.add_argument(
        "--device-name",
        type=as_text,
        metavar="NAME",
        help="Device to plan for by its known rates, such as H100; by default steps are timed on this machine.",
    )
    parser.add_argument(
        "--flops-per-second",
        type=as_text,
        metavar="AMOUNT",
        help="Sustained FLOP/s of a device, such as 400T; by default that of --device-name.",
    )
    parser.add_argument(
        "--bandwidth",
        type=as_text,
        metavar="AMOUNT",
        help="Sustained bytes per second of a device's memory, such as 2.7T; by default those of --device-name.",
    )
    parser.add_argument(
        "--launch-microseconds",
        type=as_text,
        metavar="NUMBER",
        help="Microseconds that the host needs to launch an operation; 9 by default.",
    )
    add_settings(parser, TrainConfig, _PLANNED)


_RATES = ("flops_per_second", "bandwidth", "launch_microseconds")
_OWN = ("steps", "tokens", "devices", "batch_size", "device_name", *_RATES)
"""Flags of this command that are no settings of a training."""


def _plan(settings: Mapping[str, Any], reporter: Reporter) -> Outcome:
    devices, batch_size = settings["devices"], settings["batch_size"]
    if settings["steps"] is None and settings["tokens"] is None:
        raise InputError("--steps or --tokens is required")
    check_value("--devices", devices, Count)
    others = {name: value for name, value in settings.items() if name not in _OWN}
    if batch_size is not None:
        check_value("--batch-size", batch_size, Count)
    else:
        batch_size = TrainConfig.batch_size * devices
    steps = {} if settings["steps"] is None else {"steps": settings["steps"]}
    config = TrainConfig.from_dict({**others, **steps, "batch_size": batch_size})
    if settings["tokens"] is not None:
        number, note = steps_of(settings, config.batch_size, config.seq_len)
        config = replace(config, steps=number)
        reporter.say(note)
    if config.batch_size < devices:
        raise InputError(f"--batch-size {config.batch_size}; allowed: at least one block for each of {devices} devices")
    stated = _Stated(settings["device_name"], *(parse_amount(settings[name], flag(name)) for name in _RATES))
    config = stated.with_precision(config)
    check_names(config)

    from autodistil_search.distillation.plan import make_plan
    from autodistil_search.runs.training_inputs import resolve_training

    inputs = resolve_training(config, needs_text=False)
    rates = stated.rates(inputs.device)
    plans = [
        make_plan(space, inputs.teacher, inputs.options, config.seq_len, inputs.device, devices, rates, reporter)
        for space in inputs.spaces
    ]
    if rates is None:
        where = f"measured here, {inputs.device.name} {inputs.device.precision}"
    else:
        where = f"{stated.device_name} {inputs.device.precision}, by formula" if stated.device_name else "as stated"
    return Outcome(plans_record(plans, where, config.keep), partial(print_plans, plans, where, config.keep))


@dataclass(frozen=True)
class _Stated:
    """What the command line states of a device."""

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
        from autodistil_search.distillation.step_cost import known_peak

        has_bf16 = known_peak(self.device_name).bf16
        if config.precision == "bf16" and not has_bf16:
            raise InputError(f"--precision bf16 with --device-name {self.device_name}; allowed: auto, fp32, fp16")
        return replace(config, precision="bf16" if has_bf16 else "fp16") if config.precision == "auto" else config

    def rates(self, device: Device) -> Rates | None:
        """Return the stated rates, completed by the known rates of the device; None to time steps on `device`.

        Raises:
            InputError: if a rate is stated, but not the FLOP/s.
        """
        from autodistil_search.distillation import step_cost

        name = self.device_name
        if name is None and self.flops is None:
            if self.bandwidth or self.launch_microseconds:
                raise InputError(
                    "--bandwidth and --launch-microseconds need the FLOP/s of the device; allowed: with --device-name "
                    "or --flops-per-second"
                )
            return None
        if name is None and device.type == "cuda":
            import torch

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


def plans_record(plans: Sequence[Plan], speed: str, keep: int) -> dict[str, Any]:
    """Return the plans with a row for each space, and the hours of all spaces together.

    speed: origin of the seconds of a step. keep: number of checkpoints on disk at a time.
    """
    from autodistil_search.distillation.plan import together

    rows = [
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
            "checkpoints_bytes": keep * plan.checkpoint,
        }
        for plan in plans
    ]
    hours = {"hours": together(plans).hours, "hours_apart": sum(plan.hours for plan in plans)}
    return json_record({"speed": speed, **hours, "plans": rows})


def print_plans(plans: Sequence[Plan], speed: str, keep: int, console: Console) -> None:
    """Print the plans with a column for each space and for several together, and the limits of the numbers.

    speed: origin of the seconds of a step. keep: number of checkpoints on disk at a time.
    """
    from rich.table import Table

    from autodistil_search.distillation.plan import together
    from autodistil_search.report.views import shown

    joint = together(plans)
    columns = [*plans, joint] if len(plans) > 1 else [*plans]
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("")
    for plan in columns:
        table.add_column(plan.name, justify="right", no_wrap=True)
    rows: dict[str, Callable[[Plan], str]] = {
        "steps": lambda plan: f"{plan.steps:,}",
        "tokens": lambda plan: shown(plan.steps * plan.devices * plan.rows * plan.seq_len),
        "tokens of a step": lambda plan: f"{plan.devices} x {plan.rows} x {plan.seq_len}",
        "FLOPs of a step per device": lambda plan: shown(plan.flops),
        f"seconds of a step ({speed})": lambda plan: f"{plan.seconds:.3g}",
        "  teacher": lambda plan: f"{plan.teacher_seconds:.3g}",
        **{
            f"  {name} alone": lambda plan, name=name: f"{plan.bounds[name]:.3g}"  # type: ignore[misc]
            for name in joint.bounds
        },
        "FLOP/s of a device": lambda plan: shown(plan.flops / plan.seconds),
        "hours": lambda plan: f"{plan.hours:,.2f}",
        "device-hours": lambda plan: f"{plan.hours * plan.devices:,.2f}",
        "memory of a device": lambda plan: shown(plan.memory.total) + "B",
        "  weights of the teacher": lambda plan: shown(plan.memory.teacher) + "B",
        "  SuperLM weights": lambda plan: shown(plan.memory.weights) + "B",
        "  gradients (exchanged each step)": lambda plan: shown(plan.memory.gradients) + "B",
        "  AdamW moments": lambda plan: shown(plan.memory.moments) + "B",
        "  activations": lambda plan: shown(plan.memory.activations) + "B",
        "checkpoint": lambda plan: shown(plan.checkpoint) + "B",
        f"last {keep} checkpoints": lambda plan: shown(keep * plan.checkpoint) + "B",
    }
    for name, cell in rows.items():
        table.add_row(name, *map(cell, columns))
    console.print(table)
    hours = joint.hours
    lines = [
        f"total: {hours:,.2f} hours, {hours / 24:,.1f} days; saving adds up to 5 %; gradient exchange is not included",
        "FLOPs: two for each executed multiply-add of teacher (forward) and subnets (forward and backward)",
        "memory: peak while steps are timed (on a CPU, of the whole process), or else the sum of the parts",
    ]
    if len(plans) > 1:
        lines.insert(1, "together: SuperLMs that train together share one teacher pass for each batch")
    if joint.rates is not None:
        lines.insert(1, "a step by formula takes the time of its slowest bound; no GPU has confirmed the formula yet")
        if joint.rates.bandwidth is None:
            lines.insert(2, "memory traffic does not count: its rate is not known; state --bandwidth or --device-name")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


COMMAND = Command(
    "plan",
    summary="estimate the time and memory of a training",
    description="Estimate the steps, hours, device memory and checkpoints of training a SuperLM.",
    examples=(
        "autodistil-search plan --space tiny --tokens 100M",
        "autodistil-search plan --space tiny,small,base --tokens 26B --devices 16 --batch-size 2048 --device-name H100",
    ),
    run=_plan,
    add_flags=_add_plan,
)
