"""Tables from outside, whatever their format: rows by column, each with the line it stands on.

Text and tasks are read by the same rules: what cannot be meant is refused by its line, and nothing is guessed in
silence. Rows are read one after another, so memory follows from the longest line, which `LONGEST_LINE` bounds.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from autodistil_search.base.errors import InputError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
"""All but the last may be followed by .gz."""
LONGEST_LINE = 1 << 27
"""Characters; more in one line of a table is refused, as also a small .gz file can hold it."""
_ROWS_AT_ONCE = 256

Name = str | int
"""Of a column; its index where a table has no header."""


class Row(NamedTuple):
    """A row of a table: the line it begins on, counted from 1, and its cells; None, or no entry, where one is missing.

    Of Parquet files, `line` is the number of the row.
    """

    line: int
    cells: Mapping[Name, object]


def suffix(path: Path) -> str:
    """Return the ending of a table's name, without .gz."""
    return Path(path.name.removesuffix(".gz")).suffix


def read_table(path: Path, what: str, needed: Sequence[str] = ()) -> Iterator[Row]:
    """Give the rows of a table; blank lines are none.

    A .csv file has commas, and quotes around cells that need them. A .tsv file has tabs; whether quotes around its
    cells belong to the format is told by `quotes_of`.

    Args:
        path: A file that ends in one of `SUFFIXES`.
        what: The table in words, such as "table mail.csv".
        needed: Columns it must have.

    Raises:
        InputError: at what cannot be read, naming the line where there is one.
    """
    with _told(what):
        if suffix(path) == ".jsonl":
            rows = _objects(path, what)
        elif suffix(path) == ".parquet":
            rows = _parquet(path, what, needed)
        else:
            tabs = suffix(path) == ".tsv"
            quoted = not tabs or quotes_of(path, what)[0]
            rows = _delimited(path, what, "\t" if tabs else ",", quoted)
        with closing(rows):
            for place, row in enumerate(rows):
                if not place:
                    _check_columns(what, list(row.cells), needed)
                yield row


def read_as_written(path: Path, what: str, header: bool = True) -> Iterator[Row]:
    """Give the rows of a file in GLUE's own format: tabs, quotes that mean nothing, and rows broken in places.

    header: whether the first line names the columns; else they are counted from 0.

    Raises:
        InputError: if it cannot be read.
    """
    with _told(what), _opened(path) as file:
        rows = csv.reader(_lines(file, what), delimiter="\t", quoting=csv.QUOTE_NONE)
        columns: list[str] | None = next(rows, []) if header else None
        for row in filter(None, rows):
            names: Sequence[Name] = range(len(row)) if columns is None else columns
            yield Row(rows.line_num, dict(zip(names, row, strict=False)))


def text_of(what: str, row: Row, column: Name) -> str | None:
    """Return the text in a cell; None for a missing or blank one.

    Raises:
        InputError: for anything else, naming the line.
    """
    value = row.cells.get(column)
    if value is None:
        return None
    if not isinstance(value, str):
        raise InputError(f"line {row.line} of {what} has {_kind(value)} in column {column!r}; allowed: text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"line {row.line} of {what} has half a character (a surrogate) in column {column!r}; allowed: whole ones"
        ) from None
    return value if value.strip() else None


