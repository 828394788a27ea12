"""What others add: by a package that is really installed, and by objects handed over in Python."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from autodistil_search.cli import main
from autodistil_search.engines import ENGINES
from autodistil_search.errors import InputError
from autodistil_search.objectives import Objective
from autodistil_search.plugins import Plugins
from autodistil_search.proxies import ProxyKind
from autodistil_search.run import search
from autodistil_search.space import load_space

pytestmark = pytest.mark.usefixtures("undrawn")

PACKAGE = """
from pathlib import Path

import torch
from autodistil_search import Objective, load_space
from autodistil_search.engines import ENGINES
from autodistil_search.proxies import ProxyKind

LAYERS = Objective("depth", "depth", "layers", "minimize", cost=lambda subnet, vocabulary: subnet.layers)
WIDEST = Objective("widest", "widest matrix", "columns", "maximize", measure=lambda student: widest(student))


def widest(student):
    return max(parameter.shape[-1] for parameter in student.parameters())


class Norm:
    reference, description = 1e6, "sum of squared weights"

    def score(self, model, subnet=None):
        model = model if subnet is None else model.extract(subnet)
        return float(sum(p.detach().square().sum() for p in model.parameters()))


NORM = ProxyKind(Objective("norm", "norm", "", "minimize", is_proxy=True), lambda teacher, held_out, device: Norm())
SPACE = load_space("debug")


def backwards(candidates, **_):
    class Engine:
        left = list(candidates.space.genomes())

        def ask(self):
            batch, self.left = self.left[-3:], self.left[:-3]
            return batch

        def tell(self, genomes, values, excess):
            pass

    return Engine()


def teacher():
    from transformers import AutoModel, AutoTokenizer

    folder = Path(__file__).with_name("toy-teacher")
    return AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
