"""`profile`: the costs of a space's subnets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from autodistil_search.base.plugins import Plugins
from autodistil_search.cli.command import Command, Outcome, json_record
from autodistil_search.cli.parser import add_settings
from autodistil_search.nas.evaluation import DISTURBANCE
from autodistil_search.nas.objectives import Objective
from autodistil_search.runs.named_parts import check_names
from autodistil_search.settings.search import SearchConfig
from autodistil_search.spaces.search_space import SearchSpace

if TYPE_CHECKING:
    from rich.console import Console

    from autodistil_search.base.progress import Reporter
    from autodistil_search.runs.profile import Profile


_PROFILED = ("space", "teacher", "device", "precision", "latency_batch", "throughput_batch", "measured_seq_len")
"""Settings on which costs depend."""


def _profile(settings: Mapping[str, Any], _: Reporter) -> Outcome:
    config, plugins = SearchConfig.from_dict(settings), Plugins()
    check_names(config)
    from autodistil_search.base.device import choose_device
    from autodistil_search.runs.profile import profile_space
    from autodistil_search.runs.search_inputs import check_measured_length, known_objectives
    from autodistil_search.runs.training_inputs import find_teacher, load_spaces

    spaces = load_spaces(config.space_names)
    device = choose_device(config.device, config.precision)
    teacher = find_teacher(config, device, plugins)
    check_measured_length(config.measured_seq_len, teacher)
    costs = [cost for cost in known_objectives(config, device, plugins).values() if not cost.is_proxy]
    profiled = [(space, profile_space(space, teacher, costs)) for space in spaces]
    return Outcome(profiles_record(profiled, costs), partial(print_profiles, profiled, costs))


def profiles_record(
    profiled: Sequence[tuple[SearchSpace, Sequence[Profile]]], costs: Sequence[Objective]
) -> dict[str, Any]:
    """Return the profiled subnets of each space, with a row for each: role, sizes and `costs`."""
    spaces = [
        {
            "space": space.name,
            "subnets": space.size,
            "profiles": [{"role": profile.role, **profile.subnet.to_row(), **profile.costs} for profile in profiles],
        }
        for space, profiles in profiled
    ]
    columns = [{key: getattr(cost, key) for key in ("name", "label", "unit", "direction")} for cost in costs]
    return json_record({"columns": columns, "spaces": spaces})


def print_profiles(
    profiled: Sequence[tuple[SearchSpace, Sequence[Profile]]], costs: Sequence[Objective], console: Console
) -> None:
    """Print a table for each space, with a column for each profiled subnet and a row for each cost.

    A line says if other processes disturbed the latencies.
    """
    from rich.table import Table

    from autodistil_search.report.findings import disturbed_latency
    from autodistil_search.report.views import shown

    for space, profiles in profiled:
        table = Table(title=f"{space.name}: {space.size:,} subnets", box=None, pad_edge=False, padding=(0, 1))
        table.add_column("", no_wrap=True)
        for profile in profiles:
            table.add_column(profile.role, justify="right", no_wrap=True)
        table.add_column("unit")
        table.add_row("subnet", *(str(profile.subnet).replace(", ", "\n") for profile in profiles), "")
        for cost in costs:
            table.add_row(cost.name, *(shown(profile.costs[cost.name]) for profile in profiles), cost.unit)
        console.print(table)
    shares = [profile.costs.get(DISTURBANCE) for _, profiles in profiled for profile in profiles]
    if finding := disturbed_latency([share for share in shares if share is not None]):
        console.print(str(finding), highlight=False, markup=False, soft_wrap=True)


COMMAND = Command(
    "profile",
    summary="measure the costs of a space's subnets",
    description="Measure the costs of a space's smallest, median and largest subnet, as a guide for constraints.",
    examples=(
        "autodistil-search profile --space tiny",
        "autodistil-search profile --space tiny,small --throughput-batch 64 --json",
    ),
    run=_profile,
    add_flags=partial(add_settings, config=SearchConfig, names=_PROFILED),
)
