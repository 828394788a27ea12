"""Models and tokenizers of folders: nothing that they ask for is fetched or run, and what is broken is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertTokenizerFast,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.integrations import hub_kernels

from autodistil_search.base.errors import InputError
from autodistil_search.base.pretrained import (
    fit_tokenizer,
    load_config,
    load_pretrained,
    load_tokenizer,
    matched,
    quiet_transformers,
    write_tokenizer,
)
from autodistil_search.runs.finetune import load_classifier
from autodistil_search.tasks.labelled_data import Rows, Task
from autodistil_search.teachers.loading import load_as_student, load_teacher
from autodistil_search.teachers.teacher import Teacher

KERNEL = "made-up/kernel"
ASKED = {
    "_attn_implementation": KERNEL,
    "attn_implementation": KERNEL,
    "_attn_implementation_internal": KERNEL,
    "_experts_implementation": KERNEL,
    "experts_implementation": KERNEL,
    "_experts_implementation_internal": KERNEL,
    "use_kernels": True,
    "allow_all_kernels": True,
    "kernel_config": {"Linear": KERNEL},
    "fusion_config": {"patch_embeddings": True},
    "distributed_config": {"tp_plan": "auto"},
    "per_layer_config": {"0": {"_attn_implementation": KERNEL}},
    "transformers_weights": "elsewhere.safetensors",
    "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"},
    "custom_pipelines": {"evil": {"impl": "evil.Evil"}},
    "base_model_name_or_path": "made-up/model",
    "_name_or_path": "made-up/model",
    "name_or_path": "made-up/model",
    "_commit_hash": "0" * 40,
    "_auto_class": "AutoModel",
    "backbone": "made-up/model",
    "dtype": "os",
    "return_dict": False,
    "output_attentions": True,
    "output_hidden_states": True,
    "problem_type": "multi_label_classification",
    "use_timm_backbone": True,
    "gguf_file": "made-up.gguf",
}
"""Entries of a `config.json` by which transformers 5 can be made to fetch, import or do something else."""


def change(folder: Path, name: str, **entries: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def change_weights(folder: Path, **tensors: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | tensors, path, metadata={"format": "pt"})


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every attempt to take something from the hub; none of them leaves this process."""
    attempts: list[str] = []

    def refuse(name: str) -> Callable[..., Any]:
        def attempt(*given: Any, **_: Any) -> Any:
            attempts.append(f"{name} {given}")
            raise AssertionError(name)

        return attempt

    for name in ("load_and_register_attn_kernel", "get_kernel"):
        monkeypatch.setattr(hub_kernels, name, refuse(name), raising=False)
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", refuse("flash attention"))
    monkeypatch.setattr("transformers.dynamic_module_utils.get_class_from_dynamic_module", refuse("code"))
    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(f"transformers.utils.hub.{name}", refuse(name), raising=False)
    monkeypatch.setattr("socket.socket.connect", refuse("connect"))
    return attempts


def as_teacher(folder: Path) -> PreTrainedModel:
    return load_teacher(str(folder)).model


def as_classifier(folder: Path) -> PreTrainedModel:
    task = Task("toy", ("a", "b"), ("accuracy",), Rows([], None, []), Rows([], None, []), "made up")
    return load_classifier("toy", str(folder), task, 0)


@pytest.mark.parametrize("load", [as_teacher, as_classifier])
@pytest.mark.parametrize("model_type", ["bert", "modernbert", "deberta-v2"])
def test_a_folder_gets_nothing_that_its_config_asks_for(
    load: Callable[[Path], PreTrainedModel], model_type: str, teacher_folder: Callable[..., Path], offline: list[str]
) -> None:
    folder = teacher_folder(model_type)
    plain = load(folder)
    change(folder, "config.json", **ASKED)
    change(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}, _commit_hash="0" * 40)
    (folder / "evil.py").write_text("raise AssertionError")
    asked = load(folder)
    assert asked.config._attn_implementation == plain.config._attn_implementation
    assert asked.config.to_diff_dict() == plain.config.to_diff_dict()
    assert all(map(torch.equal, asked.state_dict().values(), plain.state_dict().values()))
    assert offline == []


