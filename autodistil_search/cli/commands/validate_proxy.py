"""`validate-proxy`: the rank correlations of a search's proxy."""

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

    reporter.say(f"validating the proxy of {config.run}; results go to {config.folder}")

    from autodistil_search.runs.validate_proxy import validate_proxy

    validation = validate_proxy(config, reporter)
    return Outcome(validation_record(validation), partial(print_validation, validation))


def validation_record(validation: Validation) -> dict[str, Any]:
    """Return the rank correlations with their intervals, the compared measures, and every measured subnet."""
    return json_record(
        {
            "folder": validation.folder,
            "figure": validation.folder / "ranking.png",
            "measures": [asdict(measure) for measure in validation.measures],
            "ranking": validation.ranking,
            "measured": validation.measured,
            "notes": validation.notes,
        }
    )


def print_validation(validation: Validation, console: Console) -> None:
    """Print the rank correlations with their intervals, and the conclusions."""
    import numpy as np
    from rich.table import Table

    from autodistil_search.nas.rank_correlation import Agreement

    labels = {measure.column: measure.label for measure in validation.measures}
    table = Table(
        title=f"{len(validation.measured)} subnets: Kendall's tau [95 %]", box=None, pad_edge=False, padding=(0, 1)
    )
    for name in ("measure", "ranks", "all", "within bands"):
        table.add_column(name)
    rows = validation.ranking.to_dict("records")
    for whole, within in zip(rows[::2], rows[1::2], strict=True):
        taus = [Agreement(row["kendall"], row["kendall_low"], row["kendall_high"]) for row in (whole, within)]
        cells = [str(tau) if np.isfinite(tau.value) else "all equal" for tau in taus]
        table.add_row(labels[whole["measure"]], labels[whole["target"]], *cells)
    console.print(table)
    for note in validation.notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"figure: {validation.folder / 'ranking.png'}", highlight=False, markup=False, soft_wrap=True)


COMMAND = Command(
    "validate-proxy",
    summary="measure how well a proxy ranks subnets, with confidence intervals",
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
