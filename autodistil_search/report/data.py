"""The report as data, with every number of its tables and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from autodistil_search.base.errors import InputError
from autodistil_search.nas import pareto
from autodistil_search.nas.baselines import Baseline
from autodistil_search.nas.evaluation import Evaluation
from autodistil_search.nas.objectives import Constraint, Objective
from autodistil_search.report.findings import NOT_TRAINED_FOR, VERSUS_BASELINE, Finding
from autodistil_search.report.headline import Headline
from autodistil_search.report.run_parts import RunPart

_FEW = 4
"""Largest number of objectives for which only the gain of hypervolume is computed; its time is n to this power."""

SUBNET_COLUMNS = ["space", "layers", "hidden_size", "mlp_ratio", "heads", "head_dim"]


@dataclass(frozen=True)
class ParetoReport:
    """Results of a finished search.

    Attributes:
        title: Names of the searched spaces.
        objectives: Objectives of the search, in order.
        columns: Quantities with a column: the objectives, the bounded quantities, FLOPs and parameters.
        constraints: Constraints that every subnet of the frontier keeps.
        evaluations: All scored subnets: `SUBNET_COLUMNS`, then a column for each measured quantity.
        frontier: Subnets that no other subnet dominates, ordered by the first cost. The column `knee` marks the one
            nearest to the ideal point.
        baselines: Hand-designed shapes measured in the same way; empty if there are none.
        published: Published results with their sources. Their metric differs, so they never share axes with the others.
        box: Ideal and reference value of each objective, by name; fixed at the start of the search.
        hypervolume: Volume between the frontier and the reference point, in the product of the objectives' units.
        hypervolume_share: Share of the box between the ideal and the reference point, from 0 to 1.
        progress: Hypervolume after each evaluation, in their order, and its share of the final one.
        engines: Share of the exact hypervolume that each engine reaches after a number of evaluations, as mean and
            standard deviation over a few seeds. Empty unless every subnet was scored.
        exact: True if every subnet within the bounds was scored. The frontier is then exact.
        conditions: Conditions of the measurements, as pairs of subject and description.
        findings: Facts that a reader should know before relying on the results.
        headline: The student for a budget beside baselines and teacher; None in a report without SuperLMs or of several
            runs.
        runs: Folders of the results and their further contents. In a report of several runs, every table has a column
            `run`, and the frontiers of the runs follow each other; see `overlay`.
    """

    title: str
    objectives: Sequence[Objective]
    columns: Sequence[Objective]
    constraints: Sequence[Constraint]
    evaluations: pd.DataFrame
    frontier: pd.DataFrame
    baselines: pd.DataFrame
    published: pd.DataFrame
    box: Mapping[str, Sequence[float]]
    hypervolume: float
    hypervolume_share: float
    progress: pd.DataFrame
    engines: pd.DataFrame
    exact: bool
    conditions: Sequence[tuple[str, str]] = field(default_factory=tuple)
    findings: Sequence[Finding] = field(default_factory=tuple)
    runs: Sequence[RunPart] = field(default_factory=tuple)
    headline: Headline | None = None

    @property
    def notes(self) -> list[str]:
        """Return the sentences of `findings`."""
        return [str(finding) for finding in self.findings]


def evaluation_table(evaluations: Sequence[Evaluation], columns: Sequence[str]) -> pd.DataFrame:
    """Return a table with a row for each evaluation: `SUBNET_COLUMNS`, then `columns`."""
    rows = [
        {
            "space": evaluation.space,
            **evaluation.subnet.to_row(),
            **{column: evaluation.measured.get(column, math.nan) for column in columns},
        }
        for evaluation in evaluations
    ]
    return pd.DataFrame(rows, columns=[*SUBNET_COLUMNS, *columns])


def minimised(table: pd.DataFrame, objectives: Sequence[Objective]) -> pareto.Values:
    """Return the `(n, m)` values of `objectives` in `table`, with signs such that lower is better."""
    columns = [[objective.minimised(value) for value in table[objective.name]] for objective in objectives]
    return np.array(columns, dtype=float).T.reshape(len(table), len(objectives))


def frontier_table(evaluations: pd.DataFrame, objectives: Sequence[Objective]) -> pd.DataFrame:
    """Return the rows of `evaluations` that no other row dominates, cheapest first, with the column `knee`."""
    on_frontier = pareto.is_on_frontier(minimised(evaluations, objectives))
    order = [objective for objective in objectives if not objective.is_proxy] or [objectives[0]]
    names, turned = (
        [objective.name for objective in order],
        {objective.name for objective in order if objective.direction == "maximize"},
    )
    frontier = evaluations[on_frontier].sort_values(
        [*names, *SUBNET_COLUMNS],
        ignore_index=True,
        key=lambda column: -column if column.name in turned else _sortable(column),
    )
    knee = pareto.knee(minimised(frontier, objectives))
    return frontier.assign(knee=frontier.index == knee)


def _sortable(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return a column as text if it mixes numbers with text, as sizes that differ from layer to layer are text."""
    return column.astype(str) if column.dtype == object else column


