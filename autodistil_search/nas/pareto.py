"""Pareto frontiers of `(n, m)` arrays of minimised objective values. No torch."""

from __future__ import annotations

import itertools

import moocore
import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def is_on_frontier(values: Values) -> NDArray[np.bool_]:
    """Return a mask of the rows that no other row dominates.

    A row dominates another if it is lower or equal in all columns and lower in at least one. Equal rows all stay.

    Args:
        values: Minimised objective values `(n, m)`.

    Returns:
        A mask `(n,)`.
    """
    if len(values) == 0:
        return np.zeros(0, dtype=bool)
    if values.shape[1] == 1:  # moocore starts at two objectives
        return np.asarray(values[:, 0] == values[:, 0].min())
    return np.asarray(moocore.is_nondominated(values, keep_weakly=True), dtype=bool)


def hypervolume(values: Values, reference: Values) -> float:
    """Return the volume between the frontier of `values` and the point `reference`, in the product of their units.

    Rows that are not below the reference in all columns add nothing.

    Args:
        values: Minimised objective values `(n, m)`.
        reference: Reference point `(m,)`.
    """
    below = values[(values < reference).all(axis=1)]
    if len(below) == 0:
        return 0.0
    if values.shape[1] == 1:
        return float(reference[0] - below.min())
    return float(moocore.hypervolume(below, ref=reference))


def box_of(low: float, high: float, maximize: bool, margin: float) -> tuple[float, float]:
    """Return the ideal and the reference value of an objective that lies between `low` and `high`, both included.

    The reference is worse than both, so that every value counts. Values that are not negative are measured from 0: it
    is the ideal of a minimised objective and the reference of a maximised objective.

    Args:
        low: Least value.
        high: Greatest value.
        maximize: True if greater values are better.
        margin: Factor, above 1, between the greatest value and the end of the box.
    """
    if low >= 0 and high > 0:
        return (margin * high, 0.0) if maximize else (0.0, margin * high)
    room = (margin - 1) * ((max(high, 0.0) - min(low, 0.0)) or 1.0)
    return (max(high, 0.0), low - room) if maximize else (min(low, 0.0), high + room)


def share_of_box(values: Values, ideal: Values, reference: Values) -> float:
    """Return the dominated share of the box between `ideal` and `reference`, 0 to 1.

    A value better than the ideal counts as the ideal.

    Args:
        values: Minimised objective values `(n, m)`.
        ideal: Ideal point `(m,)`.
        reference: Reference point `(m,)`, above `ideal` in all columns.
    """
    within, box = np.maximum(values, ideal), float(np.prod(reference - ideal))
    if not np.finfo(float).tiny <= box < np.inf:  # floats cannot hold the product of the ranges, but can hold the share
        within, reference, box = (within - ideal) / (reference - ideal), np.ones_like(reference), 1.0
    return min(hypervolume(within, reference) / box, 1.0)


def hypervolume_gains(front: Values, points: Values, reference: Values) -> Values:
    """Return the gains `(p,)` in the hypervolume of `front` by each point alone.

    The gains are exact and computed for all points at once. The frontier's values of the last objective cut the space
    into slabs; in each slab the gain is computed with one objective fewer. Time grows with `p n^(m-1)`.

    Args:
        front: Minimised objective values `(n, m)`.
        points: Points to add, `(p, m)`.
        reference: Reference point `(m,)`.
    """
    front = front[(front < reference).all(axis=1)]
    if front.shape[1] == 1:
        return np.asarray(np.maximum(min(reference[0], front.min(initial=np.inf)) - points[:, 0], 0.0))
    order = np.argsort(front[:, -1], kind="stable")
    edges = np.concatenate([[-np.inf], front[order, -1], reference[-1:]])
    gains = np.zeros(len(points))
    for slab, (low, high) in enumerate(itertools.pairwise(edges)):
        depth = np.clip(high - np.maximum(points[:, -1], low), 0.0, None)
        reached = depth > 0
        if reached.any():
            below = front[order[:slab], :-1]
            below = below[is_on_frontier(below)]
            gains[reached] += depth[reached] * hypervolume_gains(below, points[reached, :-1], reference[:-1])
    return gains


def knee(values: Values) -> int:
    """Return the index of the knee: the row of the frontier nearest to the ideal point.

    Each objective is first scaled so that the frontier's lowest value is 0 and its highest 1. The distance is
    Euclidean (compromise programming, Zeleny 1973). A constant objective does not count.

    Args:
        values: Minimised objective values `(n, m)`, n >= 1.
    """
    front = values[is_on_frontier(values)]
    ideal, span = front.min(axis=0), np.ptp(front, axis=0)
    scaled = (values - ideal) / np.where(span > 0, span, np.inf)
    distance = np.where(is_on_frontier(values), np.linalg.norm(scaled, axis=1), np.inf)
    return int(distance.argmin())
