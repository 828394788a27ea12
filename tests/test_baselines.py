"""Baselines: measured as the subnets are, trained once, and told beside the frontier."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from processes import SERVER
from rounding import loss_rounding

from autodistil_search import InputError, search
from autodistil_search.base.device import Device
from autodistil_search.base.files import cache_folder, read_json
from autodistil_search.base.progress import Reporter
from autodistil_search.base.resources import FreeMemory
from autodistil_search.distillation import teacher_batches, training_step
from autodistil_search.distillation.layer_losses import LayerTransfer
from autodistil_search.exporting.student_folder import export_student
from autodistil_search.nas import baseline_training, baselines
from autodistil_search.nas.baseline_training import grouped
from autodistil_search.nas.baselines import COPY, DISTILLED, DRAWN, MINILM, SHAPES, TINYBERT, shapes_named
from autodistil_search.runs.scoring import Scorer
from autodistil_search.runs.search_inputs import resolve_search
from autodistil_search.runs.validate_proxy import validate_proxy
from autodistil_search.settings.export import ExportOptions
from autodistil_search.settings.validate_proxy import ValidateConfig
from autodistil_search.spaces.cost import flops, params
from autodistil_search.spaces.search_space import load_space
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.relation_loss import relation_loss, relation_target
from autodistil_search.teachers.loading import load_as_student, load_teacher, truncated

pytestmark = pytest.mark.usefixtures("undrawn")


def files(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_baselines_are_measured_alike_and_kept(toy_config, monkeypatch, tmp_path):
    monkeypatch.setenv("AUTODISTIL_SEARCH_CACHE", str(tmp_path / "cache"))
    run = search(replace(toy_config, baselines="shapes:4x312"))
    (row,) = run.baselines.to_dict("records")
    subnet, vocabulary = SHAPES["TinyBERT 4x312"], load_teacher(toy_config.teacher).vocabulary
    assert (row["flops"], row["params"]) == (flops(subnet), params(subnet, vocabulary))
    trained = files(cache_folder() / "baselines")
    again = search(replace(toy_config, baselines="shapes:4x312", seed=0, engine="exhaustive", out=toy_config.out + "2"))
    pd.testing.assert_frame_equal(run.baselines, again.baselines)
    assert trained
    assert trained == files(cache_folder() / "baselines")


@pytest.mark.parametrize(
    ("model_type", "sizes", "how"),
    [("bert", {}, COPY), ("mpnet", {}, COPY), ("electra", {"embedding_size": 32}, DISTILLED)],
)
def test_only_a_teacher_without_parts_of_its_own_stands_in_for_its_shape(
    toy_config, teacher_folder, monkeypatch, model_type, sizes, how
):
    monkeypatch.setattr(baselines, "SHAPES", {"MiniLM own": Subnet(3, 48, 96, 6, 8)})
    exact = replace(toy_config, precision="fp32")
    run = search(replace(exact, teacher=str(teacher_folder(model_type, **sizes)), baselines="shapes"))
    (row,) = run.baselines.to_dict("records")
    assert row["how"] == how
    assert (row["relation_loss"] < loss_rounding(16)) == (how == COPY)


def test_other_models_are_scored_as_they_are(toy_config, teacher_folder, tokenizer, tmp_path, searched):
    """The teacher itself, a student that was saved and half of the teacher, each beside the frontier."""
    exact = replace(toy_config, precision="fp32")
    student = searched(exact).student()
    student.save_pretrained(tmp_path / "student")
    names = f"truncated,{toy_config.teacher},{tmp_path / 'student'}"
    run = search(replace(exact, baselines=names, out=toy_config.out + "2"))
    rows = run.baselines.set_index("name")
    assert set(rows.index) == {"teacher's first 2 layers", "toy-bert", "student"}
    assert rows.loc["toy-bert", "relation_loss"] < loss_rounding(16)
    assert rows.loc["toy-bert", ["layers", "how"]].to_list() == [3, "scored as it is"]
    expected = run.knee["relation_loss"]  # as a slice
    assert rows.loc["student", "relation_loss"] == pytest.approx(expected, abs=loss_rounding(16))
    assert rows.loc["student", "flops"] == run.knee["flops"]
    assert 0 < rows.loc["teacher's first 2 layers", "relation_loss"] < 2
    teacher = load_teacher(toy_config.teacher)
    kept, half = load_as_student(rows.loc["teacher's first 2 layers", "weights"], teacher), truncated(teacher)
    assert all(torch.equal(weights, kept.state_dict()[name]) for name, weights in half.state_dict().items())
    assert sum("of its FLOPs" in note or "than any subnet" in note for note in run.summary["notes"]) == 3


def test_an_exported_student_scores_as_itself_or_is_refused(toy_config, tmp_path):
    """Standard BERT's heads are padded with zeros: its relation heads are not those that were trained."""
    run = search(toy_config)
    for layout in ("own", "bert"):
        export_student(run.folder, tmp_path / layout, ExportOptions(format=layout))
    config = replace(toy_config, baselines=str(tmp_path / "own"), out=str(tmp_path / "with-own"))
    found = search(config).baselines["relation_loss"].item()
    assert found == pytest.approx(run.knee["relation_loss"], abs=loss_rounding(16))
    with pytest.raises(InputError, match=r"exported as standard BERT.*allowed: an export with --format own"):
        search(replace(config, baselines=str(tmp_path / "bert"), out=str(tmp_path / "with-bert")))


