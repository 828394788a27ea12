"""Pages that the site generates from the package, its parser, the notebooks and the recipes."""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

import autodistil_search
from autodistil_search.cli.parser import CommandParser
from autodistil_search.cli.registry import command, make_parser, parsers_of
from autodistil_search.settings.recipes import recipe_path, shipped_recipes

_ROOT = Path(__file__).parent.parent
_ABOVE = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
_TITLES = {
    "api": "Commands as functions, and their results",
    "settings": "Settings",
    "spaces": "Search spaces and subnets",
    "teachers": "Teachers",
    "superlm": "Models",
    "report": "Reports",
    "exporting": "Export",
    "nas": "Objectives, proxies and search loops",
    "base": "Plug-ins, progress and errors",
}
"""Headings of the index of Python objects, by the package that defines them."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Replace `FOLDER/*` in the navigation by the generated pages of that folder."""
    pages = {
        "api": sorted(autodistil_search._HOMES, key=str.lower),
        "commands": list(parsers_of(make_parser())),
        "notebooks": [path.stem for path in _notebooks()],
    }

    def expanded(entry: Any) -> list[Any]:
        if isinstance(entry, dict):
            return [{title: _flat(map(expanded, content)) for title, content in entry.items()}]
        folder, star, _ = entry.partition("/*")
        return [{_spoken(name): f"{folder}/{name}.md"} for name in pages[folder]] if star else [entry]

    config.nav = _flat(map(expanded, config.nav or []))
    return config


def _flat(lists: Iterable[list[Any]]) -> list[Any]:
    return [entry for entries in lists for entry in entries]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and those that lie beside README."""
    for name, content in _generated():
        files.append(File.generated(config, name, content=content))
    for name in _ABOVE:
        text = (_ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Fill the markers `<!-- objects -->` and `<!-- recipes -->`."""
    if page.file.src_uri == "api.md":
        return markdown.replace("<!-- objects -->", _index_of_objects())
    if page.file.src_uri == "recipes.md":
        return markdown.replace("<!-- recipes -->", _recipes())
    return markdown


def _generated() -> Iterator[tuple[str, str | bytes]]:
    """Yield path and content of each generated page and of its pictures."""
    parser = make_parser()
    yield "commands.md", _index_of_commands(parser)
    for name, entry in parsers_of(parser).items():
        yield f"commands/{name}.md", _page_of_command(name, entry)
    for name, module in autodistil_search._HOMES.items():
        yield f"api/{name}.md", _page_of_object(name, module)
    for path in _notebooks():
        yield from _pages_of_notebook(path)


def _table(left: str, right: str, rows: list[str]) -> str:
    return "\n".join([f"| {left} | {right} |", "|---|---|", *rows])


# Commands


def _index_of_commands(parser: CommandParser) -> str:
    rows = [f"| [`{name}`](commands/{name}.md) | {_escaped(command(name).summary)} |" for name in parsers_of(parser)]
    about = "Each command has a page with its flags. [The command line](cli.md) describes what all commands share."
    return f"# Commands\n\n{about}\n\n{_table('command', 'purpose', rows)}\n"


def _page_of_command(name: str, parser: CommandParser) -> str:
    entry = command(name)
    examples = "\n".join(f"$ {line}" for line in entry.examples)
    parts = [f"# autodistil-search {name}", _escaped(entry.description), f"```console\n{examples}\n```"]
    formatter = parser._get_formatter()
    for group in parser._action_groups:
        rows = [
            f"| {_invocation(action)} | {_escaped(formatter._expand_help(action))} |"
            for action in group._group_actions
            if action.help != "==SUPPRESS=="
        ]
        if rows:
            title = (group.title or "options").capitalize()
            parts.append(f"## {title}\n\n{_table('flag', 'meaning', rows)}")
    return "\n\n".join(parts) + "\n"


def _invocation(action: Any) -> str:
    """Return the flags of an action as code, the last with the name of its value."""
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    *short, long = action.option_strings
    value = f" {action.metavar or action.dest.upper()}" if action.nargs != 0 else ""
    return ", ".join(f"`{flag}`" for flag in (*short, long + value))


