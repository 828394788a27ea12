"""Parsers of commands: a flag for each setting, values checked, short help, and errors in one line."""

from __future__ import annotations

import copy
import os
import re
import sys
from argparse import (
    SUPPRESS,
    Action,
    ArgumentParser,
    ArgumentTypeError,
    BooleanOptionalAction,
    HelpFormatter,
    Namespace,
)
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from autodistil_search.base.errors import InputError
from autodistil_search.base.passwords import HIDDEN, names_database, without_password
from autodistil_search.base.standard_streams import discard
from autodistil_search.base.user_input import (
    meant,
    parse_number,
    parse_whole_number,
    parse_yaml,
    quoted,
    read_yaml,
)
from autodistil_search.settings.common import (
    GROUPS,
    descriptions,
    flag,
    grouped_yaml,
    groups_of,
    placeholders,
    steps_of,
    usual_settings,
)
from autodistil_search.settings.recipes import PRESETS, read_preset, recipe_path, shipped_recipes, summary

_LONGEST = 2000
"""Characters of an error."""
_LAYERS = "layers"
"""Where a parsed command line keeps its YAML files and presets, in their order."""
_NO_SETTINGS = ("help", "help_all", "version", "config", "preset", "print_config")
"""Flags that are no settings of a YAML file."""


