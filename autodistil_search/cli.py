"""The command line: parse, call, print. Exit codes: 0 done, 1 failed, 2 input that cannot be used, 130 interrupted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NoReturn, get_type_hints

import docstring_parser
from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

from autodistil_search import __version__
from autodistil_search.config import SearchConfig
from autodistil_search.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from autodistil_search.results import Run


class _Parser(ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: ARG002 - the base class's
        self.exit(2, f"autodistil-search: {' '.join(str(message).split())} (see --help)\n")


def make_parser() -> ArgumentParser:
    """The parser of `autodistil-search`."""
    parser = _Parser(
        prog="autodistil-search",
        description="Multi-objective search for compressed language encoders.",
        version=__version__,
    )
    commands = parser.add_subcommands(required=True, dest="command")
    command = _Parser(description="Train the SuperLM of each space, search it, and report the Pareto frontier.")
    command.add_argument("--config", action=ActionConfigFile, help="A YAML file with any of these settings.")
    _add_settings(command)
    commands.add_subcommand("search", command, help="train, search and report")
    return parser


def _add_settings(parser: ArgumentParser) -> None:
    """A flag for each field of `SearchConfig`, its type, default and help taken from there."""
    types = get_type_hints(SearchConfig)
    helps = {entry.arg_name: entry.description for entry in docstring_parser.parse(SearchConfig.__doc__ or "").params}
    for setting in fields(SearchConfig):
        flag = "--" + setting.name.replace("_", "-")
        if setting.name == "text":  # several files behind one flag, as a shell's *.txt gives them
            parser.add_argument(flag, type=str, nargs="+", help=helps[setting.name])
        else:
            parser.add_argument(flag, type=types[setting.name], default=setting.default, help=helps[setting.name])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    try:
        parsed = make_parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    except (OSError, UnicodeDecodeError) as error:
        print(f"autodistil-search: --config cannot be read: {error}", file=sys.stderr)
        return 2
    settings: dict[str, Any] = parsed[parsed.command].as_dict()
    settings.pop("config", None)
    try:
        return _search(SearchConfig.from_dict(settings))
    except InputError as error:
        print(f"autodistil-search: {error}", file=sys.stderr)
        return 2
    except (FloatingPointError, OSError, MemoryError) as error:
        print(f"autodistil-search: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("autodistil-search: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _search(config: SearchConfig) -> int:
    from rich.console import Console

    from autodistil_search.progress import ConsoleReporter
    from autodistil_search.run import search

    console = Console()
    reporter = ConsoleReporter(console)
    reporter.say(f"searching {config.space} for {config.objectives}; results go to {config.folder}")
    print_frontier(search(config, reporter), console)
    return 0


def print_frontier(run: Run, console: Console) -> None:
    """The frontier as a table with the knee marked, the notes, and where the report lies."""
    from rich.table import Table

    from autodistil_search.report import shown

    report = run.report
    title = f"Pareto frontier of {report.title}: {len(run.frontier)} of {len(run.evaluations)} scored"
    table = Table(title=title, box=None, pad_edge=False, padding=(0, 1))
    values = [objective.name for objective in report.measured]
    for name in ("space", "layers", "hidden", "ratio", "heads", *values, ""):
        table.add_column(name, justify="left" if name == "space" else "right", no_wrap=True)
    for row in run.frontier.to_dict("records"):
        sizes = [str(row["space"]), *(f"{row[key]:g}" for key in ("layers", "hidden_size", "mlp_ratio", "heads"))]
        numbers = [shown(row[name]) for name in values]
        table.add_row(*sizes, *numbers, "knee" if row["knee"] else "", style="bold" if row["knee"] else None)
    console.print(table)
    for note in report.notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"report: {run.folder / 'report.html'}", highlight=False, markup=False, soft_wrap=True)
