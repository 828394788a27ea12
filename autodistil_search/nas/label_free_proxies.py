"""Proxies that need no labels: comparisons of a student with its teacher on held-out text."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autodistil_search.base.device import Device
from autodistil_search.base.errors import InputError
from autodistil_search.base.weighted_names import Weights, parse_relations
from autodistil_search.distillation.layer_losses import share_left
from autodistil_search.nas.kernel_alignment import linear_cka, linear_hsic
from autodistil_search.nas.objectives import (
    CKA,
    COMBINED,
    COMBINED_LOSS,
    HIDDEN,
    HIDDEN_LOSS,
    KERNEL_ALIGNMENT,
    RELATION,
    SENTENCE_SIMILARITY,
    SIMILARITY,
    Objective,
    proxy_objective,
)
from autodistil_search.nas.proxies import (
    RELATIONS,
    STATES,
    CheckedProxy,
    HeldOut,
    Proxy,
    ProxyKind,
    share_lacking,
)
from autodistil_search.nas.sentence_similarity import PASSAGES_PER_BLOCK, SentenceSimilarity
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


class _LastStatesProxy(ABC):
    """Comparison of a student's last hidden states with the teacher's, which runs once, in the constructor.

    Args:
        teacher: Teacher to compare with.
        parts: Token ids `(N, T)` of text that was not trained on, in the parts that run at once.
        device: Device and precision to run on.
    """

    _name = ""

    def __init__(self, teacher: Teacher, parts: Sequence[Tensor], device: Device) -> None:
        self._device = device
        self._parts = [part.to(device.name) for part in parts]
        with device.autocast():
            self._teacher_states = [teacher.last_layer(part)[1].float() for part in self._parts]
        self.blocks = sum(map(len, parts))

    @abstractmethod
    def _compare(self, states: Sequence[Tensor]) -> float:
        """Return the score of a student by its last hidden states, `(N, T, H)` of each part."""

    @torch.no_grad()
    def score(self, model: AutoDistilModel, subnet: Subnet | None = None) -> float:
        """Return the score of `subnet` of `model`, or of the whole model.

        Raises:
            FloatingPointError: if the score is not finite.
        """
        with self._device.autocast():
            states = [model(part, subnet=subnet).last_hidden_state.float() for part in self._parts]
        score = self._compare(states)
        if not math.isfinite(score):
            raise FloatingPointError(f"the {self._name} of subnet {subnet or model.config.subnet} is {score}")
        return score


class HiddenProxy(_LastStatesProxy):
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

    _name = "held-out loss"
    reference = 1.0

    def __init__(self, teacher: Teacher, held_out: Tensor, device: Device) -> None:
        if len(held_out) < 2:
            raise InputError(
                f"the hidden-state loss on {len(held_out)} held-out block; allowed: two or more, which take more text"
            )
        super().__init__(teacher, held_out.tensor_split(min(len(held_out), _HIDDEN_PARTS)), device)

    def _compare(self, states: Sequence[Tensor]) -> float:
        return share_left(list(zip(states, self._teacher_states, strict=True)))

    @property
    def description(self) -> str:
        """Return a description of the measurement, for the reader of a report."""
        return (
            f"{self.blocks} held-out blocks of {self._parts[0].shape[1]} tokens: what a linear map of a student's last "
            f"hidden states lacks of the teacher's, by least squares on other parts of {len(self._parts)}; a student "
            "that tells nothing scores 1"
        )


class SimilarityProxy:
    """Rank correlation of a student's sentence similarities with the teacher's; see `SentenceSimilarity`.

    A model that tells no pair of passages apart scores 0.

    Args:
        teacher: Teacher to agree with.
        held_out: Token ids `(N, T)` of text that was not trained on; a passage from each row.
        device: Device and precision to run on.

    Raises:
        InputError: for fewer than three passages, or if the teacher tells none of their pairs apart.
    """

    reference = 0.0

    def __init__(self, teacher: Teacher, held_out: Tensor, device: Device) -> None:
        if len(held_out) < 3:
            raise InputError(
                f"sentence similarities of {len(held_out)} held-out passages; allowed: three or more, which take more "
                "text"
            )
        self._similarity = SentenceSimilarity(teacher, held_out, device)
        if not self._similarity.tells_apart:
            raise InputError("the teacher tells no pair of held-out passages apart; allowed: a teacher that does")
        self._pooling = teacher.pooling.words

    def score(self, model: AutoDistilModel, subnet: Subnet | None = None) -> float:
        """Return the rank correlation of `subnet` of `model`, or of the whole model.

        Raises:
            FloatingPointError: if a hidden state is not finite.
        """
        similarities = self._similarity.similarities(model, subnet)
        if not np.isfinite(similarities).all():
            raise FloatingPointError(f"a hidden state of subnet {subnet or model.config.subnet} is not finite")
        correlation = self._similarity.agreement(similarities)
        return correlation if math.isfinite(correlation) else self.reference

    @property
    def description(self) -> str:
        """Return a description of the measurement, for the reader of a report."""
        similarity = self._similarity
        return (
            f"Spearman's rho between a student's and the teacher's cosines of sentence vectors ({self._pooling}), over "
            f"all pairs of {similarity.passages} held-out passages of {similarity.tokens} tokens; the mean of the "
            f"teacher's word vectors scores {similarity.of_word_vectors():.4g}"
        )


class AlignmentProxy(_LastStatesProxy):
    """Linear centred kernel alignment of a student's last hidden states with the teacher's; see `linear_cka`.

    The examples are the tokens of all held-out blocks. A model that gives all tokens the same states scores 0.

    Args:
        teacher: Teacher to align with.
        held_out: Token ids `(N, T)` of text that was not trained on.
        device: Device and precision to run on.
    """

    _name = "alignment"
    reference = 0.0

    def __init__(self, teacher: Teacher, held_out: Tensor, device: Device) -> None:
        super().__init__(teacher, held_out.split(BLOCKS_AT_ONCE), device)
        self._teacher_tokens = _tokens(self._teacher_states)
        self._of_teacher = linear_hsic(self._teacher_tokens, self._teacher_tokens)

    def _compare(self, states: Sequence[Tensor]) -> float:
        return linear_cka(_tokens(states), self._teacher_tokens, self._of_teacher)

    @property
    def description(self) -> str:
        """Return a description of the measurement, for the reader of a report."""
        return (
            f"linear centred kernel alignment of the last hidden states of {sum(map(len, self._teacher_tokens)):,} "
            f"tokens, {self.blocks} held-out blocks, by unbiased estimates; unrelated states score 0 on average"
        )


def _tokens(states: Sequence[Tensor]) -> list[Tensor]:
    """Return the states of all tokens, `(N T, H)` of each part."""
    return [part.flatten(0, 1) for part in states]


class CombinedProxy:
    """Mean of several proxies, each as a share of the distance from its ideal to its reference. Lower is better.

    A share is 0 for the teacher, and 1 for a model that has learnt nothing. The weights are equal and depend on no
    student.

    Args:
        parts: Proxies, each with its kind.
    """

    reference = 1.0

    def __init__(self, parts: Sequence[tuple[ProxyKind, Proxy]]) -> None:
        self._parts = parts

    def score(self, model: AutoDistilModel, subnet: Subnet | None = None) -> float:
        """Return the mean share of `subnet` of `model`, or of the whole model."""
        shares = [share_lacking(proxy.score(model, subnet), kind.ideal, proxy.reference) for kind, proxy in self._parts]
        return sum(shares) / len(shares)

    @property
    def description(self) -> str:
        """Return a description of the measurement, for the reader of a report."""
        parts = "; ".join(f"{kind.objective.name}: {proxy.description}" for kind, proxy in self._parts)
        return (
            f"mean of {len(self._parts)} measures, each as a share of the distance from its best value to that of a "
            f"model that has learnt nothing: {parts}"
        )


@dataclass(frozen=True)
class CombinedKind:
    """A proxy that combines others; see `CombinedProxy`. It is opened as a `ProxyKind` is."""

    objective: Objective
    parts: tuple[ProxyKind, ...]
    ideal: float = 0.0
    digest: str = ""
    notes: tuple[str, ...] = ()
    compares: str = RELATIONS

    def open(self, teacher: Teacher, held_out: HeldOut, blocks: int, device: Device) -> Proxy:
        """Return the proxy; see `ProxyKind.open`."""

        def make() -> CombinedProxy:
            return CombinedProxy([(part, part.open(teacher, held_out, blocks, device)) for part in self.parts])

        return CheckedProxy(self.objective, self.ideal, make)


AnyKind = ProxyKind | CombinedKind


def label_free_kinds(loss: str, relations: str, relation_heads: int) -> Mapping[str, AnyKind]:
    """Return the proxies that need no labels, by the names of `objectives.LABEL_FREE`.

    Args:
        loss: Loss of the relations, one of `relation_loss.LOSSES`.
        relations: Relations with weights; see `weighted_names.parse_relations`.
        relation_heads: Number of relation heads.
    """
    weights = parse_relations(relations)

    def make_relation(teacher: Teacher, held_out: Tensor, device: Device) -> RelationProxy:
        return RelationProxy(teacher, held_out, relation_heads, loss, device, weights)

    relation = ProxyKind(proxy_objective(loss, relations), make_relation, compares=RELATIONS)
    hidden = ProxyKind(HIDDEN_LOSS, HiddenProxy, compares=STATES)
    similarity = ProxyKind(
        SENTENCE_SIMILARITY, SimilarityProxy, 1.0, rows_per_block=PASSAGES_PER_BLOCK, compares=STATES
    )
    alignment = ProxyKind(KERNEL_ALIGNMENT, AlignmentProxy, 1.0, compares=STATES)
    combined = CombinedKind(COMBINED_LOSS, (relation, hidden, similarity))
    return {RELATION: relation, HIDDEN: hidden, SIMILARITY: similarity, CKA: alignment, COMBINED: combined}
