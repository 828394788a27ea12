"""How far two measures rank alike: Kendall's tau-b and Spearman's rho, over all or within groups, with intervals.

Within groups only pairs of one group count: in narrow cost bands a measure cannot win by knowing that larger is better.
Both follow from the signs of differences, `(n, n)`, and from how often each of `n` members is there, `(m, n)` for `m`
resamples: so a bootstrap is a few matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Groups = NDArray[np.int64]
Statistic = Callable[[Array, Array, Array], Array]
"""Of the signs of two measures and of counts `(m, n)`, the rank correlations `(m,)`."""


def signs(values: Array, groups: Groups) -> Array:
    """Of each pair of `(n,)` values the sign of the difference; 0 where the two are of different groups."""
    found: Array = np.sign(values[:, None] - values) * (groups[:, None] == groups)
    return found


def kendall(a: Array, b: Array, counts: Array) -> Array:
    """Kendall's tau-b; NaN where a side is constant. Of one group it is SciPy's."""

    def pairs(of: Array) -> Array:
        found: Array = ((counts @ of) * counts).sum(axis=1)
        return found

    return _share(pairs(a * b), pairs(a * a), pairs(b * b))


def spearman(a: Array, b: Array, counts: Array) -> Array:
    """Spearman's rho: the correlation of ranks within each group, less their mean; NaN likewise.

    A rank, less the mean and doubled, is the sum of the signs against all members that are there.
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
    """A rank correlation and the interval that holds it with 95 % confidence, if the subnets are a random draw."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def agreement(statistic: Statistic, a: Array, b: Array, groups: Groups) -> Agreement:
    """How far `(n,)` measures `a` and `b` rank alike within `groups`."""
    in_a, in_b = signs(a, groups), signs(b, groups)
    return _with_interval(lambda counts: statistic(in_a, in_b, counts), groups)


def gain(statistic: Statistic, a: Array, other: Array, b: Array, groups: Groups) -> Agreement:
    """By how much `a` ranks more like `b` than `other` does: the difference of both, on the same resamples."""
    in_a, in_other, in_b = (signs(each, groups) for each in (a, other, b))
    return _with_interval(
        lambda counts: statistic(in_a, in_b, counts) - statistic(in_other, in_b, counts),
        groups,
    )


def _with_interval(statistic: Callable[[Array], Array], groups: Groups) -> Agreement:
    """The value, and its percentile bootstrap (Efron, 1979) over the members of each group.

    Resamples in which a side is constant say nothing and are left out.
    """
    value = float(statistic(np.ones((1, len(groups))))[0])
    found = statistic(resampled(groups))
    known = found[np.isfinite(found)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return Agreement(value, float(low), float(high))


def resampled(groups: Groups, resamples: int = 2000, seed: int = 0) -> Array:
    """How often each member is there, `(m, n)`, when as many of each group as it has are drawn with replacement."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((resamples, len(groups)))
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=resamples)
    return counts
