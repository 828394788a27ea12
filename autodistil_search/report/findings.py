"""Findings about a run: a kind with numbers and names as data, and the one place where each kind is put into words.

Code decides by `kind` and `values`; only people read the sentence. To add a kind, add its wording to `_WORDS` and make
it with `Finding(kind, {...})`. Values are what JSON holds: numbers, text, lists and mappings of these, None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autodistil_search.base.errors import InputError
from autodistil_search.nas import latency_predictor
from autodistil_search.nas.rank_correlation import Agreement

COLLAPSED = "collapsed"
COMPARISON = "comparison"
COSTS_MORE = "costs_more_than_teacher"
LEARNT_LITTLE = "learnt_little"
LEFT_OUT = "left_out"
NOT_ALL_SCORED = "not_all_scored"
NOT_CONVERGED = "not_converged"
NOT_TRAINED_FOR = "not_trained_for"
NOT_VALIDATED = "not_validated"
NOTHING_LEARNT_ALONE = "nothing_learnt_alone"
NOTHING_TO_RANK = "nothing_to_rank"
ONE_SEED = "one_seed"
LATENCY_PREDICTED = "predicted_latency"
PROXY_WORTH = "proxy_worth"
REMARK = "remark"
START = "start"
TRAINING = "training"
UNCHECKED = "unchecked"
VERSUS_BASELINE = "versus_baseline"
WATCHED_LITTLE = "watched_learnt_little"

_NOT_VALIDATED = "The proxy was not compared with fine-tuned accuracy in this run."


@dataclass(frozen=True)
class Finding:
    """Something a reader should know before trusting a result.

    Args:
        kind: What was found; a key of `_WORDS`.
        values: Numbers and names, as JSON holds them.
        run: Name of the run in a report of several; empty otherwise.

    Raises:
        InputError: for an unknown kind, or values that its wording lacks.
    """

    kind: str
    values: Mapping[str, Any] = field(default_factory=dict, hash=False)
    run: str = ""

    def __post_init__(self) -> None:
        try:
            str(self)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"finding {self.kind!r} with {dict(self.values)!r:.200}: {error!r}") from None

    def __str__(self) -> str:
        """Return the sentence for people."""
        words = _WORDS[self.kind](self.values)
        return f"{self.run}: {words}" if self.run else words

    @property
    def record(self) -> dict[str, Any]:
        """Return kind and values as `summary.json` holds them; a number that is not finite becomes null."""
        return {"kind": self.kind, "values": _plain(self.values)}


def remark(words: str) -> Finding:
    """Return a finding of which only the sentence is known."""
    return Finding(REMARK, {"words": words})


def comparison(measure: str, target: str, own: Agreement, free: Agreement, gained: Agreement, subnets: int) -> Finding:
    """Return how a measure and FLOPs rank subnets of like cost, against a target; measure and target by their labels.

    `better` in its values is True or False where the 95 % interval of the difference excludes 0, else None.
    """
    values: dict[str, Any] = {"measure": measure, "target": target, "subnets": subnets}
    values |= {
        name: [part.value, part.low, part.high]
        for name, part in (("tau", own), ("tau_of_flops", free), ("difference", gained))
    }
    values["better"] = True if gained.low > 0 else False if gained.high < 0 else None
    return Finding(COMPARISON, values)


def records(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the fields `notes` and `findings` of a `summary.json`: sentences, and their data in the same order."""
    return {"notes": [str(finding) for finding in findings], "findings": [finding.record for finding in findings]}


def rates_in_words(least: float, greatest: float) -> str:
    """Return a range of learning rates as text; one number if both ends are equal."""
    return f"{least:g}" if least == greatest else f"{least:g} to {greatest:g} by size"


