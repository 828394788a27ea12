"""The errors that the command line ends with: a user's input, and what no one can go on from."""

from __future__ import annotations

import errno


class InputError(ValueError):
    """Input that cannot be used; its text is one line that says what was got and what is allowed.

    The command line prints it and exits with code 2. Nothing done before it is lost.
    """


class DamagedError(InputError):
    """A file whose content is proven to be broken; its text names the file and says what deleting it costs."""


class ScoringError(RuntimeError):
    """A subnet cannot be scored, whoever tries; what was scored is kept."""


class ExportError(RuntimeError):
    """What was exported does not compute what the student computes; nothing of it is left."""


class Terminated(Exception):  # noqa: N818 - not an error: somebody asked for it
    """SIGTERM came, and what was done is saved; the same command goes on from there."""


_SIGNS_OF_MEMORY = (
    *("can't allocate memory", "cannot allocate memory", "unable to allocate", "out of memory", "not enough memory"),
    *("bad_alloc", "bad allocation", "failed to map segment", "can't start new thread"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, of the host or of a device.

    PyTorch's allocators raise a RuntimeError, the operating system an OSError, the linker an ImportError, and Python a
    MemoryError.
    """
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    text = str(error).lower()
    kinds = (RuntimeError, ImportError) if getattr(error, "errno", None) else (RuntimeError, ImportError, OSError)
    return isinstance(error, kinds) and any(sign in text for sign in _SIGNS_OF_MEMORY)


def came_of_memory(error: BaseException | None) -> bool:
    """Return whether memory ran out and `error` came of it, whatever a reader took that for."""
    while error is not None:
        if is_out_of_memory(error):
            return True
        error = error.__cause__ or error.__context__
    return False
