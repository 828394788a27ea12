"""A whole run: from a `SearchConfig` to the frontier and its report, in a folder that can be stopped and continued."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from filelock import FileLock, Timeout

from autodistil_search import __version__, baselines, objectives
from autodistil_search.archive import Archive, Evaluation
from autodistil_search.config import SearchConfig
from autodistil_search.cost import flops
from autodistil_search.distill import distill, seeded
from autodistil_search.engines import ENGINES, Candidates, run_engine
from autodistil_search.errors import InputError
from autodistil_search.files import read_json, readable, refuse_other_settings, write_atomically
from autodistil_search.inputs import Inputs, cache_folder, resolve
from autodistil_search.model import AutoDistilModel
from autodistil_search.progress import Reporter
from autodistil_search.proxies import RelationProxy
from autodistil_search.report import ParetoReport, baseline_table, pareto_report, write_report
from autodistil_search.results import Run, is_finished, load_run, write_summary
from autodistil_search.space import SearchSpace, Subnet

_MARGIN = 1.01
"""A cost's reference point lies this factor above the largest subnet's cost, so that this subnet counts too."""


def search(config: SearchConfig, reporter: Reporter | None = None) -> Run:
    """Train the SuperLM of each space, search it, measure the baselines and write the report into `config.folder`.

    A folder that holds part of the same run is continued; nothing finished is done again.

    Raises:
        InputError: for input that cannot be used, or a folder that holds another run.
    """
    reporter = reporter or Reporter()
    config = config.absolute()
    folder = config.folder
    _check_folder(folder, config)
    clock = Stopwatch()
    with clock.phase("prepare"):
        reporter.say("loading the teacher; tokenizing the text, if that was not done before")
        inputs = resolve(config)
    for note in cost_notes(inputs):
        reporter.say(note)
    with _exclusive(folder):
        _open_folder(folder, inputs)
        if is_finished(folder):
            return load_run(folder)
        clock.go_on_from(folder / "seconds.json")
        archive = Archive(folder / "archive.log", inputs.spaces, inputs.objectives)
        scorer = Scorer(inputs, folder, clock, reporter)
        complete = [_search_space(space, inputs, scorer, archive, clock, reporter) for space in inputs.spaces]
        measured = _measure_baselines(inputs, scorer, clock, reporter)
        with clock.phase("report"):
            report = _report(inputs, archive, scorer, measured, exact=all(complete))
            write_report(report, folder)
        write_summary(folder, report, clock.seconds, versions())
        return load_run(folder)


class Scorer:
    """Measures subnets; trains the SuperLM of a space, and runs the teacher on the held-out text, when first needed."""

    def __init__(self, inputs: Inputs, folder: Path, clock: Stopwatch, reporter: Reporter) -> None:
        self._inputs, self._folder, self._clock, self._reporter = inputs, folder, clock, reporter
        self.start_notes: list[str] = []

    @cached_property
    def proxy(self) -> RelationProxy:
        """The proxy of this run; only for runs with an objective that needs it."""
        inputs = self._inputs
        assert inputs.corpus is not None
        _, held_out = inputs.corpus.blocks(inputs.config.seq_len)
        heads, loss = inputs.options.relation_heads, inputs.config.loss
        blocks = held_out.spread(inputs.config.eval_blocks)
        return RelationProxy(inputs.teacher, blocks, heads, loss, inputs.device)

    def superlm(self, space: SearchSpace) -> AutoDistilModel:
        """The trained SuperLM of `space`: trained now, continued, or read from the folder."""
        inputs = self._inputs
        assert inputs.corpus is not None
        with seeded(inputs.config.seed):
            model, notes = inputs.teacher.superlm(space, inputs.config.init)
        for note in notes:
            self.start_notes.append(f"SuperLM {space.name}: {note}")
            self._reporter.say(self.start_notes[-1])
        blocks, _ = inputs.corpus.blocks(inputs.config.seq_len)
        folder = self._folder / "superlm" / space.name
        with self._clock.phase(f"train {space.name}"):
            title = f"training SuperLM {space.name}"
            return distill(model, inputs.teacher, blocks, inputs.options, folder, inputs.device, self._reporter, title)

    def evaluate(self, space: SearchSpace, subnet: Subnet, model: AutoDistilModel | None) -> Evaluation:
        """All that is measured on a subnet: every cost, and the proxy if the run has one."""
        vocabulary = self._inputs.teacher.vocabulary
        measured: dict[str, float] = {
            cost.name: cost.cost(subnet, vocabulary)
            for cost in (objectives.FLOPS, objectives.PARAMS)
            if cost.cost is not None
        }
        if self._inputs.proxy_objective is not None:
            assert model is not None
            measured[self._inputs.proxy_objective.name] = self.proxy.score(model, subnet)
        return Evaluation(space.name, subnet, measured)


def _search_space(
    space: SearchSpace, inputs: Inputs, scorer: Scorer, archive: Archive, clock: Stopwatch, reporter: Reporter
) -> bool:
    """Search one space; whether all its admissible subnets were scored."""
    config = inputs.config
    candidates = Candidates(space, inputs.admits, config.seed)
    model = scorer.superlm(space) if inputs.proxy_objective is not None else None
    engine = ENGINES[config.engine](
        candidates, seed=config.seed, population=config.population, objectives=len(inputs.objectives)
    )
    budget = min(config.evaluations, candidates.total or config.evaluations)
    with clock.phase(f"search {space.name}"), reporter.bar(f"searching {space.name}", "subnets", budget) as bar:
        bar.skip(min(budget, sum(evaluation.space == space.name for evaluation in archive.evaluations)))
        scored = run_engine(
            engine,
            candidates,
            lambda subnet: scorer.evaluate(space, subnet, model),
            archive,
            inputs.objectives,
            budget,
            bar,
        )
    return scored == candidates.total


def _measure_baselines(inputs: Inputs, scorer: Scorer, clock: Stopwatch, reporter: Reporter) -> pd.DataFrame:
    proxy, corpus, config = inputs.proxy_objective, inputs.corpus, inputs.config
    if proxy is None or corpus is None or config.baselines == "none":
        return baseline_table([], proxy.name if proxy else "relation_loss")
    identity = {**inputs.identity, "seq_len": str(config.seq_len)}
    del identity["spaces"]  # the baselines do not depend on them
    with clock.phase("baselines"):
        blocks, _ = corpus.blocks(config.seq_len)
        results = baselines.measure(
            inputs.teacher,
            blocks,
            scorer.proxy,
            inputs.options,
            config.init,
            identity,
            cache_folder(),
            inputs.device,
            reporter,
        )
    return baseline_table(results, proxy.name)


def _report(inputs: Inputs, archive: Archive, scorer: Scorer, measured: pd.DataFrame, exact: bool) -> ParetoReport:
    reference = {}
    for objective in inputs.objectives:
        if objective.cost is None:
            reference[objective.name] = scorer.proxy.of_uniform_relations
        else:
            costs = [objective.cost(space.largest, inputs.teacher.vocabulary) for space in inputs.spaces]
            reference[objective.name] = max(costs) * _MARGIN
    return pareto_report(
        title=", ".join(space.name for space in inputs.spaces),
        evaluations=archive.evaluations,
        objectives=inputs.objectives,
        reference_point=reference,
        baselines=measured,
        published=baselines.published(),
        exact=exact,
        conditions=conditions(inputs, scorer),
        notes=[*cost_notes(inputs), *trust_notes(inputs, exact), *scorer.start_notes],
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


def conditions(inputs: Inputs, scorer: Scorer) -> dict[str, Any]:
    """How everything was measured, for the reader of the report."""
    config, teacher = inputs.config, inputs.teacher
    described: dict[str, Any] = {
        objective.name: f"{objective.label}, {objective.unit}; {objective.direction}" for objective in inputs.objectives
    }
    described["flops counted"] = "matrix products of the extracted student: linear layers, attention, pooler"
    described["search spaces"] = "; ".join(f"{space.name}: {space}" for space in inputs.spaces)
    described["engine"] = f"{config.engine}, at most {config.evaluations} subnets in each space, seed {config.seed}"
    if inputs.bounds:
        described["bounds"] = ", ".join(f"{bound.objective.name} <= {bound.upper:,.0f}" for bound in inputs.bounds)
    described["teacher"] = (
        f"{teacher.name} ({teacher.subnet}), relations of layer {teacher.layer} of 0 to {teacher.subnet.layers - 1}"
    )
    if inputs.corpus is not None:
        described["text"] = (
            f"{', '.join(config.texts)}: {len(inputs.corpus.train):,} tokens to train on, "
            f"{len(inputs.corpus.held_out):,} held out by document"
        )
        described["training"] = (
            f"{config.steps} steps of {config.batch_size} x {config.seq_len} tokens, {config.sampling}, "
            f"{config.loss} loss, AdamW, peak learning rate {config.lr:g}, start from {config.init}, seed {config.seed}"
        )
        described["proxy"] = (
            f"{scorer.proxy.blocks} held-out blocks of {config.seq_len} tokens, {inputs.options.relation_heads} "
            f"relation heads; a student that relates all tokens alike scores {scorer.proxy.of_uniform_relations:.4g}"
        )
    described["device"] = f"{inputs.device.name}, {inputs.device.precision}, {torch.get_num_threads()} threads"
    described["versions"] = ", ".join(f"{name} {version}" for name, version in versions().items())
    return described


def versions() -> dict[str, str]:
    """Versions of this package and of what computes its numbers."""
    packages = ("torch", "transformers", "tokenizers", "numpy", "optuna", "pymoo", "moocore")
    found = {package: metadata.version(package) for package in packages}
    return {"autodistil_search": __version__, "python": platform.python_version(), **found}


class Stopwatch:
    """Seconds spent in each phase of a run, added up over all its sessions once there is a file for them."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self.seconds: dict[str, float] = {}

    def go_on_from(self, path: Path) -> None:
        """Add what earlier sessions took, and keep the sums in `path` from now on."""
        self._path = path
        for name, seconds in (read_json(path) if path.exists() else {}).items():
            self.seconds[name] = round(self.seconds.get(name, 0.0) + float(seconds), 2)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside towards `name`, also if it is interrupted."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 2)
            if self._path is not None:
                write_atomically(self._path, lambda path: path.write_text(json.dumps(self.seconds, indent=2)))


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; the lock of a killed process is free again."""
    try:
        with _usable(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / ".lock", timeout=0)
            lock.acquire()
    except Timeout:
        raise InputError(f"another search is at work in {folder}; wait for it, or name another --out") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    try:
        yield
    except Timeout:
        raise
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--out {str(folder)!r} cannot be used as a folder: {reason}") from None


def _check_folder(folder: Path, config: SearchConfig) -> None:
    """Refuse a folder with another run or with other files; changes nothing."""
    path = folder / "config.yaml"
    with _usable(folder):
        names = sorted(item.name for item in folder.iterdir()) if folder.is_dir() else []
    if path.name in names:
        with readable(path):
            refuse_other_settings(yaml.safe_load(path.read_text(encoding="utf-8")), config.to_dict(), folder)
    elif strangers := [name for name in names if not name.startswith(".")]:
        raise InputError(
            f"--out {str(folder)!r} holds {strangers[0]!r} but no run; allowed: a new or empty folder, or a run's"
        )


def _open_folder(folder: Path, inputs: Inputs) -> None:
    """Write what was chosen and found, or check that the folder's run had the same."""
    _check_folder(folder, inputs.config)  # once more: another process may have been here meanwhile
    path = folder / "environment.json"
    if path.exists():
        with readable(path):
            refuse_other_settings(read_json(path)["inputs"], inputs.identity, folder)
        return
    environment = {
        "inputs": inputs.identity,
        "versions": versions(),
        "platform": platform.platform(),
        "device": inputs.device.name,
        "precision": inputs.device.precision,
        "threads": torch.get_num_threads(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }
    config = yaml.safe_dump(inputs.config.to_dict(), sort_keys=False)
    write_atomically(folder / "config.yaml", lambda file: file.write_text(config, encoding="utf-8"))
    write_atomically(path, lambda file: file.write_text(json.dumps(environment, indent=2)))
