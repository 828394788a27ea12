"""The tables of benchmarks/results.py: means over tasks, aims and costs."""

import math

import pandas as pd
import pytest

from benchmarks.results_costs import Commands, by_part
from benchmarks.results_tables import (
    BASELINE,
    LABELS,
    PUBLISHED,
    STUDENT,
    aim_lines,
    difference,
    means,
    unlearnt_lines,
    verdict,
)

SIZES = {"a": (STUDENT, 300.0), "TinyBERT": (BASELINE, 600.0), "all-MiniLM": (PUBLISHED, 400.0)}


def scored(scores: dict[tuple[str, str], list[float]]) -> pd.DataFrame:
    """A row for each model, task and seed."""
    return pd.DataFrame(
        {
            "kind": SIZES[model][0], "model": model, "flops": SIZES[model][1], "params": 1.0,
            "by": LABELS, "task": task, "metric": "accuracy", "seed": seed, "score": score,
        }
        for (model, task), values in scores.items()
        for seed, score in enumerate(values)
    )  # fmt: skip


def test_the_mean_over_tasks_is_that_of_each_seed_and_needs_all_tasks():
    scores = scored({("a", "x"): [0.5, 0.7], ("a", "y"): [0.6, 0.9], ("TinyBERT", "x"): [0.5, 0.5]})
    whole = means(scores, ["x", "y"])
    assert whole["mean"].to_list() == pytest.approx([55.0, 80.0])
    assert {*whole["model"]} == {"a"}


def test_aims_compare_students_within_the_share_of_flops_and_say_when_they_are_not_met():
    scores = scored({("a", "x"): [0.71, 0.72, 0.74], ("TinyBERT", "x"): [0.70, 0.70, 0.70], ("all-MiniLM", "x"): [0.9]})
    models = scores[["kind", "model", "flops"]].drop_duplicates()
    tiny, published = aim_lines(scores, models, ["x"])
    assert "50 % of the FLOPs of TinyBERT" in tiny
    assert "met on average, but the interval includes a lower mean" in tiny
    assert "+2.3 ± 3.8 (72.3 against 70.0)" in tiny
    assert published.endswith("all-MiniLM and at least its mean, by labels: **not met**, no student is as cheap")


def test_seeds_that_have_learnt_nothing_are_counted():
    scores = scored({("a", "x"): [0.7, 0.8, 0.9], ("TinyBERT", "x"): [0.5, 0.5, 0.7]})
    (line,) = unlearnt_lines(scores.assign(unlearnt=scores["score"] <= 0.5))
    assert line == "- **TinyBERT on x, by labels**: 2 of 3 seeds are no better than one answer for all rows."


def test_a_difference_is_paired_over_the_seeds():
    first, second = pd.Series([1.0, 5.0, 9.0]), pd.Series([0.0, 4.0, 8.0])
    assert difference(first, second) == (1.0, 0.0)
    assert math.isnan(difference(first[:1], second)[1])


@pytest.mark.parametrize(
    ("gap", "margin", "words"),
    [(1.0, 0.5, "met"), (0.0, 1.0, "met on average"), (-1.0, 2.0, "not met, within"), (-2.0, 1.0, "not met")],
)
def test_a_verdict_says_what_the_interval_leaves_open(gap, margin, words):
    assert verdict(gap, margin).startswith(words)
    assert verdict(gap, math.nan).startswith("not met" if gap < 0 else "met, with one seed")


def test_a_step_costs_the_sum_of_its_sessions(tmp_path):
    commands = Commands(tmp_path)
    with pytest.raises(RuntimeError, match="'trian' is not a command"):
        commands.run(["trian"], "training", "train")
    commands.run(["--version"], "training", "train", lambda: 5_000_000)
    costs = commands.costs
    assert costs["exit_code"].to_list() == [2, 0]
    assert (costs["peak_mb"] > 5).all()
    training, whole = by_part(costs).to_dict("records")
    assert (training["steps"], training["million tokens"], whole["part"]) == (1, 5.0, "all")
    assert training["hours"] == pytest.approx(costs["seconds"].sum() / 3600, abs=0.01)
