"""Students of several spaces beside baselines and teacher: what they have, against what they cost.

    python benchmarks/picture.py runs/results --out docs/images/students.png

Each folder is the output of results.py. One panel shows the score on `--task`, or the mean over all tasks, with the
standard deviation over seeds. The other panel shows the rank correlation of sentence similarities with the teacher's,
without training on labels. A baseline of several folders is shown once for each. Random subnets are hollow.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from autodistil_search.report.style import LIGHT, TEACHER_MARKER, baseline_marker, series_colour, series_marker

if TYPE_CHECKING:  # a script that is started by its path finds its neighbours by their bare names
    from benchmarks.results_tables import DRAWN, LABELS, PUBLISHED, STUDENT, TEACHER, WAYS, means
else:
    from results_tables import DRAWN, LABELS, PUBLISHED, STUDENT, TEACHER, WAYS, means

MEAN = "mean"
"""The `--task` of the mean over all tasks."""


def measured(folders: Sequence[Path], task: str, by: str) -> pd.DataFrame:
    """Return a row for each model: series, kind, FLOPs, score with its spread over seeds, and sentence similarity.

    Args:
        folders: Output folders of results.py.
        task: Name of a task, or `MEAN`.
        by: Way of fine-tuning. The teacher and published models are shown by labels.
    """
    parts = []
    for folder in folders:
        scores = pd.read_csv(folder / "scores.csv")
        way = pd.Series(by, scores.index).mask(scores["kind"].isin([TEACHER, PUBLISHED]), LABELS)
        scores = scores[scores["by"] == way]
        kept = scores if task == MEAN else scores[scores["task"] == task]
        by_seed = means(kept, sorted({*kept["task"]})).groupby(["kind", "model", "flops"], sort=False)["mean"]
        vectors = pd.read_csv(folder / "vectors.csv")[["kind", "model", "rho"]]
        rows = by_seed.agg(["mean", "std"]).reset_index().merge(vectors, on=["kind", "model"])
        series = rows["model"].str.partition(" (")[0]
        space = rows["model"].str.partition(" ")[0]
        series = series.mask(rows["kind"] == STUDENT, "students of " + space)
        parts.append(rows.assign(series=series.mask(rows["kind"] == DRAWN, "subnets of " + space + " at random")))
    return pd.concat(parts, ignore_index=True)


def draw(axes: Axes, rows: pd.DataFrame, column: str, spread: str | None, title: str) -> None:
    """Draw one panel, in hundredths of the measure; students of a space are joined, because they form a frontier."""
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
        elif kind != TEACHER:
            marker = baseline_marker(baselines).matplotlib
            style = {"color": LIGHT["baseline"], "marker": marker, "linestyle": "none"}
            baselines += 1
        else:
            marker = TEACHER_MARKER.matplotlib
            style = {"color": LIGHT["ink"], "marker": marker, "markersize": 11, "linestyle": "none"}
        bars = None if spread is None else points[spread].fillna(0.0)
        axes.errorbar(points["flops"], points[column], bars, label=series, capsize=2, linewidth=1, **style)
    axes.set(xscale="log", xlabel="FLOPs (multiply-adds, 128 tokens), lower is better")
    axes.set_title(f"{title}, higher is better", fontsize=10)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda flops, _: f"{flops / 1e9:g}G" if flops >= 1e9 else f"{flops / 1e6:g}M")
    )
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def main() -> None:
    """Draw the figure and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--task", default="topic", help=f"a task, or {MEAN} for the mean over all tasks")
    parser.add_argument("--by", choices=[*WAYS], default=LABELS, help="way of fine-tuning")
    parser.add_argument("--title", default="Wikipedia subjects, 1,807 rows: accuracy, %", help="of the first panel")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    rows = measured(given.folders, given.task, given.by)
    rows = rows.assign(rho=100 * rows["rho"])
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    draw(panels[0], rows, "mean", "std", given.title)
    draw(panels[1], rows, "rho", None, "sentence similarities: Spearman's rho x 100")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(given.out, dpi=120)


if __name__ == "__main__":
    main()
