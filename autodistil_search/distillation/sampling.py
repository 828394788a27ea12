"""Which subnets a training step trains, and how much each one's loss counts."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

from autodistil_search.base.weighted_names import parse_subnet_weights
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet


class Drawn(NamedTuple):
    """A subnet of a step. role: one of `weights.ROLES`, or "student"; weight: its share of the step's loss."""

    subnet: Subnet
    role: str
    weight: float


@dataclass(frozen=True)
class Sampling:
    """A rule. ends: those of "largest" and "smallest" that every step trains; random: how many others by default."""

    ends: tuple[str, ...]
    random: int


SAMPLINGS = {
    "largest-random": Sampling(("largest",), 1),
    "sandwich": Sampling(("largest", "smallest"), 2),
    "random": Sampling((), 4),
    "largest": Sampling(("largest",), 0),
}
"""`sandwich` is the paper's rule (Yu et al., arXiv 1903.05134); `largest` trains no other subnet at all."""


def draw(space: SearchSpace, sampling: str, count: int | None, weights: str, rng: random.Random) -> list[Drawn]:
    """The subnets of one step by the rule of that name; the largest first where it is one of them.

    Args:
        space: Where they come from.
        sampling: One of `SAMPLINGS`.
        count: How many are drawn at random, where the rule draws any; None for its own number.
        weights: See `weights.parse_subnet_weights`; they are scaled to add up to 1 over the step.
        rng: Decides the random ones.
    """
    rule, weight_of = SAMPLINGS[sampling], parse_subnet_weights(weights)
    ends = {"largest": space.largest, "smallest": space.smallest}
    drawn = [(ends[role], role) for role in rule.ends]
    randoms = rule.random if count is None or rule.random == 0 else count
    drawn += [(space.sample(rng), "random") for _ in range(randoms)]
    total = sum(weight_of[role] for _, role in drawn)
    return [Drawn(subnet, role, weight_of[role] / total) for subnet, role in drawn]
