"""Blocks of tokens, and their order in training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autodistil_search.base.errors import InputError
from autodistil_search.text.sources import State

HELD_OUT_EVERY = 20
"""Documents per held-out document; in a store, the second, the 22nd, ... are held out."""
_ROUNDS = 4

Tokens = NDArray[np.uint32]
Indices = NDArray[np.int64]
_Words = NDArray[np.uint64]


class TrainingText(Protocol):
    """Interface of the text that training reads, stored or streamed."""

    def rows(self, step: int, batch_size: int, seed: int, share: slice) -> Tensor:
        """Return this process's rows of the batch of a step, `(n, seq_len)` token ids.

        Args:
            step: Step, counted from 0.
            batch_size: Rows of the batch over all processes.
            seed: Seed of the order.
            share: Rows of this process; the shares of all processes make up the batch.
        """

    def state(self) -> State:
        """Return the JSON state that, with the arguments, determines the result of `rows`."""

    def restore(self, state: State) -> None:
        """Continue from the position of a `state()`."""


def shuffled(positions: Indices, count: int, seed: int) -> Indices:
    """Return the index at each position of a sequence that permutes `count` items anew in each epoch.

    Position p is place `p % count` of epoch `p // count`. The permutation is a keyed bijection, so no order is stored:
    time and memory depend only on `len(positions)`. It is a Feistel network over pairs (left, right) of at least
    `count` values (Black and Rogaway, 2002). Each half in turn is shifted by a hash of the other, which is invertible.
    A value of `count` or more is permuted again until it is below `count` (cycle walking). This is rare, as there are
    at most `2 sqrt(count) + 1` pairs too many.

    Args:
        positions: Positions in the sequence.
        count: Number of items.
        seed: Seed of the permutations.
    """
    width = math.isqrt(count - 1) + 1
    height = -(-count // width)
    epochs, places = np.divmod(np.asarray(positions, dtype=np.int64), count)
    keys = _mixed(
        _mixed(np.full(epochs.shape, seed & 0xFFFF_FFFF_FFFF_FFFF, dtype=np.uint64)) + epochs.astype(np.uint64)
    )
    permuted = _feistel(places.astype(np.uint64), keys, width, height)
    while (outside := permuted >= count).any():
        permuted[outside] = _feistel(permuted[outside], keys[outside], width, height)
    return permuted.astype(np.int64)


def _feistel(places: _Words, keys: _Words, width: int, height: int) -> _Words:
    left, right = np.divmod(places, np.uint64(width))
    for turn in range(_ROUNDS):
        key = _mixed(keys + np.uint64(turn + 1))
        left = (left + _mixed(key ^ right) % np.uint64(height)) % np.uint64(height)
        right = (right + _mixed(~key ^ left) % np.uint64(width)) % np.uint64(width)
    return left * np.uint64(width) + right


def _mixed(words: _Words) -> _Words:
    """Return the SplitMix64 hash of each word (Steele et al., 2014), in which every bit depends on every other."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


class Ends(NamedTuple):
    """Token ids of [CLS] and [SEP], or of their equivalents in the tokenizer."""

    first: int
    last: int

    def around(self, rows: NDArray[Any]) -> Tensor:
        """Return blocks `(n, T)` from tokens `(n, T - 2)`."""
        column = np.ones((len(rows), 1), dtype=np.int64)
        return torch.from_numpy(np.hstack([column * self.first, rows.astype(np.int64), column * self.last]))


@dataclass(frozen=True)
class Blocks:
    """Blocks of `seq_len` tokens over memory-mapped arrays of tokens.

    The blocks of the first array come first. An array's last tokens, too few for a block, are left out.

    Attributes:
        tokens: Arrays of token ids, one for each part of the text.
        seq_len: Length of a block, including the two end tokens.
        first: Token id that begins a block.
        last: Token id that ends a block.
        name: Name of the text in messages.

    Raises:
        InputError: if each array is shorter than one block.
    """

    tokens: Sequence[Tokens]
    seq_len: int
    first: int
    last: int
    name: str = "text"

    def __post_init__(self) -> None:
        if len(self) == 0:
            longest = max(map(len, self.tokens))
            where = " in its longest part" if len(self.tokens) > 1 else ""
            raise InputError(
                f"{self.name} has {longest} tokens{where}; a block needs {self.seq_len - 2}: give more text, "
                "or a shorter --seq-len"
            )

    @cached_property
    def _bounds(self) -> Indices:
        """Index of the first block of each array, and the number of all blocks."""
        return np.cumsum([0, *(len(array) // (self.seq_len - 2) for array in self.tokens)], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def __getitem__(self, indices: Sequence[int] | Indices) -> Tensor:
        """Return the blocks of the given indices, `(len(indices), seq_len)` token ids.

        Raises:
            IndexError: for an index that is negative, or not below the number of blocks.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if ((wanted < 0) | (wanted >= len(self))).any():
            raise IndexError(f"blocks {wanted.min()} to {wanted.max()}; allowed: 0 to {len(self) - 1}")
        inner = self.seq_len - 2
        arrays = np.searchsorted(self._bounds, wanted, side="right") - 1
        rows = np.empty((len(wanted), inner), dtype=np.uint32)
        for number in np.unique(arrays):
            here, array = arrays == number, self.tokens[number]
            view = array[: len(array) // inner * inner].reshape(-1, inner)  # only selected rows are read
            rows[here] = view[wanted[here] - self._bounds[number]]
        return Ends(self.first, self.last).around(rows)

    def spread(self, count: int) -> Tensor:
        """Return at most `count` blocks, evenly spread over the text."""
        return self[np.linspace(0, len(self) - 1, min(count, len(self))).astype(np.int64)]

    def rows(self, step: int, batch_size: int, seed: int, share: slice) -> Tensor:
        """Return the rows of any step; each epoch shuffles all blocks. See `TrainingText`."""
        positions = np.arange(step * batch_size, (step + 1) * batch_size)[share]
        return self[shuffled(positions, len(self), seed)]

    def state(self) -> State:
        """Return an empty state: the step determines the position."""
        return {}

    def restore(self, state: State) -> None:
        """Accept only an empty state.

        Raises:
            InputError: for the state of a stream.
        """
        if state:
            raise InputError("the checkpoint was made with streamed text; continue with --stream, or use another --out")
