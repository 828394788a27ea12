"""Prediction of latency from a subnet's sizes, by a model with eight weights fitted on measured subnets.

A forward pass takes time for each layer and head, for each column it moves and for each multiply-add. The model is a
sum of such terms with non-negative weights, fitted by least squares of the relative error (Lawson and Hanson's NNLS).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autodistil_search.spaces.subnet import Subnet

Vector = NDArray[np.float64]

ROUNDS = 3
"""Number of measurements of each subnet."""


def features(subnet: Subnet) -> Vector:
    """Return the terms `(8,)` whose weighted sum is the time of a forward pass; the first is 1."""
    layers = subnet.each_layer if subnet.each else (subnet,)
    repeats = 1 if subnet.each else subnet.layers
    hidden = subnet.hidden_size
    terms = [
        (hidden * layer.attention_width, hidden * layer.ffn_size, layer.heads, layer.ffn_size, layer.attention_width)
        for layer in layers
    ]
    return np.array([1, subnet.layers, hidden * subnet.layers, *(repeats * np.sum(terms, axis=0))], dtype=float)


def _fit(x: Vector, milliseconds: Vector) -> Vector:
    """Return the non-negative weights of the features `(n, 8)` with the least relative errors."""
    from scipy.optimize import nnls

    scale = x.max(axis=0)
    weights, _ = nnls(x / scale / milliseconds[:, None], np.ones(len(x)))
    return np.asarray(weights / scale)


def in_rounds(subnets: Sequence[Subnet], measure: Callable[[Subnet], float]) -> list[float]:
    """Return the median of `ROUNDS` measurements of each subnet. Each round measures all subnets.

    A shared machine is slow for seconds at a time, which may spoil one measurement of a subnet, but not most of them.
    """
    medians = np.median([[measure(subnet) for subnet in subnets] for _ in range(ROUNDS)], axis=0)
    return [float(median) for median in medians]


def error(predicted: Sequence[float], measured: Sequence[float]) -> dict[str, float]:
    """Return the mean and the largest relative error, and Kendall's tau (NaN for fewer than two subnets)."""
    from scipy.stats import kendalltau  # slow to import, and predictions are rare

    relative = np.abs(np.array(predicted) / np.array(measured) - 1)
    return {
        "mean": float(relative.mean()),
        "most": float(relative.max()),
        "tau": float(kendalltau(predicted, measured).statistic) if len(relative) > 1 else float("nan"),
    }


def words(found: Mapping[str, float]) -> str:
    """Return the result of `error` in words, for the reader of a report."""
    return f"mean error {found['mean']:.1%}, at most {found['most']:.1%}, Kendall's tau {found['tau']:.2f}"


class Predictor:
    """Predictor of the milliseconds of a forward pass from the sizes, ready after `take`."""

    def __init__(self) -> None:
        self._fitted: Mapping[str, Any] = {}

    def fit(self, subnets: Sequence[Subnet], measure: Callable[[Subnet], float]) -> dict[str, Any]:
        """Measure `subnets`, fit the weights, and return the argument of `take`, as JSON holds it.

        The stated error is the error of each subnet when it is predicted from the others.
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
        """Use the result of an earlier `fit`, of this or another process."""
        self._fitted = fitted

    @property
    def fitted(self) -> Mapping[str, Any]:
        """Return the argument of `take`; empty before it."""
        return self._fitted

    def predict(self, subnet: Subnet) -> float:
        """Return the predicted milliseconds of a forward pass of `subnet`."""
        return float(features(subnet) @ np.array(self._fitted["weights"]))

    @property
    def quality(self) -> dict[str, Any]:
        """Return the number of subnets of the fit, and the `error` on each of them when it is left out."""
        return {"fitted_on": len(self._fitted["measured"]), "error_left_out": self._fitted["error"]}
