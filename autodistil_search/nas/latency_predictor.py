"""Latency predicted from a subnet's sizes, by a model of few parts fitted on subnets that were measured.

A forward pass takes time for each layer and head, for each column it moves and for each multiply-add: a sum of such
terms with weights that cannot be negative, fitted by least squares of the relative error (Lawson and Hanson's NNLS).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autodistil_search.spaces.subnet import Subnet

Vector = NDArray[np.float64]

ROUNDS = 3
"""Measurements of each subnet."""


def features(subnet: Subnet) -> Vector:
    """What the time of a forward pass is a weighted sum of: `(8,)`, of which the first is 1."""
    layers = subnet.each_layer if subnet.each else (subnet,)
    alike = 1 if subnet.each else subnet.layers
    hidden = subnet.hidden_size
    of_layers = [
        (hidden * each.attention_width, hidden * each.ffn_size, each.heads, each.ffn_size, each.attention_width)
        for each in layers
    ]
    return np.array([1, subnet.layers, hidden * subnet.layers, *(alike * np.sum(of_layers, axis=0))], dtype=float)


def _fit(x: Vector, milliseconds: Vector) -> Vector:
    """Weights of the features `(n, 8)`, none negative, with the least relative errors."""
    from scipy.optimize import nnls

    scale = x.max(axis=0)
    weights, _ = nnls(x / scale / milliseconds[:, None], np.ones(len(x)))
    return np.asarray(weights / scale)


def in_rounds(subnets: Sequence[Subnet], measure: Callable[[Subnet], float]) -> list[float]:
    """The median of `ROUNDS` measurements of each, a round of all after the other.

    A machine that others use, too, is slow for seconds at a time: that may spoil one measurement of a subnet, not most.
    """
    return [float(each) for each in np.median([[measure(subnet) for subnet in subnets] for _ in range(ROUNDS)], axis=0)]


def error(predicted: Sequence[float], measured: Sequence[float]) -> dict[str, float]:
    """Mean and largest relative error, and Kendall's tau (nan of fewer than two)."""
    from scipy.stats import kendalltau  # slow to import, and predictions are rare

    relative = np.abs(np.array(predicted) / np.array(measured) - 1)
    return {
        "mean": float(relative.mean()),
        "most": float(relative.max()),
        "tau": float(kendalltau(predicted, measured).statistic) if len(relative) > 1 else float("nan"),
    }


def words(found: Mapping[str, float]) -> str:
    """An `error` for the reader of a report."""
    return f"mean error {found['mean']:.1%}, at most {found['most']:.1%}, Kendall's tau {found['tau']:.2f}"


class Predictor:
    """Milliseconds of a forward pass from the sizes, once `fit` or `take` was called."""

    def __init__(self) -> None:
        self._fitted: Mapping[str, Any] = {}

    def fit(self, subnets: Sequence[Subnet], measure: Callable[[Subnet], float]) -> dict[str, Any]:
        """Measure `subnets`, fit, and return what `take` needs, as JSON holds it.

        The stated error is that of each subnet when it is predicted from the others.
        """
        x = np.array([features(subnet) for subnet in subnets])
        y = np.array(in_rounds(subnets, measure))
        others = [np.arange(len(y)) != index for index in range(len(y))]
        left_out = [float(x[index] @ _fit(x[rest], y[rest])) for index, rest in enumerate(others)]
        return {
            "weights": _fit(x, y).tolist(),
            "measured": [[str(subnet), milliseconds] for subnet, milliseconds in zip(subnets, y.tolist(), strict=True)],
            "error": error(left_out, y.tolist()),
        }

    def take(self, fitted: Mapping[str, Any]) -> None:
        """Predict as was fitted before, here or elsewhere."""
        self._fitted = fitted

    def predict(self, subnet: Subnet) -> float:
        """Milliseconds of a forward pass of `subnet`."""
        return float(features(subnet) @ np.array(self._fitted["weights"]))

    @property
    def quality(self) -> dict[str, Any]:
        """Return on how many subnets it was fitted, and its `error` on each of them when it is left out."""
        return {"fitted_on": len(self._fitted["measured"]), "error_left_out": self._fitted["error"]}
