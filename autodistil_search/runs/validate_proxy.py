"""`validate-proxy`: a test of how well proxies rank subnets, mainly within narrow bands of cost.

Subnets of very different cost are easy to rank. A proxy must rank subnets of similar cost, and must do so better than
FLOPs, which are computed without measuring.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from autodistil_search.base.errors import InputError
from autodistil_search.base.executors import open_executor, open_team
from autodistil_search.base.files import readable, write_atomically
from autodistil_search.base.jobs import Job, Team
from autodistil_search.base.manifest import (
    ENVIRONMENT,
    SUMMARY,
    VALIDATE_CONFIG,
    read_sealed,
    reopen,
    write_manifest,
    write_sealed,
)
from autodistil_search.base.pretrained import model_sha256
from autodistil_search.base.progress import Reporter
from autodistil_search.distillation.options import TrainOptions
from autodistil_search.distillation.training_loop import distill
from autodistil_search.nas.baseline_training import begin_alone, options_alone
from autodistil_search.nas.engines.base import ENUMERABLE
from autodistil_search.nas.label_free_proxies import label_free_kinds
from autodistil_search.nas.objectives import COSINE, HIDDEN_LOSS, PROBE, TASK, Objective, proxy_objective
from autodistil_search.nas.proxies import HARDLY_LEARNT, Proxy, ProxyKind
from autodistil_search.nas.rank_correlation import STATISTICS, Array, agreement, gain, kendall
from autodistil_search.nas.task_proxies import TaskBudget, task_proxy
from autodistil_search.report.figures import save_figure
from autodistil_search.report.findings import (
    NOTHING_LEARNT_ALONE,
    NOTHING_TO_RANK,
    Finding,
    comparison,
    rates_in_words,
    records,
    remark,
)
from autodistil_search.report.run_parts import read_table
from autodistil_search.report.validation_figure import validation_figure
from autodistil_search.runs.finished_run import Run, load_run
from autodistil_search.runs.run_folder import (
    check_folder,
    computing_versions,
    exclusive,
    folder_id,
    mark_folder,
    open_folder,
    versions,
)
from autodistil_search.runs.train import relation_proxy
from autodistil_search.runs.training_inputs import TrainingInputs, resolve_training
from autodistil_search.settings.validate_proxy import ValidateConfig
from autodistil_search.spaces.cost import flops
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel

if TYPE_CHECKING:
    from autodistil_search.base.executors import AnyExecutor

_DRAWN_OF_LARGE_SPACES = 20_000
_SUBNETS, _RANKING = "subnets.csv", "ranking.csv"
_STATE = "subnets.json"
"""File with the rows of `subnets.csv` and a digest, until all subnets are measured."""
ALONE = "alone_"
"""Prefix of a proxy's column for the subnet that was trained alone."""


@dataclass(frozen=True)
class Measure:
    """Measure of a subnet: its column in the results, its label and its direction."""

    column: str
    label: str
    higher_is_better: bool


@dataclass(frozen=True)
class Validation:
    """Result of validating a proxy.

    Args:
        folder: Folder of the validation.
        measured: Table with a row for each subnet: its sizes, `band`, `flops` and a column for each measure.
        measures: Measures of the columns.
        ranking: Table of the rank correlations of each measure with each target, over all subnets and within bands.
        findings: Conclusions and the conditions of the measurements.
    """

    folder: Path
    measured: pd.DataFrame
    measures: Sequence[Measure]
    ranking: pd.DataFrame
    findings: Sequence[Finding]

    @property
    def notes(self) -> list[str]:
        """Return the sentences of `findings`."""
        return [str(finding) for finding in self.findings]

    def __repr__(self) -> str:
        measures = ", ".join(measure.label for measure in self.measures)
        return "\n".join([f"validation {self.folder}: {len(self.measured)} subnets by {measures}", *self.notes])


def validate_proxy(
    config: ValidateConfig, reporter: Reporter | None = None, executor: AnyExecutor | None = None
) -> Validation:
    """Rank subnets of the SuperLM of `config.run` by several measures, and compare the rankings.

    Each subnet is recorded once it is measured. A stopped validation is continued.

    The arguments are those of `autodistil_search.validate_proxy`; without a reporter, nothing is shown.

    Raises:
        InputError: if an input cannot be used, or the folder holds another validation.
    """
    reporter = reporter or Reporter()
    config = config.absolute()
    run = load_run(config.run)
    space = _space_of(config, run)
    check_folder(config.folder, VALIDATE_CONFIG, config.to_dict())
    validation = _LoadedValidation(config, run, space, reporter)
    with exclusive(config.folder), open_executor(config.executor, config.workers, reporter, executor) as workers:
        open_folder(config.folder, VALIDATE_CONFIG, ValidateConfig, config.to_dict(), validation.environment)
        with open_team(workers, validation, reporter) as team:
            return validation.measure_all(team)


