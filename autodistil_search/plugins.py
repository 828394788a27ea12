"""What others add: objectives, engines, proxies, teachers and spaces, by entry points or handed over in Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from autodistil_search.errors import InputError

GROUPS = ("objectives", "engines", "proxies", "teachers", "search_spaces")
"""What can be added. A package offers it as entry points of the group `autodistil_search.<one of these>`."""


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
        """What there is of `group`, without loading it."""
        return sorted({*getattr(self, group), *_offered(group)})

    def find(self, group: str, name: str) -> Any:
        """What goes by that name; None if there is none.

        Raises:
            InputError: if an entry point offers it and cannot be loaded.
        """
        given: Mapping[str, Any] = getattr(self, group)
        if name in given:
            return given[name]
        if (offered := _offered(group).get(name)) is None:
            return None
        try:
            return offered.load()
        except Exception as error:  # other people's code
            raise InputError(f"{origin(group, name)} cannot be loaded: {type(error).__name__}: {error}") from error


def _offered(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"autodistil_search.{group}")}


def origin(group: str, name: str) -> str:
    """Where the entry point of that name comes from, in words."""
    point = _offered(group)[name]
    package = f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"
    return f"{name!r} of {group} ({point.value} of {package})"
