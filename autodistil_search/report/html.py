"""The report as one self-contained HTML page, which works offline. Without scripts, its figures are pictures."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from autodistil_search.nas.objectives import Objective
from autodistil_search.report import key_figures
from autodistil_search.report.caveats import found_after, warnings_of
from autodistil_search.report.charts import (
    CONFIG,
    Spec,
    axis_layout,
    chart_columns,
    check_charts,
    frontier_layout,
    key_traces,
    mark_traces,
    overlay_traces,
    parallel_chart,
    point_traces,
    progress_chart,
    published_chart,
    size_columns,
    size_layout,
    training_chart,
)
from autodistil_search.report.data import ParetoReport
from autodistil_search.report.escape import visible
from autodistil_search.report.explore import Points, point_sets
from autodistil_search.report.findings import IN_RANKING
from autodistil_search.report.importance import importance_table, importance_words
from autodistil_search.report.style import DARK, LIGHT
from autodistil_search.report.validation_table import panels, ranking_table
from autodistil_search.report.views import (
    SIZE_LABELS,
    better,
    budget_costs,
    drawn_rows,
    export_commands,
    frontier_numbers,
    row_labels,
    shown_size,
    sizes_of,
    subnet_words,
    value_words,
)

_LONG = 30
"""Number of letters above which a cell gets more width."""
LISTED = 1000
"""Greatest number of scored subnets in the page's table, which lists the first ones; `evaluations.csv` has all."""


def render_html(report: ParetoReport, pictures: Mapping[str, bytes] | None = None) -> str:
    """Return the page as HTML that loads nothing from elsewhere.

    pictures: figures as PNG files by name ("frontier", "progress", "published"), for readers without scripts.
    """
    return visible(_rendered(report, pictures or {}), keep="\n\t")