@pytest.mark.parametrize("key", ["_attn_implementation", "transformers_weights", "per_layer_config", "return_dict"])
def test_each_entry_alone_is_of_no_effect(
    key: str, teacher_folder: Callable[..., Path], toy_teacher: Callable[..., Teacher], offline: list[str]
) -> None:
    folder = teacher_folder()
    change(folder, "config.json", **{key: ASKED[key]})
    assert load_as_student(str(folder), toy_teacher()).config.hidden_size == 48
    assert offline == []


@pytest.mark.parametrize(
    ("name", "entries", "said"),
    [
        ("config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized weights"),
        ("config.json", {"tokenizer_class": "AutoModel"}, "names tokenizer class 'AutoModel'"),
        ("tokenizer_config.json", {"tokenizer_class": "AutoModel"}, "names tokenizer class 'AutoModel'"),
        ("tokenizer_config.json", {"tokenizer_class": "pipeline"}, "names tokenizer class 'pipeline'"),
        ("tokenizer_config.json", {"gguf_file": "x.gguf"}, "GGUF"),
        ("adapter_config.json", {"base_model_name_or_path": "made-up/model"}, "is an adapter"),
        ("model.safetensors.index.json", {"weight_map": {"a": "evil.bin"}}, "weights in 'evil.bin'"),
        ("model.safetensors.index.json", {"weight_map": {"a": "../b.safetensors"}}, "weights in '../b.safetensors'"),
    ],
)
def test_what_cannot_be_had_without_more_than_the_folder_is_refused(
    name: str, entries: dict[str, Any], said: str, teacher_folder: Callable[..., Path], offline: list[str]
) -> None:
    folder = teacher_folder()
    content = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps(content | entries))
    with pytest.raises(InputError, match=said):
        load_teacher(str(folder))
    assert offline == []


@pytest.mark.parametrize("load", [as_teacher, as_classifier])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "name", ["encoder.layer.1.output.dense.weight", "embeddings.LayerNorm.bias", "pooler.dense.weight"]
)
def test_a_value_that_is_not_finite_is_found_when_loading(
    load: Callable[[Path], PreTrainedModel], value: float, name: str, teacher_folder: Callable[..., Path]
) -> None:
    folder = teacher_folder()
    tensor = load_file(folder / "model.safetensors")[name]
    tensor.view(-1)[-1] = value
    change_weights(folder, **{name: tensor})
    with pytest.raises(InputError, match=rf"has 1 values that are not finite in '.*{name}'"):
        load(folder)


@pytest.mark.parametrize("load", [as_teacher, as_classifier])
def test_a_layer_of_zeros_and_one_of_another_shape_are_named(
    load: Callable[[Path], PreTrainedModel], teacher_folder: Callable[..., Path]
) -> None:
    folder, name = teacher_folder(), "encoder.layer.0.attention.self.key.weight"
    change_weights(folder, **{name: torch.zeros(48, 48), "embeddings.token_type_embeddings.weight": torch.zeros(2, 48)})
    with pytest.raises(InputError, match=rf"only zeros in '.*{name}'"):
        load(folder)
    change_weights(folder, **{name: torch.ones(48, 40)})
    with pytest.raises(InputError, match=rf"has '.*{name}' of shape \(48, 40\); allowed: \(48, 48\)"):
        load(folder)


