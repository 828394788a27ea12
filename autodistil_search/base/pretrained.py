"""Models and tokenizers that others saved: read without running or fetching what their folders ask for, and checked.

Everything from outside passes here: teachers, models and teachers of `finetune`, baselines, saved students.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.tokenization_auto import get_tokenizer_config, tokenizer_class_from_name
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from autodistil_search.base.errors import InputError
from autodistil_search.base.files import refuse_cache

ALLOWED = "the hub id or folder of an encoder with safetensors weights and a tokenizer, or 'packaged'"

_UNDECLARED = ("position_embedding_type", "conv_act", "norm_rel_ebd", "rope_scaling", "summary_type", "tokenizer_class")
"""Entries of a `config.json` that change what a model computes, though its configuration class does not declare them.

Other undeclared entries are kept only if they are numbers or truth values, which name nothing to fetch or to import.
"""
_LEFT_OUT = (
    *("return_dict", "output_hidden_states", "output_attentions", "problem_type", "num_labels", "dtype"),
    *("use_kernels", "allow_all_kernels", "use_timm_backbone"),
)
"""Entries that say how a model was used or is to be run, not what it computes."""
_INDEX = "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of weights, as safetensors calls them."""
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""All that a model is given here."""


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Raises InputError, naming `what`, for whatever a broken model leads to inside."""
    try:
        yield
    except InputError:
        raise
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # the loaders raise whatever the broken part of a folder leads to
        refuse_cache(error)
        reason = " ".join(f"{error or type(error).__name__}".split())[:300]
        raise InputError(f"{what} cannot be loaded: {reason}; allowed: {ALLOWED}") from None


def load_config(what: str, source: str, **changes: Any) -> PreTrainedConfig:
    """Return the configuration of a folder or hub id: what its class declares, and nothing that asks for more.

    A `config.json` can ask transformers for attention kernels of the hub, quantization packages, other weight files and
    code of the folder. Only what decides which numbers the model computes is read here.

    Args:
        what: The model in words, such as "teacher 'name'".
        source: Its folder or hub id.
        changes: Entries to set.

    Raises:
        InputError: if there is none, or it is of an adapter or of quantized weights.
    """
    with loading(what):
        if find_adapter_config_file(source) is not None:
            raise InputError(f"{what} is an adapter (adapter_config.json); allowed: an adapter merged into its model")
        content, _ = PreTrainedConfig.get_config_dict(source)
        if content.get("quantization_config"):
            raise InputError(f"{what} has quantized weights (quantization_config); allowed: weights in floating point")
        kind = CONFIG_MAPPING[content["model_type"]] if content.get("model_type") in CONFIG_MAPPING else None
        if kind is None:
            raise InputError(
                f"{what} cannot be loaded: its config.json names model_type {content.get('model_type')!r}, which "
                f"transformers does not know; allowed: {ALLOWED}"
            )
        config: PreTrainedConfig = kind.from_dict(_plain(content, kind) | changes, name_or_path=source)
    return config


def _plain(content: Mapping[str, Any], kind: type[PreTrainedConfig]) -> dict[str, Any]:
    declared = {*(field.name for field in fields(kind)), *kind.attribute_map, *_UNDECLARED} - {*_LEFT_OUT}  # type: ignore[arg-type]
    return {
        key: _without_private(value)
        for key, value in content.items()
        if not key.startswith("_")
        and (key in declared or (key not in _LEFT_OUT and (value is None or isinstance(value, bool | int | float))))
    }


def _without_private(value: Any) -> Any:
    """Nested configurations without the entries by which they could ask for kernels."""
    if not isinstance(value, dict):
        return value
    asking = ("attn_implementation", "experts_implementation", "quantization_config", "auto_map")
    return {
        key: _without_private(inner)
        for key, inner in value.items()
        if not (isinstance(key, str) and (key.startswith("_") or key in asking))
    }


