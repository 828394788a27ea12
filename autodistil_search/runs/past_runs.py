"""Past runs: search folders for them, and read the state and the key figures of each."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from autodistil_search.base.errors import InputError
from autodistil_search.base.manifest import KINDS, MANIFEST, OF_RUNS, TRAINER_STATE, kind_of, lacking
from autodistil_search.base.user_input import load_yaml
from autodistil_search.report.file_names import PAGE
from autodistil_search.runs.finished_run import Run, load_run

PLACES = (Path("runs"), Path("superlms"), Path("compressed"))
"""Folders in which `search`, `train` and `all` write by default."""
_DEEPEST = 3
"""Levels of folders that are searched."""

State = Literal["finished", "running", "stopped", "damaged", "no run"]


@dataclass(frozen=True)
class PastRun:
    """A folder that a command wrote, or another folder beside such folders.

    Attributes:
        folder: The folder.
        kind: Command that wrote it, such as "search"; None for another folder.
        state: State of the run; "no run" for another folder.
        remark: What the state does not say, such as "at step 40 of 200".
        date: Time of its last change, ISO 8601 without a time zone.
        spaces: Names of its search spaces.
        objectives: Names of its objectives, in order.
        frontier: Number of subnets on its frontier; None unless it is a finished search.
        hypervolume_share: Share of the hypervolume's box, from 0 to 1.
        knee: Values of the knee by column; empty unless it is a finished search.
        accuracy: Name of the column of the accuracy proxy, if it has one.
    """

    folder: Path
    kind: str | None
    state: State
    remark: str = ""
    date: str | None = None
    spaces: Sequence[str] = ()
    objectives: Sequence[str] = ()
    frontier: int | None = None
    hypervolume_share: float | None = None
    knee: Mapping[str, Any] = field(default_factory=dict)
    accuracy: str | None = None

    def record(self) -> dict[str, Any]:
        """Return the attributes by name."""
        return asdict(self)


def find_runs(folders: Sequence[Path] | None = None) -> list[PastRun]:
    """Return the runs in some folders, each folder in the order of its names.

    Damaged runs and folders without a run are part of the list, with the reason in `remark`.

    Args:
        folders: Folders of runs, or folders that hold such folders; those of `PLACES` that exist if not given.

    Raises:
        InputError: if a given folder does not exist.
    """
    places = [place for place in PLACES if place.is_dir()] if folders is None else folders
    for place in places:
        if not place.is_dir():
            raise InputError(f"{str(place)!r} is no folder; allowed: folders of runs, or folders that hold them")
    return [run for place in places for run in _runs_in(place, _DEEPEST)]


def newest_report() -> Path:
    """Return the report of the finished search under `PLACES` that changed last.

    Raises:
        InputError: if there is none.
    """
    finished = [run for run in find_runs() if run.kind == "search" and run.state == "finished"]
    reports = [run for run in finished if (run.folder / PAGE).is_file()]
    if not reports:
        places = ", ".join(map(str, PLACES))
        raise InputError(f"no finished search under {places}; allowed: the --out folder of a search or a report")
    return max(reports, key=lambda run: run.date or "").folder / PAGE


def report_of(folder: Path) -> Path:
    """Return the page of a finished search or of a report.

    Raises:
        InputError: if the folder has none.
    """
    if not (folder / PAGE).is_file():
        raise InputError(f"{str(folder)!r} holds no {PAGE}; allowed: the --out folder of a finished search or a report")
    return folder / PAGE


def _runs_in(folder: Path, levels: int) -> Iterator[PastRun]:
    """Yield the run in a folder and those below it, or the folder itself if there is none."""
    run = _read(folder)
    if run is not None:
        yield run
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = [part for path in below if levels for part in _runs_in(path, levels - 1)]
    if run is not None:  # other folders of a run belong to it
        yield from (part for part in found if part.kind is not None)
    elif found:
        yield from found
    elif levels < _DEEPEST:
        yield PastRun(folder, None, "no run", _described(folder), _date(folder))


def _described(folder: Path) -> str:
    kind = kind_of(folder)
    return "another folder" if kind is None else KINDS[kind].title


def _read(folder: Path) -> PastRun | None:
    """Return the run of a folder, its state and figures; None if it holds none."""
    try:
        kind = kind_of(folder)
    except InputError as error:
        return PastRun(folder, None, "damaged", str(error), _date(folder))
    if kind not in OF_RUNS or kind == "report":
        return None
    try:
        return _read_kind(folder, kind)
    except (InputError, OSError, ValueError) as error:
        return PastRun(folder, kind, "damaged", " ".join(str(error).split()), _date(folder))


def _read_kind(folder: Path, kind: str) -> PastRun:
    settings = load_yaml(folder / KINDS[kind].marker)
    if not isinstance(settings, dict):
        raise InputError(f"{folder / KINDS[kind].marker} holds no settings")
    spaces = [Path(name.strip()).stem for name in str(settings.get("space") or "").split(",") if name.strip()]
    asked = [name.strip() for name in str(settings.get("objectives") or "").split(",") if name.strip()]
    facts: dict[str, Any] = {"date": _date(folder), "spaces": spaces, "objectives": asked}
    if (folder / MANIFEST).is_file() and not lacking(folder):
        figures = _figures(load_run(folder)) if kind == "search" else {}
        return PastRun(folder, kind, "finished", **facts, **figures)
    if (holder := _holder(folder)) is not None:
        return PastRun(folder, kind, "running", holder, **facts)
    return PastRun(folder, kind, "stopped", _progress(folder, spaces, settings.get("steps")), **facts)


def _figures(run: Run) -> dict[str, Any]:
    report = run.report
    return {
        "frontier": len(run.frontier),
        "hypervolume_share": report.hypervolume_share,
        "knee": {column.name: run.knee[column.name] for column in report.columns},
        "accuracy": next((column.name for column in report.columns if column.is_proxy), None),
    }


def _progress(folder: Path, spaces: Sequence[str], steps: object) -> str:
    """Return the last saved step of the SuperLM in training, from which the same command continues."""
    for space in spaces:
        superlm = folder / "superlm" / space
        if not (superlm / TRAINER_STATE).is_file():
            saved = [re.fullmatch(r"checkpoint-(\d+)\.json", path.name) for path in superlm.glob("checkpoint-*.json")]
            step = max((int(match[1]) for match in saved if match), default=0)
            return f"at step {step} of {steps} ({space})"
    return "after training" if (folder / "superlm").is_dir() else ""


def _holder(folder: Path) -> str | None:
    """Return the process that holds the lock of a folder; None if none does, as after a kill."""
    try:
        match = re.fullmatch(r"process (\d+) on (.+)", (folder / ".lock").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if match is None:
        return None
    if match[2] == platform.node() and os.name == "posix":
        try:
            os.kill(int(match[1]), 0)
        except ProcessLookupError:
            return None
        except OSError:  # of another user
            pass
    return match[0]


def _date(folder: Path) -> str:
    """Return the time of the last change of a run's own files and of its SuperLMs."""
    paths = [*folder.glob("*"), *folder.glob("superlm/*/*")]
    files = [path.stat().st_mtime for path in paths if path.is_file()] or [folder.stat().st_mtime]
    return datetime.fromtimestamp(max(files)).isoformat(timespec="seconds")
