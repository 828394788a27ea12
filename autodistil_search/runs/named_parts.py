"""Named parts of a search: built-in ones and plug-ins."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from autodistil_search.base.errors import InputError
from autodistil_search.base.plugins import Plugins
from autodistil_search.base.user_input import PACKAGED, meant, refuse_near_miss
from autodistil_search.nas import objectives
from autodistil_search.nas.objectives import COSINE, LABEL_FREE, PROBE, TASK
from autodistil_search.settings.search import BASELINES, SearchConfig
from autodistil_search.settings.train import TrainConfig
from autodistil_search.spaces.search_space import load_space, shipped_spaces
from autodistil_search.teachers.families import FAMILIES


def built_in(group: str) -> list[str]:
    """Return the built-in names of one of `plugins.GROUPS`, which no plug-in can have."""
    if group == "engines":
        from autodistil_search.nas.engines.registry import ENGINES  # pymoo and optuna, which training does not need

        return list(ENGINES)
    return {
        "objectives": list(objectives.NAMES),
        "proxies": list(LABEL_FREE),
        "teachers": [PACKAGED, *sorted(FAMILIES)],
        "search_spaces": shipped_spaces(),
    }[group]


def plugged(plugins: Plugins, group: str, name: str) -> Any:
    """Return the plug-in of that name, or None if no plug-in has the name.

    Raises:
        InputError: if the name is also built in or defined by another package, if the plug-in is not allowed, or if
            loading it fails.
    """
    return plugins.find(group, name, built_in(group))


def named_part(
    plugins: Plugins, group: str, flag: str, name: str, own: Mapping[str, Any], others: Sequence[str] = ()
) -> Any:
    """Return the built-in part or plug-in of that name.

    Args:
        plugins: Plug-ins that may define the name.
        group: Group of the part, from `plugins.GROUPS`.
        flag: Option that gave the name, for messages.
        name: Name of the part.
        own: Built-in parts by name.
        others: Further allowed values in words, for messages.

    Raises:
        InputError: if no part has the name; the message lists the allowed names.
    """
    plugin = plugged(plugins, group, name)
    if name in own:
        return own[name]
    if plugin is None:
        known = [*own, *others, *plugins.names(group)]
        raise InputError(f"{flag} {name!r}{meant(name, known)}; allowed: {', '.join(known)}")
    return plugin


def check_names(config: TrainConfig, plugins: Plugins | None = None) -> None:
    """Refuse an unknown space, objective, engine, proxy or baseline, before torch, the teacher or the text is loaded.

    plugins: parts that the config may name, in addition to installed ones.

    Raises:
        InputError: for the first unknown name; the message lists the allowed names.
    """
    plugins = plugins or Plugins()
    for name in config.space_names:
        if name not in plugins.names("search_spaces"):
            load_space(name)
    if not isinstance(config, SearchConfig):
        return
    known = [*objectives.NAMES, *plugins.names("objectives")]
    objectives.objective_names(config.objectives, known)
    for text in config.constraints:
        objectives.constraint_parts(text, known)
    if config.engine not in (engines := [*built_in("engines"), *plugins.names("engines")]):
        raise InputError(f"--engine {config.engine!r}{meant(config.engine, engines)}; allowed: {', '.join(engines)}")
    if not config.proxy.startswith(OF_TASKS):
        named_part(plugins, "proxies", "--proxy", config.proxy, dict.fromkeys(built_in("proxies")), PROXIES_OF_TASKS)
    for name in config.baseline_names:
        refuse_near_miss("--baselines", name, BASELINES, "hub ids and folders of encoders, or none")


OF_TASKS = (COSINE, PROBE, TASK)
PROXIES_OF_TASKS = [f"{kind}NAME" for kind in OF_TASKS]
"""Proxies that take the name of a task, for messages."""


def requested_objectives(config: SearchConfig) -> set[str]:
    """Return the names of objectives in the objectives and constraints of a search, and numbers of constraints."""
    return {word for text in (config.objectives, *config.constraints) for word in re.split(r"[\s,<>=]+", text)}


def plugin_origins(config: SearchConfig, plugins: Plugins) -> dict[str, str]:
    """Return the package and version of each plug-in on which the scores of a search depend."""
    requested = {
        "objectives": sorted(requested_objectives(config)),
        "proxies": [config.proxy],
        "teachers": [config.teacher],
        "search_spaces": config.space_names,
    }
    return {
        f"plug-in {name}": plugins.origin(group, name)
        for group, names in requested.items()
        for name in names
        if name in plugins.all_names(group)
    }
