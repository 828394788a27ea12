"""The report as one self-contained HTML page."""

from __future__ import annotations

import base64
import math
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from matplotlib.ticker import EngFormatter

from autodistil_search.report.data import ParetoReport
from autodistil_search.report.figures import axes_pairs


def render_html(report: ParetoReport, frontier_png: bytes, progress_png: bytes, published_png: bytes) -> str:
    """The page; the figures are embedded and nothing is loaded from elsewhere."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader(__name__.rpartition(".")[0], "."), autoescape=True)
    panels = "; ".join(f"{y.label} against {x.label}" for x, y in axes_pairs(report))
    units = {objective.name: objective.unit for objective in report.columns}
    measured = report.baselines.drop(columns=["source", "weights"])  # the heading says it; for the CSV file
    tables = {
        "frontier": _table(report.frontier, "Frontier", units, mark="knee"),
        "baselines": _table(measured, "Baselines", units) if len(measured) else "",
        "engines": _table(_by_mark(report.engines), "Engines", {}) if len(report.engines) else "",
        "published": _table(report.published, "Published results", {}),
        "evaluations": _table(report.evaluations, "All scored subnets", units),
    }
    return environment.get_template("page.html").render(
        report=report,
        tables=tables,
        frontier_png=base64.b64encode(frontier_png).decode(),
        frontier_alt=f"{panels}: scored subnets, the frontier as a step line, the knee and the measured baselines",
        progress_png=base64.b64encode(progress_png).decode(),
        most_found=_found_after(report),
        published_png=base64.b64encode(published_png).decode(),
    )


def _by_mark(engines: pd.DataFrame) -> pd.DataFrame:
    """A row for each engine, by name, and a column for each number of evaluations."""
    cells = [f"{share:.4f} ± {spread:.4f}" for share, spread in zip(engines["share"], engines["spread"], strict=True)]
    table = engines.assign(cells=cells).pivot_table(
        index=["space", "engine"], columns="evaluations", values="cells", aggfunc="first"
    )
    return table.rename(columns=lambda mark: f"after {mark}").reset_index()


def _found_after(report: ParetoReport) -> list[tuple[int, int]]:
    """After how many evaluations 90, 99 and 100 % of the final hypervolume were there: (percent, evaluations)."""
    progress = report.progress
    if not report.hypervolume:
        return []
    return [
        (percent, int(progress.loc[progress["share"] >= percent / 100 - 1e-9, "evaluations"].iloc[0]))
        for percent in (90, 99, 100)
    ]


def _table(table: pd.DataFrame, caption: str, units: dict[str, str], mark: str | None = None) -> Markup:
    """`table` as HTML, its numbers readable; the row where the column `mark` is True stands out."""
    rows = [_row({str(name): value for name, value in row.items()}, mark) for row in table.to_dict("records")]
    head = Markup("").join(
        Markup('<th scope="col" class="{}" title="{}">{}</th>').format(_css(table[name]), units.get(name, ""), name)
        for name in table.columns
    )
    return Markup(
        '<div class="scroll" tabindex="0" role="region" aria-label="{}"><table><tr>{}</tr>{}</table></div>'
    ).format(caption, head, Markup("").join(rows))


def _row(row: dict[str, object], mark: str | None) -> Markup:
    cells = Markup("").join(
        Markup('<td class="{}">{}</td>').format(
            "text" if isinstance(value, str) else "",
            f"{value:g}" if name == "mlp_ratio" and isinstance(value, float) else shown(value),
        )
        for name, value in row.items()
    )
    css = "knee" if mark is not None and row[mark] else ""
    return Markup('<tr class="{}">{}</tr>').format(css, cells)


def _css(column: pd.Series[Any]) -> str:
    return "" if pd.api.types.is_numeric_dtype(column) else "text"


def shown(value: object) -> str:
    """A number or word as tables for people show it: four digits, thousands of millions as G."""
    if isinstance(value, bool):
        return "knee" if value else ""
    if isinstance(value, float) and math.isnan(value):
        return "-"
    if isinstance(value, int | float) and abs(value) >= 1e4:
        return EngFormatter(places=2, sep="")(value)
    return f"{value:#.4g}" if isinstance(value, float) else str(value)