def draw_in_bands(space: SearchSpace, subnets: int, bands: int, width: float, seed: int) -> list[tuple[int, Subnet]]:
    """Return random subnets in narrow bands of FLOPs over the whole range, as pairs of band and subnet.

    The pairs are ordered by band and FLOPs, the cheapest first. The middles of the bands are evenly spaced on a
    logarithmic scale between the smallest and the largest FLOPs.

    Args:
        space: Space of the subnets.
        subnets: Total number of subnets, spread evenly over the bands.
        bands: Number of bands.
        width: Greatest distance from the middle of a band, as a share of its FLOPs. If too few subnets are within it,
            the nearest ones are taken.
        seed: Seed of the draw.
    """
    rng = random.Random(seed)
    if space.size <= ENUMERABLE:
        everything = [space.decode(genome) for genome in space.genomes()]
    else:
        everything = list(dict.fromkeys(space.sample(rng) for _ in range(_DRAWN_OF_LARGE_SPACES)))
    costs = np.log([flops(subnet) for subnet in everything])
    low, high = (np.log(flops(end)) for end in space.ends)
    drawn: list[tuple[int, Subnet]] = []
    taken: set[int] = set()
    for band in range(bands):
        middle = low + (high - low) * (band + 0.5) / bands
        share = subnets // bands + (band < subnets % bands)
        nearest = [int(i) for i in np.argsort(np.abs(costs - middle), kind="stable") if int(i) not in taken]
        inside = [i for i in nearest if abs(costs[i] - middle) <= np.log1p(width)]
        chosen = rng.sample(inside, share) if len(inside) >= share else nearest[:share]
        taken.update(chosen)
        drawn += [(band, everything[i]) for i in sorted(chosen, key=costs.__getitem__)]
    return drawn


def _space_of(config: ValidateConfig, run: Run) -> str:
    names = sorted(set(run.evaluations["space"]))
    if config.space is None and len(names) > 1:
        raise InputError(f"run {config.run!r} has spaces {', '.join(names)}; select one with --space")
    name = config.space or names[0]
    if name not in names:
        raise InputError(f"--space {name!r}; run {config.run!r} has {', '.join(names)}")
    return name


@dataclass(frozen=True)
class _SubnetToMeasure:
    """Task of measuring a subnet: its number in the order of the table, its band of cost, and its sizes."""

    number: int
    band: int
    subnet: Subnet

    def __str__(self) -> str:
        return str(self.subnet)


@dataclass(frozen=True, kw_only=True)
class _ValidationJob(Job):
    """Measurement of subnets in a worker, which sees the folders of the run and of the validation."""

    settings: Mapping[str, Any]

    def load(self) -> _LoadedValidation:
        """Load the run and the inputs of the validation; see `jobs.Job`."""
        config = ValidateConfig(**self.settings)
        run = load_run(config.run)
        return _LoadedValidation(config, run, _space_of(config, run), Reporter())


