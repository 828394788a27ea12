"""The parts of a report beyond the search: folders, training curves and proxy validations of its runs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from autodistil_search.base.files import read_json, readable
from autodistil_search.base.manifest import ENVIRONMENT, MANIFEST, SEARCH_CONFIG, SUMMARY, verify
from autodistil_search.distillation.training_log import HELD_OUT_CSV, TRAINING_CSV, read_log
from autodistil_search.report.findings import Finding, read

_TEXT = ("space", "name", "engine", "run", "how", "source", "weights", "role", "measure", "target", "scope")
"""Columns of text that may look like numbers or missing values, such as the space of 512.yaml or NA.yaml."""
_RANKING = (
    *("measure", "target", "scope"),
    *(f"{name}{end}" for name in ("kendall", "over_flops", "over_default") for end in ("", "_low", "_high")),
)
_PROGRAMS = {
    "autodistil-search": ("autodistil-search",),
    "__main__.py": ("python", "-m", "autodistil_search"),
    "search.py": ("python", "search.py"),
}
"""Programs that run commands, as in `environment.json`, and what a user types."""
_POINTS = 200
"""Greatest number of points of a curve. Longer trainings are drawn as means over as many stretches."""


@dataclass(frozen=True)
class Curve:
    """Losses against steps of the subnets with one role, from training or from held-out text."""

    role: str
    held_out: bool
    steps: Sequence[float]
    losses: Sequence[float]


@dataclass(frozen=True)
class ProxyCheck:
    """Results of a finished `validate-proxy`.

    Attributes:
        name: Name of its folder within the folder of the run.
        labels: Label of each column of `measured`.
        measured: Table with a row for each subnet, including its `band` of costs.
        ranking: Rank correlations of each measure with each target, over all subnets and within bands, and their
            differences from those of FLOPs and of the default proxy.
        findings: Conclusions.
        fine_tuned: True if a target is a metric of fine-tuned subnets.
        has_data: True if the findings are data. Earlier versions wrote sentences only.
    """

    name: str
    labels: Mapping[str, str]
    measured: pd.DataFrame
    ranking: pd.DataFrame
    findings: Sequence[Finding]
    fine_tuned: bool
    has_data: bool = True


@dataclass(frozen=True)
class Input:
    """Input on which a value depends, in words, with a digest if words do not identify it."""

    words: str
    digest: str = ""

    @property
    def identity(self) -> str:
        """Return a text that is equal for equal inputs only."""
        return self.digest or self.words


@dataclass(frozen=True)
class RunPart:
    """One run of a report.

    Attributes:
        name: Name in the column `run` of a report of several runs.
        folder: Path of the folder, as in commands.
        exact: True if every subnet within its bounds was scored.
        inputs: Inputs by name on which values depend besides the subnet, under "proxy" for the proxy and under
            "machine" for quantities measured on a machine.
        curves: Training curves of the SuperLM of each space.
        checks: Validations of the proxy.
        started: Time at which the run started, in UTC; empty if it is unknown.
        command: Command that made the run, or one that repeats a run from Python; empty if it is unknown.
    """

    name: str
    folder: str
    exact: bool = False
    inputs: Mapping[str, Mapping[str, Input]] = field(default_factory=dict)
    curves: Mapping[str, Sequence[Curve]] = field(default_factory=dict)
    checks: Sequence[ProxyCheck] = field(default_factory=tuple)
    started: str = ""
    command: str = ""


def read_table(
    path: Path, columns: Sequence[str], numbers: Sequence[str] = (), rows: int | None = None
) -> pd.DataFrame:
    """Return the table in a CSV file.

    Args:
        path: Path of the file.
        columns: Columns that the table must have.
        numbers: Columns that must hold a finite number in each row.
        rows: Number of rows that the table must have; None if it is unknown.

    Raises:
        InputError: if the table is not as described; the message names the file.
    """
    with readable(path):
        table = pd.read_csv(path, dtype=dict.fromkeys(_TEXT, str), keep_default_na=False, na_values=[""])
        if missing := [name for name in columns if name not in table]:
            raise ValueError(f"no column {missing[0]!r}")
        if rows is not None and len(table) != rows:
            raise ValueError(f"{len(table)} rows instead of {rows}")
        for name in numbers:
            if len(table) and not np.isfinite(table[name].to_numpy(float)).all():
                raise ValueError(f"column {name!r} holds values other than finite numbers")
    return table


def training_curves(training: pd.DataFrame, held_out: pd.DataFrame) -> list[Curve]:
    """Return the curves of mean losses by role: those of the training, then those on held-out text.

    A long training is averaged over stretches of steps; a point is placed at the last step of its stretch.

    training, held_out: tables with the columns `step`, `role` and `loss`, among others.
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
    """Return the parts of a report that lie in the folder of a run.

    Args:
        folder: Folder of the run.
        conditions: Conditions of its report, with the words for the digests of `environment.json`.
        exact: True if every subnet within its bounds was scored.

    Raises:
        InputError: if a file is damaged.
    """
    environment = folder / ENVIRONMENT
    content = read_json(environment) if environment.is_file() else {}
    with readable(environment):
        inputs = _inputs(dict(conditions), content)
        started = (
            datetime.fromisoformat(content["started"]).strftime("%d %b %Y %H:%M UTC") if "started" in content else ""
        )
        command = _command(folder, content.get("command", []))
    return RunPart(
        folder.name,
        _shown_path(folder),
        exact,
        inputs,
        {superlm.name: curves for superlm in sorted(folder.glob("superlm/[!.]*")) if (curves := _curves(superlm))},
        [_read_check(validation) for validation in sorted(folder.glob("validation-*")) if _has_ended(validation)],
        started,
        command,
    )


def _command(folder: Path, words: Sequence[str]) -> str:
    """Return the command that made a run; for a run from Python, a command that repeats it from its settings."""
    if not words:
        return ""
    program = _PROGRAMS.get(words[0])
    if program is None:
        return f"autodistil-search search --config {shlex.quote(f'{_shown_path(folder)}/{SEARCH_CONFIG}')} --out NEW"
    return shlex.join([*program, *words[1:]])


def _inputs(conditions: Mapping[str, str], environment: Mapping[str, Any]) -> dict[str, dict[str, Input]]:
    """Return the known inputs of the proxy and of the machine."""
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


def _shown_path(folder: Path) -> str:
    """Return the path of a folder, relative to the working directory if it lies below."""
    whole, here = folder.resolve(), Path.cwd()
    return str(whole.relative_to(here) if whole.is_relative_to(here) else folder)


def _curves(superlm: Path) -> list[Curve]:
    """Return the curves of a SuperLM's training; empty if it has no logs."""
    paths = [superlm / name for name in (TRAINING_CSV, HELD_OUT_CSV)]
    verify(superlm, [path.name for path in paths])
    if not all(path.is_file() for path in paths):
        return []
    return training_curves(*map(read_log, paths))


def _has_ended(validation: Path) -> bool:
    return (validation / SUMMARY).exists() or (validation / MANIFEST).exists()


def _read_check(folder: Path) -> ProxyCheck:
    verify(folder)
    path = folder / SUMMARY
    summary, environment = read_json(path), read_json(folder / ENVIRONMENT)
    with readable(folder / ENVIRONMENT):
        fine_tuned = any(name.startswith("task_") for name in environment.get("inputs", {}))
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
