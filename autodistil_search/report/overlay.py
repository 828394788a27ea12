"""Reports of several runs whose numbers may share axes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pandas as pd

from autodistil_search.base.errors import InputError
from autodistil_search.nas import pareto
from autodistil_search.nas.objectives import COSTS, Objective
from autodistil_search.report.data import ParetoReport, minimised, progress_table
from autodistil_search.report.findings import LEFT_OUT, Finding
from autodistil_search.report.run_parts import Input

Item = TypeVar("Item", bound=Hashable)

_EXACT = {cost.name for cost in COSTS}
"""Costs that do not depend on the machine."""


def overlay(reports: Sequence[ParetoReport]) -> ParetoReport:
    """Return one report of several runs, each of which must have its `RunPart`.

    All hypervolumes are measured again from the worst of the reference points, so that runs can be compared. The
    hypervolume of the report is that of all runs together.

    Raises:
        InputError: if the runs cannot share axes; the message states the difference.
    """
    if len(reports) == 1:
        return reports[0]
    reports = _with_distinct_names(reports)
    first, names = reports[0], [report.runs[0].name for report in reports]
    for other in reports[1:]:
        _check_comparable(first, other)
    columns = [column for column in first.columns if all(column in report.columns for report in reports)]
    left_out = list(
        dict.fromkeys(column.name for report in reports for column in report.columns if column not in columns)
    )

    def joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
        parts = [table.assign(run=name) for table, name in zip(tables, names, strict=True) if len(table)]
        whole = pd.concat(parts, ignore_index=True) if parts else tables[0].assign(run="")
        order = ["run", *(name for name in whole.columns if name != "run" and name not in left_out)]
        return whole[order]

    box = {objective.name: _joint_ends(objective, reports) for objective in first.objectives}
    ideal, reference = np.array(
        [[objective.minimised(end) for end in box[objective.name]] for objective in first.objectives]
    ).T
    frontier = joined([report.frontier for report in reports])
    volume = pareto.hypervolume(minimised(frontier, first.objectives), reference)
    progress = [
        progress_table(report.evaluations, first.objectives, report.constraints, reference) for report in reports
    ]
    conditions = _shared_and_own([report.conditions for report in reports])
    findings = [Finding(LEFT_OUT, {"columns": left_out})] if left_out else []
    findings += [
        finding if i is None else replace(finding, run=names[i])
        for i, finding in _shared_and_own([report.findings for report in reports])
    ]
    return replace(
        first,
        title=", ".join(names),
        columns=columns,
        constraints=[],
        evaluations=joined([report.evaluations for report in reports]),
        frontier=frontier,
        baselines=_merged(joined([report.baselines for report in reports])),
        box=box,
        hypervolume=volume,
        hypervolume_share=pareto.share_of_box(minimised(frontier, first.objectives), ideal, reference),
        progress=joined([table.assign(share=table["hypervolume"] / (volume or 1.0)) for table in progress]),
        engines=joined([report.engines for report in reports]),
        exact=all(report.exact for report in reports),
        conditions=[(what if i is None else f"{what}, {names[i]}", how) for i, (what, how) in conditions],
        findings=findings,
        runs=[report.runs[0] for report in reports],
        headline=None,
    )


def _with_distinct_names(reports: Sequence[ParetoReport]) -> list[ParetoReport]:
    """Return the reports with distinct names of their runs: folder names, or paths if two folders share a name.

    Raises:
        InputError: if a run is given twice.
    """
    folders = [report.runs[0].folder for report in reports]
    if twice := [folder for folder in folders if folders.count(folder) > 1]:
        raise InputError(f"run {twice[0]!r} is given twice; allowed: each run once")
    names = [report.runs[0].name for report in reports]
    if len(set(names)) == len(names):
        return list(reports)
    return [replace(report, runs=[replace(report.runs[0], name=report.runs[0].folder)]) for report in reports]


def _check_comparable(first: ParetoReport, other: ParetoReport) -> None:
    """Raise InputError with the difference unless the objectives mean the same in both reports."""
    runs = first.runs[0], other.runs[0]
    before = f"runs {runs[0].name!r} and {runs[1].name!r} cannot share axes: "
    names = [sorted(objective.name for objective in report.objectives) for report in (first, other)]
    if names[0] != names[1]:
        raise InputError(f"{before}their objectives are {', '.join(names[0])} and {', '.join(names[1])}")
    for objective in first.objectives:
        counterpart = next(candidate for candidate in other.objectives if candidate.name == objective.name)
        for what in ("unit", "direction"):
            if getattr(objective, what) != getattr(counterpart, what):
                raise InputError(
                    f"{before}the {what} of {objective.name} is {getattr(objective, what)!r} and "
                    f"{getattr(counterpart, what)!r}"
                )
        kind = "proxy" if objective.is_proxy else "" if objective.name in _EXACT else "machine"
        inputs_of_runs = [run.inputs.get(kind, {}) for run in runs]
        for what in dict.fromkeys((*inputs_of_runs[0], *inputs_of_runs[1])):
            one, two = (inputs.get(what, Input("not known")) for inputs in inputs_of_runs)
            if one.identity != two.identity:
                again = "a different one of the same name" if one.words == two.words else repr(two.words)
                raise InputError(f"{before}the {what} behind {objective.name} is {one.words!r} and {again}")


def _joint_ends(objective: Objective, reports: Sequence[ParetoReport]) -> list[float]:
    """Return the best ideal value and the worst reference value of an objective."""
    ideals, references = zip(*(report.box[objective.name] for report in reports), strict=True)
    return [min(ideals, key=objective.minimised), max(references, key=objective.minimised)]


def _shared_and_own(lists: Sequence[Sequence[Item]]) -> list[tuple[int | None, Item]]:
    """Return the items of all lists without repeating shared ones.

    An item that all lists contain comes once, paired with None. Other items are paired with the number of their list.
    """
    items: list[tuple[int | None, Item]] = [(None, item) for item in lists[0] if all(item in other for other in lists)]
    shared = {item for _, item in items}
    return items + [(i, item) for i, own_items in enumerate(lists) for item in own_items if item not in shared]


def _merged(baselines: pd.DataFrame) -> pd.DataFrame:
    """Return the baselines with one row for those that several runs share."""
    others = [name for name in baselines.columns if name != "run"]
    if baselines.empty:
        return baselines
    runs = baselines.groupby(others, sort=False, dropna=False)["run"].agg(", ".join).reset_index()
    return runs[["run", *others]]
