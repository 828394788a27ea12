"""Optuna's samplers as engines: they draw the choices of each dimension, and may repeat themselves."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, TPESampler
from optuna.trial import Trial, TrialState

from autodistil_search.nas.engines.base import Candidates, Goal
from autodistil_search.nas.pareto import Values
from autodistil_search.spaces.subnet import Genome


def nsga2(seed: int, population: int) -> BaseSampler:
    """Optuna's NSGA-II."""
    return NSGAIISampler(population_size=population, seed=seed)


def nsga3(seed: int, population: int) -> BaseSampler:
    """Optuna's NSGA-III."""
    return NSGAIIISampler(population_size=population, seed=seed)


def tpe(seed: int, _: int) -> BaseSampler:
    """Multi-objective tree-structured Parzen estimators (Ozaki et al. 2022, doi:10.1613/jair.1.13188)."""
    return TPESampler(seed=seed)


def gp(seed: int, _: int) -> BaseSampler:
    """Gaussian processes of all objectives, free ones too, and expected hypervolume improvement."""
    return GPSampler(seed=seed, deterministic_objective=True)


class Sampler:
    """A sampler of Optuna over the choice indices of a space.

    It works on a study of its own, in memory. A subnet that it asks for again is answered from there, which costs
    nothing; one that breaks a bound is told to have failed. After `tries` such questions in a row a random new subnet
    is asked for, and the sampler is told of it like of its own.

    Args:
        sampler: Makes the sampler from a seed and a population.
        generation: Whether it asks for `population` subnets before it is told of one, instead of one by one.
        tries: Questions in a row that may be known or inadmissible: few for a sampler that thinks long.
    """

    def __init__(
        self,
        sampler: Callable[[int, int], BaseSampler],
        generation: bool,
        tries: int,
        candidates: Candidates,
        *,
        seed: int,
        population: int,
        goal: Goal,
    ) -> None:
        self._candidates = candidates
        self._tries = tries
        self._at_once = population if generation else 1
        self._known: dict[Genome, list[list[float]]] = {}
        self._asked: dict[Genome, Trial] = {}
        self._distributions: dict[str, BaseDistribution] = {
            name: IntDistribution(0, count - 1)
            for name, count in zip(candidates.space.dimensions, candidates.space.choices, strict=True)
        }
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self._study = optuna.create_study(
                directions=["minimize"] * len(goal.costs), sampler=sampler(seed, population)
            )

    def ask(self) -> list[Genome]:
        """The next genome, or generation; see `Engine`."""
        self._asked = {}
        tries = 0
        while len(self._asked) < self._at_once and tries < self._tries and not self._candidates.exhausted:
            trial = self._study.ask(self._distributions)
            genome = self._candidates.space.canonical(tuple(trial.params[name] for name in self._distributions))
            if self._candidates.is_new(genome):
                self._candidates.take(genome)
                self._asked[genome] = trial
                tries = 0
                continue
            tries += 1
            if genome in self._known:
                self._answer(trial, *self._known[genome])
            else:  # it breaks a bound, or is in this generation already
                self._study.tell(trial, state=TrialState.FAIL)
        for genome in self._candidates.fill([], self._at_once - len(self._asked)):
            self._study.enqueue_trial(dict(zip(self._distributions, genome, strict=True)))
            self._asked[genome] = self._study.ask(self._distributions)
        return list(self._asked)

    def tell(self, genomes: Sequence[Genome], values: Values, excess: Values) -> None:
        """Hand the values to the sampler; see `Engine`."""
        for genome, *known in zip(genomes, values.tolist(), excess.tolist(), strict=True):
            self._known[genome] = known
            self._answer(self._asked[genome], *known)

    def _answer(self, trial: Trial, values: list[float], excess: list[float]) -> None:
        for index, each in enumerate(excess):
            trial.set_constraint(str(index), each)
        self._study.tell(trial, values)
