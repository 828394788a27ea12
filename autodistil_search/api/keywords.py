"""Functions that take the settings of a command as keywords, or as one object."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import wraps
from inspect import Parameter, Signature
from typing import Any, Protocol, TypeVar, get_type_hints

from autodistil_search.base.errors import InputError
from autodistil_search.settings.common import descriptions, refuse_unknown, steps_of

TOKENS = "tokens"
"""Keyword for the length of a training in tokens, in place of the setting "steps"."""
Result = TypeVar("Result", covariant=True)


class Command(Protocol[Result]):
    """Function that takes the settings of a command as keywords, or as one object."""

    def __call__(self, given: Any = ..., /, **settings: Any) -> Result:
        """Run the command."""


def by_keyword(
    config: type[Any], positional: str = "config", names: Sequence[str] | None = None
) -> Callable[[Callable[..., Result]], Command[Result]]:
    """Return a decorator for a function of a `config`, which makes each setting a keyword of the function.

    The function takes the object of settings first, and its further arguments by keyword. Signature and docstring list
    all settings, so that `help` and editors show them.

    Args:
        config: Class of the settings.
        positional: Name of the positional argument, as on the command line. An object of `config` is also taken there.
        names: Settings of the command; by default all.
    """
    allowed = [setting.name for setting in fields(config)] if names is None else [*names]

    def decorate(function: Callable[..., Result]) -> Command[Result]:
        own = [*inspect.signature(function).parameters][1:]
        settings = [name for name in allowed if name not in own]
        by_tokens = {"steps", "seq_len"} <= {*settings}

        @wraps(function)
        def call(*given: Any, **arguments: Any) -> Result:
            if len(given) > 1:
                raise InputError(
                    f"{function.__name__} has {len(given)} positional arguments; allowed: one, and all others by name"
                )
            for value in given:
                name = "config" if isinstance(value, config) else positional
                if name in arguments:
                    raise InputError(f"{function.__name__} has two values of {name}; allowed: one")
                arguments[name] = value
            if positional in arguments and positional != "config":
                arguments[positional] = _as_text(arguments[positional])
            refuse_unknown(arguments, ["config", *settings, *own, *([TOKENS] if by_tokens else [])])
            others = {name: arguments.pop(name) for name in own if name in arguments}
            if by_tokens and arguments.get(TOKENS) is not None:
                arguments = _in_steps(config, arguments)
            return function(_settings(function.__name__, config, arguments), **others)

        call.__signature__ = _signature(function, config, positional, settings)  # type: ignore[attr-defined]
        call.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n{_described(config, settings)}"
        return call

    return decorate


def _in_steps(config: type[Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with `steps` in place of `tokens`."""
    batch_size, seq_len = (arguments.get(name, getattr(config, name)) for name in ("batch_size", "seq_len"))
    steps, _ = steps_of(arguments, batch_size, seq_len)
    return {**{name: value for name, value in arguments.items() if name != TOKENS}, "steps": steps}


def _as_text(value: Any) -> Any:
    """Return the folder of a run or of another result, or the text of a path; any other value is returned unchanged."""
    value = getattr(value, "folder", value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _settings(name: str, config: type[Any], arguments: Mapping[str, Any]) -> Any:
    """Return the settings of a call of the function `name`: the object `config` of `arguments`, or a new object.

    Raises:
        InputError: for an object and keywords at once, or an object of another class.
    """
    if arguments.get("config") is None:
        return config(**{key: value for key, value in arguments.items() if key != "config"})
    given, *others = arguments["config"], *(key for key in arguments if key != "config")
    if others:
        raise InputError(
            f"{name} has a {config.__name__} and also {', '.join(others)}; allowed: either the object or keywords"
        )
    if not isinstance(given, config):
        raise InputError(f"{name} has settings of type {type(given).__name__}; allowed: a {config.__name__}")
    return given


def _signature(function: Callable[..., Any], config: type[Any], positional: str, settings: Sequence[str]) -> Signature:
    """Return a signature with the positional argument, then a keyword for each setting and for each own argument."""
    signature, hints = inspect.signature(function), get_type_hints(config)
    own = dict([*signature.parameters.items()][1:])
    by_name = {
        setting.name: Parameter(
            setting.name, Parameter.KEYWORD_ONLY, default=setting.default, annotation=hints[setting.name]
        )
        for setting in fields(config)
    }
    of_config = Parameter("config", Parameter.KEYWORD_ONLY, default=None, annotation=f"{config.__name__} | None")
    every = {"config": of_config, **{name: by_name[name] for name in settings}, **own}
    if {"steps", "seq_len"} <= {*settings}:
        every[TOKENS] = Parameter(TOKENS, Parameter.KEYWORD_ONLY, default=None, annotation="str | float | None")
    first = every.pop(positional).replace(kind=Parameter.POSITIONAL_OR_KEYWORD)
    return signature.replace(parameters=[first, *every.values()])


def _described(config: type[Any], settings: Sequence[str]) -> str:
    """Return the descriptions of the settings, from the docstrings of their class."""
    words = descriptions(config)
    lines = [f"    {name}: {words[name]}" for name in settings]
    if {"steps", "seq_len"} <= {*settings}:
        lines.append(f'    {TOKENS}: Tokens to train on, such as "1M", in place of steps; rounded up to whole steps.')
    return "\n".join([f"Settings, as keywords or as a `{config.__name__}`:", *lines])
