"""Self-attention relation losses: the difference between the token relations of a student and of its teacher.

Q, K and V of one layer are each split into `relation_heads` heads, independently of the attention heads. Their scaled
dot products are the relation scores: X Xᵀ / √d of each of the three (MiniLMv2, arXiv 2012.15828), or the attention
scores Q Kᵀ / √d (the first MiniLM, arXiv 2002.10957). There are two losses:

- `kl`: the divergence KL(teacher ‖ student) of the softmaxed scores, as in MiniLMv2;
- `mse`: the mean squared error of the raw scores, as in the released AutoDistil code.

Shapes: B sequences, R relation heads, T tokens, d = width / R.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

_SIDES = {"qq": (0, 0), "kk": (1, 1), "vv": (2, 2), "qk": (0, 1)}
"""Indices into (queries, keys, values): the rows and the columns of each relation."""

DEFAULT_RELATIONS = (("qq", 1.0), ("kk", 1.0), ("vv", 1.0))
"""Relations and their weights in the loss, as in MiniLMv2."""


_SCORES_AT_ONCE = {"cpu": 2**18, "cuda": 2**26}
"""Relation scores computed at a time: on a CPU few enough for its cache, on CUDA few enough for a small buffer."""


@dataclass(frozen=True)
class RelationTarget:
    """Target of the relation loss, computed once from the teacher and used for any number of students.

    loss: name of the loss, one of `LOSSES`.
    relations: names and weights in the loss.
    tables: a `(B, R, T, T)` float32 tensor for each relation, computed by `Loss.table` from the teacher's scores.
    offset: part of the loss that depends on the tables alone.
    row_weight: `(B, 1, T, 1)`, zero for padding; sums to 1 / R over all rows. For `mse` it is also divided by the
        number of columns.
    padding: `(B, 1, 1, T)`, True for padding; None if there is none.
    relation_heads: number R of relation heads.
    """

    loss: str
    relations: tuple[tuple[str, float], ...]
    tables: tuple[Tensor, ...]
    offset: Tensor
    row_weight: Tensor
    padding: Tensor | None
    relation_heads: int


def split_heads(x: Tensor, relation_heads: int) -> Tensor:
    """Split `(B, T, width)` into relation heads, `(B, R, T, d)` in float32.

    A width that R does not divide is first padded with zeros, which changes no dot product. The last head is then
    narrower, and no dimension is lost. Search spaces are checked, so that their subnets never need padding.
    """
    if missing := -x.shape[-1] % relation_heads:
        x = torch.nn.functional.pad(x, (0, missing))
    heads: Tensor = x.float().unflatten(-1, (relation_heads, -1))
    return heads.transpose(1, 2)


def relation_scores(x: Tensor, columns: Tensor | None = None, padding: Tensor | None = None) -> Tensor:
    """Return X Yᵀ / √d of `(B, R, T, d)` as `(B, R, T, T)`; padded columns get the lowest finite number.

    x: X, the rows.
    columns: Y; X if not given.
    padding: `(B, 1, 1, T)`, True for padding.
    """
    columns = x if columns is None else columns
    scores: Tensor = (x * x.shape[-1] ** -0.5) @ columns.transpose(-1, -2)
    if padding is not None:
        scores.masked_fill_(padding, torch.finfo(scores.dtype).min)
    return scores


class Loss(NamedTuple):
    """Comparison of scores in two steps, on parts `(n, T, T)` with row weights `(n, T, 1)`. Both steps work in place.

    table: function of the teacher's scores. Returns the table for the comparison, and the part of the loss that depends
        on the table alone.
    compare: function of a student's scores and the table. Returns the rest of the loss; the scores are overwritten by
        its gradient with respect to them.
    """

    table: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    compare: Callable[[Tensor, Tensor, Tensor], Tensor]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of the products of `(n, T, T)`, row by row: the same number with any number of threads."""
    return (a * b).sum(dim=-1).sum()


