"""Training and scoring of baselines, under the same conditions as the subnets of a search."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from autodistil_search.base.device import Device
from autodistil_search.base.files import locked_beside, whole_folder
from autodistil_search.base.manifest import model_files, verify, write_manifest
from autodistil_search.base.pretrained import model_sha256, quiet_transformers
from autodistil_search.base.progress import Reporter
from autodistil_search.base.seeding import seeded
from autodistil_search.base.version import __version__
from autodistil_search.distillation.layer_losses import LayerTransfer
from autodistil_search.distillation.options import Execution, TrainOptions
from autodistil_search.distillation.training_loop import distill
from autodistil_search.nas.baselines import AS_IT_IS, COPY, DISTILLED, DRAWN, MINILM, TINYBERT, TRUNCATED, Baseline
from autodistil_search.nas.objectives import Objective, costs
from autodistil_search.nas.proxies import RELATIONS, STATES, Proxy
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.superlm.model_folder import save_tokenizer
from autodistil_search.teachers.initial_weights import COPYING_STARTS, start_from
from autodistil_search.teachers.loading import truncated
from autodistil_search.teachers.teacher import Teacher
from autodistil_search.text.blocks import TrainingText

SHAPES = {
    "TinyBERT 4x312": Subnet(layers=4, hidden_size=312, ffn_size=1200, heads=12, head_dim=26),
    "MiniLM 3x384": Subnet(layers=3, hidden_size=384, ffn_size=1536, heads=12, head_dim=32),
    "MiniLM 6x384": Subnet(layers=6, hidden_size=384, ffn_size=1536, heads=12, head_dim=32),
}
"""Shapes of TinyBERT (arXiv 1909.10351) and MiniLM (arXiv 2002.10957), trained here as the subnets are."""


_NOT_TRAINED_FOR = {RELATIONS: (TINYBERT, MINILM), STATES: (MINILM,)}
"""Baselines whose own objective does not train what a proxy compares, so that its score says nothing about them.

