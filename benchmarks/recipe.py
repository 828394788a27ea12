"""What a change of the training recipe gives at equal time: held-out losses of variants that train side by side.

    python benchmarks/recipe.py --spaces tiny,shallow,small --seeds 0,1,2
    python benchmarks/recipe.py --variants "default;beta2=0.95;lr=2,beta2=0.95;optimizer=muon,batch=32"

A variant is `default`, or changes of it, by commas: `lr` (factor of the default rate), `beta2` and `decay` (AdamW's
second moment and weight decay), `optimizer` (`adamw`, or `muon` for the matrices of layers, by Jordan et al. 2024, with
its update scaled to AdamW's), `average` (decay of a moving average of the weights, which is then measured), `warm_up`
(share of the steps), `schedule` (`linear`, `cosine` or `constant`, and `sqrt`: constant, then to 0 over the last
fifth), `clip` (largest norm of the gradients), `batch` (blocks), `hidden` (weight of the hidden-state loss), `init`
(the start, as `--init`) and `heads` (`nested`, or `blocks`: relation heads of the last layer as blocks of dimensions).

Everything else is a default of `search`. First, the steps of variants that may cost more or less are timed; their
number of steps then is that which takes the time of the default's. Variants of one batch size see the same blocks and
share the teacher, whose time counts for each of them. Scores are means over the largest, the smallest and six random
subnets. Finished trainings are kept in --results and are not repeated.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from autodistil_search.base.seeding import seeded
from autodistil_search.distillation import training_step
from autodistil_search.distillation.layer_losses import LastHidden
from autodistil_search.distillation.learning_rate import MAX_GRADIENT_NORM, WARM_UP, WEIGHT_DECAY
from autodistil_search.distillation.teacher_batches import Batch, TeacherBatches
from autodistil_search.distillation.training_step import ModelInTraining, last_hidden_of, subnets_of_step
from autodistil_search.nas.label_free_proxies import HiddenProxy, RelationProxy
from autodistil_search.nas.sentence_similarity import PASSAGES, SentenceSimilarity
from autodistil_search.runs.train import relation_proxy
from autodistil_search.runs.training_inputs import TrainingInputs, resolve_training
from autodistil_search.settings.train import TrainConfig
from autodistil_search.spaces.search_space import load_space
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.teachers.initial_weights import start_from

TIMED_STEPS = 8
TOGETHER = 4
"""Most variants that train side by side, for the sake of memory."""
COSTLY = ("optimizer", "average", "batch", "hidden")
"""Changes that change the time of a step."""
MEASURES = ("relation_loss", "hidden_loss", "similarity")


@dataclass(frozen=True)
class Variant:
    """Changes of the default recipe; see the top of this file."""

    lr: float = 1.0
    beta2: float = 0.999
    decay: float = WEIGHT_DECAY
    optimizer: str = "adamw"
    average: float = 0.0
    warm_up: float = WARM_UP
    schedule: str = "linear"
    clip: float = MAX_GRADIENT_NORM
    batch: int = TrainConfig.batch_size
    hidden: float = TrainConfig.hidden
    init: str = TrainConfig.init
    heads: str = "nested"

    @classmethod
    def parse(cls, words: str) -> Variant:
        """Return the variant of `NAME=VALUE,...` or `default`.

        Raises:
            SystemExit: for an unknown name or a value of another kind.
        """
        kinds: dict[str, type] = {entry.name: type(entry.default) for entry in fields(cls)}
        pairs = [] if words == "default" else [word.partition("=")[::2] for word in words.split(",")]
        try:
            return cls(**{name: kinds[name](value) for name, value in pairs})
        except (KeyError, ValueError) as error:
            raise SystemExit(f"error: variant {words!r}: {error}; allowed: {', '.join(kinds)}") from None

    def __str__(self) -> str:
        changed = [(entry.name, getattr(self, entry.name)) for entry in fields(self)]
        defaults = {entry.name: entry.default for entry in fields(self)}
        words = [f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in changed
                 if value != defaults[name]]  # fmt: skip
        return ",".join(words) or "default"

    @property
    def costs_otherwise(self) -> bool:
        """Return True if a step may take another time than the default's."""
        return any(getattr(self, name) != getattr(Variant(), name) for name in COSTLY)

    def factor(self, step: int, steps: int) -> float:
        """Return the share of the peak learning rate at a step, counted from 0."""
        warm_up = max(1, round(self.warm_up * steps))
        rising, left = (step + 1) / warm_up, (steps - step) / max(1, steps - warm_up)
        falling = {
            "linear": left,
            "cosine": 0.5 - 0.5 * math.cos(math.pi * min(left, 1.0)),
            "constant": 1.0,
            "sqrt": 1.0 - math.sqrt(max(0.0, 1.0 - (steps - step) / max(1.0, 0.2 * steps))),
        }[self.schedule]
        return min(1.0, rising, falling)


