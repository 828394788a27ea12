"""Writing of a report: tables as CSV files, figures and the page, all from the same numbers."""

from __future__ import annotations

from pathlib import Path

from autodistil_search.base.files import write_atomically
from autodistil_search.report.data import ParetoReport
from autodistil_search.report.escape import visible
from autodistil_search.report.figures import frontier_figure, progress_figure, published_figure, save_figure
from autodistil_search.report.file_names import FIGURES, PAGE, TABLES
from autodistil_search.report.html import render_html


def write_report(report: ParetoReport, folder: Path) -> None:
    """Write the tables, figures and page of `report` into `folder`. Each file is written atomically."""
    for name in TABLES:
        table = getattr(report, name).map(_cell)
        write_atomically(folder / f"{name}.csv", lambda path, table=table: table.to_csv(path, index=False))  # type: ignore[misc]
    write_page(report, folder)


def _cell(value: object) -> object:
    """Return a cell for a CSV file, with escapes for control characters that readers of CSV do not accept as text."""
    return visible(value, keep="\n\t") if isinstance(value, str) else value


def write_page(report: ParetoReport, folder: Path) -> None:
    """Write only the figures and the page, which may include later validations and results."""
    figures = (frontier_figure(report), progress_figure(report), published_figure(report.published))
    pictures = {}
    for name, figure in zip(FIGURES, figures, strict=True):
        write_atomically(folder / name, lambda path, figure=figure: save_figure(figure, path))  # type: ignore[misc]
        pictures[Path(name).stem] = (folder / name).read_bytes()
    write_atomically(folder / PAGE, lambda path: path.write_text(render_html(report, pictures), encoding="utf-8"))
