"""Key figures of a report, the same for the page, the terminal and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from autodistil_search.nas import pareto
from autodistil_search.nas.baselines import COPY
from autodistil_search.report.caveats import found_after
from autodistil_search.report.data import ParetoReport, minimised
from autodistil_search.report.findings import NOT_TRAINED_FOR, VERSUS_BASELINE
from autodistil_search.report.headline import Headline
from autodistil_search.report.views import (
    better,
    of_runs,
    shown,
    shown_size,
    value_words,
)


@dataclass(frozen=True)
class Card:
    """Key figure: a title, a value and its explanation, each as text."""

    title: str
    value: str
    words: str


def cards(report: ParetoReport) -> list[Card]:
    """Return the key figures: the pick for a budget beside the teacher, best, knee, and date and command of a run."""
    first = report.objectives[0]
    best = min(_records(report.frontier), key=lambda row: first.minimised(row[first.name]))
    knees = [row for row in _records(report.frontier) if row["knee"]]
    found = _headline_cards(report.headline) if report.headline is not None else []
    found.append(_student_card(report, f"Best {first.label}", best))
    found += [_student_card(report, "Knee", row) for row in knees]
    if len(report.runs) == 1 and (report.runs[0].started or report.runs[0].command):
        found.append(Card("Run", report.runs[0].started or report.runs[0].name, report.runs[0].command))
    return found


def _headline_cards(headline: Headline) -> list[Card]:
    """Return the pick for a budget, and what it gains and keeps beside the teacher."""
    pick_words, cost_words, *similarity_words = headline.sentences
    pick = headline.pick
    found = [
        Card("Pick for a budget", f"{shown(pick.flops)} FLOPs", pick_words),
        Card("Speed-up against the teacher", f"{headline.faster:.1f} times", cost_words),
    ]
    if pick.similarity is not None:
        found.append(Card("Agreement with the teacher", f"{pick.similarity:.2f}", " ".join(similarity_words)))
    return found


def standings_table(report: ParetoReport) -> pd.DataFrame:
    """Return the models of the headline: its pick, the knee, baselines and the teacher, with measured latencies.

    The table is empty for a report without a headline.
    """
    if report.headline is None:
        return pd.DataFrame()
    rows = [asdict(standing) for standing in report.headline.standings]
    units = {"latency": "latency (ms)", "score": report.headline.measure, "similarity": "agreement with the teacher"}
    return pd.DataFrame(rows).rename(columns=units)


def _student_card(report: ParetoReport, title: str, row: Mapping[str, Any]) -> Card:
    first = report.objectives[0]
    others = [column for column in report.columns if column != first]
    run = f"{row['run']}, " if "run" in row else ""
    sizes = (
        f"{run}{row['space']}: {row['layers']} layers x {row['hidden_size']}, ratio "
        f"{shown_size('mlp_ratio', row['mlp_ratio'])}, {row['heads']} heads"
    )
    return Card(title, f"{shown(row[first.name])}", "; ".join([sizes, *value_words(row, others)]))


def box_words(report: ParetoReport) -> str:
    """Return the box in which the hypervolume is measured, in words."""
    words = ", ".join(f"{name} {_end(low)} to {_end(high)}" for name, (low, high) in report.box.items())
    return f"share of the box between the ideal and the reference point that the frontier dominates; {words}"


def _end(value: float) -> str:
    return shown(value) if abs(value) >= 1000 else f"{value:.4g}"


def hypervolume_words(report: ParetoReport) -> str:
    """Return the hypervolume in words, as a share of its box."""
    return f"Hypervolume: {report.hypervolume_share:.1%}, the {box_words(report)}."


def baselines_at_equal_cost(report: ParetoReport) -> pd.DataFrame:
    """Return the comparison of the frontier with each scored baseline, from the findings of the search.

    The teacher's copy is no baseline but the reference line of the figures.

    Returns:
        A table with the columns `baseline`, `how`, `flops`, `score`, `FLOPs to reach it` and `at its FLOPs`; it has a
        column `run` in a report of several runs.
    """
    rows = []
    for finding in report.findings:
        if finding.kind == VERSUS_BASELINE and finding.values["how"] != COPY:
            values = finding.values
            run = {"run": finding.run or "all"} if len(report.runs) > 1 else {}
            rows.append(
                {
                    **run,
                    "baseline": values["baseline"],
                    "how": values["how"],
                    "flops": values["flops"],
                    "score": values["score"],
                    "FLOPs to reach it": _reached_words(values),
                    "at its FLOPs": _gain_words(values),
                }
            )
    return pd.DataFrame(rows)


def _reached_words(values: Mapping[str, Any]) -> str:
    share = values["reached_with"]
    if share is None:
        return "not reached"
    return f"{'at most ' if values['cheapest_reaches'] else ''}{share:.0%}"


def _gain_words(values: Mapping[str, Any]) -> str:
    at, gain = values["compared_at"], values["gain"]
    if at is None:
        return "costs less than any subnet"
    words = f"{shown(float(abs(gain)))} {'better' if gain >= 0 else 'worse'}"
    return words if at == 1 else f"{words}, with {at:.0%} of its FLOPs"


def baselines_not_scored(report: ParetoReport) -> list[str]:
    """Return a sentence for each baseline whose score has another meaning, so that it is not compared."""
    return [str(finding) for finding in report.findings if finding.kind == NOT_TRAINED_FOR]


def runs_side_by_side(report: ParetoReport) -> pd.DataFrame:
    """Return the key figures of each run of a report of several runs, a row for each run.

    The columns are:

    - `scored` and `frontier`: numbers of subnets;
    - `hypervolume %`: share of the common box;
    - `joint frontier`: number of rows that no row of another run dominates;
    - `99 % after`: evaluations that reached 99 % of the run's final hypervolume;
    - the best value of the first objective, and the objectives of the knee.
    """
    corners = [[objective.minimised(end) for end in report.box[objective.name]] for objective in report.objectives]
    ideal, reference = np.array(corners).T
    joint = pareto.is_on_frontier(minimised(report.frontier, report.objectives))
    evaluations, reached = dict(of_runs(report.evaluations)), dict(found_after(report))
    rows = []
    for run, frontier in of_runs(report.frontier):
        values = minimised(frontier, report.objectives)
        row = {
            "run": run,
            "scored": len(evaluations[run]),
            "frontier": len(frontier),
            "hypervolume %": round(100 * pareto.share_of_box(values, ideal, reference), 2),
            "joint frontier": int(joint[frontier.index].sum()),
            "99 % after": dict(reached.get(run, [])).get(99, len(evaluations[run])),
        }
        knee = frontier[frontier["knee"]].iloc[0]
        first = report.objectives[0]
        row[f"best {first.name}"] = first.minimised(float(values[:, 0].min()))
        row |= {f"knee {objective.name}": float(knee[objective.name]) for objective in report.objectives}
        rows.append(row)
    return pd.DataFrame(rows)


def units_words(report: ParetoReport) -> str:
    """Return name, unit and direction of each column of the tables, in words."""
    return "; ".join(f"{column.name}: {column.label}, {column.unit}, {better(column)}" for column in report.columns)


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
