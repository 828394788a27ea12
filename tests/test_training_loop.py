"""Training: it learns, each option matters, and a killed run ends with the weights of one never stopped."""

import csv
import itertools
import os
import pkgutil
import random
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from processes import SERVER, in_processes
from safetensors.torch import load_file
from steps import gradients_of_step
from torch import Tensor
from torch.testing import assert_close

from autodistil_search.base import files
from autodistil_search.base.device import Device
from autodistil_search.base.distributed import Processes
from autodistil_search.base.errors import InputError, Terminated
from autodistil_search.base.progress import Bar, Reporter
from autodistil_search.base.seeding import seeded
from autodistil_search.base.tracking import Tracking
from autodistil_search.base.weighted_names import ROLES
from autodistil_search.distillation import checkpoints
from autodistil_search.distillation.layer_losses import LastHidden, LayerTransfer
from autodistil_search.distillation.learning_rate import set_learning_rate
from autodistil_search.distillation.options import Execution, TrainOptions
from autodistil_search.distillation.sampling import Drawn
from autodistil_search.distillation.training_log import TrainingLog
from autodistil_search.distillation.training_loop import distill
from autodistil_search.distillation.training_step import SubnetPasses, subnets_of_step, train_step
from autodistil_search.nas.label_free_proxies import RelationProxy
from autodistil_search.spaces.search_space import load_space
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.superlm.relation_loss import relation_loss, relation_target
from autodistil_search.teachers import initial_weights
from autodistil_search.teachers.loading import load_teacher
from autodistil_search.teachers.teacher import Teacher
from autodistil_search.text.blocks import Blocks, TrainingText
from autodistil_search.text.token_store import load_corpus
from autodistil_search.text.token_stream import open_stream

CPU = Device("cpu", "fp32")
OPTIONS = TrainOptions(steps=4, batch_size=4, lr=2e-3, seed=0, relation_heads=4, random_subnets=3)
WITH_HIDDEN = replace(OPTIONS, hidden=0.5)
LOSS, HIDDEN_LOSS = 6, 7
"""Columns of training.csv."""


Weights = dict[str, Tensor]


def _superlm(teacher: Teacher, seed: int = 0) -> AutoDistilModel:
    torch.manual_seed(seed)
    return initial_weights.superlm(teacher, load_space("debug"), "random")[0]


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
        model, sample = model or _superlm(teacher), streams[0].spread(4)
        return _weights(distill(model, teacher, streams[0], options, tmp_path / name, CPU, sample_ids=sample))

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
    assert before[0] == pytest.approx(proxy.reference, rel=0.05)
    assert max(after) < 0.7 * min(before)
    losses = [float(row[LOSS]) for row in _rows(tmp_path / "run")[1:]]
    assert sum(losses[-40:]) < 0.7 * sum(losses[:40])


def _train_in_a_process(teacher_folder: str, text: str, folder: str, options: TrainOptions) -> None:
    teacher = load_teacher(teacher_folder)
    blocks, _ = load_corpus([text], teacher.tokenizer, Path(folder).parent / "cache").blocks(seq_len=16)
    distill(_superlm(teacher), teacher, blocks, options, Path(folder), CPU, sample_ids=blocks.spread(4))


def _steps_logged(folder: Path) -> int:
    path = folder / "training.csv"
    content = path.read_text() if path.exists() else ""
    steps = re.findall(r"^(\d+),", content, re.MULTILINE)
    return int(steps[-1]) if steps else 0


