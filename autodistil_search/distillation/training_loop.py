"""Relation distillation of a SuperLM (several subnets a step) or of one student (only itself).

Everything a step does follows from the seed and the step's number: which subnets, which blocks, which learning
rate. So a run that is killed and resumed from its last checkpoint ends with the weights of one never stopped, and
processes that train together need to exchange gradients only.
"""

from __future__ import annotations

import math
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from autodistil_search.base.device import Device
from autodistil_search.base.distributed import Processes, processes
from autodistil_search.base.errors import InputError, Terminated
from autodistil_search.base.files import clear_leftovers, locked
from autodistil_search.base.progress import Bar, Reporter
from autodistil_search.base.weighted_names import parse_relations
from autodistil_search.distillation.checkpoints import Checkpoints, finish, load_finished
from autodistil_search.distillation.collapse import MOST_RETURNS, CollapseError, LossWatch, Return
from autodistil_search.distillation.layer_losses import LastHidden, LayerTransfer
from autodistil_search.distillation.learning_rate import MAX_GRADIENT_NORM, WEIGHT_DECAY, set_learning_rate
from autodistil_search.distillation.sampling import Drawn, draw
from autodistil_search.distillation.training_log import TrainingLog
from autodistil_search.spaces.search_space import Subnet
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.superlm.relation_loss import RelationTarget, relation_loss, relation_target, uniform_loss
from autodistil_search.teachers.teacher import Teacher
from autodistil_search.text.token_store import TrainingText

_WINDOWS_BETWEEN_GOOD = 2
"""Windows of `LossWatch` between the checkpoints that a training can go back to."""


@dataclass(frozen=True)
class TrainOptions:
    """What the weights depend on, besides model, teacher and text.

    batch_size: blocks in a step, over all processes. loss: one of `relations.LOSSES`; relations: see
    `weights.parse_relations`. sampling, random_subnets, subnet_weights: see `sampling.draw`. in_place: the share of
    a subnet's loss that is taken against the relations of the largest subnet instead of the teacher's (in-place
    distillation, Yu and Huang, arXiv 1903.05134); it needs a sampling that trains the largest. hidden: the weight of
    `transfer.LastHidden` beside the relation loss; 0 trains by relations alone.
    """

    steps: int
    batch_size: int
    lr: float
    seed: int
    loss: str = "kl"
    sampling: str = "largest-random"
    relation_heads: int = 16
    relations: str = "qq,kk,vv"
    random_subnets: int | None = None
    subnet_weights: str = ""
    in_place: float = 0.0
    hidden: float = 0.0


@dataclass(frozen=True)
class Execution:
    """How a training runs; its result stays the same but for rounding.

    accumulate: parts that each process divides its rows of a batch into, one in memory at a time. compile: whether
    layers run through `torch.compile`. keep: checkpoints kept. tensorboard: whether to log for TensorBoard, too.
    """

    accumulate: int = 1
    compile: bool = False
    keep: int = 2
    tensorboard: bool = False


class HeldOut(Protocol):
    """Measures a model in training on text that is not trained on."""

    def due(self, step: int, steps: int) -> bool:
        """Whether to measure after `step` of `steps` steps."""

    def measure(self, model: AutoDistilModel) -> Sequence[tuple[str, Subnet, float]]:
        """Role, sizes and loss of some subnets."""


