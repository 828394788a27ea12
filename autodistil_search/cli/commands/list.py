"""`list`: the names of objectives, engines, proxies, teachers and spaces."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from autodistil_search.base.errors import InputError
from autodistil_search.base.plugins import GROUPS, Plugins
from autodistil_search.cli.command import Command, Outcome
from autodistil_search.nas.objectives import COSINE, PROBE, TASK

if TYPE_CHECKING:
    from rich.console import Console

    from autodistil_search.base.progress import Reporter


def _list(_: Mapping[str, Any], __: Reporter) -> Outcome:

    record = names_record(Plugins())
    return Outcome(record, partial(print_names, record))


def names_record(plugins: Plugins) -> dict[str, Any]:
    """Return the names by group: built-in ones, and plug-ins with their origin and their error."""
    from autodistil_search.runs.named_parts import built_in  # loads torch, which other records do not need

    of_tasks = {"proxies": [f"{kind}NAME" for kind in (COSINE, PROBE, TASK)]}
    return {
        group: {
            "own": [*built_in(group), *of_tasks.get(group, ())],
            "installed": [_installed(plugins, group, name) for name in plugins.all_names(group)],
        }
        for group in GROUPS
    }


def _installed(plugins: Plugins, group: str, name: str) -> dict[str, Any]:
    from autodistil_search.runs.named_parts import plugged

    try:
        plugged(plugins, group, name)
    except InputError as error:
        return {"name": name, "origin": plugins.origin(group, name), "error": str(error)}
    return {"name": name, "origin": plugins.origin(group, name), "error": None}


def print_names(record: Mapping[str, Any], console: Console) -> None:
    """Print the built-in names of each group, and its plug-ins with their package or the error of loading them."""
    for group, names in record.items():
        console.print(f"{group.replace('_', ' ')}: {', '.join(names['own'])}", highlight=False, soft_wrap=True)
        for plugin in names["installed"]:
            line = f"  {plugin['error'] or plugin['origin']}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)


COMMAND = Command(
    "list",
    summary="list all names: built-in parts and plug-ins",
    description="List the names of objectives, engines, proxies, teachers and search spaces, built-in and installed.",
    examples=("autodistil-search list", "autodistil-search list --json | jq .engines"),
    run=_list,
)