@pytest.mark.parametrize("model_type", ["bert", "mpnet"])
def test_half_of_a_teacher_is_its_first_layers(toy_teacher, toy_batch, model_type):
    teacher, (ids, mask) = toy_teacher(model_type, num_hidden_layers=4), toy_batch()
    states = teacher.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    found = truncated(teacher)(ids, mask).last_hidden_state
    torch.testing.assert_close(found[mask == 1], states[2][mask == 1])
    assert truncated(toy_teacher("electra", embedding_size=32)) is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder, save: "shape", r"--baselines 'shape' \(did you mean 'shapes'\?\)"),
        (
            lambda folder, save: str(save("electra", embedding_size=32)),
            "cannot be scored as it is: .*norm before its embeddings' projection",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is_trained(make, said, toy_config, teacher_folder, tmp_path):
    with pytest.raises(InputError, match=said):
        search(replace(toy_config, baselines=make(tmp_path, teacher_folder)))
    assert not toy_config.folder.exists()


def test_tinybert_and_minilm_are_trained_by_their_own_objectives(toy_config, teacher_folder, monkeypatch):
    """Each trained twice, by its own objective and by ours: other weights, and its own loss lower for it."""
    shapes = {"TinyBERT toy": Subnet(2, 32, 64, 4, 8), "MiniLM toy": Subnet(2, 24, 64, 6, 4)}
    monkeypatch.setattr(baselines, "SHAPES", shapes)
    names = "shapes,tinybert,minilm"
    run = search(replace(toy_config, baselines=names, steps=30, batch_size=4, lr=4e-3, proxy="relation"))
    rows = run.baselines.set_index(["name", "how"])
    teacher = load_teacher(toy_config.teacher)
    text = torch.tensor([[7, 9, 11, 13, 15, 17, 19, 21], [6, 8, 10, 12, 14, 16, 18, 20]])

    def student(name, how):
        return load_as_student(rows.loc[(name, how), "weights"], teacher)

    def losses_layer_by_layer(model):
        transfer, mask = LayerTransfer(model, teacher.model, "mse"), torch.ones_like(text)
        with torch.no_grad(), transfer.watching() as (mine, theirs):
            model(text)
            teacher.model(input_ids=text)
            return transfer(mine, theirs, mask, ("attention",))[0].item()

    def loss_of_attention(model):
        relations = (("qk", 1.0), ("vv", 1.0))
        target = relation_target(teacher.projections(text), None, teacher.subnet.heads, "kl", relations)
        return relation_loss(model.last_projections(text), target).item()

    for name, how, own_loss in (
        ("TinyBERT toy", TINYBERT, losses_layer_by_layer),
        ("MiniLM toy", MINILM, loss_of_attention),
    ):
        own, ours = student(name, how), student(name, DISTILLED)
        assert own.config.subnet == ours.config.subnet == shapes[name]
        assert own_loss(own) < own_loss(ours)
        assert np.isnan(rows.loc[(name, how), "relation_loss"])  # it says nothing of them
        assert any(note.startswith(f"{name} ({how}): not trained for") for note in run.summary["notes"])
        by_hidden = [
            read_json(Path(rows.loc[(name, each), "weights"]) / "trainer_state.json") for each in (how, DISTILLED)
        ]
        assert [state["settings"]["hidden"] for state in by_hidden] == [0.0, 1.0]
    assert rows.loc[("TinyBERT toy", DISTILLED), "relation_loss"] > 0


def test_accumulate_and_compile_reach_all_that_a_search_and_its_validation_train(toy_config, monkeypatch, tmp_path):
    monkeypatch.setenv("AUTODISTIL_SEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(baselines, "SHAPES", {"TinyBERT toy": Subnet(2, 24, 64, 6, 4)})
    step, layer_step = training_step.train_step, training_step.ModelInTraining._layer_step
    parts, compiled = [], []

    def count_rows(passes, input_ids, *arguments):
        parts.append((len(input_ids), len(passes.model.layers)))
        return step(passes, input_ids, *arguments)

    def count_rows_of_layers(self, transfer, batch):
        parts.append((len(batch.input_ids), len(self.model.layers)))
        return layer_step(self, transfer, batch)

    monkeypatch.setattr(training_step, "train_step", count_rows)
    monkeypatch.setattr(training_step.ModelInTraining, "_layer_step", count_rows_of_layers)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda layer, **_: compiled.append(layer))
    run = search(replace(toy_config, baselines="shapes,tinybert", steps=1, batch_size=4, accumulate=2, compile=True))
    assert parts == [(2, 3)] * 2 + [(2, 2)] * 4  # SuperLM, two baselines: two parts of one step
    assert len(compiled) == 3 + 2 + 2
    parts.clear()
    compiled.clear()
    found = validate_proxy(ValidateConfig(run=str(run.folder), subnets=2, bands=1, accumulate=2, precision="fp32"))
    assert parts == [(2, layers) for layers in found.measured["layers"] for _ in range(2)]
    assert len(compiled) == found.measured["layers"].sum()


def test_random_subnets_are_drawn_from_each_space_and_trained_alone(toy_config):
    run = search(replace(toy_config, baselines="random", steps=2))
    space = load_space("debug")
    drawn = [Subnet.from_row(row) for row in run.baselines.to_dict("records")]
    assert len(set(drawn)) == 3
    assert all(space.decode(space.encode(each)) == each for each in drawn)
    assert set(run.baselines["how"]) == {DRAWN}
    assert run.baselines["relation_loss"].notna().all()


def test_random_subnets_learn_at_the_rate_of_their_own_size(toy_config, monkeypatch, tmp_path):
    monkeypatch.setenv("AUTODISTIL_SEARCH_CACHE", str(tmp_path / "cache"))
    space = tmp_path / "deep.yaml"
    space.write_text("layers: [9]\nhidden_size: [16, 32]\nmlp_ratio: [1]\nheads: [2]\nhead_dim: 8\nrelation_heads: 4\n")
    run = search(replace(toy_config, space=str(space), baselines="random,truncated", baseline_rates="0.5,1", steps=2))
    states = [json.loads(path.read_text()) for path in cache_folder().glob("baselines/*/trainer_state.json")]
    own = {3.6e-3, 2.6e-3}  # 0.13 / (9 x 4) and 0.13 / (9 x 5.66)
    assert {state["settings"]["lr"] for state in states} == {lr * factor for lr in own for factor in (0.5, 1)}
    best = {}
    for state in states:
        best.setdefault(max(own, key=lambda lr: state["settings"]["lr"] in (lr, lr / 2)), []).append(state)
    kept = {min(group, key=lambda state: state["held_out_loss"])["settings"]["lr"] for group in best.values()}
    table = pd.read_csv(run.folder / "baselines.csv")
    assert set(table["lr"].dropna()) == kept
    assert table["lr"].isna().to_list() == [how != DRAWN for how in table["how"]]
    words = dict(run.report.conditions)["baselines"]
    assert words.startswith("each trained at 0.5, 1 times the default rate of its size; ")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"baselines": "none,shapes"}, "--baselines 'none,shapes'; allowed: none alone, or names without it"),
        (
            {"baselines": "shapes,tinybert:6x786"},
            r"--baselines 'tinybert:6x786' \(did you mean 'tinybert:6x768'\?\); allo",
        ),
        ({"baselines": "tinybert:6x384"}, "allowed: tinybert:4x312, tinybert:6x768$"),
        *(
            ({"baseline_rates": rates}, "--baseline-rates must be different numbers above 0, .* such as 0.5,1")
            for rates in ("", "0,1", "-1", "1,1.0", "half", "inf", "1,")
        ),
    ],
)
def test_unknown_shapes_and_rates_are_refused(toy_config, settings, said):
    with pytest.raises(InputError, match=said):
        replace(toy_config, **settings)


