"""SuperLMs that train together: each ends as if it had trained by itself, and the teacher runs once for all."""

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_training_loop import CPU, OPTIONS, WITH_HIDDEN, Weights, _rows, _same, _superlm, _weights, streams, teacher
from torch import Tensor

from autodistil_search.base.errors import Terminated
from autodistil_search.distillation.checkpoints import Checkpoints
from autodistil_search.distillation.collapse import CollapseError
from autodistil_search.distillation.options import TrainOptions
from autodistil_search.distillation.training_loop import Distillation, distill, distill_together
from autodistil_search.distillation.training_step import ModelInTraining
from autodistil_search.spaces.search_space import SearchSpace, load_space
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.teachers import initial_weights
from autodistil_search.teachers.teacher import Teacher
from autodistil_search.text.blocks import Blocks, TrainingText
from autodistil_search.text.token_stream import open_stream

__all__ = ["streams", "teacher"]  # fixtures

SPACES = [
    replace(load_space("debug"), name=name, hidden_size=sizes) for name, sizes in {"a": (32, 48), "b": (16, 24)}.items()
]


def begun(teacher: Teacher, space: SearchSpace, start: str = "random") -> AutoDistilModel:
    torch.manual_seed(0)
    return initial_weights.superlm(teacher, space, start)[0]


def trained(
    teacher: Teacher,
    text: TrainingText,
    folder: Path,
    options: TrainOptions,
    sample: Tensor,
    rates: tuple[float, ...] = (2e-3, 1e-3),
    start: str = "random",
) -> list[Weights]:
    """Train a SuperLM of each space together, in folders inside `folder`; returns their weights."""
    models = [begun(teacher, space, start) for space in SPACES]
    distillations = [
        Distillation(model, replace(options, lr=lr), folder / space.name, space.name, sample_ids=sample)
        for model, space, lr in zip(models, SPACES, rates, strict=True)
    ]
    distill_together(distillations, teacher, text, CPU)
    return [_weights(model) for model in models]


def alone(
    teacher: Teacher, text: Callable[[], TrainingText], folder: Path, options: TrainOptions, sample: Tensor,
    rates: tuple[float, ...] = (2e-3, 1e-3), start: str = "random",
) -> list[Weights]:  # fmt: skip
    """Train them one after the other."""
    found = []
    for space, lr in zip(SPACES, rates, strict=True):
        model, own = begun(teacher, space, start), replace(options, lr=lr)
        distill(model, teacher, text(), own, folder / space.name, CPU, title=space.name, sample_ids=sample)
        found.append(_weights(model))
    return found


def assert_alike(together: list[Weights], apart: list[Weights], folder: Path) -> None:
    """Folders "together" and "apart" have the same logs, and the models the same weights."""
    for ours, own, space in zip(together, apart, SPACES, strict=True):
        assert _same(ours, own)
        assert _rows(folder / "together" / space.name) == _rows(folder / "apart" / space.name)


@pytest.mark.parametrize("options", [OPTIONS, WITH_HIDDEN], ids=["relations", "hidden"])
def test_models_that_train_together_end_as_if_each_were_alone_and_the_teacher_runs_once(
    teacher: Teacher, streams: tuple[Blocks, Blocks], tmp_path: Path, options: TrainOptions
) -> None:
    sample, runs = streams[0].spread(4), []
    handle = teacher.model.register_forward_pre_hook(lambda *_: runs.append(1))
    together = trained(teacher, streams[0], tmp_path / "together", options, sample)
    fits = 2 * (options.hidden > 0)  # the map of each model is fitted to the teacher's hidden states
    assert len(runs) == options.steps + fits
    handle.remove()
    apart = alone(teacher, lambda: streams[0], tmp_path / "apart", options, sample)
    assert_alike(together, apart, tmp_path)


