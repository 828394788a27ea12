"""The rank correlations of a proxy validation, as a table of words and as the rows of its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from autodistil_search.nas.rank_correlation import Agreement

ALONE = "alone_"
"""Prefix of a proxy's column for the subnet that was trained alone."""
ALL_EQUAL = "all equal"
"""Text in place of a rank correlation where a measure or its target is the same for all subnets."""
_OF_DIFFERENCES = {"minus FLOPs": "over_flops", "minus the default proxy": "over_default"}


def interval(row: Mapping[Any, Any], column: str) -> Agreement:
    """Return the value of a column of `ranking.csv` with the ends of its 95 % interval."""
    return Agreement(float(row[column]), float(row[f"{column}_low"]), float(row[f"{column}_high"]))


def ranking_table(ranking: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Return Kendall's tau of each measure with each target as text, with 95 % intervals.

    Differences within bands end with "+" or "-" if their interval excludes 0.

    Args:
        ranking: Table of `ranking.csv`.
        names: Names of the measures by column.
    """
    rows = []
    for (target, measure), pair in ranking.groupby(["target", "measure"], sort=False):
        scopes = {str(row["scope"]): row for row in pair.to_dict("records")}
        row = {"target": names[str(target)], "measure": names[str(measure)]}
        row |= {scope: _cell(interval(entry, "kendall")) for scope, entry in scopes.items()}
        differences = {title: interval(scopes["within bands"], column) for title, column in _OF_DIFFERENCES.items()}
        rows.append(row | {title: _difference(agreement) for title, agreement in differences.items()})
    return pd.DataFrame(rows)


def _cell(agreement: Agreement) -> str:
    return str(agreement) if np.isfinite(agreement.value) else ALL_EQUAL


def _difference(agreement: Agreement) -> str:
    if not np.isfinite(agreement.value):
        return ""
    return f"{agreement}{' +' if agreement.low > 0 else ' -' if agreement.high < 0 else ''}"


@dataclass(frozen=True)
class Panel:
    """Part of a figure of rank correlations.

    Attributes:
        title: Title of the panel.
        rows: Table with a row for each measure: `label`, `is_flops`, `kendall`, `kendall_low` and `kendall_high` within
            bands, and `over_all`, Kendall's tau over all subnets.
    """

    title: str
    rows: pd.DataFrame


def panels(ranking: pd.DataFrame, labels: Mapping[str, str]) -> list[Panel]:
    """Return a panel for each target; the targets of training alone, with one proxy each, share a panel.

    Targets that are the same for all subnets are left out, unless all are.

    Args:
        ranking: Table of `ranking.csv`.
        labels: Label of each column.
    """
    keys = ["measure", "target"]
    over_all = ranking[ranking["scope"] == "all"].set_index(keys)["kendall"]
    within = ranking[ranking["scope"] == "within bands"].set_index(keys)
    within = within.assign(over_all=over_all).reset_index()
    within["is_flops"] = within["measure"] == "flops"
    alone = within["target"].str.startswith(ALONE)
    within["label"] = within["measure"].map(labels)
    named = "FLOPs for " + within["target"].map(labels)
    within["label"] = within["label"].where(~(alone & within["is_flops"]), named)
    shared = [Panel("for the same measure, trained alone", within[alone])] if alone.any() else []
    single = [
        Panel(f"for {labels[str(target)]}", rows) for target, rows in within[~alone].groupby("target", sort=False)
    ]
    everything = [*shared, *single]
    return [panel for panel in everything if panel.rows["over_all"].notna().any()] or everything
