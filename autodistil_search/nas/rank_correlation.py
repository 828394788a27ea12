"""Rank correlation of two measures: Kendall's tau-b and Spearman's rho, over all or within groups, with intervals.

Within groups, only pairs of the same group count. In narrow cost bands, a measure gains nothing from the rule that
larger subnets are better. Both statistics follow from the signs of differences `(n, n)` and from counts `(m, n)`: the
number of times that each of `n` members occurs in each of `m` resamples. A bootstrap is thus a few matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Groups = NDArray[np.int64]
Statistic = Callable[[Array, Array, Array], Array]
"""Function from the signs of two measures and from counts `(m, n)` to the rank correlations `(m,)`."""


def signs(values: Array, groups: Groups) -> Array:
    """Return the signs `(n, n)` of the differences of all pairs of values `(n,)`; 0 for pairs across groups."""
    differences: Array = np.sign(values[:, None] - values) * (groups[:, None] == groups)
    return differences


def kendall(a: Array, b: Array, counts: Array) -> Array:
    """Return Kendall's tau-b; NaN if a measure is constant. With one group it equals SciPy's."""

    def pairs(products: Array) -> Array:
        weighted: Array = ((counts @ products) * counts).sum(axis=1)
        return weighted

    return _share(pairs(a * b), pairs(a * a), pairs(b * b))


def spearman(a: Array, b: Array, counts: Array) -> Array:
    """Return Spearman's rho, the correlation of centred ranks within each group; NaN if a measure is constant.

    Twice the centred rank of a member is the sum of its signs against all members of the resample.
    """
    ranks_a, ranks_b = counts @ a.T, counts @ b.T  # (m, n)
    sums = [(counts * x * y).sum(axis=1) for x, y in ((ranks_a, ranks_b), (ranks_a, ranks_a), (ranks_b, ranks_b))]
    return _share(*sums)


def _share(both: Array, in_a: Array, in_b: Array) -> Array:
    untied = np.sqrt(in_a * in_b)
    return np.divide(both, untied, out=np.full_like(both, np.nan), where=untied > 0)


STATISTICS: dict[str, Statistic] = {"kendall": kendall, "spearman": spearman}


@dataclass(frozen=True)
class Agreement:
    """A rank correlation with its 95 % confidence interval, valid if the subnets are a random draw."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def agreement(statistic: Statistic, a: Array, b: Array, groups: Groups) -> Agreement:
    """Return the rank correlation of measures `a` and `b`, `(n,)` each, within `groups`."""
    in_a, in_b = signs(a, groups), signs(b, groups)
    return _with_interval(lambda counts: statistic(in_a, in_b, counts), groups)


def gain(statistic: Statistic, a: Array, other: Array, b: Array, groups: Groups) -> Agreement:
    """Return the rank correlation of `a` and `b` minus that of `other` and `b`, on the same resamples."""
    in_a, in_other, in_b = (signs(values, groups) for values in (a, other, b))
    return _with_interval(
        lambda counts: statistic(in_a, in_b, counts) - statistic(in_other, in_b, counts),
        groups,
    )


def _with_interval(statistic: Callable[[Array], Array], groups: Groups) -> Agreement:
    """Return a statistic with its percentile bootstrap (Efron, 1979) over the members of each group.

    Resamples in which a measure is constant are left out.
    """
    value = float(statistic(np.ones((1, len(groups))))[0])
    statistics = statistic(resampled(groups))
    finite = statistics[np.isfinite(statistics)]
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (np.nan, np.nan)
    return Agreement(value, float(low), float(high))


def resampled(groups: Groups, resamples: int = 2000, seed: int = 0) -> Array:
    """Return the counts `(m, n)` of each member in each resample; every group is drawn with replacement to its size."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((resamples, len(groups)))
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=resamples)
    return counts
