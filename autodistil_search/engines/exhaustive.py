"""Every subnet of the space, in the order of genomes: the exact frontier, where one can afford it."""

from __future__ import annotations

from collections.abc import Sequence

from autodistil_search.engines.base import Candidates
from autodistil_search.pareto import Values
from autodistil_search.space import Genome

_AT_ONCE = 16


class Exhaustive:
    """Asks for all admissible genomes, `_AT_ONCE` at a time."""

    def __init__(self, candidates: Candidates, *, seed: int, population: int, objectives: int) -> None:
        self._candidates = candidates
        self._order = candidates.space.genomes()

    def ask(self) -> list[Genome]:
        """The next genomes; see `Engine`."""
        batch: list[Genome] = []
        for genome in self._order:
            if self._candidates.is_new(genome):
                self._candidates.take(genome)
                batch.append(genome)
            if len(batch) == _AT_ONCE:
                break
        return batch

    def tell(self, genomes: Sequence[Genome], values: Values) -> None:
        """Nothing to learn."""
