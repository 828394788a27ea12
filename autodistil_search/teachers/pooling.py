"""Vectors of sentences from last hidden states: what a sentence-transformers folder says, followed and written.

A folder of sentence-transformers lists its modules in `modules.json`: the encoder, how its states are pooled, and what
comes after that. Students of such a teacher are pooled alike, when they are measured and when they are exported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.utils.hub import cached_file

MODULES = "modules.json"
_POOLING, _NORMALIZE = "1_Pooling", "2_Normalize"
_KIND = "sentence_transformers.models."
_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
"""Modes, in the order in which their vectors are joined, and their keys in a `config.json`."""
_WORDS = {
    "cls": "the first token's state",
    "max": "the maxima over the tokens' states",
    "mean": "the mean of the tokens' states",
    "mean_sqrt_len_tokens": "the sum of the tokens' states by the root of their number",
    "weightedmean": "the mean of the tokens' states, weighted by position",
    "lasttoken": "the last token's state",
}


@dataclass(frozen=True)
class Pooling:
    """How states become a vector.

    Args:
        modes: Keys of `_FLAGS`; the vectors of several are joined.
        normalize: Whether vectors have length 1.
        include_prompt: Whether the tokens of a prompt count.
        stated: Whether the teacher's folder says so; otherwise it is the usual mean, of which an export says nothing.
        note: What of the folder cannot be followed, in words; empty if all can.
    """

    modes: tuple[str, ...] = ("mean",)
    normalize: bool = False
    include_prompt: bool = True
    stated: bool = False
    note: str = ""

    @property
    def words(self) -> str:
        """Return what a vector is, with what cannot be followed."""
        joined = " and ".join(_WORDS[mode] for mode in self.modes)
        return f"{joined}{', scaled to length 1' if self.normalize else ''}{f'; {self.note}' if self.note else ''}"

    def vectors(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return a vector for each row, `(n, H)` for each of the modes, joined.

        Args:
            states: `(n, T, H)` last hidden states.
            mask: `(n, T)`, 1 for tokens and 0 for padding, which comes last.
        """
        real = mask[..., None].to(states.dtype)
        joined = torch.cat([_MODES[mode](states, real) for mode in self.modes], dim=-1)
        return functional.normalize(joined, dim=-1) if self.normalize else joined

    def write(self, folder: Path, hidden_size: int, max_length: int) -> None:
        """Write it into an encoder's folder, as sentence-transformers of all versions read it.

        hidden_size: of the encoder; max_length: tokens of a text at most.
        """
        modules = [("", "Transformer"), (_POOLING, "Pooling"), *([(_NORMALIZE, "Normalize")] * self.normalize)]
        listed = [
            {"idx": index, "name": str(index), "path": path, "type": f"{_KIND}{kind}"}
            for index, (path, kind) in enumerate(modules)
        ]
        flags = {flag: mode in self.modes for mode, flag in _FLAGS.items()}
        settings = {"word_embedding_dimension": hidden_size, **flags, "include_prompt": self.include_prompt}
        for path, _ in modules[1:]:
            (folder / path).mkdir()
        _write(folder / MODULES, listed)
        _write(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
        _write(folder / _POOLING / "config.json", settings)
        if self.normalize:
            _write(folder / _NORMALIZE / "config.json", {})


def read_pooling(name: str) -> Pooling:
    """Return what the folder or hub id of a teacher says of its sentence vectors; the usual mean if it says nothing."""
    modules = _read(name, MODULES)
    if modules is None:
        return Pooling()
    try:
        listed = [(str(module["type"]), str(module["path"])) for module in modules]
    except (TypeError, LookupError):
        return _unfollowed(f"its {MODULES} is damaged")
    found, others = Pooling(stated=True), []
    pooled = False
    for kind, path in listed[1:]:
        module = kind.rpartition(".")[2] if kind.startswith("sentence_transformers.") else kind
        if module == "Pooling" and not pooled and ".." not in Path(path).parts and not Path(path).is_absolute():
            found, pooled = _of_config(_read(name, f"{path}/config.json")), True
        elif module == "Normalize" and pooled:
            found = Pooling(found.modes, True, found.include_prompt, True, found.note)
        else:
            others.append(kind)
    if others:
        return _unfollowed(f"its {MODULES} lists {', '.join(others)}")
    return found if pooled else _unfollowed(f"its {MODULES} lists no Pooling")


def _of_config(config: Any) -> Pooling:
    if not isinstance(config, Mapping):
        return _unfollowed("its Pooling has no settings")
    stated = config.get("pooling_mode")
    if stated is None:
        modes = tuple(mode for mode, flag in _FLAGS.items() if config.get(flag)) or ("mean",)
    else:
        modes = (stated,) if isinstance(stated, str) else tuple(stated) if isinstance(stated, list) else ("",)
    unknown = [repr(mode) for mode in modes if not isinstance(mode, str) or mode not in _FLAGS]
    unknown += [
        key for key, value in config.items() if key.startswith("pooling_mode_") and value and key not in _FLAGS.values()
    ]
    if unknown or not modes:
        return _unfollowed(f"its Pooling has mode {', '.join(unknown) or 'none'}")
    return Pooling(modes, include_prompt=bool(config.get("include_prompt", True)), stated=True)


def _unfollowed(why: str) -> Pooling:
    return Pooling(note=f"the teacher's own cannot be followed: {why}")


def _read(name: str, path: str) -> Any:
    """Return the content of a JSON file of a folder or hub id; None if there is none, or it is damaged."""
    try:
        local = Path(name, path)
        found = local if Path(name).is_dir() else _of_hub(name, path)
        return None if found is None else json.loads(Path(found).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {} if path == MODULES and Path(name, path).is_file() else None


def _of_hub(name: str, path: str) -> str | None:
    found: str | None = cached_file(
        name,
        path,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _weighted(states: Tensor, real: Tensor) -> Tensor:
    weights = real * torch.arange(1, states.shape[1] + 1, device=states.device, dtype=states.dtype)[:, None]
    return (states * weights).sum(1) / weights.sum(1)


def _last(states: Tensor, real: Tensor) -> Tensor:
    last = real[..., 0].sum(1).long() - 1
    return states[torch.arange(len(states), device=states.device), last]


_MODES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": lambda states, _: states[:, 0],
    "max": lambda states, real: states.masked_fill(real == 0, float("-inf")).max(dim=1).values,
    "mean": lambda states, real: (states * real).sum(1) / real.sum(1),
    "mean_sqrt_len_tokens": lambda states, real: (states * real).sum(1) / real.sum(1).sqrt(),
    "weightedmean": _weighted,
    "lasttoken": _last,
}
