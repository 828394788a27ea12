"""Reading of external tables in any format: rows by column, with their line numbers.

Text and tasks are read by the same rules: ambiguous content is refused with its line number, and nothing is guessed
silently. Rows are read one at a time, so memory depends on the longest line, which `LONGEST_LINE` bounds.
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
"""Endings of table files; all but the last may be followed by .gz."""
LONGEST_LINE = 1 << 27
"""Characters allowed in a line of a table; without a limit, a small .gz file could fill the memory."""
_ROWS_AT_ONCE = 256

Name = str | int
"""Name of a column, or its index in a table without a header."""


class Row(NamedTuple):
    """Row of a table.

    Attributes:
        line: Line on which the row begins, counted from 1; in Parquet files, the number of the row.
        cells: Cells by column; None, or no entry, for a missing cell.
    """

    line: int
    cells: Mapping[Name, object]


def suffix(path: Path) -> str:
    """Return the ending of a table's file name, without .gz."""
    return Path(path.name.removesuffix(".gz")).suffix


def read_table(path: Path, what: str, needed: Sequence[str] = ()) -> Iterator[Row]:
    """Yield the rows of a table; blank lines are skipped.

    A .csv file has commas, and quotes around cells that need them. A .tsv file has tabs; `quotes_of` decides if quotes
    around its cells belong to the format.

    Args:
        path: File whose name ends in one of `SUFFIXES`.
        what: Description of the table for messages, such as "table mail.csv".
        needed: Columns that the table must have.

    Raises:
        InputError: for content that cannot be read, with its line number if it has one.
    """
    with _reading(what):
        if suffix(path) == ".jsonl":
            rows = _objects(path, what)
        elif suffix(path) == ".parquet":
            rows = _parquet(path, what, needed)
        else:
            tabs = suffix(path) == ".tsv"
            quoted = not tabs or quotes_of(path, what)[0]
            rows = _delimited(path, what, "\t" if tabs else ",", quoted)
        with closing(rows):
            for index, row in enumerate(rows):
                if not index:
                    _check_columns(what, list(row.cells), needed)
                yield row


def read_as_written(path: Path, what: str, header: bool = True) -> Iterator[Row]:
    """Yield the rows of a file in the format of GLUE: tabs, literal quotes, and some broken rows.

    Args:
        path: The file.
        what: Description of the table for messages.
        header: True if the first line names the columns; otherwise columns are numbered from 0.

    Raises:
        InputError: if the file cannot be read.
    """
    with _reading(what), _opened(path) as file:
        rows = csv.reader(_lines(file, what), delimiter="\t", quoting=csv.QUOTE_NONE)
        columns: list[str] | None = next(rows, []) if header else None
        for row in filter(None, rows):
            names: Sequence[Name] = range(len(row)) if columns is None else columns
            yield Row(rows.line_num, dict(zip(names, row, strict=False)))


def text_of(what: str, row: Row, column: Name) -> str | None:
    """Return the text in a cell; None for a missing or blank cell.

    Raises:
        InputError: for a cell without text, with its line number.
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
    """Return the label in a cell as text, without surrounding blanks; None for a missing or blank cell.

    Raises:
        InputError: for a value that is neither text, a finite number nor a boolean, with its line number.
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
    """Decide if quotes around the cells of a .tsv file belong to its format.

    Programs that quote do so for cells with quotes (then doubled), tabs or line breaks, or for a whole column. Files
    such as those of GLUE never quote. Quotes therefore belong to the format if the file can be read with them and has
    such cells. Other cells in quotes are kept as written.

    Returns:
        True if quotes belong to the format, and the number of cells in quotes that are kept as written.

    Raises:
        InputError: if the file cannot be read.
    """
    header, rows, ragged, cells, doubled, full = _seen_unquoted(path, what)
    if not cells and not ragged:
        return False, 0
    quoted_rows = _rows_if_quoted(path, what, header)
    if quoted_rows is None or (not ragged and quoted_rows != rows):
        return False, cells
    needed = ragged or doubled == cells or full
    return needed, 0 if needed else cells


def _seen_unquoted(path: Path, what: str) -> tuple[int, int, bool, int, int, bool]:
    """Return the shape of a .tsv file if quotes are literal characters.

    Returns:
        Six values: the number of columns; the number of rows; True if some row has more or fewer cells; the number of
        cells in quotes; the number of these with doubled quotes inside; True if a whole column or the header is in
        quotes.
    """
    with _reading(what), _opened(path) as file:
        rows = filter(None, csv.reader(_lines(file, what), delimiter="\t", quoting=csv.QUOTE_NONE))
        header = next(rows, [])
        count = doubled = 0
        ragged, by_column = False, [0] * len(header)
        for row in rows:
            count += 1
            ragged = ragged or len(row) != len(header)
            for column, cell in enumerate(row[: len(header)]):
                if _is_quoted(cell):
                    by_column[column] += 1
                    doubled += '""' in cell[1:-1]
    full = any(map(_is_quoted, header)) or (count > 1 and count in by_column)
    return len(header), count, ragged, sum(by_column), doubled, full


def _rows_if_quoted(path: Path, what: str, width: int) -> int | None:
    """Return the number of rows of a .tsv file if quotes belong to its format; None if it cannot be read that way."""
    with _reading(what), _opened(path) as file:
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
    # datasets would read words such as "null" as missing text. pandas would drop cells beyond the header, or take the
    # first cell of a row as its index.
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
                    f"line {line} of {what} cannot be read ({error}); allowed: quotes around cells with quotes "
                    "inside, and the inner quotes doubled"
                ) from None
            if row is None:
                break
            if row and not header:
                header = [name.strip() for name in row]
                _check_columns(what, [name for name in header if name], ())
            elif row:
                if len(row) != len(header):
                    raise InputError(
                        f"line {line} of {what} has {len(row)} cells, its header {len(header)}; allowed: as many "
                        "as the header, and quotes around text with commas"
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
                raise InputError(f"line {number} of {what} is not JSON ({error})") from None
            if not isinstance(content, dict):
                raise InputError(f"line {number} of {what} is not an object; allowed: an object with the columns")
            yield Row(number, content)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("it has the same name twice")
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
    """Yield the lines of a file, and refuse lines longer than `LONGEST_LINE`."""
    csv.field_size_limit(LONGEST_LINE)  # the default of Python is 131,072
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise InputError(f"line {number} of {what} is longer than {LONGEST_LINE:,} characters; allowed: shorter")
        if "\0" in line:
            raise InputError(f"line {number} of {what} holds zero bytes: it is not text")
        yield line


def _opened(path: Path) -> TextIO:
    encoding = "utf-8-sig"  # some files begin with a byte order mark
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=encoding, newline="")  # type: ignore[return-value]
    return path.open(encoding=encoding, newline="")


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Raise InputError, naming `what`, for any error of reading in the context."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{what} cannot be read as UTF-8 text: {error}") from None
    except Exception as error:  # the readers have no common class of errors for broken files
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{what} cannot be read ({reason})") from None


def _kind(value: object) -> str:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else type(value).__name__
