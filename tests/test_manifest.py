"""Manifests: a finished folder says what it is, and each of its files is as it was written."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from autodistil_search.base import manifest
from autodistil_search.base.errors import InputError
from autodistil_search.base.manifest import (
    KINDS,
    MANIFEST,
    add_to_manifest,
    described,
    kind_of,
    lacking,
    read_sealed,
    reopen,
    verify,
    write_manifest,
    write_sealed,
)

DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "one byte": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"~"),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"1"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a finished search, with a file of the user's."""
    for name in ("config.yaml", "frontier.csv", "summary.json", "archive.log"):
        (tmp_path / name).write_text(f"content of {name}")
    write_manifest(tmp_path, "search", ("config.yaml", "frontier.csv", "summary.json", "archive.log", "progress.csv"))
    (tmp_path / "notes.txt").write_text("mine")
    return tmp_path


def test_files_as_they_were_written_pass_and_files_of_others_do_not_matter(folder: Path) -> None:
    assert verify(folder)
    assert lacking(folder) == []
    (folder / "notes.txt").write_text("changed")
    (folder / "frontier.csv").touch()
    assert verify(folder)
    (folder / MANIFEST).unlink()
    assert not verify(folder)  # as of an earlier version: nothing to check


@pytest.mark.parametrize("damage", DAMAGE)
def test_each_damage_is_named_with_what_to_do(folder: Path, damage: str) -> None:
    for name, told in (
        ("frontier.csv", "delete it and repeat the search, which writes it again"),
        ("config.yaml", "restore it from a copy, or repeat the search with another --out"),
    ):
        path = folder / name
        DAMAGE[damage](path)
        with pytest.raises(InputError, match=rf"^[^\n]*{name} is damaged: [^\n]*; {told}$"):
            verify(folder)
        assert verify(folder, ("summary.json",))  # only what is read
        if path.is_dir():
            path.rmdir()
        path.write_text(f"content of {name}")
        assert verify(folder)


def test_a_missing_file_is_named_unless_the_command_at_work_writes_it(folder: Path) -> None:
    (folder / "frontier.csv").unlink()
    assert lacking(folder) == ["frontier.csv"]
    with pytest.raises(InputError, match=r"frontier\.csv is missing, .*; repeat the search, which writes it again"):
        verify(folder)
    assert verify(folder, own=True)
    (folder / "config.yaml").unlink()
    with pytest.raises(InputError, match=r"config\.yaml is missing"):
        verify(folder, own=True)
    write_manifest(folder, "search", ("summary.json",))
    (folder / "summary.json").unlink()
    with pytest.warns(UserWarning, match=r"summary\.json is missing and will be written again"):
        reopen(folder)


def test_a_log_may_grow_and_its_first_bytes_stay(folder: Path) -> None:
    path = folder / "archive.log"
    path.write_text(path.read_text() + " and more")
    assert verify(folder)
    path.write_text("Content of archive.log and more")
    with pytest.raises(InputError, match=r"archive\.log is damaged"):
        verify(folder)


def test_a_folder_that_is_written_again_is_checked_first_and_counts_as_unfinished(folder: Path) -> None:
    reopen(folder)
    assert not (folder / MANIFEST).exists()
    write_manifest(folder, "search", ("summary.json",))
    add_to_manifest(folder, ["frontier.csv"])
    (folder / "frontier.csv").write_text("other")
    with pytest.raises(InputError, match=r"frontier\.csv is damaged"):
        reopen(folder)
    assert (folder / MANIFEST).exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"kind": "search", "files": {}}', "[" * 100_000, None])
def test_a_damaged_manifest_is_named_and_nothing_else(folder: Path, content: str | None) -> None:
    path = folder / MANIFEST
    text = path.read_text()
    path.write_text(text.replace('"size": 23', '"size": 24') if content is None else content)
    assert path.read_text() != text
    with pytest.raises(InputError, match=rf"^[^\n]*{MANIFEST} is damaged: [^\n]*; restore it, or delete it"):
        verify(folder)
    (folder / "config.yaml").unlink()
    assert not verify(folder)  # with no other sign of ours, a file of that name may be anyone's


def test_a_large_file_is_read_once_while_it_stays_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    whole = manifest.file_sha256
    monkeypatch.setattr(manifest, "_LARGE", 1)
    monkeypatch.setattr(manifest, "file_sha256", lambda path: read.append(path.name) or whole(path))
    for _ in range(2):
        verify(folder)
    assert len(read) == len(set(read)) == 4
    (folder / "frontier.csv").write_text("Content of frontier.csv, changed")
    with pytest.raises(InputError, match=r"frontier\.csv is damaged"):
        verify(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_says_what_it_is_with_a_manifest_or_without(tmp_path: Path, kind: str) -> None:
    assert kind_of(tmp_path) is None
    marker = KINDS[kind].marker
    (tmp_path / marker).write_text("{}")
    if marker == "trainer_state.json":
        assert kind_of(tmp_path) is None  # transformers' trainer writes such a file, too
        space = {"layers": [1]} if kind == "superlm" else None
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "autodistil", "search_space": space}))
    assert kind_of(tmp_path) == kind
    (tmp_path / marker).unlink()
    write_manifest(tmp_path, kind, ())
    (tmp_path / "config.yaml").write_text("")
    assert kind_of(tmp_path) == kind
    assert KINDS[kind].title in described(tmp_path)


def test_a_state_file_knows_its_content(tmp_path: Path) -> None:
    path, content = tmp_path / "state.json", {"scores": [0.25, float("inf")], "more": {"b": 1, "a": None}}
    write_sealed(path, content)
    assert read_sealed(path, "delete it") == content
    text = path.read_text()
    path.write_text(text.replace("0.25", "0.26"))
    with pytest.raises(InputError, match=r"state\.json is damaged: .*; delete it$"):
        read_sealed(path, "delete it")
    path.write_text(json.dumps(content))
    assert read_sealed(path, "delete it") == content  # of an earlier version
