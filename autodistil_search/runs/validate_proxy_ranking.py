"""The comparison of measures in a proxy validation: rank correlations, and whether one ranks better than another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from autodistil_search.nas.rank_correlation import STATISTICS, Agreement, Array, Groups, agreement, gain, kendall
from autodistil_search.report.findings import NOTHING_TO_RANK, Finding, comparison
from autodistil_search.report.validation_table import interval
from autodistil_search.runs.validate_proxy_measures import Measures

_UNDEFINED = Agreement(np.nan, np.nan, np.nan)


def rank(measured: pd.DataFrame, measures: Measures) -> pd.DataFrame:
    """Return the rank correlations of each measure with each target, over all subnets and within bands.

    Each number has the ends of its 95 % interval. `over_flops` and `over_default` are the differences from Kendall's
    tau of FLOPs and of the default proxy with the same target, on the same resamples. The second is known only for
    other proxies on shared weights, and for targets with labels.
    """
    sides, rows = _sides(measured, measures), []
    scopes = {"all": np.zeros(len(measured), dtype=np.int64), "within bands": measured["band"].to_numpy(np.int64)}
    for column, target in measures.pairs:
        for scope, groups in scopes.items():
            row: dict[str, Any] = {"measure": column, "target": target, "scope": scope, "subnets": len(measured)}
            for name, statistic in STATISTICS.items():
                row |= _columns(name, agreement(statistic, sides[column], sides[target], groups))
            for name, other in (("over_flops", "flops"), ("over_default", measures.default)):
                row |= _columns(name, _gain(measures, sides, (column, other, target), groups))
            rows.append(row)
    return pd.DataFrame(rows)


def _gain(measures: Measures, sides: dict[str, Array], columns: tuple[str, str, str], groups: Groups) -> Agreement:
    """Return the gain of a measure over another one; undefined if they are not to be compared."""
    column, other, target = columns
    shared = [measure.column for measure in measures.shared]
    compared = other == "flops" or (column in shared and (other, target) in measures.pairs)
    if column in ("flops", other) or not compared:
        return _UNDEFINED
    return gain(kendall, sides[column], sides[other], sides[target], groups)


def _columns(name: str, correlation: Agreement) -> dict[str, float]:
    return {name: correlation.value, f"{name}_low": correlation.low, f"{name}_high": correlation.high}


def _sides(measured: pd.DataFrame, measures: Measures) -> dict[str, Array]:
    """Return the values of each column, with signs such that higher is better."""
    return {
        measure.column: (1 if measure.higher_is_better else -1) * measured[measure.column].to_numpy(float)
        for measure in measures.all
    }


def conclusions(ranking: pd.DataFrame, measured: pd.DataFrame, measures: Measures) -> list[Finding]:
    """Return findings that compare each measure with FLOPs and with the default proxy within bands of cost."""
    labels = {measure.column: measure.label for measure in measures.all}
    targets = dict.fromkeys(target for _, target in measures.pairs)
    alike = [target for target in targets if measured.groupby("band")[target].nunique().max() == 1]
    findings = [Finding(NOTHING_TO_RANK, {"target": labels[target]}) for target in alike]
    rows = ranking[ranking["scope"] == "within bands"].to_dict("records")
    within: dict[tuple[str, str], Mapping[Any, Any]] = {(row["measure"], row["target"]): row for row in rows}
    for (column, target), row in within.items():
        for name, other in (("over_flops", "flops"), ("over_default", measures.default)):
            if target not in alike and np.isfinite(row[name]):
                taus = interval(row, "kendall"), interval(within[other, target], "kendall"), interval(row, name)
                default = "" if other == "flops" else labels[other]
                findings.append(comparison(labels[column], labels[target], *taus, len(measured), default))
    return findings
