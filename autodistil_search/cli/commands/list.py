"""`list`: the names of objectives, engines, proxies, teachers and spaces."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from autodistil_search.base.errors import InputError
from autodistil_search.base.plugins import GROUPS, Plugins
from autodistil_search.cli.command import Command, Outcome
from autodistil_search.runs.named_parts import PROXIES_OF_TASKS, built_in, plugged
from autodistil_search.settings.recipes import PRESETS, shipped_recipes, summary

if TYPE_CHECKING:
    from rich.console import Console

    from autodistil_search.base.progress import Reporter


def _list(_: Mapping[str, Any], __: Reporter) -> Outcome:

    record = names_record(Plugins())
    return Outcome(record, partial(print_names, record))


def names_record(plugins: Plugins) -> dict[str, Any]:
    """Return the names by group: built-in ones, plug-ins with their origin and their error, and shipped recipes."""
    of_tasks = {"proxies": PROXIES_OF_TASKS}
    recipes = {name: summary(name) for name in shipped_recipes()}
    parts = {
        group: {
            "own": [*built_in(group), *of_tasks.get(group, ())],
            "installed": [_installed(plugins, group, name) for name in plugins.all_names(group)],
        }
        for group in GROUPS
    }
    return {
        **parts,
        "presets": {name: words for name, words in recipes.items() if name in PRESETS},
        "recipes": {name: words for name, words in recipes.items() if name not in PRESETS},
    }


def _installed(plugins: Plugins, group: str, name: str) -> dict[str, Any]:
    try:
        plugged(plugins, group, name)
    except InputError as error:
        return {"name": name, "origin": plugins.origin(group, name), "error": str(error)}
    return {"name": name, "origin": plugins.origin(group, name), "error": None}


def print_names(record: Mapping[str, Any], console: Console) -> None:
    """Print the built-in names of each group, its plug-ins with their package or their error, and the recipes."""
    for group in GROUPS:
        names = record[group]
        console.print(f"{group.replace('_', ' ')}: {', '.join(names['own'])}", highlight=False, soft_wrap=True)
        for plugin in names["installed"]:
            line = f"  {plugin['error'] or plugin['origin']}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    for kind in ("presets", "recipes"):
        console.print(f"{kind} (--{'preset' if kind == 'presets' else 'config'} NAME):")
        for name, words in record[kind].items():
            console.print(f"  {name}: {words}", highlight=False, markup=False, soft_wrap=True)


COMMAND = Command(
    "list",
    summary="list all names: built-in parts, plug-ins and recipes",
    description=(
        "List the names of objectives, engines, proxies, teachers and search spaces, built-in and installed, and the "
        "shipped presets and recipes."
    ),
    examples=("autodistil-search list", "autodistil-search list --json | jq .engines"),
    run=_list,
)
