"""What a report says of its runs beside the search: where each lies, how it was trained, what its proxy is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from autodistil_search.files import read_json, readable
from autodistil_search.findings import Finding, read
from autodistil_search.traininglog import HELD_OUT_CSV, TRAINING_CSV, read_log

_POINTS = 200
"""Longer trainings are drawn as means over so many stretches."""


@dataclass(frozen=True)
class Curve:
    """Losses against steps of the subnets with one role, as trained on or as measured on held-out text."""

    role: str
    held_out: bool
    steps: Sequence[float]
    losses: Sequence[float]


@dataclass(frozen=True)
class ProxyCheck:
    """A finished `validate-proxy`.

    Attributes:
        name: Its folder in that of the run.
        labels: What each column of `measured` is, in words.
        measured: A row for each subnet, with its `band` of costs.
        ranking: Rank correlations of each measure with each target, over all subnets and within bands.
        findings: Conclusions.
        fine_tuned: Whether a target is a metric of fine-tuned subnets.
        has_data: Whether the findings are data; of a validation from before they were, they are sentences only.
    """

    name: str
    labels: Mapping[str, str]
    measured: pd.DataFrame
    ranking: pd.DataFrame
    findings: Sequence[Finding]
    fine_tuned: bool
    has_data: bool = True

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The (measure, target) of each comparison."""
        pairs = self.ranking[["measure", "target"]].drop_duplicates()
        return list(pairs.itertuples(index=False, name=None))


@dataclass(frozen=True)
class Input:
    """What a value depends on: in words, and a digest where words do not tell all."""

    words: str
    digest: str = ""

    @property
    def identity(self) -> str:
        """Equal where the input is."""
        return self.digest or self.words


@dataclass(frozen=True)
class RunPart:
    """One run of a report.

    Attributes:
        name: What the column `run` calls it where there are several.
        folder: As commands name it.
        exact: Whether every subnet within its bounds was scored.
        inputs: What values depend on beside the subnet, by what it is: those of the "proxy", and those measured on a
            "machine".
        curves: Of the training of each space's SuperLM.
        checks: What was found out about the proxy.
    """

    name: str
    folder: str
    exact: bool = False
    inputs: Mapping[str, Mapping[str, Input]] = field(default_factory=dict)
    curves: Mapping[str, Sequence[Curve]] = field(default_factory=dict)
    checks: Sequence[ProxyCheck] = field(default_factory=tuple)


def training_curves(training: pd.DataFrame, held_out: pd.DataFrame) -> list[Curve]:
    """Mean losses by role: as trained on, over stretches of steps, each at its last; then as held out.

    training, held_out: columns `step`, `role` and `loss`, among others.
    """
    curves = []
    for role, rows in training.groupby("role", sort=False):
        losses = rows.groupby("step")["loss"].mean()
        stretch = np.arange(len(losses)) // -(-len(losses) // _POINTS)
        steps = losses.index.to_series().groupby(stretch).max()
        curves.append(Curve(str(role), False, steps.tolist(), losses.groupby(stretch).mean().tolist()))
    for role, rows in held_out.groupby("role", sort=False):
        losses = rows.groupby("step")["loss"].mean()
        curves.append(Curve(str(role), True, losses.index.tolist(), losses.tolist()))
    return curves


def run_part(folder: Path, conditions: Sequence[tuple[str, str]], exact: bool) -> RunPart:
    """What lies in the folder of a run.

    conditions, exact: of its report; the conditions name what `environment.json` has digests of.

    Raises:
        InputError: for damaged files.
    """
    environment = folder / "environment.json"
    found = read_json(environment) if environment.is_file() else {}
    return RunPart(
        folder.name,
        _as_named(folder),
        exact,
        _inputs(dict(conditions), found),
        {log.parent.name: _curves(log) for log in sorted(folder.glob(f"superlm/*/{TRAINING_CSV}"))},
        [_check(summary.parent) for summary in sorted(folder.glob("validation-*/summary.json"))],
    )


def _inputs(conditions: Mapping[str, str], environment: Mapping[str, Any]) -> dict[str, dict[str, Input]]:
    """Of the proxy and of the machine, what is known."""
    digests = environment.get("inputs", {})
    named = {"teacher": "teacher_model", "text": "text", "labelled rows": "proxy_task"}
    proxy = {what: Input(conditions.get(what, "given"), digests[key]) for what, key in named.items() if key in digests}
    alike = {
        "teacher layer": digests.get("teacher_layer"),
        "precision and device": digests.get("computed_in"),
        "measurement": conditions.get("proxy"),
    }
    proxy |= {what: Input(str(words)) for what, words in alike.items() if words}
    machine = {what: Input(str(environment[what])) for what in ("platform", "threads") if what in environment}
    return {"proxy": proxy, "machine": machine}


def _as_named(folder: Path) -> str:
    """Relative to where the command was given, if the folder lies below or was named so."""
    whole, here = folder.resolve(), Path.cwd()
    return str(whole.relative_to(here) if whole.is_relative_to(here) else folder)


def _curves(training: Path) -> list[Curve]:
    held_out = training.with_name(HELD_OUT_CSV)
    if not held_out.is_file():
        return []
    return training_curves(read_log(training), read_log(held_out))


def _check(folder: Path) -> ProxyCheck:
    summary = read_json(folder / "summary.json")
    measured, ranking = (_table(folder / name) for name in ("subnets.csv", "ranking.csv"))
    digests = read_json(folder / "environment.json")["inputs"]
    with readable(folder / "summary.json"):
        return ProxyCheck(
            folder.name,
            summary["columns"],
            measured,
            ranking,
            read(summary),
            fine_tuned="task_task" in digests,
            has_data="findings" in summary,
        )


def _table(path: Path) -> pd.DataFrame:
    with readable(path):
        return pd.read_csv(path)
