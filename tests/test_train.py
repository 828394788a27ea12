"""`train` and what is searched of it, alone and as several processes, on toy inputs."""

import csv
import subprocess
from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from processes import LAUNCH_TWO
from safetensors.torch import load_file
from torch.testing import assert_close

from autodistil_search import InputError, SearchConfig, TrainConfig, search, train
from autodistil_search.base.device import Device
from autodistil_search.base.resources import FreeMemory
from autodistil_search.cli.main import main
from autodistil_search.distillation.checkpoints import Course
from autodistil_search.report.training_figure import training_figure
from autodistil_search.runs import train as train_runs
from autodistil_search.runs.train import trained_config
from autodistil_search.runs.training_inputs import fit_together, resolve_training
from autodistil_search.settings.common import flag
from autodistil_search.spaces.cost import params
from autodistil_search.spaces.search_space import load_space
from autodistil_search.text.sources import Shard

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def toy_training(toy_config: SearchConfig, tmp_path: Path) -> TrainConfig:
    shared = {field.name: getattr(toy_config, field.name) for field in fields(TrainConfig)}
    return TrainConfig(
        **{**shared, "steps": 5, "batch_size": 4, "held_out_every": None, "out": str(tmp_path / "trained")}
    )


def weights(folder: Path) -> dict:
    return load_file(folder / "superlm" / "debug" / "model.safetensors")


def flags(config: TrainConfig) -> list[str]:
    named = {"space": config.space, "teacher": config.teacher, "seq-len": config.seq_len, "steps": config.steps}
    named |= {"batch-size": config.batch_size, "lr": config.lr, "out": config.out, "precision": config.precision}
    given = [f"--{name}={value}" for name, value in named.items() if value is not None]
    return [*given, "--text", *config.texts]


