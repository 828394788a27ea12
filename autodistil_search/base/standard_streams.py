"""Standard output and error of the command line, which may be closed or lead to a reader that has left."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO


def open_closed_streams() -> None:
    """Give closed standard streams a place that swallows all, so that no file opened later gets their number.

    What the encoding of standard output lacks is escaped.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - as long as the process
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def messages_on_stderr() -> Iterator[None]:
    """Send whatever is printed inside to standard error, and lose it where nobody can read it: work goes on."""
    stream = _Lossy(sys.stderr)
    with redirect_stdout(stream), redirect_stderr(stream):
        yield


def flush() -> None:
    """Write out what is buffered in the standard streams, or discard it where nobody can read it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            discard(stream)


def discard(stream: TextIO) -> None:
    """Let a stream that cannot be written swallow what is still to come, so that Python can flush it when it ends."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # not a file of the system
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


class _Lossy(io.TextIOBase):
    """A stream that loses what cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream."""
        return self._stream.encoding

    def write(self, text: str) -> int:
        """Write `text`, or lose it."""
        try:
            self._stream.write(text)
        except OSError:
            discard(self._stream)
        return len(text)

    def flush(self) -> None:
        """Write out what is buffered, or lose it."""
        try:
            self._stream.flush()
        except OSError:
            discard(self._stream)

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Return the number of the stream."""
        return self._stream.fileno()
