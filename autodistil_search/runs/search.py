"""A complete run, from a `SearchConfig` to the frontier and its report, in a folder that can be resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from autodistil_search.base.distributed import launched, machine
from autodistil_search.base.errors import InputError
from autodistil_search.base.executors import open_executor, open_team
from autodistil_search.base.files import cache_folder
from autodistil_search.base.jobs import Team
from autodistil_search.base.manifest import ARCHIVE, SEARCH_CONFIG, reopen, verify, write_manifest
from autodistil_search.base.plugins import Plugins
from autodistil_search.base.progress import Reporter
from autodistil_search.base.tracking import LOGS, Callback, Part, Tracking, tracker_names
from autodistil_search.nas import baselines, engine_comparison, latency_predictor
from autodistil_search.nas.archive import Archive
from autodistil_search.nas.baseline_training import RecipeGroup, grouped
from autodistil_search.nas.engines.base import Candidates, Goal
from autodistil_search.nas.engines.running import run_engine
from autodistil_search.nas.objectives import PREDICTED_LATENCY, Constraint, Objective
from autodistil_search.nas.pareto import box_of, is_on_frontier
from autodistil_search.nas.storages import open_storage
from autodistil_search.report.data import (
    ParetoReport,
    against_frontier,
    baseline_table,
    check_kept,
    evaluation_table,
    keeps,
    minimised,
    pareto_report,
)
from autodistil_search.report.findings import LATENCY_PREDICTED, Finding
from autodistil_search.report.headline import Headline, read_headline
from autodistil_search.report.run_parts import run_part
from autodistil_search.report.writing import write_report
from autodistil_search.runs.best_student import headline_of
from autodistil_search.runs.finished_run import RUN_FILES, Run, is_finished, load_run, write_summary
from autodistil_search.runs.run_folder import Stopwatch, check_folder, exclusive, open_folder, superlm_folder, versions
from autodistil_search.runs.scoring import Scorer, check_scored_alike, scored_by
from autodistil_search.runs.search_findings import (
    conditions,
    cost_findings,
    latency_findings,
    learning_findings,
    trust_findings,
)
from autodistil_search.runs.search_inputs import SearchInputs, resolve_search
from autodistil_search.runs.tracked_search import TrackedSearch
from autodistil_search.runs.train import take_superlm, train_superlms, trained_config
from autodistil_search.settings.search import SearchConfig
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel

if TYPE_CHECKING:
    from autodistil_search.base.executors import AnyExecutor

_PREDICTOR = "latency predictor"
"""Name under which the archive keeps the fitted predictor of latency."""
_MARGIN_OF_MEASURED = 1.1
"""Counterpart of `search_inputs.MARGIN` for measured quantities, which vary between measurements."""
NOT_COMPARED = pd.DataFrame(columns=engine_comparison.COLUMNS)
"""Empty table of the engines' comparison. The exact frontier is unknown unless every subnet was scored."""


