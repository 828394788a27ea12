"""Safe loading and checking of external models and tokenizers, without running or downloading code of their folders.

All external models are loaded here: teachers, models and teachers of `finetune`, baselines and saved students.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
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
from autodistil_search.base.files import refuse_hub

ALLOWED = "the hub id or folder of an encoder with safetensors weights and a tokenizer, or 'packaged'"

_UNDECLARED = ("position_embedding_type", "conv_act", "norm_rel_ebd", "rope_scaling", "summary_type", "tokenizer_class")
"""Entries of a `config.json` that change the outputs of a model, though its configuration class does not declare them.

Other undeclared entries are kept only if they are numbers or booleans, which cannot name code to download or import.
"""
_LEFT_OUT = (
    *("return_dict", "output_hidden_states", "output_attentions", "problem_type", "num_labels", "dtype"),
    *("use_kernels", "allow_all_kernels", "use_timm_backbone"),
)
"""Entries that describe the use or the execution of a model, not its outputs."""
_INDEX = "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
"""Floating-point types of weights, as named by safetensors."""
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""All inputs that this package gives to a model."""


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Raise InputError, naming `what`, for any error of a broken model in the context."""
    try:
        yield
    except InputError:
        raise
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # the loaders have no common class of errors for broken folders
        refuse_hub(error, what)
        reason = " ".join(f"{error or type(error).__name__}".split())[:300]
        raise InputError(f"{what} cannot be loaded: {reason}; allowed: {ALLOWED}") from None


def load_config(what: str, source: str, **changes: Any) -> PreTrainedConfig:
    """Return the configuration of a folder or hub id, restricted to entries that decide the outputs of the model.

    A `config.json` can make transformers load attention kernels of the hub, quantization packages, other weight files
    and code of the folder. Such entries are dropped.

    Args:
        what: Description of the model for messages, such as "teacher 'name'".
        source: Folder or hub id of the model.
        changes: Entries to set.

    Raises:
        InputError: if there is no configuration, or it belongs to an adapter or to quantized weights.
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
        config: PreTrainedConfig = kind.from_dict(_plain_entries(content, kind) | changes, name_or_path=source)
    return config


def _plain_entries(content: Mapping[str, Any], kind: type[PreTrainedConfig]) -> dict[str, Any]:
    declared = {*(field.name for field in fields(kind)), *kind.attribute_map, *_UNDECLARED} - {*_LEFT_OUT}  # type: ignore[arg-type]
    return {
        key: _without_code(value)
        for key, value in content.items()
        if not key.startswith("_")
        and (key in declared or (key not in _LEFT_OUT and (value is None or isinstance(value, bool | int | float))))
    }


def _without_code(value: Any) -> Any:
    """Return an entry whose nested configurations lack the entries that could load kernels or code."""
    if not isinstance(value, dict):
        return value
    loading_code = ("attn_implementation", "experts_implementation", "quantization_config", "auto_map")
    return {
        key: _without_code(inner)
        for key, inner in value.items()
        if not (isinstance(key, str) and (key.startswith("_") or key in loading_code))
    }


