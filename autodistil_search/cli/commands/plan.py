"""`plan`: an estimate of the time and memory of a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from autodistil_search.base.errors import InputError
from autodistil_search.cli.command import Command, Outcome, json_record
from autodistil_search.cli.parser import CommandParser, add_settings, as_text, as_whole_number
from autodistil_search.nas.objectives import parse_amount
from autodistil_search.settings.common import Count, check_value
from autodistil_search.settings.train import TrainConfig

if TYPE_CHECKING:
    from rich.console import Console

    from autodistil_search.base.progress import Reporter
    from autodistil_search.distillation.plan import Plan


_PLANNED = (
    *("space", "depth", "teacher", "teacher_layer", "seq_len", "loss", "relations", "relation_heads", "sampling"),
    *("random_subnets", "subnet_weights", "in_place", "hidden", "seed", "device", "precision", "keep"),
)
"""Settings on which a plan depends."""


def _add_plan(parser: CommandParser) -> None:
    parser.add_argument("--tokens", type=as_text, required=True, help="Tokens to train on, such as 26B.")
    parser.add_argument("--devices", type=as_whole_number, default=1, help="Devices that share each step.")
    parser.add_argument(
        "--batch-size", type=as_whole_number, help="Blocks of a step on all devices; by default 4 per device."
    )
    parser.add_argument(
        "--flops-per-second",
        type=as_text,
        help="Sustained FLOP/s of a device, such as 100T; by default measured on this machine.",
    )
    add_settings(parser, TrainConfig, _PLANNED)


def _plan(settings: Mapping[str, Any], reporter: Reporter) -> Outcome:
    own_flags = ("tokens", "devices", "batch_size", "flops_per_second")
    tokens_text, devices, batch_size, speed_text = (settings[name] for name in own_flags)
    tokens = parse_amount(tokens_text, "--tokens")
    speed = parse_amount(speed_text, "--flops-per-second")
    check_value("--devices", devices, Count)
    others = {name: value for name, value in settings.items() if name not in own_flags}
    if batch_size is not None:
        check_value("--batch-size", batch_size, Count)
    else:
        batch_size = TrainConfig.batch_size * devices
    config = TrainConfig.from_dict({**others, "batch_size": batch_size})
    if config.batch_size < devices:
        raise InputError(f"--batch-size {config.batch_size}; allowed: at least one block for each of {devices} devices")
    assert tokens is not None

    from autodistil_search.distillation.plan import make_plan, steps_for
    from autodistil_search.runs.training_inputs import resolve_training

    config = replace(config, steps=steps_for(tokens, config.batch_size, config.seq_len))
    inputs = resolve_training(config, needs_text=False)
    plans = [
        make_plan(space, inputs.teacher, inputs.options, config.seq_len, inputs.device, devices, speed, reporter)
        for space in inputs.spaces
    ]
    where = "as stated" if speed else f"measured here, {inputs.device.name} {inputs.device.precision}"
    return Outcome(plans_record(plans, where, config.keep), partial(print_plans, plans, where, config.keep))


def plans_record(plans: Sequence[Plan], speed: str, keep: int) -> dict[str, Any]:
    """Return the plans with a row for each space.

    speed: origin of the seconds of a step. keep: number of checkpoints on disk at a time.
    """
    rows = [
        {
            "space": plan.space.name,
            "steps": plan.steps,
            "devices": plan.devices,
            "rows_per_device": plan.rows,
            "seq_len": plan.seq_len,
            "step_flops_per_device": plan.flops,
            "step_seconds": plan.seconds,
            "hours": plan.hours,
            "device_hours": plan.hours * plan.devices,
            "memory_bytes": {**asdict(plan.memory), "total": plan.memory.total},
            "checkpoint_bytes": plan.checkpoint,
            "checkpoints_bytes": keep * plan.checkpoint,
        }
        for plan in plans
    ]
    return json_record({"speed": speed, "hours": sum(plan.hours for plan in plans), "plans": rows})


def print_plans(plans: Sequence[Plan], speed: str, keep: int, console: Console) -> None:
    """Print the plans with a column for each space, and the limits of the numbers.

    speed: origin of the seconds of a step. keep: number of checkpoints on disk at a time.
    """
    from rich.table import Table

    from autodistil_search.report.views import shown

    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("")
    for plan in plans:
        table.add_column(plan.space.name, justify="right", no_wrap=True)
    rows: dict[str, Callable[[Plan], str]] = {
        "steps": lambda plan: f"{plan.steps:,}",
        "tokens of a step": lambda plan: f"{plan.devices} x {plan.rows} x {plan.seq_len}",
        "FLOPs of a step per device": lambda plan: shown(plan.flops),
        f"seconds of a step ({speed})": lambda plan: f"{plan.seconds:.3g}",
        "FLOP/s of a device": lambda plan: shown(plan.flops / plan.seconds),
        "hours": lambda plan: f"{plan.hours:,.2f}",
        "device-hours": lambda plan: f"{plan.hours * plan.devices:,.2f}",
        "memory of a device": lambda plan: shown(plan.memory.total) + "B",
        "  teacher": lambda plan: shown(plan.memory.teacher) + "B",
        "  SuperLM weights": lambda plan: shown(plan.memory.weights) + "B",
        "  gradients (exchanged each step)": lambda plan: shown(plan.memory.gradients) + "B",
        "  AdamW moments": lambda plan: shown(plan.memory.moments) + "B",
        "  activations": lambda plan: shown(plan.memory.activations) + "B",
        "checkpoint": lambda plan: shown(plan.checkpoint) + "B",
        f"last {keep} checkpoints": lambda plan: shown(keep * plan.checkpoint) + "B",
    }
    for name, cell in rows.items():
        table.add_row(name, *map(cell, plans))
    console.print(table)
    hours = sum(plan.hours for plan in plans)
    for line in (
        f"total: {hours:,.2f} hours, {hours / 24:,.1f} days; saving adds up to 5 %; gradient exchange is not included",
        "FLOPs: two for each executed multiply-add of teacher (forward) and subnets (forward and backward)",
        "memory: peak while steps are timed (on a CPU, of the whole process), or else the sum of the parts",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


COMMAND = Command(
    "plan",
    summary="estimate the time and memory of a training",
    description="Estimate the steps, hours, device memory and checkpoints of training a SuperLM.",
    examples=(
        "autodistil-search plan --space tiny --tokens 100M",
        "autodistil-search plan --space base --tokens 26B --devices 8 --batch-size 256 --flops-per-second 100T",
    ),
    run=_plan,
    add_flags=_add_plan,
)
