"""Surrogate engine: models only the expensive objectives and selects subnets by expected hypervolume gain.

Costs that follow from the sizes are computed exactly. Each other objective, such as the proxy, is modelled by a
Gaussian process over the choices of each dimension. The next subnets have the largest expected hypervolume gain
(Emmerich et al. 2006, doi:10.1109/TEVC.2005.859463). The expectation is an average over quantiles of the modelled
objectives, since computed objectives have no spread.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, qmc
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from autodistil_search.nas.engines.base import Candidates, Goal
from autodistil_search.nas.engines.evolution import Evolution, nsga2
from autodistil_search.nas.pareto import Values, hypervolume_gains, is_on_frontier
from autodistil_search.spaces.subnet import Genome

_BATCH = 4
"""Number of subnets in a batch."""
_FIRST = 8
"""Number of subnets in the first batch: both corners and random subnets."""
_QUANTILES = 16
"""Number of points that represent the distribution of one modelled objective; twice as many for several."""
_MOST_FITTED = 400
"""Greatest number of observations in a fit, whose time grows with their cube."""
_MOST_WEIGHED = 300
"""Number of candidates whose gain is averaged over all quantiles: the best by an optimistic value."""
_OPTIMISTIC = 1.5
"""Distance of an optimistic value below the mean, in standard deviations."""
_INNER_POPULATION = 64
_INNER_GENERATIONS = 20

_Vectors = NDArray[np.float64]


class Surrogate:
    """Engine that models only the expensive objectives and asks for subnets by expected hypervolume gain.

    In a space that can be listed, every remaining subnet is a candidate. In a larger space, the candidates are the
    subnets that NSGA-II finds on the model and the neighbours of the frontier. Within a batch, each selected subnet
    counts with the values that the model expects.
    """

    def __init__(self, candidates: Candidates, *, seed: int, population: int, goal: Goal) -> None:
        self._candidates, self._goal, self._seed = candidates, goal, seed
        self._expensive = [index for index, cost in enumerate(goal.costs) if cost is None]
        self._quantiles = _quantiles(len(self._expensive), seed)
        self._costs: dict[Genome, list[float]] = {}
        self._scored: list[Genome] = []
        self._values = np.empty((0, len(goal.costs)))
        self._excess = np.empty((0, goal.constraints))

    def ask(self) -> list[Genome]:
        """Return the next batch; see `Engine`."""
        if not self._scored:
            return self._candidates.fill(self._candidates.corners(), _FIRST)
        if self._candidates.exhausted:
            return []
        measured = np.hstack([self._values[:, self._expensive], self._excess])
        model = _Model(self._candidates.space.choices, self._scored, measured)
        pool = self._pool(model)
        batch: list[Genome] = []
        values, kept = self._values, (self._excess <= 0).all(axis=1)
        while pool and len(batch) < _BATCH:
            mean, spread, admissible = self._expected(model, pool)
            best = self._best(values[kept], mean, spread, admissible)
            genome = pool.pop(best)
            self._candidates.take(genome)
            batch.append(genome)
            values, kept = np.vstack([values, mean[best]]), np.append(kept, admissible[best] > 0.5)
            model.believe(genome)
        return batch or self._candidates.fill([], _BATCH)

    def tell(self, genomes: Sequence[Genome], values: Values, excess: Values) -> None:
        """Add the values of scored subnets; see `Engine`."""
        self._scored += genomes
        self._values = np.vstack([self._values, values])
        self._excess = np.vstack([self._excess, excess])

    def _pool(self, model: _Model) -> list[Genome]:
        """Return the candidate genomes of the next subnet."""
        if (left := self._candidates.left) is not None:
            return left
        space = self._candidates.space
        inner = Evolution(
            nsga2,
            Candidates(space, lambda subnet: self._candidates.is_new(space.encode(subnet)), len(self._scored)),
            seed=self._seed,
            population=_INNER_POPULATION,
            goal=Goal(self._goal.costs, constraints=1),
        )
        pool: dict[Genome, None] = {}
        for _ in range(_INNER_GENERATIONS):
            if not (genomes := inner.ask()):
                break
            mean, spread, admissible = self._expected(model, genomes)
            inner.tell(genomes, mean - _OPTIMISTIC * spread, 0.5 - admissible[:, None])
            pool |= dict.fromkeys(genomes)
        on = is_on_frontier(self._values)
        for group in (on, ~on):  # if few subnets keep the bounds, the neighbours of all scored subnets are candidates
            near = (step for index in np.flatnonzero(group) for step in self._neighbours(self._scored[index]))
            pool |= dict.fromkeys(genome for genome in near if self._candidates.is_new(genome))
            if pool:
                break
        return list(pool)

    def _neighbours(self, genome: Genome) -> Iterator[Genome]:
        """Yield the genomes one step away in one dimension."""
        space = self._candidates.space
        for place, count in enumerate(space.choices):
            for choice in (genome[place] - 1, genome[place] + 1):
                if 0 <= choice < count:
                    yield space.canonical((*genome[:place], choice, *genome[place + 1 :]))

    def _expected(self, model: _Model, genomes: Sequence[Genome]) -> tuple[Values, Values, Values]:
        """Return mean and standard deviation of every objective, `(n, m)` each, and the probability `(n,)`.

        The probability is that of keeping all constraints. Computed objectives have a deviation of 0.
        """
        mean = np.array([self._known(genome) for genome in genomes])
        spread = np.zeros_like(mean)
        predicted, deviation = model.predict(genomes)
        modelled = len(self._expensive)
        mean[:, self._expensive], spread[:, self._expensive] = predicted[:, :modelled], deviation[:, :modelled]
        within = norm.cdf(-predicted[:, modelled:] / np.maximum(deviation[:, modelled:], 1e-12))
        return mean, spread, within.prod(axis=1)

    def _known(self, genome: Genome) -> list[float]:
        """Return the computed objectives of `genome`, with 0 in place of the others."""
        if (known := self._costs.get(genome)) is None:
            subnet = self._candidates.space.decode(genome)
            known = [0.0 if cost is None else float(cost(subnet)) for cost in self._goal.costs]
            if self._candidates.total is not None:  # every batch needs the costs of all subnets of a listed space
                self._costs[genome] = known
        return known

    def _best(self, values: Values, mean: Values, spread: Values, admissible: Values) -> int:
        """Return the index of the row with the largest expected gain; without any gain, of the least certain row.

        Args:
            values: Values of the scored subnets that keep the constraints.
            mean: Expected values, from `_expected`.
            spread: Standard deviations, from `_expected`.
            admissible: Probabilities of keeping the constraints, from `_expected`.
        """
        front = values[is_on_frontier(values)]
        reference = self._values.max(axis=0) + 0.1 * np.ptp(self._values, axis=0)
        optimistic = hypervolume_gains(front, mean - _OPTIMISTIC * spread, reference) * admissible
        rows = np.argsort(-optimistic, kind="stable")[:_MOST_WEIGHED]
        points = np.tile(mean[rows], (len(self._quantiles), 1, 1))  # (k, rows, m)
        points[:, :, self._expensive] += self._quantiles[:, None] * spread[rows][:, self._expensive]
        gains = hypervolume_gains(front, points.reshape(-1, points.shape[-1]), reference)
        gain = gains.reshape(len(self._quantiles), -1).mean(axis=0) * admissible[rows]
        order = np.lexsort((-spread[rows].sum(axis=1), -gain))
        return int(rows[order[0]])


class _Model:
    """A Gaussian process over the choices of a space for each measured quantity.

    Args:
        choices: Number of choices in each dimension.
        genomes: Scored genomes.
        values: Measured values of the genomes, `(n, d)`.
    """

    def __init__(self, choices: Sequence[int], genomes: Sequence[Genome], values: Values) -> None:
        self._choices = choices
        kept = _to_fit(values)
        self._x, self._y = _scaled([genomes[index] for index in kept], choices), values[kept]
        self._processes = [_process(self._x, y) for y in self._y.T]

    def predict(self, genomes: Sequence[Genome]) -> tuple[Values, Values]:
        """Return mean and standard deviation, `(n, d)` each."""
        shape = (len(genomes), len(self._processes))
        mean, spread = np.empty(shape), np.empty(shape)
        for index, process in enumerate(self._processes):
            mean[:, index], spread[:, index] = process.predict(_scaled(genomes, self._choices), return_std=True)
        return mean, spread

    def believe(self, genome: Genome) -> None:
        """Add `genome` with its expected values as an observation; the fitted kernels stay as they are."""
        values = self.predict([genome])[0]
        self._x = np.vstack([self._x, _scaled([genome], self._choices)])
        self._y = np.vstack([self._y, values])
        self._processes = [
            GaussianProcessRegressor(process.kernel_, optimizer=None, normalize_y=True).fit(self._x, y)
            for process, y in zip(self._processes, self._y.T, strict=True)
        ]


def _process(x: _Vectors, y: _Vectors) -> GaussianProcessRegressor:
    """Return a Gaussian process fitted to y. Its noise is the part of y that is not smooth in the choices."""
    smooth = ConstantKernel(1.0, (1e-2, 1e3)) * Matern(np.ones(x.shape[1]), (5e-2, 1e2), nu=2.5)
    process = GaussianProcessRegressor(smooth + WhiteKernel(1e-3, (1e-7, 1e-1)), normalize_y=True)
    with warnings.catch_warnings():  # a length scale at its bound means that a dimension has no influence
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(x, y)
    return process


def _to_fit(values: Values) -> NDArray[np.intp]:
    """Return the indices of the observations to fit: all, or half the latest and half evenly from the rest."""
    count = len(values)
    if count <= _MOST_FITTED:
        return np.arange(count)
    half = _MOST_FITTED // 2
    return np.concatenate([np.linspace(0, count - half - 1, half).astype(np.intp), np.arange(count - half, count)])


def _scaled(genomes: Sequence[Genome], choices: Sequence[int]) -> _Vectors:
    """Return genomes `(n, d)` scaled to 0 to 1 in each dimension, without dimensions of a single choice."""
    most = np.array(choices) - 1
    places = np.array(genomes, dtype=float).reshape(len(genomes), len(choices))
    return np.asarray(places[:, most > 0] / most[most > 0])


def _quantiles(objectives: int, seed: int) -> _Vectors:
    """Return points `(k, objectives)` that represent a standard normal distribution."""
    if objectives < 2:
        return np.asarray(norm.ppf((np.arange(_QUANTILES)[:, None] + 0.5) / _QUANTILES))
    return np.asarray(norm.ppf(qmc.Sobol(objectives, rng=seed).random(2 * _QUANTILES)))
