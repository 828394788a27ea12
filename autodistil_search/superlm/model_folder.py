"""The only loader of SuperLMs and students. Files are verified before any weight is used."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from autodistil_search.base.errors import InputError
from autodistil_search.base.files import read_json, readable, write_together
from autodistil_search.base.manifest import MODEL_TYPE, TRAINER_STATE, add_to_manifest, lacking, sha256_of, verify
from autodistil_search.base.pretrained import load_tokenizer, quiet_transformers, write_tokenizer
from autodistil_search.superlm.model import AutoDistilConfig, AutoDistilForSequenceClassification, AutoDistilModel

WEIGHTS = "model.safetensors"
_LAST_OF_TOKENIZER = "tokenizer_config.json"


def check_weights(model: nn.Module) -> None:
    """Raise FloatingPointError if a weight of `model` is not finite, with the name of the first such parameter."""
    parameters = dict(model.named_parameters())
    finite = torch.stack([torch.isfinite(parameter).all() for parameter in parameters.values()])
    for name, is_finite in zip(parameters, finite.tolist(), strict=True):  # one wait for the device in all
        if not is_finite:
            raise FloatingPointError(f"weights of {name} are not finite")


_Model = TypeVar("_Model", AutoDistilModel, AutoDistilForSequenceClassification)


def load_model(folder: Path, kind: type[_Model]) -> _Model:
    """Return the SuperLM or student in `folder`, in evaluation mode.

    Files are verified against the manifest. In a folder without a manifest, the weights are verified against the
    digest that training recorded. Weights are read only from safetensors, in float32.

    kind: model class, with or without a head. An encoder can also be read from the folder of a classifier.

    Raises:
        InputError: if a file has changed since it was written, or the weights do not match the configuration.
    """
    if not verify(folder, ("config.json", "*.safetensors")):
        verify_by_state(folder)
    path = folder / "config.json"
    if (model_type := read_json(path).get("model_type")) != MODEL_TYPE:
        raise InputError(f"{path} has model type {model_type!r}; allowed: {MODEL_TYPE!r}, a student or a SuperLM")
    with quiet_transformers():
        with readable(path):
            config = AutoDistilConfig.from_pretrained(folder)
        with readable(folder / WEIGHTS):
            model, loading = kind.from_pretrained(
                folder, config=config, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    _refuse_other_weights(folder, "lacks", loading["missing_keys"])
    strangers = [name for name in loading["unexpected_keys"] if not name.startswith("classifier.")]
    _refuse_other_weights(folder, "has in excess", strangers)
    try:
        check_weights(model)
    except FloatingPointError as error:
        raise InputError(f"{folder / WEIGHTS}: {error}; allowed: finite weights") from None
    loaded: _Model = model.eval()
    return loaded


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the tokenizer beside the finished model in `folder` and into its manifest, unless it is there already."""
    if (folder / _LAST_OF_TOKENIZER).exists() and not lacking(folder):
        return
    names: list[str] = []

    def write(new: Path) -> None:
        write_tokenizer(tokenizer, new)
        names.extend(path.name for path in new.iterdir())

    write_together(folder, "tokenizer.json", write, last=_LAST_OF_TOKENIZER)
    add_to_manifest(folder, names)


def load_own_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer that `save_tokenizer` wrote; None for a folder without one.

    Raises:
        InputError: if a file of the tokenizer has changed or cannot be read.
    """
    verify(folder, ("tokenizer*", "*.txt", "*.model"))
    if not (folder / _LAST_OF_TOKENIZER).exists():
        return None
    with quiet_transformers():
        return load_tokenizer(f"model {str(folder)!r}", str(folder))


def verify_by_state(folder: Path) -> None:
    """Verify the weights of a folder without a manifest against the digest that training recorded, if it did.

    Raises:
        InputError: if the weights have another digest.
    """
    state = folder / TRAINER_STATE
    if not state.is_file() or not (folder / WEIGHTS).is_file():
        return
    with readable(state):
        expected = str(read_json(state)["sha256"])
    if sha256_of(folder / WEIGHTS) != expected:
        raise InputError(
            f"{folder / WEIGHTS} is not the file that training wrote; restore it from a copy, or delete the folder "
            "and repeat the command that trained it"
        )


def _refuse_other_weights(folder: Path, what: str, names: Collection[str]) -> None:
    if names:
        raise InputError(
            f"{folder / WEIGHTS} {what} {len(names)} weights, {min(names)!r} first; allowed: those of its config.json"
        )
