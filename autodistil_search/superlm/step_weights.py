"""Weights of a model in the precision of its training steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from autodistil_search.superlm.model import AutoDistilModel, ElasticLayer, ElasticLayerNorm, ElasticLinear
from autodistil_search.superlm.working_copy import WorkingCopy


class StepWeights:
    """Working copies of the layers of a model, cast once a step, and the sums of their gradients.

    Queries, keys and values of a layer are one product. The embeddings are not copied: their rows are looked up in the
    tables of the model. The gradient of the word embeddings has a row for every word; it has one buffer for all steps.

    Args:
        model: Model in training, on its device.
        dtype: Precision of the layers. Gradients are summed in float32, in buffers that stay where they are.
        maps: Further parameters that train with the model.

    Attributes:
        word_sums: Sum of the gradients of the word embeddings.
    """

    def __init__(self, model: AutoDistilModel, dtype: torch.dtype, maps: Iterable[nn.Parameter] = ()) -> None:
        layers = [cast(ElasticLayer, layer) for layer in model.layers]
        tables = [model.position_embeddings, model.token_type_embeddings, model.relative_attention_bias]
        self._others = [table.weight for table in tables if table is not None]
        self._others += maps
        copied = [weight for module in (model.embedding_norm, *layers) for weight in module.parameters()]
        self._dtype = dtype
        self._sums = torch.zeros(sum(weight.numel() for weight in (*self._others, *copied)), device=model.device)
        self._filled = 0
        self._users: list[tuple[ElasticLayer | ElasticLinear | ElasticLayerNorm, WorkingCopy]] = []
        self._gradients: list[tuple[Sequence[WorkingCopy], Tensor, Tensor]] = []
        self._casts: list[tuple[Tensor, Tensor]] = []
        self._layer_sums: list[tuple[WorkingCopy, Tensor]] = []
        self._words = model.word_embeddings.weight
        self.word_sums = torch.zeros_like(self._words)
        self._other_sums = [self._next_sums(1, weight.shape)[0] for weight in self._others]
        self._copy_norm(model.embedding_norm, torch.float32)
        self._rest = [self._sums[: self._filled], self.word_sums]
        for layer in layers:
            first = self._filled
            projections = self._copy_linears(layer, [layer.query, layer.key, layer.value])
            for linear in (layer.attention_output, layer.ffn_in, layer.ffn_out):
                self._copy_linears(linear, [linear])
            for norm in (layer.attention_norm, layer.ffn_norm):
                self._copy_norm(norm, dtype)
            self._layer_sums.append((projections, self._sums[first : self._filled]))

    def _copy_linears(self, user: ElasticLayer | ElasticLinear, linears: Sequence[ElasticLinear]) -> WorkingCopy:
        """Make the working copy with which `user` computes the products of `linears`, and one for each of these."""
        weights, weight_sums = self._copied([linear.weight for linear in linears], self._dtype)
        biases, bias_sums = self._copied([linear.bias for linear in linears], self._dtype)
        whole = WorkingCopy(weights, biases, weight_sums, bias_sums)
        self._users.append((user, whole))
        for i, linear in enumerate(linears):
            own = whole
            if linear is not user:
                own = whole.part(i)
                self._users.append((linear, own))
            self._gradients.append(((whole, own), linear.weight, weight_sums[i]))
            self._gradients.append(((whole, own), linear.bias, bias_sums[i]))
        return whole

    def _copy_norm(self, norm: ElasticLayerNorm, dtype: torch.dtype) -> None:
        """Make the working copy with which `norm` computes."""
        (weight,), (weight_sum,) = self._copied([norm.weight], dtype)
        (bias,), (bias_sum,) = self._copied([norm.bias], dtype)
        copy = WorkingCopy(weight, bias, weight_sum, bias_sum)
        self._users.append((norm, copy))
        self._gradients += [([copy], norm.weight, weight_sum), ([copy], norm.bias, bias_sum)]

    def _copied(self, parameters: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return one tensor to which `begin` copies `parameters` of one shape, and one for their gradients.

        A single parameter of this type needs no copy: the tensor is a view of it.
        """
        sums = self._next_sums(len(parameters), parameters[0].shape)
        if len(parameters) == 1 and parameters[0].dtype == dtype:
            return parameters[0].detach()[None], sums
        copies = torch.empty_like(sums, dtype=dtype)
        self._casts += zip(copies, parameters, strict=True)
        return copies, sums

    def _next_sums(self, count: int, shape: torch.Size) -> Tensor:
        """Return the next sums of the buffer, for `count` parameters of this shape."""
        first, self._filled = self._filled, self._filled + count * shape.numel()
        return self._sums[first : self._filled].view(count, *shape)

    @torch.no_grad()
    def begin(self) -> None:
        """Begin a step: copy the weights, and set the sums to zero."""
        self._sums.zero_()
        self.word_sums.zero_()
        for weight, total in zip(self._others, self._other_sums, strict=True):
            weight.grad = total
        for _, copy in self._users:
            copy.used, copy.given, copy.when_added = False, False, None
        torch._foreach_copy_([copy for copy, _ in self._casts], [weight for _, weight in self._casts])

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the model compute with the copies inside the context; backward passes may run after it."""
        for user, copy in self._users:
            user.working = copy
        try:
            yield
        finally:
            for user, _ in self._users:
                user.working = None

    def when_complete(self, receive: Callable[[Tensor], None]) -> None:
        """Give the sums of each layer to `receive` as soon as the next backward pass has completed them.

        `hand_over` returns the sums of layers that this pass does not complete.
        """
        for projections, sums in self._layer_sums:
            projections.when_added = partial(receive, sums)

    def unmark(self) -> list[WorkingCopy]:
        """Return the copies whose sums have changed since they were last unmarked or the step began; unmark them."""
        used = [copy for _, copy in self._users if copy.used]
        for copy in used:
            copy.used = False
        return used

    def mark(self, used: Iterable[WorkingCopy]) -> None:
        """Mark copies whose sums have changed."""
        for copy in used:
            copy.used = True

    def hand_over(self) -> list[Tensor]:
        """End a step: the sums become the gradients of the weights that were used.

        Returns the sums that were not given away before (`when_complete`).
        """
        for copies, weight, total in self._gradients:
            weight.grad = total if any(copy.used for copy in copies) else None
        self._words.grad = self.word_sums
        left = [sums for projections, sums in self._layer_sums if not projections.given]
        return [*self._rest, *left]