def load_pretrained(
    what: str, auto: Any, source: str, config: PreTrainedConfig
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return a float32 model with the weights of a folder or hub id, and the loading information of transformers.

    Args:
        what: Description of the model for messages.
        auto: Class of transformers with `from_pretrained`.
        source: Folder or hub id of the model.
        config: Configuration from `load_config`.

    Raises:
        InputError: if the model cannot be loaded from safetensors files; or if weights of its encoder have another
            shape than the configuration says, or are broken (see `check_weights`).
    """
    with loading(what):
        _check_files(what, source)
        model, loading_info = auto.from_pretrained(
            source,
            config=config,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation=None,  # the default of torch, in all parts of the model
            experts_implementation=None,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the head may be of another task; other mismatches are refused below
        )
    encoder = f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""
    for name, stored, expected in sorted(loading_info["mismatched_keys"]):
        if name.startswith(encoder):
            raise InputError(
                f"{what} has {name!r} of shape {tuple(stored)}; allowed: {tuple(expected)}, as its config.json says"
            )
    check_weights(what, model)
    return model, loading_info


def _check_files(what: str, source: str) -> None:
    """Refuse weights that are not floating point, and weight files other than safetensors, which would be unpickled."""
    names = ["model.safetensors"]
    if (index := _file(source, _INDEX)) is not None:
        names = sorted({*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    for name in names:
        if not name.endswith(".safetensors") or PurePosixPath(name).name != name:
            raise InputError(f"{what} has weights in {name!r} ({_INDEX}); allowed: safetensors files beside it")
        if (path := _file(source, name)) is None:
            continue
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                kind = file.get_slice(key).get_dtype()
                if kind not in _FLOATS and key.endswith((".weight", ".bias")):
                    raise InputError(f"{what} has {key!r} as {kind}; allowed: weights as {', '.join(_FLOATS)}")


def _file(source: str, name: str) -> Path | None:
    """Return a file of a folder or hub id, downloaded if needed; None if there is no such file."""
    path = cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path)


@torch.no_grad()
def check_weights(what: str, model: nn.Module) -> None:
    """Refuse a model with broken weights, in one pass over the weights.

    Raises:
        InputError: for the first tensor that is not finite, or the first weight of a layer that is entirely zero.
    """
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        low, high = (float(end) for end in torch.aminmax(tensor))
        if not (low > float("-inf") and high < float("inf")):  # NaN fails both comparisons
            count = int((~torch.isfinite(tensor)).sum())
            raise InputError(f"{what} has {count:,} values that are not finite in {name!r}; allowed: finite weights")
        if low == high == 0 and _must_hold_values(name):
            raise InputError(f"{what} has only zeros in {name!r}; allowed: trained weights")


def _must_hold_values(name: str) -> bool:
    """Return True if a tensor of that name must not be zero: weights of layers and words, not biases or token types."""
    in_layer = any(part.isdigit() for part in name.split("."))
    return name.endswith(".weight") and (in_layer or "word_embeddings" in name or "tok_embeddings" in name)


def load_tokenizer(what: str, source: str, config: PreTrainedConfig | None = None) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder or hub id; its class must belong to transformers.

    Args:
        what: Description of the model for messages.
        source: Folder or hub id of the model.
        config: Configuration of the model, from `load_config`; read if not given.

    Raises:
        InputError: if there is no tokenizer, or its class is of another package.
    """
    folder = Path(source)
    if folder.is_dir() and not any(folder.glob("tokenizer*")) and not (folder / "vocab.txt").is_file():
        raise InputError(f"{what} has no tokenizer beside it; allowed: a folder with its tokenizer's files")
    config = config or load_config(what, source)
    with loading(what):
        settings = get_tokenizer_config(source)
        for name in (settings.get("tokenizer_class"), getattr(config, "tokenizer_class", None)):
            if name and not _is_tokenizer(name):
                raise InputError(f"{what} names tokenizer class {name!r}; allowed: tokenizers of transformers")
        if settings.get("gguf_file"):
            raise InputError(f"{what} has its tokenizer in a GGUF file; allowed: tokenizer.json or a vocabulary file")
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, config=config, trust_remote_code=False
        )
    return tokenizer


def _is_tokenizer(name: Any) -> bool:
    """Return True if transformers has a tokenizer class of that name, or no class and uses its general one."""
    if not isinstance(name, str):
        return False
    kind = tokenizer_class_from_name(name)
    return kind is None or (isinstance(kind, type) and issubclass(kind, PreTrainedTokenizerBase))


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike[str]) -> None:
    """Write a tokenizer that neither truncates nor pads unless its user asks for it.

    A fast tokenizer keeps the truncation and padding of its last call, and `save_pretrained` writes them. Libraries
    that read `tokenizer.json` alone would then truncate each text to the length that this package used last.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    tokenizer.save_pretrained(folder)


def ends(what: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Return the ids of the tokens that begin and end a text: [CLS] and [SEP], or their equivalents.

    Raises:
        InputError: if the tokenizer has no such tokens.
    """
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if first is None or last is None:
        raise InputError(f"{what} has a tokenizer without [CLS] and [SEP] (or <s> and </s>); allowed: with both tokens")
    return int(first), int(last)


