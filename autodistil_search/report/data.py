"""The report as data: every number that a table or figure shows is decided here."""

from __future__ import annotations

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
from autodistil_search.report.run_parts import RunPart

_FEW = 4
"""Objectives up to which a subnet's gain is found without the volume of all; the time grows with n to their number."""

SUBNET_COLUMNS = ["space", "layers", "hidden_size", "mlp_ratio", "heads", "head_dim"]


@dataclass(frozen=True)
class ParetoReport:
    """A finished search.

    Attributes:
        title: What was searched.
        objectives: What was minimised or maximised, in order.
        columns: What has a column: the objectives, what was bounded, FLOPs and parameters.
        constraints: What a subnet must keep to be on the frontier.
        evaluations: All scored subnets: `SUBNET_COLUMNS`, then a column for each number measured.
        frontier: The rows that no other dominates, by the first cost, with `knee` True on the balanced choice.
        baselines: Hand-designed shapes measured in the same way; empty if there are none.
        published: Published results with sources; another metric, never on the same axes.
        box: The ideal and the reference value of each objective, by name; fixed when the search began.
        hypervolume: Between the frontier and the reference point, in the product of the objectives' units.
        hypervolume_share: Of the box between the ideal and the reference point; 0 to 1.
        progress: The hypervolume after each evaluation, in their order, and its share of the last.
        engines: Where every subnet was scored: the share of the exact hypervolume that each engine would have had after
            so many evaluations, mean and standard deviation of a few seeds; else empty.
        exact: Whether every subnet within the bounds was scored, so that the frontier is the exact one.
        conditions: How things were measured: (what, how) pairs.
        findings: What a reader should know before trusting the result.
        runs: Where it comes from, and what else lies there. If there are several, every table has a column `run`, and
            the frontier is that of each run, one after the other; see `overlay`.
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

    @property
    def notes(self) -> list[str]:
        """Return the sentences of `findings`."""
        return [str(finding) for finding in self.findings]


def evaluation_table(evaluations: Sequence[Evaluation], columns: Sequence[str]) -> pd.DataFrame:
    """One row for each evaluation: `SUBNET_COLUMNS`, then `columns`."""
    rows = [
        {
            "space": evaluation.space,
            **evaluation.subnet.to_row(),
            **{column: evaluation.measured[column] for column in columns},
        }
        for evaluation in evaluations
    ]
    return pd.DataFrame(rows, columns=[*SUBNET_COLUMNS, *columns])


def minimised(table: pd.DataFrame, objectives: Sequence[Objective]) -> pareto.Values:
    """The `(n, m)` values of `objectives` in `table`, signs turned such that lower is better."""
    columns = [[objective.minimised(value) for value in table[objective.name]] for objective in objectives]
    return np.array(columns, dtype=float).T.reshape(len(table), len(objectives))


def frontier_table(evaluations: pd.DataFrame, objectives: Sequence[Objective]) -> pd.DataFrame:
    """The rows of `evaluations` that no other dominates, cheapest first, with the column `knee`."""
    on_frontier = pareto.is_on_frontier(minimised(evaluations, objectives))
    order = [objective for objective in objectives if not objective.is_proxy] or [objectives[0]]
    names, turned = [each.name for each in order], {each.name for each in order if each.direction == "maximize"}
    frontier = evaluations[on_frontier].sort_values(
        [*names, *SUBNET_COLUMNS],
        ignore_index=True,
        key=lambda column: -column if column.name in turned else _sortable(column),
    )
    knee = pareto.knee(minimised(frontier, objectives))
    return frontier.assign(knee=frontier.index == knee)


def _sortable(column: pd.Series[Any]) -> pd.Series[Any]:
    """Sizes that differ from layer to layer are text, among numbers."""
    return column.astype(str) if column.dtype == object else column


def baseline_table(baselines: Sequence[Baseline], columns: Sequence[Objective]) -> pd.DataFrame:
    """One row for each measured baseline, with what was measured of `columns`."""
    names = [column.name for column in columns]
    rows = [
        {
            "name": baseline.name,
            **baseline.subnet.to_row(),
            **{name: baseline.measured[name] for name in names},
            "how": baseline.how,
            "source": "measured in this run",
            "weights": str(baseline.weights or "not kept"),
        }
        for baseline in baselines
    ]
    return pd.DataFrame(rows, columns=["name", *SUBNET_COLUMNS[1:], *names, "how", "source", "weights"])


def against_frontier(evaluations: pd.DataFrame, baselines: pd.DataFrame, proxy: Objective) -> list[Finding]:
    """Return what the frontier has at each baseline's proxy and at its FLOPs.

    Between neighbours on the frontier of `evaluations` by proxy and FLOPs values are interpolated; beyond its ends
    nothing is made up.
    """
    values = np.column_stack([minimised(evaluations, [proxy])[:, 0], evaluations["flops"].to_numpy(float)])
    front = values[pareto.is_on_frontier(values)]
    front = front[np.argsort(front[:, 1])]  # dearer and better from row to row
    findings = []
    for row in baselines.to_dict("records"):
        known: dict[str, Any] = {"baseline": str(row["name"]), "how": str(row["how"]), "label": proxy.label}
        score, cost = float(row[proxy.name]), float(row["flops"])
        if np.isnan(score):
            findings.append(Finding(NOT_TRAINED_FOR, {**known, "weights": str(row["weights"])}))
        else:
            known |= {"flops": cost, "score": score, **_against(front, proxy.minimised(score), cost)}
            findings.append(Finding(VERSUS_BASELINE, known))
    return findings


def _against(front: pareto.Values, score: float, cost: float) -> dict[str, Any]:
    """Return how a frontier `(n, 2)` of score and cost, dearer and better from row to row, compares with one point.

    reached_with: share of `cost` at which the frontier reaches `score`, or None. cheapest_reaches: whether its cheapest
    row does. compared_at: share of `cost` at which scores are compared, or None if no row costs as little. gain: by how
    much the frontier is better there.
    """
    scores, costs = front.T
    needed = None if score < scores[-1] else float(np.interp(-score, -scores, costs))  # the cheapest beyond the end
    dear = cost >= costs[0]
    return {
        "reached_with": None if needed is None else needed / cost,
        "cheapest_reaches": bool(score >= scores[0]),
        "compared_at": min(1.0, float(costs[-1]) / cost) if dear else None,
        "gain": score - float(np.interp(cost, costs, scores)) if dear else None,  # the dearest beyond the end
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
    """Decide frontier, knee and hypervolume of `evaluations` and put them together with their surroundings.

    Raises:
        InputError: if none of them keeps the constraints.
    """
    measured = dict.fromkeys(name for evaluation in evaluations for name in evaluation.measured)
    names = dict.fromkeys((*(column.name for column in columns), *measured))
    table = evaluation_table(evaluations, list(names))
    check_kept(table, constraints)
    kept = table[keeps(table, constraints)]
    corners = [[objective.minimised(each) for each in box[objective.name]] for objective in objectives]
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
    """The hypervolume after each row of `evaluations`: their number, the volume, its share of the last."""
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
    """Refuse bounds that nothing scored keeps.

    Raises:
        InputError: naming the bounds and what was reached.
    """
    if keeps(evaluations, constraints).any():
        return
    reached = []
    for constraint in constraints if len(evaluations) else ():
        values = evaluations[constraint.objective.name]
        reached.append(f"{constraint.objective.name} {min(values, key=constraint.excess):.4g}")
    raise InputError(
        f"none of the {len(evaluations)} scored subnets keeps {' and '.join(map(str, constraints))}"
        + (f"; the best each: {', '.join(reached)}" if reached else "")
        + "; allowed: bounds that can be kept, in another --out"
    )


def keeps(table: pd.DataFrame, constraints: Sequence[Constraint]) -> pd.Series[bool]:
    """Which rows keep all constraints."""
    kept = pd.Series(True, index=table.index)
    for constraint in constraints:
        kept &= table[constraint.objective.name].map(constraint.excess) <= 0
    return kept