@pytest.mark.parametrize(
    ("word", "teacher", "names"),
    [
        ("shapes", (6, 384), ["TinyBERT 4x312", "MiniLM 3x384", "MiniLM 6x384"]),
        ("shapes", (12, 768), ["TinyBERT 4x312", "TinyBERT/MiniLM 6x768", "MiniLM 6x384", "MiniLM 12x384"]),
        ("tinybert", (12, 768), ["TinyBERT 4x312", "TinyBERT 6x768"]),
        ("minilm", (12, 768), ["MiniLM 6x384", "MiniLM 12x384", "MiniLM 6x768"]),
        ("minilm", (12, 384), ["MiniLM 6x384", "MiniLM 12x384"]),
        ("shapes", (3, 48), []),
        ("minilm:12x384", (3, 48), ["MiniLM 12x384"]),
        ("shapes:6x768", (6, 384), ["TinyBERT/MiniLM 6x768"]),
    ],
)
def test_shapes_fit_the_teacher_or_are_named(word, teacher, names):
    layers, hidden_size = teacher
    assert list(shapes_named(word, Subnet(layers, hidden_size, 4 * hidden_size, 12, 32))) == names


TOY = {"MiniLM toy": Subnet(2, 24, 64, 6, 4)}


def benches(config):
    """A function that returns the bench of a search with a given cache."""
    inputs = resolve_search(replace(config, steps=2))
    proxy = Scorer(inputs, {}).proxy

    def bench(cache):
        return baseline_training.Bench(
            teacher=inputs.teacher, begin_text=inputs.text.begin, proxy=proxy, columns=inputs.columns,
            compares=inputs.proxy_kind.compares,
            options_of=inputs.options_of, init="random", sample_ids=inputs.sample_ids, identity={}, cache=cache,
            device=inputs.device, reporter=Reporter(), execution=inputs.execution,
            held_out=inputs.text.held_out.spread,
        )  # fmt: skip

    return bench


