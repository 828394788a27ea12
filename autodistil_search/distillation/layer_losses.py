"""Losses on the teacher's last hidden states, and on its layers, besides those on relations.

Hooks capture embeddings, hidden states, queries and keys of the layers while teacher and student run. They work for
all families of encoders. Letters: B sequences, T tokens, H hidden size, W width of queries and keys.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from autodistil_search.base.device import as_float64
from autodistil_search.base.errors import InputError
from autodistil_search.superlm.model import AutoDistilConfig, AutoDistilModel
from autodistil_search.superlm.relation_loss import relation_loss, relation_target
from autodistil_search.teachers.families import FAMILIES, Block, Family, find
from autodistil_search.teachers.teacher import Teacher

_STUDENT = Family(
    layers="layers",
    query="query",
    key="key",
    value="value",
    attention_output="attention_output",
    attention_norm="attention_norm",
    ffn_in="ffn_in",
    ffn_out="ffn_out",
    ffn_norm="ffn_norm",
    embedding_norm="embedding_norm",
)
"""Parts of an `AutoDistilModel`."""


_BLOCKS_AT_ONCE = 16
_RIDGE = 1e-6
"""Ridge: share of the mean variance that is added to the variance of each dimension. With it, least squares weigh
redundant dimensions equally."""

LAYER_TERMS = ("embeddings", "hidden", "attention")
"""Terms of the loss of `LayerTransfer`."""


@dataclass
class States:
    """States captured in one forward pass: `(B, T, H)` embeddings and layer outputs, `(B, T, W)` queries and keys."""

    embeddings: Tensor | None = None
    hidden: dict[int, Tensor] = field(default_factory=dict)
    queries: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)


class Watched:
    """Encoder whose states are captured while it runs.

    Args:
        encoder: Encoder of one of `FAMILIES`, or a student.

    Raises:
        InputError: for any other model.
    """

    def __init__(self, encoder: PreTrainedModel) -> None:
        kind = encoder.config.model_type
        family = _STUDENT if kind == AutoDistilConfig.model_type else FAMILIES.get(kind)
        if family is None:
            raise InputError(f"the layers of models of type {kind!r} are unknown; allowed: {', '.join(FAMILIES)}")
        self._family, self._layers = family, list(find(encoder, family.layers))
        self.layers = len(self._layers)
        self.hidden_size = int(encoder.config.hidden_size)
        self.heads = encoder.config.num_attention_heads

    @contextmanager
    def states(self) -> Iterator[States]:
        """Yield the states of the forward pass inside the context."""
        seen = States()
        handles = [self._layers[0].register_forward_pre_hook(_embeddings_of(seen), with_kwargs=True)]
        for i, layer in enumerate(self._layers):
            handles.append(layer.register_forward_hook(_keep(seen.hidden, i, Block(""))))
            for part, kept in (("query", seen.queries), ("key", seen.keys)):
                place = self._family.parts[part]
                handles.append(find(layer, place.path).register_forward_hook(_keep(kept, i, place)))
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()


def _embeddings_of(seen: States) -> Any:
    def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.embeddings = arguments[0] if arguments else named["hidden_states"]

    return hook


def _keep(kept: dict[int, Tensor], layer: int, place: Block) -> Any:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        whole = output[0] if isinstance(output, tuple) else output
        # Only the first call counts: DeBERTa then applies the same linear layers to its positions.
        kept.setdefault(layer, whole.chunk(place.of, dim=-1)[place.index])

    return hook


def layer_pairs(mine: int, theirs: int) -> list[tuple[int, int]]:
    """Return pairs of student layers and the teacher layers that they learn from, counted from 0.

    The teacher's layers are divided into equal parts, one for each student layer, which learns from the last layer of
    its part. This is TinyBERT's uniform mapping g(m) = m theirs / mine (arXiv 1909.10351, section 4.1), rounded up.

    mine: number of student layers. theirs: number of teacher layers.
    """
    return [(i, -(-(i + 1) * theirs // mine) - 1) for i in range(mine)]


class LayerTransfer(nn.Module):
    """Losses of a student's layers against its teacher's, by the names in `LAYER_TERMS`.

    - "embeddings" and "hidden" are mean squared differences. A learned linear map first takes the student's states to
      the teacher's width: one map for the embeddings, one for all layers, as in TinyBERT.
    - "attention" compares Q Kᵀ / √d, split into the teacher's number of heads for both. The comparison is the KL
      divergence of the softmaxed scores, or the mean squared difference of the scores as in TinyBERT.

    The maps are parameters that train with the student and are not part of it.

    student, teacher: encoders that are compared. attention: comparison of attention, one of `relation_loss.LOSSES`.
    """

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel, attention: str = "kl") -> None:
        super().__init__()
        self._student, self._teacher, self._compared = Watched(student), Watched(teacher), attention
        self._pairs = layer_pairs(self._student.layers, self._teacher.layers)
        widths = self._student.hidden_size, self._teacher.hidden_size
        self.embedding_map, self.hidden_map = nn.Linear(*widths, bias=False), nn.Linear(*widths, bias=False)

    @contextmanager
    def watching(self) -> Iterator[tuple[States, States]]:
        """Yield the states of student and teacher in the forward passes inside the context."""
        with self.watching_student() as student_states, self._teacher.states() as teacher_states:
            yield student_states, teacher_states

    def watching_student(self) -> AbstractContextManager[States]:
        """Return a context that yields the states of the student alone, for states of the teacher that are known."""
        return self._student.states()

    @property
    def description(self) -> str:
        """Return a description of the compared layers and the comparison, for records."""
        return f"attention by {self._compared}, layers {self._pairs}"

    def forward(
        self, mine: States, theirs: States, attention_mask: Tensor, terms: tuple[str, ...] = LAYER_TERMS
    ) -> list[Tensor]:
        """Return the losses of these `terms`, in their order.

        mine: states of the student. theirs: states of the teacher. attention_mask: `(B, T)`, 0 for padding, which does
        not count.
        """
        return [getattr(self, f"_{term}")(mine, theirs, attention_mask) for term in terms]

    def _embeddings(self, student: States, teacher: States, mask: Tensor) -> Tensor:
        assert student.embeddings is not None
        assert teacher.embeddings is not None
        return _distance(self.embedding_map(student.embeddings), teacher.embeddings, mask)

    def _hidden(self, student: States, teacher: States, mask: Tensor) -> Tensor:
        pairs = [_distance(self.hidden_map(student.hidden[i]), teacher.hidden[j], mask) for i, j in self._pairs]
        return torch.stack(pairs).mean()

    def _attention(self, student: States, teacher: States, mask: Tensor) -> Tensor:
        losses = []
        for i, j in self._pairs:
            sides = (teacher.queries[j], teacher.keys[j], teacher.keys[j])
            target = relation_target(sides, mask, self._teacher.heads, self._compared, (("qk", 1.0),))
            losses.append(relation_loss((student.queries[i], student.keys[i], student.keys[i]), target))
        return torch.stack(losses).mean()


def _distance(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Return the mean squared difference of `(B, T, H)` states over the tokens that are not padding."""
    by_token = (student.float() - teacher.float()).square().mean(-1)  # (B, T)
    return (by_token * mask).sum() / mask.sum()


