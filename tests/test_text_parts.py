"""Parts of a text, cut by a rule of the text alone."""

import gzip
import pickle
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import datasets
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from autodistil_search.text import sources as sources_module
from autodistil_search.text.sources import Document, Part, bytes_of_parts, cut_into_parts, documents, find_sources


def _parts(size: int, *paths: Path) -> list[Part]:
    return cut_into_parts(find_sources([str(path) for path in paths]), size)


def _read(parts: Sequence[Part]) -> list[Document]:
    return [document for part in parts for document in part.documents()]


TEXTS = st.text(st.sampled_from("a\u00e9\u6f22\U0001f600 \t\u3000\x85\ufeff\n\n\n\r\r"), max_size=60)


@given(text=TEXTS, byte_order_mark=st.booleans(), size=st.integers(1, 40), piece=st.sampled_from([8, 1 << 18]))
@example(text="a\r\nb\r\n\r\nc\r\n", byte_order_mark=True, size=3, piece=8)
@example(text="a\n\nb\n\n\ufeffc", byte_order_mark=False, size=3, piece=8)  # no byte order mark within a file
def test_the_parts_of_a_file_have_its_documents_in_order(
    tmp_path_factory: pytest.TempPathFactory, text: str, byte_order_mark: bool, size: int, piece: int
) -> None:
    assume(text.removeprefix("" if byte_order_mark else "\ufeff").strip())
    path = tmp_path_factory.mktemp("cut") / "text.txt"
    path.write_bytes(("\ufeff" * byte_order_mark + text).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources_module, "LONGEST_PIECE", piece)
        patch.setattr(sources_module, "LONGEST_DOCUMENT", 2 * piece)
        assert _read(_parts(size, path)) == list(documents(path))


@given(st.integers(0, 2**32), st.sampled_from(["\n", "\r\n", "\r"]), st.booleans(), st.integers(20, 400))
def test_a_part_is_as_large_as_asked_and_at_most_a_document_larger(
    tmp_path_factory: pytest.TempPathFactory, seed: int, end: str, blank_lines: bool, size: int
) -> None:
    rng = random.Random(seed)
    texts = ["\u6f22 " * rng.randint(1, 20) for _ in range(60)]
    path = tmp_path_factory.mktemp("cut") / "text.txt"
    path.write_bytes(((2 if blank_lines else 1) * end).join(texts).encode())
    parts = _parts(size, path)
    longest = max(len(text.encode()) for text in texts) + 4 * len(
        end
    )  # the part may end with the document after a blank line that it only touches
    assert all(shard.size < size + longest for part in parts for shard in part.shards)
    assert sum(shard.size for part in parts for shard in part.shards) == path.stat().st_size
    assert len(parts) <= 2 * path.stat().st_size / size + 1
    assert _read(parts) == [[text.strip()] for text in texts]


@pytest.mark.parametrize("between", ["\n", "\n\n"])
def test_a_part_that_would_begin_within_a_character_begins_with_the_next_document(tmp_path: Path, between: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(between.join("\U0001f600\u6f22" * (1 + n % 3) for n in range(9)).encode())
    whole = list(documents(path))
    assert len(whole) == 9
    for size in range(1, path.stat().st_size + 2):
        assert _read(_parts(size, path)) == whole


def test_the_blanks_of_a_line_are_those_of_python() -> None:
    blank = re.compile(sources_module._BLANK)
    letters = (chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000)
    assert {letter for letter in letters if blank.fullmatch(letter.encode())} == {
        letter for letter in map(chr, range(sys.maxunicode + 1)) if letter.isspace() and letter not in "\r\n"
    }


def test_small_files_are_joined_and_a_packed_file_or_one_document_is_never_cut(tmp_path: Path) -> None:
    small = [tmp_path / f"{n}.txt" for n in range(5)]
    for path in small:
        path.write_text("w1\nw2\nw3\nw4\n")  # 12 bytes
    packed = tmp_path / "packed.txt.gz"
    packed.write_bytes(gzip.compress(random.Random(0).randbytes(300).hex().encode()))
    assert [len(part.shards) for part in _parts(60, *small)] == [5]
    assert [len(part.shards) for part in _parts(59, *small)] == [4, 1]
    assert [len(part.shards) for part in _parts(30, small[0], packed, *small[1:])] == [1, 1, 2, 2]
    assert [len(part.shards) for part in _parts(7, *small)] == [1] * 10
    whole = sources_module._text_source(small[:1], one_per_file=True)
    assert [len(part.shards) for part in cut_into_parts([whole], 7)] == [1]


def test_a_large_text_has_larger_parts_and_not_more(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    with path.open("wb") as file:
        file.truncate(1_000_000_000_000)  # a sparse file
    assert bytes_of_parts(find_sources([str(path)])) == 5_000_000_000
    path.write_text("w1\n")
    assert bytes_of_parts(find_sources([str(path)])) == sources_module.PART_BYTES


def _save(path: Path, texts: Sequence[str]) -> Path:
    are_hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"text": texts, "other": list(range(len(texts)))}).save_to_disk(path)
    if not are_hidden:
        datasets.enable_progress_bars()
    return path


def test_a_saved_data_set_of_one_file_is_cut_by_rows(tmp_path: Path) -> None:
    path = _save(tmp_path / "saved", [f"w{n}" for n in range(50)])
    whole = _read(_parts(10**6, path))
    parts = _parts(300, path)
    assert len(parts) > 3
    assert _read(pickle.loads(pickle.dumps(parts))) == whole == [[f"w{n}"] for n in range(50)]
    assert len(_parts(1, path)) == 50