def fit_tokenizer(what: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, positions: int) -> list[str]:
    """Check a tokenizer against its model, and restrict its outputs, in memory and when saved, to the model's inputs.

    Args:
        what: Description of the model for messages.
        tokenizer: Tokenizer, changed in place: padding on the right, a length limit, token types only if the model has
            them.
        model: Model from `load_pretrained`.
        positions: Number of tokens for which the model has positions.

    Returns:
        Notes on changes that the folder does not state.

    Raises:
        InputError: for a tokenizer that no later step can use, or a model that cannot compute with its tokens.
    """
    _check_vocabulary(what, tokenizer, int(model.config.vocab_size))
    ends(what, tokenizer)
    notes = _give_padding(what, tokenizer, model.config)
    tokenizer.padding_side = "right"  # positions are counted from the left
    limit = tokenizer.model_max_length
    fits = isinstance(limit, int | float) and not isinstance(limit, bool) and limit >= 4
    tokenizer.model_max_length = int(min(limit, positions)) if fits else positions
    names = list(_INPUTS)
    tokenizer.model_input_names = names  # requests all outputs, so that token types are checked
    with loading(what):
        pair = tokenizer(["a text"], ["another"], truncation=True, max_length=min(16, positions))
        types = max((max(row) for row in pair.get("token_type_ids", ()) if row), default=0)
        if not 1 < token_types(model) > types:
            names.remove("token_type_ids")
        tokenizer.init_kwargs["model_input_names"] = names  # the setting that is saved
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
            raise InputError(
                f"{what} has a tokenizer whose {role} {token!r} is not in its vocabulary; "
                "allowed: special tokens of the vocabulary"
            )


def _give_padding(what: str, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> list[str]:
    """Set the padding token of a tokenizer without one to the token with which the model pads, and return a note."""
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
    return [f"{what} has a tokenizer without a padding token; {name!r} of its config.json is used"]


@torch.no_grad()
def _check_computes(what: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, positions: int) -> None:
    texts = ["One text.", "Another text, which is longer."]
    inputs = tokenizer(texts, texts, padding=True, truncation=True, max_length=min(16, positions), return_tensors="pt")
    training = model.training
    outputs = model.eval()(**matched(model, dict(inputs.to(model.device))))
    model.train(training)
    if not torch.isfinite(outputs[0]).all():
        raise InputError(f"{what} computes values that are not finite; allowed: a model with finite outputs")


def token_types(model: Any) -> int:
    """Return the number of token types (`token_type_ids`) of a model; 0 if it takes none."""
    if "token_type_ids" not in inspect.signature(model.forward).parameters:
        return 0
    return int(getattr(model.config, "type_vocab_size", None) or 0)


def matched(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the outputs of a tokenizer that `model` takes as inputs.

    Token types are left out if the model has fewer than two; types beyond the last of the model become its last.
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
    """Silence transformers' progress bars, its warnings about unused weights and the hub's messages of retries."""
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


_IRRELEVANT_ENTRIES = ("_name_or_path", "architectures", "dtype", "transformers_version")
"""Entries of a configuration that do not change the outputs of a model."""


def model_sha256(model: PreTrainedModel) -> str:
    """Return the hex SHA-256 digest of a model's weights and configuration, independent of their files."""
    settings = {key: value for key, value in model.config.to_diff_dict().items() if key not in _IRRELEVANT_ENTRIES}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
