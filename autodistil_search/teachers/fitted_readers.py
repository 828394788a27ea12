"""Linear layers of a teacher that read its most important dimensions in the place of all.

A student has fewer hidden dimensions and FFN neurons than its teacher. Those that vary most are kept. What the others
would have added to a linear layer is predicted from those that are kept, by least squares, and becomes part of its
weights. Hidden dimensions are sorted, not mixed, so the weights of layer norms still fit them. Letters: H hidden size,
F FFN width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autodistil_search.base.device import as_float64
from autodistil_search.teachers.averages import averages, linear
from autodistil_search.teachers.teacher import Teacher

_RIDGE = 1e-4
"""Share of the mean second moment of the inputs that `fit_inputs` adds: it keeps weights where nothing varies."""

_LEAST_RIDGE = 1e-9
"""For inputs that are always 0."""


@dataclass(frozen=True)
class ReadMoments:
    """Second moments of what the layers' linear modules read, with a constant 1 as the last dimension.

    Attributes:
        hidden: Of the inputs of query, key and value, and of `ffn_in`, of each layer in turn, `(H + 1, H + 1)` each.
        ffn: Of the input of each layer's `ffn_out`, `(F + 1, F + 1)` each.
    """

    hidden: list[Tensor]
    ffn: list[Tensor]


def read_moments(teacher: Teacher, sample_ids: Tensor) -> ReadMoments:
    """Return the moments of what the teacher's layers read in a sample of text, `(N, T)` token ids."""
    layers = range(teacher.subnet.layers)
    places = [(layer, part) for layer in layers for part in ("query", "ffn_in")]
    places += [(layer, "ffn_out") for layer in layers]
    found = averages(teacher, sample_ids, [(linear(teacher, *place), _moment) for place in places])
    return ReadMoments(found[: 2 * len(layers)], found[2 * len(layers) :])


def _moment(x: Tensor, _: Tensor) -> Tensor:
    """Return the sum over tokens of (x, 1) (x, 1)ᵀ, for inputs x `(tokens, n)`."""
    x = torch.cat([x, x.new_ones(len(x), 1)], 1)
    moment: Tensor = x.mT @ x
    return moment


def most_varied(moments: ReadMoments) -> Tensor:
    """Return the places of the hidden dimensions, those of largest variance first.

    A variance is a share of the variance of all dimensions, summed over the places where hidden states are read.
    """
    variances = [as_float64(moment.diagonal()[:-1]) - as_float64(moment[-1, :-1]).square() for moment in moments.hidden]
    return torch.stack([variance / variance.sum() for variance in variances]).sum(0).argsort(descending=True)


def fit_readers(
    turned: Teacher, moments: ReadMoments, order: Tensor, widths: Sequence[int], ffn_sizes: Sequence[int]
) -> None:
    """Let linear layers read the leading dimensions and neurons in the place of all. What is not cut stays as it is.

    The neurons are sorted by their effect: the second moment of their output times the squared norm of their weights in
    `ffn_out`.

    Args:
        turned: Copy of the teacher with sorted hidden dimensions, changed in place.
        moments: Moments of the teacher, unsorted.
        order: Places in the teacher of the sorted dimensions.
        widths: Hidden sizes that the student can have.
        ffn_sizes: FFN widths that the student can have.
    """
    for layer in range(turned.subnet.layers):
        into, out = linear(turned, layer, "ffn_in"), linear(turned, layer, "ffn_out")
        if min(widths) < len(order):
            attention, ffn = (_sorted(moment, order) for moment in moments.hidden[2 * layer : 2 * layer + 2])
            for part in ("query", "key", "value"):
                fit_inputs(linear(turned, layer, part), attention, widths)
            fit_inputs(into, ffn, widths)
        if min(ffn_sizes) < out.in_features:
            effects = moments.ffn[layer].diagonal()[:-1] * out.weight.square().sum(0)
            neurons = effects.argsort(descending=True)
            into.weight.copy_(into.weight[neurons])
            into.bias.copy_(into.bias[neurons])
            out.weight.copy_(out.weight[:, neurons])
            fit_inputs(out, _sorted(moments.ffn[layer], neurons), ffn_sizes)


def _sorted(moment: Tensor, order: Tensor) -> Tensor:
    """Return a moment `(n + 1, n + 1)` with its dimensions in another order, and the constant last as before."""
    moment = as_float64(moment)
    places = torch.cat([order, order.new_tensor([len(order)])]).to(moment.device)
    return moment[places][:, places]


def fit_inputs(module: nn.Linear, moment: Tensor, widths: Sequence[int]) -> None:
    """Fit the weights of leading inputs so that the output is nearest to that of all inputs, for any of the widths.

    The squared error, summed over the widths, has its minimum in a closed form. Let W be the weights with the bias as
    the last column, M the moment, and E_w the projection on the first w inputs and the constant. The fitted weights are
    W (sum_w M E_w + r) (sum_w E_w M E_w + r)^-1. A small r keeps them as they are where nothing varies.

    Args:
        module: Linear layer of n inputs, changed in place. Weights beyond the largest width stay as they are.
        moment: Second moment of its inputs and a constant 1, `(n + 1, n + 1)`, in float64 if the device has it.
        widths: Numbers of leading inputs that students read; those above n count as n.
    """
    n = module.in_features
    gram, cross = torch.zeros_like(moment), torch.zeros_like(moment)
    for width in (min(width, n) for width in widths):
        read = _leading(width, n, moment)
        gram[read[:, None], read] += moment[read[:, None], read]
        cross[:, read] += moment[:, read]
    ridge = (_RIDGE * gram.diagonal()[:-1].mean()).clamp(min=_LEAST_RIDGE)
    gram.diagonal().add_(ridge)
    cross.diagonal().add_(ridge)
    most = min(max(widths), n)
    read = _leading(most, n, moment)
    weight = torch.cat([as_float64(module.weight), as_float64(module.bias)[:, None]], 1)  # (out, n + 1)
    fitted = torch.linalg.solve(gram[read[:, None], read], (weight @ cross[:, read]).mT).mT  # (out, most + 1)
    module.weight[:, :most] = fitted[:, :-1].to(module.weight)
    module.bias.copy_(fitted[:, -1])


def _leading(width: int, n: int, like: Tensor) -> Tensor:
    """Return the places of the first `width` of n inputs and of the constant."""
    return torch.cat([torch.arange(width, device=like.device), torch.tensor([n], device=like.device)])
