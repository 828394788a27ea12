"""Several runs in one report, if their numbers may share axes."""

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
    """One report of several runs; each must have its `RunPart`.

    The hypervolume is measured again, from a reference point as bad as the worst of theirs, so that the runs' are
    comparable; that of the report is what they found together.

    Raises:
        InputError: if they cannot share axes; it says what differs.
    """
    if len(reports) == 1:
        return reports[0]
    reports = _named_apart(reports)
    first, names = reports[0], [report.runs[0].name for report in reports]
    for other in reports[1:]:
        _check_comparable(first, other)
    columns = [each for each in first.columns if all(each in report.columns for report in reports)]
    left_out = list(dict.fromkeys(each.name for report in reports for each in report.columns if each not in columns))

    def joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
        parts = [table.assign(run=name) for table, name in zip(tables, names, strict=True) if len(table)]
        whole = pd.concat(parts, ignore_index=True) if parts else tables[0].assign(run="")
        order = ["run", *(name for name in whole.columns if name != "run" and name not in left_out)]
        return whole[order]

    box = {each.name: _joint_ends(each, reports) for each in first.objectives}
    ideal, reference = np.array([[each.minimised(end) for end in box[each.name]] for each in first.objectives]).T
    frontier = joined([report.frontier for report in reports])
    volume = pareto.hypervolume(minimised(frontier, first.objectives), reference)
    progress = [progress_table(each.evaluations, first.objectives, each.constraints, reference) for each in reports]
    conditions = _once([report.conditions for report in reports])
    findings = [Finding(LEFT_OUT, {"columns": left_out})] if left_out else []
    findings += [
        finding if i is None else replace(finding, run=names[i])
        for i, finding in _once([report.findings for report in reports])
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
        progress=joined([each.assign(share=each["hypervolume"] / (volume or 1.0)) for each in progress]),
        engines=joined([report.engines for report in reports]),
        exact=all(report.exact for report in reports),
        conditions=[(what if i is None else f"{what}, {names[i]}", how) for i, (what, how) in conditions],
        findings=findings,
        runs=[report.runs[0] for report in reports],
    )


def _named_apart(reports: Sequence[ParetoReport]) -> list[ParetoReport]:
    """Runs by the names of their folders; by their paths if two have one name.

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
    """Raises InputError, saying what differs, unless the objectives mean the same in both."""
    runs = first.runs[0], other.runs[0]
    before = f"runs {runs[0].name!r} and {runs[1].name!r} cannot share axes: "
    names = [sorted(each.name for each in report.objectives) for report in (first, other)]
    if names[0] != names[1]:
        raise InputError(f"{before}their objectives are {', '.join(names[0])} and {', '.join(names[1])}")
    for mine in first.objectives:
        theirs = next(each for each in other.objectives if each.name == mine.name)
        for what in ("unit", "direction"):
            if getattr(mine, what) != getattr(theirs, what):
                raise InputError(
                    f"{before}the {what} of {mine.name} is {getattr(mine, what)!r} and {getattr(theirs, what)!r}"
                )
        kind = "proxy" if mine.is_proxy else "" if mine.name in _EXACT else "machine"
        known = [run.inputs.get(kind, {}) for run in runs]
        for what in dict.fromkeys((*known[0], *known[1])):
            one, two = (each.get(what, Input("not known")) for each in known)
            if one.identity != two.identity:
                again = "another, of the same name" if one.words == two.words else repr(two.words)
                raise InputError(f"{before}the {what} behind {mine.name} is {one.words!r} and {again}")


def _joint_ends(objective: Objective, reports: Sequence[ParetoReport]) -> list[float]:
    """The best ideal and the worst reference value."""
    ideals, references = zip(*(report.box[objective.name] for report in reports), strict=True)
    return [min(ideals, key=objective.minimised), max(references, key=objective.minimised)]


def _once(lists: Sequence[Sequence[Item]]) -> list[tuple[int | None, Item]]:
    """What all lists have, once and with None; the rest with the number of its list."""
    found: list[tuple[int | None, Item]] = [(None, each) for each in lists[0] if all(each in other for other in lists)]
    shared = {each for _, each in found}
    return found + [(i, each) for i, own in enumerate(lists) for each in own if each not in shared]


def _merged(baselines: pd.DataFrame) -> pd.DataFrame:
    """Baselines that several runs share, once."""
    others = [name for name in baselines.columns if name != "run"]
    if baselines.empty:
        return baselines
    runs = baselines.groupby(others, sort=False, dropna=False)["run"].agg(", ".join).reset_index()
    return runs[["run", *others]]