class LastHidden(nn.Module):
    """Loss of the last hidden states: the share of the teacher's that a linear map of the student's does not explain.

    Relations train the queries, keys and values of a student's last layer and everything below them. This loss also
    trains the rest of that layer. A linear map takes the student's hidden states to the teacher's width. The loss is
    the squared difference to the teacher's (TinyBERT, arXiv 1909.10351, equation 8, for the last layer), as a share of
    their variance. It is 0 if the mapped states equal the teacher's, and 1 if they carry no information.

    The map trains with the student and is not part of it. It starts from a least-squares fit on a sample of text.
    Subnets share the map as they share weights: each subnet uses the rows of its hidden dimensions.

    Args:
        hidden_size: Hidden size of the student; of a SuperLM, the largest.
        teacher_hidden_size: Hidden size of the teacher.
    """

    variance: Tensor

    def __init__(self, hidden_size: int, teacher_hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size, teacher_hidden_size))
        self.bias = nn.Parameter(torch.zeros(teacher_hidden_size))
        self.register_buffer("variance", torch.ones(()))

    @torch.no_grad()
    def fit(self, model: AutoDistilModel, teacher: Teacher, sample_ids: Tensor) -> None:
        """Fit the map by least squares to the hidden states of the whole `model` on a sample of text.

        sample_ids: `(N, T)` token ids.
        """
        size = 1 + len(self.weight)
        batches = sample_ids.to(self.weight.device).split(_BLOCKS_AT_ONCE)
        parts = (_products(model(batch).last_hidden_state, teacher.last_layer(batch)[1]) for batch in batches)
        total = functools.reduce(torch.add, parts)
        best = _best_map(total, size)
        self.weight.copy_(best[1:])
        self.bias.copy_(best[0])
        self.variance.copy_(_variance(total, size) / sample_ids.numel())

    def forward(self, mine: Tensor, theirs: Tensor) -> Tensor:
        """Return the loss of the hidden states of a student or subnet against the teacher's, in float32.

        mine: hidden states of the student or subnet, `(B, T, H)`. theirs: hidden states of the teacher.
        """
        with torch.autocast(mine.device.type, enabled=False):
            mapped = mine.float() @ self.weight[: mine.shape[-1]] + self.bias
            return (mapped - theirs.float()).square().sum(-1).mean() / self.variance


