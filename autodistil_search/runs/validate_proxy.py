"""`validate-proxy`: a test of how well proxies rank subnets, mainly within narrow bands of cost.

Subnets of very different cost are easy to rank. A proxy must rank subnets of similar cost, and must do so better than
FLOPs, which are computed without measuring.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from autodistil_search.nas.cost_bands import Drawn, draw_in_bands
from autodistil_search.nas.label_free_proxies import AnyKind, label_free_kinds
from autodistil_search.nas.objectives import COMBINED, COSINE, PROBE, RELATION, TASK
from autodistil_search.nas.proxies import HARDLY_LEARNT, Proxy, ProxyKind
from autodistil_search.nas.task_proxies import TaskBudget, task_proxy
from autodistil_search.report.figures import save_figure
from autodistil_search.report.findings import (
    IN_RANKING,
    NOTHING_LEARNT_ALONE,
    Finding,
    rates_in_words,
    records,
    remark,
)
from autodistil_search.report.run_parts import read_table
from autodistil_search.report.validation_figure import validation_figure
from autodistil_search.report.validation_table import ALONE
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
from autodistil_search.runs.training_inputs import TrainingInputs, resolve_training
from autodistil_search.runs.validate_proxy_measures import Measure, Measures
from autodistil_search.runs.validate_proxy_ranking import conclusions, rank
from autodistil_search.settings.validate_proxy import ValidateConfig
from autodistil_search.spaces.cost import flops
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel

if TYPE_CHECKING:
    from autodistil_search.base.executors import AnyExecutor

_SUBNETS, _RANKING = "subnets.csv", "ranking.csv"
_STATE = "subnets.json"
"""File with the rows of `subnets.csv` and a digest, until all subnets are measured."""


@dataclass(frozen=True)
class Validation:
    """Result of validating proxies.

    Args:
        folder: Folder of the validation.
        measured: Table with a row for each subnet: its `space` and sizes, `band`, `flops` and a column for each
            measure.
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

    @property
    def remarks(self) -> list[str]:
        """Return the sentences of the findings that `ranking` does not hold."""
        return [str(finding) for finding in self.findings if finding.kind not in IN_RANKING]

    def __repr__(self) -> str:
        measures = ", ".join(measure.label for measure in self.measures)
        return "\n".join([f"validation {self.folder}: {len(self.measured)} subnets by {measures}", *self.remarks])


def validate_proxy(
    config: ValidateConfig, reporter: Reporter | None = None, executor: AnyExecutor | None = None
) -> Validation:
    """Rank subnets of the SuperLMs of `config.run` by several measures, and compare the rankings.

    Each subnet is recorded once it is measured. A stopped validation is continued.

    The arguments are those of `autodistil_search.validate_proxy`; without a reporter, nothing is shown.

    Raises:
        InputError: if an input cannot be used, or the folder holds another validation.
    """
    reporter = reporter or Reporter()
    config = config.absolute()
    run = load_run(config.run)
    _spaces_of(config, run)
    check_folder(config.folder, VALIDATE_CONFIG, config.to_dict())
    validation = _LoadedValidation(config, run, reporter)
    with exclusive(config.folder), open_executor(config.executor, config.workers, reporter, executor) as workers:
        open_folder(config.folder, VALIDATE_CONFIG, ValidateConfig, config.to_dict(), validation.environment)
        with open_team(workers, validation, reporter) as team:
            return validation.measure_all(team)


def _spaces_of(config: ValidateConfig, run: Run) -> list[str]:
    """Return the names of the spaces that `config` asks for, by default all of the run."""
    names = list(dict.fromkeys(run.evaluations["space"]))
    if unknown := [name for name in config.space_names if name not in names]:
        raise InputError(f"--space {unknown[0]!r}; run {config.run!r} has {', '.join(names)}")
    return config.space_names or names


def _task_kind(config: ValidateConfig, prefix: str, name: str) -> ProxyKind:
    """Return the proxy of a labelled task within the limits of `config`."""
    budget = TaskBudget(config.train_rows, config.epochs, config.lr, config.seed)
    return task_proxy(f"{prefix}{name}", budget, config.columns, config.label_column)


@dataclass(frozen=True)
class _SubnetToMeasure:
    """Task of measuring a subnet, with its number in the order of the table."""

    number: int
    drawn: Drawn

    def __str__(self) -> str:
        return f"{self.drawn.subnet} of space {self.drawn.space}"


