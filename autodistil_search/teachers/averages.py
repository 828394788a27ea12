"""Averages over text of what modules of a teacher read and write, from which starts of students are computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from autodistil_search.teachers.teacher import Teacher

_BLOCKS_AT_ONCE = 16

Watched = tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]
"""Module, and function of its inputs and outputs `(tokens, n)` that returns sums over the tokens."""


def linear(teacher: Teacher, layer: int, part: str) -> nn.Linear:
    """Return a linear module of a layer of the teacher."""
    module = teacher.module(layer, part)
    assert isinstance(module, nn.Linear)
    return module


def averages(teacher: Teacher, sample_ids: Tensor, watched: Sequence[Watched]) -> list[Tensor]:
    """Return averages over the sample's tokens, one for each pair in `watched`."""
    sums: list[Tensor | float] = [0.0] * len(watched)

    def add(index: int, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sums[index] = sums[index] + watched[index][1](inputs[0].flatten(0, -2), output.flatten(0, -2))

    handles = [module.register_forward_hook(partial(add, index)) for index, (module, _) in enumerate(watched)]
    try:
        for batch in sample_ids.to(teacher.model.device).split(_BLOCKS_AT_ONCE):
            teacher.model(input_ids=batch)
    finally:
        for handle in handles:
            handle.remove()
    return [total / sample_ids.numel() for total in sums]  # type: ignore[misc]