def share_left(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the share of variance in the teacher's hidden states that no linear map of the student's explains.

    The share is cross-validated: each pair is measured with the least-squares map of the other pairs. So a wide student
    gains nothing by overfitting.

    Args:
        pairs: Two or more pairs of a student's and the teacher's hidden states of the same tokens, each `(N, T, H)`.
    """
    size = 1 + pairs[0][0].shape[-1]
    products = [_products(student_states, teacher_states) for student_states, teacher_states in pairs]
    whole = torch.stack(products).sum(0)
    left = torch.stack([_squared_error(pair, _best_map(whole - pair, size)) for pair in products]).sum()
    return float(left / _variance(whole, size))


def _squared_error(products: Tensor, linear_map: Tensor) -> Tensor:
    """Return the squared error of `linear_map` on the teacher's hidden states, as a sum over tokens."""
    size = len(linear_map)
    of_student, mixed, of_teacher = products[:size, :size], products[:size, size:], products[size:, size:]
    error: Tensor = of_teacher.trace() + (linear_map * (of_student @ linear_map - 2 * mixed)).sum()
    return error


def _products(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the sums over tokens of all products between 1, the student's and the teacher's hidden states.

    The matrix is `(n, n)` in float64, with n = 1 + H of the student + H of the teacher, in this order. It is on the CPU
    if the device of the states has no float64.
    """
    ones = student.new_ones(*student.shape[:-1], 1)
    tokens = as_float64(torch.cat([ones, student, teacher], dim=-1).flatten(0, -2))
    products: Tensor = tokens.mT @ tokens
    return products


def _best_map(products: Tensor, size: int) -> Tensor:
    """Return the least-squares map `(size, H)` from 1 and the student's hidden states to the teacher's.

    size: 1 + H of the student.
    """
    gram = products[:size, :size]
    ridge = _RIDGE * gram[1:, 1:].trace() / (size - 1) * torch.eye(size, dtype=gram.dtype, device=gram.device)
    ridge[0, 0] = 0
    # `solve` would wait for the device to see whether the matrix is singular; the result is then not finite.
    best: Tensor = torch.linalg.solve_ex(gram + ridge, products[:size, size:])[0]
    return best


def _variance(products: Tensor, size: int) -> Tensor:
    """Return the sum over tokens of the squared distance of the teacher's hidden states from their mean."""
    return products[size:, size:].trace() - products[0, size:].square().sum() / products[0, 0]
