"""`validate-proxy`: rank correlations of a search's proxy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from autodistil_search.cli.command import Command, Outcome, json_record
from autodistil_search.cli.parser import add_positional_and_settings
from autodistil_search.settings.validate_proxy import ValidateConfig

if TYPE_CHECKING:
    from rich.console import Console

    from autodistil_search.base.progress import Reporter
    from autodistil_search.runs.validate_proxy import Validation


def _validate_proxy(settings: Mapping[str, Any], reporter: Reporter) -> Outcome:
    config = ValidateConfig(**settings)

    from autodistil_search.runs.validate_proxy import validate_proxy

    reporter.say(f"validating the proxy of {config.run}; results go to {config.folder}")
    found = validate_proxy(config, reporter)
    return Outcome(validation_record(found), partial(print_validation, found))


def validation_record(found: Validation) -> dict[str, Any]:
    """Rank correlations with their intervals, the measures they compare, and every measured subnet."""
    return json_record(
        {
            "folder": found.folder,
            "figure": found.folder / "ranking.png",
            "measures": [asdict(each) for each in found.measures],
            "ranking": found.ranking,
            "measured": found.measured,
            "notes": found.notes,
        }
    )


def print_validation(found: Validation, console: Console) -> None:
    """Rank correlations with their intervals, and what follows."""
    import numpy as np
    from rich.table import Table

    from autodistil_search.nas.rank_correlation import Agreement

    labels = {each.column: each.label for each in found.measures}
    table = Table(
        title=f"{len(found.measured)} subnets: Kendall's tau [95 %]", box=None, pad_edge=False, padding=(0, 1)
    )
    for name in ("measure", "ranks", "all", "within bands"):
        table.add_column(name)
    rows = found.ranking.to_dict("records")
    for whole, within in zip(rows[::2], rows[1::2], strict=True):
        taus = [Agreement(each["kendall"], each["kendall_low"], each["kendall_high"]) for each in (whole, within)]
        cells = [str(tau) if np.isfinite(tau.value) else "all alike" for tau in taus]
        table.add_row(labels[whole["measure"]], labels[whole["target"]], *cells)
    console.print(table)
    for note in found.notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"figure: {found.folder / 'ranking.png'}", highlight=False, markup=False, soft_wrap=True)


COMMAND = Command(
    "validate-proxy",
    summary="measure how well a proxy ranks, with confidence intervals",
    description=(
        "Measure how well the proxy of a finished search ranks subnets of similar cost, and whether it beats FLOPs."
    ),
    examples=(
        "autodistil-search validate-proxy runs/mine",
        "autodistil-search validate-proxy runs/mine --subnets 16 --probe topic --task topic",
    ),
    run=_validate_proxy,
    add_flags=partial(add_positional_and_settings, config=ValidateConfig, positional="run"),
)
