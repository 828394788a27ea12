"""One training step of a model: its subnets, their losses, the gradients and the update."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from autodistil_search.base.device import Device
from autodistil_search.base.distributed import Processes
from autodistil_search.distillation.collapse import LossWatch
from autodistil_search.distillation.cuda_graphs import SubnetGraphs, SubnetInputs
from autodistil_search.distillation.layer_losses import LastHidden, LayerTransfer
from autodistil_search.distillation.learning_rate import MAX_GRADIENT_NORM, WEIGHT_DECAY, set_learning_rate
from autodistil_search.distillation.options import Execution, TrainOptions
from autodistil_search.distillation.sampling import Drawn, draw
from autodistil_search.distillation.teacher_batches import Batch, Targets
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.superlm.relation_loss import RelationTarget, relation_loss, relation_target, uniform_loss
from autodistil_search.superlm.step_weights import StepWeights
from autodistil_search.teachers.teacher import Teacher


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
    """Model in training on this process, with its optimizer.

    A step is `begin`, then `learn` for each part of the batch, then `update`.

    Args:
        model: Model in training, on the device.
        options: Settings on which the weights depend.
        execution: Settings on which only speed and memory depend.
        device: Device and precision to run on, and the processes that train together.
        last_hidden: Loss of the last hidden states; None for none.
        transfer: Losses of layers in place of relations; None for relations.
    """

    model: AutoDistilModel
    options: TrainOptions
    execution: Execution
    device: Device
    last_hidden: LastHidden | None = None
    transfer: LayerTransfer | None = None

    def __post_init__(self) -> None:
        maps = self.transfer or self.last_hidden
        self.learner = self.model if maps is None else nn.ModuleList([self.model, maps])
        self.optimizer = torch.optim.AdamW(
            self.learner.parameters(), lr=self.options.lr, weight_decay=WEIGHT_DECAY, fused=True
        )
        self.scaler = self.device.scaler()
        self.watch = LossWatch.of(self.options.steps)
        # Compiled layers, and hooks on layers, need the parameters themselves; autocast then casts them.
        plain = self.transfer is not None or self.execution.compile
        further = () if maps is None else maps.parameters()
        self._weights = None if plain else StepWeights(self.model, self.device.dtype, further)
        self._passes = SubnetPasses(self.model, self.options, self.device, self._weights, self.scaler, self.last_hidden)
        self._graphs = None
        if self.execution.cuda_graphs and self._weights is not None:
            self._graphs = SubnetGraphs(self._weights)
        self.drawn: Sequence[Drawn] = ()
        self._losses: Tensor | None = None

    @property
    def group(self) -> Processes:
        """Return the processes that train together."""
        return self.device.processes

    @property
    def lr(self) -> float:
        """Return the learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def begin(self, drawn: Sequence[Drawn]) -> None:
        """Begin a step of those subnets: cast the weights."""
        self.drawn, self._losses = drawn, None
        if self._weights is not None:
            self._weights.begin()

    def learn(self, batch: Batch) -> None:
        """Add up the gradients of the step on a part of its batch."""
        if self.transfer is not None:
            losses = self._layer_step(self.transfer, batch)
        else:
            before_last = self._reduce_early if batch.last and self._graphs is None else None
            targets = self._seen(batch.targets)
            losses = train_step(
                self._passes, batch.input_ids, targets, self.drawn, batch.share, before_last, self._graphs
            )
        losses = batch.share * losses
        self._losses = losses if self._losses is None else self._losses + losses

    def _seen(self, targets: Targets) -> Targets:
        """Record the loss of an uninformed model, measured on the main process's part of the first step."""
        if self.watch.nothing is None:
            own = uniform_loss(targets.relations) if self.group.main else None
            self.watch.nothing = self.group.from_main(own)
        return targets

    def _layer_step(self, transfer: LayerTransfer, batch: Batch) -> Tensor:
        """Add up the gradients of `transfer`'s loss on a part of a batch; returns the loss, `(1,)`."""
        mask = torch.ones_like(batch.input_ids)  # blocks of text have no padding
        with self.device.autocast(), transfer.watching_student() as student_states:
            self.model(batch.input_ids)
            loss = torch.stack(transfer(student_states, batch.layer_states, mask)).sum()
        self.scaler.scale(loss * batch.share).backward()
        return loss.detach()[None]

    def _reduce_early(self) -> None:
        """Let the last backward pass of the step reduce the gradients of each layer as soon as they are complete."""
        if self._weights is not None and self.group.count > 1:
            self._weights.when_complete(self.group.begin_sum)

    def reduce(self, flags: Sequence[bool]) -> Tensor:
        """Sum the gradients of the step over all processes; returns its losses and the flags, summed alike."""
        if self._weights is not None:
            gradients = self._weights.hand_over()
        else:
            gradients = [parameter.grad for parameter in self.learner.parameters() if parameter.grad is not None]
        assert self._losses is not None
        numbers = torch.cat([self._losses, *(self._losses.new_full((1,), float(flag)) for flag in flags)])
        self.group.add_up(gradients, numbers)
        return numbers

    def update(self, step: int, flags: Sequence[bool]) -> tuple[list[float], list[bool]]:
        """End a step: update the weights; returns the losses of its subnets, and the flags.

        flags: flags of this process. A returned flag is True if it is set on any process.

        Losses are those of `train_step`. They are read from the device together with the flags and the norm of the
        gradients, because each reading waits for the device.

        Raises:
            FloatingPointError: if a loss or the norm of the gradients is not finite; names step and subnet.
        """
        drawn, numbers = self.drawn, self.reduce(flags)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.learner.parameters(), MAX_GRADIENT_NORM)
        *read, norm_read = torch.cat([numbers, norm[None]]).tolist()
        read_losses, read_flags = read[: len(read) - len(flags)], read[len(read) - len(flags) :]
        check_finite(read_losses, drawn, step)
        if not math.isfinite(norm_read) and (not self.scaler.is_enabled() or self.scaler.get_scale() < 1):
            # In float16 the scaler skips a step with infinite gradients and lowers the scale. Below a scale of 1, the
            # scale is not the cause.
            raise not_finite("norm of the gradients", norm_read, drawn[0], step)
        set_learning_rate(self.optimizer, self.options.lr * self.watch.factor, step, self.options.steps)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return read_losses, [flag > 0 for flag in read_flags]

    def copy_from_main(self) -> None:
        """Overwrite weights and optimizer with those of the main process."""
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


