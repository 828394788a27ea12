"""The tables of results.py: scores by model, task and way of fine-tuning, their means, aims and costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import mean, stdev
from typing import Any

import pandas as pd

from autodistil_search.nas.objectives import Objective
from autodistil_search.report.data import against_frontier
from autodistil_search.tasks.metrics import METRICS

STUDENT, BASELINE, TEACHER = "student of the frontier", "baseline", "teacher"
DRAWN, HALF, PUBLISHED = "subnet at random", "half of the teacher", "published"
LABELS, DISTILLATION = "labels", "distillation"
WAYS = {LABELS: "by labels", DISTILLATION: "by task distillation"}

_INDEX = ["kind", "model", "flops", "params"]
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Aim:
    """Aim: a student with at most a share of a model's FLOPs, and at least its mean over the tasks.

    Attributes:
        model: Beginning of the model's name.
        share: Share of the model's FLOPs.
        kinds: Kinds of models to compare with.
    """

    model: str
    share: float
    kinds: tuple[str, ...]


AIMS = (Aim("TinyBERT", 0.5, (BASELINE,)), Aim("MiniLM", 0.6, (BASELINE,)), Aim("", 0.6, (PUBLISHED,)))
"""The aims of the measurement; the last compares with published models of any name."""


def means(scores: pd.DataFrame, tasks: Sequence[str]) -> pd.DataFrame:
    """Return the mean over the tasks for each model, way and seed, in hundredths.

    The mean over the tasks is the unweighted mean of the first GLUE metric of each task: accuracy of SST-2, MRPC and
    RTE, Matthews correlation of CoLA, Pearson correlation of STS-B. Seeds without all tasks are left out.

    Args:
        scores: A row for each model, way, task and seed.
        tasks: All tasks of the measurement.
    """
    rows = (
        scores[scores["task"].isin(tasks)].groupby([*_INDEX, "by", "seed"], sort=False)["score"].agg(["mean", "count"])
    )
    rows = rows[rows["count"] == len(tasks)].reset_index()
    return rows.assign(mean=100 * rows["mean"]).drop(columns="count")


def _with_spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation (n - 1) of values as text."""
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"


def tuned_table(scores: pd.DataFrame, tasks: Sequence[str], by: str) -> str:
    """Return the scores of one way of fine-tuning as a Markdown table, cheapest model first."""
    rows = scores[scores["by"] == by]
    titles = rows["task"] + " (" + rows["metric"] + ")"
    table = rows.assign(column=titles, value=100 * rows["score"]).pivot_table(
        index=_INDEX, columns="column", values="value", aggfunc=lambda values: _with_spread(list(values)), sort=False
    )
    table = table[[title for task in tasks for title in table.columns if title.startswith(f"{task} (")]]
    whole = means(rows, tasks).groupby(_INDEX, sort=False)["mean"].agg(lambda values: _with_spread(list(values)))
    table = table.assign(**{f"mean of {len(tasks)} tasks": whole}).reset_index().sort_values("flops")
    return str(_readable(table).fillna("").to_markdown(index=False))


