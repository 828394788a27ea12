"""Tables in Markdown and LaTeX, and figures, for papers and READMEs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from autodistil_search.report.data import ParetoReport
from autodistil_search.report.escape import latex, markdown
from autodistil_search.report.figures import save_for_papers
from autodistil_search.report.views import better, shown_size

FIGURES = "figures"
"""Folder of the files for papers, within the folder of the report."""


def write_for_papers(report: ParetoReport, folder: Path) -> list[Path]:
    """Write figures for one and two columns, `tables.md` and `tables.tex` into `folder`, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = save_for_papers(report, folder)
    for name, table in (("tables.md", markdown_table), ("tables.tex", latex_table)):
        paths.append(folder / name)
        parts = [table(rows, caption) for caption, rows in _tables(report).items() if len(rows)]
        paths[-1].write_text("\n".join(parts), encoding="utf-8")
    return paths


def _tables(report: ParetoReport) -> Mapping[str, pd.DataFrame]:
    """Return the tables by caption, which states units and directions."""
    units = "; ".join(f"{column.name}: {column.label}, {column.unit}, {better(column)}" for column in report.columns)
    return {
        f"Pareto frontier of {report.title}. {units}.": report.frontier,
        f"Baselines, measured like the subnets of {report.title}. {units}.": report.baselines.drop(
            columns={"source"} & set(report.baselines.columns)
        ),
    }


def markdown_table(table: pd.DataFrame, caption: str) -> str:
    """Return `table` in Markdown, preceded by its caption."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    head = [markdown(name) for name in table.columns]
    marks = ["---:" if pd.api.types.is_numeric_dtype(table[name]) else "---" for name in table.columns]
    return "\n".join([markdown(caption), "", line(head), line(marks), *map(line, _cells(table, markdown)), ""])


def latex_table(table: pd.DataFrame, caption: str) -> str:
    """Return `table` in LaTeX for the package booktabs, preceded by its caption."""

    def line(cells: Sequence[str]) -> str:
        return "  " + " & ".join(cells) + r" \\"

    sides = "".join("r" if pd.api.types.is_numeric_dtype(table[name]) else "l" for name in table.columns)
    body = [line([latex(name) for name in table.columns]), r"  \midrule", *map(line, _cells(table, latex))]
    return "\n".join(
        [
            r"\begin{table}",
            rf"  \caption{{{latex(caption)}}}",
            rf"  \begin{{tabular}}{{{sides}}}",
            r"  \toprule",
            *body,
            r"  \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _cells(table: pd.DataFrame, words: Callable[[object], str]) -> list[list[str]]:
    rows: list[dict[Any, Any]] = table.to_dict("records")
    return [
        [words("" if pd.isna(value) else shown_size(str(name), value)) for name, value in row.items()] for row in rows
    ]
