"""The data of the explorers: the best student within a budget, details of a subnet, and results of each engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from autodistil_search.base.errors import InputError
from autodistil_search.nas.objectives import Objective
from autodistil_search.report.data import SUBNET_COLUMNS, ParetoReport, keeps, minimised
from autodistil_search.report.picking import pick
from autodistil_search.report.views import (
    better,
    budget_costs,
    drawn_rows,
    export_commands,
    series_numbers,
    shown,
    subnet_words,
)
from autodistil_search.spaces.cost import params_by_part
from autodistil_search.spaces.subnet import Subnet


@dataclass(frozen=True)
class Points:
    """Subnets with the same marker, in the order of `rows`.

    Args:
        series: Number in `series_of` of the series that gives colour and marker.
        rows: Rows of the subnets.
        on_frontier: True if they are rows of the frontier.
    """

    series: int
    rows: pd.DataFrame
    on_frontier: bool


@dataclass(frozen=True)
class Facts:
    """Details of a subnet.

    Attributes:
        subnet: Space and sizes in words.
        place: Row of the frontier in words, or the reason why the subnet is not on the frontier.
        measured: Name, value, and unit with direction of each measured quantity.
        parts: Number of parameters of each part of the model.
        get: Command or Python code that returns the model; None if no run has weights.
    """

    subnet: str
    place: str
    measured: Sequence[tuple[str, str, str]]
    parts: Mapping[str, int]
    get: str | None


def explorable_costs(report: ParetoReport) -> list[Objective]:
    """Return the costs that a budget can bound, the objectives of the search first.

    The first objective is excluded, because it is optimised within the budget.
    """
    first, *others = report.objectives
    costs = [cost for cost in budget_costs(report) if cost != first and stops(report, cost)]
    return sorted(costs, key=lambda cost: others.index(cost) if cost in others else len(others))


def named_cost(report: ParetoReport, name: str | None) -> Objective:
    """Return the cost of that name, or the first cost for None.

    Raises:
        InputError: if the run has no such cost; the message lists its costs.
    """
    costs = {cost.name: cost for cost in explorable_costs(report)}
    if name is not None and name not in costs:
        raise InputError(f"budget {name!r}; allowed: {', '.join(costs)}")
    return costs[name] if name is not None else next(iter(costs.values()))


def stops(report: ParetoReport, cost: Objective) -> list[float]:
    """Return the budgets at which the best student may change: the costs of the frontier's rows, ascending."""
    return sorted({float(value) for value in report.frontier[cost.name] if value > 0})


def best_within(report: ParetoReport, cost: Objective, amount: float | str) -> pd.Series[Any]:
    """Return the row of the frontier that `Run.pick` selects for a budget.

    The budget is an upper bound on the cost, or a lower bound if more is better.

    Args:
        report: Report of the run.
        cost: Cost that the budget bounds.
        amount: Number, or text as on the command line, such as "200M".

    Raises:
        InputError: if the amount is not a number, or no row keeps the bound.
    """
    words = amount if isinstance(amount, str) else np.format_float_positional(amount, trim="-")
    return pick(report, f"{cost.name}{'<=' if cost.direction == 'minimize' else '>='}{words}")


def point_sets(report: ParetoReport) -> list[Points]:
    """Return the drawn scored subnets of each series, then the frontier of each series."""
    numbers = np.array(series_numbers(report, report.frontier))
    scored = [Points(number, rows, on_frontier=False) for number, rows in drawn_rows(report)]
    return scored + [Points(i, report.frontier[numbers == i], on_frontier=True) for i in sorted(set(numbers.tolist()))]


def facts(report: ParetoReport, row: pd.Series[Any]) -> Facts:
    """Return the details of a row of `frontier` or `evaluations`."""
    values = _values(row)
    number = _frontier_number(report, row)
    columns = {column.name: column for column in report.columns}
    measured = [
        (columns[name].label, shown(value), f"{columns[name].unit}, {better(columns[name])}")
        if name in columns
        else (name, shown(value), "")
        for name, value in values.items()
        if name not in (*SUBNET_COLUMNS, "knee")
    ]
    encoder_parts = params_by_part(Subnet.from_row(values))
    parts = {"embeddings": int(values["params"]) - sum(encoder_parts.values()), **encoder_parts}
    return Facts(subnet_words(values), _place(report, row, number), measured, parts, _way_to_get(report, row, number))


def _values(row: pd.Series[Any]) -> dict[str, Any]:
    """Return the values of a row as native Python types."""
    return {str(key): value.item() if isinstance(value, np.generic) else value for key, value in row.items()}


def _key(row: pd.Series[Any]) -> tuple[str, Subnet]:
    values = _values(row)
    return str(values["space"]), Subnet.from_row(values)


def _frontier_number(report: ParetoReport, row: pd.Series[Any]) -> int | None:
    """Return the number of a subnet's row in the frontier, counted from 1 as by `export --pick`, or None."""
    return next((i for i, (_, other) in enumerate(report.frontier.iterrows(), 1) if _key(other) == _key(row)), None)


def _place(report: ParetoReport, row: pd.Series[Any], number: int | None) -> str:
    if number is not None:
        knee = ", its knee" if report.frontier["knee"].iloc[number - 1] else ""
        return f"row {number} of {len(report.frontier)} of the frontier{knee}"
    alone = row.to_frame().T
    broken = [str(constraint) for constraint in report.constraints if not keeps(alone, [constraint]).all()]
    if broken:
        return f"not on the frontier: it breaks {' and '.join(broken)}"
    as_good = (minimised(report.frontier, report.objectives) <= minimised(alone, report.objectives)).all(axis=1)
    return f"not on the frontier: its row {int(as_good.argmax()) + 1} is as good or better in every objective"


def _way_to_get(report: ParetoReport, row: pd.Series[Any], number: int | None) -> str | None:
    commands = export_commands(report)
    if number is not None:
        return commands[number - 1]
    return f"run.student(run.evaluations.loc[{row.name}])" if any(commands) else None


def engine_marks(report: ParetoReport) -> list[int]:
    """Return the numbers of evaluations at which engines are compared; empty unless every subnet was scored."""
    return sorted({int(mark) for mark in report.engines["evaluations"]})


def engines_after(report: ParetoReport, mark: int) -> pd.DataFrame:
    """Return the results of the engines after `mark` evaluations, best first.

    The columns are `name` (engine, preceded by the space if there are several), `share` of the exact hypervolume, and
    `spread`, its standard deviation.
    """
    rows = report.engines[report.engines["evaluations"] == mark]
    names = rows["space"] + ": " + rows["engine"] if len(set(rows["space"])) > 1 else rows["engine"]
    best_first = rows.assign(name=names).sort_values(["share", "name"], ascending=[False, True], ignore_index=True)
    return best_first[["name", "share", "spread"]]
