"""`runs`: a table of past runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodistil_search.cli.command import Command, Outcome, json_record
from autodistil_search.cli.parser import CommandParser, as_text

if TYPE_CHECKING:
    from rich.console import Console

    from autodistil_search.base.progress import Reporter
    from autodistil_search.runs.past_runs import PastRun


def _add_runs(parser: CommandParser) -> None:
    parser.add_argument(
        "folders",
        type=as_text,
        nargs="*",
        metavar="FOLDER",
        help="Folders of runs, or folders that hold them; runs, superlms and compressed if not given.",
    )


def _runs(settings: Mapping[str, Any], _: Reporter) -> Outcome:
    from autodistil_search.runs.past_runs import find_runs

    found = find_runs([Path(folder) for folder in settings["folders"] or ()] or None)
    return Outcome(json_record({"runs": [run.record() for run in found]}), partial(print_runs, found))


def print_runs(runs: Sequence[PastRun], console: Console) -> None:
    """Print a row for each run, and a line for each folder that is damaged or no run."""
    from rich.table import Table

    from autodistil_search.report.views import shown

    if not runs:
        console.print("no runs; autodistil-search search makes one", highlight=False)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("folder", "kind", "changed", "state", "spaces", "objectives"):
        table.add_column(name, no_wrap=name in ("kind", "changed"), overflow="fold")
    for name in ("frontier", "hyper-\nvolume", "knee\nacc", "knee\nflops"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in (run for run in runs if run.kind is not None and run.state != "damaged"):
        state = f"{run.state} {run.remark}".rstrip()
        cells = [str(run.folder), str(run.kind), (run.date or "").partition("T")[0], state]
        cells += [", ".join(run.spaces) or "-", ", ".join(run.objectives) or "-"]
        share = "-" if run.hypervolume_share is None else f"{run.hypervolume_share:.1%}"
        knee = [shown(run.knee[name]) if name in run.knee else "-" for name in (run.accuracy or "", "flops")]
        table.add_row(*cells, "-" if run.frontier is None else str(run.frontier), share, *knee)
    if table.row_count:
        console.print(table)
    for run in runs:
        if run.kind is None or run.state == "damaged":
            line = f"{run.folder}: {run.state}: {run.remark}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)


COMMAND = Command(
    "runs",
    summary="list past runs with their key figures",
    description=(
        "List past runs: state, spaces, objectives, size of the frontier, share of the hypervolume's box and knee. "
        "Shares and losses compare only between runs with the same objectives, spaces and text."
    ),
    examples=("autodistil-search runs", "autodistil-search runs /shared/runs --json"),
    run=_runs,
    add_flags=_add_runs,
)
