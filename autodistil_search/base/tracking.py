"""Experiment tracking by the trackers of accelerate, and by a function of the caller.

A command has one run in each tracker for each part: a SuperLM, a search of a space, a student, or a fine-tuning. A part
has steps of its own, which begin at 1. A command that is continued continues the runs of its trackers.
"""

from __future__ import annotations

import importlib.util
import json
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodistil_search.base.errors import InputError
from autodistil_search.base.files import read_json, readable, write_atomically
from autodistil_search.base.plugins import guarded, shown
from autodistil_search.base.user_input import meant, quoted

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

Callback = Callable[[int, Mapping[str, float]], object]
"""Function of the caller: takes the number of a step, counted from 1, and metrics by name, such as
"superlm tiny/loss/largest"."""

TRACKERS: Mapping[str, str] = {
    "tensorboard": "pip install 'autodistil_search[tracking]'",
    "wandb": "pip install wandb",
    "mlflow": "pip install mlflow",
    "trackio": "pip install trackio",
}
"""Trackers by the name of their package, each with the command that installs it."""

LOGS = "tensorboard"
"""Folder of TensorBoard's event files."""
_PROJECT = "autodistil_search"
_IDS = ".tracked.json"
"""File with the ids of the runs in the trackers, by which a continued command finds them."""


def tracker_names(text: str | None) -> list[str]:
    """Return names of trackers, separated by commas.

    Raises:
        InputError: for a name that is unknown, or a tracker whose package is not installed.
    """
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"--track {quoted(name)}{meant(name, TRACKERS)}; allowed: {', '.join(TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise InputError(f"--track {name} needs the package {name}: {TRACKERS[name]}")
    return list(dict.fromkeys(names))


@dataclass(frozen=True)
class Tracking:
    """Trackers of a command.

    Args:
        names: Names of `TRACKERS`.
        callback: Function that gets all metrics, too.
        label: Name of the command's folder, for the names of the runs.
        settings: Settings of the command, which the trackers record.
    """

    names: tuple[str, ...] = ()
    callback: Callback | None = None
    label: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def part(self, title: str, folder: Path) -> Part | None:
        """Return a part of the command, whose event files are written to `folder`; None if nothing tracks it."""
        return Part(self, title, folder) if self.names or self.callback is not None else None


@dataclass(frozen=True)
class Part:
    """Part of a command with steps of its own.

    Args:
        tracking: Trackers of the command.
        title: Name of the part, such as "superlm tiny".
        folder: Folder of TensorBoard's event files; the ids of the other trackers are written beside it.
    """

    tracking: Tracking
    title: str
    folder: Path

    @contextmanager
    def opened(self, first: int) -> Iterator[Track]:
        """Yield a track whose next step is `first + 1`; later steps of an earlier session are replaced.

        Raises:
            InputError: if a tracker cannot be started.
        """
        with ExitStack() as stack:
            trackers = {}
            for name in self.tracking.names:
                with guarded(f"--track {name} cannot be started"):
                    trackers[name] = self._started(name, first)
                stack.callback(_finish, name, trackers[name])
            yield Track(self.title, trackers, self.tracking.callback)

    def _started(self, name: str, first: int) -> GeneralTracker:
        """Return a started tracker of accelerate."""
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        if not PartialState._shared_state:
            PartialState(cpu=True)  # the trackers' own log asks for it
        label, settings = f"{self.tracking.label} {self.title}", _flat(self.tracking.settings)
        run = self._ids().get(name)
        arguments: dict[str, Any] = {}
        if name == "tensorboard":
            arguments = {"run_name": self.folder.name, "logging_dir": self.folder.parent, "purge_step": first + 1}
        elif name == "mlflow":
            arguments = {"experiment_name": _PROJECT, "run_name": label, "run_id": run, "nested_run": True}
        else:
            run = run or uuid.uuid4().hex[:8]
            arguments = {"run_name": _PROJECT, "name": label, "resume": "allow", "config": settings}
            arguments |= {"id": run, "reinit": "create_new"} if name == "wandb" else {"name": f"{label} {run}"}
        tracker = LOGGER_TYPE_TO_CLASS[name](**arguments)
        tracker.start()
        if name == "mlflow" and run is None:
            run = tracker.tracker.info.run_id
            tracker.store_init_configuration(settings)
        if run is not None:
            self._keep_id(name, run)
        return tracker

    @property
    def _ids_path(self) -> Path:
        return self.folder.parent / _IDS

    def _ids(self) -> dict[str, str]:
        """Return the ids of this part's runs by tracker."""
        if not self._ids_path.is_file():
            return {}
        with readable(self._ids_path, "delete it; the trackers then begin new runs"):
            return dict(read_json(self._ids_path).get(self.title, {}))

    def _keep_id(self, name: str, run: str) -> None:
        content = read_json(self._ids_path) if self._ids_path.is_file() else {}
        content[self.title] = {**content.get(self.title, {}), name: run}
        self._ids_path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._ids_path, lambda path: path.write_text(json.dumps(content)))


class Track:
    """Receiver of the metrics of a part. A tracker that fails is left out from then on, with a warning."""

    def __init__(self, title: str, trackers: dict[str, GeneralTracker], callback: Callback | None) -> None:
        self._title, self._trackers, self._callback = title, trackers, callback

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics by name after step number `step`, counted from 1."""
        for name, tracker in list(self._trackers.items()):
            more = {"run_id": tracker.tracker.info.run_id} if name == "mlflow" else {}
            try:
                tracker.log(dict(metrics), step=step, **more)
            except Exception as error:  # of any library, network or disk; the work must go on
                warnings.warn(f"--track {name} ends at step {step} of {self._title}: {shown(error)}", stacklevel=2)
                del self._trackers[name]
        if self._callback is not None:
            self._callback(step, {f"{self._title}/{name}": value for name, value in metrics.items()})


def _finish(name: str, tracker: GeneralTracker) -> None:
    try:
        tracker.finish()
    except Exception as error:  # as in `Track.log`
        warnings.warn(f"--track {name} did not end: {shown(error)}", stacklevel=2)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of the types that trackers record: text, numbers and truth values."""
    return {
        name: value if isinstance(value, str | int | float) else json.dumps(value)
        for name, value in settings.items()
        if value is not None
    }
