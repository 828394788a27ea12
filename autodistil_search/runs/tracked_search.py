"""Metrics of a search for trackers: hypervolume, size of the frontier, and the values of each scored subnet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from autodistil_search.base.progress import Bar
from autodistil_search.base.tracking import Part, Track
from autodistil_search.nas import pareto
from autodistil_search.nas.archive import Archive
from autodistil_search.nas.evaluation import Evaluation
from autodistil_search.nas.objectives import Constraint, Objective
from autodistil_search.spaces.subnet import Subnet


class TrackedSearch:
    """Frontier of one space of a search, as it grows.

    Args:
        space: Name of the space.
        objectives: Objectives of the search.
        constraints: Bounds; subnets beyond them do not count.
        box: Ideal and reference value of each objective, between which the hypervolume is measured.
        archive: Archive of the search.
    """

    def __init__(
        self,
        space: str,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint],
        box: Mapping[str, Sequence[float]],
        archive: Archive,
    ) -> None:
        self._space, self._objectives, self._constraints, self._archive = space, objectives, constraints, archive
        ends = [[objective.minimised(end) for end in box[objective.name]] for objective in objectives]
        self._ideal, self._reference = np.array(ends).T
        self._front = np.empty((0, len(objectives)))
        self._seen: set[Subnet] = set()

    @contextmanager
    def shown_in(self, bar: Bar, part: Part, before: int) -> Iterator[Bar]:
        """Yield a bar that also logs the metrics after each evaluation; `before` were made in earlier sessions."""
        self._add_new()
        with part.opened(before) as track:
            yield _TrackedBar(bar, track, before, self)

    def metrics(self) -> dict[str, float]:
        """Return the metrics after a new evaluation: a share from 0 to 1, a count, and values of objectives."""
        values = {
            f"scored/{objective.name}": evaluation.measured[objective.name]
            for evaluation in self._add_new()
            for objective in self._objectives
        }
        share = pareto.share_of_box(self._front, self._ideal, self._reference) if len(self._front) else 0.0
        return {"hypervolume_share": share, "frontier": float(len(self._front)), **values}

    def _add_new(self) -> list[Evaluation]:
        """Add the evaluations that the archive has got since the last call to the frontier, and return them."""
        every = [evaluation for evaluation in self._archive.evaluations if evaluation.space == self._space]
        new = [evaluation for evaluation in every if evaluation.subnet not in self._seen]
        for evaluation in new:
            self._seen.add(evaluation.subnet)
            measured = evaluation.measured
            if all(bound.excess(measured[bound.objective.name]) <= 0 for bound in self._constraints):
                row = [objective.minimised(measured[objective.name]) for objective in self._objectives]
                rows = np.vstack([self._front, row])
                self._front = rows[pareto.is_on_frontier(rows)]
        return new


class _TrackedBar:
    """Bar that logs the metrics of a search after each evaluation; see `progress.Bar`."""

    def __init__(self, bar: Bar, track: Track, done: int, search: TrackedSearch) -> None:
        self._bar, self._track, self._done, self._search = bar, track, done, search

    def advance(self, note: str = "") -> None:
        self._done += 1
        self._track.log(self._done, self._search.metrics())
        self._bar.advance(note)

    def advance_by(self, units: int) -> None:
        self._bar.advance_by(units)

    def skip(self, units: int) -> None:
        self._bar.skip(units)
