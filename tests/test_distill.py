"""Training: it learns, each option matters, and a killed run ends with the weights of one never stopped."""

import csv
import multiprocessing
import os
import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from autodistil_search import checkpoint, files
from autodistil_search.corpus import Blocks, load_corpus
from autodistil_search.device import Device
from autodistil_search.distill import (
    TrainOptions,
    block_indices,
    distill,
    set_learning_rate,
    subnets_of_step,
    train_step,
)
from autodistil_search.errors import InputError
from autodistil_search.model import AutoDistilModel
from autodistil_search.proxies import RelationProxy
from autodistil_search.relations import relation_loss, relation_target
from autodistil_search.space import load_space
from autodistil_search.teacher import Teacher, load_teacher

CPU = Device("cpu", "fp32")
OPTIONS = TrainOptions(steps=4, batch_size=4, lr=2e-3, seed=0, relation_heads=4)

Weights = dict[str, Tensor]


def _superlm(teacher: Teacher, seed: int = 0) -> AutoDistilModel:
    torch.manual_seed(seed)
    return teacher.superlm(load_space("debug"), init="random")[0]


def _weights(model: torch.nn.Module) -> Weights:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def _rows(folder: Path) -> list[list[str]]:
    with (folder / "training.csv").open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def teacher(toy_teacher: Callable[..., Teacher]) -> Teacher:
    return toy_teacher()


@pytest.fixture
def streams(toy_text: Callable[..., Path], teacher: Teacher, tmp_path: Path) -> tuple[Blocks, Blocks]:
    return load_corpus([str(toy_text())], teacher.tokenizer, tmp_path / "cache").blocks(seq_len=16)


@pytest.fixture
def train(teacher: Teacher, streams: tuple[Blocks, Blocks], tmp_path: Path) -> Callable[..., Weights]:
    """Trains a fresh SuperLM in a folder of that name; returns its weights."""

    def run(name: str = "run", options: TrainOptions = OPTIONS, model: AutoDistilModel | None = None) -> Weights:
        model = model or _superlm(teacher)
        return _weights(distill(model, teacher, streams[0], options, tmp_path / name, CPU))

    return run


