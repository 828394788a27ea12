"""Text is read and tokenized once: its digests are cached, and of several processes one works for all."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import in_processes
from transformers import BertTokenizerFast

from autodistil_search.base.device import Device
from autodistil_search.base.errors import InputError
from autodistil_search.base.files import file_sha256
from autodistil_search.text import digests
from autodistil_search.text.digests import digests_file, text_digests
from autodistil_search.text.token_store import load_corpus
from autodistil_search.text.token_stream import open_stream
from autodistil_search.text.tokenization import Encoder


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose content is read for a digest."""
    paths: list[Path] = []
    monkeypatch.setattr(digests, "file_sha256", lambda path: paths.append(path) or file_sha256(path))
    return paths


def test_an_unchanged_file_is_read_once(tmp_path: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_RACY", -1.0)  # files of tests have just been written
    a, b = (tmp_path / name for name in "ab")
    for path in (a, b):
        path.write_text(path.name)
    found = text_digests([a, b], tmp_path)
    assert [digest.hex() for digest in found] == [file_sha256(a), file_sha256(b)]
    assert text_digests([b, a], tmp_path) == found[::-1]
    assert read == [a, b]

    before = a.stat()
    time.sleep(0.05)  # more than a step of the file system's clock
    a.write_text("c")
    os.utime(a, ns=(before.st_atime_ns, before.st_mtime_ns))  # size, time and inode as before
    assert text_digests([a, b], tmp_path)[0].hex() == file_sha256(a)
    assert read == [a, b, a]

    content = json.loads(digests_file(tmp_path).read_text())
    content["files"][str(b)][1] = "0" * 64
    digests_file(tmp_path).write_text(json.dumps(content))
    assert text_digests([b], tmp_path) == [found[1]]  # a damaged cache counts as empty
    assert read == [a, b, a, b]


def test_a_file_that_has_just_changed_is_read_again(tmp_path: Path, read: list[Path]) -> None:
    path = tmp_path / "a"
    path.write_text("a")
    assert text_digests([path], tmp_path) == text_digests([path], tmp_path)
    assert read == [path, path]
    assert not digests_file(tmp_path).exists()


def _load_as_rank(text: str, tokenizer: BertTokenizerFast, out: Path, hosts: int, stream: bool) -> None:
    """Load a text as one of several processes, and leave what this one did and has."""
    rank = os.environ["RANK"]
    read, encoded, encode = [], [], Encoder.__call__
    digests.file_sha256 = lambda path: read.append(str(path)) or file_sha256(path)  # type: ignore[assignment]
    Encoder.__call__ = lambda self, paragraphs: encoded.append(1) or encode(self, paragraphs)  # type: ignore[assignment]
    if hosts > 1:
        os.environ["LOCAL_RANK"] = "0"
    group = Device("cpu", "fp32").processes
    if stream:
        blocks, held_out = open_stream([text], tokenizer, 16, held_out_documents=3, group=group)
        digest, tokens = blocks.digest, held_out.tokens[0]
    else:
        if rank == "0":
            time.sleep(1)  # the others must wait
        corpus = load_corpus([text], tokenizer, out / f"cache-{rank if hosts > 1 else 0}", group=group)
        digest, tokens = corpus.digest, corpus.train[0]
    found = {"digest": digest, "tokens": tokens.tolist(), "read": len(read), "encoded": len(encoded)}
    (out / f"{rank}.json").write_text(json.dumps(found))


@pytest.mark.parametrize(("hosts", "stream"), [(1, False), (2, False), (1, True)])
def test_one_process_of_a_host_reads_and_tokenizes(
    toy_text: Callable[..., Path], tokenizer: BertTokenizerFast, tmp_path: Path, hosts: int, stream: bool
) -> None:
    in_processes(2, tmp_path, _load_as_rank, str(toy_text()), tokenizer, tmp_path, hosts, stream)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["tokens"]
    assert {key: first[key] for key in ("digest", "tokens")} == {key: second[key] for key in ("digest", "tokens")}
    assert first["encoded"] > 0
    assert [first["read"], second["read"]] == ([0, 0] if stream else [1, hosts - 1])
    assert second["encoded"] == (first["encoded"] if hosts > 1 else 0)


def test_another_text_on_another_host_is_refused(
    toy_text: Callable[..., Path], tokenizer: BertTokenizerFast, tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text(toy_text().read_text() + "w1 w2\n")
    in_processes(2, tmp_path, _load_alone, [str(toy_text()), str(other)], tokenizer, tmp_path)
    assert "the text on this host differs from that of the main process" in (tmp_path / "1").read_text()


def _load_alone(texts: list[str], tokenizer: BertTokenizerFast, out: Path) -> None:
    rank = os.environ["RANK"]
    os.environ["LOCAL_RANK"] = "0"
    group = Device("cpu", "fp32").processes
    if rank == "1":
        with pytest.raises(InputError) as refusal:
            load_corpus([texts[1]], tokenizer, out / "cache-1", group=group)
        (out / "1").write_text(str(refusal.value))
        group.meet()
    else:
        load_corpus([texts[0]], tokenizer, out / "cache-0", group=group)
