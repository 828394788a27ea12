"""`distil`: a chosen student trained further, exactly as if never stopped, and better than it was."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from autodistil_search import load_run, search
from autodistil_search.cli import main
from autodistil_search.config import DistilConfig
from autodistil_search.errors import InputError
from autodistil_search.students import distil


@pytest.fixture
def run(toy_config):
    return search(toy_config)


@pytest.fixture
def config(run, tmp_path):
    return DistilConfig(run=str(run.folder), pick="1", steps=30, lr=2e-3, out=str(tmp_path / "student"))


def test_a_student_starts_as_the_subnet_it_was_and_gets_better(run, config):
    found = distil(config)
    row = run.frontier.iloc[0]
    assert found.before == pytest.approx(row["relation_loss"], rel=1e-6)
    assert found.after < found.before
    summary = json.loads((Path(config.out) / "distil.json").read_text())
    assert summary["relation_loss"] == {"before": found.before, "after": found.after}
    model = AutoModel.from_pretrained(found.folder)
    assert model.num_parameters() == row["params"]
    held_out = pd.read_csv(found.folder / "held_out.csv")
    assert held_out["step"].tolist() == list(range(3, 31, 3))
    assert held_out["loss"].iloc[-1] == pytest.approx(found.after, rel=1e-4)
    assert len(AutoTokenizer.from_pretrained(found.folder)) == model.config.vocab_size
    assert (found.folder / "training.png").stat().st_size > 10_000


def test_a_run_that_was_distilled_on_stays_as_it_was(run, config):
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    distil(config)
    assert before == {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}


def test_a_training_killed_in_between_ends_as_one_never_stopped(config, tmp_path):
    whole = distil(replace(config, out=str(tmp_path / "whole")))
    code = (
        "import os, signal\n"
        "from autodistil_search.checkpoint import Checkpoints\n"
        "from autodistil_search.config import DistilConfig\n"
        "from autodistil_search.students import distil\n"
        "save = Checkpoints.save\n"
        "def kill(self, step, text):\n"
        "    save(self, step, text)\n"
        "    if step == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Checkpoints.save, Checkpoints.due = kill, True\n"
        f"distil(DistilConfig(run={config.run!r}, pick='1', steps=30, lr=2e-3, out={config.out!r}))\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    resumed = distil(config)
    weights = [load_file(each.folder / "model.safetensors") for each in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert resumed.after == whole.after


@pytest.mark.parametrize("change", [{"steps": 8}, {"lr": 1e-4}, {"seed": 1}, {"batch_size": 3}, {"pick": "knee"}])
def test_every_setting_changes_what_it_should_and_needs_a_folder_of_its_own(change, config, tmp_path):
    short = replace(config, steps=6)
    first = distil(short)
    other = distil(replace(short, out=str(tmp_path / "other"), **change))
    weights = [load_file(each.folder / "model.safetensors") for each in (first, other)]
    unlike = [name for name in weights[0] if not _equal(weights[0][name], weights[1].get(name))]
    assert unlike
    with pytest.raises(InputError, match=f"{next(iter(change))} was"):
        distil(replace(short, **change))


def _equal(a, b):
    return b is not None and a.shape == b.shape and torch.equal(a, b)


def test_another_text_may_be_trained_on(config, toy_text):
    text = toy_text(80, seed=5, name="other.txt")
    distil(replace(config, steps=2, text=[str(text)]))
    environment = json.loads((Path(config.out) / "environment.json").read_text())
    assert (
        environment["inputs"]["text"]
        != json.loads((Path(config.run) / "environment.json").read_text())["inputs"]["text"]
    )


def test_from_the_command_line(run, tmp_path, capsys):
    out = tmp_path / "by hand"
    assert main(["distil", str(run.folder), "--pick", "knee", "--steps", "4", "--out", str(out)]) == 0
    summary = json.loads((out / "distil.json").read_text())
    assert f"{summary['relation_loss']['after']:.4f} now" in capsys.readouterr().out


def test_what_cannot_be_used_is_one_line(run, refusal, tmp_path):
    assert "holds no finished run" in refusal(["distil", str(tmp_path / "nowhere")])
    assert "--pick" in refusal(["distil", str(run.folder), "--pick", "best"])
    assert "--lr -1" in refusal(["distil", str(run.folder), "--lr", "-1"])
    assert "--steps 0" in refusal(["distil", str(run.folder), "--steps", "0"])
    assert load_run(run.folder).folder == run.folder
