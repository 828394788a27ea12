"""A command: its help, its flags, and its result, which is printed in one place, as text or as JSON."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from autodistil_search.base.progress import Reporter
    from autodistil_search.cli.parser import CommandParser

_NO_END = 100_000
"""Columns of a file or pipe: there a table is as wide as it is, and no cell is cut."""


@dataclass(frozen=True)
class Outcome:
    """What a command found.

    Args:
        record: For programs: what JSON can hold. Docs: docs/cli.md.
        show: Prints the same for people.
        code: Exit code.
    """

    record: Mapping[str, Any]
    show: Callable[[Console], object]
    code: int = 0

    def print(self, as_json: bool) -> None:
        """Print it on standard output."""
        if as_json:
            print(json.dumps(self.record, indent=2, allow_nan=False), flush=True)
            return
        from autodistil_search.base.progress import plain_console

        bounded = sys.stdout.isatty() or "COLUMNS" in os.environ
        self.show(plain_console(width=None if bounded else _NO_END))


@dataclass(frozen=True)
class Command:
    """A command of `autodistil-search`.

    Args:
        name: As it is called.
        summary: Its line in the list of commands.
        description: Its purpose, for its own help.
        examples: Command lines, for its own help.
        run: Takes the settings that were given, and returns the result.
        add_flags: Adds its flags to a parser.
        has_record: Whether `--json` and `--quiet` are among its flags.
    """

    name: str
    summary: str
    description: str
    examples: Sequence[str]
    run: Callable[[Mapping[str, Any], Reporter], Outcome]
    add_flags: Callable[[CommandParser], object] | None = None
    has_record: bool = True


def lines(*texts: str) -> Callable[[Console], object]:
    """Return what prints each text on a line of its own."""

    def show(console: Console) -> None:
        for text in texts:
            console.print(text, highlight=False, markup=False, soft_wrap=True)

    return show


def json_record(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return `entries` as JSON can hold them.

    Tables become lists of rows, paths text, and numpy's numbers Python's; numbers that are not finite become null.
    """
    record: dict[str, Any] = _plain(entries)
    return record


def _plain(value: Any) -> Any:
    import numpy as np
    import pandas as pd

    if isinstance(value, pd.DataFrame):
        return [_plain(row) for row in value.to_dict("records")]
    if isinstance(value, pd.Series):
        return _plain(value.to_dict())
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
