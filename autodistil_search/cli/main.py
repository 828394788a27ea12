"""The command line. Results go to standard output, everything else to standard error.

Exit codes: 0 for success, 1 for a failure, 2 for input that cannot be used, 130 if interrupted, 143 if terminated.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from autodistil_search.base.distributed import is_main, launched
from autodistil_search.base.errors import (
    ExecutorError,
    ExportError,
    InputError,
    Terminated,
    came_of_memory,
    memory_in_words,
)
from autodistil_search.base.failures import end_with_others, lost_connection, report_failure
from autodistil_search.base.passwords import without_password
from autodistil_search.base.standard_streams import discard, flush, messages_on_stderr, open_closed_streams
from autodistil_search.cli.command import Outcome
from autodistil_search.cli.registry import command, make_parser, parse, parsers_of

_SAVES_MEMORY = {
    "--accumulate": "--accumulate {}",
    "--batch-size": "a smaller --batch-size",
    "--seq-len": "a shorter --seq-len",
    "--eval-blocks": "fewer --eval-blocks",
    "--throughput-batch": "a smaller --throughput-batch",
    "--max-length": "a shorter --max-length",
    "--train-rows": "fewer --train-rows",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return the exit code."""
    open_closed_streams()
    try:
        code = _exit_code(sys.argv[1:] if argv is None else list(argv))
    finally:
        flush()
    if code and launched() > 1:
        os._exit(code)  # the interpreter's end could wait for a collective that never completes
    return code


def _exit_code(argv: Sequence[str]) -> int:
    """Parse and run a command, print its error if there is one, and return the exit code."""
    name, accumulate = None, 1
    try:
        name, parser, given = parse(argv)
        settings, note = parser.with_steps(parser.settings(given))
        if hasattr(given, "print_config"):
            parser.print_settings(settings)
            return 0
        accumulate = settings.get("accumulate") or 1
        return _run(name, settings, note)
    except KeyboardInterrupt:
        _say("stopped; the same command continues from here")
        return 130
    except Terminated as error:
        _say(str(error))
        return 143
    except Exception as error:
        code, message = _explained(error, name, accumulate)
        if message is None and launched() == 1:
            raise
        lines = message or traceback.format_exc().rstrip()
        report_failure(lines, _write_error, lost_connection(error))
        return code


def _explained(error: Exception, name: str | None, accumulate: int) -> tuple[int, str | None]:
    """Return the exit code and the message of an error; the message is None for an error of this package's code."""
    if came_of_memory(error):
        return 1, _out_of_memory(error, name, accumulate)
    if isinstance(error, InputError) or getattr(error, "errno", None) == errno.ENAMETOOLONG:
        return 2, str(error)
    if lost_connection(error):
        reason = " ".join(str(error).split())
        return 1, f"the connection to the other processes is lost: {reason:.200}; the same command continues"
    if isinstance(error, FloatingPointError | OSError | ExecutorError | ExportError):
        return 1, str(error)
    return 1, None


def _run(name: str, settings: dict[str, Any], note: str | None) -> int:
    """Run a command after a note on its settings, print its result on the main process, and return the exit code."""
    from autodistil_search.base.progress import ConsoleReporter, Reporter, plain_console

    end_with_others()
    as_json, quiet = settings.pop("json", False), settings.pop("quiet", False)
    # Output of libraries and plug-ins is not part of the result.
    with warnings.catch_warnings(), messages_on_stderr():
        warnings.showwarning = lambda message, *_: _say(f"warning: {message}")
        reporter = Reporter() if quiet or not is_main() else ConsoleReporter(plain_console(stderr=True))
        if note is not None:
            reporter.say(note)
        outcome = command(name).run(settings, reporter)
    if is_main():
        _print(outcome, as_json)
    return outcome.code


def _print(outcome: Outcome, as_json: bool) -> None:
    """Print a result. A closed pipe is no error, because its reader has ended on purpose."""
    try:
        outcome.print(as_json)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # rich turns the former into the latter
        discard(sys.stdout)
    except OSError as error:
        discard(sys.stdout)
        raise OSError(f"the result is saved, but cannot be printed: {error.strerror}") from None


def _out_of_memory(error: Exception, name: str | None, accumulate: int) -> str:
    """Return the message after running out of memory, with the flags that save memory."""
    flags = parsers_of(make_parser())[name]._option_string_actions if name else ()
    ways = [words.format(2 * accumulate) for flag, words in _SAVES_MEMORY.items() if flag in flags]
    what = memory_in_words(error)
    return f"{what}; finished work is kept; try {', '.join([*ways, 'or a machine with more memory'])}"


def _say(message: str) -> None:
    """Print one line on standard error, on the main process only."""
    if is_main():
        _write(message)


def _write_error(message: str) -> None:
    _write(f"error: {message}")


def _write(line: str) -> None:
    try:
        print(without_password(line), file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)