"""
PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "autodistil-search-toys"
version = "1.2"

[tool.setuptools]
py-modules = ["toys"]

[project.entry-points."autodistil_search.objectives"]
depth = "toys:LAYERS"
widest = "toys:WIDEST"
broken = "toys:MISSING"

[project.entry-points."autodistil_search.engines"]
backwards = "toys:backwards"

[project.entry-points."autodistil_search.proxies"]
norm = "toys:NORM"

[project.entry-points."autodistil_search.teachers"]
toy = "toys:teacher"

[project.entry-points."autodistil_search.search_spaces"]
mine = "toys:SPACE"
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which pip has installed the package."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "toys.py").write_text(PACKAGE)
    (source / "pyproject.toml").write_text(PYPROJECT)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", site, source], check=True, capture_output=True)
    return site


@pytest.fixture
def found_here(installed, monkeypatch):
    """The package, in this process."""
    monkeypatch.syspath_prepend(installed)
    yield installed
    sys.modules.pop("toys", None)


def test_list_shows_what_is_installed_and_what_cannot_be_loaded(installed):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "autodistil_search", "list"]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    for line in (
        "  'depth' of objectives (toys:LAYERS of autodistil-search-toys 1.2)",
        "  'backwards' of engines (toys:backwards of autodistil-search-toys 1.2)",
        "  'norm' of proxies (toys:NORM of autodistil-search-toys 1.2)",
        "  'toy' of teachers (toys:teacher of autodistil-search-toys 1.2)",
        "  'mine' of search_spaces (toys:SPACE of autodistil-search-toys 1.2)",
    ):
        assert line in shown.stdout.splitlines()
    assert "'broken' of objectives (toys:MISSING of autodistil-search-toys 1.2) cannot be loaded" in shown.stdout
    assert f"engines: {', '.join(ENGINES)}" in shown.stdout


def test_an_installed_package_takes_part_in_a_search(found_here, teacher_folder, toy_text, tmp_path):
    Path(teacher_folder()).rename(found_here / "toy-teacher")
    out = tmp_path / "run"
    names = ["--space", "mine", "--teacher", "toy", "--proxy", "norm", "--engine", "backwards"]
    small = ["--steps", "2", "--batch-size", "2", "--seq-len", "16", "--eval-blocks", "2", "--baselines", "none"]
    wanted = ["--objectives", "acc,depth,widest", "--constraint", "widest>=1", "--evaluations", "6"]
    assert main(["search", *names, *small, *wanted, "--text", str(toy_text()), "--out", str(out)]) == 0
    table = pd.read_csv(out / "evaluations.csv")
    assert {"norm", "depth", "widest"} <= set(table.columns)
    assert (table["depth"] == table["layers"]).all()
    space = load_space("debug")
    last = [space.decode(genome) for genome in list(space.genomes())[-6:]]
    assert sorted(table["hidden_size"]) == sorted(subnet.hidden_size for subnet in last)


@pytest.mark.parametrize("flags", [["--objectives", "deep,flops"], ["--constraint", "deep<=3"]])
def test_what_is_installed_is_among_what_is_allowed(flags, refusal, monkeypatch, tmp_path):
    offered = {"objectives": {"depth": "an entry point"}}
    monkeypatch.setattr("autodistil_search.plugins._offered", lambda group: offered.get(group, {}))
    assert re.search("'deep.*flops, .*, depth", refusal(["search", *flags, "--out", str(tmp_path / "run")]))


def test_a_package_that_cannot_be_loaded_is_named(found_here, refusal, tmp_path):
    said = refusal(["search", "--objectives", "broken,flops", "--out", str(tmp_path / "run")])
    assert "'broken' of objectives (toys:MISSING of autodistil-search-toys 1.2) cannot be loaded" in said


def test_objects_passed_in_python_are_found_by_their_names(toy_config, tmp_path):
    class Sum:
        reference, description = 1e6, "sum"

        def score(self, model, subnet=None):
            scored = model if subnet is None else model.extract(subnet)
            return float(scored.word_embeddings.weight.detach().abs().sum())

    objective = Objective("sum", "sum", "", "minimize", is_proxy=True)
    asked = []

    def engine(candidates, *, seed, population, goal):
        asked.append((seed, population, [cost is None for cost in goal.costs]))
        return ENGINES["random"](candidates, seed=seed, population=population, goal=goal)

    plugins = Plugins(
        objectives={"head": Objective("head", "heads", "heads", "minimize", cost=lambda subnet, _: subnet.heads)},
        engines={"mine": engine},
        proxies={"sum": ProxyKind(objective, lambda teacher, held_out, device: Sum())},
        search_spaces={"renamed": replace(load_space("debug"), name="renamed")},
    )
    config = replace(toy_config, space="renamed", engine="mine", proxy="sum", objectives="acc,head")
    run = search(config, plugins=plugins)
    assert asked == [(0, 4, [True, False])]
    assert (run.evaluations["head"] == run.evaluations["heads"]).all()
    assert len(set(run.evaluations["sum"])) > 1
    assert set(run.evaluations["space"]) == {"renamed"}
    assert run.summary["conditions"]["proxy"] == "sum"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": "magic"}, r"--engine 'magic'; allowed: surrogate, nsga2, .*, exhaustive$"),
        ({"proxy": "oracle"}, r"--proxy 'oracle'; allowed: relation, hidden, cosine:NAME, probe:NAME, task:NAME$"),
        ({"objectives": "acc,luck"}, r"objective 'luck'; allowed: acc, flops"),
    ],
)
def test_a_name_that_nobody_offers_is_refused_with_those_that_are_there(toy_config, change, message):
    with pytest.raises(InputError, match=message):
        search(replace(toy_config, **change))


def test_a_measurement_sees_the_extracted_student(toy_config):
    seen = []

    def measure(student):
        seen.append(student)
        return sum(parameter.numel() for parameter in student.parameters())

    counted = Objective("counted", "counted", "", "minimize", measure=measure)
    config = replace(toy_config, objectives="acc,counted")
    run = search(config, plugins=Plugins(objectives={"counted": counted}))
    assert (run.evaluations["counted"] == run.evaluations["params"]).all()
    knee = run.student()
    same = [each for each in seen if each.config.subnet == knee.config.subnet]
    assert any(torch.equal(each.word_embeddings.weight, knee.word_embeddings.weight) for each in same)
