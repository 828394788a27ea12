"""Baselines: measured as the subnets are, trained once, and told beside the frontier."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from autodistil_search import InputError, baselines, search
from autodistil_search.baselines import COPY, DISTILLED, SHAPES
from autodistil_search.cost import flops, params
from autodistil_search.files import cache_folder
from autodistil_search.space import Subnet
from autodistil_search.teacher import load_teacher, truncated


def files(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_baselines_are_measured_alike_and_kept(toy_config, monkeypatch, tmp_path):
    monkeypatch.setenv("AUTODISTIL_SEARCH_CACHE", str(tmp_path / "cache"))
    run = search(replace(toy_config, baselines="shapes"))
    assert list(run.baselines["name"]) == list(SHAPES)
    vocabulary = load_teacher(toy_config.teacher).vocabulary
    for row, subnet in zip(run.baselines.to_dict("records"), SHAPES.values(), strict=True):
        assert (row["flops"], row["params"]) == (flops(subnet), params(subnet, vocabulary))
    trained = files(cache_folder() / "baselines")
    again = search(
        replace(toy_config, baselines="shapes", space="debug", seed=0, engine="exhaustive", out=toy_config.out + "2")
    )
    pd.testing.assert_frame_equal(run.baselines, again.baselines)
    assert trained
    assert trained == files(cache_folder() / "baselines")


@pytest.mark.parametrize(("model_type", "how"), [("bert", COPY), ("mpnet", DISTILLED)])
def test_only_a_teacher_without_parts_of_its_own_stands_in_for_its_shape(
    toy_config, teacher_folder, monkeypatch, model_type, how
):
    monkeypatch.setattr(baselines, "SHAPES", {"own": Subnet(3, 48, 96, 6, 8)})
    run = search(replace(toy_config, teacher=str(teacher_folder(model_type)), baselines="shapes"))
    (row,) = run.baselines.to_dict("records")
    assert row["how"] == how
    assert (row["relation_loss"] < 1e-5) == (how == COPY)


def test_other_models_are_scored_as_they_are(toy_config, teacher_folder, tokenizer, tmp_path):
    """The teacher itself, a student that was saved and half of the teacher, each beside the frontier."""
    student = search(toy_config).student()
    student.save_pretrained(tmp_path / "student")
    names = f"truncated,{toy_config.teacher},{tmp_path / 'student'}"
    run = search(replace(toy_config, baselines=names, out=toy_config.out + "2"))
    rows = run.baselines.set_index("name")
    assert set(rows.index) == {"teacher's first 2 layers", "toy-bert", "student"}
    assert rows.loc["toy-bert", "relation_loss"] < 1e-5
    assert rows.loc["toy-bert", ["layers", "how"]].to_list() == [3, "scored as it is"]
    assert rows.loc["student", "relation_loss"] == pytest.approx(run.knee["relation_loss"])
    assert rows.loc["student", "flops"] == run.knee["flops"]
    assert 0 < rows.loc["teacher's first 2 layers", "relation_loss"] < 2
    assert sum("of its FLOPs" in note or "than any subnet" in note for note in run.summary["notes"]) == 3


def test_half_of_a_teacher_is_its_first_layers(toy_teacher, toy_batch):
    teacher, (ids, mask) = toy_teacher(num_hidden_layers=4), toy_batch()
    states = teacher.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    found = truncated(teacher)(ids, mask).last_hidden_state
    torch.testing.assert_close(found[mask == 1], states[2][mask == 1])
    assert truncated(toy_teacher("mpnet")) is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder, save: "shape", "cannot be loaded"),
        (lambda folder, save: str(save("mpnet")), "cannot be scored as it is: .*relative attention bias"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is_trained(make, said, toy_config, teacher_folder, tmp_path):
    with pytest.raises(InputError, match=said):
        search(replace(toy_config, baselines=make(tmp_path, teacher_folder)))
    assert not toy_config.folder.exists()
