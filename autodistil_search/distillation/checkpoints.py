"""Checkpoints and finished models of a training run. Files have checksums; an incomplete file is never used.

`checkpoint-<step>.safetensors` holds weights and AdamW's moments. `checkpoint-<step>.json` is written after it, and
holds its SHA-256 and the rest of the training state. A checkpoint without its JSON file, or with another digest, is
ignored. The models of all commands are read in one place, `load_model`.
"""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from autodistil_search.base.errors import DamagedError, InputError
from autodistil_search.base.files import (
    Settings,
    clear_leftovers,
    file_sha256,
    read_json,
    readable,
    refuse_other_settings,
    write_atomically,
    write_together,
)
from autodistil_search.base.manifest import (
    MANIFEST,
    TRAINER_STATE,
    is_as_written,
    lacking,
    model_files,
    seal,
    sha256_of,
    verify,
    warn_of_lacking,
    write_manifest,
)
from autodistil_search.base.pretrained import quiet_transformers
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.superlm.model_folder import WEIGHTS, check_weights, load_model, verify_by_state

_NAME = "checkpoint-{:08d}"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_SHARE_OF_TIME = 0.05
"""Largest share of the time for saving. A killed run loses at most 20 times the time that a checkpoint takes."""


@dataclass
class Checkpoints:
    """Checkpoints of one model in training.

    Args:
        folder: Folder of the checkpoints.
        model: Model in training.
        optimizer: AdamW optimizer of the model.
        scaler: Gradient scaler of the model; a disabled scaler has no state.
        settings: Settings on which the weights depend; checkpoints with other settings are refused.
        keep: Number of last checkpoints that are kept, besides the last good one.
        together: Number of models that are trained and saved in turn, which share the time for saving.
        watch: Course of the loss (`LossWatch.to_dict`) in the restored checkpoint.
    """

    folder: Path
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    settings: Settings
    keep: int = 2
    together: int = 1
    watch: dict[str, Any] | None = None
    _good: int | None = None
    _last: float = field(default_factory=lambda: time.monotonic())
    _took: float = 0.0

    @property
    def due(self) -> bool:
        """Return True if saving now keeps saving within its share of the time."""
        return self._took <= _SHARE_OF_TIME / self.together * (time.monotonic() - self._last)

    def save(
        self, step: int, text: Sequence[Mapping[str, Any]], watch: Mapping[str, Any] | None = None, good: bool = False
    ) -> None:
        """Write the state after `step` steps, then remove all but the last `keep` checkpoints and the last good one.

        text: position of each process in the text.
        watch: course of the loss (`LossWatch.to_dict`).
        good: True if training may return to this checkpoint after a collapse.

        Raises:
            OSError: if the checkpoint cannot be written; earlier checkpoints are kept.
            FloatingPointError: if a weight is not finite; earlier checkpoints are kept.
        """
        _refuse_broken(self.model, step, self.settings)
        start = time.monotonic()
        path = self.folder / f"{_NAME.format(step)}.safetensors"
        try:
            write_atomically(path, lambda file: save_file(self._tensors(), file))
            state: dict[str, Any] = {
                "step": step,
                "sha256": file_sha256(path),
                "settings": dict(self.settings),
                "scaler": self.scaler.state_dict(),
                "text": list(text),
                "watch": None if watch is None else dict(watch),
                "good": step if good else self._good,
            }
            write_atomically(path.with_suffix(".json"), lambda file: file.write_text(json.dumps(seal(state))))
        except OSError as error:
            raise OSError(f"the checkpoint of step {step} cannot be written: {error}; the last one is kept") from None
        self._good = step if good else self._good
        for old in _steps(self.folder)[: -self.keep]:
            if old != self._good:
                _remove(self.folder, old)
        self._last = time.monotonic()
        self._took = self._last - start

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            tensors |= {f"{key}.{name}": tensor for key, tensor in self.optimizer.state.get(parameter, {}).items()}
        return {name: tensor.contiguous() for name, tensor in tensors.items()}

    def restore(self, go_back: bool = False) -> tuple[int, list[dict[str, Any]]]:
        """Restore the last complete checkpoint; returns its number of steps and each process's position in the text.

        Without checkpoints, returns 0 steps and no positions. Damaged checkpoints are skipped with a warning.

        go_back: True to restore the last checkpoint that was saved as good, and to remove those after it.

        Raises:
            InputError: if the checkpoint was made with other settings, which are named, or if all checkpoints are
                damaged.
        """
        steps = _steps(self.folder)
        if go_back:
            for later in [step for step in steps if step > cast(int, self._good)]:
                _remove(self.folder, later)
                steps.remove(later)
        for leftover in self.folder.glob("checkpoint-*.safetensors"):  # of a save that was killed
            if not leftover.with_suffix(".json").exists():
                leftover.unlink()
        clear_leftovers(self.folder, of_models=True)
        for step in reversed(steps):
            path = self.folder / f"{_NAME.format(step)}.safetensors"
            state = _intact_state(path)
            if state is not None:
                refuse_other_settings(state["settings"], self.settings, self.folder)
                self._load(path, state)
                for damaged in (later for later in steps if later > step):
                    _remove(self.folder, damaged)
                self.watch, self._good = state.get("watch"), state.get("good")
                return int(state["step"]), list(state["text"])
            warnings.warn(
                f"{path} is damaged and is skipped; training continues from the checkpoint before it", stacklevel=2
            )
        if steps:
            raise InputError(f"all {len(steps)} checkpoints in {self.folder} are damaged; delete them to start anew")
        return 0, []

    def discard(self) -> None:
        """Remove all checkpoints, and the moments of the optimizer."""
        for step in _steps(self.folder):
            _remove(self.folder, step)
        self.optimizer.state.clear()
        self._good = None

    def _load(self, path: Path, state: Mapping[str, Any]) -> None:
        with readable(path), safe_open(path, framework="pt") as file:
            names = set(file.keys())
            self.model.load_state_dict({name: file.get_tensor(f"model.{name}") for name in self.model.state_dict()})
            for name, parameter in self.model.named_parameters():
                if f"exp_avg.{name}" in names:  # a parameter that no subnet used yet has no moments
                    self.optimizer.state[parameter] = {
                        key: file.get_tensor(f"{key}.{name}").to(parameter.device) for key in _MOMENTS
                    }
        if state["scaler"]:
            self.scaler.load_state_dict(dict(state["scaler"]))