def test_a_run_killed_again_and_again_ends_as_one_never_stopped(
    teacher_folder: Callable[..., Path], toy_text: Callable[..., Path], tmp_path: Path
) -> None:
    options = replace(WITH_HIDDEN, steps=60)
    arguments = (str(teacher_folder()), str(toy_text()))
    _train_in_a_process(*arguments, str(tmp_path / "whole"), options)

    killed, delays = tmp_path / "killed", random.Random(0)
    for kill_after in (1, 20, 40):
        process = SERVER.Process(target=_train_in_a_process, args=(*arguments, str(killed), options))
        process.start()
        while process.is_alive() and _steps_logged(killed) < kill_after:
            time.sleep(0.001)
        time.sleep(delays.uniform(0, 0.01))  # some moment of a step, or of a checkpoint
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (killed / "trainer_state.json").exists()
    _train_in_a_process(*arguments, str(killed), options)

    finished = [load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", killed)]
    assert _same(*finished)
    assert _rows(killed) == _rows(tmp_path / "whole")
    steps = [int(row[0]) for row in _rows(killed)[1:]]
    assert steps == [step for step in range(1, 61) for _ in range(4)]


def test_the_same_seed_gives_the_same_weights(train: Callable[..., Weights]) -> None:
    assert _same(train("first"), train("second"))


CHANGES = [
    {"lr": 1e-3},
    {"seed": 1},
    {"loss": "mse"},
    {"sampling": "sandwich"},
    {"sampling": "random"},
    {"sampling": "largest"},
    {"random_subnets": 1},
    {"subnet_weights": "largest:3"},
    {"in_place": 0.5},
    {"hidden": 0.5},
    {"relations": "qq,kk"},
    {"relations": "qq,kk,vv:0.5"},
    {"relations": "qq,kk,vv,qk"},
    {"batch_size": 3},
    {"steps": 5},
    {"relation_heads": 2},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_each_option_changes_the_weights_and_is_refused_in_a_folder_made_without(
    train: Callable[..., Weights], change: dict[str, object]
) -> None:
    options = replace(OPTIONS, **change)
    assert not _same(train("plain"), train("changed", options))
    ((key, now),) = change.items()
    was = asdict(OPTIONS)[key]
    with pytest.raises(InputError, match=re.escape(f"settings: {key} was {was!r} and is now {now!r}. Use those")):
        train("plain", options)


def test_every_option_is_tested() -> None:
    assert {key for change in CHANGES for key in change} == {field.name for field in fields(TrainOptions)}


def _gradients(
    model: AutoDistilModel, teacher: Teacher, ids: Tensor, options: TrainOptions, drawn: list[Drawn] | None = None
) -> Weights:
    """What one step adds up, whole tensors."""
    model.zero_grad()
    gradients_of_step(model, teacher, ids, drawn or subnets_of_step(model, options, 0), options, CPU)
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def test_the_gradient_of_words_is_the_same_with_any_number_of_threads(
    debug_superlm: Callable[..., AutoDistilModel],
) -> None:
    """Large enough for several threads, and with words that occur in many places."""
    model, ids, found = debug_superlm(), torch.randint(5, 90, (64, 16)), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 2, 2):
            torch.set_num_threads(threads)
            sums = torch.zeros_like(model.word_embeddings.weight)
            with model.shared_words(ids, sums) as words:
                (words * torch.linspace(0.1, 1, words.numel()).view_as(words)).sum().backward()
            found.append(sums)
    finally:
        torch.set_num_threads(before)
    assert all(sums.equal(found[0]) for sums in found)


@pytest.mark.parametrize("teacher_layer", [0, 1])
def test_another_layer_of_the_teacher_gives_other_gradients(
    toy_teacher: Callable[..., Teacher],
    teacher: Teacher,
    streams: tuple[Blocks, Blocks],
    debug_superlm: Callable[..., AutoDistilModel],
    teacher_layer: int,
) -> None:
    ids = streams[0].spread(4)
    last = _gradients(debug_superlm(), teacher, ids, OPTIONS)
    assert not _same(_gradients(debug_superlm(), toy_teacher(layer=teacher_layer), ids, OPTIONS), last)


def test_the_depth_rule_decides_which_layers_of_the_superlm_a_shallow_subnet_trains(
    teacher: Teacher, streams: tuple[Blocks, Blocks]
) -> None:
    trained = {}
    for rule in ("first_last", "uniform", "prefix"):
        space = replace(load_space("debug"), depth=rule)
        model = initial_weights.superlm(teacher, space, "random")[0]
        shallow = [Drawn(space.smallest, "smallest", 1.0)]
        gradients = _gradients(model, teacher, streams[0].spread(4), OPTIONS, shallow)
        trained[rule] = [i for i in range(3) if gradients[f"layers.{i}.value.weight"].any()]
    assert trained == {"first_last": [0, 2], "uniform": [0, 1], "prefix": [0, 1]}


def test_in_place_distillation_follows_the_largest_subnet_which_itself_follows_the_teacher(
    teacher: Teacher, streams: tuple[Blocks, Blocks], debug_superlm: Callable[..., AutoDistilModel]
) -> None:
    model, ids = debug_superlm(), streams[0].spread(4)
    subnets = [model.space.largest, model.space.smallest]
    both = [Drawn(subnet, role, 0.5) for subnet, role in zip(subnets, ("largest", "smallest"), strict=True)]
    found = _gradients(model, teacher, ids, replace(OPTIONS, in_place=0.25), both)

    model.zero_grad()
    of_teacher = relation_target(teacher.projections(ids), None, 4)
    largest, smallest = (model.last_projections(ids, subnet=subnet) for subnet in subnets)
    of_largest = relation_target([each.detach() for each in largest], None, 4)
    loss = relation_loss(largest, of_teacher) / 2
    loss += 0.75 * relation_loss(smallest, of_teacher) / 2 + 0.25 * relation_loss(smallest, of_largest) / 2
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_hidden_states_add_their_share_to_the_gradients_of_a_step_and_train_the_whole_last_layer(
    teacher: Teacher, streams: tuple[Blocks, Blocks], debug_superlm: Callable[..., AutoDistilModel]
) -> None:
    model, ids = debug_superlm(), streams[0].spread(4)
    subnets = [model.space.largest, model.space.smallest]
    drawn = [Drawn(subnet, role, weight) for subnet, role, weight in zip(subnets, ROLES, (0.75, 0.25), strict=False)]
    last_hidden = LastHidden(model.config.hidden_size, teacher.subnet.hidden_size)
    last_hidden.fit(model, teacher, ids)
    losses = gradients_of_step(model, teacher, ids, drawn, WITH_HIDDEN, CPU, last_hidden)
    found = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    in_map = last_hidden.weight.grad.clone()

    model.zero_grad()
    last_hidden.zero_grad()
    target, theirs = relation_target(teacher.projections(ids), None, 4), teacher.model(ids).last_hidden_state
    total = torch.zeros(())
    for n, (subnet, _, weight) in enumerate(drawn):
        relation = relation_loss(model.last_projections(ids, subnet=subnet), target)
        hidden = last_hidden(model(ids, subnet=subnet).last_hidden_state, theirs)
        assert [losses[n], losses[2 + n]] == pytest.approx([relation.item(), hidden.item()], rel=1e-5)
        total = total + weight * (relation + 0.5 * hidden)
    total.backward()
    assert found.keys() == {name for name, _ in model.named_parameters() if not name.startswith("pooler")}
    for name, each in model.named_parameters():
        if name in found:
            assert_close(found[name], each.grad, rtol=1e-4, atol=1e-6)
    assert_close(in_map, last_hidden.weight.grad)


def test_the_log_has_the_losses_of_hidden_states_where_they_are_trained(
    train: Callable[..., Weights], tmp_path: Path
) -> None:
    train(options=replace(WITH_HIDDEN, steps=40, batch_size=16))
    losses = [float(row[HIDDEN_LOSS]) for row in _rows(tmp_path / "run")[1:]]
    assert sum(losses[-40:]) < 0.8 * sum(losses[:40])


def test_a_batch_in_parts_gives_the_weights_of_the_whole(
    teacher: Teacher,
    streams: tuple[Blocks, Blocks],
    train: Callable[..., Weights],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, sample, rows = train("whole", WITH_HIDDEN), streams[0].spread(4), []

    def counted(passes: SubnetPasses, input_ids: Tensor, *rest: Any) -> Tensor:
        rows.append(len(input_ids))
        return train_step(passes, input_ids, *rest)

    monkeypatch.setattr("autodistil_search.distillation.training_step.train_step", counted)
    for parts, divided in ((2, [2, 2]), (3, [2, 1, 1])):
        rows.clear()
        model, execution, folder = _superlm(teacher), Execution(accumulate=parts), tmp_path / str(parts)
        distill(model, teacher, streams[0], WITH_HIDDEN, folder, CPU, execution=execution, sample_ids=sample)
        assert_close(dict(model.state_dict()), whole, rtol=0, atol=1e-5)
        assert rows == divided * WITH_HIDDEN.steps


def test_a_batch_of_fewer_blocks_than_parts_is_refused(
    teacher: Teacher, streams: tuple[Blocks, Blocks], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"^--batch-size 4 for 1 processes with --accumulate 5; .* 5 or more"):
        distill(_superlm(teacher), teacher, streams[0], OPTIONS, tmp_path, CPU, execution=Execution(accumulate=5))


def test_other_settings_are_refused_in_the_folder_of_an_unfinished_run(
    teacher: Teacher, streams: tuple[Blocks, Blocks], train: Callable[..., Weights], tmp_path: Path
) -> None:
    with pytest.raises(FloatingPointError):
        distill(_superlm(teacher), Poisoned(teacher, 2), streams[0], OPTIONS, tmp_path / "run", CPU)
    with pytest.raises(InputError, match=r"seed was 0 and is now 3; |lr was 0\.002 and is now 0\.1; seed was 0"):
        train("run", replace(OPTIONS, lr=0.1, seed=3))
    assert _same(train("run"), train("never-stopped"))


def test_a_loss_that_is_not_finite_stops_by_name_and_the_run_can_go_on_from_before(
    teacher: Teacher,
    streams: tuple[Blocks, Blocks],
    train: Callable[..., Weights],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poisoned, closed, close = Poisoned(teacher, good_steps=2), list[TrainingLog](), TrainingLog.close
    monkeypatch.setattr(TrainingLog, "close", lambda log: closed.append(log) or close(log))
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 3 for subnet 3x48, ratio 2, 4 heads of 8;"):
        distill(_superlm(teacher), poisoned, streams[0], OPTIONS, tmp_path / "run", CPU)
    assert len(closed) == 1
    assert list((tmp_path / "run").glob("checkpoint-*.safetensors"))
    assert _same(train("run"), train("never-stopped"))


def test_a_loss_of_hidden_states_that_is_not_finite_stops_by_name(
    teacher: Teacher, train: Callable[..., Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    last_layer, calls = teacher.last_layer, itertools.count()

    def poisoned(ids: Tensor) -> tuple[Any, Tensor]:
        projections, hidden = last_layer(ids)
        return projections, hidden * float("nan") if next(calls) == 3 else hidden  # the first call is for the map

    monkeypatch.setattr(teacher, "last_layer", poisoned)
    with pytest.raises(FloatingPointError, match=r"the loss of hidden states is nan at step 3 for subnet 3x48"):
        train("run", WITH_HIDDEN)


def test_a_finished_folder_is_read_and_not_trained_again(
    teacher: Teacher, train: Callable[..., Weights], tmp_path: Path
) -> None:
    weights = train()
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir() if path.name != ".lock"}
    assert not [name for name in files if name.startswith("checkpoint")]
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
    assert [row[:LOSS] for row in _rows(tmp_path / "run")[1:]] == [
        [str(n), "student", "2", "32", "1.5", "2"] for n in range(1, 5)
    ]


def test_the_log_names_the_subnets_and_losses_of_each_step(
    teacher: Teacher, streams: tuple[Blocks, Blocks], train: Callable[..., Weights], tmp_path: Path
) -> None:
    train()
    rows = _rows(tmp_path / "run")
    model = _superlm(teacher)
    assert rows[0] == ["step", "role", "layers", "hidden_size", "mlp_ratio", "heads", "loss", "hidden_loss"]
    expected = [
        [str(step + 1), role, str(s.layers), str(s.hidden_size), str(s.mlp_ratio), str(s.heads)]
        for step in range(4)
        for s, role, _ in subnets_of_step(model, OPTIONS, step)
    ]
    assert [row[:LOSS] for row in rows[1:]] == expected
    assert {row[HIDDEN_LOSS] for row in rows[1:]} == {""}
    ids = streams[0].rows(0, 4, OPTIONS.seed, slice(None))
    target = relation_target(teacher.projections(ids), None, 4)
    for row, drawn in zip(rows[1:5], subnets_of_step(model, OPTIONS, 0), strict=True):
        loss = relation_loss(model.last_projections(ids, subnet=drawn.subnet), target)
        assert float(row[LOSS]) == pytest.approx(loss.item(), abs=2e-6)


def test_what_a_step_trains_follows_from_seed_and_step(debug_superlm: Callable[..., AutoDistilModel]) -> None:
    model = debug_superlm()
    steps = [subnets_of_step(model, OPTIONS, step) for step in range(10)]
    assert steps == [subnets_of_step(model, OPTIONS, step) for step in range(10)]
    assert len(set(map(tuple, steps))) == 10
    assert steps != [subnets_of_step(model, replace(OPTIONS, seed=1), step) for step in range(10)]


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 1000])
def test_the_learning_rate_rises_over_a_tenth_and_falls_to_zero_in_equal_parts(steps: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    options, rates = replace(OPTIONS, steps=steps, lr=0.5), []
    for step in range(steps):
        set_learning_rate(optimizer, options.lr, step, options.steps)
        rates.append(optimizer.param_groups[0]["lr"])
    up = max(1, round(steps / 10))
    rising = [0.5 * (i + 1) / up for i in range(up)]
    falling = [0.5 * (steps - i) / (steps - up) for i in range(up, steps)]
    assert rates == pytest.approx(rising + falling)
    assert max(rates) == 0.5
    assert min(rates) > 0


@pytest.mark.parametrize("loss", ["kl", "mse"])
@pytest.mark.parametrize("weights", ["", "largest:3,random:0.5"])
def test_the_gradient_of_a_step_is_the_weighted_mean_of_its_subnets_own(
    teacher: Teacher,
    streams: tuple[Blocks, Blocks],
    debug_superlm: Callable[..., AutoDistilModel],
    loss: str,
    weights: str,
) -> None:
    model, ids = debug_superlm(), streams[0].spread(5)
    options = replace(OPTIONS, loss=loss, subnet_weights=weights)
    drawn = subnets_of_step(model, options, step=0)
    losses = gradients_of_step(model, teacher, ids, drawn, options, CPU)
    expected = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    shares = [each / 4.5 for each in (3, 0.5, 0.5, 0.5)] if weights else [0.25] * 4
    for (subnet, _, _), share, found in zip(drawn, shares, losses, strict=True):
        alone = debug_superlm()
        value = relation_loss(
            alone.last_projections(ids, subnet=subnet), relation_target(teacher.projections(ids), None, 4, loss)
        )
        value.backward()
        assert found == pytest.approx(value.item(), rel=1e-6)
        for name, parameter in alone.named_parameters():
            if parameter.grad is not None:
                expected[name] += share * parameter.grad
    for name, parameter in model.named_parameters():
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert_close(found, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.02), ("fp16", 0.005)])
def test_training_in_half_precision_follows_fp32(
    teacher: Teacher, streams: tuple[Blocks, Blocks], tmp_path: Path, precision: str, tolerance: float
) -> None:
    # In float16 the first steps may be left out while the scale of the loss is found: ask for a few more.
    options, sample = replace(WITH_HIDDEN, steps=12, lr=1e-4), streams[0].spread(4)
    for name in ("fp32", precision):
        device, folder = Device("cpu", name), tmp_path / name
        distill(_superlm(teacher), teacher, streams[0], options, folder, device, sample_ids=sample)
    for column in (LOSS, HIDDEN_LOSS):
        exact, rough = ([float(row[column]) for row in _rows(tmp_path / name)[1:]] for name in ("fp32", precision))
        assert rough == pytest.approx(exact, rel=tolerance)
        assert rough != exact


def test_float16_leaves_out_steps_that_overflow_and_lowers_the_scale(
    teacher: Teacher, streams: tuple[Blocks, Blocks], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    monkeypatch.setattr(Device, "scaler", lambda self: scaler)
    model = _superlm(teacher)
    before = _weights(model)
    options = replace(OPTIONS, steps=3)
    distill(model, teacher, streams[0], options, tmp_path / "run", Device("cpu", "fp16"))
    assert scaler.get_scale() == 2.0**37
    assert _same(_weights(model), before)


def _killed_at(place: str, count: int, *arguments: object) -> None:
    """Train in this process and kill it at the `count`-th call of the function at that place."""
    module, _, name = place.rpartition(".")
    owner = pkgutil.resolve_name(module)
    function, calls = getattr(owner, name), itertools.count(1)

    def fatal(*args: Any, **kwargs: Any) -> Any:
        if next(calls) < count:
            return function(*args, **kwargs)
        if name == "save_file":  # half a file is on the disk
            function(*args, **kwargs)
            os.truncate(args[1], Path(args[1]).stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    checkpoints.Checkpoints.due = True  # type: ignore[assignment,method-assign] # the clock would save now and then
    setattr(owner, name, fatal)
    _train_in_a_process(*arguments)


def test_a_run_killed_in_steps_and_in_saves_ends_as_one_never_stopped(
    teacher_folder: Callable[..., Path], toy_text: Callable[..., Path], tmp_path: Path
) -> None:
    options = replace(WITH_HIDDEN, steps=20)
    arguments = (str(teacher_folder()), str(toy_text()))
    _train_in_a_process(*arguments, str(tmp_path / "whole"), options)
    folder = tmp_path / "killed"
    for place, count in (
        ("torch.Tensor.backward", 6),
        ("torch.optim.AdamW.step", 2),
        ("autodistil_search.distillation.checkpoints.save_file", 1),
        ("autodistil_search.distillation.checkpoints.save_file", 2),
        ("autodistil_search.base.files.os.replace", 1),  # of the weights, not yet of what is beside them
        ("autodistil_search.base.files.os.replace", 2),
        ("autodistil_search.distillation.checkpoints._remove", 1),
        ("autodistil_search.distillation.training_log.csv.writer", 3),
        ("autodistil_search.superlm.model.AutoDistilModel.save_pretrained", 1),
    ):
        process = SERVER.Process(target=_killed_at, args=(place, count, *arguments, str(folder), options))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, place
        assert not (folder / "trainer_state.json").exists()
    _train_in_a_process(*arguments, str(folder), options)
    finished = [load_file(each / "model.safetensors") for each in (tmp_path / "whole", folder)]
    assert _same(*finished)
    assert _rows(folder) == _rows(tmp_path / "whole")
    assert list(folder.glob(".checkpoint-*")) == []  # halves of what was killed


class Terminating(Reporter):
    """Sends SIGTERM to its own process once a number of steps are done, and keeps what it is told."""

    def __init__(self, steps: int) -> None:
        self._left, self.lines = steps, list[str]()

    @contextmanager
    def bar(self, title: str, unit: str, total: int | None) -> Iterator[Bar]:
        yield self

    def advance(self, note: str = "") -> None:
        self.advance_by(1)

    def advance_by(self, units: int) -> None:
        self._left -= units
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    def skip(self, units: int) -> None:
        pass

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.mark.parametrize("stream", [False, True])
def test_sigterm_saves_the_step_in_flight_and_the_same_run_goes_on(
    teacher: Teacher, toy_text: Callable[..., Path], tmp_path: Path, stream: bool
) -> None:
    path = str(toy_text())

    def text() -> TrainingText:
        if stream:
            return open_stream([path], teacher.tokenizer, 16)[0]
        return load_corpus([path], teacher.tokenizer, tmp_path / "cache").blocks(16)[0]

    whole = _weights(distill(_superlm(teacher), teacher, text(), OPTIONS, tmp_path / "whole", CPU))
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated, match=r"^stopped after step 3, which is saved; the same command continues"):
        distill(_superlm(teacher), teacher, text(), OPTIONS, tmp_path / "run", CPU, Terminating(2))
    assert signal.getsignal(signal.SIGTERM) == handler
    assert (tmp_path / "run" / "checkpoint-00000003.safetensors").exists()
    reporter = Terminating(-1)
    resumed = distill(_superlm(teacher), teacher, text(), OPTIONS, tmp_path / "run", CPU, reporter)
    assert _same(_weights(resumed), whole)
    assert _rows(tmp_path / "run") == _rows(tmp_path / "whole")
    distill(_superlm(teacher), teacher, text(), OPTIONS, tmp_path / "run", CPU, reporter)
    assert reporter.lines == [f"resuming training from step 3 of {OPTIONS.steps}", "training: already finished"]


def test_sigterm_in_the_last_step_stops_once_the_model_is_saved(
    teacher: Teacher, streams: tuple[Blocks, Blocks], tmp_path: Path
) -> None:
    last = Terminating(OPTIONS.steps - 1)
    with pytest.raises(Terminated, match="stopped; the model is finished and saved"):  # and another is not begun
        distill(_superlm(teacher), teacher, streams[0], OPTIONS, tmp_path / "run", CPU, last)
    assert (tmp_path / "run" / "trainer_state.json").exists()


def test_a_student_that_learns_layer_by_layer_goes_on_with_its_maps_where_it_was_stopped(
    teacher: Teacher, streams: tuple[Blocks, Blocks], tmp_path: Path
) -> None:
    """The maps to the teacher's width train, too: without theirs, a run that goes on would end elsewhere."""

    def begin() -> tuple[AutoDistilModel, LayerTransfer]:
        with seeded(0):
            student = AutoDistilModel(teacher.student_config(load_space("debug").smallest))
            return student, LayerTransfer(student, teacher.model, "mse")

    def train(folder: str, reporter: Reporter | None = None) -> tuple[Weights, Weights]:
        student, transfer = begin()
        distill(student, teacher, streams[0], OPTIONS, tmp_path / folder, CPU, reporter, transfer=transfer)
        return _weights(student), _weights(transfer)

    whole = train("whole")
    with pytest.raises(Terminated):
        train("run", Terminating(2))
    resumed = train("run")
    assert all(_same(a, b) for a, b in zip(resumed, whole, strict=True))
    assert not any(_same(a, _weights(b)) for a, b in zip(whole, begin(), strict=True))
    with pytest.raises(InputError, match="holds a run with other settings: transfer was"):
        distill(begin()[0], teacher, streams[0], OPTIONS, tmp_path / "whole", CPU)


class EverySecondStep:
    """Measures every second step, and counts."""

    def __init__(self) -> None:
        self.measured = 0

    def due(self, step: int, steps: int) -> bool:
        return step % 2 == 0

    def measure(self, model: AutoDistilModel) -> list[tuple[str, Subnet, float]]:
        self.measured += 1
        return [("largest", model.space.largest, 1.5), ("smallest", model.space.smallest, 2.5)]


def test_held_out_losses_are_logged_and_change_nothing(
    teacher: Teacher, streams: tuple[Blocks, Blocks], train: Callable[..., Weights], tmp_path: Path
) -> None:
    watch, model = EverySecondStep(), _superlm(teacher)
    distill(model, teacher, streams[0], OPTIONS, tmp_path / "watched", CPU, held_out=watch)
    assert _same(_weights(model), train("plain"))
    with (tmp_path / "watched" / "held_out.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    largest, smallest = ["3", "48", "2.0", "4", "1.500000"], ["2", "32", "1.5", "2", "2.500000"]
    assert rows[1:] == [
        [step, role, *sizes] for step in ("2", "4") for role, sizes in (("largest", largest), ("smallest", smallest))
    ]


def test_trackers_get_losses_rate_and_pace(teacher: Teacher, streams: tuple[Blocks, Blocks], tmp_path: Path) -> None:
    logged: dict[str, dict[int, float]] = {}

    def callback(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            logged.setdefault(name, {})[step] = value

    part = Tracking(callback=callback).part("toy", tmp_path / "tensorboard")
    held_out = EverySecondStep()
    distill(_superlm(teacher), teacher, streams[0], OPTIONS, tmp_path, CPU, held_out=held_out, part=part)
    assert set(logged) == {
        "toy/held_out_loss/largest",
        "toy/held_out_loss/smallest",
        "toy/learning_rate",
        "toy/loss/largest",
        "toy/loss/random",
        "toy/tokens_per_second",
    }
    expected = {int(row[0]): float(row[LOSS]) for row in _rows(tmp_path)[1:] if row[1] == "largest"}
    assert logged["toy/loss/largest"] == pytest.approx(expected, abs=1e-6)  # six digits behind the point
    assert logged["toy/held_out_loss/smallest"] == {2: 2.5, 4: 2.5}


def _train_by_ticks(*arguments: object) -> None:
    """Train in this process, on a clock that goes by one second whenever it is read; each save leaves a file."""
    clock, save = itertools.count(), checkpoints.Checkpoints.save

    def counted(self: checkpoints.Checkpoints, step: int, *rest: Any) -> None:
        save(self, step, *rest)
        (self.folder / f"saved-{step}").touch()

    checkpoints.time = SimpleNamespace(monotonic=lambda: next(clock))  # type: ignore[assignment]
    checkpoints.Checkpoints.save = counted  # type: ignore[method-assign,assignment]
    _train_in_a_process(*arguments)


def test_two_processes_save_when_the_one_that_writes_is_due(
    teacher_folder: Callable[..., Path], toy_text: Callable[..., Path], tmp_path: Path
) -> None:
    options, text = replace(OPTIONS, steps=19), toy_text()
    in_processes(2, tmp_path, _train_by_ticks, str(teacher_folder()), str(text), str(tmp_path / "run"), options)
    saved = {int(path.name.removeprefix("saved-")) for path in (tmp_path / "run").glob("saved-*")}
    # A save takes a second and so does a step: 5 % of the time is up after 20. A window of 5 steps may end in one, too.
    assert 0 in saved <= {0, 5, 10, 15}


class Counted(Processes):
    """One process that counts how often it would have to wait for others."""

    def __init__(self) -> None:
        self.reductions = 0

    def add_up(self, gradients: Any, numbers: Any) -> None:
        self.reductions += 1


def test_gradients_are_reduced_once_a_step_however_many_subnets_and_parts_it_has(
    teacher: Teacher, streams: tuple[Blocks, Blocks], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Counted()
    monkeypatch.setattr("autodistil_search.base.device.processes", lambda on_cpu: group)
    distill(_superlm(teacher), teacher, streams[0], OPTIONS, tmp_path, CPU, execution=Execution(accumulate=2))
    assert group.reductions == OPTIONS.steps


@pytest.mark.filterwarnings("ignore")  # torch warns itself while it traces
def test_compiled_layers_train_to_the_same_losses_and_are_plain_again_afterwards(
    teacher: Teacher, streams: tuple[Blocks, Blocks], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, compile_layer = [], torch.nn.Module.compile

    def without_code_generation(layer: torch.nn.Module, **options: Any) -> None:
        compiled.append(options)
        compile_layer(layer, backend="aot_eager", **options)  # seconds, not minutes

    monkeypatch.setattr(torch.nn.Module, "compile", without_code_generation)
    for name, execution in (("plain", Execution()), ("compiled", Execution(compile=True))):
        model, options = _superlm(teacher), replace(WITH_HIDDEN, steps=1, sampling="largest")
        sample, folder = streams[0].spread(4), tmp_path / name
        distill(model, teacher, streams[0], options, folder, CPU, execution=execution, sample_ids=sample)
    assert compiled == [{"dynamic": True}] * 3
    assert all(layer._compiled_call_impl is None for layer in model.layers)
    plain, found = ([row[LOSS:] for row in _rows(tmp_path / name)[1:]] for name in ("plain", "compiled"))
    assert [list(map(float, row)) for row in found] == [pytest.approx(list(map(float, row)), abs=1e-4) for row in plain]
