"""`open`: the report of a run in a browser."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodistil_search.base.browser import open_in_browser
from autodistil_search.cli.command import Command, Outcome, lines
from autodistil_search.cli.parser import CommandParser, as_text

if TYPE_CHECKING:
    from autodistil_search.base.progress import Reporter


def _add_open(parser: CommandParser) -> None:
    parser.add_argument(
        "run",
        type=as_text,
        nargs="?",
        metavar="RUN",
        help="Folder of a finished search or of a report; the newest finished search if not given.",
    )
    parser.add_argument("--print", action="store_true", help="Print the path, and open no browser.")


def _open(settings: Mapping[str, Any], _: Reporter) -> Outcome:
    from autodistil_search.runs.past_runs import newest_report, report_of

    page = newest_report() if settings["run"] is None else report_of(Path(settings["run"]))
    opened = not settings["print"] and open_in_browser(page)
    return Outcome({"page": str(page), "opened": opened}, lines(str(page)))


COMMAND = Command(
    "open",
    summary="open the report of a run in a browser",
    description="Open report.html of a run in a browser, and print its path. Without a browser, the path is printed.",
    examples=("autodistil-search open", "autodistil-search open runs/mine --print"),
    run=_open,
    add_flags=_add_open,
)