def search(
    config: SearchConfig,
    reporter: Reporter | None = None,
    plugins: Plugins | None = None,
    executor: AnyExecutor | None = None,
    callback: Callback | None = None,
) -> Run:
    """Train the SuperLM of each space, search it, measure the baselines and write the report into `config.folder`.

    A stopped run in the folder is continued. Finished steps are not repeated.

    The arguments are those of `autodistil_search.search`; without a reporter, nothing is shown.

    Raises:
        InputError: if an input cannot be used, or the folder holds another run.
    """
    reporter = reporter or Reporter()
    clock = Stopwatch()
    tracking = Tracking(tuple(tracker_names(config.track)), callback, config.folder.name, config.to_dict())
    with _opened(config, reporter, plugins, executor, clock) as (inputs, folder, workers):
        if is_finished(folder):
            for part in (folder, *sorted(folder.glob("superlm/*"))):
                verify(part)
            reporter.say(f"{folder} is already finished; showing its result")
            return load_run(folder)
        reopen(folder)
        with _prepared(inputs, folder, clock, reporter, plugins, workers, tracking) as prepared:
            archive, scorer, team = prepared.archive, prepared.scorer, prepared.team
            complete = []
            for space in inputs.spaces:
                tracked = tracking.part(f"search {space.name}", folder / LOGS / f"search-{space.name}")
                complete.append(_search_space(space, inputs, prepared, clock, reporter, tracked))
            scored = evaluation_table(archive.evaluations, [column.name for column in inputs.columns])
            check_kept(scored, inputs.constraints)
            measured = _measure_baselines(inputs, scorer, team, clock, reporter)
            with clock.phase("report"):
                engines = _compare_engines(inputs, archive, scorer, reporter) if all(complete) else NOT_COMPARED
                exact = all(complete)
                report = _report(inputs, archive, scorer, measured, engines, exact, started=prepared.findings)
                if inputs.predicts:
                    report = _with_measured_latency(report, inputs, archive)
                headline = _headline(report, inputs, scorer, archive, reporter)
                runs = [run_part(folder, report.conditions, report.exact)]
                report = replace(report, runs=runs, headline=headline)
                write_report(report, folder)
            write_summary(folder, report, clock.seconds, versions())
            write_manifest(folder, "search", (*RUN_FILES, ARCHIVE))
        return load_run(folder)


@contextmanager
def open_subnets(
    config: SearchConfig,
    reporter: Reporter | None = None,
    plugins: Plugins | None = None,
    executor: AnyExecutor | None = None,
) -> Iterator[Subnets]:
    """Yield the subnets of the only space of `config` for a custom search; each is scored on request.

    The SuperLM is trained first, or its training is continued, as in `search`. Scores are kept in the archive that
    `search` would use. The engine and the budget of `config` are ignored.

    The arguments are those of `autodistil_search.open_subnets`; without a reporter, nothing is shown.

    Raises:
        InputError: if an input cannot be used, `config` has several spaces, or the folder holds another run.
    """
    reporter = reporter or Reporter()
    clock = Stopwatch()
    with _opened(config, reporter, plugins, executor, clock) as (inputs, folder, workers):
        if len(inputs.spaces) > 1:
            raise InputError(f"--space {config.space!r}; allowed: one space for a custom search")
        with _prepared(inputs, folder, clock, reporter, plugins, workers) as prepared:
            yield Subnets(inputs.spaces[0], inputs.objectives, inputs.constraints, prepared.archive, prepared.team)


@dataclass(frozen=True)
class Subnets:
    """Subnets of one space, scored on request; see `open_subnets` and `adapters`."""

    space: SearchSpace
    objectives: Sequence[Objective]
    constraints: Sequence[Constraint]
    _archive: Archive = field(repr=False)
    _team: Team = field(repr=False)

    def evaluate(self, subnet: Subnet) -> Mapping[str, float]:
        """Return the scores of `subnet` by objective name. Scores are cached in the archive.

        Raises:
            InputError: if the subnet is not in the space.
        """
        (measured,) = self.evaluate_all([subnet])
        return measured

    def evaluate_all(self, subnets: Sequence[Subnet]) -> list[Mapping[str, float]]:
        """Return the scores of each of `subnets`, as `evaluate` does; the workers of an executor share the work.

        Raises:
            InputError: if a subnet is not in the space.
        """
        for subnet in subnets:
            self.space.encode(subnet)
        answers = self._archive.answer(self.space, subnets, partial(scored_by, self._team), lambda: None)
        return [evaluation.measured for evaluation in answers]