@dataclass(frozen=True, kw_only=True)
class _ValidationJob(Job):
    """Measurement of subnets in a worker, which sees the folders of the run and of the validation."""

    settings: Mapping[str, Any]

    def load(self) -> _LoadedValidation:
        """Load the run and the inputs of the validation; see `jobs.Job`."""
        config = ValidateConfig(**self.settings)
        return _LoadedValidation(config, load_run(config.run), Reporter())


class _LoadedValidation:
    """A validation of proxies on the subnets of a run's spaces, with all inputs loaded."""

    def __init__(self, config: ValidateConfig, run: Run, reporter: Reporter) -> None:
        self._config, self._reporter = config, reporter
        self._superlms = {name: run.superlm(name) for name in _spaces_of(config, run)}
        self._spaces = [superlm.space for superlm in self._superlms.values()]
        self._check_subnets()
        probe, cosine = (
            None if name is None else _task_kind(config, prefix, name)
            for prefix, name in ((PROBE, config.probe), (COSINE, config.cosine))
        )
        tasks = [_task_kind(config, TASK, name) for name in config.task_names]
        labelled = [kind for kind in (probe, cosine, *tasks) if kind is not None]
        for note in dict.fromkeys(note for kind in labelled for note in kind.notes):
            reporter.say(note)  # once, if several measures use the same table
        training = run.config.training(
            device=config.device, precision=config.precision, seed=config.seed, accumulate=config.accumulate
        )
        self._alone_steps = training.steps if config.alone_steps is None else config.alone_steps
        self._materials: TrainingInputs = resolve_training(
            replace(training, steps=max(1, self._alone_steps)), reporter, trains=self._alone_steps > 0
        )
        for superlm in self._superlms.values():
            self._materials.device.place(superlm)
        self._eval_blocks = max(2, run.config.eval_blocks)  # the hidden-state loss needs two blocks
        self.measures = Measures(
            label_free=label_free_kinds(training.loss, training.relations, self._materials.options.relation_heads),
            probe=probe,
            cosine=cosine,
            tasks=tasks,
            alone=self._alone_steps > 0,
        )

    def _check_subnets(self) -> None:
        most = sum(space.size for space in self._spaces)
        if self._config.subnets > most:
            names = ", ".join(repr(space.name) for space in self._spaces)
            raise InputError(f"--subnets {self._config.subnets}; allowed: at most {most}, all subnets of space {names}")

    @property
    def environment(self) -> dict[str, Any]:
        """Return the entries of `environment.json`."""
        measures = self.measures
        kinds = {"probe_task": measures.probe, "cosine_task": measures.cosine}
        kinds |= {f"task_{task.objective.name}": task for task in measures.tasks}
        digests = {name: kind.digest for name, kind in kinds.items() if kind is not None}
        superlms = {f"superlm_{name}": model_sha256(superlm) for name, superlm in self._superlms.items()}
        return {**self._materials.environment, "inputs": {**self._materials.identity, **digests, **superlms}}

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
    def _shared(self) -> dict[str, Proxy]:
        """Return the proxies that are measured on the SuperLM's weights, by column."""
        probe = self.measures.probe
        return self._open([*self.measures.label_free.values(), *([] if probe is None else [probe])])

    @cached_property
    def _cosine(self) -> dict[str, Proxy]:
        """Return the proxy of a task of pairs by column, which is measured on extracted students."""
        return self._open([] if self.measures.cosine is None else [self.measures.cosine])

    @cached_property
    def _tasks(self) -> dict[str, Proxy]:
        """Return the proxies that fine-tune extracted students, by column."""
        return self._open(self.measures.tasks)

    def _open(self, kinds: Sequence[AnyKind]) -> dict[str, Proxy]:
        materials = self._materials
        assert materials.text is not None
        held_out = materials.text.held_out.spread
        opened = (kind.open(materials.teacher, held_out, self._eval_blocks, materials.device) for kind in kinds)
        return {kind.objective.name: proxy for kind, proxy in zip(kinds, opened, strict=True)}

    def measure_all(self, team: Team) -> Validation:
        """Measure the remaining subnets, and compare the measures."""
        config, path = self._config, self._config.folder / _SUBNETS
        drawn = draw_in_bands(self._spaces, config.subnets, config.bands, config.band_width, config.seed)
        reopen(config.folder)
        rows = self._measured_before(path, drawn)
        tasks = [_SubnetToMeasure(i, entry) for i, entry in enumerate(drawn) if i not in rows]
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

    def _measured_before(self, path: Path, drawn: Sequence[Drawn]) -> dict[int, dict[str, Any]]:
        """Return by number the rows that earlier sessions measured, from the state file or else from the table."""
        columns, state = [measure.column for measure in self.measures.all], self._config.folder / _STATE
        if state.exists():
            content, path = read_sealed(state, f"delete it and {path.name} to measure all subnets again"), state
            with readable(state):
                table = pd.DataFrame([dict(row) for row in content["rows"]])
        elif path.exists():
            table = read_table(path, ["band", "space", *columns], ["band", "flops"])
        else:
            return {}
        numbers, rows = {entry: number for number, entry in enumerate(drawn)}, {}
        with readable(path):
            for entry in table.to_dict("records"):
                row = {str(key): value for key, value in entry.items()}
                found = Drawn(row["band"], str(row["space"]), Subnet.from_row(row))
                if found not in numbers or not all(name in row for name in columns):
                    raise ValueError(f"it has {found}, which is not among the subnets to measure")
                if any(not isinstance(row[name], int | float) for name in columns):
                    raise ValueError(f"a measure of {found.subnet} is not a number")
                rows[numbers[found]] = row
        return rows

    def run(self, task: _SubnetToMeasure) -> dict[str, Any]:
        """Return the row of a subnet: its space, sizes, band, FLOPs and measures."""
        band, space, subnet = task.drawn
        superlm = self._superlms[space]
        row: dict[str, Any] = {"band": band, "space": space, **subnet.to_row(), "flops": flops(subnet)}
        row |= {column: proxy.score(superlm, subnet) for column, proxy in self._shared.items()}
        student = superlm.extract(subnet)
        if self._alone_steps:
            student = self._trained_alone(subnet, self._folder_alone(task.number))
            names = [objective.name for objective in self.measures.objectives]
            row |= {f"{ALONE}{name}": self._shared[name].score(student) for name in names}
        row |= {column: proxy.score(student) for column, proxy in self._cosine.items()}
        return row | self.measures.with_mean({column: task.score(student) for column, task in self._tasks.items()})

    def _options_alone(self, subnet: Subnet) -> TrainOptions:
        """Return the training options of the SuperLM, with `--alone-lr` or the learning rate of this subnet's size."""
        options = options_alone(self._materials.options_of(subnet))
        return options if self._config.alone_lr is None else replace(options, lr=self._config.alone_lr)

    @property
    def _rates_alone(self) -> list[float]:
        """Return the lowest and the highest learning rate of subnets trained alone."""
        rates = [self._options_alone(end).lr for space in self._spaces for end in space.ends]
        return [min(rates), max(rates)]

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
        ranking = rank(measured, measures)
        findings = [*conclusions(ranking, measured, measures), *self._broken(measured), *map(remark, self._conditions)]
        write_atomically(folder / _RANKING, lambda path: ranking.to_csv(path, index=False))
        labels = {measure.column: measure.label for measure in measures.all}
        write_atomically(folder / "ranking.png", lambda path: save_figure(validation_figure(ranking, labels), path))
        summary = {**records(findings), "columns": labels, "versions": versions()}
        write_atomically(folder / SUMMARY, lambda path: path.write_text(json.dumps(summary, indent=2)))
        write_manifest(folder, "validate-proxy", (VALIDATE_CONFIG, ENVIRONMENT, _SUBNETS, _RANKING, SUMMARY))
        (folder / _STATE).unlink(missing_ok=True)
        return Validation(folder, measured, measures.all, ranking, findings)

    def _broken(self, measured: pd.DataFrame) -> list[Finding]:
        """Return a finding on subnets that training alone has broken, if there are any.

        The scores of such a subnet do not depend on its sizes.
        """
        relation = self.measures.label_free[RELATION].objective.name
        column, reference = f"{ALONE}{relation}", self._shared[relation].reference
        if column not in measured:
            return []
        broken = int((measured[column] > HARDLY_LEARNT * reference).sum())
        values = {"broken": broken, "subnets": len(measured), "lr": self._rates_alone}
        return [Finding(NOTHING_LEARNT_ALONE, values)] if broken else []

    @property
    def _conditions(self) -> list[str]:
        words = [f"subnets of {', '.join(self._superlms)}"]
        combined = self.measures.label_free[COMBINED].objective  # the others describe its parts
        described = {column: proxy.description for column, proxy in self._shared.items()}
        described[combined.name] = combined.unit
        words += [f"{column}: {description}" for column, description in described.items()]
        if self._alone_steps:
            words.append(
                f"alone: {self._alone_steps} steps with --init, text and batch of the SuperLM, learning rate "
                f"{rates_in_words(*self._rates_alone)}"
            )
        start = "trained alone" if self._alone_steps else "extracted from the SuperLM"
        words += [f"cosine, {start}: {proxy.description}" for proxy in self._cosine.values()]
        words += [f"fine-tuned after being {start}: {proxy.description}" for proxy in self._tasks.values()]
        return words
