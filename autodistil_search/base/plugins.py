"""What others add: objectives, engines, proxies, teachers and spaces, by entry points or handed over in Python."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from autodistil_search.base.errors import InputError, Terminated

GROUPS = ("objectives", "engines", "proxies", "teachers", "search_spaces")
"""What can be added. A package offers it as entry points of the group `autodistil_search.<one of these>`."""

_NAME = r"\w[\w.+-]{0,63}"
NAMES = "up to 64 letters, digits, '_', '-', '.' and '+', a letter, digit or '_' first"
"""Names that are allowed, in words."""
_LONGEST = 200
"""Letters of a value or an error in a message."""
_OURS_TO_RAISE = (InputError, KeyboardInterrupt, MemoryError, Terminated)
"""What passes through other people's code as it is."""


@dataclass(frozen=True)
class Plugins:
    """What a Python caller adds, by name; it comes before what entry points offer.

    Args:
        objectives: `Objective`s.
        engines: What makes an engine; see `engines.MakeEngine`.
        proxies: What makes a proxy; see `proxies.MakeProxy`.
        teachers: Functions that give a model and its tokenizer.
        search_spaces: `SearchSpace`s, or paths of YAML files.
    """

    objectives: Mapping[str, Any] = field(default_factory=dict)
    engines: Mapping[str, Any] = field(default_factory=dict)
    proxies: Mapping[str, Any] = field(default_factory=dict)
    teachers: Mapping[str, Any] = field(default_factory=dict)
    search_spaces: Mapping[str, Any] = field(default_factory=dict)

    def names(self, group: str) -> list[str]:
        """Return the names of `group` that can be asked for, without loading anything."""
        return [name for name in self.all_names(group) if is_name(name)]

    def all_names(self, group: str) -> list[str]:
        """Return the names of `group`, those that cannot be asked for among them."""
        return sorted({*getattr(self, group), *_offered(group)})

    def find(self, group: str, name: str, own: Collection[str]) -> Any:
        """Return what goes by that name; None if there is none. Every plug-in is taken from here.

        Args:
            group: One of `GROUPS`.
            name: As it was asked for.
            own: Names of the group that are built in.

        Raises:
            InputError: if the name is built in, too, is not allowed, or is offered by two packages; if an entry point
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
            raise InputError(f"{self.origin(group, name)} are two of one name; allowed: one of these packages")
        with guarded(f"{self.origin(group, name)} cannot be loaded"):
            return points[0].load()

    def origin(self, group: str, name: str) -> str:
        """Return in words where what goes by that name comes from."""
        if name in getattr(self, group):
            return f"{name!r} of {group} (given in Python)"
        found = " and ".join(f"{point.value} of {_package(point)}" for point in _offered(group)[name])
        return " ".join(f"{name!r} of {group} ({found})".split())


def is_name(text: object) -> bool:
    """Return whether something can be asked for by that name on the command line, and name a column."""
    return isinstance(text, str) and re.fullmatch(_NAME, text) is not None


def _offered(group: str) -> dict[str, list[EntryPoint]]:
    """Return entry points by name; a package that is found twice on the path counts once."""
    found: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    for point in entry_points(group=f"autodistil_search.{group}"):
        found.setdefault(point.name, {}).setdefault((point.value, _package(point)), point)
    return {name: list(points.values()) for name, points in found.items()}


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Run other people's code inside.

    Raises:
        InputError: for whatever it raises, `SystemExit` included: one line, `what` and the error with its type.
            Interrupts, lack of memory and errors that are for the user pass as they are.
    """
    try:
        yield
    except _OURS_TO_RAISE:
        raise
    except BaseException as error:
        raise InputError(f"{what}: {shown(error)}") from error


def shown(value: object) -> str:
    """Return a value as a message shows it: in one line, cut, with its type.

    Args:
        value: Anything, an exception too, whose own words may be long, several lines, or not to be had.
    """
    kind = type(value).__name__
    try:
        words = str(value) if isinstance(value, BaseException) else repr(value)
    except Exception:  # such as an integer of more digits than Python prints
        words = "a value that cannot be printed"
    words = " ".join("".join(letter if letter.isprintable() else " " for letter in words).split())
    if len(words) > _LONGEST:
        words = f"{words[:_LONGEST]}..."
    if isinstance(value, BaseException):
        return f"{kind}: {words}" if words else kind
    return f"{words} ({kind})"