@pytest.mark.parametrize("load", [as_teacher, as_classifier])
def test_weights_in_other_types_and_of_more_layers_than_the_config_are_refused(
    load: Callable[[Path], PreTrainedModel], teacher_folder: Callable[..., Path]
) -> None:
    folder, name = teacher_folder(), "encoder.layer.0.attention.self.key.weight"
    before = load_file(folder / "model.safetensors")[name]
    for kind, stored in ((torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")):
        change_weights(folder, **{name: before.to(kind)})
        with pytest.raises(InputError, match=f"has '{name}' as {stored}; allowed: weights as F64, F32"):
            load(folder)
    change_weights(folder, **{name: before.half()})
    load(folder)
    change(folder, "config.json", num_hidden_layers=2)
    with pytest.raises(InputError, match="has weights of 3 layers; allowed: 2, as its config"):
        load(folder)


def test_finite_weights_that_compute_nothing_finite_are_refused(teacher_folder: Callable[..., Path]) -> None:
    folder = teacher_folder()
    change_weights(folder, **{"encoder.layer.1.output.dense.weight": torch.full((48, 96), 3e38)})
    with pytest.raises(InputError, match="computes values that are not finite"):
        load_teacher(str(folder))


def special(folder: Path, **tokens: str | None) -> None:
    """Let the folder's tokenizer have those special tokens and no others."""
    backend = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    for path in folder.glob("*token*"):
        path.unlink()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", **tokens).save_pretrained(folder)


def test_a_written_tokenizer_keeps_nothing_of_its_last_call(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    tokenizer(["w1 " * 9, "w2"], truncation=True, max_length=4, padding="max_length")
    write_tokenizer(tokenizer, tmp_path)
    words = json.loads((tmp_path / "tokenizer.json").read_text())
    assert (words["truncation"], words["padding"]) == (None, None)


def test_a_missing_padding_token_is_the_one_that_the_config_names(teacher_folder: Callable[..., Path]) -> None:
    folder = teacher_folder()
    special(folder, cls_token="[CLS]", sep_token="[SEP]")
    teacher = load_teacher(str(folder))
    assert (teacher.tokenizer.pad_token, teacher.tokenizer.pad_token_id) == ("[PAD]", 0)
    assert "'[PAD]' of its config.json is used" in " ".join(teacher.notes)
    change(folder, "config.json", pad_token_id=7)
    with pytest.raises(InputError, match=r"without a padding token.*pads with token 7, 'w2'; allowed"):
        load_teacher(str(folder))


def test_a_tokenizer_without_ends_is_refused(teacher_folder: Callable[..., Path]) -> None:
    folder = teacher_folder()
    special(folder, pad_token="[PAD]")
    with pytest.raises(InputError, match=r"without \[CLS\] and \[SEP\]"):
        load_teacher(str(folder))


@pytest.mark.parametrize("limit", [None, -1, 0, "many", 10**30, True])
def test_a_length_limit_that_is_none_becomes_the_models(limit: Any, teacher_folder: Callable[..., Path]) -> None:
    folder = teacher_folder()
    change(folder, "tokenizer_config.json", model_max_length=limit, padding_side="left")
    tokenizer = load_teacher(str(folder)).tokenizer
    assert (tokenizer.model_max_length, tokenizer.padding_side) == (40, "right")


def test_a_token_beyond_the_embeddings_is_refused(teacher_folder: Callable[..., Path]) -> None:
    folder = teacher_folder(vocab_size=96)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["w89"] = 200
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="96 embeddings and its tokenizer 95 tokens with ids up to 200"):
        load_teacher(str(folder))


@pytest.mark.parametrize(
    ("model_type", "sizes", "names"),
    [
        ("bert", {}, ["input_ids", "attention_mask", "token_type_ids"]),
        ("roberta", {"type_vocab_size": 1, "pad_token_id": 0}, ["input_ids", "attention_mask"]),
        ("distilbert", {}, ["input_ids", "attention_mask"]),
    ],
)
def test_a_tokenizer_gives_what_its_model_takes_also_where_it_is_saved(
    model_type: str, sizes: dict[str, Any], names: list[str], teacher_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = str(teacher_folder(model_type, **sizes))
    config = load_config("toy", folder)
    tokenizer = load_tokenizer("toy", folder, config)
    with quiet_transformers():
        model, _ = load_pretrained("toy", AutoModel, folder, config)
    assert fit_tokenizer("toy", tokenizer, model, 38) == []
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert [*again("w1", "w2")] == [*tokenizer("w1", "w2")]
    assert {*again("w1", "w2")} == {*names}
    given = {"input_ids": torch.tensor([[2, 5, 3]]), "token_type_ids": torch.tensor([[0, 1, 7]])}
    taken = matched(model, given)
    assert ("token_type_ids" in taken) == ("token_type_ids" in names)
    model(**taken)  # 7 is the last type that the model has
