"""Self-attention relation losses: the difference between the token relations of a student and of its teacher.

Q, K and V of one layer are each split into `relation_heads` heads, independently of the attention heads. Their scaled
dot products are the relation scores: X Xᵀ / √d of each of the three (MiniLMv2, arXiv 2012.15828), or the attention
scores Q Kᵀ / √d (the first MiniLM, arXiv 2002.10957). There are two losses:

- `kl`: the divergence KL(teacher ‖ student) of the softmaxed scores, as in MiniLMv2;
- `mse`: the mean squared error of the raw scores, as in the released AutoDistil code.

On CUDA they are Triton kernels (`relation_kernels`) if Triton is installed. Otherwise they are torch operations on
parts of the scores, which is what this module contains.

Shapes: B sequences, R relation heads, T tokens, d = width / R; a part has n of the B R matrices of scores.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd import Function

if TYPE_CHECKING:
    from autodistil_search.superlm.relation_kernels import KernelTarget

_SIDES = {"qq": (0, 0), "kk": (1, 1), "vv": (2, 2), "qk": (0, 1)}
"""Indices into (queries, keys, values): the rows and the columns of each relation."""

DEFAULT_RELATIONS = (("qq", 1.0), ("kk", 1.0), ("vv", 1.0))
"""Relations and their weights in the loss, as in MiniLMv2."""


_SCORES_AT_ONCE = {"cpu": 2**19, "cuda": 2**26}
"""Relation scores computed at a time: on a CPU few enough for its last cache, on CUDA few enough for a small buffer."""

_SAFE_SCORE = 60.0
"""Scores up to this size have exponentials, and sums of them, far from the limits of float32."""

# Without AVX2, torch vectorizes no exponential of its own, and MKL's `exp` is faster; elsewhere, `exp2` is.
_DEFAULT_CPU = torch.backends.cpu.get_cpu_capability() == "DEFAULT"
_EXPONENTIAL, _UNIT = (torch.exp, 1.0) if _DEFAULT_CPU else (torch.exp2, math.log(2))
"""The faster exponential function, and the logarithm of its base: scores are computed in multiples of it."""


@dataclass(frozen=True)
class RelationTarget:
    """Target of the relation loss, computed once from the teacher and used for any number of students.

    loss: name of the loss, one of `LOSSES`.
    relations: names and weights in the loss.
    teacher: for each relation, the `(B R, T, T)` table that `Loss.table` computed; or what the kernels need.
    offset: part of the loss that depends on the teacher alone.
    row_weight: `(B, T)`, weight of each row of scores. Padding has 0, all other tokens of a sequence have the same
        weight. The weights add up to 1 / R; for `mse` they are also divided by the number of columns.
    padding: `(B, T)`, True for padding; None if there is none.
    relation_heads: number R of relation heads.
    """

    loss: str
    relations: tuple[tuple[str, float], ...]
    teacher: tuple[Tensor, ...] | tuple[KernelTarget, ...]
    offset: Tensor
    row_weight: Tensor
    padding: Tensor | None
    relation_heads: int


def _token_heads(x: Tensor, relation_heads: int) -> Tensor:
    """Split `(B, T, width)` into relation heads, `(B, T, R, d)`."""
    if missing := -x.shape[-1] % relation_heads:
        x = torch.nn.functional.pad(x, (0, missing))
    heads: Tensor = x.unflatten(-1, (relation_heads, -1))
    return heads


def split_heads(x: Tensor, relation_heads: int) -> Tensor:
    """Split `(B, T, width)` into relation heads, `(B, R, T, d)` in float32.

    A width that R does not divide is first padded with zeros, which changes no dot product. The last head is then
    narrower, and no dimension is lost. Search spaces are checked, so that their subnets never need padding.
    """
    return _token_heads(x, relation_heads).float().transpose(1, 2)


class _Relation:
    """Rows and columns of one relation, cut into parts of at most `_SCORES_AT_ONCE` scores.

    Heads are `(B R, d, T)`. Relation heads have few dimensions: matrix products then run 2 to 4 times faster on a CPU
    if tokens are adjacent in memory.

    rows, columns: one tensor if the relation is `symmetric`. Padded tokens are zero, and so are their scores.
    padding: `(B R, 1, T)`, True for padding; None if there is none.
    """

    def __init__(self, rows: Tensor, columns: Tensor, padding: Tensor | None) -> None:
        self.rows, self.columns, self.padding = rows, columns, padding
        self.symmetric = rows is columns

    @cached_property
    def safe(self) -> bool:
        """Return whether no score is larger than `_SAFE_SCORE`, by the norms; False where asking would wait."""
        if self.rows.device.type != "cpu":
            return False
        of_rows, of_columns = (side.square().sum(dim=1).max() for side in (self.rows, self.columns))
        return bool(of_rows * of_columns <= _SAFE_SCORE**2 * self.rows.shape[1])

    def parts(self, *tensors: Tensor) -> Iterator[tuple[Any, ...]]:
        """Yield each part, and the same part of these tensors `(B R, ...)`. The next part overwrites its buffers."""
        matrices, _, tokens = self.rows.shape
        size = max(1, min(matrices, _SCORES_AT_ONCE.get(self.rows.device.type, 2**26) // tokens**2))
        buffers = self.rows.new_empty(2, size, tokens, tokens)
        padding = [None] * -(-matrices // size) if self.padding is None else self.padding.split(size)
        sides = self.rows.split(size), self.columns.split(size), padding
        for rows, columns, padded, *others in zip(*sides, *(x.split(size) for x in tensors), strict=True):
            yield _Part(self, rows, columns, padded, *buffers[:, : len(rows)]), *others


@dataclass
class _Part:
    """Some matrices of a relation, with two buffers of their size: for the scores, and for intermediate results."""

    relation: _Relation
    rows: Tensor
    columns: Tensor
    padding: Tensor | None
    scores: Tensor
    spare: Tensor

    def score(self, unit: float = 1.0, less: Tensor | None = None) -> Tensor:
        """Compute the scores in multiples of `unit`; less the tensor `less`, if given."""
        start, factor = (self.scores, 0) if less is None else (less, -1)
        scale = self.rows.shape[1] ** -0.5 / unit
        return torch.baddbmm(start, self.rows.mT, self.columns, beta=factor, alpha=scale, out=self.scores)

    def exponentials(self, out: Tensor) -> tuple[Tensor, Tensor | float]:
        """Write exponentials E of the scores to `out`; the softmax of a row is its part of E over the sum.

        Returns the sums `(n, T, 1)`, and the logarithm of the factor by which each row of E was divided. Scores that
        are not safe are shifted in place.
        """
        logarithm: Tensor | float = 0.0
        if self.padding is not None:
            self.scores.masked_fill_(self.padding, torch.finfo(self.scores.dtype).min)
        if not self.relation.safe:
            highest = self.scores.amax(dim=-1, keepdim=True)
            self.scores.sub_(highest)
            logarithm = highest * _UNIT
        total = _EXPONENTIAL(self.scores, out=out).sum(dim=-1, keepdim=True)
        if self.padding is not None:
            total.clamp_(min=torch.finfo(total.dtype).tiny)  # of a sequence of padding only
        return total, logarithm

    def softmax_with(self, exponentials: Tensor, share: Tensor, add: Tensor | None = None) -> Tensor:
        """Return P = `share` E, which is P + Pᵀ if the relation is symmetric; plus the tensor `add`, if given.

        The result takes the place of E, or the spare buffer. Without a shift E is symmetric, too, and Pᵀ needs no
        transposed access.
        """
        if self.relation.symmetric and self.relation.safe:
            share = torch.add(share, share.mT, out=self.spare)
        if add is not None and (self.relation.safe or not self.relation.symmetric):
            return torch.addcmul(add, exponentials, share, out=exponentials)
        result = exponentials.mul_(share)
        if self.relation.symmetric and not self.relation.safe:
            result = torch.add(result, result.mT, out=self.spare)
        return result if add is None else result.add_(add)


class Loss(NamedTuple):
    """Comparison of scores in two steps, each of which computes them part by part.

    table: function of a part of the teacher. Writes the table for the comparison `(n, T, T)` to a tensor, and returns
        the part of each row's loss `(n, T)` that depends on the table alone.
    compare: function of a part of a student and its table. Returns the rest of each row's loss, and the matrices by
        which the rows and columns are multiplied for their gradients.
    gradient_factor: number by which these products are multiplied for a relation of two sides, and for X Xᵀ.
    """

    table: Callable[[_Part, Tensor], Tensor]
    compare: Callable[[_Part, Tensor, bool], tuple[Tensor, Tensor]]
    gradient_factor: tuple[float, float]


def _dot(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Return the dot product of each row; `out` takes the products."""
    return torch.mul(a, b, out=out).sum(dim=-1)


