"""Files of a run folder: written whole or not at all, and read with a clear word when they are damaged; the cache."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any

import yaml
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from autodistil_search.base.errors import DamagedError, InputError, is_out_of_memory

Settings = Mapping[str, Any]
"""What the content of a folder depends on, as JSON holds it; a folder made with other settings is refused."""

EXPORT_RECORD = "export.json"
"""What was measured of an exported student, and its files; it tells a folder of ours from others."""

_SIGNS_OF_DAMAGE = (
    ValueError, LookupError, TypeError, AttributeError, EOFError, SafetensorError, yaml.YAMLError, csv.Error, zlib.error
)  # fmt: skip
"""What a parser raises for content that it cannot read."""
_SIGNS_OF_OTHER_SHAPES = ("size mismatch", "loading state_dict", "ignore_mismatched_sizes")
"""Words in the RuntimeError of torch and transformers for weights that do not fit the model."""

_WHAT_TO_DO = {
    errno.ENOSPC: "free space on that disk, then run the same command again",
    errno.EDQUOT: "free space in your quota, then run the same command again",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), then run the same command again",
    errno.EROFS: "name a folder on a file system that can be written",
    errno.EACCES: "change its permissions, or name another place",
    errno.EPERM: "change its permissions, or name another place",
    errno.EISDIR: "allowed: a file",
    errno.ENOTDIR: "allowed: a path that leads through folders alone",
    errno.EMFILE: "raise the limit on open files (ulimit -n), then run the same command again",
}
"""By the code of the operating system, what ends a failure to read or write."""
_OF_THE_PATH = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
}
"""Codes that say that the path cannot be read by this user, not that the machine failed."""

_SETTINGS_LOST = "restore it from a copy, or name another --out"
_WRITTEN_AGAIN = "delete it, and the same command writes it again"
_REMEDIES = {
    **dict.fromkeys(("config.yaml", "train.yaml", "distil.yaml", "validate.yaml", "finetune.yaml"), _SETTINGS_LOST),
    **dict.fromkeys(
        ("summary.json", "evaluations.csv", "frontier.csv", "baselines.csv", "progress.csv", "engines.csv"),
        f"{_WRITTEN_AGAIN} from what was measured",
    ),
    **dict.fromkeys(("ranking.csv", "results.csv", "distil.json"), _WRITTEN_AGAIN),
    "environment.json": f"{_WRITTEN_AGAIN}, but cannot tell whether the inputs are still the same",
    "seconds.json": "delete it, and only the seconds of earlier sessions are lost",
    "archive.log": "delete it, and the same command scores its subnets again",
    "subnets.csv": "delete it, and the same command measures its subnets again",
    "trainer_state.json": "delete it, and the same command trains this model again",
    EXPORT_RECORD: "name another --to",
}
"""By the name of a damaged file of ours, what to do, and what that costs."""


def cache_folder() -> Path:
    """Where tokenized text and baselines are kept for later runs: AUTODISTIL_SEARCH_CACHE, or the user's cache."""
    if given := os.environ.get("AUTODISTIL_SEARCH_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autodistil_search"


_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR)


def refuse_cache(error: BaseException) -> None:
    """Raise InputError if `error` came from a cache of Hugging Face that cannot be written: no input is to blame."""
    from huggingface_hub.constants import HF_HOME

    seen: BaseException | None = error
    while seen is not None:
        name = seen.filename if isinstance(seen, OSError) and seen.errno in _UNWRITABLE else None
        if isinstance(seen, OSError) and isinstance(name, str) and Path(name).is_relative_to(HF_HOME):
            raise InputError(
                f"the cache of Hugging Face {HF_HOME!r} cannot be written ({seen.strerror}); name another in HF_HOME"
            ) from None
        seen = seen.__cause__ or seen.__context__


