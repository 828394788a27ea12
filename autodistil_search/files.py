"""Files of a run folder: written whole or not at all, and read with a clear word when they are damaged; the cache."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

from autodistil_search.errors import InputError

Settings = Mapping[str, Any]
"""What the content of a folder depends on, as JSON holds it; a folder made with other settings is refused."""

EXPORT_RECORD = "export.json"
"""What was measured of an exported student, and its files; it tells a folder of ours from others."""

_SIGNS_OF_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError, yaml.YAMLError)


def cache_folder() -> Path:
    """Where tokenized text and baselines are kept for later runs: AUTODISTIL_SEARCH_CACHE, or the user's cache."""
    if given := os.environ.get("AUTODISTIL_SEARCH_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autodistil_search"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, on disk, then give it that name: a reader sees the old or the new."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        write(temporary)
        move_into_place(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"{path} cannot be written: {reason}") from None
    finally:
        temporary.unlink(missing_ok=True)  # of what failed or was interrupted: it would only fill the disk


def move_into_place(temporary: Path, path: Path) -> None:
    """Give a finished file its name, once its content is on disk."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` to write files into, which takes its name, and its place, once all is on disk.

    If anything fails inside, what was written is gone and what stood at `path` stays. A killed process leaves at most
    the folder's `.NAME.new`, which the next one clears.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = (path.with_name(f".{path.name}.{kind}") for kind in ("new", "old"))
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        for file in new.iterdir():
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def without_password(url: str) -> str:
    """A database's URL, or words with one, as messages and files may show it."""
    hidden = re.sub(r"(://[^/@:\s]*):[^@\s]*@", r"\1:***@", url)
    return re.sub(r"([?&]password=)[^&\s]*", r"\1***", hidden)


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raises InputError, naming `path`, for whatever a damaged or foreign file leads to inside."""
    try:
        yield
    except InputError:
        raise
    except (*_SIGNS_OF_DAMAGE, OSError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{path} is damaged or not of this run ({reason}); delete it, or name another --out") from None


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
