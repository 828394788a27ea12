"""The settings of `finetune`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from autodistil_search.base.errors import InputError
from autodistil_search.base.tracking import tracker_names
from autodistil_search.base.user_input import PACKAGED, TASKS, absolute_path, is_finite, parse_number, quoted
from autodistil_search.base.weighted_names import parse_terms
from autodistil_search.settings.common import (
    CHANGES_NOTHING,
    DATA,
    MANY,
    OUTPUT,
    TRAINING,
    Columns,
    Count,
    Device,
    Folder,
    Name,
    Names,
    Placeholder,
    Precision,
    Rate,
    Rows,
    Usual,
    check_executor,
    check_settings,
    column_names,
)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Settings of a fine-tuning: model, task, losses and schedule.

    Args:
        model: Hugging Face id or folder of an encoder, such as a student's, or "packaged". The folder may also be that
            of an earlier distil or finetune.
        task: Labelled task: a name, a table, or a folder with tables. Names are topic (extra "wiki", no network needed)
            and tasks of GLUE from the hub: mnli, qnli, qqp, sst2, cola, mrpc, rte, stsb. A table is .csv, .tsv, .jsonl
            or .parquet. A folder has train and dev tables, or GLUE's own files (such as glue/SST-2).
        text_columns: One or two text columns of a table, separated by a comma; common names are recognised if not
            given.
        label_column: Label column of a table; "label" if not given.
        losses: Losses with their weights, such as logits,hidden:0.1. Allowed are labels and, with a teacher, logits,
            embeddings, hidden and attention.
        teacher: Folder of a model fine-tuned on the same task, for losses other than labels.
        temperature: Divisor of the logits of student and teacher in the loss of logits.
        epochs: Passes over the training rows. The best epoch is kept, which a tenth of the training rows chooses.
        batch_size: Rows in a step.
        lr: Peak learning rate, or several, separated by commas. The first seed chooses among them.
        seeds: Number of fine-tunings with different seeds, for mean and spread.
        max_length: Maximum number of tokens in a row.
        train_rows: Maximum number of training rows.
        device: Device to run on: auto, cpu, cuda, mps or xpu. auto takes an accelerator if there is one.
        precision: Precision of matrix products. auto takes the fastest that the hardware has; fp16 scales the loss.
        executor: Where the fine-tunings run; this process if not given. dask is a local cluster (extra "distributed"),
            dask:ADDRESS the cluster of that scheduler, such as tcp://host:8786, or its .json file.
        workers: Number of workers of the local cluster; by default one for each GPU, or for every OMP_NUM_THREADS CPUs.
        track: Trackers that get losses and metrics, separated by commas: tensorboard (extra "tracking"), wandb, mlflow,
            trackio. Not with an executor.
        out: Output folder; by default finetuned/MODEL-TASK.
    """

    model: Annotated[Name, DATA, Placeholder("MODEL")] = "packaged"
    task: Annotated[Name, DATA, Usual(), Placeholder("TASK")] = "topic"
    text_columns: Annotated[Columns | None, DATA] = None
    label_column: Annotated[str | None, DATA, Placeholder("COLUMN")] = None
    losses: Annotated[Names, TRAINING, Usual()] = "labels"
    teacher: Annotated[Name | None, DATA, Usual("t")] = None
    temperature: Annotated[Rate, TRAINING] = 1.0
    epochs: Annotated[Count, TRAINING, Usual()] = 3
    batch_size: Annotated[Count, TRAINING, Usual("b")] = 32
    lr: Annotated[str, TRAINING, Usual(), Placeholder("RATE")] = "1e-4"
    seeds: Annotated[Count, TRAINING, Usual()] = 3
    max_length: Annotated[Annotated[int, Ge(4), Le(MANY)], DATA] = 128
    train_rows: Annotated[Rows | None, DATA, Usual()] = None
    device: Annotated[Device, OUTPUT, Usual("d")] = "auto"
    precision: Annotated[Precision, OUTPUT] = "auto"
    executor: Annotated[Name | None, OUTPUT, Placeholder("EXECUTOR")] = None
    workers: Annotated[Count | None, OUTPUT] = None
    track: Annotated[Names | None, OUTPUT] = None
    out: Annotated[Folder | None, OUTPUT, Usual("o")] = None

    def __post_init__(self) -> None:
        if is_finite(self.lr):  # one rate, as YAML and Python may give it
            object.__setattr__(self, "lr", str(self.lr))
        check_settings(self)
        check_executor(self.executor, self.workers)
        if tracker_names(self.track) and self.executor is not None:
            raise InputError(f"--track {self.track} with --executor {self.executor}; allowed: either of them")
        terms = parse_terms(self.losses)
        if (self.teacher is None) != (set(terms) <= {"labels"}):
            raise InputError(
                f"--losses {self.losses!r} with --teacher {self.teacher!r}; allowed: labels alone without a teacher, "
                "and with one whatever is learnt from it, too"
            )
        _ = self.rates

    @property
    def rates(self) -> list[float]:
        """Return the learning rates to compare."""
        rates = [parse_number(part) or 0.0 for part in self.lr.split(",")]
        if not all(rate > 0 for rate in rates):
            raise InputError(f"--lr {quoted(self.lr)}; allowed: one or more numbers above 0, separated by commas")
        return rates

    @property
    def columns(self) -> list[str] | None:
        """Return the text columns by name; None if not given."""
        return column_names(self.text_columns)

    @property
    def folder(self) -> Path:
        """Return the output folder."""
        return Path(self.out or Path("finetuned") / f"{Path(self.model).name}-{Path(self.task).stem}".lower())

    def absolute(self) -> FinetuneConfig:
        """Return a copy with absolute paths, which means the same in any working directory."""
        teacher = None if self.teacher is None else absolute_path(self.teacher, (PACKAGED,))
        model, task = absolute_path(self.model, (PACKAGED,)), absolute_path(self.task, TASKS)
        return replace(self, model=model, task=task, teacher=teacher)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that can change a number."""
        return {key: value for key, value in asdict(self).items() if key not in (*CHANGES_NOTHING, "seeds")}
