"""A subnet by its sizes alone, and the layers that a shallower one keeps. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

Genome = tuple[int, ...]
"""Index of the choice taken in each of a space's `dimensions`; what search engines vary."""

DIMENSIONS = ("layers", "hidden_size", "mlp_ratio", "heads")
"""What a space gives values for."""

PER_LAYER = ("mlp_ratio", "heads")
"""Those that may be chosen for each layer."""

DepthRule = Literal["first_last", "uniform", "prefix"]


@dataclass(frozen=True, order=True)
class Subnet:
    """One architecture: the sizes its module is built with.

    Where layers differ, `ffn_size` and `heads` are the largest of all layers: the sizes a SuperLM must have.

    Attributes:
        each: FFN size and heads of each layer, first to last; empty where all layers are alike, so that an architecture
            has one description only. See `of_layers`.
    """

    layers: int
    hidden_size: int
    ffn_size: int
    heads: int
    head_dim: int
    each: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.each and (
            len(self.each) != self.layers
            or len(set(self.each)) == 1
            or (self.ffn_size, self.heads) != tuple(map(max, zip(*self.each, strict=True)))
        ):
            raise ValueError(f"layers {self.each} do not go with {self.layers} x {self.ffn_size}, {self.heads} heads")

    @classmethod
    def of_layers(cls, hidden_size: int, ffn_sizes: Sequence[int], heads: Sequence[int], head_dim: int) -> Self:
        """The subnet whose layers have those FFN sizes and heads, first to last."""
        each = tuple(zip(ffn_sizes, heads, strict=True))
        return cls(len(each), hidden_size, max(ffn_sizes), max(heads), head_dim, each if len(set(each)) > 1 else ())

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The subnet that `row` stands for: the way back from `to_row`, with text for numbers or without."""
        layers, hidden_size, head_dim = (int(row[key]) for key in ("layers", "hidden_size", "head_dim"))
        ratios, heads = (_each(row[key], layers) for key in PER_LAYER)
        return cls.of_layers(
            hidden_size, [round(hidden_size * ratio) for ratio in ratios], list(map(int, heads)), head_dim
        )

    def to_row(self) -> dict[str, int | float | str]:
        """The sizes as columns of a table; what differs from layer to layer is joined: "4-6-6-8"."""
        ratios = [f"{sizes.mlp_ratio:g}" for sizes in self.each_layer]
        heads = [str(sizes.heads) for sizes in self.each_layer]
        return {
            "layers": self.layers,
            "hidden_size": self.hidden_size,
            "mlp_ratio": self.mlp_ratio if len(set(ratios)) == 1 else "-".join(ratios),
            "heads": self.heads if len(set(heads)) == 1 else "-".join(heads),
            "head_dim": self.head_dim,
        }

    @cached_property
    def each_layer(self) -> tuple[Subnet, ...]:
        """The sizes of each layer, first to last, as a subnet of that layer alone."""
        each = self.each or ((self.ffn_size, self.heads),) * self.layers
        return tuple(Subnet(1, self.hidden_size, ffn_size, heads, self.head_dim) for ffn_size, heads in each)

    def first(self, layers: int) -> Subnet:
        """Its first so many layers."""
        kept = self.each_layer[:layers]
        ffn_sizes, heads = [sizes.ffn_size for sizes in kept], [sizes.heads for sizes in kept]
        return Subnet.of_layers(self.hidden_size, ffn_sizes, heads, self.head_dim)

    @property
    def mlp_ratio(self) -> float:
        """FFN width over hidden size, the largest of all layers."""
        return self.ffn_size / self.hidden_size

    @property
    def attention_width(self) -> int:
        """Width of Q, K and V, `heads * head_dim` whatever the hidden size: the largest of all layers."""
        return self.heads * self.head_dim

    def __str__(self) -> str:
        row = self.to_row()
        ratio, heads = (value if isinstance(value, str) else f"{value:g}" for value in (row["mlp_ratio"], row["heads"]))
        return f"{self.layers}x{self.hidden_size}, ratio {ratio}, {heads} heads of {self.head_dim}"


def _each(value: float | str, layers: int) -> list[float]:
    """What `Subnet.to_row` says of every layer."""
    numbers = [float(number) for number in str(value).split("-")]
    return numbers * layers if len(numbers) == 1 else numbers


def kept_layers(layers: int, total: int, rule: DepthRule) -> list[int]:
    """Indices of the `total` layers of a SuperLM that a subnet of `layers` layers uses, ascending.

    first_last: round(i (total-1) / (layers-1)), halves up: both ends are always kept, so that subnets of
    every depth share the last layer, where the distillation target sits. uniform: floor(i total / layers),
    as the released AutoDistil code drops layers. prefix: the first `layers` layers.
    """
    if rule == "prefix":
        return list(range(layers))
    if rule == "uniform":
        return [i * total // layers for i in range(layers)]
    if layers == 1:
        return [total - 1]
    gaps = layers - 1
    return [(2 * i * (total - 1) + gaps) // (2 * gaps) for i in range(layers)]
