"""Training and scoring of baselines, under the same conditions as the subnets of a search."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autodistil_search.base.device import Device
from autodistil_search.base.files import locked_beside, whole_folder
from autodistil_search.base.manifest import model_files, verify, write_manifest
from autodistil_search.base.pretrained import model_sha256, quiet_transformers, write_tokenizer
from autodistil_search.base.progress import Reporter
from autodistil_search.base.seeding import seeded
from autodistil_search.base.version import __version__
from autodistil_search.base.weighted_names import parse_relations
from autodistil_search.distillation.checkpoints import course_of
from autodistil_search.distillation.layer_losses import LayerTransfer, layer_pairs
from autodistil_search.distillation.options import Execution, TrainOptions
from autodistil_search.distillation.training_loop import Distillation, distill_together
from autodistil_search.nas.baselines import (
    AS_IT_IS,
    COPY,
    DISTILLED,
    DRAWN,
    MINILM,
    TINYBERT,
    TRUNCATED,
    Baseline,
    shapes_named,
)
from autodistil_search.nas.label_free_proxies import RelationProxy
from autodistil_search.nas.objectives import Objective, costs
from autodistil_search.nas.proxies import RELATIONS, STATES, Proxy
from autodistil_search.spaces.cost import training_bytes
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.superlm.model_folder import load_model, save_tokenizer
from autodistil_search.teachers.initial_weights import COPYING_STARTS, STARTS_VERSION, start_from
from autodistil_search.teachers.loading import truncated
from autodistil_search.teachers.teacher import Teacher
from autodistil_search.text.blocks import TrainingText

HELD_OUT_BLOCKS = 32
"""Number of held-out blocks on which the trainings of a baseline at several learning rates are compared."""
_BLOCKS_AT_ONCE = 8

_NOT_TRAINED_FOR = {RELATIONS: (TINYBERT, MINILM), STATES: (MINILM,)}
"""Baselines whose own objective does not train what a proxy compares, so that its score says nothing about them.

MiniLM trains the queries, keys and values of the last layer only. The rest of this layer keeps its initial weights.
"""
_RANDOM_SUBNETS = 3
"""Number of random subnets of each space for the baseline "random"."""


@dataclass(frozen=True)
class Recipe:
    """Recipe of a baseline that is trained alone.

    Attributes:
        name: Name in tables and figures.
        subnet: Sizes of the model.
        how: Origin of its weights, in words.
        options: Options of its training, at the learning rate of factor 1.
        layer_by_layer: True to train by `LayerTransfer`, False to train by relations.
        factors: Factors of the learning rate. The baseline is trained at each, and the best training is kept.
    """

    name: str
    subnet: Subnet
    how: str
    options: TrainOptions
    layer_by_layer: bool = False
    factors: tuple[float, ...] = (1.0,)

    def __str__(self) -> str:
        return f"baseline {self.name}, {self.how}"


@dataclass(frozen=True)
class RecipeGroup:
    """Task of training and scoring the baselines of some recipes, which train together; see `grouped`."""

    recipes: tuple[Recipe, ...]

    def __str__(self) -> str:
        return "; ".join(map(str, self.recipes))


def grouped(recipes: Sequence[Recipe]) -> list[RecipeGroup]:
    """Return the recipes in groups that can train together: on the same batches, by the same losses."""
    groups: dict[tuple[TrainOptions, bool], list[Recipe]] = {}
    for recipe in recipes:
        groups.setdefault((replace(recipe.options, lr=0.0), recipe.layer_by_layer), []).append(recipe)
    return [RecipeGroup(tuple(group)) for group in groups.values()]


@dataclass(frozen=True)
class _Training:
    """Training of the baseline of a recipe at one learning rate.

    Attributes:
        recipe: Recipe of the baseline.
        options: Options, with this learning rate.
        folder: Folder of the weights in the cache.
    """

    recipe: Recipe
    options: TrainOptions
    folder: Path

    def __str__(self) -> str:
        at = f" at a rate of {self.options.lr:.3g}" if len(self.recipe.factors) > 1 else ""
        return f"{self.recipe}{at}"

    def held_out_loss(self) -> float:
        """Return the held-out loss of its own objective; infinite if the training failed."""
        course = course_of(self.folder)
        return math.inf if course is None or course.held_out_loss is None else course.held_out_loss


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
        held_out: Function that returns at most a number of held-out blocks, `(N, T)`.
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
    held_out: Callable[[int], Tensor]
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

    def recipes(
        self, names: Sequence[str], spaces: Sequence[SearchSpace], factors: Sequence[float] = (1.0,)
    ) -> list[Recipe]:
        """Return the recipes of the baselines among `names` that are trained, for `train_and_score`.

        Args:
            names: Names of `BASELINES` of the settings.
            spaces: Spaces from which the baseline "random" draws.
            factors: Factors of the learning rate at which each baseline is trained.
        """
        minilm = {"loss": "kl", "relations": "qk,vv", "relation_heads": self.teacher.subnet.heads, "hidden": 0.0}
        objectives: dict[str, tuple[str, dict[str, Any]]] = {
            "shapes": (DISTILLED, {}),
            "tinybert": (TINYBERT, {"hidden": 0.0}),
            "minilm": (MINILM, minilm),
        }
        recipes = [
            Recipe(name, subnet, how, replace(self._options(subnet), **own), how == TINYBERT)
            for family, (how, own) in objectives.items()
            for word in names
            if word.partition(":")[0] == family
            for name, subnet in shapes_named(word, self.teacher.subnet).items()
        ]
        if "random" in names:
            rng = random.Random(self.options_of(spaces[0].largest).seed)
            for space in spaces:
                drawn = dict.fromkeys(space.sample(rng) for _ in range(_RANDOM_SUBNETS))
                recipes += [
                    Recipe(f"random {i} of {space.name}", subnet, DRAWN, self._options(subnet))
                    for i, subnet in enumerate(drawn, start=1)
                ]
        return [replace(recipe, factors=tuple(factors)) for recipe in dict.fromkeys(recipes)]

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
                    write_tokenizer(self.teacher.tokenizer, new)
                    write_manifest(new, "student", model_files(new))
            verify(folder)
        return folder

    def _score(
        self, name: str, model: AutoDistilModel, how: str, weights: Path | None = None, lr: float | None = None
    ) -> Baseline:
        self.device.place(model)
        subnet = model.config.subnet
        measured = costs(self.columns, subnet, self.teacher.vocabulary, lambda: copy.deepcopy(model))
        score = math.nan if how in _NOT_TRAINED_FOR.get(self.compares, ()) else self.proxy.score(model)
        measured |= {column.name: score for column in self.columns if column.is_proxy}
        return Baseline(name, subnet, how, measured, weights, lr)

    def train_and_score(self, group: RecipeGroup) -> list[Baseline]:
        """Train the baselines of a group, and score them in the order of its recipes.

        They have the SuperLM's steps, text, batch size and start, and are scored as the SuperLM's subnets. Those that
        fit into memory at once train together, with one teacher pass for each batch; each ends with the weights of a
        training of its own. A complete copy of the teacher is not trained.

        Raises:
            FloatingPointError: if the training of a baseline failed at every learning rate; all others are finished.
        """
        trainings = {recipe: [] if self._is_copy(recipe) else self._trainings(recipe) for recipe in group.recipes}
        packs = self._packs([training for of_recipe in trainings.values() for training in of_recipe])
        errors = [error for error in map(self._train, packs) if error is not None]
        return [self._scored(recipe, of_recipe, errors) for recipe, of_recipe in trainings.items()]

    def _is_copy(self, recipe: Recipe) -> bool:
        """Return True if a student of this recipe starts as a complete copy of the teacher."""
        teacher, subnet = self.teacher, recipe.subnet
        same = subnet == teacher.subnet and teacher.layer == subnet.layers - 1
        return self.init in COPYING_STARTS and same and teacher.copies_exactly

    def _trainings(self, recipe: Recipe) -> list[_Training]:
        """Return the trainings of a recipe, one for each learning rate."""
        options = [replace(recipe.options, lr=recipe.options.lr * factor) for factor in recipe.factors]
        return [_Training(recipe, entry, self.cache / "baselines" / self._key(recipe, entry)) for entry in options]

    def _packs(self, trainings: Sequence[_Training]) -> list[list[_Training]]:
        """Return the trainings in parts that fit into the free memory at once; equal ones are trained once."""
        free, vocabulary = self.device.free_memory(), self.teacher.vocabulary
        packs: list[list[_Training]] = []
        room = 0
        for training in {training.folder: training for training in trainings}.values():
            needed = training_bytes(training.recipe.subnet, vocabulary)
            if not packs or (free is not None and needed > room):
                packs.append([])
                room = 0 if free is None else free.size
            packs[-1].append(training)
            room -= needed
        return packs

    def _train(self, trainings: Sequence[_Training]) -> FloatingPointError | None:
        """Train baselines together to the end; returns the first error of those that failed.

        A concurrent search waits for a folder, and reads the weights that are trained here. All processes lock folders
        in the order of their names, so that none waits for another that waits for it.
        """
        error = None
        proxy = cache(partial(self._own_proxy, trainings[0].options))
        with ExitStack() as locks:
            for folder in sorted(training.folder for training in trainings):
                locks.enter_context(locked_beside(folder, None))
            starts: dict[tuple[Recipe, bool], AutoDistilModel] = {}
            begun = [self._begun(training, starts, proxy) for training in trainings]
            try:
                distill_together(begun, self.teacher, self.begin_text(), self.device, self.reporter, self.execution)
            except FloatingPointError as failure:
                error = failure
            for training in trainings:
                if course_of(training.folder) is not None:
                    save_tokenizer(self.teacher.tokenizer, training.folder)
        return error

    def _begun(
        self,
        training: _Training,
        starts: dict[tuple[Recipe, bool], AutoDistilModel],
        proxy: Callable[[], RelationProxy],
    ) -> Distillation:
        """Return a training from its start.

        Args:
            training: Training of a baseline.
            starts: Models before their training, by recipe and whether their weights are read from a finished training.
                Their initial weights are computed once for all learning rates, and not for a finished training.
            proxy: Function that returns the proxy of its own relations.
        """
        teacher, recipe, options = self.teacher, training.recipe, training.options
        finished = course_of(training.folder) is not None
        if (start := starts.get((recipe, finished))) is None:
            init = "random" if finished else self.init
            model = starts[recipe, finished] = begin_alone(teacher, recipe.subnet, options, init, self.sample_ids)
        else:
            model = copy.deepcopy(start)
        transfer = None
        if recipe.layer_by_layer:
            with seeded(options.seed):
                transfer = LayerTransfer(model, teacher.model, "mse")

        def own_loss(trained: AutoDistilModel) -> float:
            return proxy().score(trained) if transfer is None else self._transfer_loss(transfer, trained)

        return Distillation(
            model,
            options,
            training.folder,
            str(training),
            transfer=transfer,
            sample_ids=self.sample_ids,
            final_loss=own_loss,
        )

    def _own_proxy(self, options: TrainOptions) -> RelationProxy:
        """Return the held-out loss of the relations that `options` train."""
        return RelationProxy(
            self.teacher,
            self.held_out(HELD_OUT_BLOCKS),
            options.relation_heads,
            options.loss,
            self.device,
            parse_relations(options.relations),
        )

    @torch.no_grad()
    def _transfer_loss(self, transfer: LayerTransfer, model: AutoDistilModel) -> float:
        """Return the loss of `transfer` on held-out blocks.

        Raises:
            FloatingPointError: if the loss is not finite.
        """
        blocks = self.held_out(HELD_OUT_BLOCKS).to(self.device.name)
        total = 0.0
        for batch in blocks.split(_BLOCKS_AT_ONCE):
            with self.device.autocast(), transfer.watching() as states:
                model(batch)
                self.teacher.model(input_ids=batch)
                total += len(batch) * float(torch.stack(transfer(*states, torch.ones_like(batch))).sum())
        if not math.isfinite(total):
            raise FloatingPointError(f"the held-out loss of layers of subnet {model.config.subnet} is {total}")
        return total / len(blocks)

    def _scored(self, recipe: Recipe, trainings: Sequence[_Training], errors: Sequence[FloatingPointError]) -> Baseline:
        """Return the measured baseline of a recipe, of the training with the lowest held-out loss of its own objective.

        Args:
            recipe: Recipe of the baseline.
            trainings: Its trainings; empty for a copy of the teacher.
            errors: Errors of failed trainings.

        Raises:
            FloatingPointError: if all trainings failed.
        """
        if not trainings:
            model = begin_alone(self.teacher, recipe.subnet, recipe.options, self.init, self.sample_ids)
            return self._score(recipe.name, model, COPY)
        losses = {training: training.held_out_loss() for training in trainings}
        best = min(trainings, key=losses.__getitem__)
        if not math.isfinite(losses[best]):
            raise _failed(recipe, errors[0])
        if len(trainings) > 1:
            words = {
                training.options.lr: f"{loss:.4g}" if math.isfinite(loss) else "failed"
                for training, loss in losses.items()
            }
            shown = ", ".join(f"{result} at {lr:.3g}" for lr, result in words.items())
            self.reporter.say(f"{recipe}: held-out loss of its own objective {shown}; kept {best.options.lr:.3g}")
        model = load_model(best.folder, AutoDistilModel)
        return self._score(recipe.name, model, recipe.how, best.folder, best.options.lr)

    def _key(self, recipe: Recipe, options: TrainOptions) -> str:
        """Return the name of the folder of a training in the cache."""
        pairs = layer_pairs(recipe.subnet.layers, self.teacher.subnet.layers) if recipe.layer_by_layer else None
        settings = {**self.identity, **asdict(options), **asdict(recipe.subnet), "init": self.init}
        settings |= {"version": __version__, "starts": STARTS_VERSION, "transfer": pairs, "held_out": HELD_OUT_BLOCKS}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _failed(recipe: Recipe, error: FloatingPointError) -> FloatingPointError:
    """Return the error of a baseline whose training failed at every learning rate."""
    if len(recipe.factors) == 1:
        return error
    tried = ", ".join(f"{recipe.options.lr * factor:.3g}" for factor in recipe.factors)
    return FloatingPointError(
        f"{recipe} failed at every learning rate ({tried}). Try lower --baseline-rates, in another --out"
    )


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
