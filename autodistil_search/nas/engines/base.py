"""Interface of search engines, which ask for genomes and receive their values."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from autodistil_search.nas.pareto import Values
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Genome, Subnet

ENUMERABLE = 100_000
"""Greatest size of a space whose subnets are listed; in larger spaces, new subnets are drawn at random."""

_TRIES = 10_000

Cost = Callable[[Subnet], float]
"""Function that computes a minimised objective from a subnet's sizes, exactly and at no cost."""


class Engine(Protocol):
    """A search algorithm that proposes subnets of one space.

    Engines are deterministic: with the same seed and the same values they ask for the same subnets.
    """

    def ask(self) -> list[Genome]:
        """Return the genomes to score next, all admissible and new; an empty list if there are no more."""
        ...

    def tell(self, genomes: Sequence[Genome], values: Values, excess: Values) -> None:
        """Receive the values of the genomes from the last `ask`.

        Args:
            genomes: The `n` genomes, in the order of `ask`.
            values: Minimised objective values, `(n, m)`.
            excess: Excess of each genome over each measured constraint, `(n, k)`; 0 or less if the constraint is kept.
        """
        ...


@dataclass(frozen=True)
class Goal:
    """Objectives and constraints of a search, as an engine needs them.

    Attributes:
        costs: Function of the sizes for each objective, minimised; None for an objective that must be measured.
        constraints: Number of constraints that must be measured; `Candidates` enforces those on sizes.
    """

    costs: Sequence[Cost | None]
    constraints: int = 0


class Candidates:
    """The genomes of a space that an engine may still ask for: those that keep the bounds and are not taken.

    Args:
        space: Space of the genomes.
        admits: Function that returns True if a subnet keeps the bounds on sizes.
        seed: Seed of the order in which `draw` returns genomes.
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
        """Number of admissible genomes; None if the space is too large to list."""

    def is_new(self, genome: Genome) -> bool:
        """Return True if `genome` is admissible and not taken."""
        return self.space.canonical(genome) not in self._taken and self._admits(self.space.decode(genome))

    def take(self, genome: Genome) -> None:
        """Mark `genome`, and all other genomes of the same subnet, as taken."""
        self._taken.add(self.space.canonical(genome))

    @property
    def exhausted(self) -> bool:
        """Return True if no genome is left; always False for a space too large to list."""
        if self._listed is None:
            return False
        while self._listed and self._listed[-1] in self._taken:
            self._listed.pop()
        return not self._listed

    @property
    def left(self) -> list[Genome] | None:
        """Return all genomes that are not taken; None if the space is too large to list."""
        if self._listed is None:
            return None
        return [genome for genome in self._listed if genome not in self._taken]

    def corners(self) -> list[Genome]:
        """Take the smallest and the largest subnet of the space, if they are new, and return their genomes."""
        ends = dict.fromkeys(self.space.encode(end) for end in self.space.ends)
        new = [genome for genome in ends if self.is_new(genome)]
        for genome in new:
            self.take(genome)
        return new

    def draw(self) -> Genome | None:
        """Take and return a random new genome; None if none is left or, in a large space, none was found."""
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
        """Append random new genomes to `genomes` until there are `count` or no more, and return them all."""
        while len(genomes) < count and (drawn := self.draw()) is not None:
            genomes.append(drawn)
        return genomes
