"""Text as blocks of tokens: from a memory-mapped store, in any order, or from a stream that is never stored.

The store: text is tokenized once, in chunks of bounded size, and appended to two flat files of token ids. Documents are
kept whole: every twentieth goes to the held-out file, the others to the training file. Files are mapped, never read
whole, and the order of blocks is computed, never listed: 100 GB of text need the memory of 1 GB.

A block is `[CLS] seq_len - 2 tokens [SEP]`, cut from consecutive documents; blocks have no padding.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import mmap
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from autodistil_search.errors import InputError
from autodistil_search.sources import Document, Reading, Shard, Source, State, TableShard, find_sources

HELD_OUT_EVERY = 20
"""One document in so many is held out: of a store the second, the 22nd, ...; of a stream by a hash of its text."""

_CHARACTERS_AT_ONCE = 1 << 18
"""Text that is tokenized in one call; all that is in memory of it at a time is a few of these for each worker."""
_MOST_UNKNOWN = 0.5
"""Text with a larger share of unknown tokens teaches nothing."""
_FORMAT = 3
_WINDOW = 4096
"""Blocks of a stream that are shuffled among themselves."""
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
        ends = np.ones((len(rows), 1), dtype=np.int64)
        return torch.from_numpy(np.hstack([ends * self.first, rows.astype(np.int64), ends * self.last]))


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


@dataclass(frozen=True)
class Corpus:
    """Training and held-out tokens of a text. digest: of the text's content and the tokenizer."""

    train: Tokens
    held_out: Tokens
    digest: str
    first: int
    last: int

    def blocks(self, seq_len: int) -> tuple[Blocks, Blocks]:
        """Training and held-out blocks.

        Raises:
            InputError: if either has not a single block.
        """
        return (
            Blocks(self.train, seq_len, self.first, self.last, "the training text"),
            Blocks(self.held_out, seq_len, self.first, self.last, "the held-out text"),
        )


def load_corpus(
    names: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    cache: Path,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Corpus:
    """Tokenize `names` (see `sources.find_sources`), or map what was tokenized before, under `cache`.

    workers: threads that tokenize, by default one for each CPU; the result is the same with any number.
    progress: told of so many more documents, as they are written.

    Raises:
        InputError: for text that cannot be used.
    """
    sources = find_sources(names)
    encoder = Encoder(tokenizer)
    digest = _digest(sources, encoder)
    folder = cache / "text" / digest[:16]
    if not _is_whole(folder):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder.with_suffix(".lock"))
            lock.acquire()  # a run beside this one waits for its tokens
        except OSError as error:
            raise InputError(
                f"the cache {str(cache)!r} cannot be written: {error.strerror}; name another in AUTODISTIL_SEARCH_CACHE"
            ) from None
        try:
            if not _is_whole(folder):
                _tokenize(sources, encoder, folder, workers or _cpus(), progress or (lambda _: None))
        finally:
            lock.release()
    streams = [map_tokens(folder / f"{part}.bin") for part in ("train", "held_out")]
    return Corpus(streams[0], streams[1], digest, *encoder.ends)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_whole(folder: Path) -> bool:
    """Whether all tokens that were counted when they were written are there."""
    try:
        counts = json.loads((folder / "meta.json").read_text())["tokens"]
        sizes = {part: (folder / f"{part}.bin").stat().st_size for part in counts}
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return sizes == {part: count * np.dtype(np.uint32).itemsize for part, count in counts.items()}


def map_tokens(path: Path) -> Tokens:
    """The tokens in a file, mapped: only what is looked at is read, and the system may drop it again."""
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype=np.uint32)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(
        mmap, "MADV_RANDOM"
    ):  # blocks lie anywhere: reading ahead made batches of a 100 GB file 150 times slower
        mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, dtype=np.uint32)


