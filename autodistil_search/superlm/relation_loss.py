"""Self-attention relation losses: the difference between the token relations of a student and of its teacher.

Q, K and V of one layer are each split into `relation_heads` heads, independently of the attention heads. Their scaled
dot products are the relation scores: X Xᵀ / √d of each of the three (MiniLMv2, arXiv 2012.15828), or the attention
scores Q Kᵀ / √d (the first MiniLM, arXiv 2002.10957). There are two losses:

- `kl`: the divergence KL(teacher ‖ student) of the softmaxed scores, as in MiniLMv2;
- `mse`: the mean squared error of the raw scores, as in the released AutoDistil code.

On CUDA they are Triton kernels (`relation_kernels`) if Triton is installed. Otherwise they are torch operations on
parts of the scores, which is what this module contains.

Shapes: B sequences, R relation heads, T tokens, d = width / R; k relations of one kind; a part has n of their k B R
matrices of scores.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
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
    teacher: for the k relations of each kind (`_by_kind`) the `(k B R, T, T)` table that `Loss.table` computed; or for
        each relation what the kernels need.
    offset: part of the loss that depends on the teacher alone.
    row_weights: for each kind `(k, B, T)`, weight of each row of scores. Padding has 0, all other tokens of a sequence
        have the same weight. The weights of a relation add up to its weight / R; for `mse` they are also divided by the
        number of columns.
    padding: `(B, T)`, True for padding; None if there is none.
    relation_heads: number R of relation heads.
    """

    loss: str
    relations: tuple[tuple[str, float], ...]
    teacher: tuple[Tensor, ...] | tuple[KernelTarget, ...]
    offset: Tensor
    row_weights: tuple[Tensor, ...]
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


