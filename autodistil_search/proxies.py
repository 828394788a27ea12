"""Accuracy proxies: cheap measurements on a SuperLM that stand for what a subnet is worth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from autodistil_search.device import Device
from autodistil_search.model import AutoDistilModel
from autodistil_search.objectives import Objective
from autodistil_search.relations import DEFAULT_RELATIONS, relation_loss, relation_target, uniform_loss
from autodistil_search.space import Subnet
from autodistil_search.teacher import Teacher
from autodistil_search.weights import Weights

BLOCKS_AT_ONCE = 16

RELATION = "relation"
"""What `--proxy` calls the relation loss."""


class Proxy(Protocol):
    """Scores subnets of a SuperLM, and models as they are."""

    @property
    def reference(self) -> float:
        """A value that a model which has learnt nothing gets; the hypervolume is measured from it."""
        ...

    @property
    def description(self) -> str:
        """How it is measured, for the reader of a report."""
        ...

    def score(self, model: AutoDistilModel, subnet: Subnet | None = None) -> float:
        """What `subnet` of `model`, or the whole model, is worth, by the objective that the proxy has."""
        ...


@dataclass(frozen=True)
class ProxyKind:
    """What `--proxy` names: what it measures, and how one is made from teacher, held-out blocks `(N, T)` and device."""

    objective: Objective
    make: Callable[[Teacher, Tensor, Device], Proxy]


class RelationProxy:
    """The relation loss on held-out text: the label-free proxy of AutoDistil's agnostic search. Lower is better.

    The teacher runs once, here; its relations are kept for every subnet that is scored.

    Args:
        teacher: Whose relations the students must match.
        held_out: `(N, T)` token ids that were not trained on.
        relation_heads: Heads of the relations.
        loss: One of `relations.LOSSES`.
        device: Where to compute.
        relations: Of which relations, with weights.
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
        """The loss of `subnet` of `model`, or of the whole model.

        Raises:
            FloatingPointError: if it is not finite.
        """
        total = 0.0
        for batch, target in zip(self._batches, self._targets, strict=True):
            with self._device.autocast():
                projections = model.last_projections(batch, subnet=subnet)
            total += float(relation_loss(projections, target)) * len(batch)
        if not math.isfinite(total):
            raise FloatingPointError(f"the held-out loss of subnet {subnet or model.config.subnet} is {total}")
        return max(total / self.blocks, 0.0)  # float32 can leave a perfect student a hair below zero

    @property
    def description(self) -> str:
        """How it is measured, for the reader of a report."""
        return (
            f"{self.blocks} held-out blocks of {self._batches[0].shape[1]} tokens, {self._relation_heads} relation "
            f"heads; a student that relates all tokens alike scores {self.reference:.4g}"
        )

    @property
    def reference(self) -> float:
        """The loss of a student that relates every token to all others alike."""
        losses = [uniform_loss(target) * len(batch) for batch, target in zip(self._batches, self._targets, strict=True)]
        return sum(losses) / self.blocks
