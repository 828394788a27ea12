"""Selection of a row of the frontier: by number, as the knee, or as the best row within bounds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from autodistil_search.base.errors import InputError
from autodistil_search.base.user_input import meant, parse_whole_number, quoted
from autodistil_search.nas.objectives import Constraint, parse_constraint
from autodistil_search.report.data import ParetoReport


def pick(report: ParetoReport, which: str) -> pd.Series[Any]:
    """Return a row of the frontier; see `Run.pick`.

    Raises:
        InputError: if `which` selects no row; the message gives the allowed values, or the range of the frontier.
    """
    if which.strip() == "knee":
        return report.frontier[report.frontier["knee"]].iloc[0]
    rows = len(report.frontier)
    if (place := parse_whole_number(which)) is not None and 1 <= place <= rows:
        return report.frontier.iloc[place - 1]
    if not re.search("[<>=]", which):
        raise InputError(
            f"--pick {quoted(which)}{meant(which, ['knee'])}; allowed: knee, a row of the frontier from 1 to {rows}, "
            "or bounds such as flops<=200M"
        )
    columns = {"acc" if column.is_proxy else column.name: column for column in report.columns}
    columns |= {column.name: column for column in report.columns}
    return _best_within(report, [parse_constraint(text, columns, "--pick") for text in which.split(",")])


def _best_within(report: ParetoReport, bounds: Sequence[Constraint]) -> pd.Series[Any]:
    kept = report.frontier
    for bound in bounds:
        kept = kept[[bound.excess(value) <= 0 for value in kept[bound.objective.name]]]
    if kept.empty:
        reached = {bound.objective.name: report.frontier[bound.objective.name] for bound in bounds}
        ranges = "; ".join(f"{name} from {min(col):,.4g} to {max(col):,.4g}" for name, col in reached.items())
        raise InputError(f"--pick {','.join(map(str, bounds))}: no row of the frontier keeps it; it has {ranges}")
    first = report.objectives[0]
    return kept.iloc[int(np.argmin([first.minimised(value) for value in kept[first.name]]))]
