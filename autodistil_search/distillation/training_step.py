"""One training step: its subnets, their losses, the gradients and the update."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autodistil_search.base.device import Device
from autodistil_search.base.distributed import Processes
from autodistil_search.base.errors import InputError
from autodistil_search.base.weighted_names import parse_relations
from autodistil_search.distillation.checkpoints import Checkpoints
from autodistil_search.distillation.collapse import LossWatch
from autodistil_search.distillation.layer_losses import LastHidden, LayerTransfer
from autodistil_search.distillation.learning_rate import MAX_GRADIENT_NORM, WEIGHT_DECAY, set_learning_rate
from autodistil_search.distillation.sampling import Drawn, draw
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.superlm.relation_loss import RelationTarget, relation_loss, relation_target, uniform_loss
from autodistil_search.teachers.teacher import Teacher
from autodistil_search.text.blocks import TrainingText


@dataclass(frozen=True)
class TrainOptions:
    """Settings on which the weights depend, besides model, teacher and text.

    steps: number of training steps.
    batch_size: blocks in a step, over all processes.
    lr: peak learning rate.
    seed: seed of subnets and blocks.
    loss: name of the relation loss, one of `relation_loss.LOSSES`.
    relations, relation_heads: relations in the loss (`weighted_names.parse_relations`) and their number of heads.
    sampling, random_subnets, subnet_weights: arguments of `sampling.draw`.
    in_place: share of a subnet's loss that is taken against the relations of the largest subnet instead of the
        teacher's (in-place distillation, Yu and Huang, arXiv 1903.05134). It requires a sampling that trains the
        largest subnet.
    hidden: weight of `layer_losses.LastHidden` besides the relation loss; 0 trains by relations alone.
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
    """Settings of a training on which its weights do not depend, except for rounding.

    accumulate: number of parts into which each process divides its rows of a batch; one part is in memory at a time.
    compile: True to run layers through `torch.compile`.
    keep: number of last checkpoints that are kept.
    tensorboard: True to write TensorBoard event files, too.
    """

    accumulate: int = 1
    compile: bool = False
    keep: int = 2
    tensorboard: bool = False


def last_hidden_of(
    model: AutoDistilModel, teacher: Teacher, options: TrainOptions, device: Device
) -> LastHidden | None:
    """Return the loss of the last hidden states, with a map that is not yet fitted; None if they are not trained."""
    if not options.hidden:
        return None
    last_hidden = LastHidden(model.config.hidden_size, teacher.subnet.hidden_size)
    device.place(last_hidden)
    return last_hidden


