"""Training loop of the distillation of SuperLMs (several subnets a step) or of one student.

The seed and the number of a step determine its subnets, its blocks and its learning rate. So a run that is killed and
resumed from its last checkpoint ends with the weights of an uninterrupted run. Models that train together share each
batch and the teacher's outputs, and nothing else: each ends with the weights of a training of its own. Processes that
train together exchange only gradients.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol, Self, cast

from torch import Tensor

from autodistil_search.base.device import Device
from autodistil_search.base.distributed import Processes
from autodistil_search.base.errors import Terminated
from autodistil_search.base.files import clear_leftovers, locked
from autodistil_search.base.progress import Bar, Reporter
from autodistil_search.base.tracking import Part
from autodistil_search.distillation.checkpoints import Checkpoints, Course, finish, load_finished
from autodistil_search.distillation.collapse import MOST_RETURNS, CollapseError, LossWatch, Return
from autodistil_search.distillation.layer_losses import LayerTransfer
from autodistil_search.distillation.options import Execution, TrainOptions
from autodistil_search.distillation.sampling import Drawn
from autodistil_search.distillation.teacher_batches import TeacherBatches
from autodistil_search.distillation.training_log import TrainingLog
from autodistil_search.distillation.training_step import ModelInTraining, compiled, last_hidden_of, subnets_of_step
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.teachers.teacher import Teacher
from autodistil_search.text.blocks import TrainingText
from autodistil_search.text.sources import State

_WINDOWS_BETWEEN_GOOD = 2
"""Windows of `LossWatch` between the checkpoints to which a training can return."""


class HeldOut(Protocol):
    """Measurement of a model in training on held-out text."""

    def due(self, step: int, steps: int) -> bool:
        """Return True if a measurement is due after `step` of `steps` steps."""

    def measure(self, model: AutoDistilModel) -> Sequence[tuple[str, Subnet, float]]:
        """Return the role, sizes and loss of the measured subnets."""


@dataclass(frozen=True)
class Distillation:
    """Training of one model.

    Attributes:
        model: SuperLM or student, with its initial weights. A SuperLM trains the subnets that `options.sampling` draws
            for each step; a student trains only itself.
        options: Settings on which the weights depend.
        folder: Folder of the checkpoints, `training.csv` and `held_out.csv`; at the end also of the model and
            `trainer_state.json`. A model that is already finished is read from it.
        title: Name of the training in progress and messages.
        held_out: Measurement on held-out text.
        transfer: Losses of layers between the model and the teacher. A student then learns layer by layer and not by
            relations: its loss is the sum of `layer_losses.LAYER_TERMS` (TinyBERT's general distillation, arXiv
            1909.10351, equations 7 to 9).
        sample_ids: `(N, T)` token ids of training text, to which the map of `options.hidden` is first fitted; required
            if `options.hidden` is not 0.
        start_notes: Notes on the initial weights, kept with the finished model.
        final_loss: Held-out loss, measured once after the last step and kept with the finished model
            (`checkpoints.Course`); None for none. The maps of `transfer` still exist then.
        part: Part of the command whose trackers get the metrics, on the main process; None for no trackers.
    """

    model: AutoDistilModel
    options: TrainOptions
    folder: Path
    title: str = "training"
    held_out: HeldOut | None = None
    transfer: LayerTransfer | None = None
    sample_ids: Tensor | None = None
    start_notes: Sequence[str] = ()
    final_loss: Callable[[AutoDistilModel], float] | None = None
    part: Part | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings that are recorded with the weights."""
        recorded = asdict(self.options)
        return recorded if self.transfer is None else recorded | {"transfer": self.transfer.description}


def distill(
    model: AutoDistilModel,
    teacher: Teacher,
    text: TrainingText,
    options: TrainOptions,
    folder: Path,
    device: Device,
    reporter: Reporter | None = None,
    execution: Execution | None = None,
    **more: Any,
) -> AutoDistilModel:
    """Train one model as `distill_together` does, and return it.

    more: further fields of its `Distillation`.
    """
    distill_together([Distillation(model, options, folder, **more)], teacher, text, device, reporter, execution)
    return model


