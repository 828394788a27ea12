"""Blocks of tokens from text that is read and tokenized on demand, for text that does not fit on the disk."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from autodistil_search.base.distributed import Processes
from autodistil_search.base.errors import InputError
from autodistil_search.text.blocks import HELD_OUT_EVERY, Blocks, Tokens, shuffled
from autodistil_search.text.sources import Document, Reading, Shard, State, TableShard, find_sources
from autodistil_search.text.tokenization import CHARACTERS_AT_ONCE, Encoder, check_known

_WINDOW = 4096
"""Blocks in a shuffling window."""
_DIVIDED = 2
"""Version of the rule that divides the documents of shards between ranks."""


class StreamedBlocks:
    """Blocks of text that is read and tokenized on demand; see `open_stream`.

    Every `_WINDOW` blocks in reading order form a window and are shuffled within it. The reading position at its start
    determines a window. A state is therefore a position, not a buffer, and resuming reads one window again. A thread
    reads the next window during the second half of this one.
    """

    def __init__(
        self,
        shards: Sequence[Shard | TableShard],
        encoder: Encoder,
        seq_len: int,
        digest: str,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._shards, self._encoder, self._inner = shards, encoder, seq_len - 2
        self._rank, self._world = rank, world
        self.digest = digest
        self._step = self._block = 0
        self._seed: int | None = None
        self._pool = ThreadPoolExecutor(1, "stream")

    def begin(self) -> StreamedBlocks:
        """Return the same stream at its start, without reading any text, in particular not the held-out text."""
        return StreamedBlocks(self._shards, self._encoder, self._inner + 2, self.digest, self._rank, self._world)

    def rows(self, step: int, batch_size: int, seed: int, share: slice) -> Tensor:
        """Return the rows of the next step from this rank's own documents; the text repeats when it ends.

        See `TrainingText`.

        Raises:
            InputError: for text that cannot be read.
            ValueError: for a step other than the next, or a seed other than before: a stream has only one order.
        """
        known = seed if self._seed is None else self._seed
        if (step, seed) != (self._step, known):
            raise ValueError(
                f"a stream returns its steps in order: the next is {self._step} with seed {known}, "
                f"not {step} with seed {seed}"
            )
        if self._seed is None:
            self._start_from(seed, {"documents": None, "carry": []})
        rows = [self._next() for _ in range(batch_size)[share]]
        self._step += 1
        return self._encoder.ends.around(np.stack(rows))

    def state(self) -> State:
        """Return the reading position at the start of the window, the number of blocks returned, and the step."""
        state: State = {"step": self._step, "blocks": self._block, "seed": self._seed, **self._identity}
        if self._seed is not None:
            state["start"] = self._window.start if self._block % _WINDOW else self._position
        return state

    def restore(self, state: State) -> None:
        """Continue after the step at which `state` was taken.

        Raises:
            InputError: if it is not a state of this stream.
        """
        if differences := [
            f"{key} {state.get(key)}, now {value}" for key, value in self._identity.items() if state.get(key) != value
        ]:
            raise InputError(
                f"the checkpoint was made with another stream ({'; '.join(differences)}); use another --out"
            )
        self._step, self._block, self._seed = state["step"], state["blocks"], state["seed"]
        if self._seed is not None:
            self._start_from(self._seed, state["start"])
            if self._block % _WINDOW:
                self._fill()

    @property
    def _identity(self) -> dict[str, Any]:
        identity = {"rank": self._rank, "world": self._world, "tokens": self._inner, "window": _WINDOW}
        if self._world > 1 and len(self._shards) > 1 and len(self._shards) % self._world:
            identity["divided"] = _DIVIDED  # earlier checkpoints are of another order
        return {**identity, "text": self.digest}

    def _start_from(self, seed: int, start: State) -> None:
        self._seed, self._position = seed, start
        documents = _Documents(self._shards, seed, self._rank, self._world, start["documents"])
        self._windows = _Windows(documents, self._encoder, self._inner, np.array(start["carry"], dtype=np.uint32))
        self._ahead: Future[_Window] | None = None

    def _next(self) -> Tokens:
        place = self._block % _WINDOW
        if place == 0:
            self._fill()
        elif self._ahead is None and place >= _WINDOW // 2:  # no sooner, because many readers need only a few blocks
            self._ahead = self._pool.submit(self._windows.read)
        self._block += 1
        row: Tokens = self._window.rows[self._order[place]]
        return row

    def _fill(self) -> None:
        """Take the window that holds block `self._block`."""
        assert self._seed is not None
        self._window = self._windows.read() if self._ahead is None else self._ahead.result()
        self._position, self._ahead = self._window.end, None
        first = self._block - self._block % _WINDOW
        self._order = shuffled(np.arange(first, first + _WINDOW), _WINDOW, self._seed)


class _Window(NamedTuple):
    """Blocks of a window in reading order, with the reading positions before and after it."""

    start: State
    rows: Tokens
    end: State


class _Windows:
    """Reader of windows; `carry` holds the tokens that were read beyond the last window."""

    def __init__(self, documents: _Documents, encoder: Encoder, inner: int, carry: Tokens) -> None:
        self._documents, self._encoder, self._inner, self._carry = documents, encoder, inner, carry

    def read(self) -> _Window:
        """Read the next window; a tokenizer works outside Python's global lock, so training goes on meanwhile."""
        start, needed = self._position(), _WINDOW * self._inner
        pieces, count = [self._carry], len(self._carry)
        while count < needed:
            pieces.append(self._encoder(self._documents.take(CHARACTERS_AT_ONCE)))
            count += len(pieces[-1])
        tokens = np.concatenate(pieces)
        self._carry = tokens[needed:]
        return _Window(start, tokens[:needed].reshape(_WINDOW, self._inner), self._position())

    def _position(self) -> State:
        return {"documents": self._documents.state(), "carry": self._carry.tolist()}


