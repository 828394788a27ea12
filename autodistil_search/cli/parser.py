"""Parsers of commands: a flag for each setting, values checked, and errors in one line."""

from __future__ import annotations

import os
import re
from argparse import Action, ArgumentTypeError
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter  # type: ignore[attr-defined]

from autodistil_search.base.errors import InputError
from autodistil_search.base.passwords import HIDDEN, names_database, without_password
from autodistil_search.base.user_input import (
    meant,
    parse_number,
    parse_whole_number,
    parse_yaml,
    quoted,
    read_yaml,
)
from autodistil_search.settings.common import GROUPS, flag, groups_of

_LONGEST = 2000
"""Characters of an error."""


class _HelpFormatter(DefaultHelpFormatter):
    """Leaves the lines of an epilog as they are, and lists the commands without a line of its own."""

    def _format_action(self, action: Action) -> str:
        if action.dest == "command":
            return "".join(map(self._format_action, self._iter_indented_subactions(action)))
        return str(super()._format_action(action))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else str(super()._fill_text(text, width, indent))


class CommandParser(ArgumentParser):
    """A parser whose errors are one line and show no password.

    late: Settings whose defaults are those of their class; only those that were given are passed on.
    """

    def __init__(self, description: str | None = None, epilog: str | None = None, **others: Any) -> None:
        super().__init__(
            description=description, epilog=epilog, formatter_class=_HelpFormatter, allow_abbrev=False, **others
        )
        self.late: set[str] = set()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: ARG002 - the base class's
        """Exit with code 2 and one line."""
        words = " ".join(str(message).split())
        if match := re.fullmatch("unrecognized arguments: (.*)", words):
            words = f"unrecognized arguments: {' '.join(self._shown(match[1].split()))}"
        elif match := re.match(r"(?:argument (\S+)|Parser key \"(\w+)\"): ", words):
            name = match[1] or flag(match[2])
            words = f"{name} {words[match.end() :]}" if name.startswith("-") else words[match.end() :]
        if match := re.search(r"invalid choice: '(.*?)'", words):
            commands = [action.choices for action in self._actions if action.dest == "command"]
            words += meant(match[1], commands[0] or () if commands else ())
        self.exit(2, f"autodistil-search: {without_password(words)[:_LONGEST]} (see --help)\n")

    def _shown(self, arguments: Sequence[str]) -> Iterator[str]:
        """Yield arguments that no flag takes, with the flag that may be meant; what a blank split may be a password."""
        has_storage = any(argument.startswith("--storage") or names_database(argument) for argument in self.args)
        for argument in arguments:
            if re.match("--[a-z]", argument):
                yield argument.partition("=")[0] + meant(argument.partition("=")[0], self._option_string_actions)
            else:
                yield HIDDEN if has_storage else argument

    def dump(self, namespace: Any, *options: Any, **others: Any) -> str:
        """Return the settings for `--print_config`."""
        content = namespace.clone()
        if isinstance(content.get("storage"), str):
            content["storage"] = without_password(content["storage"])
        return str(super().dump(content, *options, **others))


class _RefusedError(ArgumentTypeError, ValueError):
    """A value that a flag does not take, on the command line or in a YAML file."""


class _ValueType:
    """The type of a flag's value: reads it, and is named in the help.

    It reads text; other values of a YAML file pass, for the settings' class to check.
    """

    def __init__(self, name: str, read: Callable[[str], Any], allowed: str) -> None:
        self._name, self._read, self._allowed = name, read, allowed

    def __str__(self) -> str:
        return self._name

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if (read := self._read(value)) is None:
            raise _RefusedError(f"{quoted(value)}; allowed: {self._allowed}")
        return read


def _storable(text: str) -> str | None:
    """Return text that a file can hold; None for other text."""
    return text if "\0" not in text and text == text.encode(errors="ignore").decode() else None


as_text = _ValueType("text", _storable, "text in UTF-8")
as_whole_number = _ValueType("whole number", parse_whole_number, "whole numbers (int) of at most 18 digits")
as_number = _ValueType("number", parse_number, "finite numbers (float)")