@contextmanager
def _opened(
    config: SearchConfig,
    reporter: Reporter,
    plugins: Plugins | None,
    executor: AnyExecutor | None,
    clock: Stopwatch,
) -> Iterator[tuple[SearchInputs, Path, AnyExecutor | None]]:
    """Yield the inputs of `config`, loaded and checked, its folder, locked by this process, and the executor."""
    if launched() > 1:
        raise InputError(
            f"search was started as {launched()} processes; allowed: one. Train with several, then use search --superlm"
        )
    config = config.absolute(plugins)
    folder = config.folder
    if config.superlm is not None:
        config = config.trained_as(trained_config(Path(config.superlm)))
    check_folder(folder, SEARCH_CONFIG, config.to_dict())
    name = None if is_finished(folder) else config.executor
    with open_executor(name, config.workers, reporter, executor) as workers:
        with clock.phase("prepare"):
            reporter.say("loading the teacher and the text")
            begun = (folder / SEARCH_CONFIG).is_file()
            inputs = resolve_search(config, reporter, plugins, begun=begun, executor=workers)
        for finding in cost_findings(inputs):
            reporter.say(str(finding))
        if inputs.proxy_objective is not None:
            for words in baselines.shape_notes(config.baseline_names, inputs.teacher.subnet):
                reporter.say(words)
        with exclusive(folder):
            check_folder(folder, SEARCH_CONFIG, config.to_dict())  # again: another process may have written since
            if (folder / SEARCH_CONFIG).is_file():
                _settle(inputs, folder)
            yield inputs, folder, workers


def _settle(inputs: SearchInputs, folder: Path) -> None:
    """Write settings and environment into the folder, or check that they are equal."""
    open_folder(folder, SEARCH_CONFIG, SearchConfig, inputs.config.to_dict(), inputs.environment)


@dataclass(frozen=True)
class _Prepared:
    """State of a search after the training of its SuperLMs.

    Attributes:
        archive: Archive of the scored subnets.
        scorer: Scorer of this process.
        team: Processes that score and train baselines.
        findings: Findings about the training.
    """

    archive: Archive
    scorer: Scorer
    team: Team
    findings: Sequence[Finding]


@contextmanager
def _prepared(
    inputs: SearchInputs,
    folder: Path,
    clock: Stopwatch,
    reporter: Reporter,
    plugins: Plugins | None,
    executor: AnyExecutor | None,
    tracking: Tracking | None = None,
) -> Iterator[_Prepared]:
    """Yield what the search needs, with trained SuperLMs and prepared workers."""
    config = inputs.config
    with _open_archive(inputs, folder) as archive:
        clock.go_on_from(folder / "seconds.json")
        if inputs.predicts:
            with clock.phase("fit predictor"):
                reporter.say("measuring latency for its predictor")
                inputs.predictor.take(archive.fixed(_PREDICTOR, inputs.fit_predictor))
        superlms, findings = _superlms(inputs, folder, clock, reporter, tracking)
        if config.storage is not None:
            check_scored_alike(inputs, superlms, archive, config.study)
        cache = cache_folder() if config.baseline_names and inputs.proxy_objective is not None else None
        scorer = Scorer(inputs, superlms, plugins, reporter, cache)
        with open_team(executor, scorer, reporter) as team:
            yield _Prepared(archive, scorer, team, findings)


@contextmanager
def _open_archive(inputs: SearchInputs, folder: Path) -> Iterator[Archive]:
    """Yield the archive of the run's folder, or of a storage.

    A storage is checked before anything is written to the folder.
    """
    config = inputs.config
    if config.storage is None:
        _settle(inputs, folder)
        yield Archive(folder / ARCHIVE, inputs.spaces, inputs.objectives)
        return
    with open_storage(config.storage) as storage:
        archive = Archive(storage, inputs.spaces, inputs.objectives, config.study)
        check_scored_alike(inputs, None, archive, config.study)
        _settle(inputs, folder)
        yield archive


def _superlms(
    inputs: SearchInputs, folder: Path, clock: Stopwatch, reporter: Reporter, tracking: Tracking | None
) -> tuple[dict[str, AutoDistilModel], list[Finding]]:
    """Return the SuperLM of each space by its name, if an objective needs them, and findings about their training."""
    if inputs.proxy_objective is None:
        return {}, []
    if (trained := inputs.config.superlm) is not None:
        for space in inputs.spaces:
            take_superlm(inputs, Path(trained), space, superlm_folder(folder, space.name))
    with clock.phase("train " + ", ".join(space.name for space in inputs.spaces)):
        return train_superlms(inputs, folder, reporter, tracking)


