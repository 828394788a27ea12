"""The relation losses as Triton kernels for CUDA: no tensor of size tokens x tokens is stored.

A program computes the scores of one tile of rows of one relation head, one tile of columns after the other. The
teacher's scores are computed beside the student's; of both, only the log-sum-exp of each row is kept. No two programs
add to the same number, so all runs give the same results. Sums are in float32, whatever the precision of the
projections.

`relation_loss` explains the losses. Shapes: B sequences, R relation heads, T tokens, d dimensions of a head. Heads are
`(B, T, R, d)` views of any strides: neither blocks of adjacent dimensions nor nested heads are copied. In kernels, x
and y are the rows and the columns of the student's relation, u and v those of the teacher's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function

TILE = 32
"""Rows, columns and dimensions of a tile, at most: larger tiles need more registers than a thread has. More dimensions
are processed in several steps."""

OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}
"""Options of the compiler. Loading tiles ahead needs more registers than a thread has, too."""

_MASKED = tl.constexpr(-1e30)
"""Score of a padded column: finite, so that a sequence of padding only has finite sums."""


@triton.jit
def _load(x, tokens, some, first, d, by_token, by_dim, step: tl.constexpr):
    """Load `(tokens, step)`, from the dimension `first` on; 0 for tokens that are not `some`, and beyond d."""
    dims = first + tl.arange(0, step)
    offsets = tokens[:, None] * by_token + dims[None, :] * by_dim
    return tl.load(x + offsets, mask=some[:, None] & (dims < d)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _score(
    x, y, rows, columns, some_rows, some_columns, d, scale, by_token, by_dim,
    tile: tl.constexpr, step: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """Return the scores of `rows` of x and `columns` of y."""
    products = tl.zeros((tile, tile), tl.float32)
    for first in range(0, d, step):
        of_rows = _load(x, rows, some_rows, first, d, by_token, by_dim, step)
        of_columns = _load(y, columns, some_columns, first, d, by_token, by_dim, step)
        products += tl.dot(of_rows, tl.trans(of_columns), input_precision=precision)
    return products * scale


@triton.jit
def _add_exponentials(total, highest, scores):
    """Return a sum of exponentials with those of `scores` added, and the number by which exponents are lowered."""
    higher = tl.maximum(highest, tl.max(scores, 1))
    total = total * tl.exp(highest - higher) + tl.sum(tl.exp(scores - higher[:, None]), 1)
    return total, higher


@triton.jit
def log_sum_exp_kernel(
    u, v, weights, log_sums, tokens, relation_heads, d, scale, by_sequence, by_token, by_head, by_dim,
    tile: tl.constexpr, step: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """Write the log-sum-exp of each row of scores."""
    matrix = tl.program_id(1).to(tl.int64)
    sequence, head = matrix // relation_heads, matrix % relation_heads
    start = sequence * by_sequence + head * by_head
    rows = tl.program_id(0) * tile + tl.arange(0, tile)
    in_rows = rows < tokens
    highest, total = tl.full((tile,), _MASKED, tl.float32), tl.zeros((tile,), tl.float32)
    for first in range(0, tokens, tile):
        columns = first + tl.arange(0, tile)
        in_columns = columns < tokens
        seen = tl.load(weights + sequence * tokens + columns, mask=in_columns, other=0.0) > 0
        scores = _score(
            u + start, v + start, rows, columns, in_rows, in_columns, d, scale, by_token, by_dim, tile, step, precision
        )  # fmt: skip
        total, highest = _add_exponentials(total, highest, tl.where(seen[None, :], scores, _MASKED))
    tl.store(log_sums + matrix * tokens + rows, highest + tl.log(total), mask=in_rows)


@triton.jit
def loss_kernel(
    x, y, u, v, weights, teacher_log_sums, log_sums, losses, tokens, relation_heads, factor,
    d, scale, by_sequence, by_token, by_head, by_dim,
    u_d, u_scale, u_by_sequence, u_by_token, u_by_head, u_by_dim,
    kl: tl.constexpr, tile: tl.constexpr,
    step: tl.constexpr, precision: tl.constexpr, u_step: tl.constexpr, u_precision: tl.constexpr,
):  # fmt: skip
    """Write the weighted loss of each row, and for `kl` the log-sum-exp of its scores."""
    matrix = tl.program_id(1).to(tl.int64)
    sequence, head = matrix // relation_heads, matrix % relation_heads
    start = sequence * by_sequence + head * by_head
    u_start = sequence * u_by_sequence + head * u_by_head
    rows = tl.program_id(0) * tile + tl.arange(0, tile)
    in_rows = rows < tokens
    row_weights = tl.load(weights + sequence * tokens + rows, mask=in_rows, other=0.0)
    teacher_log_sum = tl.zeros((tile,), tl.float32)
    if kl:
        teacher_log_sum = tl.load(teacher_log_sums + matrix * tokens + rows, mask=in_rows, other=0.0)
    highest, total = tl.full((tile,), _MASKED, tl.float32), tl.zeros((tile,), tl.float32)
    loss = tl.zeros((tile,), tl.float32)
    for first in range(0, tokens, tile):
        columns = first + tl.arange(0, tile)
        in_columns = columns < tokens
        column_weights = tl.load(weights + sequence * tokens + columns, mask=in_columns, other=0.0)
        seen = (row_weights > 0)[:, None] & (column_weights > 0)[None, :]
        scores = _score(
            x + start, y + start, rows, columns, in_rows, in_columns, d, scale, by_token, by_dim, tile, step, precision
        )  # fmt: skip
        target = _score(
            u + u_start, v + u_start, rows, columns, in_rows, in_columns, u_d, u_scale, u_by_token, u_by_dim,
            tile, u_step, u_precision,
        )  # fmt: skip
        if kl:
            target -= teacher_log_sum[:, None]
            loss += tl.sum(tl.where(seen, tl.exp(target) * (target - scores), 0.0), 1)
            total, highest = _add_exponentials(total, highest, tl.where(seen, scores, _MASKED))
        else:
            difference = tl.where(seen, scores - target, 0.0)
            loss += tl.sum(difference * difference, 1)
    if kl:
        log_sum = highest + tl.log(total)
        loss = tl.where(row_weights > 0, loss + log_sum, 0.0)
        tl.store(log_sums + matrix * tokens + rows, log_sum, mask=in_rows)
    tl.store(losses + matrix * tokens + rows, factor * row_weights * loss, mask=in_rows)


@triton.jit
def gradient_kernel(
    x, y, u, v, weights, teacher_log_sums, log_sums, gradient, tokens, relation_heads, factor,
    d, scale, by_sequence, by_token, by_head, by_dim,
    u_d, u_scale, u_by_sequence, u_by_token, u_by_head, u_by_dim,
    as_rows: tl.constexpr, as_columns: tl.constexpr, add: tl.constexpr,
    kl: tl.constexpr, tile: tl.constexpr,
    step: tl.constexpr, precision: tl.constexpr, u_step: tl.constexpr, u_precision: tl.constexpr,
):  # fmt: skip
    """Write the gradient of x: as the rows of X Yᵀ, as the columns of Y Xᵀ, or as both, if Y is X.

    add: whether to add the gradient to what is there.
    """
    matrix = tl.program_id(1).to(tl.int64)
    sequence, head = matrix // relation_heads, matrix % relation_heads
    start = sequence * by_sequence + head * by_head
    u_start = sequence * u_by_sequence + head * u_by_head
    weights += sequence * tokens
    log_sums += matrix * tokens
    teacher_log_sums += matrix * tokens
    own = tl.program_id(0) * tile + tl.arange(0, tile)
    in_own = own < tokens
    own_weights = tl.load(weights + own, mask=in_own, other=0.0)
    own_log_sums, own_teacher_log_sums = tl.zeros((tile,), tl.float32), tl.zeros((tile,), tl.float32)
    if kl:
        own_log_sums = tl.load(log_sums + own, mask=in_own, other=0.0)
        own_teacher_log_sums = tl.load(teacher_log_sums + own, mask=in_own, other=0.0)
    first_dim = tl.program_id(2) * step
    found = tl.zeros((tile, step), tl.float32)
    for first in range(0, tokens, tile):
        others = first + tl.arange(0, tile)
        in_others = others < tokens
        other_weights = tl.load(weights + others, mask=in_others, other=0.0)
        seen = (own_weights > 0)[:, None] & (other_weights > 0)[None, :]
        scores = _score(
            x + start, y + start, own, others, in_own, in_others, d, scale, by_token, by_dim, tile, step, precision
        )  # fmt: skip
        target = _score(
            u + u_start, v + u_start, own, others, in_own, in_others, u_d, u_scale, u_by_token, u_by_dim,
            tile, u_step, u_precision,
        )  # fmt: skip
        in_scores = tl.zeros((tile, tile), tl.float32)
        if as_rows:
            if kl:
                error = tl.exp(scores - own_log_sums[:, None]) - tl.exp(target - own_teacher_log_sums[:, None])
            else:
                error = 2 * (scores - target)
            in_scores += own_weights[:, None] * error
        if as_columns:
            if kl:
                other_log_sums = tl.load(log_sums + others, mask=in_others, other=0.0)
                other_teacher_log_sums = tl.load(teacher_log_sums + others, mask=in_others, other=0.0)
                error = tl.exp(scores - other_log_sums[None, :]) - tl.exp(target - other_teacher_log_sums[None, :])
            else:
                error = 2 * (scores - target)
            in_scores += other_weights[None, :] * error
        of_others = _load(y + start, others, other_weights > 0, first_dim, d, by_token, by_dim, step)
        found += tl.dot(tl.where(seen, in_scores, 0.0), of_others, input_precision="ieee")
    found *= factor * scale
    dims = first_dim + tl.arange(0, step)
    places = gradient + ((sequence * tokens + own)[:, None] * relation_heads + head) * d + dims[None, :]
    inside = in_own[:, None] & (dims < d)[None, :]
    if add:
        found += tl.load(places, mask=inside, other=0.0)
    tl.store(places, found, mask=inside)


def _tile(size: int) -> int:
    """Return the size of tiles along an axis of `size`; the least that a matrix product takes is 16."""
    fitting: int = triton.next_power_of_2(size)
    return min(TILE, max(16, fitting))


@dataclass(frozen=True)
class Heads:
    """Relation heads of the rows and columns of a relation, as arguments of kernels.

    sides: X and Y, each `(B, T, R, d)`, of the same strides and type.
    """

    sides: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, rows: Tensor, columns: Tensor) -> Heads:
        """Return the heads of X and Y of any strides and types."""
        if rows.stride() != columns.stride() or rows.dtype != columns.dtype:
            rows, columns = (x.to(torch.promote_types(rows.dtype, columns.dtype)).contiguous() for x in (rows, columns))
        return cls((rows, columns))

    @property
    def layout(self) -> tuple[float, ...]:
        """Return d, the scale of scores, and the strides of a sequence, a token, a head and a dimension."""
        d = self.sides[0].shape[-1]
        return d, d**-0.5, *self.sides[0].stride()

    @property
    def step(self) -> int:
        """Return the number of dimensions that are loaded at once."""
        return _tile(self.sides[0].shape[-1])

    @property
    def precision(self) -> str:
        """Return the precision of products. TF32 holds numbers of 16 bits exactly."""
        return "ieee" if self.sides[0].dtype == torch.float32 else "tf32"

    def swapped(self) -> Heads:
        """Return the heads of the transposed relation."""
        return Heads(self.sides[::-1])


@dataclass(frozen=True)
class KernelTarget:
    """Teacher's side of one relation.

    heads: the teacher's relation heads.
    row_weight: `(B, T)` float32, weight of each row of scores; 0 for padding.
    log_sums: log-sum-exp of each row of scores `(B, R, T)` for `kl`; None for `mse`.
    """

    heads: Heads
    row_weight: Tensor
    log_sums: Tensor | None

    @classmethod
    def of(cls, heads: Heads, row_weight: Tensor, loss: str) -> KernelTarget:
        """Compute the target of the loss with the name `loss`."""
        if loss == "mse":
            return cls(heads, row_weight, None)
        batch, tokens, relation_heads, _ = heads.sides[0].shape
        log_sums = torch.empty(batch, relation_heads, tokens, device=row_weight.device)
        sizes = tokens, relation_heads, *heads.layout
        constants = _tile(tokens), heads.step, heads.precision
        with torch.cuda.device_of(row_weight):
            log_sum_exp_kernel[_grid(log_sums)](*heads.sides, row_weight, log_sums, *sizes, *constants, **OPTIONS)
        return cls(heads, row_weight, log_sums)


def _grid(of_rows: Tensor) -> tuple[int, int]:
    """Return the number of row tiles and of matrices, for a tensor of one number for each row `(B, R, T)`."""
    batch, relation_heads, tokens = of_rows.shape
    return triton.cdiv(tokens, _tile(tokens)), batch * relation_heads


class KernelLoss(Function):
    """Weighted sum of the losses of relations; their gradients are computed with it.

    `apply` takes the relations as `(rows, columns, weight)` with indices into (queries, keys, values); their targets;
    and the student's queries, keys and values, each `(B, T, R, d)`.
    """

    @staticmethod
    def forward(
        ctx: Any, relations: Sequence[tuple[int, int, float]], targets: Sequence[KernelTarget], *projections: Tensor
    ) -> Tensor:
        """Compute the loss, and the gradients of the projections that need them."""
        batch, tokens, relation_heads, _ = projections[0].shape
        losses = torch.empty(len(relations), batch, relation_heads, tokens, device=projections[0].device)
        gradients: dict[int, Tensor] = {}
        with torch.cuda.device_of(losses):
            for (rows, columns, weight), target, of_rows in zip(relations, targets, losses, strict=True):
                heads, teacher = Heads.of(projections[rows], projections[columns]), target.heads
                kl = target.log_sums is not None
                # `mse` has no log-sum-exps: its kernels get any tensor and leave it alone.
                sums = (target.log_sums, torch.empty_like(of_rows)) if kl else (of_rows, of_rows)
                sizes = tokens, relation_heads, weight, *heads.layout, *teacher.layout
                constants = kl, _tile(tokens), heads.step, heads.precision, teacher.step, teacher.precision
                sides = *heads.sides, *teacher.sides, target.row_weight, *sums
                loss_kernel[_grid(of_rows)](*sides, of_rows, *sizes, *constants, **OPTIONS)
                for side in dict.fromkeys((rows, columns)):
                    if not ctx.needs_input_grad[2 + side]:
                        continue
                    if side != rows:
                        heads, teacher = heads.swapped(), teacher.swapped()
                        sides = *heads.sides, *teacher.sides, target.row_weight, *sums
                    part = side == rows, side == columns, side in gradients
                    if side not in gradients:
                        gradients[side] = torch.empty(projections[side].shape, device=losses.device)
                    grid = *_grid(of_rows), triton.cdiv(projections[side].shape[-1], heads.step)
                    gradient_kernel[grid](*sides, gradients[side], *sizes, *part, *constants, **OPTIONS)
        ctx.sides = [(side, projections[side].dtype) for side in gradients]
        ctx.save_for_backward(*gradients.values())
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients, times that of the loss."""
        in_projections: list[Tensor | None] = [None] * 3
        for (side, dtype), gradient in zip(ctx.sides, ctx.saved_tensors, strict=True):
            in_projections[side] = (gradient * grad_outputs[0]).to(dtype)
        return None, None, *in_projections