@cache
def _library() -> str:
    """Return the script of plotly, compressed by gzip, in base64."""
    script = resources.files("plotly").joinpath("package_data/plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(script, 6, mtime=0)).decode()


@cache
def _script() -> str:
    return resources.files(__package__).joinpath("page.js").read_text(encoding="utf-8")


def _rendered(report: ParetoReport, pictures: Mapping[str, bytes]) -> str:
    commands, numbers = export_commands(report), frontier_numbers(report)
    units = {column.name: f"{column.unit}; {better(column)}" for column in report.columns}
    frontier = report.frontier.copy()
    frontier.insert(0, "pick", numbers)
    frontier.insert(1, "knee", frontier.pop("knee"))
    importance = importance_table(report)
    charts, places = _charts(report)
    digest = base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode()
    return (
        _environment()
        .get_template("page.html")
        .render(
            report=report,
            policy=f"default-src 'none'; script-src 'sha256-{digest}' blob:; style-src 'unsafe-inline'; "
            "img-src data: blob:; base-uri 'none'; form-action 'none'",
            light=LIGHT,
            dark=DARK,
            cards=key_figures.cards(report),
            hypervolume=key_figures.hypervolume_words(report),
            runs=_table(key_figures.runs_side_by_side(report), "Runs", "runs", {}) if len(report.runs) > 1 else "",
            equal_cost=_table(key_figures.baselines_at_equal_cost(report), "Baselines at equal cost", "equal-cost", {}),
            standings=_table(key_figures.standings_table(report), "Pick, baselines and teacher", "standings", {}),
            not_scored=key_figures.baselines_not_scored(report),
            warnings=warnings_of(report),
            units=key_figures.units_words(report),
            left_out=len(report.evaluations) - sum(len(rows) for _, rows in drawn_rows(report)),
            listed=min(LISTED, len(report.evaluations)),
            frontier=_table(frontier, "Frontier", "frontier", units, mark="knee"),
            importance=_table(_percentages(importance), "Importance", "importance", {}),
            importance_words=importance_words(report, importance),
            evaluations=_table(report.evaluations.head(LISTED), "Scored subnets", "evaluations", units),
            baselines=_table(_shown_baselines(report), "Baselines", "baselines", units),
            engines=_table(_by_mark(report.engines), "Engines", "engines", {}) if len(report.engines) else "",
            published=_table(report.published, "Published results", "published", {}),
            reached=found_after(report),
            places=places,
            pictures={name: base64.b64encode(picture).decode() for name, picture in pictures.items()},
            checks=_checks(report),
            exportable=any(commands),
            data=_json({**_for_script(report, commands, numbers), "charts": charts}),
            library=Markup(_library()),
            script=Markup(_script()),
        )
    )


def _shown_baselines(report: ParetoReport) -> pd.DataFrame:
    """Return the baselines without the columns that the heading and the CSV file have."""
    return report.baselines.drop(columns=list({"source", "weights"} & set(report.baselines.columns)))


def _percentages(importance: pd.DataFrame) -> pd.DataFrame:
    """Return shares as whole percentages, in columns that say what they are of."""
    shares = importance.select_dtypes("number")
    named = {name: f"% of the variance of {name}" for name in shares}
    return importance.assign(**(100 * shares).round().astype(int)).rename(columns=named)


def _charts(report: ParetoReport) -> tuple[dict[str, Spec], dict[str, list[tuple[str, str, str]]]]:
    """Return the figures by name, and for each section the name, the heading and a description of its figures."""
    several = len(report.runs) > 1
    final = "the exact frontier's" if report.exact else "all runs together" if several else "the final value"
    charts = {
        "parallel": parallel_chart(report),
        "progress": progress_chart(report, final),
        "published": published_chart(report.published),
    }
    training = []
    for i, part in enumerate(report.runs):
        for space, curves in part.curves.items():
            if curves:
                name, title = f"training-{i}-{space}", f"{part.name}: {space}" if several else space
                charts[name] = training_chart(curves)
                training.append((name, title, f"Losses of {title} against steps"))
        for j, check in enumerate(part.checks):
            charts |= {f"check-{i}-{j}-{k}": chart for k, chart in enumerate(check_charts(check))}
    return charts, {"training": training}


def _checks(report: ParetoReport) -> list[dict[str, Any]]:
    """Return title, findings, figures and table of each proxy validation."""
    return [
        {
            "title": f"{part.name}: {check.name}" if len(report.runs) > 1 else check.name,
            "findings": [finding for finding in check.findings if finding.kind not in IN_RANKING],
            "charts": [
                (f"check-{i}-{j}-{k}", f"Rank correlations {panel.title}")
                for k, panel in enumerate(panels(check.ranking, check.labels))
            ],
            "table": _table(ranking_table(check.ranking, check.labels), "Rank correlations", f"ranking-{i}-{j}", {}),
        }
        for i, part in enumerate(report.runs)
        for j, check in enumerate(part.checks)
    ]


def frontier_html(report: ParetoReport) -> str:
    """Return title, knee and frontier as HTML for notebooks."""
    (row,) = report.frontier[report.frontier["knee"]].to_dict("records")  # native Python numbers instead of numpy's
    knee = {str(key): value for key, value in row.items()}
    words = ", ".join([subnet_words(knee), *value_words(knee, report.columns)])
    units = {column.name: f"{column.unit}; {better(column)}" for column in report.columns}
    return Markup("<p><strong>Pareto frontier of {}</strong>: {} of {} scored subnets. Knee: {}</p>{}").format(
        report.title, len(report.frontier), len(report.evaluations), words, _rows(report.frontier, units, "knee")
    )


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader(__name__.rpartition(".")[0], "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _for_script(report: ParetoReport, commands: Sequence[str | None], numbers: Sequence[int]) -> dict[str, Any]:
    """Return the data of the page's script: costs, frontier, and the figure of the frontier by its parts."""
    columns = [column for column in report.columns if column.name in report.frontier]
    axes, points, labels = chart_columns(report), point_sets(report), row_labels(report)
    return {
        "colours": {"light": LIGHT, "dark": DARK},
        "config": CONFIG,
        "costs": [
            {**_named(cost), "unit": cost.unit, "least": cost.direction == "maximize"} for cost in budget_costs(report)
        ],
        "first": {"name": report.objectives[0].name, "most": report.objectives[0].direction == "maximize"},
        "frontier": [
            {
                "number": numbers[i],
                "knee": bool(row["knee"]),
                "command": commands[i],
                "words": labels[i],
                "values": {column.name: float(row[column.name]) for column in columns},
            }
            for i, (_, row) in enumerate(report.frontier.iterrows())
        ],
        "axes": [{**_named(column), "axis": axis_layout(report, column)} for column in axes],
        "sizes": [
            {"name": name, "label": SIZE_LABELS[name], "axis": size_layout(name)} for name in size_columns(report)
        ],
        "series": "run and space" if len(report.runs) > 1 else "space",
        "layout": frontier_layout(report),
        "points": [
            {**part, "trace": trace}
            for part, trace in zip(_point_values(report, points, columns), point_traces(report, points), strict=True)
        ],
        "overlays": {
            f"{x.name} {y.name}": overlay_traces(report, x, y) for x in axes for y in axes if x.name != y.name
        },
        "keys": key_traces(point_traces(report, points)),
        "marks": mark_traces(),
    }


def _named(column: Objective) -> dict[str, str]:
    return {"name": column.name, "label": column.label}


def _point_values(report: ParetoReport, points: Sequence[Points], columns: Sequence[Objective]) -> list[dict[str, Any]]:
    """Return for each trace of points the measured values and sizes by name, and the rows of the frontier."""
    places = {label: i for i, label in enumerate(report.frontier.index)}
    return [
        {
            "rows": [places[label] for label in part.rows.index] if part.on_frontier else None,
            "values": {column.name: part.rows[column.name].tolist() for column in columns},
            "sizes": {name: sizes_of(part.rows, name) for name in size_columns(report)},
        }
        for part in points
    ]


def _json(data: Mapping[str, Any]) -> Markup:
    """Return JSON that cannot end a script element, whatever names it contains."""
    text = json.dumps(_finite(data), separators=(",", ":"), allow_nan=False)
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def _finite(data: Any) -> Any:
    """Return data of JSON's types with None in place of numbers that are not finite."""
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not np.isfinite(data) else data


def _by_mark(engines: pd.DataFrame) -> pd.DataFrame:
    """Return a table with a row for each engine and a column for each number of evaluations."""
    cells = [f"{share:.4f} ± {spread:.4f}" for share, spread in zip(engines["share"], engines["spread"], strict=True)]
    index = [name for name in ("run", "space", "engine") if name in engines]
    table = engines.assign(cells=cells).pivot_table(index=index, columns="evaluations", values="cells", aggfunc="first")
    return table.rename(columns=lambda mark: f"after {mark}").reset_index()


def _table(table: pd.DataFrame, caption: str, name: str, units: Mapping[str, str], mark: str | None = None) -> Markup:
    """Return `table` as HTML with a place for its tools, or nothing if it has no rows.

    name: name of the table as CSV. mark: column that marks the row to emphasise.
    """
    if table.empty:
        return Markup("")
    return Markup(
        '<div class="sheet" data-name="{}"><div class="tools" hidden></div>'
        '<div class="scroll" tabindex="0" role="region" aria-label="{}">{}</div></div>'
    ).format(name, caption, _rows(table, units, mark))


def _rows(table: pd.DataFrame, units: Mapping[str, str], mark: str | None) -> Markup:
    """Return `table` as HTML with readable numbers; the row where the column `mark` is True is emphasised.

    A cell that shows a number with fewer digits keeps the full number for sorting and copying.
    """
    text = {str(name) for name in table.columns if not pd.api.types.is_numeric_dtype(table[name])}
    head = Markup("").join(
        Markup('<th scope="col"{}{}>{}</th>').format(
            Markup(' class="text"') if name in text else "",
            Markup(' title="{}"').format(units[name]) if name in units else "",
            name,
        )
        for name in map(str, table.columns)
    )
    rows = [
        _row({str(name): value for name, value in row.items()}, i, mark, text)
        for i, row in enumerate(table.to_dict("records"))
    ]
    return Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(head, Markup("\n").join(rows))


def _row(row: Mapping[str, Any], number: int, mark: str | None, text: set[str]) -> Markup:
    cells = Markup("").join(_cell(name, value, name in text) for name, value in row.items())
    css = Markup(' class="knee"') if mark is not None and row[mark] else ""
    place = Markup(' data-row="{}"').format(number) if mark is not None else ""
    return Markup("<tr{}{}>{}</tr>").format(css, place, cells)


def _cell(name: str, value: object, is_text: bool) -> Markup:
    missing = isinstance(value, float) and np.isnan(value)
    words = "" if missing else shown_size(name, value)
    whole = "" if missing or words == str(value) or isinstance(value, bool) else Markup(' data-v="{}"').format(value)
    css = Markup(' class="text{}"').format(" long" if len(words) > _LONG else "") if is_text and words else ""
    return Markup("<td{}{}>{}</td>").format(css, whole, words)
