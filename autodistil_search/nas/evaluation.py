"""Evaluation of a subnet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autodistil_search.spaces.subnet import Subnet


@dataclass(frozen=True)
class Evaluation:
    """One subnet of one space and its measured values, by objective name."""

    space: str
    subnet: Subnet
    measured: Mapping[str, float]