def _kl_table(scores: Tensor, row_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the softmax p times the row's weight, and the negative weighted entropy of p."""
    scores.sub_(scores.amax(dim=-1, keepdim=True))
    table = scores.exp()
    total = table.sum(dim=-1, keepdim=True)
    table.mul_(row_weight / total)
    return table, _dot(table, scores) - (total.log() * row_weight).sum()


def _kl(scores: Tensor, table: Tensor, row_weight: Tensor) -> Tensor:
    """Return Σ w (logsumexp(s) - Σ p s), the KL divergence without the entropy of p.

    The gradient with respect to s is w (softmax(s) - p). Value and gradient share one exponential and one buffer.
    """
    value = -_dot(table, scores)
    highest = scores.amax(dim=-1, keepdim=True)
    total = scores.sub_(highest).exp_().sum(dim=-1, keepdim=True)
    value += ((total.log() + highest) * row_weight).sum()
    scores.mul_(row_weight / total).sub_(table)
    return value


def _mse_table(scores: Tensor, row_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores unchanged, and 0."""
    return scores, row_weight.new_zeros(())


def _mse(scores: Tensor, table: Tensor, row_weight: Tensor) -> Tensor:
    """Return Σ w (s - t)², with the gradient 2 w (s - t). Padded columns have the same number in s and t."""
    value = (scores.sub_(table).square().sum(dim=-1, keepdim=True) * row_weight).sum()
    scores.mul_(2 * row_weight)
    return value


LOSSES = {"kl": Loss(_kl_table, _kl), "mse": Loss(_mse_table, _mse)}


class _Parts:
    """Rows, columns, row weights and padding of a relation, in parts of at most `_SCORES_AT_ONCE` scores.

    Heads are stored as `(B R, d, T)`. Relation heads have few dimensions: matrix products then run 2 to 4 times faster
    on a CPU if tokens are adjacent in memory.
    """

    def __init__(self, x: Tensor, columns: Tensor | None, row_weight: Tensor, padding: Tensor | None) -> None:
        self.rows = x.transpose(-1, -2).flatten(0, 1).contiguous()
        self.columns = self.rows if columns is None else columns.transpose(-1, -2).flatten(0, 1).contiguous()
        heads = x.shape[1]
        self.row_weight = row_weight.expand(-1, heads, -1, -1).flatten(0, 1)
        self._padding = None if padding is None else padding.expand(-1, heads, -1, -1).flatten(0, 1)

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield each part as a slice, and its scores `(n, T, T)`."""
        matrices, _, tokens = self.rows.shape
        size = max(1, _SCORES_AT_ONCE.get(self.rows.device.type, 2**26) // tokens**2)
        for start in range(0, matrices, size):
            part = slice(start, start + size)
            padding = None if self._padding is None else self._padding[part]
            rows, columns = (side[part].transpose(-1, -2) for side in (self.rows, self.columns))
            yield part, relation_scores(rows, columns, padding)


class _FusedLoss(Function):
    """Loss of one relation, computed part by part, without the part that depends on the table alone.

    The gradient G with respect to the scores of X Yᵀ is propagated to the projections at once, as G y and Gᵀ x. So the
    scores of one part are the only `(T, T)` buffer, and only `(B, R, T, d)` tensors are kept for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, columns: Tensor | None, table: Tensor, target: RelationTarget) -> Tensor:
        parts = _Parts(x, columns, target.row_weight, target.padding)
        tables, compare = table.flatten(0, 1), LOSSES[target.loss].compare
        needs_gradient = any(ctx.needs_input_grad)
        in_rows, in_columns = [], []
        value = x.new_zeros(())
        for part, scores in parts:
            value += compare(scores, tables[part], parts.row_weight[part])
            if needs_gradient:
                in_rows.append(parts.columns[part] @ scores.transpose(-1, -2))
                in_columns.append(parts.rows[part] @ scores)
        if needs_gradient:
            gradients = [torch.cat(of_parts).mul_(x.shape[-1] ** -0.5) for of_parts in (in_rows, in_columns)]
            if columns is None:
                gradients = [gradients[0].add_(gradients[1])]
            ctx.save_for_backward(*(gradient.unflatten(0, x.shape[:2]).transpose(-1, -2) for gradient in gradients))
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        in_x, *in_columns = (gradient * grad_outputs[0] for gradient in ctx.saved_tensors)
        return in_x, in_columns[0] if in_columns else None, None, None


def _sides(
    projections: Sequence[Tensor], relations: Sequence[tuple[str, float]], relation_heads: int
) -> list[tuple[Tensor, Tensor | None]]:
    """Return the split rows and columns of each relation; None for columns that are equal to the rows."""
    used = {side for name, _ in relations for side in _SIDES[name]}
    heads = {side: split_heads(projections[side], relation_heads) for side in used}
    sides = [_SIDES[name] for name, _ in relations]
    return [(heads[x], None if columns == x else heads[columns]) for x, columns in sides]


@torch.no_grad()
def relation_target(
    projections: Sequence[Tensor],
    attention_mask: Tensor | None,
    relation_heads: int,
    loss: str = "kl",
    relations: Sequence[tuple[str, float]] = DEFAULT_RELATIONS,
) -> RelationTarget:
    """Return the target of the relation loss for a teacher's queries, keys and values.

    Args:
        projections: Queries, keys and values, three `(B, T, width)` tensors.
        attention_mask: `(B, T)`, 0 for padding, or None if there is none. Padding counts in neither rows nor columns.
        relation_heads: Number R of relation heads; see `split_heads` for widths that it does not divide. The relation
            QK is the teacher's attention if R is the number of its attention heads.
        loss: Name of the loss, one of `LOSSES`.
        relations: Names of relations, each at most once, and their weights (`parse_relations`).
    """
    batch, tokens, _ = projections[0].shape
    device = projections[0].device
    if attention_mask is None:
        rows, padding = torch.ones(batch, tokens, device=device), None
    else:
        rows, padding = (attention_mask != 0).float(), (attention_mask == 0)[:, None, None, :]
    weights = rows / (rows.sum() * relation_heads)
    if loss == "mse":
        weights /= rows.sum(dim=1, keepdim=True).clamp(min=1)
    row_weight = weights[:, None, :, None]
    offset = torch.zeros((), device=device)
    tables = []
    with torch.autocast(device.type, enabled=False):
        for sides, (_, weight) in zip(_sides(projections, relations, relation_heads), relations, strict=True):
            parts = _Parts(*sides, row_weight, padding)
            table = torch.empty(batch, relation_heads, tokens, tokens, device=device)
            for part, scores in parts:
                table.flatten(0, 1)[part], alone = LOSSES[loss].table(scores, parts.row_weight[part])
                offset += weight * alone
            tables.append(table)
    return RelationTarget(loss, tuple(relations), tuple(tables), offset, row_weight, padding, relation_heads)


def relation_loss(projections: Sequence[Tensor], target: RelationTarget) -> Tensor:
    """Return the loss of a student's queries, keys and values, each `(B, T, width)`; lower is better.

    `kl` is a divergence in nats, `mse` a mean squared difference of scores. Both are averaged over tokens and relation
    heads, and summed over the relations by their weights. The loss is computed in float32 for projections of any
    precision. A projection that no relation uses gets no gradient.
    """
    with torch.autocast(projections[0].device.type, enabled=False):
        sides = _sides(projections, target.relations, target.relation_heads)
        parts = [
            weight * _FusedLoss.apply(*rows_and_columns, table, target)
            for rows_and_columns, table, (_, weight) in zip(sides, target.tables, target.relations, strict=True)
        ]
        return torch.stack(parts).sum() + target.offset


def uniform_loss(target: RelationTarget) -> float:
    """Return the loss of an uninformed student, which relates every token to all others alike.

    All of its scores are zero, for `kl` and for `mse`.
    """
    batch, _, tokens, _ = target.row_weight.shape
    zeros = torch.zeros(batch, tokens, target.relation_heads, device=target.row_weight.device)
    return float(relation_loss([zeros] * 3, target))
