"""The contents of the figures of a `ParetoReport`, shared by the page and matplotlib."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator

from autodistil_search.nas import pareto
from autodistil_search.nas.baselines import COPY
from autodistil_search.nas.objectives import Objective
from autodistil_search.report.data import ParetoReport, frontier_table, keeps, minimised

_WIDE = 3.0
"""Ratio of the greatest to the least cost above which an axis is logarithmic."""
_FAR = 0.2
"""Share of an axis. A single baseline that leaves the scored subnets less than this share is drawn at the edge."""
_EDGE = 0.015
"""Share of an axis between its end and the values that are drawn at its edge."""
_PADDING = 0.04
"""Share of an axis that is left free beyond the outermost points."""
SIZE_LABELS = {
    "layers": "layers",
    "hidden_size": "hidden size",
    "mlp_ratio": "MLP ratio",
    "heads": "heads",
    "head_dim": "head width",
}
"""Names of the sizes of a subnet in figures and sentences."""
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

    Attributes:
        name: Name in the legend; it has the values that lie outside the axes.
        x: Value on the x axis.
        y: Value on the y axis.
        place: Coordinates at which the baseline is drawn. A value outside the axes is drawn at the edge.
        number: Number of its marker, the same in each panel.
    """

    name: str
    x: float
    y: float
    place: tuple[float, float]
    number: int


@dataclass(frozen=True)
class TeacherLine:
    """Reference line at the score of the teacher's copy.

    Attributes:
        name: Name in the legend, with the score and the FLOPs.
        axis: Axis of the score: a line of "y" is horizontal, and one of "x" vertical.
        place: Coordinate of the line; a score outside the axes is drawn at the edge.
    """

    name: str
    axis: Literal["x", "y"]
    place: float


@dataclass(frozen=True)
class Span:
    """Range of an axis, the same in all figures.

    wide: True if the axis is logarithmic.
    """

    low: float
    high: float
    wide: bool

    def clip(self, value: float) -> float:
        """Return `value`, or a place near the edge for a value outside the axis."""
        low, high = np.log([self.low, self.high]) if self.wide else (self.low, self.high)
        room = _EDGE * (high - low)
        ends = (low + room, high - room)
        low, high = (float(end) for end in (np.exp(ends) if self.wide else ends))
        return min(max(value, low), high)


@dataclass(frozen=True)
class ParallelAxis:
    """Axis of the parallel coordinates.

    Attributes:
        label: Name of the size or of the objective.
        bottom: Value at the bottom, as text: the smallest size, or the best value of an objective.
        top: Value at the top, as text.
    """

    label: str
    bottom: str
    top: str


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
    """Return the baselines that have both values, except for the teacher's copy, which is a line."""
    spans = axis_span(report, x), axis_span(report, y)
    points = []
    for number, row in enumerate(_named_baselines(report)):
        if row["how"] == COPY or not _has_values(row, x, y):
            continue
        values = float(row[x.name]), float(row[y.name])
        outside = [
            shown(value)
            for value, objective in zip(values, (x, y), strict=True)
            if is_far_off(report, objective, value)
        ]
        name = f"{row['name']} ({', '.join(outside)}, outside the axes)" if outside else row["name"]
        place = spans[0].clip(values[0]), spans[1].clip(values[1])
        points.append(BaselinePoint(name, *values, place, number))
    return points


def teacher_lines(report: ParetoReport, x: Objective, y: Objective) -> list[TeacherLine]:
    """Return a line for the score of each copy of the teacher; empty if no axis is a score."""
    score = y if y.is_proxy else x if x.is_proxy else None
    if score is None:
        return []
    span, lines = axis_span(report, score), []
    for row in _named_baselines(report):
        if row["how"] == COPY and _has_values(row, score):
            value = float(row[score.name])
            cost = f" at {shown(row['flops'])} FLOPs" if "flops" in row else ""
            outside = ", outside the axes" if span.clip(value) != value else ""
            name = f"teacher (copy, {row['name']}): {shown(value)}{cost}{outside}"
            lines.append(TeacherLine(name, "y" if score is y else "x", span.clip(value)))
    return lines


def _named_baselines(report: ParetoReport) -> list[dict[str, Any]]:
    """Return the rows of the baselines; names include the run in a report of several runs."""
    rows = [{str(key): value for key, value in row.items()} for row in report.baselines.to_dict("records")]
    return [row | {"name": f"{row['run']}: {row['name']}" if "run" in row else str(row["name"])} for row in rows]


