"""The report as one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import jinja2
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from autodistil_search.report.data import SUBNET_COLUMNS, ParetoReport
from autodistil_search.report.figures import axes_pairs, frontier_figure, published_figure, save_figure


def render_html(report: ParetoReport) -> str:
    """The page; figures are embedded and nothing is loaded from elsewhere."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader(__name__.rpartition(".")[0], "."), autoescape=True)
    panels = "; ".join(f"{y.label} against {x.label}" for x, y in axes_pairs(report))
    units = {objective.name: objective.unit for objective in report.measured}
    tables = {
        "frontier": _table(report.frontier, "Frontier", units, mark="knee"),
        "baselines": _table(report.baselines, "Baselines", units) if len(report.baselines) else "",
        "published": _table(report.published, "Published results", {}),
        "evaluations": _table(report.evaluations, "All scored subnets", units),
    }
    return environment.get_template("page.html").render(
        report=report,
        tables=tables,
        frontier_png=_png(frontier_figure(report)),
        frontier_alt=f"{panels}: scored subnets, the frontier as a step line, the knee and the measured baselines",
        published_png=_png(published_figure(report.published)),
    )


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    save_figure(figure, buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def _table(table: pd.DataFrame, caption: str, units: dict[str, str], mark: str | None = None) -> Markup:
    """`table` as HTML, its numbers readable; the row where the column `mark` is True stands out."""
    rows = [_row(table.columns, row, mark) for row in table.to_dict("records")]
    head = Markup("").join(
        Markup('<th scope="col" class="{}" title="{}">{}</th>').format(_css(table[name]), units.get(name, ""), name)
        for name in table.columns
    )
    return Markup(
        '<div class="scroll" tabindex="0" role="region" aria-label="{}"><table><tr>{}</tr>{}</table></div>'
    ).format(caption, head, Markup("").join(rows))


def _row(columns: Sequence[str], row: dict[str, object], mark: str | None) -> Markup:
    cells = Markup("").join(
        Markup('<td class="{}">{}</td>').format("text" if isinstance(row[name], str) else "", shown(name, row[name]))
        for name in columns
    )
    css = "knee" if mark is not None and row[mark] else ""
    return Markup('<tr class="{}">{}</tr>').format(css, cells)


def _css(column: pd.Series[object]) -> str:
    return "" if pd.api.types.is_numeric_dtype(column) else "text"


def shown(name: str, value: object) -> str:
    """A number or word as tables show it."""
    if isinstance(value, bool):
        return "knee" if value else ""
    if isinstance(value, int):
        return f"{value:,}" if name not in SUBNET_COLUMNS else str(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return str(value)
