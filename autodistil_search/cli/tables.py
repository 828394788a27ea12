"""What commands print when they are done: tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from autodistil_search.nas.objectives import Objective
from autodistil_search.nas.rank_correlation import Agreement
from autodistil_search.spaces.partition import millions
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import DIMENSIONS
from autodistil_search.tasks.metrics import METRICS

if TYPE_CHECKING:
    from autodistil_search.distillation.plan import Plan
    from autodistil_search.runs.finetune import FinetuneRun
    from autodistil_search.runs.finished_run import Run
    from autodistil_search.runs.profile import Profile
    from autodistil_search.runs.validate_proxy import Validation


def print_frontier(run: Run, console: Console) -> None:
    """The frontier as a table with the knee marked, the notes, and where the report lies."""
    from autodistil_search.report.caveats import warnings_of
    from autodistil_search.report.views import shown

    report = run.report
    title = f"Pareto frontier of {report.title}: {len(run.frontier)} of {len(run.evaluations)} scored"
    table = Table(title=title, box=None, pad_edge=False, padding=(0, 1))
    values = [objective.name for objective in report.columns]
    for name in ("space", "layers", "hidden", "ratio", "heads", *values, ""):
        of_layers = name in ("ratio", "heads")  # long where layers differ
        justify: Literal["left", "right"] = "left" if name == "space" else "right"
        table.add_column(name, justify=justify, no_wrap=not of_layers, overflow="fold" if of_layers else "ellipsis")
    for row in run.frontier.to_dict("records"):
        sizes = [str(row["space"]), *(_size(row[key]) for key in DIMENSIONS)]
        numbers = [shown(row[name]) for name in values]
        table.add_row(*sizes, *numbers, "knee" if row["knee"] else "", style="bold" if row["knee"] else None)
    console.print(table)
    for note in warnings_of(report):
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"report: {run.folder / 'report.html'}", highlight=False, markup=False, soft_wrap=True)


def print_finetuning(run: FinetuneRun, console: Console) -> None:
    """Mean and spread of each metric over the seeds, and where the models lie."""
    task = run.task
    table = Table(title=f"{task.name}: {len(task.dev):,} rows of dev", box=None, pad_edge=False, padding=(0, 1))
    table.add_column("")
    for name in ("mean", "standard deviation", "seeds"):
        table.add_column(name, justify="right")
    for metric in task.metrics:
        mean, spread = run.mean_and_spread(metric)
        several = len(run.chosen) > 1
        table.add_row(METRICS[metric].label, f"{mean:.4f}", f"{spread:.4f}" if several else "-", str(len(run.chosen)))
    console.print(table)
    console.print(f"learning rate {run.lr:g}; model: {run.model_folder}", highlight=False, markup=False, soft_wrap=True)


def print_validation(found: Validation, console: Console) -> None:
    """Rank correlations with their intervals, and what follows."""
    labels = {each.column: each.label for each in found.measures}
    table = Table(
        title=f"{len(found.measured)} subnets: Kendall's tau [95 %]", box=None, pad_edge=False, padding=(0, 1)
    )
    for name in ("measure", "ranks", "all", "within bands"):
        table.add_column(name)
    rows = found.ranking.to_dict("records")
    for whole, within in zip(rows[::2], rows[1::2], strict=True):
        taus = [Agreement(each["kendall"], each["kendall_low"], each["kendall_high"]) for each in (whole, within)]
        cells = [str(tau) if np.isfinite(tau.value) else "all alike" for tau in taus]
        table.add_row(labels[whole["measure"]], labels[whole["target"]], *cells)
    console.print(table)
    for note in found.notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"figure: {found.folder / 'ranking.png'}", highlight=False, markup=False, soft_wrap=True)


def _size(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def print_partition(record: Mapping[str, Any], console: Console) -> None:
    """The sub-spaces as a table, how alike they are inside, and the flag that searches them all."""
    rows = record["sub_spaces"]
    table = Table(title=f"{record['space']} in {len(rows)}", box=None, pad_edge=False, padding=(0, 1))
    for name in ("sub-space", "subnets", "FLOPs from", "median", "to", "params from", "to"):
        table.add_column(name, justify="left" if name == "sub-space" else "right", no_wrap=True)
    costs = ("flops_smallest", "flops_median", "flops_largest", "params_smallest", "params_largest")
    for row in rows:
        table.add_row(row["name"], f"{row['subnets']:,}", *(millions(row[cost]) for cost in costs))
    console.print(table)
    for line in (
        f"{record['share_of_variance_within']:.0%} of the variance of log FLOPs is within the sub-spaces, the rest "
        "between them. FLOPs: multiply-adds at 128 tokens, batch 1; params: with BERT's vocabulary",
        record["space_flag"],
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_names(record: Mapping[str, Any], console: Console) -> None:
    """What can be named, group by group; what is installed beside it, with its package, or why it cannot be loaded."""
    for group, found in record.items():
        console.print(f"{group.replace('_', ' ')}: {', '.join(found['own'])}", highlight=False, soft_wrap=True)
        for each in found["installed"]:
            line = f"  {each['error'] or each['origin']}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_profiles(
    profiled: Sequence[tuple[SearchSpace, Sequence[Profile]]], costs: Sequence[Objective], console: Console
) -> None:
    """A table for each space, with a column for each of the profiled subnets and a row for each cost."""
    from autodistil_search.report.views import shown

    for space, profiles in profiled:
        table = Table(title=f"{space.name}: {space.size:,} subnets", box=None, pad_edge=False, padding=(0, 1))
        table.add_column("", no_wrap=True)
        for profile in profiles:
            table.add_column(profile.role, justify="right", no_wrap=True)
        table.add_column("unit")
        table.add_row("subnet", *(str(profile.subnet).replace(", ", "\n") for profile in profiles), "")
        for cost in costs:
            table.add_row(cost.name, *(shown(profile.costs[cost.name]) for profile in profiles), cost.unit)
        console.print(table)


def print_plans(plans: Sequence[Plan], speed: str, keep: int, console: Console) -> None:
    """A column for each space, and what the numbers leave out. speed: where the seconds of a step come from."""
    from autodistil_search.report.views import shown

    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("")
    for plan in plans:
        table.add_column(plan.space.name, justify="right", no_wrap=True)
    rows: dict[str, Callable[[Plan], str]] = {
        "steps": lambda plan: f"{plan.steps:,}",
        "tokens of a step": lambda plan: f"{plan.devices} x {plan.rows} x {plan.seq_len}",
        "FLOPs of a step, each device": lambda plan: shown(plan.flops),
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
        f"all: {hours:,.2f} hours, {hours / 24:,.1f} days; saving adds up to 5 %, exchanging gradients is left out",
        "FLOPs: two for each multiply-add of teacher (forward) and subnets (forward and backward), as far as run",
        "memory: the most in use while steps are timed, on a CPU by the whole process; else the sum of the parts",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