def _steps(folder: Path) -> list[int]:
    """Return the steps of all checkpoints with a JSON file, in ascending order."""
    matches = (re.fullmatch(r"checkpoint-(\d+)\.json", path.name) for path in folder.glob("checkpoint-*.json"))
    return sorted(int(match[1]) for match in matches if match)


def _remove(folder: Path, step: int) -> None:
    for suffix in (".json", ".safetensors"):  # JSON first: weights without it are ignored
        (folder / f"{_NAME.format(step)}{suffix}").unlink(missing_ok=True)


def _intact_state(path: Path) -> dict[str, Any] | None:
    """Return the state in a checkpoint's JSON file; None if the checkpoint is damaged or missing.

    Raises:
        InputError: if this user cannot read a file.
        OSError: if reading fails.
    """
    if not path.exists():
        return None
    try:
        with readable(path):
            state = read_json(path.with_suffix(".json"))
            return state if is_as_written(state) and file_sha256(path) == state["sha256"] else None
    except DamagedError:
        return None


def _refuse_broken(model: nn.Module, step: int, settings: Settings) -> None:
    try:
        check_weights(model)
    except FloatingPointError as error:
        raise FloatingPointError(
            f"{error} after step {step}, at learning rate {settings.get('lr')} with seed {settings.get('seed')}; the "
            "last checkpoint is kept. Try a lower --lr, in another --out"
        ) from None


@dataclass(frozen=True)
class Course:
    """Course of a finished training.

    start: notes on the initial weights; empty in folders of versions that did not record them.
    returns: collapses after which training returned to a checkpoint, with the fields of `collapse.Return`.
    held_out_loss: held-out loss after the last step (`training_loop.Distillation.final_loss`); None if not measured.
    """

    start: Sequence[str] = ()
    returns: Sequence[Mapping[str, Any]] = ()
    held_out_loss: float | None = None


def finish(
    folder: Path,
    model: AutoDistilModel,
    steps: int,
    settings: Settings,
    course: Course | None = None,
) -> None:
    """Write the finished model as `save_pretrained` does, then `trainer_state.json`; remove the checkpoints.

    steps: number of training steps.
    settings: settings on which the weights depend.
    course: course of the training.

    Raises:
        FloatingPointError: if a weight is not finite; nothing is written.
    """
    _refuse_broken(model, steps, settings)
    with quiet_transformers():
        write_together(folder, WEIGHTS, model.save_pretrained)
    state = {"step": steps, "sha256": sha256_of(folder / WEIGHTS), "settings": dict(settings)}
    state |= asdict(course or Course())
    write_atomically(folder / TRAINER_STATE, lambda path: path.write_text(json.dumps(state, indent=2)))
    write_manifest(folder, _kind(model), model_files(folder))
    for step in _steps(folder):
        _remove(folder, step)


def _kind(model: AutoDistilModel) -> str:
    return "superlm" if model.config.search_space else "student"


def load_finished(folder: Path, model: AutoDistilModel, settings: Settings) -> bool:
    """Load the finished model of `folder` into `model`; returns False if there is none.

    Raises:
        InputError: if the model was made with other settings, which are named, or a file has changed since it was
            written.
    """
    if not verify(folder, own=True) and not (folder / TRAINER_STATE).exists():
        return False
    with readable(folder / TRAINER_STATE):
        refuse_other_settings(read_json(folder / TRAINER_STATE)["settings"], settings, folder)
    if lacking(folder) == [MANIFEST]:  # deleted, or killed before it was written
        verify_by_state(folder)
        warn_of_lacking(folder)
        write_manifest(folder, _kind(model), model_files(folder))
    model.load_state_dict(load_model(folder, AutoDistilModel).state_dict())
    return True


def course_of(folder: Path) -> Course | None:
    """Return the course of the finished training in `folder`; None if there is none."""
    path = folder / TRAINER_STATE
    if not path.is_file():
        return None
    with readable(path):
        state = read_json(path)
        return Course(list(state.get("start", [])), list(state.get("returns", [])), state.get("held_out_loss"))
