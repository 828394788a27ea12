"""What every search engine is: something that asks for genomes and is told their values."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from autodistil_search.nas.pareto import Values
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Genome, Subnet

ENUMERABLE = 100_000
"""Spaces of at most so many subnets are listed; in larger ones new subnets are found by drawing."""

_TRIES = 10_000

Cost = Callable[[Subnet], float]
"""A minimised objective that follows from a subnet's sizes: exact, and free to ask for."""


class Engine(Protocol):
    """Proposes subnets of one space. Deterministic: the same seed and answers lead to the same questions."""

    def ask(self) -> list[Genome]:
        """Genomes to score next, each admissible and never asked before; empty when there are no more."""
        ...

    def tell(self, genomes: Sequence[Genome], values: Values, excess: Values) -> None:
        """What was measured of the genomes last asked for.

        Args:
            genomes: The `n` genomes, in the order they were asked for.
            values: Their `(n, m)` minimised objective values.
            excess: `(n, k)`: by how much each breaks each measured constraint; kept where it is at most 0.
        """
        ...


@dataclass(frozen=True)
class Goal:
    """What an engine is to find.

    Attributes:
        costs: For each objective how it follows from the sizes, minimised; None for one that must be measured.
        constraints: How many constraints must be measured; those on sizes are the candidates' matter.
    """

    costs: Sequence[Cost | None]
    constraints: int = 0


class Candidates:
    """The genomes of a space that an engine may still ask for: they keep the bounds and were not taken before.

    Args:
        space: The space.
        admits: Whether a subnet keeps the bounds; costs nothing to ask.
        seed: Fixes the order in which `draw` finds genomes.
    """

    def __init__(self, space: SearchSpace, admits: Callable[[Subnet], bool], seed: int) -> None:
        self.space = space
        self._admits = admits
        self._taken: set[Genome] = set()  # canonical genomes only
        self._rng = random.Random(f"candidates-{seed}")
        self._listed: list[Genome] | None = None
        if space.size <= ENUMERABLE:
            self._listed = [genome for genome in space.genomes() if admits(space.decode(genome))]
            self._rng.shuffle(self._listed)
        self.total = None if self._listed is None else len(self._listed)
        """How many admissible genomes there are; None if the space is too large to list."""

    def is_new(self, genome: Genome) -> bool:
        """Whether `genome` is admissible and was not taken."""
        return self.space.canonical(genome) not in self._taken and self._admits(self.space.decode(genome))

    def take(self, genome: Genome) -> None:
        """Mark `genome`, and all that describe the same subnet, as asked for."""
        self._taken.add(self.space.canonical(genome))

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left; never known of a space too large to list."""
        if self._listed is None:
            return False
        while self._listed and self._listed[-1] in self._taken:
            self._listed.pop()
        return not self._listed

    @property
    def left(self) -> list[Genome] | None:
        """All that may still be asked for; None if the space is too large to list."""
        if self._listed is None:
            return None
        return [genome for genome in self._listed if genome not in self._taken]

    def corners(self) -> list[Genome]:
        """Take the smallest and the largest subnet of the space, as far as they are new."""
        ends = dict.fromkeys(self.space.encode(end) for end in self.space.ends)
        new = [genome for genome in ends if self.is_new(genome)]
        for genome in new:
            self.take(genome)
        return new

    def draw(self) -> Genome | None:
        """Take a random new genome; None if there is none left (or, in a large space, none was found)."""
        if self.exhausted:
            return None
        if self._listed is not None:
            genome: Genome | None = self._listed[-1]
        else:
            tries = (self.space.encode(self.space.sample(self._rng)) for _ in range(_TRIES))
            genome = next(filter(self.is_new, tries), None)
        if genome is not None:
            self.take(genome)
        return genome

    def fill(self, genomes: list[Genome], count: int) -> list[Genome]:
        """`genomes` and as many random new ones as make them `count`, or as there are."""
        while len(genomes) < count and (drawn := self.draw()) is not None:
            genomes.append(drawn)
        return genomes
