"""What a finished run left in its folder: written at its end, read back for pandas and notebooks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from autodistil_search import baselines, findings
from autodistil_search.config import SearchConfig
from autodistil_search.errors import InputError
from autodistil_search.files import read_json, readable, write_atomically
from autodistil_search.given import read_yaml
from autodistil_search.model import AutoDistilModel, quiet_transformers
from autodistil_search.objectives import Constraint, Objective
from autodistil_search.report import REPORT_FILES, ParetoReport, frontier_figure, frontier_html, pick, run_part
from autodistil_search.runfolder import SEARCH_CONFIG
from autodistil_search.space import Subnet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from autodistil_search.report.widgets import EngineExplorer, Explorer


def is_finished(folder: Path) -> bool:
    """Whether all that a run writes at its end is there."""
    return all((folder / name).is_file() for name in (*REPORT_FILES, "summary.json"))


def write_summary(
    folder: Path, report: ParetoReport, seconds: Mapping[str, float], versions: Mapping[str, str]
) -> None:
    """Write `summary.json`, the last file of a run."""
    summary = {
        "title": report.title,
        "objectives": [each.name for each in report.objectives],
        "columns": [
            {key: getattr(each, key) for key in ("name", "label", "unit", "direction", "is_proxy")}
            for each in report.columns
        ],
        "constraints": [
            {"objective": each.objective.name, "bound": each.bound, "upper": each.upper} for each in report.constraints
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
        **findings.records(report.findings),
        "seconds": dict(seconds),
        "versions": dict(versions),
    }
    write_atomically(folder / "summary.json", lambda path: path.write_text(json.dumps(summary, indent=2)))


@dataclass(frozen=True)
class Run:
    """A finished run, read from its folder."""

    folder: Path
    report: ParetoReport = field(repr=False)
    summary: Mapping[str, Any] = field(repr=False)

    @property
    def config(self) -> SearchConfig:
        """All that was chosen.

        Raises:
            InputError: if it cannot be read.
        """
        path = self.folder / SEARCH_CONFIG
        with readable(path):
            return SearchConfig.from_dict(read_yaml(path))

    def _repr_html_(self) -> str:
        """Title, knee and frontier, for notebooks."""
        return frontier_html(self.report)

    @property
    def evaluations(self) -> pd.DataFrame:
        """All scored subnets; `attrs["units"]` has the unit of each measured column."""
        return self.report.evaluations

    @property
    def frontier(self) -> pd.DataFrame:
        """The subnets that no other dominates, cheapest first; `attrs["units"]` as of `evaluations`."""
        return self.report.frontier

    @property
    def baselines(self) -> pd.DataFrame:
        """The hand-designed shapes measured in this run."""
        return self.report.baselines

    @property
    def knee(self) -> pd.Series[Any]:
        """The frontier's balanced choice."""
        return self.pick("knee")

    def pick(self, which: str = "knee") -> pd.Series[Any]:
        """A row of the frontier.

        Args:
            which: "knee"; a whole number, the row counted from 1, cheapest first; or bounds separated by commas, such
                as "flops<=200M": of the rows that keep them all, the best in the run's first objective.

        Raises:
            InputError: for anything else, and for bounds that no row keeps; it says what the frontier reaches.
        """
        return pick(self.report, which)

    def plot(self) -> Figure:
        """The figure `frontier.png`."""
        return frontier_figure(self.report)

    def explore(self, budget: str | None = None) -> Explorer:
        """The frontier to explore in Jupyter: move a budget and see the best student within it, click any subnet.

        budget: the cost to begin with, such as "flops"; the first of the run's objectives if none is given. The `row`
        of what it gives is the one shown, for `student`. Without a kernel it is a picture.

        Raises:
            InputError: if the run has no such cost, or the extra `notebooks` is not installed.
        """
        from autodistil_search.report.widgets import Explorer

        return Explorer(self.report, budget)

    def explore_engines(self) -> EngineExplorer:
        """What each engine finds of the exact frontier for the same number of evaluations, to choose in Jupyter.

        Raises:
            InputError: if not every subnet of a space of more than 20 was scored, or the extra `notebooks` is not
                installed.
        """
        from autodistil_search.report.widgets import EngineExplorer

        return EngineExplorer(self.report)

    def student(self, row: pd.Series[Any] | None = None) -> AutoDistilModel:
        """The model of a row of `frontier` or `evaluations`; of the knee if none is given.

        Raises:
            InputError: if the run trained no SuperLM.
        """
        row = self.knee if row is None else row
        return self.superlm(str(row["space"])).extract(Subnet.from_row({str(key): value for key, value in row.items()}))

    def superlm(self, space: str) -> AutoDistilModel:
        """The trained SuperLM of a space.

        Raises:
            InputError: if the run trained none.
        """
        folder = self.folder / "superlm" / space
        if not (folder / "model.safetensors").is_file():
            raise InputError(f"{folder} holds no SuperLM: the run had no objective that needs training")
        with readable(folder / "model.safetensors"), quiet_transformers():
            found: AutoDistilModel = AutoDistilModel.from_pretrained(folder)
        found.eval()
        return found


def load_run(folder: str | Path) -> Run:
    """The finished run in `folder`.

    Raises:
        InputError: if there is none.
    """
    folder = Path(folder)
    if not (folder / "summary.json").is_file():
        raise InputError(f"{str(folder)!r} holds no finished run; allowed: the --out folder of a search that ended")
    with readable(folder / "summary.json"):
        return _read(folder, read_json(folder / "summary.json"))


def _read(folder: Path, summary: Mapping[str, Any]) -> Run:
    columns = {each["name"]: Objective(**each) for each in summary["columns"]}
    conditions = tuple(summary["conditions"].items())

    def table(name: str) -> pd.DataFrame:
        # Names may look like numbers, or like nothing: a space of 512.yaml or NA.yaml.
        names = dict.fromkeys(("space", "name", "engine", "run"), str)
        path = folder / f"{name}.csv"
        with readable(path):
            return pd.read_csv(path, dtype=names, keep_default_na=False, na_values=[""])

    evaluations, frontier = table("evaluations"), table("frontier")
    for measured in (evaluations, frontier):
        measured.attrs["units"] = {name: each.unit for name, each in columns.items() if name in measured}
    report = ParetoReport(
        title=summary["title"],
        objectives=[columns[name] for name in summary["objectives"]],
        columns=list(columns.values()),
        constraints=[
            Constraint(columns[each["objective"]], each["bound"], each["upper"]) for each in summary["constraints"]
        ],
        evaluations=evaluations,
        frontier=frontier,
        baselines=table("baselines"),
        published=baselines.published(),
        box=summary["box"],
        hypervolume=summary["hypervolume"],
        hypervolume_share=summary["hypervolume_share"],
        progress=table("progress"),
        engines=table("engines"),
        exact=summary["exact"],
        conditions=conditions,
        findings=tuple(findings.read(summary)),
        runs=(run_part(folder, conditions, summary["exact"]),),
    )
    return Run(folder, report, summary)
