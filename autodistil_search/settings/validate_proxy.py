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
    Seed,
    Usual,
    check_executor,
    check_settings,
    column_names,
    resolved,
)


@dataclass(frozen=True, kw_only=True)
class ValidateConfig:
    """Settings of a validation of a proxy: run, subnets, and the targets it should predict.

    Args:
        run: Output folder of a finished search.
        space: Spaces of that search, separated by commas; all of them if not given. In each band, the spaces that reach
            it have equally many subnets, as far as possible.
        subnets: Number of subnets that are measured.
        bands: Number of narrow bands of cost over the whole range; subnets are drawn from these.
        band_width: Half the width of a band, as a share of its middle.
        alone_steps: Steps of distilling a subnet alone; the SuperLM's if not given, 0 for none.
        alone_lr: Peak learning rate of that training; the SuperLM's if not given.
        probe: Task, as in finetune, for a probe of frozen features.
        cosine: Task of pairs for the cosines of sentence vectors, taken after training alone, or in the SuperLM if
            there is no such training.
        task: Tasks for fine-tuning from the same weights, separated by commas. With two or more, their mean is a target
            too.
        text_columns: One or two text columns of a task's table; common names are recognised if not given.
        label_column: Label column of that table; "label" if not given.
        train_rows: Maximum number of a task's training rows.
        epochs: Passes over these rows.
        lr: Peak learning rate of fine-tuning.
        accumulate: Number of parts of a step's blocks in training alone; one part is in memory at a time.
        seed: Seed of the draw, of training alone and of fine-tuning.
        device: Device to run on: auto, cpu, cuda, mps or xpu. auto takes an accelerator if there is one.
        precision: Precision of matrix products. auto takes the fastest that the hardware has; fp16 scales the loss.
        executor: Where subnets are measured; this process if not given. dask is a local cluster (extra "distributed"),
            dask:ADDRESS the cluster of that scheduler, such as tcp://host:8786, or its .json file.
        workers: Number of workers of the local cluster; by default one for each GPU, or for every OMP_NUM_THREADS CPUs.
        out: Output folder; by default validation-SPACE in the run's folder, or validation-all.
    """

    run: Annotated[Folder, SPACE, Placeholder("RUN")] = "runs/shallow"
    space: Annotated[Names | None, SPACE, Usual("s")] = None
    subnets: Annotated[Annotated[int, Ge(2), Le(MANY)], SPACE, Usual()] = 24
    bands: Annotated[Count, SPACE, Usual()] = 4
    band_width: Annotated[Rate, SPACE] = 0.1
    alone_steps: Annotated[Annotated[int, Ge(0), Le(LARGEST)] | None, TRAINING, Usual()] = None
    alone_lr: Annotated[Rate | None, TRAINING, Placeholder("RATE")] = None
    probe: Annotated[Name | None, DATA, Usual(), Placeholder("TASK")] = None
    cosine: Annotated[Name | None, DATA, Usual(), Placeholder("TASK")] = None
    task: Annotated[Names | None, DATA, Usual(), Placeholder("TASK")] = None
    text_columns: Annotated[Columns | None, DATA] = None
    label_column: Annotated[str | None, DATA, Placeholder("COLUMN")] = None
    train_rows: Annotated[Rows, DATA] = 2000
    epochs: Annotated[Count, TRAINING] = 2
    lr: Annotated[Rate, TRAINING, Placeholder("RATE")] = 2e-4
    accumulate: Annotated[Count, TRAINING] = 1
    seed: Annotated[Seed, TRAINING] = 0
    device: Annotated[Device, OUTPUT, Usual("d")] = "auto"
    precision: Annotated[Precision, OUTPUT] = "auto"
    executor: Annotated[Name | None, OUTPUT, Placeholder("EXECUTOR")] = None
    workers: Annotated[Count | None, OUTPUT] = None
    out: Annotated[Folder | None, OUTPUT, Usual("o")] = None

    def __post_init__(self) -> None:
        check_settings(self)
        check_executor(self.executor, self.workers)
        if self.subnets < 2 * self.bands:
            raise InputError(f"--subnets {self.subnets} with --bands {self.bands}; allowed: two or more in each band")
        for flag, names in (("--space", self.space_names), ("--task", self.task_names)):
            if len(set(names)) < len(names):
                raise InputError(f"{flag} names {', '.join(names)}; allowed: each once")
        if self.alone_steps == 0 and not self.task_names and self.cosine is None:
            raise InputError(
                "--alone-steps 0 without --cosine or --task; allowed: something that the proxy should predict"
            )

    @property
    def columns(self) -> list[str] | None:
        """Return the text columns by name; None if not given."""
        return column_names(self.text_columns)

    @property
    def space_names(self) -> list[str]:
        """Return the names of the spaces; empty for all of the run."""
        return _names(self.space)

    @property
    def task_names(self) -> list[str]:
        """Return the names of the tasks for fine-tuning."""
        return _names(self.task)

    @property
    def folder(self) -> Path:
        """Return the output folder."""
        return Path(self.out or Path(self.run) / f"validation-{'-'.join(self.space_names) or 'all'}")

    def absolute(self) -> ValidateConfig:
        """Return a copy with absolute paths, which means the same in any working directory."""
        probe, cosine = (None if name is None else absolute_path(name, TASKS) for name in (self.probe, self.cosine))
        tasks = ",".join(absolute_path(name, TASKS) for name in self.task_names)
        return replace(self, run=resolved(self.run), probe=probe, cosine=cosine, task=tasks or None)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that can change a number."""
        return {key: value for key, value in asdict(self).items() if key not in CHANGES_NOTHING}


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]
