"""Job that tokenizes the parts of a text, each into files of its own.

A part is written under temporary names and renamed, its record last. A part that is tokenized twice, as after a lost
worker, gives the same files again, and a part with a record is never tokenized again. All workers write into one
folder. The folder also holds the tokenizer and the list of parts, so that the job itself stays small.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import platform
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import numpy as np
import tokenizers

from autodistil_search.base.errors import InputError
from autodistil_search.base.files import writing
from autodistil_search.base.jobs import Job
from autodistil_search.base.plugins import shown
from autodistil_search.text.blocks import HELD_OUT_EVERY, Tokens
from autodistil_search.text.sources import Document, Part
from autodistil_search.text.tokenization import CHARACTERS_AT_ONCE, Encoder

SPLITS = ("train", "held_out")
_WORK = "work.pickle"
_SHARED = "allowed: a cache folder on a drive that all workers share (AUTODISTIL_SEARCH_CACHE)"


@dataclass(frozen=True)
class PartTask:
    """Number of a part, from 0, and the number of all parts of the text."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"part {self.number + 1} of {self.count} of the text"

    def name(self, split: str) -> str:
        """Return the name of the file of a split without its ending; a text of one part needs no numbers."""
        return split if self.count == 1 else f"{split}-{self.number:05d}"

    def paths(self, folder: Path) -> list[Path]:
        """Return the files of the part: tokens of each split, and the record."""
        return [*(folder / f"{self.name(split)}.bin" for split in SPLITS), folder / f"{self.name('part')}.json"]


@dataclass(frozen=True)
class PartRecord:
    """Amount of text in a tokenized part.

    Attributes:
        tokens: Number of tokens by split.
        unknown: Number of tokens that are unknown to the tokenizer.
        documents: Number of documents.
    """

    tokens: Mapping[str, int]
    unknown: int
    documents: int


def has_sizes(counts: Mapping[Path, int]) -> bool:
    """Return True if each file exists and has the size of its number of tokens."""
    try:
        return all(path.stat().st_size == count * np.dtype(np.uint32).itemsize for path, count in counts.items())
    except OSError:
        return False


def keep_finished_parts(folder: Path, count: int) -> dict[int, PartRecord]:
    """Remove all files of a folder but those of whole parts; return the records of these parts by number.

    Args:
        folder: Folder of the files.
        count: Number of all parts.
    """
    finished: dict[int, PartRecord] = {}
    present, kept = {path.name for path in folder.glob("*")}, set()
    for task in (PartTask(number, count) for number in range(count)):
        paths = task.paths(folder)
        if paths[-1].name not in present:
            continue
        with suppress(OSError, ValueError, LookupError, TypeError):  # a record of a damaged disk
            record = PartRecord(**json.loads(paths[-1].read_text()))
            if has_sizes({path: record.tokens[split] for split, path in zip(SPLITS, paths, strict=False)}):
                finished[task.number] = record
                kept |= {path.name for path in paths}
    for name in present - kept:
        (folder / name).unlink(missing_ok=True)
    return finished


