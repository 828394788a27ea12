"""The contents of the figures of a `ParetoReport`, shared by the page and matplotlib."""

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
"""Ratio of the greatest to the least cost above which an axis is logarithmic."""
_ROOM = 0.5
"""Share of an axis below which the scored subnets get a second panel without baselines."""
_FAR = 0.2
"""Share of an axis. A single baseline that leaves the scored subnets less than this share is drawn at the edge."""
DRAWN = 4000
"""Greatest number of scored subnets in interactive figures, evenly selected. The frontier is always complete."""
_LARGE = 1e4
"""Least absolute value that is written as 12.3K."""


@dataclass(frozen=True)
class Series:
    """Scored subnets of a space of a run, which share a colour and a marker.

    name: name in the legend.
    """

    name: str
    rows: pd.DataFrame


@dataclass(frozen=True)
class Line:
    """Step line of a frontier. Between two subnets there is no other, so the best value is constant.

    Attributes:
        name: Name in the legend.
        x: Coordinates of the corners, ascending.
        y: Values of the corners.
        where: Side of the value between two corners: the left corner ("post") if less of `x` is better, else the right
            corner ("pre").
        series: Number of the series that gives the colour; None for the frontier of all series.
        whole: True for the frontier of a run, False for that of one of its spaces.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    where: Literal["post", "pre"]
    series: int | None
    whole: bool


@dataclass(frozen=True)
class BaselinePoint:
    """Measured baseline in a panel.

    number: number of its marker, the same in each panel.
    """

    name: str
    x: float
    y: float
    number: int


def axes_pairs(report: ParetoReport) -> list[tuple[Objective, Objective]]:
    """Return the (x, y) of each panel: every pair of objectives, with costs on the x axis.

    A single objective is paired with a cost.
    """
    if len(report.objectives) == 1:
        (only,) = report.objectives
        return [(next(column for column in report.columns if column != only and not column.is_proxy), only)]
    return [(b, a) if a.is_proxy and not b.is_proxy else (a, b) for a, b in combinations(report.objectives, 2)]


def of_runs(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return the rows of each run by name, in order; all rows under an empty name if there is only one run."""
    if "run" not in table:
        return [("", table)]
    return [(str(name), rows) for name, rows in table.groupby("run", sort=False)]


def series_of(report: ParetoReport) -> list[Series]:
    """Return a series for each space of each run."""
    return [
        Series(f"{run}: {space}" if run else str(space), rows)
        for run, table in of_runs(report.evaluations)
        for space, rows in table.groupby("space", sort=False)
    ]


def drawn_rows(report: ParetoReport) -> list[tuple[int, pd.DataFrame]]:
    """Return the scored subnets that are drawn, by the number of their series."""
    share = min(1.0, DRAWN / len(report.evaluations))
    drawn = []
    for number, series in enumerate(series_of(report)):
        count = max(1, int(share * len(series.rows)))
        drawn.append((number, series.rows.iloc[np.linspace(0, len(series.rows) - 1, count).round().astype(int)]))
    return drawn


def series_numbers(report: ParetoReport, table: pd.DataFrame) -> list[int]:
    """Return the number in `series_of` for each row of `table`, such as the frontier."""
    keys = ["run", "space"] if "run" in report.evaluations else ["space"]
    numbers = {key: i for i, key in enumerate(report.evaluations[keys].drop_duplicates().itertuples(False, None))}
    return [numbers[key] for key in table[keys].itertuples(False, None)]


def run_numbers(report: ParetoReport) -> dict[str, int]:
    """Return the number of the series that gives each run its colour, which is its first.

    The result is empty for a report of one run, which has the colour of text.
    """
    if "run" not in report.evaluations:
        return {}
    numbers = series_numbers(report, report.evaluations)
    return {run: numbers[rows.index[0]] for run, rows in of_runs(report.evaluations)}


