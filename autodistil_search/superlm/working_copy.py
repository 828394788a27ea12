"""Copies of weights in the precision of a training step, and the sums of the gradients of their slices.

Several subnets of a SuperLM run in a step, each on leading slices of the same weights. Under autocast, each of them
would cast its slices anew, and autograd would pad the gradient of each slice to the size of the whole matrix. Here all
weights are cast once a step, and the gradient of a slice is added to the leading part of one float32 sum.

Letters in shapes: P products that share their input (queries, keys and values, or one), W and H their widest output
and input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function


@dataclass(eq=False)
class WorkingCopy:
    """Copy of a module's weight and bias in the precision of a step, and the sums of their gradients.

    Attributes:
        weight: `(P, W, H)` of linear layers, `(W,)` of a norm.
        bias: `(P, W)` of linear layers, `(W,)` of a norm.
        weight_sum: Sum of the gradients of `weight`, in float32.
        bias_sum: Sum of the gradients of `bias`, in float32.
        used: True if a backward pass of this step has added to the sums.
        when_added: Function that is called once, after the next addition to the sums.
        given: True once it was called.
    """

    weight: Tensor
    bias: Tensor
    weight_sum: Tensor
    bias_sum: Tensor
    used: bool = False
    when_added: Callable[[], None] | None = None
    given: bool = False

    def part(self, i: int) -> WorkingCopy:
        """Return the working copy of one of the products."""
        only = slice(i, i + 1)
        return WorkingCopy(self.weight[only], self.bias[only], self.weight_sum[only], self.bias_sum[only])

    def linear(self, x: Tensor, n_out: int) -> Tensor:
        """Map `(..., n_in)` to `(..., P n_out)` by the leading rows and columns of each product."""
        return cast(Tensor, _Linear.apply(x, self, n_out))

    def norm(self, x: Tensor, eps: float) -> Tensor:
        """Normalize `(..., n)` with the leading weights; the shape stays the same."""
        return cast(Tensor, _Norm.apply(x, self, eps))

    def add(self, weight: Tensor, bias: Tensor) -> None:
        """Add the gradients of leading slices of weight and bias to the sums."""
        self.used = True
        for total, part in ((self.weight_sum, weight), (self.bias_sum, bias)):
            total[tuple(map(slice, part.shape))].add_(part)
        if self.when_added is not None:
            self.when_added()
            self.given, self.when_added = True, None


class _Linear(Function):
    """Product with a leading slice of the weights; the gradient of the slice goes to the sum, not to autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, copy: WorkingCopy, n_out: int) -> Tensor:
        weight = copy.weight[:, :n_out, : x.shape[-1]].flatten(0, 1)
        ctx.save_for_backward(x, weight)
        ctx.copy = copy
        ctx.set_materialize_grads(False)
        return torch.nn.functional.linear(x, weight, copy.bias[:, :n_out].flatten())

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_outputs[0] is None:  # no loss uses the output
            return None, None, None
        x, weight = ctx.saved_tensors
        outer = grad_outputs[0].flatten(0, -2)
        products = len(ctx.copy.bias)
        of_weight = outer.mT @ x.flatten(0, -2)
        ctx.copy.add(of_weight.unflatten(0, (products, -1)), outer.sum(0).unflatten(0, (products, -1)))
        return (outer @ weight).view_as(x), None, None


class _Norm(Function):
    """Layer norm with leading weights; their gradients go to the sums, not to autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, copy: WorkingCopy, eps: float) -> Tensor:
        n = x.shape[-1]
        weight, bias = copy.weight[:n], copy.bias[:n]
        out, mean, reciprocal = torch.native_layer_norm(x, (n,), weight, bias, eps)
        ctx.save_for_backward(x, mean, reciprocal, weight, bias)
        ctx.copy = copy
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, reciprocal, weight, bias = ctx.saved_tensors
        of_x, of_weight, of_bias = torch.ops.aten.native_layer_norm_backward(
            grad_outputs[0], x, x.shape[-1:], mean, reciprocal, weight, bias, [True, True, True]
        )
        ctx.copy.add(of_weight, of_bias)
        return of_x, None, None
