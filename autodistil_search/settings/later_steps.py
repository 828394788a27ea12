"""What can be told to the steps after a search, as typed records: Python API, flags and YAML file alike."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from autodistil_search.base.errors import InputError
from autodistil_search.base.user_input import PACKAGED, TASKS, absolute_path, parse_number, quoted
from autodistil_search.base.weighted_names import parse_terms
from autodistil_search.settings.search import (
    CHANGES_NOTHING,
    SearchConfig,
    TrainConfig,
    check_settings,
    column_names,
    flag,
    is_positive,
    resolved,
)

Format = Literal["auto", "bert", "mpnet", "own"]
"""What `export --format` takes."""


@dataclass(frozen=True, kw_only=True)
class DistilConfig:
    """Which student of a finished search to train further, and for how long.

    Args:
        run: The --out folder of a search that ended.
        pick: Which student: knee, the number of a row of frontier.csv, or bounds such as "flops<=200M".
        steps: Training steps.
        batch_size: Blocks in a step, over all processes; the run's if not given.
        lr: Peak learning rate; a quarter of the run's if not given.
        text: Text to train on, as search takes it; the run's if not given.
        accumulate: Parts that each process divides its blocks into, one in memory at a time.
        seed: Fixes the order of text.
        device: Where to compute; auto takes CUDA if there is one.
        precision: auto takes bf16 where the hardware has it; fp16 scales the loss.
        held_out_every: Steps between measurements on held-out text, 0 for none; a tenth of the steps if not given.
        keep: Checkpoints kept while training.
        out: Folder of the result; if not given, students/<run>-<pick>.
    """

    run: str = "runs/tiny"
    pick: str = "knee"
    steps: int = 1000
    batch_size: int | None = None
    lr: float | None = None
    text: list[str] | None = None
    accumulate: int = 1
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    held_out_every: int | None = None
    keep: int = 2
    out: str | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        if self.lr is not None and not is_positive(self.lr):
            raise InputError(f"--lr {quoted(self.lr)}; allowed: numbers above 0")

    @property
    def folder(self) -> Path:
        """The folder of the result."""
        words = "".join(letter if letter.isalnum() else "-" for letter in self.pick.replace("<=", "-"))
        return Path(self.out or Path("students") / f"{Path(self.run).name}-{words}")

    def training(self, run: SearchConfig) -> TrainConfig:
        """How the student is trained: as the run trained its SuperLMs, but for what is given here.

        Raises:
            InputError: for values that do not go together.
        """
        names = {setting.name for setting in fields(TrainConfig)}
        own = {name: value for name, value in asdict(self).items() if name in names and value is not None}
        return run.training(**{"held_out_every": None, **own})

    def to_dict(self) -> dict[str, Any]:
        """All that was chosen and can change a number."""
        return {key: value for key, value in asdict(self).items() if key not in CHANGES_NOTHING}


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

    model: str = "packaged"
    task: str = "topic"
    text_columns: str | None = None
    label_column: str | None = None
    losses: str = "labels"
    teacher: str | None = None
    temperature: float = 1.0
    epochs: int = 3
    batch_size: int = 32
    lr: str = "1e-4"
    seeds: int = 3
    max_length: int = 128
    train_rows: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    out: str | None = None

    def __post_init__(self) -> None:
        if is_positive(self.lr):  # one rate, as YAML and Python may give it
            object.__setattr__(self, "lr", str(self.lr))
        check_settings(self)
        terms = parse_terms(self.losses)
        if (self.teacher is None) != (set(terms) <= {"labels"}):
            raise InputError(
                f"--losses {self.losses!r} with --teacher {self.teacher!r}; allowed: labels alone without a teacher, "
                "and with one whatever is learnt from it, too"
            )
        if not is_positive(self.temperature):
            raise InputError(f"--temperature {quoted(self.temperature)}; allowed: numbers above 0")
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