class _Documents:
    """Training documents of a rank over endless epochs, with the shards in a new order in each epoch.

    The shards are divided between the ranks if their number allows it, else the documents of each shard.
    """

    def __init__(
        self, shards: Sequence[Shard | TableShard], seed: int, rank: int, world: int, state: State | None
    ) -> None:
        self._shards, self._seed, self._rank, self._world = shards, seed, rank, world
        self._epoch: int = state["epoch"] if state else 0
        self._place: int = state["place"] if state else 0
        self._reading: Reading | None = None
        self._left: State | None = state["reading"] if state else None  # position in a shard that is not open yet
        self._all = self._endless()

    def state(self) -> State:
        """Return the position as JSON."""
        return {
            "epoch": self._epoch,
            "place": self._place,
            "reading": self._reading.state() if self._reading else self._left,
        }

    def take(self, characters: int) -> list[str]:
        """Return the paragraphs of the next documents, with at least `characters` characters."""
        paragraphs: list[str] = []
        length = 0
        while length < characters:
            document = next(self._all)
            paragraphs += document
            length += sum(map(len, document))
        return paragraphs

    def _endless(self) -> Iterator[Document]:
        has_documents = self._left is not None
        while True:
            order = self._order()
            while self._place < len(order):
                shard = order[self._place]
                self._reading = self._shards[shard].read(self._left)
                self._left = None
                for document in self._reading:
                    if document and self._is_of_rank(shard + self._reading.done) and not _is_held_out(document):
                        has_documents = True
                        yield document
                self._reading = None
                self._place += 1
            if not has_documents:
                raise InputError(
                    f"the text has no document for process {self._rank + 1} of {self._world}: give more text, "
                    "or use fewer processes"
                )
            self._epoch, self._place, has_documents = self._epoch + 1, 0, False

    @property
    def _whole_shards(self) -> bool:
        return len(self._shards) % self._world == 0

    def _order(self) -> list[int]:
        count = len(self._shards)
        positions = np.arange(self._epoch * count, (self._epoch + 1) * count)
        order = [int(index) for index in shuffled(positions, count, self._seed)]
        return order[self._rank :: self._world] if self._whole_shards else order

    def _is_of_rank(self, number: int) -> bool:
        """Return True if this rank trains on the document of that number.

        The number is counted from a start that differs between shards, or else shards of one document, as files of the
        packaged text, would all go to one rank.
        """
        return self._whole_shards or number % self._world == self._rank


def _is_held_out(document: Document) -> bool:
    """Return True for held-out documents, decided by their text, not by the reader or the order of reading."""
    digest = hashlib.blake2b("\n".join(document).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % HELD_OUT_EVERY == 0


def open_stream(
    names: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    seq_len: int,
    held_out_documents: int = 500,
    group: Processes | None = None,
) -> tuple[StreamedBlocks, Blocks]:
    """Return training blocks that are read and tokenized on demand, and held-out blocks in memory.

    One document in `HELD_OUT_EVERY`, by a hash of its text, is never trained on. The first `held_out_documents` of
    these in reading order are the held-out text. The main process reads it for all processes.

    Args:
        names: Names of texts; see `sources.find_sources`.
        tokenizer: Tokenizer of the teacher.
        seq_len: Length of a block in tokens.
        held_out_documents: Number of held-out documents.
        group: Processes that train together; each reads documents of its own.

    Raises:
        InputError: for text that cannot be used.
    """
    group = group or Processes()
    sources = find_sources(names, stream=True)
    encoder = Encoder(tokenizer)
    shards = [shard for source in sources for shard in source.shards]

    def read() -> tuple[str, list[int]]:
        sizes = [(str(path), path.stat().st_size) for source in sources for path in source.files]
        digest = hashlib.sha256(f"stream {list(names)} {sizes} {encoder.rules}".encode()).hexdigest()
        return digest, _held_out_tokens(shards, encoder, held_out_documents).tolist()

    digest, tokens = group.once(read)
    held_out = Blocks([np.array(tokens, dtype=np.uint32)], seq_len, *encoder.ends, "the held-out text")
    return StreamedBlocks(shards, encoder, seq_len, digest, group.rank, group.count), held_out


def _held_out_tokens(shards: Sequence[Shard | TableShard], encoder: Encoder, count: int) -> Tokens:
    held_out = (document for shard in shards for document in shard.read() if document and _is_held_out(document))
    documents = list(itertools.islice(held_out, count))
    if not documents:
        raise InputError("the text has no document to hold out (one in 20 would be): give more text")
    tokens = encoder([paragraph for document in documents for paragraph in document])
    unknown = int(np.count_nonzero(tokens == encoder.unknown))
    check_known(unknown, len(tokens))
    return tokens