def _has_values(row: Mapping[str, Any], *objectives: Objective) -> bool:
    return all(objective.name in row and np.isfinite(row[objective.name]) for objective in objectives)


def axis_span(report: ParetoReport, objective: Objective) -> Span:
    """Return the range of an axis: the scored subnets and all baselines that are not far off, with some room.

    The costs of the teacher's copy need no room, because it is a line at its score.
    """
    baselines = [
        float(row[objective.name])
        for row in _named_baselines(report)
        if _has_values(row, objective) and (objective.is_proxy or row["how"] != COPY)
    ]
    near = [value for value in baselines if not is_far_off(report, objective, value)]
    values = [*_finite(report.evaluations[objective.name]), *_finite(report.frontier[objective.name]), *near]
    wide = is_wide(objective, values)
    low, high = (float(end(np.log(values) if wide else values)) for end in (np.min, np.max))
    room = _PADDING * (high - low) or _PADDING * abs(high) or 1.0
    low, high = low - room, high + room
    return Span(*((float(np.exp(low)), float(np.exp(high))) if wide else (low, high)), wide)


def _finite(column: pd.Series[Any]) -> list[float]:
    values = column.to_numpy(float)
    return [float(value) for value in values[np.isfinite(values)].tolist()]


def is_far_off(report: ParetoReport, objective: Objective, value: float) -> bool:
    """Return True if a baseline at `value` would leave hardly any room for the scored subnets.

    Scored subnets that do not differ need no room.
    """
    scored = _finite(report.evaluations[objective.name])
    wide = is_wide(objective, [*scored, value])
    scored_span, full_span = (
        float(np.ptp(np.log(axis_values) if wide else axis_values)) for axis_values in (scored, [*scored, value])
    )
    return 0 < scored_span < _FAR * full_span


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


def sizes_of(table: pd.DataFrame, name: str) -> list[float]:
    """Return the values of a size in `table`; a size that differs between layers is its mean over the layers."""
    if pd.api.types.is_numeric_dtype(table[name]):
        return [float(value) for value in table[name].tolist()]
    return [fmean(map(float, str(value).split("-"))) for value in table[name].tolist()]


def varying_sizes(table: pd.DataFrame) -> list[str]:
    """Return the names of the sizes with more than one value in `table`."""
    return [name for name in SIZE_LABELS if len(set(sizes_of(table, name))) > 1]


def parallel_rows(report: ParetoReport) -> pareto.Values:
    """Return the `(n, m)` sizes and objectives of the frontier, scaled to 0 to 1; sizes that do not vary are left out.

    Of a size, 0 is the smallest and 1 the largest scored value. Of an objective, 0 is the best and 1 the worst value
    of the frontier; an objective that does not vary is 0.
    """
    objectives = minimised(report.frontier, report.objectives)
    span = np.ptp(objectives, axis=0)
    columns = [*((objectives - objectives.min(axis=0)) / np.where(span > 0, span, np.inf)).T]
    for name in reversed(varying_sizes(report.evaluations)):
        scored = sizes_of(report.evaluations, name)
        columns.insert(0, (np.array(sizes_of(report.frontier, name)) - min(scored)) / np.ptp(scored))
    return np.column_stack(columns)


def parallel_axes(report: ParetoReport) -> list[ParallelAxis]:
    """Return the axes of `parallel_rows`, in the same order."""
    axes = []
    for name in varying_sizes(report.evaluations):
        scored = sizes_of(report.evaluations, name)
        axes.append(ParallelAxis(SIZE_LABELS[name], f"{min(scored):g}", f"{max(scored):g}"))
    for objective in report.objectives:
        values = [float(value) for value in report.frontier[objective.name]]
        best, worst = min(values, key=objective.minimised), max(values, key=objective.minimised)
        axes.append(ParallelAxis(objective.label, shown(best), shown(worst)))
    return axes


def row_labels(report: ParetoReport) -> list[str]:
    """Return the words for each row of the frontier that figures show for a point."""
    labels = []
    for row, number in zip(report.frontier.to_dict("records"), frontier_numbers(report), strict=True):
        named = {str(key): value for key, value in row.items()}
        head = f"Frontier {number}{', knee' if row['knee'] else ''}: {subnet_words(named)}"
        labels.append("\n".join([head, *value_words(named, report.columns)]))
    return labels