MiniLM trains the queries, keys and values of the last layer only. The rest of this layer keeps its initial weights.
"""
_RANDOM_SUBNETS = 3
"""Number of random subnets of each space for the baseline "random"."""


@dataclass(frozen=True)
class Recipe:
    """Recipe of a baseline that is trained alone."""

    name: str
    subnet: Subnet
    how: str
    options: TrainOptions
    layer_by_layer: bool = False

    def __str__(self) -> str:
        return f"baseline {self.name}, {self.how}"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Conditions under which baselines are trained and measured, the same as for the subnets of the search.

    Attributes:
        teacher: Teacher of the baselines.
        begin_text: Function that returns the training text from its start.
        proxy: Proxy that scores the baselines.
        compares: Parts of a student that the proxy compares with the teacher's; see `ProxyKind.compares`.
        columns: Objectives to measure.
        options_of: Function that returns the training options of a student of a given size.
        init: Start of the students.
        sample_ids: Token ids of the text from which the start is computed.
        identity: Other facts on which weights depend, such as digests of teacher and text.
        cache: Folder of trained weights; a later run with the same settings only scores them.
        device: Device and precision to run on.
        reporter: Receiver of progress and notes.
        execution: Memory and speed settings of the training, equal to those of the SuperLM.
    """

    teacher: Teacher
    begin_text: Callable[[], TrainingText]
    proxy: Proxy
    compares: str
    columns: Sequence[Objective]
    options_of: Callable[[Subnet], TrainOptions]
    init: str
    sample_ids: Tensor
    identity: Mapping[str, str]
    cache: Path
    device: Device
    reporter: Reporter
    execution: Execution

    def untrained(self, names: Sequence[str], given: Mapping[str, AutoDistilModel]) -> list[Baseline]:
        """Return the measured baselines among `names` that need no training.

        Args:
            names: Names of `BASELINES` of the settings, or of models in `given`.
            given: Models by name.
        """
        scored = [self._score(_shown(name), given[name], AS_IT_IS, Path(name)) for name in names if name in given]
        if "truncated" in names and (half := truncated(self.teacher)) is not None:
            name = f"teacher's first {half.config.subnet.layers} layers"
            scored.append(self._score(name, half, TRUNCATED, self._saved(half)))
        return scored

    def recipes(self, names: Sequence[str], spaces: Sequence[SearchSpace]) -> list[Recipe]:
        """Return the recipes of the baselines among `names` that are trained, for `train_and_score`.

        Args:
            names: Names of `BASELINES` of the settings.
            spaces: Spaces from which the baseline "random" draws.
        """
        recipes = []
        if "shapes" in names:
            recipes += [Recipe(name, subnet, DISTILLED, self._options(subnet)) for name, subnet in SHAPES.items()]
        if "tinybert" in names:
            recipes += [
                Recipe(name, subnet, TINYBERT, replace(self._options(subnet), hidden=0.0), layer_by_layer=True)
                for name, subnet in SHAPES.items()
                if name.startswith("TinyBERT")
            ]
        if "minilm" in names:
            own: dict[str, Any] = {
                "loss": "kl",
                "relations": "qk,vv",
                "relation_heads": self.teacher.subnet.heads,
                "hidden": 0.0,
            }
            recipes += [
                Recipe(name, subnet, MINILM, replace(self._options(subnet), **own))
                for name, subnet in SHAPES.items()
                if name.startswith("MiniLM")
            ]
        if "random" in names:
            rng = random.Random(self.options_of(spaces[0].largest).seed)
            for space in spaces:
                drawn = dict.fromkeys(space.sample(rng) for _ in range(_RANDOM_SUBNETS))
                recipes += [
                    Recipe(f"random {i} of {space.name}", subnet, DRAWN, self._options(subnet))
                    for i, subnet in enumerate(drawn, start=1)
                ]
        return recipes

    def _options(self, subnet: Subnet) -> TrainOptions:
        """Return the options of training a student of this size alone."""
        return options_alone(self.options_of(subnet))

    def _saved(self, model: AutoDistilModel) -> Path:
        """Save an untrained model with the tokenizer, and return its folder, which is named by its weights."""
        folder = self.cache / "baselines" / model_sha256(model)[:16]
        with locked_beside(folder, None):
            if not folder.exists():
                with whole_folder(folder) as new, quiet_transformers():
                    model.save_pretrained(new)
                    self.teacher.tokenizer.save_pretrained(new)
                    write_manifest(new, "student", model_files(new))
            verify(folder)
        return folder

    def _score(self, name: str, model: AutoDistilModel, how: str, weights: Path | None = None) -> Baseline:
        self.device.place(model)
        subnet = model.config.subnet
        measured = costs(self.columns, subnet, self.teacher.vocabulary, lambda: copy.deepcopy(model))
        score = math.nan if how in _NOT_TRAINED_FOR.get(self.compares, ()) else self.proxy.score(model)
        measured |= {column.name: score for column in self.columns if column.is_proxy}
        return Baseline(name, subnet, how, measured, weights)

    def train_and_score(self, recipe: Recipe) -> Baseline:
        """Train a baseline alone, unless it starts as a complete copy of the teacher, and score it.

        It has the SuperLM's steps, text, batch size, start and learning rate, and is scored as the SuperLM's subnets.
        """
        teacher, options = self.teacher, recipe.options
        model = begin_alone(teacher, recipe.subnet, options, self.init, self.sample_ids)
        is_copy = self.init in COPYING_STARTS and recipe.subnet == teacher.subnet and teacher.copies_exactly
        if is_copy and teacher.layer == recipe.subnet.layers - 1:
            return self._score(recipe.name, model, COPY)
        transfer = None
        if recipe.layer_by_layer:
            with seeded(options.seed):
                transfer = LayerTransfer(model, teacher.model, "mse")
        folder = self.cache / "baselines" / self._key(recipe, "" if transfer is None else transfer.description)
        with locked_beside(folder, None):  # a concurrent search waits, and reads the weights that are trained here
            distill(
                model,
                teacher,
                self.begin_text(),
                options,
                folder,
                self.device,
                self.reporter,
                self.execution,
                title=str(recipe),
                transfer=transfer,
                sample_ids=self.sample_ids,
            )
            save_tokenizer(teacher.tokenizer, folder)
        return self._score(recipe.name, model, recipe.how, folder)

    def _key(self, recipe: Recipe, transfer: str) -> str:
        settings = {**self.identity, **asdict(recipe.options), **asdict(recipe.subnet), "init": self.init}
        settings |= {"version": __version__, "transfer": transfer}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _shown(name: str) -> str:
    """Return the last part of an absolute path, or a hub id as it is."""
    return Path(name).name if Path(name).is_absolute() else name


def options_alone(options: TrainOptions) -> TrainOptions:
    """Return the options of training a student alone, for comparison with subnets of a SuperLM trained by `options`.

    The student itself is trained at each step, so the sampling and weights of subnets do not apply.
    """
    return replace(options, sampling="largest-random", random_subnets=None, subnet_weights="", in_place=0.0)


def begin_alone(
    teacher: Teacher, subnet: Subnet, options: TrainOptions, init: str, sample_ids: Tensor
) -> AutoDistilModel:
    """Return a student of the sizes `subnet` before its training; see `initial_weights.start_from`."""
    with seeded(options.seed):
        model = AutoDistilModel(teacher.student_config(subnet))
    start_from(model, teacher, init, sample_ids, options.relation_heads)
    return model