def distill(
    model: AutoDistilModel,
    teacher: Teacher,
    text: TrainingText,
    options: TrainOptions,
    folder: Path,
    device: Device,
    reporter: Reporter | None = None,
    title: str = "training",
    execution: Execution | None = None,
    held_out: HeldOut | None = None,
    transfer: LayerTransfer | None = None,
    sample_ids: Tensor | None = None,
    start_notes: Sequence[str] = (),
) -> AutoDistilModel:
    """Train `model` in place to the end, going on from the last good checkpoint in `folder` if there is one.

    A SuperLM trains the subnets of its space that `options.sampling` draws for each step; a student trains itself. With
    `transfer`, which must be between `model` and `teacher`, a student learns layer by layer and not by relations: its
    loss is the sum of `transfer.LAYER_TERMS` (TinyBERT's general distillation, arXiv 1909.10351, equations 7 to 9).
    sample_ids: `(N, T)` token ids of training text, on which the map of `options.hidden` starts; needed if it is not 0.
    start_notes: kept with the finished model.
    `folder` holds checkpoints while it trains, `training.csv` and `held_out.csv`, and at the end the model and
    `trainer_state.json`. A model that was finished before is read from there. Launched as several processes, each
    works on its rows of every batch, and the first alone writes.

    Raises:
        InputError: if what is in `folder` was made with other options.
        FloatingPointError: if the loss or a weight is not finite; names step and subnet. The last checkpoint is kept.
        CollapseError: if training lost what it had learnt, and again at a half and a quarter of the learning rate.
        Terminated: after SIGTERM, when all is saved.
    """
    execution, reporter = execution or Execution(), reporter or Reporter()
    group, settings = processes(device.type == "cpu"), asdict(options)
    if transfer is not None:
        device.place(transfer)
        settings |= {"transfer": transfer.description}
    device.place(model)
    model.train()
    with _held(folder, group), reporter.bar(title, "steps", options.steps) as bar, _sigterm() as asked_to_stop:
        if group.from_main(group.main and load_finished(folder, model, settings)):
            group.copy_from_main(model.state_dict().values())
            bar.skip(options.steps)
            model.eval()
            return model
        last_hidden = last_hidden_of(model, teacher, options, device) if transfer is None else None
        if last_hidden is not None:
            assert sample_ids is not None
            last_hidden.fit(model, teacher, sample_ids)
        training = _Training(model, teacher, text, options, execution, device, group, transfer, last_hidden)
        checkpoints = Checkpoints(
            folder, training.learner, training.optimizer, training.scaler, settings, execution.keep
        )
        loop = _Loop(training, checkpoints, bar, reporter, title, held_out, asked_to_stop)
        loop.run()
        if group.main:
            finish(folder, model, options.steps, settings, training.watch.returns, start_notes)
        if loop.stop or (group.count == 1 and asked_to_stop()):
            raise Terminated("stopped; the model is finished and saved, and the same command goes on")
    model.eval()
    return model


def last_hidden_of(
    model: AutoDistilModel, teacher: Teacher, options: TrainOptions, device: Device
) -> LastHidden | None:
    """The loss of the last hidden states, with a map that is not fitted yet; None if they are not trained."""
    if not options.hidden:
        return None
    found = LastHidden(model.config.hidden_size, teacher.subnet.hidden_size)
    device.place(found)
    return found


