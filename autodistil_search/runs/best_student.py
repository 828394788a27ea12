"""The comparison of a run's best student for a budget with its baselines and its teacher."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from autodistil_search.base.progress import Reporter
from autodistil_search.nas import hardware, sentence_similarity
from autodistil_search.nas.baselines import COPY, SHAPES
from autodistil_search.nas.evaluation import DISTURBANCE
from autodistil_search.nas.hardware import Load
from autodistil_search.report.data import ParetoReport
from autodistil_search.report.headline import BASELINE, KNEE, PICK, TEACHER, Headline, Standing
from autodistil_search.runs.scoring import Scorer
from autodistil_search.runs.search_inputs import SearchInputs
from autodistil_search.spaces.cost import flops
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.superlm.model_folder import load_model

_BUDGET_OF = "TinyBERT 4x312"


def headline_of(report: ParetoReport, inputs: SearchInputs, scorer: Scorer, reporter: Reporter) -> Headline | None:
    """Return the best student within half of TinyBERT's FLOPs beside the knee, the baselines and the teacher.

    Latencies are measured one after another on this machine. Baselines whose weights are not kept are left out, and so
    is a copy of the teacher.

    Returns:
        The headline; None if no objective needed a SuperLM.
    """
    if inputs.proxy_objective is None:
        return None
    reporter.say("comparing the best student with the baselines and the teacher")
    comparison = _Comparison(inputs, scorer)
    budget = flops(SHAPES[_BUDGET_OF]) / 2
    row, kept = _pick(report, budget)
    knee = int(report.frontier.index[report.frontier["knee"]][0])
    students = {PICK: row} if row == knee else {PICK: row, KNEE: knee}
    standings = [comparison.student(role, report.frontier.iloc[place]) for role, place in students.items()]
    for _, baseline in report.baselines.iterrows():
        standings += comparison.baseline(baseline)
    standings.append(comparison.teacher())
    similarity = comparison.similarity
    return Headline(
        row=row + 1,
        budget=budget,
        budget_of=_BUDGET_OF,
        kept=kept,
        standings=tuple(standings),
        measure=inputs.proxy_objective.label,
        load=comparison.load.words,
        disturbance=max(comparison.disturbances, default=None),
        passages=similarity.passages,
        tokens=similarity.tokens,
        word_vectors=_or_none(similarity.of_word_vectors()),
    )


def _pick(report: ParetoReport, budget: float) -> tuple[int, bool]:
    """Return the place of the best row within a budget of FLOPs and True, or that of the knee and False."""
    frontier = report.frontier
    within = frontier[frontier["flops"] <= budget]
    if within.empty:
        return int(frontier.index[frontier["knee"]][0]), False
    proxy = next(objective for objective in report.columns if objective.is_proxy)
    best = int(within[proxy.name].map(proxy.minimised).to_numpy().argmin())
    return int(within.index.to_numpy()[best]), True


class _Comparison:
    """Measurements of the models of a headline.

    Attributes:
        load: Load under which latency is measured, no longer than the teacher's positions.
        similarity: Comparison of sentence similarities with the teacher's.
        disturbances: Known shares of other processes in the measurements of latency.
    """

    def __init__(self, inputs: SearchInputs, scorer: Scorer) -> None:
        assert inputs.text is not None
        assert inputs.proxy_objective is not None
        self._inputs, self._scorer, self._proxy = inputs, scorer, inputs.proxy_objective.name
        tokens = min(inputs.config.measured_seq_len, inputs.teacher.vocabulary.positions)
        self.load = Load(inputs.config.latency_batch, tokens, inputs.device)
        passages = inputs.text.held_out.spread(sentence_similarity.PASSAGES)
        self.similarity = sentence_similarity.SentenceSimilarity(inputs.teacher, passages, inputs.device)
        self.disturbances: list[float] = []

    def student(self, role: str, row: pd.Series[Any]) -> Standing:
        """Return the standing of a row of the frontier."""
        subnet = Subnet.from_row({str(key): value for key, value in row.items()})
        model = self._scorer.superlms[str(row["space"])].extract(subnet)
        return self._standing(role, f"{row['space']} {subnet}", row, model)

    def baseline(self, row: pd.Series[Any]) -> list[Standing]:
        """Return the standing of a baseline; none if it has no weights, or is the teacher's copy."""
        model = self._inputs.given_baselines.get(str(row["weights"]))
        if row["how"] == COPY or (model is None and not Path(row["weights"]).is_dir()):
            return []
        if model is None:
            model = load_model(Path(row["weights"]), AutoDistilModel)
            self._inputs.device.place(model)
        return [self._standing(BASELINE, str(row["name"]), row, model)]

    def _standing(self, role: str, name: str, row: pd.Series[Any], model: AutoDistilModel) -> Standing:
        return Standing(
            role=role,
            name=name,
            flops=float(row["flops"]),
            params=float(row["params"]),
            latency=self._latency(model),
            score=_or_none(float(row[self._proxy])),
            similarity=_or_none(self.similarity.of(model)),
        )

    def teacher(self) -> Standing:
        """Return the standing of the teacher, whose similarities agree with themselves."""
        teacher = self._inputs.teacher
        params = sum(parameter.numel() for parameter in teacher.model.parameters())
        return Standing(TEACHER, teacher.name, flops(teacher.subnet), params, self._latency(teacher.model), None, 1.0)

    def _latency(self, model: nn.Module) -> float:
        numbers = hardware.latency(model, self.load)
        if DISTURBANCE in numbers:
            self.disturbances.append(numbers[DISTURBANCE])
        return numbers["latency"]


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
