"""What others add: by a package that is really installed, and by objects handed over in Python."""

import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from autodistil_search.base.errors import InputError
from autodistil_search.base.plugins import GROUPS, Plugins
from autodistil_search.cli.main import main
from autodistil_search.nas.engines.registry import ENGINES
from autodistil_search.nas.objectives import FLOPS, Objective
from autodistil_search.nas.proxies import ProxyKind
from autodistil_search.runs.named_parts import built_in
from autodistil_search.runs.search import search
from autodistil_search.runs.search_inputs import resolve_search
from autodistil_search.spaces.search_space import load_space

pytestmark = pytest.mark.usefixtures("undrawn")

PACKAGE = """
from pathlib import Path

import torch
from autodistil_search import Objective, load_space
from autodistil_search.nas.engines.registry import ENGINES
from autodistil_search.nas.proxies import ProxyKind

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
    monkeypatch.setattr("autodistil_search.base.plugins._offered", lambda group: offered.get(group, {}))
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
        (
            {"proxy": "oracle"},
            r"'oracle'; allowed: relation, hidden, similarity, cka, combined, cosine:NAME, probe:NAME, task:NAME$",
        ),
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


def offers(monkeypatch, points):
    """Offer entry points, (group, name, value), as if packages had them."""

    def entry_points(group):
        return [EntryPoint(name, value, kind) for kind, name, value in points if group == f"autodistil_search.{kind}"]

    monkeypatch.setattr("autodistil_search.base.plugins.entry_points", entry_points)


OWN = {
    "objectives": "flops",
    "engines": "nsga2",
    "proxies": "relation",
    "teachers": "packaged",
    "search_spaces": "debug",
}
FLAGS = {
    "objectives": "objectives",
    "engines": "engine",
    "proxies": "proxy",
    "teachers": "teacher",
    "search_spaces": "space",
}


@pytest.mark.parametrize("group", GROUPS)
def test_a_builtin_name_cannot_be_taken(group, monkeypatch, refusal, tmp_path):
    offers(monkeypatch, [(group, OWN[group], "math:pi")])
    said = refusal(["search", f"--{FLAGS[group]}", OWN[group], "--out", str(tmp_path / "run")])
    assert f"{OWN[group]!r} of {group} (math:pi of an unknown package) has a built-in name; allowed: another" in said
    with pytest.raises(InputError, match=r"given in Python.*has a built-in name"):
        Plugins(**{group: {OWN[group]: math.pi}}).find(group, OWN[group], built_in(group))


@pytest.mark.parametrize("group", GROUPS)
def test_two_packages_cannot_have_one_name(group, monkeypatch, refusal, tmp_path):
    offers(monkeypatch, [(group, "twice", "math:pi"), (group, "twice", "math:tau")])
    said = refusal(["search", f"--{FLAGS[group]}", "twice", "--out", str(tmp_path / "run")])
    assert f"'twice' of {group} (math:pi of an unknown package and math:tau of an unknown package) are two" in said
    offers(monkeypatch, [(group, "twice", "math:pi")] * 2)  # one package, found twice on the path
    assert Plugins().find(group, "twice", []) == math.pi


ODD = ["a,b", "a:b", "a=b", "a b", "a\nb", "-a", "", " ", "a;touch b", "$(x)", "a" * 65, "a\u202eb", ".a", "a<=b"]


@pytest.mark.parametrize("name", ODD)
def test_an_odd_name_is_refused_and_not_suggested(name, monkeypatch):
    offers(monkeypatch, [(group, name, "math:pi") for group in GROUPS])
    for group in GROUPS:
        assert name not in Plugins().names(group)
        with pytest.raises(InputError, match="has a name that is not allowed; allowed: up to 64 letters") as refused:
            Plugins().find(group, name, [])
        assert "\n" not in str(refused.value)


def test_list_shows_clashes_and_odd_names_without_failing(monkeypatch, capsys):
    odd = [("objectives", "flops", "math:pi"), ("engines", "a b", "math:pi"), ("teachers", "exits", "exits:now")]
    offers(monkeypatch, [*odd, ("proxies", "two", "math:pi"), ("proxies", "two", "math:tau")])
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "has a built-in name",
        "has a name that is not allowed",
        "are two of the same name",
        "cannot be loaded",
    ):
        assert words in shown


@pytest.mark.parametrize("error", ["SystemExit(3)", "KeyError('x')", "GeneratorExit()", "BaseException()"])
def test_a_package_that_fails_as_it_is_loaded_is_named(error, monkeypatch, tmp_path):
    (tmp_path / "failing.py").write_text(f"raise {error}")
    monkeypatch.syspath_prepend(tmp_path)
    offers(monkeypatch, [("engines", "failing", "failing:engine")])
    with pytest.raises(InputError, match=f"'failing' of engines .* cannot be loaded: {error.partition('(')[0]}"):
        Plugins().find("engines", "failing", [])


def test_the_column_of_an_objective_may_not_be_one_of_ours(toy_config):
    disguised = replace(FLOPS, cost=lambda subnet, _: 1)
    with pytest.raises(InputError, match="objective 'harmless' has the column 'flops'"):
        search(replace(toy_config, objectives="harmless,params"), plugins=Plugins(objectives={"harmless": disguised}))
    own = Objective("relation_loss", "", "", "minimize", is_proxy=True)
    kind = ProxyKind(own, lambda teacher, held_out, device: None)
    with pytest.raises(InputError, match="objective 'mine' has the column 'relation_loss'"):
        search(replace(toy_config, proxy="mine"), plugins=Plugins(proxies={"mine": kind}))


def with_cost(toy_config, cost, **changes):
    """A search by a cost of one's own and FLOPs, which trains nothing."""
    mine = Objective("mine", "mine", "", changes.pop("direction", "minimize"), cost=lambda subnet, _: cost(subnet))
    config = replace(toy_config, **{"objectives": "mine,flops", **changes})
    return search(config, plugins=Plugins(objectives={"mine": mine}))


