"""Pooling: read from a teacher's folder, computed as sentence-transformers does, and carried into exports."""

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling as TheirPooling

from autodistil_search.base.errors import InputError
from autodistil_search.base.manifest import verify
from autodistil_search.base.pretrained import quiet_transformers
from autodistil_search.base.progress import Reporter
from autodistil_search.exporting.student_folder import export_student
from autodistil_search.exporting.student_source import find_exportable
from autodistil_search.nas.task_proxies import TaskBudget, sentence_vectors, task_proxy
from autodistil_search.settings.export import ExportOptions
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.tasks.fine_tuning import Encoded
from autodistil_search.tasks.labelled_data import Rows
from autodistil_search.teachers.loading import load_teacher
from autodistil_search.teachers.pooling import _FLAGS, Pooling, read_pooling

ST = "sentence_transformers.models"
MODES = tuple(_FLAGS)
UNLIKE_FFN = Subnet.of_layers(48, [96, 64], [3, 3], 16)
TEXTS = ["w1 w2 w3 w4", "w5", "w2 w9 w11"]


def folder_of(teacher_folder, modules, config):
    """A teacher's folder that lists its modules, and pools as `config` says."""
    folder = teacher_folder()
    listed = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (kind, path) in enumerate(modules)]
    Path(folder, "modules.json").write_text(json.dumps(listed))
    for _, path in modules[1:]:
        made = Path(folder, path)
        made.mkdir()
        (made / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("modes", [*[(mode,) for mode in MODES], *combinations(MODES, 2)][:9], ids="+".join)
def test_vectors_are_those_of_sentence_transformers(modes):
    torch.manual_seed(0)
    states, mask = torch.randn(3, 5, 8), torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0]])
    theirs = TheirPooling(8, pooling_mode=modes)({"token_embeddings": states, "attention_mask": mask})
    # A few sums and products in float32, each with an error of 6e-8 of values of some units.
    torch.testing.assert_close(Pooling(modes).vectors(states, mask), theirs["sentence_embedding"], rtol=1e-5, atol=1e-6)
    lengths = Pooling(modes, normalize=True).vectors(states, mask).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(3), rtol=1e-5, atol=0)


