"""Baselines of the frontier: published shapes and results with their sources, and models measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autodistil_search.spaces.subnet import Subnet

if TYPE_CHECKING:
    import pandas as pd

TRUNCATED = "truncated, not trained"
COPY = "copy of the teacher, not trained"
DISTILLED = "distilled alone"
DRAWN = "drawn at random, distilled alone"
TINYBERT, MINILM = "by TinyBERT's own objective", "by MiniLM's own objective"
AS_IT_IS = "scored as it is"

SHAPES = {
    "TinyBERT 4x312": Subnet(layers=4, hidden_size=312, ffn_size=1200, heads=12, head_dim=26),
    "TinyBERT 6x768": Subnet(layers=6, hidden_size=768, ffn_size=3072, heads=12, head_dim=64),
    "MiniLM 3x384": Subnet(layers=3, hidden_size=384, ffn_size=1536, heads=12, head_dim=32),
    "MiniLM 6x384": Subnet(layers=6, hidden_size=384, ffn_size=1536, heads=12, head_dim=32),
    "MiniLM 12x384": Subnet(layers=12, hidden_size=384, ffn_size=1536, heads=12, head_dim=32),
    "MiniLM 6x768": Subnet(layers=6, hidden_size=768, ffn_size=3072, heads=12, head_dim=64),
}
"""Shapes of TinyBERT (arXiv 1909.10351) and MiniLM (arXiv 2002.10957 and 2012.15828), by family and size."""

FAMILIES = {"shapes": ("TinyBERT", "MiniLM"), "tinybert": ("TinyBERT",), "minilm": ("MiniLM",)}
"""Families of the shapes that a word of `--baselines` stands for. A size may follow the word, as in tinybert:6x768."""

_SHALLOW_TEACHER = 6
"""Largest number of layers of a teacher for which shapes of `_SHALLOW` layers are baselines by default."""
_SHALLOW = 3


def _named_shapes() -> tuple[str, ...]:
    """Return the words of `--baselines` that name a single shape."""
    sizes = {word: [name.split() for name in SHAPES if name.split()[0] in FAMILIES[word]] for word in FAMILIES}
    return tuple(dict.fromkeys(f"{word}:{size}" for word, names in sizes.items() for _, size in names))


NAMED_SHAPES = _named_shapes()
"""Words of `--baselines` that name a single shape."""


def shapes_named(word: str, teacher: Subnet) -> dict[str, Subnet]:
    """Return the shapes that a word of `--baselines` stands for, by name.

    A word with a size stands for that shape. A word without one stands for the shapes of its families that fit the
    teacher: neither more layers nor a larger hidden size, and 3 layers only for teachers of at most 6. Families that
    share a shape share a name, such as "TinyBERT/MiniLM 6x768".

    Args:
        word: Key of `FAMILIES`, or one of `NAMED_SHAPES`.
        teacher: Sizes of the teacher.
    """
    families, _, size = word.partition(":")
    owners: dict[tuple[str, Subnet], list[str]] = {}
    for name, subnet in SHAPES.items():
        family, _, own_size = name.partition(" ")
        if family in FAMILIES[families] and (own_size == size if size else _fits(subnet, teacher)):
            owners.setdefault((own_size, subnet), []).append(family)
    return {f"{'/'.join(names)} {own_size}": subnet for (own_size, subnet), names in owners.items()}


def _fits(subnet: Subnet, teacher: Subnet) -> bool:
    within = subnet.layers <= teacher.layers and subnet.hidden_size <= teacher.hidden_size
    return within and (subnet.layers > _SHALLOW or teacher.layers <= _SHALLOW_TEACHER)


def shape_notes(names: Sequence[str], teacher: Subnet) -> list[str]:
    """Return a sentence for each word among `names` that stands for shapes, none of which fits the teacher."""
    return [
        f"--baselines {name}: none, because no shape fits the teacher ({teacher}). A single shape can be named, such "
        f"as {next(word for word in NAMED_SHAPES if word.startswith(f'{name}:'))}"
        for name in names
        if name in FAMILIES and not shapes_named(name, teacher)
    ]


@dataclass(frozen=True)
class Baseline:
    """A model measured on the same axes as the subnets of a space.

    Attributes:
        name: Name in tables and figures.
        subnet: Sizes of the model.
        how: Origin of its weights, in words.
        measured: Measured values, by objective name.
        weights: Folder of its model and tokenizer; None if the model is not kept.
        lr: Peak learning rate of its training; None if it was not trained.
    """

    name: str
    subnet: Subnet
    how: str
    measured: Mapping[str, float]
    weights: Path | None = None
    lr: float | None = None


def published() -> pd.DataFrame:
    """Return published GLUE dev results, each row with its source. FLOPs are multiply-adds at 128 tokens."""
    import pandas as pd

    return pd.read_csv(Path(__file__).with_name("baselines.csv"))