@dataclass(frozen=True)
class SubnetPasses:
    """Passes of subnets, forward and backward, that add up the gradients of their losses.

    Args:
        model: SuperLM or student in training.
        options: Settings of the losses.
        device: Device and precision to run on.
        weights: Weights of the step; None runs the model's own under autocast.
        scaler: Gradient scaler; None for none.
        last_hidden: Loss of the last hidden states, with weight `options.hidden`; None for none.
    """

    model: AutoDistilModel
    options: TrainOptions
    device: Device
    weights: StepWeights | None = None
    scaler: torch.amp.GradScaler | None = None
    last_hidden: LastHidden | None = None

    def run(self, inputs: SubnetInputs, entry: Drawn, share: float, of_largest: list[RelationTarget]) -> Tensor:
        """Add up the gradients of one subnet; returns its losses against the teacher, relations first.

        share: share of these sequences in the batch of the step.
        of_largest: relations of the largest subnet, once it has run, for in-place distillation.
        """
        input_ids, words, targets = inputs
        with self.device.autocast() if self.weights is None else self.weights.in_use():
            if self.last_hidden is None:
                projections = self.model.last_projections(input_ids, subnet=entry.subnet, words=words)
            else:
                projections, hidden = self.model.last_layer(input_ids, entry.subnet, words)
        loss = relation_loss(projections, targets.relations)
        losses, in_place = [loss.detach()], self.options.in_place
        if of_largest:
            loss = (1 - in_place) * loss + in_place * relation_loss(projections, of_largest[0])
        elif in_place and entry.role == "largest":
            of_largest.append(_relations_of(projections, targets.relations))
        if self.last_hidden is not None:
            more = self.last_hidden(hidden, targets.hidden)
            losses.append(more.detach())
            loss = loss + self.options.hidden * more
        loss = loss * (entry.weight * share)
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return torch.stack(losses)


def train_step(
    passes: SubnetPasses,
    input_ids: Tensor,
    targets: Targets,
    drawn: Sequence[Drawn],
    share: float = 1.0,
    before_last: Callable[[], None] | None = None,
    graphs: SubnetGraphs | None = None,
) -> Tensor:
    """Add up the gradients of the weighted losses of the `drawn` subnets on one batch.

    Args:
        passes: Passes of the model's subnets.
        input_ids: `(B, T)` token ids.
        targets: Outputs of the teacher on them.
        drawn: Subnets of the step, with their weights.
        share: Share of this batch in the batch of the step.
        before_last: Function that is called before the last subnet runs.
        graphs: Recorded passes; None runs all passes.

    Returns the relation loss of each subnet against the teacher, then the hidden-state loss of each subnet if it is
    trained. They stay on the device, so that the host does not wait for it.
    """
    losses = []
    of_largest: list[RelationTarget] = []
    word_sums = None if passes.weights is None else passes.weights.word_sums
    with passes.model.shared_words(input_ids, word_sums) as words:
        inputs = SubnetInputs(input_ids, words, targets)
        if graphs is not None:
            inputs = graphs.static(inputs)
        for entry in drawn:
            if before_last is not None and entry is drawn[-1]:
                before_last()
            run = partial(passes.run, inputs, entry, share, of_largest)
            losses.append(run() if graphs is None else graphs.run((entry, share, input_ids.shape), run))
        words.grad = inputs.words.grad
    return torch.stack(losses, dim=1).flatten()


def _relations_of(projections: Sequence[Tensor], like: RelationTarget) -> RelationTarget:
    """Return the relations of a student's projections as the target of other students."""
    constant = [projection.detach() for projection in projections]
    return relation_target(constant, None, like.relation_heads, like.loss, like.relations)


def subnets_of_step(model: AutoDistilModel, options: TrainOptions, step: int) -> list[Drawn]:
    """Return the subnets that step `step` trains. They are the same on every process and after every restart."""
    if model.config.search_space is None:
        return [Drawn(model.config.subnet, "student", 1.0)]
    rng = random.Random(f"{options.seed}-{step}")
    return draw(model.space, options.sampling, options.random_subnets, options.subnet_weights, rng)


def check_finite(losses: Sequence[float], drawn: Sequence[Drawn], step: int) -> None:
    """Raise FloatingPointError, naming step and subnet, if one of the `losses` of `train_step` is not finite."""
    for place, loss in enumerate(losses):
        if not math.isfinite(loss):
            what = "loss" if place < len(drawn) else "loss of hidden states"
            raise not_finite(what, loss, drawn[place % len(drawn)], step)


def not_finite(what: str, value: float, entry: Drawn, step: int) -> FloatingPointError:
    """Return the error for a value that is not finite."""
    return FloatingPointError(
        f"the {what} is {value} at step {step + 1} for subnet {entry.subnet}; the last checkpoint is kept. "
        "Try a lower --lr, in another --out"
    )


@contextmanager
def compiled(model: AutoDistilModel) -> Iterator[None]:
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
