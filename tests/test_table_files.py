"""Tables from outside: every format by one reader, and what cannot be meant is refused by its line."""

import csv
import gzip
import io
import json
import math
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from autodistil_search.base import table_files
from autodistil_search.base.errors import InputError
from autodistil_search.base.table_files import SUFFIXES, Row, label_of, quotes_of, read_table, text_of
from autodistil_search.tasks.labelled_data import load_task
from autodistil_search.text.sources import find_sources

ROWS = [{"text": f"words {i}", "label": ["no", "yes"][i % 2]} for i in range(12)]
HARD = ["a, b", 'he said "no"', '"quoted"', "two\nlines", "a\ttab", "c\u00e9", " blanks "]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows in the format of the name's ending, quoted as Python's csv module does."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if table_files.suffix(path) == ".jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, [*rows[0]], delimiter="\t" if table_files.suffix(path) == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
        text = buffer.getvalue()
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("ending", [*SUFFIXES, ".csv.gz", ".tsv.gz", ".jsonl.gz"])
def test_hard_cells_are_read_as_they_were_written_in_every_format(ending: str, tmp_path: Path) -> None:
    rows = [{"text": text, "label": "x"} for text in HARD]
    found = list(read_table(write(tmp_path / f"t{ending}", rows), "table t"))
    assert [row.cells for row in found] == rows


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", "text,label\na,x\nb, c,y\n", "line 3 of table t has 3 cells, its header 2"),
        ("t.csv", "label,text\nx,a\ny,b, c\n", "line 3 of table t has 3 cells, its header 2"),
        ("t.csv", "text,label\na,x\nhalf\nof it,y\n", "line 3 of table t has 1 cells"),
        ("t.csv", 'text,label\n"two\nlines",x\n"b" c,y\n', "line 4 of table t cannot be read"),
        ("t.csv", 'text,label\na,x\n"never closed,y\nc,x\n', "line 3 of table t cannot be read"),
        ("t.csv", "text,text,label\na,b,x\n", "has column 'text' twice"),
        ("t.csv", "text, text ,label\na,b,x\n", "has column 'text' twice"),
        ("t.csv", "text,label\na\0b,x\n", "line 2 of table t holds zero bytes"),
        ("t.csv", "text,label\nc\u00e9,x\n".encode("latin-1"), "cannot be read as UTF-8"),
        ("t.csv", "text,label\na,x\n".encode("utf-16"), "cannot be read as UTF-8"),
        ("t.tsv", "text\tlabel\na\tb\tx\n", "line 2 of table t has 3 cells"),
        ("t.tsv", 'text\tlabel\n"half\tx\nb\n', "line 3 of table t has 1 cells"),
        ("t.jsonl", '{"text": "a", "text": "b"}\n', "line 1 of table t is not JSON .*twice"),
        ("t.jsonl", '{"text": "a"}\n\n[1]\n', "line 3 of table t is not an object"),
        ("t.jsonl", "[" * 100_000, "line 1 of table t is not JSON"),
        ("t.jsonl", '{"label": ' + "9" * 5000 + "}", "line 1 of table t is not JSON"),
        ("t.parquet", b"PAR1nothing", "cannot be read"),
        ("t.csv.gz", b"\x1f\x8bnothing", "cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_its_line(
    name: str, content: str | bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=said) as caught:
        list(read_table(tmp_path / name, "table t"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["\ufefftext,label\r\na,x\r\n", " text , label\n\na,x\n\n", "text,label\ra,x\r"])
def test_marks_of_other_systems_and_blanks_around_names_change_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content.encode())
    (row,) = read_table(tmp_path / "t.csv", "table t", ["text"])
    assert row.cells == {"text": "a", "label": "x"}


def test_a_line_of_any_length_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "LONGEST_LINE", 1000)
    for name, begin in (("t.jsonl.gz", b'{"text": "'), ("t.csv.gz", b"text\na\n"), ("t.tsv.gz", b"text\na\n")):
        (tmp_path / name).write_bytes(gzip.compress(begin + b"a" * 2_000_000))
        with pytest.raises(InputError, match="is longer than 1,000 characters"):
            list(read_table(tmp_path / name, "table t"))
    (tmp_path / "t.csv").write_text('text\n"' + "a line of a cell\n" * 100 + '"\n')
    with pytest.raises(InputError, match=r"line 2 of table t cannot be read .*field larger than field limit"):
        list(read_table(tmp_path / "t.csv", "table t"))


