"""Blocks of tokens, and the order in which training takes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autodistil_search.base.errors import InputError
from autodistil_search.text.sources import State

HELD_OUT_EVERY = 20
"""One document in so many is held out; of a store the second, the 22nd, ..."""
_ROUNDS = 4

Tokens = NDArray[np.uint32]
Indices = NDArray[np.int64]
_Words = NDArray[np.uint64]


class TrainingText(Protocol):
    """What training reads, whether the text is stored or streamed."""

    def rows(self, step: int, batch_size: int, seed: int, share: slice) -> Tensor:
        """Rows `share` of the `batch_size` rows of that step, `(n, seq_len)` token ids.

        step: counted from 0. share: what this process takes; all processes' shares make up the step's batch.
        """

    def state(self) -> State:
        """All that `rows` follows from besides its arguments, as JSON holds it."""

    def restore(self, state: State) -> None:
        """Go on from there."""


def shuffled(positions: Indices, count: int, seed: int) -> Indices:
    """Which of `count` things stands at each position: epoch after epoch another permutation of all.

    Position p is place `p % count` of epoch `p // count`. A keyed bijection, so no order is ever written down:
    time and memory follow from `len(positions)` alone. It is a Feistel network over pairs (left, right) of at least
    `count` values (Black and Rogaway, 2002): each half in turn is shifted by a hash of the other, which can be undone;
    a value from `count` on is put in again until one below it comes out (cycle walking; seldom, as the pairs are at
    most `2 sqrt(count) + 1` too many).
    """
    width = math.isqrt(count - 1) + 1
    height = -(-count // width)
    epochs, places = np.divmod(np.asarray(positions, dtype=np.int64), count)
    keys = _mixed(
        _mixed(np.full(epochs.shape, seed & 0xFFFF_FFFF_FFFF_FFFF, dtype=np.uint64)) + epochs.astype(np.uint64)
    )
    found = _feistel(places.astype(np.uint64), keys, width, height)
    while (outside := found >= count).any():
        found[outside] = _feistel(found[outside], keys[outside], width, height)
    return found.astype(np.int64)


def _feistel(places: _Words, keys: _Words, width: int, height: int) -> _Words:
    left, right = np.divmod(places, np.uint64(width))
    for turn in range(_ROUNDS):
        key = _mixed(keys + np.uint64(turn + 1))
        left = (left + _mixed(key ^ right) % np.uint64(height)) % np.uint64(height)
        right = (right + _mixed(~key ^ left) % np.uint64(width)) % np.uint64(width)
    return left * np.uint64(width) + right


def _mixed(words: _Words) -> _Words:
    """SplitMix64 (Steele et al., 2014): a hash of 64 bits in which every bit depends on every other."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


class Ends(NamedTuple):
    """Token ids of [CLS] and [SEP], or what the tokenizer has in their place."""

    first: int
    last: int

    def around(self, rows: NDArray[Any]) -> Tensor:
        """`(n, T - 2)` tokens as blocks `(n, T)`."""
        column = np.ones((len(rows), 1), dtype=np.int64)
        return torch.from_numpy(np.hstack([column * self.first, rows.astype(np.int64), column * self.last]))


@dataclass(frozen=True)
class Blocks:
    """Blocks of `seq_len` tokens over a memory-mapped stream.

    Raises:
        InputError: if the stream is shorter than one block.
    """

    tokens: Tokens
    seq_len: int
    first: int
    last: int
    name: str = "text"

    def __post_init__(self) -> None:
        if len(self) == 0:
            raise InputError(
                f"{self.name} has {len(self.tokens)} tokens; a block needs {self.seq_len - 2}: give more text, "
                "or a shorter --seq-len"
            )

    def __len__(self) -> int:
        return len(self.tokens) // (self.seq_len - 2)

    def __getitem__(self, indices: Sequence[int] | Indices) -> Tensor:
        """The blocks of those indices, `(len(indices), seq_len)` token ids."""
        inner = self.seq_len - 2
        rows = self.tokens[: len(self) * inner].reshape(-1, inner)  # a view: only the rows taken are read
        return Ends(self.first, self.last).around(rows[np.asarray(indices, dtype=np.int64)])

    def spread(self, count: int) -> Tensor:
        """At most `count` blocks, evenly spread over the stream."""
        return self[np.linspace(0, len(self) - 1, min(count, len(self))).astype(np.int64)]

    def rows(self, step: int, batch_size: int, seed: int, share: slice) -> Tensor:
        """See `TrainingText`. Each epoch has all blocks, shuffled; any step may be asked for."""
        positions = np.arange(step * batch_size, (step + 1) * batch_size)[share]
        return self[shuffled(positions, len(self), seed)]

    def state(self) -> State:
        """Nothing: the position follows from the step."""
        return {}

    def restore(self, state: State) -> None:
        """Nothing to do.

        Raises:
            InputError: for the state of a stream.
        """
        if state:
            raise InputError("the checkpoint was made with streamed text; go on with --stream, or use another --out")
