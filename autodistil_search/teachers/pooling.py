"""Sentence vectors from last hidden states: pooling settings of sentence-transformers folders, read and written.

A folder of sentence-transformers lists its modules in `modules.json`: the encoder, the pooling of its states, and
later modules. Students of such a teacher use its pooling, in measurements and in exports.
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
"""Pooling modes, in the order in which their vectors are joined, and their keys in a `config.json`."""
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
    """Pooling of last hidden states into a sentence vector.

    Args:
        modes: Keys of `_FLAGS`; the vectors of several modes are joined.
        normalize: True if vectors are scaled to length 1.
        include_prompt: True if the tokens of a prompt count.
        stated: True if the teacher's folder states its pooling. Otherwise the usual mean is used, and an export states
            no pooling.
        note: Reason why the folder's own pooling is not supported; empty if it is.
    """

    modes: tuple[str, ...] = ("mean",)
    normalize: bool = False
    include_prompt: bool = True
    stated: bool = False
    note: str = ""

    @property
    def words(self) -> str:
        """Return a description of the vectors, with the note."""
        joined = " and ".join(_WORDS[mode] for mode in self.modes)
        return f"{joined}{', scaled to length 1' if self.normalize else ''}{f'; {self.note}' if self.note else ''}"

    def vectors(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return a vector for each row, `(n, H)` with one mode; the vectors of several modes are joined.

        Args:
            states: Last hidden states, `(n, T, H)`.
            mask: `(n, T)`, 1 for tokens and 0 for padding, which comes last.
        """
        real = mask[..., None].to(states.dtype)
        joined = torch.cat([_MODES[mode](states, real) for mode in self.modes], dim=-1)
        return functional.normalize(joined, dim=-1) if self.normalize else joined

    def write(self, folder: Path, hidden_size: int, max_length: int) -> None:
        """Write the pooling into an encoder's folder, in a form that all versions of sentence-transformers read.

        hidden_size: hidden size of the encoder. max_length: largest number of tokens of a text.
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
    """Return the pooling that a teacher's folder or hub id states; the usual mean if it states none."""
    modules = _read(name, MODULES)
    if modules is None:
        return Pooling()
    try:
        listed = [(str(module["type"]), str(module["path"])) for module in modules]
    except (TypeError, LookupError):
        return _not_supported(f"its {MODULES} is damaged")
    pooling, others = Pooling(stated=True), []
    pooled = False
    for kind, path in listed[1:]:
        module = kind.rpartition(".")[2] if kind.startswith("sentence_transformers.") else kind
        if module == "Pooling" and not pooled and ".." not in Path(path).parts and not Path(path).is_absolute():
            pooling, pooled = _pooling_of_config(_read(name, f"{path}/config.json")), True
        elif module == "Normalize" and pooled:
            pooling = Pooling(pooling.modes, True, pooling.include_prompt, True, pooling.note)
        else:
            others.append(kind)
    if others:
        return _not_supported(f"its {MODULES} lists {', '.join(others)}")
    return pooling if pooled else _not_supported(f"its {MODULES} lists no Pooling")


def _pooling_of_config(config: Any) -> Pooling:
    if not isinstance(config, Mapping):
        return _not_supported("its Pooling has no settings")
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
        return _not_supported(f"its Pooling has mode {', '.join(unknown) or 'none'}")
    return Pooling(modes, include_prompt=bool(config.get("include_prompt", True)), stated=True)


def _not_supported(why: str) -> Pooling:
    return Pooling(note=f"the teacher's own pooling is not supported: {why}")


def _read(name: str, path: str) -> Any:
    """Return the content of a JSON file of a folder or hub id; None if the file is missing or damaged.

    A damaged `modules.json` of a folder is returned as an empty dictionary.
    """
    try:
        local = Path(name, path)
        file = local if Path(name).is_dir() else _cached_from_hub(name, path)
        return None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {} if path == MODULES and Path(name, path).is_file() else None


def _cached_from_hub(name: str, path: str) -> str | None:
    file: str | None = cached_file(
        name,
        path,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return file


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
