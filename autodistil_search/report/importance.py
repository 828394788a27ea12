"""Importance of the sizes of a subnet for the objectives, by functional ANOVA of Optuna."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from autodistil_search.nas.objectives import COSTS, Objective
from autodistil_search.report.data import ParetoReport
from autodistil_search.report.findings import AT_EDGE, COUNTED, Finding, size_words
from autodistil_search.report.views import SIZE_LABELS, of_runs, sizes_of, varying_sizes

_FEWEST = 16
"""Least number of scored subnets of which an importance is estimated."""
_MOST = 500
"""Greatest number of scored subnets of which an importance is estimated, evenly selected."""
_TREES = 32
_DOMINANT = 0.5
"""Least share of an objective's variance that makes a size dominant."""
_AT_EDGE = 3
"""Least number of rows of a frontier that show, by a size that they share, that the space ends too early."""


def importance_table(report: ParetoReport) -> pd.DataFrame:
    """Return the share of each objective's variance that each size explains alone, by run.

    The share is the main effect of a functional ANOVA on random forests (Hutter et al., ICML 2014), as Optuna computes
    it. Shares do not add up to 1 if sizes interact.

    Returns:
        A table with a row for each size that varies: `size`, then a column for each objective with shares from 0 to 1.
        It has a column `run` in a report of several runs. It is empty below 16 scored subnets.
    """
    tables = []
    for run, rows in of_runs(report.evaluations):
        sizes = varying_sizes(rows)
        if len(rows) < _FEWEST or not sizes:
            continue
        drawn = rows.iloc[np.unique(np.linspace(0, len(rows) - 1, _MOST).astype(int))] if len(rows) > _MOST else rows
        columns = {objective.name: _shares(drawn, sizes, objective) for objective in report.objectives}
        named = {"run": run} if run else {}
        tables.append(pd.DataFrame({**named, "size": [SIZE_LABELS[name] for name in sizes], **columns}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["size"])


def _shares(rows: pd.DataFrame, sizes: Sequence[str], objective: Objective) -> list[float]:
    """Return the share of the variance of an objective that each size explains."""
    from optuna import create_study
    from optuna.distributions import FloatDistribution
    from optuna.importance import FanovaImportanceEvaluator
    from optuna.logging import WARNING, get_verbosity, set_verbosity
    from optuna.trial import create_trial

    columns = {name: sizes_of(rows, name) for name in sizes}
    spans: dict[str, Any] = {name: FloatDistribution(min(values), max(values)) for name, values in columns.items()}
    if np.ptp(rows[objective.name].to_numpy(float)) == 0:
        return [0.0] * len(sizes)
    verbosity = get_verbosity()
    set_verbosity(WARNING)
    try:
        study = create_study()
        study.add_trials(
            [
                create_trial(params=dict(zip(columns, values, strict=True)), distributions=spans, value=float(value))
                for *values, value in zip(*columns.values(), rows[objective.name], strict=True)
            ]
        )
        found = FanovaImportanceEvaluator(n_trees=_TREES, seed=0).evaluate(study)
    finally:
        set_verbosity(verbosity)
    return [float(found[name]) for name in sizes]


def importance_words(report: ParetoReport, table: pd.DataFrame) -> list[str]:
    """Return a sentence for each run and objective: the size that explains most of it, and its values on the frontier.

    Exact costs such as FLOPs are left out, because they follow from the sizes.

    table: result of `importance_table`.
    """
    names = {label: name for name, label in SIZE_LABELS.items()}
    counts = {run: len(rows) for run, rows in of_runs(report.evaluations)}
    frontiers = dict(of_runs(report.frontier))
    sentences = []
    for run, run_table in of_runs(table) if len(table) else ():
        shares = run_table.set_index("size")
        for objective in _not_exact(report.objectives):
            size = str(shares[objective.name].idxmax())
            share = float(shares[objective.name].max())
            if share == 0:
                continue
            value, rows_with_it = Counter(sizes_of(frontiers[run], names[size])).most_common(1)[0]
            subject = f"number of {size}" if size in COUNTED else size
            verb = "dominates: it explains" if share >= _DOMINANT else "matters most: it explains"
            sentences.append(
                f"{f'{run}: ' if run else ''}The {subject} {verb} {share:.0%} of the variance of {objective.label} "
                f"over {counts[run]:,} scored subnets; {rows_with_it} of the {len(frontiers[run])} subnets of the "
                f"frontier have {size_words(size, value)}."
            )
    return sentences


def _not_exact(objectives: Sequence[Objective]) -> list[Objective]:
    """Return the objectives that sizes alone do not determine, or all objectives if there is no such objective."""
    exact = {cost.name for cost in COSTS}
    return [objective for objective in objectives if objective.name not in exact] or list(objectives)


def edge_findings(report: ParetoReport) -> list[Finding]:
    """Return a finding for each space whose part of the frontier shares the smallest or largest value of a size.

    A frontier at the edge of a space may continue beyond it.
    """
    findings = []
    frontiers = dict(of_runs(report.frontier))
    for run, evaluations in of_runs(report.evaluations):
        for space, scored in evaluations.groupby("space", sort=False):
            rows = frontiers[run][frontiers[run]["space"] == space]
            shared = [_edge(scored, rows, name) for name in varying_sizes(scored)] if len(rows) >= _AT_EDGE else []
            if sizes := [size for size in shared if size is not None]:
                findings.append(Finding(AT_EDGE, {"space": str(space), "subnets": len(rows), "sizes": sizes}, run))
    return findings


def _edge(scored: pd.DataFrame, rows: pd.DataFrame, name: str) -> dict[str, Any] | None:
    """Return the size, its value and its edge if all `rows` share an extreme value of the scored ones, else None."""
    values, extremes = set(sizes_of(rows, name)), sizes_of(scored, name)
    for edge, value in (("smallest", min(extremes)), ("largest", max(extremes))):
        if values == {value}:
            return {"size": SIZE_LABELS[name], "value": value, "edge": edge}
    return None
