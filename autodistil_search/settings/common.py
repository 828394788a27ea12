"""The common part of all settings: groups, constraints, and one check that reads them from the annotations.

A setting declares all that is known of it where it is declared: its kind and range (`annotated_types`), its group, and
its meaning in the docstring of its class. Flags, help, YAML files and checks follow from there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import docstring_parser
import yaml
from annotated_types import Ge, Gt, Le, MinLen

from autodistil_search.base.errors import InputError
from autodistil_search.base.user_input import LARGEST, meant, quoted
from autodistil_search.nas.objectives import parse_amount

if TYPE_CHECKING:
    from pydantic import TypeAdapter


@dataclass(frozen=True)
class Group:
    """Settings that belong together in help, docs and YAML files."""

    title: str


@dataclass(frozen=True)
class Known:
    """Words that completion offers for a setting that may also have other values."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class Usual:
    """Setting that `--help` shows; `--help-all` shows the others, too.

    letter: short flag, the same in every command that has the setting.
    """

    letter: str | None = None


@dataclass(frozen=True)
class Placeholder:
    """Word that stands for the value of a setting in the help; by default N, NUMBER or TEXT."""

    word: str


SPACE = Group("space")
DATA = Group("data and teacher")
TRAINING = Group("training")
SEARCH = Group("objectives and engine")
MEASUREMENT = Group("measurement")
OUTPUT = Group("machine and output")
GROUPS = (SPACE, DATA, TRAINING, SEARCH, MEASUREMENT, OUTPUT)
"""In the order in which they are shown."""

MANY = 10**6
"""Upper limit of what a machine holds in memory at once."""

Count = Annotated[int, Ge(1), Le(MANY)]
Steps = Annotated[int, Ge(1), Le(LARGEST)]
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
Rows = Annotated[int, Ge(2), Le(LARGEST)]
Rate = Annotated[float, Gt(0)]
Name = Annotated[str, MinLen(1), Placeholder("NAME")]
"""Text that names something, such as a model, a task or a file."""
Names = Annotated[str, Placeholder("NAMES")]
"""Names, separated by commas."""
Folder = Annotated[str, MinLen(1), Placeholder("FOLDER")]
Columns = Annotated[str, Placeholder("COLUMNS")]
Device = Annotated[str, MinLen(1), Known(("auto", "cpu", "cuda", "mps", "xpu")), Placeholder("DEVICE")]
"""Checked by `base.device.choose_device`, because torch knows the devices of a machine."""
Precision = Literal["auto", "fp32", "bf16", "fp16"]

CHANGES_NOTHING = ("out", "accumulate", "held_out_every", "keep", "track", "executor", "workers")
"""Settings that leave every number as it is, but for rounding: a run may be continued with others."""


def check_settings(config: Any) -> None:
    """Refuse settings that their annotations do not allow.

    One text in place of a list of texts is taken for the only one, and a path for its text.

    Raises:
        InputError: naming the flag and what is allowed.
    """
    hints = get_type_hints(type(config), include_extras=True)
    for setting in fields(config):
        value = getattr(config, setting.name)
        if value is not None or setting.default is not None:
            checked = check_value(flag(setting.name), value, hints[setting.name], setting.default)
            object.__setattr__(config, setting.name, checked)


def refuse_unknown(names: Iterable[str], known: Sequence[str]) -> None:
    """Refuse settings by names that are not `known`.

    Raises:
        InputError: for the first unknown name, with the nearest known name.
    """
    for name in names:
        if name not in known:
            raise InputError(f"unknown setting {quoted(name)}{meant(name, known)}; allowed: {', '.join(known)}")


def check_executor(executor: str | None, workers: int | None) -> None:
    """Refuse an executor that `executors.open_executor` does not know.

    Raises:
        InputError: naming the flag and what is allowed.
    """
    kind, _, address = (executor or "").partition(":")
    if executor is not None and (kind != "dask" or (":" in executor and not address)):
        raise InputError(
            f"--executor {quoted(executor)}; allowed: dask (a local cluster), or dask:ADDRESS with the address of a "
            "scheduler such as tcp://host:8786, or its .json file"
        )
    if workers is not None and executor != "dask":
        raise InputError(f"--workers {workers} without a local cluster; allowed: with --executor dask")


def check_value(name: str, value: Any, hint: Any, example: Any = None) -> Any:
    """Return `value` as the annotation `hint` has it; paths become text.

    Args:
        name: The flag that an error begins with.
        value: What was given.
        hint: A type, `Annotated` with constraints where it has some.
        example: A text that is allowed, for the error.

    Raises:
        InputError: if the annotation does not allow it.
    """
    from pydantic import ValidationError

    try:
        if list in _kinds(hint):
            value = [_text(text) for text in (value if isinstance(value, list | tuple) else [value])]
        elif str in _kinds(hint):
            value = _text(value)
        return _adapter(hint).validate_python(value)
    except (ValidationError, ValueError):
        words = _words(hint)
        near = meant(value, words).strip(" ()") if words else ""
        got = "; ".join(filter(None, [f"got {quoted(value)}", near]))
        raise InputError(f"{name} must be {_allowed(hint, value, example)} ({got})") from None


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False))


