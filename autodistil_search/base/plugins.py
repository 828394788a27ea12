"""Plug-ins: objectives, engines, proxies, teachers and search spaces from entry points or from Python."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from autodistil_search.base.errors import InputError, Terminated

GROUPS = ("objectives", "engines", "proxies", "teachers", "search_spaces")
"""Groups of plug-ins. A package declares a plug-in as an entry point of the group `autodistil_search.<group>`."""

_NAME = r"\w[\w.+-]{0,63}"
NAMES = "up to 64 letters, digits, '_', '-', '.' and '+', a letter, digit or '_' first"
"""Rule of allowed names, for messages."""
_LONGEST = 200
"""Characters to which a value or an error is cut in a message."""
_PASSED_ON = (InputError, KeyboardInterrupt, MemoryError, Terminated)
"""Exceptions of a plug-in that are passed on unchanged."""


@dataclass(frozen=True)
class Plugins:
    """Plug-ins that a Python caller adds, by name; they take precedence over those of entry points.

    Args:
        objectives: Instances of `Objective`.
        engines: Factories of engines; see `engines.MakeEngine`.
        proxies: Factories of proxies; see `proxies.MakeProxy`.
        teachers: Functions that return a model and its tokenizer.
        search_spaces: Instances of `SearchSpace`, or paths of YAML files.
    """

    objectives: Mapping[str, Any] = field(default_factory=dict)
    engines: Mapping[str, Any] = field(default_factory=dict)
    proxies: Mapping[str, Any] = field(default_factory=dict)
    teachers: Mapping[str, Any] = field(default_factory=dict)
    search_spaces: Mapping[str, Any] = field(default_factory=dict)

    def names(self, group: str) -> list[str]:
        """Return the valid names of `group`, without loading any plug-in."""
        return [name for name in self.all_names(group) if is_name(name)]

    def all_names(self, group: str) -> list[str]:
        """Return all names of `group`, including invalid names, which cannot be selected."""
        return sorted({*getattr(self, group), *_offered(group)})

    def find(self, group: str, name: str, own: Collection[str]) -> Any:
        """Return the plug-in with a name; None if there is none. All plug-ins are loaded by this method.

        Args:
            group: One of `GROUPS`.
            name: Name of the plug-in.
            own: Built-in names of the group.

        Raises:
            InputError: if the name is also built in, is invalid, or is declared by two packages; or if an entry point
                cannot be loaded.
        """
        given: Mapping[str, Any] = getattr(self, group)
        points = _offered(group).get(name, [])
        if name not in given and not points:
            return None
        if not is_name(name):
            raise InputError(f"{self.origin(group, name)} has a name that is not allowed; allowed: {NAMES}")
        if name in own:
            raise InputError(f"{self.origin(group, name)} has a built-in name; allowed: another name, or uninstall it")
        if name in given:
            return given[name]
        if len(points) > 1:
            raise InputError(
                f"{self.origin(group, name)} are two of the same name; allowed: only one of these packages"
            )
        with guarded(f"{self.origin(group, name)} cannot be loaded"):
            return points[0].load()

    def origin(self, group: str, name: str) -> str:
        """Return a description of a plug-in by its name and its source, for messages."""
        if name in getattr(self, group):
            return f"{name!r} of {group} (given in Python)"
        sources = " and ".join(f"{point.value} of {_package(point)}" for point in _offered(group)[name])
        return " ".join(f"{name!r} of {group} ({sources})".split())


def is_name(text: object) -> bool:
    """Return True if `text` is a valid name for the command line and for a column of a table."""
    return isinstance(text, str) and re.fullmatch(_NAME, text) is not None


def _offered(group: str) -> dict[str, list[EntryPoint]]:
    """Return the entry points of a group by name; a package that is twice on the path counts once."""
    by_name: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    for point in entry_points(group=f"autodistil_search.{group}"):
        by_name.setdefault(point.name, {}).setdefault((point.value, _package(point)), point)
    return {name: list(points.values()) for name, points in by_name.items()}


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Run the code of a plug-in in the context, and turn its errors into InputError.

    Interrupts, `MemoryError`, `Terminated` and `InputError` are passed on unchanged.

    Args:
        what: Beginning of the message.

    Raises:
        InputError: for any other exception, including `SystemExit`: one line with `what` and the error with its type.
    """
    try:
        yield
    except _PASSED_ON:
        raise
    except BaseException as error:
        raise InputError(f"{what}: {shown(error)}") from error


def shown(value: object) -> str:
    """Return the text of a value for a message: one line, shortened, with the type.

    Args:
        value: Any object or exception; its own text may be long, have several lines, or raise an error.
    """
    kind = type(value).__name__
    try:
        words = str(value) if isinstance(value, BaseException) else repr(value)
    except Exception:  # for example an integer with more digits than Python prints
        words = "a value that cannot be printed"
    words = " ".join("".join(letter if letter.isprintable() else " " for letter in words).split())
    if len(words) > _LONGEST:
        words = f"{words[:_LONGEST]}..."
    if isinstance(value, BaseException):
        return f"{kind}: {words}" if words else kind
    return f"{words} ({kind})"