class PartWriter:
    """Loaded job that tokenizes any part of the text.

    Args:
        folder: Folder of the files.
        parts: Parts of the text.
        files: Files of the text.
        encoder: Encoder of the paragraphs.
        threads: Threads that tokenize.
        progress: Function that receives the number of documents tokenized since its last call.
    """

    def __init__(
        self,
        folder: Path,
        parts: Sequence[Part],
        files: Iterable[Path],
        encoder: Encoder,
        threads: int,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._folder, self._parts, self._files, self._encoder = folder, parts, files, encoder
        self._threads, self._progress = threads, progress

    def job(self) -> PartJob:
        """Write the file from which workers load the same; return their job.

        Raises:
            InputError: if the tokenizer cannot be sent to workers.
        """
        sizes = {path.absolute(): path.stat().st_size for path in self._files}
        try:
            content = pickle.dumps((uuid4().hex, self._encoder, self._parts, sizes))
        except Exception as error:  # a tokenizer may be any class
            raise InputError(f"the teacher's tokenizer cannot be sent to workers: {shown(error)}") from None
        with writing(self._folder / _WORK):
            (self._folder / _WORK).write_bytes(content)
        work = hashlib.sha256(content).hexdigest()
        return PartJob(conditions=self.conditions(), threads=self._threads, folder=self._folder, work=work)

    def conditions(self) -> Mapping[str, str]:
        """Return everything on which the tokens depend, besides the content of the text."""
        rules = hashlib.sha256(self._encoder.rules.encode()).hexdigest()
        return {"the tokenizer's rules": rules, "tokenizers": tokenizers.__version__}

    def run(self, task: PartTask) -> PartRecord:
        """Write the files of a part.

        Raises:
            InputError: for text that cannot be read.
            UnwritableError: if the folder cannot be written.
        """
        paths = task.paths(self._folder)
        fresh = [path.with_name(f"{path.name}.{uuid4().hex}") for path in paths]  # the part may run elsewhere, too
        try:
            with writing(paths[0]):
                record = self._write(self._parts[task.number], fresh)
                for new, path in zip(fresh, paths, strict=True):
                    os.replace(new, path)
        finally:
            for new in fresh:
                new.unlink(missing_ok=True)
        return record

    def _write(self, part: Part, paths: Sequence[Path]) -> PartRecord:
        tokens, unknown, documents = dict.fromkeys(SPLITS, 0), 0, 0
        with paths[0].open("wb") as train, paths[1].open("wb") as held_out, paths[2].open("wb") as description:
            streams = dict(zip(SPLITS, (train, held_out), strict=True))
            threads = min(self._threads, self._encoder.most_workers or self._threads)
            for chunk, ids in _encoded(_chunks(part.documents()), self._encoder, threads):
                streams[chunk.split].write(ids.tobytes())
                tokens[chunk.split] += len(ids)
                unknown += int(np.count_nonzero(ids == self._encoder.unknown))
                documents += chunk.documents
                self._progress(chunk.documents)
            record = PartRecord(tokens, unknown, documents)
            description.write(json.dumps(asdict(record)).encode())
            for stream in (train, held_out, description):
                stream.flush()
                os.fsync(stream.fileno())
        return record


@dataclass(frozen=True, kw_only=True)
class PartJob(Job):
    """Job of the workers that tokenize parts.

    Attributes:
        folder: Folder of the files, which all workers share.
        work: SHA-256 of the file with the tokenizer and the parts; it differs in each run.
    """

    folder: Path
    work: str

    def load(self) -> PartWriter:
        """Read the tokenizer and the parts, and compare the sizes of the text's files.

        Raises:
            InputError: if this worker has another folder or other files.
        """
        here, path = f"worker {platform.node()}, process {os.getpid()}", self.folder / _WORK
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{here}, cannot read {path}: {error.strerror}; {_SHARED}") from None
        if hashlib.sha256(content).hexdigest() != self.work:
            raise InputError(f"{here}, has a folder {self.folder} of its own; {_SHARED}")
        _, encoder, parts, sizes = pickle.loads(content)
        for file, size in sizes.items():
            found = f"{file.stat().st_size:,} bytes" if file.exists() else "no such file"
            if found != f"{size:,} bytes":
                raise InputError(f"{here}, has another text {file}: {found}; allowed: {size:,} bytes, as elsewhere")
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # otherwise each worker computes on all CPUs of the machine
        return PartWriter(self.folder, parts, sizes, encoder, self.threads)


class _Chunk(NamedTuple):
    """Paragraphs of one split, about `CHARACTERS_AT_ONCE` characters.

    Attributes:
        split: Split of the text, `train` or `held_out`.
        paragraphs: Paragraphs of whole documents.
        documents: Number of these documents.
    """

    split: str
    paragraphs: list[str]
    documents: int


def _chunks(documents: Iterable[Document]) -> Iterator[_Chunk]:
    splits: dict[str, list[Document]] = {split: [] for split in SPLITS}
    lengths = dict.fromkeys(splits, 0)
    for number, document in enumerate(documents):
        split = "held_out" if number % HELD_OUT_EVERY == 1 else "train"
        splits[split].append(document)
        lengths[split] += sum(map(len, document))
        if lengths[split] >= CHARACTERS_AT_ONCE:
            yield _chunk(split, splits[split])
            splits[split], lengths[split] = [], 0
    yield from (_chunk(split, rest) for split, rest in splits.items() if rest)


def _chunk(split: str, documents: list[Document]) -> _Chunk:
    return _Chunk(split, [paragraph for document in documents for paragraph in document], len(documents))


def _encoded(chunks: Iterable[_Chunk], encoder: Encoder, threads: int) -> Iterator[tuple[_Chunk, Tokens]]:
    """Yield each chunk with its token ids, in order; at most two chunks for each thread are queued."""
    waiting: deque[tuple[_Chunk, Future[Tokens]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for chunk in chunks:
            waiting.append((chunk, pool.submit(encoder, chunk.paragraphs)))
            if len(waiting) > 2 * threads:
                first, ids = waiting.popleft()
                yield first, ids.result()
        for chunk, ids in waiting:
            yield chunk, ids.result()
    finally:
        pool.shutdown(cancel_futures=True)
