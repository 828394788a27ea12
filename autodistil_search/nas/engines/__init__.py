"""Search engines by name, and the loop that connects one with the archive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from autodistil_search.base.plugins import guarded
from autodistil_search.base.progress import Bar
from autodistil_search.nas.archive import Archive, Evaluation
from autodistil_search.nas.engines import evolution, samplers
from autodistil_search.nas.engines.base import ENUMERABLE, Candidates, Engine, Goal
from autodistil_search.nas.engines.exhaustive_and_random import Exhaustive, Random
from autodistil_search.nas.objectives import Constraint, Objective
from autodistil_search.nas.pareto import Values
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Genome, Subnet


class MakeEngine(Protocol):
    """How an engine is made; those that need no seed or population ignore them."""

    def __call__(self, candidates: Candidates, *, seed: int, population: int, goal: Goal) -> Engine:
        """An engine that asks for subnets of `candidates`, in generations of `population` if it works in such."""
        ...


def _surrogate(candidates: Candidates, *, seed: int, population: int, goal: Goal) -> Engine:
    from autodistil_search.nas.engines.surrogate import Surrogate

    return Surrogate(candidates, seed=seed, population=population, goal=goal)


ENGINES: dict[str, MakeEngine] = {
    "surrogate": _surrogate,
    "nsga2": partial(evolution.Evolution, evolution.nsga2),
    "nsga3": partial(evolution.Evolution, evolution.nsga3),
    "age-moea2": partial(evolution.Evolution, evolution.age_moea2),
    "sms-emoa": partial(evolution.Evolution, evolution.sms_emoa),
    "optuna-nsga2": partial(samplers.Sampler, samplers.nsga2, True, 10),
    "optuna-nsga3": partial(samplers.Sampler, samplers.nsga3, True, 10),
    "optuna-tpe": partial(samplers.Sampler, samplers.tpe, False, 5),
    "optuna-gp": partial(samplers.Sampler, samplers.gp, False, 2),
    "random": Random,
    "exhaustive": Exhaustive,
}

__all__ = ["ENGINES", "ENUMERABLE", "Candidates", "Engine", "Goal", "MakeEngine", "guarded_engine", "run_engine"]


def guarded_engine(name: str, make: MakeEngine) -> MakeEngine:
    """Return `make` of a plug-in such that whatever its engine raises, or asks for amiss, is an `InputError`."""

    def made(candidates: Candidates, *, seed: int, population: int, goal: Goal) -> Engine:
        with guarded(f"engine {name!r} cannot be made"):
            return _Guarded(name, make(candidates, seed=seed, population=population, goal=goal), candidates.space)

    return made


class _Guarded:
    """An engine of a plug-in; see `guarded_engine`."""

    def __init__(self, name: str, engine: Engine, space: SearchSpace) -> None:
        self._name, self._engine, self._space = name, engine, space

    def ask(self) -> list[Genome]:
        """The plug-in's genomes, each of which is one of the space."""
        with guarded(f"engine {self._name!r} failed to ask for subnets of the space"):
            genomes = [tuple(map(int, genome)) for genome in self._engine.ask()]
            for genome in genomes:
                self._space.decode(genome)
            return genomes

    def tell(self, genomes: Sequence[Genome], values: Values, excess: Values) -> None:
        """Hand the values to the plug-in; see `Engine`."""
        with guarded(f"engine {self._name!r} failed when it was told of subnets"):
            self._engine.tell(genomes, values, excess)


def run_engine(
    engine: Engine,
    candidates: Candidates,
    evaluate: Callable[[SearchSpace, Subnet], Evaluation],
    archive: Archive,
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
    budget: int,
    bar: Bar,
) -> int:
    """Let `engine` ask until `budget` subnets are scored or nothing new is left; returns how many were.

    What the archive knows already is answered from it. As engines are deterministic, a search that was stopped asks
    the same questions again, is answered at once, and goes on as if it had never stopped.
    """
    space = candidates.space
    scored = 0
    while scored < budget and (genomes := engine.ask()):
        within = genomes[: budget - scored]
        subnets = [space.decode(genome) for genome in within]
        answers = [each.measured for each in archive.answer(space, subnets, evaluate, bar.advance)]
        scored += len(within)
        if len(within) == len(genomes):
            values = [[each.minimised(measured[each.name]) for each in objectives] for measured in answers]
            excess = [[each.excess(measured[each.objective.name]) for each in constraints] for measured in answers]
            engine.tell(genomes, np.array(values), np.array(excess).reshape(len(genomes), len(constraints)))
    return scored