class Rule:
    """Optimizers of all parameters with the schedule of a variant, in the place of `ModelInTraining.optimizer`."""

    def __init__(self, variant: Variant, learner: nn.Module, peak: float, steps: int) -> None:
        self._variant, self._peak, self._steps, self._done = variant, peak, steps, 0
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in learner.named_parameters():
            of_layer = "layers." in name and parameter.ndim == 2
            (matrices if of_layer and variant.optimizer == "muon" else others).append(parameter)
        betas = (0.9, variant.beta2)
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=peak, betas=betas, weight_decay=variant.decay, fused=True)
        ]
        if matrices:
            self._parts.append(
                torch.optim.Muon(matrices, lr=peak, weight_decay=variant.decay, adjust_lr_fn="match_rms_adamw")
            )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Return the groups of all optimizers."""
        return [group for part in self._parts for group in part.param_groups]

    def step(self) -> None:
        """Update the weights at the rate of this step."""
        for group in self.param_groups:
            group["lr"] = self._peak * self._variant.factor(self._done, self._steps)
        for part in self._parts:
            part.step()
        self._done += 1

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for part in self._parts:
            part.zero_grad(set_to_none)


@dataclass
class Learner:
    """A SuperLM in training by a variant, for `steps` steps or until its loss is not finite."""

    variant: Variant
    begun: AutoDistilModel
    hidden: LastHidden | None
    materials: TrainingInputs
    lr: float
    steps: int
    seconds: list[float] = field(default_factory=list)
    broke: int = 0

    def __post_init__(self) -> None:
        self.model = copy.deepcopy(self.begun)
        self.materials.device.place(self.model)
        self.model.train()
        self.model.requires_grad_(True)
        options = self.materials.options_of(self.begun.config.subnet)
        options = replace(options, lr=self.lr, hidden=self.variant.hidden, batch_size=self.variant.batch)
        hidden = copy.deepcopy(self.hidden) if self.variant.hidden else None
        self._training = ModelInTraining(self.model, options, self.materials.execution, self.materials.device, hidden)
        rule = Rule(self.variant, self._training.learner, self.variant.lr * self.lr, self.steps)
        self._training.optimizer = rule  # type: ignore[assignment]
        averaging = get_ema_multi_avg_fn(self.variant.average)
        self._averaged = AveragedModel(self.model, multi_avg_fn=averaging) if self.variant.average else None

    @property
    def measured(self) -> AutoDistilModel:
        """Return the model that counts, ready to be measured."""
        model = self.model if self._averaged is None else cast(AutoDistilModel, self._averaged.module)
        model.eval()
        return model

    def step(self, step: int, batches: Sequence[Batch]) -> None:
        """Take a step, unless the training is over."""
        if self.broke or step >= self.steps:
            return
        begun, training = time.perf_counter(), self._training
        vars(training_step)["MAX_GRADIENT_NORM"] = self.variant.clip
        training.begin(subnets_of_step(training.model, training.options, step))
        try:
            for batch in batches:
                training.learn(batch)
            training.update(step, ())
            if self._averaged is not None:
                self._averaged.update_parameters(self.model)
        except FloatingPointError:
            self.broke = step + 1
        self.seconds.append(time.perf_counter() - begun)


class Case:
    """A space and a seed, with what variants begin with.

    Args:
        config: Settings of the default recipe.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.materials = resolve_training(config.absolute())
        self.space = self.materials.spaces[0]
        self._begun: dict[tuple[str, str], tuple[AutoDistilModel, LastHidden | None]] = {}

    def _start(self, init: str, heads: str) -> tuple[AutoDistilModel, LastHidden | None]:
        """Return the SuperLM and the map of its hidden states before training."""
        if (init, heads) not in self._begun:
            materials, space = self.materials, self.space
            architecture = materials.teacher.student_config(space.largest, space)
            if heads == "blocks":
                architecture.relation_heads = None
            with seeded(materials.config.seed):
                begun = AutoDistilModel(architecture)
                start_from(begun, materials.teacher, init, materials.sample_ids, space.relation_heads)
            materials.device.place(begun)
            hidden = last_hidden_of(
                begun, materials.teacher, materials.options_of(self.space.largest), materials.device
            )
            if hidden is not None:
                hidden.fit(begun, materials.teacher, materials.sample_ids)
            self._begun[init, heads] = begun, hidden
        return self._begun[init, heads]

    def learner(self, variant: Variant, steps: int) -> Learner:
        """Return the training of a variant."""
        lr = self.materials.options_of(self.space.largest).lr
        return Learner(variant, *self._start(variant.init, variant.heads), self.materials, lr, steps)

    def batches(self, blocks: int, steps: int) -> TeacherBatches:
        """Return batches with so many blocks."""
        materials = self.materials
        assert materials.text is not None
        options = replace(materials.options_of(self.space.largest), batch_size=blocks, steps=steps)
        text, cast = materials.text.begin(), materials.teacher.cast(materials.device)
        return TeacherBatches(cast, text, options, materials.execution, materials.device)

    def seconds_of_a_step(self, variants: Sequence[Variant]) -> list[float]:
        """Return the least seconds of a step of each variant with its teacher pass; the first does not count."""
        timed = []
        for variant in variants:
            learner, seconds = self.learner(variant, 100), []
            with self.batches(variant.batch, 100) as batches:
                for step in range(TIMED_STEPS + 1):
                    begun = time.perf_counter()
                    learner.step(step, _with_targets(batches, step))
                    seconds.append(time.perf_counter() - begun)
            timed.append(min(seconds[1:]))
        return timed

    def train(self, variants: Sequence[Variant], steps: Sequence[int]) -> list[Learner]:
        """Train variants of one batch size, each for its own number of steps."""
        learners = [self.learner(variant, most) for variant, most in zip(variants, steps, strict=True)]
        with self.batches(variants[0].batch, max(steps)) as batches:
            for step in range(max(steps)):
                parts = _with_targets(batches, step)
                for learner in learners:
                    learner.step(step, parts)
        return learners

    def subnets(self) -> list[Subnet]:
        """Return the subnets that are measured."""
        rng = random.Random(0)
        return [self.space.largest, self.space.smallest, *(self.space.sample(rng) for _ in range(6))]


