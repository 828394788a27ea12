"""The folder of a run: locked by one process, checked before any write, and never shared by different runs."""

from __future__ import annotations

import json
import platform
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

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
from autodistil_search.base.version import __version__
from autodistil_search.settings.common import grouped_yaml

_ID = ".id"
"""File by which several processes recognise a shared folder."""
STUDENT = "student"
"""Folder of the model within the folder of a `distil`."""


def superlm_folder(folder: Path, space: str) -> Path:
    """Return the folder of a space's SuperLM within the folder of a run or a training."""
    return folder / "superlm" / space


def versions() -> dict[str, str]:
    """Return the versions of this package, of Python and of the packages that compute the numbers."""
    packages = ("torch", "transformers", "tokenizers", "numpy", "optuna", "pymoo", "moocore")
    package_versions = {package: metadata.version(package) for package in packages}
    return {"autodistil_search": __version__, "python": platform.python_version(), **package_versions}


def computing_versions() -> dict[str, str]:
    """Return the versions of the packages that compute scores, as conditions of a job."""
    computing = ("autodistil_search", "torch", "transformers", "tokenizers", "numpy")
    return {f"version of {name}": version for name, version in versions().items() if name in computing}


def mark_folder(folder: Path) -> None:
    """Write a file with a random id into a folder, unless it is there, by which `folder_id` recognises the folder."""
    if not (folder / _ID).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / _ID, lambda path: path.write_text(uuid.uuid4().hex))


def folder_id(folder: Path) -> str:
    """Return the id of a marked folder: equal in all processes that see the same folder, "missing" in others."""
    path = folder / _ID
    return path.read_text() if path.is_file() else "missing"


class Stopwatch:
    """Seconds spent in each phase of a run, added up over all its sessions once `go_on_from` names a file."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self.seconds: dict[str, float] = {}

    def go_on_from(self, path: Path) -> None:
        """Add the seconds of earlier sessions from `path`, and write the sums there from now on."""
        self._path = path
        before = read_sealed(path, "delete it; the timings then restart at zero") if path.exists() else {}
        with readable(path):
            for name, seconds in before.items():
                self.seconds[name] = round(self.seconds.get(name, 0.0) + float(seconds), 2)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to the phase `name`, even after an interruption."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 2)
            if self._path is not None:
                write_sealed(self._path, self.seconds)


def model_folder(folder: Path) -> Path:
    """Return the folder of the model that `distil` or `finetune` wrote; any other model folder is returned unchanged.

    For a fine-tuning, this is the model of the seed with the best metric on the rows to choose by.

    Raises:
        InputError: if the command has not finished, a file is damaged, or the command writes no model.
    """
    kind = kind_of(folder)
    if kind not in OF_RUNS:
        return folder
    if kind not in ("distil", "finetune"):
        raise InputError(f"{described(folder)}; allowed: the folder of a model, of a distil or of a finetune")
    ended = verify(folder)
    summary = folder / SUMMARY
    if kind == "distil":
        model = folder / STUDENT
    else:
        with readable(summary):
            model = folder / (read_json(summary)["model"] if summary.is_file() else "none yet")
    if ended and not model.is_dir():
        raise InputError(f"{str(model)!r} is missing; repeat the {kind}, which writes it again")
    if not ended and not (model / "model.safetensors").is_file():
        raise InputError(f"the {kind} in {str(folder)!r} is not finished; the same command continues it")
    return model


@contextmanager
def exclusive(folder: Path, flag: str = "--out") -> Iterator[None]:
    """Lock `folder` for this process, and remove the incomplete files of a killed process.

    The operating system frees the lock of a killed process.

    Raises:
        InputError: if another process holds the lock, or the path cannot be a folder.
    """
    with ExitStack() as held:
        with usable(folder, flag):
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder / ".lock", folder, flag))
        if any((folder / name).is_file() for name in CONFIGS):  # in any other folder such files may be the user's
            clear_leftovers(folder)
        yield


@contextmanager
def usable(folder: Path, flag: str = "--out") -> Iterator[None]:
    """Raise InputError with the name of the flag if `folder` cannot be created or listed."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{flag} {str(folder)!r} cannot be used as a folder: {reason}") from None


def check_folder(folder: Path, name: str, settings: Settings) -> None:
    """Refuse a folder with another run or with other files. Nothing is changed.

    Args:
        folder: Folder of the run.
        name: Name of the file that holds the settings of such a run.
        settings: Settings of this run.

    Raises:
        InputError: if the folder cannot be used for this run.
    """
    path = folder / name
    with usable(folder):
        names = sorted(item.name for item in folder.iterdir()) if folder.is_dir() else []
    expected_kind = next(kind for kind, facts in KINDS.items() if facts.marker == name)
    if names and kind_of(folder) == expected_kind:
        verify(folder, (name, ENVIRONMENT), own=True)
    if path.name in names:
        with readable(path):
            refuse_other_settings(_settings(path), settings, folder)
    elif other_files := [name for name in names if not name.startswith(".")]:
        raise InputError(
            f"--out {str(folder)!r} holds {other_files[0]!r} but no such run{_kind_in_words(folder)}; allowed: a new "
            "or empty folder, or the folder of the same run"
        )


def _settings(path: Path) -> dict[str, Any]:
    """Return the settings of a run, without the password that an earlier version may have written."""
    content = dict(load_yaml(path))
    storage = content.get("storage")
    return content | ({"storage": without_password(storage)} if isinstance(storage, str) else {})


def _kind_in_words(folder: Path) -> str:
    kind = kind_of(folder)
    return "" if kind is None else f", as it is {KINDS[kind].title}"


def open_folder(folder: Path, name: str, config: type[Any], settings: Settings, environment: Mapping[str, Any]) -> None:
    """Write settings and environment of a run, or check that the run in the folder has the same.

    Args:
        folder: Folder of the run.
        name: Name of the file that holds the settings.
        config: Class of the settings.
        settings: Settings of this run.
        environment: Entries of `environment.json`; its "inputs" are digests of the contents behind the settings.

    Raises:
        InputError: if the folder holds a run with other settings or inputs.
    """
    import torch  # not needed to read a run

    check_folder(folder, name, settings)  # again: another process may have written since
    path = folder / ENVIRONMENT
    if path.exists():
        with readable(path):
            refuse_other_settings(read_json(path)["inputs"], environment["inputs"], folder)
        return
    record = {
        **environment,
        "versions": versions(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *map(without_password, sys.argv[1:])],
    }
    text = grouped_yaml(config, settings)
    write_atomically(folder / name, lambda file: file.write_text(text, encoding="utf-8"))
    write_atomically(path, lambda file: file.write_text(json.dumps(record, indent=2)))