def baseline_table(baselines: Sequence[Baseline], columns: Sequence[Objective]) -> pd.DataFrame:
    """Return a table with a row for each measured baseline, including its values of `columns`."""
    names = [column.name for column in columns]
    rows = [
        {
            "name": baseline.name,
            **baseline.subnet.to_row(),
            **{name: baseline.measured.get(name, math.nan) for name in names},
            "how": baseline.how,
            "lr": math.nan if baseline.lr is None else float(f"{baseline.lr:.6g}"),
            "source": "measured in this run",
            "weights": str(baseline.weights or "not kept"),
        }
        for baseline in baselines
    ]
    return pd.DataFrame(rows, columns=["name", *SUBNET_COLUMNS[1:], *names, "how", "lr", "source", "weights"])


def against_frontier(evaluations: pd.DataFrame, baselines: pd.DataFrame, proxy: Objective) -> list[Finding]:
    """Return findings that compare the frontier with each baseline, at its proxy and at its FLOPs.

    The frontier of `evaluations` by proxy and FLOPs is interpolated linearly. It is not extrapolated beyond its ends.
    """
    values = np.column_stack([minimised(evaluations, [proxy])[:, 0], evaluations["flops"].to_numpy(float)])
    front = values[pareto.is_on_frontier(values)]
    front = front[np.argsort(front[:, 1])]  # costs and quality rise from row to row
    findings = []
    for row in baselines.to_dict("records"):
        known: dict[str, Any] = {"baseline": str(row["name"]), "how": str(row["how"]), "label": proxy.label}
        score, cost = float(row[proxy.name]), float(row["flops"])
        if np.isnan(score):
            findings.append(Finding(NOT_TRAINED_FOR, {**known, "weights": str(row["weights"])}))
        else:
            known |= {"flops": cost, "score": score, **_compared_with(front, proxy.minimised(score), cost)}
            findings.append(Finding(VERSUS_BASELINE, known))
    return findings


def _compared_with(front: pareto.Values, score: float, cost: float) -> dict[str, Any]:
    """Return the values of a comparison between a frontier and one point.

    The frontier is an array `(n, 2)` of score and cost, whose costs and quality rise from row to row. The result has:

    - `reached_with`: share of `cost` at which the frontier reaches `score`, or None;
    - `cheapest_reaches`: True if the cheapest row reaches `score`;
    - `compared_at`: share of `cost` at which scores are compared, or None if every row costs more;
    - `gain`: difference by which the frontier is better there, or None.
    """
    scores, costs = front.T
    needed = None if score < scores[-1] else float(np.interp(-score, -scores, costs))  # the cheapest row beyond the end
    comparable = cost >= costs[0]
    return {
        "reached_with": None if needed is None else needed / cost,
        "cheapest_reaches": bool(score >= scores[0]),
        "compared_at": min(1.0, float(costs[-1]) / cost) if comparable else None,
        "gain": score - float(np.interp(cost, costs, scores)) if comparable else None,  # the last row beyond the end
    }