class Judge:
    """Measures of finished trainings on held-out text."""

    def __init__(self, materials: TrainingInputs) -> None:
        assert materials.text is not None
        held_out = materials.text.held_out
        self._relation: RelationProxy = relation_proxy(materials, 32)
        self._hidden = HiddenProxy(materials.teacher, held_out.spread(32), materials.device)
        self._similarity = SentenceSimilarity(materials.teacher, held_out.spread(PASSAGES), materials.device)

    def scores(self, learner: Learner, subnets: Sequence[Subnet]) -> dict[str, float]:
        """Return the mean of each measure over subnets; NaN if training broke."""
        if learner.broke:
            return dict.fromkeys(MEASURES, math.nan)
        functions = (self._relation.score, self._hidden.score, self._similarity.of)
        model = learner.measured
        means = (statistics.fmean(measure(model, subnet) for subnet in subnets) for measure in functions)
        return dict(zip(MEASURES, means, strict=True))


def _with_targets(batches: TeacherBatches, step: int) -> list[Batch]:
    """Return the parts of a batch, with the teacher's outputs computed."""
    parts = list(batches.of_step(step))
    for part in parts:
        _ = part.targets
    return parts


def measure(config: TrainConfig, variants: Sequence[Variant]) -> Iterator[dict[str, Any]]:
    """Train `variants` in the case of the settings; yields a row of results for each."""
    case = Case(config)
    judge, default = Judge(case.materials), Variant()
    costly = [default, *(variant for variant in variants if variant.costs_otherwise)]
    timed = dict(zip(costly, case.seconds_of_a_step(costly), strict=True))
    steps = {
        variant: max(1, round(config.steps * timed[default] / timed.get(variant, timed[default])))
        for variant in variants
    }
    for alike in _groups(variants):
        for learner in case.train(alike, [steps[variant] for variant in alike]):
            yield {
                **asdict(learner.variant), "space": case.space.name, "seed": config.seed, "teacher": config.teacher,
                "of_default": config.steps, "steps": learner.steps,
                "seconds_a_step": timed.get(learner.variant, timed[default]),
                "broke": learner.broke, **judge.scores(learner, case.subnets()),
            }  # fmt: skip


