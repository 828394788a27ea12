"""A whole run: from a `SearchConfig` to the frontier and its report, in a folder that can be stopped and continued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from autodistil_search import baselines, objectives
from autodistil_search.archive import Archive, Evaluation
from autodistil_search.config import SearchConfig
from autodistil_search.cost import flops
from autodistil_search.engines import ENGINES, Candidates, Goal, run_engine
from autodistil_search.errors import InputError
from autodistil_search.inputs import Inputs, cache_folder, resolve
from autodistil_search.model import AutoDistilModel
from autodistil_search.objectives import Objective
from autodistil_search.processes import launched
from autodistil_search.progress import Reporter
from autodistil_search.proxies import RelationProxy
from autodistil_search.report import ParetoReport, baseline_table, pareto_report, write_report
from autodistil_search.results import Run, is_finished, load_run, write_summary
from autodistil_search.runfolder import SEARCH_CONFIG, Stopwatch, check_folder, exclusive, open_folder, versions
from autodistil_search.space import SearchSpace, Subnet
from autodistil_search.training import relation_proxy, take_superlm, train_superlm, trained_config

_MARGIN = 1.01
"""A cost's reference point lies this factor above the largest subnet's cost, so that this subnet counts too."""
_MARGIN_OF_MEASURED = 1.1
"""Likewise of what is measured, and never twice the same."""


def search(config: SearchConfig, reporter: Reporter | None = None) -> Run:
    """Train the SuperLM of each space, search it, measure the baselines and write the report into `config.folder`.

    A folder that holds part of the same run is continued; nothing finished is done again.

    Raises:
        InputError: for input that cannot be used, or a folder that holds another run.
    """
    if launched() > 1:
        raise InputError(
            f"search was started as {launched()} processes; allowed: one. Train with several, then search --superlm"
        )
    reporter = reporter or Reporter()
    config = config.absolute()
    folder = config.folder
    if config.superlm is not None:
        config = config.trained_as(trained_config(Path(config.superlm)))
    check_folder(folder, SEARCH_CONFIG, config.to_dict())
    clock = Stopwatch()
    with clock.phase("prepare"):
        reporter.say("loading the teacher and the text")
        inputs = resolve(config, reporter)
    for note in cost_notes(inputs):
        reporter.say(note)
    with exclusive(folder):
        open_folder(folder, SEARCH_CONFIG, config.to_dict(), inputs.environment)
        if is_finished(folder):
            return load_run(folder)
        clock.go_on_from(folder / "seconds.json")
        archive = Archive(folder / "archive.log", inputs.spaces, inputs.objectives)
        superlms, notes = _superlms(inputs, folder, clock, reporter)
        scorer = Scorer(inputs, superlms)
        complete = [_search_space(space, inputs, scorer, archive, clock, reporter) for space in inputs.spaces]
        measured = _measure_baselines(inputs, scorer, clock, reporter)
        with clock.phase("report"):
            report = _report(inputs, archive, scorer, measured, exact=all(complete), start_notes=notes)
            write_report(report, folder)
        write_summary(folder, report, clock.seconds, versions())
        return load_run(folder)


def _superlms(
    inputs: Inputs, folder: Path, clock: Stopwatch, reporter: Reporter
) -> tuple[dict[str, AutoDistilModel], list[str]]:
    """The trained SuperLM of each space by its name, if an objective needs them, and notes on how they started."""
    superlms, notes = {}, []
    for space in inputs.spaces if inputs.proxy_objective is not None else []:
        own = folder / "superlm" / space.name
        if inputs.config.superlm is not None:
            take_superlm(inputs, Path(inputs.config.superlm), space, own)
        with clock.phase(f"train {space.name}"):
            superlms[space.name], new = train_superlm(inputs, space, own, reporter)
        notes += new
    return superlms, notes


class Scorer:
    """Measures subnets; runs the teacher on the held-out text when first needed."""

    def __init__(self, inputs: Inputs, superlms: Mapping[str, AutoDistilModel]) -> None:
        self._inputs, self._superlms = inputs, superlms

    @cached_property
    def proxy(self) -> RelationProxy:
        """The proxy of this run; only for runs with an objective that needs it."""
        return relation_proxy(self._inputs, self._inputs.config.eval_blocks)

    def evaluate(self, space: SearchSpace, subnet: Subnet) -> Evaluation:
        """Every column of the run."""
        superlm = self._superlms.get(space.name)
        measured: dict[str, float] = {}
        for column in self._inputs.columns:
            if column.is_proxy:
                assert superlm is not None
                measured[column.name] = self.proxy.score(superlm, subnet)
            elif column.measure is not None:
                student = self._inputs.student(subnet) if superlm is None else superlm.extract(subnet)
                measured |= objectives.measured(column, student)
            else:
                measured[column.name] = self.cost(column, subnet)
        return Evaluation(space.name, subnet, measured)

    def cost(self, objective: Objective, subnet: Subnet) -> float:
        """A cost of `subnet`, computed, or measured on a student with random weights."""
        if objective.cost is not None:
            return objective.cost(subnet, self._inputs.teacher.vocabulary)
        return objectives.measured(objective, self._inputs.student(subnet))[objective.name]


def _search_space(
    space: SearchSpace, inputs: Inputs, scorer: Scorer, archive: Archive, clock: Stopwatch, reporter: Reporter
) -> bool:
    """Search one space; whether all its admissible subnets were scored."""
    config = inputs.config
    candidates = Candidates(space, inputs.admits, config.seed)
    goal = Goal(inputs.free_objectives, len(inputs.measured_constraints))
    engine = ENGINES[config.engine](candidates, seed=config.seed, population=config.population, goal=goal)
    budget = min(config.evaluations, candidates.total or config.evaluations)
    with clock.phase(f"search {space.name}"), reporter.bar(f"searching {space.name}", "subnets", budget) as bar:
        bar.skip(min(budget, sum(evaluation.space == space.name for evaluation in archive.evaluations)))
        scored = run_engine(
            engine,
            candidates,
            lambda subnet: scorer.evaluate(space, subnet),
            archive,
            inputs.objectives,
            inputs.measured_constraints,
            budget,
            bar,
        )
    return scored == candidates.total


def _measure_baselines(inputs: Inputs, scorer: Scorer, clock: Stopwatch, reporter: Reporter) -> pd.DataFrame:
    proxy, text, config = inputs.proxy_objective, inputs.text, inputs.config
    if proxy is None or text is None or config.baselines == "none":
        return baseline_table([], proxy.name if proxy else "relation_loss")
    identity = {**inputs.identity, "seq_len": str(config.seq_len)}
    del identity["spaces"]  # the baselines do not depend on them
    with clock.phase("baselines"):
        results = baselines.measure(
            inputs.teacher,
            text.begin,
            scorer.proxy,
            inputs.options,
            config.init,
            inputs.sample_ids,
            identity,
            cache_folder(),
            inputs.device,
            reporter,
        )
    return baseline_table(results, proxy.name)


def _box(inputs: Inputs, scorer: Scorer) -> dict[str, list[float]]:
    """By objective, the ideal and the reference value between which the hypervolume is measured.

    Ideal is 0 of what is minimised. Of a cost that is maximised it is what the best end of a space reaches, and 0 is
    the reference; costs are known at the smallest and the largest subnet, between which all others are.
    """
    box = {}
    for objective in inputs.objectives:
        if objective.is_proxy:
            box[objective.name] = [0.0, scorer.proxy.of_uniform_relations]
            continue
        margin = _MARGIN if objective.cost is not None else _MARGIN_OF_MEASURED
        most = margin * max(scorer.cost(objective, end) for space in inputs.spaces for end in space.ends)
        box[objective.name] = [0.0, most] if objective.direction == "minimize" else [most, 0.0]
    return box


def _report(
    inputs: Inputs,
    archive: Archive,
    scorer: Scorer,
    measured: pd.DataFrame,
    exact: bool,
    start_notes: Sequence[str],
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
        exact=exact,
        conditions=conditions(inputs, scorer),
        notes=[*cost_notes(inputs), *trust_notes(inputs, exact), *start_notes],
    )


def cost_notes(inputs: Inputs) -> list[str]:
    """Which subnets cost more than their teacher."""
    limit = flops(inputs.teacher.subnet)
    notes = []
    for space in inputs.spaces:
        if space.size > 100_000 or flops(space.largest) <= limit:
            continue
        over = sum(flops(space.decode(genome)) > limit for genome in space.genomes())
        notes.append(
            f"{over} of the {space.size} subnets of {space.name} cost more FLOPs than their teacher "
            f"({limit / 1e6:,.0f}M): a larger teacher suits this space better."
        )
    return notes


def trust_notes(inputs: Inputs, exact: bool) -> list[str]:
    """Where a claim drawn from this run is weak."""
    notes = []
    if not exact:
        notes.append("Not every admissible subnet was scored: a better frontier may exist.")
    if inputs.proxy_objective is not None:
        config = inputs.config
        tokens = config.steps * config.batch_size * config.seq_len
        notes.append(
            f"Trained for {config.steps} steps, {tokens:,} tokens. With more --steps losses fall further, and subnets "
            "that are close to each other here may change places."
        )
        notes.append("The proxy was not compared with fine-tuned accuracy in this run.")
        notes.append("One seed: differences between neighbours on the frontier may be noise.")
    return notes


def _sampling(config: SearchConfig) -> str:
    """How the subnets of a step were chosen and weighed, in words."""
    words: list[str] = [config.sampling]
    if config.random_subnets is not None:
        words.append(f"{config.random_subnets} random")
    if config.subnet_weights:
        words.append(f"weights {config.subnet_weights}")
    if config.in_place:
        words.append(f"{config.in_place:g} in place")
    return ", ".join(words)


def conditions(inputs: Inputs, scorer: Scorer) -> dict[str, Any]:
    """How everything was measured, for the reader of the report."""
    config, teacher = inputs.config, inputs.teacher
    described: dict[str, Any] = {
        objective.name: f"{objective.label}, {objective.unit}; {objective.direction}" for objective in inputs.columns
    }
    described["flops counted"] = "matrix products of the extracted student: linear layers, attention, pooler"
    described["search spaces"] = "; ".join(f"{space.name}: {space}" for space in inputs.spaces)
    described["engine"] = f"{config.engine}, at most {config.evaluations} subnets in each space, seed {config.seed}"
    if inputs.constraints:
        described["constraints"] = ", ".join(map(str, inputs.constraints))
    described["teacher"] = (
        f"{teacher.name} ({teacher.subnet}), relations of layer {teacher.layer} of 0 to {teacher.subnet.layers - 1}"
    )
    if inputs.text is not None:
        described["text"] = f"{', '.join(config.texts)}: {inputs.text.description}"
        described["training"] = (
            f"{config.steps} steps of {config.batch_size} x {config.seq_len} tokens, {_sampling(config)}, "
            f"{config.loss} loss of {config.relations}, AdamW, peak learning rate {config.lr:g}, start from "
            f"{config.init}, seed {config.seed}"
        )
        described["proxy"] = (
            f"{scorer.proxy.blocks} held-out blocks of {config.seq_len} tokens, {inputs.options.relation_heads} "
            f"relation heads; a student that relates all tokens alike scores {scorer.proxy.of_uniform_relations:.4g}"
        )
    described["device"] = f"{inputs.device.name}, {inputs.device.precision}, {torch.get_num_threads()} threads"
    described["versions"] = ", ".join(f"{name} {version}" for name, version in versions().items())
    return described