@dataclass
class _Loop:
    """The steps of a training, from its last checkpoint to its end.

    stop: whether some process was asked to stop by the last step.
    """

    training: _Training
    checkpoints: Checkpoints
    bar: Bar
    reporter: Reporter
    title: str
    held_out: HeldOut | None
    asked_to_stop: Callable[[], bool]
    stop: bool = False

    def run(self) -> None:
        """Take all steps that are left, again from the last good checkpoint where training collapsed."""
        training = self.training
        first: int | None = training.go_on_from(self.checkpoints)
        self.bar.skip(first or 0)
        if first == 0:
            training.save(self.checkpoints, 0, good=True)
        with _compiled(training.model) if training.execution.compile else nullcontext():
            while first is not None:
                with self._log(first) as log:
                    first = self._steps_from(first, log)

    def _log(self, first: int) -> AbstractContextManager[TrainingLog | None]:
        """Open the log on the process that writes, for the steps after `first`."""
        if not self.training.group.main:
            return nullcontext()
        return TrainingLog(self.checkpoints.folder, first, self.training.execution.tensorboard)

    def _steps_from(self, first: int, log: TrainingLog | None) -> int | None:
        """Take the steps after `first`; returns the step to begin from again after a collapse, None at the end."""
        training, steps = self.training, self.training.options.steps
        for step in range(first, steps):
            drawn, losses, (self.stop, save) = training.step(step, self._flags)
            if log is not None:
                self.bar.advance(log.write(step + 1, drawn, losses, training.tokens_in_a_step, training.lr))
                if self.held_out is not None and self.held_out.due(step + 1, steps):
                    log.write_held_out(step + 1, self.held_out.measure(training.model))
            verdict = training.watch.see(_watched_loss(drawn, losses))
            if verdict == "collapsed":
                return self._go_back(step + 1)
            good = verdict == "good" and training.watch.windows % _WINDOWS_BETWEEN_GOOD == 1
            if save or self.stop or good:
                training.save(self.checkpoints, step + 1, good)
            if self.stop and step + 1 < steps:
                raise Terminated(f"stopped after step {step + 1}, which is saved; the same command goes on")
        return None

    def _flags(self) -> tuple[bool, bool]:
        """Whether this process was asked to stop, and whether saving is due.

        The main process alone saves and knows how long that takes: on the others saving would always be due.
        """
        return self.asked_to_stop(), self.training.group.main and self.checkpoints.due

    def _go_back(self, step: int) -> int:
        """Restore the last good checkpoint for half the learning rate, and say so; returns its step.

        Raises:
            CollapseError: if training went back often enough before.
        """
        training = self.training
        mean, best, returns = cast(float, training.watch.mean), cast(float, training.watch.best), training.watch.returns
        lr = training.options.lr * training.watch.factor
        if len(returns) == MOST_RETURNS:
            raise CollapseError(
                f"{self.title} collapsed at step {step} for the {MOST_RETURNS + 1}rd time, at a peak learning rate of "
                f"{lr:g}: its mean loss is {mean:.3g}, at best {best:.3g} before. The last good checkpoint is kept. "
                f"Try an --lr below {lr:g}, in another --out"
            )
        to = training.go_on_from(self.checkpoints, go_back=True)
        collapse = Return(step, to, lr / 2, mean, best)
        training.watch.returns = [*returns, collapse]
        training.save(self.checkpoints, to, good=True)
        self.bar.skip(to - step)
        if training.group.main:
            self.reporter.say(f"{self.title} {collapse}")
        return to