def _system_error(error: BaseException) -> int | None:
    """Return the operating system's code of an error, also of one that a library put into words; None if it has none.

    safetensors, tokenizers and ONNX raise errors of their own for a failed write, with the system's text in them.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    if code := re.search(r"\(os error (\d+)\)", text):
        return int(code[1])
    return next((code for code in _WHAT_TO_DO if os.strerror(code) in text), None)


def _told(path: Path, what: str, code: int | None, error: BaseException) -> str:
    reason = " ".join(str(error).split())[:200] if code is None else os.strerror(code)
    advice = _WHAT_TO_DO.get(code) if code is not None else None
    return f"{path} {what}: {reason}" + (f"; {advice}" if advice else "")


class UnwritableError(OSError):
    """A file or folder that cannot be written; the text says which, and what the operating system said."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise UnwritableError, naming `path`, if the operating system refuses what is written inside."""
    try:
        yield
    except (InputError, UnwritableError):
        raise
    except Exception as error:
        code = _system_error(error)
        elsewhere = not str(getattr(error, "filename", None) or path).startswith(str(path.parent))
        if elsewhere or is_out_of_memory(error) or (code is None and not isinstance(error, (OSError, SafetensorError))):
            raise
        raise UnwritableError(_told(path, "cannot be written", code, error)) from None


def clear_leftovers(folder: Path, of_models: bool = False) -> None:
    """Remove what killed writes left in a folder of ours that this process holds, but not in folders inside it.

    of_models: whether the folder holds a model in training. There earlier versions left files of safetensors, too.
    """
    for pattern in (".*.new", *((".final", ".tmp??????") if of_models else ())):
        for leftover in folder.glob(pattern):
            _clear(leftover)


def _clear(path: Path) -> None:
    """Remove a file or folder that a stopped write left, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _finish(file: Path, mode: int) -> None:
    """Bring a written file to the disk, with the permissions that the umask gives: some libraries write 0600."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())
    if file.stat().st_mode & 0o777 != mode:
        file.chmod(mode)


