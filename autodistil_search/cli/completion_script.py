"""Scripts for shells that complete commands, flags and the words of some flags."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any, Literal, get_args

from autodistil_search.base.plugins import Plugins
from autodistil_search.nas.engines.registry import ENGINES
from autodistil_search.nas.objectives import NAMES
from autodistil_search.settings.common import choices
from autodistil_search.settings.export import ExportOptions
from autodistil_search.settings.recipes import PRESETS, shipped_recipes
from autodistil_search.settings.search import SearchConfig
from autodistil_search.spaces.search_space import shipped_spaces

Shell = Literal["bash", "zsh"]

_FOLDERS = ("out", "superlm", "run", "runs", "model", "teacher")
_FILES = ("text", "task", "storage")

_PREAMBLES = {
    "bash": """# Words of a comma-separated list: $1 is all words, $2 is the list so far.
_autodistil_search_words() {{
  local before="${{2%"${{2##*,}}"}}"
  compgen -P "$before" -W "$1" -- "${{2##*,}}"
}}
{functions}""",
    "zsh": "{functions}",
}
_FUNCTIONS = {
    "bash": """_autodistil_search_{name}() {{
  _autodistil_search_words "{words}" "$1"{files}
}}
""",
    "zsh": """_autodistil_search_{name}() {{
  _sequence compadd - {words}{files}
}}
""",
}
_YAML_FILES = {
    "bash": '\n  compgen -f -X \'!*.y*ml\' -- "$1"\n  compgen -d -- "$1"',
    "zsh": "\n  _files -g '*.y(a|)ml'",
}


def completion_script(parser: ArgumentParser, shell: Shell) -> str:
    """Return the completion script of a `shell`. `parser` is changed and cannot be used afterwards.

    The script contains the names of installed plug-ins. Plug-ins that are installed later need a new script.
    """
    import shtab

    plugins = Plugins()
    lists = {name: [*built_in, *plugins.names(group)] for name, group, built_in in _lists()}
    lists["config"] = shipped_recipes()
    words = choices(SearchConfig) | choices(ExportOptions) | {"shell": get_args(Shell)}
    words |= {"engine": (*ENGINES, *plugins.names("engines")), "preset": PRESETS}
    for command in _commands(parser):
        for action in command._actions:
            completes: dict[str, Any] = vars(action)
            if action.dest in lists:
                completes["complete"] = {shell: f"_autodistil_search_{action.dest}"}
            elif action.dest in words:
                action.choices = words[action.dest]
            elif action.dest in _FOLDERS:
                completes["complete"] = shtab.DIRECTORY
            elif action.dest in _FILES:
                completes["complete"] = shtab.FILE
    files = dict.fromkeys(("space", "config"), _YAML_FILES[shell])
    functions = [
        _FUNCTIONS[shell].format(name=name, words=" ".join(names), files=files.get(name, ""))
        for name, names in lists.items()
    ]
    return str(shtab.complete(parser, shell, preamble=_PREAMBLES[shell].format(functions="".join(functions))))


def _lists() -> list[tuple[str, str, Sequence[str]]]:
    """Return the flags that take comma-separated words, each with its group of plug-ins and its built-in words."""
    return [("objectives", "objectives", NAMES), ("space", "search_spaces", shipped_spaces())]


def _commands(parser: ArgumentParser) -> list[ArgumentParser]:
    choices_of_commands = [action.choices for action in parser._actions if action.dest == "command"]
    return [command for commands in choices_of_commands if isinstance(commands, dict) for command in commands.values()]
