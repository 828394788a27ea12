"""Batches of a training with the outputs of the teacher, computed once for all models that train on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import torch
from torch import Tensor

from autodistil_search.base.device import Device
from autodistil_search.base.errors import InputError
from autodistil_search.base.weighted_names import parse_relations
from autodistil_search.distillation.layer_losses import States, Watched
from autodistil_search.distillation.options import Execution, TrainOptions
from autodistil_search.superlm.relation_loss import RelationTarget, relation_target
from autodistil_search.teachers.teacher import Teacher
from autodistil_search.text.blocks import TrainingText
from autodistil_search.text.prefetch import PrefetchedRows
from autodistil_search.text.sources import State


class Targets(NamedTuple):
    """Outputs of the teacher on some sequences.

    relations: target of the relation loss. hidden: hidden states `(B, T, H)`; None if they are not distilled.
    """

    relations: RelationTarget
    hidden: Tensor | None


def targets_of(teacher: Teacher, input_ids: Tensor, options: TrainOptions) -> Targets:
    """Return the teacher's outputs on `input_ids` `(B, T)`, in the precision of its weights."""
    hidden: Tensor | None = None
    if options.hidden:
        projections, hidden = teacher.last_layer(input_ids)
    else:
        projections = teacher.projections(input_ids)
    relations = parse_relations(options.relations)
    return Targets(relation_target(projections, None, options.relation_heads, options.loss, relations), hidden)


@dataclass(frozen=True)
class Batch:
    """Part of a step's batch on this process.

    Attributes:
        input_ids: `(n, T)` token ids on the device.
        share: Share of these rows in the batch of all processes.
        last: True for the last part of a step.
    """

    input_ids: Tensor
    share: float
    last: bool
    _teacher: Teacher
    _options: TrainOptions

    @cached_property
    def targets(self) -> Targets:
        """Return the teacher's outputs, computed at the first call."""
        return targets_of(self._teacher, self.input_ids, self._options)

    @cached_property
    def layer_states(self) -> States:
        """Return the states of the teacher's layers, computed at the first call in the precision of its context."""
        with torch.no_grad(), Watched(self._teacher.model).states() as states:
            self._teacher.model(input_ids=self.input_ids)
        return states


class TeacherBatches:
    """Batches of all steps, in the parts in which this process computes them.

    Args:
        teacher: Teacher, on the device.
        text: Training text. No one else may read it until the end of the context.
        options: Options of the models that train on the batches; they agree in all that concerns the batches.
        execution: Number of parts.
        device: Device and precision to run on, and the processes that train together.

    Use it as a context manager, which ends the thread that reads ahead.

    Raises:
        InputError: if the batch has fewer blocks than parts over all processes.
    """

    def __init__(
        self, teacher: Teacher, text: TrainingText, options: TrainOptions, execution: Execution, device: Device
    ) -> None:
        group = device.processes
        parts = execution.accumulate * group.count
        if options.batch_size < parts:
            raise InputError(
                f"--batch-size {options.batch_size} for {group.count} processes with --accumulate "
                f"{execution.accumulate}; allowed: at least one block for each part of a step, {parts} or more"
            )
        self._teacher = teacher
        self._options, self._parts, self._device = options, execution.accumulate, device
        size = options.batch_size
        self._pinned = device.type not in ("cpu", "mps")  # MPS has no pinned memory
        self._rows = PrefetchedRows(text, size, options.seed, group.share(size), options.steps, self._pinned)
        self.tokens_in_a_step = 0

    def of_step(self, step: int) -> Iterator[Batch]:
        """Yield the parts of the batch of a step on this process.

        Raises:
            InputError: for text that cannot be read.
        """
        size, rows = self._options.batch_size, self._rows.rows(step)
        self.tokens_in_a_step = size * rows.shape[1]
        parts = rows.to(self._device.name, non_blocking=self._pinned).tensor_split(self._parts)
        for part in parts:
            yield Batch(part, len(part) / size, part is parts[-1], self._teacher, self._options)

    def state(self) -> State:
        """Return the state of the text before the next step."""
        return self._rows.state()

    def restore(self, state: State) -> None:
        """Continue from the position of a `state()` in the text."""
        self._rows.restore(state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()
