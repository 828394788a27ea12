"""What the site takes from the code while it is built: the reference of the command line."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from autodistil_search.cli import make_parser


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add `commands.md`, each command's own help."""
    files.append(File.generated(config, "commands.md", content=_commands()))
    return files


def _commands() -> str:
    parser = make_parser()
    commands = next(action for action in parser._actions if action.dest == "command").choices
    parts = ["# Commands", "As `--help` prints them.", f"```text\n{parser.format_help()}```"]
    for name, command in commands.items():
        parts += [f"## {name}", f"```text\n{command.format_help()}```"]
    return "\n\n".join(parts) + "\n"
