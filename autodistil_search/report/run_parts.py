"""What a report says of its runs beside the search: where each lies, how it was trained, what its proxy is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from autodistil_search.base.files import read_json, readable
from autodistil_search.base.manifest import ENVIRONMENT, MANIFEST, SUMMARY, verify
from autodistil_search.distillation.training_log import HELD_OUT_CSV, TRAINING_CSV, read_log
from autodistil_search.report.findings import Finding, read

_TEXT = ("space", "name", "engine", "run", "how", "source", "weights", "role", "measure", "target", "scope")
"""Columns whose values may look like numbers, or like nothing: a space of 512.yaml or NA.yaml."""
_RANKING = ("measure", "target", "scope", "kendall", "kendall_low", "kendall_high")
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


def read_table(
    path: Path, columns: Sequence[str], numbers: Sequence[str] = (), rows: int | None = None
) -> pd.DataFrame:
    """Return the table in a CSV file.

    Args:
        path: The file.
        columns: Those that it must have.
        numbers: Columns that must hold a finite number in each row.
        rows: How many it must have, if that is known.

    Raises:
        InputError: naming the file, if it is something else.
    """
    with readable(path):
        table = pd.read_csv(path, dtype=dict.fromkeys(_TEXT, str), keep_default_na=False, na_values=[""])
        if missing := [name for name in columns if name not in table]:
            raise ValueError(f"no column {missing[0]!r}")
        if rows is not None and len(table) != rows:
            raise ValueError(f"{len(table)} rows instead of {rows}")
        for name in numbers:
            if len(table) and not np.isfinite(table[name].to_numpy(float)).all():
                raise ValueError(f"column {name!r} holds something else than finite numbers")
    return table


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
    environment = folder / ENVIRONMENT
    found = read_json(environment) if environment.is_file() else {}
    with readable(environment):
        inputs = _inputs(dict(conditions), found)
    return RunPart(
        folder.name,
        _as_named(folder),
        exact,
        inputs,
        {superlm.name: curves for superlm in sorted(folder.glob("superlm/[!.]*")) if (curves := _curves(superlm))},
        [_check(found) for found in sorted(folder.glob("validation-*")) if _has_ended(found)],
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


def _curves(superlm: Path) -> list[Curve]:
    """The curves of a SuperLM's training; none if it has no logs."""
    paths = [superlm / name for name in (TRAINING_CSV, HELD_OUT_CSV)]
    verify(superlm, [path.name for path in paths])
    if not all(path.is_file() for path in paths):
        return []
    return training_curves(*map(read_log, paths))


def _has_ended(validation: Path) -> bool:
    return (validation / SUMMARY).exists() or (validation / MANIFEST).exists()


def _check(folder: Path) -> ProxyCheck:
    verify(folder)
    path = folder / SUMMARY
    summary, environment = read_json(path), read_json(folder / ENVIRONMENT)
    with readable(folder / ENVIRONMENT):
        fine_tuned = "task_task" in environment.get("inputs", {})
    with readable(path):
        labels = {str(column): str(label) for column, label in summary["columns"].items()}
        findings = read(summary)
    return ProxyCheck(
        folder.name,
        labels,
        read_table(folder / "subnets.csv", ["band", *labels], ["band", "flops"]),
        read_table(folder / "ranking.csv", _RANKING),
        findings,
        fine_tuned=fine_tuned,
        has_data="findings" in summary,
    )