def _search_space(
    space: SearchSpace,
    inputs: SearchInputs,
    prepared: _Prepared,
    clock: Stopwatch,
    reporter: Reporter,
    part: Part | None,
) -> bool:
    """Search one space, and return True if all its admissible subnets were scored."""
    config, archive = inputs.config, prepared.archive
    candidates = Candidates(space, inputs.admits, config.engine_seed)
    goal = Goal(inputs.free_objectives, len(inputs.measured_constraints))
    engine = inputs.make_engine(candidates, seed=config.engine_seed, population=config.population, goal=goal)
    budget = min(config.evaluations, candidates.total or config.evaluations)
    with (
        ExitStack() as tracked,
        clock.phase(f"search {space.name}"),
        reporter.bar(f"searching {space.name}", "subnets", budget) as bar,
    ):
        before = sum(evaluation.space == space.name for evaluation in archive.evaluations)
        bar.skip(min(budget, before))
        if part is not None:
            box = archive.fixed("box", lambda: _box(inputs, prepared.scorer))
            progress = TrackedSearch(space.name, inputs.objectives, inputs.constraints, box, archive)
            bar = tracked.enter_context(progress.shown_in(bar, part, before))
        scored = run_engine(
            engine,
            candidates,
            partial(scored_by, prepared.team),
            archive,
            inputs.objectives,
            inputs.measured_constraints,
            budget,
            bar,
        )
    return scored == candidates.total


def _measure_baselines(
    inputs: SearchInputs, scorer: Scorer, team: Team, clock: Stopwatch, reporter: Reporter
) -> pd.DataFrame:
    """Return the measured baselines as a table.

    In this process, baselines that can train together are a task; with workers, each baseline is a task.
    """
    names = inputs.config.baseline_names
    if inputs.proxy_objective is None or not names:
        return baseline_table([], inputs.columns)
    with clock.phase("baselines"):
        untrained = scorer.bench.untrained(names, inputs.given_baselines)
        recipes = scorer.bench.recipes(names, inputs.spaces, inputs.config.baseline_factors)
        groups = grouped(recipes) if team.alone else [RecipeGroup((recipe,)) for recipe in recipes]
        results = team.all_results(groups, reporter, "baselines", "groups") if groups else []
    trained = {
        recipe: baseline
        for group, measured in zip(groups, results, strict=True)
        for recipe, baseline in zip(group.recipes, measured, strict=True)
    }
    return baseline_table([*untrained, *(trained[recipe] for recipe in recipes)], inputs.columns)


def _box(inputs: SearchInputs, scorer: Scorer) -> dict[str, list[float]]:
    """Return by objective the ideal and the reference value between which the hypervolume is measured.

    Costs have their exact ends (`SearchInputs.cost_box`). Measured quantities are measured on the smallest and the
    largest subnet.
    """
    box: dict[str, list[float]] = {}
    for objective in inputs.objectives:
        if objective.is_proxy:
            box[objective.name] = [inputs.proxy_kind.ideal, scorer.proxy.reference]
        elif objective.cost is not None:
            box[objective.name] = list(inputs.cost_box(objective))
        else:
            ends = [end for space in inputs.spaces for end in space.ends]
            values = [objective.measured_on(inputs.student(end), end)[objective.name] for end in ends]
            maximize = objective.direction == "maximize"
            box[objective.name] = list(box_of(min(values), max(values), maximize, _MARGIN_OF_MEASURED))
    return box