class _HelpFormatter(HelpFormatter):
    """Names the value of a flag once, keeps given line ends, and lists the commands without a line of their own."""

    def _format_action(self, action: Action) -> str:
        if action.dest == "command":
            return "".join(map(self._format_action, self._iter_indented_subactions(action)))
        return super()._format_action(action)

    def _format_action_invocation(self, action: Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        value = "" if action.nargs == 0 else f" {self._format_args(action, action.dest.upper())}"
        return ", ".join(name for name in action.option_strings if not name.startswith("--no-")) + value

    def _format_args(self, action: Action, default_metavar: str) -> str:
        words = super()._format_args(action, default_metavar)
        return words.replace(f"{action.metavar} [{action.metavar} ...]", f"{action.metavar} ...")

    def _split_lines(self, text: str, width: int) -> list[str]:
        first, *rest = text.split("\n")
        return [*super()._split_lines(first, width), *rest]

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class _Help(Action):
    """Prints the help, with all flags if the flag is `--help-all`, and exits."""

    def __call__(self, parser: ArgumentParser, *_: Any, **__: Any) -> None:
        assert isinstance(parser, CommandParser)
        try:
            print(parser.format_help(everything=self.dest == "help_all"), end="", flush=True)
        except BrokenPipeError:  # the reader has ended on purpose, as `| head` does
            discard(sys.stdout)
        parser.exit()


class _Layer(Action):
    """Adds a YAML file or a preset to the layers of settings below the flags."""

    def __call__(self, _: ArgumentParser, namespace: Namespace, values: Any, __: str | None = None) -> None:
        layers: list[tuple[str, str]] = getattr(namespace, _LAYERS, [])
        setattr(namespace, _LAYERS, [*layers, (self.dest, values)])


class CommandParser(ArgumentParser):
    """Parser whose errors are one line and show no password.

    Only what was given is parsed. Settings are completed by their class, other flags by `defaults`.

    Attributes:
        config: Class of the settings; None for a command without.
        defaults: Defaults of flags that are no settings of `config`.
        needed: Positional settings, which must be given on the command line or in a YAML file.
        hidden: Flags that only `--help-all` shows.
    """

    def __init__(self, description: str | None = None, epilog: str | None = None, **others: Any) -> None:
        self.config: type[Any] | None = None
        self.defaults: dict[str, Any] = {}
        self.needed: list[str] = []
        self.hidden: set[str] = set()
        super().__init__(
            description=description,
            epilog=epilog,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
            argument_default=SUPPRESS,
            add_help=False,
            **others,
        )
        self._positionals.title, self._optionals.title = "arguments", "options"
        self.add_argument("-h", "--help", action=_Help, nargs=0, help="Show this help.")

    def add_argument(self, *names: str, default: Any = None, **options: Any) -> Action:  # type: ignore[override]
        """Add a flag or a positional argument, with the default that its command gets if it is not given."""
        action = super().add_argument(*names, **options)
        if action.dest not in (*_NO_SETTINGS, *self.needed):
            self.defaults[action.dest] = False if action.nargs == 0 else default
        return action

    def format_help(self, everything: bool = False) -> str:
        """Return the help: the usual flags with the first sentence of each, or all flags in groups."""
        formatter = self._get_formatter()
        formatter.add_usage(self._usage(), [], [])
        formatter.add_text(self.description)
        for title, description, actions in self._sections(everything):
            formatter.start_section(title)
            formatter.add_text(description)
            formatter.add_arguments(actions)
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def _usage(self) -> str:
        words = [self.prog]
        for action in self._actions:
            if action.dest == "command":
                words.append("COMMAND ...")
            elif action.required or not action.option_strings:
                formatted = self._get_formatter()._format_args(action, action.dest.upper())
                shown = str(action.metavar) if action.dest in self.needed else formatted
                words.append(" ".join([*action.option_strings[-1:], shown]))
        return " ".join([*words, *([] if words[-1] == "COMMAND ..." else ["[options]"])])

    def _sections(self, everything: bool) -> list[tuple[str, str | None, list[Action]]]:
        """Return the flags under their titles; in the short help all of them under one, with one sentence each."""
        groups = [(str(group.title), group.description, group._group_actions) for group in self._action_groups]
        if everything or not self.hidden:
            return groups
        flags = [action for *_, actions in groups for action in actions if action.option_strings]
        usual = [_shortened(action) for action in flags if action.dest not in self.hidden]
        return [*(group for group in groups if not {*group[2]} & {*flags}), ("options", None, usual)]

    def error(self, message: str) -> NoReturn:
        """Refuse the command line in one line."""
        words = " ".join(str(message).split())
        if match := re.match(r"argument (\S+?): ", words):
            name = match[1].rpartition("/")[2]
            words = f"{name} {words[match.end() :]}" if name.startswith("-") else words[match.end() :]
        elif match := re.match("the following arguments are required: (.*)", words):
            words = f"{match[1]} is required"
        raise InputError(f"{without_password(words)[:_LONGEST]} (see --help)")

    def refuse_unknown(self, arguments: Sequence[str], given: Sequence[str]) -> NoReturn:
        """Refuse arguments that no flag takes.

        Args:
            arguments: The refused ones.
            given: The whole command line.
        """
        self.error(f"unrecognized arguments: {' '.join(self._shown(arguments, given))}")

    def _shown(self, arguments: Sequence[str], given: Sequence[str]) -> Iterator[str]:
        """Yield arguments with the flag that may be meant; what a blank split may be a password."""
        has_storage = any(argument.startswith("--storage") or names_database(argument) for argument in given)
        for argument in arguments:
            if re.match("--?[a-z]", argument):
                yield argument.partition("=")[0] + meant(argument.partition("=")[0], self._option_string_actions)
            else:
                yield HIDDEN if has_storage else argument

    def refuse_single_dash(self, arguments: Sequence[str]) -> None:
        """Refuse a long flag behind one dash, which would be read as a short flag and its value."""
        for argument in arguments:
            name = argument.partition("=")[0]
            if re.match("-[a-z]", name) and f"-{name}" in self._option_string_actions:
                self.error(f"unrecognized arguments: {name} (did you mean '-{name}'?)")

    def settings(self, namespace: Namespace) -> dict[str, Any]:
        """Return the settings of a parsed command line: flags first, then YAML files and presets, the last one first.

        Raises:
            InputError: for a file or a value that is not allowed, or a positional setting that is missing.
        """
        given = {name: value for name, value in vars(namespace).items() if name in self._names()}
        settings: dict[str, Any] = {}
        layers: list[tuple[str, str]] = getattr(namespace, _LAYERS, [])
        for layer in [*(self._content(kind, text) for kind, text in layers), given]:
            settings = _replaced(settings, layer)
        for name in self.needed:
            if settings.get(name) is None and not hasattr(namespace, "print_config"):
                self.error(f"{name.upper()} is required")
        return {**self.defaults, **settings}

    def _names(self) -> dict[str, Action]:
        return {action.dest: action for action in self._actions if action.dest not in _NO_SETTINGS}

    def _content(self, kind: str, text: str) -> dict[str, Any]:
        """Return the settings of a preset or of a `--config`."""
        known = self._names()
        if kind == "preset":
            content, name, shipped = read_preset(text), f"--preset {text}", True
        else:
            content, name, shipped = _given_yaml(text)
        if not isinstance(content, dict):
            raise InputError(f"{name} holds {type(content).__name__}; allowed: settings by name: {', '.join(known)}")
        if shipped:  # a recipe serves several commands: each takes the settings that it has
            content = {key: value for key, value in content.items() if key in known}
        for key, value in content.items():
            if (action := known.get(key)) is None:
                raise InputError(
                    f"{name} has the unknown setting {quoted(key)}{meant(key, known)}; allowed: {', '.join(known)}"
                )
            if action.nargs == 0 and not isinstance(value, bool):
                raise InputError(f"{name}: {key} must be true or false (got {quoted(value)})")
        return {key: _taken(known[key], value, f"{name}: {key}") for key, value in content.items()}

    def with_steps(self, settings: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
        """Return settings whose `tokens` have become `steps`, and a sentence that says so.

        A command whose batch or sequence length comes from elsewhere, such as from a run, does that by itself.
        """
        own = self._names().keys() - {*self.defaults}
        if self.config is None or settings.get("tokens") is None or not {"steps", "batch_size", "seq_len"} <= own:
            return dict(settings), None
        if settings.get("superlm") is not None:
            raise InputError("--tokens with --superlm; allowed: one of them, because the SuperLMs are trained")
        sizes = [settings.get(name) or getattr(self.config, name) for name in ("batch_size", "seq_len")]
        steps, sentence = steps_of(settings, *sizes)
        return {name: value for name, value in settings.items() if name != "tokens"} | {"steps": steps}, sentence

    def print_settings(self, settings: Mapping[str, Any]) -> None:
        """Print the settings of this command as YAML that `--config` reads, without passwords."""
        assert self.config is not None
        values = {
            setting.name: settings.get(setting.name, setting.default)
            for setting in fields(self.config)
            if setting.name in self._names()
        }
        if isinstance(values.get("storage"), str):
            values["storage"] = without_password(values["storage"])
        print(grouped_yaml(self.config, values), end="")


def _replaced(settings: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return `settings` with those of a layer above them; a length of training replaces the other way to state it."""
    lengths = {"steps", "tokens"}
    dropped = lengths if lengths & layer.keys() else set()
    return {key: value for key, value in settings.items() if key not in dropped} | dict(layer)


def _shortened(action: Action) -> Action:
    """Return a copy of a flag with the first sentence of its help."""
    short = copy.copy(action)
    first, newline, rest = (action.help or "").partition("\n")
    short.help = re.split(r"(?<=\.)\s", first)[0] + newline + rest
    return short


class _RefusedError(ArgumentTypeError, ValueError):
    """A value that a flag does not take, on the command line or in a YAML file."""


class _ValueType:
    """Type of a flag's value, which reads text; other values of a YAML file pass, for the settings' class to check."""

    def __init__(self, read: Callable[[str], Any], allowed: str) -> None:
        self._read, self._allowed = read, allowed

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if (read := self._read(value)) is None:
            raise _RefusedError(f"must be {self._allowed} (got {quoted(value)})")
        return read


def _storable(text: str) -> str | None:
    """Return text that a file can hold; None for other text."""
    return text if "\0" not in text and text == text.encode(errors="ignore").decode() else None


as_text = _ValueType(_storable, "text in UTF-8")
as_whole_number = _ValueType(parse_whole_number, "a whole number of at most 18 digits")
as_number = _ValueType(parse_number, "a finite number")


def _taken(action: Any, value: Any, what: str) -> Any:
    """Return the value of a setting in a YAML file as its flag takes it; `what` names it in errors."""
    if action.nargs == "+":
        values = [value] if isinstance(value, str) else value
        if value is not None and not (isinstance(values, list) and all(isinstance(text, str) for text in values)):
            raise InputError(f"{what} must be text, or a list of it (got {quoted(value)})")
        return values
    try:
        return action.type(value) if action.type and action.nargs != 0 else value
    except _RefusedError as error:
        raise InputError(f"{what} {error}") from None


def _given_yaml(text: str) -> tuple[Any, str, bool]:
    """Return what `--config` names, or says itself, what to call it, and whether it is a shipped recipe."""
    if os.path.lexists(text) and not os.path.isdir(text):  # noqa: PTH112 - the text may be no path
        return read_yaml(Path(text)), f"--config {text}", False
    if ":" in text:
        return parse_yaml(text, "--config"), "--config", False
    if (recipe := recipe_path(text)) is not None:
        return read_yaml(recipe), f"--config {text}", True
    recipes = shipped_recipes()
    if near := meant(text, recipes):
        raise InputError(f"no file or recipe {quoted(text)}{near}; allowed: a YAML file, {', '.join(recipes)}")
    return read_yaml(Path(text)), f"--config {text}", False


def add_positional_and_settings(parser: CommandParser, config: type[Any], positional: str) -> None:
    """Add all settings of `config`, one of them as a positional argument."""
    parser.needed.append(positional)
    word, description = placeholders(config)[positional], _described(descriptions(config)[positional], None)
    parser.add_argument(positional, type=as_text, nargs="?", metavar=word, help=description)
    add_settings(parser, config, {field.name for field in fields(config)} - {positional})


def _described(description: str, default: Any) -> str:
    """Return the help of a setting, with its default behind the first sentence."""
    words = description.replace("%", "%%")
    if default is None or default is False or default == "":
        return words
    first, *rest = re.split(r"(?<=\.)\s", words, maxsplit=1)
    shown = f"{default:g}" if isinstance(default, float) else str(default)
    return " ".join([f"{first.rstrip('.')} (default: {shown}).", *rest])


def add_settings(parser: CommandParser, config: type[Any], names: Container[str] | None = None) -> None:
    """Add a flag for each field of `config`, or those of `names`, with its type, group and description.

    A command that trains SuperLMs takes presets and, in place of `--steps`, `--tokens`.
    """
    chosen = [setting for setting in fields(config) if names is None or setting.name in names]
    parser.config, names_of_settings = config, {setting.name for setting in chosen}
    _add_layers(parser, {"space", "teacher"} <= names_of_settings)
    types, words, groups = get_type_hints(config), placeholders(config), groups_of(config)
    usual, told = usual_settings(config), descriptions(config)
    if unusual := {setting.name for setting in chosen if setting.name not in usual}:
        parser.hidden |= unusual | {"print_config"}
        others = f"Show the other {len(parser.hidden)} options, too."
        parser.add_argument("--help-all", action=_Help, nargs=0, help=others)
    for group in GROUPS:
        members = [setting for setting in chosen if groups[setting.name] == group]
        arguments = parser.add_argument_group(group.title)
        for setting in members:
            mark = usual.get(setting.name)
            names_of_flag = [*([f"-{mark.letter}"] if mark and mark.letter else []), flag(setting.name)]
            description = _described(told[setting.name], setting.default)
            _add_setting(arguments, names_of_flag, types[setting.name], words[setting.name], description)
            if setting.name == "steps":
                add_tokens(arguments)


def add_tokens(arguments: Any, instead: str = "in place of --steps") -> None:
    """Add the flag of a training's length in tokens."""
    arguments.add_argument(
        "--tokens",
        type=as_text,
        metavar="AMOUNT",
        help=f"Tokens to train on, such as 1M, {instead}; rounded up to whole steps.",
    )


def _add_layers(parser: CommandParser, takes_presets: bool) -> None:
    """Add the flags that name YAML files of settings."""
    if takes_presets:
        width = max(map(len, PRESETS))
        listed = "\n".join(f"  {name:{width}}  {summary(name)}" for name in PRESETS)
        parser.add_argument(
            *("-p", "--preset"),
            action=_Layer,
            metavar="NAME",
            help=f"Shipped settings; other options win over them.\n{listed}".replace("%", "%%"),
        )
    parser.add_argument(
        *("-c", "--config"),
        action=_Layer,
        metavar="FILE",
        help="YAML file of settings, such as a run's config.yaml, or a shipped recipe.",
    )
    parser.add_argument("--print-config", action="store_true", help="Print the settings as YAML, and do nothing else.")


def _add_setting(arguments: Any, names: Sequence[str], hint: Any, placeholder: str, description: str) -> None:
    """Add the flag of one setting to a group of arguments."""
    kinds = {get_origin(kind) or kind for kind in (hint, *get_args(hint))}
    options: dict[str, Any] = {"type": as_text, "metavar": placeholder}
    if names[-1] == "--text":  # several files behind one flag, as a shell's *.txt gives them
        options["nargs"] = "+"
    elif names[-1] == "--constraint":
        options["action"] = "append"
    elif bool in kinds:
        options = {"action": BooleanOptionalAction}  # with --no-..., which wins over a preset
    elif int in kinds or float in kinds:
        options["type"] = as_whole_number if int in kinds else as_number
    arguments.add_argument(*names, help=description, **options)