def distill_together(
    distillations: Sequence[Distillation],
    teacher: Teacher,
    text: TrainingText,
    device: Device,
    reporter: Reporter | None = None,
    execution: Execution | None = None,
) -> None:
    """Train models in place to the end, each from the last complete checkpoint in its folder if there is one.

    Models at the same step train on the same batch, for which the teacher runs once. A model that is behind, after a
    kill or a collapse, first catches up. If several processes train together, each of them trains on its rows of every
    batch, and only the first process writes.

    Args:
        distillations: Trainings of the models. Their options agree in all but the learning rate.
        teacher: Teacher that gives the targets.
        text: Training text.
        device: Device and precision to run on, and the processes that train together.
        reporter: Receiver of progress and messages.
        execution: Settings on which only the speed, the logs and the kept checkpoints depend.

    Raises:
        InputError: if the content of a folder was made with other options.
        FloatingPointError: if a loss or a weight is not finite; names step and subnet. The last checkpoint is kept. In
            one process, the other models are trained to the end before.
        CollapseError: if training collapsed, and again at a half and a quarter of the learning rate.
        Terminated: after SIGTERM, once everything is saved.
        ValueError: if the options differ in more than the learning rate.
    """
    if len({replace(distillation.options, lr=0.0) for distillation in distillations}) > 1:
        raise ValueError("models that train together differ in options other than the learning rate")
    execution, reporter = execution or Execution(), reporter or Reporter()
    group, loops = device.processes, []
    with ExitStack() as stack:
        asked_to_stop = stack.enter_context(_sigterm())
        for distillation in distillations:
            stack.enter_context(_locked_for_all(distillation.folder, group))
            bar = stack.enter_context(reporter.bar(distillation.title, "steps", distillation.options.steps))
            if _finished_before(distillation, device, bar):
                reporter.say(f"{distillation.title}: already finished")
            else:
                training = _in_training(distillation, teacher, execution, device)
                checkpoints = Checkpoints(
                    distillation.folder,
                    training.learner,
                    training.optimizer,
                    training.scaler,
                    distillation.settings,
                    execution.keep,
                    len(distillations),
                )
                loop = _Loop(distillation, training, checkpoints, bar, reporter)
                loops.append(stack.enter_context(loop))
        if loops:
            options = loops[0].distillation.options
            if device.precision != "fp32" and all(loop.training.transfer is None for loop in loops):
                teacher = teacher.cast(device)  # a transfer watches the layers of the given teacher
            batches = stack.enter_context(TeacherBatches(teacher, text, options, execution, device))
            _Loops(loops, batches, group, reporter, asked_to_stop).run()


def _finished_before(distillation: Distillation, device: Device, bar: Bar) -> bool:
    """Place the model on the device, and read it if it is already finished; returns True if it is."""
    model, group = distillation.model, device.processes
    device.place(model)
    model.train()
    finished = group.from_main(group.main and load_finished(distillation.folder, model, distillation.settings))
    if finished:
        group.copy_from_main(model.state_dict().values())
        bar.skip(distillation.options.steps)
        model.eval()
    return bool(finished)


def _in_training(distillation: Distillation, teacher: Teacher, execution: Execution, device: Device) -> ModelInTraining:
    """Return the model of `distillation` with its optimizer and the map of hidden states, at its initial weights."""
    model, options, transfer = distillation.model, distillation.options, distillation.transfer
    last_hidden = None
    if transfer is not None:
        device.place(transfer)
    elif (last_hidden := last_hidden_of(model, teacher, options, device)) is not None:
        assert distillation.sample_ids is not None
        last_hidden.fit(model, teacher, distillation.sample_ids)
    return ModelInTraining(model, options, execution, device, last_hidden, transfer)


