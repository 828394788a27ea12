"""The import contract: a module imports only from the layers below its own."""

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

PACKAGE = Path(autodistil_search.__file__).parent
LAYERS = [
    {"errors", "passwords", "streams"},
    {"given"},
    {
        "plugins",
        "space",
        "pareto",
        "files",
        "tabular",
        "weights",
        "processes",
        "resources",
        "progress",
        "modeling_student",
        "agreement",
        "collapse",
    },
    {"manifest"},
    {
        "sources",
        "pretrained",
        "cost",
        "model",
        "families",
        "relations",
        "config",
        "device",
        "sampling",
        "schedule",
        "predictor",
        "pooling",
    },
    {"checkpoint"},
    {"corpus", "stepconfig", "hardware", "teacher", "traininglog", "partition", "bert", "findings"},
    {"stream", "objectives", "start", "onnx_files", "doctor", "transfer"},
    {"archive", "tasks"},
    {"shared"},
    {"distill", "proxies", "engines", "adapters"},
    {"baselines", "inputs", "comparison"},
    {"report", "runfolder", "plan", "profile"},
    {"results", "training", "finetuning", "card"},
    {"scoring", "students", "exportable", "validation", "reporting"},
    {"run", "worker", "tables", "records", "export"},
    {"commands", "completion"},
    {"cli"},
]
LAYER = {module: level for level, modules in enumerate(LAYERS) for module in modules}
ENTRY_POINTS = {"__init__", "__main__"}
USERS_OF_CONFIG = {
    "stepconfig",
    "inputs",
    "results",
    "training",
    "exportable",
    "run",
    "worker",
    "commands",
    "completion",
    "cli",
}


def dotted(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for i, part in enumerate(parts) if part != "__init__" or i == 0)


SOURCES = {dotted(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def imports(path):
    """Our modules that a file imports, at its top or inside functions, dotted below the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} has a relative import"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        ours = [name.removeprefix("autodistil_search.") for name in names if name.startswith("autodistil_search.")]
        found |= {name for name in ours if name in SOURCES}
    return found


def component(module):
    return module.partition(".")[0]


COMPONENTS = {component(module) for module in SOURCES} - ENTRY_POINTS


def test_every_module_has_a_layer():
    assert set(LAYER) == COMPONENTS


@pytest.mark.parametrize("module", [module for module in SOURCES if component(module) not in ENTRY_POINTS])
def test_a_module_imports_only_from_lower_layers(module):
    own = component(module)
    others = {component(name) for name in imports(SOURCES[module])} - {own}
    assert not others & ENTRY_POINTS
    assert {name for name in others if LAYER[name] >= LAYER[own]} == set()


def test_nothing_imports_the_entry_points_and_only_the_upper_layers_the_config():
    users = {component(module) for module, path in SOURCES.items() if "config" in imports(path)}
    assert users - ENTRY_POINTS == USERS_OF_CONFIG


def test_parts_of_a_package_do_not_import_each_other_in_a_circle():
    graph = {module: imports(path) - {module} for module, path in SOURCES.items() if module not in ENTRY_POINTS}
    while ready := {module for module, used in graph.items() if not used & graph.keys()}:
        graph = {module: used for module, used in graph.items() if module not in ready}
    assert graph == {}


LIGHT = (
    "errors",
    "space",
    "pareto",
    "cost",
    "config",
    "objectives",
    "partition",
    "cli",
    "records",
    "tables",
    "completion",
)
"""What `--help`, `list`, `partition`, `completion` and a refused setting need: they are to answer at once."""


def test_light_modules_import_neither_torch_nor_transformers():
    script = f"""
import importlib, sys
for module in ("autodistil_search", *map("autodistil_search.{{}}".format, {LIGHT})):
    importlib.import_module(module)
    print(module, sorted({{"torch", "transformers", "matplotlib", "sklearn"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(LIGHT) + 1
    assert [line for line in lines if not line.endswith(" []")] == []


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
