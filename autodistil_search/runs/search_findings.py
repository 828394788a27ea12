"""The conditions of a search for its report, and findings that limit the meaning of its numbers."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Any

import torch

from autodistil_search.nas.archive import Archive
from autodistil_search.nas.evaluation import DISTURBANCE
from autodistil_search.nas.objectives import TASK
from autodistil_search.nas.proxies import HARDLY_LEARNT, share_lacking
from autodistil_search.report.findings import (
    COSTS_MORE,
    LEARNT_LITTLE,
    NOT_ALL_SCORED,
    NOT_VALIDATED,
    ONE_SEED,
    TRAINING,
    Finding,
    disturbed_latency,
)
from autodistil_search.runs.run_folder import versions
from autodistil_search.runs.scoring import Scorer
from autodistil_search.runs.search_inputs import SearchInputs
from autodistil_search.settings.search import SearchConfig
from autodistil_search.spaces.cost import flops


def cost_findings(inputs: SearchInputs) -> list[Finding]:
    """Return a finding for each space with subnets that cost more than their teacher."""
    limit = flops(inputs.teacher.subnet)
    findings = []
    for space in inputs.spaces:
        if space.size > 100_000 or flops(space.largest) <= limit:
            continue
        over = sum(flops(space.decode(genome)) > limit for genome in space.genomes())
        values = {"space": space.name, "subnets": space.size, "over": over, "teacher_flops": limit}
        findings.append(Finding(COSTS_MORE, values))
    return findings


def learning_findings(inputs: SearchInputs, archive: Archive, scorer: Scorer) -> list[Finding]:
    """Return a finding for each SuperLM whose median scored subnet has hardly learnt anything.

    `train_superlm` reports on the subnets that it watches during training.
    """
    proxy, kind = inputs.proxy_objective, inputs.proxy_kind
    if proxy is None or (proxy.direction == "maximize" and not kind.compares):
        return []  # a task may be hard for any model
    findings = []
    best_of = min if proxy.direction == "minimize" else max
    for space in inputs.spaces:
        scores = [
            evaluation.measured[proxy.name] for evaluation in archive.evaluations if evaluation.space == space.name
        ]
        if scores and share_lacking(median(scores), kind.ideal, scorer.proxy.reference) > HARDLY_LEARNT:
            values = {"space": space.name, "median": median(scores), "best": best_of(scores)}
            values |= {"reference": scorer.proxy.reference}
            lr = inputs.options_of(space.largest).lr
            findings.append(Finding(LEARNT_LITTLE, {**values, "lr": lr}))
    return findings


def latency_findings(inputs: SearchInputs, archive: Archive) -> list[Finding]:
    """Return a finding if other processes disturbed the measurements of latency, for this search or its predictor."""
    shares = [evaluation.measured.get(DISTURBANCE) for evaluation in archive.evaluations]
    shares += inputs.predictor.fitted.get("disturbances", [])
    finding = disturbed_latency([share for share in shares if share is not None])
    return [finding] if finding else []


def trust_findings(inputs: SearchInputs, archive: Archive, exact: bool) -> list[Finding]:
    """Return findings that limit the conclusions from this run."""
    findings = []
    if not exact:
        scored = Counter(evaluation.space for evaluation in archive.evaluations)
        counts = [{"name": space.name, "scored": scored[space.name], "subnets": space.size} for space in inputs.spaces]
        findings.append(Finding(NOT_ALL_SCORED, {"spaces": counts}))
    if inputs.proxy_objective is not None:
        config = inputs.config
        tokens = config.steps * config.batch_size * config.seq_len
        findings.append(Finding(TRAINING, {"steps": config.steps, "tokens": tokens}))
        if not config.proxy.startswith(TASK):
            findings.append(Finding(NOT_VALIDATED))
        findings.append(Finding(ONE_SEED))
    return findings


def _sampling(config: SearchConfig) -> str:
    """Return the selection and weights of the subnets of a step in words."""
    words: list[str] = [config.sampling]
    if config.random_subnets is not None:
        words.append(f"{config.random_subnets} random")
    if config.subnet_weights:
        words.append(f"weights {config.subnet_weights}")
    if config.in_place:
        words.append(f"{config.in_place:g} in place")
    return ", ".join(words)


def _rates(inputs: SearchInputs) -> str:
    """Return the peak learning rate of each space in words, or a single one if all are equal."""
    rates = {space.name: f"{inputs.options_of(space.largest).lr:g}" for space in inputs.spaces}
    if len(set(rates.values())) == 1:
        return next(iter(rates.values()))
    return ", ".join(f"{rate} ({name})" for name, rate in rates.items())


def _baseline_rates(config: SearchConfig) -> str:
    """Return the learning rates at which baselines were trained, and the choice among them, in words."""
    factors = ", ".join(f"{factor:g}" for factor in config.baseline_factors)
    base = "the default rate of its size" if config.lr is None else f"a peak learning rate of {config.lr:g}"
    return f"each trained at {factors} times {base}; kept is the lowest held-out loss of its own objective (column lr)"


def conditions(inputs: SearchInputs, scorer: Scorer) -> dict[str, Any]:
    """Return the conditions of all measurements in words, for the report."""
    config, teacher = inputs.config, inputs.teacher
    described: dict[str, Any] = {
        objective.name: f"{objective.label}, {objective.unit}; {objective.direction}" for objective in inputs.columns
    }
    described["flops counted"] = "matrix products of the extracted student: linear layers, attention, pooler"
    described["search spaces"] = "; ".join(f"{space.name}: {space}" for space in inputs.spaces)
    described["engine"] = (
        f"{config.engine}, at most {config.evaluations} subnets in each space, seed {config.engine_seed}"
    )
    if inputs.constraints:
        described["constraints"] = ", ".join(map(str, inputs.constraints))
    described["teacher"] = (
        f"{teacher.name} ({teacher.subnet}), relations of layer {teacher.layer} of 0 to {teacher.subnet.layers - 1}"
    )
    if inputs.text is not None:
        described["text"] = ", ".join(config.texts)
        described["amount of text"] = inputs.text.description
        described["training"] = (
            f"{config.steps} steps of {config.batch_size} x {config.seq_len} tokens, {_sampling(config)}, "
            f"{config.loss} loss of {config.relations}, last hidden states with weight {config.hidden:g}, AdamW, peak "
            f"learning rate {_rates(inputs)}, start from {config.init}, seed {config.seed}"
        )
        described["proxy"] = scorer.proxy.description
    if len(config.baseline_factors) > 1 and config.baseline_names:
        described["baselines"] = _baseline_rates(config)
    described["device"] = f"{inputs.device.name}, {inputs.device.precision}, {torch.get_num_threads()} threads"
    described["versions"] = ", ".join(f"{name} {version}" for name, version in versions().items())
    return described
