"""Standard output and error of the command line, which may be closed or have lost their reader."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO


def open_closed_streams() -> None:
    """Redirect closed standard streams to the null device, so that no file opened later gets their descriptor.

    Characters that the encoding of standard output lacks are escaped.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - open until the process ends
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def messages_on_stderr() -> Iterator[None]:
    """Redirect all output in the context to standard error; output without a reader is lost, and the work continues."""
    stream = _Lossy(sys.stderr)
    with redirect_stdout(stream), redirect_stderr(stream):
        yield


def flush() -> None:
    """Flush the standard streams, or discard their buffers if they have no reader."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            discard(stream)


def discard(stream: TextIO) -> None:
    """Redirect a stream that cannot be written to the null device, so that Python can flush it at exit."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # the stream has no descriptor
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


class _Lossy(io.TextIOBase):
    """Text stream that drops output that cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the stream."""
        return self._stream.encoding

    def write(self, text: str) -> int:
        """Write `text`, or drop it."""
        try:
            self._stream.write(text)
        except OSError:
            discard(self._stream)
        return len(text)

    def flush(self) -> None:
        """Flush the buffer, or drop it."""
        try:
            self._stream.flush()
        except OSError:
            discard(self._stream)

    def isatty(self) -> bool:
        """Return True if the stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Return the descriptor of the stream."""
        return self._stream.fileno()