def pareto_report(
    title: str,
    evaluations: Sequence[Evaluation],
    objectives: Sequence[Objective],
    columns: Sequence[Objective],
    constraints: Sequence[Constraint],
    box: Mapping[str, Sequence[float]],
    baselines: pd.DataFrame,
    published: pd.DataFrame,
    engines: pd.DataFrame,
    exact: bool,
    conditions: Mapping[str, Any],
    findings: Sequence[Finding],
) -> ParetoReport:
    """Compute frontier, knee and hypervolume of `evaluations`, and return them with the rest of the report.

    Raises:
        InputError: if no evaluation keeps the constraints.
    """
    measured = dict.fromkeys(name for evaluation in evaluations for name in evaluation.measured)
    names = dict.fromkeys((*(column.name for column in columns), *measured))
    table = evaluation_table(evaluations, list(names))
    check_kept(table, constraints)
    kept = table[keeps(table, constraints)]
    corners = [[objective.minimised(value) for value in box[objective.name]] for objective in objectives]
    ideal, reference = np.array(corners).T
    volume = pareto.hypervolume(minimised(kept, objectives), reference)
    return ParetoReport(
        title=title,
        objectives=objectives,
        columns=columns,
        constraints=constraints,
        evaluations=table,
        frontier=frontier_table(kept, objectives),
        baselines=baselines,
        published=published,
        box=dict(box),
        hypervolume=volume,
        hypervolume_share=pareto.share_of_box(minimised(kept, objectives), ideal, reference),
        progress=progress_table(table, objectives, constraints, reference),
        engines=engines,
        exact=exact,
        conditions=tuple((key, str(value)) for key, value in conditions.items()),
        findings=tuple(findings),
    )


def progress_table(
    evaluations: pd.DataFrame,
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
    reference: pareto.Values,
) -> pd.DataFrame:
    """Return the hypervolume after each row of `evaluations`: number of rows, volume and share of the final volume."""
    values, kept = minimised(evaluations, objectives), keeps(evaluations, constraints).to_numpy()
    front, volume, volumes = values[:0], 0.0, []
    for row, counts in zip(values, kept, strict=True):
        gain = 0.0
        if counts and not (front <= row).all(axis=1).any():
            if len(objectives) <= _FEW:
                gain = float(pareto.hypervolume_gains(front, row[None], reference)[0])
            else:
                gain = pareto.hypervolume(np.vstack([front, row]), reference) - volume
        if gain > 0:
            front = np.vstack([front, row])
            front, volume = front[pareto.is_on_frontier(front)], volume + gain
        volumes.append(volume)
    numbers = range(1, len(values) + 1)
    return pd.DataFrame({"evaluations": numbers, "hypervolume": volumes, "share": np.array(volumes) / (volume or 1.0)})


def check_kept(evaluations: pd.DataFrame, constraints: Sequence[Constraint]) -> None:
    """Refuse bounds that no scored subnet keeps.

    Raises:
        InputError: if no row keeps them; the message names the bounds and the best value reached for each.
    """
    if keeps(evaluations, constraints).any():
        return
    reached = []
    for constraint in constraints if len(evaluations) else ():
        values = evaluations[constraint.objective.name]
        reached.append(f"{constraint.objective.name} {min(values, key=constraint.excess):.4g}")
    raise InputError(
        f"none of the {len(evaluations)} scored subnets keeps {' and '.join(map(str, constraints))}"
        + (f"; best values reached: {', '.join(reached)}" if reached else "")
        + "; allowed: looser bounds, in another --out"
    )


def keeps(table: pd.DataFrame, constraints: Sequence[Constraint]) -> pd.Series[bool]:
    """Return True for each row that keeps all constraints."""
    kept = pd.Series(True, index=table.index)
    for constraint in constraints:
        kept &= table[constraint.objective.name].map(constraint.excess) <= 0
    return kept
