"""The figure of a proxy validation: how each measure ranks subnets by each target."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from autodistil_search.report.escape import PlainFigure
from autodistil_search.report.style import LIGHT
from autodistil_search.report.validation_table import Panel, panels

_ROW = 0.3
"""Height of a row in inches."""


def validation_figure(ranking: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
    """Return a figure with a panel for each target, and in it a row for each measure.

    A row shows Kendall's tau within bands with its 95 % interval, and tau over all subnets.

    Args:
        ranking: Table of `ranking.csv`.
        labels: Label of each column.
    """
    parts = panels(ranking, labels)
    heights = [1.1 + _ROW * len(part.rows) for part in parts]
    figure = PlainFigure(figsize=(8.4, 0.4 + sum(heights)), layout="constrained")
    grid = figure.subplots(len(parts), 1, squeeze=False, height_ratios=heights)
    for axes, part in zip(grid[:, 0], parts, strict=True):
        _draw(axes, part)
    grid[-1, 0].set_xlabel("Kendall's tau; higher is better", fontsize=9)
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _draw(axes: Axes, part: Panel) -> None:
    rows = part.rows
    places = np.arange(len(rows))[::-1]
    taus = rows["kendall"].to_numpy(float)
    is_flops = rows["is_flops"].to_numpy(bool)
    for of, colour, words in (
        (~is_flops, LIGHT["c0"], "measure, within bands, 95 % interval"),
        (is_flops, LIGHT["baseline"], "FLOPs, within bands"),
    ):
        axes.hlines(places[of], rows["kendall_low"][of], rows["kendall_high"][of], colors=colour, lw=1.4)
        axes.scatter(taus[of], places[of], s=30, color=colour, lw=0, label=words, zorder=3)
    axes.scatter(rows["over_all"], places, s=26, facecolors="none", edgecolors=LIGHT["quiet"], label="over all subnets")
    axes.axvline(0, color=LIGHT["quiet"], lw=0.8)
    if is_flops.sum() == 1:
        axes.axvline(float(taus[is_flops][0]), color=LIGHT["baseline"], lw=0.8, ls="--")
    axes.set_yticks(places, rows["label"], fontsize=8)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlim(-1.05, 1.05)
    axes.set_title(part.title, fontsize=9, loc="left")
    axes.grid(alpha=0.25, axis="x")
    axes.tick_params(labelsize=8)
