"""Reports: first as data (`ParetoReport`), then as CSV, figures and a page, all from the same numbers."""

from __future__ import annotations

from pathlib import Path

from autodistil_search.report.data import ParetoReport, baseline_table, pareto_report
from autodistil_search.report.figures import frontier_figure, progress_figure, published_figure, save_figure
from autodistil_search.report.html import render_html, shown
from autodistil_search.report.training import write_training_figure

REPORT_FILES = (
    "baselines.csv",
    "engines.csv",
    "evaluations.csv",
    "frontier.csv",
    "frontier.png",
    "progress.csv",
    "progress.png",
    "published.csv",
    "published.png",
    "report.html",
)
"""What `write_report` writes."""

__all__ = [
    "REPORT_FILES",
    "ParetoReport",
    "baseline_table",
    "frontier_figure",
    "pareto_report",
    "published_figure",
    "shown",
    "write_report",
    "write_training_figure",
]


def write_report(report: ParetoReport, folder: Path) -> None:
    """Write the tables, figures and page of `report` into `folder`; each file is there whole or not at all."""
    new = folder / ".report"
    new.mkdir(exist_ok=True)
    report.published.to_csv(new / "published.csv", index=False)
    report.evaluations.to_csv(new / "evaluations.csv", index=False)
    report.frontier.to_csv(new / "frontier.csv", index=False)
    report.baselines.to_csv(new / "baselines.csv", index=False)
    report.engines.to_csv(new / "engines.csv", index=False)
    report.progress.to_csv(new / "progress.csv", index=False)
    save_figure(frontier_figure(report), new / "frontier.png")
    save_figure(published_figure(report.published), new / "published.png")
    save_figure(progress_figure(report), new / "progress.png")
    figures = [(new / name).read_bytes() for name in ("frontier.png", "progress.png", "published.png")]
    (new / "report.html").write_text(render_html(report, *figures), encoding="utf-8")
    for file in new.iterdir():
        file.replace(folder / file.name)
    new.rmdir()
