"""Parts of a text: cut by a rule of the text alone, tokenized by any workers with the same result, and only once."""

import gzip
import hashlib
import json
import multiprocessing
import pickle
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from autodistil_search.base.errors import InputError
from autodistil_search.base.progress import Reporter
from autodistil_search.text import sources as sources_module
from autodistil_search.text.blocks import Blocks, Tokens, shuffled
from autodistil_search.text.part_job import PartRecord, PartTask, PartWriter
from autodistil_search.text.sources import Document, Part, bytes_of_parts, cut_into_parts, documents, find_sources
from autodistil_search.text.token_store import load_corpus
from autodistil_search.text.tokenization import Encoder


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


TEXT = [f"w{n % 90}\nw{n % 7} w{n % 13}" for n in range(400)]


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Text of seven parts."""
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(TEXT))
    monkeypatch.setattr(sources_module, "PART_BYTES", 1 + path.stat().st_size // 7)
    return path


@pytest.fixture(scope="module")
def processes() -> Iterator[Callable[[int], Executor]]:
    pools: dict[int, Executor] = {}

    def pool(workers: int) -> Executor:
        if workers not in pools:
            pools[workers] = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
        return pools[workers]

    yield pool
    for each in pools.values():
        each.shutdown()


def _lists(arrays: Sequence[Tokens]) -> list[list[int]]:
    return [array.tolist() for array in arrays]


@pytest.mark.parametrize("workers", ["none", "threads", "1 process", "2 processes"])
def test_the_tokens_and_blocks_do_not_depend_on_the_workers(
    text: Path,
    tokenizer: BertTokenizerFast,
    tmp_path: Path,
    processes: Callable[[int], Executor],
    workers: str,
) -> None:
    with ThreadPoolExecutor(2) as threads:
        executor = {"none": None, "threads": threads}.get(workers) or (
            processes(int(workers[0])) if workers[0].isdigit() else None
        )
        reported: list[int] = []
        corpus = load_corpus([str(text)], tokenizer, tmp_path / "cache", executor=executor, progress=reported.append)
    assert sum(reported) == len(TEXT)
    of_parts = [
        [" ".join(document) for document in part.documents()] for part in _parts(sources_module.PART_BYTES, text)
    ]
    assert len(of_parts) == 7
    ids = [[tokenizer(document, add_special_tokens=False).input_ids for document in part] for part in of_parts]
    train, held_out = (
        [[token for n, i in enumerate(part) if (n % 20 == 1) is kept_back for token in i] for part in ids]
        for kept_back in (False, True)
    )
    assert (_lists(corpus.train), _lists(corpus.held_out)) == (train, held_out)
    blocks, _ = corpus.blocks(7)
    expected = [part[start : start + 5] for part in train for start in range(0, len(part) - 4, 5)]
    assert blocks[range(len(blocks))][:, 1:-1].tolist() == expected
    assert {path.suffix for path in (tmp_path / "cache").rglob("*.*") if path.is_file()} == {".bin", ".json", ".lock"}
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 1


def test_rows_of_a_data_set_are_tokenized_by_other_processes(
    tokenizer: BertTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: Callable[[int], Executor]
) -> None:
    path = _save(tmp_path / "saved", TEXT)
    monkeypatch.setattr(sources_module, "PART_BYTES", 2000)
    corpora = [
        load_corpus([str(path)], tokenizer, tmp_path / name, executor=executor)
        for name, executor in (("here", None), ("there", processes(1)))
    ]
    assert len(corpora[0].train) > 2
    assert _lists(corpora[0].train) == _lists(corpora[1].train)


def test_a_text_of_one_part_has_the_digest_and_files_without_parts(
    tokenizer: BertTokenizerFast, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = load_corpus([str(text)], tokenizer, tmp_path / "cache")
    monkeypatch.undo()
    corpus = load_corpus([str(text)], tokenizer, tmp_path / "cache")
    content = hashlib.sha256(text.read_bytes()).digest()
    expected = b"format 3, held out 1 in 20" + Encoder(tokenizer).rules.encode() + b"documents" + content
    assert corpus.digest == hashlib.sha256(expected).hexdigest() != several.digest
    folder = tmp_path / "cache" / "text" / corpus.digest[:16]
    ids = [tokenizer(document, add_special_tokens=False).input_ids for document in TEXT]
    for name, kept_back in (("train", False), ("held_out", True)):
        stream = [token for n, i in enumerate(ids) if (n % 20 == 1) is kept_back for token in i]
        assert (folder / f"{name}.bin").read_bytes() == np.array(stream, dtype=np.uint32).tobytes()
    counts = {"train": 3 * 380, "held_out": 3 * 20}
    assert json.loads((folder / "meta.json").read_text()) == {"tokens": counts}
    assert {path.name for path in folder.iterdir()} == {"train.bin", "held_out.bin", "meta.json"}


def test_a_text_of_one_part_needs_no_worker(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("w1\nw2\n")
    executor = ThreadPoolExecutor(1)
    executor.shutdown()  # takes no task
    corpus = load_corpus([str(path)], tokenizer, tmp_path / "cache", executor=executor)
    assert (_lists(corpus.train), _lists(corpus.held_out)) == ([[6]], [[7]])


class _Said(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def _written(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.bin")}


@pytest.mark.parametrize("damage", [None, "cut", "without a record", "record of nothing"])
def test_parts_that_a_stopped_run_has_finished_are_not_tokenized_again(
    text: Path, tokenizer: BertTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str | None
) -> None:
    expected = _lists(load_corpus([str(text)], tokenizer, tmp_path / "whole").train)
    reported: list[int] = []

    def stopped(count: int) -> None:
        reported.append(count)
        if len(reported) == 6:  # two chunks in each part
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_corpus([str(text)], tokenizer, tmp_path / "cache", progress=stopped)
    (new,) = (tmp_path / "cache" / "text").glob("*.new")
    before = _written(new)
    assert set(before) == {f"{split}-0000{number}.bin" for split in ("train", "held_out") for number in (0, 1)}
    assert {path.name for path in new.iterdir()} == {*before, "part-00000.json", "part-00001.json"}
    if damage == "cut":
        (new / "train-00000.bin").write_bytes(b"1234")
    elif damage == "without a record":
        (new / "part-00000.json").unlink()
    elif damage == "record of nothing":
        (new / "part-00000.json").write_text("{}")
    (new / "train-00003.bin.of-a-killed-worker").write_bytes(b"1234")
    run, done = PartWriter.run, []

    def counted(writer: PartWriter, task: PartTask) -> PartRecord:
        done.append(task.number)
        return run(writer, task)

    monkeypatch.setattr(PartWriter, "run", counted)
    said = _Said()
    corpus = load_corpus([str(text)], tokenizer, tmp_path / "cache", reporter=said)
    assert done == [*([0] if damage else []), 2, 3, 4, 5, 6]
    assert said.lines == [f"{1 if damage else 2} of 7 parts of the text are already tokenized"]
    assert _lists(corpus.train) == expected
    after = _written(tmp_path / "cache" / "text" / corpus.digest[:16])
    assert len(after) == 14
    assert after["train-00001.bin"] == before["train-00001.bin"]


def test_nothing_is_kept_of_a_text_that_cannot_be_used(
    text: Path, tokenizer: BertTokenizerFast, tmp_path: Path
) -> None:
    text.write_text("\n".join(["foreign words only"] * 300))
    with pytest.raises(InputError, match="unknown to the teacher's tokenizer"):
        load_corpus([str(text)], tokenizer, tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_a_worker_without_the_same_folder_and_text_is_refused_by_name(
    text: Path, tokenizer: BertTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")  # a worker changes it
    folders = [tmp_path / name for name in ("shared", "own")]
    jobs = []
    for folder in folders:
        folder.mkdir()
        jobs.append(PartWriter(folder, _parts(900, text), [text], Encoder(tokenizer), 1).job())
    assert jobs[0].load().conditions() == jobs[0].conditions
    with pytest.raises(InputError, match=r"worker .*, process \d+, cannot read .*absent.*that all workers share"):
        replace(jobs[0], folder=tmp_path / "absent").load()
    with pytest.raises(
        InputError, match=r"worker .*, has a folder .*own of its own; allowed: .*that all workers share"
    ):
        replace(jobs[0], folder=folders[1]).load()
    text.write_text(f"{text.read_text()}more")
    with pytest.raises(
        InputError, match=r"worker .*, has another text .*text.txt: [\d,]+ bytes; allowed: [\d,]+ bytes"
    ):
        jobs[0].load()
    text.unlink()
    with pytest.raises(InputError, match=r"has another text .*text.txt: no such file; allowed: "):
        jobs[0].load()


def test_a_worker_of_an_executor_that_lacks_the_cache_is_refused_by_name(
    text: Path,
    tokenizer: BertTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: Callable[[int], Executor],
) -> None:
    job = PartWriter.job
    monkeypatch.setattr(PartWriter, "job", lambda writer: replace(job(writer), folder=Path("/nowhere/cache")))
    with pytest.raises(InputError, match=r"worker .*, cannot read /nowhere/cache/.*AUTODISTIL_SEARCH_CACHE"):
        load_corpus([str(text)], tokenizer, tmp_path / "cache", executor=processes(1))
    assert list((tmp_path / "cache").rglob("*.new")) == []


def test_a_tokenizer_that_cannot_be_sent_to_workers_is_one_line(
    text: Path, tokenizer: BertTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.helper = lambda: None  # not picklable
    with (
        ThreadPoolExecutor(1) as executor,
        pytest.raises(InputError, match="the teacher's tokenizer cannot be sent to workers: "),
    ):
        load_corpus([str(text)], tokenizer, tmp_path / "cache", executor=executor)


LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(lambda lengths: max(lengths) >= 5)


def _arrays(lengths: Sequence[int]) -> list[Tokens]:
    starts = np.cumsum([0, *lengths])
    return [np.arange(start, start + length, dtype=np.uint32) for start, length in zip(starts, lengths, strict=False)]


@given(lengths=LENGTHS, seed=st.integers(0, 2**32))
def test_blocks_of_several_arrays_are_those_of_each_array_in_turn(lengths: list[int], seed: int) -> None:
    arrays = _arrays(lengths)
    blocks = Blocks(arrays, seq_len=7, first=998, last=999)
    expected = [
        [998, *array[start : start + 5].tolist(), 999] for array in arrays for start in range(0, len(array) - 4, 5)
    ]
    count = len(expected)
    assert len(blocks) == count
    assert blocks[range(count)].tolist() == expected
    assert blocks[[]].shape == (0, 7)
    order = shuffled(np.arange(2 * count, 4 * count), count, seed)
    rows = blocks.rows(1, 2 * count, seed, slice(1, None))
    assert rows.tolist() == [expected[index] for index in order[1:]]
    assert blocks.spread(1000).tolist() == expected
    assert blocks.spread(2)[0].tolist() == expected[0]
    for outside in ([-1], [count]):
        with pytest.raises(IndexError, match=f"allowed: 0 to {count - 1}"):
            blocks[outside]


def test_arrays_too_short_for_one_block_are_refused() -> None:
    with pytest.raises(InputError, match="text has 4 tokens in its longest part; a block needs 5"):
        Blocks(_arrays([4, 4, 3]), seq_len=7, first=998, last=999)
