"""Reports: first as data (`ParetoReport`), then as CSV, figures and a page, all from the same numbers."""

from __future__ import annotations

from pathlib import Path

from autodistil_search.report.data import ParetoReport, baseline_table, pareto_report
from autodistil_search.report.figures import frontier_figure, published_figure, save_figure
from autodistil_search.report.html import render_html

__all__ = ["ParetoReport", "baseline_table", "frontier_figure", "pareto_report", "published_figure", "write_report"]


def write_report(report: ParetoReport, folder: Path) -> None:
    """Write the tables, figures and page of `report` into `folder`."""
    report.evaluations.to_csv(folder / "evaluations.csv", index=False)
    report.frontier.to_csv(folder / "frontier.csv", index=False)
    if len(report.baselines):
        report.baselines.to_csv(folder / "baselines.csv", index=False)
    save_figure(frontier_figure(report), folder / "frontier.png")
    save_figure(published_figure(report.published), folder / "published.png")
    (folder / "report.html").write_text(render_html(report), encoding="utf-8")