@pytest.mark.drawn
def test_train_leaves_a_superlm_its_logs_and_a_figure(toy_training):
    folder = train(toy_training)
    assert {path.name for path in folder.iterdir() if path.name != ".lock"} == {
        "environment.json",
        "manifest.json",
        "superlm",
        "train.yaml",
    }
    assert trained_config(folder) == replace(toy_training, out=None, keep=2)
    log = pd.read_csv(folder / "superlm" / "debug" / "training.csv")
    assert log["step"].tolist() == [step for step in range(1, 6) for _ in range(2)]
    assert log["role"].tolist() == ["largest", "random"] * 5
    with (folder / "superlm" / "debug" / "held_out.csv").open() as file:
        measured = list(csv.DictReader(file))
    assert [row["step"] for row in measured] == [str(step) for step in range(1, 6) for _ in range(4)]
    assert [row["role"] for row in measured[:4]] == ["largest", "smallest", "random", "random"]
    assert (folder / "superlm" / "debug" / "training.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("every", "steps"), [(0, []), (2, [2, 4, 5]), (5, [5])])
def test_held_out_text_is_measured_as_often_as_asked_and_at_the_end(toy_training, every, steps):
    folder = train(replace(toy_training, held_out_every=every))
    path = folder / "superlm" / "debug" / "held_out.csv"
    assert sorted(set(pd.read_csv(path)["step"])) == steps


def test_two_processes_with_half_the_batch_each_train_the_weights_of_one(toy_training, tmp_path):
    # AdamW makes steps of up to the rate of gradients that are rounding; of bfloat16's there is more.
    toy_training = replace(toy_training, lr=4e-4, precision="fp32")
    train(toy_training)
    two = replace(toy_training, out=str(tmp_path / "two"))
    done = subprocess.run([*LAUNCH_TWO, "train", *flags(two)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stderr
    assert done.stderr.count("training SuperLM debug: 5/5 steps") == 1  # one of them talks
    assert done.stdout.count("search them: ") == 1
    found, expected = weights(Path(two.out)), weights(Path(toy_training.out))
    # No output depends on a key's bias (softmax forgets it), but for the last layer's, whose relations are distilled:
    # its gradient is rounding and nothing else, which AdamW makes steps of full size.
    idle = [name for name in expected if name.endswith("key.bias") and name != "layers.2.key.bias"]
    assert_close(
        {name: found[name] for name in found.keys() - idle},
        {name: expected[name] for name in expected.keys() - idle},
        rtol=0,
        atol=1e-5,
    )
    before = weights(train(replace(toy_training, steps=1, lr=1e-30, out=str(tmp_path / "start"))))
    moved = max((expected[name] - before[name]).abs().max().item() for name in before)
    assert moved > 5e-4  # fifty times what the two may differ by

    losses = [
        pd.read_csv(Path(out) / "superlm" / "debug" / name)["loss"]
        for out in (two.out, toy_training.out)
        for name in ("training.csv", "held_out.csv")
    ]
    assert losses[0].tolist() == pytest.approx(losses[2].tolist(), abs=1e-5)
    assert losses[1].tolist() == pytest.approx(losses[3].tolist(), abs=1e-5)


def test_a_search_of_a_trained_superlm_gives_what_a_search_that_trains_gives(toy_config, toy_training, tmp_path):
    trained = train(toy_training)
    config = replace(toy_config, steps=400, superlm=str(trained), out=str(tmp_path / "of-trained"))
    found = search(replace(config, batch_size=4))  # the defaults: what the SuperLM was trained with is taken over
    expected = search(replace(toy_config, steps=5, batch_size=4))
    assert found.evaluations.equals(expected.evaluations)
    assert (found.folder / "superlm" / "debug" / "training.png").exists()
    assert found.student().config.subnet == expected.student().config.subnet
    content = yaml.safe_load((found.folder / "config.yaml").read_text())
    assert (content["steps"], content["superlm"]) == (5, str(trained))


def test_other_training_settings_than_those_of_the_superlm_are_refused(toy_config, toy_training):
    trained = train(toy_training)
    plain = {"steps": 400, "batch_size": 4, "superlm": str(trained)}  # 400 is the default: not asked for
    with pytest.raises(
        InputError, match=r"^--lr 0\.1, but --superlm .* was trained with the default; allowed: that, or to"
    ):
        search(replace(toy_config, **plain, lr=0.1))
    with pytest.raises(InputError, match=r"^--space tiny, but --superlm .* has debug$"):
        search(replace(toy_config, **plain, space="tiny"))


def test_a_chosen_setting_is_refused_though_it_is_the_default(tmp_path, refusal):
    trained = TrainConfig(steps=5, batch_size=2, hidden=0.5, text=["/texts/a.txt"])
    for name, value in (("steps", 400), ("batch_size", 4), ("hidden", 1.0), ("text", ["packaged"]), ("stream", True)):
        with pytest.raises(InputError, match=rf"^{flag(name)} .*, but --superlm x was trained with "):
            SearchConfig(superlm="x", **{name: value}).trained_as(trained)
    assert SearchConfig(superlm="x", steps=5).trained_as(trained).batch_size == 2
    left_open = replace(SearchConfig(superlm="x", steps=7), steps=400)
    assert left_open.trained_as(trained).steps == 5
    assert SearchConfig(superlm="x", text=["packaged"]).trained_as(TrainConfig()).texts == ["packaged"]

    (tmp_path / "train.yaml").write_text(yaml.safe_dump(trained.to_dict()))
    (tmp_path / "given.yaml").write_text("steps: 400\n")
    for chosen in (["--steps", "400"], ["--config", str(tmp_path / "given.yaml")], ["--config", "{steps: 400}"]):
        line = refusal(["search", "--superlm", str(tmp_path), "--out", str(tmp_path / "run"), *chosen])
        assert f"--steps 400, but --superlm {tmp_path} was trained with 5; allowed: that, or to leave it out" in line


def test_with_a_superlm_the_seed_is_that_of_the_search():
    trained = TrainConfig(seed=7)
    for chosen, expected in (
        ({}, (7, None, 7)),
        ({"seed": 3}, (7, 3, 3)),
        ({"seed": 0}, (7, 0, 0)),
        ({"search_seed": 3}, (7, 3, 3)),
        ({"seed": 7, "search_seed": 0}, (7, 0, 0)),
    ):
        config = SearchConfig(superlm="x", **chosen).trained_as(trained)
        assert (config.seed, config.search_seed, config.engine_seed) == expected
        assert config.trained_as(trained) == config  # as when it is continued from its config.yaml
        assert SearchConfig.from_dict(config.to_dict()).trained_as(trained).engine_seed == config.engine_seed
    with pytest.raises(InputError, match="--seed 3, but --superlm x was trained with 7"):
        SearchConfig(superlm="x", seed=3, search_seed=4).trained_as(trained)
    assert SearchConfig(seed=3, search_seed=3).to_dict() == SearchConfig(seed=3).to_dict()
    old = {key: value for key, value in SearchConfig(seed=3).to_dict().items() if key != "search_seed"}
    assert SearchConfig.from_dict(old).engine_seed == 3


def test_a_search_seed_changes_which_subnets_are_scored_and_nothing_else(toy_config, toy_training, tmp_path):
    trained = train(toy_training)
    config = replace(toy_config, steps=400, batch_size=4, superlm=str(trained), engine="random")
    runs = [search(replace(config, seed=seed, out=str(tmp_path / f"{seed}"))) for seed in (0, 3)]
    first, second = (
        run.evaluations.drop(columns="space").set_index(["layers", "hidden_size", "mlp_ratio", "heads"]) for run in runs
    )
    assert set(first.index) != set(second.index)
    both = first.index.intersection(second.index)
    assert len(both) > 0
    assert first.loc[both].equals(second.loc[both])
    changed = [key for key, value in runs[0].config.to_dict().items() if runs[1].config.to_dict()[key] != value]
    assert changed == ["search_seed"]
    said = [dict(run.summary["conditions"]) for run in runs]
    assert [key for key, value in said[0].items() if said[1][key] != value] == ["engine"]


def test_a_superlm_whose_text_has_changed_since_is_refused(toy_config, toy_training, tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text(Path(toy_config.texts[0]).read_text())
    toy_config, toy_training = (replace(each, text=[str(text)]) for each in (toy_config, toy_training))
    trained = train(toy_training)
    text.write_text("w1 w2 w3\n\nw4 w5 w6\n" * 200)
    with pytest.raises(InputError, match=r"other settings: text was '\w+' and is now '\w+'"):
        search(replace(toy_config, steps=400, batch_size=4, superlm=str(trained)))


@pytest.mark.parametrize("change", [{"mlp_ratio": [1.0, 2.0]}, {"depth": "prefix"}])  # the largest stays what it was
def test_a_superlm_whose_space_has_changed_since_is_refused(change, toy_config, toy_training, tmp_path):
    space = tmp_path / "007.yaml"
    before = load_space("debug").to_dict() | {"name": "007"}
    space.write_text(yaml.safe_dump(before))
    trained = train(replace(toy_training, space=str(space)))
    config = replace(toy_config, space=str(space), steps=400, batch_size=4, superlm=str(trained))
    assert set(search(config).evaluations["space"]) == {"007"}  # a name, however it looks
    space.write_text(yaml.safe_dump(before | change))
    with pytest.raises(InputError, match=r"space '007' has changed since .* was trained"):
        search(replace(config, out=str(tmp_path / "again")))


def test_an_unfinished_superlm_is_not_searched(toy_config, toy_training):
    trained = train(toy_training)
    for name in ("trainer_state.json", "manifest.json"):
        (trained / "superlm" / "debug" / name).unlink()
    with pytest.raises(InputError, match="is not finished; the same train command continues it"):
        search(replace(toy_config, steps=400, batch_size=4, superlm=str(trained)))


def test_a_folder_with_another_training_is_refused_and_execution_may_change(toy_training):
    folder = train(toy_training)
    with pytest.raises(InputError, match=r"steps was 5 and is now 6"):
        train(replace(toy_training, steps=6))
    assert train(replace(toy_training, keep=5, accumulate=2, held_out_every=1)) == folder


def test_streamed_text_trains_and_is_searched(toy_config, toy_training):
    folder = train(replace(toy_training, stream=True))
    stored = train(replace(toy_training, out=toy_training.out + "-stored"))
    assert weights(folder).keys() == weights(stored).keys()
    assert any(not weights(folder)[name].equal(tensor) for name, tensor in weights(stored).items())
    run = search(replace(toy_config, steps=5, batch_size=4, superlm=str(folder)))
    assert "streamed" in dict(run.report.conditions)["amount of text"]


def test_the_figure_draws_each_role_as_trained_and_as_measured():
    steps = range(1, 1001)
    training = pd.DataFrame({"step": steps, "role": ["largest", "random"] * 500, "loss": [1 / step for step in steps]})
    held_out = pd.DataFrame({"step": [500, 1000], "role": ["smallest"] * 2, "loss": [0.5, 0.25]})
    (axes,) = training_figure(training, held_out, "a title").axes
    lines = {line.get_label(): line for line in axes.lines}
    assert set(lines) == {"largest, trained on", "random, trained on", "smallest, held out"}
    assert lines["smallest, held out"].get_ydata().tolist() == [0.5, 0.25]
    assert len(lines["largest, trained on"].get_xdata()) <= 200
    assert axes.get_title() == "a title"


def test_a_training_that_learns_nothing_or_collapses_says_so(toy_training, capsys, monkeypatch):
    flags = ["--space", "debug", "--teacher", toy_training.teacher, "--text", *toy_training.text, "--seq-len", "16"]
    flags += ["--init", "random", "--lr", "1e-9", "--steps", "2", "--out", toy_training.out]
    assert main(["train", *flags]) == 0
    told = capsys.readouterr().err
    assert "4 of the 4 watched subnets of SuperLM debug have learnt next to nothing" in told
    collapse = {"step": 20, "to": 10, "lr": 5e-10, "loss": 2.0, "best": 1.0}
    monkeypatch.setattr("autodistil_search.runs.train.course_of", lambda _: Course(returns=[collapse]))
    assert main(["train", *flags]) == 0
    assert "The training of SuperLM debug collapsed at step 20" in capsys.readouterr().err


def test_a_stream_reads_its_held_out_documents_once_however_often_training_begins(toy_training, monkeypatch):
    reads, read = [], Shard.read

    def counted(self, state=None):
        reads.append(self.name)
        return read(self, state)

    monkeypatch.setattr(Shard, "read", counted)
    text = resolve_training(replace(toy_training, stream=True)).text
    assert len(reads) == 1  # one file, from its start to the last document that is held out
    blocks = [text.begin() for _ in range(3)]  # a SuperLM, a baseline, a validated subnet
    assert len(reads) == 1
    first, second, _ = (each.rows(0, 4, 7, slice(None)) for each in blocks)
    assert first.equal(second)
    assert len(blocks[0].rows(1, 4, 7, slice(None))) == 4  # each has a place of its own


def test_a_finished_superlm_is_taken_as_it_is_though_defaults_have_changed_and_needs_no_start(
    toy_config, toy_training, monkeypatch
):
    train(replace(toy_training, lr=None))
    again = load_file(Path(toy_training.out) / "superlm" / "debug" / "model.safetensors")

    def none(*_):
        raise AssertionError("a finished SuperLM needs no start")

    monkeypatch.setattr("autodistil_search.runs.train.start_from", none)
    train(replace(toy_training, lr=None))
    monkeypatch.setattr("autodistil_search.runs.training_inputs.default_learning_rate", lambda _: 1e-5)
    run = search(replace(toy_config, steps=400, batch_size=4, superlm=toy_training.out))
    taken = load_file(run.folder / "superlm" / "debug" / "model.safetensors")
    assert taken.keys() == again.keys()
    assert all(taken[name].equal(tensor) for name, tensor in again.items())
    assert any(finding.kind == "start" for finding in run.report.findings)


def test_a_training_that_diverges_before_a_measurement_says_what_to_change(toy_config):
    with pytest.raises(FloatingPointError, match=r"is nan after step 1; the last checkpoint .* Try a lower --lr"):
        search(replace(toy_config, lr=1e300, held_out_every=1, baselines="none"))


@pytest.mark.parametrize("fits", [True, False])
def test_spaces_train_together_where_they_fit_into_memory(toy_training, tmp_path, monkeypatch, fits):
    sizes = "layers: [2, 3]\nmlp_ratio: [1.5, 2.0]\nheads: [2, 4]\nhead_dim: 8\nrelation_heads: 4\n"
    for name in ("narrow", "wide"):
        width = "[16, 24]" if name == "narrow" else "[32, 48]"
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\nhidden_size: {width}\n{sizes}")
    counts, together = [], train_runs.distill_together

    def counted(distillations, *rest):
        counts.append(len(distillations))
        together(distillations, *rest)

    monkeypatch.setattr(train_runs, "distill_together", counted)
    monkeypatch.setattr(train_runs, "fit_together", lambda inputs: fits)
    folder = train(replace(toy_training, space=f"{tmp_path}/narrow.yaml,{tmp_path}/wide.yaml"))
    assert counts == ([2] if fits else [1, 1])
    assert all((folder / "superlm" / name / "model.safetensors").exists() for name in ("narrow", "wide"))


def test_superlms_fit_together_if_the_numbers_of_all_of_them_do(toy_training, monkeypatch):
    inputs = resolve_training(replace(toy_training, space="tiny,small", relation_heads=16, seq_len=16))
    needed = sum(16 * params(space.largest, inputs.teacher.vocabulary) for space in inputs.spaces)
    for free, fit in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(Device, "free_memory", lambda self, free=free: FreeMemory(free, "this machine"))
        assert fit_together(inputs) is fit
