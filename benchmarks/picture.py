"""Students of several spaces beside baselines and teacher: what they have, against what they cost.

    python benchmarks/picture.py runs/results --out docs/images/students.png

Each folder is what results.py left. One panel shows the score on `--task`, with the standard deviation of its seeds.
The other shows the rank correlation of sentence similarities with the teacher's, with nothing trained on labels. A
baseline that several folders trained is shown once for each folder. Random subnets are hollow.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from autodistil_search.report.style import LIGHT, TEACHER_MARKER, baseline_marker, series_colour, series_marker

STUDENT, DRAWN, BASELINE = "student of the frontier", "subnet at random", "baseline"
"""Kinds of models, as results.py writes them."""


def measured(folders: Sequence[Path], task: str) -> pd.DataFrame:
    """A row for each model of each folder: its series, kind, FLOPs, score with its spread, and sentence vectors."""
    found = []
    for folder in folders:
        scores = pd.read_csv(folder / "scores.csv")
        vectors = pd.read_csv(folder / "vectors.csv")[["kind", "model", "rho"]]
        rows = scores[scores["task"] == task].merge(vectors, on=["kind", "model"])
        space = pd.read_csv(folder / "run" / "frontier.csv")["space"].iloc[0]
        name = rows["model"].str.partition(" (")[0]
        name = name.mask(rows["kind"] == STUDENT, f"students of {space}")
        found.append(rows.assign(series=name.mask(rows["kind"] == DRAWN, f"subnets of {space} at random")))
    return pd.concat(found, ignore_index=True)


def draw(axes: Axes, rows: pd.DataFrame, column: str, spread: str | None, title: str) -> None:
    """One panel, in hundredths of the measure; students are joined, as they are one frontier."""
    students = baselines = 0
    for series, points in rows.groupby("series", sort=False):
        points = points.sort_values("flops")
        kind = points["kind"].iloc[0]
        if kind == STUDENT:
            style: dict[str, Any] = {
                "color": LIGHT[series_colour(students)],
                "marker": series_marker(students).matplotlib,
                "linestyle": "-",
            }
            students += 1
        elif kind == DRAWN:  # of the folder whose students were drawn last
            drawn = students - 1
            marker = series_marker(drawn).matplotlib
            style = {"color": LIGHT[series_colour(drawn)], "marker": marker, "mfc": "none", "linestyle": "none"}
        elif kind == BASELINE:
            marker = baseline_marker(baselines).matplotlib
            style = {"color": LIGHT["baseline"], "marker": marker, "linestyle": "none"}
            baselines += 1
        else:
            marker = TEACHER_MARKER.matplotlib
            style = {"color": LIGHT["ink"], "marker": marker, "markersize": 11, "linestyle": "none"}
        bars = None if spread is None else 100 * points[spread]
        axes.errorbar(points["flops"], 100 * points[column], bars, label=series, capsize=2, linewidth=1, **style)
    axes.set(xscale="log", xlabel="FLOPs (multiply-adds, 128 tokens), lower is better")
    axes.set_title(f"{title}, higher is better", fontsize=10)
    axes.set_xticks([100e6, 200e6, 400e6, 800e6, 1600e6])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda flops, _: f"{flops / 1e6:,.0f}M"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def main() -> None:
    """Draw and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--task", default="topic")
    parser.add_argument("--title", default="Wikipedia subjects, 1,807 rows: accuracy, %", help="of the first panel")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    rows = measured(given.folders, given.task)
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    draw(panels[0], rows, "mean", "standard_deviation", given.title)
    draw(panels[1], rows, "rho", None, "sentence similarities: Spearman's rho x 100")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(given.out, dpi=120)


if __name__ == "__main__":
    main()
