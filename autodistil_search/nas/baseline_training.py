"""Baselines that are trained or scored here, on equal terms with the subnets of a search."""

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
from autodistil_search.distillation.training_loop import distill
from autodistil_search.distillation.training_step import Execution, TrainOptions
from autodistil_search.nas.baselines import AS_IT_IS, COPY, DISTILLED, DRAWN, MINILM, TINYBERT, TRUNCATED, Baseline
from autodistil_search.nas.objectives import Objective, costs
from autodistil_search.nas.proxies import Proxy, RelationProxy
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
"""Shapes of TinyBERT (arXiv 1909.10351) and MiniLM (arXiv 2002.10957), which are trained here on equal terms."""


_DRAWN = 3
"""Subnets that "random" draws of each space."""


@dataclass(frozen=True)
class _Recipe:
    """How a baseline comes to be that is trained alone."""

    name: str
    subnet: Subnet
    how: str
    options: TrainOptions
    layer_by_layer: bool = False


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What baselines are trained and measured with: all that the subnets of the search had.

    begin_text: gives the training text from its start. columns: what is measured. options_of: the options of
    training a student of a given size. init, sample_ids: how it starts. identity: what else weights depend on, such as
    digests of teacher and text. cache: where trained weights are kept, so that a later run with the same settings only
    scores them. execution: memory and speed of their training, which are those of the SuperLM's.
    """

    teacher: Teacher
    begin_text: Callable[[], TrainingText]
    proxy: Proxy
    columns: Sequence[Objective]
    options_of: Callable[[Subnet], TrainOptions]
    init: str
    sample_ids: Tensor
    identity: Mapping[str, str]
    cache: Path
    device: Device
    reporter: Reporter
    execution: Execution

    def measure(
        self, names: Sequence[str], given: Mapping[str, AutoDistilModel], spaces: Sequence[SearchSpace]
    ) -> list[Baseline]:
        """Score what `names` asks for (see `config.BASELINES`) as the SuperLM's subnets are scored.

        Names that are not among those are models in `given`, which score as they are. Whatever is trained has the
        SuperLM's steps, text, batch, start and learning rate.
        """
        found = [self._as_it_is(_shown(name), given[name], AS_IT_IS, Path(name)) for name in names if name in given]
        if "truncated" in names and (half := truncated(self.teacher)) is not None:
            name = f"teacher's first {half.config.subnet.layers} layers"
            found.append(self._as_it_is(name, half, TRUNCATED, self._kept(half)))
        return [*found, *(self._trained(recipe) for recipe in self._recipes(names, spaces))]

    def _recipes(self, names: Sequence[str], spaces: Sequence[SearchSpace]) -> list[_Recipe]:
        found = []
        if "shapes" in names:
            found += [_Recipe(name, subnet, DISTILLED, self._alone(subnet)) for name, subnet in SHAPES.items()]
        if "tinybert" in names:
            found += [
                _Recipe(name, subnet, TINYBERT, replace(self._alone(subnet), hidden=0.0), layer_by_layer=True)
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
            found += [
                _Recipe(name, subnet, MINILM, replace(self._alone(subnet), **own))
                for name, subnet in SHAPES.items()
                if name.startswith("MiniLM")
            ]
        if "random" in names:
            rng = random.Random(self.options_of(spaces[0].largest).seed)
            for space in spaces:
                drawn = dict.fromkeys(space.sample(rng) for _ in range(_DRAWN))
                found += [
                    _Recipe(f"random {i} of {space.name}", subnet, DRAWN, self._alone(subnet))
                    for i, subnet in enumerate(drawn, start=1)
                ]
        return found

    def _alone(self, subnet: Subnet) -> TrainOptions:
        """Return the options of training a student of this size alone."""
        return options_alone(self.options_of(subnet))

    def _kept(self, model: AutoDistilModel) -> Path:
        """The folder of a model that was not trained, named by its weights, with the tokenizer."""
        folder = self.cache / "baselines" / model_sha256(model)[:16]
        with locked_beside(folder, None):
            if not folder.exists():
                with whole_folder(folder) as new, quiet_transformers():
                    model.save_pretrained(new)
                    self.teacher.tokenizer.save_pretrained(new)
                    write_manifest(new, "student", model_files(new))
            verify(folder)
        return folder

    def _as_it_is(self, name: str, model: AutoDistilModel, how: str, weights: Path | None = None) -> Baseline:
        self.device.place(model)
        subnet = model.config.subnet
        measured = costs(self.columns, subnet, self.teacher.vocabulary, lambda: copy.deepcopy(model))
        # The relation loss says nothing of a model that was trained for something else.
        unlike = how in (TINYBERT, MINILM) and isinstance(self.proxy, RelationProxy)
        score = math.nan if unlike else self.proxy.score(model)
        measured |= {column.name: score for column in self.columns if column.is_proxy}
        return Baseline(name, subnet, how, measured, weights)

    def _trained(self, recipe: _Recipe) -> Baseline:
        """Trained alone, unless it starts as a whole copy of the teacher."""
        teacher, options = self.teacher, recipe.options
        model = begin_alone(teacher, recipe.subnet, options, self.init, self.sample_ids)
        is_copy = self.init in COPYING_STARTS and recipe.subnet == teacher.subnet and teacher.copies_exactly
        if is_copy and teacher.layer == recipe.subnet.layers - 1:
            return self._as_it_is(recipe.name, model, COPY)
        transfer = None
        if recipe.layer_by_layer:
            with seeded(options.seed):
                transfer = LayerTransfer(model, teacher.model, "mse")
        folder = self.cache / "baselines" / self._key(recipe, "" if transfer is None else transfer.description)
        with locked_beside(folder, None):  # a search beside this one waits, and reads what is trained here
            distill(
                model,
                teacher,
                self.begin_text(),
                options,
                folder,
                self.device,
                self.reporter,
                f"baseline {recipe.name}, {recipe.how}",
                self.execution,
                transfer=transfer,
                sample_ids=self.sample_ids,
            )
            save_tokenizer(teacher.tokenizer, folder)
        return self._as_it_is(recipe.name, model, recipe.how, folder)

    def _key(self, recipe: _Recipe, transfer: str) -> str:
        settings = {**self.identity, **asdict(recipe.options), **asdict(recipe.subnet), "init": self.init}
        settings |= {"version": __version__, "transfer": transfer}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _shown(name: str) -> str:
    """A folder's own name, or a hub id."""
    return Path(name).name if Path(name).is_absolute() else name


def options_alone(options: TrainOptions) -> TrainOptions:
    """How a student is trained alone that is to be held against subnets of a SuperLM trained by `options`.

    It trains itself, however the subnets of a SuperLM are chosen and weighed.
    """
    return replace(options, sampling="largest-random", random_subnets=None, subnet_weights="", in_place=0.0)


def begin_alone(
    teacher: Teacher, subnet: Subnet, options: TrainOptions, init: str, sample_ids: Tensor
) -> AutoDistilModel:
    """A student of those sizes before its training; see `start.start_from`."""
    with seeded(options.seed):
        model = AutoDistilModel(teacher.student_config(subnet))
    start_from(model, teacher, init, sample_ids, options.relation_heads)
    return model
