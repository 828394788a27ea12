"""Figures of a `ParetoReport` by matplotlib. Every number comes from the report and `views`."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from autodistil_search.nas.objectives import Objective
from autodistil_search.report.data import ParetoReport
from autodistil_search.report.escape import PlainFigure, legend_name
from autodistil_search.report.explore import engine_marks, engines_after, facts
from autodistil_search.report.style import (
    BASELINE_MARKERS,
    DASHES,
    KNEE_MARKER,
    LIGHT,
    PART_DASH,
    SERIES_MARKERS,
    TEACHER_DASH,
    TEACHER_MARKER,
    baseline_marker,
    series_colour,
    series_marker,
)
from autodistil_search.report.views import (
    Line,
    Span,
    axes_pairs,
    axis_span,
    baseline_points,
    better,
    of_runs,
    parallel_axes,
    parallel_rows,
    run_numbers,
    series_numbers,
    series_of,
    shown,
    step_lines,
    teacher_lines,
    tick_label,
    ticks,
)

_LETTERS_PER_INCH = 11
"""Letters of an axis label for each inch of its panel's width in print."""

_CHARACTER, _HANDLE = 0.58, 5.0
"""Widths in a legend, in units of the font size: a character on average, and a marker with its margins."""

ONE_COLUMN, TWO_COLUMNS, SCREEN = 3.3, 6.9, 7.2
"""Widths in inches: one column and two columns of a paper, and figures for screens."""
COLUMNS = {"one-column": ONE_COLUMN, "two-columns": TWO_COLUMNS}
FORMATS = ("pdf", "png", "svg")


@contextmanager
def for_papers() -> Iterator[None]:
    """Set the style for print: text of 6.5 to 8 points, embedded TrueType fonts and reproducible files."""
    settings: Any = {
        "font.size": 7,
        "axes.labelsize": 7,
        "axes.titlesize": 8,
        "legend.fontsize": 6.5,
        "xtick.labelsize": 6.5,
        "ytick.labelsize": 6.5,
        "axes.linewidth": 0.6,
        "pdf.fonttype": 42,
        "svg.hashsalt": "autodistil_search",
    }
    with mpl.rc_context(settings):
        yield


def _colour(series: int | None) -> str:
    return LIGHT[series_colour(series)]


