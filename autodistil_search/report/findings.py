"""Findings about a run, as data (`kind` and `values`), and the wording of each kind.

Code decides by `kind` and `values`; the sentences are for readers only. A new kind needs its wording in `_WORDS`; a
finding is created as `Finding(kind, {...})`. Values are of JSON's types: numbers, text, None, lists and mappings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autodistil_search.base.errors import InputError
from autodistil_search.nas import latency_predictor
from autodistil_search.nas.evaluation import DISTURBED
from autodistil_search.nas.rank_correlation import Agreement

AT_EDGE = "at_edge"
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
LATENCY_DISTURBED = "latency_disturbed"
LATENCY_PREDICTED = "predicted_latency"
PROXY_WORTH = "proxy_worth"
REMARK = "remark"
START = "start"
TRAINING = "training"
UNCHECKED = "unchecked"
VERSUS_BASELINE = "versus_baseline"
VERSUS_DEFAULT = "versus_default_proxy"
WATCHED_LITTLE = "watched_learnt_little"

IN_RANKING = (COMPARISON, VERSUS_DEFAULT)
"""Kinds of findings that the table of rank correlations holds too."""
COUNTED = ("layers", "heads")
"""Sizes that are numbers of things."""
_NOT_VALIDATED = "The proxy was not compared with fine-tuned accuracy in this run."


@dataclass(frozen=True)
class Finding:
    """Fact that a reader should know before relying on a result.

    Args:
        kind: Kind of the fact, a key of `_WORDS`.
        values: Numbers and names of the fact, of JSON's types.
        run: Name of the run in a report of several runs; empty otherwise.

    Raises:
        InputError: if the kind is unknown, or a value that its wording needs is missing or of another type.
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
        """Return the finding as a sentence."""
        words = _WORDS[self.kind](self.values)
        return f"{self.run}: {words}" if self.run else words

    @property
    def record(self) -> dict[str, Any]:
        """Return kind and values for `summary.json`; a number that is not finite becomes None."""
        return {"kind": self.kind, "values": _plain(self.values)}


def remark(words: str) -> Finding:
    """Return a finding that is known only as a sentence."""
    return Finding(REMARK, {"words": words})


def comparison(
    measure: str, target: str, own: Agreement, other: Agreement, gained: Agreement, subnets: int, default: str = ""
) -> Finding:
    """Return a finding that compares how two measures rank subnets of similar cost by a target.

    Its value `better` is True or False if the 95 % interval of the difference excludes 0, else None.

    Args:
        measure: Label of the measure.
        target: Label of the target.
        own: Agreement of the measure with the target.
        other: Agreement of FLOPs, or of the default proxy, with the target.
        gained: Difference of the two agreements.
        subnets: Number of subnets.
        default: Label of the default proxy; empty for the comparison with FLOPs.
    """
    values: dict[str, Any] = {"measure": measure, "target": target, "subnets": subnets}
    values |= {"default": default} if default else {}
    named = (("tau", own), ("tau_of_default" if default else "tau_of_flops", other), ("difference", gained))
    values |= {name: [part.value, part.low, part.high] for name, part in named}
    values["better"] = True if gained.low > 0 else False if gained.high < 0 else None
    return Finding(VERSUS_DEFAULT if default else COMPARISON, values)


def disturbed_latency(shares: Sequence[float]) -> Finding | None:
    """Return a finding that latencies were disturbed; None if none was.

    shares: `evaluation.DISTURBANCE` of each measurement for which it is known.
    """
    disturbed = [share for share in shares if share >= DISTURBED]
    if not disturbed:
        return None
    return Finding(LATENCY_DISTURBED, {"disturbed": len(disturbed), "measured": len(shares), "most": max(disturbed)})


