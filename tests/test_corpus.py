"""From text to blocks: nothing lost, nothing leaked, nothing tokenized twice, and bad text refused by name."""

import gzip
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from autodistil_search import corpus as corpus_module
from autodistil_search.corpus import Blocks, Corpus, documents, load_corpus, text_files
from autodistil_search.errors import InputError

CLS, SEP = 2, 3


def _words(*numbers: int) -> str:
    return " ".join(f"w{n}" for n in numbers)


def _ids(*numbers: int) -> list[int]:
    return [5 + n for n in numbers]  # "w0" is token 5


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
        assert blocks.tokens.tolist() == stream
        assert rows[:, 1:-1].flatten().tolist() == stream[: len(rows) * 7]


def test_no_held_out_document_is_trained_on(load: Callable[..., Corpus]) -> None:
    numbers = range(84)
    corpus = load("\n\n".join(f"{_words(n)}\n{_words(n, n)}" for n in numbers))
    held_out = [1, 21, 41, 61, 81]
    assert corpus.held_out.tolist() == [token for n in held_out for token in _ids(n, n, n)]
    assert set(corpus.train.tolist()) == set(_ids(*(n for n in numbers if n not in held_out)))


def test_documents_are_counted_on_over_all_files(load: Callable[..., Corpus]) -> None:
    assert load(_words(1, 1), _words(2), f"{_words(3)}\n").held_out.tolist() == _ids(2)


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
        ("empty.txt.gz", gzip.compress(b""), "is empty"),
        ("latin.txt", "caf\u00e9".encode("latin-1"), "cannot be read as UTF-8"),
        ("wide.txt", "a\nb".encode("utf-16-le"), "zero bytes"),
        ("zero.txt", b"some text\nwith a \0 in it\n", "zero bytes"),
        ("image.txt", b"\x89PNG\r\n\x1a\n\0\0", "cannot be read as UTF-8"),
        ("plain.txt.gz", b"no gzip at all", "cannot be read as UTF-8"),
        ("cut.txt.gz", gzip.compress(random.Random(0).randbytes(4000).hex().encode())[:-2000], "cannot be read"),
        ("damaged.txt.gz", gzip.compress(b"some text\n\nmore")[:12] + b"\xff" * 20, "cannot be read"),
        ("table.csv", b"a,b", r"allowed: \.txt or \.txt\.gz"),
        ("upper.TXT", b"a\n\nb", r"allowed: \.txt or \.txt\.gz"),
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
            text_files([str(tmp_path / name)])


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
    blocks = Blocks(np.arange(42, dtype=np.uint32), seq_len=4, first=98, last=99)
    assert blocks.spread(5)[:, 1].tolist() == [0, 10, 20, 30, 40]
    assert blocks.spread(1000)[:, 1].tolist() == list(range(0, 42, 2))


def test_text_is_tokenized_once(load: Callable[..., Corpus], toy_text: Callable[..., Path], tmp_path: Path) -> None:
    path = toy_text()
    first, stored = load(path), _stored(tmp_path)
    path.touch()
    again = load(path)
    assert again.digest == first.digest
    assert _stored(tmp_path) == stored
    assert again.train.tolist() == first.train.tolist()


def test_a_tokenizer_that_cuts_and_pads_is_the_same_before_and_after_its_first_use(
    load: Callable[..., Corpus], toy_text: Callable[..., Path], tokenizer: BertTokenizerFast, tmp_path: Path
) -> None:
    path = toy_text()
    uncut = load(path)
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.backend_tokenizer.enable_padding(length=8)
    first = load(path)
    assert first.train.tolist() == uncut.train.tolist()
    assert load(path).digest == first.digest


