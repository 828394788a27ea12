"""The watch on a training's loss: what is a collapse, what is noise, and a training that goes back."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_training_loop import CPU, OPTIONS, WITH_HIDDEN, Weights, _rows, _same, _weights, streams, teacher, train

from autodistil_search.base.errors import Terminated
from autodistil_search.base.progress import Reporter
from autodistil_search.distillation.collapse import MOST_RETURNS, CollapseError, LossWatch, Return
from autodistil_search.distillation.options import TrainOptions
from autodistil_search.distillation.training_loop import distill
from autodistil_search.distillation.training_step import ModelInTraining
from autodistil_search.spaces.search_space import load_space
from autodistil_search.teachers import initial_weights
from autodistil_search.teachers.teacher import Teacher
from autodistil_search.text.blocks import Blocks

__all__ = ["streams", "teacher", "train"]  # fixtures

TOO_HIGH = 0.1
"""A learning rate at which, and at half of which, the toy SuperLM loses what it got from its teacher."""


def verdicts(losses: Sequence[float], nothing: float | None = 2.0) -> list[str]:
    """What a watch says at the end of each window."""
    watch = LossWatch.of(len(losses))
    watch.nothing = nothing
    return [said for loss in losses if (said := watch.see(loss)) != "open"]


@pytest.mark.parametrize(
    ("last", "verdict"),
    [
        (1.05, ["good"]),
        (1.24, ["good"]),
        (1.26, []),  # neither good nor a collapse
        (1.49, []),
        (1.51, ["collapsed"]),
        (2.0, ["collapsed"]),
        (9.0, ["collapsed"]),
    ],
)
def test_half_of_what_was_learnt_is_lost_in_a_collapse(last: float, verdict: list[str]) -> None:
    """Of the distance between 1, the lowest loss, and 2, that of a model that knows nothing."""
    assert verdicts([1.0] * 95 + [last] * 5) == ["good"] * 19 + verdict


def test_the_loss_before_the_first_update_counts_and_the_warm_up_is_not_judged() -> None:
    assert verdicts([0.5] + [2.0] * 99) == ["collapsed"] * 17
    assert verdicts([0.5] + [2.0] * 14) == []


@given(st.floats(0.01, 100), st.lists(st.floats(0.9, 1.1), min_size=100, max_size=100))
def test_noise_around_a_loss_of_knowing_nothing_is_no_collapse(level: float, noise: list[float]) -> None:
    """Not even if nothing is known of that loss but the first one."""
    losses = [level * factor for factor in noise]
    assert "collapsed" not in verdicts(losses, nothing=level)
    assert "collapsed" not in verdicts([level, *losses[1:]], nothing=None)


@given(st.floats(0.1, 10), st.integers(20, 400))
def test_a_falling_loss_is_good_at_every_window(level: float, steps: int) -> None:
    losses = [level * (1 - 0.9 * step / steps) for step in range(steps)]
    assert set(verdicts(losses, nothing=level)) == {"good"}


@given(st.lists(st.floats(0.1, 3), min_size=60, max_size=60), st.integers(0, 60))
def test_a_watch_that_was_written_down_goes_on_as_it_was(losses: list[float], at: int) -> None:
    whole = LossWatch.of(60)
    expected = [whole.see(loss) for loss in losses]
    first = LossWatch.of(60)
    said = [first.see(loss) for loss in losses[:at]]
    first.returns = [Return(5, 0, 0.1, 2.0, 1.0)]
    second = LossWatch.from_dict(json.loads(json.dumps(first.to_dict())))
    assert second.returns == first.returns
    assert second.factor == 0.5
    assert [*said, *(second.see(loss) for loss in losses[at:])] == expected


class Says(Reporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture
def collapsing(
    teacher: Teacher, streams: tuple[Blocks, Blocks], tmp_path: Path
) -> Callable[..., tuple[Weights, list[str]]]:
    """Trains a SuperLM that starts from its teacher; returns its weights and what was said."""

    def run(name: str, lr: float = TOO_HIGH, options: TrainOptions = OPTIONS) -> tuple[Weights, list[str]]:
        torch.manual_seed(0)
        model, reporter = initial_weights.superlm(teacher, load_space("debug"), "slices")[0], Says()
        options = replace(options, steps=60, batch_size=8, lr=lr)
        distill(model, teacher, streams[0], options, tmp_path / name, CPU, reporter, sample_ids=streams[0].spread(4))
        return _weights(model), reporter.said

    return run


def test_a_training_that_collapses_goes_back_at_half_the_rate_and_tells_it(
    collapsing: Callable[..., tuple[Weights, list[str]]], tmp_path: Path
) -> None:
    _, said = collapsing("run")
    returns = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["returns"]
    assert [entry["lr"] for entry in returns] == [TOO_HIGH / 2, TOO_HIGH / 4]
    assert all(entry["to"] < entry["step"] and entry["loss"] > 1.5 * entry["best"] for entry in returns)
    assert [line for line in said if "collapsed" in line] == [f"training {Return(**entry)}" for entry in returns]
    steps = [int(row[0]) for row in _rows(tmp_path / "run")[1:]]
    assert steps == [step for step in range(1, 61) for _ in range(4)]
    # The rate that is left is the one that learns by itself.
    losses = [float(row[6]) for row in _rows(tmp_path / "run")[1:] if row[1] == "largest"]
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])


def test_a_training_that_collapses_at_every_rate_ends_with_one_line(
    collapsing: Callable[..., tuple[Weights, list[str]]], tmp_path: Path
) -> None:
    with pytest.raises(CollapseError, match=r"training collapsed at step \d+ for the 3rd time, at a peak .* of 0.25:"):
        collapsing("run", lr=1.0)
    assert list((tmp_path / "run").glob("checkpoint-*.safetensors"))
    assert MOST_RETURNS == 2
    with pytest.raises(CollapseError, match="for the 3rd time"):  # and again, from its last good checkpoint
        collapsing("run", lr=1.0)


@pytest.mark.parametrize("options", [OPTIONS, WITH_HIDDEN], ids=["relations", "hidden"])
def test_a_training_that_is_stopped_again_and_again_collapses_as_one_never_stopped(
    collapsing: Callable[..., tuple[Weights, list[str]]], monkeypatch: pytest.MonkeyPatch, options: TrainOptions
) -> None:
    whole, said = collapsing("whole", options=options)
    assert any("collapsed" in line for line in said)
    begin, random_steps = ModelInTraining.begin, random.Random(1)

    def killed(self: ModelInTraining, *arguments: object) -> None:
        if random_steps.random() < 0.05:
            raise Terminated("killed")
        begin(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ModelInTraining, "begin", killed)
    kills = 0
    while True:
        try:
            stopped, _ = collapsing("stopped", options=options)
            break
        except Terminated:
            kills += 1
    assert kills > 3
    assert _same(whole, stopped)
