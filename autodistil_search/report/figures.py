"""Figures of a `ParetoReport` by matplotlib. They decide nothing: every number comes from the report."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from autodistil_search import pareto
from autodistil_search.objectives import Objective
from autodistil_search.report.data import ParetoReport, minimised

SPACE_COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Okabe and Ito's palette, told apart by colour-blind readers; markers differ as well."""
BASELINE_COLOUR = "#D55E00"
KNEE_COLOUR = "#000000"
_BASELINE_MARKERS = "sD^vPX"
_WIDE = 3.0
"""A cost that ranges over more than this ratio gets a logarithmic axis."""


def axes_pairs(report: ParetoReport) -> list[tuple[Objective, Objective]]:
    """The (x, y) of each panel: every pair of objectives, costs on the x axis; one objective alone goes with a cost."""
    if len(report.objectives) == 1:
        (only,) = report.objectives
        return [(next(each for each in report.columns if each != only and not each.is_proxy), only)]
    return [(b, a) if a.is_proxy and not b.is_proxy else (a, b) for a, b in combinations(report.objectives, 2)]


def frontier_figure(report: ParetoReport) -> Figure:
    """The scored subnets, the frontier as a step line, the knee and the measured baselines, a panel for each pair."""
    pairs = axes_pairs(report)
    figure = Figure(figsize=(7.2, 0.6 + 4.2 * len(pairs)), layout="constrained")
    for axes, (x, y) in zip(figure.subplots(len(pairs), squeeze=False)[:, 0], pairs, strict=True):
        draw_frontier(axes, report, x, y)
    figure.suptitle(f"Pareto frontier of {report.title}", fontsize=11)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def draw_frontier(axes: Axes, report: ParetoReport, x: Objective, y: Objective) -> None:
    """One panel: `y` against `x`."""
    for number, (space, rows) in enumerate(report.evaluations.groupby("space", sort=False)):
        colour = SPACE_COLOURS[number % len(SPACE_COLOURS)]
        axes.scatter(rows[x.name], rows[y.name], s=12, color=colour, alpha=0.45, lw=0, label=f"scored, {space}")
    _draw_step(axes, report.frontier, x, y)
    knee = report.frontier[report.frontier["knee"]]
    axes.scatter(knee[x.name], knee[y.name], marker="*", s=190, color=KNEE_COLOUR, zorder=4, label="knee")
    for marker, (_, row) in zip(_BASELINE_MARKERS, report.baselines.iterrows(), strict=False):
        if row.reindex([x.name, y.name]).notna().all():
            label = row["name"] + (" (the teacher's copy)" if row["how"].startswith("copy") else "")
            axes.scatter(row[x.name], row[y.name], marker=marker, s=48, color=BASELINE_COLOUR, zorder=5, label=label)
    for axis, set_scale, objective in ((axes.xaxis, axes.set_xscale, x), (axes.yaxis, axes.set_yscale, y)):
        axis.set_label_text(_label(objective), fontsize=9)
        if not objective.is_proxy:
            _style_cost_axis(axis, set_scale)
    axes.grid(alpha=0.25)


def _style_cost_axis(axis: Axis, set_scale: Callable[[str], None]) -> None:
    """Equal ratios are equal lengths, where costs range widely; ticks as 300M."""
    low, high = axis.get_data_interval()
    if high > _WIDE * low > 0:
        set_scale("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(EngFormatter(sep=""))


def _draw_step(axes: Axes, frontier: pd.DataFrame, x: Objective, y: Objective) -> None:
    """What the frontier offers at each budget: a step, as between two subnets there is none."""
    on_pair = pareto.is_on_frontier(minimised(frontier, [x, y]))
    line = frontier[on_pair].sort_values([x.name, y.name])
    axes.plot(line[x.name], line[y.name], drawstyle="steps-post", color="#333333", lw=1.3, zorder=2, label="frontier")
    axes.scatter(frontier[x.name], frontier[y.name], s=22, facecolor="white", edgecolor="#333333", zorder=3)


def _label(objective: Objective) -> str:
    better = "lower is better" if objective.direction == "minimize" else "higher is better"
    return f"{objective.label} ({objective.unit})\n{better}"


def progress_figure(report: ParetoReport) -> Figure:
    """The hypervolume against evaluations: whether the search was still finding something when it ended."""
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    axes = figure.subplots()
    axes.step(report.progress["evaluations"], 100 * report.progress["share"], where="post", color="#333333", lw=1.3)
    axes.set_xlabel("evaluations")
    final = "the exact frontier's" if report.exact else "the last"
    axes.set_ylabel(f"hypervolume\n(% of {final})")
    axes.set_ylim(0, 103)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    return figure


def published_figure(published: pd.DataFrame) -> Figure:
    """Average GLUE score against FLOPs of published models: another metric than the search's, so its own figure."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    styles = {
        "teacher": ("o", "#000000"),
        "hand-designed": ("s", BASELINE_COLOUR),
        "AutoDistil": ("D", SPACE_COLOURS[0]),
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
    """Names beside their points; those of one column are kept a line apart."""
    gap, last = 0.4, np.inf
    for _, row in rows.sort_values("average", ascending=False).iterrows():
        height = min(float(row["average"]), last - gap)
        last = height
        axes.annotate(row["model"], (float(row["flops_g"]) * 1.06, height), fontsize=7, va="center")


def save_figure(figure: Figure, path: Path) -> None:
    """Write `figure` as PNG, for screens and documents."""
    figure.savefig(path, dpi=150, format="png")