class _LoadedValidation:
    """A validation of proxies on the subnets of one space, with all inputs loaded."""

    def __init__(self, config: ValidateConfig, run: Run, space: str, reporter: Reporter) -> None:
        self._config, self._reporter = config, reporter
        self._superlm = run.superlm(space)
        self._space = self._superlm.space
        if config.subnets > self._space.size:
            raise InputError(f"--subnets {config.subnets}; space {space!r} has {self._space.size}")
        budget = TaskBudget(config.train_rows, config.epochs, config.lr, config.seed)
        self._probe, self._cosine, self._task = (
            None if name is None else task_proxy(f"{kind}{name}", budget, config.columns, config.label_column)
            for kind, name in ((PROBE, config.probe), (COSINE, config.cosine), (TASK, config.task))
        )
        kinds = filter(None, (self._probe, self._cosine, self._task))
        for note in dict.fromkeys(
            note for kind in kinds for note in kind.notes
        ):  # several measures may use the same table
            reporter.say(note)
        training = run.config.training(
            device=config.device, precision=config.precision, seed=config.seed, accumulate=config.accumulate
        )
        steps = training.steps if config.alone_steps is None else config.alone_steps
        self._alone_steps = steps
        self._materials: TrainingInputs = resolve_training(replace(training, steps=max(1, steps)), reporter)
        self._materials.device.place(self._superlm)
        self._relation = proxy_objective(training.loss, training.relations)
        self._eval_blocks = run.config.eval_blocks

    @property
    def environment(self) -> dict[str, Any]:
        """Return the entries of `environment.json`."""
        kinds = {"probe": self._probe, "cosine": self._cosine, "task": self._task}
        tasks = {f"{name}_task": kind.digest for name, kind in kinds.items() if kind is not None}
        inputs = {**self._materials.identity, **tasks, "superlm": model_sha256(self._superlm)}
        return {**self._materials.environment, "inputs": inputs}

    def job(self) -> Job:
        """Return the job by which workers measure as this process does."""
        mark_folder(self._config.folder)
        config = replace(self._config, executor=None, workers=None, out=str(self._config.folder.resolve()))
        return _ValidationJob(conditions=self.conditions(), threads=torch.get_num_threads(), settings=asdict(config))

    def conditions(self) -> dict[str, str]:
        """Return everything on which the measurements depend; see `jobs.LoadedJob`."""
        return {
            **self.environment["inputs"],
            **computing_versions(),
            "folder of the validation": folder_id(self._config.folder),
        }

    @cached_property
    def _proxies(self) -> dict[str, Proxy]:
        """Return the proxies that are measured on the SuperLM's weights, by column."""
        assert self._materials.text is not None
        blocks = max(2, self._eval_blocks)  # the hidden-state proxy needs two blocks
        kinds = label_free_kinds("kl", "qq,kk,vv", self._materials.options.relation_heads)
        proxies: dict[str, Proxy] = {
            self._relation.name: relation_proxy(self._materials, self._eval_blocks),
            HIDDEN_LOSS.name: kinds["hidden"].open(
                self._materials.teacher, self._materials.text.held_out.spread, blocks, self._materials.device
            ),
        }
        if self._probe is not None:
            proxies[self._probe.objective.name] = self._open(self._probe)
        return proxies

    @cached_property
    def _scores(self) -> dict[str, Proxy]:
        """Return the proxies that are measured on extracted students, by column."""
        return {kind.objective.name: self._open(kind) for kind in (self._cosine, self._task) if kind is not None}

    def _open(self, kind: ProxyKind) -> Proxy:
        return kind.open(self._materials.teacher, lambda _: torch.empty(0), 0, self._materials.device)

    @property
    def measures(self) -> list[Measure]:
        """Return the measures of all columns, predictors before targets."""
        proxies = [*self._losses, *([self._probe.objective] if self._probe else [])]
        shared = [_measure_of(objective.name, objective, "shared") for objective in proxies]
        return [Measure("flops", "FLOPs", True), *shared, *self._predicted]

    @property
    def targets(self) -> list[str]:
        """Return the columns that the other measures should predict."""
        return [measure.column for measure in self._predicted]

    @property
    def _losses(self) -> list[Objective]:
        """Return the objectives that need no labels."""
        return [self._relation, HIDDEN_LOSS]

    @property
    def _predicted(self) -> list[Measure]:
        alone = self._losses if self._alone_steps else []
        measures = [_measure_of(f"{ALONE}{objective.name}", objective, "trained alone") for objective in alone]
        if self._cosine:
            measures.append(_measure_of(self._cosine.objective.name, self._cosine.objective, self._weights_in_words))
        if self._task:
            measures.append(_measure_of(self._task.objective.name, self._task.objective, "fine-tuned"))
        return measures

    @property
    def _weights_in_words(self) -> str:
        return "trained alone" if self._alone_steps else "shared"

    def measure_all(self, team: Team) -> Validation:
        """Measure the remaining subnets, and compare the measures."""
        config, path = self._config, self._config.folder / _SUBNETS
        drawn = draw_in_bands(self._space, config.subnets, config.bands, config.band_width, config.seed)
        reopen(config.folder)
        rows = self._measured_before(path, drawn)
        tasks = [_SubnetToMeasure(i, *entry) for i, entry in enumerate(drawn) if i not in rows]
        with self._reporter.bar("measuring", "subnets", len(drawn)) as bar:
            bar.skip(len(rows))
            for index, row in team.results(tasks):
                number = tasks[index].number
                rows[number] = row
                self._record(rows, path)
                shutil.rmtree(self._folder_alone(number), ignore_errors=True)  # large, and no longer needed
                bar.advance()
        shutil.rmtree(config.folder / "alone", ignore_errors=True)
        return self._finish(pd.DataFrame([rows[number] for number in sorted(rows)]))

    def _record(self, rows: Mapping[int, dict[str, Any]], path: Path) -> None:
        """Write the rows measured so far, in the order of their numbers."""
        in_order = [rows[number] for number in sorted(rows)]
        write_sealed(self._config.folder / _STATE, {"rows": in_order})
        write_atomically(path, lambda file: pd.DataFrame(in_order).to_csv(file, index=False))

    def _folder_alone(self, number: int) -> Path:
        """Return the folder of the checkpoints of a subnet that is trained alone."""
        return self._config.folder / "alone" / str(number)

    def _measured_before(self, path: Path, drawn: Sequence[tuple[int, Subnet]]) -> dict[int, dict[str, Any]]:
        """Return by number the rows that earlier sessions measured, from the state file or else from the table."""
        columns, state = [measure.column for measure in self.measures], self._config.folder / _STATE
        if state.exists():
            content, path = read_sealed(state, f"delete it and {path.name} to measure all subnets again"), state
            with readable(state):
                table = pd.DataFrame([dict(row) for row in content["rows"]])
        elif path.exists():
            table = read_table(path, ["band", *columns], ["band", "flops"])
        else:
            return {}
        numbers, rows = {entry: number for number, entry in enumerate(drawn)}, {}
        with readable(path):
            for entry in table.to_dict("records"):
                row = {str(key): value for key, value in entry.items()}
                band, subnet = row["band"], Subnet.from_row(row)
                if (band, subnet) not in numbers or not all(name in row for name in columns):
                    raise ValueError(f"it has subnet {subnet} in band {band}, which is not among those to measure")
                if any(not isinstance(row[name], int | float) for name in columns):
                    raise ValueError(f"a measure of {subnet} is not a number")
                rows[numbers[band, subnet]] = row
        return rows

    def run(self, task: _SubnetToMeasure) -> dict[str, Any]:
        """Return the row of a subnet: its sizes, band, FLOPs and measures."""
        band, subnet = task.band, task.subnet
        row: dict[str, Any] = {"band": band, **subnet.to_row(), "flops": flops(subnet)}
        row |= {column: proxy.score(self._superlm, subnet) for column, proxy in self._proxies.items()}
        student = self._superlm.extract(subnet)
        if self._alone_steps:
            student = self._trained_alone(subnet, self._folder_alone(task.number))
            row |= {f"{ALONE}{loss.name}": self._proxies[loss.name].score(student) for loss in self._losses}
        return row | {column: score.score(student) for column, score in self._scores.items()}

    def _options_alone(self, subnet: Subnet) -> TrainOptions:
        """Return the training options of the SuperLM, with `--alone-lr` or the learning rate of this subnet's size."""
        options = options_alone(self._materials.options_of(subnet))
        return options if self._config.alone_lr is None else replace(options, lr=self._config.alone_lr)

    @property
    def _rates_alone(self) -> list[float]:
        """Return the lowest and the highest learning rate of subnets trained alone."""
        return [self._options_alone(end).lr for end in reversed(self._space.ends)]

    def _trained_alone(self, subnet: Subnet, folder: Path) -> AutoDistilModel:
        materials = self._materials
        assert materials.text is not None
        options = self._options_alone(subnet)
        model = begin_alone(materials.teacher, subnet, options, materials.config.init, materials.sample_ids)
        begun = materials.text.begin()
        return distill(
            model, materials.teacher, begun, options, folder, materials.device, self._reporter,
            materials.execution, title=str(subnet), sample_ids=materials.sample_ids,
        )  # fmt: skip

    def _finish(self, measured: pd.DataFrame) -> Validation:
        measures, folder = self.measures, self._config.folder
        ranking = rank(measured, measures, self.targets)
        conditions = remark(self._conditions)
        findings = [*conclusions(measured, measures, self.targets), *self._broken(measured), conditions]
        write_atomically(folder / _RANKING, lambda path: ranking.to_csv(path, index=False))
        validation = Validation(folder, measured, measures, ranking, findings)
        draw(validation, self.targets)
        labels = {measure.column: measure.label for measure in measures}
        summary = {**records(findings), "columns": labels, "versions": versions()}
        write_atomically(folder / SUMMARY, lambda path: path.write_text(json.dumps(summary, indent=2)))
        write_manifest(folder, "validate-proxy", (VALIDATE_CONFIG, ENVIRONMENT, _SUBNETS, _RANKING, SUMMARY))
        (folder / _STATE).unlink(missing_ok=True)
        return validation

    def _broken(self, measured: pd.DataFrame) -> list[Finding]:
        """Return a finding on subnets that training alone has broken, if there are any.

        The scores of such a subnet do not depend on its sizes.
        """
        column, reference = f"{ALONE}{self._relation.name}", self._proxies[self._relation.name].reference
        if column not in measured:
            return []
        broken = int((measured[column] > HARDLY_LEARNT * reference).sum())
        values = {"broken": broken, "subnets": len(measured), "lr": self._rates_alone}
        return [Finding(NOTHING_LEARNT_ALONE, values)] if broken else []

    @property
    def _conditions(self) -> str:
        words = [f"{objective.name}: {self._proxies[objective.name].description}" for objective in self._losses]
        if self._probe is not None:
            words.append(f"probe: {self._proxies[self._probe.objective.name].description}")
        if self._alone_steps:
            words.append(
                f"alone: {self._alone_steps} steps with --init, text and batch of the SuperLM, learning rate "
                f"{rates_in_words(*self._rates_alone)}"
            )
        start = "trained alone" if self._alone_steps else "extracted from the SuperLM"
        if self._cosine is not None:
            words.append(f"cosine, {start}: {self._scores[self._cosine.objective.name].description}")
        if self._task is not None:
            words.append(f"fine-tuned after being {start}: {self._scores[self._task.objective.name].description}")
        return "; ".join(words)


