"""Search spaces: which subnets there are, and how one is named, drawn and encoded.

A `Subnet` is one architecture (sizes only, no weights). A `SearchSpace` holds the allowed values of
each dimension; all layers of a subnet are alike (AutoDistil, arXiv 2201.12507). Nothing here needs torch.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from autodistil_search.errors import InputError

Genome = tuple[int, ...]
"""Index of the choice taken in each of `DIMENSIONS`; what search engines vary."""

DIMENSIONS = ("layers", "hidden_size", "mlp_ratio", "heads")

_LARGEST = 1_000_000
"""No size of a module is larger; it keeps a slip of the keyboard from asking for all memory."""

DepthRule = Literal["first_last", "uniform", "prefix"]


@dataclass(frozen=True, order=True, slots=True)
class Subnet:
    """One architecture: the sizes its module is built with, the same in every layer."""

    layers: int
    hidden_size: int
    ffn_size: int
    heads: int
    head_dim: int

    @property
    def mlp_ratio(self) -> float:
        """FFN width over hidden size."""
        return self.ffn_size / self.hidden_size

    @property
    def attention_width(self) -> int:
        """Width of Q, K and V: `heads * head_dim`, whatever the hidden size."""
        return self.heads * self.head_dim

    def __str__(self) -> str:
        return f"{self.layers}x{self.hidden_size}, ratio {self.mlp_ratio:g}, {self.heads} heads of {self.head_dim}"


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


@dataclass(frozen=True)
class SearchSpace:
    """The allowed values of each dimension, ascending, and what all subnets of the space share.

    head_dim: width of one attention head. relation_heads: into how many heads Q, K and V are split for the
    distillation loss; it divides `heads * head_dim` for every choice. depth: see `kept_layers`.

    Raises:
        InputError: for a value that cannot be built; names the key and what is allowed.
    """

    name: str
    layers: tuple[int, ...]
    hidden_size: tuple[int, ...]
    mlp_ratio: tuple[float, ...]
    heads: tuple[int, ...]
    head_dim: int
    relation_heads: int
    depth: DepthRule = "first_last"

    def __post_init__(self) -> None:
        _check_name(self.name)
        for key in ("layers", "hidden_size", "heads"):
            object.__setattr__(self, key, _ascending(self.name, key, getattr(self, key), _positive_integer))
        object.__setattr__(self, "mlp_ratio", _ascending(self.name, "mlp_ratio", self.mlp_ratio, _positive_number))
        for key in ("head_dim", "relation_heads"):
            _positive_integer(self.name, key, getattr(self, key))
        if self.depth not in get_args(DepthRule):
            raise InputError(f"space {self.name!r}: depth is {self.depth!r}; allowed: {', '.join(get_args(DepthRule))}")
        for hidden, ratio in itertools.product(self.hidden_size, self.mlp_ratio):
            if _ffn_size(hidden, ratio) is None:
                raise InputError(
                    f"space {self.name!r}: mlp_ratio {ratio:g} x hidden_size {hidden} gives an FFN width of "
                    f"{hidden * ratio:g}; allowed: ratios that give a whole number for every hidden_size"
                )
        for hidden in self.hidden_size:
            if len({_ffn_size(hidden, ratio) for ratio in self.mlp_ratio}) < len(self.mlp_ratio):
                raise InputError(
                    f"space {self.name!r}: mlp_ratio {list(self.mlp_ratio)} gives hidden_size {hidden} the same FFN "
                    "width twice; allowed: ratios that give different widths"
                )
        for heads in self.heads:
            if heads * self.head_dim % self.relation_heads:
                raise InputError(
                    f"space {self.name!r}: heads {heads} x head_dim {self.head_dim} = {heads * self.head_dim} is not a "
                    f"multiple of relation_heads {self.relation_heads}; allowed: widths that relation_heads divides"
                )

    @property
    def size(self) -> int:
        """Number of subnets."""
        return len(self.layers) * len(self.hidden_size) * len(self.mlp_ratio) * len(self.heads)

    @property
    def choices(self) -> tuple[int, ...]:
        """Number of choices in each of `DIMENSIONS`."""
        return tuple(len(getattr(self, dimension)) for dimension in DIMENSIONS)

    @property
    def smallest(self) -> Subnet:
        """The subnet with the lowest value in every dimension."""
        return self.decode((0, 0, 0, 0))

    @property
    def largest(self) -> Subnet:
        """The subnet with the highest value in every dimension; the sizes of the SuperLM."""
        return self.decode(tuple(n - 1 for n in self.choices))

    @property
    def ends(self) -> tuple[Subnet, Subnet]:
        """The smallest and the largest subnet."""
        return self.smallest, self.largest

    def genomes(self) -> Iterator[Genome]:
        """Every genome, in lexicographic order."""
        return itertools.product(*(range(n) for n in self.choices))

    def sample(self, rng: random.Random) -> Subnet:
        """One subnet, each dimension drawn uniformly."""
        return self.decode(tuple(rng.randrange(n) for n in self.choices))

    def decode(self, genome: Genome) -> Subnet:
        """The subnet that `genome` stands for."""
        layers, hidden, ratio, heads = (
            getattr(self, dimension)[index] for dimension, index in zip(DIMENSIONS, genome, strict=True)
        )
        return Subnet(layers, hidden, round(hidden * ratio), heads, self.head_dim)

    def encode(self, subnet: Subnet) -> Genome:
        """The genome of `subnet`.

        Raises:
            InputError: if the subnet is not in this space.
        """
        ffn_sizes = [round(subnet.hidden_size * ratio) for ratio in self.mlp_ratio]
        try:
            genome = (
                self.layers.index(subnet.layers),
                self.hidden_size.index(subnet.hidden_size),
                ffn_sizes.index(subnet.ffn_size),
                self.heads.index(subnet.heads),
            )
            (self.head_dim,).index(subnet.head_dim)
        except ValueError:
            raise InputError(f"subnet {subnet} is not in space {self.name!r}: {self}") from None
        return genome

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, as a YAML file holds them; `SearchSpace(**d)` is the way back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def __str__(self) -> str:
        parts = [f"{key} {list(getattr(self, key))}" for key in DIMENSIONS]
        return f"{', '.join(parts)}, head_dim {self.head_dim} ({self.size} subnets)"


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise InputError(
            f"space name {name!r}; allowed: up to 64 letters, digits, '_', '-' and '.', as it names folders"
        )


def _positive_integer(space: str, key: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
        raise InputError(f"space {space!r}: {key} has {value!r:.50}; allowed: whole numbers from 1 to {_LARGEST}")


def _positive_number(space: str, key: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LARGEST:
        raise InputError(f"space {space!r}: {key} has {value!r:.50}; allowed: numbers above 0, up to {_LARGEST}")


def _ffn_size(hidden: int, ratio: float) -> int | None:
    """The FFN width, or None if it is not whole; 1.1 x 50 is, though floating point gives 55.00000000000001."""
    width = hidden * ratio
    return round(width) if math.isclose(width, round(width), rel_tol=1e-9) else None


def _ascending(space: str, key: str, values: object, check: Any) -> tuple[Any, ...]:
    if not isinstance(values, list | tuple) or not values:
        raise InputError(f"space {space!r}: {key} is {values!r}; allowed: a list of one or more values")
    for value in values:
        check(space, key, value)
    if len(set(values)) < len(values):
        raise InputError(f"space {space!r}: {key} is {list(values)}; allowed: each value once")
    return tuple(sorted(values))


def space_folder() -> Path:
    """Where the shipped spaces lie: inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).parent
    installed = package / "search_spaces"
    return installed if installed.is_dir() else package.parent / "search_spaces"


