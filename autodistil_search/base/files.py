"""Atomic writing, locking and checked reading of files and folders, and the location of the cache."""

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
"""JSON settings on which the content of a folder depends; a folder that was made with other settings is refused."""

EXPORT_RECORD = "export.json"
"""File with the measurements and file list of an export; its presence identifies a folder as an export."""

_DAMAGE_ERRORS = (
    ValueError, LookupError, TypeError, AttributeError, EOFError, SafetensorError, yaml.YAMLError, csv.Error, zlib.error
)  # fmt: skip
"""Exceptions of parsers for content that they cannot read."""
_SHAPE_MISMATCHES = ("size mismatch", "loading state_dict", "ignore_mismatched_sizes")
"""Words in the RuntimeError of torch and transformers for weights that do not fit the model."""

_ADVICE = {
    errno.ENOSPC: "free space on that disk, then run the same command again",
    errno.EDQUOT: "free space in your quota, then run the same command again",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), then run the same command again",
    errno.EROFS: "name a folder on a writable file system",
    errno.EACCES: "change its permissions, or name another place",
    errno.EPERM: "change its permissions, or name another place",
    errno.EISDIR: "allowed: a file",
    errno.ENOTDIR: "allowed: a path whose parents are folders",
    errno.EMFILE: "raise the limit on open files (ulimit -n), then run the same command again",
}
"""Advice to the user for a failed read or write, by the error code of the operating system."""
_PATH_ERRORS = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
}
"""Error codes of a path that this user cannot read, as opposed to a failure of the machine."""

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
    EXPORT_RECORD: "name another --out",
}
"""Remedy for a damaged file of this package, and its cost, by the name of the file."""


def cache_folder() -> Path:
    """Return the folder that caches tokenized text and baselines: AUTODISTIL_SEARCH_CACHE, or the user's cache."""
    if given := os.environ.get("AUTODISTIL_SEARCH_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autodistil_search"


_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR)


def refuse_hub(error: BaseException, what: str) -> None:
    """Raise InputError if the cause of `error` is the network or the cache of Hugging Face, not the input.

    what: description of the input in the message, such as "teacher 'name'".
    """
    from huggingface_hub.constants import HF_HOME, HF_HUB_OFFLINE
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ConnectionError | LocalEntryNotFoundError | OfflineModeIsEnabled):
            check = "unset HF_HUB_OFFLINE" if HF_HUB_OFFLINE else "check the network"
            raise InputError(
                f"cannot reach huggingface.co for {what}, which is not here; {check}, or give a folder"
            ) from None
        name = seen.filename if isinstance(seen, OSError) and seen.errno in _UNWRITABLE else None
        if isinstance(seen, OSError) and isinstance(name, str) and Path(name).is_relative_to(HF_HOME):
            raise InputError(
                f"the cache of Hugging Face {HF_HOME!r} cannot be written ({seen.strerror}); "
                "set HF_HOME to another folder"
            ) from None
        seen = seen.__cause__ or seen.__context__


def _system_error(error: BaseException) -> int | None:
    """Return the operating system's code of an error; None if it has none.

    safetensors, tokenizers and ONNX raise errors of their own for a failed write. Their text holds the system's
    message, from which the code is read.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    if code := re.search(r"\(os error (\d+)\)", text):
        return int(code[1])
    return next((code for code in _ADVICE if os.strerror(code) in text), None)


def _failure(path: Path, what: str, code: int | None, error: BaseException) -> str:
    """Return the message of a failed read or write: the path, the reason and the advice."""
    reason = " ".join(str(error).split())[:200] if code is None else os.strerror(code)
    advice = _ADVICE.get(code) if code is not None else None
    return f"{path} {what}: {reason}" + (f"; {advice}" if advice else "")


class UnwritableError(OSError):
    """File or folder that cannot be written; the message names it and quotes the operating system."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise UnwritableError, naming `path`, if the operating system refuses a write in the context."""
    try:
        yield
    except (InputError, UnwritableError):
        raise
    except Exception as error:
        code = _system_error(error)
        elsewhere = not str(getattr(error, "filename", None) or path).startswith(str(path.parent))
        if elsewhere or is_out_of_memory(error) or (code is None and not isinstance(error, (OSError, SafetensorError))):
            raise
        raise UnwritableError(_failure(path, "cannot be written", code, error)) from None


