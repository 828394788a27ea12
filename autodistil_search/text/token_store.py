"""Blocks of tokens from a memory-mapped store of tokenized text.

Text is tokenized once, in chunks of bounded size, and appended to two flat files of token ids. Documents are not
divided: every twentieth goes to the held-out file, the others to the training file. The files are memory-mapped, and
the order of blocks is computed, not stored. 100 GB of text therefore need no more memory than 1 GB.

A block is `[CLS] seq_len - 2 tokens [SEP]`, cut from consecutive documents, without padding.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from autodistil_search.base.errors import InputError
from autodistil_search.text.blocks import HELD_OUT_EVERY, Blocks, Tokens
from autodistil_search.text.sources import Document, Source, find_sources
from autodistil_search.text.tokenization import CHARACTERS_AT_ONCE, Encoder, check_known

_FORMAT = 3


@dataclass(frozen=True)
class Corpus:
    """Training and held-out tokens of a text.

    Attributes:
        train: Tokens of the training text.
        held_out: Tokens of the held-out text.
        digest: Digest of the content of the text and of the tokenizer.
        first: Token id that begins a block.
        last: Token id that ends a block.
    """

    train: Tokens
    held_out: Tokens
    digest: str
    first: int
    last: int

    def blocks(self, seq_len: int) -> tuple[Blocks, Blocks]:
        """Return the training and the held-out blocks.

        Raises:
            InputError: if either text is shorter than one block.
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
    """Tokenize text into a cache, or map the tokens that are already there.

    Args:
        names: Names of texts; see `sources.find_sources`.
        tokenizer: Tokenizer of the teacher.
        cache: Folder of the cache.
        workers: Threads that tokenize, by default one for each CPU; the result does not depend on their number.
        progress: Function that receives the number of documents written since its last call.

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
            lock.acquire()  # a concurrent run waits for these tokens
        except OSError as error:
            raise InputError(
                f"the cache {str(cache)!r} cannot be written: {error.strerror}; "
                "set AUTODISTIL_SEARCH_CACHE to another folder"
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
    """Return True if the files of a store have the sizes that were recorded when they were written."""
    try:
        counts = json.loads((folder / "meta.json").read_text())["tokens"]
        sizes = {part: (folder / f"{part}.bin").stat().st_size for part in counts}
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return sizes == {part: count * np.dtype(np.uint32).itemsize for part, count in counts.items()}


def map_tokens(path: Path) -> Tokens:
    """Return the tokens of a file as a memory map: only accessed pages are read, and the system may drop them."""
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype=np.uint32)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):  # access is random: read-ahead made batches of a 100 GB file 150 times slower
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


def _tokenize(
    sources: Sequence[Source], encoder: Encoder, folder: Path, workers: int, progress: Callable[[int], None]
) -> None:
    """Write the two streams of `sources` into a temporary folder, and rename it to `folder` once complete."""
    new = folder.with_suffix(".new")
    for leftover in (new, folder):  # of a killed run
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir()
    try:
        counts, unknown = _write_streams(sources, encoder, new, workers, progress)
        if not counts["held_out"]:
            raise InputError("the text is a single document: at least two are needed, because one is held out")
        check_known(unknown, sum(counts.values()))
        (new / "meta.json").write_text(json.dumps({"tokens": counts}))
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


class _Chunk(NamedTuple):
    """Paragraphs of one part of the text, about `CHARACTERS_AT_ONCE` characters.

    Attributes:
        part: Part of the text, `train` or `held_out`.
        paragraphs: Paragraphs of whole documents.
        documents: Number of these documents.
    """

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
    documents = (document for source in sources for shard in source.shards for document in shard.read() if document)
    parts: dict[str, list[Document]] = {"train": [], "held_out": []}
    lengths = dict.fromkeys(parts, 0)
    for number, document in enumerate(documents):
        part = "held_out" if number % HELD_OUT_EVERY == 1 else "train"
        parts[part].append(document)
        lengths[part] += sum(map(len, document))
        if lengths[part] >= CHARACTERS_AT_ONCE:
            yield _chunk(part, parts[part])
            parts[part], lengths[part] = [], 0
    yield from (_chunk(part, rest) for part, rest in parts.items() if rest)


def _chunk(part: str, documents: list[Document]) -> _Chunk:
    return _Chunk(part, [paragraph for document in documents for paragraph in document], len(documents))


def _encoded(chunks: Iterable[_Chunk], encoder: Encoder, workers: int) -> Iterator[tuple[_Chunk, Tokens]]:
    """Yield each chunk with its token ids, in order; at most two chunks for each worker are queued."""
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
