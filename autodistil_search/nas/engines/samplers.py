"""Engines from Optuna's samplers, which draw the choice of each dimension and may repeat a subnet."""

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
    """Return Optuna's NSGA-II."""
    return NSGAIISampler(population_size=population, seed=seed)


def nsga3(seed: int, population: int) -> BaseSampler:
    """Return Optuna's NSGA-III."""
    return NSGAIIISampler(population_size=population, seed=seed)


def tpe(seed: int, _: int) -> BaseSampler:
    """Return the multi-objective tree-structured Parzen estimator (Ozaki et al. 2022, doi:10.1613/jair.1.13188)."""
    return TPESampler(seed=seed)


def gp(seed: int, _: int) -> BaseSampler:
    """Return the sampler by expected hypervolume improvement, with Gaussian processes of all objectives, even costs."""
    return GPSampler(seed=seed, deterministic_objective=True)


class Sampler:
    """A sampler of Optuna over the choice indices of a space.

    The sampler has a study of its own, in memory. A repeated subnet receives its known values at no cost. A subnet
    that breaks a bound is reported to the sampler as a failed trial. After `tries` such proposals in a row, the engine
    asks for a random new subnet, and the sampler receives its values as those of a trial of its own.

    Args:
        sampler: Function that makes the sampler from a seed and a population.
        generation: True to ask for `population` subnets at once, False to ask for single subnets.
        tries: Number of known or inadmissible proposals allowed in a row; small for slow samplers.
        candidates: Genomes that the engine may ask for.
        seed: Seed of the sampler.
        population: Number of subnets in a generation.
        goal: Objectives and measured constraints.
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
        self._pending: dict[Genome, Trial] = {}
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
        """Return the next genome or generation; see `Engine`."""
        self._pending = {}
        tries = 0
        while len(self._pending) < self._at_once and tries < self._tries and not self._candidates.exhausted:
            trial = self._study.ask(self._distributions)
            genome = self._candidates.space.canonical(tuple(trial.params[name] for name in self._distributions))
            if self._candidates.is_new(genome):
                self._candidates.take(genome)
                self._pending[genome] = trial
                tries = 0
                continue
            tries += 1
            if genome in self._known:
                self._tell_trial(trial, *self._known[genome])
            else:  # the genome breaks a bound, or is already in this generation
                self._study.tell(trial, state=TrialState.FAIL)
        for genome in self._candidates.fill([], self._at_once - len(self._pending)):
            self._study.enqueue_trial(dict(zip(self._distributions, genome, strict=True)))
            self._pending[genome] = self._study.ask(self._distributions)
        return list(self._pending)

    def tell(self, genomes: Sequence[Genome], values: Values, excess: Values) -> None:
        """Pass the values to the sampler; see `Engine`."""
        for genome, *known in zip(genomes, values.tolist(), excess.tolist(), strict=True):
            self._known[genome] = known
            self._tell_trial(self._pending[genome], *known)

    def _tell_trial(self, trial: Trial, values: list[float], excess: list[float]) -> None:
        for index, constraint_excess in enumerate(excess):
            trial.set_constraint(str(index), constraint_excess)
        self._study.tell(trial, values)
