"""The costs of a space's subnets before any training, as a guide for constraints."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd

from autodistil_search.base.device import choose_device
from autodistil_search.base.plugins import Plugins
from autodistil_search.nas.engines.base import ENUMERABLE
from autodistil_search.nas.evaluation import DISTURBANCE
from autodistil_search.nas.objectives import RELATION_LOSS, Objective
from autodistil_search.nas.objectives import costs as costs_of
from autodistil_search.report.findings import disturbed_latency
from autodistil_search.runs.search_inputs import check_measured_length, known_objectives
from autodistil_search.runs.training_inputs import find_teacher, load_spaces
from autodistil_search.settings.search import SearchConfig
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

    @property
    def row(self) -> dict[str, Any]:
        """Return role, sizes and costs."""
        return {"role": self.role, **self.subnet.to_row(), **self.costs}


@dataclass(frozen=True)
class Profiles:
    """Costs of three subnets of each space.

    Args:
        spaces: Each space with its smallest, median and largest subnet.
        costs: Costs that were computed or measured.
    """

    spaces: Sequence[tuple[SearchSpace, Sequence[Profile]]]
    costs: Sequence[Objective]

    @property
    def table(self) -> pd.DataFrame:
        """Return a row for each subnet: space, role, sizes and costs; `attrs["units"]` has the units of the costs."""
        rows = [{"space": space.name, **profile.row} for space, profiles in self.spaces for profile in profiles]
        table = pd.DataFrame(rows)
        table.attrs["units"] = {cost.name: cost.unit for cost in self.costs}
        return table

    @property
    def disturbed(self) -> str:
        """Return a warning if other processes disturbed the measured latencies; otherwise an empty text."""
        shares = [profile.costs.get(DISTURBANCE) for _, profiles in self.spaces for profile in profiles]
        return str(disturbed_latency([share for share in shares if share is not None]) or "")

    def __repr__(self) -> str:
        return "\n".join([self._rounded.to_string(), *([self.disturbed] if self.disturbed else [])])

    def _repr_html_(self) -> str:
        """Return the table as HTML for notebooks."""
        return self._rounded.to_html() + (f"<p>{escape(self.disturbed)}</p>" if self.disturbed else "")

    @property
    def _rounded(self) -> pd.DataFrame:
        """Return the costs as text, with a row for each cost and a column for each subnet."""
        from autodistil_search.report.views import shown  # matplotlib

        table = self.table.set_index(["space", "role"])
        units = {cost.name: f"{cost.name} ({cost.unit})" if cost.unit else cost.name for cost in self.costs}
        return table[[*units]].rename(columns=units).map(shown).T


def profile(config: SearchConfig, plugins: Plugins | None = None) -> Profiles:
    """Return the costs of the smallest, median and largest subnet of each space, as a guide for constraints.

    The arguments are those of `autodistil_search.profile`.

    Raises:
        InputError: if an input cannot be used.
    """
    plugins = plugins or Plugins()
    spaces = load_spaces(config.space_names, plugins=plugins)
    device = choose_device(config.device, config.precision)
    teacher = find_teacher(config, device, plugins)
    check_measured_length(config.measured_seq_len, teacher)
    known = known_objectives(config, device, plugins, RELATION_LOSS)
    costs = [objective for objective in known.values() if not objective.is_proxy]
    return Profiles([(space, profile_space(space, teacher, costs)) for space in spaces], costs)


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

    return Profile(role, subnet, costs_of(columns, subnet, teacher.vocabulary, student))
