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
    """Print a table of rank correlations for each target, and the remarks."""
    from rich.table import Table

    from autodistil_search.report.validation_table import ALL_EQUAL, ranking_table

    names = {measure.column: measure.column for measure in validation.measures}
    console.print(
        f"{len(validation.measured)} subnets: Kendall's tau [95 %]. Differences are within bands of similar FLOPs; "
        "+ and - mark those whose interval excludes 0.",
        highlight=False,
    )
    for target, rows in ranking_table(validation.ranking, names).groupby("target", sort=False):
        if (rows["all"] == ALL_EQUAL).all():
            continue  # a remark says so
        table = Table(title=f"for {target}", title_justify="left", box=None, pad_edge=False, padding=(0, 1))
        for column in rows.columns.drop("target"):
            table.add_column(column)
        for row in rows.drop(columns="target").itertuples(index=False):
            table.add_row(*row)
        console.print(table)
    for remark in validation.remarks:
        console.print(f"note: {remark}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"figure: {validation.folder / 'ranking.png'}", highlight=False, markup=False, soft_wrap=True)


COMMAND = Command(
    "validate-proxy",
    summary="measure how well a proxy ranks subnets, with confidence intervals",
    description=(
        "Measure how well proxies rank subnets of a finished search at similar cost, and whether they beat FLOPs and "
        "the default proxy."
    ),
    examples=(
        "autodistil-search validate-proxy runs/mine",
        "autodistil-search validate-proxy runs/mine --space tiny,shallow --subnets 16 --probe topic --task topic",
    ),
    run=_validate_proxy,
    add_flags=partial(add_positional_and_settings, config=ValidateConfig, positional="run"),
)
