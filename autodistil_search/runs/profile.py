"""The costs of a space's subnets before any training, as a guide for constraints."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autodistil_search.nas.engines.base import ENUMERABLE
from autodistil_search.nas.objectives import Objective, costs
from autodistil_search.spaces.cost import flops
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.teachers.teacher import Teacher

_SAMPLE = 10_001


@dataclass(frozen=True)
class Profile:
    """A subnet and its costs by objective name.

    role: "smallest", "median" (in FLOPs) or "largest".
    """

    role: str
    subnet: Subnet
    costs: Mapping[str, float]


def profile_space(space: SearchSpace, teacher: Teacher, columns: Sequence[Objective]) -> list[Profile]:
    """Return the smallest, the median and the largest subnet of `space` with their `columns`.

    The median is taken over the FLOPs of all subnets, or of a random sample if there are more than `ENUMERABLE`.
    """
    if space.size <= ENUMERABLE:
        subnets = [space.decode(genome) for genome in space.genomes()]
    else:
        rng = random.Random(0)
        subnets = [space.sample(rng) for _ in range(_SAMPLE)]
    median = sorted(subnets, key=flops)[(len(subnets) - 1) // 2]
    chosen = {"smallest": space.smallest, "median": median, "largest": space.largest}
    return [_profile(role, subnet, teacher, columns) for role, subnet in chosen.items()]


def _profile(role: str, subnet: Subnet, teacher: Teacher, columns: Sequence[Objective]) -> Profile:
    def student() -> AutoDistilModel:
        return AutoDistilModel(teacher.student_config(subnet))

    return Profile(role, subnet, costs(columns, subnet, teacher.vocabulary, student))
