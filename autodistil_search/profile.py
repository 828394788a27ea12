"""What the subnets of a space cost: what a constraint can ask for, before anything is trained."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autodistil_search.cost import flops
from autodistil_search.engines import ENUMERABLE
from autodistil_search.model import AutoDistilModel
from autodistil_search.objectives import Objective, measured
from autodistil_search.space import SearchSpace, Subnet
from autodistil_search.teacher import Teacher

_SAMPLE = 10_001


@dataclass(frozen=True)
class Profile:
    """A subnet and what it costs, by objective name. role: smallest, median (in FLOPs) or largest."""

    role: str
    subnet: Subnet
    costs: Mapping[str, float]


def profile_space(space: SearchSpace, teacher: Teacher, costs: Sequence[Objective]) -> list[Profile]:
    """The smallest, the median and the largest subnet of `space`, with all `costs` of each.

    The median is that of all FLOPs; of a space with more than `ENUMERABLE` subnets that of a random sample.
    """
    if space.size <= ENUMERABLE:
        subnets = [space.decode(genome) for genome in space.genomes()]
    else:
        rng = random.Random(0)
        subnets = [space.sample(rng) for _ in range(_SAMPLE)]
    median = sorted(subnets, key=flops)[(len(subnets) - 1) // 2]
    chosen = {"smallest": space.smallest, "median": median, "largest": space.largest}
    return [Profile(role, subnet, _costs(subnet, teacher, costs)) for role, subnet in chosen.items()]


def _costs(subnet: Subnet, teacher: Teacher, costs: Sequence[Objective]) -> dict[str, float]:
    student = AutoDistilModel(teacher.student_config(subnet))
    found: dict[str, float] = {}
    for objective in costs:
        if objective.cost is not None:
            found[objective.name] = objective.cost(subnet, teacher.vocabulary)
        elif objective.measure is not None:
            found |= measured(objective, student)
    return found
