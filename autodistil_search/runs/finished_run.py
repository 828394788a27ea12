"""The results of a finished run, written at its end and read back for pandas and notebooks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import pandas as pd

from autodistil_search.base.errors import InputError
from autodistil_search.base.files import read_json, readable, write_atomically
from autodistil_search.base.manifest import (
    ARCHIVE,
    ENVIRONMENT,
    SEARCH_CONFIG,
    SUMMARY,
    described,
    kind_of,
    lacking,
    verify,
)
from autodistil_search.base.user_input import load_yaml
from autodistil_search.nas import baselines
from autodistil_search.nas.objectives import Constraint, Objective
from autodistil_search.report import findings
from autodistil_search.report.data import SUBNET_COLUMNS, ParetoReport
from autodistil_search.report.file_names import REPORT_FILES
from autodistil_search.report.headline import read_headline
from autodistil_search.report.picking import pick
from autodistil_search.report.run_parts import read_table, run_part
from autodistil_search.runs.run_folder import superlm_folder
from autodistil_search.settings.search import SearchConfig
from autodistil_search.spaces.subnet import Subnet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from autodistil_search.report.widgets import EngineExplorer, Explorer
    from autodistil_search.superlm.model import AutoDistilModel


RUN_FILES = (SEARCH_CONFIG, ENVIRONMENT, SUMMARY, *(name for name in REPORT_FILES if name.endswith(".csv")))
"""Files of a run that are read back."""

_SUMMARY_TYPES = {
    "title": str,
    "objectives": list,
    "columns": list,
    "constraints": list,
    "evaluations": dict,
    "frontier": int,
    "exact": bool,
    "hypervolume": float,
    "hypervolume_share": float,
    "box": dict,
    "conditions": dict,
    "notes": list,
    "seconds": dict,
}
_PROGRESS = ("evaluations", "hypervolume", "share")
_ENGINES = ("space", "engine", "evaluations", "share", "spread")


def is_finished(folder: Path) -> bool:
    """Return True if all files that a run writes at its end exist."""
    return all((folder / name).exists() for name in (*REPORT_FILES, SUMMARY)) and not lacking(folder)


def write_summary(
    folder: Path, report: ParetoReport, seconds: Mapping[str, float], versions: Mapping[str, str]
) -> None:
    """Write `summary.json`, the last file of a run."""
    summary = {
        "title": report.title,
        "objectives": [objective.name for objective in report.objectives],
        "columns": [
            {key: getattr(column, key) for key in ("name", "label", "unit", "direction", "is_proxy")}
            for column in report.columns
        ],
        "constraints": [
            {"objective": constraint.objective.name, "bound": constraint.bound, "upper": constraint.upper}
            for constraint in report.constraints
        ],
        "evaluations": {
            str(space): int(n) for space, n in report.evaluations["space"].value_counts(sort=False).items()
        },
        "frontier": len(report.frontier),
        "exact": report.exact,
        "hypervolume": report.hypervolume,
        "hypervolume_share": report.hypervolume_share,
        "box": report.box,
        "conditions": dict(report.conditions),
        "headline": None if report.headline is None else report.headline.record(),
        **findings.records(report.findings),
        "seconds": dict(seconds),
        "versions": dict(versions),
    }
    write_atomically(folder / SUMMARY, lambda path: path.write_text(json.dumps(summary, indent=2)))


@dataclass(frozen=True)
class Run:
    """A finished run, read from its folder."""

    folder: Path
    report: ParetoReport = field(repr=False)
    summary: Mapping[str, Any] = field(repr=False)

    @property
    def config(self) -> SearchConfig:
        """Return the settings of the run.

        Raises:
            InputError: if they cannot be read.
        """
        path = self.folder / SEARCH_CONFIG
        with readable(path):
            return SearchConfig.from_dict(load_yaml(path))

    def _repr_html_(self) -> str:
        """Return title, knee and frontier as HTML for notebooks."""
        from autodistil_search.report.html import frontier_html

        return frontier_html(self.report)

    @property
    def evaluations(self) -> pd.DataFrame:
        """Return all scored subnets; `attrs["units"]` has the unit of each measured column."""
        return self.report.evaluations

    @property
    def frontier(self) -> pd.DataFrame:
        """Return the subnets that no other subnet dominates, cheapest first; `attrs["units"]` as in `evaluations`."""
        return self.report.frontier

    @property
    def baselines(self) -> pd.DataFrame:
        """Return the baselines that were measured in this run."""
        return self.report.baselines

    @property
    def knee(self) -> pd.Series[Any]:
        """Return the row of the frontier that is nearest to the ideal point."""
        return self.pick("knee")

    def pick(self, which: str = "knee") -> pd.Series[Any]:
        """Return a row of the frontier.

        Args:
            which: "knee"; the number of a row, counted from 1, cheapest first; or bounds separated by commas, such as
                "flops<=200M". Bounds select the row within them that is best in the first objective of the run.

        Raises:
            InputError: if `which` is anything else, or no row keeps the bounds. The message gives the values that the
                frontier reaches.
        """
        return pick(self.report, which)

    def plot(self) -> Figure:
        """Return the figure of `frontier.png`."""
        from autodistil_search.report.figures import frontier_figure

        return frontier_figure(self.report)

    def explore(self, budget: str | None = None) -> Explorer:
        """Return a widget for Jupyter that shows the best student within a budget, or any subnet that is clicked.

        The attribute `row` of the widget is the row on display, an argument for `student`. Without a kernel, the widget
        is a picture.

        Args:
            budget: Cost of the first budget, such as "flops"; by default the first cost of the run's objectives.

        Raises:
            InputError: if the run has no such cost, or the extra `notebooks` is not installed.
        """
        from autodistil_search.report.widgets import Explorer

        return Explorer(self.report, budget)

    def explore_engines(self) -> EngineExplorer:
        """Return a widget for Jupyter that compares engines on the exact frontier at equal numbers of evaluations.

        Raises:
            InputError: if the run has no comparison of engines, or the extra `notebooks` is not installed. A comparison
                needs a space of more than 20 subnets that were all scored.
        """
        from autodistil_search.report.widgets import EngineExplorer

        return EngineExplorer(self.report)

    def student(self, row: pd.Series[Any] | None = None) -> AutoDistilModel:
        """Return the student of a row, extracted from its SuperLM; `save_pretrained` also writes its tokenizer.

        Args:
            row: Row of `frontier` or `evaluations`; by default the knee.

        Raises:
            InputError: if the run trained no SuperLM.
        """
        row = self.knee if row is None else row
        return self.superlm(str(row["space"])).extract(Subnet.from_row({str(key): value for key, value in row.items()}))

    def superlm(self, space: str) -> AutoDistilModel:
        """Return the trained SuperLM of a space.

        Raises:
            InputError: if the run trained no SuperLM for the space.
        """
        folder = superlm_folder(self.folder, space)
        if kind_of(folder) is None and not (folder / "model.safetensors").is_file():
            raise InputError(f"{folder} holds no SuperLM: the run had no objective that needs training")
        from autodistil_search.superlm.model import AutoDistilModel
        from autodistil_search.superlm.model_folder import load_model, load_own_tokenizer

        model = load_model(folder, AutoDistilModel)
        model.tokenizer = load_own_tokenizer(folder)
        return model


def load_run(folder: str | Path) -> Run:
    """Return the finished run in `folder`.

    Raises:
        InputError: if the folder holds no finished run, or a file of the run is damaged.
    """
    folder = Path(folder)
    if kind_of(folder) not in (None, "search"):
        raise InputError(f"{described(folder)}; allowed: the --out folder of a search that ended")
    checked = verify(folder, [*RUN_FILES, *([ARCHIVE] if (folder / ARCHIVE).exists() else [])])
    if not (folder / SUMMARY).is_file():
        raise InputError(f"{str(folder)!r} holds no finished run; allowed: the --out folder of a search that ended")
    run = _read(folder, _read_summary(folder / SUMMARY))
    if checked:
        return run
    note = findings.Finding(findings.UNCHECKED, {"folder": folder.name})
    return replace(run, report=replace(run.report, findings=(*run.report.findings, note)))


def _read_summary(path: Path) -> dict[str, Any]:
    """Return the content of a `summary.json`, once the type of each entry is checked."""
    summary = read_json(path)
    with readable(path):
        for key, kind in _SUMMARY_TYPES.items():
            value = summary[key]
            if not isinstance(value, (int, float, NoneType) if kind is float else kind):
                raise TypeError(f"{key} is {value!r}")
    return summary


def _read(folder: Path, summary: Mapping[str, Any]) -> Run:
    with readable(folder / SUMMARY):
        columns = {column["name"]: Objective(**column) for column in summary["columns"]}
        objectives = [columns[name] for name in summary["objectives"]]
        constraints = [
            Constraint(columns[constraint["objective"]], constraint["bound"], constraint["upper"])
            for constraint in summary["constraints"]
        ]
        box = {objective.name: [float(end) for end in summary["box"][objective.name]] for objective in objectives}
        conditions = tuple((str(key), str(value)) for key, value in summary["conditions"].items())
        scored = sum(map(int, summary["evaluations"].values()))
        run_findings = tuple(findings.read(summary))
        headline = read_headline(summary["headline"])
    measured = [*SUBNET_COLUMNS, *columns]
    finite = [objective.name for objective in objectives]
    evaluations = read_table(folder / "evaluations.csv", measured, finite, rows=scored)
    frontier = read_table(folder / "frontier.csv", [*measured, "knee"], finite, rows=summary["frontier"])
    with readable(folder / "frontier.csv"):
        if frontier["knee"].dtype != bool or frontier["knee"].sum() != 1:
            raise ValueError("not exactly one row is the knee")
        for row in frontier.to_dict("records"):
            Subnet.from_row({str(key): value for key, value in row.items()})
    for table in (evaluations, frontier):
        table.attrs["units"] = {name: column.unit for name, column in columns.items() if name in table}
    report = ParetoReport(
        title=summary["title"],
        objectives=objectives,
        columns=list(columns.values()),
        constraints=constraints,
        evaluations=evaluations,
        frontier=frontier,
        baselines=read_table(folder / "baselines.csv", ["name", *measured[1:], "how", "source", "weights"]),
        published=baselines.published(),
        box=box,
        hypervolume=summary["hypervolume"],
        hypervolume_share=summary["hypervolume_share"],
        progress=read_table(folder / "progress.csv", _PROGRESS, _PROGRESS, rows=scored),
        engines=read_table(folder / "engines.csv", _ENGINES),
        exact=summary["exact"],
        conditions=conditions,
        findings=run_findings,
        runs=(run_part(folder, conditions, summary["exact"]),),
        headline=headline,
    )
    return Run(folder, report, summary)
