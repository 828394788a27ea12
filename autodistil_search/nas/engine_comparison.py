"""Comparison of engines by replay on spaces whose every subnet was scored."""

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
_EXCLUDED = ("exhaustive", "optuna-gp")
"""Engines without a meaningful comparison, or with minutes of computation."""

COLUMNS = ["space", "engine", "evaluations", "share", "spread"]


@dataclass(frozen=True)
class Scored:
    """A space whose every admissible subnet has known values.

    Attributes:
        space: Space of the subnets.
        values: Minimised objectives `(m,)` of each subnet.
        excess: Amount by which each subnet breaks each measured constraint; a subnet without an entry keeps all.
        costs: Function of the sizes for each objective; None for objectives that engines learn only by asking.
        reference: Reference point `(m,)` of the hypervolume.
    """

    space: SearchSpace
    values: Mapping[Genome, Sequence[float]]
    excess: Mapping[Genome, Sequence[float]]
    costs: Sequence[Callable[[Subnet], float] | None]
    reference: Values

    @cached_property
    def volume(self) -> float:
        """Return the hypervolume of the exact frontier."""
        return self._volume(list(self.values))

    def _volume(self, genomes: Sequence[Genome]) -> float:
        kept = [self.values[genome] for genome in genomes if all(over <= 0 for over in self.excess.get(genome, ()))]
        return hypervolume(np.array(kept).reshape(len(kept), len(self.reference)), self.reference)

    def shares(self, make: MakeEngine, seed: int, population: int, marks: Sequence[int] = MARKS) -> list[float]:
        """Return the share of the exact frontier's hypervolume that an engine has after each number of evaluations."""
        bounds = len(next(iter(self.excess.values()), ()))
        candidates = Candidates(self.space, lambda subnet: self.space.encode(subnet) in self.values, seed)
        engine = make(candidates, seed=seed, population=population, goal=Goal(self.costs, bounds))
        scored: list[Genome] = []
        while len(scored) < max(marks) and (genomes := engine.ask()):
            excess = [self.excess.get(genome, ()) for genome in genomes]
            values = np.array([self.values[genome] for genome in genomes])
            engine.tell(genomes, values, np.array(excess, dtype=float).reshape(len(genomes), bounds))
            scored += [self.space.canonical(genome) for genome in genomes]
        return [self._volume(scored[:count]) / self.volume for count in marks]


def compare(scored: Scored, population: int, reporter: Reporter) -> pd.DataFrame:
    """Return the mean share of each engine and its standard deviation over three seeds, as a table of `COLUMNS`.

    Each engine has a row for each of `MARKS` below the size of the space. The table is empty if the space is smaller
    than the first mark, or if no subnet keeps the constraints. `optuna-gp` is left out, since it takes minutes;
    `age-moea2` takes part only if numba is installed.
    """
    marks = [mark for mark in MARKS if mark < len(scored.values)]
    rows: list[dict[str, object]] = []
    names = [name for name in ENGINES if name not in _EXCLUDED]
    if importlib.util.find_spec("numba") is None:
        names.remove("age-moea2")
    if marks and scored.volume > 0:
        with reporter.bar(f"comparing engines on {scored.space.name}", "engines", len(names)) as bar:
            for name in names:
                shares = np.array([scored.shares(ENGINES[name], seed, population, marks) for seed in range(_SEEDS)])
                rows += [
                    dict(zip(COLUMNS, (scored.space.name, name, mark, *share), strict=True))
                    for mark, *share in zip(
                        marks, shares.mean(axis=0).tolist(), shares.std(axis=0).tolist(), strict=True
                    )
                ]
                bar.advance()
    return pd.DataFrame(rows, columns=COLUMNS)
