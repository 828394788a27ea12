"""Shipped recipes: YAML files of settings that a command loads by name. The presets are four of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autodistil_search.base.errors import InputError
from autodistil_search.base.user_input import meant, quoted, read_yaml, shipped_folder

PRESETS = ("quick", "laptop", "gpu", "paper")
"""Recipes of `--preset`, cheapest first: they set the size of a job and go with any other setting."""


def shipped_recipes() -> list[str]:
    """Return the names of the recipes that the package ships, the presets first."""
    names = {path.stem for path in shipped_folder("recipes").glob("*.yaml")}
    return [*PRESETS, *sorted(names - {*PRESETS})]


def recipe_path(name: str) -> Path | None:
    """Return the file of a shipped recipe; None for any other name."""
    return shipped_folder("recipes") / f"{name}.yaml" if name in shipped_recipes() else None


def summary(name: str) -> str:
    """Return the purpose of a shipped recipe: the first line of its file."""
    path = recipe_path(name)
    assert path is not None
    with path.open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").rstrip(".\n")


def read_preset(name: str) -> Any:
    """Return the content of a preset.

    Raises:
        InputError: for any other name.
    """
    if name not in PRESETS:
        raise InputError(f"--preset {quoted(name)}{meant(name, PRESETS)}; allowed: {', '.join(PRESETS)}")
    path = recipe_path(name)
    assert path is not None
    return read_yaml(path)
