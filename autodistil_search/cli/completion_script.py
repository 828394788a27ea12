"""Scripts with which a shell completes commands, flags and the words that some flags take."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any, Literal, get_args

from autodistil_search.base.plugins import Plugins
from autodistil_search.nas.engines.registry import ENGINES
from autodistil_search.nas.objectives import NAMES
from autodistil_search.settings.common import choices
from autodistil_search.settings.export import ExportOptions
from autodistil_search.settings.search import SearchConfig
from autodistil_search.spaces.search_space import shipped_spaces

Shell = Literal["bash", "zsh"]

_FOLDERS = ("out", "to", "superlm", "run", "runs", "model", "teacher")
_FILES = ("config", "text", "task", "storage")

_PREAMBLES = {
    "bash": """# The words of a list that is separated by commas: $1 all, $2 what is there of the list.
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
    """The script for a `parser` of ours, which is changed on the way and of no use afterwards.

    It knows what is installed when it is made; what is installed later needs a new one.
    """
    import shtab

    plugins = Plugins()
    lists = {name: [*own, *plugins.names(group)] for name, group, own in _lists()}
    words = choices(SearchConfig) | choices(ExportOptions) | {"shell": get_args(Shell)}
    words["engine"] = (*ENGINES, *plugins.names("engines"))
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
    functions = [
        _FUNCTIONS[shell].format(name=name, words=" ".join(each), files=_YAML_FILES[shell] if name == "space" else "")
        for name, each in lists.items()
    ]
    return str(shtab.complete(parser, shell, preamble=_PREAMBLES[shell].format(functions="".join(functions))))


def _lists() -> list[tuple[str, str, Sequence[str]]]:
    """Flags that take several words, separated by commas: their group of plugins, and our own words."""
    return [("objectives", "objectives", NAMES), ("space", "search_spaces", shipped_spaces())]


def _commands(parser: ArgumentParser) -> list[ArgumentParser]:
    found = [action.choices for action in parser._actions if action.dest == "command"]
    return [command for commands in found if isinstance(commands, dict) for command in commands.values()]
