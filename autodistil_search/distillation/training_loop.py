"""Relation distillation of a SuperLM (several subnets a step) or of one student (only itself).

Everything a step does follows from the seed and the step's number: which subnets, which blocks, which learning
rate. So a run that is killed and resumed from its last checkpoint ends with the weights of one never stopped, and
processes that train together need to exchange gradients only.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Protocol, cast

from torch import Tensor

from autodistil_search.base.device import Device
from autodistil_search.base.distributed import Processes
from autodistil_search.base.errors import Terminated
from autodistil_search.base.files import clear_leftovers, locked
from autodistil_search.base.progress import Bar, Reporter
from autodistil_search.distillation.checkpoints import Checkpoints, finish, load_finished
from autodistil_search.distillation.collapse import MOST_RETURNS, CollapseError, Return
from autodistil_search.distillation.layer_losses import LayerTransfer
from autodistil_search.distillation.sampling import Drawn
from autodistil_search.distillation.training_log import TrainingLog
from autodistil_search.distillation.training_step import Execution, ModelInTraining, TrainOptions, last_hidden_of
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.teachers.teacher import Teacher
from autodistil_search.text.blocks import TrainingText

_WINDOWS_BETWEEN_GOOD = 2
"""Windows of `LossWatch` between the checkpoints that a training can go back to."""


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
    group, settings = device.processes, asdict(options)
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
        training = ModelInTraining(model, teacher, text, options, execution, device, group, transfer, last_hidden)
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


@dataclass
class _Loop:
    """The steps of a training, from its last checkpoint to its end.

    stop: whether some process was asked to stop by the last step.
    """

    training: ModelInTraining
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
                    log.write_held_out(step + 1, self._measured(self.held_out, step + 1))
            verdict = training.watch.see(_watched_loss(drawn, losses))
            if verdict == "collapsed":
                return self._go_back(step + 1)
            good = verdict == "good" and training.watch.windows % _WINDOWS_BETWEEN_GOOD == 1
            if save or self.stop or good:
                training.save(self.checkpoints, step + 1, good)
            if self.stop and step + 1 < steps:
                raise Terminated(f"stopped after step {step + 1}, which is saved; the same command goes on")
        return None

    def _measured(self, held_out: HeldOut, step: int) -> Sequence[tuple[str, Subnet, float]]:
        """Return the held-out measurements after `step` steps.

        Raises:
            FloatingPointError: if a loss is not finite.
        """
        try:
            return held_out.measure(self.training.model)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{error} after step {step}; the last checkpoint is kept. Try a lower --lr, in another --out"
            ) from None

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


def _watched_loss(drawn: Sequence[Drawn], losses: Sequence[float]) -> float:
    """Return the loss of the largest subnet, which loses first what it had learnt, or the mean of random ones."""
    whole = [loss for subnet, loss in zip(drawn, losses, strict=False) if subnet.role in ("largest", "student")]
    return fmean(whole or losses[: len(drawn)])


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
