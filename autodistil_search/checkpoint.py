"""Checkpoints of a training run: a reader finds the old one or the new one, never a part of one."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from autodistil_search.files import (
    Settings,
    move_into_place,
    read_json,
    readable,
    refuse_other_settings,
    write_atomically,
)
from autodistil_search.model import AutoDistilModel, quiet_transformers

_CHECKPOINT = "trainer.safetensors"
_FINISHED = "trainer_state.json"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_SHARE_OF_TIME = 0.05
"""Saving may take this share of the time; so a killed run loses at most 20 times as long as a checkpoint takes."""


class Saver:
    """Saves as often as it stays cheap, and after the last step."""

    def __init__(
        self, folder: Path, model: AutoDistilModel, optimizer: torch.optim.Optimizer, settings: Settings
    ) -> None:
        self._folder, self._model, self._optimizer, self._settings = folder, model, optimizer, settings
        self._last, self._took = time.monotonic(), 0.0

    def step_done(self, step: int) -> None:
        """Save after `step` steps, if it is time."""
        start = time.monotonic()
        if self._took > _SHARE_OF_TIME * (start - self._last):
            return
        save_checkpoint(self._folder, self._model, self._optimizer, self._settings, step)
        self._last = time.monotonic()
        self._took = self._last - start


def save_checkpoint(
    folder: Path, model: AutoDistilModel, optimizer: torch.optim.Optimizer, settings: Settings, step: int
) -> None:
    """Write weights, AdamW's moments and the number of steps done to one file."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        tensors |= {f"{key}.{name}": tensor for key, tensor in optimizer.state.get(parameter, {}).items()}
    metadata = {"step": str(step), "settings": json.dumps(dict(settings))}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_atomically(folder / _CHECKPOINT, lambda path: save_file(contiguous, path, metadata=metadata))


def load_checkpoint(folder: Path, model: AutoDistilModel, optimizer: torch.optim.Optimizer, settings: Settings) -> int:
    """Restore what `save_checkpoint` wrote; returns the number of steps done, 0 if there is no checkpoint.

    Raises:
        InputError: if it was made with other settings; names them.
    """
    path = folder / _CHECKPOINT
    if not path.exists():
        return 0
    with readable(path), safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        refuse_other_settings(json.loads(metadata["settings"]), settings, folder)
        names = set(file.keys())
        model.load_state_dict({name: file.get_tensor(f"model.{name}") for name in model.state_dict()})
        for name, parameter in model.named_parameters():
            if f"exp_avg.{name}" in names:  # a parameter that no subnet used yet has no moments
                optimizer.state[parameter] = {
                    key: file.get_tensor(f"{key}.{name}").to(parameter.device) for key in _MOMENTS
                }
        return int(metadata["step"])


def finish(folder: Path, model: AutoDistilModel, steps: int, settings: Settings) -> None:
    """Write the model as `save_pretrained` does, then the file that says it is complete; drop the checkpoint."""
    temporary = folder / ".final"
    with quiet_transformers():
        try:
            model.save_pretrained(temporary)
        except SafetensorError as error:
            raise OSError(f"{folder} cannot be written: {error}") from None
    for file in temporary.iterdir():
        move_into_place(file, folder / file.name)
    temporary.rmdir()
    state = {"step": steps, "settings": dict(settings)}
    write_atomically(folder / _FINISHED, lambda path: path.write_text(json.dumps(state, indent=2)))
    (folder / _CHECKPOINT).unlink(missing_ok=True)


def load_finished(folder: Path, model: AutoDistilModel, settings: Settings) -> bool:
    """Load the finished model of `folder` into `model`; False if there is none.

    Raises:
        InputError: if it was made with other settings; names them.
    """
    if not (folder / _FINISHED).exists() or not (folder / "model.safetensors").exists():
        return False
    with readable(folder / _FINISHED):
        refuse_other_settings(read_json(folder / _FINISHED)["settings"], settings, folder)
    with readable(folder / "model.safetensors"):
        model.load_state_dict(load_file(folder / "model.safetensors"))
    return True
