"""The figure of a proxy validation, which plots each measure against its targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from autodistil_search.report.escape import PlainFigure
from autodistil_search.report.style import LIGHT, series_colour, series_marker


def validation_figure(
    measured: pd.DataFrame, pairs: Sequence[tuple[str, str]], labels: Mapping[str, str], titles: Sequence[str]
) -> Figure:
    """Return a figure with a panel for each pair of columns `(x, y)`.

    Each band of costs (column `band`) has a colour and a marker of its own.
    """
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = PlainFigure(figsize=(3.6 * columns, 0.4 + 3.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (x, y), title in zip(panels, pairs, titles, strict=False):
        for number, (_, band) in enumerate(measured.groupby("band")):
            flops = f"{band['flops'].min() / 1e6:,.0f} to {band['flops'].max() / 1e6:,.0f}M FLOPs"
            colour, marker = LIGHT[series_colour(number)], series_marker(number).matplotlib
            axes.scatter(band[x], band[y], s=26, color=colour, marker=marker, lw=0, alpha=0.85, label=flops)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if x == "flops":
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel(labels[x], fontsize=8)
        axes.set_ylabel(labels[y], fontsize=8)
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.25)
        axes.tick_params(labelsize=7)
    for axes in panels[len(pairs) :]:
        axes.set_visible(False)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure
