"""K-shot partition: division of a space into K sub-spaces of neighbouring cost, each a space of its own.

Every cut divides the ascending values of one dimension in two. Each sub-space is therefore a product of value lists,
and each subnet of the parent is in exactly one sub-space. Each cut is the one that most lowers the variance of log
FLOPs within the sub-spaces. Partitions are therefore nested: K + 1 divides one sub-space of K and leaves the others
unchanged. A comparison of different K thus changes nothing else.

A subnet keeps its sizes and costs, but not its layers. `subnet.kept_layers` selects them from the SuperLM of the
sub-space, which is only as deep as its largest subnet. In a SuperLM of 12 layers, a subnet of 4 uses layers 0, 4, 7
and 11; in a sub-space of up to 4 layers, it uses all layers.
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
"""Most subnets of a space that can be partitioned: the FLOPs of each are computed, a few microseconds each."""

_LONGEST_NAME = 64

Box = tuple[tuple[int, int], ...]
"""Range of choices in each of `DIMENSIONS`: the first, and one past the last."""


def partition(space: SearchSpace, k: int) -> list[SearchSpace]:
    """Split `space` into `k` sub-spaces, ordered by median FLOPs and named `<space>-1of<k>` and so on.

    With `k` = 1 the result is the space itself.

    Raises:
        InputError: if the space has fewer than `k` subnets, too many subnets to compute the FLOPs of each, or
            dimensions chosen per layer.
    """
    if not 1 <= k <= space.size:
        raise InputError(f"--k {k}; allowed: 1 to {space.size}, the number of subnets of space {space.name!r}")
    if k == 1:
        return [space]
    if space.per_layer:
        raise InputError(
            f"space {space.name!r} chooses {' and '.join(space.per_layer)} per layer; allowed: spaces with equal "
            "layers, because a subnet with values on both sides of a cut would be in no part"
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
    """Return the FLOPs of every subnet as an array indexed by genome."""
    costs = (flops(space.decode(genome)) for genome in space.genomes())
    return np.fromiter(costs, float, space.size).reshape(space.choices)


def spread_within(space: SearchSpace, parts: Sequence[SearchSpace]) -> float:
    """Return the share of the variance of log FLOPs in `space` that remains within `parts`, from 0 to 1."""
    whole = _squares(flops_of(space))
    return sum(_squares(flops_of(part)) for part in parts) / whole if whole else 0.0


def _squares(costs: NDArray[np.float64]) -> float:
    """Return the sum of squared distances of log FLOPs from their mean."""
    return float(np.log(costs).var() * costs.size)


def _best_cut(logs: NDArray[np.float64], box: Box) -> tuple[float, Box, tuple[Box, ...]]:
    """Return the change of the within-part sum of squares by the best cut of `box`, the box, and its halves.

    The change is negative. A box of one subnet has no halves and an infinite change.
    """
    inside = logs[_slices(box)] - logs[_slices(box)].mean()
    best: tuple[float, Box, tuple[Box, ...]] = (np.inf, box, ())
    for axis, (first, end) in enumerate(box):
        n = end - first
        others = tuple(other for other in range(len(box)) if other != axis)
        left = inside.sum(axis=others).cumsum()[:-1]  # (n - 1,): sums left of each cut; the right is minus that
        below = np.arange(1, n) * (inside.size // n)
        change = -(left**2) * (1 / below + 1 / (inside.size - below))
        if n > 1 and change.min() < best[0]:
            at = first + int(change.argmin()) + 1
            halves = tuple((*box[:axis], part, *box[axis + 1 :]) for part in ((first, at), (at, end)))
            best = (float(change.min()), box, halves)
    return best


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(*choices) for choices in box)


def _sub_space(space: SearchSpace, box: Box, suffix: str) -> SearchSpace:
    values = {key: getattr(space, key)[part] for key, part in zip(DIMENSIONS, _slices(box), strict=True)}
    return replace(space, name=space.name[: _LONGEST_NAME - len(suffix)] + suffix, **values)


def write_spaces(parts: Sequence[SearchSpace], parent: SearchSpace, folder: Path) -> list[Path]:
    """Write each of the `parts` of `parent` to `<name>.yaml` in `folder`; a file that holds the space is unchanged.

    Args:
        parts: Sub-spaces to write.
        parent: Space that was partitioned.
        folder: Folder of the files, made if needed.

    Returns:
        The path of each part.

    Raises:
        InputError: if a file of that name holds anything else, in which case nothing is written; or if the folder
            cannot be made or its name has a comma, which separates spaces in `--space`.
    """
    if "," in str(folder):
        raise InputError(f"--out {str(folder)!r}; allowed: a folder without a comma, which separates spaces in --space")
    paths = [folder / f"{part.name}.yaml" for part in parts]
    missing = partial(_missing, parts, paths)
    if missing():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {str(folder)!r} cannot be used as a folder: {error.strerror}") from None
        with locked(folder / ".lock", folder, "--out"):
            for path, part in missing():
                write_atomically(path, partial(Path.write_text, data=_text(part, parent), encoding="utf-8"))
    return paths


def _missing(parts: Sequence[SearchSpace], paths: Sequence[Path]) -> list[tuple[Path, SearchSpace]]:
    """Return the paths of missing files with their spaces; see `_holds`."""
    return [(path, part) for path, part in zip(paths, parts, strict=True) if not _holds(path, part)]


def _holds(path: Path, space: SearchSpace) -> bool:
    """Return True if the file exists and holds `space`, and refuse a file that holds anything else."""
    if not path.exists():
        return False
    try:
        same = load_space(path) == space
    except InputError:
        same = False
    if not same:
        raise InputError(f"{path} exists and holds something else; move it away, or name another folder with --out")
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
    """Return FLOPs or parameters as text in millions, the same unit for every part."""
    return f"{amount / 1e6:,.1f}M"
