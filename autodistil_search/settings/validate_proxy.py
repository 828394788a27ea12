"""The settings of `validate-proxy`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from autodistil_search.base.errors import InputError
from autodistil_search.base.user_input import TASKS, absolute_path, quoted
from autodistil_search.settings.common import CHANGES_NOTHING, check_settings, column_names, flag, is_positive, resolved


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

    run: str = "runs/tiny"
    space: str | None = None
    subnets: int = 24
    bands: int = 4
    band_width: float = 0.1
    alone_steps: int | None = None
    alone_lr: float | None = None
    probe: str | None = None
    cosine: str | None = None
    task: str | None = None
    text_columns: str | None = None
    label_column: str | None = None
    train_rows: int = 2000
    epochs: int = 2
    lr: float = 2e-4
    accumulate: int = 1
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    out: str | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        for name in ("lr", "band_width", "alone_lr"):
            value = getattr(self, name)
            if not is_positive(value) and not (name == "alone_lr" and value is None):
                raise InputError(f"{flag(name)} {quoted(value)}; allowed: numbers above 0")
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
