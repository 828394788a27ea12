"""Loop that connects an engine with the archive."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

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
    evaluate: Callable[[SearchSpace, Sequence[Subnet]], Iterable[Evaluation]],
    archive: Archive,
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
    budget: int,
    bar: Bar,
) -> int:
    """Run `engine` until `budget` subnets are scored or none is left, and return the number of scored subnets.

    The archive supplies the evaluations that it holds. Engines are deterministic, so a resumed search asks for the
    same subnets again, receives their values at once, and continues as if it had not stopped.

    Args:
        engine: Engine that selects the subnets.
        candidates: Genomes that the engine may ask for.
        evaluate: Function that scores subnets, and yields their evaluations in any order.
        archive: Archive of all evaluations.
        objectives: Objectives of the search, in order.
        constraints: Constraints that must be measured.
        budget: Greatest number of subnets to score.
        bar: Progress bar, advanced after each new evaluation.
    """
    space = candidates.space
    scored = 0
    while scored < budget and (genomes := engine.ask()):
        within = genomes[: budget - scored]
        subnets = [space.decode(genome) for genome in within]
        answers = [evaluation.measured for evaluation in archive.answer(space, subnets, evaluate, bar.advance)]
        scored += len(within)
        if len(within) == len(genomes):
            values = [[column.minimised(measured[column.name]) for column in objectives] for measured in answers]
            excess = [[bound.excess(measured[bound.objective.name]) for bound in constraints] for measured in answers]
            engine.tell(genomes, np.array(values), np.array(excess).reshape(len(genomes), len(constraints)))
    return scored
