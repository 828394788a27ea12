"""Trackers of accelerate and callbacks: what they get, from where a resumed command continues, and what is refused."""

import importlib.util
import sys
from dataclasses import replace
from types import SimpleNamespace

import accelerate.tracking
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from autodistil_search import InputError, Reporter, finetune, search
from autodistil_search.base.errors import Terminated
from autodistil_search.base.tracking import TRACKERS, Tracking
from autodistil_search.runs.distil import distil
from autodistil_search.settings.distil import DistilConfig
from autodistil_search.settings.finetune import FinetuneConfig
from autodistil_search.settings.search import SearchConfig

QUIET = Reporter()
pytestmark = pytest.mark.usefixtures("undrawn")


def curve(folder, name):
    events = EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_tensorboard_and_a_callback_get_the_metrics_of_training_and_search(toy_config):
    seen = {}
    run = search(
        replace(toy_config, track="tensorboard"),
        reporter=QUIET,
        callback=lambda step, metrics: seen.setdefault(step, {}).update(metrics),
    )
    trained = curve(run.folder / "superlm" / "debug" / "tensorboard", "loss/largest")
    assert list(trained) == [1, 2, 3]
    assert seen[3]["superlm debug/loss/largest"] == pytest.approx(trained[3])
    shares = curve(run.folder / "tensorboard" / "search-debug", "hypervolume_share")
    assert list(shares) == list(range(1, 9))
    assert shares[8] == pytest.approx(run.report.hypervolume_share, rel=1e-6)
    assert {name for name in seen[8] if name.startswith("search debug/")} == {
        f"search debug/{name}" for name in ("hypervolume_share", "frontier", "scored/relation_loss", "scored/flops")
    }
    assert sorted(shares.values()) == list(shares.values())
    frontier = curve(run.folder / "tensorboard" / "search-debug", "frontier")
    assert frontier[8] == len(run.frontier)
    assert search(toy_config, reporter=QUIET).folder == run.folder  # the same run, whether or not it is tracked
    assert "track" not in run.config.to_dict()


@pytest.mark.parametrize("stopped_at", [2, 5])
def test_a_resumed_command_continues_its_curves(toy_config, stopped_at):
    """Stopped in training after 2 of 3 steps, or in the search after 5 of 8 subnets."""

    def stop(step, metrics):
        part = "superlm" if stopped_at == 2 else "search"
        if step == stopped_at and any(name.startswith(part) for name in metrics):
            raise Terminated("enough")

    config = replace(toy_config, track="tensorboard")
    with pytest.raises(Terminated):
        search(config, reporter=QUIET, callback=stop)
    run = search(config, reporter=QUIET)
    assert list(curve(run.folder / "superlm" / "debug" / "tensorboard", "loss/largest")) == [1, 2, 3]
    shares = curve(run.folder / "tensorboard" / "search-debug", "hypervolume_share")
    assert list(shares) == list(range(1, 9))
    assert shares[8] == pytest.approx(run.report.hypervolume_share, rel=1e-6)


def test_distil_and_finetune_are_tracked(toy_config, searched, tmp_path):
    run = searched(toy_config)
    config = DistilConfig(
        run=str(run.folder), steps=2, precision="fp32", track="tensorboard", out=str(tmp_path / "student")
    )
    assert list(curve(distil(config).folder / "tensorboard", "loss/student")) == [1, 2]
    table = tmp_path / "table.csv"
    table.write_text("text,label\n" + "".join(f"w{i % 7} w{i % 3},{'ab'[i % 2]}\n" for i in range(80)))
    settings = {"model": toy_config.teacher, "task": str(table), "epochs": 2, "seeds": 1, "max_length": 16}
    tuned = finetune(**settings, track="tensorboard", out=str(tmp_path / "tuned"), reporter=QUIET)
    folder = tuned.folder / "tensorboard" / "lr-0.0001-seed-0"
    losses, chosen = curve(folder, "loss"), curve(folder, "chosen_by/accuracy")
    assert list(losses) == list(range(1, 5))
    assert list(chosen) == [2, 4]
    assert max(chosen.values()) == pytest.approx(tuned.chosen["chosen_by"].iloc[0])


