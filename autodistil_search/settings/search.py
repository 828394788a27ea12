"""The settings of a search: `SearchConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar, Self

from annotated_types import Ge, Le

from autodistil_search.base.errors import InputError
from autodistil_search.base.passwords import names_database, without_password
from autodistil_search.base.plugins import Plugins
from autodistil_search.base.user_input import TASKS, absolute_path, meant, parse_number, quoted
from autodistil_search.nas.baselines import FAMILIES, NAMED_SHAPES
from autodistil_search.nas.objectives import COMBINED, DEFAULT_PROXY, HIDDEN
from autodistil_search.settings.common import (
    CHANGES_NOTHING,
    MANY,
    MEASUREMENT,
    OUTPUT,
    SEARCH,
    Columns,
    Count,
    Folder,
    Name,
    Names,
    Placeholder,
    Rate,
    Rows,
    Seed,
    Steps,
    Usual,
    column_names,
    flag,
    resolved,
)
from autodistil_search.settings.train import TrainConfig

_PARTS = 2
"""Least number of blocks of the hidden-state loss, which measures each part by a map fitted to the others."""
BASELINES = (*FAMILIES, "random", "truncated", *NAMED_SHAPES)
"""Names of `--baselines`; other words are hub ids and folders."""

PROFILED = ("space", "teacher", "device", "precision", "latency_batch", "throughput_batch", "measured_seq_len")
"""Settings on which the costs of a subnet depend, for `profile`."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig(TrainConfig):
    """Settings of a search: objectives, engine, measurements, and the training of its SuperLMs.

    Args:
        objectives: Objectives, separated by commas, such as acc,flops,latency. acc is the accuracy proxy (see
            --proxy). Computed are flops (multiply-adds at 128 tokens, batch 1), params, params_non_embedding and
            size_mb (float32 weights). Measured on this machine are latency (ms), memory (peak bytes of a forward pass)
            and throughput (sequences/s). predicted_latency (ms) is fitted to a few measurements, and measured on the
            frontier.
        superlm: Output folder of an earlier train, whose SuperLMs are searched; by default they are trained first.
        proxy: Measure behind acc: relation, hidden, similarity, cka, combined, cosine:TASK, probe:TASK, task:TASK or a
            plug-in. On held-out text, relation is the relation loss, hidden the unexplained share of the teacher's last
            hidden states, similarity the rank correlation of sentence similarities with the teacher's, cka the centred
            kernel alignment of last hidden states, and combined the mean of relation, hidden and similarity. With
            labels, cosine:TASK is the rank correlation of sentence vectors, probe:TASK a linear model on frozen
            features, and task:TASK a short fine-tuning. TASK is as in finetune.
        proxy_text_columns: One or two text columns of TASK's table; common names are recognised if not given.
        proxy_label_column: Label column of that table; "label" if not given.
        proxy_rows: Maximum number of rows that probe and task train on and cosine measures.
        proxy_epochs: Passes over these rows, for task.
        proxy_lr: Peak learning rate of task.
        search_seed: Seed of the engine; --seed if not given. With --superlm, whose training had its own seed, --seed
            means this one.
        engine: Search engine. Built in are surrogate, nsga2, nsga3, age-moea2, sms-emoa, optuna-nsga2, optuna-nsga3,
            optuna-tpe, optuna-gp, random and exhaustive; others are plug-ins.
        evaluations: Maximum number of subnets that are scored in each space.
        population: Subnets in a generation of the evolutionary engines.
        constraint: Bound on an objective, such as 'latency<=5' or 'params<=8M'. The flag may be repeated.
        latency_batch: Batch size of measurements of latency and memory.
        throughput_batch: Batch size of measurements of throughput.
        measured_seq_len: Tokens in a sequence of these measurements.
        latency_samples: Number of subnets of each space that predicted_latency is fitted to.
        eval_blocks: Number of held-out blocks for the proxy; a block takes about 3 MB of memory. The proxy similarity
            has eight passages for each of them.
        storage: Storage of the scored subnets; the run's folder if not given. It is a journal file, or a database's
            URL such as postgresql://user@host/database.
        study: Name of the study in the storage.
        baselines: Baselines of the frontier, separated by commas, or none. shapes are the shapes of TinyBERT and
            MiniLM that fit the teacher, distilled alone for as many steps; tinybert and minilm are the same by their
            own objectives. A single shape is named such as tinybert:6x768. random are three subnets of each space,
            distilled alone. truncated is the first half of the teacher's layers. Hub ids and folders of encoders with
            the teacher's vocabulary are scored as they are.
        baseline_rates: Learning rates at which each baseline is trained, as factors of --lr, or else of the default
            rate of its size, such as 0.5,1. The training with the lowest held-out loss of its own objective is kept.
    """

    objectives: Annotated[Names, SEARCH, Usual()] = "acc,flops"
    superlm: Annotated[Folder | None, SEARCH] = None
    proxy: Annotated[str, SEARCH, Placeholder("PROXY")] = DEFAULT_PROXY
    proxy_text_columns: Annotated[Columns | None, SEARCH] = None
    proxy_label_column: Annotated[str | None, SEARCH, Placeholder("COLUMN")] = None
    proxy_rows: Annotated[Rows, SEARCH] = 2000
    proxy_epochs: Annotated[Count, SEARCH] = 2
    proxy_lr: Annotated[Rate, SEARCH, Placeholder("RATE")] = 2e-4
    search_seed: Annotated[Seed | None, SEARCH] = None
    engine: Annotated[Name, SEARCH] = "nsga2"
    evaluations: Annotated[Steps, SEARCH, Usual("e")] = 128
    population: Annotated[Annotated[int, Ge(2), Le(MANY)], SEARCH] = 8
    constraint: Annotated[list[str] | None, SEARCH, Usual(), Placeholder("BOUND")] = None
    latency_batch: Annotated[Count, MEASUREMENT] = 1
    throughput_batch: Annotated[Count, MEASUREMENT] = 32
    measured_seq_len: Annotated[Count, MEASUREMENT] = 128
    latency_samples: Annotated[Annotated[int, Ge(2), Le(MANY)], MEASUREMENT] = 32
    eval_blocks: Annotated[Count, MEASUREMENT] = 32
    storage: Annotated[Name | None, OUTPUT, Placeholder("STORAGE")] = field(default=None, repr=False)
    study: Annotated[Name, OUTPUT] = "search"
    baselines: Annotated[Names, SEARCH] = "shapes"
    baseline_rates: Annotated[str, SEARCH, Placeholder("FACTORS")] = "1"

    _parent: ClassVar[str] = "runs"

    def __post_init__(self, given: Mapping[str, Any] | None) -> None:
        super().__post_init__(given)
        if "none" in self.baseline_names:
            raise InputError(f"--baselines {self.baselines!r}; allowed: none alone, or names without it")
        self._check_shapes()
        parse_factors(self.baseline_rates)
        if self.proxy in (HIDDEN, COMBINED) and self.eval_blocks < _PARTS:
            raise InputError(f"--eval-blocks {self.eval_blocks} with --proxy {self.proxy}; allowed: {_PARTS} or more")
        if (self.proxy_text_columns or self.proxy_label_column) and ":" not in self.proxy:
            raise InputError(
                f"--proxy {self.proxy!r} reads no table; allowed: --proxy-text-columns and --proxy-label-column with "
                "cosine:TASK, probe:TASK or task:TASK"
            )

    @property
    def baseline_names(self) -> list[str]:
        """Return the names of the baselines; empty for none."""
        names = [name.strip() for name in self.baselines.split(",") if name.strip()]
        return [] if names == ["none"] else names

    def _check_shapes(self) -> None:
        """Refuse a named shape that no family has."""
        for name in self.baseline_names:
            family, colon, _ = name.partition(":")
            if colon and family in FAMILIES and name not in BASELINES:
                known = [word for word in NAMED_SHAPES if word.startswith(f"{family}:")]
                raise InputError(f"--baselines {quoted(name)}{meant(name, known)}; allowed: {', '.join(known)}")

    @property
    def baseline_factors(self) -> list[float]:
        """Return the factors of the learning rates of baselines."""
        return parse_factors(self.baseline_rates)

    @property
    def proxy_columns(self) -> list[str] | None:
        """Return the text columns by name; None if not given."""
        return column_names(self.proxy_text_columns)

    @property
    def constraints(self) -> list[str]:
        """Return the bounds on objectives."""
        return self.constraint or []

    def absolute(self, plugins: Plugins | None = None) -> Self:
        """Return a copy with absolute paths; see `TrainConfig.absolute`."""
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
        """Return the content of `config.yaml`: the settings that can change a number, without passwords."""
        content = super().to_dict()
        content["search_seed"] = None if self.search_seed == self.seed else self.search_seed
        return content | {"storage": None if self.storage is None else without_password(self.storage)}

    @property
    def engine_seed(self) -> int:
        """Return the seed of the engine."""
        return self.seed if self.search_seed is None else self.search_seed

    def training(self, **changes: Any) -> TrainConfig:
        """Return the settings of the SuperLMs' training, with `changes`."""
        settings = {setting.name: getattr(self, setting.name) for setting in fields(TrainConfig)}
        return TrainConfig(**settings | changes).absolute()

    def for_workers(self) -> dict[str, Any]:
        """Return the settings that workers need, for `from_dict`; those of the engine are left out."""
        asks = (
            "engine",
            "search_seed",
            "evaluations",
            "population",
            "baselines",
            "baseline_rates",
            "storage",
            "study",
            "superlm",
        )
        content = {name: value for name, value in self.to_dict().items() if name not in asks}
        return content | {"out": str(self.folder.resolve()), "accumulate": self.accumulate}

    def trained_as(self, trained: TrainConfig) -> Self:
        """Return a copy with the training settings of `trained`, whose SuperLMs are searched.

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


def parse_factors(text: str) -> list[float]:
    """Return the factors of `--baseline-rates`.

    Raises:
        InputError: if they are not different positive numbers.
    """
    factors = [parse_number(word) or 0.0 for word in text.split(",")]
    if min(factors) <= 0 or len(set(factors)) < len(factors):
        raise InputError(
            "--baseline-rates must be different numbers above 0, separated by commas, such as 0.5,1 "
            f"(got {quoted(text)})"
        )
    return factors
