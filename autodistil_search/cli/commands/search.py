"""`search`: the training of SuperLMs, the search and its report."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autodistil_search.cli.command import Command, Outcome, json_record, print_rows
from autodistil_search.cli.parser import add_settings
from autodistil_search.runs.named_parts import check_names
from autodistil_search.settings.search import SearchConfig
from autodistil_search.spaces.subnet import DIMENSIONS

if TYPE_CHECKING:
    from rich.console import Console

    from autodistil_search.base.progress import Reporter
    from autodistil_search.report.data import ParetoReport
    from autodistil_search.runs.finished_run import Run


def _search(settings: Mapping[str, Any], reporter: Reporter) -> Outcome:
    config = SearchConfig.from_dict(settings)
    check_names(config)
    reporter.say(f"searching {config.space} for {config.objectives}; results go to {config.folder}")

    from autodistil_search.runs.search import search

    run = search(config, reporter)
    return Outcome(search_record(run), partial(print_frontier, run))


def search_record(run: Run) -> dict[str, Any]:
    """Return the frontier, the other results that the page shows, and the content of `summary.json`."""
    from autodistil_search.report.caveats import warnings_of
    from autodistil_search.report.importance import importance_table
    from autodistil_search.report.key_figures import baselines_at_equal_cost

    report = run.folder / "report.html"
    record = {"folder": run.folder, "report": report, "frontier": run.frontier, "baselines": run.baselines}
    record |= {
        "baselines_at_equal_cost": baselines_at_equal_cost(run.report),
        "importance": importance_table(run.report),
        "limits": [str(limit) for limit in warnings_of(run.report)],
    }
    return json_record({**record, "summary": run.summary})


def print_frontier(run: Run, console: Console) -> None:
    """Print the frontier as a table with the knee marked, the key figures of the page, and the next commands."""
    from rich.table import Table

    from autodistil_search.report.views import shown

    report = run.report
    title = f"Pareto frontier of {report.title}: {len(run.frontier)} of {len(run.evaluations)} scored"
    table = Table(title=title, box=None, pad_edge=False, padding=(0, 1))
    values = [objective.name for objective in report.columns]
    for name in ("space", "layers", "hidden", "ratio", "heads", *values, ""):
        of_layers = name in ("ratio", "heads")  # long if layers differ
        justify: Literal["left", "right"] = "left" if name == "space" else "right"
        table.add_column(name, justify=justify, no_wrap=not of_layers, overflow="fold" if of_layers else "ellipsis")
    for row in run.frontier.to_dict("records"):
        sizes = [str(row["space"]), *(_size(row[key]) for key in DIMENSIONS)]
        numbers = [shown(row[name]) for name in values]
        table.add_row(*sizes, *numbers, "knee" if row["knee"] else "", style="bold" if row["knee"] else None)
    console.print(table)
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    for words in report.headline.sentences if report.headline is not None else ():
        say(words)
    _print_key_figures(report, console)
    say(f"report: {run.folder / 'report.html'}")
    say("next:")
    for words in _next_commands(run):
        say(f"  {words}")


def _print_key_figures(report: ParetoReport, console: Console) -> None:
    """Print what the page says beside the frontier: hypervolume, importance, baselines at equal cost and limits."""
    from autodistil_search.report import key_figures
    from autodistil_search.report.caveats import warnings_of
    from autodistil_search.report.importance import importance_table, importance_words

    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    for words in (key_figures.hypervolume_words(report), *importance_words(report, importance_table(report))):
        say(words)
    compared = key_figures.baselines_at_equal_cost(report)
    if len(compared):
        print_rows(compared, "Baselines at equal cost", console)
    for words in key_figures.baselines_not_scored(report):
        say(words)
    limits = warnings_of(report)
    if limits:
        say(f"{len(limits)} limit{'' if len(limits) == 1 else 's'} of these results:")
    for number, limit in enumerate(limits, start=1):
        say(f"  {number}. {limit}")


def _next_commands(run: Run) -> list[str]:
    """Return command lines that go on from a run: train its best student further, export it, look at the report."""
    program, folder = _program(), shlex.quote(str(run.folder))
    headline = run.report.headline
    if headline is None:  # nothing was trained
        return [f"{program} open {folder}"]
    pick = "" if headline.row == _knee_row(run) else f" --pick {headline.row}"
    student = shlex.quote(f"{run.folder}-student")
    return [
        f"{program} distil {folder}{pick} --out {student}",
        f"{program} export {student} --out {student}-export",
        f"{program} open {folder}",
    ]


def _knee_row(run: Run) -> int:
    return int(run.frontier["knee"].argmax()) + 1


def _program() -> str:
    """Return the program as a shell finds it here: its name if it is on the path, else its file."""
    name = "autodistil-search"
    beside = Path(sys.executable).with_name(name)
    if shutil.which(name) is not None or not beside.exists():
        return name
    return shlex.quote(os.path.relpath(beside))


def _size(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


COMMAND = Command(
    "search",
    summary="train, search and report",
    description="Train the SuperLM of each space, search it, and report the Pareto frontier.",
    examples=(
        "autodistil-search search --objectives acc,flops,params --space tiny,small --out runs/mine",
        "autodistil-search search --space debug --steps 20 --baselines none --json --quiet | jq '.frontier[0]'",
    ),
    run=_search,
    add_flags=partial(add_settings, config=SearchConfig),
)
