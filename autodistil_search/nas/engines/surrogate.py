"""A model of what is dear to measure, and the subnets by which the hypervolume is expected to grow most.

What follows from sizes alone is known of every subnet; only the rest (the proxy) is modelled, by a Gaussian process for
each, over the choices of each dimension. The next subnets are those of the largest expected hypervolume gain (Emmerich
et al. 2006, doi:10.1109/TEVC.2005.859463), which here is an average over quantiles: free objectives have no spread.
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
"""Subnets proposed at a time."""
_FIRST = 8
"""Subnets to begin with: both corners and random ones."""
_QUANTILES = 16
"""Points that stand for the distribution of one modelled objective; twice as many for several."""
_MOST_FITTED = 400
"""Observations that a model is fitted to; its time grows with their cube."""
_MOST_WEIGHED = 300
"""Candidates whose gain is averaged over all quantiles: the most promising by an optimistic value."""
_OPTIMISTIC = 1.5
"""Standard deviations below the mean, of an optimistic value."""
_INNER_POPULATION = 64
_INNER_GENERATIONS = 20

_Vectors = NDArray[np.float64]


class Surrogate:
    """Models what is dear, knows what is free, and asks for subnets by expected hypervolume gain.

    Of a space that can be listed, every subnet left is weighed; of a larger one, those that NSGA-II finds on the model
    and the neighbours of the frontier. Inside a batch, each choice is taken to be worth what the model expects.
    """

    def __init__(self, candidates: Candidates, *, seed: int, population: int, goal: Goal) -> None:
        self._candidates, self._goal, self._seed = candidates, goal, seed
        self._dear = [index for index, cost in enumerate(goal.costs) if cost is None]
        self._quantiles = _quantiles(len(self._dear), seed)
        self._free: dict[Genome, list[float]] = {}
        self._scored: list[Genome] = []
        self._values = np.empty((0, len(goal.costs)))
        self._excess = np.empty((0, goal.constraints))

    def ask(self) -> list[Genome]:
        """The next batch; see `Engine`."""
        if not self._scored:
            return self._candidates.fill(self._candidates.corners(), _FIRST)
        if self._candidates.exhausted:
            return []
        measured = np.hstack([self._values[:, self._dear], self._excess])
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
        """Add what was measured; see `Engine`."""
        self._scored += genomes
        self._values = np.vstack([self._values, values])
        self._excess = np.vstack([self._excess, excess])

    def _pool(self, model: _Model) -> list[Genome]:
        """The genomes to choose from."""
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
        found: dict[Genome, None] = {}
        for _ in range(_INNER_GENERATIONS):
            if not (genomes := inner.ask()):
                break
            mean, spread, admissible = self._expected(model, genomes)
            inner.tell(genomes, mean - _OPTIMISTIC * spread, 0.5 - admissible[:, None])
            found |= dict.fromkeys(genomes)
        on = is_on_frontier(self._values)
        for group in (on, ~on):  # where few subnets keep the bounds, the neighbours of all are looked at
            near = (step for index in np.flatnonzero(group) for step in self._neighbours(self._scored[index]))
            found |= dict.fromkeys(genome for genome in near if self._candidates.is_new(genome))
            if found:
                break
        return list(found)

    def _neighbours(self, genome: Genome) -> Iterator[Genome]:
        """The genomes one step away in one dimension."""
        space = self._candidates.space
        for place, count in enumerate(space.choices):
            for choice in (genome[place] - 1, genome[place] + 1):
                if 0 <= choice < count:
                    yield space.canonical((*genome[:place], choice, *genome[place + 1 :]))

    def _expected(self, model: _Model, genomes: Sequence[Genome]) -> tuple[Values, Values, Values]:
        """Mean and standard deviation of every objective, `(n, m)` each, and how likely constraints are kept, `(n,)`.

        Free objectives have no deviation.
        """
        mean = np.array([self._known(genome) for genome in genomes])
        spread = np.zeros_like(mean)
        predicted, deviation = model.predict(genomes)
        dear = len(self._dear)
        mean[:, self._dear], spread[:, self._dear] = predicted[:, :dear], deviation[:, :dear]
        within = norm.cdf(-predicted[:, dear:] / np.maximum(deviation[:, dear:], 1e-12))
        return mean, spread, within.prod(axis=1)

    def _known(self, genome: Genome) -> list[float]:
        """The objectives of `genome` that are free, 0 in place of the others."""
        if (known := self._free.get(genome)) is None:
            subnet = self._candidates.space.decode(genome)
            known = [0.0 if cost is None else float(cost(subnet)) for cost in self._goal.costs]
            if self._candidates.total is not None:  # a space that can be listed is asked about again and again
                self._free[genome] = known
        return known

    def _best(self, values: Values, mean: Values, spread: Values, admissible: Values) -> int:
        """Index of the row with the largest expected gain; where none gains anything, the least certain one.

        values: of what was scored and keeps the constraints; the other arguments are as `_expected` gives them.
        """
        front = values[is_on_frontier(values)]
        reference = self._values.max(axis=0) + 0.1 * np.ptp(self._values, axis=0)
        optimistic = hypervolume_gains(front, mean - _OPTIMISTIC * spread, reference) * admissible
        rows = np.argsort(-optimistic, kind="stable")[:_MOST_WEIGHED]
        points = np.tile(mean[rows], (len(self._quantiles), 1, 1))  # (k, rows, m)
        points[:, :, self._dear] += self._quantiles[:, None] * spread[rows][:, self._dear]
        gains = hypervolume_gains(front, points.reshape(-1, points.shape[-1]), reference)
        gain = gains.reshape(len(self._quantiles), -1).mean(axis=0) * admissible[rows]
        order = np.lexsort((-spread[rows].sum(axis=1), -gain))
        return int(rows[order[0]])


class _Model:
    """A Gaussian process over the choices of a space for each thing that must be measured.

    Args:
        choices: Number of choices in each dimension.
        genomes: What was scored.
        values: `(n, d)`: what was measured of it.
    """

    def __init__(self, choices: Sequence[int], genomes: Sequence[Genome], values: Values) -> None:
        self._choices = choices
        kept = _to_fit(values)
        self._x, self._y = _scaled([genomes[index] for index in kept], choices), values[kept]
        self._processes = [_process(self._x, y) for y in self._y.T]

    def predict(self, genomes: Sequence[Genome]) -> tuple[Values, Values]:
        """Mean and standard deviation, `(n, d)` each."""
        shape = (len(genomes), len(self._processes))
        mean, spread = np.empty(shape), np.empty(shape)
        for index, process in enumerate(self._processes):
            mean[:, index], spread[:, index] = process.predict(_scaled(genomes, self._choices), return_std=True)
        return mean, spread

    def believe(self, genome: Genome) -> None:
        """Go on as if `genome` had what is expected of it; what the kernels were fitted to stays."""
        values = self.predict([genome])[0]
        self._x = np.vstack([self._x, _scaled([genome], self._choices)])
        self._y = np.vstack([self._y, values])
        self._processes = [
            GaussianProcessRegressor(process.kernel_, optimizer=None, normalize_y=True).fit(self._x, y)
            for process, y in zip(self._processes, self._y.T, strict=True)
        ]


def _process(x: _Vectors, y: _Vectors) -> GaussianProcessRegressor:
    """A Gaussian process fitted to y; its noise is what the choices do not explain smoothly."""
    smooth = ConstantKernel(1.0, (1e-2, 1e3)) * Matern(np.ones(x.shape[1]), (5e-2, 1e2), nu=2.5)
    process = GaussianProcessRegressor(smooth + WhiteKernel(1e-3, (1e-7, 1e-1)), normalize_y=True)
    with warnings.catch_warnings():  # a length scale at its bound says that a dimension does not matter
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(x, y)
    return process


def _to_fit(values: Values) -> NDArray[np.intp]:
    """Which observations a model is fitted to: all of them, or the latest and others evenly over the rest."""
    count = len(values)
    if count <= _MOST_FITTED:
        return np.arange(count)
    half = _MOST_FITTED // 2
    return np.concatenate([np.linspace(0, count - half - 1, half).astype(np.intp), np.arange(count - half, count)])


def _scaled(genomes: Sequence[Genome], choices: Sequence[int]) -> _Vectors:
    """Genomes with each dimension that has a choice from 0 to 1, `(n, d)`."""
    most = np.array(choices) - 1
    places = np.array(genomes, dtype=float).reshape(len(genomes), len(choices))
    return np.asarray(places[:, most > 0] / most[most > 0])


def _quantiles(objectives: int, seed: int) -> _Vectors:
    """Points of a standard normal distribution that stand for all of it, `(k, objectives)`."""
    if objectives < 2:
        return np.asarray(norm.ppf((np.arange(_QUANTILES)[:, None] + 0.5) / _QUANTILES))
    return np.asarray(norm.ppf(qmc.Sobol(objectives, rng=seed).random(2 * _QUANTILES)))
