"""Self-attention relation losses: how far a student's Q, K and V relate tokens unlike the teacher's.

Q, K and V of one layer are each split into `relation_heads` heads, whatever heads attention itself has, and
their scaled dot products X Xᵀ / √d are the relation scores (MiniLMv2, arXiv 2012.15828). Two losses: `kl`, the
divergence KL(teacher ‖ student) of the softmaxed scores (MiniLMv2), and `mse` on the raw scores (what the
released AutoDistil code does). Shapes: B sequences, R relation heads, T tokens, d = width / R.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


@dataclass(frozen=True)
class RelationTarget:
    """What the student must match, computed once from the teacher and used for any number of students.

    tables: for QQ, KK and VV a `(B, R, T, T)` float32 tensor: softmaxed scores times their row's weight
        for `kl`, raw scores for `mse`.
    offset: what the fixed table alone adds to the `kl` loss (minus the weighted entropy); 0 for `mse`.
    row_weight: `(B, 1, T, 1)`, zero for padding; sums to 1 / R over all rows.
    padding: `(B, 1, 1, T)`, True for padding; None if there is none.
    """

    loss: str
    tables: tuple[Tensor, ...]
    offset: float
    row_weight: Tensor
    padding: Tensor | None
    relation_heads: int


def split_heads(x: Tensor, relation_heads: int) -> Tensor:
    """`(B, T, width)` to `(B, R, T, d)` in float32.

    A width that R does not divide is first padded with zeros, which leaves every dot product as it is: the last
    head is then narrower, and nothing is cut off. Search spaces are checked so that this is never needed for them.
    """
    if missing := -x.shape[-1] % relation_heads:
        x = torch.nn.functional.pad(x, (0, missing))
    heads: Tensor = x.float().unflatten(-1, (relation_heads, -1))
    return heads.transpose(1, 2)


def relation_scores(x: Tensor, padding: Tensor | None = None) -> Tensor:
    """X Xᵀ / √d of `(B, R, T, d)`, as `(B, R, T, T)`; padded columns get the lowest finite number."""
    scores: Tensor = (x * x.shape[-1] ** -0.5) @ x.transpose(-1, -2)
    if padding is not None:
        scores.masked_fill_(padding, torch.finfo(scores.dtype).min)
    return scores


class _FusedKL(Function):
    """Row-weighted KL(teacher ‖ student) but for the teacher's own entropy, from the student's `(B, R, T, d)`.

    With p the teacher's softmax and s the student's scores, KL needs only logsumexp(s) - Σ p s, and its gradient
    in s is softmax(s) - p. The gradient is taken on to x at once, G x + Gᵀ x, so that one `(B, R, T, T)` buffer
    serves the whole way and only a `(B, R, T, d)` tensor waits for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weighted_p: Tensor, row_weight: Tensor, padding: Tensor | None) -> Tensor:
        scores = relation_scores(x, padding)
        log_sum = scores.logsumexp(dim=-1, keepdim=True)
        value = (log_sum * row_weight).sum() - torch.dot(weighted_p.flatten(), scores.flatten())
        if ctx.needs_input_grad[0]:
            gradient = scores.sub_(log_sum).exp_().mul_(row_weight).sub_(weighted_p)
            scale = x.shape[-1] ** -0.5
            ctx.save_for_backward((gradient @ x + gradient.transpose(-1, -2) @ x).mul_(scale))
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0], None, None, None


def _kl(x: Tensor, table: Tensor, target: RelationTarget) -> Tensor:
    value: Tensor = _FusedKL.apply(x, table, target.row_weight, target.padding)
    return value


def _mse(x: Tensor, table: Tensor, target: RelationTarget) -> Tensor:
    squares = (relation_scores(x) - table).square_()
    if target.padding is None:
        return (squares.mean(dim=-1, keepdim=True) * target.row_weight).sum()
    shown = ~target.padding
    means = (squares * shown).sum(dim=-1, keepdim=True) / shown.sum(dim=-1, keepdim=True).clamp(min=1)
    return (means * target.row_weight).sum()


LOSSES: dict[str, Callable[[Tensor, Tensor, RelationTarget], Tensor]] = {"kl": _kl, "mse": _mse}


@torch.no_grad()
def relation_target(
    projections: Sequence[Tensor], attention_mask: Tensor | None, relation_heads: int, loss: str = "kl"
) -> RelationTarget:
    """The target made from a teacher's queries, keys and values.

    Args:
        projections: three `(B, T, width)` tensors.
        attention_mask: `(B, T)`, 0 for padding, or None if there is none. Padding counts in neither rows nor columns.
        relation_heads: R; see `split_heads` for widths that it does not divide.
        loss: one of `LOSSES`.
    """
    batch, tokens, _ = projections[0].shape
    device = projections[0].device
    if attention_mask is None:
        rows, padding = torch.ones(batch, tokens, device=device), None
    else:
        rows, padding = (attention_mask != 0).float(), (attention_mask == 0)[:, None, None, :]
    row_weight = (rows / (rows.sum() * relation_heads))[:, None, :, None]
    heads = [split_heads(each, relation_heads) for each in projections]
    with torch.autocast(device.type, enabled=False):
        if loss == "mse":
            tables, offset = [relation_scores(each) for each in heads], 0.0
        else:
            logs = [relation_scores(each, padding).log_softmax(dim=-1) for each in heads]
            tables = [log.exp().mul_(row_weight) for log in logs]
            offset = sum(float((table * log).sum()) for table, log in zip(tables, logs, strict=True))
    return RelationTarget(loss, tuple(tables), offset, row_weight, padding, relation_heads)


def relation_loss(projections: Sequence[Tensor], target: RelationTarget) -> Tensor:
    """The loss of a student's three `(B, T, width)` projections; lower is better.

    `kl`: nats, the mean over tokens and relation heads, summed over QQ, KK and VV. `mse`: the mean squared
    difference of scores, averaged and summed alike. Computed in float32 whatever the projections are in.
    """
    compute = LOSSES[target.loss]
    with torch.autocast(projections[0].device.type, enabled=False):
        parts = [
            compute(split_heads(each, target.relation_heads), table, target)
            for each, table in zip(projections, target.tables, strict=True)
        ]
        return torch.stack(parts).sum() + target.offset


def uniform_loss(target: RelationTarget) -> float:
    """The `kl` loss of a student that relates every token to all alike: what knowing nothing costs.

    For `mse`, the loss of scores that are all zero.
    """
    batch, _, tokens, _ = target.row_weight.shape
    nothing = torch.zeros(batch, tokens, target.relation_heads, device=target.row_weight.device)
    return float(relation_loss([nothing] * len(target.tables), target))