def _kl_table(part: _Part, table: Tensor) -> Tensor:
    """Write -P of the teacher's softmax P, or -(P + Pᵀ) if the relation is symmetric; return Σ p log p."""
    scores = part.score(_UNIT)
    total, _ = part.exponentials(table)
    total = total[..., 0]
    negative_entropy = _dot(table, scores, part.spare) * (_UNIT / total) - total.log()
    softmax = part.softmax_with(table, -1 / total[..., None])
    if softmax is not table:
        table.copy_(softmax)
    return negative_entropy


def _kl(part: _Part, table: Tensor, needs_gradient: bool) -> tuple[Tensor, Tensor]:
    """Return logsumexp(s) - Σ p s: the KL divergence without the entropy of p.

    The gradient with respect to the scores is G = softmax(s) - p. If the relation is symmetric, the gradient of X is
    (G + Gᵀ) X, one product instead of two.
    """
    scores = part.score(_UNIT)
    value = _dot(scores, table, part.spare).mul_(_UNIT / 2 if part.relation.symmetric else _UNIT)
    total, logarithm = part.exponentials(scores)
    value += (total.log() + logarithm)[..., 0]
    return value, part.softmax_with(scores, 1 / total, table) if needs_gradient else scores


def _mse_table(part: _Part, table: Tensor) -> Tensor:
    """Write the scores; return 0."""
    table.copy_(part.score())
    return table.new_zeros(())


