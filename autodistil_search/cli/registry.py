"""The commands of `autodistil-search` in the order of its help, and their common parser."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from autodistil_search.base.errors import InputError
from autodistil_search.base.user_input import meant, quoted
from autodistil_search.base.version import __version__
from autodistil_search.cli.command import Command
from autodistil_search.cli.parser import CommandParser

NAMES = (
    *("search", "all", "train", "plan", "profile", "distil", "validate-proxy", "finetune", "export", "report", "runs"),
    *("open", "list", "partition", "doctor", "completion"),
)
ALIASES = {"distill": "distil"}
"""Other spellings of commands."""
REPLACED = {
    "worker": "start Dask workers, such as dask worker tcp://host:8786, and search --executor dask:tcp://host:8786",
}
"""Commands of earlier versions, each with what replaces it."""

_EXAMPLES = (
    "autodistil-search doctor",
    "autodistil-search search --objectives acc,flops",
    "autodistil-search search --text wiki/*.txt.gz --steps 20000 --constraint 'flops<=1.5G' --out runs/mine",
    "autodistil-search export runs/mine --out my-student --pick 'flops<=200M' --onnx",
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
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}", help="Print the version.")
    subparsers = parser.add_subparsers(
        required=True,
        dest="command",
        metavar="COMMAND",
        title="commands",
        description="autodistil-search COMMAND --help lists the flags of a command.",
    )
    for entry in commands():
        subparser: CommandParser = subparsers.add_parser(
            entry.name, description=entry.description, epilog=_listed(entry.examples), help=entry.summary
        )
        if entry.add_flags is not None:
            entry.add_flags(subparser)
        if entry.has_record:
            result = subparser.add_argument_group("result")
            result.add_argument("--json", action="store_true", help="Print the result as one JSON object.")
            result.add_argument("-q", "--quiet", action="store_true", help="Show no progress, only the result.")
    return parser


def parse(arguments: Sequence[str]) -> tuple[str, CommandParser, Namespace]:
    """Return the name of the command on a command line, its parser, and what was given.

    Raises:
        InputError: for a command or a flag that there is not.
        SystemExit: after the help or the version.
    """
    parser, words = make_parser(), [ALIASES.get(word, word) for word in arguments[:1]]
    commands_by_name = parsers_of(parser)
    for word in words:
        if word in REPLACED:
            raise InputError(f"{word} is no longer a command; allowed: {REPLACED[word]}")
        if word in commands_by_name:
            commands_by_name[word].refuse_single_dash(arguments)
        elif not word.startswith("-"):
            raise InputError(f"{quoted(word)} is not a command{meant(word, NAMES)}; allowed: {', '.join(NAMES)}")
    namespace, unknown = parser.parse_known_args([*words, *arguments[1:]])
    chosen = commands_by_name[namespace.command]
    if unknown:
        chosen.refuse_unknown(unknown, arguments)
    return namespace.command, chosen, namespace


def parsers_of(parser: CommandParser) -> Mapping[str, CommandParser]:
    """Return the parser of each command."""
    parsers: Any = next(action.choices for action in parser._actions if action.dest == "command")
    return dict(parsers)


def _listed(examples: Sequence[str]) -> str:
    return "\n".join(["examples:", *(f"  {line}" for line in examples)])
