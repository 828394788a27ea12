"""The reporter of Python callers that give none: visible in a notebook or at a prompt, and `logging` in a script."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

from autodistil_search.base.progress import Bar, ConsoleReporter, Line, Reporter, plain_console

LOGGER = logging.getLogger("autodistil_search")


class LoggingReporter(ConsoleReporter):
    """Reporter that sends messages, and a line of progress every few seconds, to the logger "autodistil_search".

    Messages have the level INFO, and warnings have the level WARNING.
    """

    def __init__(self) -> None:
        super().__init__(plain_console(file=io.StringIO(), force_terminal=False, force_jupyter=False))

    def say(self, message: str) -> None:
        """Log one line as INFO."""
        LOGGER.info(message)

    def warn(self, message: str) -> None:
        """Log one line as WARNING."""
        LOGGER.warning(message)


class NotebookReporter(Reporter):
    """Reporter for Jupyter: messages in the output of the cell, and one line for each task, which is updated in place.

    The lines need no widgets, so a stored notebook shows their last state.
    """

    def say(self, message: str) -> None:
        """Print one line."""
        print(message, flush=True)

    @contextmanager
    def bar(self, title: str, unit: str, total: int | None) -> Iterator[Bar]:
        """Open a line that is updated in place."""
        line = _InPlace(self, title, unit, total)
        yield line
        line.close()


class _InPlace(Line):
    """Line of a task in the output of a notebook's cell."""

    seconds_between = 0.5
    _update: Callable[..., Any] | None = None

    def show(self, words: str) -> None:
        """Show the line, as text and with a progress bar."""
        from IPython.display import display  # only in Jupyter

        total, done = self.pace.total, self.pace.done
        bar = "" if not total else f'<progress value="{done}" max="{total}" style="width: 12em"></progress> '
        data = {"text/plain": words, "text/html": f"<div>{bar}{escape(words)}</div>"}
        if self._update is None:
            self._update = display(data, raw=True, display_id=True).update
        else:
            self._update(data, raw=True)


def default_reporter() -> Reporter:
    """Return a reporter for this session: a display in Jupyter or at a prompt in a terminal, otherwise `logging`."""
    if plain_console().is_jupyter:
        return NotebookReporter()
    if is_prompt() and sys.stderr.isatty():
        return ConsoleReporter(plain_console(stderr=True))
    return LoggingReporter()


def is_prompt() -> bool:
    """Return True if a user types at the prompt of Python or IPython."""
    return hasattr(sys, "ps1") or bool(sys.flags.interactive)