def _mse(part: _Part, table: Tensor, _needs_gradient: bool) -> tuple[Tensor, Tensor]:
    """Return Σ (s - t)², with the gradient 2 (s - t); a symmetric relation has it from both sides."""
    difference = part.score(less=table)
    return torch.linalg.vector_norm(difference, dim=-1).square_(), difference


LOSSES = {"kl": Loss(_kl_table, _kl, (1.0, 1.0)), "mse": Loss(_mse_table, _mse, (2.0, 4.0))}


def _relations(
    projections: Sequence[Tensor],
    relations: Sequence[tuple[str, float]],
    relation_heads: int,
    padding: Tensor | None,
) -> list[_Relation]:
    """Return the relations of a batch; relations of the same side share its heads."""
    heads = {}
    for side in sorted({side for name, _ in relations for side in _SIDES[name]}):
        x = split_heads(projections[side], relation_heads).mT
        if padding is not None:
            x = x.masked_fill(padding[:, None, None], 0)
        heads[side] = x.contiguous().flatten(0, 1)
    if padding is not None:
        padding = padding[:, None, None].expand(-1, relation_heads, -1, -1).flatten(0, 1)
    sides = [_SIDES[name] for name, _ in relations]
    return [_Relation(heads[rows], heads[columns], padding) for rows, columns in sides]


def _weighted_sum(values: Sequence[Tensor], relations: Sequence[tuple[str, float]], row_weight: Tensor) -> Tensor:
    """Return the sum of each relation's `(B R, T)` by weights of relations and rows.

    Sums of sums give the same number with any number of threads.
    """
    weighted = sum(weight * value for value, (_, weight) in zip(values, relations, strict=True))
    by_row = cast(Tensor, weighted).unflatten(0, (len(row_weight), -1)) * row_weight[:, None]
    total: Tensor = by_row.sum(dim=-1).sum(dim=-1).sum()
    return total


