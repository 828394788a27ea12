"""`completion`: a completion script for a shell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from autodistil_search.cli.command import Command, Outcome
from autodistil_search.cli.parser import CommandParser

if TYPE_CHECKING:
    from autodistil_search.base.progress import Reporter


def _add_completion(parser: CommandParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh"), help="Shell of the script.")


def _completion(settings: Mapping[str, Any], _: Reporter) -> Outcome:
    from autodistil_search.cli.completion_script import completion_script
    from autodistil_search.cli.registry import make_parser

    return Outcome({}, lambda _: print(completion_script(make_parser(), settings["shell"])))


COMMAND = Command(
    "completion",
    summary="print a script that completes commands, flags and values",
    description="Print a completion script.",
    examples=(
        "autodistil-search completion bash > ~/.local/share/bash-completion/completions/autodistil-search",
        "autodistil-search completion zsh > ~/.zfunc/_autodistil-search",
    ),
    run=_completion,
    add_flags=_add_completion,
    has_record=False,
)
