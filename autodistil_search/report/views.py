"""What each figure shows of a `ParetoReport`, decided once for the page's figures and matplotlib's."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator

from autodistil_search.nas import pareto
from autodistil_search.nas.baselines import COPY
from autodistil_search.nas.objectives import Objective
from autodistil_search.report.data import SUBNET_COLUMNS, ParetoReport, frontier_table, keeps, minimised

_WIDE = 3.0
"""A cost that ranges over more than this ratio gets a logarithmic axis."""
_ROOM = 0.5
"""A panel is drawn again without baselines where what was scored has less than this share of an axis."""
_FAR = 0.2
"""A single baseline that would leave what was scored less than this share of an axis is drawn on its edge."""
DRAWN = 4000
"""So many scored subnets are drawn at most where one can point at them, evenly taken of all; the frontier always is."""
_LARGE = 1e4
"""From here on numbers are written as 12.3K."""


@dataclass(frozen=True)
class Series:
    """What has one colour and one marker: the scored subnets of a space of a run. name: what the legend says."""

    name: str
    rows: pd.DataFrame


@dataclass(frozen=True)
class Line:
    """A step line: what a frontier offers at each budget, as between two subnets there is none.

    Attributes:
        name: What the legend says.
        x: Of its corners, ascending.
        y: Of its corners.
        where: The value between two corners: that of the left ("post") where less of `x` is better, else of the right.
        series: The series whose colour it has; None for the frontier of all.
        whole: Whether it is a whole run's, not a space's.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    where: Literal["post", "pre"]
    series: int | None
    whole: bool


@dataclass(frozen=True)
class BaselinePoint:
    """A measured baseline in a panel. number: of its marker, the same in each panel."""

    name: str
    x: float
    y: float
    number: int


def axes_pairs(report: ParetoReport) -> list[tuple[Objective, Objective]]:
    """The (x, y) of each panel: every pair of objectives, costs on the x axis; one objective alone goes with a cost."""
    if len(report.objectives) == 1:
        (only,) = report.objectives
        return [(next(each for each in report.columns if each != only and not each.is_proxy), only)]
    return [(b, a) if a.is_proxy and not b.is_proxy else (a, b) for a, b in combinations(report.objectives, 2)]