def load_pretrained(
    what: str, auto: Any, source: str, config: PreTrainedConfig
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return a model in float32 with the weights of a folder or hub id, and what transformers says of their loading.

    Args:
        what: The model in words.
        auto: A class of transformers with `from_pretrained`.
        source: Folder or hub id.
        config: From `load_config`.

    Raises:
        InputError: if it cannot be loaded from safetensors files, or weights of its encoder are of another shape than
            its configuration says or broken (`check_weights`).
    """
    with loading(what):
        _check_files(what, source)
        model, told = auto.from_pretrained(
            source,
            config=config,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation=None,  # torch's own, in all parts of the model
            experts_implementation=None,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # a head may be of another task; the rest is refused here, by name
        )
    encoder = f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""
    for name, stored, expected in sorted(told["mismatched_keys"]):
        if name.startswith(encoder):
            raise InputError(
                f"{what} has {name!r} of shape {tuple(stored)}; allowed: {tuple(expected)}, as its config.json says"
            )
    check_weights(what, model)
    return model, told


def _check_files(what: str, source: str) -> None:
    """Refuse weight files that are no safetensors, as others are unpickled, or hold weights in other than floats."""
    names = ["model.safetensors"]
    if (index := _file(source, _INDEX)) is not None:
        names = sorted({*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    for name in names:
        if not name.endswith(".safetensors") or PurePosixPath(name).name != name:
            raise InputError(f"{what} has weights in {name!r} ({_INDEX}); allowed: safetensors files beside it")
        if (path := _file(source, name)) is None:
            continue
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                kind = file.get_slice(key).get_dtype()
                if kind not in _FLOATS and key.endswith((".weight", ".bias")):
                    raise InputError(f"{what} has {key!r} as {kind}; allowed: weights as {', '.join(_FLOATS)}")


def _file(source: str, name: str) -> Path | None:
    """A file of a folder or hub id, which is downloaded as its loading would; None if it has none."""
    path = cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path)


@torch.no_grad()
def check_weights(what: str, model: nn.Module) -> None:
    """Refuse a model with broken weights: one look at each.

    Raises:
        InputError: naming the first tensor that is not finite, or the first weight of a layer that is zero all over.
    """
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        low, high = (float(end) for end in torch.aminmax(tensor))
        if not (low > float("-inf") and high < float("inf")):  # also of NaN
            count = int((~torch.isfinite(tensor)).sum())
            raise InputError(f"{what} has {count:,} values that are not finite in {name!r}; allowed: finite weights")
        if low == high == 0 and _carries(name):
            raise InputError(f"{what} has nothing but zeros in {name!r}; allowed: trained weights")


def _carries(name: str) -> bool:
    """Whether a tensor of that name must hold something: weights of layers and words, not biases or token types."""
    in_layer = any(part.isdigit() for part in name.split("."))
    return name.endswith(".weight") and (in_layer or "word_embeddings" in name or "tok_embeddings" in name)


def load_tokenizer(what: str, source: str, config: PreTrainedConfig | None = None) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder or hub id; its class is one of transformers.

    config: of the model beside it, from `load_config`; read if not given.

    Raises:
        InputError: if there is none, or it is of another class.
    """
    folder = Path(source)
    if folder.is_dir() and not any(folder.glob("tokenizer*")) and not (folder / "vocab.txt").is_file():
        raise InputError(f"{what} has no tokenizer beside it; allowed: a folder with its tokenizer's files")
    config = config or load_config(what, source)
    with loading(what):
        told = get_tokenizer_config(source)
        for name in (told.get("tokenizer_class"), getattr(config, "tokenizer_class", None)):
            if name and not _is_tokenizer(name):
                raise InputError(f"{what} names tokenizer class {name!r}; allowed: tokenizers of transformers")
        if told.get("gguf_file"):
            raise InputError(f"{what} has its tokenizer in a GGUF file; allowed: tokenizer.json or a vocabulary file")
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, config=config, trust_remote_code=False
        )
    return tokenizer


def _is_tokenizer(name: Any) -> bool:
    """Whether transformers has a tokenizer class of that name, or none at all, for which it takes its general one."""
    if not isinstance(name, str):
        return False
    kind = tokenizer_class_from_name(name)
    return kind is None or (isinstance(kind, type) and issubclass(kind, PreTrainedTokenizerBase))


