"""The settings of `all`, in Python `compress`: those of a search, and of the steps that follow it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Le

from autodistil_search.base.errors import InputError
from autodistil_search.base.user_input import LARGEST, parse_whole_number, quoted
from autodistil_search.nas.objectives import parse_amount
from autodistil_search.settings.common import (
    DATA,
    MANY,
    OUTPUT,
    TRAINING,
    Columns,
    Count,
    Folder,
    Name,
    Placeholder,
    Usual,
)
from autodistil_search.settings.distil import DistilConfig
from autodistil_search.settings.export import ExportOptions
from autodistil_search.settings.finetune import FinetuneConfig
from autodistil_search.settings.search import SearchConfig

STAGES = ("search", "distil", "finetune", "export")
"""Stages in their order; each has a folder of that name in the output folder."""


@dataclass(frozen=True, kw_only=True)
class CompressConfig(SearchConfig):
    """Settings of a search with all steps that follow it: distil, finetune if a task is given, and export.

    Args:
        pick: Student of the frontier: knee, the number of a row, or bounds such as 'flops<=200M'.
        distil_steps: Steps of the student's further training; 0 for none.
        task: Labelled task for fine-tuning, as in finetune; no fine-tuning if not given.
        text_columns: One or two text columns of the task's table; common names are recognised if not given.
        label_column: Label column of that table; "label" if not given.
        epochs: Passes over the task's training rows.
        finetune_lr: Peak learning rate of fine-tuning, or several, separated by commas.
        seeds: Number of fine-tunings with different seeds; the best is exported.
        max_length: Maximum number of tokens in a row of the task.
        onnx: Also export model.onnx (extra onnx).
        int8: Also export model_int8.onnx.
        license: Licence of the weights for the model card, such as apache-2.0.
        out: Output folder, with a folder for each stage; by default compressed/SPACES.
    """

    pick: Annotated[Name, DATA, Usual(), Placeholder("PICK")] = "knee"
    distil_steps: Annotated[Annotated[int, Ge(0), Le(LARGEST)], TRAINING, Usual()] = 1000
    task: Annotated[Name | None, DATA, Usual(), Placeholder("TASK")] = None
    text_columns: Annotated[Columns | None, DATA] = None
    label_column: Annotated[str | None, DATA, Placeholder("COLUMN")] = None
    epochs: Annotated[Count, TRAINING] = 3
    finetune_lr: Annotated[str, TRAINING, Placeholder("RATES")] = "1e-4"
    seeds: Annotated[Count, TRAINING] = 3
    max_length: Annotated[Annotated[int, Ge(4), Le(MANY)], DATA] = 128
    onnx: Annotated[bool, OUTPUT, Usual()] = False
    int8: Annotated[bool, OUTPUT, Usual()] = False
    license: Annotated[Name | None, OUTPUT, Placeholder("LICENCE")] = None
    out: Annotated[Folder | None, OUTPUT, Usual("o")] = None

    _parent: ClassVar[str] = "compressed"

    def __post_init__(self, given: Mapping[str, Any] | None) -> None:
        super().__post_init__(given)
        if "acc" not in [name.strip() for name in self.objectives.split(",")]:
            raise InputError(
                f"--objectives {self.objectives} trains no SuperLM, and so no student; allowed: acc among them"
            )
        self._check_pick()
        _ = self.finetune("student"), self.distil(Path("search")), self.export

    def _check_pick(self) -> None:
        """Refuse a pick that no search has, before hours of search; the names of bounds are checked with its columns.

        Raises:
            InputError: if the pick is no row and no bounds, or the amount of a bound is none.
        """
        if self.pick == "knee" or parse_whole_number(self.pick) is not None:
            return
        for bound in self.pick.split(","):
            name, *amounts = re.split("<=|>=", bound)
            if not name.strip() or len(amounts) != 1:
                raise InputError(f"--pick {quoted(self.pick)}; allowed: knee, a number, or bounds such as flops<=200M")
            parse_amount(amounts[0], f"--pick {bound.removesuffix(amounts[0]).strip()}")

    @property
    def search(self) -> SearchConfig:
        """Return the settings of the search."""
        names = {setting.name for setting in fields(SearchConfig)}
        given = {name: value for name, value in vars(self)["given"].items() if name in names}
        values = {name: getattr(self, name) for name in names}
        return SearchConfig(**{**values, "out": str(self.folder / "search")}, given=given)

    def distil(self, run: Path) -> DistilConfig:
        """Return the settings of the student's further training. Device and logs are those of the search.

        run: folder of the search.
        """
        same = {name: getattr(self, name) for name in ("accumulate", "seed", "device", "precision", "keep", "track")}
        return DistilConfig(
            run=str(run), pick=self.pick, steps=max(1, self.distil_steps), out=str(self.folder / "distil"), **same
        )

    def finetune(self, model: str) -> FinetuneConfig | None:
        """Return the settings of the fine-tuning of `model`, a folder; None without a task."""
        if self.task is None:
            return None
        same = {
            name: getattr(self, name)
            for name in ("task", "text_columns", "label_column", "epochs", "seeds", "max_length", "device", "precision")
        }
        return FinetuneConfig(
            model=model, lr=self.finetune_lr, track=self.track, out=str(self.folder / "finetune"), **same
        )

    @property
    def export(self) -> ExportOptions:
        """Return the options of the export."""
        options = ExportOptions(onnx=self.onnx, int8=self.int8, license=self.license)
        return options if self.task is None else replace(options, task=self.task)
