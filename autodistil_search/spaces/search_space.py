"""Search spaces: their subnets, and the naming, sampling and encoding of these.

A `Subnet` is an architecture (sizes only, no weights). A `SearchSpace` holds the allowed values of each dimension. All
layers of a subnet are equal (AutoDistil, arXiv 2201.12507), unless the space chooses a dimension per layer. This module
does not need torch.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from autodistil_search.base.errors import InputError
from autodistil_search.base.user_input import meant, read_yaml, shipped_folder
from autodistil_search.spaces.subnet import DIMENSIONS, PER_LAYER, DepthRule, Genome, Subnet, kept_layers

_LARGEST = 1_000_000
"""Largest allowed size of a module; it keeps a typing error from allocating all memory."""


@dataclass(frozen=True)
class SearchSpace:
    """Search space: the allowed values of each dimension, ascending, and the settings that all subnets share.

    Attributes:
        name: Name of the space and of its folders.
        layers: Allowed numbers of layers.
        hidden_size: Allowed hidden sizes.
        mlp_ratio: Allowed ratios of the FFN width to the hidden size.
        heads: Allowed numbers of attention heads.
        head_dim: Width of an attention head.
        relation_heads: Number of heads into which the distillation loss splits Q, K and V; it divides
            `heads * head_dim` for every choice of heads.
        depth: Rule that selects the layers of a shallower subnet; see `kept_layers`.
        per_layer: Dimensions of `PER_LAYER` that each layer of a subnet chooses separately; the other dimensions are
            equal in all layers of a subnet.

    Raises:
        InputError: for a value that cannot be built; the message names the key and the allowed values.
    """

    name: str
    layers: tuple[int, ...]
    hidden_size: tuple[int, ...]
    mlp_ratio: tuple[float, ...]
    heads: tuple[int, ...]
    head_dim: int
    relation_heads: int
    depth: DepthRule = "first_last"
    per_layer: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_name(self.name)
        for key in ("layers", "hidden_size", "heads"):
            object.__setattr__(self, key, _ascending(self.name, key, getattr(self, key), _positive_integer))
        object.__setattr__(self, "mlp_ratio", _ascending(self.name, "mlp_ratio", self.mlp_ratio, _positive_number))
        for key in ("head_dim", "relation_heads"):
            _positive_integer(self.name, key, getattr(self, key))
        if self.depth not in get_args(DepthRule):
            raise InputError(f"space {self.name!r}: depth is {self.depth!r}; allowed: {', '.join(get_args(DepthRule))}")
        if not isinstance(self.per_layer, list | tuple) or not set(map(str, self.per_layer)) <= set(PER_LAYER):
            raise InputError(
                f"space {self.name!r}: per_layer is {self.per_layer!r:.80}; allowed: a list of {', '.join(PER_LAYER)}"
            )
        object.__setattr__(self, "per_layer", tuple(key for key in PER_LAYER if key in self.per_layer))
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

    @cached_property
    def size(self) -> int:
        """Number of subnets."""
        shared = len(self.hidden_size)
        for key in PER_LAYER:
            if key not in self.per_layer:
                shared *= len(getattr(self, key))
        of_layer: int = math.prod(len(getattr(self, key)) for key in self.per_layer)
        return shared * sum(int(of_layer**layers) for layers in self.layers)

    @cached_property
    def _places(self) -> tuple[tuple[str, int | None], ...]:
        """Dimension that each number of a genome selects, and its layer for dimensions chosen per layer, else None."""
        layers: Sequence[int] = range(self.layers[-1])
        return tuple((key, layer) for key in DIMENSIONS for layer in (layers if key in self.per_layer else (None,)))

    @cached_property
    def dimensions(self) -> tuple[str, ...]:
        """Names of the numbers of a genome: `DIMENSIONS`, with the SuperLM's layer from 1 if chosen per layer."""
        return tuple(key if layer is None else f"{key}_{layer + 1}" for key, layer in self._places)

    @cached_property
    def choices(self) -> tuple[int, ...]:
        """Number of choices in each of `dimensions`."""
        return tuple(len(getattr(self, key)) for key, _ in self._places)

    def values(self, dimension: str) -> tuple[Any, ...]:
        """Return the values allowed in one of `dimensions`, ascending."""
        key, _ = self._places[self.dimensions.index(dimension)]
        return tuple(getattr(self, key))

    @property
    def smallest(self) -> Subnet:
        """Subnet with the lowest value in every dimension."""
        return self.decode((0,) * len(self.choices))

    @property
    def largest(self) -> Subnet:
        """Subnet with the highest value in every dimension, which has the sizes of the SuperLM."""
        return self.decode(tuple(n - 1 for n in self.choices))

    @property
    def ends(self) -> tuple[Subnet, Subnet]:
        """Smallest and largest subnet."""
        return self.smallest, self.largest

    def genomes(self) -> Iterator[Genome]:
        """Yield the canonical genome of every subnet, in lexicographic order if all layers are equal."""
        if not self.per_layer:
            yield from itertools.product(*(range(n) for n in self.choices))
            return
        for depth, layers in enumerate(self.layers):
            counts = [len(self.hidden_size)]
            for key in PER_LAYER:
                counts += [len(getattr(self, key))] * (layers if key in self.per_layer else 1)
            for hidden, *rest in itertools.product(*map(range, counts)):
                yield self._genome(depth, hidden, rest)

    def _genome(self, depth: int, hidden: int, rest: Sequence[int]) -> Genome:
        """Return the canonical genome with these choices.

        Args:
            depth: Index of the number of layers.
            hidden: Index of the hidden size.
            rest: Indices of the other `DIMENSIONS`, in order; for dimensions per layer, of the layers of the subnet.
        """
        genome, left = [depth, hidden], iter(rest)
        layers = self.layers[depth]
        for key in PER_LAYER:
            if key in self.per_layer:
                of_layer = list(itertools.islice(left, layers))
                genome += [of_layer[place] for place in self._source_layers[depth]]
            else:
                genome.append(next(left))
        return tuple(genome)

    @cached_property
    def _source_layers(self) -> list[list[int]]:
        """Index of the subnet's layer that sets the choice of each layer of the SuperLM, by depth.

        A layer that a subnet leaves out repeats the layer below it, or the first layer. A child genome that inherits
        more layers thus gets choices that were selected together with their neighbours.
        """
        total, source_layers = self.layers[-1], []
        for layers in self.layers:
            kept = kept_layers(layers, total, self.depth)
            source_layers.append([max(sum(index <= layer for index in kept) - 1, 0) for layer in range(total)])
        return source_layers

    def canonical(self, genome: Genome) -> Genome:
        """Return the canonical genome of the same subnet; genomes may differ in the choices of omitted layers."""
        return self.encode(self.decode(genome)) if self.per_layer else genome

    def sample(self, rng: random.Random) -> Subnet:
        """Return a random subnet, with each dimension drawn uniformly.

        Choices per layer are drawn from a random range of the choices, so that subnets of all costs occur. If layers
        were drawn independently, almost all subnets would have about the same cost.
        """
        genome = []
        for key in DIMENSIONS:
            count = len(getattr(self, key))
            if key not in self.per_layer:
                genome.append(rng.randrange(count))
                continue
            first, last = sorted((rng.randrange(count), rng.randrange(count)))
            genome += [rng.randint(first, last) for _ in range(self.layers[-1])]
        return self.decode(tuple(genome))

    def decode(self, genome: Genome) -> Subnet:
        """Return the subnet of `genome`."""
        depth, hidden_index, *rest = genome
        layers, hidden = self.layers[depth], self.hidden_size[hidden_index]
        if not self.per_layer:
            ratio, heads = self.mlp_ratio[rest[0]], self.heads[rest[1]]
            return Subnet(layers, hidden, round(hidden * ratio), heads, self.head_dim)
        kept, left, layer_values = kept_layers(layers, self.layers[-1], self.depth), iter(rest), []
        for key in PER_LAYER:
            if key in self.per_layer:
                of_all = list(itertools.islice(left, self.layers[-1]))
                indices = [of_all[layer] for layer in kept]
            else:
                indices = [next(left)] * layers
            layer_values.append([getattr(self, key)[index] for index in indices])
        ratios, heads_of_layers = layer_values
        return Subnet.of_layers(hidden, [round(hidden * ratio) for ratio in ratios], heads_of_layers, self.head_dim)

    def encode(self, subnet: Subnet) -> Genome:
        """Return the canonical genome of `subnet`.

        Raises:
            InputError: if the subnet is not in this space.
        """
        ffn_sizes = [round(subnet.hidden_size * ratio) for ratio in self.mlp_ratio]
        sizes = subnet.each or ((subnet.ffn_size, subnet.heads),)
        try:
            depth, hidden = self.layers.index(subnet.layers), self.hidden_size.index(subnet.hidden_size)
            (self.head_dim,).index(subnet.head_dim)
            ratios = self._by_layer("mlp_ratio", [ffn_sizes.index(ffn_size) for ffn_size, _ in sizes], subnet.layers)
            heads = self._by_layer("heads", [self.heads.index(heads) for _, heads in sizes], subnet.layers)
        except ValueError:
            raise InputError(f"subnet {subnet} is not in space {self.name!r}: {self}") from None
        return self._genome(depth, hidden, [*ratios, *heads])

    def _by_layer(self, key: str, indices: list[int], layers: int) -> list[int]:
        """Return the choices of dimension `key` for each layer, or one for all layers, as the space requires.

        Args:
            key: Dimension.
            indices: Choice of each layer, or one choice of all layers.
            layers: Number of layers.

        Raises:
            ValueError: if the choices differ in a dimension that is not chosen per layer.
        """
        if len(set(indices)) == 1:
            return indices[:1] * (layers if key in self.per_layer else 1)
        if key not in self.per_layer:
            raise ValueError
        return indices

    def parameters(self, subnet: Subnet) -> dict[str, int | float]:
        """Return the values of `subnet` by name of the dimension, without those of omitted layers."""
        kept = {None, *kept_layers(subnet.layers, self.layers[-1], self.depth)}
        chosen = zip(self.dimensions, self._places, self.encode(subnet), strict=True)
        return {name: getattr(self, key)[index] for name, (key, layer), index in chosen if layer in kept}

    def with_parameters(self, parameters: Mapping[str, Any]) -> Subnet:
        """Return the subnet with these values, the inverse of `parameters`; other entries of the mapping are ignored.

        Raises:
            InputError: if a value is not in this space.
        """
        try:
            genome = [
                getattr(self, key).index(parameters[name]) if name in parameters else 0
                for name, (key, _) in zip(self.dimensions, self._places, strict=True)
            ]
        except ValueError:
            raise InputError(f"{dict(parameters)} is not in space {self.name!r}: {self}") from None
        return self.decode(tuple(genome))

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the space's YAML file as lists and numbers; `SearchSpace(**content)` is the inverse."""
        content = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return content if self.per_layer else {key: value for key, value in content.items() if key != "per_layer"}

    def __str__(self) -> str:
        parts = [
            f"{key} {list(getattr(self, key))}{' in each layer' if key in self.per_layer else ''}" for key in DIMENSIONS
        ]
        return f"{', '.join(parts)}, head_dim {self.head_dim} ({self.size:,} subnets)"


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
    """Return the FFN width; None if it is not whole (1.1 x 50 is, though floating point gives 55.00000000000001)."""
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


