"""Sampling of the subnets of a training step, and the weights of their losses."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

from autodistil_search.base.weighted_names import parse_subnet_weights
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet


class Drawn(NamedTuple):
    """Subnet of a training step.

    role: one of `weighted_names.ROLES`, or "student". weight: share of the subnet's loss in the loss of the step.
    """

    subnet: Subnet
    role: str
    weight: float


@dataclass(frozen=True)
class Sampling:
    """Sampling rule.

    ends: those of "largest" and "smallest" that every step trains. random: default number of random subnets in a step.
    """

    ends: tuple[str, ...]
    random: int


SAMPLINGS = {
    "largest-random": Sampling(("largest",), 1),
    "sandwich": Sampling(("largest", "smallest"), 2),
    "random": Sampling((), 4),
    "largest": Sampling(("largest",), 0),
}
"""Sampling rules by name. `sandwich` is the paper's (Yu et al., arXiv 1903.05134); `largest` trains no other subnet."""


def draw(space: SearchSpace, sampling: str, count: int | None, weights: str, rng: random.Random) -> list[Drawn]:
    """Draw the subnets of one step by a sampling rule; the largest comes first if the rule has it.

    Args:
        space: Space of the subnets.
        sampling: Name of the rule, one of `SAMPLINGS`.
        count: Number of random subnets, if the rule has any; None for the rule's own number.
        weights: Weights by role (`weighted_names.parse_subnet_weights`), scaled to a sum of 1 over the step.
        rng: Source of the random subnets.
    """
    rule, weight_of = SAMPLINGS[sampling], parse_subnet_weights(weights)
    ends = {"largest": space.largest, "smallest": space.smallest}
    drawn = [(ends[role], role) for role in rule.ends]
    randoms = rule.random if count is None or rule.random == 0 else count
    drawn += [(space.sample(rng), "random") for _ in range(randoms)]
    total = sum(weight_of[role] for _, role in drawn)
    return [Drawn(subnet, role, weight_of[role] / total) for subnet, role in drawn]
