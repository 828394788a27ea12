"""What each engine would have found, played again where every subnet of a space was scored."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from autodistil_search.base.progress import Reporter
from autodistil_search.nas.engines.base import Candidates, Goal
from autodistil_search.nas.engines.registry import ENGINES, MakeEngine
from autodistil_search.nas.pareto import Values, hypervolume
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Genome, Subnet

MARKS = (20, 40, 80, 120)
"""Numbers of evaluations after which engines are compared."""

_SEEDS = 3
_LEFT_OUT = ("exhaustive", "optuna-gp")
"""Engines that a comparison says nothing of, or that think for minutes."""

COLUMNS = ["space", "engine", "evaluations", "share", "spread"]


@dataclass(frozen=True)
class Scored:
    """A space whose every admissible subnet has known values.

    Attributes:
        space: The space.
        values: The `(m,)` minimised objectives of each.
        excess: By how much each breaks each measured constraint; a subnet without an entry keeps all.
        costs: For each objective how it follows from the sizes; None for what engines may learn by asking only.
        reference: The `(m,)` reference point of the hypervolume.
    """

    space: SearchSpace
    values: Mapping[Genome, Sequence[float]]
    excess: Mapping[Genome, Sequence[float]]
    costs: Sequence[Callable[[Subnet], float] | None]
    reference: Values

    @cached_property
    def volume(self) -> float:
        """The exact frontier's hypervolume."""
        return self._volume(list(self.values))

    def _volume(self, genomes: Sequence[Genome]) -> float:
        kept = [self.values[genome] for genome in genomes if all(each <= 0 for each in self.excess.get(genome, ()))]
        return hypervolume(np.array(kept).reshape(len(kept), len(self.reference)), self.reference)

    def shares(self, make: MakeEngine, seed: int, population: int, marks: Sequence[int] = MARKS) -> list[float]:
        """The share of the exact frontier's hypervolume that an engine has after each number of evaluations."""
        bounds = len(next(iter(self.excess.values()), ()))
        candidates = Candidates(self.space, lambda subnet: self.space.encode(subnet) in self.values, seed)
        engine = make(candidates, seed=seed, population=population, goal=Goal(self.costs, bounds))
        found: list[Genome] = []
        while len(found) < max(marks) and (genomes := engine.ask()):
            excess = [self.excess.get(genome, ()) for genome in genomes]
            values = np.array([self.values[genome] for genome in genomes])
            engine.tell(genomes, values, np.array(excess, dtype=float).reshape(len(genomes), bounds))
            found += [self.space.canonical(genome) for genome in genomes]
        return [self._volume(found[:count]) / self.volume for count in marks]


def compare(scored: Scored, population: int, reporter: Reporter) -> pd.DataFrame:
    """`COLUMNS`: mean share and standard deviation of three seeds, of each engine at those of `MARKS` below the size.

    Empty where the space is smaller than the first mark or nothing keeps the constraints. Not `optuna-gp`, which takes
    minutes, and `age-moea2` only where numba is installed.
    """
    marks = [mark for mark in MARKS if mark < len(scored.values)]
    rows: list[dict[str, object]] = []
    names = [name for name in ENGINES if name not in _LEFT_OUT]
    if importlib.util.find_spec("numba") is None:
        names.remove("age-moea2")
    if marks and scored.volume > 0:
        with reporter.bar(f"comparing engines on {scored.space.name}", "engines", len(names)) as bar:
            for name in names:
                shares = np.array([scored.shares(ENGINES[name], seed, population, marks) for seed in range(_SEEDS)])
                rows += [
                    dict(zip(COLUMNS, (scored.space.name, name, mark, *found), strict=True))
                    for mark, *found in zip(
                        marks, shares.mean(axis=0).tolist(), shares.std(axis=0).tolist(), strict=True
                    )
                ]
                bar.advance()
    return pd.DataFrame(rows, columns=COLUMNS)