@dataclass
class ModelInTraining:
    """Model in training on this process, with everything that a step needs.

    Raises:
        InputError: if the batch has fewer blocks than parts over all processes.
    """

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
        maps = self.transfer or self.last_hidden
        self.learner = self.model if maps is None else nn.ModuleList([self.model, maps])
        self.optimizer = torch.optim.AdamW(
            self.learner.parameters(), lr=options.lr, weight_decay=WEIGHT_DECAY, fused=True
        )
        self.scaler = self.device.scaler()
        self.tokens_in_a_step = 0
        self.watch = LossWatch.of(options.steps)

    @property
    def lr(self) -> float:
        """Return the learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, step: int, flags: Callable[[], Sequence[bool]]) -> tuple[list[Drawn], list[float], list[bool]]:
        """Take one step; returns its subnets, their losses, and two flags.

        flags: function that returns two flags of this process. A returned flag is True if it is set on any process.

        Losses are those of `train_step`.

        Raises:
            FloatingPointError: if a loss or the norm of the gradients is not finite; names step and subnet.
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
        """Add up this process's part of the step's gradients; returns its part of the losses."""
        size = self.options.batch_size
        rows = self.text.rows(step, size, self.options.seed, self.group.share(size))
        self.tokens_in_a_step = size * rows.shape[1]
        losses: list[float] = []
        for part in rows.tensor_split(self.execution.accumulate):
            share, ids = len(part) / size, part.to(self.device.name)
            if self.transfer is not None:
                part_losses = [self._layer_step(self.transfer, ids, share)]
            else:
                part_losses = train_step(
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
            losses = [
                loss + share * more for loss, more in zip(losses or [0.0] * len(part_losses), part_losses, strict=True)
            ]
        return losses

    def _note_loss_of_nothing(self, target: RelationTarget) -> None:
        """Record the loss of an uninformed model, measured on the main process's part of the step."""
        self.watch.nothing = self.group.from_main(uniform_loss(target) if self.group.main else None)

    def _layer_step(self, transfer: LayerTransfer, input_ids: Tensor, share: float) -> float:
        """Add up the gradients of `transfer`'s loss on `input_ids` `(B, T)`; returns the loss."""
        mask = torch.ones_like(input_ids)  # blocks of text have no padding
        with self.device.autocast(), transfer.watching() as (student_states, teacher_states):
            with torch.no_grad():
                self.teacher.model(input_ids=input_ids)
            self.model(input_ids)
            loss = torch.stack(transfer(student_states, teacher_states, mask)).sum()
        self.scaler.scale(loss * share).backward()
        return loss.item()

    def _update(self, drawn: Sequence[Drawn], step: int) -> None:
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.learner.parameters(), MAX_GRADIENT_NORM).item()
        if not self.scaler.is_enabled() or self.scaler.get_scale() < 1:
            # In float16 the scaler skips a step with infinite gradients and lowers the scale. Below a scale of 1, the
            # scale is not the cause.
            check_finite([norm], drawn[:1], step, "norm of the gradients")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def save(self, checkpoints: Checkpoints, step: int, good: bool = False) -> None:
        """Save the state after `step` steps.

        good: True if training may return to this state after a collapse.
        """
        positions = self.group.gather(self.text.state())
        if self.group.main:
            checkpoints.save(step, positions, self.watch.to_dict(), good)

    def go_on_from(self, checkpoints: Checkpoints, go_back: bool = False) -> int:
        """Restore the last checkpoint on every process; returns its number of steps.

        go_back: True to restore the last good checkpoint.
        """
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
    """Add up the gradients of the weighted losses of the `drawn` subnets on one batch.

    Args:
        model: SuperLM or student in training.
        teacher: Teacher that gives the targets.
        input_ids: `(B, T)` token ids.
        drawn: Subnets of the step, with their weights.
        options: Settings of the losses.
        device: Device and precision to run on.
        share: Share of this batch in the batch of the step.
        scaler: Gradient scaler; None for none.
        last_hidden: Loss of the last hidden states, with weight `options.hidden`; None for none.
        see_target: Function that is called with the teacher's relations.

    Returns the relation loss of each subnet against the teacher, and with `last_hidden` then the hidden-state loss of
    each subnet.
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
            teacher_projections, hidden = teacher.last_layer(input_ids)
            target = target_of(teacher_projections)
    if see_target is not None:
        see_target(target)
    second: RelationTarget | None = None
    with model.shared_words(input_ids) as words:
        for subnet, role, weight in drawn:
            with device.autocast():
                if last_hidden is None:
                    projections = model.last_projections(input_ids, subnet=subnet, words=words)
                else:
                    projections, student_hidden = model.last_layer(input_ids, subnet, words)
            loss = relation_loss(projections, target)
            losses.append(loss.item())
            if second is not None:
                loss = (1 - options.in_place) * loss + options.in_place * relation_loss(projections, second)
            elif options.in_place and role == "largest":
                second = target_of([projection.detach() for projection in projections])
            if last_hidden is not None:
                more = last_hidden(student_hidden, hidden)
                of_hidden.append(more.item())
                loss = loss + options.hidden * more
            loss = loss * (weight * share)
            (loss if scaler is None else scaler.scale(loss)).backward()
    return [*losses, *of_hidden]


def subnets_of_step(model: AutoDistilModel, options: TrainOptions, step: int) -> list[Drawn]:
    """Return the subnets that step `step` trains. They are the same on every process and after every restart."""
    if model.config.search_space is None:
        return [Drawn(model.config.subnet, "student", 1.0)]
    rng = random.Random(f"{options.seed}-{step}")
    return draw(model.space, options.sampling, options.random_subnets, options.subnet_weights, rng)


def check_finite(values: Sequence[float], drawn: Sequence[Drawn], step: int, what: str = "loss") -> None:
    """Raise FloatingPointError, naming step and subnet, if a value is not finite."""
    for value, entry in zip(values, drawn, strict=True):
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the {what} is {value} at step {step + 1} for subnet {entry.subnet}; the last checkpoint is kept. "
                "Try a lower --lr, in another --out"
            )