class Poisoned:
    """A teacher whose relations are not numbers from a certain step on."""

    def __init__(self, teacher: Teacher, good_steps: int) -> None:
        self._teacher, self._left = teacher, good_steps

    def projections(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        self._left -= 1
        factor = 1.0 if self._left >= 0 else float("nan")
        return tuple(factor * each for each in self._teacher.projections(input_ids))


def test_the_loss_falls_on_the_subnets_trained_and_on_held_out_text(
    teacher: Teacher, streams: tuple[Blocks, Blocks], tmp_path: Path
) -> None:
    proxy = RelationProxy(teacher, streams[1].spread(100), 4, "kl", CPU)
    model = _superlm(teacher)
    space = model.space
    before = [proxy.score(model, space.decode(genome)) for genome in space.genomes()]
    distill(model, teacher, streams[0], replace(OPTIONS, steps=80, batch_size=16), tmp_path / "run", CPU)
    after = [proxy.score(model, space.decode(genome)) for genome in space.genomes()]
    assert before[0] == pytest.approx(proxy.of_uniform_relations, rel=0.05)
    assert max(after) < 0.7 * min(before)
    losses = [float(row[-1]) for row in _rows(tmp_path / "run")[1:]]
    assert sum(losses[-40:]) < 0.7 * sum(losses[:40])


def _train_in_a_process(teacher_folder: str, text: str, folder: str, options: TrainOptions) -> None:
    teacher = load_teacher(teacher_folder)
    blocks, _ = load_corpus([text], teacher.tokenizer, Path(folder).parent / "cache").blocks(seq_len=16)
    distill(_superlm(teacher), teacher, blocks, options, Path(folder), CPU)


def _steps_logged(folder: Path) -> int:
    path = folder / "training.csv"
    content = path.read_text() if path.exists() else ""
    steps = re.findall(r"^(\d+),", content, re.MULTILINE)
    return int(steps[-1]) if steps else 0


def test_a_run_killed_again_and_again_ends_as_one_never_stopped(
    teacher_folder: Callable[..., Path], toy_text: Callable[..., Path], tmp_path: Path
) -> None:
    options = replace(OPTIONS, steps=120)
    arguments = (str(teacher_folder()), str(toy_text()))
    _train_in_a_process(*arguments, str(tmp_path / "whole"), options)

    context = multiprocessing.get_context("forkserver")  # imports torch once for all kills
    context.set_forkserver_preload(["autodistil_search.distill"])
    killed, delays = tmp_path / "killed", random.Random(0)
    for kill_after in (1, 2, 30, 60, 90):
        process = context.Process(target=_train_in_a_process, args=(*arguments, str(killed), options))
        process.start()
        while process.is_alive() and _steps_logged(killed) < kill_after:
            time.sleep(0.001)
        time.sleep(delays.uniform(0, 0.01))  # some moment of a step, or of a checkpoint
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (killed / "trainer_state.json").exists()
    _train_in_a_process(*arguments, str(killed), options)

    finished = [checkpoint.load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", killed)]
    assert _same(*finished)
    assert _rows(killed) == _rows(tmp_path / "whole")
    steps = [int(row[0]) for row in _rows(killed)[1:]]
    assert steps == [step for step in range(1, 121) for _ in range(4)]


def test_the_same_seed_gives_the_same_weights(train: Callable[..., Weights]) -> None:
    assert _same(train("first"), train("second"))


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 1e-3},
        {"seed": 1},
        {"loss": "mse"},
        {"sampling": "sandwich"},
        {"batch_size": 3},
        {"steps": 5},
        {"relation_heads": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_option_changes_the_weights_and_is_refused_in_a_folder_made_without(
    train: Callable[..., Weights], change: dict[str, object]
) -> None:
    options = replace(OPTIONS, **change)
    assert not _same(train("plain"), train("changed", options))
    ((key, now),) = change.items()
    was = asdict(OPTIONS)[key]
    with pytest.raises(InputError, match=re.escape(f"settings: {key} was {was!r} and is now {now!r}. Use those")):
        train("plain", options)


def test_other_settings_are_refused_in_the_folder_of_an_unfinished_run(
    teacher: Teacher, streams: tuple[Blocks, Blocks], train: Callable[..., Weights], tmp_path: Path
) -> None:
    with pytest.raises(FloatingPointError):
        distill(_superlm(teacher), Poisoned(teacher, 2), streams[0], OPTIONS, tmp_path / "run", CPU)
    with pytest.raises(InputError, match=r"seed was 0 and is now 3; |lr was 0\.002 and is now 0\.1; seed was 0"):
        train("run", replace(OPTIONS, lr=0.1, seed=3))
    assert _same(train("run"), train("never-stopped"))


def test_a_loss_that_is_not_finite_stops_by_name_and_the_run_can_go_on_from_before(
    teacher: Teacher, streams: tuple[Blocks, Blocks], train: Callable[..., Weights], tmp_path: Path
) -> None:
    poisoned = Poisoned(teacher, good_steps=2)
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 3 for subnet 3x48, ratio 2, 4 heads of 8;"):
        distill(_superlm(teacher), poisoned, streams[0], OPTIONS, tmp_path / "run", CPU)
    assert (tmp_path / "run" / "trainer.safetensors").exists()
    assert _same(train("run"), train("never-stopped"))


def test_a_finished_folder_is_read_and_not_trained_again(
    teacher: Teacher, train: Callable[..., Weights], tmp_path: Path
) -> None:
    weights = train()
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir() if path.name != ".lock"}
    assert "trainer.safetensors" not in files
    assert {"model.safetensors", "config.json", "training.csv", "trainer_state.json"} <= files.keys()
    model = _superlm(teacher, seed=5)
    assert _same(train(model=model), weights)
    assert not model.training
    for name, changed in files.items():
        assert (tmp_path / "run" / name).stat().st_mtime_ns == changed


def test_a_run_stopped_while_it_writes_the_final_model_finishes_the_next_time(
    train: Callable[..., Weights], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_file, moved = os.replace, []

    def stopped(source: Path, target: Path) -> None:
        if Path(target).suffix == ".json" or Path(target).name == "model.safetensors":
            moved.append(target)
        if len(moved) == 2:
            raise KeyboardInterrupt
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            train("run")
    assert _same(train("run"), train("never-stopped"))
    assert not (tmp_path / "run" / ".final").exists()


def test_a_student_trains_itself_alone(
    teacher: Teacher, streams: tuple[Blocks, Blocks], train: Callable[..., Weights], tmp_path: Path
) -> None:
    student = AutoDistilModel(teacher.student_config(load_space("debug").smallest))
    started = _weights(student)
    assert not _same(train(model=student), started)
    assert [row[:-1] for row in _rows(tmp_path / "run")[1:]] == [[str(n), "2", "32", "1.5", "2"] for n in range(1, 5)]


def test_the_log_names_the_subnets_and_losses_of_each_step(
    teacher: Teacher, streams: tuple[Blocks, Blocks], train: Callable[..., Weights], tmp_path: Path
) -> None:
    train()
    rows = _rows(tmp_path / "run")
    model = _superlm(teacher)
    assert rows[0] == ["step", "layers", "hidden_size", "mlp_ratio", "heads", "loss"]
    expected = [
        [str(step + 1), str(s.layers), str(s.hidden_size), f"{s.mlp_ratio:g}", str(s.heads)]
        for step in range(4)
        for s in subnets_of_step(model, OPTIONS, step)
    ]
    assert [row[:-1] for row in rows[1:]] == expected
    ids = streams[0][block_indices(len(streams[0]), OPTIONS, 0)]
    target = relation_target(teacher.projections(ids), None, 4)
    for row, subnet in zip(rows[1:5], subnets_of_step(model, OPTIONS, 0), strict=True):
        loss = relation_loss(model.last_projections(ids, subnet=subnet), target)
        assert float(row[-1]) == pytest.approx(loss.item(), abs=2e-6)


@pytest.mark.parametrize(("sampling", "fixed"), [("largest-random", 1), ("sandwich", 2)])
def test_each_step_trains_the_ends_its_sampling_names_and_others_at_random(
    debug_superlm: Callable[..., AutoDistilModel], sampling: str, fixed: int
) -> None:
    model, options = debug_superlm(), replace(OPTIONS, sampling=sampling)
    space, drawn = model.space, set()
    for step in range(100):
        subnets = subnets_of_step(model, options, step)
        assert subnets[:fixed] == [space.largest, space.smallest][:fixed]
        assert len(subnets) == 4
        drawn.update(space.encode(subnet) for subnet in subnets[fixed:])
        assert subnets == subnets_of_step(model, options, step)
    assert drawn == set(space.genomes())
    others = [subnets_of_step(model, replace(options, seed=1), step) for step in range(10)]
    assert others != [subnets_of_step(model, options, step) for step in range(10)]


@given(count=st.integers(1, 30), batch_size=st.integers(1, 40), seed=st.integers(0, 5))
def test_each_epoch_is_a_permutation_of_all_blocks(count: int, batch_size: int, seed: int) -> None:
    options = replace(OPTIONS, batch_size=batch_size, seed=seed)
    steps = -(-4 * count // batch_size)
    order = [index for step in range(steps) for index in block_indices(count, options, step)]
    epochs = [order[i * count : (i + 1) * count] for i in range(4)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert count < 10 or epochs[0] != epochs[1]


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 1000])
def test_the_learning_rate_rises_over_a_tenth_and_falls_to_zero_in_equal_parts(steps: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    options, rates = replace(OPTIONS, steps=steps, lr=0.5), []
    for step in range(steps):
        set_learning_rate(optimizer, options, step)
        rates.append(optimizer.param_groups[0]["lr"])
    up = max(1, round(steps / 10))
    rising = [0.5 * (i + 1) / up for i in range(up)]
    falling = [0.5 * (steps - i) / (steps - up) for i in range(up, steps)]
    assert rates == pytest.approx(rising + falling)
    assert max(rates) == 0.5
    assert min(rates) > 0


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_the_gradient_of_a_step_is_the_mean_of_its_subnets_own(
    teacher: Teacher, streams: tuple[Blocks, Blocks], debug_superlm: Callable[..., AutoDistilModel], loss: str
) -> None:
    model, options, ids = debug_superlm(), replace(OPTIONS, loss=loss), streams[0].spread(5)
    subnets = subnets_of_step(model, options, step=0)
    losses = train_step(model, teacher, ids, subnets, options, CPU)
    expected = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for subnet, found in zip(subnets, losses, strict=True):
        alone = debug_superlm()
        value = relation_loss(
            alone.last_projections(ids, subnet=subnet), relation_target(teacher.projections(ids), None, 4, loss)
        )
        value.backward()
        assert found == pytest.approx(value.item(), rel=1e-6)
        for name, parameter in alone.named_parameters():
            if parameter.grad is not None:
                expected[name] += parameter.grad / len(subnets)
    for name, parameter in model.named_parameters():
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert_close(found, expected[name], rtol=1e-4, atol=1e-6)


def test_training_in_bf16_follows_fp32(teacher: Teacher, streams: tuple[Blocks, Blocks], tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        device = Device("cpu", precision)
        distill(_superlm(teacher), teacher, streams[0], OPTIONS, tmp_path / precision, device)
    exact, rough = ([float(row[-1]) for row in _rows(tmp_path / name)[1:]] for name in ("fp32", "bf16"))
    assert rough == pytest.approx(exact, rel=0.02)
    assert rough != exact
