"""Random subnets within narrow bands of FLOPs, from one space or from several."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autodistil_search.nas.engines.base import ENUMERABLE
from autodistil_search.spaces.cost import flops
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet

_DRAWN_OF_LARGE_SPACES = 20_000


class Drawn(NamedTuple):
    """A subnet with the number of its band and the name of its space."""

    band: int
    space: str
    subnet: Subnet

    def __str__(self) -> str:
        return f"subnet {self.subnet} of space {self.space} in band {self.band}"


def draw_in_bands(spaces: Sequence[SearchSpace], subnets: int, bands: int, width: float, seed: int) -> list[Drawn]:
    """Return random subnets in narrow bands of FLOPs over the whole range of all spaces.

    The subnets are ordered by band and FLOPs, the cheapest first. The middles of the bands are evenly spaced on a
    logarithmic scale between the smallest and the largest FLOPs. Within a band, the spaces that reach it have equally
    many subnets, as far as possible.

    Args:
        spaces: Spaces of the subnets.
        subnets: Total number of subnets, spread evenly over the bands.
        bands: Number of bands.
        width: Greatest distance from the middle of a band, as a share of its FLOPs. If too few subnets are within it,
            the nearest ones are taken.
        seed: Seed of the draw.
    """
    rng = random.Random(seed)
    everything = [(space.name, subnet) for space in spaces for subnet in _candidates(space, rng)]
    costs = np.log([flops(subnet) for _, subnet in everything])
    low, high = (np.log(end(flops(of) for space in spaces for of in space.ends)) for end in (min, max))
    drawn: list[Drawn] = []
    taken: set[int] = set()
    for band in range(bands):
        middle = low + (high - low) * (band + 0.5) / bands
        share = subnets // bands + (band < subnets % bands)
        nearest = [int(i) for i in np.argsort(np.abs(costs - middle), kind="stable") if int(i) not in taken]
        inside: dict[str, list[int]] = {space.name: [] for space in spaces}
        for i in nearest:
            if abs(costs[i] - middle) <= np.log1p(width):
                inside[everything[i][0]].append(i)
        chosen = nearest[:share]
        if sum(map(len, inside.values())) >= share:
            shares = _even_shares(inside, share, Counter(space for _, space, _ in drawn))
            chosen = [i for space, pool in inside.items() for i in rng.sample(pool, shares[space])]
        taken.update(chosen)
        drawn += [Drawn(band, *everything[i]) for i in sorted(chosen, key=costs.__getitem__)]
    return drawn


def _candidates(space: SearchSpace, rng: random.Random) -> list[Subnet]:
    """Return all subnets of a space, or a sample if there are too many to list."""
    if space.size <= ENUMERABLE:
        return [space.decode(genome) for genome in space.genomes()]
    return list(dict.fromkeys(space.sample(rng) for _ in range(_DRAWN_OF_LARGE_SPACES)))


def _even_shares(pools: dict[str, list[int]], total: int, before: Counter[str]) -> Counter[str]:
    """Return the number of subnets to draw from each space's pool, as equal as the pools allow.

    A remainder goes to the spaces that have had the fewest subnets.

    Args:
        pools: Subnets by space; together at least `total`.
        total: Number of subnets to draw.
        before: Number of subnets that were drawn earlier, by space.
    """
    shares: Counter[str] = Counter()
    while shares.total() < total:
        open_spaces = [space for space, pool in pools.items() if shares[space] < len(pool)]
        shares[min(open_spaces, key=lambda space: (shares[space], before[space]))] += 1
    return shares
