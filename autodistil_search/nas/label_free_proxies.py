"""Proxies that need no labels: comparisons of a student with its teacher on held-out text."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from autodistil_search.base.device import Device
from autodistil_search.base.errors import InputError
from autodistil_search.base.weighted_names import Weights
from autodistil_search.distillation.layer_losses import share_left
from autodistil_search.nas.objectives import HIDDEN_LOSS
from autodistil_search.nas.proxies import ProxyKind
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.superlm.relation_loss import DEFAULT_RELATIONS, relation_loss, relation_target, uniform_loss
from autodistil_search.teachers.teacher import Teacher

BLOCKS_AT_ONCE = 16

_HIDDEN_PARTS = 8
"""Number of parts of the held-out blocks; each part is measured by a linear map fitted to the others."""


class RelationProxy:
    """Relation loss on held-out text: the label-free proxy of AutoDistil's agnostic search. Lower is better.

    The teacher runs once, in the constructor. Its relations are kept for the scores of all subnets.

    Args:
        teacher: Teacher whose relations the students must match.
        held_out: Token ids `(N, T)` of text that was not trained on.
        relation_heads: Number of relation heads.
        loss: One of `relation_loss.LOSSES`.
        device: Device and precision to run on.
        relations: Relations to compare, with weights.
    """

    def __init__(
        self,
        teacher: Teacher,
        held_out: Tensor,
        relation_heads: int,
        loss: str,
        device: Device,
        relations: Weights = DEFAULT_RELATIONS,
    ) -> None:
        self._device = device
        self._batches = [batch.to(device.name) for batch in held_out.split(BLOCKS_AT_ONCE)]
        with torch.no_grad(), device.autocast():
            self._targets = [
                relation_target(teacher.projections(batch), None, relation_heads, loss, relations)
                for batch in self._batches
            ]
        self.blocks = len(held_out)
        self._relation_heads = relation_heads

    @torch.no_grad()
    def score(self, model: AutoDistilModel, subnet: Subnet | None = None) -> float:
        """Return the loss of `subnet` of `model`, or of the whole model.

        Raises:
            FloatingPointError: if the loss is not finite.
        """
        losses = []
        for batch, target in zip(self._batches, self._targets, strict=True):
            with self._device.autocast():
                projections = model.last_projections(batch, subnet=subnet)
            losses.append(relation_loss(projections, target))
        sizes = map(len, self._batches)
        measured: list[float] = torch.stack(losses).tolist()  # one wait for the device in all
        total = sum(loss * size for loss, size in zip(measured, sizes, strict=True))
        if not math.isfinite(total):
            raise FloatingPointError(f"the held-out loss of subnet {subnet or model.config.subnet} is {total}")
        return max(total / self.blocks, 0.0)  # rounding in float32 can put a perfect student slightly below zero

    @property
    def description(self) -> str:
        """Return a description of the measurement, for the reader of a report."""
        return (
            f"{self.blocks} held-out blocks of {self._batches[0].shape[1]} tokens, {self._relation_heads} relation "
            f"heads; a student that relates all tokens alike scores {self.reference:.4g}"
        )

    @property
    def reference(self) -> float:
        """Return the loss of a student that relates every token to all others alike."""
        losses = [uniform_loss(target) * len(batch) for batch, target in zip(self._batches, self._targets, strict=True)]
        return sum(losses) / self.blocks


class HiddenProxy:
    """Loss of the last hidden states on held-out text, without labels. Lower is better.

    The loss measures the student's output, which the relation loss does not, and gives all heads equal weight. Hidden
    states are compared by `layer_losses.share_left`, so that students of any width have comparable losses.

    Args:
        teacher: Teacher whose hidden states the students should predict.
        held_out: Token ids `(N, T)` of text that was not trained on; at least two blocks.
        device: Device and precision to run on.

    Raises:
        InputError: for fewer than two blocks.
    """

    reference = 1.0

    def __init__(self, teacher: Teacher, held_out: Tensor, device: Device) -> None:
        if len(held_out) < 2:
            raise InputError(
                f"the hidden-state loss on {len(held_out)} held-out block; allowed: two or more, which take more text"
            )
        self._device = device
        self._parts = [part.to(device.name) for part in held_out.tensor_split(min(len(held_out), _HIDDEN_PARTS))]
        with device.autocast():
            self._teacher_states = [teacher.last_layer(part)[1].float() for part in self._parts]
        self.blocks = len(held_out)

    @torch.no_grad()
    def score(self, model: AutoDistilModel, subnet: Subnet | None = None) -> float:
        """Return the loss of `subnet` of `model`, or of the whole model.

        Raises:
            FloatingPointError: if the loss is not finite.
        """
        with self._device.autocast():
            states = [model(part, subnet=subnet).last_hidden_state.float() for part in self._parts]
        loss = share_left(list(zip(states, self._teacher_states, strict=True)))
        if not math.isfinite(loss):
            raise FloatingPointError(f"the held-out loss of subnet {subnet or model.config.subnet} is {loss}")
        return loss

    @property
    def description(self) -> str:
        """Return a description of the measurement, for the reader of a report."""
        return (
            f"{self.blocks} held-out blocks of {self._parts[0].shape[1]} tokens: what a linear map of a student's last "
            f"hidden states lacks of the teacher's, by least squares on other parts of {len(self._parts)}; a student "
            "that tells nothing scores 1"
        )


HIDDEN_KIND = ProxyKind(HIDDEN_LOSS, HiddenProxy)
"""Proxy of `--proxy hidden`."""
