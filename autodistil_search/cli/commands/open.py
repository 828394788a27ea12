"""`open`: the report of a run in a browser."""

from __future__ import annotations

import os
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
        help="Folder of a finished search or of a report; the newest finished search under runs if not given.",
    )
    parser.add_argument("--print", action="store_true", help="Print the path, and open no browser.")


def _open(settings: Mapping[str, Any], _: Reporter) -> Outcome:
    from autodistil_search.runs.past_runs import newest_report, report_of

    page = newest_report() if settings["run"] is None else report_of(Path(settings["run"]))
    opened = not settings["print"] and open_in_browser(page)
    return Outcome({"page": str(page), "opened": opened}, lines(str(page)))


def open_in_browser(page: Path) -> bool:
    """Open a page in a browser with windows, and return True if there is one.

    A browser in text mode would take the terminal; it is used only if `BROWSER` names it.
    """
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return False
    in_text_mode = isinstance(browser, webbrowser.GenericBrowser) and not isinstance(
        browser, webbrowser.BackgroundBrowser
    )
    if in_text_mode and "BROWSER" not in os.environ:
        return False
    return browser.open(page.resolve().as_uri())


COMMAND = Command(
    "open",
    summary="open the report of a run in a browser",
    description="Open report.html of a run in a browser, and print its path. Without a browser, the path is printed.",
    examples=("autodistil-search open", "autodistil-search open runs/mine --print"),
    run=_open,
    add_flags=_add_open,
)