@pytest.mark.parametrize("stream", [False, True])
def test_models_that_are_stopped_at_different_steps_catch_up(
    teacher: Teacher,
    toy_text: Callable[..., Path],
    streams: tuple[Blocks, Blocks],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stream: bool,
) -> None:
    path, options, sample = (
        str(toy_text()),
        replace(WITH_HIDDEN, steps=18),
        streams[0].spread(4),
    )  # too few for a verdict

    def text() -> TrainingText:
        return open_stream([path], teacher.tokenizer, 16)[0] if stream else streams[0]

    apart = alone(teacher, text, tmp_path / "apart", options, sample)
    learn, rng, calls = ModelInTraining.learn, random.Random(2), itertools.count()

    def killed(self: ModelInTraining, *arguments: Any) -> None:
        if next(calls) in (9, 20, 30, 40):
            raise Terminated("killed")
        learn(self, *arguments)

    monkeypatch.setattr(ModelInTraining, "learn", killed)
    # Each is saved at steps of its own: now the first more often, now the second.
    often = property(lambda self: rng.random() < (0.6 if (self.folder.name == "a") == (kills % 2 == 0) else 0.1))
    monkeypatch.setattr(Checkpoints, "due", often)
    kills, apart_by = 0, set()
    while True:
        try:
            together = trained(teacher, text(), tmp_path / "together", options, sample)
            break
        except Terminated:
            kills += 1
            steps = [
                max(int(file.stem[-8:]) for file in (tmp_path / "together" / space.name).glob("checkpoint-*.json"))
                for space in SPACES
            ]
            apart_by.add(steps[0] - steps[1])
    assert kills == 4
    assert {False, True} <= {difference > 0 for difference in apart_by if difference}
    assert_alike(together, apart, tmp_path)


@pytest.mark.parametrize("stream", [False, True])
def test_a_collapse_sends_only_its_own_model_back(
    teacher: Teacher, toy_text: Callable[..., Path], streams: tuple[Blocks, Blocks], tmp_path: Path, stream: bool
) -> None:
    options, sample, path = replace(OPTIONS, steps=60, batch_size=8), streams[0].spread(4), str(toy_text())

    def text() -> TrainingText:
        return open_stream([path], teacher.tokenizer, 16)[0] if stream else streams[0]

    apart = alone(teacher, text, tmp_path / "apart", options, sample, (0.1, 2e-3), "slices")
    together = trained(teacher, text(), tmp_path / "together", options, sample, (0.1, 2e-3), "slices")
    assert_alike(together, apart, tmp_path)
    states = [(tmp_path / "together" / space.name / "trainer_state.json").read_text() for space in SPACES]
    assert ['"returns": []' in state for state in states] == [False, True]


def test_a_model_that_collapses_for_good_does_not_stop_the_others(
    teacher: Teacher, streams: tuple[Blocks, Blocks], tmp_path: Path
) -> None:
    options, sample = replace(OPTIONS, steps=60, batch_size=8), streams[0].spread(4)
    with pytest.raises(CollapseError, match="a collapsed at step"):
        trained(teacher, streams[0], tmp_path / "together", options, sample, (1.0, 2e-3), "slices")
    assert not (tmp_path / "together" / "a" / "trainer_state.json").exists()
    model = begun(teacher, SPACES[1], "slices")
    distill(model, teacher, streams[0], replace(options, lr=2e-3), tmp_path / "apart", CPU)
    assert _same(load_file(tmp_path / "together" / "b" / "model.safetensors"), _weights(model))


def test_options_that_differ_in_more_than_the_rate_are_refused(
    teacher: Teacher, streams: tuple[Blocks, Blocks], tmp_path: Path
) -> None:
    distillations = [
        Distillation(_superlm(teacher), replace(OPTIONS, seed=seed), tmp_path / str(seed)) for seed in (0, 1)
    ]
    with pytest.raises(ValueError, match="other than the learning rate"):
        distill_together(distillations, teacher, streams[0], CPU)


def test_a_model_that_cannot_be_saved_does_not_keep_the_others_from_being_saved(
    teacher: Teacher, streams: tuple[Blocks, Blocks], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, written = Checkpoints.save, []

    def broken(self: Checkpoints, step: int, *arguments: Any) -> None:
        if self.folder.name == "a" and step == 2:
            raise FloatingPointError("a weight is nan")
        written.append((self.folder.name, step))
        save(self, step, *arguments)

    monkeypatch.setattr(Checkpoints, "save", broken)
    monkeypatch.setattr(Checkpoints, "due", True)
    with pytest.raises(FloatingPointError, match="a weight is nan"):
        trained(teacher, streams[0], tmp_path / "together", OPTIONS, streams[0].spread(4))
    assert ("b", 2) in written
    assert (tmp_path / "together" / "b" / "trainer_state.json").exists()