CLS = {"word_embedding_dimension": 48, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
OF_CLS = [(f"{ST}.Transformer", ""), (f"{ST}.Pooling", "1_Pooling")]


@pytest.mark.parametrize(
    ("modules", "config", "expected"),
    [
        (OF_CLS, CLS, Pooling(("cls",), stated=True)),
        (
            OF_CLS,
            {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
            Pooling(("max", "mean"), stated=True),
        ),
        (OF_CLS, {"embedding_dimension": 48, "pooling_mode": "lasttoken"}, Pooling(("lasttoken",), stated=True)),
        (
            OF_CLS,
            {"pooling_mode": ["mean", "cls"], "include_prompt": False},
            Pooling(("mean", "cls"), False, False, stated=True),
        ),
        ([*OF_CLS, (f"{ST}.Normalize", "2_Normalize")], CLS, Pooling(("cls",), True, stated=True)),
        (
            [(OF_CLS[0][0], ""), ("sentence_transformers.sentence_transformer.modules.pooling.Pooling", "p")],
            CLS,
            Pooling(("cls",), stated=True),
        ),
    ],
)
def test_what_a_folder_says_is_read(modules, config, expected, teacher_folder):
    assert read_pooling(folder_of(teacher_folder, modules, config)) == expected


@pytest.mark.parametrize(
    ("modules", "config", "words"),
    [
        ([*OF_CLS, (f"{ST}.Dense", "2_Dense")], CLS, f"its modules.json lists {ST}.Dense"),
        (OF_CLS[:1], CLS, "lists no Pooling"),
        (OF_CLS, {"pooling_mode": "attention"}, "its Pooling has mode 'attention'"),
        (OF_CLS, {"pooling_mode": [["cls"]]}, "its Pooling has mode"),
        (OF_CLS, {"pooling_mode_magic_tokens": True}, "pooling_mode_magic_tokens"),
        (OF_CLS, [], "its Pooling has no settings"),
    ],
)
def test_what_cannot_be_followed_is_told_and_leaves_the_mean(modules, config, words, teacher_folder):
    teacher = load_teacher(folder_of(teacher_folder, modules, config))
    assert teacher.pooling.modes == ("mean",)
    assert not teacher.pooling.stated
    (note,) = [note for note in teacher.notes if "embed sentences" in note]
    assert "the mean of the tokens' states; the teacher's own pooling is not supported: " in note
    assert words in note


def test_settings_nested_beyond_measure_are_damaged(teacher_folder):
    name = folder_of(teacher_folder, OF_CLS, CLS)
    Path(name, "1_Pooling", "config.json").write_text("[" * 100_000)
    assert "its Pooling has no settings" in read_pooling(name).note


def test_a_teacher_that_says_nothing_has_the_usual_mean(teacher_folder):
    assert load_teacher(str(teacher_folder())).pooling == Pooling()
    assert load_teacher().pooling == Pooling(("mean",), normalize=True, stated=True)  # the packaged one's folder


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("modes", "subnet"), [(("cls",), UNLIKE_FFN), (("max", "mean"), Subnet(2, 48, 96, 3, 16))])
def test_an_export_loads_with_the_teachers_pooling(modes, subnet, normalize, teacher_folder, tmp_path, randomised):
    modules = [*OF_CLS, *([(f"{ST}.Normalize", "2_Normalize")] * normalize)]
    name = folder_of(teacher_folder, modules, {"pooling_mode": list(modes)})
    teacher = load_teacher(name)
    student = randomised(AutoDistilModel(teacher.student_config(subnet)))
    with quiet_transformers():
        student.save_pretrained(tmp_path / "student")
    out = export_student(tmp_path / "student", tmp_path / "out", ExportOptions(teacher=name))
    with quiet_transformers():
        encoder = SentenceTransformer(str(out), device="cpu", trust_remote_code=subnet == UNLIKE_FFN)
        given = teacher.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = student(**given).last_hidden_state
    expected = Pooling(modes, normalize).vectors(states, given["attention_mask"])
    found = torch.from_numpy(encoder.encode(TEXTS))
    # Two layers of 48 units in float32: differences of the two formats stay below 1e-5 of values of some units.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert f"A sentence vector is {Pooling(modes, normalize).words}." in (out / "README.md").read_text()
    export_student(tmp_path / "student", out, ExportOptions(teacher=name))  # its folders are those of an earlier export
    assert verify(out)
    path = out / "1_Pooling" / "config.json"
    whole = path.read_text()
    path.write_text(whole.replace("true", "false", 1))
    with pytest.raises(InputError, match=r"1_Pooling/config\.json is damaged: "):
        verify(out)
    path.write_text(whole)
    if subnet == UNLIKE_FFN:  # what was exported says it itself
        again = find_exportable(out, None, None, False, Reporter())
        assert again.pooling == replace(teacher.pooling)


def test_cosines_are_those_of_the_teachers_vectors(
    teacher_folder, toy_teacher, tmp_path, debug_superlm, debug_space, cpu
):
    teacher = load_teacher(folder_of(teacher_folder, OF_CLS, CLS))
    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(1, 80)]
    rows = [
        {
            "sentence1": " ".join(rng.choice(words, 4)),
            "sentence2": " ".join(rng.choice(words, 5)),
            "label": float(i % 7),
        }
        for i in range(60)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    kind = task_proxy(f"cosine:{path}", TaskBudget(rows=40, epochs=1, lr=1e-3, seed=0))
    proxy = kind.open(teacher, lambda rows: torch.empty(0), 1, cpu)
    assert "the first token's state" in proxy.description
    means = kind.open(toy_teacher(), lambda rows: torch.empty(0), 1, cpu)
    model, subnet = debug_superlm(), debug_space.smallest
    assert proxy.score(model, subnet) != means.score(model, subnet)
    encoded = Encoded(Rows(tuple(TEXTS), None, (0,) * 3), teacher.tokenizer, 16)
    found = sentence_vectors(model, subnet, encoded, cpu, teacher.pooling)
    given = teacher.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**given, subnet=subnet).last_hidden_state[:, 0]
    torch.testing.assert_close(torch.from_numpy(found).float(), expected, rtol=1e-4, atol=1e-5)
