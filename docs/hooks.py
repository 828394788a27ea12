"""What the site takes from elsewhere while it is built: the commands' own help, and pages of the folder above."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from autodistil_search.cli.registry import make_parser

_ABOVE = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add `commands.md`, each command's own help, and the pages that lie beside README."""
    files.append(File.generated(config, "commands.md", content=_commands()))
    for name in _ABOVE:
        text = Path(config.config_file_path).with_name(name).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text.replace("](docs/", "](")))
    return files


def _commands() -> str:
    parser = make_parser()
    commands = next(action for action in parser._actions if action.dest == "command").choices
    parts = ["# Commands", "As `--help` prints them.", f"```text\n{parser.format_help()}```"]
    for name, command in commands.items():
        parts += [f"## {name}", f"```text\n{command.format_help(everything=True)}```"]
    return "\n\n".join(parts) + "\n"
