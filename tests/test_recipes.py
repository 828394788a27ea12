"""Shipped recipes and presets: they parse, run, and yield to flags."""

from dataclasses import fields

import pytest
import yaml

from autodistil_search.cli.main import main
from autodistil_search.runs.finished_run import load_run
from autodistil_search.settings.recipes import PRESETS, read_preset, recipe_path, shipped_recipes, summary
from autodistil_search.settings.search import SearchConfig

TOY = {"space": "debug", "seq-len": 16, "steps": 3, "batch-size": 2, "precision": "fp32"}
TOY_SEARCH = {"evaluations": 4, "eval-blocks": 4, "population": 4, "measured-seq-len": 8}


def toys(config, **others):
    values = {"teacher": config.teacher, **TOY, "out": config.out, **others}
    return [*(f"--{name}={value}" for name, value in values.items()), "--text", *config.texts]


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_recipe_says_what_for_how_and_at_what_cost_and_has_settings_of_a_search(name):
    text = recipe_path(name).read_text()
    content = yaml.safe_load(text)
    assert {*content} <= {field.name for field in fields(SearchConfig)}
    SearchConfig.from_dict(content)
    assert len(summary(name)) <= 50  # one line of the help
    assert f"--{'preset' if name in PRESETS else 'config'} {name}" in text
    assert "# Cost: " in text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", shipped_recipes())
def test_a_recipe_runs_for_three_steps(name, toy_config, tmp_path):
    if name == "paper":
        assert main(["train", "--preset", name, *toys(toy_config), "--quiet"]) == 0
        settings = yaml.safe_load((tmp_path / "run" / "train.yaml").read_text())
        assert (settings["loss"], settings["steps"], settings["stream"]) == ("mse", 3, True)
        out = str(tmp_path / "search")
        searching = ["search", "--preset", name, "--superlm", toy_config.out, *toys(toy_config, **TOY_SEARCH, out=out)]
        assert main([*searching, "--quiet"]) == 0
        assert load_run(out).config.loss == "mse"
        return
    (tmp_path / "my.csv").write_text("text,label\n" + "".join(f"w{i} w{i % 7},{'ab'[i % 2]}\n" for i in range(120)))
    of_recipe = {
        "own-task": {"proxy": f"probe:{tmp_path / 'my.csv'}"},
        "latency-budget": {"constraint": "latency<=1000"},
    }
    baselines = {} if name == "quickstart" else {"baselines": "none"}
    changes = TOY_SEARCH | baselines | of_recipe.get(name, {})
    assert main(["search", "--config", name, *toys(toy_config, **changes), "--quiet"]) == 0
    run = load_run(toy_config.out)
    shipped = yaml.safe_load(recipe_path(name).read_text())
    changed = {flag.replace("-", "_") for flag in (TOY | changes | {"teacher": 0, "text": 0})}
    assert {key: getattr(run.config, key) for key in shipped.keys() - changed} == {
        key: shipped[key] for key in shipped.keys() - changed
    }


def settings_of(command, capsys, *arguments):
    assert main([command, *arguments, "--print-config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_flags_win_over_presets_and_files_wherever_they_stand_and_the_last_file_over_those_before(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("steps: 7\nlr: 0.5\n")
    mine = ["--config", str(tmp_path / "mine.yaml")]
    quick = read_preset("quick")
    found = settings_of("search", capsys, "--steps", "5", "--preset", "quick", "--evaluations", "9")
    assert (found["steps"], found["evaluations"], found["eval_blocks"]) == (5, 9, quick["eval_blocks"])
    assert settings_of("search", capsys, "--preset", "quick", *mine)["steps"] == 7
    found = settings_of("search", capsys, *mine, "--preset", "quick")
    assert (found["steps"], found["lr"]) == (quick["steps"], 0.5)
    assert settings_of("train", capsys, "--preset", "gpu", "--no-stream")["stream"] is False
    assert settings_of("search", capsys, "--preset", "quick", "--tokens", "1K")["steps"] == 2  # of 4 x 128


def test_a_preset_is_one_of_a_few_and_a_file_wins_over_a_recipe(refusal, tmp_path, monkeypatch, capsys):
    assert refusal(["search", "--preset", "lapttop"]) == (
        f"error: --preset 'lapttop' (did you mean 'laptop'?); allowed: {', '.join(PRESETS)}\n"
    )
    assert "--preset 'own-task'" in refusal(["search", "--preset", "own-task"])
    assert "no file or recipe 'quick-start' (did you mean 'quickstart'?)" in refusal(
        ["search", "--config", "quick-start"]
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick").write_text("steps: 7\n")
    (tmp_path / "paper").mkdir()
    assert settings_of("search", capsys, "--config", "quick")["steps"] == 7
    assert settings_of("search", capsys, "--config", "paper")["loss"] == "mse"
