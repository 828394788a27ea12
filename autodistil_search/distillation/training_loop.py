"""Training loop of the distillation of a SuperLM (several subnets a step) or of one student.

The seed and the number of a step determine its subnets, its blocks and its learning rate. So a run that is killed and
resumed from its last checkpoint ends with the weights of an uninterrupted run. Processes that train together exchange
only gradients.
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
"""Windows of `LossWatch` between the checkpoints to which a training can return."""


class HeldOut(Protocol):
    """Measurement of a model in training on held-out text."""

    def due(self, step: int, steps: int) -> bool:
        """Return True if a measurement is due after `step` of `steps` steps."""

    def measure(self, model: AutoDistilModel) -> Sequence[tuple[str, Subnet, float]]:
        """Return the role, sizes and loss of the measured subnets."""


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
    """Train `model` in place to the end, from the last complete checkpoint in `folder` if there is one.

    A SuperLM trains the subnets that `options.sampling` draws for each step; a student trains only itself. A model that
    is already finished is read from `folder`. If several processes train together, each of them trains on its rows of
    every batch, and only the first process writes.

    Args:
        model: SuperLM or student, with its initial weights.
        teacher: Teacher that gives the targets.
        text: Training text.
        options: Settings on which the weights depend.
        folder: Folder of the checkpoints, `training.csv` and `held_out.csv`; at the end also of the model and
            `trainer_state.json`.
        device: Device and precision to run on, and the processes that train together.
        reporter: Receiver of progress and messages.
        title: Name of the training in progress and messages.
        execution: Settings on which only the speed, the logs and the kept checkpoints depend.
        held_out: Measurement on held-out text.
        transfer: Losses of layers between `model` and `teacher`. A student then learns layer by layer and not by
            relations: its loss is the sum of `layer_losses.LAYER_TERMS` (TinyBERT's general distillation, arXiv
            1909.10351, equations 7 to 9).
        sample_ids: `(N, T)` token ids of training text, to which the map of `options.hidden` is first fitted; required
            if `options.hidden` is not 0.
        start_notes: Notes on the initial weights, kept with the finished model.

    Raises:
        InputError: if the content of `folder` was made with other options.
        FloatingPointError: if the loss or a weight is not finite; names step and subnet. The last checkpoint is kept.
        CollapseError: if training collapsed, and again at a half and a quarter of the learning rate.
        Terminated: after SIGTERM, once everything is saved.
    """
    execution, reporter = execution or Execution(), reporter or Reporter()
    group, settings = device.processes, asdict(options)
    if transfer is not None:
        device.place(transfer)
        settings |= {"transfer": transfer.description}
    device.place(model)
    model.train()
    with (
        _locked_for_all(folder, group),
        reporter.bar(title, "steps", options.steps) as bar,
        _sigterm() as asked_to_stop,
    ):
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
            raise Terminated("stopped; the model is finished and saved, and the same command continues")
    model.eval()
    return model


@dataclass
class _Loop:
    """Steps of a training, from its last checkpoint to its end.

    stop: True if some process was asked to stop by the last step.
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
        """Take all remaining steps; after a collapse, take them again from the last good checkpoint."""
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
        """Open the log for the steps after `first` on the main process; other processes have none."""
        if not self.training.group.main:
            return nullcontext()
        return TrainingLog(self.checkpoints.folder, first, self.training.execution.tensorboard)

    def _steps_from(self, first: int, log: TrainingLog | None) -> int | None:
        """Take the steps after `first`; returns the step to continue from after a collapse, None at the end."""
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
                raise Terminated(f"stopped after step {step + 1}, which is saved; the same command continues")
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
        """Return two flags of this process: True if it was asked to stop, and True if saving is due.

        Only the main process saves and knows the time that saving takes; on other processes it would always be due.
        """
        return self.asked_to_stop(), self.training.group.main and self.checkpoints.due

    def _go_back(self, step: int) -> int:
        """Restore the last good checkpoint, halve the learning rate, and report it; returns the checkpoint's step.

        Raises:
            CollapseError: if training has already returned `MOST_RETURNS` times.
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
    """Run the layers through `torch.compile` inside the context, with symbolic sizes (dynamic shapes).

    A layer is compiled once for each combination of dimensions at or below their largest size: at most eight times.
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
    """Return the loss of the largest subnet, which collapses first, or else the mean loss of random subnets."""
    whole = [loss for subnet, loss in zip(drawn, losses, strict=False) if subnet.role in ("largest", "student")]
    return fmean(whole or losses[: len(drawn)])


@contextmanager
def _locked_for_all(folder: Path, group: Processes) -> Iterator[None]:
    """Lock `folder` against other runs, and remove partial files of a killed run.

    The main process holds the lock for all processes.
    """
    if not group.main:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", folder, None):
        clear_leftovers(folder, of_models=True)
        yield


@contextmanager
def _sigterm() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns True once SIGTERM was received; inside the context, SIGTERM does not kill.

    Only the main thread can handle signals; in other threads SIGTERM keeps its effect.
    """
    received = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield received.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        yield received.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
