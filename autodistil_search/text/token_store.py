"""Blocks of tokens from a memory-mapped store of tokenized text.

Text is tokenized once, part by part, in chunks of bounded size. Each part gives two flat files of token ids. Documents
are not divided: every twentieth of a part goes to the held-out file, the others to the training file. The files are
memory-mapped, and the order of blocks is computed, not stored. 100 GB of text therefore need no more memory than 1 GB.
Parts follow from the text alone, so the blocks do not depend on the number of threads or workers.

A block is `[CLS] seq_len - 2 tokens [SEP]`, cut from consecutive documents, without padding.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from autodistil_search.base.distributed import Processes, is_first_on_host
from autodistil_search.base.errors import InputError
from autodistil_search.base.executors import open_team
from autodistil_search.base.progress import Reporter
from autodistil_search.text.blocks import HELD_OUT_EVERY, Blocks, Tokens
from autodistil_search.text.digests import text_digests
from autodistil_search.text.part_job import SPLITS, PartRecord, PartTask, PartWriter, has_sizes, keep_finished_parts
from autodistil_search.text.sources import Part, Source, bytes_of_parts, cut_into_parts, find_sources
from autodistil_search.text.tokenization import Encoder, check_known

if TYPE_CHECKING:
    from autodistil_search.base.executors import AnyExecutor

_FORMAT = 3
_META = "meta.json"


@dataclass(frozen=True)
class Corpus:
    """Training and held-out tokens of a text.

    Attributes:
        train: Tokens of the training text, one array for each part of the text.
        held_out: Tokens of the held-out text, one array for each part of the text.
        digest: Digest of the content of the text and of the tokenizer.
        first: Token id that begins a block.
        last: Token id that ends a block.
    """

    train: Sequence[Tokens]
    held_out: Sequence[Tokens]
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
    *,
    group: Processes | None = None,
    executor: AnyExecutor | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
    reporter: Reporter | None = None,
) -> Corpus:
    """Tokenize text into a cache, or map the tokens that are already there.

    If several processes train together, only the main process reads and tokenizes the text. On a host that does not
    share its cache, one process does so again.

    Args:
        names: Names of texts; see `sources.find_sources`.
        tokenizer: Tokenizer of the teacher.
        cache: Folder of the cache; the workers of an executor share it.
        group: Processes that train together.
        executor: Executor whose workers tokenize the parts of the text; None tokenizes in this process, as does a text
            of one part. The result does not depend on it.
        threads: Threads that tokenize in this process, by default one for each CPU; the result does not depend on their
            number.
        progress: Function that receives the number of documents tokenized since its last call.
        reporter: Receiver of messages; by default nothing is shown.

    Raises:
        InputError: for text that cannot be used, or if the workers of an executor have other conditions.
        ExecutorError: if the executor fails.
    """
    group, encoder = group or Processes(), Encoder(tokenizer)

    def tokenize() -> tuple[str, int]:
        sources = find_sources(names)
        size = bytes_of_parts(sources)
        text = _Text(sources, cut_into_parts(sources, size), encoder)
        digest = _digest(text, size, cache)
        if not _is_whole(_folder(cache, digest)):
            work = _Tokenizing(text, executor, threads or _cpus(), progress, reporter or Reporter())
            _write_alone(work, _folder(cache, digest))
        return digest, len(text.parts)

    digest, count = group.once(tokenize)
    folder = _folder(cache, digest)
    if not _is_whole(folder) and is_first_on_host() and (own := tokenize()[0]) != digest:
        raise InputError(
            f"the text on this host differs from that of the main process (digests {own[:16]} and {digest[:16]}); "
            "allowed: the same files on all hosts"
        )
    group.meet()
    tasks = [PartTask(number, count) for number in range(count)]
    train, held_out = ([map_tokens(folder / f"{task.name(split)}.bin") for task in tasks] for split in SPLITS)
    return Corpus(train, held_out, digest, *encoder.ends)


def _folder(cache: Path, digest: str) -> Path:
    return cache / "text" / digest[:16]


def _write_alone(work: _Tokenizing, folder: Path) -> None:
    """Write a store, unless another process writes it meanwhile.

    Raises:
        InputError: if the cache cannot be written, or see `load_corpus`.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_suffix(".lock"))
        lock.acquire()  # a concurrent run waits for these tokens
    except OSError as error:
        raise InputError(
            f"the cache {str(folder.parent.parent)!r} cannot be written: {error.strerror}; "
            "set AUTODISTIL_SEARCH_CACHE to another folder"
        ) from None
    try:
        if not _is_whole(folder):
            work.write(folder)
    finally:
        lock.release()


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_whole(folder: Path) -> bool:
    """Return True if the files of a store have the sizes that were recorded when they were written."""
    try:
        counts = json.loads((folder / _META).read_text())["tokens"]
        return has_sizes({folder / f"{name}.bin": count for name, count in counts.items()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def map_tokens(path: Path) -> Tokens:
    """Return the tokens of a file as a memory map: only accessed pages are read, and the system may drop them."""
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype=np.uint32)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):  # access is random: read-ahead made batches of a 100 GB file 150 times slower
        mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, dtype=np.uint32)


