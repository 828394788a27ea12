"""K-shot partition: one space into K sub-spaces of neighbouring cost, each a space of its own.

Every cut divides the ascending values of one dimension in two, so that each sub-space is again a product of value
lists, and each subnet of the parent lies in exactly one of them. The cut made is always the one that lowers the
variance of log FLOPs within the sub-spaces most. So partitions are nested: K + 1 divides one sub-space of K and leaves
the others as they are, and a comparison of different K changes nothing else.

A subnet keeps its sizes, hence its costs, but not its layers: `space.kept_layers` counts them in the SuperLM of its
sub-space, which is only as deep as the largest subnet there. With a SuperLM of 12 layers a subnet of 4 takes layers
0, 4, 7 and 11; in a sub-space of up to 4 layers it is the whole depth.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from autodistil_search.base.errors import InputError
from autodistil_search.base.files import locked, write_atomically
from autodistil_search.spaces.cost import FLOPS_SEQ_LEN, flops
from autodistil_search.spaces.search_space import SearchSpace, load_space
from autodistil_search.spaces.subnet import DIMENSIONS

_LARGEST_SPACE = 1_000_000
"""Subnets of a space that can be partitioned: each one's FLOPs are counted, a few microseconds each."""

_LONGEST_NAME = 64

Box = tuple[tuple[int, int], ...]
"""First and one past the last choice in each of `DIMENSIONS`."""


def partition(space: SearchSpace, k: int) -> list[SearchSpace]:
    """Split `space` into `k` sub-spaces, ordered by median FLOPs and named `<space>-1of<k>` and so on.

    With `k` = 1 the space itself.

    Raises:
        InputError: if there are not so many subnets, or too many to count the FLOPs of each.
    """
    if not 1 <= k <= space.size:
        raise InputError(f"--k {k}; allowed: 1 to {space.size}, the number of subnets of space {space.name!r}")
    if k == 1:
        return [space]
    if space.per_layer:
        raise InputError(
            f"space {space.name!r} chooses {' and '.join(space.per_layer)} per layer; allowed: spaces whose layers are "
            "alike, as a subnet with values of both sides of a cut would be in no part"
        )
    if space.size > _LARGEST_SPACE:
        raise InputError(f"space {space.name!r} has {space.size:,} subnets; allowed: up to {_LARGEST_SPACE:,}")
    costs = flops_of(space)
    logs = np.log(costs)
    queue = [_best_cut(logs, tuple((0, n) for n in space.choices))]
    while len(queue) < k:
        _, _, halves = heapq.heappop(queue)
        for half in halves:
            heapq.heappush(queue, _best_cut(logs, half))
    boxes = sorted((box for _, box, _ in queue), key=lambda box: (np.median(costs[_slices(box)]), box))
    return [_sub_space(space, box, f"-{i}of{k}") for i, box in enumerate(boxes, 1)]


def flops_of(space: SearchSpace) -> NDArray[np.float64]:
    """The FLOPs of every subnet, indexed by genome."""
    costs = (flops(space.decode(genome)) for genome in space.genomes())
    return np.fromiter(costs, float, space.size).reshape(space.choices)


def spread_within(space: SearchSpace, parts: Sequence[SearchSpace]) -> float:
    """The share of the variance of log FLOPs in `space` that is left within `parts`, from 0 to 1."""
    whole = _squares(flops_of(space))
    return sum(_squares(flops_of(part)) for part in parts) / whole if whole else 0.0


def _squares(costs: NDArray[np.float64]) -> float:
    """Squared distances of log FLOPs from their mean, summed."""
    return float(np.log(costs).var() * costs.size)


def _best_cut(logs: NDArray[np.float64], box: Box) -> tuple[float, Box, tuple[Box, ...]]:
    """What the best cut of `box` adds to the squares within (below 0), the box, and its halves; none for one subnet."""
    inside = logs[_slices(box)] - logs[_slices(box)].mean()
    best: tuple[float, Box, tuple[Box, ...]] = (np.inf, box, ())
    for axis, (first, end) in enumerate(box):
        n = end - first
        others = tuple(other for other in range(len(box)) if other != axis)
        left = inside.sum(axis=others).cumsum()[:-1]  # (n - 1,): all left of each cut; the right is minus that
        below = np.arange(1, n) * (inside.size // n)
        change = -(left**2) * (1 / below + 1 / (inside.size - below))
        if n > 1 and change.min() < best[0]:
            at = first + int(change.argmin()) + 1
            halves = tuple((*box[:axis], part, *box[axis + 1 :]) for part in ((first, at), (at, end)))
            best = (float(change.min()), box, halves)
    return best


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(*each) for each in box)


def _sub_space(space: SearchSpace, box: Box, suffix: str) -> SearchSpace:
    values = {key: getattr(space, key)[each] for key, each in zip(DIMENSIONS, _slices(box), strict=True)}
    return replace(space, name=space.name[: _LONGEST_NAME - len(suffix)] + suffix, **values)


def write_spaces(parts: Sequence[SearchSpace], parent: SearchSpace, folder: Path) -> list[Path]:
    """Write each of the `parts` of `parent` to `<name>.yaml` in `folder`; a file that holds that space stays as it is.

    Raises:
        InputError: if a file of that name holds anything else, in which case nothing is written, or for a folder that
            cannot be one or has a comma, which `--space` takes as the end of a name.
    """
    if "," in str(folder):
        raise InputError(f"--to {str(folder)!r}; allowed: a folder without a comma, which separates spaces in --space")
    paths = [folder / f"{part.name}.yaml" for part in parts]
    missing = partial(_missing, parts, paths)
    if missing():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--to {str(folder)!r} cannot be used as a folder: {error.strerror}") from None
        with locked(folder / ".lock", folder, "--to"):
            for path, part in missing():
                write_atomically(path, partial(Path.write_text, data=_text(part, parent), encoding="utf-8"))
    return paths


def _missing(parts: Sequence[SearchSpace], paths: Sequence[Path]) -> list[tuple[Path, SearchSpace]]:
    """Return the files that are still to be written, each with its space; see `_holds`."""
    return [(path, part) for path, part in zip(paths, parts, strict=True) if not _holds(path, part)]


def _holds(path: Path, space: SearchSpace) -> bool:
    """Whether the file is there, which then holds `space`."""
    if not path.exists():
        return False
    try:
        same = load_space(path) == space
    except InputError:
        same = False
    if not same:
        raise InputError(f"{path} exists and holds something else; move it away, or name another folder with --to")
    return True


def _text(part: SearchSpace, parent: SearchSpace) -> str:
    content = yaml.safe_dump(part.to_dict(), sort_keys=False, default_flow_style=None, width=1000)
    return (
        f"# {_subnets(part)}: a part of space {parent.name},\n# {_subnets(parent)} "
        f"(multiply-adds at {FLOPS_SEQ_LEN} tokens, batch 1). Made by `autodistil-search partition`.\n{content}"
    )


def _subnets(space: SearchSpace) -> str:
    return f"{space.size:,} subnets of {millions(flops(space.smallest))} to {millions(flops(space.largest))} FLOPs"


def millions(amount: float) -> str:
    """FLOPs or parameters as text; all of a partition in one unit, so that they compare at a glance."""
    return f"{amount / 1e6:,.1f}M"
