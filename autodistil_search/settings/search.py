"""Everything a training or a search can be told, as typed records: Python API, flags and YAML file alike."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import InitVar, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from autodistil_search.base.errors import InputError
from autodistil_search.base.passwords import names_database, without_password
from autodistil_search.base.plugins import Plugins
from autodistil_search.base.user_input import LARGEST, PACKAGED, TASKS, absolute_path, is_finite, meant, quoted
from autodistil_search.spaces.search_space import shipped_spaces

_LARGEST_SEED = 2**32 - 1
_PARTS = 2
"""Blocks that the proxy "hidden" needs: each part is measured by what was fitted to the others."""

_MANY = 10**6
"""More of what is in memory at once, no machine has room for."""
_RANGES = {
    "evaluations": (1, LARGEST),
    "population": (2, _MANY),
    "seq_len": (8, _MANY),
    "latency_batch": (1, _MANY),
    "throughput_batch": (1, _MANY),
    "measured_seq_len": (1, _MANY),
    "latency_samples": (2, _MANY),
    "eval_blocks": (1, _MANY),
    "relation_heads": (1, _MANY),
    "random_subnets": (0, _MANY),
    "teacher_layer": (-_MANY, _MANY),
    "steps": (1, LARGEST),
    "batch_size": (1, _MANY),
    "accumulate": (1, _MANY),
    "worker_timeout": (1, _MANY),
    "held_out_every": (0, LARGEST),
    "keep": (1, _MANY),
    "seed": (0, _LARGEST_SEED),
    "search_seed": (0, _LARGEST_SEED),
    "epochs": (1, _MANY),
    "seeds": (1, _MANY),
    "train_rows": (2, LARGEST),
    "proxy_rows": (2, LARGEST),
    "proxy_epochs": (1, _MANY),
    "subnets": (2, _MANY),
    "bands": (1, _MANY),
    "alone_steps": (0, LARGEST),
    "max_length": (4, _MANY),
}
"""Least and most of each whole number."""
BASELINES = ("shapes", "tinybert", "minilm", "random", "truncated")
"""What `--baselines` knows by name; other words are hub ids and folders."""

CHANGES_NOTHING = ("out", "accumulate", "held_out_every", "keep", "tensorboard", "worker_timeout")
"""Settings that leave every number as it is, but for rounding: a run may be continued with others."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Which SuperLMs to train, from which teacher and text, and how.

    Args:
        space: Search spaces, separated by commas: tiny, shallow, small, base, oneshot, elastic, debug, or the path of a
            YAML file.
        depth: Which layers a subnet with fewer keeps: first_last, uniform (the released AutoDistil code) or prefix;
            that of the space if not given.
        teacher: Hugging Face id or folder of the teacher, or "packaged" for the one in the quickstart extra.
        teacher_layer: Layer whose relations are distilled, from 0; -1 is the last.
        text: Files (.txt, .txt.gz, one paragraph a line, blank lines between documents; .jsonl, .csv, .parquet with a
            column "text"), folders of datasets, hf:NAME[:CONFIG[:SPLIT[:COLUMN]]], or "packaged".
        stream: Read and tokenize the text as it is needed, for what does not fit on the disk.
        seq_len: Tokens in a block of text.
        init: Start from slices of the teacher's weights, turned by PCA so that what matters leads (pca) or as they are
            (slices), from its embeddings alone, or at random; auto takes the one with the lowest loss before training.
        loss: kl (MiniLMv2) or mse on raw scores (the released AutoDistil code).
        relations: Relations of the loss, with weights: of qq, kk, vv, qk (the first MiniLM's attention), such as
            qq,kk,vv:0.5.
        relation_heads: Heads of the relations; those of the space if not given.
        sampling: Subnets a step trains: largest-random, sandwich (largest, smallest and random), random, largest.
        random_subnets: How many are drawn at random; by default 1 of largest-random, 2 of sandwich, 4 of random.
        subnet_weights: How much the loss of each counts, such as largest:2,random:1; all alike if not given.
        in_place: Share of a subnet's loss taken against the largest subnet's relations instead of the teacher's.
        hidden: Weight in the loss of the last hidden states, against the teacher's through a learned linear map; 0
            trains by relations alone, as the paper does.
        steps: Training steps of each SuperLM and of each baseline.
        batch_size: Blocks in a step, over all processes.
        accumulate: Parts that each process divides its blocks into, one in memory at a time.
        lr: Peak learning rate; if not given, 0.13 / (layers x root of the hidden size), and at most 4e-3.
        seed: Fixes initial weights, the order of text, the subnets of each step and the search.
        device: Where to compute; auto takes CUDA if there is one.
        precision: auto takes bf16 where the hardware has it; fp16 scales the loss.
        compile: Run layers through torch.compile.
        held_out_every: Steps between measurements on held-out text, 0 for none; a tenth of the steps if not given.
        keep: Checkpoints kept while training.
        tensorboard: Log for TensorBoard, too (extra "tracking").
        out: Folder of the result; if not given, superlms/<space names> of train and runs/<space names> of search.
    """

    space: str = "tiny"
    depth: Literal["first_last", "uniform", "prefix"] | None = None
    teacher: str = "packaged"
    teacher_layer: int = -1
    text: list[str] | None = None
    stream: bool = False
    seq_len: int = 128
    init: Literal["auto", "pca", "slices", "embeddings", "random"] = "auto"
    loss: Literal["kl", "mse"] = "kl"
    relations: str = "qq,kk,vv"
    relation_heads: int | None = None
    sampling: Literal["largest-random", "sandwich", "random", "largest"] = "largest-random"
    random_subnets: int | None = None
    subnet_weights: str = ""
    in_place: float = 0.0
    hidden: float = 1.0
    steps: int = 200
    batch_size: int = 4
    accumulate: int = 1
    lr: float | None = None
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    held_out_every: int | None = None
    keep: int = 2
    tensorboard: bool = False
    out: str | None = None
    given: InitVar[Mapping[str, Any] | None] = None
    """The settings that were chosen; those named when this was made, if not told. `replace` hands it on."""

    _parent: ClassVar[str] = "superlms"

    def __new__(cls, **settings: Any) -> Self:
        """Note which settings are named: one that equals its default may have been chosen, too."""
        config = super().__new__(cls)
        object.__setattr__(config, "given", settings)
        return config

    def __post_init__(self, given: Mapping[str, Any] | None) -> None:
        if given is not None:
            object.__setattr__(self, "given", given)
        check_settings(self)
        for name in ("lr", "proxy_lr"):
            rate = getattr(self, name, None)
            if rate is not None and not is_positive(rate):
                raise InputError(f"{flag(name)} {quoted(rate)}; allowed: numbers above 0")
        if not self.space_names:
            raise InputError(f"--space {self.space!r}; allowed: one or more spaces, separated by commas")
        if self.batch_size < self.accumulate:
            raise InputError(
                f"--accumulate {self.accumulate} with --batch-size {self.batch_size}; allowed: at most one part a block"
            )
        self._check_subnets()

    def _check_subnets(self) -> None:
        share = self.in_place
        if not is_finite(share) or not 0 <= share <= 1:
            raise InputError(f"--in-place {quoted(share)}; allowed: numbers from 0 to 1")
        weight = self.hidden
        if not is_finite(weight) or weight < 0:
            raise InputError(f"--hidden {quoted(weight)}; allowed: 0 or numbers above")
        if share and self.sampling == "random":
            raise InputError("--in-place with --sampling random; allowed: a sampling that trains the largest subnet")
        if self.sampling == "largest" and self.random_subnets:
            raise InputError(
                f"--random-subnets {self.random_subnets} with --sampling largest; allowed: --sampling largest-random"
            )
        if self.sampling == "random" and self.random_subnets == 0:
            raise InputError("--random-subnets 0 with --sampling random; allowed: 1 or more, or another sampling")

    def absolute(self, plugins: Plugins | None = None) -> Self:
        """Return the same with the absolute paths of files and folders, so that it means the same wherever it is read.

        plugins: whose names are no paths either.
        """
        plugins = plugins or Plugins()
        known = (*shipped_spaces(), *plugins.names("search_spaces"))
        spaces = ",".join(absolute_path(name, known) for name in self.space_names)
        texts = self.text and [
            name if name.startswith("hf:") else absolute_path(name, (PACKAGED,)) for name in self.text
        ]
        teacher = absolute_path(self.teacher, (PACKAGED, *plugins.names("teachers")))
        return replace(self, space=spaces, text=texts, teacher=teacher)

    def was_given(self, name: str) -> bool:
        """Return whether a setting was chosen, its default among the values; None leaves it open.

        So does `dataclasses.replace` with the default.
        """
        value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
        return value is not None and (value != default or vars(self)["given"].get(name) == value)

    @property
    def space_names(self) -> list[str]:
        """The spaces asked for, as given."""
        return [name.strip() for name in self.space.split(",") if name.strip()]

    @property
    def folder(self) -> Path:
        """The folder of the result."""
        return Path(self.out or Path(self._parent) / "-".join(Path(name).stem for name in self.space_names))

    @property
    def texts(self) -> list[str]:
        """The text asked for; the packaged one by default."""
        return self.text or [PACKAGED]

    def to_dict(self) -> dict[str, Any]:
        """As `config.yaml` holds it: all that was chosen and can change a number."""
        return {key: value for key, value in asdict(self).items() if key not in CHANGES_NOTHING}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            InputError: for an unknown key or a value that is not allowed.
        """
        known = [field.name for field in fields(cls)]
        if unknown := [key for key in content if key not in known]:
            raise InputError(f"unknown setting {', '.join(unknown)}; allowed: {', '.join(known)}")
        return cls(**content)


@dataclass(frozen=True, kw_only=True)
class SearchConfig(TrainConfig):
    """What to search, and with what effort; how the SuperLMs are trained, or where trained ones lie.

    Args:
        objectives: What to trade off, separated by commas: acc (the accuracy proxy: relation loss on held-out text),
            flops (multiply-adds at 128 tokens, batch 1), params, params_non_embedding, size_mb (float32 weights), and
            measured here on the student: latency (ms), memory (peak bytes of a forward pass), throughput (sequences/s);
            predicted_latency (ms) is measured on a few, and on the frontier that is found.
        superlm: Folder of an earlier train, whose SuperLMs are searched; they are trained first if not given.
        proxy: What acc measures: relation (the relation loss on held-out text), hidden (what the last hidden states
            there lack of the teacher's), cosine:TASK (how sentence vectors rank pairs), probe:TASK (a linear model on
            frozen features), task:TASK (fine-tuned for a while; TASK as finetune names it), or what is installed.
        proxy_text_columns: Columns of the table that TASK names with the one or two texts; usual names are found.
        proxy_label_column: Its column with the label; "label" if not given.
        proxy_rows: Rows that probe and task train on and cosine is measured on, at most.
        proxy_epochs: Passes over them, of task.
        proxy_lr: Peak learning rate of task.
        search_seed: Fixes which subnets the engine draws; --seed if not given. With --superlm, which was trained with a
            seed of its own, --seed means this one.
        engine: Search engine: surrogate, nsga2, nsga3, age-moea2, sms-emoa, optuna-nsga2, optuna-nsga3, optuna-tpe,
            optuna-gp, random, exhaustive, or what is installed.
        evaluations: Subnets to score in each space, at most.
        population: Subnets in a generation of the evolutionary engines.
        constraint: Bounds on objectives, such as latency<=5 or params<=8M.
        latency_batch: Sequences at once when latency and memory are measured.
        throughput_batch: Sequences at once when throughput is measured.
        measured_seq_len: Tokens in each of them.
        latency_samples: Subnets of each space that are measured to fit predicted_latency.
        eval_blocks: Held-out blocks on which the proxy is measured; each keeps about 3 MB of memory.
        storage: Where evaluations are kept for several processes to work at: a database's URL, such as
            postgresql://user@host/database, or a journal file for those of one machine; if not given, in the run's
            folder, for this process alone.
        study: Name of the study there.
        worker_timeout: Seconds without a sign of life after which a worker's subnet is given to another.
        baselines: What the frontier is held against, separated by commas: shapes (those of TinyBERT and MiniLM,
            distilled alone for as many steps), tinybert and minilm (the same by their own objectives), random (three
            subnets of each space, distilled alone), truncated (the teacher's first half of layers), hub ids or folders
            of encoders with the teacher's tokens, scored as they are; or none.
    """

    objectives: str = "acc,flops"
    superlm: str | None = None
    proxy: str = "relation"
    proxy_text_columns: str | None = None
    proxy_label_column: str | None = None
    proxy_rows: int = 2000
    proxy_epochs: int = 2
    proxy_lr: float = 2e-4
    search_seed: int | None = None
    engine: str = "nsga2"
    evaluations: int = 128
    population: int = 8
    constraint: list[str] | None = None
    latency_batch: int = 1
    throughput_batch: int = 32
    measured_seq_len: int = 128
    latency_samples: int = 32
    eval_blocks: int = 32
    storage: str | None = field(default=None, repr=False)
    study: str = "search"
    worker_timeout: int = 60
    baselines: str = "shapes"

    _parent: ClassVar[str] = "runs"

    def __post_init__(self, given: Mapping[str, Any] | None) -> None:
        super().__post_init__(given)
        if "none" in self.baseline_names:
            raise InputError(f"--baselines {self.baselines!r}; allowed: none alone, or names without it")
        if self.proxy == "hidden" and self.eval_blocks < _PARTS:
            raise InputError(f"--eval-blocks {self.eval_blocks} with --proxy hidden; allowed: {_PARTS} or more")
        if (self.proxy_text_columns or self.proxy_label_column) and ":" not in self.proxy:
            raise InputError(
                f"--proxy {self.proxy!r} reads no table; allowed: --proxy-text-columns and --proxy-label-column with "
                "cosine:TASK, probe:TASK or task:TASK"
            )

    @property
    def baseline_names(self) -> list[str]:
        """The baselines asked for; empty for none."""
        names = [name.strip() for name in self.baselines.split(",") if name.strip()]
        return [] if names == ["none"] else names

    @property
    def proxy_columns(self) -> list[str] | None:
        """The text columns asked for."""
        return column_names(self.proxy_text_columns)

    @property
    def constraints(self) -> list[str]:
        """The bounds asked for."""
        return self.constraint or []

    def absolute(self, plugins: Plugins | None = None) -> Self:
        """Return the same with the absolute paths of files and folders; see `TrainConfig.absolute`."""
        superlm = None if self.superlm is None else absolute_path(self.superlm)
        storage = self.storage
        if storage is not None and not names_database(storage):
            storage = resolved(storage)
        kind, colon, task = self.proxy.partition(":")
        baselines = [absolute_path(name, BASELINES) for name in self.baseline_names]
        return replace(
            super().absolute(plugins),
            superlm=superlm,
            storage=storage,
            proxy=f"{kind}{colon}{absolute_path(task, TASKS)}",
            baselines=",".join(baselines) or "none",
        )

    def to_dict(self) -> dict[str, Any]:
        """As `config.yaml` holds it: all that was chosen and can change a number, and no password."""
        content = super().to_dict()
        content["search_seed"] = None if self.search_seed == self.seed else self.search_seed
        return content | {"storage": None if self.storage is None else without_password(self.storage)}

    @property
    def engine_seed(self) -> int:
        """The seed of the engine."""
        return self.seed if self.search_seed is None else self.search_seed

    def training(self, **changes: Any) -> TrainConfig:
        """How its SuperLMs are trained, with these settings changed."""
        settings = {setting.name: getattr(self, setting.name) for setting in fields(TrainConfig)}
        return TrainConfig(**settings | changes).absolute()

    def for_workers(self) -> dict[str, Any]:
        """What workers need of it, for `from_dict`; how subnets are chosen is not their matter."""
        asks = ("engine", "search_seed", "evaluations", "population", "baselines", "storage", "study", "superlm")
        content = {name: value for name, value in self.to_dict().items() if name not in asks}
        return content | {"out": str(self.folder.resolve()), "worker_timeout": self.worker_timeout}

    def trained_as(self, trained: TrainConfig) -> Self:
        """The same with the training of `trained`, whose SuperLMs are to be searched.

        Raises:
            InputError: if another training was asked for, too, or a space that was not trained.
        """
        if lacking := [name for name in self.space_names if name not in trained.space_names]:
            raise InputError(
                f"--space {', '.join(lacking)}, but --superlm {self.superlm} has {', '.join(trained.space_names)}"
            )
        chosen: dict[str, Any] = {}
        if self.was_given("seed") and self.search_seed is None and self.seed != trained.seed:
            chosen["search_seed"] = self.seed
        for setting in fields(TrainConfig):
            name, value = setting.name, getattr(trained, setting.name)
            if name in (*CHANGES_NOTHING, "space", "device", "precision"):
                continue
            same = self.texts == trained.texts if name == "text" else getattr(self, name) == value
            if self.was_given(name) and not same and not (name == "seed" and "search_seed" in chosen):
                raise InputError(
                    f"{flag(name)} {quoted(getattr(self, name))}, but --superlm {self.superlm} was trained with "
                    f"{'the default' if value is None else quoted(value)}; allowed: that, or to leave it out"
                )
            chosen[name] = value
        return replace(self, **chosen)


def column_names(text: str | None) -> list[str] | None:
    """Names of a table's columns, separated by commas; None if none are given."""
    return None if text is None else [name.strip() for name in text.split(",")]


def is_positive(value: Any) -> bool:
    """Whether `value` is a finite number above 0."""
    return is_finite(value) and value > 0


def check_settings(config: Any) -> None:
    """Refuse settings of another kind than their field has, outside its closed list or its range of whole numbers.

    One text in place of a list of texts is taken for the only one, and a path for its text.

    Raises:
        InputError: naming the flag and what is allowed.
    """
    words, hints = choices(type(config)), get_type_hints(type(config))
    for setting in fields(config):
        name, value = setting.name, getattr(config, setting.name)
        if value is None and setting.default is None:
            continue
        kinds = {get_origin(kind) or kind for kind in (hints[name], *get_args(hints[name]))}
        if name in words:
            if value not in words[name]:
                allowed = ", ".join(words[name])
                raise InputError(f"{flag(name)} {quoted(value)}{meant(value, words[name])}; allowed: {allowed}")
        elif list in kinds:
            texts = list(value) if isinstance(value, list | tuple) else [value]
            if not all(_is_text(text) for text in texts):
                raise InputError(f"{flag(name)} {quoted(value)}; allowed: one or more texts")
            object.__setattr__(config, name, [os.fspath(text) for text in texts])
        elif str in kinds:
            if not _is_text(value):
                such = "" if setting.default is None else f", such as {setting.default!r}"
                raise InputError(f"{flag(name)} {quoted(value)}; allowed: text{such}")
            object.__setattr__(config, name, os.fspath(value))
        elif bool in kinds:
            if not isinstance(value, bool):
                raise InputError(f"{flag(name)} {quoted(value)}; allowed: true or false")
        elif int in kinds:
            check_whole_number(flag(name), value, *_RANGES[name])


def _is_text(value: object) -> bool:
    """Return whether `value` is text that a file can hold, or a path."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    return isinstance(text, str) and "\0" not in text and text == text.encode(errors="ignore").decode()


def check_whole_number(name: str, value: object, least: int, most: int = LARGEST) -> None:
    """Refuse what is no whole number from `least` to `most`; the error begins with `name`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        to = f" to {most}" if isinstance(value, int) and value > most else ""
        raise InputError(f"{name} {quoted(value)}; allowed: whole numbers from {least}{to}")


def choices(config: type[Any] = SearchConfig) -> dict[str, tuple[str, ...]]:
    """The allowed words of each setting that has a closed list."""
    found = {}
    for name, hint in get_type_hints(config).items():
        for part in (hint, *get_args(hint)):
            if get_origin(part) is Literal:
                found[name] = get_args(part)
    return found


def resolved(path: str) -> str:
    """Return the absolute path, of what is not there, too."""
    try:
        return str(Path(path).resolve())
    except (OSError, ValueError, RuntimeError):  # a name no file can have; who opens it says so
        return path


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")