@dataclass
class _Training:
    """A model in training: all that a step needs, on this process."""

    model: AutoDistilModel
    teacher: Teacher
    text: TrainingText
    options: TrainOptions
    execution: Execution
    device: Device
    group: Processes
    transfer: LayerTransfer | None = None
    last_hidden: LastHidden | None = None

    def __post_init__(self) -> None:
        options, parts = self.options, self.execution.accumulate * self.group.count
        if options.batch_size < parts:
            raise InputError(
                f"--batch-size {options.batch_size} for {self.group.count} processes with --accumulate "
                f"{self.execution.accumulate}; allowed: at least one block for each part of a step, {parts} or more"
            )
        beside = self.transfer or self.last_hidden
        self.learner = self.model if beside is None else nn.ModuleList([self.model, beside])
        self.optimizer = torch.optim.AdamW(
            self.learner.parameters(), lr=options.lr, weight_decay=WEIGHT_DECAY, fused=True
        )
        self.scaler = self.device.scaler()
        self.tokens_in_a_step = 0
        self.watch = LossWatch.of(options.steps)

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, step: int, flags: Callable[[], Sequence[bool]]) -> tuple[list[Drawn], list[float], list[bool]]:
        """Take one step; returns its subnets, their losses, and which of two `flags` are set on any process by now.

        Losses are those of `train_step`.
        """
        drawn = subnets_of_step(self.model, self.options, step)
        own = self._gradients(step, drawn)
        *losses, first, second = self.group.add_up(self.learner.parameters(), [*own, *map(float, flags())])
        check_finite(losses[: len(drawn)], drawn, step)
        if of_hidden := losses[len(drawn) :]:
            check_finite(of_hidden, drawn, step, "loss of hidden states")
        set_learning_rate(self.optimizer, self.options.lr * self.watch.factor, step, self.options.steps)
        self._update(drawn, step)
        return drawn, losses, [first > 0, second > 0]

    def _gradients(self, step: int, drawn: Sequence[Drawn]) -> list[float]:
        """The part of the step's gradients and losses that is this process's."""
        size = self.options.batch_size
        rows = self.text.rows(step, size, self.options.seed, self.group.share(size))
        self.tokens_in_a_step = size * rows.shape[1]
        losses: list[float] = []
        for part in rows.tensor_split(self.execution.accumulate):
            share, ids = len(part) / size, part.to(self.device.name)
            if self.transfer is not None:
                found = [self._layer_step(self.transfer, ids, share)]
            else:
                found = train_step(
                    self.model,
                    self.teacher,
                    ids,
                    drawn,
                    self.options,
                    self.device,
                    share,
                    self.scaler,
                    self.last_hidden,
                    self._note_loss_of_nothing if self.watch.nothing is None else None,
                )
            losses = [loss + share * more for loss, more in zip(losses or [0.0] * len(found), found, strict=True)]
        return losses

    def _note_loss_of_nothing(self, target: RelationTarget) -> None:
        """Keep the loss of a model that knows nothing, as it is on the main process's part of the step."""
        self.watch.nothing = self.group.from_main(uniform_loss(target) if self.group.main else None)

    def _layer_step(self, transfer: LayerTransfer, input_ids: Tensor, share: float) -> float:
        """Add up the gradients of `transfer`'s loss on `input_ids` `(B, T)`; returns the loss."""
        mask = torch.ones_like(input_ids)  # blocks of text have no padding
        with self.device.autocast(), transfer.watching() as (mine, theirs):
            with torch.no_grad():
                self.teacher.model(input_ids=input_ids)
            self.model(input_ids)
            loss = torch.stack(transfer(mine, theirs, mask)).sum()
        self.scaler.scale(loss * share).backward()
        return loss.item()

    def _update(self, drawn: Sequence[Drawn], step: int) -> None:
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.learner.parameters(), MAX_GRADIENT_NORM).item()
        if not self.scaler.is_enabled() or self.scaler.get_scale() < 1:
            # In float16 such a step is left out and the scale lowered; below 1 the fault is not the scale's.
            check_finite([norm], drawn[:1], step, "norm of the gradients")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def save(self, checkpoints: Checkpoints, step: int, good: bool = False) -> None:
        """Save the state after `step` steps; good: as one to go back to."""
        positions = self.group.gather(self.text.state())
        if self.group.main:
            checkpoints.save(step, positions, self.watch.to_dict(), good)

    def go_on_from(self, checkpoints: Checkpoints, go_back: bool = False) -> int:
        """Restore the last checkpoint, or the last good one, on every process; returns how many steps were done."""
        self.optimizer.state.clear()
        restored = (*checkpoints.restore(go_back), checkpoints.watch) if self.group.main else None
        step, positions, watch = self.group.from_main(restored)
        if positions:
            self.text.restore(positions[self.group.rank % len(positions)])
        if watch is not None:
            self.watch = LossWatch.from_dict(watch)
        self._copy_from_main()
        return int(step)

    def _copy_from_main(self) -> None:
        if self.group.count == 1:
            return
        self.group.copy_from_main(self.learner.state_dict().values())
        names = dict(self.learner.named_parameters())
        state = self.optimizer.state
        begun = self.group.from_main([name for name, parameter in names.items() if state.get(parameter)])
        for name in begun:
            parameter = names[name]
            if not state.get(parameter):
                moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
                state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}
            self.group.copy_from_main(state[parameter].values())
        self.scaler.load_state_dict(self.group.from_main(self.scaler.state_dict()))


