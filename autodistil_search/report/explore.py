"""What exploring a report shows, as data: the student a budget picks, what a point is, what each engine finds."""

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
    """Subnets that are drawn alike and can be pointed at, in the order of `rows`.

    series: whose colour and marker they have, as in `series_of`. on_frontier: whether they are rows of the frontier.
    """

    series: int
    rows: pd.DataFrame
    on_frontier: bool


@dataclass(frozen=True)
class Facts:
    """What is told of a subnet.

    Attributes:
        subnet: Its space and sizes, in words.
        place: Where it lies: which row of the frontier it is, or why it is none.
        measured: Name, value, and unit with direction of all that was measured.
        parts: Its parameters by what holds them.
        get: How to get its model: a command, or Python where no command picks it; None where no run has weights.
    """

    subnet: str
    place: str
    measured: Sequence[tuple[str, str, str]]
    parts: Mapping[str, int]
    get: str | None


def explorable_costs(report: ParetoReport) -> list[Objective]:
    """What a budget can bound: every cost but the objective that is optimised within it; those asked for first."""
    first, *others = report.objectives
    found = [each for each in budget_costs(report) if each != first and stops(report, each)]
    return sorted(found, key=lambda each: others.index(each) if each in others else len(others))


def named_cost(report: ParetoReport, name: str | None) -> Objective:
    """The cost of that name, the first if none is given.

    Raises:
        InputError: if the run has no such cost; it lists those it has.
    """
    known = {each.name: each for each in explorable_costs(report)}
    if name is not None and name not in known:
        raise InputError(f"budget {name!r}; allowed: {', '.join(known)}")
    return known[name] if name is not None else next(iter(known.values()))


def stops(report: ParetoReport, cost: Objective) -> list[float]:
    """The budgets at which another student may be the best, ascending: what the frontier's rows cost."""
    return sorted({float(value) for value in report.frontier[cost.name] if value > 0})


def best_within(report: ParetoReport, cost: Objective, amount: float | str) -> pd.Series[Any]:
    """The row of the frontier that `Run.pick` finds for at most so much of a cost, or at least where more is better.

    amount: a number, or one as on the command line, such as "200M".

    Raises:
        InputError: if it is no amount, or no row keeps it.
    """
    words = amount if isinstance(amount, str) else np.format_float_positional(amount, trim="-")
    return pick(report, f"{cost.name}{'<=' if cost.direction == 'minimize' else '>='}{words}")


def point_sets(report: ParetoReport) -> list[Points]:
    """The scored subnets of each space that are drawn, then the frontier's of each."""
    numbers = np.array(series_numbers(report, report.frontier))
    scored = [Points(number, rows, on_frontier=False) for number, rows in drawn_rows(report)]
    return scored + [Points(i, report.frontier[numbers == i], on_frontier=True) for i in sorted(set(numbers.tolist()))]


def facts(report: ParetoReport, row: pd.Series[Any]) -> Facts:
    """What is told of a row of `frontier` or `evaluations`."""
    values = _values(row)
    number = _frontier_number(report, row)
    known = {each.name: each for each in report.columns}
    measured = [
        (known[name].label, shown(value), f"{known[name].unit}, {better(known[name])}")
        if name in known
        else (name, shown(value), "")
        for name, value in values.items()
        if name not in (*SUBNET_COLUMNS, "knee")
    ]
    own = params_by_part(Subnet.from_row(values))
    parts = {"embeddings": int(values["params"]) - sum(own.values()), **own}
    return Facts(subnet_words(values), _place(report, row, number), measured, parts, _get(report, row, number))


def _values(row: pd.Series[Any]) -> dict[str, Any]:
    """Of a row, in Python's own types: those of a table's column, which a row that mixes them may have lost."""
    return {str(key): value.item() if isinstance(value, np.generic) else value for key, value in row.items()}


def _key(row: pd.Series[Any]) -> tuple[str, Subnet]:
    values = _values(row)
    return str(values["space"]), Subnet.from_row(values)


def _frontier_number(report: ParetoReport, row: pd.Series[Any]) -> int | None:
    """Which row of the frontier a subnet is, from 1, as `export --pick` counts them."""
    return next((i for i, (_, other) in enumerate(report.frontier.iterrows(), 1) if _key(other) == _key(row)), None)


def _place(report: ParetoReport, row: pd.Series[Any], number: int | None) -> str:
    if number is not None:
        knee = ", its knee" if report.frontier["knee"].iloc[number - 1] else ""
        return f"row {number} of {len(report.frontier)} of the frontier{knee}"
    alone = row.to_frame().T
    broken = [str(each) for each in report.constraints if not keeps(alone, [each]).all()]
    if broken:
        return f"not on the frontier: it breaks {' and '.join(broken)}"
    as_good = (minimised(report.frontier, report.objectives) <= minimised(alone, report.objectives)).all(axis=1)
    return f"not on the frontier: row {int(as_good.argmax()) + 1} of it is as good or better in every objective"


def _get(report: ParetoReport, row: pd.Series[Any], number: int | None) -> str | None:
    commands = export_commands(report)
    if number is not None:
        return commands[number - 1]
    return f"run.student(run.evaluations.loc[{row.name}])" if any(commands) else None


def engine_marks(report: ParetoReport) -> list[int]:
    """The numbers of evaluations after which engines are compared; none where not every subnet was scored."""
    return sorted({int(mark) for mark in report.engines["evaluations"]})


def engines_after(report: ParetoReport, mark: int) -> pd.DataFrame:
    """What engines found after so many evaluations: `name`, `share` of the exact hypervolume and `spread`, best first.

    name: the engine's, and the space's where there are several.
    """
    rows = report.engines[report.engines["evaluations"] == mark]
    names = rows["space"] + ": " + rows["engine"] if len(set(rows["space"])) > 1 else rows["engine"]
    best_first = rows.assign(name=names).sort_values(["share", "name"], ascending=[False, True], ignore_index=True)
    return best_first[["name", "share", "spread"]]