def step_line(frontier: pd.DataFrame, x: Objective, y: Objective, name: str, series: int | None, whole: bool) -> Line:
    """Return the step line through the rows of `frontier` that no other row dominates in `x` and `y`."""
    on_pair = pareto.is_on_frontier(minimised(frontier, [x, y]))
    corners = frontier[on_pair].sort_values([x.name, y.name])
    where: Literal["post", "pre"] = "post" if x.direction == "minimize" else "pre"
    return Line(name, corners[x.name].tolist(), corners[y.name].tolist(), where, series, whole)


def step_lines(report: ParetoReport, x: Objective, y: Objective) -> list[Line]:
    """Return the step lines of a panel: the frontier of each run, and that of each space if one run has several."""
    series = series_of(report)
    if "run" in report.evaluations:
        firsts = run_numbers(report)
        return [
            step_line(rows, x, y, f"frontier, {run}", firsts[run], whole=True) for run, rows in of_runs(report.frontier)
        ]
    lines = [step_line(report.frontier, x, y, "frontier", None, whole=True)]
    for number, space_series in enumerate(series if len(series) > 1 else []):
        kept = space_series.rows[keeps(space_series.rows, report.constraints)]
        if len(kept):
            space_frontier = frontier_table(kept, report.objectives)
            lines.append(step_line(space_frontier, x, y, f"frontier of {space_series.name} alone", number, whole=False))
    return lines


def baseline_points(report: ParetoReport, x: Objective, y: Objective) -> list[BaselinePoint]:
    """Return the baselines that have both values."""
    points = []
    for number, (_, row) in enumerate(report.baselines.iterrows()):
        if x.name in row and y.name in row and np.isfinite([row[x.name], row[y.name]]).all():
            run = f"{row['run']}: " if "run" in row else ""
            copy = " (the teacher's copy)" if row["how"] == COPY else ""
            points.append(BaselinePoint(f"{run}{row['name']}{copy}", float(row[x.name]), float(row[y.name]), number))
    return points


def is_crowded(report: ParetoReport, x: Objective, y: Objective) -> bool:
    """Return True if distant baselines leave little room for the scored subnets."""
    baselines = baseline_points(report, x, y)
    pairs = ((x, [point.x for point in baselines]), (y, [point.y for point in baselines]))
    return any(_room(report, objective, values) < _ROOM for objective, values in pairs)


def is_far_off(report: ParetoReport, objective: Objective, value: float) -> bool:
    """Return True if a baseline at `value` would leave hardly any room for the scored subnets.

    Scored subnets that do not differ need no room.
    """
    return 0 < _room(report, objective, [value]) < _FAR


def _room(report: ParetoReport, objective: Objective, values: Sequence[float]) -> float:
    """Return the share of an axis that the scored subnets take if the axis also shows `values`."""
    scored = report.evaluations[objective.name].tolist()
    wide = is_wide(objective, [*scored, *values])
    scored_span, full_span = (
        float(np.ptp(np.log(axis_values) if wide else axis_values)) for axis_values in (scored, [*scored, *values])
    )
    return scored_span / full_span if full_span else 1.0


def is_wide(objective: Objective, values: Sequence[float]) -> bool:
    """Return True if an axis should be logarithmic, because its values are costs that range widely."""
    return not objective.is_proxy and max(values) > _WIDE * min(values) > 0


def ticks(low: float, high: float, wide: bool, most: int = 6) -> list[float]:
    """Return round values between `low` and `high`, about `most` of them at most."""
    if wide:
        for subs in ((1, 2, 5), (1, 3), (1,)):
            values = [tick for tick in LogLocator(subs=subs).tick_values(low, high) if low <= tick <= high]
            if 2 <= len(values) <= most:
                return values
    return [tick for tick in MaxNLocator(most - 1).tick_values(low, high) if low <= tick <= high]


