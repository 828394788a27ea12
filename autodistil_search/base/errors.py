"""Errors that end a command: unusable input and unrecoverable failures."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator


class InputError(ValueError):
    """Unusable input; the message is one line with the value that was given and the values that are allowed.

    The command line prints the message and exits with code 2. Completed work is kept.
    """


class DamagedError(InputError):
    """Damaged file; the message names the file and says what deleting it costs."""


class ExecutorError(RuntimeError):
    """Executor that failed, or task that none of its workers can run; everything done before is kept."""


class ExportError(RuntimeError):
    """Export whose outputs differ from those of the student; the export is removed."""


class Terminated(Exception):  # noqa: N818 - not an error: the process was asked to stop
    """Termination by SIGTERM with all work saved; the same command continues it."""


_OUT_OF_MEMORY_MESSAGES = (
    *("can't allocate memory", "cannot allocate memory", "unable to allocate", "out of memory", "not enough memory"),
    *("bad_alloc", "bad allocation", "failed to map segment", "can't start new thread"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error says that the host or a device ran out of memory.

    PyTorch's allocators raise a RuntimeError, the operating system an OSError, the linker an ImportError, and Python a
    MemoryError.
    """
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    text = str(error).lower()
    kinds = (RuntimeError, ImportError) if getattr(error, "errno", None) else (RuntimeError, ImportError, OSError)
    return isinstance(error, kinds) and any(sign in text for sign in _OUT_OF_MEMORY_MESSAGES)


def came_of_memory(error: BaseException | None) -> bool:
    """Return True if `error`, or an error in its chain of causes, says that memory ran out."""
    return any(map(is_out_of_memory, _chain(error)))


def memory_in_words(error: BaseException) -> str:
    """Return the memory that ran out and the amount that was asked for, as far as an out-of-memory error tells."""
    text = next((str(cause) for cause in _chain(error) if is_out_of_memory(cause)), "")
    gpu, amount = re.search(r"\bGPU (\d+)", text), re.search(r"ried to allocate ([\d.]+ \w+)", text)
    where = f" on GPU {gpu[1]}" if gpu else " on the GPU" if "CUDA" in text else ""
    return f"out of memory{where}" + (f" (tried to allocate {amount[1]})" if amount else "")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