def label_of(what: str, row: Row, column: Name) -> str | None:
    """Return the label in a cell as text, without blanks around it; None for a missing or blank one.

    Raises:
        InputError: for what is neither text, a finite number nor a truth value, naming the line.
    """
    value = row.cells.get(column)
    if value is None:
        return None
    if isinstance(value, str):
        return value.strip() or None
    if not isinstance(value, bool | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise InputError(
            f"line {row.line} of {what} has {_kind(value)} in column {column!r}; allowed: text, or finite numbers"
        )
    return str(value)


def quotes_of(path: Path, what: str) -> tuple[bool, int]:
    """Return whether quotes around the cells of a .tsv file belong to the format, and how many cells have them if not.

    Programs that quote do so where a cell holds quotes (then doubled), tabs or line breaks, or in a whole column. Files
    such as GLUE's never quote. So quotes belong to the format if the file can be read so and has such cells; cells in
    quotes that nothing asked for are kept as written.

    Raises:
        InputError: if it cannot be read.
    """
    header, rows, ragged, cells, doubled, full = _seen_unquoted(path, what)
    if not cells and not ragged:
        return False, 0
    read = _rows_if_quoted(path, what, header)
    if read is None or (not ragged and read != rows):
        return False, cells
    asked_for = ragged or doubled == cells or full
    return asked_for, 0 if asked_for else cells


def _seen_unquoted(path: Path, what: str) -> tuple[int, int, bool, int, int, bool]:
    """What a .tsv file looks like where quotes mean nothing.

    Columns, rows, whether some have more or fewer cells, cells in quotes, those of them with doubled quotes inside, and
    whether all cells of a column or the header are in quotes.
    """
    with _told(what), _opened(path) as file:
        rows = filter(None, csv.reader(_lines(file, what), delimiter="\t", quoting=csv.QUOTE_NONE))
        header = next(rows, [])
        count = doubled = 0
        ragged, by_column = False, [0] * len(header)
        for row in rows:
            count += 1
            ragged = ragged or len(row) != len(header)
            for place, cell in enumerate(row[: len(header)]):
                if _is_quoted(cell):
                    by_column[place] += 1
                    doubled += '""' in cell[1:-1]
    full = any(map(_is_quoted, header)) or (count > 1 and count in by_column)
    return len(header), count, ragged, sum(by_column), doubled, full


def _rows_if_quoted(path: Path, what: str, width: int) -> int | None:
    """How many rows a .tsv file has if quotes belong to the format; None if it cannot be read so."""
    with _told(what), _opened(path) as file:
        rows = filter(None, csv.reader(_lines(file, what), delimiter="\t", strict=True))
        try:
            count = 0
            for row in rows:
                if len(row) != width:
                    return None
                count += 1
        except csv.Error:
            return None
    return count - 1


def _is_quoted(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == '"'


def _delimited(path: Path, what: str, delimiter: str, quoted: bool) -> Generator[Row, None, None]:
    # Not by datasets, which takes words such as "null" for missing text; nor by pandas, which drops what a row has more
    # than the header, or takes its first cell for an index.
    quoting = {"strict": True} if quoted else {"quoting": csv.QUOTE_NONE}
    with _opened(path) as file:
        rows = csv.reader(_lines(file, what), delimiter=delimiter, **quoting)  # type: ignore[arg-type]
        header: list[str] = []
        line = 1
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                raise InputError(
                    f"line {line} of {what} cannot be read ({error}); allowed: cells with quotes inside in quotes, "
                    "and those doubled"
                ) from None
            if row is None:
                break
            if row and not header:
                header = [name.strip() for name in row]
                _check_columns(what, [name for name in header if name], ())
            elif row:
                if len(row) != len(header):
                    raise InputError(
                        f"line {line} of {what} has {len(row)} cells, its header {len(header)}; allowed: as many, "
                        "text with commas in quotes"
                    )
                yield Row(line, dict(zip(header, row, strict=True)))
            line = rows.line_num + 1


def _objects(path: Path, what: str) -> Generator[Row, None, None]:
    with _opened(path) as file:
        for number, line in enumerate(_lines(file, what), 1):
            if not line.strip():
                continue
            try:
                content = json.loads(line, object_pairs_hook=_without_repeats)
            except (ValueError, RecursionError) as error:
                raise InputError(f"line {number} of {what} is no JSON ({error})") from None
            if not isinstance(content, dict):
                raise InputError(f"line {number} of {what} is no object; allowed: an object with the columns")
            yield Row(number, content)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("it has a name twice")
    return content


def _parquet(path: Path, what: str, needed: Sequence[str]) -> Generator[Row, None, None]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        names = list(file.schema_arrow.names)
        _check_columns(what, names, needed)
        line = 0
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=list(needed) or names):
            for cells in batch.to_pylist():
                line += 1
                yield Row(line, cells)


def _check_columns(what: str, columns: Sequence[Name], needed: Sequence[str]) -> None:
    if repeated := [name for name in columns if columns.count(name) > 1]:
        raise InputError(f"{what} has column {repeated[0]!r} twice; allowed: each name once")
    if lacking := [name for name in needed if name not in columns]:
        raise InputError(f"{what} has columns {', '.join(map(str, columns))}; needed: {lacking[0]!r}")


def _lines(file: TextIO, what: str) -> Iterator[str]:
    """The lines of a file, none of them longer than `LONGEST_LINE`."""
    csv.field_size_limit(LONGEST_LINE)  # Python's own is 131,072
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise InputError(f"line {number} of {what} is longer than {LONGEST_LINE:,} characters; allowed: shorter")
        if "\0" in line:
            raise InputError(f"line {number} of {what} holds zero bytes: it is not text")
        yield line


def _opened(path: Path) -> TextIO:
    encoding = "utf-8-sig"  # some begin with a byte order mark
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=encoding, newline="")  # type: ignore[return-value]
    return path.open(encoding=encoding, newline="")


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Raises InputError, naming `what`, for whatever cannot be read inside."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{what} cannot be read as UTF-8 text: {error}") from None
    except Exception as error:  # readers raise whatever the broken part of a file leads to
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{what} cannot be read ({reason})") from None


def _kind(value: object) -> str:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else type(value).__name__
