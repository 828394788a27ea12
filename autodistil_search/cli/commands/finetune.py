"""`finetune`: the fine-tuning of a model on a labelled task."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from autodistil_search.cli.command import Command, Outcome, json_record
from autodistil_search.cli.parser import add_positional_and_settings
from autodistil_search.settings.finetune import FinetuneConfig

if TYPE_CHECKING:
    from rich.console import Console

    from autodistil_search.base.progress import Reporter
    from autodistil_search.runs.finetune import FinetuneRun


def _finetune(settings: Mapping[str, Any], reporter: Reporter) -> Outcome:
    config = FinetuneConfig(**settings)

    reporter.say(f"fine-tuning {config.model} on {config.task}; results go to {config.folder}")

    from autodistil_search.runs.finetune import finetune

    run = finetune(config, reporter)
    return Outcome(finetuning_record(run), partial(print_finetuning, run))


def finetuning_record(run: FinetuneRun) -> dict[str, Any]:
    """Return mean and standard deviation of each metric over the seeds, and the results of all trainings."""
    means = {metric: run.mean_and_spread(metric) for metric in run.task.metrics}
    several = len(run.chosen) > 1
    return json_record(
        {
            "folder": run.folder,
            "model": run.model_folder,
            "task": run.task.name,
            "dev_rows": len(run.task.dev),
            "lr": run.lr,
            "seeds": len(run.chosen),
            "unlearnt_seeds": run.unlearnt_seeds,
            "metrics": {
                name: {"mean": mean, "standard_deviation": spread if several else None}
                for name, (mean, spread) in means.items()
            },
            "results": run.results,
        }
    )


def print_finetuning(run: FinetuneRun, console: Console) -> None:
    """Print mean and standard deviation of each metric over the seeds, and the folder of the model."""
    from rich.table import Table

    from autodistil_search.tasks.metrics import METRICS

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
    if run.warning:
        console.print(f"warning: {run.warning}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"learning rate {run.lr:g}; model: {run.model_folder}", highlight=False, markup=False, soft_wrap=True)


COMMAND = Command(
    "finetune",
    summary="fine-tune a model on a labelled task",
    description=(
        "Fine-tune a teacher or a student on a labelled task with several seeds. It learns from the labels, from a "
        "fine-tuned teacher, or from both."
    ),
    examples=(
        "autodistil-search finetune packaged --task topic --seeds 5",
        "autodistil-search finetune students/third --task mail.csv --losses logits,hidden:0.1 --teacher finetuned/mail",
    ),
    run=_finetune,
    add_flags=partial(add_positional_and_settings, config=FinetuneConfig, positional="model"),
)
