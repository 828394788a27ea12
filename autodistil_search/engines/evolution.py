"""NSGA-II (Deb et al. 2002, doi:10.1109/4235.996017) by pymoo, asking only for subnets not asked for before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair

from autodistil_search.engines.base import Candidates
from autodistil_search.pareto import Values
from autodistil_search.space import Genome

_ETA = 3.0
"""Distribution index of crossover and mutation; pymoo's advice for integers."""


class _KeepNew(DuplicateElimination):  # type: ignore[misc]
    """Removes offspring that the candidates do not admit, or that occur twice among the offspring."""

    def __init__(self, candidates: Candidates) -> None:
        super().__init__()
        self._candidates = candidates

    def _do(self, pop: Any, other: Any, is_duplicate: NDArray[np.bool_]) -> NDArray[np.bool_]:
        genomes = [_genome(x) for x in pop.get("X")]
        if other is not None:
            others = {_genome(x) for x in other.get("X")}
            return is_duplicate | [genome in others for genome in genomes]
        repeated = [genome in genomes[:i] for i, genome in enumerate(genomes)]
        return is_duplicate | repeated | [not self._candidates.is_new(genome) for genome in genomes]


class PymooNSGA2:
    """pymoo's NSGA-II over the choice indices of a space.

    The first population holds the smallest and the largest admissible corner of the space and random subnets.
    Where mating finds nothing new, random new subnets fill the generation, so that the whole space is reached in the
    end and the search stops only when nothing is left.
    """

    def __init__(self, candidates: Candidates, *, seed: int, population: int, objectives: int) -> None:
        self._candidates = candidates
        self._population = population
        choices = np.array(candidates.space.choices)
        self._algorithm = NSGA2(
            pop_size=population,
            crossover=SBX(prob=1.0, eta=_ETA, vtype=float, repair=RoundingRepair()),
            mutation=PM(prob=1.0, eta=_ETA, vtype=float, repair=RoundingRepair()),
            eliminate_duplicates=_KeepNew(candidates),
        )
        problem = Problem(n_var=len(choices), n_obj=objectives, xl=np.zeros(len(choices)), xu=choices - 1, vtype=int)
        self._algorithm.setup(problem, seed=seed, termination=NoTermination())

    def ask(self) -> list[Genome]:
        """A generation; see `Engine`."""
        if self._candidates.exhausted:
            return []
        genomes = self._offspring() if self._algorithm.is_initialized else self._corners()
        for genome in genomes:
            self._candidates.take(genome)
        while len(genomes) < self._population and (drawn := self._candidates.draw()) is not None:
            genomes.append(drawn)
        return genomes

    def tell(self, genomes: Sequence[Genome], values: Values) -> None:
        """Let the generation compete with the population; see `Engine`."""
        generation = Population.new("X", np.array(genomes), "F", np.asarray(values, dtype=float))
        for individual in generation:
            individual.evaluated.update({"F", "G", "H"})
        self._algorithm.advance(infills=generation)

    def _corners(self) -> list[Genome]:
        space = self._candidates.space
        corners = dict.fromkeys((space.encode(space.smallest), space.encode(space.largest)))
        return [corner for corner in corners if self._candidates.is_new(corner)][: self._population]

    def _offspring(self) -> list[Genome]:
        offspring = self._algorithm.infill()
        self._algorithm.termination.force_termination = False  # mating found nothing: others are drawn instead
        return [] if offspring is None else [_genome(x) for x in offspring.get("X")]


def _genome(x: NDArray[Any]) -> Genome:
    return tuple(int(index) for index in x)