def unlearnt_lines(scores: pd.DataFrame) -> Iterator[str]:
    """Yield a line for each model, task and way of which some seeds are no better than one answer for all rows."""
    for (model, task, by), rows in scores.groupby(["model", "task", "by"], sort=False):
        if count := int(rows["unlearnt"].sum()):
            how = f"{count} of {len(rows)} seeds are no better than one answer for all rows"
            yield f"- **{model} on {task}, {WAYS[str(by)]}**: {how}."


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with FLOPs and parameters in millions."""
    amounts = {
        "flops": [f"{flops / 1e6:,.0f}M" for flops in table["flops"]],
        "params": [f"{params / 1e6:,.1f}M" for params in table["params"]],
    }
    return table.assign(**amounts)


def difference(first: pd.Series[float], second: pd.Series[float]) -> tuple[float, float]:
    """Return the mean difference of two models over common seeds, and half the width of its 95 % interval.

    The interval is that of the paired t-test. It is NaN for one seed.

    Args:
        first: Mean over the tasks by seed.
        second: The same of the other model.
    """
    from scipy.stats import t

    differences = (first - second).dropna()
    if len(differences) < 2:
        return float(differences.mean()), math.nan
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return float(differences.mean()), float(t.ppf((1 + _CONFIDENCE) / 2, len(differences) - 1)) * error


def verdict(gap: float, margin: float) -> str:
    """Return whether an aim is met, from the difference of means and half the width of its interval."""
    if gap < 0:
        return "not met" + (", within the interval" if gap + margin >= 0 else "")
    if math.isnan(margin):
        return "met, with one seed and so without an interval"
    return "met" if gap >= margin else "met on average, but the interval includes a lower mean"


def aim_lines(scores: pd.DataFrame, models: pd.DataFrame, tasks: Sequence[str]) -> Iterator[str]:
    """Yield a line for each aim, way of fine-tuning, model to compare with, and student within the share of FLOPs.

    Args:
        scores: A row for each model, way, task and seed.
        models: Kind, name and FLOPs of all models of the measurement.
        tasks: All tasks of the measurement.
    """
    whole, rows = means(scores, tasks), models.to_dict("records")
    students = sorted((row for row in rows if row["kind"] == STUDENT), key=lambda row: row["flops"])
    for aim in AIMS:
        others = [row for row in rows if row["kind"] in aim.kinds and row["model"].startswith(aim.model)]
        for other, by in product(others, (way for way in WAYS if way in {*scores["by"]})):
            yield from _aim_lines(whole, students, aim, other, by)


def _aim_lines(
    whole: pd.DataFrame, students: Sequence[Mapping[Any, Any]], aim: Aim, other: Mapping[Any, Any], by: str
) -> Iterator[str]:
    """Yield the lines of an aim against one model; published models are compared as users fine-tune them, by labels."""
    own_way = LABELS if other["kind"] == PUBLISHED else by
    words = f"at most {100 * aim.share:.0f} % of the FLOPs of {other['model']} and at least its mean, {WAYS[by]}"
    words += f" (the published model {WAYS[own_way]})" if own_way != by else ""
    cheap = [student for student in students if student["flops"] <= aim.share * other["flops"]]
    if not cheap:
        yield f"- {words}: **not met**, no student is as cheap"
    for student in cheap:
        yield f"- {words}: {_outcome(whole, student, by, other, own_way)}"


def _outcome(whole: pd.DataFrame, student: Mapping[Any, Any], by: str, other: Mapping[Any, Any], own_way: str) -> str:
    """Return whether a student reaches the mean of another model, in words."""
    own, reference = _by_seed(whole, student["model"], by), _by_seed(whole, other["model"], own_way)
    share = f"{100 * student['flops'] / other['flops']:.0f} % of the FLOPs"
    if own.empty or reference.empty:
        return f"not measured on all tasks yet for {student['model']} ({share})"
    gap, margin = difference(own, reference)
    interval = "" if math.isnan(margin) else f" ± {margin:.1f}"
    figures = f"{student['model']} has {share} and a mean {gap:+.1f}{interval}"
    return f"**{verdict(gap, margin)}**. {figures} ({own.mean():.1f} against {reference.mean():.1f})"


def _by_seed(whole: pd.DataFrame, model: str, by: str) -> pd.Series[float]:
    return whole[(whole["model"] == model) & (whole["by"] == by)].set_index("seed")["mean"]


def compared(scores: pd.DataFrame) -> Iterator[str]:
    """Yield how students compare at the score and at the FLOPs of each other model, interpolated between students."""
    for (by, task), rows in scores.groupby(["by", "task"], sort=False):
        way = WAYS[str(by)]
        metric = str(rows["metric"].iloc[0])
        objective = Objective(metric, METRICS[metric].label, "share", "maximize", is_proxy=True)
        averages = rows.groupby(_INDEX, sort=False, as_index=False)["score"].mean()
        how = {"name": averages["model"], "how": averages["kind"], "weights": ""}
        named = averages.assign(**{metric: averages["score"], **how})
        students = named[named["kind"] == STUDENT]
        others = named[~named["kind"].isin([STUDENT, TEACHER])]
        for line in against_frontier(students, others, objective) if len(students) else ():
            yield f"- {task}, {way}: {line}"
