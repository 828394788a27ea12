"""From text to blocks: nothing lost, nothing leaked, nothing tokenized twice, and bad text refused by name."""

import gzip
import itertools
import json
import math
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub.constants import HF_HOME
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from autodistil_search.base.distributed import Processes
from autodistil_search.base.errors import InputError
from autodistil_search.tasks.labelled_data import load_task
from autodistil_search.text import part_job, tokenization
from autodistil_search.text import sources as sources_module
from autodistil_search.text import token_stream as stream_module
from autodistil_search.text.blocks import Blocks, Tokens, shuffled
from autodistil_search.text.sources import documents, find_sources
from autodistil_search.text.token_store import Corpus, load_corpus
from autodistil_search.text.token_stream import StreamedBlocks, open_stream
from autodistil_search.text.tokenization import Encoder

CLS, SEP = 2, 3


def _words(*numbers: int) -> str:
    return " ".join(f"w{n}" for n in numbers)


def _ids(*numbers: int) -> list[int]:
    return [5 + n for n in numbers]  # "w0" is token 5


def _tokens(arrays: Sequence[Tokens]) -> list[int]:
    return np.concatenate(arrays).tolist()


@pytest.fixture
def load(tmp_path: Path, tokenizer: BertTokenizerFast) -> Callable[..., Corpus]:
    """Loads files, or a text after writing it, with a cache of this test's own."""

    def load(*given: str | bytes | Path) -> Corpus:
        paths = []
        for number, each in enumerate(given):
            path = each
            if not isinstance(each, Path):
                path = tmp_path / f"given-{number}.txt"
                path.write_bytes(each.encode() if isinstance(each, str) else each)
            paths.append(str(path))
        return load_corpus(paths, tokenizer, tmp_path / "cache")

    return load


def _stored(tmp_path: Path) -> list[tuple[str, int]]:
    """What the cache holds, with the times of writing."""
    return sorted((str(path), path.stat().st_mtime_ns) for path in (tmp_path / "cache").rglob("*.bin"))


def test_blocks_are_the_tokenized_text_in_order_between_cls_and_sep(
    load: Callable[..., Corpus], toy_text: Callable[..., Path], tokenizer: BertTokenizerFast
) -> None:
    path = toy_text(documents=43)
    whole = [tokenizer(document, add_special_tokens=False).input_ids for document in path.read_text().split("\n\n")]
    held_out = [1, 21, 41]
    streams = (
        [token for i, ids in enumerate(whole) if i not in held_out for token in ids],
        [token for i in held_out for token in whole[i]],
    )
    for blocks, stream in zip(load(path).blocks(seq_len=9), streams, strict=True):
        rows = blocks[range(len(blocks))]
        assert rows.shape == (len(stream) // 7, 9)
        assert (rows[:, 0] == CLS).all()
        assert (rows[:, -1] == SEP).all()
        assert _tokens(blocks.tokens) == stream
        assert rows[:, 1:-1].flatten().tolist() == stream[: len(rows) * 7]


def test_no_held_out_document_is_trained_on(load: Callable[..., Corpus]) -> None:
    numbers = range(84)
    corpus = load("\n\n".join(f"{_words(n)}\n{_words(n, n)}" for n in numbers))
    held_out = [1, 21, 41, 61, 81]
    assert _tokens(corpus.held_out) == [token for n in held_out for token in _ids(n, n, n)]
    assert set(_tokens(corpus.train)) == set(_ids(*(n for n in numbers if n not in held_out)))


def test_documents_are_counted_on_over_all_files(load: Callable[..., Corpus]) -> None:
    assert _tokens(load(_words(1, 1), _words(2), f"{_words(3)}\n").held_out) == _ids(2)


@given(st.lists(st.lists(st.text("ab ", min_size=1).filter(str.strip), min_size=1, max_size=3), min_size=2, max_size=5))
def test_blank_lines_part_documents(tmp_path_factory: pytest.TempPathFactory, parts: list[list[str]]) -> None:
    path = tmp_path_factory.mktemp("parted") / "text.txt"
    path.write_text("\n\n".join("\n".join(part) for part in parts))
    assert list(documents(path)) == [[line.strip() for line in part] for part in parts]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb\nc", [["a"], ["b"], ["c"]]),
        ("\n\na\nb\n\n", [["a"], ["b"]]),  # blank lines around the text part nothing
        ("a\nb\n \t\n\nc\n", [["a", "b"], ["c"]]),
        ("a\r\nb\r\n\r\nc\r\n", [["a", "b"], ["c"]]),
        ("\ufeffa\nb", [["a"], ["b"]]),
        ("a\u2028b\x0cc\n\nd", [["a\u2028b\x0cc"], ["d"]]),  # only line ends end lines
    ],
)
def test_documents_of_a_file(tmp_path: Path, text: str, expected: list[list[str]]) -> None:
    for name, content in (("a.txt", text.encode()), ("a.txt.gz", gzip.compress(text.encode()))):
        (tmp_path / name).write_bytes(content)
        assert list(documents(tmp_path / name)) == expected