class _Kind:
    """Rows and columns of the relations of one kind, cut into parts of at most `_SCORES_AT_ONCE` scores.

    Heads are `(k B R, d, T)`. Relation heads have few dimensions: matrix products then run 2 to 4 times faster on a CPU
    if tokens are adjacent in memory.

    rows, columns: one tensor if the relations are `symmetric`. Padded tokens are zero, and so are their scores.
    padding: `(k B R, 1, T)`, True for padding; None if there is none.
    """

    def __init__(self, rows: Tensor, columns: Tensor, padding: Tensor | None) -> None:
        self.rows, self.columns, self.padding = rows, columns, padding
        self.symmetric = rows is columns

    def parts(self, *tensors: Tensor) -> Iterator[tuple[Any, ...]]:
        """Yield each part, and the same part of these tensors `(k B R, ...)`. The next part overwrites its buffers."""
        matrices, _, tokens = self.rows.shape
        size = max(1, min(matrices, _SCORES_AT_ONCE.get(self.rows.device.type, 2**26) // tokens**2))
        buffers = self.rows.new_empty(2, size, tokens, tokens)
        padding = [None] * -(-matrices // size) if self.padding is None else self.padding.split(size)
        sides = self.rows.split(size), self.columns.split(size), padding
        for rows, columns, padded, *others in zip(*sides, *(x.split(size) for x in tensors), strict=True):
            yield _Part(self, rows, columns, padded, *buffers[:, : len(rows)]), *others


@dataclass
class _Part:
    """Some matrices of a kind, with two buffers of their size: for the scores, and for intermediate results.

    safe: whether `exponentials` needed no shift.
    """

    kind: _Kind
    rows: Tensor
    columns: Tensor
    padding: Tensor | None
    scores: Tensor
    spare: Tensor
    safe: bool = False

    def score(self, unit: float = 1.0, less: Tensor | None = None) -> Tensor:
        """Compute the scores in multiples of `unit`; less the tensor `less`, if given."""
        start, factor = (self.scores, 0) if less is None else (less, -1)
        scale = self.rows.shape[1] ** -0.5 / unit
        return torch.baddbmm(start, self.rows.mT, self.columns, beta=factor, alpha=scale, out=self.scores)

    def _no_score_is_large(self) -> bool:
        """Return whether no score is larger than `_SAFE_SCORE`, by the norms; False where asking would wait."""
        if self.scores.device.type != "cpu":
            return False
        if self.kind.symmetric:
            return bool(self.scores.diagonal(dim1=1, dim2=2).max() * _UNIT <= _SAFE_SCORE)
        squares = [side.square().sum(dim=1).max() for side in (self.rows, self.columns)]
        return bool(squares[0] * squares[1] <= _SAFE_SCORE**2 * self.rows.shape[1])

    def exponentials(self, out: Tensor) -> tuple[Tensor, Tensor | float]:
        """Write exponentials E of the scores to `out`; the softmax of a row is its part of E over the sum.

        Returns the sums `(n, T, 1)`, and the logarithm of the factor by which each row of E was divided. Scores that
        are not safe are shifted in place.
        """
        logarithm: Tensor | float = 0.0
        self.safe = self._no_score_is_large()
        if self.padding is not None:
            self.scores.masked_fill_(self.padding, torch.finfo(self.scores.dtype).min)
        if not self.safe:
            highest = self.scores.amax(dim=-1, keepdim=True)
            self.scores.sub_(highest)
            logarithm = highest * _UNIT
        total = _EXPONENTIAL(self.scores, out=out).sum(dim=-1, keepdim=True)
        if self.padding is not None:
            total.clamp_(min=torch.finfo(total.dtype).tiny)  # of a sequence of padding only
        return total, logarithm

    def softmax_with(self, exponentials: Tensor, share: Tensor, add: Tensor | None = None) -> Tensor:
        """Return P = `share` E, which is P + Pᵀ if the relations are symmetric; plus the tensor `add`, if given.

        The result takes the place of E, or the spare buffer. Without a shift E is symmetric, too, and Pᵀ needs no
        transposed access.
        """
        if self.kind.symmetric and self.safe:
            share = torch.add(share, share.mT, out=self.spare)
        if add is not None and (self.safe or not self.kind.symmetric):
            return torch.addcmul(add, exponentials, share, out=exponentials)
        result = exponentials.mul_(share)
        if self.kind.symmetric and not self.safe:
            result = torch.add(result, result.mT, out=self.spare)
        return result if add is None else result.add_(add)


class Loss(NamedTuple):
    """Comparison of scores in two steps, each of which computes them part by part.

    table: function of a part of the teacher. Writes the table for the comparison `(n, T, T)` to a tensor, and returns
        the part of each row's loss `(n, T)` that depends on the table alone.
    compare: function of a part of a student and its table. Returns the rest of each row's loss, and the matrices by
        which the rows and columns are multiplied for their gradients.
    gradient_factor: number by which these products are multiplied for relations of two sides, and for X Xᵀ.
    """

    table: Callable[[_Part, Tensor], Tensor]
    compare: Callable[[_Part, Tensor, bool], tuple[Tensor, Tensor]]
    gradient_factor: tuple[float, float]


def _dot(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Return the dot product of each row; `out` takes the products."""
    return torch.mul(a, b, out=out).sum(dim=-1)


def _kl_table(part: _Part, table: Tensor) -> Tensor:
    """Write -P of the teacher's softmax P, or -(P + Pᵀ) if the relations are symmetric; return Σ p log p."""
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

    The gradient with respect to the scores is G = softmax(s) - p. If the relations are symmetric, the gradient of X is
    (G + Gᵀ) X, one product instead of two.
    """
    scores = part.score(_UNIT)
    value = _dot(scores, table, part.spare).mul_(_UNIT / 2 if part.kind.symmetric else _UNIT)
    total, logarithm = part.exponentials(scores)
    value += (total.log() + logarithm)[..., 0]
    return value, part.softmax_with(scores, 1 / total, table) if needs_gradient else scores


def _mse_table(part: _Part, table: Tensor) -> Tensor:
    """Write the scores; return 0."""
    table.copy_(part.score())
    return table.new_zeros(())


def _mse(part: _Part, table: Tensor, _needs_gradient: bool) -> tuple[Tensor, Tensor]:
    """Return Σ (s - t)², with the gradient 2 (s - t); X Xᵀ has it from both sides."""
    difference = part.score(less=table)
    return torch.linalg.vector_norm(difference, dim=-1).square_(), difference


LOSSES = {"kl": Loss(_kl_table, _kl, (1.0, 1.0)), "mse": Loss(_mse_table, _mse, (2.0, 4.0))}


def _by_kind(relations: Sequence[tuple[str, float]]) -> list[list[tuple[int, int, float]]]:
    """Return rows, columns and weight of the relations that are computed together: those of one side, and the others.

    One operation on three relations is faster than three operations, above all on short sequences.
    """
    sides = [(*_SIDES[name], weight) for name, weight in relations]
    kinds = [x for x in sides if x[0] == x[1]], [x for x in sides if x[0] != x[1]]
    return [kind for kind in kinds if kind]


class _Heads:
    """Queries, keys and values by relation heads.

    sides: indices of the projections that have a relation.
    heads: `(sides, B, R, d, T)` in float32. Padded tokens are zero.
    """

    def __init__(
        self,
        projections: Sequence[Tensor],
        relations: Sequence[tuple[str, float]],
        relation_heads: int,
        padding: Tensor | None,
    ) -> None:
        self.kinds, self.padding = _by_kind(relations), padding
        self.sides = list(dict.fromkeys(side for kind in self.kinds for x in kind for side in x[:2]))
        split = [_token_heads(projections[side], relation_heads).permute(0, 2, 3, 1) for side in self.sides]
        self.heads = split[0].new_empty(len(split), *split[0].shape, dtype=torch.float32)
        for place, x in zip(self.heads, split, strict=True):
            place.copy_(x)
        if padding is not None:
            self.heads.masked_fill_(padding[:, None, None], 0)

    def of(self, kind: list[tuple[int, int, float]]) -> _Kind:
        """Return the rows and columns of the relations of a kind."""
        rows, columns = (self.slots(kind, side) for side in (0, 1))
        padding = self.padding
        if padding is not None:
            shape = len(kind), len(padding), self.heads.shape[2], 1, padding.shape[-1]
            padding = padding[:, None, None].expand(shape).flatten(0, 2)
        x = self.heads[rows].flatten(0, 2)
        return _Kind(x, x if rows == columns else self.heads[columns].flatten(0, 2), padding)

    def slots(self, kind: list[tuple[int, int, float]], side: int) -> slice:
        """Return the part of `heads` that is one side of a kind: the relations of one side come first."""
        first = self.sides.index(kind[0][:2][side])
        return slice(first, first + len(kind))


def _weighted_sum(values: Sequence[Tensor], row_weights: Sequence[Tensor]) -> Tensor:
    """Return the sum of the rows' values `(k B R, T)` of each kind by their weights `(k, B, T)`.

    Sums of sums give the same number with any number of threads.
    """
    total: Tensor | float = 0.0
    for value, row_weight in zip(values, row_weights, strict=True):
        by_row = value.view(*row_weight.shape[:2], -1, value.shape[-1]) * row_weight[:, :, None]
        total = by_row.sum(dim=-1).sum(dim=-1).sum() + total
    return cast(Tensor, total)


class _FusedLoss(Function):
    """Weighted sum of the relation losses, computed part by part, without the part that depends on the teacher alone.

    The gradient of the scores is propagated to the projections at once. So the scores of one part are the only
    `(T, T)` buffer, and only one tensor of the projections' size is kept for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, target: RelationTarget, *projections: Tensor) -> Tensor:
        loss = LOSSES[target.loss]
        heads = _Heads(projections, target.relations, target.relation_heads, target.padding)
        needs_gradient = any(ctx.needs_input_grad)
        gradient = torch.zeros_like(heads.heads) if needs_gradient else heads.heads[:0]
        losses = []
        tables = cast(tuple[Tensor, ...], target.teacher)
        for sides, table, row_weight in zip(heads.kinds, tables, target.row_weights, strict=True):
            kind = heads.of(sides)
            values = table.new_empty(table.shape[:2])
            places = [
                gradient[heads.slots(sides, side)] for side in range(1 if kind.symmetric else 2) if needs_gradient
            ]
            # Symmetric relations come first, and no two of them have a side in common.
            found = [place.flatten(0, 2) if kind.symmetric else torch.empty_like(kind.rows) for place in places]
            for part, part_table, part_values, *part_found in kind.parts(table, values, *found):
                part_values[...], in_scores = loss.compare(part, part_table, needs_gradient)
                for of, by, out in zip((part.columns, part.rows), (in_scores.mT, in_scores), part_found, strict=False):
                    torch.bmm(of, by, out=out)
            losses.append(values)
            factor = row_weight[:, :, None, None] * (loss.gradient_factor[kind.symmetric] * kind.rows.shape[1] ** -0.5)
            for place, in_side in zip(places, found, strict=True):
                if kind.symmetric:
                    place.mul_(factor)
                else:
                    place.addcmul_(in_side.view_as(place), factor)
        ctx.sides, ctx.projections = heads.sides, [(x.shape[-1], x.dtype) for x in projections]
        ctx.save_for_backward(gradient)
        return _weighted_sum(losses, target.row_weights)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        in_projections: list[Tensor | None] = [None] * 3
        in_heads = (ctx.saved_tensors[0] * grad_outputs[0]).permute(0, 1, 4, 2, 3).flatten(3)
        for side, in_side in zip(ctx.sides, in_heads, strict=True):
            width, dtype = ctx.projections[side]
            in_projections[side] = in_side[..., :width].to(dtype)
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
    kinds = _by_kind(relations)
    row_weights = tuple(torch.stack([weight * row_weight for *_, weight in kind]) for kind in kinds)
    offset = torch.zeros((), device=device)
    teacher: list[Any] = []
    with torch.autocast(device.type, enabled=False):
        if _have_kernels(device.type):
            from autodistil_search.superlm.relation_kernels import Heads, KernelTarget

            heads = [_token_heads(x, relation_heads) for x in projections]
            for name, _ in relations:
                x, y = (heads[side] for side in _SIDES[name])
                teacher.append(KernelTarget.of(Heads.of(x, y), row_weight, loss))
        else:
            losses = []
            parted = _Heads(projections, relations, relation_heads, padding)
            for sides in parted.kinds:
                kind = parted.of(sides)
                table = torch.empty(len(kind.rows), tokens, tokens, device=device)
                values = table.new_empty(table.shape[:2])
                for part, part_table, part_values in kind.parts(table, values):
                    part_values[...] = LOSSES[loss].table(part, part_table)
                losses.append(values)
                teacher.append(table)
            offset = _weighted_sum(losses, row_weights)
    return RelationTarget(loss, tuple(relations), tuple(teacher), offset, row_weights, padding, relation_heads)


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
    _, batch, tokens = target.row_weights[0].shape
    zeros = torch.zeros(batch, tokens, target.relation_heads, device=target.offset.device)
    return float(relation_loss([zeros] * 3, target))
