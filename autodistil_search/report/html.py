"""The report as one self-contained HTML page, which works offline and is complete without scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from autodistil_search.report.caveats import found_after, warnings_of
from autodistil_search.report.data import ParetoReport
from autodistil_search.report.escape import visible
from autodistil_search.report.svg import (
    axis_words,
    check_legend,
    check_panels,
    frontier_legend,
    frontier_panel,
    parallel_panel,
    progress_panel,
    published_panel,
    row_labels,
    training_panel,
)
from autodistil_search.report.views import (
    axes_pairs,
    budget_costs,
    drawn_rows,
    export_commands,
    frontier_numbers,
    is_crowded,
    series_of,
    shown_size,
    subnet_words,
    value_words,
)

_LONG = 30
"""Number of letters above which a cell gets more width."""
LISTED = 1000
"""Greatest number of scored subnets in the page's table, which lists the first ones; `evaluations.csv` has all."""


def render_html(report: ParetoReport) -> str:
    """Return the page as HTML that loads nothing from elsewhere."""
    return visible(_rendered(report), keep="\n\t")


def _rendered(report: ParetoReport) -> str:
    commands, numbers = export_commands(report), frontier_numbers(report)
    labels = row_labels(report, commands, numbers)
    all_series, drawn = series_of(report), drawn_rows(report)
    pairs = axes_pairs(report)
    units = {column.name: axis_words(column) for column in report.columns}
    frontier = report.frontier.copy()
    frontier.insert(0, "pick", numbers)
    source = {"source", "weights"} & set(report.baselines.columns)  # the heading and the CSV file have them
    final = "all runs together" if "run" in report.progress else "the final value"
    return (
        _environment()
        .get_template("page.html")
        .render(
            report=report,
            warnings=warnings_of(report),
            panels=[frontier_panel(report, x, y, drawn, labels) for x, y in pairs],
            closer=[
                frontier_panel(replace(report, baselines=report.baselines.head(0)), x, y, drawn, labels)
                for x, y in pairs
                if is_crowded(report, x, y)
            ],
            parallel=parallel_panel(report, labels) if len(report.objectives) > 2 else "",
            legend=frontier_legend(report, *pairs[0], [series.name for series in all_series]),
            left_out=len(report.evaluations) - sum(len(rows) for _, rows in drawn),
            listed=min(LISTED, len(report.evaluations)),
            frontier=_table(frontier, "Frontier", "frontier", units, mark="knee"),
            evaluations=_table(report.evaluations.head(LISTED), "Scored subnets", "evaluations", units),
            baselines=_table(report.baselines.drop(columns=source), "Baselines", "baselines", units),
            engines=_table(_by_mark(report.engines), "Engines", "engines", {}) if len(report.engines) else "",
            published=_table(report.published, "Published results", "published", {}),
            published_panel=published_panel(report.published),
            progress=progress_panel(report, "the exact frontier's" if report.exact else final),
            reached=found_after(report),
            training=[
                (title, training_panel(curves, title))
                for part in report.runs
                for space, curves in part.curves.items()
                for title in [f"{part.name}: {space}" if len(report.runs) > 1 else space]
                if curves
            ],
            checks=[
                (
                    f"{part.name}: {check.name}" if len(report.runs) > 1 else check.name,
                    check,
                    check_panels(check),
                    check_legend(check),
                    _table(check.ranking, "Rank correlations", f"ranking-{i}-{j}", {}),
                )
                for i, part in enumerate(report.runs)
                for j, check in enumerate(part.checks)
            ],
            exportable=any(commands),
            data=_json(_for_script(report, commands, numbers, labels, drawn)),
            script=Markup(resources.files(__package__).joinpath("page.js").read_text(encoding="utf-8")),
        )
    )


def frontier_html(report: ParetoReport) -> str:
    """Return title, knee and frontier as HTML for notebooks."""
    (row,) = report.frontier[report.frontier["knee"]].to_dict("records")  # native Python numbers instead of numpy's
    knee = {str(key): value for key, value in row.items()}
    words = ", ".join([subnet_words(knee), *value_words(knee, report.columns)])
    units = {column.name: axis_words(column) for column in report.columns}
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


def _for_script(
    report: ParetoReport,
    commands: Sequence[str | None],
    numbers: Sequence[int],
    labels: Sequence[str],
    drawn: Sequence[tuple[int, pd.DataFrame]],
) -> dict[str, Any]:
    """Return the data of the page's script: costs, values and commands of the frontier, words for scored subnets."""
    columns = [column for column in report.columns if column.name in report.frontier]
    return {
        "costs": [
            {"name": cost.name, "label": cost.label, "unit": cost.unit, "least": cost.direction == "maximize"}
            for cost in budget_costs(report)
        ],
        "first": {
            "name": report.objectives[0].name,
            "most": report.objectives[0].direction == "maximize",
        },
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
        "scored": [
            "\n".join([subnet_words(row), *value_words(row, report.columns)])
            for _, rows in drawn
            for row in ({str(key): value for key, value in record.items()} for record in rows.to_dict("records"))
        ],
    }


def _json(data: Mapping[str, Any]) -> Markup:
    """Return JSON that cannot end a script element, whatever names it contains."""
    text = json.dumps(data, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


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
