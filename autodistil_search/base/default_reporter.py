"""The reporter of Python callers that give none: visible in a notebook or at a prompt, and `logging` in a script."""

from __future__ import annotations

import io
import logging
import sys

from autodistil_search.base.progress import ConsoleReporter, Reporter, plain_console

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


def default_reporter() -> Reporter:
    """Return a reporter for this session: a display in Jupyter or at a prompt in a terminal, otherwise `logging`."""
    console = plain_console()
    if console.is_jupyter:
        return ConsoleReporter(console)
    if is_prompt() and sys.stderr.isatty():
        return ConsoleReporter(plain_console(stderr=True))
    return LoggingReporter()


def is_prompt() -> bool:
    """Return True if a user types at the prompt of Python or IPython."""
    return hasattr(sys, "ps1") or bool(sys.flags.interactive)