@dataclass
class _Loop:
    """Training of one model, from its last checkpoint to its end.

    Attributes:
        done: Number of finished steps.
        save: True if the state after these steps should be saved.
        good: True if training may return to this state after a collapse.
        collapsed: True if the last step showed a collapse.
        saved: Number of steps of the last saved state.
    """

    distillation: Distillation
    training: ModelInTraining
    checkpoints: Checkpoints
    bar: Bar
    reporter: Reporter
    done: int = 0
    save: bool = False
    good: bool = False
    collapsed: bool = False
    saved: int | None = None
    _log: TrainingLog | None = None
    _open: ExitStack = field(default_factory=ExitStack)

    @property
    def steps(self) -> int:
        """Return the number of all steps."""
        return self.training.options.steps

    def __enter__(self) -> Self:
        if self.training.execution.compile:
            self._open.enter_context(compiled(self.training.model))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        self._close_log()

    def restore(self, go_back: bool = False) -> Sequence[State]:
        """Restore the last checkpoint on every process; returns the position of each in the text, none for step 0.

        go_back: True to restore the last good checkpoint.
        """
        training, group = self.training, self.training.group
        training.optimizer.state.clear()
        restored = (*self.checkpoints.restore(go_back), self.checkpoints.watch) if group.main else None
        positions: Sequence[State]
        self.done, positions, watch = group.from_main(restored)
        if watch is not None:
            training.watch = LossWatch.from_dict(watch)
        training.copy_from_main()
        self._close_log()
        if group.main:
            self._log = TrainingLog(self.checkpoints.folder, self.done, self.distillation.part)
        return positions

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()
        self._log = None

    def begin_step(self) -> None:
        """Begin the next step."""
        training = self.training
        training.begin(subnets_of_step(training.model, training.options, self.done))

    def end_step(self, tokens: int, stop: bool) -> bool:
        """Update the weights after the step's backward passes, and log the step; returns True if any process stops.

        tokens: number of tokens in the step. stop: True if this process was asked to stop.

        Only the main process saves and knows the time that saving takes; on other processes it would always be due.
        """
        training, held_out = self.training, self.distillation.held_out
        flags = stop, training.group.main and self.checkpoints.due
        losses, (stop, due) = training.update(self.done, flags)
        drawn = training.drawn
        self.done += 1
        if self._log is not None:
            self.bar.advance(self._log.write(self.done, drawn, losses, tokens, training.lr))
            if held_out is not None and held_out.due(self.done, self.steps):
                self._log.write_held_out(self.done, self._measured(held_out))
        verdict = training.watch.see(_watched_loss(drawn, losses))
        self.collapsed = verdict == "collapsed"
        self.good = verdict == "good" and training.watch.windows % _WINDOWS_BETWEEN_GOOD == 1
        self.save = due or stop or self.good
        return stop

    def _measured(self, held_out: HeldOut) -> Sequence[tuple[str, Subnet, float]]:
        """Return the held-out measurements.

        Raises:
            FloatingPointError: if a loss is not finite.
        """
        try:
            return held_out.measure(self.training.model)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{error} after step {self.done}; the last checkpoint is kept. Try a lower --lr, in another --out"
            ) from None

    def write(self, positions: Sequence[State]) -> None:
        """Save the state after the finished steps.

        positions: position of each process in the text.
        """
        if self.training.group.main:
            self.checkpoints.save(self.done, positions, self.training.watch.to_dict(), self.good)
        self.saved, self.save = self.done, False

    def go_back(self) -> Sequence[State]:
        """Restore the last good checkpoint, halve the learning rate, and report it; returns its positions in the text.

        Raises:
            CollapseError: if training has already returned `MOST_RETURNS` times.
        """
        training, step, title = self.training, self.done, self.distillation.title
        mean, best, returns = cast(float, training.watch.mean), cast(float, training.watch.best), training.watch.returns
        lr = training.options.lr * training.watch.factor
        if len(returns) == MOST_RETURNS:
            raise CollapseError(
                f"{title} collapsed at step {step} for the {MOST_RETURNS + 1}rd time, at a peak learning rate of "
                f"{lr:g}: its mean loss is {mean:.3g}, at best {best:.3g} before. The last good checkpoint is kept. "
                f"Try an --lr below {lr:g}, in another --out"
            )
        positions = self.restore(go_back=True)
        collapse = Return(step, self.done, lr / 2, mean, best)
        training.watch.returns = [*returns, collapse]
        self.good, self.collapsed = True, False
        self.write(positions)
        self.bar.skip(self.done - step)
        if training.group.main:
            self.reporter.warn(f"{title} {collapse}")
        return positions

    def finish(self) -> None:
        """Write the finished model."""
        distillation, model = self.distillation, self.training.model
        model.eval()
        if self.training.group.main:
            loss = None if distillation.final_loss is None else distillation.final_loss(model)
            course = Course(distillation.start_notes, self.training.watch.to_dict()["returns"], loss)
            finish(self.checkpoints.folder, model, self.steps, distillation.settings, course)