def records(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the fields `notes` and `findings` of a `summary.json`: sentences, and the same facts as data."""
    return {"notes": [str(finding) for finding in findings], "findings": [finding.record for finding in findings]}


def rates_in_words(least: float, greatest: float) -> str:
    """Return a range of learning rates as text, or one number if both ends are equal."""
    return f"{least:g}" if least == greatest else f"{least:g} to {greatest:g} by size"


def read(summary: Mapping[str, Any]) -> list[Finding]:
    """Return the findings of a `summary.json`. Files of earlier versions have only the field `notes`.

    Raises:
        InputError: if values do not belong to their kind.
    """
    notes: list[str] = summary["notes"]
    if "findings" not in summary:
        return [Finding(NOT_VALIDATED) if note == _NOT_VALIDATED else remark(note) for note in notes]
    return [
        Finding(entry["kind"], entry["values"]) if entry["kind"] in _WORDS else remark(note)
        for note, entry in zip(notes, summary["findings"], strict=True)
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _floats(values: Sequence[float | None]) -> list[float]:
    """Return numbers with NaN in place of None, which reverses `_plain`."""
    return [math.nan if value is None else value for value in values]


def size_words(size: str, value: float) -> str:
    """Return a size with its value in words, such as "10 heads" or "hidden size 224"."""
    return f"{value:g} {size}" if size in COUNTED else f"{size} {value:g}"


def _at_edge(values: Mapping[str, Any]) -> str:
    shared = " and ".join(f"{size_words(size['size'], size['value'])} (the {size['edge']})" for size in values["sizes"])
    return (
        f"All {values['subnets']} subnets of {values['space']} on the frontier have {shared}: the frontier is at the "
        "edge of the space and may continue beyond it."
    )


def _collapsed(values: Mapping[str, Any]) -> str:
    return (
        f"The training of SuperLM {values['space']} collapsed at step {values['step']} (mean loss "
        f"{values['loss']:.3g}, best before {values['best']:.3g}); it returned to step {values['to']} and continued "
        f"with a peak learning rate of {values['lr']:g}."
    )


def _comparison(values: Mapping[str, Any]) -> str:
    return _compared(values, values["tau_of_flops"], "FLOPs alone", "FLOPs")


def _versus_default(values: Mapping[str, Any]) -> str:
    return _compared(values, values["tau_of_default"], f"the default proxy ({values['default']})", "the default proxy")


def _compared(values: Mapping[str, Any], tau: Sequence[float | None], other: str, short: str) -> str:
    own, of_other, gained = (Agreement(*_floats(part)) for part in (values["tau"], tau, values["difference"]))
    verdicts = {True: f"better than {short}", False: f"worse than {short}", None: None}
    verdict = verdicts[values["better"]] or f"not distinguishable with {values['subnets']} subnets"
    return (
        f"{values['measure']} for {values['target']}: tau {own} within bands, {other} {of_other}, difference {gained}: "
        f"{verdict}"
    )


def _costs_more(values: Mapping[str, Any]) -> str:
    return (
        f"{values['over']} of the {values['subnets']} subnets of {values['space']} cost more FLOPs than their teacher "
        f"({values['teacher_flops'] / 1e6:,.0f}M): a larger teacher suits this space better."
    )


def _learnt_little(values: Mapping[str, Any]) -> str:
    return (
        f"The SuperLM of {values['space']} has hardly learnt anything: the proxy of its scored subnets has median "
        f"{values['median']:.4g} and best value {values['best']:.4g}; a model that has learnt nothing has "
        f"{values['reference']:.4g}. Its frontier is not meaningful yet: try a lower --lr (it was {values['lr']:g}) or "
        "more --steps."
    )


def _disturbed(values: Mapping[str, Any]) -> str:
    measured = "the latency was" if values["measured"] == 1 else "latencies were"
    which = "" if values["measured"] == 1 else f"{values['disturbed']} of {values['measured']} "
    return (
        f"Latency was disturbed: while {which}{measured} measured, up to {100 * values['most']:.0f} % of the "
        "processors' time went to other processes. Measure again on a quiet machine."
    )


def _left_out(values: Mapping[str, Any]) -> str:
    return f"Columns that are not measured alike in all runs are left out: {', '.join(values['columns'])}."


def _not_all_scored(values: Mapping[str, Any]) -> str:
    counts = ", ".join(
        f"{space['scored']:,} of the {space['subnets']:,} of {space['name']}" for space in values["spaces"]
    )
    return f"Not every admissible subnet was scored ({counts}): a better frontier may exist."


def _not_converged(values: Mapping[str, Any]) -> str:
    return (
        f"The last tenth of the {values['evaluations']} evaluations still increased the hypervolume: the frontier has "
        "not converged."
    )


def _not_trained_for(values: Mapping[str, Any]) -> str:
    return (
        f"{values['baseline']} ({values['how']}): not trained for the {values['label']}; for a comparison, fine-tune "
        f"{values['weights']}"
    )


def _nothing_learnt_alone(values: Mapping[str, Any]) -> str:
    return (
        f"{values['broken']} of {values['subnets']} subnets learnt nothing when they were trained alone, at a peak "
        f"learning rate of {rates_in_words(*values['lr'])}: try a lower --alone-lr, or more --alone-steps."
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
        f"Latency was predicted by a model fitted on {values['fitted_on']} measured subnets; leave-one-out: {fitted}. "
        f"On the frontier, measured again: {off}; {values['kept']} of its {values['subnets']} subnets are also on the "
        "frontier of the measured values."
    )


def _proxy_worth(values: Mapping[str, Any]) -> str:
    fine_tuned = values["fine_tuned"]
    against = "fine-tuned accuracy" if fine_tuned else "training alone only, not with fine-tuned accuracy"
    compared = f"Proxy validation ({values['check']}) on {values['subnets']} subnets compared with {against}"
    if values["comparisons"] is None:
        return f"{compared}; its own section has the figures."
    return (
        f"{compared}: in {values['better']} of {values['comparisons']} comparisons a measure ranks subnets of similar "
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
        f"next to nothing: their held-out relation loss is {losses}; a model that has learnt nothing has "
        f"{values['reference']:.4g}. Their scores are not meaningful yet: try a lower --lr (it was {values['lr']:g}) "
        "or more --steps."
    )


_WORDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    AT_EDGE: _at_edge,
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
    LATENCY_DISTURBED: _disturbed,
    LATENCY_PREDICTED: _predicted_latency,
    PROXY_WORTH: _proxy_worth,
    REMARK: lambda values: str(values["words"]),
    START: lambda values: f"SuperLM {values['space']}: {values['words']}",
    TRAINING: _training,
    UNCHECKED: lambda values: (
        f"{values['folder']} has no manifest.json, because an earlier version wrote it: its files are read without a "
        "check of digests."
    ),
    VERSUS_BASELINE: _versus_baseline,
    VERSUS_DEFAULT: _versus_default,
    WATCHED_LITTLE: _watched_little,
}
