"""Check that a space learns at its defaults: the default learning rate beside a quarter to four times of it.

python benchmarks/defaults.py --spaces tiny,shallow --teacher packaged
python benchmarks/mpnet.py mpnet && python benchmarks/defaults.py --spaces tiny --teacher mpnet

Everything but the rate is a default of `search`: start, batch, text. The rates train side by side, so that the teacher
runs once a step for all of them. A training that collapses is stopped there, where `search` would go back.
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from autodistil_search.base.seeding import seeded
from autodistil_search.distillation.collapse import LossWatch
from autodistil_search.distillation.layer_losses import LastHidden
from autodistil_search.distillation.teacher_batches import Batch, TeacherBatches
from autodistil_search.distillation.training_loop import _watched_loss
from autodistil_search.distillation.training_step import ModelInTraining, last_hidden_of, subnets_of_step
from autodistil_search.nas.label_free_proxies import RelationProxy
from autodistil_search.runs.train import relation_proxy
from autodistil_search.runs.training_inputs import TrainingInputs, resolve_training
from autodistil_search.settings.train import TrainConfig
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.teachers.initial_weights import superlm

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


class Learner:
    """A SuperLM in training at one rate, until it collapses."""

    def __init__(
        self,
        begun: AutoDistilModel,
        hidden: LastHidden | None,
        materials: TrainingInputs,
        lr: float,
        nothing: float,
    ) -> None:
        options = materials.options_of(begun.config.subnet)
        assert materials.text is not None
        self.lr, self.broke = lr, 0
        self.model = copy.deepcopy(begun)
        materials.device.place(self.model)
        self.model.train()
        self.model.requires_grad_(True)
        own = replace(options, lr=lr)
        self._training = ModelInTraining(self.model, own, materials.execution, materials.device, copy.deepcopy(hidden))
        self._watch = LossWatch.of(options.steps)
        self._watch.nothing = nothing

    def step(self, step: int, batches: Sequence[Batch]) -> None:
        """Take a step, unless training has collapsed."""
        if self.broke:
            return
        training = self._training
        training.begin(subnets_of_step(training.model, training.options, step))
        try:
            for batch in batches:
                training.learn(batch)
            losses, _ = training.update(step, ())
        except FloatingPointError:
            self.broke = step + 1
            return
        if self._watch.see(_watched_loss(training.drawn, losses)) == "collapsed":
            self.broke = step + 1


def rows_of(space: SearchSpace, materials: TrainingInputs, factors: list[float]) -> list[str]:
    """Train `space` at its default rate times each factor; returns the rows of a Markdown table."""
    teacher = materials.teacher
    proxy: RelationProxy = relation_proxy(materials, 32)
    with seeded(materials.config.seed):
        begun, notes = superlm(teacher, space, materials.config.init, materials.sample_ids)
    print(f"{space.name}: {notes[0]}", flush=True)
    rng = random.Random(0)
    subnets = [space.largest, space.smallest, space.sample(rng), space.sample(rng)]
    default = materials.options_of(space.largest).lr
    materials.device.place(begun)
    hidden = last_hidden_of(begun, teacher, materials.options_of(space.largest), materials.device)
    if hidden is not None:
        hidden.fit(begun, teacher, materials.sample_ids)
    learners = [Learner(begun, hidden, materials, factor * default, proxy.reference) for factor in factors]
    began = time.perf_counter()
    assert materials.text is not None
    options = materials.options_of(space.largest)
    text, cast = materials.text.begin(), teacher.cast(materials.device)
    with TeacherBatches(cast, text, options, materials.execution, materials.device) as batches:
        for step in range(materials.config.steps):
            parts = list(batches.of_step(step))
            for learner in learners:
                learner.step(step, parts)
            if (step + 1) % 20 == 0:
                print(f"{space.name}: step {step + 1}, {time.perf_counter() - began:.0f} s", flush=True)
    about = f"| {space.name} | {Path(materials.teacher.name).name} "
    return [
        f"{about}| {factor:g} x {default:g} | " + _scores(learner, proxy, subnets)
        for factor, learner in zip(factors, learners, strict=True)
    ] + [f"{about}| knows nothing | " + " | ".join([f"{proxy.reference:.3f}"] * 5) + " |"]


def _scores(learner: Learner, proxy: RelationProxy, subnets: list[Subnet]) -> str:
    if learner.broke:
        return f"collapsed at step {learner.broke} | | | | |"
    learner.model.eval()
    losses = [proxy.score(learner.model, subnet) for subnet in subnets]
    return " | ".join(f"{loss:.3f}" for loss in [*losses, fmean(losses)]) + " |"


def main() -> None:
    """Print a table row for each space and rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", default="tiny,shallow,elastic,small,base,oneshot")
    parser.add_argument("--teacher", default="packaged")
    parser.add_argument("--steps", type=int, default=TrainConfig.steps)
    parser.add_argument("--batch-size", type=int, default=TrainConfig.batch_size)
    parser.add_argument("--factors", type=float, nargs="+", default=list(FACTORS))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    header = ["space", "teacher", "learning rate", "largest", "smallest", "random", "random", "mean"]
    table = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for name in given.spaces.split(","):
        config = TrainConfig(
            space=name, teacher=given.teacher, steps=given.steps, batch_size=given.batch_size, seed=given.seed
        )
        materials = resolve_training(config.absolute())
        table += rows_of(materials.spaces[0], materials, given.factors)
        print("\n".join(table), flush=True)


if __name__ == "__main__":
    main()