def _escaped(text: str) -> str:
    """Return plain text as Markdown for a table's cell, with its lines and with flags as code."""
    lines = (html.escape(" ".join(line.split()), quote=False) for line in text.splitlines())
    text = re.sub(r"([|*_\[\]])", r"\\\1", "<br>".join(lines))
    return re.sub(r"(?<![\w-])--[a-z][a-z-]*(?:\\_[a-z-]+)*", lambda match: f"`{match[0]}`".replace("\\", ""), text)


# Python


def _index_of_objects() -> str:
    groups: dict[str, list[str]] = {title: [] for title in _TITLES.values()}
    for name, module in autodistil_search._HOMES.items():
        row = f"| [`{name}`](api/{name}.md) | {_escaped(_summary(name, module))} |"
        groups[_TITLES[module.partition(".")[0]]].append(row)
    tables = (f"## {title}\n\n{_table('name', 'purpose', rows)}" for title, rows in groups.items() if rows)
    return "\n\n".join(tables)


def _summary(name: str, module: str) -> str:
    """Return the first line of an object's docstring, without importing its module."""
    source = _ROOT.joinpath("autodistil_search", *module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    (node,) = [node for node in ast.parse(source).body if isinstance(node, _DEFINITIONS) and node.name == name]
    return " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())


_DEFINITIONS = (ast.ClassDef, ast.FunctionDef)


def _page_of_object(name: str, module: str) -> str:
    home = f"autodistil_search.{module}.{name}"
    use = f"```python\nfrom autodistil_search import {name}\n```"
    return f"::: {home}\n\n{use}\n\n[All objects](../api.md)\n"


# Notebooks


def _notebooks() -> list[Path]:
    return sorted((_ROOT / "notebooks").glob("*.ipynb"))


def _spoken(name: str) -> str:
    """Return the title in the navigation: `2_training_a_superlm` as "2. Training a superlm"."""
    match = re.fullmatch(r"(\d)_(.+)", name)
    return f"{match[1]}. {match[2].replace('_', ' ').capitalize().replace('superlm', 'SuperLM')}" if match else name


def _pages_of_notebook(path: Path) -> Iterator[tuple[str, str | bytes]]:
    """Yield a notebook's page with its stored outputs, the pictures among them, and the notebook for download."""
    notebook = nbformat.read(path, as_version=4)
    pictures = {"output_files_dir": f"{path.stem}_files", "unique_key": path.stem}
    text, resources = MarkdownExporter().from_notebook_node(notebook, resources=pictures)
    text = re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.md)", text.replace("](../docs/", "](../"))
    text = re.sub(r"<style scoped>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<table [^>]*>", "<table>", text)  # the theme lets tables without a class scroll
    title, _, rest = text.lstrip().partition("\n")
    yield f"notebooks/{path.stem}.md", f"{title}\n\n[Download this notebook]({path.name})\n{rest}"
    yield f"notebooks/{path.name}", path.read_bytes()
    for name, content in resources["outputs"].items():
        yield f"notebooks/{name}", content


# Recipes


def _recipes() -> str:
    """Return a section for each shipped recipe: the comment at its head and its settings."""
    return "\n\n".join(map(_section_of_recipe, shipped_recipes()))


def _section_of_recipe(name: str) -> str:
    path = recipe_path(name)
    assert path is not None
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = [line.removeprefix("#").removeprefix(" ") for line in lines if line.startswith("#")]
    settings = "\n".join(line for line in lines if not line.startswith("#")).strip()
    about = re.sub(r"(?:^ +autodistil-search .*\n?)+", _console, "\n".join(comment), flags=re.MULTILINE)
    purpose, _, about = about.partition("\n")
    return f"## {name}\n\n{purpose[:1].upper()}{purpose[1:].rstrip('.')}.\n\n{about}\n\n```yaml\n{settings}\n```"


def _console(commands: re.Match[str]) -> str:
    lines = "\n".join(f"$ {line.strip()}" for line in commands[0].splitlines())
    return f"\n```console\n{lines}\n```\n"
