"""The figure of a training, drawn from its two CSV files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from autodistil_search.base.files import write_atomically
from autodistil_search.distillation.training_log import HELD_OUT_CSV, TRAINING_CSV, read_log
from autodistil_search.report.escape import PlainFigure
from autodistil_search.report.figures import save_figure
from autodistil_search.report.run_parts import training_curves
from autodistil_search.report.style import LIGHT

_COLOURS = {
    "largest": LIGHT["c0"],
    "random": LIGHT["c1"],
    "smallest": LIGHT["baseline"],
    "student": LIGHT["c0"],
}


def training_figure(training: pd.DataFrame, held_out: pd.DataFrame, title: str) -> Figure:
    """Return the figure of losses against steps by role: lines for training losses, points for held-out losses.

    training, held_out: tables with the columns `step`, `role` and `loss`, among others.
    """
    figure = PlainFigure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for curve in training_curves(training, held_out):
        colour = _COLOURS[curve.role]
        if curve.held_out:
            label = f"{curve.role}, held out"
            axes.plot(curve.steps, curve.losses, "o", ms=5, mec="white", color=colour, label=label, zorder=3)
        else:
            axes.plot(curve.steps, curve.losses, color=colour, lw=1.2, label=f"{curve.role}, trained on")
    axes.set_xlabel("step")
    axes.set_ylabel("relation loss\nlower is better")
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
    return figure


def write_training_figure(folder: Path, title: str) -> None:
    """Draw `training.png` from `training.csv` and `held_out.csv` in `folder`, once there is a training step."""
    paths = [folder / name for name in (TRAINING_CSV, HELD_OUT_CSV)]
    if not all(path.exists() for path in paths):
        return
    training, held_out = map(read_log, paths)
    if len(training):
        write_atomically(
            folder / "training.png", lambda path: save_figure(training_figure(training, held_out, title), path)
        )
