"""Baselines of the frontier: published results with their sources, and models measured here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from autodistil_search.spaces.subnet import Subnet

TRUNCATED = "truncated, not trained"
COPY = "copy of the teacher, not trained"
DISTILLED = "distilled alone"
DRAWN = "drawn at random, distilled alone"
TINYBERT, MINILM = "by TinyBERT's own objective", "by MiniLM's own objective"
AS_IT_IS = "scored as it is"


@dataclass(frozen=True)
class Baseline:
    """A model measured on the same axes as the subnets of a space.

    Attributes:
        name: Name in tables and figures.
        subnet: Sizes of the model.
        how: Origin of its weights, in words.
        measured: Measured values, by objective name.
        weights: Folder of its model and tokenizer; None if the model is not kept.
    """

    name: str
    subnet: Subnet
    how: str
    measured: Mapping[str, float]
    weights: Path | None = None


def published() -> pd.DataFrame:
    """Return published GLUE dev results, each row with its source. FLOPs are multiply-adds at 128 tokens."""
    return pd.read_csv(Path(__file__).with_name("baselines.csv"))
