"""The command line: parse, run, print the result on standard output; all else goes to standard error.

Exit codes: 0 done, 1 failed, 2 input that cannot be used, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import errno
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from autodistil_search.base.distributed import is_main
from autodistil_search.base.errors import ExportError, InputError, ScoringError, Terminated, came_of_memory
from autodistil_search.base.passwords import without_password
from autodistil_search.base.standard_streams import discard, flush, messages_on_stderr, open_closed_streams
from autodistil_search.cli.command import Outcome
from autodistil_search.cli.registry import command, make_parser, parsers_of

_SAVES_MEMORY = {
    "--accumulate": "a larger --accumulate",
    "--batch-size": "a smaller --batch-size",
    "--eval-blocks": "fewer --eval-blocks",
    "--throughput-batch": "a smaller --throughput-batch",
    "--max-length": "a shorter --max-length",
    "--train-rows": "fewer --train-rows",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    open_closed_streams()
    try:
        return _answer(sys.argv[1:] if argv is None else list(argv))
    finally:
        flush()


def _answer(argv: Sequence[str]) -> int:
    """Parse, run and say how it ended."""
    name = None
    try:
        name, settings = _parse(argv)
        return _run(name, settings)
    except KeyboardInterrupt:
        _complain("stopped; the same command goes on from here")
        return 130
    except Terminated as error:
        _complain(error)
        return 143
    except Exception as error:
        if came_of_memory(error):
            _complain(_out_of_memory(name))
            return 1
        if isinstance(error, InputError) or getattr(error, "errno", None) == errno.ENAMETOOLONG:
            _complain(error)
            return 2
        if isinstance(error, FloatingPointError | OSError | ScoringError | ExportError):
            _complain(error)
            return 1
        raise


def _parse(argv: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return the command's name and its settings; those with a default in their class only if they were given."""
    parser = make_parser()
    parsed = parser.parse_args(argv)
    name: str = parsed.command
    given = make_parser().parse_args(argv, defaults=False, _skip_validation=True)[name]
    late = parsers_of(parser)[name].late
    settings = {key: value for key, value in parsed[name].as_dict().items() if key not in late or key in given}
    return name, settings


def _run(name: str, settings: dict[str, Any]) -> int:
    """Run a command and print its result, from one of the processes that were started together."""
    from autodistil_search.base.progress import ConsoleReporter, Reporter, plain_console

    settings.pop("config", None)
    as_json, quiet = settings.pop("json", False), settings.pop("quiet", False)
    # Whatever a library or a plugin prints is not the result.
    with warnings.catch_warnings(), messages_on_stderr():
        warnings.showwarning = lambda message, *_: _complain(f"warning: {message}")
        reporter = Reporter() if quiet or not is_main() else ConsoleReporter(plain_console(stderr=True))
        outcome = command(name).run(settings, reporter)
    if is_main():
        _print(outcome, as_json)
    return outcome.code


def _print(outcome: Outcome, as_json: bool) -> None:
    """Print a result; a reader that has left has what it wanted."""
    try:
        outcome.print(as_json)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # which rich makes of it
        discard(sys.stdout)
    except OSError as error:
        discard(sys.stdout)
        raise OSError(f"what was found is kept, but cannot be printed: {error.strerror}") from None


def _out_of_memory(name: str | None) -> str:
    """Say what takes less memory."""
    flags = parsers_of(make_parser())[name]._option_string_actions if name else ()
    ways = [words for flag, words in _SAVES_MEMORY.items() if flag in flags]
    return f"out of memory; what was done is kept; try {', '.join([*ways, 'or a machine with more memory'])}"


def _complain(message: object) -> None:
    """One line on standard error, from one of the processes that were started together."""
    if is_main():
        try:
            print(f"autodistil-search: {without_password(str(message))}", file=sys.stderr)
        except OSError:
            discard(sys.stderr)
