"""Files: replaced at once or not at all, cleared of what killed processes left, and read with the true reason."""

import errno
import os
import signal
import threading
from functools import partial
from pathlib import Path

import pytest
from processes import SERVER
from safetensors import SafetensorError

from autodistil_search.base import files
from autodistil_search.base.errors import InputError
from autodistil_search.base.files import (
    UnwritableError,
    clear_leftovers,
    locked,
    readable,
    recover_folder,
    whole_folder,
    write_atomically,
    write_together,
    writing,
)


def _replace(path: Path, content: str) -> None:
    with whole_folder(path) as new:
        (new / "weights").write_text(content)
        (new / "card").write_text(content)


def _replace_until(path: Path, step: int) -> None:
    """Replace the folder, and be killed just before a step of it that changes what lies on the disk."""
    left = [step]

    def counted(change):
        def run(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*arguments, **options)

        return run

    files.os.replace = counted(os.replace)
    files.shutil.rmtree = counted(files.shutil.rmtree)
    files.Path.mkdir = counted(Path.mkdir)
    _replace(path, "new")


def test_a_folder_that_is_replaced_is_whole_after_a_kill_at_any_step(tmp_path):
    """The next reader finds the old folder or the new one, and the next writer ends as if nothing had happened."""
    ends = []
    for step in range(20):
        path = tmp_path / str(step) / "student"
        _replace(path, "old")
        process = SERVER.Process(target=_replace_until, args=(path, step))
        process.start()
        process.join()
        recover_folder(path)
        found = {file.name: file.read_text() for file in path.iterdir()}
        assert found in ({"weights": "old", "card": "old"}, {"weights": "new", "card": "new"})
        ends.append((process.exitcode, found["card"]))
        _replace(path, "newer")
        assert [item.name for item in path.parent.iterdir()] == ["student"]
        assert (path / "card").read_text() == "newer"
        if process.exitcode == 0:
            break
    assert ends[0] == (-signal.SIGKILL, "old")
    assert (-signal.SIGKILL, "new") in ends
    assert ends[-1] == (0, "new")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_permissions_that_the_umask_gives(tmp_path, umask):
    def private(path: Path) -> None:  # as safetensors writes
        path.touch(mode=0o600)

    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", private)
        write_together(tmp_path, "two", lambda new: [private(new / name) for name in ("a", "b")])
        with whole_folder(tmp_path / "folder") as new:
            private(new / "c")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~umask}


def test_leftovers_of_killed_writes_are_removed_and_nothing_else(tmp_path):
    (tmp_path / ".model.safetensors.new").mkdir()
    (tmp_path / ".model.safetensors.new" / ".tmpaB3xY9").write_text("half")
    (tmp_path / ".environment.json.new").write_text("half")  # as earlier versions left it
    (tmp_path / ".tmpaB3xY9").write_text("half")
    kept = {"notes.txt", ".hidden", ".tmpfile.txt", "a.new"}
    for name in kept:
        (tmp_path / name).write_text("mine")
    clear_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, ".tmpaB3xY9"}
    clear_leftovers(tmp_path, of_models=True)
    assert {path.name for path in tmp_path.iterdir()} == kept


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; free space on that disk"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "No space left on device; free space"),
        (Exception("File too large (os error 27)"), "File too large; raise the limit"),  # as tokenizers raises it
        (RuntimeError("write failed: Read-only file system"), "Read-only file system; name a folder"),
        (OSError(errno.EISDIR, "Is a directory"), "Is a directory"),
    ],
)
def test_a_failed_write_says_what_the_system_said_and_leaves_what_was_there(tmp_path, error, told):
    path = tmp_path / "state"
    write_atomically(path, lambda file: file.write_text("old"))

    def fail(file: Path) -> None:
        file.write_text("ne")
        raise error

    together = partial(write_together, tmp_path, "state", lambda new: fail(new / "x"))
    for write in (partial(write_atomically, path, fail), together):
        with pytest.raises(UnwritableError) as refusal:
            write()
        assert str(refusal.value).startswith(f"{path} cannot be written: {told}")
        assert "\n" not in str(refusal.value)
    with pytest.raises(UnwritableError, match="folder cannot be written"), whole_folder(tmp_path / "folder") as new:
        fail(new / "x")
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["state"]