def clear_leftovers(folder: Path, of_models: bool = False) -> None:
    """Remove the temporary files of killed writes from a folder that this process has locked, not from its subfolders.

    Args:
        folder: A folder of this package.
        of_models: True if the folder holds a model in training, where earlier versions also left safetensors files.
    """
    for pattern in (".*.new", *((".final", ".tmp??????") if of_models else ())):
        for leftover in folder.glob(pattern):
            _clear(leftover)


def _clear(path: Path) -> None:
    """Remove the temporary file or folder of a stopped write, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _finish(file: Path, mode: int) -> None:
    """Flush a written file to disk with permissions `mode`, those of the umask: some libraries write 0600."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())
    if file.stat().st_mode & 0o777 != mode:
        file.chmod(mode)


@contextmanager
def _written_first(new: Path) -> Iterator[Path]:
    """Make the folder `new` to write into, and remove it if the write fails.

    Files of a killed process, also the temporary files of libraries, are removed by the next process.
    """
    _clear(new)
    new.mkdir()
    try:
        yield new
        mode = new.stat().st_mode & 0o666  # a new folder has the permissions that the umask leaves
        for file in new.rglob("*"):
            if file.is_file():
                _finish(file, mode)
    except BaseException:
        _clear(new)
        raise


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name, then rename it to `path`: a reader sees the old file or the new file.

    Args:
        path: The file.
        write: Function that writes the file to the path that it is given.

    Raises:
        UnwritableError: if the file cannot be written; the old file is unchanged.
    """
    write_together(path.parent, path.name, lambda folder: write(folder / path.name))


def write_together(folder: Path, name: str, write: Callable[[Path], object], last: str = "") -> None:
    """Write several files to a temporary folder, then move each to `folder`, replacing older files of the same name.

    A reader sees every file complete, in its old or its new version. Subfolders replace subfolders of the same name.

    Args:
        folder: Destination of the files.
        name: Name in messages, and of the temporary folder.
        write: Function that writes the files to the empty folder that it is given.
        last: File that is moved last: once it exists, the other files do too.

    Raises:
        UnwritableError: if a file cannot be written; the earlier files are unchanged.
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
    """Make a new folder beside `path` to write files into; it replaces `path` once all files are on disk.

    After a failure in the context, the new folder is removed and the old folder at `path` stays. A killed process
    leaves at most two hidden folders beside `path`; `recover_folder`, which runs first, removes both.

    Raises:
        UnwritableError: if the folder cannot be written.
    """
    old, fresh = _temporary_paths(path)
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
    """Restore the old folder at `path` if a process was killed while `whole_folder` replaced it."""
    old, new = _temporary_paths(path)
    if old.is_dir() and not path.exists():
        os.replace(old, path)
    _clear(old)
    _clear(new)


def _temporary_paths(path: Path) -> tuple[Path, Path]:
    """Return the temporary paths of the old and the new folder of a replacement; no user has files of these names."""
    return path.with_name(f".{path.name}.autodistil-old"), path.with_name(f".{path.name}.autodistil-new")