def bench_of(config):
    """A function that measures a baseline that is trained, and one that is not, as a search with that cache does."""
    baselines.SHAPES = TOY
    bench, names = benches(config), ["minilm", "truncated"]

    def measure(cache):
        here = bench(cache)
        return [*here.untrained(names, {}), *map(here.train_and_score, grouped(here.recipes(names, [], (0.5, 1.0))))]

    return measure


@pytest.fixture
def two_of_each(toy_config, monkeypatch):
    """A function that trains two shapes by each objective that they have, at two rates or others."""
    monkeypatch.setattr(baselines, "SHAPES", TOY | {"TinyBERT toy": Subnet(3, 32, 64, 4, 8)})
    bench = benches(toy_config)

    def measure(cache, factors=(0.5, 1.0)):
        here = bench(cache)
        groups = grouped(here.recipes(["shapes", "tinybert", "minilm"], [], factors))
        return [baseline for group in groups for baseline in here.train_and_score(group)]

    return measure


def test_baselines_share_the_teacher_and_end_as_if_trained_alone(two_of_each, monkeypatch, tmp_path):
    passes = []
    targets_of, watched = teacher_batches.targets_of, teacher_batches.Watched
    monkeypatch.setattr(teacher_batches, "targets_of", lambda *given: passes.append("relations") or targets_of(*given))
    monkeypatch.setattr(teacher_batches, "Watched", lambda model: passes.append("layers") or watched(model))
    together = two_of_each(tmp_path / "together")
    assert sorted(passes) == ["layers"] * 2 + ["relations"] * 4  # two steps of three groups
    passes.clear()
    monkeypatch.setattr(Device, "free_memory", lambda _: FreeMemory(1, "the test"))
    alone = two_of_each(tmp_path / "alone")
    assert sorted(passes) == ["layers"] * 4 + ["relations"] * 12  # each of eight trainings by itself
    assert kept(tmp_path / "together") == kept(tmp_path / "alone")
    assert [replace(baseline, weights=None) for baseline in together] == [replace(row, weights=None) for row in alone]


