"""The settings of `finetune`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from autodistil_search.base.errors import InputError
from autodistil_search.base.user_input import PACKAGED, TASKS, absolute_path, is_finite, parse_number, quoted
from autodistil_search.base.weighted_names import parse_terms
from autodistil_search.settings.common import (
    DATA,
    MANY,
    OUTPUT,
    TRAINING,
    Count,
    Device,
    Precision,
    Rate,
    Rows,
    check_settings,
    column_names,
)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Which model to fine-tune on which task, and how.

    Args:
        model: Hugging Face id or folder of an encoder, a student's among them; the folder of an earlier finetune; or
            "packaged" for the teacher in the quickstart extra.
        task: A task of GLUE (mnli, qnli, qqp, sst2, cola, mrpc, rte, stsb) from the hub, a folder with its own files
            (such as glue/SST-2), topic (extra "wiki", needs no network), a folder with train and dev tables, or one
            table (.csv, .tsv, .jsonl, .parquet).
        text_columns: Columns of a table with the one or two texts, separated by a comma; usual names are found.
        label_column: Column with the label; "label" if not given.
        losses: What is learnt by, with weights: labels, and of a teacher logits, embeddings, hidden, attention, such as
            logits,hidden:0.1.
        teacher: Folder of a model fine-tuned on the same task, for losses other than labels.
        temperature: Divides the logits of both before the teacher's are learnt.
        epochs: Passes over the training rows; the best one is kept, chosen on a tenth of them.
        batch_size: Rows in a step.
        lr: Peak learning rate; of several, separated by commas, the first seed chooses.
        seeds: How many times to fine-tune, for mean and spread.
        max_length: Tokens of a row, at most.
        train_rows: Rows to train on, at most.
        device: Where to compute; auto takes CUDA if there is one.
        precision: auto takes bf16 where the hardware has it; fp16 scales the loss.
        out: Folder of the result; if not given, finetuned/<model>-<task>.
    """

    model: Annotated[str, DATA] = "packaged"
    task: Annotated[str, DATA] = "topic"
    text_columns: Annotated[str | None, DATA] = None
    label_column: Annotated[str | None, DATA] = None
    losses: Annotated[str, TRAINING] = "labels"
    teacher: Annotated[str | None, DATA] = None
    temperature: Annotated[Rate, TRAINING] = 1.0
    epochs: Annotated[Count, TRAINING] = 3
    batch_size: Annotated[Count, TRAINING] = 32
    lr: Annotated[str, TRAINING] = "1e-4"
    seeds: Annotated[Count, TRAINING] = 3
    max_length: Annotated[Annotated[int, Ge(4), Le(MANY)], DATA] = 128
    train_rows: Annotated[Rows | None, DATA] = None
    device: Annotated[Device, OUTPUT] = "auto"
    precision: Annotated[Precision, OUTPUT] = "auto"
    out: Annotated[str | None, OUTPUT] = None

    def __post_init__(self) -> None:
        if is_finite(self.lr):  # one rate, as YAML and Python may give it
            object.__setattr__(self, "lr", str(self.lr))
        check_settings(self)
        terms = parse_terms(self.losses)
        if (self.teacher is None) != (set(terms) <= {"labels"}):
            raise InputError(
                f"--losses {self.losses!r} with --teacher {self.teacher!r}; allowed: labels alone without a teacher, "
                "and with one whatever is learnt from it, too"
            )
        _ = self.rates

    @property
    def rates(self) -> list[float]:
        """The learning rates to try."""
        rates = [parse_number(part) or 0.0 for part in self.lr.split(",")]
        if not all(rate > 0 for rate in rates):
            raise InputError(f"--lr {quoted(self.lr)}; allowed: one or more numbers above 0, separated by commas")
        return rates

    @property
    def columns(self) -> list[str] | None:
        """The text columns asked for."""
        return column_names(self.text_columns)

    @property
    def folder(self) -> Path:
        """The folder of the result."""
        return Path(self.out or Path("finetuned") / f"{Path(self.model).name}-{Path(self.task).stem}".lower())

    def absolute(self) -> FinetuneConfig:
        """The same with the absolute paths of files and folders, so that it means the same wherever it is read."""
        teacher = None if self.teacher is None else absolute_path(self.teacher, (PACKAGED,))
        model, task = absolute_path(self.model, (PACKAGED,)), absolute_path(self.task, TASKS)
        return replace(self, model=model, task=task, teacher=teacher)

    def to_dict(self) -> dict[str, Any]:
        """All that was chosen and can change a number."""
        return {key: value for key, value in asdict(self).items() if key not in ("out", "seeds")}