def _text(value: object) -> str:
    """Return text that a file can hold, or the text of a path."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or "\0" in text or text != text.encode(errors="ignore").decode():
        raise ValueError("no text that a file can hold")
    return text


def _parts(hint: Any) -> Iterator[Any]:
    """Yield a type and its parts, metadata included."""
    yield hint
    if get_origin(hint) is not Literal:
        for part in get_args(hint):
            yield from _parts(part)


def _kinds(hint: Any) -> set[Any]:
    return {get_origin(part) or part for part in _parts(hint)}


def _words(hint: Any) -> tuple[str, ...]:
    """Return the words of a closed list; none for other types."""
    return next((get_args(part) for part in _parts(hint) if get_origin(part) is Literal), ())


def _allowed(hint: Any, value: Any, example: Any) -> str:
    """Return the values that an annotation allows, in words."""
    kinds = _kinds(hint)
    limits = {type(part): part for part in _parts(hint) if isinstance(part, Ge | Gt | Le)}
    least, above, most = (getattr(limits.get(kind), name, None) for kind, name in ((Ge, "ge"), (Gt, "gt"), (Le, "le")))
    if words := _words(hint):
        return f"one of {', '.join(words)}"
    if list in kinds:
        return "one or more texts"
    if str in kinds:
        text = "text that is not empty" if value == "" else "text"
        return text if example is None else f"{text}, such as {example!r}"
    if bool in kinds:
        return "true or false"
    if int in kinds:
        to = f" to {most}" if isinstance(value, int) and most is not None and value > most else ""
        return f"a whole number from {least}{to}"
    if above is not None:
        return f"a number above {above}"
    return f"a number from {least}" + ("" if most is None else f" to {most}")


def groups_of(config: type[Any]) -> dict[str, Group]:
    """Return the group that each setting of a class declares."""
    hints = get_type_hints(config, include_extras=True)
    return {
        setting.name: next(part for part in _parts(hints[setting.name]) if isinstance(part, Group))
        for setting in fields(config)
    }


def steps_of(settings: Mapping[str, Any], batch_size: int, seq_len: int) -> tuple[int, str]:
    """Return the steps of a training whose length is given in tokens, and a sentence that says so.

    Args:
        settings: Settings with `tokens`, an amount such as 1M or 26e9.
        batch_size: Blocks in a step.
        seq_len: Tokens in a block.

    Raises:
        InputError: if `tokens` is no amount, or `steps` are given, too.
    """
    given = settings["tokens"]
    if settings.get("steps") is not None:
        raise InputError(f"--steps {settings['steps']} with --tokens {given}; allowed: one of them")
    tokens = parse_amount(given, "--tokens")
    assert tokens is not None
    steps = steps_for(tokens, batch_size, seq_len)
    exact = steps * batch_size * seq_len
    rounded = "" if exact == tokens else ", rounded up"
    return steps, f"--tokens {given}: {steps:,} steps of {batch_size} x {seq_len} tokens, {exact:,} tokens{rounded}"


def steps_for(tokens: float, batch_size: int, seq_len: int) -> int:
    """Return the number of steps, at least one, that train on at least as many tokens."""
    return max(1, math.ceil(tokens / (batch_size * seq_len)))


def descriptions(config: type[Any]) -> dict[str, str]:
    """Return the description of each setting in one line, from the docstrings of its class."""
    entries = [
        entry for base in reversed(config.__mro__) for entry in docstring_parser.parse(base.__doc__ or "").params
    ]
    return {entry.arg_name: " ".join((entry.description or "").split()) for entry in entries}


def usual_settings(config: type[Any]) -> dict[str, Usual]:
    """Return the settings of a class that `--help` shows, each with its short flag."""
    hints = get_type_hints(config, include_extras=True)
    marks = {
        name: next((part for part in _parts(hint) if isinstance(part, Usual)), None) for name, hint in hints.items()
    }
    return {name: mark for name, mark in marks.items() if mark is not None}


def placeholders(config: type[Any]) -> dict[str, str]:
    """Return the word that stands for the value of each setting in the help; closed lists show their words."""
    hints = get_type_hints(config, include_extras=True)
    return {setting.name: _placeholder(hints[setting.name]) for setting in fields(config)}


def _placeholder(hint: Any) -> str:
    kinds = _kinds(hint)
    if words := _words(hint):
        return "{" + ",".join(words) + "}"
    given = [part.word for part in _parts(hint) if isinstance(part, Placeholder)]
    return given[-1] if given else "N" if int in kinds else "NUMBER" if float in kinds else "TEXT"


def grouped_yaml(config: type[Any], settings: Mapping[str, Any]) -> str:
    """Return settings as YAML, group by group under a comment with the group's title.

    Args:
        config: Their class.
        settings: Values by name, as the class's `to_dict` gives them.
    """
    parts, groups = [], groups_of(config)
    for group in GROUPS:
        members = {name: value for name, value in settings.items() if groups[name] == group}
        if members:
            parts.append(f"# {group.title}\n{yaml.safe_dump(members, sort_keys=False)}")
    return "\n".join(parts)


def choices(config: type[Any]) -> dict[str, tuple[str, ...]]:
    """Return the words of each setting that has a closed list, or a list of known words."""
    hints = get_type_hints(config, include_extras=True)
    known = {
        name: next((part.words for part in _parts(hint) if isinstance(part, Known)), ()) for name, hint in hints.items()
    }
    return {name: words for name, hint in hints.items() if (words := _words(hint) or known[name])}


def column_names(text: str | None) -> list[str] | None:
    """Return names of a table's columns, separated by commas; None if none are given."""
    return None if text is None else [name.strip() for name in text.split(",")]


def resolved(path: str) -> str:
    """Return the absolute path, also of what is not there."""
    try:
        return str(Path(path).resolve())
    except (OSError, ValueError, RuntimeError):  # a name that no file can have; opening it tells
        return path


def flag(name: str) -> str:
    """Return the command-line flag of a setting."""
    return "--" + name.replace("_", "-")