def test_other_text_or_another_tokenizer_is_tokenized_anew(
    load: Callable[..., Corpus], toy_text: Callable[..., Path], tokenizer: BertTokenizerFast, tmp_path: Path
) -> None:
    path = toy_text()
    before = load(path)
    path.write_text(path.read_text().replace("w77", "w78"))
    changed = load(path)
    assert changed.digest != before.digest
    assert changed.train.tolist() == [83 if token == 82 else token for token in before.train]
    words = [f"w{n}" for n in reversed(range(90))]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    other = BertTokenizerFast(vocab={word: i for i, word in enumerate(vocabulary)})
    found = load_corpus([str(path)], other, tmp_path / "cache")
    assert found.digest != changed.digest
    assert found.train.tolist() == [99 - token for token in changed.train]


def test_the_same_files_named_and_packaged_are_parted_each_in_their_own_way(
    load: Callable[..., Corpus], tokenizer: BertTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / f"{n}.txt" for n in range(2)]
    for number, path in enumerate(files):
        path.write_text(f"{_words(10 * number)}\n\n{_words(10 * number + 1)}\n")
    monkeypatch.setattr(corpus_module, "_packaged_files", lambda: files)
    packaged = load_corpus(["packaged"], tokenizer, tmp_path / "cache")
    assert packaged.held_out.tolist() == _ids(10, 11)
    assert load(*files).held_out.tolist() == _ids(1)


def test_text_whose_tokenizing_was_broken_off_is_tokenized_whole_the_next_time(
    load: Callable[..., Corpus], toy_text: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, calls, tokenize = toy_text(), [], corpus_module._token_ids

    def broken_off(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return tokenize(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(corpus_module, "_PARAGRAPHS_AT_ONCE", 10)
        patch.setattr(corpus_module, "_token_ids", broken_off)
        with pytest.raises(KeyboardInterrupt):
            load(path)
    assert _stored(tmp_path) == []
    leftover = tmp_path / "cache" / "text" / ".new-killed"  # what a process leaves that could not clean up
    leftover.mkdir(parents=True)
    (leftover / "train.bin").write_bytes(b"1234")
    assert len(load(path).train) == 20 * 2 * 57


def test_a_cached_text_without_its_last_file_is_tokenized_again(
    load: Callable[..., Corpus], toy_text: Callable[..., Path], tmp_path: Path
) -> None:
    path = toy_text()
    expected = load(path).train.tolist()
    next((tmp_path / "cache" / "text").glob("*/meta.json")).unlink()
    next((tmp_path / "cache" / "text").glob("*/train.bin")).unlink()
    assert load(path).train.tolist() == expected


def test_cached_tokens_that_were_cut_are_made_again(
    load: Callable[..., Corpus], toy_text: Callable[..., Path], tmp_path: Path
) -> None:
    path = toy_text()
    expected = load(path).train.tolist()
    stream = next((tmp_path / "cache" / "text").glob("*/train.bin"))
    stream.write_bytes(stream.read_bytes()[: stream.stat().st_size // 2 + 1])
    assert load(path).train.tolist() == expected


def test_text_of_unknown_tokens_is_refused(load: Callable[..., Corpus]) -> None:
    with pytest.raises(InputError, match="unknown to the teacher's tokenizer"):
        load("\n".join(["foreign words only"] * 50))


def test_a_paragraph_of_any_length_is_kept_whole(load: Callable[..., Corpus]) -> None:
    numbers = [i % 90 for i in range(30_000)]
    corpus = load(f"{_words(*numbers)}\n{_words(1, 2)}")
    assert corpus.train.tolist() == _ids(*numbers)


def test_many_documents_of_one_line_are_read_in_order(load: Callable[..., Corpus]) -> None:
    count = 2 * corpus_module._PARAGRAPHS_AT_ONCE + 1
    corpus = load("\n".join(_words(n % 90) for n in range(count)))
    held_out = range(1, count, 20)
    assert corpus.held_out.tolist() == _ids(*(n % 90 for n in held_out))
    assert corpus.train.tolist() == _ids(*(n % 90 for n in range(count) if n % 20 != 1))


def test_the_packaged_text_has_one_document_a_file(tmp_path: Path) -> None:
    files = text_files(["packaged"])
    assert len(files) > 200
    assert sum(1 for path in files[:5] for _ in documents(path, one_per_file=True)) == 5
