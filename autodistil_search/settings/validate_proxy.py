"""The settings of `validate-proxy`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from autodistil_search.base.errors import InputError
from autodistil_search.base.user_input import LARGEST, TASKS, absolute_path
from autodistil_search.settings.common import (
    CHANGES_NOTHING,
    DATA,
    MANY,
    OUTPUT,
    SPACE,
    TRAINING,
    Count,
    Device,
    Precision,
    Rate,
    Rows,
    Seed,
    check_settings,
    column_names,
    resolved,
)


@dataclass(frozen=True, kw_only=True)
class ValidateConfig:
    """Of which search to validate the proxy, on how many subnets, and against what.

    Args:
        run: The --out folder of a search that ended.
        space: Which of its spaces, if it has several.
        subnets: How many are measured.
        bands: Narrow bands of cost that they are drawn from, over the whole range.
        band_width: Distance from a band's middle, as a share of it, up to which subnets belong to it.
        alone_steps: Steps that each is distilled alone; those of its SuperLM if not given, 0 for not at all.
        alone_lr: Peak learning rate of that; the SuperLM's if not given.
        probe: Task, as finetune names it, for a probe of frozen features.
        cosine: Task of pairs to rank by the cosines of sentence vectors, with each after training alone, or else as it
            is in the SuperLM.
        task: Task to fine-tune each on, from the same weights.
        text_columns: Columns of the table that a task names with the one or two texts; usual names are found.
        label_column: Its column with the label; "label" if not given.
        train_rows: Rows of a task to train on, at most.
        epochs: Passes over them.
        lr: Peak learning rate of fine-tuning.
        accumulate: Parts that each step's blocks are divided into while a subnet trains alone, one in memory at a time.
        seed: Fixes the draw, the training alone and the fine-tuning.
        device: Where to compute; auto takes CUDA if there is one.
        precision: auto takes bf16 where the hardware has it; fp16 scales the loss.
        out: Folder of the result; if not given, validation-<space> in that of the run.
    """

    run: Annotated[str, SPACE] = "runs/tiny"
    space: Annotated[str | None, SPACE] = None
    subnets: Annotated[Annotated[int, Ge(2), Le(MANY)], SPACE] = 24
    bands: Annotated[Count, SPACE] = 4
    band_width: Annotated[Rate, SPACE] = 0.1
    alone_steps: Annotated[Annotated[int, Ge(0), Le(LARGEST)] | None, TRAINING] = None
    alone_lr: Annotated[Rate | None, TRAINING] = None
    probe: Annotated[str | None, DATA] = None
    cosine: Annotated[str | None, DATA] = None
    task: Annotated[str | None, DATA] = None
    text_columns: Annotated[str | None, DATA] = None
    label_column: Annotated[str | None, DATA] = None
    train_rows: Annotated[Rows, DATA] = 2000
    epochs: Annotated[Count, TRAINING] = 2
    lr: Annotated[Rate, TRAINING] = 2e-4
    accumulate: Annotated[Count, TRAINING] = 1
    seed: Annotated[Seed, TRAINING] = 0
    device: Annotated[Device, OUTPUT] = "auto"
    precision: Annotated[Precision, OUTPUT] = "auto"
    out: Annotated[str | None, OUTPUT] = None

    def __post_init__(self) -> None:
        check_settings(self)
        if self.subnets < 2 * self.bands:
            raise InputError(f"--subnets {self.subnets} with --bands {self.bands}; allowed: two or more in each band")
        if self.alone_steps == 0 and self.task is None and self.cosine is None:
            raise InputError(
                "--alone-steps 0 without --cosine or --task; allowed: something that the proxy should predict"
            )

    @property
    def columns(self) -> list[str] | None:
        """The text columns asked for."""
        return column_names(self.text_columns)

    @property
    def folder(self) -> Path:
        """The folder of the result."""
        return Path(self.out or Path(self.run) / f"validation-{self.space or 'all'}")

    def absolute(self) -> ValidateConfig:
        """The same with the absolute paths of files and folders, so that it means the same wherever it is read."""
        probe, cosine, task = (
            None if name is None else absolute_path(name, TASKS) for name in (self.probe, self.cosine, self.task)
        )
        return replace(self, run=resolved(self.run), probe=probe, cosine=cosine, task=task)

    def to_dict(self) -> dict[str, Any]:
        """All that was chosen and can change a number."""
        return {key: value for key, value in asdict(self).items() if key not in CHANGES_NOTHING}
