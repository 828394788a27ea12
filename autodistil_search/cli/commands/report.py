"""`report`: the page of one or several runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodistil_search.cli.command import Command, Outcome, json_record, lines, print_rows
from autodistil_search.cli.parser import CommandParser, as_text

if TYPE_CHECKING:
    from rich.console import Console

    from autodistil_search.base.progress import Reporter


def _add_report(parser: CommandParser) -> None:
    parser.add_argument("runs", type=as_text, nargs="+", metavar="RUN", help="Folders of finished searches.")
    parser.add_argument(
        *("-o", "--out"),
        type=as_text,
        metavar="FOLDER",
        help="Folder to write to: new, empty, or of an earlier report. The default is the folder of a single search, "
        "or a new folder beside the first of several.",
    )
    parser.add_argument(
        "--figure",
        action="store_true",
        help="Write figures and tables (PNG, PDF, SVG; Markdown, LaTeX) for papers.",
    )


def _report(settings: Mapping[str, Any], _: Reporter) -> Outcome:
    from autodistil_search.report.key_figures import runs_side_by_side
    from autodistil_search.runs.report import report_runs

    out, folders = settings["out"], [Path(run) for run in settings["runs"]]
    report, paths = report_runs(folders, out and Path(out), settings["figure"])
    page, *figures = map(str, paths)
    compared = runs_side_by_side(report) if len(folders) > 1 else None
    record = {"page": page, "figures": figures[0] if figures else None, "runs": compared}

    def show(console: Console) -> None:
        if compared is not None:
            print_rows(compared, "Runs side by side", console)
        lines(page, *figures)(console)

    return Outcome(json_record(record), show)


COMMAND = Command(
    "report",
    summary="write the page of one or several runs",
    description=(
        "Write report.html of a finished search again, with later findings, or one page of several searches "
        "whose numbers may share axes."
    ),
    examples=(
        "autodistil-search report runs/mine --figure",
        "autodistil-search report runs/seed-0 runs/seed-1 --out both",
    ),
    run=_report,
    add_flags=_add_report,
)