def test_a_file_that_is_one_document_keeps_its_paragraphs_together(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n\nb\nc\n")
    assert list(documents(tmp_path / "a.txt", one_per_file=True)) == [["a", "b", "c"]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b"\n \n\t\n", "is empty"),
        ("empty.txt.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("latin.txt", "caf\u00e9".encode("latin-1"), "cannot be read as UTF-8"),
        ("wide.txt", "a\nb".encode("utf-16-le"), "zero bytes"),
        ("zero.txt", b"some text\nwith a \0 in it\n", "zero bytes"),
        ("image.txt", b"\x89PNG\r\n\x1a\n\0\0", "cannot be read as UTF-8"),
        ("plain.txt.gz", b"no gzip at all", "cannot be read as UTF-8"),
        ("cut.txt.gz", gzip.compress(random.Random(0).randbytes(900).hex().encode(), mtime=0)[:-500], "cannot be read"),
        ("damaged.txt.gz", gzip.compress(b"some text\n\nmore", mtime=0)[:12] + b"\xff" * 20, "cannot be read"),
        ("table.tsv", b"a\tb", r"allowed: \.txt, \.txt\.gz"),
        ("upper.TXT", b"a\n\nb", r"allowed: \.txt, \.txt\.gz"),
    ],
)
def test_what_is_not_text_is_refused_by_its_name(
    load: Callable[..., Corpus], tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}.*{message}"):
        load(tmp_path / name)
    assert list((tmp_path / "cache").rglob("*.bin")) == []


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    for name in ("absent.txt", "folder.txt"):
        with pytest.raises(InputError, match=f"no text file .*{name}"):
            find_sources([str(tmp_path / name)])


def test_a_single_document_is_refused(load: Callable[..., Corpus]) -> None:
    with pytest.raises(InputError, match="single document: at least two"):
        load(f"{_words(*range(50))}\n")


@pytest.mark.parametrize(
    ("text", "which"),
    [(f"{_words(1)}\n{_words(*range(20))}", "training"), (f"{_words(*range(20))}\n{_words(1)}", "held-out")],
)
def test_a_stream_too_short_for_one_block_is_refused(load: Callable[..., Corpus], text: str, which: str) -> None:
    with pytest.raises(InputError, match=f"the {which} text has 1 tokens; a block needs 8"):
        load(text).blocks(seq_len=10)


def test_a_stream_of_exactly_one_block_is_enough(load: Callable[..., Corpus]) -> None:
    train, held_out = load(f"{_words(*range(8))}\n{_words(*range(8))}").blocks(seq_len=10)
    assert (len(train), len(held_out)) == (1, 1)
    assert train[[0]].tolist() == [[CLS, *_ids(*range(8)), SEP]]


def test_spread_takes_the_ends_and_evenly_between() -> None:
    blocks = Blocks([np.arange(42, dtype=np.uint32)], seq_len=4, first=98, last=99)
    assert blocks.spread(5)[:, 1].tolist() == [0, 10, 20, 30, 40]
    assert blocks.spread(1000)[:, 1].tolist() == list(range(0, 42, 2))


def test_text_is_tokenized_once(load: Callable[..., Corpus], toy_text: Callable[..., Path], tmp_path: Path) -> None:
    path = toy_text()
    first, stored = load(path), _stored(tmp_path)
    path.touch()
    again = load(path)
    assert again.digest == first.digest
    assert _stored(tmp_path) == stored
    assert _tokens(again.train) == _tokens(first.train)