def frontier_figure(report: ParetoReport, width: float = SCREEN) -> Figure:
    """Return the figure of the frontier, with a panel for each pair of objectives.

    A panel shows the scored subnets, the frontier as a step line, the knee and the measured baselines.

    width: width of the figure in inches.
    """
    pairs = axes_pairs(report)
    across = 1 if width != TWO_COLUMNS else min(len(pairs), 3 if len(pairs) != 4 else 2)
    down = -(-len(pairs) // across)
    figure = PlainFigure(figsize=(width, 0.7 + _panel_height(width, across) * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for axes, (x, y) in zip(panels, pairs, strict=False):
        draw_frontier(axes, report, x, y, None if width == SCREEN else width / across)
    for axes in panels[len(pairs) :]:
        axes.set_visible(False)
    if width == SCREEN:
        figure.suptitle(f"Pareto frontier of {report.title}", fontsize=11)
    marks: dict[str, Any] = {}  # a baseline may be outside the axes in some panels only
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        marks |= dict(zip(labels, handles, strict=True))
    style: dict[str, Any] = {"fontsize": 8} if width == SCREEN else {}
    style |= {"loc": "outside lower center", "ncols": _legend_columns(width, list(marks)), "frameon": False}
    figure.legend(list(marks.values()), list(marks), **style)
    return figure


def _panel_height(width: float, across: int) -> float:
    return 4.2 if width == SCREEN else 0.78 * width / max(across, 1) if across > 1 else min(0.72 * width, 3.6)


def _legend_columns(width: float, names: Sequence[str]) -> int:
    """Return the greatest number of columns, at most 3, in which a legend of these names fits into `width` inches."""
    em = (8 if width == SCREEN else 6) / 72
    for columns in range(2 if width == ONE_COLUMN else 3, 1, -1):
        rows = -(-len(names) // columns)
        longest = [max(map(len, names[first : first + rows])) for first in range(0, len(names), rows)]
        if sum(_CHARACTER * length + _HANDLE for length in longest) * em <= width:
            return columns
    return 1


def draw_frontier(axes: Axes, report: ParetoReport, x: Objective, y: Objective, inches: float | None = None) -> None:
    """Draw one panel of `y` against `x`.

    inches: width of the panel in print, where labels are wrapped; None for a screen.
    """
    small = inches is not None
    scale = 0.45 if small else 1.0
    series = series_of(report)
    for number, scored in enumerate(series):
        axes.scatter(
            scored.rows[x.name],
            scored.rows[y.name],
            s=12 * scale,
            marker=series_marker(number).matplotlib,
            color=_colour(number),
            alpha=0.45,
            lw=0,
            label=f"scored, {scored.name}",
        )
    for number, line in enumerate(step_lines(report, x, y)):
        _draw_step(axes, line, (DASHES[number % len(DASHES)] if line.whole else PART_DASH).matplotlib)
    numbers = np.array(series_numbers(report, report.frontier))
    for number in sorted(set(numbers)):
        rows = report.frontier[numbers == number]
        edge = _colour(number if len(series) > 1 else None)
        axes.scatter(
            rows[x.name],
            rows[y.name],
            s=22 * scale,
            marker=series_marker(number).matplotlib,
            facecolor="white",
            edgecolor=edge,
            zorder=3,
        )
    knee = report.frontier[report.frontier["knee"]]
    axes.scatter(
        knee[x.name],
        knee[y.name],
        marker=KNEE_MARKER.matplotlib,
        s=190 * scale,
        color=LIGHT["ink"],
        zorder=4,
        label="knee",
    )
    for teacher in teacher_lines(report, x, y):
        draw_line = axes.axhline if teacher.axis == "y" else axes.axvline
        style = {
            "color": LIGHT["quiet"],
            "linestyle": TEACHER_DASH.matplotlib,
            "lw": 1,
            "label": legend_name(teacher.name),
        }
        draw_line(teacher.place, **style)
    for point in baseline_points(report, x, y):
        marker = baseline_marker(point.number).matplotlib
        style = {"s": 48 * scale, "color": LIGHT["baseline"], "zorder": 5, "clip_on": False}
        axes.scatter(*point.place, marker=marker, label=legend_name(point.name), **style)
    for axis, set_scale, objective in ((axes.xaxis, axes.set_xscale, x), (axes.yaxis, axes.set_yscale, y)):
        words = f"{objective.label} ({objective.unit})"
        if inches is None:
            axis.label.set_fontsize(9)
        else:
            words = textwrap.fill(words, int(_LETTERS_PER_INCH * inches))
        axis.set_label_text(f"{words}\n{better(objective)}")
        _style_axis(axis, set_scale, axis_span(report, objective), 4 if small else 6)
    axes.grid(alpha=0.25)


def _style_axis(axis: Axis, set_scale: Callable[[str], Any], span: Span, most: int) -> None:
    """Set range and scale of an axis, and ticks such as 300M."""
    if span.wide:
        set_scale("log")
    axis.set_view_interval(span.low, span.high, ignore=True)
    axis.set_major_locator(FixedLocator(ticks(span.low, span.high, span.wide, most)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick_label(value)))


def _draw_step(axes: Axes, line: Line, dashes: Any) -> None:
    axes.plot(
        line.x,
        line.y,
        drawstyle=f"steps-{line.where}",
        color=_colour(line.series),
        linestyle=dashes,
        lw=1.3 if line.whole else 0.9,
        zorder=2,
        label=line.name,
    )


def parallel_figure(report: ParetoReport, width: float = SCREEN) -> Figure:
    """Return the figure of the frontier in parallel coordinates.

    It has a line for each subnet, and an axis for each size that varies and each objective; see `parallel_rows`.
    """
    figure = PlainFigure(figsize=(width, min(0.75 * width, 3.4)), layout="constrained")
    axes = figure.subplots()
    coordinates = parallel_axes(report)
    places = range(len(coordinates))
    numbers, knees = series_numbers(report, report.frontier), report.frontier["knee"].to_list()
    for number, knee, values in zip(numbers, knees, parallel_rows(report), strict=True):
        colour, width_of_line = (LIGHT["ink"], 2.2) if knee else (_colour(number), 0.8)
        axes.plot(places, values, color=colour, lw=width_of_line, alpha=1.0 if knee else 0.55, zorder=2 + knee)
    letters = int(_LETTERS_PER_INCH * width / len(coordinates)) + 2
    for place, axis in zip(places, coordinates, strict=True):
        axes.plot([place, place], [0, 1], color=LIGHT["ink"], lw=0.8)
        axes.annotate(axis.top, (place, 1.02), ha="center", va="bottom", annotation_clip=False)
        words = f"{axis.bottom}\n{textwrap.fill(axis.label, letters)}"
        axes.annotate(words, (place, -0.03), ha="center", va="top", annotation_clip=False)
    axes.set_ylim(-0.3, 1.1)
    axes.set_xlim(-0.3, len(coordinates) - 0.7)
    axes.set_axis_off()
    axes.set_title("thick line: knee; objectives have their best value at the bottom", fontsize="medium")
    return figure


def progress_figure(report: ParetoReport, width: float = SCREEN) -> Figure:
    """Return the figure of the hypervolume against evaluations, which shows the convergence of the search."""
    figure = PlainFigure(figsize=(width, 2.8 if width == SCREEN else 0.55 * min(width, 4.5)), layout="constrained")
    axes = figure.subplots()
    for dash, (run, table) in enumerate(of_runs(report.progress)):
        axes.step(
            table["evaluations"],
            100 * table["share"],
            where="post",
            color=_colour(run_numbers(report).get(run)),
            linestyle=DASHES[dash % len(DASHES)].matplotlib,
            lw=1.3,
            label=legend_name(run),
        )
    axes.set_xlabel("evaluations")
    several = "run" in report.progress
    final = "the exact frontier's" if report.exact else "all runs together" if several else "the final value"
    axes.set_ylabel(f"hypervolume\n(% of {final})")
    axes.set_ylim(0, 103)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    if several:
        axes.legend(frameon=False)
    return figure


def explored_figure(report: ParetoReport, cost: Objective, row: pd.Series[Any], limit: float | None) -> Figure:
    """Return the picture of `Run.explore`: the frontier, the budget, and a subnet with its parameters by part.

    limit: budget of `cost`; None if the subnet was selected without a budget.
    """
    y, details = report.objectives[0], facts(report, row)
    figure = PlainFigure(figsize=(9.6, 4.6), layout="constrained")
    axes, bars = figure.subplots(1, 2, width_ratios=[2.2, 1])
    draw_frontier(axes, report, cost, y)
    if limit is not None:
        axes.axvline(limit, color=LIGHT["ink"], lw=1, linestyle=(0, (4, 3)), label="budget")
    ring = {"facecolor": "none", "edgecolor": LIGHT["ink"], "lw": 2, "s": 230, "zorder": 6}
    axes.scatter([row[cost.name]], [row[y.name]], label="the subnet shown", **ring)
    names, counts = list(details.parts), list(details.parts.values())
    drawn = bars.barh(names, counts, color=[_colour(i) for i in range(len(names))])
    bars.bar_label(drawn, [f"{shown(count)} ({count / sum(counts):.0%})" for count in counts], padding=3, fontsize=8)
    bars.invert_yaxis()
    bars.set_xlim(0, 1.6 * max(counts))
    bars.set_xticks([])
    bars.spines[["top", "right", "bottom"]].set_visible(False)
    bars.set_title(f"Its {shown(sum(counts))} parameters by part", fontsize=9)
    figure.suptitle(
        "\n".join([f"{details.subnet}; {details.place}", *([details.get] if details.get else [])]), fontsize=10
    )
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def engines_figure(report: ParetoReport) -> Figure:
    """Return the figure of the exact hypervolume that each engine misses after each number of evaluations.

    Engines are ordered by their results at the greatest number of evaluations, best first.
    """
    marks = engine_marks(report)
    names = engines_after(report, marks[-1])["name"].tolist()
    figure = PlainFigure(figsize=(SCREEN, 1.6 + 0.28 * len(names)), layout="constrained")
    axes = figure.subplots()
    for number, mark in enumerate(marks):
        result = engines_after(report, mark).set_index("name").loc[names]
        axes.errorbar(
            100 * (1 - result["share"]),
            names,
            xerr=100 * result["spread"],
            fmt=series_marker(number).matplotlib,
            color=_colour(number),
            ms=6,
            lw=0.8,
            label=f"after {mark} evaluations",
        )
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel(
        "missing share of the exact frontier's hypervolume (%), mean and standard deviation\nlower is better",
        fontsize=9,
    )
    axes.grid(axis="x", alpha=0.25)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def published_figure(published: pd.DataFrame) -> Figure:
    """Return the figure of average GLUE scores against FLOPs of published models.

    Their metric differs from that of the search, so they have a figure of their own.
    """
    figure = PlainFigure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    styles = {
        "teacher": (TEACHER_MARKER.matplotlib, LIGHT["ink"]),
        "hand-designed": (BASELINE_MARKERS[0].matplotlib, LIGHT["baseline"]),
        "AutoDistil": (SERIES_MARKERS[0].matplotlib, LIGHT["c0"]),
    }
    for family, (marker, colour) in styles.items():
        rows = published[published["family"] == family]
        axes.scatter(rows["flops_g"], rows["average"], marker=marker, color=colour, s=42, label=family, zorder=3)
    for _, rows in published.groupby(["flops_g", "family"]):
        _annotate_column(axes, rows)
    axes.set_xscale("log")
    axes.set_xticks([0.3, 1, 3, 10], ["0.3G", "1G", "3G", "10G"])
    axes.set_xlim(0.2, 22)
    axes.set_xlabel("FLOPs (multiply-adds, 128 tokens, batch 1)")
    axes.set_ylabel("average of seven GLUE dev scores (published)\nhigher is better")
    axes.set_title("Published students of BERT-base (source: AutoDistil, arXiv 2201.12507)", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="lower right")
    return figure


def _annotate_column(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw names beside points of equal FLOPs, at least one line apart."""
    gap, last = 0.4, np.inf
    for _, row in rows.sort_values("average", ascending=False).iterrows():
        height = min(float(row["average"]), last - gap)
        last = height
        axes.annotate(row["model"], (float(row["flops_g"]) * 1.06, height), fontsize=7, va="center")


def save_figure(figure: Figure, path: Path) -> None:
    """Write `figure` as a PNG file for screens and documents."""
    figure.savefig(path, dpi=150, format="png")


def paper_figures(report: ParetoReport, width: float) -> dict[str, Figure]:
    """Return the figures of a report by name. width: width of each in inches."""
    return {
        "frontier": frontier_figure(report, width),
        "progress": progress_figure(report, width),
        "parallel": parallel_figure(report, width),
    }


def save_for_papers(report: ParetoReport, folder: Path) -> list[Path]:
    """Write `paper_figures` in each width of `COLUMNS` and each of `FORMATS`, reproducibly, and return the paths."""
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
    paths = []
    with for_papers():
        for columns, width in COLUMNS.items():
            for name, figure in paper_figures(report, width).items():
                for kind in FORMATS:
                    paths.append(folder / f"{name}-{columns}.{kind}")
                    figure.savefig(paths[-1], dpi=300, format=kind, metadata=undated[kind])
    return paths
