"""The folder of a run: held by one process, checked before anything is written, continued but never mixed."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from autodistil_search import __version__
from autodistil_search.base.errors import InputError
from autodistil_search.base.files import (
    Settings,
    clear_leftovers,
    locked,
    read_json,
    readable,
    refuse_other_settings,
    write_atomically,
)
from autodistil_search.base.manifest import (
    CONFIGS,
    ENVIRONMENT,
    KINDS,
    OF_RUNS,
    SUMMARY,
    described,
    kind_of,
    read_sealed,
    verify,
    write_sealed,
)
from autodistil_search.base.passwords import without_password
from autodistil_search.base.user_input import load_yaml

STUDENT = "student"
"""Folder of the model in that of a `distil`."""


def superlm_folder(folder: Path, space: str) -> Path:
    """Return where the SuperLM of a space lies in the folder of a run or a training."""
    return folder / "superlm" / space


def versions() -> dict[str, str]:
    """Versions of this package and of what computes its numbers."""
    packages = ("torch", "transformers", "tokenizers", "numpy", "optuna", "pymoo", "moocore")
    found = {package: metadata.version(package) for package in packages}
    return {"autodistil_search": __version__, "python": platform.python_version(), **found}


class Stopwatch:
    """Seconds spent in each phase of a run, added up over all its sessions once there is a file for them."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self.seconds: dict[str, float] = {}

    def go_on_from(self, path: Path) -> None:
        """Add what earlier sessions took, and keep the sums in `path` from now on."""
        self._path = path
        before = read_sealed(path, "delete it: seconds then start at zero") if path.exists() else {}
        with readable(path):
            for name, seconds in before.items():
                self.seconds[name] = round(self.seconds.get(name, 0.0) + float(seconds), 2)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside towards `name`, also if it is interrupted."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 2)
            if self._path is not None:
                write_sealed(self._path, self.seconds)


def model_folder(folder: Path) -> Path:
    """Return where the model lies of a folder that `distil` or `finetune` made; the folder of a model as it is.

    Of a fine-tuning it is the seed that did best on the rows to choose by.

    Raises:
        InputError: if it has not ended, is damaged, or is the folder of a command that leaves no model.
    """
    kind = kind_of(folder)
    if kind not in OF_RUNS:
        return folder
    if kind not in ("distil", "finetune"):
        raise InputError(f"{described(folder)}; allowed: the folder of a model, of a distil or of a finetune")
    ended = verify(folder)
    summary = folder / SUMMARY
    if kind == "distil":
        found = folder / STUDENT
    else:
        with readable(summary):
            found = folder / (read_json(summary)["model"] if summary.is_file() else "none yet")
    if ended and not found.is_dir():
        raise InputError(f"{str(found)!r} is missing; repeat the {kind}, which makes it again")
    if not ended and not (found / "model.safetensors").is_file():
        raise InputError(f"what was begun in {str(folder)!r} has not ended; the same command goes on with it")
    return found


@contextmanager
def exclusive(folder: Path, flag: str = "--out") -> Iterator[None]:
    """Hold `folder` for this process, and remove what a killed one left half-written in it.

    The operating system frees the lock of a killed process.

    Raises:
        InputError: if another process holds it, or if it cannot be a folder.
    """
    with ExitStack() as held:
        with usable(folder, flag):
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder / ".lock", folder, flag))
        if any((folder / name).is_file() for name in CONFIGS):  # any other folder may have such files of the user
            clear_leftovers(folder)
        yield


@contextmanager
def usable(folder: Path, flag: str = "--out") -> Iterator[None]:
    """Raise InputError, naming the flag, if `folder` cannot be made or looked into."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{flag} {str(folder)!r} cannot be used as a folder: {reason}") from None


def check_folder(folder: Path, name: str, settings: Settings) -> None:
    """Refuse a folder with another run or with other files; changes nothing.

    Args:
        folder: The run's.
        name: Of the file in it that holds a run's settings.
        settings: This run's.

    Raises:
        InputError: if the folder cannot be this run's.
    """
    path = folder / name
    with usable(folder):
        names = sorted(item.name for item in folder.iterdir()) if folder.is_dir() else []
    own = next(kind for kind, facts in KINDS.items() if facts.marker == name)
    if names and kind_of(folder) == own:
        verify(folder, (name, ENVIRONMENT), own=True)
    if path.name in names:
        with readable(path):
            refuse_other_settings(_settings(path), settings, folder)
    elif strangers := [name for name in names if not name.startswith(".")]:
        raise InputError(
            f"--out {str(folder)!r} holds {strangers[0]!r} but no such run{_kind_in_words(folder)}; allowed: a new or "
            "empty folder, or the same run's"
        )


def _settings(path: Path) -> dict[str, Any]:
    """Return the settings that a run left, without a password that an earlier version left in."""
    content = dict(load_yaml(path))
    storage = content.get("storage")
    return content | ({"storage": without_password(storage)} if isinstance(storage, str) else {})


def _kind_in_words(folder: Path) -> str:
    kind = kind_of(folder)
    return "" if kind is None else f", as it is {KINDS[kind].title}"


def open_folder(folder: Path, name: str, settings: Settings, environment: Mapping[str, Any]) -> None:
    """Write what was chosen and found, or check that the folder's run had the same.

    environment: goes to `environment.json`; its "inputs" are digests of what the settings only name.
    """
    import torch  # which reading a run does without

    check_folder(folder, name, settings)  # once more: another process may have been here meanwhile
    path = folder / ENVIRONMENT
    if path.exists():
        with readable(path):
            refuse_other_settings(read_json(path)["inputs"], environment["inputs"], folder)
        return
    found = {
        **environment,
        "versions": versions(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "command": [Path(sys.argv[0]).name, *map(without_password, sys.argv[1:])],
    }
    text = yaml.safe_dump(dict(settings), sort_keys=False)
    write_atomically(folder / name, lambda file: file.write_text(text, encoding="utf-8"))
    write_atomically(path, lambda file: file.write_text(json.dumps(found, indent=2)))