def of_runs(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of each run, in order; of one that has no name, all."""
    if "run" not in table:
        return [("", table)]
    return [(str(name), rows) for name, rows in table.groupby("run", sort=False)]


def series_of(report: ParetoReport) -> list[Series]:
    """The spaces of each run."""
    return [
        Series(f"{run}: {space}" if run else str(space), rows)
        for run, table in of_runs(report.evaluations)
        for space, rows in table.groupby("space", sort=False)
    ]


def drawn_rows(report: ParetoReport) -> list[tuple[int, pd.DataFrame]]:
    """The scored subnets that are drawn, by the number of their series."""
    share = min(1.0, DRAWN / len(report.evaluations))
    drawn = []
    for number, each in enumerate(series_of(report)):
        count = max(1, int(share * len(each.rows)))
        drawn.append((number, each.rows.iloc[np.linspace(0, len(each.rows) - 1, count).round().astype(int)]))
    return drawn


def series_numbers(report: ParetoReport, table: pd.DataFrame) -> list[int]:
    """The number in `series_of` of each row of `table`, such as the frontier."""
    keys = ["run", "space"] if "run" in report.evaluations else ["space"]
    known = {key: i for i, key in enumerate(report.evaluations[keys].drop_duplicates().itertuples(False, None))}
    return [known[key] for key in table[keys].itertuples(False, None)]


def run_numbers(report: ParetoReport) -> dict[str, int]:
    """The series whose colour each run has: its first; empty where there is but one run, which has that of text."""
    if "run" not in report.evaluations:
        return {}
    numbers = series_numbers(report, report.evaluations)
    return {run: numbers[rows.index[0]] for run, rows in of_runs(report.evaluations)}


def step_line(frontier: pd.DataFrame, x: Objective, y: Objective, name: str, series: int | None, whole: bool) -> Line:
    """The step line through those of `frontier` that no other dominates in `x` and `y`."""
    on_pair = pareto.is_on_frontier(minimised(frontier, [x, y]))
    corners = frontier[on_pair].sort_values([x.name, y.name])
    where: Literal["post", "pre"] = "post" if x.direction == "minimize" else "pre"
    return Line(name, corners[x.name].tolist(), corners[y.name].tolist(), where, series, whole)


def step_lines(report: ParetoReport, x: Objective, y: Objective) -> list[Line]:
    """The frontier; of several spaces also each one's own; of several runs each run's."""
    series = series_of(report)
    if "run" in report.evaluations:
        firsts = run_numbers(report)
        return [
            step_line(rows, x, y, f"frontier, {run}", firsts[run], whole=True) for run, rows in of_runs(report.frontier)
        ]
    lines = [step_line(report.frontier, x, y, "frontier", None, whole=True)]
    for number, each in enumerate(series if len(series) > 1 else []):
        kept = each.rows[keeps(each.rows, report.constraints)]
        if len(kept):
            own = frontier_table(kept, report.objectives)
            lines.append(step_line(own, x, y, f"frontier of {each.name} alone", number, whole=False))
    return lines


def baseline_points(report: ParetoReport, x: Objective, y: Objective) -> list[BaselinePoint]:
    """The baselines that have both numbers."""
    points = []
    for number, (_, row) in enumerate(report.baselines.iterrows()):
        if x.name in row and y.name in row and np.isfinite([row[x.name], row[y.name]]).all():
            run = f"{row['run']}: " if "run" in row else ""
            copy = " (the teacher's copy)" if row["how"] == COPY else ""
            points.append(BaselinePoint(f"{run}{row['name']}{copy}", float(row[x.name]), float(row[y.name]), number))
    return points


def is_crowded(report: ParetoReport, x: Objective, y: Objective) -> bool:
    """Whether the baselines lie so far off that little room is left for what was scored."""
    baselines = baseline_points(report, x, y)
    pairs = ((x, [each.x for each in baselines]), (y, [each.y for each in baselines]))
    return any(_room(report, objective, values) < _ROOM for objective, values in pairs)


def is_far_off(report: ParetoReport, objective: Objective, value: float) -> bool:
    """Whether a baseline's `value` would by itself leave hardly any room for what was scored, if that takes any."""
    return 0 < _room(report, objective, [value]) < _FAR


def _room(report: ParetoReport, objective: Objective, values: Sequence[float]) -> float:
    """Share of an axis that what was scored has, if the axis shows `values`, too."""
    scored = report.evaluations[objective.name].tolist()
    wide = is_wide(objective, [*scored, *values])
    own, whole = (float(np.ptp(np.log(each) if wide else each)) for each in (scored, [*scored, *values]))
    return own / whole if whole else 1.0


def is_wide(objective: Objective, values: Sequence[float]) -> bool:
    """Whether equal ratios should be equal lengths: costs that range widely."""
    return not objective.is_proxy and max(values) > _WIDE * min(values) > 0


def ticks(low: float, high: float, wide: bool, most: int = 6) -> list[float]:
    """Round values between both, at most about so many."""
    if wide:
        for subs in ((1, 2, 5), (1, 3), (1,)):
            found = [each for each in LogLocator(subs=subs).tick_values(low, high) if low <= each <= high]
            if 2 <= len(found) <= most:
                return found
    return [each for each in MaxNLocator(most - 1).tick_values(low, high) if low <= each <= high]


def tick_label(value: float) -> str:
    """A number on an axis: large ones as 300M."""
    return EngFormatter(sep="")(value) if abs(value) >= _LARGE else f"{value:.6g}"


def axis_label(objective: Objective) -> str:
    """What an axis shows, its unit, and which way is better."""
    return f"{objective.label} ({objective.unit}), {better(objective)}"


def better(objective: Objective) -> str:
    """Which way is better, in words."""
    return "lower is better" if objective.direction == "minimize" else "higher is better"


def shown(value: object) -> str:
    """A number or word as tables for people show it: four digits, thousands of millions as G."""
    if isinstance(value, bool):
        return "knee" if value else ""
    if isinstance(value, int | float) and abs(value) >= _LARGE:
        return EngFormatter(places=2, sep="")(value)
    return f"{value:#.4g}" if isinstance(value, float) else str(value)


def shown_size(name: str, value: object) -> str:
    """`shown`, but for ratios, which are sizes and not measurements."""
    return f"{value:g}" if name == "mlp_ratio" and isinstance(value, float) else shown(value)


def subnet_words(row: Mapping[str, Any]) -> str:
    """A subnet's space and sizes."""
    run = f"{row['run']}, " if "run" in row else ""
    return (
        f"{run}{row['space']}: {row['layers']} layers x {row['hidden_size']}, MLP ratio "
        f"{shown_size('mlp_ratio', row['mlp_ratio'])}, {row['heads']} heads x {row['head_dim']}"
    )


def value_words(row: Mapping[str, Any], columns: Sequence[Objective]) -> list[str]:
    """What was measured of a subnet, a line for each column."""
    return [f"{each.label}: {shown(row[each.name])}" for each in columns if each.name in row]


def budget_costs(report: ParetoReport) -> list[Objective]:
    """Return what a budget, which is above 0, can bound: every cost of the frontier that is above 0 everywhere."""
    costs = [column for column in report.columns if not column.is_proxy and column.name in report.frontier]
    return [cost for cost in costs if report.frontier[cost.name].min() > 0]


def frontier_numbers(report: ParetoReport) -> list[int]:
    """The number of each row of the frontier in its run, from 1, cheapest first, as `export --pick` counts them."""
    return [number for _, rows in of_runs(report.frontier) for number in range(1, len(rows) + 1)]


def export_commands(report: ParetoReport) -> list[str | None]:
    """The command that exports each row of the frontier; None where no run has weights to export."""
    if not report.runs or not any(each.is_proxy for each in report.columns):
        return [None] * len(report.frontier)
    folders = {each.name: each.folder for each in report.runs}
    alone = report.runs[0].folder
    of_row = [folders[name] for name in report.frontier["run"]] if "run" in report.frontier else None
    return [
        f"autodistil-search export {shlex.quote(of_row[i] if of_row else alone)} --pick {number} --to student"
        for i, number in enumerate(frontier_numbers(report))
    ]


def parallel_rows(report: ParetoReport) -> pareto.Values:
    """The frontier's `(n, m)` objectives scaled to its range, 0 the best and 1 the worst; 0 of what does not vary."""
    values = minimised(report.frontier, report.objectives)
    span = np.ptp(values, axis=0)
    return np.asarray((values - values.min(axis=0)) / np.where(span > 0, span, np.inf), dtype=float)


def parallel_ends(report: ParetoReport) -> list[tuple[float, float]]:
    """The best and the worst value of each objective on the frontier."""
    ends = []
    for each in report.objectives:
        values = [float(value) for value in report.frontier[each.name]]
        ends.append((min(values, key=each.minimised), max(values, key=each.minimised)))
    return ends


def subnet_columns(table: pd.DataFrame) -> list[str]:
    """The columns that say which subnet a row is."""
    return [name for name in ("run", *SUBNET_COLUMNS) if name in table]
