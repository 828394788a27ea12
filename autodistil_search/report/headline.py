"""The first thing to know of a run: its student for a budget, beside baselines and teacher, as data and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autodistil_search.nas.evaluation import DISTURBED

PICK, KNEE, BASELINE, TEACHER = "pick", "knee", "baseline", "teacher"
ROLES = (PICK, KNEE, BASELINE, TEACHER)


@dataclass(frozen=True)
class Standing:
    """A model of the comparison.

    Attributes:
        role: One of `ROLES`.
        name: Name of a baseline or teacher, or sizes of a student.
        flops: Multiply-adds at 128 tokens, batch 1.
        params: Number of parameters, embeddings included.
        latency: Median milliseconds of a forward pass.
        score: Accuracy proxy of the run; None for the teacher, and for baselines without one.
        similarity: Rank correlation of its sentence similarities with the teacher's; None if it is undefined.
    """

    role: str
    name: str
    flops: float
    params: float
    latency: float
    score: float | None
    similarity: float | None


@dataclass(frozen=True)
class Headline:
    """The pick of a run, and the models beside it.

    Attributes:
        row: Row of the frontier, counted from 1, that is picked.
        budget: FLOPs that the pick may cost: half of a hand-designed model's.
        budget_of: Name of that model.
        kept: False if no row of the frontier keeps the budget; the pick is then the knee.
        standings: The pick, the knee if it is another row, baselines, and the teacher.
        measure: Label of the scores.
        load: Conditions of the latencies, in words.
        disturbance: Greatest share of the processors' time that other processes took during a measurement of latency;
            None if it is not known.
        passages: Number of held-out passages whose similarities are compared.
        tokens: Tokens of each passage.
        word_vectors: Rank correlation of averaged word vectors of the teacher, for comparison; None if undefined.
    """

    row: int
    budget: float
    budget_of: str
    kept: bool
    standings: Sequence[Standing]
    measure: str
    load: str
    disturbance: float | None
    passages: int
    tokens: int
    word_vectors: float | None

    def __post_init__(self) -> None:
        roles = [standing.role for standing in self.standings]
        if roles[:1] != [PICK] or roles.count(TEACHER) != 1 or not set(roles) <= set(ROLES):
            raise ValueError(f"standings of {', '.join(roles)}; allowed: one pick, first, and one teacher")

    @property
    def pick(self) -> Standing:
        """Return the picked student."""
        return self.standings[0]

    @property
    def teacher(self) -> Standing:
        """Return the teacher."""
        return next(standing for standing in self.standings if standing.role == TEACHER)

    @property
    def smaller(self) -> float:
        """Return how many times fewer parameters than the teacher the pick has."""
        return self.teacher.params / self.pick.params

    @property
    def faster(self) -> float:
        """Return how many times shorter than the teacher's the latency of the pick is."""
        return self.teacher.latency / self.pick.latency

    @property
    def sentences(self) -> list[str]:
        """Return the headline in words, a sentence each."""
        return [self._pick_words(), self._cost_words(), *self._similarity_words()]

    def _pick_words(self) -> str:
        budget = f"half of the FLOPs of {self.budget_of} ({_amount(self.budget)})"
        score = "" if self.pick.score is None else f"{self.measure} {self.pick.score:.3g}, "
        named = f"{self.pick.name}, {_amount(self.pick.flops)} FLOPs, {score}row {self.row} of the frontier"
        if self.kept:
            return f"Best student within {budget}: {named}."
        return f"No student of the frontier costs at most {budget}. The knee: {named}."

    def _cost_words(self) -> str:
        pick, teacher = self.pick, self.teacher
        disturbed = ""
        if self.disturbance is not None and self.disturbance >= DISTURBED:
            disturbed = f"; other processes took up to {self.disturbance:.0%} of the processors meanwhile"
        return (
            f"Beside the teacher, it has {_amount(pick.params)} of {_amount(teacher.params)} parameters "
            f"({self.smaller:.1f} times smaller), {pick.flops / teacher.flops:.0%} of the FLOPs, and takes "
            f"{pick.latency:.3g} ms instead of {teacher.latency:.3g} ms ({self.faster:.1f} times faster; {self.load}"
            f"{disturbed})."
        )

    def _similarity_words(self) -> list[str]:
        if self.pick.similarity is None:
            return []
        others = [("averaged word vectors", self.word_vectors)]
        others += [(other.name, other.similarity) for other in self.standings if other.role == BASELINE]
        beside = "; ".join(f"{name} {value:.2f}" for name, value in others if value is not None)
        return [
            f"Its sentence similarities agree with the teacher's at a rank correlation of {self.pick.similarity:.2f} "
            f"on {self.passages} held-out passages of {self.tokens} tokens (1: the same order"
            f"{'; ' if beside else ''}{beside})."
        ]

    def record(self) -> dict[str, Any]:
        """Return the headline as a JSON object."""
        return {**asdict(self), "standings": [asdict(standing) for standing in self.standings]}


def read_headline(record: Mapping[str, Any] | None) -> Headline | None:
    """Return the headline that `record` gave; None for None.

    Raises:
        LookupError, TypeError, ValueError: if the record is damaged.
    """
    if record is None:
        return None
    standings = tuple(Standing(**standing) for standing in record["standings"])
    headline = Headline(**{**record, "standings": standings})
    _check(headline)
    return headline


def _check(headline: Headline) -> None:
    """Raise an error if a number of a headline is not one."""
    for standing in headline.standings:
        numbers = [standing.flops, standing.params, standing.latency]
        if not all(isinstance(value, int | float) and value > 0 and math.isfinite(value) for value in numbers):
            raise ValueError(f"costs of {standing.name} are {numbers}")
    for words in headline.sentences:
        assert words


def _amount(value: float) -> str:
    """Return a count with three digits, such as 312M."""
    rounded = float(f"{value:.3g}")
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if rounded >= scale:
            return f"{rounded / scale:.3g}{letter}"
    return f"{rounded:.3g}"