def fake_library(monkeypatch, name, **functions):
    """Let a tracker's package be one that records its calls."""
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(**functions))
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: object() if wanted in (name, "wandb") else None)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_in_a_tracker_is_continued_by_its_id(monkeypatch, tmp_path, name):
    started, logged = [], []

    def init(**arguments):
        started.append(arguments)
        return SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)

    fake_library(monkeypatch, name, init=init)
    tracking = Tracking((name,), label="mine", settings={"steps": 3, "lr": None, "text": ["a"]})
    for first in (0, 2):
        with tracking.part("superlm tiny", tmp_path / "tensorboard").opened(first) as track:
            track.log(first + 1, {"loss": 0.5})
    assert started[0] == started[1]
    assert started[0]["project"] == "autodistil_search"
    assert started[0]["resume"] == "allow"
    assert started[0]["name"].startswith("mine superlm tiny")
    assert started[0]["config"] == {"steps": 3, "text": '["a"]'}
    assert logged == [(1, {"loss": 0.5}), (3, {"loss": 0.5})]
    with tracking.part("superlm small", tmp_path / "tensorboard").opened(0):
        pass
    assert started[2] != started[0]


def test_mlflow_gets_the_metrics_of_parts_that_are_open_at_once_in_runs_of_their_own(monkeypatch, tmp_path):
    started, logged = [], []

    def start_run(run_id, run_name, **others):
        started.append((run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or f"id {len(started)}"))

    fake_library(
        monkeypatch,
        "mlflow",
        search_experiments=lambda filter_string: [],
        create_experiment=lambda **_: "1",
        start_run=start_run,
        log_params=lambda values: logged.append(values),
        log_metrics=lambda metrics, step, run_id: logged.append((run_id, step, metrics)),
        end_run=lambda: None,
        utils=SimpleNamespace(validation=SimpleNamespace(MAX_PARAM_VAL_LENGTH=99, MAX_PARAMS_TAGS_PER_BATCH=9)),
    )
    tracking = Tracking(("mlflow",), label="mine", settings={"steps": 3})
    one, two = (tracking.part(name, tmp_path / name / "tensorboard") for name in ("one", "two"))
    with one.opened(0) as first, two.opened(0) as second:
        second.log(1, {"loss": 2.0})
        first.log(1, {"loss": 1.0})
    with one.opened(1) as again:
        again.log(2, {"loss": 0.5})
    assert started == [(None, "mine one"), (None, "mine two"), ("id 1", "mine one")]
    assert logged == [
        {"steps": 3}, {"steps": 3}, ("id 2", 1, {"loss": 2.0}), ("id 1", 1, {"loss": 1.0}), ("id 1", 2, {"loss": 0.5})
    ]  # fmt: skip


def test_a_tracker_that_fails_is_left_out_and_the_work_goes_on(monkeypatch, tmp_path):
    class Failing(accelerate.tracking.TensorBoardTracker):
        def log(self, values, step=None, **kwargs):
            raise OSError("no space left")

    seen = []
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Failing)
    tracking = Tracking(("tensorboard",), callback=lambda step, metrics: seen.append(step))
    with tracking.part("toy", tmp_path / "tensorboard").opened(0) as track:
        with pytest.warns(UserWarning, match="--track tensorboard ends at step 1 of toy: OSError: no space left"):
            track.log(1, {"loss": 1.0})
        track.log(2, {"loss": 1.0})
    assert seen == [1, 2]


@pytest.mark.parametrize("config", [SearchConfig, DistilConfig, FinetuneConfig])
def test_unknown_and_missing_trackers_are_refused_at_once(monkeypatch, config):
    with pytest.raises(InputError, match=r"--track 'tensorbord' \(did you mean 'tensorboard'\?\); allowed: tensor"):
        config(track="tensorbord")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for name, command in TRACKERS.items():
        with pytest.raises(InputError) as caught:
            config(track=name)
        assert str(caught.value) == f"--track {name} needs the package {name}: {command}"


def test_workers_are_not_tracked(monkeypatch, toy_config):
    with pytest.raises(InputError, match="--track tensorboard with --executor dask"):
        FinetuneConfig(track="tensorboard", executor="dask")
    with pytest.raises(InputError, match="metrics of workers are not tracked"):
        finetune(toy_config.teacher, task="topic", callback=print, executor=object(), reporter=QUIET)