@contextmanager
def locked_beside(path: Path, flag: str | None) -> Iterator[None]:
    """Lock a folder that `whole_folder` replaces, by a file beside it, and restore it after a killed process.

    Missing parent folders are made, and removed again if they are still empty at the end.

    Args:
        path: The folder.
        flag: Flag that names the folder; see `locked`.
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
    """Hold the lock file of a folder for this process, and remove the file afterwards.

    The operating system frees the lock of a killed process, so a lock file that remains is no obstacle.

    Args:
        lock: The lock file.
        folder: The locked folder, for messages.
        flag: Flag that names `folder`, for messages; None waits for a process that holds the lock.

    Raises:
        InputError: if another process holds the lock (the message names it), or a file of that name is no lock.
        OSError: if the file cannot be made.
    """
    _refuse_other_file(lock)
    held = FileLock(lock, timeout=-1 if flag is None else 0)
    try:
        held.acquire()
    except Timeout:
        raise InputError(
            f"another process is using {folder}{_holder(lock)}; wait for it, or name another {flag}"
        ) from None
    try:
        with suppress(OSError):  # the lock also holds on a full disk
            lock.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):  # removed while held: a waiting process then makes a new file
            lock.unlink()
        held.release()


def _refuse_other_file(lock: Path) -> None:
    """Refuse a user's file with the name of a lock: the lock would overwrite and remove it."""
    try:
        # Locks of earlier versions are empty, and so is a lock that its holder has not yet written.
        is_lock = S_ISREG(lock.lstat().st_mode) and lock.read_bytes()[:8] in (b"", b"process ")
    except FileNotFoundError:  # also if its holder removes it between the two looks
        return
    if not is_lock:
        raise InputError(f"{lock} is not a lock of this package; move it elsewhere")


def _holder(lock: Path) -> str:
    """Return the holder that a lock file names, in brackets; an empty text if the file cannot be read."""
    with suppress(OSError, ValueError):
        if words := " ".join(lock.read_text(encoding="utf-8").split())[:100]:
            return f" ({words})"
    return ""


def file_sha256(path: Path) -> str:
    """Return the hex SHA-256 digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def readable(path: Path, remedy: str | None = None) -> Iterator[None]:
    """Replace errors of reading the file `path` in the context by errors that state the true reason.

    A file counts as damaged only if a parser, a digest or a shape proves it. Errors of the operating system keep its
    words, and out-of-memory errors pass unchanged.

    Args:
        path: One file, never a folder with intact files.
        remedy: Advice for a damaged file, with its cost; by default that of the file's name. A file given by the user
            has none.

    Raises:
        DamagedError: if the file is damaged.
        InputError: if this user cannot read the file.
        OSError: if the machine failed to read the file.
    """
    try:
        yield
    except InputError:
        raise
    except (OSError, RuntimeError, *_DAMAGE_ERRORS) as error:
        if is_out_of_memory(error):
            raise
        code = _system_error(error)
        if code is not None or isinstance(error, OSError):
            kind = InputError if code is None or code in _PATH_ERRORS else OSError
            raise kind(_failure(path, "cannot be read", code, error)) from None
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in _SHAPE_MISMATCHES):
            raise InputError(_failure(path, "cannot be read", None, error)) from None
        raise damaged(path, f"{type(error).__name__}: {error}", remedy) from None


def damaged(path: Path, reason: str, remedy: str | None = None) -> DamagedError:
    """Return the error for a file that is proven to be damaged.

    Args:
        path: The file.
        reason: The proof of the damage.
        remedy: Advice for the user; see `readable`.
    """
    remedy = _REMEDIES.get(path.name) if remedy is None else remedy
    words = " ".join(reason.split())[:200]
    return DamagedError(f"{path} is damaged or not of this run ({words})" + (f"; {remedy}" if remedy else ""))


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        InputError: if the file holds no JSON object or cannot be read.
    """
    with readable(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        return {**content}


def refuse_other_settings(before: Settings, now: Settings, folder: Path) -> None:
    """Raise InputError, naming each difference, unless both settings are equal."""
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if keys:
        details = "; ".join(f"{key} was {before.get(key)!r} and is now {now.get(key)!r}" for key in keys)
        raise InputError(f"{folder} holds a run with other settings: {details}. Use those, or another --out")
