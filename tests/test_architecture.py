"""The import contract: a package imports only from those before it, and what must answer at once loads little."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

import autodistil_search
from autodistil_search.settings import common
from autodistil_search.settings.search import SearchConfig

ROOT = Path(autodistil_search.__file__).parent
PACKAGES = (
    *("base", "spaces", "text", "superlm", "teachers", "distillation", "tasks", "nas", "report", "settings", "runs"),
    *("exporting", "api", "cli"),
)
"""In the order of imports, which is the method's."""
ENTRY_POINTS = {"__init__", "__main__"}


def dotted(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for i, part in enumerate(parts) if part != "__init__" or i == 0)


SOURCES = {dotted(path): path for path in sorted(ROOT.rglob("*.py"))}
MODULES = {module: path for module, path in SOURCES.items() if module not in ENTRY_POINTS}


@cache
def imports(path):
    """Our modules that a file imports, at its top or inside functions, dotted below the package."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} has a relative import"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        ours = [name.removeprefix("autodistil_search.") for name in names if name.startswith("autodistil_search.")]
        imported |= {name for name in ours if name in SOURCES}
    return imported


def test_nothing_imports_the_entry_points():
    users = [path for path in MODULES.values() if "from autodistil_search import" in path.read_text(encoding="utf-8")]
    assert users == []


def package(module):
    return module.partition(".")[0]


def test_every_module_is_in_a_package():
    assert {package(module) for module in MODULES} == {*PACKAGES}


@pytest.mark.parametrize("module", MODULES)
def test_a_package_imports_only_from_those_before_it(module):
    allowed = PACKAGES[: PACKAGES.index(package(module)) + 1]
    assert {name for name in imports(MODULES[module]) if package(name) not in allowed} == set()


def test_modules_do_not_import_each_other_in_a_circle():
    graph = {module: imports(path) - {module} for module, path in MODULES.items()}
    while ready := {module for module, used in graph.items() if not used & graph.keys()}:
        graph = {module: used for module, used in graph.items() if module not in ready}
    assert graph == {}


def test_an_init_holds_a_docstring_alone_and_declares_its_package_internal():
    for path in ROOT.rglob("*/__init__.py"):
        (docstring,) = ast.parse(path.read_text(encoding="utf-8")).body
        assert ast.unparse(docstring).startswith(("'Internal:", '"""Internal:')), path


LIGHT = (
    *("base.errors", "spaces.search_space", "spaces.partition", "spaces.cost", "nas.pareto", "nas.objectives"),
    *("settings.search", "settings.finetune", "api.run", "cli.main", "cli.completion_script"),
    *(f"cli.commands.{path.stem}" for path in sorted((ROOT / "cli" / "commands").glob("[a-z]*.py"))),
)
"""What `--help`, `list`, `partition`, `completion` and a refused setting need: they are to answer at once."""
HEAVY = {
    **dict.fromkeys(LIGHT, ("torch", "transformers", "matplotlib", "plotly", "sklearn")),
    "runs.finished_run": ("torch", "transformers", "matplotlib", "plotly", "jinja2", "optuna", "pymoo"),
    "runs.train": ("optuna", "pymoo", "matplotlib"),
}
"""Libraries that a module does without: reading a run draws nothing, and training searches nothing."""


def test_importing_the_package_loads_no_library():
    assert loaded_by("autodistil_search", ("torch", "transformers", "matplotlib", "sklearn", "pandas")) == []


def test_light_modules_import_no_heavy_library():
    script = f"""
import importlib, sys
for module in {LIGHT}:
    importlib.import_module(f"autodistil_search.{{module}}")
    print(module, sorted({{*{HEAVY[LIGHT[0]]}}} & set(sys.modules)))
"""
    lines = printed(script)
    assert len(lines) == len(LIGHT)
    assert [line for line in lines if not line.endswith(" []")] == []


@pytest.mark.parametrize("module", sorted(HEAVY.keys() - set(LIGHT)))
def test_a_module_does_without_the_libraries_of_others(module):
    assert loaded_by(f"autodistil_search.{module}", HEAVY[module]) == []


def loaded_by(module, libraries):
    (line,) = printed(f"import sys, {module}; print(*sorted({{*{libraries}}} & set(sys.modules)))")
    return line.split()


def printed(script):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_public_names_are_those_of_their_modules():
    assert {name: getattr(autodistil_search, name).__name__ for name in autodistil_search._HOMES} == {
        name: name for name in autodistil_search._HOMES
    }
    assert set(autodistil_search.__all__) == {*autodistil_search._HOMES, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        autodistil_search.nothing  # noqa: B018


def test_the_words_a_setting_allows_are_those_the_code_knows():
    from autodistil_search.base.device import DEVICES, PRECISIONS
    from autodistil_search.distillation.sampling import SAMPLINGS
    from autodistil_search.spaces.subnet import DepthRule
    from autodistil_search.superlm.relation_loss import LOSSES
    from autodistil_search.teachers.initial_weights import STARTS

    choices = common.choices(SearchConfig)
    assert set(choices) == {"depth", "init", "loss", "sampling", "device", "precision"}
    assert set(choices["sampling"]) == set(SAMPLINGS)
    assert set(choices["loss"]) == set(LOSSES)
    assert choices["init"] == STARTS
    assert choices["depth"] == get_args(DepthRule)
    assert choices["device"] == DEVICES
    assert choices["precision"] == PRECISIONS
