"""The command line. Results go to standard output, everything else to standard error.

Exit codes: 0 for success, 1 for a failure, 2 for input that cannot be used, 130 if interrupted, 143 if terminated.
"""

from __future__ import annotations

import errno
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from autodistil_search.base.distributed import is_main
from autodistil_search.base.errors import ExecutorError, ExportError, InputError, Terminated, came_of_memory
from autodistil_search.base.passwords import without_password
from autodistil_search.base.standard_streams import discard, flush, messages_on_stderr, open_closed_streams
from autodistil_search.cli.command import Outcome
from autodistil_search.cli.registry import REPLACED, command, make_parser, parsers_of

_SAVES_MEMORY = {
    "--accumulate": "a larger --accumulate",
    "--batch-size": "a smaller --batch-size",
    "--eval-blocks": "fewer --eval-blocks",
    "--throughput-batch": "a smaller --throughput-batch",
    "--max-length": "a shorter --max-length",
    "--train-rows": "fewer --train-rows",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return the exit code."""
    open_closed_streams()
    try:
        return _exit_code(sys.argv[1:] if argv is None else list(argv))
    finally:
        flush()


def _exit_code(argv: Sequence[str]) -> int:
    """Parse and run a command, print its error if there is one, and return the exit code."""
    name = None
    try:
        name, settings = _parse(argv)
        return _run(name, settings)
    except KeyboardInterrupt:
        _print_error("stopped; the same command continues from here")
        return 130
    except Terminated as error:
        _print_error(error)
        return 143
    except Exception as error:
        if came_of_memory(error):
            _print_error(_out_of_memory(name))
            return 1
        if isinstance(error, InputError) or getattr(error, "errno", None) == errno.ENAMETOOLONG:
            _print_error(error)
            return 2
        if isinstance(error, FloatingPointError | OSError | ExecutorError | ExportError):
            _print_error(error)
            return 1
        raise


def _parse(argv: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return the name of the command and its settings, without defaults that the settings class supplies."""
    if argv and argv[0] in REPLACED:
        raise InputError(f"{argv[0]} is no longer a command; allowed: {REPLACED[argv[0]]}")
    parser = make_parser()
    parsed = parser.parse_args(argv)
    name: str = parsed.command
    given = make_parser().parse_args(argv, defaults=False, _skip_validation=True)[name]
    late = parsers_of(parser)[name].late
    settings = {key: value for key, value in parsed[name].as_dict().items() if key not in late or key in given}
    return name, settings


def _run(name: str, settings: dict[str, Any]) -> int:
    """Run a command, print its result on the main process, and return the exit code."""
    from autodistil_search.base.progress import ConsoleReporter, Reporter, plain_console

    settings.pop("config", None)
    as_json, quiet = settings.pop("json", False), settings.pop("quiet", False)
    # Output of libraries and plug-ins is not part of the result.
    with warnings.catch_warnings(), messages_on_stderr():
        warnings.showwarning = lambda message, *_: _print_error(f"warning: {message}")
        reporter = Reporter() if quiet or not is_main() else ConsoleReporter(plain_console(stderr=True))
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


def _out_of_memory(name: str | None) -> str:
    """Return the message after running out of memory, with the flags that save memory."""
    flags = parsers_of(make_parser())[name]._option_string_actions if name else ()
    ways = [words for flag, words in _SAVES_MEMORY.items() if flag in flags]
    return f"out of memory; finished work is kept; try {', '.join([*ways, 'or a machine with more memory'])}"


def _print_error(message: object) -> None:
    """Print one line on standard error, on the main process only."""
    if is_main():
        try:
            print(f"autodistil-search: {without_password(str(message))}", file=sys.stderr)
        except OSError:
            discard(sys.stderr)
