"""Engines played again on a space that was scored whole, against hypervolumes computed by hand."""

from dataclasses import replace

import numpy as np
import pytest
import yaml

from autodistil_search import load_run, search
from autodistil_search.base.progress import Reporter
from autodistil_search.nas import engine_comparison
from autodistil_search.nas.engine_comparison import MARKS, Scored, compare
from autodistil_search.nas.engines.registry import ENGINES
from autodistil_search.nas.pareto import hypervolume
from autodistil_search.spaces.search_space import SearchSpace, load_space

pytestmark = pytest.mark.usefixtures("undrawn")

SPACE = SearchSpace("toy", (1, 2, 3), (8, 16, 24), (1.0, 2.0), (1, 2, 3), head_dim=4, relation_heads=2)
REFERENCE = np.array([2.0, 4.0])


def values_of(genome):
    subnet = SPACE.decode(genome)
    return [1 / subnet.layers + 1 / subnet.heads - subnet.hidden_size / 100, float(subnet.layers)]


def scored(**changes):
    values = {genome: values_of(genome) for genome in SPACE.genomes()}
    return replace(Scored(SPACE, values, {}, [None, lambda subnet: subnet.layers], REFERENCE), **changes)


def test_shares_are_those_of_what_the_engine_asked_for():
    whole = scored()
    order = list(SPACE.genomes())  # exhaustive asks in order
    exact = hypervolume(np.array([values_of(genome) for genome in order]), REFERENCE)
    assert whole.volume == pytest.approx(exact)
    expected = [hypervolume(np.array([values_of(each) for each in order[:n]]), REFERENCE) / exact for n in (5, 30, 54)]
    assert whole.shares(ENGINES["exhaustive"], 0, 4, (5, 30, 54)) == pytest.approx(expected)
    assert expected[-1] == pytest.approx(1)


@pytest.mark.parametrize("name", ["surrogate", "nsga2", "optuna-nsga2", "random"])
def test_shares_grow_to_all_there_is(name):
    shares = scored().shares(ENGINES[name], 1, 6, (2, 10, 25, 54))
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] == pytest.approx(1)


@pytest.mark.parametrize("name", ["surrogate", "nsga2", "random"])
def test_what_breaks_a_bound_counts_nothing(name):
    excess = {genome: [values_of(genome)[0] - 1.0] for genome in SPACE.genomes()}
    bounded = scored(excess=excess)
    kept = [values_of(genome) for genome in SPACE.genomes() if excess[genome][0] <= 0]
    assert bounded.volume == pytest.approx(hypervolume(np.array(kept), REFERENCE))
    assert bounded.shares(ENGINES[name], 0, 6, (54,)) == [pytest.approx(1)]


def test_only_subnets_with_values_are_asked_for():
    few = {genome: values_of(genome) for genome in SPACE.genomes() if genome[0] == 1}
    assert scored(values=few).shares(ENGINES["nsga2"], 0, 4, (len(few),)) == [pytest.approx(1)]


@pytest.fixture
def two_engines(monkeypatch):
    names = ("surrogate", "random", "exhaustive", "optuna-gp")
    monkeypatch.setattr(
        engine_comparison, "ENGINES", {name: ENGINES[name] for name in names} | {"age-moea2": ENGINES["nsga2"]}
    )


def test_the_table_has_a_row_for_each_engine_and_number_of_evaluations(two_engines):
    table = compare(scored(), 4, Reporter())
    assert list(table.columns) == engine_comparison.COLUMNS
    assert set(table["engine"]) == {"surrogate", "random", "age-moea2"}  # not what says nothing, or takes minutes
    assert set(table["evaluations"]) == {mark for mark in MARKS if mark < 54} == {20, 40}
    of_random = [scored().shares(ENGINES["random"], seed, 4, (20, 40)) for seed in range(3)]
    row = table[(table["engine"] == "random") & (table["evaluations"] == 40)].iloc[0]
    assert row["share"] == pytest.approx(np.mean(of_random, axis=0)[1])
    assert row["spread"] == pytest.approx(np.std(of_random, axis=0)[1])


def test_a_space_smaller_than_the_first_mark_is_not_compared(two_engines):
    space = load_space("debug")
    values = {genome: [1.0, 2.0] for genome in space.genomes()}
    assert compare(Scored(space, values, {}, [None, None], REFERENCE), 4, Reporter()).empty


def test_a_report_of_a_space_scored_whole_says_what_each_engine_would_have_found(toy_config, two_engines, tmp_path):
    content = load_space("debug").to_dict() | {"name": "larger", "layers": [1, 2, 3]}
    (tmp_path / "larger.yaml").write_text(yaml.safe_dump(content))
    config = replace(toy_config, space=str(tmp_path / "larger.yaml"), engine="exhaustive", evaluations=24)
    run = search(config)
    engines = load_run(run.folder).report.engines
    assert set(engines["engine"]) == {"surrogate", "random", "age-moea2"}
    assert engines["share"].between(0.2, 1).all()
    page = (run.folder / "report.html").read_text()
    assert "Comparison of engines" in page
    assert "after 20" in page
    share = engines.set_index("engine")["share"]["surrogate"]
    assert f"{share:.4f} ±" in page


def test_where_not_all_was_scored_nothing_is_said_of_engines(toy_config, searched):
    run = searched(toy_config)
    assert run.report.engines.empty
    assert "What each engine" not in (run.folder / "report.html").read_text()