def _measure_of(column: str, objective: Objective, how: str) -> Measure:
    return Measure(column, f"{objective.label}, {how}", objective.direction == "maximize")


def _sides(measured: pd.DataFrame, measures: Sequence[Measure]) -> dict[str, Array]:
    """Return the values of each column, with signs such that higher is better."""
    return {
        measure.column: (1 if measure.higher_is_better else -1) * measured[measure.column].to_numpy(float)
        for measure in measures
    }


def rank(measured: pd.DataFrame, measures: Sequence[Measure], targets: Sequence[str]) -> pd.DataFrame:
    """Return the rank correlations of each measure with each target, over all subnets and within bands.

    Each correlation has the ends of its 95 % interval.
    """
    sides, rows = _sides(measured, measures), []
    scopes = {"all": np.zeros(len(measured), dtype=np.int64), "within bands": measured["band"].to_numpy(np.int64)}
    for column, target in _pairs(measures, targets):
        for scope, groups in scopes.items():
            row: dict[str, Any] = {"measure": column, "target": target, "scope": scope, "subnets": len(measured)}
            for name, statistic in STATISTICS.items():
                correlation = agreement(statistic, sides[column], sides[target], groups)
                row |= {name: correlation.value, f"{name}_low": correlation.low, f"{name}_high": correlation.high}
            rows.append(row)
    return pd.DataFrame(rows)


