"""`plan`: an estimate of the time and memory of a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from autodistil_search.cli.command import Command, Outcome, json_record
from autodistil_search.cli.parser import CommandParser, add_settings, add_tokens, as_text, as_whole_number
from autodistil_search.runs.named_parts import check_names
from autodistil_search.settings.plan import OWN, PLANNED
from autodistil_search.settings.train import TrainConfig

if TYPE_CHECKING:
    from rich.console import Console

    from autodistil_search.base.progress import Reporter
    from autodistil_search.distillation.plan import Plan
    from autodistil_search.runs.plan import PlannedTraining


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
    add_settings(parser, TrainConfig, PLANNED)


def _plan(settings: Mapping[str, Any], reporter: Reporter) -> Outcome:
    stated = {name: settings[name] for name in OWN}
    config = TrainConfig.from_dict({name: value for name, value in settings.items() if name not in OWN})
    check_names(config)

    from autodistil_search.runs.plan import plan

    planned = plan(config, reporter, **stated)
    return Outcome(planned_record(planned), partial(print_plans, planned.plans, planned.speed, planned.keep))


def planned_record(planned: PlannedTraining) -> dict[str, Any]:
    """Return the plans with a row for each space, and the hours of all spaces together."""
    hours = {"hours": planned.hours, "hours_apart": planned.hours_apart}
    return json_record({"speed": planned.speed, **hours, "plans": planned.rows})


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
