"""What all settings share: their flags, their checks, and the words they allow."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from autodistil_search.base.errors import InputError
from autodistil_search.base.user_input import LARGEST, is_finite, meant, quoted

_LARGEST_SEED = 2**32 - 1

_MANY = 10**6
"""More of what is in memory at once, no machine has room for."""
_RANGES = {
    "evaluations": (1, LARGEST),
    "population": (2, _MANY),
    "seq_len": (8, _MANY),
    "latency_batch": (1, _MANY),
    "throughput_batch": (1, _MANY),
    "measured_seq_len": (1, _MANY),
    "latency_samples": (2, _MANY),
    "eval_blocks": (1, _MANY),
    "relation_heads": (1, _MANY),
    "random_subnets": (0, _MANY),
    "teacher_layer": (-_MANY, _MANY),
    "steps": (1, LARGEST),
    "batch_size": (1, _MANY),
    "accumulate": (1, _MANY),
    "worker_timeout": (1, _MANY),
    "held_out_every": (0, LARGEST),
    "keep": (1, _MANY),
    "seed": (0, _LARGEST_SEED),
    "search_seed": (0, _LARGEST_SEED),
    "epochs": (1, _MANY),
    "seeds": (1, _MANY),
    "train_rows": (2, LARGEST),
    "proxy_rows": (2, LARGEST),
    "proxy_epochs": (1, _MANY),
    "subnets": (2, _MANY),
    "bands": (1, _MANY),
    "alone_steps": (0, LARGEST),
    "max_length": (4, _MANY),
}
"""Least and most of each whole number."""

CHANGES_NOTHING = ("out", "accumulate", "held_out_every", "keep", "tensorboard", "worker_timeout")
"""Settings that leave every number as it is, but for rounding: a run may be continued with others."""


def column_names(text: str | None) -> list[str] | None:
    """Names of a table's columns, separated by commas; None if none are given."""
    return None if text is None else [name.strip() for name in text.split(",")]


def is_positive(value: Any) -> bool:
    """Whether `value` is a finite number above 0."""
    return is_finite(value) and value > 0


def check_settings(config: Any) -> None:
    """Refuse settings of another kind than their field has, outside its closed list or its range of whole numbers.

    One text in place of a list of texts is taken for the only one, and a path for its text.

    Raises:
        InputError: naming the flag and what is allowed.
    """
    words, hints = choices(type(config)), get_type_hints(type(config))
    for setting in fields(config):
        name, value = setting.name, getattr(config, setting.name)
        if value is None and setting.default is None:
            continue
        kinds = {get_origin(kind) or kind for kind in (hints[name], *get_args(hints[name]))}
        if name in words:
            if value not in words[name]:
                allowed = ", ".join(words[name])
                raise InputError(f"{flag(name)} {quoted(value)}{meant(value, words[name])}; allowed: {allowed}")
        elif list in kinds:
            texts = list(value) if isinstance(value, list | tuple) else [value]
            if not all(_is_text(text) for text in texts):
                raise InputError(f"{flag(name)} {quoted(value)}; allowed: one or more texts")
            object.__setattr__(config, name, [os.fspath(text) for text in texts])
        elif str in kinds:
            if not _is_text(value):
                such = "" if setting.default is None else f", such as {setting.default!r}"
                raise InputError(f"{flag(name)} {quoted(value)}; allowed: text{such}")
            object.__setattr__(config, name, os.fspath(value))
        elif bool in kinds:
            if not isinstance(value, bool):
                raise InputError(f"{flag(name)} {quoted(value)}; allowed: true or false")
        elif int in kinds:
            check_whole_number(flag(name), value, *_RANGES[name])


def _is_text(value: object) -> bool:
    """Return whether `value` is text that a file can hold, or a path."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    return isinstance(text, str) and "\0" not in text and text == text.encode(errors="ignore").decode()


def check_whole_number(name: str, value: object, least: int, most: int = LARGEST) -> None:
    """Refuse what is no whole number from `least` to `most`; the error begins with `name`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        to = f" to {most}" if isinstance(value, int) and value > most else ""
        raise InputError(f"{name} {quoted(value)}; allowed: whole numbers from {least}{to}")


def choices(config: type[Any]) -> dict[str, tuple[str, ...]]:
    """The allowed words of each setting that has a closed list."""
    found = {}
    for name, hint in get_type_hints(config).items():
        for part in (hint, *get_args(hint)):
            if get_origin(part) is Literal:
                found[name] = get_args(part)
    return found


def resolved(path: str) -> str:
    """Return the absolute path, of what is not there, too."""
    try:
        return str(Path(path).resolve())
    except (OSError, ValueError, RuntimeError):  # a name no file can have; who opens it says so
        return path


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")