def test_a_tokenizer_that_cuts_and_pads_is_the_same_before_and_after_its_first_use(
    load: Callable[..., Corpus], toy_text: Callable[..., Path], tokenizer: BertTokenizerFast, tmp_path: Path
) -> None:
    path = toy_text()
    uncut = load(path)
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.backend_tokenizer.enable_padding(length=8)
    first = load(path)
    assert _tokens(first.train) == _tokens(uncut.train)
    assert load(path).digest == first.digest


def test_other_text_or_another_tokenizer_is_tokenized_anew(
    load: Callable[..., Corpus], toy_text: Callable[..., Path], tokenizer: BertTokenizerFast, tmp_path: Path
) -> None:
    path = toy_text()
    before = load(path)
    path.write_text(path.read_text().replace("w77", "w78"))
    changed = load(path)
    assert changed.digest != before.digest
    assert _tokens(changed.train) == [83 if token == 82 else token for token in _tokens(before.train)]
    words = [f"w{n}" for n in reversed(range(90))]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    other = BertTokenizerFast(vocab={word: i for i, word in enumerate(vocabulary)})
    found = load_corpus([str(path)], other, tmp_path / "cache")
    assert found.digest != changed.digest
    assert _tokens(found.train) == [99 - token for token in _tokens(changed.train)]


def test_the_same_files_named_and_packaged_are_parted_each_in_their_own_way(
    load: Callable[..., Corpus], tokenizer: BertTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / f"{n}.txt" for n in range(2)]
    for number, path in enumerate(files):
        path.write_text(f"{_words(10 * number)}\n\n{_words(10 * number + 1)}\n")
    monkeypatch.setattr(sources_module, "packaged_files", lambda: files)
    packaged = load_corpus(["packaged"], tokenizer, tmp_path / "cache")
    assert _tokens(packaged.held_out) == _ids(10, 11)
    assert _tokens(load(*files).held_out) == _ids(1)