def tick_label(value: float) -> str:
    """Return the text of a number on an axis; large ones are written as 300M."""
    return EngFormatter(sep="")(value) if abs(value) >= _LARGE else f"{value:.6g}"


def axis_label(objective: Objective) -> str:
    """Return the label of an axis: quantity, unit and direction."""
    return f"{objective.label} ({objective.unit}), {better(objective)}"


def better(objective: Objective) -> str:
    """Return the direction of an objective in words."""
    return "lower is better" if objective.direction == "minimize" else "higher is better"


def shown(value: object) -> str:
    """Return the text of a value in tables: numbers with four digits, large ones as 1.23G."""
    if isinstance(value, bool):
        return "knee" if value else ""
    if isinstance(value, int | float) and abs(value) >= _LARGE:
        return EngFormatter(places=2, sep="")(value)
    return f"{value:#.4g}" if isinstance(value, float) else str(value)


def shown_size(name: str, value: object) -> str:
    """Return the text of a value as by `shown`; MLP ratios, which are sizes, keep their exact value."""
    return f"{value:g}" if name == "mlp_ratio" and isinstance(value, float) else shown(value)


def subnet_words(row: Mapping[str, Any]) -> str:
    """Return the space and the sizes of a subnet in words."""
    run = f"{row['run']}, " if "run" in row else ""
    return (
        f"{run}{row['space']}: {row['layers']} layers x {row['hidden_size']}, MLP ratio "
        f"{shown_size('mlp_ratio', row['mlp_ratio'])}, {row['heads']} heads x {row['head_dim']}"
    )


def value_words(row: Mapping[str, Any], columns: Sequence[Objective]) -> list[str]:
    """Return the measured values of a subnet, a line for each column."""
    return [f"{column.label}: {shown(row[column.name])}" for column in columns if column.name in row]


def budget_costs(report: ParetoReport) -> list[Objective]:
    """Return the costs that a budget can bound: those that are above 0 on the whole frontier, as budgets are."""
    costs = [column for column in report.columns if not column.is_proxy and column.name in report.frontier]
    return [cost for cost in costs if report.frontier[cost.name].min() > 0]


def frontier_numbers(report: ParetoReport) -> list[int]:
    """Return the number of each row of the frontier within its run, counted from 1 as by `export --pick`."""
    return [number for _, rows in of_runs(report.frontier) for number in range(1, len(rows) + 1)]


def export_commands(report: ParetoReport) -> list[str | None]:
    """Return the command that exports each row of the frontier, or None if no run has weights."""
    if not report.runs or not any(column.is_proxy for column in report.columns):
        return [None] * len(report.frontier)
    folders = {part.name: part.folder for part in report.runs}
    alone = report.runs[0].folder
    of_row = [folders[name] for name in report.frontier["run"]] if "run" in report.frontier else None
    return [
        f"autodistil-search export {shlex.quote(of_row[i] if of_row else alone)} --pick {number} --out student"
        for i, number in enumerate(frontier_numbers(report))
    ]


def parallel_rows(report: ParetoReport) -> pareto.Values:
    """Return the `(n, m)` objectives of the frontier scaled to its range: 0 is the best value and 1 the worst.

    An objective that does not vary is 0.
    """
    values = minimised(report.frontier, report.objectives)
    span = np.ptp(values, axis=0)
    return np.asarray((values - values.min(axis=0)) / np.where(span > 0, span, np.inf), dtype=float)


def parallel_ends(report: ParetoReport) -> list[tuple[float, float]]:
    """Return the best and the worst value of each objective on the frontier."""
    ends = []
    for objective in report.objectives:
        values = [float(value) for value in report.frontier[objective.name]]
        ends.append((min(values, key=objective.minimised), max(values, key=objective.minimised)))
    return ends


def subnet_columns(table: pd.DataFrame) -> list[str]:
    """Return the columns of `table` that identify a subnet."""
    return [name for name in ("run", *SUBNET_COLUMNS) if name in table]