def test_the_rate_with_the_lowest_own_held_out_loss_is_kept_and_one_that_fails_loses(two_of_each, tmp_path):
    for baseline in two_of_each(tmp_path / "cache", (1e-3, 1.0, 1e30)):
        state = read_json(baseline.weights / "trainer_state.json")
        paths = (tmp_path / "cache").glob("baselines/*/trainer_state.json")
        same = {**state["settings"], "lr": 0}, read_json(baseline.weights / "config.json")
        others = [
            read_json(path)
            for path in paths
            if ({**read_json(path)["settings"], "lr": 0}, read_json(path.with_name("config.json"))) == same
        ]
        assert state["held_out_loss"] == min(other["held_out_loss"] for other in others)
        assert baseline.lr == state["settings"]["lr"] in {4e-3, 4e-6}
        assert len(others) == 2  # not the third
    with pytest.raises(FloatingPointError, match=r"failed at every learning rate \(4e\+27, 8e\+27\)"):
        two_of_each(tmp_path / "failed", (1e30, 2e30))


def kept(cache):
    """The models and tokenizers in a cache."""
    paths = [path for path in cache.rglob("*") if path.name.startswith(("config", "model", "tokenizer", ".tokenizer"))]
    return {path.relative_to(cache): path.read_bytes() for path in paths}


class StoppedError(BaseException):
    pass


def test_a_baseline_stopped_before_a_write_is_completed_by_the_next_search(toy_config, monkeypatch, tmp_path):
    """A baseline is complete by a file that is written last, whichever file is the first that is missing."""
    monkeypatch.setattr(baselines, "SHAPES", TOY)
    measure, replace_file, left = bench_of(toy_config), os.replace, [0]
    measure(tmp_path / "whole")

    def stopped(source, target):
        left[0] -= 1
        if left[0] < 0:
            raise StoppedError
        replace_file(source, target)

    stops = 0
    for step in range(1, 90, 4):
        cache, left = tmp_path / str(step), [step]
        with monkeypatch.context() as patch:
            patch.setattr("autodistil_search.base.files.os.replace", stopped)
            try:
                measure(cache)
                break
            except StoppedError:
                stops += 1
        measure(cache)
        assert kept(cache) == kept(tmp_path / "whole")
    assert stops > 3


def _measure(config, cache):
    bench_of(config)(cache)


def test_searches_side_by_side_share_a_baseline_and_do_not_mix(toy_config, tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "SHAPES", TOY)
    processes = [SERVER.Process(target=_measure, args=(toy_config, tmp_path / "cache")) for _ in range(2)]
    for process in processes:
        process.start()
    bench_of(toy_config)(tmp_path / "whole")
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert kept(tmp_path / "cache") == kept(tmp_path / "whole")
    assert list((tmp_path / "cache" / "baselines").glob(".*")) == []