def _compare_engines(inputs: SearchInputs, archive: Archive, scorer: Scorer, reporter: Reporter) -> pd.DataFrame:
    """Return the result that each engine would reach in each space, whose admissible subnets must all be scored."""
    box = archive.fixed("box", lambda: _box(inputs, scorer))
    tables = []
    for space in inputs.spaces:
        scores = {  # a study may also hold subnets of another search
            space.encode(evaluation.subnet): evaluation.measured
            for evaluation in archive.evaluations
            if evaluation.space == space.name and inputs.admits(evaluation.subnet)
        }
        scored = engine_comparison.Scored(
            space,
            {
                genome: [objective.minimised(measured[objective.name]) for objective in inputs.objectives]
                for genome, measured in scores.items()
            },
            {
                genome: [
                    constraint.excess(measured[constraint.objective.name]) for constraint in inputs.measured_constraints
                ]
                for genome, measured in scores.items()
            },
            inputs.free_objectives,
            np.array([objective.minimised(box[objective.name][1]) for objective in inputs.objectives]),
        )
        tables.append(engine_comparison.compare(scored, inputs.config.population, reporter))
    return pd.concat(tables, ignore_index=True)


def _report(
    inputs: SearchInputs,
    archive: Archive,
    scorer: Scorer,
    measured: pd.DataFrame,
    engines: pd.DataFrame,
    exact: bool,
    started: Sequence[Finding],
) -> ParetoReport:
    return pareto_report(
        title=", ".join(space.name for space in inputs.spaces),
        evaluations=archive.evaluations,
        objectives=inputs.objectives,
        columns=inputs.columns,
        constraints=inputs.constraints,
        box=archive.fixed("box", lambda: _box(inputs, scorer)),
        baselines=measured,
        published=baselines.published(),
        engines=engines,
        exact=exact,
        conditions=conditions(inputs, scorer),
        findings=[
            *cost_findings(inputs),
            *learning_findings(inputs, archive, scorer),
            *latency_findings(inputs, archive),
            *trust_findings(inputs, archive, exact),
            *started,
            *_versus_baselines(inputs, archive, measured),
        ],
    )


def _versus_baselines(inputs: SearchInputs, archive: Archive, measured: pd.DataFrame) -> list[Finding]:
    """Return findings that compare the baselines with the subnets within the constraints."""
    proxy = inputs.proxy_objective
    if proxy is None or measured.empty:
        return []
    table = evaluation_table(archive.evaluations, [column.name for column in inputs.columns])
    kept = table[keeps(table, inputs.constraints)]
    return against_frontier(kept, measured, proxy) if len(kept) else []


def _headline(
    report: ParetoReport, inputs: SearchInputs, scorer: Scorer, archive: Archive, reporter: Reporter
) -> Headline | None:
    """Return the headline of a report, measured once on each machine for the same frontier and baselines."""
    compared = f"{machine()}\n{report.frontier.to_csv()}\n{report.baselines.to_csv()}"
    digest = hashlib.sha256(compared.encode()).hexdigest()[:16]

    def measured() -> dict[str, Any] | None:
        headline = headline_of(report, inputs, scorer, reporter)
        return None if headline is None else headline.record()

    return read_headline(archive.fixed(f"headline {digest}", measured))


def _with_measured_latency(report: ParetoReport, inputs: SearchInputs, archive: Archive) -> ParetoReport:
    """Return the report with the measured latency of its frontier and the error of the predictions."""
    subnets = [
        Subnet.from_row({str(key): value for key, value in row.items()}) for _, row in report.frontier.iterrows()
    ]
    digest = hashlib.sha256("; ".join(map(str, subnets)).encode()).hexdigest()[:16]
    latencies = archive.fixed(  # the digest is part of the key: another search of the study may have another frontier
        f"latency of frontier {digest}",
        lambda: latency_predictor.in_rounds(
            subnets, lambda subnet: inputs.measured_latency(inputs.student(subnet))["latency"]
        ),
    )
    frontier = report.frontier.assign(latency=latencies)
    objectives = [
        replace(objective, name="latency") if objective.name == PREDICTED_LATENCY else objective
        for objective in report.objectives
    ]
    kept = int(is_on_frontier(minimised(frontier, objectives)).sum())
    values = {
        **inputs.predictor.quality,
        "error_on_frontier": latency_predictor.error(
            [inputs.predictor.predict(subnet) for subnet in subnets], latencies
        ),
        "kept": kept,
        "subnets": len(subnets),
    }
    return replace(report, frontier=frontier, findings=[Finding(LATENCY_PREDICTED, values), *report.findings])
