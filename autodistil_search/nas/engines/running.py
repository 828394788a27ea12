"""The loop that connects an engine with the archive."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from autodistil_search.base.progress import Bar
from autodistil_search.nas.archive import Archive
from autodistil_search.nas.engines.base import Candidates, Engine
from autodistil_search.nas.evaluation import Evaluation
from autodistil_search.nas.objectives import Constraint, Objective
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet


def run_engine(
    engine: Engine,
    candidates: Candidates,
    evaluate: Callable[[SearchSpace, Subnet], Evaluation],
    archive: Archive,
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
    budget: int,
    bar: Bar,
) -> int:
    """Let `engine` ask until `budget` subnets are scored or nothing new is left; returns how many were.

    What the archive knows already is answered from it. As engines are deterministic, a search that was stopped asks
    the same questions again, is answered at once, and goes on as if it had never stopped.
    """
    space = candidates.space
    scored = 0
    while scored < budget and (genomes := engine.ask()):
        within = genomes[: budget - scored]
        subnets = [space.decode(genome) for genome in within]
        answers = [each.measured for each in archive.answer(space, subnets, evaluate, bar.advance)]
        scored += len(within)
        if len(within) == len(genomes):
            values = [[each.minimised(measured[each.name]) for each in objectives] for measured in answers]
            excess = [[each.excess(measured[each.objective.name]) for each in constraints] for measured in answers]
            engine.tell(genomes, np.array(values), np.array(excess).reshape(len(genomes), len(constraints)))
    return scored
