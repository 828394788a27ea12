"""Text as blocks of tokens, from a memory-mapped store.

Text is tokenized once, in chunks of bounded size, and appended to two flat files of token ids. Documents are
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

from autodistil_search.base.errors import InputError
from autodistil_search.base.pretrained import ends
from autodistil_search.text.sources import LONGEST_PIECE, Document, Source, State, find_sources, piece_end

HELD_OUT_EVERY = 20
"""One document in so many is held out; of a store the second, the 22nd, ..."""

CHARACTERS_AT_ONCE = 1 << 18
"""Text that is tokenized in one call; all that is in memory of it at a time is a few of these for each worker."""
_MOST_UNKNOWN = 0.5
"""Text with a larger share of unknown tokens teaches nothing."""
_FORMAT = 3
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
        self.ends = Ends(*ends("the teacher", tokenizer))

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
        """The ids of all paragraphs in a row; a long one is encoded piece by piece, see `sources.piece_end`."""
        return np.concatenate([ids for batch in _batches(paragraphs) for ids in self._encoded(batch)])

    def _encoded(self, paragraphs: list[str]) -> list[Tokens]:
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
        return [np.array(each, dtype=np.uint32) for each in ids]


def _batches(paragraphs: Sequence[str]) -> Iterator[list[str]]:
    """The paragraphs in order, about `CHARACTERS_AT_ONCE` at a time: a tokenizer needs 100 bytes for a character."""
    batch: list[str] = []
    length = 0
    for piece in itertools.chain.from_iterable(map(_cut, paragraphs)):
        if batch and length + len(piece) > CHARACTERS_AT_ONCE:
            yield batch
            batch, length = [], 0
        batch.append(piece)
        length += len(piece)
    yield batch


def _cut(paragraph: str) -> Iterator[str]:
    start = 0
    while len(paragraph) - start > LONGEST_PIECE:
        end = start + piece_end(paragraph[start : start + LONGEST_PIECE + 1], LONGEST_PIECE)
        yield paragraph[start:end]
        start = end
    yield paragraph[start:]


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
        check_known(unknown, sum(counts.values()))
        (new / "meta.json").write_text(json.dumps({"tokens": counts}))
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def check_known(unknown: int, tokens: int) -> None:
    """Refuse text of which most tokens are unknown.

    Raises:
        InputError: naming how many.
    """
    if unknown > _MOST_UNKNOWN * tokens:
        raise InputError(
            f"{unknown:,} of the text's {tokens:,} tokens are unknown to the teacher's tokenizer; "
            f"allowed: at most {_MOST_UNKNOWN:.0%}. Is it text in the teacher's language?"
        )


class _Chunk(NamedTuple):
    """Paragraphs of documents of one part, about `CHARACTERS_AT_ONCE`; documents: how many end in it."""

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
        if lengths[part] >= CHARACTERS_AT_ONCE:
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