def shipped_spaces() -> list[str]:
    """Names of the spaces that come with the package."""
    return sorted(path.stem for path in space_folder().glob("*.yaml"))


def load_space(name_or_path: str | Path) -> SearchSpace:
    """The space of that name (see `shipped_spaces`), or of a YAML file.

    Raises:
        InputError: if there is none, or the file is not a valid space.
    """
    path = space_folder() / f"{name_or_path}.yaml" if str(name_or_path) in shipped_spaces() else Path(name_or_path)
    try:
        found = path.is_file()
    except OSError:  # a name no file can have
        found = False
    if not found:
        raise InputError(
            f"no search space {str(name_or_path)!r:.200}; allowed: {', '.join(shipped_spaces())}, or a YAML file's path"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as YAML: {' '.join(str(error).split())[:300]}") from None
    keys = [field.name for field in fields(SearchSpace)]
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {type(content).__name__}; allowed: the keys {', '.join(keys)}")
    content = {"name": path.stem, **content}
    if unknown := [str(key) for key in content if key not in keys]:
        raise InputError(f"{path} has the unknown key {', '.join(unknown)}; allowed: {', '.join(keys)}")
    if missing := [key for key in keys if key not in content and key != "depth"]:
        raise InputError(f"{path} lacks {', '.join(missing)}; a space has {', '.join(keys)}")
    return SearchSpace(**content)
