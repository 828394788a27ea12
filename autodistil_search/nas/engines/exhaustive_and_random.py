"""Engines without a model of the scores: all subnets in order, or subnets at random."""

from __future__ import annotations

from collections.abc import Sequence

from autodistil_search.nas.engines.base import Candidates, Goal
from autodistil_search.nas.pareto import Values
from autodistil_search.spaces.subnet import Genome

_AT_ONCE = 16


class Exhaustive:
    """Engine that asks for all admissible genomes in order, which gives the exact frontier."""

    def __init__(self, candidates: Candidates, *, seed: int, population: int, goal: Goal) -> None:
        self._candidates = candidates
        self._order = candidates.space.genomes()

    def ask(self) -> list[Genome]:
        """Return the next genomes; see `Engine`."""
        batch: list[Genome] = []
        for genome in self._order:
            if self._candidates.is_new(genome):
                self._candidates.take(genome)
                batch.append(genome)
            if len(batch) == _AT_ONCE:
                break
        return batch

    def tell(self, genomes: Sequence[Genome], values: Values, excess: Values) -> None:
        """Ignore the values; see `Engine`."""


class Random:
    """Engine that asks for random genomes, the baseline for all other engines."""

    def __init__(self, candidates: Candidates, *, seed: int, population: int, goal: Goal) -> None:
        self._candidates = candidates

    def ask(self) -> list[Genome]:
        """Return the next genomes; see `Engine`."""
        return self._candidates.fill([], _AT_ONCE)

    def tell(self, genomes: Sequence[Genome], values: Values, excess: Values) -> None:
        """Ignore the values; see `Engine`."""
