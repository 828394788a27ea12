"""Commands with their help and flags, and the printing of results as text or JSON."""

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
    import pandas as pd
    from rich.console import Console

    from autodistil_search.base.progress import Reporter
    from autodistil_search.cli.parser import CommandParser

_NO_END = 100_000
"""Console width for files and pipes, where a table takes its full width and no cell is cut."""


@dataclass(frozen=True)
class Outcome:
    """Result of a command.

    Args:
        record: Result as a JSON object, documented in docs/cli.md.
        show: Function that prints the result as text.
        code: Exit code.
    """

    record: Mapping[str, Any]
    show: Callable[[Console], object]
    code: int = 0

    def print(self, as_json: bool) -> None:
        """Print the result on standard output, as JSON or text."""
        if as_json:
            print(json.dumps(self.record, indent=2, allow_nan=False), flush=True)
            return
        from autodistil_search.base.progress import plain_console

        bounded = sys.stdout.isatty() or "COLUMNS" in os.environ
        self.show(plain_console(width=None if bounded else _NO_END))


@dataclass(frozen=True)
class Command:
    """Command of `autodistil-search`.

    Args:
        name: Name on the command line.
        summary: Line in the list of commands.
        description: Purpose, for the help of the command.
        examples: Command lines, for the help of the command.
        run: Function that takes the given settings and returns the result.
        add_flags: Function that adds the flags to a parser.
        has_record: True if `--json` and `--quiet` are among the flags.
    """

    name: str
    summary: str
    description: str
    examples: Sequence[str]
    run: Callable[[Mapping[str, Any], Reporter], Outcome]
    add_flags: Callable[[CommandParser], object] | None = None
    has_record: bool = True


def lines(*texts: str) -> Callable[[Console], object]:
    """Return a function that prints each text on a line of its own."""

    def show(console: Console) -> None:
        for text in texts:
            console.print(text, highlight=False, markup=False, soft_wrap=True)

    return show


def print_rows(rows: pd.DataFrame, title: str, console: Console) -> None:
    """Print a table, numbers to the right; long cells are folded, never cut."""
    from pandas.api.types import is_numeric_dtype
    from rich.markup import escape
    from rich.table import Table

    from autodistil_search.report.views import shown

    table = Table(title=escape(title), box=None, pad_edge=False, padding=(0, 1), title_justify="left")
    for name in rows.columns:
        table.add_column(
            escape(str(name)), justify="right" if is_numeric_dtype(rows[name]) else "left", overflow="fold"
        )
    for row in rows.to_dict("records"):
        table.add_row(*(escape(shown(value)) for value in row.values()))
    console.print(table)


def json_record(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return `entries` with values of JSON's types.

    Tables become lists of rows, paths become text, and numpy's numbers become Python's. A number that is not finite
    becomes None.
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
