"""Parts by name: what is built in, and plug-ins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autodistil_search.base.errors import InputError
from autodistil_search.base.plugins import Plugins
from autodistil_search.base.user_input import PACKAGED
from autodistil_search.nas import objectives
from autodistil_search.nas.objectives import HIDDEN, RELATION
from autodistil_search.spaces.search_space import shipped_spaces
from autodistil_search.teachers.families import FAMILIES


def built_in(group: str) -> list[str]:
    """Return the names of one of `plugins.GROUPS` that are ours, which no plug-in can have."""
    if group == "engines":
        from autodistil_search.nas.engines.registry import ENGINES  # pymoo and optuna, which training does without

        return list(ENGINES)
    return {
        "objectives": list(objectives.NAMES),
        "proxies": [RELATION, HIDDEN],
        "teachers": [PACKAGED, *sorted(FAMILIES)],
        "search_spaces": shipped_spaces(),
    }[group]


def plugged(plugins: Plugins, group: str, name: str) -> Any:
    """Return the plug-in of that name, None if there is none.

    Raises:
        InputError: if the name is a built-in one or another package's, too; if it is not allowed, or loading fails.
    """
    return plugins.find(group, name, built_in(group))


def named_part(
    plugins: Plugins, group: str, flag: str, name: str, own: Mapping[str, Any], others: Sequence[str] = ()
) -> Any:
    """Return what is ours or a plug-in by that name. others: what is allowed, too, in words.

    Raises:
        InputError: if there is none; it lists what there is.
    """
    found = plugged(plugins, group, name)
    if name in own:
        return own[name]
    if found is None:
        raise InputError(f"{flag} {name!r}; allowed: {', '.join([*own, *others, *plugins.names(group)])}")
    return found
