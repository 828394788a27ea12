"""Evaluation of a subnet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autodistil_search.spaces.subnet import Subnet

DISTURBANCE = "latency_disturbance"
"""Column of a measured latency: share of the processors' time that other processes took during the measurement."""

DISTURBED = 0.1
"""Share from which a latency counts as disturbed."""


@dataclass(frozen=True)
class Evaluation:
    """One subnet of one space and its measured values, by objective name."""

    space: str
    subnet: Subnet
    measured: Mapping[str, float]