@pytest.mark.parametrize(
    "cost",
    [
        lambda subnet: -1.0 * subnet.layers,
        lambda subnet: 1 / subnet.layers,
        lambda subnet: 0,
        lambda subnet: -7,
        lambda subnet: np.float32(subnet.heads * 0.3),
        lambda subnet: np.arange(-4, 99)[subnet.layers],
        lambda subnet: abs(subnet.heads - 3),
    ],
    ids=["negative", "decreasing", "zero", "constant", "float32", "int64", "not monotone"],
)
def test_the_box_of_a_cost_holds_every_subnet_of_its_space(toy_config, cost):
    space = load_space("debug")
    costs = [cost(space.decode(genome)) for genome in space.genomes()]
    for direction in ("minimize", "maximize"):
        mine = Objective("mine", "mine", "", direction, cost=lambda subnet, _: cost(subnet))
        config = replace(toy_config, objectives="mine,flops")
        inputs = resolve_search(config, plugins=Plugins(objectives={"mine": mine}))
        ideal, reference = map(mine.minimised, inputs.cost_box(mine))
        assert all(ideal <= mine.minimised(value) < reference for value in costs)
        assert inputs.cost_box(FLOPS) == (0.0, 1.01 * FLOPS.cost(space.largest, None))  # as it ever was


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_share_of_the_hypervolume_is_one_if_a_cost_is_negative(toy_config, direction):
    run = with_cost(toy_config, lambda subnet: np.int64(-subnet.layers), direction=direction, evaluations=6)
    assert 0 < run.summary["hypervolume_share"] <= 1
    low, high = sorted(run.summary["box"]["mine"])
    assert run.evaluations["mine"].between(low, high).all()


@pytest.mark.parametrize("bad", [math.nan, None, "3", 1j, True, 10**400])
def test_a_cost_that_is_no_number_for_some_subnet_is_refused_before_anything_is_trained(toy_config, bad):
    with pytest.raises(InputError, match=r"objective 'mine' gave .* for subnet .*, 4 heads of 8; allowed: a finite"):
        with_cost(toy_config, lambda subnet: bad if subnet.heads == 4 else 1.0, objectives="acc,mine")
    assert not Path(toy_config.out).exists()


def test_a_constraint_on_a_cost_that_does_not_grow_is_tried_on_all_subnets(toy_config):
    run = with_cost(toy_config, lambda subnet: 1 + subnet.heads % 4, constraint=["mine>=3"], evaluations=16)
    assert set(run.frontier["mine"]) == {3}


def test_in_a_space_too_large_to_list_costs_lie_between_the_ends_or_are_refused(toy_config):
    elastic = replace(toy_config, space="elastic", teacher="packaged", evaluations=4)
    with pytest.raises(InputError, match=r"objective 'mine' is .* for subnet .*; allowed: costs in this range, or"):
        with_cost(elastic, lambda subnet: len({layer.ffn_size for layer in subnet.each_layer}))


def failing(candidates, **_):
    class Engine:
        def ask(self):
            raise KeyError("lost")

    return Engine()


def asking_for_what_is_not_there(candidates, **_):
    class Engine:
        def ask(self):
            return [(99,) * len(candidates.space.choices)]

    return Engine()


@pytest.mark.parametrize("make", [failing, asking_for_what_is_not_there, lambda: None])
def test_an_engine_that_fails_is_named(toy_config, make):
    config = replace(toy_config, engine="mine", objectives="params,flops")
    with pytest.raises(
        InputError, match=r"engine 'mine' (cannot be made: TypeError|failed to ask .*: (KeyError|Index))"
    ):
        search(config, plugins=Plugins(engines={"mine": make}))


def test_an_engine_is_seeded_by_the_seed_of_the_search_and_not_of_the_training(toy_config):
    seeds = []

    def make(candidates, *, seed, **_):
        seeds.append(seed)
        return failing(candidates)

    for search_seed in (None, 7):
        config = replace(toy_config, engine="mine", objectives="params,flops", seed=3, search_seed=search_seed)
        with pytest.raises(InputError, match="engine 'mine' failed to ask"):
            search(replace(config, out=f"{config.out}-{search_seed}"), plugins=Plugins(engines={"mine": make}))
    assert seeds == [3, 7]


def test_what_was_scored_before_an_objective_failed_is_kept(toy_config):
    calls = []

    def measure(student):
        calls.append(student)
        if len(calls) == 4:
            raise SystemExit(0)
        return np.float32(len(calls))

    plugins = Plugins(objectives={"mine": Objective("mine", "", "", "minimize", measure=measure)})
    config = replace(toy_config, objectives="mine,flops", evaluations=6)
    with pytest.raises(InputError, match=r"objective 'mine' failed on subnet .*: SystemExit: 0"):
        search(config, plugins=plugins)
    run = search(config, plugins=plugins)
    assert run.evaluations["mine"].tolist() == [1, 2, 3, 5, 6, 7]