def tsv(path: Path, cells: list[str], quoting: Any) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=quoting, lineterminator="\n")
        writer.writerows([["text", "label"], *([cell, "xy"[i % 2]] for i, cell in enumerate(cells))])
    return path


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_quotes_that_a_program_wrote_around_tab_separated_cells_are_taken_off(quoting: int, tmp_path: Path) -> None:
    rng = random.Random(0)
    hard = ["plain", 'he said "no"', '"all of it"', "two\nlines", 'a "b"\nc', "a\tb"]
    for some in (hard, hard[:3], hard[:1]):
        cells = [rng.choice(some) for _ in range(60)]
        path = tsv(tmp_path / "t.tsv", cells, quoting)
        assert [row.cells["text"] for row in read_table(path, "table t")] == cells
        assert quotes_of(path, "table t")[1] == 0


@pytest.mark.parametrize(
    ("cells", "kept"),
    [
        (['he said "no', 'and "yes"', '"begins', 'ends"', "plain"], 0),  # as in GLUE's files
        (['"Come here."', "plain", '"Go on."'], 2),
        (['"begins', "a", 'ends"', '"" twice ""'], 1),
    ],
)
def test_quotes_that_nothing_asked_for_are_text_and_told(cells: list[str], kept: int, tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("text\tlabel\n" + "".join(f"{cell}\t{'xy'[i % 2]}\n" for i, cell in enumerate(cells)))
    assert [row.cells["text"] for row in read_table(path, "table t")] == cells
    assert quotes_of(path, "table t") == (False, kept)
    task = load_task(str(path))
    assert {*task.train.first, *task.dev.first} == {*cells}
    assert len(task.notes) == bool(kept)


@pytest.mark.parametrize(
    "value", [3, 2.5, math.nan, True, ["a"], {"a": 1}, b"bytes", "\ud800 half a character"], ids=ascii
)
def test_what_is_no_text_is_refused_by_its_line(value: Any) -> None:
    with pytest.raises(InputError, match=r"line 7 of table t has .* in column 'text'; allowed"):
        text_of("table t", Row(7, {"text": value}), "text")


@pytest.mark.parametrize("value", [math.nan, math.inf, ["a"], {"a": 1}, b"bytes"], ids=ascii)
def test_what_is_no_label_is_refused_by_its_line(value: Any) -> None:
    with pytest.raises(InputError, match=r"line 7 of table t has .* in column 'label'; allowed"):
        label_of("table t", Row(7, {"label": value}), "label")


def test_labels_lose_blanks_around_them_and_blank_is_missing() -> None:
    cells = [" neg ", "\t", "", None, 3, 2.5, True, "null"]
    expected = ["neg", None, None, None, "3", "2.5", "True", "null"]
    assert [label_of("t", Row(1, {"label": cell}), "label") for cell in cells] == expected
    texts = [text_of("t", Row(1, {"text": cell}), "text") for cell in (" a ", " \n", "", None)]
    assert texts == [" a ", None, None, None]


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_text_and_tasks_refuse_a_number_for_text_alike(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"t{ending}", [{"text": 5, "label": row["label"]} for row in ROWS])
    with pytest.raises(InputError, match=r"line 1 of table .* has int in column 'text'"):
        load_task(str(path))
    (source,) = find_sources([str(path)])
    with pytest.raises(InputError, match=r"line 1 of text .* has int in column 'text'"):
        list(source.shards[0].read())


@pytest.mark.parametrize(
    ("train", "dev", "said"),
    [
        (["a", "b"], ["a", "c"], r"line 3 of table .*dev.jsonl has label 'c', which no row of .*train.jsonl has"),
        ([0.5, 1.5, 2.5], [1.0, "high"], r"line 3 of table .*dev.jsonl has label 'high' among numbers"),
        ([0.5, "3,5", 2.5], [1.0, 2.0], r"line 3 of table .*train.jsonl has label '3,5' among numbers"),
        ([1, 2, 10**400], [1, 2], r"line 4 of table .*train.jsonl has label '1000"),
        (["only", "only "], ["only", "only"], "1 different labels"),
        (["a", "b"], [], r"dev.jsonl has no rows"),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused_by_their_line(
    train: list[Any], dev: list[Any], said: str, tmp_path: Path
) -> None:
    for stem, labels in (("train", train), ("dev", dev)):
        lines = [json.dumps({"text": f"w{i}", "label": label}) for i, label in enumerate(labels)]
        (tmp_path / f"{stem}.jsonl").write_text("\n" * bool(lines) + "\n".join(lines))
    with pytest.raises(InputError, match=said):
        load_task(str(tmp_path))


def test_text_is_read_where_no_cache_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "file" / "cache"))
    for ending in (".jsonl", ".parquet"):
        (source,) = find_sources([str(write(tmp_path / f"t{ending}", ROWS))])
        assert [document for shard in source.shards for document in shard.read()] == [[row["text"]] for row in ROWS]
