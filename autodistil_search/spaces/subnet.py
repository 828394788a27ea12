"""Subnets as sizes without weights, and the layers that a shallower subnet keeps, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

Genome = tuple[int, ...]
"""Index of the selected value in each of a space's `dimensions`; search engines vary genomes."""

DIMENSIONS = ("layers", "hidden_size", "mlp_ratio", "heads")
"""Dimensions of a search space."""

PER_LAYER = ("mlp_ratio", "heads")
"""Dimensions that may be chosen for each layer."""

DepthRule = Literal["first_last", "uniform", "prefix"]


@dataclass(frozen=True, order=True)
class Subnet:
    """Architecture of an encoder: the sizes from which its module is built.

    If layers differ, `ffn_size` and `heads` are the largest of all layers, which are the sizes that a SuperLM needs.

    Attributes:
        layers: Number of layers.
        hidden_size: Hidden size.
        ffn_size: FFN width.
        heads: Number of attention heads.
        head_dim: Width of an attention head.
        each: FFN width and heads of each layer, first to last. The tuple is empty if all layers are equal, so that an
            architecture has only one description. See `of_layers`.
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
            raise ValueError(f"layers {self.each} do not match {self.layers} x {self.ffn_size}, {self.heads} heads")

    @classmethod
    def of_layers(cls, hidden_size: int, ffn_sizes: Sequence[int], heads: Sequence[int], head_dim: int) -> Self:
        """Return the subnet whose layers have the given FFN widths and heads, first to last."""
        sizes = tuple(zip(ffn_sizes, heads, strict=True))
        return cls(len(sizes), hidden_size, max(ffn_sizes), max(heads), head_dim, sizes if len(set(sizes)) > 1 else ())

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Return the subnet of a table's `row`, the inverse of `to_row`; numbers may be given as text."""
        layers, hidden_size, head_dim = (int(row[key]) for key in ("layers", "hidden_size", "head_dim"))
        ratios, heads = (_values_of_layers(row[key], layers) for key in PER_LAYER)
        return cls.of_layers(
            hidden_size, [round(hidden_size * ratio) for ratio in ratios], list(map(int, heads)), head_dim
        )

    def to_row(self) -> dict[str, int | float | str]:
        """Return the sizes as columns of a table; sizes that differ between layers are joined, such as "4-6-6-8"."""
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
        """Sizes of each layer, first to last, as subnets of one layer."""
        layer_sizes = self.each or ((self.ffn_size, self.heads),) * self.layers
        return tuple(Subnet(1, self.hidden_size, ffn_size, heads, self.head_dim) for ffn_size, heads in layer_sizes)

    def first(self, layers: int) -> Subnet:
        """Return the subnet of the first `layers` layers."""
        kept = self.each_layer[:layers]
        ffn_sizes, heads = [sizes.ffn_size for sizes in kept], [sizes.heads for sizes in kept]
        return Subnet.of_layers(self.hidden_size, ffn_sizes, heads, self.head_dim)

    @property
    def mlp_ratio(self) -> float:
        """Ratio of the FFN width to the hidden size, the largest of all layers."""
        return self.ffn_size / self.hidden_size

    @property
    def attention_width(self) -> int:
        """Width of Q, K and V, the largest of all layers: `heads * head_dim`, independent of the hidden size."""
        return self.heads * self.head_dim

    def __str__(self) -> str:
        row = self.to_row()
        ratio, heads = (value if isinstance(value, str) else f"{value:g}" for value in (row["mlp_ratio"], row["heads"]))
        return f"{self.layers}x{self.hidden_size}, ratio {ratio}, {heads} heads of {self.head_dim}"


def _values_of_layers(value: float | str, layers: int) -> list[float]:
    """Return the value of every layer from a column of `Subnet.to_row`."""
    numbers = [float(number) for number in str(value).split("-")]
    return numbers * layers if len(numbers) == 1 else numbers


def kept_layers(layers: int, total: int, rule: DepthRule) -> list[int]:
    """Return the indices, ascending, of the layers of a SuperLM that a shallower subnet uses.

    The rules are:

    - first_last: round(i (total-1) / (layers-1)), halves up. Both ends are always kept, so that subnets of every depth
      share the last layer, which learns the distillation target.
    - uniform: floor(i total / layers), as in the released AutoDistil code.
    - prefix: the first `layers` layers.

    Args:
        layers: Layers of the subnet.
        total: Layers of the SuperLM.
        rule: Rule that selects the layers.
    """
    if rule == "prefix":
        return list(range(layers))
    if rule == "uniform":
        return [i * total // layers for i in range(layers)]
    if layers == 1:
        return [total - 1]
    gaps = layers - 1
    return [(2 * i * (total - 1) + gaps) // (2 * gaps) for i in range(layers)]