def _digest(sources: Sequence[Source], encoder: Encoder) -> str:
    digest = hashlib.sha256(f"format {_FORMAT}, held out 1 in {HELD_OUT_EVERY}".encode())
    digest.update(encoder.rules.encode())
    for source in sources:
        for path in source.files:
            digest.update(source.kind.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


class Encoder:
    """Token ids of paragraphs, without [CLS] and [SEP]; nothing is cut or padded, however the tokenizer was left.

    A fast tokenizer works outside Python's lock, on all CPUs.

    Raises:
        InputError: if the tokenizer has nothing to begin and end a block with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._backend: Tokenizer | None = None
        if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
            self._backend = Tokenizer.from_str(backend.to_str())
            self._backend.no_truncation()
            self._backend.no_padding()
            self._backend.encode_special_tokens = backend.encode_special_tokens
        self.unknown = -1 if tokenizer.unk_token_id is None else int(tokenizer.unk_token_id)
        self.ends = _ends(tokenizer)

    @property
    def rules(self) -> str:
        """All that its token ids follow from."""
        rules = {"vocab": self._tokenizer.get_vocab()} if self._backend is None else json.loads(self._backend.to_str())
        return f"{type(self._tokenizer).__name__} {json.dumps(rules, sort_keys=True)}"

    @property
    def most_workers(self) -> int | None:
        """How many threads gain anything; None if any number does."""
        return None if self._backend is not None else 1

    def __call__(self, paragraphs: list[str]) -> Tokens:
        """The ids of all paragraphs in a row."""
        if self._backend is not None:
            encoded = self._backend.encode_batch_fast(paragraphs, add_special_tokens=False)
            ids = [each.ids for each in encoded]
        else:
            ids = self._tokenizer(
                paragraphs,
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,  # blocks are cut later: a long paragraph is no mistake
            )["input_ids"]
        return np.concatenate([np.array(each, dtype=np.uint32) for each in ids])


def _ends(tokenizer: PreTrainedTokenizerBase) -> Ends:
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if first is None or last is None:
        raise InputError("the teacher's tokenizer has no [CLS] and [SEP] (or <s> and </s>) tokens")
    return Ends(int(first), int(last))


def _tokenize(
    sources: Sequence[Source], encoder: Encoder, folder: Path, workers: int, progress: Callable[[int], None]
) -> None:
    """Write the two streams of `sources` into a new folder, and give it its name when all is there."""
    new = folder.with_suffix(".new")
    for left in (new, folder):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    new.mkdir()
    try:
        counts, unknown = _write_streams(sources, encoder, new, workers, progress)
        if not counts["held_out"]:
            raise InputError("the text is a single document: at least two are needed, one of them to hold out")
        _check_known(unknown, sum(counts.values()))
        (new / "meta.json").write_text(json.dumps({"tokens": counts}))
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _check_known(unknown: int, tokens: int) -> None:
    if unknown > _MOST_UNKNOWN * tokens:
        raise InputError(
            f"{unknown:,} of the text's {tokens:,} tokens are unknown to the teacher's tokenizer; "
            f"allowed: at most {_MOST_UNKNOWN:.0%}. Is it text in the teacher's language?"
        )


class _Chunk(NamedTuple):
    """Paragraphs of documents of one part, about `_CHARACTERS_AT_ONCE`; documents: how many end in it."""

    part: str
    paragraphs: list[str]
    documents: int


def _write_streams(
    sources: Sequence[Source], encoder: Encoder, folder: Path, workers: int, progress: Callable[[int], None]
) -> tuple[dict[str, int], int]:
    counts, unknown = {"train": 0, "held_out": 0}, 0
    with (folder / "train.bin").open("wb") as train, (folder / "held_out.bin").open("wb") as held_out:
        streams = {"train": train, "held_out": held_out}
        for chunk, ids in _encoded(_chunks(sources), encoder, min(workers, encoder.most_workers or workers)):
            streams[chunk.part].write(ids.tobytes())
            counts[chunk.part] += len(ids)
            unknown += int(np.count_nonzero(ids == encoder.unknown))
            progress(chunk.documents)
        for stream in streams.values():
            stream.flush()
            os.fsync(stream.fileno())
    return counts, unknown


def _chunks(sources: Sequence[Source]) -> Iterator[_Chunk]:
    every = (document for source in sources for shard in source.shards for document in shard.read() if document)
    parts: dict[str, list[Document]] = {"train": [], "held_out": []}
    lengths = dict.fromkeys(parts, 0)
    for number, document in enumerate(every):
        part = "held_out" if number % HELD_OUT_EVERY == 1 else "train"
        parts[part].append(document)
        lengths[part] += sum(map(len, document))
        if lengths[part] >= _CHARACTERS_AT_ONCE:
            yield _chunk(part, parts[part])
            parts[part], lengths[part] = [], 0
    yield from (_chunk(part, left) for part, left in parts.items() if left)


def _chunk(part: str, documents: list[Document]) -> _Chunk:
    return _Chunk(part, [paragraph for document in documents for paragraph in document], len(documents))


def _encoded(chunks: Iterable[_Chunk], encoder: Encoder, workers: int) -> Iterator[tuple[_Chunk, Tokens]]:
    """Each chunk with its token ids, in order; at most two for each worker are waiting."""
    waiting: deque[tuple[_Chunk, Future[Tokens]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for chunk in chunks:
            waiting.append((chunk, pool.submit(encoder, chunk.paragraphs)))
            if len(waiting) > 2 * workers:
                first, ids = waiting.popleft()
                yield first, ids.result()
        for chunk, ids in waiting:
            yield chunk, ids.result()
    finally:
        pool.shutdown(cancel_futures=True)


class StreamedBlocks:
    """Blocks of text that is read and tokenized as it is needed; see `open_stream`.

    Every `_WINDOW` blocks in reading order are shuffled among themselves. What is in such a window follows from where
    the reading stood at its start, so a state is a position and not a buffer, and resuming reads one window again.
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

    def rows(self, step: int, batch_size: int, seed: int, share: slice) -> Tensor:
        """See `TrainingText`; the rows are of this rank's own shards, and the text begins again when it ends.

        Raises:
            InputError: for text that cannot be read.
            ValueError: for another step than the next, or another seed than before: a stream has but one order.
        """
        known = seed if self._seed is None else self._seed
        if (step, seed) != (self._step, known):
            raise ValueError(
                f"a stream gives one step after another: the next is {self._step} with seed {known}, "
                f"not {step} with seed {seed}"
            )
        if self._seed is None:
            self._start_from(seed, {"documents": None, "carry": []})
        rows = [self._next() for _ in range(batch_size)[share]]
        self._step += 1
        return self._encoder.ends.around(np.stack(rows))

    def state(self) -> State:
        """Where the reading stood at the start of the window, how many blocks were given since, and the step."""
        state: State = {"step": self._step, "blocks": self._block, "seed": self._seed, **self._identity}
        if self._seed is not None:
            state["start"] = self._start if self._block % _WINDOW else self._cursor()
        return state

    def restore(self, state: State) -> None:
        """Go on after the step at which `state` was taken.

        Raises:
            InputError: if it is not the state of this stream.
        """
        if wrong := [
            f"{key} {state.get(key)}, now {value}" for key, value in self._identity.items() if state.get(key) != value
        ]:
            raise InputError(f"the checkpoint was made with another stream ({'; '.join(wrong)}); use another --out")
        self._step, self._block, self._seed = state["step"], state["blocks"], state["seed"]
        if self._seed is not None:
            self._start_from(self._seed, state["start"])
            if self._block % _WINDOW:
                self._fill()

    @property
    def _identity(self) -> dict[str, Any]:
        return {"rank": self._rank, "world": self._world, "tokens": self._inner, "window": _WINDOW, "text": self.digest}

    def _start_from(self, seed: int, start: State) -> None:
        self._seed = seed
        self._documents = _Documents(self._shards, seed, self._rank, self._world, start["documents"])
        self._carry: Tokens = np.array(start["carry"], dtype=np.uint32)

    def _cursor(self) -> State:
        return {"documents": self._documents.state(), "carry": self._carry.tolist()}

    def _next(self) -> Tokens:
        place = self._block % _WINDOW
        if place == 0:
            self._fill()
        self._block += 1
        row: Tokens = self._window[self._order[place]]
        return row

    def _fill(self) -> None:
        """Read the window that holds block `self._block`."""
        assert self._seed is not None
        self._start = self._cursor()
        needed = _WINDOW * self._inner
        pieces, found = [self._carry], len(self._carry)
        while found < needed:
            pieces.append(self._encoder(self._documents.take(_CHARACTERS_AT_ONCE)))
            found += len(pieces[-1])
        tokens = np.concatenate(pieces)
        self._window, self._carry = tokens[:needed].reshape(_WINDOW, self._inner), tokens[needed:]
        first = self._block - self._block % _WINDOW
        self._order = shuffled(np.arange(first, first + _WINDOW), _WINDOW, self._seed)


class _Documents:
    """The training documents of a rank, epoch after epoch; shards in another order each time.

    Ranks share out the shards if their number allows it, else the rows of each shard, as `datasets` does.
    """

    def __init__(
        self, shards: Sequence[Shard | TableShard], seed: int, rank: int, world: int, state: State | None
    ) -> None:
        self._shards, self._seed, self._rank, self._world = shards, seed, rank, world
        self._epoch: int = state["epoch"] if state else 0
        self._place: int = state["place"] if state else 0
        self._reading: Reading | None = None
        self._left: State | None = state["reading"] if state else None  # of a shard that is not open yet
        self._all = self._endless()

    def state(self) -> State:
        """Where it stands, as JSON holds it."""
        return {
            "epoch": self._epoch,
            "place": self._place,
            "reading": self._reading.state() if self._reading else self._left,
        }

    def take(self, characters: int) -> list[str]:
        """The paragraphs of the next documents, of so many characters or a little more."""
        taken: list[str] = []
        length = 0
        while length < characters:
            document = next(self._all)
            taken += document
            length += sum(map(len, document))
        return taken

    def _endless(self) -> Iterator[Document]:
        found = self._left is not None
        while True:
            order = self._order()
            while self._place < len(order):
                self._reading = self._shards[order[self._place]].read(self._left)
                self._left = None
                for document in self._reading:
                    if document and self._is_mine(self._reading.done) and not _is_held_out(document):
                        found = True
                        yield document
                self._reading = None
                self._place += 1
            if not found:
                raise InputError(
                    f"the text has no document for process {self._rank + 1} of {self._world}: give more text, "
                    "or use fewer processes"
                )
            self._epoch, self._place, found = self._epoch + 1, 0, False

    @property
    def _whole_shards(self) -> bool:
        return len(self._shards) % self._world == 0

    def _order(self) -> list[int]:
        count = len(self._shards)
        positions = np.arange(self._epoch * count, (self._epoch + 1) * count)
        order = [int(index) for index in shuffled(positions, count, self._seed)]
        return order[self._rank :: self._world] if self._whole_shards else order

    def _is_mine(self, number: int) -> bool:
        return self._whole_shards or number % self._world == self._rank


def _is_held_out(document: Document) -> bool:
    """By its text: no matter who reads it, in which order, how often."""
    digest = hashlib.blake2b("\n".join(document).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % HELD_OUT_EVERY == 0


def open_stream(
    names: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    seq_len: int,
    held_out_documents: int = 500,
    rank: int = 0,
    world: int = 1,
) -> tuple[StreamedBlocks, Blocks]:
    """Training blocks read and tokenized as they are needed, for text that does not fit; and held-out blocks in memory.

    One document in `HELD_OUT_EVERY`, by a hash of its text, is never trained on. The first `held_out_documents` of
    these in reading order are the held-out text, the same for all ranks.

    Raises:
        InputError: for text that cannot be used.
    """
    sources = find_sources(names, stream=True)
    encoder = Encoder(tokenizer)
    shards = [shard for source in sources for shard in source.shards]
    sizes = [(str(path), path.stat().st_size) for source in sources for path in source.files]
    digest = hashlib.sha256(f"stream {list(names)} {sizes} {encoder.rules}".encode()).hexdigest()
    held_out = Blocks(
        _held_out_tokens(shards, encoder, held_out_documents), seq_len, *encoder.ends, "the held-out text"
    )
    return StreamedBlocks(shards, encoder, seq_len, digest, rank, world), held_out


def _held_out_tokens(shards: Sequence[Shard | TableShard], encoder: Encoder, count: int) -> Tokens:
    every = (document for shard in shards for document in shard.read() if document and _is_held_out(document))
    documents = list(itertools.islice(every, count))
    if not documents:
        raise InputError("the text has no document to hold out (one in 20 would be): give more text")
    tokens = encoder([paragraph for document in documents for paragraph in document])
    unknown = int(np.count_nonzero(tokens == encoder.unknown))
    _check_known(unknown, len(tokens))
    return tokens