class _FusedLoss(Function):
    """Weighted sum of the relation losses, computed part by part, without the part that depends on the teacher alone.

    The gradient of the scores is propagated to the projections at once. So the scores of one part are the only
    `(T, T)` buffer, and only tensors of the projections' size are kept for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, target: RelationTarget, *projections: Tensor) -> Tensor:
        loss, heads = LOSSES[target.loss], target.relation_heads
        gradients: dict[int, Tensor] = {}
        losses = []
        relations = _relations(projections, target.relations, heads, target.padding)
        tables = cast(tuple[Tensor, ...], target.teacher)
        for relation, (name, weight), table in zip(relations, target.relations, tables, strict=True):
            values = table.new_empty(table.shape[:2])
            sides = [side for side in dict.fromkeys(_SIDES[name]) if ctx.needs_input_grad[1 + side]]
            found = [torch.empty_like(relation.rows) for _ in sides]
            for part, part_table, part_values, *part_found in relation.parts(table, values, *found):
                part_values[...], in_scores = loss.compare(part, part_table, bool(sides))
                for side, out in zip(sides, part_found, strict=True):
                    if side == _SIDES[name][0]:
                        torch.bmm(part.columns, in_scores.mT, out=out)
                    else:
                        torch.bmm(part.rows, in_scores, out=out)
            losses.append(values)
            scale = weight * loss.gradient_factor[relation.symmetric] * relation.rows.shape[1] ** -0.5
            for side, gradient in zip(sides, found, strict=True):
                gradient.unflatten(0, (-1, heads)).mul_((scale * target.row_weight)[:, None, None])
                gradients[side] = gradients[side].add_(gradient) if side in gradients else gradient
        ctx.sides = [(side, projections[side].dtype) for side in gradients]
        ctx.save_for_backward(
            *(
                gradient.unflatten(0, (-1, heads)).permute(0, 3, 1, 2).flatten(2)[..., : projections[side].shape[-1]]
                for side, gradient in gradients.items()
            )
        )
        return _weighted_sum(losses, target.relations, target.row_weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        in_projections: list[Tensor | None] = [None] * 3
        for (side, dtype), gradient in zip(ctx.sides, ctx.saved_tensors, strict=True):
            in_projections[side] = (gradient * grad_outputs[0]).to(dtype)
        return None, *in_projections


@cache
def _have_kernels(device: str) -> bool:
    """Return whether the kernels run on this type of device: on CUDA, with Triton and the C compiler that it needs."""
    compilers = (os.environ.get("CC"), shutil.which("gcc"), shutil.which("clang"))
    return device == "cuda" and importlib.util.find_spec("triton") is not None and any(compilers)


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
    padding = None if attention_mask is None else attention_mask == 0
    rows = torch.ones(batch, tokens, device=device) if padding is None else (~padding).float()
    row_weight = rows / (rows.sum() * relation_heads)
    if loss == "mse":
        row_weight /= rows.sum(dim=1, keepdim=True).clamp(min=1)
    offset = torch.zeros((), device=device)
    teacher: list[Any] = []
    with torch.autocast(device.type, enabled=False):
        if _have_kernels(device.type):
            from autodistil_search.superlm.relation_kernels import Heads, KernelTarget

            heads = [_token_heads(x, relation_heads) for x in projections]
            for name, _ in relations:
                sides = Heads(*(heads[side] for side in _SIDES[name]))
                teacher.append(KernelTarget.of(sides, row_weight, loss))
        else:
            losses = []
            for relation in _relations(projections, relations, relation_heads, padding):
                table = torch.empty(len(relation.rows), tokens, tokens, device=device)
                values = table.new_empty(table.shape[:2])
                for part, part_table, part_values in relation.parts(table, values):
                    part_values[...] = LOSSES[loss].table(part, part_table)
                losses.append(values)
                teacher.append(table)
            offset = _weighted_sum(losses, relations, row_weight)
    return RelationTarget(loss, tuple(relations), tuple(teacher), offset, row_weight, padding, relation_heads)


def relation_loss(projections: Sequence[Tensor], target: RelationTarget) -> Tensor:
    """Return the loss of a student's queries, keys and values, each `(B, T, width)`; lower is better.

    `kl` is a divergence in nats, `mse` a mean squared difference of scores. Both are averaged over tokens and relation
    heads, and summed over the relations by their weights. The loss is computed in float32 for projections of any
    precision. A projection that no relation uses gets no gradient. The host does not wait for the device.
    """
    with torch.autocast(projections[0].device.type, enabled=False):
        if isinstance(target.teacher[0], Tensor):
            return cast(Tensor, _FusedLoss.apply(target, *projections)) + target.offset
        from autodistil_search.superlm.relation_kernels import KernelLoss

        sides = [(*_SIDES[name], weight) for name, weight in target.relations]
        heads = [_token_heads(x, target.relation_heads) for x in projections]
        return cast(Tensor, KernelLoss.apply(sides, target.teacher, *heads))


def uniform_loss(target: RelationTarget) -> float:
    """Return the loss of an uninformed student, which relates every token to all others alike.

    All of its scores are zero, for `kl` and for `mse`.
    """
    zeros = torch.zeros(*target.row_weight.shape, target.relation_heads, device=target.row_weight.device)
    return float(relation_loss([zeros] * 3, target))
