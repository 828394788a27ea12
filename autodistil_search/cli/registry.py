"""The commands of `autodistil-search` in the order of its help, and their common parser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from autodistil_search.base.version import __version__
from autodistil_search.cli.command import Command
from autodistil_search.cli.parser import CommandParser

NAMES = (
    *(
        "all",
        "search",
        "train",
        "plan",
        "profile",
        "distil",
        "validate-proxy",
        "finetune",
        "list",
        "partition",
        "report",
    ),
    *("export", "doctor", "completion"),
)
REPLACED = {
    "worker": "start Dask workers, such as dask worker tcp://host:8786, and search --executor dask:tcp://host:8786",
}
"""Commands of earlier versions, each with what replaces it."""

_EXAMPLES = (
    "autodistil-search doctor",
    "autodistil-search search --objectives acc,flops --space tiny",
    "autodistil-search search --text wiki/*.txt.gz --steps 20000 --constraint 'flops<=1.5G' --out runs/mine",
    "autodistil-search export runs/mine --to my-student --pick 'flops<=200M' --onnx",
)
_EXIT_CODES = """exit codes:
  0    done
  1    failed, or doctor has found a broken part
  2    input that cannot be used
  130  interrupted; the same command continues
  143  terminated (SIGTERM); the same command continues"""


def command(name: str) -> Command:
    """Return the command of that name from its module in `cli.commands`."""
    loaded: Command = import_module(f"autodistil_search.cli.commands.{name.replace('-', '_')}").COMMAND
    return loaded


def commands() -> Iterator[Command]:
    """Yield all commands."""
    return map(command, NAMES)


def make_parser() -> CommandParser:
    """Return the parser of `autodistil-search`."""
    parser = CommandParser(
        "Multi-objective search for compressed language encoders. Results go to standard output, everything else to "
        "standard error.",
        f"{_listed(_EXAMPLES)}\n\n{_EXIT_CODES}",
        prog="autodistil-search",
        version=__version__,
    )
    subparsers = parser.add_subcommands(
        required=True,
        dest="command",
        metavar="COMMAND",
        title="commands",
        description="autodistil-search COMMAND --help lists the flags of a command.",
    )
    for entry in commands():
        subparser = CommandParser(entry.description, _listed(entry.examples))
        subparsers.add_subcommand(entry.name, subparser, help=entry.summary)
        if entry.has_record:
            subparser.add_argument("--json", action="store_true", help="Print the result as one JSON object.")
            subparser.add_argument("--quiet", action="store_true", help="Show no progress, only the result.")
        if entry.add_flags is not None:
            entry.add_flags(subparser)
    return parser


def parsers_of(parser: CommandParser) -> Mapping[str, CommandParser]:
    """Return the parser of each command."""
    parsers: Any = next(action.choices for action in parser._actions if action.dest == "command")
    return dict(parsers)


def _listed(examples: Sequence[str]) -> str:
    return "\n".join(["examples:", *(f"  {line}" for line in examples)])
