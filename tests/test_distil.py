"""`distil`: a chosen student trained further, exactly as if never stopped, and better than it was."""

import json
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from processes import LAUNCH_TWO, SERVER, killed_after_saving
from rounding import loss_rounding
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from autodistil_search import load_run, search
from autodistil_search.base.errors import InputError
from autodistil_search.cli.main import main
from autodistil_search.runs.distil import distil
from autodistil_search.settings.distil import DistilConfig

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def run(toy_config, searched):
    return searched(toy_config)


@pytest.fixture
def config(run, tmp_path):
    return DistilConfig(
        run=str(run.folder), pick="1", steps=30, lr=2e-3, precision="fp32", out=str(tmp_path / "student")
    )


@pytest.mark.drawn
def test_a_student_starts_as_the_subnet_it_was_and_gets_better(run, config):
    found = distil(config)
    row = run.frontier.iloc[0]
    assert found.before == pytest.approx(row["relation_loss"], abs=loss_rounding(16))
    assert found.after < found.before
    summary = json.loads((Path(config.out) / "distil.json").read_text())
    assert summary["relation_loss"] == {"before": found.before, "after": found.after}
    assert summary["row"]["flops"] == row["flops"]
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
    killed = SERVER.Process(target=killed_after_saving, args=(7, distil, config))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    resumed = distil(config)
    weights = [load_file(each.folder / "model.safetensors") for each in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert resumed.after == whole.after


def test_two_processes_train_the_student_of_one_and_only_the_first_writes_and_talks(config, tmp_path):
    config = replace(config, steps=4, batch_size=4, lr=4e-4)  # of the size that AdamW steps of mere rounding may have
    alone, out = distil(config), tmp_path / "two"
    flags = [config.run, "--pick", "1", "--steps", "4", "--batch-size", "4", "--lr", "4e-4"]
    done = subprocess.run(
        [*LAUNCH_TWO, "distil", *flags, "--precision=fp32", f"--out={out}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" after;") == 1
    found, expected = (load_file(folder / "model.safetensors") for folder in (out / "student", alone.folder))
    idle = [name for name in expected if name.endswith("key.bias") and name != "layers.1.key.bias"]  # see test_training
    for name in expected.keys() - idle:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)
    summaries = [json.loads((each / "distil.json").read_text())["relation_loss"] for each in (out, Path(config.out))]
    assert summaries[0] == pytest.approx(summaries[1], abs=1e-4)


def test_every_setting_changes_what_it_should_and_needs_a_folder_of_its_own(config, tmp_path):
    short = replace(config, steps=6)
    first = load_file(distil(short).folder / "model.safetensors")
    for name, value in {"steps": 8, "lr": 1e-4, "seed": 1, "batch_size": 3, "pick": "knee"}.items():
        other = load_file(
            distil(replace(short, out=str(tmp_path / name), **{name: value})).folder / "model.safetensors"
        )
        assert not all(_equal(weight, other.get(key)) for key, weight in first.items()), name
        with pytest.raises(InputError, match=f"{name} was"):
            distil(replace(short, **{name: value}))


def test_without_a_rate_it_is_a_quarter_of_the_superlms(run, config):
    found = distil(replace(config, steps=2, lr=None))
    rates = [
        json.loads((folder / "trainer_state.json").read_text())["settings"]["lr"]
        for folder in (found.folder, run.folder / "superlm" / "debug")
    ]
    assert rates[0] == rates[1] / 4


def test_a_shallow_student_of_a_deep_superlm_has_a_quarter_of_that_rate(toy_config, config, tmp_path):
    space = tmp_path / "deep.yaml"
    space.write_text("layers: [2, 9]\nhidden_size: [16]\nmlp_ratio: [2]\nheads: [4]\nhead_dim: 4\nrelation_heads: 4\n")
    run = search(replace(toy_config, space=str(space), lr=None, steps=2, out=str(tmp_path / "deep")))
    found = distil(replace(config, run=str(run.folder), steps=2, lr=None))
    assert found.row["layers"] == 2
    states = [folder / "trainer_state.json" for folder in (run.folder / "superlm" / "deep", found.folder)]
    rates = [json.loads(path.read_text())["settings"]["lr"] for path in states]
    assert rates == [3.6e-3, 9e-4]  # 0.13 / (9 x 4)


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
    assert f"{summary['relation_loss']['after']:.4f} after" in capsys.readouterr().out


def test_what_cannot_be_used_is_one_line(run, refusal, tmp_path):
    assert "holds no finished run" in refusal(["distil", str(tmp_path / "nowhere")])
    assert "--pick" in refusal(["distil", str(run.folder), "--pick", "best"])
    assert "--lr must be" in refusal(["distil", str(run.folder), "--lr", "-1"])
    assert "--steps must be" in refusal(["distil", str(run.folder), "--steps", "0"])
    assert load_run(run.folder).folder == run.folder


def test_the_whole_way_from_the_frontier_to_a_measured_classifier(run, config, tmp_path, refusal, printed_json):
    table = tmp_path / "mail.csv"
    rows = "".join(f"w{i % 40} w{i % 7}{' w9' * (i % 20)},{'ab'[i % 40 < 20]}\n" for i in range(200))
    table.write_text("words,kind\n" + rows)
    columns = ["--text-columns", "words", "--label-column", "kind"]
    student, tuned, exported = (str(tmp_path / name) for name in ("student", "tuned", "exported"))
    distilled = printed_json(["distil", str(run.folder), "--steps", "4", "--out", student])
    assert distilled["relation_loss"] == json.loads((Path(student) / "distil.json").read_text())["relation_loss"]
    assert distilled["row"]["flops"] == run.knee["flops"]
    flags = ["--epochs", "1", "--seeds", "2", "--max-length", "8", "--lr", "1e-3", *columns]
    finetuned = printed_json(["finetune", student, "--task", str(table), *flags, "--out", tuned])
    found = printed_json(["export", tuned, "--out", exported, "--int8", "--task", str(table)])
    assert found == {"folder": exported, **json.loads((Path(exported) / "export.json").read_text())}
    summary = json.loads((Path(tuned) / "summary.json").read_text())
    results = pd.read_csv(Path(tuned) / "results.csv").set_index("seed")
    assert finetuned["metrics"] == summary["metrics"]
    assert [row["accuracy"] for row in finetuned["results"]] == results["accuracy"].to_list()
    best = results.loc[int(summary["model"].removeprefix("seed-"))]
    card = (Path(exported) / "README.md").read_text()
    words = f"accuracy {best['accuracy']:.4f}, macro F1 {best['f1_macro']:.4f}"
    assert f"On the 40 dev rows of mail, at most 8 tokens of each, in float32: PyTorch {words}" in card
    assert card.count(words) >= 2  # ONNX computes the same
    loss = distilled["relation_loss"]
    assert "4 steps alone, starting from its SuperLM weights" in card
    assert f"; held-out relation loss {loss['before']:.4f} before" in card
    assert "| fine-tuning | mail by labels: up to 1 passes over 144 rows" in card
    assert f"40 dev rows: accuracy {summary['metrics']['accuracy']['mean']:.4f}" in card
    assert "| teacher | toy-bert |" in card
    assert "| training | 3 steps" in card
    assert str(tmp_path) not in card
    assert "`model_int8.onnx` accuracy" in card
    usual, other, to = tmp_path / "usual.csv", tmp_path / "other.csv", str(tmp_path / "x")
    usual.write_text("text,label\n" + rows)
    other.write_text("words,kind\n" + rows.replace(",a", ",c"))
    assert "the student no such head" in refusal(["export", student, "--out", to, "--task", str(usual)])
    told = refusal(["export", tuned, "--out", to, "--task", str(other)])
    assert "the student has a head for labels a, b, task 'other' has b, c; allowed:" in told


def test_what_has_not_ended_is_not_taken_for_a_model(config, refusal, tmp_path):
    for name in ("distil.yaml", "finetune.yaml"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
        assert "is not finished" in refusal(["export", str(tmp_path / name), "--out", str(tmp_path / "x")])