def ends(what: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Return the ids of the tokens that a text begins and ends with: [CLS] and [SEP], or what stands for them.

    Raises:
        InputError: if the tokenizer has no such tokens.
    """
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if first is None or last is None:
        raise InputError(f"{what} has a tokenizer without [CLS] and [SEP] (or <s> and </s>) tokens; allowed: with both")
    return int(first), int(last)


def fit_tokenizer(what: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, positions: int) -> list[str]:
    """Check a tokenizer against the model beside it, and let it give what the model takes, also where it is saved.

    Args:
        what: The model in words.
        tokenizer: Changed in place: padding on the right, a length limit, token types only if the model has them.
        model: As `load_pretrained` gives it.
        positions: Tokens that the model has positions for.

    Returns:
        Notes on what was changed that the folder does not say.

    Raises:
        InputError: for a tokenizer that no later step could use, or a model that cannot compute with its tokens.
    """
    _check_vocabulary(what, tokenizer, int(model.config.vocab_size))
    ends(what, tokenizer)
    notes = _give_padding(what, tokenizer, model.config)
    tokenizer.padding_side = "right"  # positions are counted from the left
    limit = tokenizer.model_max_length
    fits = isinstance(limit, int | float) and not isinstance(limit, bool) and limit >= 4
    tokenizer.model_max_length = int(min(limit, positions)) if fits else positions
    names = list(_INPUTS)
    tokenizer.model_input_names = names  # all that it can give
    with loading(what):
        pair = tokenizer(["a text"], ["another"], truncation=True, max_length=min(16, positions))
        types = max((max(row) for row in pair.get("token_type_ids", ()) if row), default=0)
        if not 1 < token_types(model) > types:
            names.remove("token_type_ids")
        tokenizer.init_kwargs["model_input_names"] = names  # what is saved
        _check_computes(what, tokenizer, model, positions)
    return notes


def _check_vocabulary(what: str, tokenizer: PreTrainedTokenizerBase, embeddings: int) -> None:
    vocabulary = tokenizer.get_vocab()
    if not embeddings / 2 <= len(tokenizer) <= embeddings or max(vocabulary.values(), default=0) >= embeddings:
        raise InputError(
            f"{what} has {embeddings:,} embeddings and its tokenizer {len(tokenizer):,} tokens with ids up to "
            f"{max(vocabulary.values(), default=0):,}; allowed: a model with the tokenizer it was trained with"
        )
    for role, token in tokenizer.special_tokens_map.items():
        if isinstance(token, str) and token not in vocabulary:
            raise InputError(f"{what} has a tokenizer whose {role} {token!r} is not in its vocabulary; allowed: in it")


def _give_padding(what: str, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> list[str]:
    """Name the padding token of a tokenizer that names none: the one that the model pads with, if it is one."""
    if tokenizer.pad_token_id is not None:
        return []
    index = getattr(config, "pad_token_id", None)
    tokens: dict[Any, str] = {id_: token for token, id_ in tokenizer.get_vocab().items()}
    name = tokens.get(index)
    if name is None or not re.fullmatch(r"[\[<|]+pad(ding)?[\]>|]+", name, re.IGNORECASE):
        raise InputError(
            f"{what} has a tokenizer without a padding token, and its config.json pads with token {index}, "
            f"{name!r}; allowed: a tokenizer with a pad_token"
        )
    tokenizer.pad_token = name
    return [f"{what} has a tokenizer without a padding token: {name!r} is taken, which its config.json names"]


@torch.no_grad()
def _check_computes(what: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, positions: int) -> None:
    texts = ["One text.", "Another text, which is longer."]
    inputs = tokenizer(texts, texts, padding=True, truncation=True, max_length=min(16, positions), return_tensors="pt")
    training = model.training
    outputs = model.eval()(**matched(model, dict(inputs.to(model.device))))
    model.train(training)
    if not torch.isfinite(outputs[0]).all():
        raise InputError(f"{what} computes values that are not finite; allowed: weights of a usable size")


def token_types(model: Any) -> int:
    """Return how many kinds of tokens (`token_type_ids`) a model tells apart; 0 if it takes none."""
    if "token_type_ids" not in inspect.signature(model.forward).parameters:
        return 0
    return int(getattr(model.config, "type_vocab_size", None) or 0)


def matched(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return of a tokenizer's output what `model` takes.

    Token types are left out where the model does not tell them apart; types that it does not have become its last one.
    """
    kept = {name: inputs[name] for name in _INPUTS if name in inputs}
    if "token_type_ids" in kept and isinstance(model, nn.Module):
        if (count := token_types(model)) > 1:
            kept["token_type_ids"] = kept["token_type_ids"].clamp(max=count - 1)
        else:
            del kept["token_type_ids"]
    return kept


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars, its warnings about unused weights and the hub's retries off the terminal."""
    shown, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    hub_level = hub_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        hub_logging.set_verbosity(hub_level)
        if shown:
            transformers_logging.enable_progress_bar()


_NOT_OF_THE_MODEL = ("_name_or_path", "architectures", "dtype", "transformers_version")
"""Entries of a configuration that change nothing in what the model computes."""


def model_sha256(model: PreTrainedModel) -> str:
    """Hex digest of a model's weights and configuration, whatever files they came from."""
    told = {key: value for key, value in model.config.to_diff_dict().items() if key not in _NOT_OF_THE_MODEL}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
