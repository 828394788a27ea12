"""Registry of search engines by name, and checks of engines of plug-ins."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from autodistil_search.base.plugins import guarded
from autodistil_search.nas.engines import evolution, samplers
from autodistil_search.nas.engines.base import Candidates, Engine, Goal
from autodistil_search.nas.engines.exhaustive_and_random import Exhaustive, Random
from autodistil_search.nas.pareto import Values
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Genome


class MakeEngine(Protocol):
    """Function or class that makes an engine. An engine may ignore the seed and the population."""

    def __call__(self, candidates: Candidates, *, seed: int, population: int, goal: Goal) -> Engine:
        """Return an engine that asks for subnets of `candidates`.

        Args:
            candidates: Genomes that the engine may ask for.
            seed: Seed of the engine.
            population: Number of subnets in a generation, for engines that work in generations.
            goal: Objectives and measured constraints.
        """
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


def guarded_engine(name: str, make: MakeEngine) -> MakeEngine:
    """Return `make` of a plug-in with checks: errors and invalid genomes of its engine become an `InputError`."""

    def make_guarded(candidates: Candidates, *, seed: int, population: int, goal: Goal) -> Engine:
        with guarded(f"engine {name!r} cannot be made"):
            return _Guarded(name, make(candidates, seed=seed, population=population, goal=goal), candidates.space)

    return make_guarded


class _Guarded:
    """An engine of a plug-in with checks; see `guarded_engine`."""

    def __init__(self, name: str, engine: Engine, space: SearchSpace) -> None:
        self._name, self._engine, self._space = name, engine, space

    def ask(self) -> list[Genome]:
        """Return the plug-in's genomes, after checking that the space contains them."""
        with guarded(f"engine {self._name!r} failed to ask for subnets of the space"):
            genomes = [tuple(map(int, genome)) for genome in self._engine.ask()]
            for genome in genomes:
                self._space.decode(genome)
            return genomes

    def tell(self, genomes: Sequence[Genome], values: Values, excess: Values) -> None:
        """Pass the values to the plug-in; see `Engine`."""
        with guarded(f"engine {self._name!r} failed on the values of scored subnets"):
            self._engine.tell(genomes, values, excess)