@dataclass(frozen=True)
class _Text:
    sources: Sequence[Source]
    parts: Sequence[Part]
    encoder: Encoder

    @property
    def tasks(self) -> list[PartTask]:
        return [PartTask(number, len(self.parts)) for number in range(len(self.parts))]


def _digest(text: _Text, size: int, cache: Path) -> str:
    digest = hashlib.sha256(f"format {_FORMAT}, held out 1 in {HELD_OUT_EVERY}".encode())
    digest.update(text.encoder.rules.encode())
    files = [(source.kind, path) for source in text.sources for path in source.files]
    for (kind, _), content in zip(files, text_digests([path for _, path in files], cache), strict=True):
        digest.update(kind.encode())
        digest.update(content)
    if len(text.parts) > 1:
        digest.update(f"{len(text.parts)} parts of {size} bytes".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Tokenizing:
    """Text that is tokenized now, and the processes or threads for that; see `load_corpus`."""

    text: _Text
    executor: AnyExecutor | None
    threads: int
    progress: Callable[[int], None]
    reporter: Reporter

    def write(self, folder: Path) -> None:
        """Write the parts into a temporary folder, and rename it to `folder` once complete.

        If that fails or is killed, the temporary folder keeps the finished parts for the next run.
        """
        new, count = folder.with_suffix(".new").absolute(), len(self.text.parts)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged store
        new.mkdir(exist_ok=True)
        try:
            records = self._records(new)
            self._complete(new, records)
            new.rename(folder)
        finally:
            if not keep_finished_parts(new, count):
                shutil.rmtree(new, ignore_errors=True)
        for path in folder.iterdir():  # records of parts, now in one file
            if path.suffix != ".bin" and path.name != _META:
                path.unlink()

    def _records(self, folder: Path) -> dict[int, PartRecord]:
        """Tokenize the parts that are not finished; return the records of all parts by number.

        This process tokenizes a single part, because it starts at once and has more threads than a worker.
        """
        records = keep_finished_parts(folder, len(self.text.parts))
        if records:
            self.reporter.say(f"{len(records)} of {len(self.text.parts)} parts of the text are already tokenized")
        tasks = [task for task in self.text.tasks if task.number not in records]
        files = [path for source in self.text.sources for path in source.files]
        load = partial(PartWriter, folder, self.text.parts, files, self.text.encoder)
        if self.executor is None or len(tasks) == 1:
            executor, writer = None, load(self.threads, self.progress)
        else:
            executor, writer = self.executor, load(torch.get_num_threads())
        with open_team(executor, writer, self.reporter) as team:
            for index, record in team.results(tasks):
                records[tasks[index].number] = record
                if executor is not None:  # this process reports each chunk
                    self.progress(record.documents)
        return records

    def _complete(self, folder: Path, records: Mapping[int, PartRecord]) -> None:
        """Check the tokens of the whole text, and write the file that makes the store complete.

        Raises:
            InputError: if the text cannot be used; all its tokens are removed.
        """
        try:
            if not any(record.tokens["held_out"] for record in records.values()):
                raise InputError("the text is a single document: at least two are needed, because one is held out")
            check_known(
                sum(record.unknown for record in records.values()),
                sum(sum(record.tokens.values()) for record in records.values()),
            )
        except InputError:
            shutil.rmtree(folder)
            raise
        counts = {task.name(split): records[task.number].tokens[split] for task in self.text.tasks for split in SPLITS}
        (folder / _META).write_text(json.dumps({"tokens": counts}))