def read(summary: Mapping[str, Any]) -> list[Finding]:
    """Return the findings of a `summary.json`, or of one from before there was a field `findings`.

    Raises:
        InputError: for values that do not belong to their kind.
    """
    notes: list[str] = summary["notes"]
    if "findings" not in summary:
        return [Finding(NOT_VALIDATED) if note == _NOT_VALIDATED else remark(note) for note in notes]
    return [
        Finding(found["kind"], found["values"]) if found["kind"] in _WORDS else remark(note)
        for note, found in zip(notes, summary["findings"], strict=True)
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _floats(values: Sequence[float | None]) -> list[float]:
    """Return numbers as `_plain` was given them."""
    return [math.nan if value is None else value for value in values]


def _collapsed(values: Mapping[str, Any]) -> str:
    return (
        f"The training of SuperLM {values['space']} collapsed at step {values['step']} (mean loss "
        f"{values['loss']:.3g}, at best {values['best']:.3g} before); it went back to step {values['to']} and on at a "
        f"peak learning rate of {values['lr']:g}."
    )


def _comparison(values: Mapping[str, Any]) -> str:
    own, free, gained = (Agreement(*_floats(values[name])) for name in ("tau", "tau_of_flops", "difference"))
    verdicts = {True: "better than FLOPs", False: "worse than FLOPs", None: None}
    verdict = verdicts[values["better"]] or f"no telling apart by {values['subnets']} subnets"
    return (
        f"{values['measure']} for {values['target']}: tau {own} within bands, FLOPs alone {free}, difference {gained}: "
        f"{verdict}"
    )


def _costs_more(values: Mapping[str, Any]) -> str:
    return (
        f"{values['over']} of the {values['subnets']} subnets of {values['space']} cost more FLOPs than their teacher "
        f"({values['teacher_flops'] / 1e6:,.0f}M): a larger teacher suits this space better."
    )


def _learnt_little(values: Mapping[str, Any]) -> str:
    return (
        f"The SuperLM of {values['space']} has hardly learnt anything: the median of its scored subnets is "
        f"{values['median']:.4g} and the best {values['best']:.4g}, where a model that knows nothing has "
        f"{values['reference']:.4g}. Its frontier means nothing yet: try a lower --lr (it was {values['lr']:g}) or "
        "more --steps."
    )


def _left_out(values: Mapping[str, Any]) -> str:
    return f"Not measured alike in all runs, and left out: {', '.join(values['columns'])}."


def _not_all_scored(values: Mapping[str, Any]) -> str:
    counts = ", ".join(
        f"{space['scored']:,} of the {space['subnets']:,} of {space['name']}" for space in values["spaces"]
    )
    return f"Not every admissible subnet was scored ({counts}): a better frontier may exist."


def _not_converged(values: Mapping[str, Any]) -> str:
    return (
        f"The last tenth of the {values['evaluations']} evaluations still found something: the frontier has not "
        "converged."
    )


def _not_trained_for(values: Mapping[str, Any]) -> str:
    return (
        f"{values['baseline']} ({values['how']}): not trained for the {values['label']}; to compare it, fine-tune "
        f"{values['weights']}"
    )


def _nothing_learnt_alone(values: Mapping[str, Any]) -> str:
    return (
        f"{values['broken']} of {values['subnets']} subnets learnt nothing when they were trained alone, at a peak "
        f"learning rate of {rates_in_words(*values['lr'])}: try a lower --alone-lr, or more steps."
    )


def _nothing_to_rank(values: Mapping[str, Any]) -> str:
    return f"{values['target']} is the same for all subnets of a band: there is nothing to rank"


def _one_seed(_: Mapping[str, Any]) -> str:
    return "One seed: differences between neighbours on the frontier may be noise."


def _predicted_latency(values: Mapping[str, Any]) -> str:
    fitted, off = (
        latency_predictor.words(dict(zip(error, _floats(list(error.values())), strict=True)))
        for error in (values["error_left_out"], values["error_on_frontier"])
    )
    return (
        f"Latency was predicted, fitted on {values['fitted_on']} measured subnets, each left out: {fitted}. Measured "
        f"again on the frontier: {off}; {values['kept']} of its {values['subnets']} subnets are on the frontier of "
        "what was measured, too."
    )


def _proxy_worth(values: Mapping[str, Any]) -> str:
    fine_tuned = values["fine_tuned"]
    against = "fine-tuned accuracy" if fine_tuned else "training alone only, not with fine-tuned accuracy"
    compared = f"Proxy validation ({values['check']}) on {values['subnets']} subnets compared with {against}"
    if values["comparisons"] is None:
        return f"{compared}; its own section has the figures."
    return (
        f"{compared}: in {values['better']} of {values['comparisons']} comparisons a measure ranks subnets of like "
        "cost better than FLOPs do."
    )


def _training(values: Mapping[str, Any]) -> str:
    return (
        f"Trained for {values['steps']} steps, {values['tokens']:,} tokens. With more --steps losses fall further, and "
        "subnets that are close to each other here may change places."
    )


def _versus_baseline(values: Mapping[str, Any]) -> str:
    share, at = values["reached_with"], values["compared_at"]
    if share is None:
        reaches = "no subnet of the frontier reaches it"
    elif values["cheapest_reaches"]:
        reaches = f"the frontier's cheapest subnet, with {share:.0%} of its FLOPs, is as good or better"
    else:
        reaches = f"the frontier reaches it with {share:.0%} of its FLOPs"
    if at is None:
        apart = "it costs less than any subnet"
    else:
        where = "at its FLOPs" if at == 1 else f"with {at:.0%} of its FLOPs"
        apart = f"{where} the frontier is {abs(values['gain']):.4g} {'better' if values['gain'] >= 0 else 'worse'}"
    return (
        f"{values['baseline']} ({values['how']}; {values['flops'] / 1e6:,.0f}M FLOPs, {values['label']} "
        f"{values['score']:.4g}): {reaches}; {apart}"
    )


def _watched_little(values: Mapping[str, Any]) -> str:
    losses = ", ".join(f"{subnet['role']} {subnet['loss']:.4g}" for subnet in values["subnets"])
    return (
        f"{len(values['subnets'])} of the {values['watched']} watched subnets of SuperLM {values['space']} have learnt "
        f"next to nothing: their held-out relation loss is {losses}, where a model that knows nothing has "
        f"{values['reference']:.4g}. Their scores mean nothing yet: try a lower --lr (it was {values['lr']:g}) or more "
        "--steps."
    )


_WORDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    COLLAPSED: _collapsed,
    COMPARISON: _comparison,
    COSTS_MORE: _costs_more,
    LEARNT_LITTLE: _learnt_little,
    LEFT_OUT: _left_out,
    NOT_ALL_SCORED: _not_all_scored,
    NOT_CONVERGED: _not_converged,
    NOT_TRAINED_FOR: _not_trained_for,
    NOT_VALIDATED: lambda _: _NOT_VALIDATED,
    NOTHING_LEARNT_ALONE: _nothing_learnt_alone,
    NOTHING_TO_RANK: _nothing_to_rank,
    ONE_SEED: _one_seed,
    LATENCY_PREDICTED: _predicted_latency,
    PROXY_WORTH: _proxy_worth,
    REMARK: lambda values: str(values["words"]),
    START: lambda values: f"SuperLM {values['space']}: {values['words']}",
    TRAINING: _training,
    UNCHECKED: lambda values: (
        f"{values['folder']} has no manifest.json, as it was made by an earlier version: its files are read without a "
        "check of digests."
    ),
    VERSUS_BASELINE: _versus_baseline,
    WATCHED_LITTLE: _watched_little,
}
