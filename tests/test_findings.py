"""Findings: data first, worded in one place, read back from what a run wrote, and never parsed."""

import json

import pytest

from autodistil_search.base.errors import InputError
from autodistil_search.nas.rank_correlation import Agreement
from autodistil_search.report import findings
from autodistil_search.report.findings import Finding, comparison, remark

ERROR = {"mean": 0.01, "most": 0.02, "tau": 0.5}
AGAINST = {
    "baseline": "B", "how": "as it is", "flops": 3e8, "label": "loss", "score": 0.9,
    "reached_with": 0.5, "cheapest_reaches": False, "compared_at": 1.0, "gain": 0.2,
}  # fmt: skip
OF_EACH_KIND = [
    comparison("loss", "accuracy", *[Agreement(0.5, 0.1, 0.9)] * 3, subnets=8),
    comparison("alignment", "accuracy", *[Agreement(0.5, 0.1, 0.9)] * 3, subnets=8, default="loss"),
    Finding(findings.COSTS_MORE, {"space": "tiny", "subnets": 256, "over": 3, "teacher_flops": 1e9}),
    Finding(findings.COLLAPSED, {"space": "tiny", "step": 60, "to": 30, "lr": 5e-4, "loss": 2.1, "best": 0.5}),
    Finding(findings.LEARNT_LITTLE, {"space": "tiny", "median": 2.15, "best": 2.1, "reference": 2.2, "lr": 4e-3}),
    Finding(
        findings.WATCHED_LITTLE,
        {
            "space": "tiny",
            "watched": 4,
            "subnets": [{"role": "largest", "subnet": "7x224", "loss": 2.19}],
            "reference": 2.2,
            "lr": 4e-3,
        },
    ),
    Finding(findings.LEFT_OUT, {"columns": ["params"]}),
    Finding(findings.NOT_ALL_SCORED, {"spaces": [{"name": "tiny", "scored": 12, "subnets": 1256}]}),
    Finding(findings.NOT_CONVERGED, {"evaluations": 50}),
    Finding(findings.NOT_TRAINED_FOR, {"baseline": "B", "how": "own", "label": "loss", "weights": "w"}),
    Finding(findings.NOT_VALIDATED),
    Finding(findings.NOTHING_LEARNT_ALONE, {"broken": 1, "subnets": 8, "lr": [0.1, 0.2]}),
    Finding(findings.NOTHING_TO_RANK, {"target": "accuracy"}),
    Finding(findings.ONE_SEED),
    Finding(findings.LATENCY_DISTURBED, {"disturbed": 2, "measured": 40, "most": 0.43}),
    Finding(
        findings.LATENCY_PREDICTED,
        {"fitted_on": 5, "error_left_out": ERROR, "error_on_frontier": ERROR, "kept": 2, "subnets": 3},
    ),
    Finding(
        findings.PROXY_WORTH,
        {"check": "v", "subnets": 8, "fine_tuned": True, "comparisons": 3, "better": 1},
    ),
    remark("as it is"),
    Finding(findings.START, {"space": "tiny", "words": "all weights start at random"}),
    Finding(findings.UNCHECKED, {"folder": "tiny"}),
    Finding(findings.TRAINING, {"steps": 5, "tokens": 1000}),
    Finding(findings.VERSUS_BASELINE, AGAINST),
    Finding(
        findings.AT_EDGE,
        {"space": "tiny", "subnets": 9, "sizes": [{"size": "heads", "value": 10, "edge": "most"}]},
    ),
]


def test_every_kind_comes_back_from_json_as_it_was():
    assert {finding.kind for finding in OF_EACH_KIND} == set(findings._WORDS)
    summary = json.loads(json.dumps(findings.records(OF_EACH_KIND), allow_nan=False))
    assert findings.read(summary) == OF_EACH_KIND
    assert [str(finding) for finding in findings.read(summary)] == summary["notes"]
    assert "12 of the 1,256 of tiny" in summary["notes"][7]
    assert summary["notes"][1].endswith("difference 0.50 [0.10, 0.90]: better than the default proxy")


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ([], None),
        ([0.0, 0.09], None),
        ([0.05, 0.3, 0.43], "2 of 3 latencies were measured, up to 43 %"),
        ([0.5], "up to"),
    ],
)
def test_latencies_count_as_disturbed_from_a_tenth_of_the_processors(shares, words):
    finding = findings.disturbed_latency(shares)
    assert (finding is None) if words is None else (words in str(finding))


def test_what_is_not_finite_is_null_in_json_and_said_alike():
    unknown = comparison("loss", "accuracy", *[Agreement(*[float("nan")] * 3)] * 3, subnets=8)
    text = json.dumps(findings.records([unknown]), allow_nan=False)
    (again,) = findings.read(json.loads(text))
    assert again.values["tau"] == [None, None, None]
    assert str(again) == str(unknown)


def test_a_run_from_before_findings_were_data_is_read_by_its_sentences():
    validated = str(Finding(findings.NOT_VALIDATED))
    assert findings.read({"notes": ["a sentence", validated]}) == [remark("a sentence"), Finding("not_validated")]


def test_a_kind_of_a_later_version_keeps_its_sentence_and_damage_is_refused():
    later = {"notes": ["Of tomorrow."], "findings": [{"kind": "tomorrow", "values": {}}]}
    assert findings.read(later) == [remark("Of tomorrow.")]
    with pytest.raises(InputError, match="finding 'training'"):
        findings.read({"notes": ["x"], "findings": [{"kind": "training", "values": {"steps": 3}}]})
    with pytest.raises(ValueError, match="shorter"):
        findings.read({"notes": ["x", "y"], "findings": [{"kind": "one_seed", "values": {}}]})


@pytest.mark.parametrize(
    ("gained", "better", "words"),
    [
        ((0.3, 0.1, 0.5), True, "better than FLOPs"),
        ((-0.3, -0.5, -0.1), False, "worse than FLOPs"),
        ((0.0, -0.1, 0.1), None, "not distinguishable with 8 subnets"),
    ],
)
def test_a_comparison_says_as_data_which_side_is_better(gained, better, words):
    found = comparison("a", "b", Agreement(0.1, 0, 0.2), Agreement(0.1, 0, 0.2), Agreement(*gained), 8)
    assert found.values["better"] is better
    assert str(found).endswith(words)