def _pairs(measures: Sequence[Measure], targets: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of a measure and a target that comes after it."""
    columns = [measure.column for measure in measures]
    return [(a, b) for b in targets for a in columns[: columns.index(b)]]


def conclusions(measured: pd.DataFrame, measures: Sequence[Measure], targets: Sequence[str]) -> list[Finding]:
    """Return a finding for each measure and target that compares the measure with FLOPs within bands of cost."""
    sides, labels = _sides(measured, measures), {measure.column: measure.label for measure in measures}
    groups = measured["band"].to_numpy(np.int64)
    alike = [target for target in targets if measured.groupby("band")[target].nunique().max() == 1]
    findings = [Finding(NOTHING_TO_RANK, {"target": labels[target]}) for target in alike]
    for column, target in _pairs(measures, [target for target in targets if target not in alike]):
        if column == "flops":
            continue
        tau = agreement(kendall, sides[column], sides[target], groups)
        tau_of_flops = agreement(kendall, sides["flops"], sides[target], groups)
        difference = gain(kendall, sides[column], sides["flops"], sides[target], groups)
        findings.append(comparison(labels[column], labels[target], tau, tau_of_flops, difference, len(measured)))
    return findings


def draw(validation: Validation, targets: Sequence[str]) -> None:
    """Write `ranking.png`, which plots each measure against each target."""
    pairs = _pairs(validation.measures, targets)
    within = validation.ranking[validation.ranking["scope"] == "within bands"].set_index(["measure", "target"])
    taus = [float(within["kendall"].loc[pair]) for pair in pairs]  # type: ignore[arg-type]
    titles = [f"tau within bands {tau:.2f}" if np.isfinite(tau) else "alike within bands" for tau in taus]
    labels = {measure.column: measure.label for measure in validation.measures}
    figure = validation_figure(validation.measured, pairs, labels, titles)
    write_atomically(validation.folder / "ranking.png", lambda path: save_figure(figure, path))