class _ConfigFile(ActionConfigFile):  # type: ignore[misc]
    """Takes settings from a YAML file, or from YAML text on the command line."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:  # noqa: ARG002
        content, name = _given_yaml(values)
        known = {
            action.dest: action
            for action in parser._actions
            if action.option_strings and action.dest not in ("help", "config", "print_config", "==SUPPRESS==")
        }
        if not isinstance(content, dict):
            raise InputError(f"{name} holds {type(content).__name__}; allowed: settings by name: {', '.join(known)}")
        for key, value in content.items():
            if (action := known.get(key)) is None:
                raise InputError(
                    f"{name} has the unknown setting {quoted(key)}{meant(key, known)}; allowed: {', '.join(known)}"
                )
            if action.nargs == 0 and not isinstance(value, bool):
                raise InputError(f"{name}: {key} {quoted(value)}; allowed: true or false")
            cfg[key] = _taken(action, value, f"{name}: {key}")
        cfg[self.dest] = [*(cfg.get(self.dest) or []), values]


def _taken(action: Any, value: Any, what: str) -> Any:
    """Return the value of a setting in a YAML file as its flag takes it; `what` names it in errors."""
    if action.nargs == "+":
        values = [value] if isinstance(value, str) else value
        if value is not None and not (isinstance(values, list) and all(isinstance(text, str) for text in values)):
            raise InputError(f"{what} {quoted(value)}; allowed: text, or a list of it")
        return values
    try:
        return action.type(value) if action.type and action.nargs is None else value
    except _RefusedError as error:
        raise InputError(f"{what} {error}") from None


def _given_yaml(text: str) -> tuple[Any, str]:
    """Return what `--config` names, or says itself, and what to call it."""
    if not os.path.lexists(text) and ":" in text:
        return parse_yaml(text, "--config"), "--config"
    return read_yaml(Path(text)), f"--config {text}"


def add_positional_and_settings(parser: CommandParser, config: type[Any], positional: str) -> None:
    """Add all settings of `config`, one of them as a positional argument."""
    parser.add_argument(positional, type=as_text, help=helps(config)[positional])
    add_settings(parser, config, {field.name for field in fields(config)} - {positional})


def helps(config: type[Any]) -> dict[str, str | None]:
    """Return the description of each setting, from the docstrings of its class."""
    documented = [entry for base in config.__mro__ for entry in docstring_parser.parse(base.__doc__ or "").params]
    return {entry.arg_name: entry.description for entry in documented}


def add_settings(parser: CommandParser, config: type[Any], names: Container[str] | None = None) -> None:
    """Add a flag for each field of `config`, or those of `names`, with its type, default, group and description."""
    parser.add_argument("--config", action=_ConfigFile, help="A YAML file with any of these settings.")
    chosen = [setting for setting in fields(config) if names is None or setting.name in names]
    types, descriptions, groups = get_type_hints(config), helps(config), groups_of(config)
    for group in GROUPS:
        members = [setting for setting in chosen if groups[setting.name] == group]
        arguments = parser.add_argument_group(group.title) if members else parser
        for setting in members:
            parser.late.add(setting.name)
            _add_setting(arguments, setting.name, types[setting.name], setting.default, descriptions[setting.name])


def _add_setting(arguments: Any, name: str, hint: Any, default: Any, description: str | None) -> None:
    """Add the flag of one setting to a group of arguments."""
    kinds = {get_origin(kind) or kind for kind in (hint, *get_args(hint))}
    if name == "text":  # several files behind one flag, as a shell's *.txt gives them
        arguments.add_argument(flag(name), type=as_text, nargs="+", help=description)
    elif name == "constraint":
        arguments.add_argument(flag(name), type=as_text, action="append", help=description)
    elif bool in kinds:
        arguments.add_argument(flag(name), action="store_true", help=description)
    else:
        kind = as_whole_number if int in kinds else as_number if float in kinds else as_text
        arguments.add_argument(flag(name), type=kind, default=default, help=description)