def _groups(variants: Sequence[Variant]) -> Iterator[list[Variant]]:
    """Yield variants of one batch size, as many as train side by side."""
    for blocks in sorted({variant.batch for variant in variants}):
        alike = [variant for variant in variants if variant.batch == blocks]
        for first in range(0, len(alike), TOGETHER):
            yield alike[first : first + TOGETHER]


def table(rows: Sequence[dict[str, Any]], variants: Sequence[Variant], spaces: Sequence[str]) -> Iterator[str]:
    """Yield a Markdown table: for each variant the mean loss over seeds in each space, and its change in percent."""
    head = ["recipe", *(f"{space}: steps, relation loss" for space in spaces), "change", "similarity"]
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    default = {(row["space"], row["seed"]): row for row in rows if _variant_of(row) == Variant()}
    for variant in variants:
        cells, changes, similarities = [], [], []
        for space in spaces:
            own = [row for row in rows if row["space"] == space and _variant_of(row) == variant]
            losses = [row["relation_loss"] for row in own]
            spread = f" ± {statistics.stdev(losses):.3f}" if len(losses) > 1 else ""
            cells.append(f"{own[0]['steps']}, {statistics.fmean(losses):.3f}{spread}" if own else "")
            changes += [row["relation_loss"] / default[space, row["seed"]]["relation_loss"] - 1 for row in own]
            similarities += [row["similarity"] - default[space, row["seed"]]["similarity"] for row in own]
        change = f"{100 * statistics.fmean(changes):+.1f} %" if changes else ""
        yield f"| {variant} | {' | '.join(cells)} | {change} | {statistics.fmean(similarities or [0]):+.3f} |"


def _variant_of(row: dict[str, Any]) -> Variant:
    return Variant(**{entry.name: row.get(entry.name, entry.default) for entry in fields(Variant)})


def main() -> None:
    """Train what was not trained yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default="default", help="separated by semicolons")
    parser.add_argument("--spaces", default="tiny,shallow,small")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--teacher", default="packaged")
    parser.add_argument("--text", nargs="+", help="packaged text if not given")
    parser.add_argument("--steps", type=int, default=TrainConfig.steps, help="of the default recipe")
    parser.add_argument("--results", type=Path, default=Path("runs/recipe.jsonl"))
    given = parser.parse_args()
    given.results.parent.mkdir(parents=True, exist_ok=True)
    variants = list(dict.fromkeys([Variant(), *map(Variant.parse, given.variants.split(";"))]))
    spaces = {load_space(name).name: name for name in given.spaces.split(",")}
    seeds = [int(seed) for seed in given.seeds.split(",")]
    about = {"teacher": given.teacher, "of_default": given.steps}
    for space, path in spaces.items():
        for seed in seeds:
            case = {**about, "space": space, "seed": seed}
            there = {_variant_of(row) for row in _read(given.results) if case.items() <= row.items()}
            if missing := [variant for variant in variants if variant not in there]:
                config = TrainConfig(space=path, teacher=given.teacher, text=given.text, steps=given.steps, seed=seed)
                for row in measure(config, missing):
                    with given.results.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(f"{space}, seed {seed}: {_variant_of(row)} {row['relation_loss']:.4f}", flush=True)
    rows = [row for row in _read(given.results) if about.items() <= row.items() and row["seed"] in seeds]
    print("\n".join(table(rows, variants, list(spaces))))


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    main()
