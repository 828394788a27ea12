"""Metrics of GLUE and similar tasks; higher is better for all of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """Metric of predictions `(n,)` against labels `(n,)`: indices of labels, or numbers in regression.

    Attributes:
        label: Name in tables and figures.
        compute: Function of labels and predictions.
        worst: Lower bound of the value of a model that has learnt nothing.
    """

    label: str
    compute: Callable[[Array, Array], float]
    worst: float = 0.0


def _accuracy(labels: Array, predicted: Array) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predicted))


def _f1(labels: Array, predicted: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, pos_label=1, zero_division=0.0))


def _f1_macro(labels: Array, predicted: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, average="macro", zero_division=0.0))


def _matthews(labels: Array, predicted: Array) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predicted))


def _pearson(labels: Array, predicted: Array) -> float:
    from scipy.stats import pearsonr

    return _of_correlation(labels, lambda: pearsonr(labels, predicted).statistic)


def _spearman(labels: Array, predicted: Array) -> float:
    from scipy.stats import spearmanr

    return _of_correlation(labels, lambda: spearmanr(labels, predicted).statistic)


def _of_correlation(labels: Array, compute: Callable[[], float]) -> float:
    """Return the correlation; 0 if it is not defined: for one row, or if one side is constant."""
    if len(labels) < 2:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = float(compute())
    return value if np.isfinite(value) else 0.0


METRICS = {
    "accuracy": Metric("accuracy", _accuracy),
    "f1": Metric("F1 of the second label", _f1),
    "f1_macro": Metric("macro F1", _f1_macro),
    "matthews": Metric("Matthews correlation", _matthews),
    "pearson": Metric("Pearson correlation", _pearson),
    "spearman": Metric("Spearman correlation", _spearman),
}
"""Metrics by name, from scikit-learn and SciPy."""