def test_errors_that_are_not_of_the_write_pass_as_they_are(tmp_path):
    for error in (ValueError("a mistake"), KeyError("x"), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        with pytest.raises(type(error)) as raised, writing(tmp_path / "x"):
            raise error
        assert raised.value is error
    with pytest.raises(FileNotFoundError) as missing, writing(tmp_path / "x"):
        open("/nowhere/else")  # noqa: PTH123, SIM115
    assert missing.value.filename == "/nowhere/else"


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (OSError(errno.EACCES, "Permission denied"), InputError, "Permission denied; change its permissions"),
        (OSError(errno.EROFS, "Read-only file system"), OSError, "Read-only file system"),
        (OSError(errno.EIO, "Input/output error"), OSError, "Input/output error"),
        (IsADirectoryError(errno.EISDIR, "Is a directory"), InputError, "Is a directory; allowed: a file"),
        (RuntimeError("an engine that failed"), InputError, "an engine that failed"),
    ],
)
def test_what_is_no_damage_is_not_called_damaged(tmp_path, error, kind, told):
    path = tmp_path / "archive.log"
    with pytest.raises(kind) as refusal, readable(path):
        raise error
    assert str(refusal.value).startswith(f"{path} cannot be read: {told}")
    assert "delete" not in str(refusal.value)
    assert isinstance(refusal.value, InputError) == (kind is InputError)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: 6 GB"),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_memory_that_ran_out_is_no_damage(tmp_path, error):
    with pytest.raises(type(error)) as raised, readable(tmp_path / "model.safetensors"):
        raise error
    assert raised.value is error


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("frontier.csv", "; delete it, and the same command writes it again from what was measured"),
        ("archive.log", "; delete it, and the same command scores its subnets again"),
        ("config.yaml", "; restore it from a copy, or name another --out"),
        ("mail.csv", ""),  # the user's own file is not to be deleted
    ],
)
@pytest.mark.parametrize(
    "error",
    [ValueError("no number"), KeyError("title"), SafetensorError("header too large"), RuntimeError("size mismatch")],
)
def test_a_damaged_file_is_named_alone_with_what_deleting_it_costs(tmp_path, name, advice, error):
    with pytest.raises(InputError) as refusal, readable(tmp_path / name):
        raise error
    text = str(refusal.value)
    assert text.startswith(f"{tmp_path / name} is damaged or not of this run (")
    assert text.endswith(f"){advice}")


def test_one_process_holds_a_folder_and_the_other_is_told_which(tmp_path):
    lock = tmp_path / ".lock"
    with locked(lock, tmp_path, "--out"):
        with (
            pytest.raises(InputError, match=rf"^another process is using .* \(process {os.getpid()} on .*--out$"),
            locked(lock, tmp_path, "--out"),
        ):
            pass
        assert lock.exists()
    assert list(tmp_path.iterdir()) == []
    lock.write_text("process 1 on a machine that was switched off")  # as a killed one leaves it
    with locked(lock, tmp_path, "--out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_the_user_that_has_a_locks_name_is_left_as_it_is(tmp_path):
    lock = tmp_path / ".lock"
    lock.write_text("mine")
    with pytest.raises(InputError, match=r"\.lock is not a lock of this package; move it elsewhere"):
        files.locked(lock, tmp_path, "--out").__enter__()
    assert lock.read_text() == "mine"
    for left in ("", "process 7 on another machine"):  # by processes that were killed
        lock.write_text(left)
        with files.locked(lock, tmp_path, "--out"):
            pass
    assert not lock.exists()


def test_a_lock_that_its_holder_removes_while_it_is_looked_at_is_no_obstacle(tmp_path, monkeypatch):
    lock, read_bytes = tmp_path / ".lock", Path.read_bytes
    lock.write_text("process 7 on another machine")

    def removed_first(path: Path) -> bytes:
        path.unlink()
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", removed_first)
    with locked(lock, tmp_path, "--out"):
        assert lock.exists()


def test_who_waits_for_a_lock_gets_it_alone(tmp_path):
    """The holder removes the file while others wait for it: still one at a time."""
    inside, most = [], []

    def work() -> None:
        for _ in range(5):
            with locked(tmp_path / ".lock", tmp_path, None):
                inside.append(1)
                most.append(len(inside))
                (tmp_path / "work").write_text("x")
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 20
