"""What a paper or a README takes from a report: tables in Markdown and LaTeX beside the figures."""

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
"""Folder of what is for papers, in that of the report."""


def write_for_papers(report: ParetoReport, folder: Path) -> list[Path]:
    """Write figures for one and two columns, `tables.md` and `tables.tex` into `folder`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = save_for_papers(report, folder)
    for name, table in (("tables.md", markdown_table), ("tables.tex", latex_table)):
        paths.append(folder / name)
        parts = [table(rows, caption) for caption, rows in _tables(report).items() if len(rows)]
        paths[-1].write_text("\n".join(parts), encoding="utf-8")
    return paths


def _tables(report: ParetoReport) -> Mapping[str, pd.DataFrame]:
    """By caption, which says units and directions."""
    units = "; ".join(f"{each.name}: {each.label}, {each.unit}, {better(each)}" for each in report.columns)
    return {
        f"Pareto frontier of {report.title}. {units}.": report.frontier,
        f"Baselines, measured as the subnets of {report.title}. {units}.": report.baselines.drop(
            columns={"source"} & set(report.baselines.columns)
        ),
    }


def markdown_table(table: pd.DataFrame, caption: str) -> str:
    """`table` in Markdown, its caption before it."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    head = [markdown(name) for name in table.columns]
    marks = ["---:" if pd.api.types.is_numeric_dtype(table[name]) else "---" for name in table.columns]
    return "\n".join([markdown(caption), "", line(head), line(marks), *map(line, _cells(table, markdown)), ""])


def latex_table(table: pd.DataFrame, caption: str) -> str:
    """`table` in LaTeX for the package booktabs, its caption before it."""

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