@contextmanager
def _compiled(model: AutoDistilModel) -> Iterator[None]:
    """Run the layers through `torch.compile` inside, with sizes as symbols (dynamic shapes).

    A layer is compiled once for each combination of dimensions that are at their largest or below: at most eight times.
    """
    layers = list(model.layers)
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None


def train_step(
    model: AutoDistilModel,
    teacher: Teacher,
    input_ids: Tensor,
    drawn: Sequence[Drawn],
    options: TrainOptions,
    device: Device,
    share: float = 1.0,
    scaler: torch.amp.GradScaler | None = None,
    last_hidden: LastHidden | None = None,
    see_target: Callable[[RelationTarget], None] | None = None,
) -> list[float]:
    """Add up the gradients of the weighted losses of the `drawn` subnets on one batch `(B, T)`.

    share: of the step's batch that this batch is. scaler: scales what gradients are computed of, if it is enabled.
    last_hidden: what the term of weight `options.hidden` is computed by; None for none. see_target: given the
    teacher's relations.
    Returns each subnet's relation loss against the teacher; after those, with `last_hidden`, each one's loss by that.
    """
    losses, of_hidden = [], []
    relations = parse_relations(options.relations)

    def target_of(projections: Sequence[Tensor]) -> RelationTarget:
        return relation_target(projections, None, options.relation_heads, options.loss, relations)

    hidden: Tensor | None = None
    with device.autocast():
        if last_hidden is None:
            target = target_of(teacher.projections(input_ids))
        else:
            found, hidden = teacher.last_layer(input_ids)
            target = target_of(found)
    if see_target is not None:
        see_target(target)
    second: RelationTarget | None = None
    with model.shared_words(input_ids) as words:
        for subnet, role, weight in drawn:
            with device.autocast():
                if last_hidden is None:
                    projections = model.last_projections(input_ids, subnet=subnet, words=words)
                else:
                    projections, mine = model.last_layer(input_ids, subnet, words)
            loss = relation_loss(projections, target)
            losses.append(loss.item())
            if second is not None:
                loss = (1 - options.in_place) * loss + options.in_place * relation_loss(projections, second)
            elif options.in_place and role == "largest":
                second = target_of([each.detach() for each in projections])
            if last_hidden is not None:
                more = last_hidden(mine, hidden)
                of_hidden.append(more.item())
                loss = loss + options.hidden * more
            loss = loss * (weight * share)
            (loss if scaler is None else scaler.scale(loss)).backward()
    return [*losses, *of_hidden]


def subnets_of_step(model: AutoDistilModel, options: TrainOptions, step: int) -> list[Drawn]:
    """What that step trains; the same on every process and after every restart."""
    if model.config.search_space is None:
        return [Drawn(model.config.subnet, "student", 1.0)]
    rng = random.Random(f"{options.seed}-{step}")
    return draw(model.space, options.sampling, options.random_subnets, options.subnet_weights, rng)


def _watched_loss(drawn: Sequence[Drawn], losses: Sequence[float]) -> float:
    """Return the loss of the largest subnet, which loses first what it had learnt, or the mean of random ones."""
    whole = [loss for subnet, loss in zip(drawn, losses, strict=False) if subnet.role in ("largest", "student")]
    return fmean(whole or losses[: len(drawn)])


def check_finite(values: Sequence[float], drawn: Sequence[Drawn], step: int, what: str = "loss") -> None:
    """Raises FloatingPointError, naming step and subnet, if a value is not finite."""
    for value, each in zip(values, drawn, strict=True):
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the {what} is {value} at step {step + 1} for subnet {each.subnet}; the last checkpoint is kept. "
                "Try a lower --lr, in another --out"
            )


@contextmanager
def _held(folder: Path, group: Processes) -> Iterator[None]:
    """Keep other runs out of `folder`, and remove what a killed one left half-written; one process holds it for all."""
    if not group.main:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", folder, None):
        clear_leftovers(folder, of_models=True)
        yield


@contextmanager
def _sigterm() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM came: inside, it no longer kills. Only the main thread may listen; elsewhere it is as ever."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
