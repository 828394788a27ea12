"""Engines from pymoo's evolutionary algorithms, restricted to new subnets."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.base.genetic import GeneticAlgorithm
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.algorithms.moo.nsga3 import NSGA3
from pymoo.algorithms.moo.sms import SMSEMOA
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.util.ref_dirs import get_reference_directions

from autodistil_search.base.errors import InputError
from autodistil_search.nas.engines.base import Candidates, Goal
from autodistil_search.nas.pareto import Values
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Genome

_ETA = 3.0
"""Distribution index of crossover and mutation, as pymoo advises for integers."""


class _KeepNew(DuplicateElimination):  # type: ignore[misc]
    """Filter that removes repeated offspring, and offspring that the candidates do not admit."""

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


class _Canonical(RoundingRepair):  # type: ignore[misc]
    """Repair that rounds offspring to integers and replaces each by the canonical genome of its subnet."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self._space = space

    def _do(self, problem: Problem, X: NDArray[Any], **kwargs: Any) -> NDArray[Any]:  # noqa: N803 - pymoo's name
        rounded = super()._do(problem, X, **kwargs)
        return np.array([self._space.canonical(_genome(x)) for x in rounded])


def nsga2(_: int, **settings: Any) -> GeneticAlgorithm:
    """Return NSGA-II (Deb et al. 2002, doi:10.1109/4235.996017): rank, then crowding distance."""
    return NSGA2(**settings)


def nsga3(objectives: int, **settings: Any) -> GeneticAlgorithm:
    """Return NSGA-III (Deb and Jain 2014, doi:10.1109/TEVC.2013.2281535): rank, then niches of reference directions.

    The directions form the largest simplex lattice with at most as many points as the population.
    """
    partitions = max(
        (n for n in range(1, settings["pop_size"]) if math.comb(n + objectives - 1, n) <= settings["pop_size"]),
        default=1,
    )
    directions = get_reference_directions("das-dennis", objectives, n_partitions=partitions)
    settings["pop_size"] = max(settings["pop_size"], len(directions))
    return NSGA3(directions, **settings)


def age_moea2(_: int, **settings: Any) -> GeneticAlgorithm:
    """Return AGE-MOEA-II (Panichella 2022, doi:10.1145/3512290.3528732): rank, then proximity in the front's geometry.

    Raises:
        InputError: if numba, with which pymoo compiles the algorithm, is not installed.
    """
    if importlib.util.find_spec("numba") is None:
        raise InputError("engine 'age-moea2' needs numba: pip install 'autodistil-search[numba]'")
    from pymoo.algorithms.moo.age2 import AGEMOEA2

    return AGEMOEA2(**settings)


def sms_emoa(_: int, **settings: Any) -> GeneticAlgorithm:
    """Return SMS-EMOA (Beume et al. 2007, doi:10.1016/j.ejor.2006.08.008): rank, then hypervolume contribution."""
    return SMSEMOA(**settings)


class Evolution:
    """A genetic algorithm of pymoo over the choice indices of a space.

    The first population holds the smallest and the largest subnet of the space, if admissible, and random subnets.
    If mating gives too few new subnets, random new subnets fill the generation. The engine thus reaches the whole
    space, and stops only when no subnet is left.

    Args:
        algorithm: Function that makes the algorithm, such as `nsga2`. With a single objective, NSGA-II is always used
            and keeps the best subnets; the other algorithms divide by terms that vanish with a single objective.
        candidates: Genomes that the engine may ask for.
        seed: Seed of the algorithm.
        population: Number of subnets in a generation.
        goal: Objectives and measured constraints.
    """

    def __init__(
        self,
        algorithm: Callable[..., GeneticAlgorithm],
        candidates: Candidates,
        *,
        seed: int,
        population: int,
        goal: Goal,
    ) -> None:
        self._candidates = candidates
        self._population = population
        choices = np.array(candidates.space.choices)
        self._algorithm = (nsga2 if len(goal.costs) == 1 else algorithm)(
            len(goal.costs),
            pop_size=population,
            crossover=SBX(prob=1.0, eta=_ETA, vtype=float, repair=RoundingRepair()),
            mutation=PM(prob=1.0, eta=_ETA, vtype=float, repair=_Canonical(candidates.space)),
            eliminate_duplicates=_KeepNew(candidates),
        )
        problem = Problem(
            n_var=len(choices),
            n_obj=len(goal.costs),
            n_ieq_constr=goal.constraints,
            xl=np.zeros(len(choices)),
            xu=choices - 1,
            vtype=int,
        )
        self._algorithm.setup(problem, seed=seed, termination=NoTermination())

    def ask(self) -> list[Genome]:
        """Return the next generation; see `Engine`."""
        if self._candidates.exhausted:
            return []
        if not self._algorithm.is_initialized:
            return self._candidates.fill(self._candidates.corners(), self._population)
        offspring = self._algorithm.infill()
        self._algorithm.termination.force_termination = False  # set when mating gives nothing new; `fill` draws instead
        genomes = [] if offspring is None else [_genome(x) for x in offspring.get("X")]
        for genome in genomes:
            self._candidates.take(genome)
        return self._candidates.fill(genomes, self._population)

    def tell(self, genomes: Sequence[Genome], values: Values, excess: Values) -> None:
        """Select the next population from the generation and the current population; see `Engine`."""
        generation = Population.new("X", np.array(genomes), "F", values, "G", excess)
        for individual in generation:
            individual.evaluated.update({"F", "G", "H"})
        self._algorithm.advance(infills=generation)


def _genome(x: NDArray[Any]) -> Genome:
    return tuple(int(index) for index in x)