def shipped_spaces() -> list[str]:
    """Return the names of the spaces that the package ships."""
    return sorted(path.stem for path in shipped_folder("search_spaces").glob("*.yaml"))


def load_space(name_or_path: str | Path) -> SearchSpace:
    """Return a shipped space by its name (see `shipped_spaces`), or the space of a YAML file.

    Args:
        name_or_path: Name of a shipped space, or path of a YAML file.

    Raises:
        InputError: if there is no such space, or the file is not a valid space.
    """
    known = str(name_or_path) in shipped_spaces()
    path = shipped_folder("search_spaces") / f"{name_or_path}.yaml" if known else Path(name_or_path)
    try:
        exists = path.is_file()
    except (OSError, ValueError):  # not a valid file name
        exists = False
    if not exists:
        raise InputError(
            f"no search space {str(name_or_path)!r:.200}; allowed: {', '.join(shipped_spaces())}, or a YAML file's path"
            f"{meant(str(name_or_path), shipped_spaces())}"
        )
    content = read_yaml(path)
    keys = [field.name for field in fields(SearchSpace)]
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {type(content).__name__}; allowed: the keys {', '.join(keys)}")
    content = {"name": path.stem, **content}
    if unknown := [str(key) for key in content if key not in keys]:
        raise InputError(f"{path} has the unknown key {', '.join(unknown)}; allowed: {', '.join(keys)}")
    if missing := [key for key in keys if key not in content and key not in ("depth", "per_layer")]:
        raise InputError(f"{path} lacks {', '.join(missing)}; a space has {', '.join(keys)}")
    return SearchSpace(**content)
