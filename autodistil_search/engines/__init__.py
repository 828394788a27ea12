"""Search engines by name, and the loop that connects one with the archive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from autodistil_search.archive import Archive, Evaluation
from autodistil_search.engines.base import Candidates, Engine
from autodistil_search.engines.exhaustive import Exhaustive
from autodistil_search.engines.nsga2 import PymooNSGA2
from autodistil_search.objectives import Objective
from autodistil_search.progress import Bar
from autodistil_search.space import Genome, Subnet


class MakeEngine(Protocol):
    """How an engine is made; those that need no seed or population ignore them."""

    def __call__(self, candidates: Candidates, *, seed: int, population: int, objectives: int) -> Engine:
        """objectives: how many there are."""
        ...


ENGINES: dict[str, MakeEngine] = {"nsga2": PymooNSGA2, "exhaustive": Exhaustive}

__all__ = ["ENGINES", "Candidates", "Engine", "MakeEngine", "run_engine"]


def run_engine(
    engine: Engine,
    candidates: Candidates,
    evaluate: Callable[[Subnet], Evaluation],
    archive: Archive,
    objectives: Sequence[Objective],
    budget: int,
    bar: Bar,
) -> int:
    """Let `engine` ask until `budget` subnets are scored or nothing new is left; returns how many were.

    What the archive knows already is answered from it. As engines are deterministic, a search that was stopped asks
    the same questions again, is answered at once, and goes on as if it had never stopped.
    """
    space = candidates.space
    scored = 0

    def answer(genome: Genome) -> list[float]:
        subnet = space.decode(genome)
        evaluation = archive.find(space.name, subnet)
        if evaluation is None:
            evaluation = evaluate(subnet)
            archive.record(evaluation)
            bar.advance()
        return [objective.minimised(evaluation.measured[objective.name]) for objective in objectives]

    while scored < budget and (genomes := engine.ask()):
        within = genomes[: budget - scored]
        values = np.array([answer(genome) for genome in within])
        scored += len(within)
        if len(within) == len(genomes):
            engine.tell(genomes, values)
    return scored