@contextmanager
def _written_first(new: Path) -> Iterator[Path]:
    """Make the folder `new` to write into; whatever is left in it is removed if that fails.

    What a killed process left there, temporary files of libraries included, is removed by the next one.
    """
    _clear(new)
    new.mkdir()
    try:
        yield new
        mode = new.stat().st_mode & 0o666  # of a folder that was just made: what the umask leaves
        for file in new.rglob("*"):
            if file.is_file():
                _finish(file, mode)
    except BaseException:
        _clear(new)
        raise


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file, on disk, then give it the name `path`: a reader sees the old file or the new one.

    Raises:
        UnwritableError: if it cannot be written; the old file stays as it is.
    """
    write_together(path.parent, path.name, lambda folder: write(folder / path.name))


def write_together(folder: Path, name: str, write: Callable[[Path], object], last: str = "") -> None:
    """Let `write` make files in an empty folder, then move each to `folder`, over an older one of its name.

    A reader sees each file whole, the old one or the new one. Folders among them replace those of their name.

    Args:
        folder: Where the files go.
        name: Of what is written, for messages and for the folder that is written first.
        write: Gets the empty folder.
        last: File that is moved last: where it stands, the others do.

    Raises:
        UnwritableError: if anything cannot be written; what was there before stays as it is.
    """
    path = folder / name
    with writing(path):
        with _written_first(path.with_name(f".{path.name}.new")) as new:
            write(new)
        try:
            for item in sorted(new.iterdir(), key=lambda item: (item.name == last, item.name)):
                if item.is_dir():
                    _clear(folder / item.name)
                os.replace(item, folder / item.name)
        finally:
            _clear(new)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Make a new folder beside `path` to write files into, which takes its name, and its place, once all is on disk.

    If anything fails inside, what was written is removed and what stood at `path` stays. A killed process leaves at
    most two hidden folders beside `path`; `recover_folder`, which comes first here, clears both.

    Raises:
        UnwritableError: if it cannot be written.
    """
    old, fresh = _aside(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        recover_folder(path)
        with _written_first(fresh) as new:
            yield new
        try:
            if path.exists():
                os.replace(path, old)
            os.replace(new, path)
        except BaseException:
            recover_folder(path)
            raise
        shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Put back the folder that stood at `path`, if a process was killed while `whole_folder` replaced it."""
    old, new = _aside(path)
    if old.is_dir() and not path.exists():
        os.replace(old, path)
    _clear(old)
    _clear(new)


def _aside(path: Path) -> tuple[Path, Path]:
    """Return where the old and the new folder stand while one replaces the other; no user has files of these names."""
    return path.with_name(f".{path.name}.autodistil-old"), path.with_name(f".{path.name}.autodistil-new")


@contextmanager
def locked_beside(path: Path, flag: str | None) -> Iterator[None]:
    """Hold a folder that `whole_folder` replaces by a lock beside it, and put it back if a killed process lost it.

    Folders above it that are not there are made, and removed again if they are still empty at the end.

    flag: as of `locked`.
    """
    made = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with locked(path.with_name(f".{path.name}.lock"), path, flag):
            recover_folder(path)
            yield
    finally:
        with suppress(OSError):  # a folder that is not empty stays
            for parent in made:
                parent.rmdir()


@contextmanager
def locked(lock: Path, folder: Path, flag: str | None) -> Iterator[None]:
    """Hold the file `lock`, which stands for `folder`, for this process; it is gone afterwards.

    The operating system frees the lock of a killed process; its file is no obstacle.

    Args:
        lock: The file.
        folder: What it stands for, in messages.
        flag: The one that names `folder`; None to wait until a process that holds it has ended.

    Raises:
        InputError: if another process holds it, which is named; or if a file of that name is no lock.
        OSError: if the file cannot be made.
    """
    _refuse_stranger(lock)
    held = FileLock(lock, timeout=-1 if flag is None else 0)
    try:
        held.acquire()
    except Timeout:
        raise InputError(
            f"another process is at work in {folder}{_holder(lock)}; wait for it, or name another {flag}"
        ) from None
    try:
        with suppress(OSError):  # on a full disk the lock holds, too
            lock.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):  # while it is held: a process that waits for it makes a new one
            lock.unlink()
        held.release()


def _refuse_stranger(lock: Path) -> None:
    """Refuse a file of the user's that has a lock's name: it would be written and removed."""
    try:
        stat = lock.lstat()
    except FileNotFoundError:
        return
    # Nothing is in the lock of a process that was killed before it wrote, and in those of earlier versions.
    is_lock = S_ISREG(stat.st_mode) and (not stat.st_size or lock.read_bytes()[:8] == b"process ")
    if not is_lock:
        raise InputError(f"{lock} is no lock of this package; move it away")


def _holder(lock: Path) -> str:
    """Return in brackets what a lock's file says of its holder; nothing if it cannot be read."""
    with suppress(OSError, ValueError):
        if words := " ".join(lock.read_text(encoding="utf-8").split())[:100]:
            return f" ({words})"
    return ""


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def readable(path: Path, remedy: str | None = None) -> Iterator[None]:
    """Say truthfully why the file `path` cannot be read inside.

    Damage is what parsers, digests and shapes prove. Failures of the operating system are told in its words, and
    memory that ran out passes through.

    Args:
        path: One file, never a folder with files that are whole.
        remedy: What to do if it is damaged, and what that costs; by the file's name if not given. A file that the
            user gave has none.

    Raises:
        DamagedError: if the file is damaged.
        InputError: if it cannot be read by this user.
        OSError: if the machine failed to read it.
    """
    try:
        yield
    except InputError:
        raise
    except (OSError, RuntimeError, *_SIGNS_OF_DAMAGE) as error:
        if is_out_of_memory(error):
            raise
        code = _system_error(error)
        if code is not None or isinstance(error, OSError):
            kind = InputError if code is None or code in _OF_THE_PATH else OSError
            raise kind(_told(path, "cannot be read", code, error)) from None
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in _SIGNS_OF_OTHER_SHAPES):
            raise InputError(_told(path, "cannot be read", None, error)) from None
        raise damaged(path, f"{type(error).__name__}: {error}", remedy) from None


def damaged(path: Path, reason: str, remedy: str | None = None) -> DamagedError:
    """Return the error for a file whose content is proven to be broken.

    reason: what proves it. remedy: as of `readable`.
    """
    remedy = _REMEDIES.get(path.name) if remedy is None else remedy
    words = " ".join(reason.split())[:200]
    return DamagedError(f"{path} is damaged or not of this run ({words})" + (f"; {remedy}" if remedy else ""))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: if there is none.
    """
    with readable(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        return {**content}


def refuse_other_settings(before: Settings, now: Settings, folder: Path) -> None:
    """Raises InputError, naming what differs, unless both settings are equal."""
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if keys:
        details = "; ".join(f"{key} was {before.get(key)!r} and is now {now.get(key)!r}" for key in keys)
        raise InputError(f"{folder} holds a run with other settings: {details}. Use those, or another --out")