@dataclass
class _Loops:
    """Trainings that share the batches. A training leaves when it is finished or has failed."""

    loops: list[_Loop]
    batches: TeacherBatches
    group: Processes
    reporter: Reporter
    asked_to_stop: Callable[[], bool]
    _errors: list[FloatingPointError] = field(default_factory=list)

    def run(self) -> None:
        """Take all remaining steps of all trainings."""
        self._begin()
        self._leave_finished()
        stop = False
        while self.loops:
            step = min(loop.done for loop in self.loops)
            stop = self._step(step)
            self._leave_finished()
            if stop and self.loops:
                raise Terminated(f"stopped after step {step + 1}, which is saved; the same command continues")
        if self._errors:
            raise self._errors[0]
        if stop or (self.group.count == 1 and self.asked_to_stop()):
            raise Terminated("stopped; the model is finished and saved, and the same command continues")

    def _begin(self) -> None:
        """Restore all trainings, and the text where the one that is furthest behind stands."""
        positions = {loop.done: positions for loop in self.loops for positions in [loop.restore()]}
        self._continue_text(positions[min(positions)])
        for loop in self.loops:
            loop.bar.skip(loop.done)
            if loop.done == 0:
                loop.good = True
                self._write(loop)
            else:
                steps = loop.distillation.options.steps
                self.reporter.say(f"resuming {loop.distillation.title} from step {loop.done:,} of {steps:,}")

    def _step(self, step: int) -> bool:
        """Take a step of all trainings that stand there; returns True if a process was asked to stop."""
        together = [loop for loop in self.loops if loop.done == step]
        asked, stop = self.asked_to_stop(), False
        for loop in together:
            loop.begin_step()
        for batch in self.batches.of_step(step):
            for loop in together:
                loop.training.learn(batch)
        for loop in together:
            with self._on_its_own(loop):
                stop |= loop.end_step(self.batches.tokens_in_a_step, asked)
        collapsed = [loop for loop in self.loops if loop.collapsed]
        for loop in list(self.loops):  # one that fails leaves
            if not loop.collapsed and (loop.save or collapsed):
                with self._on_its_own(loop):
                    self._write(loop)
        self._go_back(collapsed)
        return stop

    def _go_back(self, collapsed: Sequence[_Loop]) -> None:
        """Return to the last good checkpoint of each collapsed training, and in the text to the earliest of them."""
        positions = {}
        for loop in collapsed:
            with self._on_its_own(loop):
                back = loop.go_back()  # sets `done`
                positions[loop.done] = back
        if positions:
            self._continue_text(positions[min(positions)])

    def _write(self, loop: _Loop) -> None:
        """Save a training; one that waits for others was saved when it began to wait."""
        positions = self.group.gather(self.batches.state())
        if loop.saved != loop.done:
            loop.write(positions)

    def _continue_text(self, positions: Sequence[State]) -> None:
        if positions:
            self.batches.restore(positions[self.group.rank % len(positions)])

    def _leave_finished(self) -> None:
        """Write the models of finished trainings, which leave."""
        for loop in [loop for loop in self.loops if loop.done == loop.steps]:
            with self._on_its_own(loop):
                loop.finish()
                self.loops.remove(loop)

    @contextmanager
    def _on_its_own(self, loop: _Loop) -> Iterator[None]:
        """Let a training that fails leave, so that the others go on; several processes end together."""
        try:
            yield
        except FloatingPointError as error:
            if self.group.count > 1:
                raise
            self._errors.append(error)
            self.loops.remove(loop)
            if self.loops:
                self.reporter.warn(str(error))


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
