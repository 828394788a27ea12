"""`profile`: the costs of a space's subnets."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from autodistil_search.cli.command import Command, Outcome, json_record
from autodistil_search.cli.parser import add_settings
from autodistil_search.runs.named_parts import check_names
from autodistil_search.settings.search import PROFILED, SearchConfig

if TYPE_CHECKING:
    from rich.console import Console

    from autodistil_search.base.progress import Reporter
    from autodistil_search.runs.profile import Profiles


def _profile(settings: Mapping[str, Any], _: Reporter) -> Outcome:
    config = SearchConfig.from_dict(settings)
    check_names(config)

    from autodistil_search.runs.profile import profile

    profiled = profile(config)
    return Outcome(profiles_record(profiled), partial(print_profiles, profiled))


def profiles_record(profiled: Profiles) -> dict[str, Any]:
    """Return the profiled subnets of each space, with a row for each: role, sizes and costs."""
    spaces = [
        {
            "space": space.name,
            "subnets": space.size,
            "profiles": [profile.row for profile in profiles],
        }
        for space, profiles in profiled.spaces
    ]
    names = ("name", "label", "unit", "direction")
    columns = [{name: getattr(cost, name) for name in names} for cost in profiled.costs]
    return json_record({"columns": columns, "spaces": spaces})


def print_profiles(profiled: Profiles, console: Console) -> None:
    """Print a table for each space, with a column for each profiled subnet and a row for each cost.

    A line says if other processes disturbed the latencies.
    """
    from rich.table import Table

    from autodistil_search.report.views import shown

    for space, profiles in profiled.spaces:
        table = Table(title=f"{space.name}: {space.size:,} subnets", box=None, pad_edge=False, padding=(0, 1))
        table.add_column("", no_wrap=True)
        for profile in profiles:
            table.add_column(profile.role, justify="right", no_wrap=True)
        table.add_column("unit")
        table.add_row("subnet", *(str(profile.subnet).replace(", ", "\n") for profile in profiles), "")
        for cost in profiled.costs:
            table.add_row(cost.name, *(shown(profile.costs[cost.name]) for profile in profiles), cost.unit)
        console.print(table)
    if profiled.disturbed:
        console.print(profiled.disturbed, highlight=False, markup=False, soft_wrap=True)


COMMAND = Command(
    "profile",
    summary="measure the costs of a space's subnets",
    description="Measure the costs of a space's smallest, median and largest subnet, as a guide for constraints.",
    examples=(
        "autodistil-search profile --space tiny",
        "autodistil-search profile --space tiny,small --throughput-batch 64 --json",
    ),
    run=_profile,
    add_flags=partial(add_settings, config=SearchConfig, names=PROFILED),
)
