"""Relation distillation of a SuperLM (several subnets a step) or of one student (only itself).

Everything a step does follows from the seed and the step's number: which subnets, which blocks, which learning
rate. So a run that is killed and resumed from its last checkpoint ends with the weights of one never stopped.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from autodistil_search.checkpoint import Saver, finish, load_checkpoint, load_finished
from autodistil_search.corpus import Blocks
from autodistil_search.device import Device
from autodistil_search.files import readable
from autodistil_search.model import AutoDistilModel
from autodistil_search.progress import Reporter
from autodistil_search.relations import relation_loss, relation_target
from autodistil_search.space import SearchSpace, Subnet
from autodistil_search.teacher import Teacher

Sampling = Callable[[SearchSpace, random.Random], list[Subnet]]


def _largest_and_random(space: SearchSpace, rng: random.Random) -> list[Subnet]:
    return [space.largest, *(space.sample(rng) for _ in range(3))]


def _sandwich(space: SearchSpace, rng: random.Random) -> list[Subnet]:
    return [space.largest, space.smallest, *(space.sample(rng) for _ in range(2))]


SAMPLINGS: dict[str, Sampling] = {"largest-random": _largest_and_random, "sandwich": _sandwich}
"""Which subnets a step trains. `sandwich` is the paper's rule; it over-trains the smallest subnet (docs/design.md)."""

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises from 0; it then falls to 0 linearly."""

MAX_GRADIENT_NORM = 1.0
WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class TrainOptions:
    """How to train. loss: one of `relations.LOSSES`; sampling: one of `SAMPLINGS`."""

    steps: int
    batch_size: int
    lr: float
    seed: int
    loss: str = "kl"
    sampling: str = "largest-random"
    relation_heads: int = 16


def distill(
    model: AutoDistilModel,
    teacher: Teacher,
    blocks: Blocks,
    options: TrainOptions,
    folder: Path,
    device: Device,
    reporter: Reporter | None = None,
    title: str = "training",
) -> AutoDistilModel:
    """Train `model` in place to the end, going on from the checkpoint in `folder` if there is one.

    A SuperLM trains the subnets of its space that `options.sampling` draws for each step; a student trains itself.
    `folder` holds `trainer.safetensors` (weights, optimizer, step) while it trains, `training.csv`, and at the end the
    model and `trainer_state.json`. A model that was finished before is read from there.

    Raises:
        InputError: if what is in `folder` was made with other options.
        FloatingPointError: if the loss is not finite; names step and subnet. The last checkpoint is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device.place(model)
    model.train()
    settings = asdict(options)
    with FileLock(folder / ".lock"), (reporter or Reporter()).bar(title, "steps", options.steps) as bar:
        if load_finished(folder, model, settings):
            bar.skip(options.steps)
            model.eval()
            return model
        optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=WEIGHT_DECAY, fused=True)
        first = load_checkpoint(folder, model, optimizer, settings)
        bar.skip(first)
        log = TrainingLog(folder / "training.csv", first)
        saver = Saver(folder, model, optimizer, settings)
        for step in range(first, options.steps):
            subnets = subnets_of_step(model, options, step)
            input_ids = blocks[block_indices(len(blocks), options, step)].to(device.name)
            set_learning_rate(optimizer, options, step)
            losses = train_step(model, teacher, input_ids, subnets, options, device)
            check_finite(losses, subnets, step)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
            check_finite([norm.item()], [subnets[0]], step, "norm of the gradients")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            log.write(step, subnets, losses)
            saver.step_done(step + 1)
            bar.advance(f"loss {losses[0]:.3f}")
        finish(folder, model, options.steps, settings)
    model.eval()
    return model


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random starts inside follow from `seed`; the caller's own random numbers go on as if nothing had happened."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def train_step(
    model: AutoDistilModel,
    teacher: Teacher,
    input_ids: Tensor,
    subnets: list[Subnet],
    options: TrainOptions,
    device: Device,
) -> list[float]:
    """Add up the gradients of the mean loss of `subnets` on one batch `(B, T)`; returns each one's loss."""
    losses = []
    with device.autocast():
        target = relation_target(teacher.projections(input_ids), None, options.relation_heads, options.loss)
    for subnet in subnets:
        with device.autocast():
            loss = relation_loss(model.last_projections(input_ids, subnet=subnet), target)
        (loss / len(subnets)).backward()
        losses.append(loss.item())
    return losses


def subnets_of_step(model: AutoDistilModel, options: TrainOptions, step: int) -> list[Subnet]:
    """The subnets that step trains; the same on every process and after every restart."""
    if model.config.search_space is None:
        return [model.config.subnet]
    return SAMPLINGS[options.sampling](model.space, random.Random(f"{options.seed}-{step}"))


def block_indices(count: int, options: TrainOptions, step: int) -> list[int]:
    """The blocks of a step: each epoch is a permutation of all blocks that follows from seed and epoch."""
    positions = range(step * options.batch_size, (step + 1) * options.batch_size)
    return [int(_order(count, options.seed, position // count)[position % count]) for position in positions]


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)


def set_learning_rate(optimizer: torch.optim.Optimizer, options: TrainOptions, step: int) -> None:
    """Linear warm-up over the first `WARM_UP` of the steps, then linear decay to 0."""
    warm_up = max(1, round(WARM_UP * options.steps))
    factor = min((step + 1) / warm_up, (options.steps - step) / max(1, options.steps - warm_up))
    for group in optimizer.param_groups:
        group["lr"] = options.lr * factor


def check_finite(values: list[float], subnets: list[Subnet], step: int, what: str = "loss") -> None:
    """Raises FloatingPointError, naming step and subnet, if a value is not finite."""
    for value, subnet in zip(values, subnets, strict=True):
        if not np.isfinite(value):
            raise FloatingPointError(
                f"the {what} is {value} at step {step + 1} for subnet {subnet}; the last checkpoint is kept. "
                "Try a lower --lr, in another --out"
            )


class TrainingLog:
    """`training.csv`: a row for each subnet of each step. Rows at or after the step resumed from are dropped."""

    COLUMNS = ("step", "layers", "hidden_size", "mlp_ratio", "heads", "loss")

    def __init__(self, path: Path, first: int) -> None:
        self._path = path
        kept = []
        if path.exists():
            with readable(path), path.open(newline="") as file:
                kept = [
                    row for row in list(csv.reader(file))[1:] if len(row) == len(self.COLUMNS) and int(row[0]) <= first
                ]
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([self.COLUMNS, *kept])

    def write(self, step: int, subnets: list[Subnet], losses: list[float]) -> None:
        """Append what the step with that index (from 0) gave."""
        with self._path.open("a", newline="") as file:
            csv.writer(file).writerows(
                (step + 1, s.layers, s.hidden_size, f"{s.mlp_ratio:g}", s.heads, f"{loss:.6f}")
                for s, loss in zip(subnets, losses, strict=True)
            )
