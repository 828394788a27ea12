"""Latency predicted from sizes: the fit against closed forms, and a run that searches by it."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from autodistil_search import InputError, Objective, load_run, search
from autodistil_search.nas import hardware
from autodistil_search.nas.latency_predictor import ROUNDS, Predictor, error, features
from autodistil_search.spaces.search_space import load_space
from autodistil_search.spaces.subnet import Subnet

pytestmark = pytest.mark.usefixtures("undrawn")


def fitted(subnets, seconds):
    predictor = Predictor()
    predictor.take(json.loads(json.dumps(predictor.fit(subnets, seconds))))
    return predictor


def sampled(name, n, seed=0):
    rng = random.Random(seed)
    space = load_space(name)
    return [space.sample(rng) for _ in range(n)]


@pytest.mark.parametrize("name", ["tiny", "elastic", "oneshot"])
def test_a_sum_of_the_features_is_found_again(name):
    rng = np.random.default_rng(0)
    weights = rng.random(8) / features(load_space(name).largest)

    def milliseconds(subnet):
        return float(features(subnet) @ weights)

    predictor = fitted(sampled(name, 40), milliseconds)
    others = sampled(name, 50, seed=1)
    assert [predictor.predict(subnet) for subnet in others] == pytest.approx(list(map(milliseconds, others)), rel=1e-6)
    assert predictor.quality["fitted_on"] == 40
    assert predictor.quality["error_left_out"]["most"] < 1e-6


def test_the_stated_error_is_that_of_subnets_left_out():
    """With twenty percent of noise, predictions are off by about that, not by what is left after fitting it."""
    noise = random.Random(1)
    subnets = sampled("tiny", 40)
    told = Predictor().fit(subnets, lambda subnet: subnet.layers * noise.choice([0.8, 1.2]))
    assert 0.15 < told["error"]["mean"] < 0.3


def test_a_machine_that_is_slow_for_a_while_does_not_spoil_the_fit():
    calls = []

    def slow_at_first(subnet):
        calls.append(subnet)
        return subnet.layers * (3.0 if len(calls) <= 20 else 1.0)

    subnets = sampled("tiny", 20)
    assert fitted(subnets, slow_at_first).predict(subnets[0]) == pytest.approx(subnets[0].layers, rel=1e-6)


def test_features_of_unlike_layers_add_up():
    unlike = Subnet.of_layers(32, [64, 96], [2, 4], 8)
    ends = [Subnet(1, 32, 64, 2, 8), Subnet(1, 32, 96, 4, 8)]
    assert (features(unlike)[1:] == sum(features(end)[1:] for end in ends)).all()
    assert (features(Subnet(3, 32, 64, 2, 8))[1:] == 3 * features(ends[0])[1:]).all()


def test_errors_are_relative():
    found = error([1.0, 3.0], [2.0, 2.0])
    assert (found["mean"], found["most"]) == (0.5, 0.5)
    assert error([1.0, 2.0, 3.0], [5.0, 6.0, 9.0])["tau"] == 1


@pytest.fixture
def clock(monkeypatch):
    """Latency that follows from the sizes, and a list of what was measured."""
    asked = []

    def latency(model, load):
        asked.append(model.config.subnet)
        return {"latency": model.config.subnet.layers * 2.0 + model.config.subnet.heads / 8, "latency_iqr": 0.1}

    monkeypatch.setattr(hardware, "latency", latency)
    monkeypatch.setattr("autodistil_search.runs.search.headline_of", lambda *_: None)  # it measures, too
    return asked


def test_a_search_by_predicted_latency_measures_a_few_and_the_frontier(toy_config, clock):
    config = replace(
        toy_config, objectives="acc,predicted_latency", latency_samples=5, evaluations=16, measured_seq_len=8
    )
    run = search(config)
    assert len(clock) == ROUNDS * (5 + len(run.frontier))
    assert "latency" not in run.evaluations
    assert list(run.frontier["latency"]) == pytest.approx(
        [row.layers * 2 + row.heads / 8 for row in run.frontier.itertuples()]
    )
    note = run.report.notes[0]
    assert note.startswith("Latency was predicted by a model fitted on 5 measured subnets; leave-one-out: mean error ")
    assert f"of its {len(run.frontier)} subnets are also on the frontier of the measured values." in note
    (run.folder / "report.html").unlink()
    again = search(config)  # nothing is measured twice
    assert len(clock) == ROUNDS * (5 + len(run.frontier))
    assert again.frontier.equals(run.frontier)
    assert load_run(run.folder).frontier["latency"].equals(run.frontier["latency"])


def test_more_samples_are_measured_when_asked_for(toy_config, clock):
    config = replace(toy_config, objectives="params,predicted_latency", measured_seq_len=8, latency_samples=9)
    run = search(config)
    assert len(clock) == ROUNDS * (9 + len(run.frontier))


def test_a_bound_on_predicted_latency_is_kept(toy_config, clock):
    config = replace(toy_config, objectives="acc,params", measured_seq_len=8, latency_samples=16, evaluations=16)
    run = search(replace(config, constraint=["predicted_latency<=4.4"]))
    assert len(run.evaluations) == 4  # of 8 with two layers, those with two heads
    with pytest.raises(InputError, match="predicted_latency<=1 cannot be kept in space 'debug'"):
        search(replace(config, constraint=["predicted_latency<=1"], out=toy_config.out + "-2"))


def test_two_searches_at_a_study_measure_their_own_frontiers(toy_config, clock, tmp_path):
    shared = {"storage": str(tmp_path / "study.log"), "evaluations": 16, "engine": "exhaustive", "measured_seq_len": 8}
    config = replace(toy_config, objectives="acc,predicted_latency", latency_samples=16, **shared)
    for name, bounds in {"all": None, "small": ["params<=40K"]}.items():
        frontier = search(replace(config, constraint=bounds, out=str(tmp_path / name))).frontier
        expected = [row.layers * 2 + row.heads / 8 for row in frontier.itertuples()]
        assert list(frontier["latency"]) == pytest.approx(expected)


def test_a_prediction_is_named_as_such():
    from autodistil_search.base.device import choose_device
    from autodistil_search.nas.objectives import predicted_latency

    objective = predicted_latency(Predictor(), hardware.Load(1, 8, choose_device("cpu", "fp32")))
    assert isinstance(objective, Objective)
    assert (objective.name, objective.label, objective.direction) == (
        "predicted_latency",
        "predicted latency",
        "minimize",
    )
    assert objective.unit.startswith("ms, 1 x 8 tokens")