def test_text_whose_tokenizing_was_broken_off_is_tokenized_whole_the_next_time(
    load: Callable[..., Corpus],
    toy_text: Callable[..., Path],
    tokenizer: BertTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, done = toy_text(), []

    def broken_off(documents: int) -> None:
        done.append(documents)
        if len(done) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(part_job, "CHARACTERS_AT_ONCE", 500)
        with pytest.raises(KeyboardInterrupt):
            load_corpus([str(path)], tokenizer, tmp_path / "cache", progress=broken_off)
    assert _stored(tmp_path) == []
    leftover = tmp_path / "cache" / "text" / ".new-killed"  # what a process leaves that could not clean up
    leftover.mkdir(parents=True)
    (leftover / "train.bin").write_bytes(b"1234")
    assert len(_tokens(load(path).train)) == 20 * 2 * 57


def test_a_cached_text_without_its_last_file_is_tokenized_again(
    load: Callable[..., Corpus], toy_text: Callable[..., Path], tmp_path: Path
) -> None:
    path = toy_text()
    expected = _tokens(load(path).train)
    next((tmp_path / "cache" / "text").glob("*/meta.json")).unlink()
    next((tmp_path / "cache" / "text").glob("*/train.bin")).unlink()
    assert _tokens(load(path).train) == expected


def test_cached_tokens_that_were_cut_are_made_again(
    load: Callable[..., Corpus], toy_text: Callable[..., Path], tmp_path: Path
) -> None:
    path = toy_text()
    expected = _tokens(load(path).train)
    stream = next((tmp_path / "cache" / "text").glob("*/train.bin"))
    stream.write_bytes(stream.read_bytes()[: stream.stat().st_size // 2 + 1])
    assert _tokens(load(path).train) == expected


def test_text_of_unknown_tokens_is_refused(load: Callable[..., Corpus]) -> None:
    with pytest.raises(InputError, match="unknown to the teacher's tokenizer"):
        load("\n".join(["foreign words only"] * 50))


def test_a_paragraph_of_any_length_is_kept_whole(load: Callable[..., Corpus]) -> None:
    numbers = [i % 90 for i in range(30_000)]
    corpus = load(f"{_words(*numbers)}\n{_words(1, 2)}")
    assert _tokens(corpus.train) == _ids(*numbers)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_any_number_of_threads_writes_the_same_tokens_in_order(
    tokenizer: BertTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(part_job, "CHARACTERS_AT_ONCE", 100)
    path, count, done = tmp_path / "many.txt", 1000, []
    path.write_text("\n".join(_words(n % 90) for n in range(count)))
    corpus = load_corpus([str(path)], tokenizer, tmp_path / "cache", threads=threads, progress=done.append)
    held_out = range(1, count, 20)
    assert _tokens(corpus.held_out) == _ids(*(n % 90 for n in held_out))
    assert _tokens(corpus.train) == _ids(*(n % 90 for n in range(count) if n % 20 != 1))
    assert sum(done) == count
    assert len(done) > 20


def test_the_packaged_text_has_one_document_a_file(tmp_path: Path) -> None:
    (source,) = find_sources(["packaged"])
    assert len(source.shards) > 200
    assert sum(1 for shard in source.shards[:5] for _ in shard.read()) == 5


@given(count=st.integers(1, 400), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**40))
def test_each_epoch_of_shuffled_positions_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    found = shuffled(np.arange(epoch * count, (epoch + 1) * count), count, seed)
    assert sorted(found.tolist()) == list(range(count))


@given(count=st.integers(1, 2**40), position=st.integers(0, 2**60), seed=st.integers(0, 2**32))
def test_a_shuffled_position_does_not_depend_on_its_batch(count: int, position: int, seed: int) -> None:
    positions = position + np.arange(50)
    together = shuffled(positions, count, seed)
    assert [int(shuffled(positions[i : i + 1], count, seed)[0]) for i in (0, 7, 49)] == together[[0, 7, 49]].tolist()
    assert (together >= 0).all()
    assert (together < count).all()
    whole_epoch_apart = len(set(together[positions // count == positions[0] // count].tolist()))
    assert whole_epoch_apart == (positions // count == positions[0] // count).sum()


def test_every_permutation_of_few_is_drawn_about_as_often_over_seeds_and_epochs() -> None:
    for count, orders in ((2, 2), (3, 6), (4, 24)):
        draws = 60 * orders
        by_seed = [shuffled(np.arange(count), count, seed) for seed in range(draws)]
        by_epoch = shuffled(np.arange(draws * count), count, 0).reshape(draws, count)
        for drawn in (by_seed, by_epoch):
            frequency = Counter(tuple(order) for order in drawn)
            chi_square = sum((frequency[order] - 60) ** 2 / 60 for order in itertools.permutations(range(count)))
            assert chi_square < orders + 4 * math.sqrt(2 * orders)


@pytest.mark.parametrize("count", [97, 1000, 4096, 1_000_003])
def test_a_shuffled_order_is_like_a_random_one(count: int) -> None:
    n = min(count, 20_000)
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        found = shuffled(epoch * count + np.arange(n), count, seed) / count
        bound = 4 / math.sqrt(n)
        assert abs(np.corrcoef(found, np.arange(n))[0, 1]) < bound  # with the place
        assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < bound  # with the one before
        assert abs(np.corrcoef(found, shuffled((epoch + 1) * count + np.arange(n), count, seed))[0, 1]) < bound
        assert abs(np.corrcoef(found, shuffled(epoch * count + np.arange(n), count, seed + 1))[0, 1]) < bound
        parts = np.histogram(found, bins=20, range=(0, 1))[0]
        assert ((parts - n / 20) ** 2 / (n / 20)).sum() < 19 + 4 * math.sqrt(2 * 19)


def test_ranks_take_their_rows_of_one_batch_that_does_not_depend_on_them() -> None:
    blocks = Blocks([np.arange(3 * 50, dtype=np.uint32)], seq_len=5, first=998, last=999)
    for step in (0, 3, 20):
        whole = blocks.rows(step, 12, 7, slice(None))
        assert whole.shape == (12, 5)
        for world in (2, 3):
            shares = [blocks.rows(step, 12, 7, slice(r * 12 // world, (r + 1) * 12 // world)) for r in range(world)]
            assert torch.cat(shares).equal(whole)
    epoch = torch.cat([blocks.rows(step, 10, 7, slice(None)) for step in range(5)])
    assert sorted(epoch[:, 1].tolist()) == list(range(0, 150, 3))
    assert not blocks.rows(0, 12, 8, slice(None)).equal(blocks.rows(0, 12, 7, slice(None)))
    blocks.restore(json.loads(json.dumps(blocks.state())))
    with pytest.raises(InputError, match="streamed text"):
        blocks.restore({"step": 1})


def _write(path: Path, documents: Sequence[str]) -> Path:
    """The documents in the format that the name's ending tells; tables have other columns, too."""
    rows = [{"id": i, "text": text, "meta": {"a": i} if i % 2 else "b"} for i, text in enumerate(documents)]
    table = pa.table({"id": [row["id"] for row in rows], "text": list(documents)})
    if path.suffix == ".txt":
        path.write_text("\n\n".join(documents) + "\n")
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    elif path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=7)
    elif path.suffix == ".csv":
        table.to_pandas().to_csv(path, index=False)
    else:
        bars_shown = datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        datasets.Dataset(table).save_to_disk(path, num_shards=2)
        if not bars_shown:
            datasets.enable_progress_bars()
    return path


FORMATS = ["text.txt", "rows [1]*.jsonl", "rows.jsonl.gz", "rows.parquet", "rows.csv", "saved"]


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_documents_give_the_same_tokens_from_every_format(
    load: Callable[..., Corpus], tmp_path: Path, name: str
) -> None:
    documents = [f"{_words(n % 90)}\n{_words(n % 7, n % 13)}" for n in range(45)]
    corpus = load(_write(tmp_path / name, documents))
    expected = [_ids(n % 90, n % 7, n % 13) for n in range(45)]
    assert _tokens(corpus.train) == [token for n in range(45) if n % 20 != 1 for token in expected[n]]
    assert _tokens(corpus.held_out) == [token for n in (1, 21, 41) for token in expected[n]]


def test_empty_and_missing_rows_are_no_documents_and_words_for_missing_are_text(
    load: Callable[..., Corpus], tokenizer: BertTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text(
        "\n".join(map(json.dumps, [{"text": None}, {"text": "w1"}, {"text": " \n"}, {"text": "w2"}]))
    )
    assert (_tokens(load(tmp_path / "a.jsonl").train), _tokens(load(tmp_path / "a.jsonl").held_out)) == (
        _ids(1),
        _ids(2),
    )
    (tmp_path / "a.csv").write_text("text,other\n,w5\nnull,1\nw2,\n")
    tokenizer.add_tokens(["null"])
    corpus = load(tmp_path / "a.csv")
    assert (_tokens(corpus.train), _tokens(corpus.held_out)) == ([len(tokenizer) - 1], _ids(2))


def test_a_saved_data_set_is_read_whatever_format_it_was_left_in_and_refused_without_rows(
    load: Callable[..., Corpus], tmp_path: Path
) -> None:
    rows = datasets.Dataset.from_dict({"text": ["w1", "w2"], "other": [1, 2]})
    rows.with_format("torch", columns=["other"]).save_to_disk(tmp_path / "formatted")
    assert _tokens(load(tmp_path / "formatted").train) == _ids(1)
    with pytest.raises(InputError, match="'hf:nothing' has no rows"):
        sources_module._mapped_source("hf:nothing", rows.select([]), "text")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"body": "w1"}\n{"body": "w2"}', "columns body; needed: 'text'"),
        ("a.jsonl", b'{"text": 3}\n{"text": 4}', "int in column 'text'; allowed: text"),
        ("a.jsonl", b"no json\n", "is not JSON"),
        ("a.jsonl", b"", "has no rows"),
        ("a.csv", b"body\nw1\n", "columns body; needed: 'text'"),
        ("a.csv", b"text\nw1\nw2, w3\n", "has 2 cells, its header 1; allowed: as many"),
        ("a.csv", b"text,id\nw1 w2,1,\nw3,2,\n", "has 3 cells, its header 2"),
        ("a.parquet", b"no parquet", "cannot be (loaded|read)"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_by_its_name(
    load: Callable[..., Corpus], tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}.*({message})") as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["hf:", "hf:a b", "hf:a/b/c", "hf:a:b:train[:10%]", "hf:a:b:c:d:e", "hf:../a", "hf:a/", "hf:.."]
)
def test_a_hub_name_of_another_form_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"allowed: hf:NAME\[:CONFIG\[:SPLIT\[:COLUMN\]\]\]"):
        find_sources([name])


@pytest.mark.parametrize("stream", [False, True])
def test_a_data_set_out_of_reach_is_one_line(stream: bool) -> None:
    with pytest.raises(
        InputError, match=r"^cannot reach huggingface\.co for text 'hf:nobody/nothing:c:train:text', "
    ) as caught:
        find_sources(["hf:nobody/nothing:c:train:text"], stream)
    assert "\n" not in str(caught.value)


def test_a_cache_that_cannot_be_written_is_blamed_and_not_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        try:
            raise PermissionError(13, "Permission denied", f"{HF_HOME}/datasets/some.lock")
        except OSError:
            raise ValueError("cannot load") from None

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for find in (lambda: find_sources(["hf:some/text"]), lambda: load_task("rte")):
        with pytest.raises(InputError, match=r"the cache of Hugging Face .* \(Permission denied\); set HF_HOME"):
            find()


def test_the_parts_of_a_hub_name_reach_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*arguments: object, **options: object) -> datasets.Dataset:
        asked.append((arguments, options))
        return datasets.load_from_disk(str(_write(tmp_path / f"saved{len(asked)}", [_words(1), _words(2)])))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name in ("hf:plain", "hf:user/name:config-1.0:validation", "hf:user/name::train:id"):
        with suppress(InputError):  # the column id holds numbers, so nothing else is read of it here
            find_sources([name])
    assert asked == [
        (("plain", None), {"split": "train", "streaming": False}),
        (("user/name", "config-1.0"), {"split": "validation", "streaming": False}),
        (("user/name", None), {"split": "train", "streaming": False}),
    ]


SEQ_LEN = 9


@pytest.fixture
def stream(
    tmp_path: Path, tokenizer: BertTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[StreamedBlocks, Blocks]]:
    """Opens a stream of 60 documents of 10 words each, over three files of a format, in windows of 8 blocks."""
    monkeypatch.setattr(stream_module, "_WINDOW", 8)
    monkeypatch.setattr(stream_module, "CHARACTERS_AT_ONCE", 150)
    rng = random.Random(0)
    written: dict[str, list[str]] = {}

    def open_(name: str = "text.txt", rank: int = 0, world: int = 1, files: int = 3) -> tuple[StreamedBlocks, Blocks]:
        if name not in written:
            documents = ["\n".join(_words(*rng.choices(range(90), k=5)) for _ in range(2)) for _ in range(60)]
            parts = [documents[i::files] for i in range(files)]
            written[name] = [str(_write(tmp_path / f"{i} {name}", part)) for i, part in enumerate(parts)]
        group = Processes()
        group.rank, group.count = rank, world
        return open_stream(written[name], tokenizer, SEQ_LEN, held_out_documents=3, group=group)

    return open_


def _steps(blocks: StreamedBlocks, steps: range, seed: int = 5) -> list[list[list[int]]]:
    return [blocks.rows(step, 6, seed, slice(0, 3)).tolist() for step in steps]


@pytest.mark.parametrize(
    ("name", "world"),  # three files: shared out whole, row by row, one each
    [("text.txt", 1), ("text.txt", 2), ("text.txt", 3), ("a.jsonl", 1), ("a.parquet", 2), ("a.csv", 3), ("saved", 1)],
)
def test_a_resumed_stream_gives_the_blocks_of_one_never_stopped(
    stream: Callable[..., tuple[StreamedBlocks, Blocks]], name: str, world: int
) -> None:
    rank = world - 1
    expected = _steps(stream(name, rank, world)[0], range(40))  # more than an epoch
    for stop in (0, 7, 8, 30):
        before, after = stream(name, rank, world)[0], stream(name, rank, world)[0]
        assert _steps(before, range(stop)) == expected[:stop]
        after.restore(json.loads(json.dumps(before.state())))
        again = after.state()
        assert again == before.state()
        assert _steps(after, range(stop, 40)) == expected[stop:]


def test_a_stream_has_each_training_document_once_an_epoch_and_no_held_out_one(
    stream: Callable[..., tuple[StreamedBlocks, Blocks]],
) -> None:
    blocks, held_out = stream()
    documents = [d for shard in blocks._shards for d in shard.read()]
    kept_out = [d for d in documents if stream_module._is_held_out(d)]
    assert 0 < len(kept_out) < 20

    def ids(some: Sequence[Sequence[str]]) -> list[int]:
        return [5 + int(word[1:]) for document in some for paragraph in document for word in paragraph.split()]

    assert _tokens(held_out.tokens) == ids(kept_out[:3])
    reader = stream_module._Documents(blocks._shards, 5, 0, 1, None)
    read = [reader.take(1) for _ in range(len(documents) - len(kept_out))]
    assert sorted(read) == sorted(d for d in documents if d not in kept_out)
    given = [t for step in _steps(blocks, range(8 * 4)) for row in step for t in row[1:-1]]
    for window in range(9):  # each is the next 8 blocks in reading order, shuffled
        part = slice(window * 56, (window + 1) * 56)
        assert sorted(given[part]) == sorted(ids(read)[part])
        assert given[part] != ids(read)[part]
    for row in (row for step in _steps(stream()[0], range(10)) for row in step):
        assert (row[0], row[-1], len(row)) == (CLS, SEP, SEQ_LEN)


@pytest.mark.parametrize(("files", "world"), [(4, 2), (3, 2), (1, 3), (60, 7)])
def test_ranks_of_a_stream_share_out_its_documents(
    stream: Callable[..., tuple[StreamedBlocks, Blocks]], files: int, world: int
) -> None:
    name = f"{files}{world}.txt"
    stream(name, files=files)
    taken = []
    for rank in range(world):
        blocks = stream(name, rank, world)[0]
        reader = stream_module._Documents(blocks._shards, 5, rank, world, None)
        mine = []
        while reader.state()["epoch"] == 0:
            mine.append("\n".join(reader.take(1)))
        taken += mine[:-1]  # the last is of the next epoch
    whole = [d for shard in stream(name)[0]._shards for d in shard.read() if not stream_module._is_held_out(d)]
    assert sorted(taken) == sorted("\n".join(d) for d in whole)


def test_a_stream_is_in_another_order_with_another_seed_and_in_the_next_epoch(
    stream: Callable[..., tuple[StreamedBlocks, Blocks]],
) -> None:
    first, other = (_steps(stream()[0], range(10), seed) for seed in (5, 6))
    assert first != other
    reader = stream_module._Documents(stream()[0]._shards, 5, 0, 1, None)
    epochs = [[], [], []]
    for _ in range(300):
        (epochs[e] if (e := reader.state()["epoch"]) < 3 else []).append(reader.take(1))
    assert epochs[1] != epochs[2]
    assert epochs[0] != epochs[1] or epochs[0] != epochs[2]


def test_a_stream_goes_from_step_to_step_and_knows_its_own_state(
    stream: Callable[..., tuple[StreamedBlocks, Blocks]],
) -> None:
    blocks = stream(world=2)[0]
    for step, seed, is_next in ((1, 6, False), (0, 5, True), (0, 5, False), (1, 6, False), (2, 5, False), (1, 5, True)):
        if is_next:
            assert blocks.rows(step, 6, seed, slice(3)).shape == (3, SEQ_LEN)
            continue
        with pytest.raises(ValueError, match="its steps in order"):
            blocks.rows(step, 6, seed, slice(3))
    with pytest.raises(InputError, match="rank 0, now 1"):
        stream(rank=1, world=2)[0].restore(blocks.state())
    with pytest.raises(InputError, match="world 2, now 1"):
        stream()[0].restore(blocks.state())
    with pytest.raises(InputError, match="another stream"):
        stream()[0].restore({})


def test_the_next_window_is_read_while_this_one_is_used_and_its_error_comes_when_it_is_needed(
    stream: Callable[..., tuple[StreamedBlocks, Blocks]], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks, threads, read_window = stream()[0], list[threading.Thread](), stream_module._Windows.read

    def read(windows: stream_module._Windows) -> stream_module._Window:
        threads.append(threading.current_thread())
        if len(threads) == 3:
            raise InputError("text 'text.txt' cannot be read")
        return read_window(windows)

    monkeypatch.setattr(stream_module._Windows, "read", read)
    for step in range(4):  # half a window each
        blocks.rows(step, 4, 5, slice(4))
    with pytest.raises(InputError, match="cannot be read"):
        blocks.rows(4, 4, 5, slice(4))
    assert [thread is threading.main_thread() for thread in threads] == [True, False, False]


def test_a_stream_without_documents_for_a_rank_or_to_hold_out_is_refused(
    stream: Callable[..., tuple[StreamedBlocks, Blocks]], tmp_path: Path, tokenizer: BertTokenizerFast
) -> None:
    with pytest.raises(InputError, match="no document for process 200 of 201"):
        _steps(stream(rank=199, world=201)[0], range(1))
    (tmp_path / "one.txt").write_text(_words(1))
    with pytest.raises(InputError, match="no document to hold out"):
        open_stream([str(tmp_path / "one.txt")], tokenizer, SEQ_LEN)


def test_a_long_document_is_cut_between_paragraphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_module, "LONGEST_DOCUMENT", 6)
    (tmp_path / "a.txt").write_text("abc\ndef\nghi\n\njkl\n")
    assert list(documents(tmp_path / "a.txt")) == [["abc", "def"], ["ghi"], ["jkl"]]


@pytest.mark.parametrize("packed", [False, True])
def test_a_long_line_is_read_in_pieces_that_end_before_a_blank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    monkeypatch.setattr(sources_module, "LONGEST_PIECE", 32)
    long, unbroken = " ".join(f"w{i}" for i in range(100)), "x" * 70
    text = f"  {long} \n{' ' * 100}\nw1 w2{' ' * 90}\nw3\n{' ' * 40}{unbroken}"
    path = tmp_path / ("long.txt.gz" if packed else "long.txt")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    first, second = documents(path)
    assert "".join(first) == long
    assert all(len(piece) <= 32 for piece in first)
    assert all(piece.startswith(" w") for piece in first[1:])
    assert [piece.rstrip() for piece in second[:2]] == ["w1 w2", "w3"]
    assert "".join(second[2:]) == unbroken
    path.write_bytes(gzip.compress(long.encode()) if packed else long.encode())
    (alone,) = documents(path)  # its pieces are one document
    assert "".join(alone) == long


def test_long_paragraphs_give_the_same_tokens_piece_by_piece(
    monkeypatch: pytest.MonkeyPatch, tokenizer: BertTokenizerFast
) -> None:
    paragraphs = [_words(*(i % 90 for i in range(500))), _words(1), "", _words(*range(90))]
    levels = ByteLevelBPETokenizer()
    levels.train_from_iterator(paragraphs, vocab_size=400, min_frequency=1, show_progress=False)
    bytewise = PreTrainedTokenizerFast(tokenizer_object=levels._tokenizer, bos_token="<s>", eos_token="</s>")
    for each in (tokenizer, bytewise):
        whole = Encoder(each)(paragraphs)
        with monkeypatch.context() as patch:
            patch.setattr(tokenization, "LONGEST_PIECE", 50)
            patch.setattr(tokenization, "CHARACTERS_AT_ONCE", 120)
            assert Encoder(each)(paragraphs).tolist() == whole.tolist()


def test_memory_to_tokenize_follows_from_the_piece_and_not_from_the_line(
    monkeypatch: pytest.MonkeyPatch, tokenizer: BertTokenizerFast
) -> None:
    encoder, sizes = Encoder(tokenizer), []
    encode = encoder._encoded
    monkeypatch.setattr(encoder, "_encoded", lambda batch: sizes.append(sum(map(len, batch))) or encode(batch))
    encoder(["w1 " * 200_000, "w2 " * 10])
    assert len(sizes) > 1
    assert max(sizes) <= tokenization.CHARACTERS_AT_ONCE
