"""Families of encoders: the table of the parts of their layers, by which `Teacher` reads a model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from autodistil_search.base.errors import InputError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Block:
    """Block number `index` of `of` equal blocks of a linear layer's rows, such as Q, K or V of a fused product."""

    path: str
    index: int = 0
    of: int = 1


@dataclass(frozen=True)
class Family:
    """Attribute paths of a family. `layers` and the embeddings' parts are in the model, the others in each layer.

    attention_norm, ffn_norm: norms after attention and FFN; None if norms come before them.
    embedding_projection: linear map of embeddings whose width differs from that of the layers.
    relative_bias: table of relative attention bias by bucket of distances and head, which all layers add to their
        scores.
    skips_padding: True if positions are numbered from `pad_token_id + 1`; the rows before stand for no position.
    unlike: reason why a layer cannot start a student's layer; empty if it can.
    """

    layers: str
    query: str | Block
    key: str | Block
    value: str | Block
    attention_output: str
    attention_norm: str | None
    ffn_in: str | Block
    ffn_out: str
    ffn_norm: str | None
    embedding_norm: str = "embeddings.LayerNorm"
    embedding_projection: str | None = None
    relative_bias: str | None = None
    skips_padding: bool = False
    unlike: str = ""

    @property
    def parts(self) -> dict[str, Block]:
        """Return the places of the linear layers and norms in one layer, without norms before attention and FFN."""
        places = {part: getattr(self, part) for part in (*_LINEAR, *_NORMS)}
        return {
            part: place if isinstance(place, Block) else Block(place)
            for part, place in places.items()
            if place is not None
        }


_LINEAR = ("query", "key", "value", "attention_output", "ffn_in", "ffn_out")
_NORMS = ("attention_norm", "ffn_norm")

_BERT = Family(
    layers="encoder.layer",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    ffn_in="intermediate.dense",
    ffn_out="output.dense",
    ffn_norm="output.LayerNorm",
)
_ROBERTA = replace(_BERT, skips_padding=True)
_DISTILBERT = Family(
    layers="transformer.layer",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_output="attention.out_lin",
    attention_norm="sa_layer_norm",
    ffn_in="ffn.lin1",
    ffn_out="ffn.lin2",
    ffn_norm="output_layer_norm",
)
_MPNET = Family(
    layers="encoder.layer",
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    attention_output="attention.attn.o",
    attention_norm="attention.LayerNorm",
    ffn_in="intermediate.dense",
    ffn_out="output.dense",
    ffn_norm="output.LayerNorm",
    relative_bias="encoder.relative_attention_bias",
    skips_padding=True,
)
_DEBERTA = replace(
    _BERT,
    query="attention.self.query_proj",
    key="attention.self.key_proj",
    value="attention.self.value_proj",
    embedding_projection="embeddings.embed_proj",
)
_MODERNBERT = Family(
    layers="layers",
    query=Block("attn.Wqkv", 0, 3),
    key=Block("attn.Wqkv", 1, 3),
    value=Block("attn.Wqkv", 2, 3),
    attention_output="attn.Wo",
    attention_norm=None,
    ffn_in=Block("mlp.Wi", 0, 2),  # the activated half; the other half is the gate
    ffn_out="mlp.Wo",
    ffn_norm=None,
    embedding_norm="embeddings.norm",
    # The weights would fit by shape, but a student computes something else. It normalizes the sum after each part,
    # where ModernBERT does not; it rotates no queries and keys; and half a gated FFN differs from an FFN without gate.
    unlike="norms come before attention and FFN, not after; queries and keys are rotated; the FFN is gated",
)
FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": replace(_BERT, embedding_projection="embeddings_project"),
    "distilbert": _DISTILBERT,
    "mpnet": _MPNET,
    "deberta-v2": _DEBERTA,
    "modernbert": _MODERNBERT,
}
"""Families of teachers by `model_type`; other types are refused. DeBERTa-v3 has type deberta-v2."""

RELATIVE_BUCKETS = 32
"""Number of buckets of MPNet's encoder, which its configuration does not change."""

WITHOUT_PLACE = {
    "encoder.rel_embeddings": "attention to relative positions",  # DeBERTa
    "encoder.conv": "convolution after its first layer",  # DeBERTa-v2-xlarge
}
"""Parts of a model that no student has: paths and names."""


def find(module: Any, path: str | None) -> Any:
    """Return the attribute at a dotted path below a module; None if there is none, or if `path` is None."""
    for name in path.split(".") if path else ():
        module = getattr(module, name, None)
    return module if path else None


def check_family(name: str, config: Any) -> None:
    """Refuse a configuration of an unsupported model type, and decoders.

    Raises:
        InputError: naming the type and those allowed.
    """
    if config.model_type not in FAMILIES:
        raise InputError(
            f"teacher {name!r} is {_kind(config)} of type {config.model_type!r}; "
            f"allowed: encoders of type {', '.join(sorted(FAMILIES))}"
        )
    if getattr(config, "is_decoder", False):
        raise InputError(f"teacher {name!r} is a decoder: it attends to earlier tokens only; allowed: encoders")


def _kind(config: Any) -> str:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    model_type = config.model_type
    if config.is_encoder_decoder:
        return "an encoder-decoder"
    if hasattr(config, "image_size") or hasattr(config, "vision_config"):
        return "a vision model"
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "a decoder"
    return "a model"


def check_layers(what: str, config: Any, unexpected: Iterable[str]) -> None:
    """Refuse weights of layers, or of parts of layers, that the loaded model does not have.

    Args:
        what: Name of the model in messages.
        config: Configuration of a model of one of `FAMILIES`.
        unexpected: Names of the weights that were not loaded.

    Raises:
        InputError: naming the layers or parts.
    """
    layers = re.escape(FAMILIES[config.model_type].layers)
    matches = (re.search(rf"(?:^|\.){layers}\.(\d+)\.(.+)\.\w+$", key) for key in unexpected)
    places = [(int(match[1]), match[2]) for match in matches if match]
    last = max((index for index, _ in places), default=0)
    if last >= config.num_hidden_layers:
        raise InputError(
            f"{what} has weights of {last + 1} layers; allowed: {config.num_hidden_layers}, as its config.json says"
        )
    if stray := sorted({part for _, part in places}):
        raise InputError(
            f"the layers of {what} have {', '.join(stray)}; allowed: parts that transformers gives a layer of type "
            f"{config.model_type!r}"
        )


def find_layers(name: str, model: nn.Module, family: Family, heads: int) -> list[nn.Module]:
    """Return the layers of a model of that family.

    Raises:
        InputError: if layers lack parts of the family or differ in size; names the parts or sizes found.
    """
    from torch import nn

    layers = find(model, family.layers)
    if not isinstance(layers, nn.ModuleList):
        raise InputError(f"teacher {name!r} has no {family.layers!r}; found: {_listed(model.named_children())}")
    for i, layer in enumerate(layers):
        for part, place in family.parts.items():
            kind = nn.Linear if part in _LINEAR else nn.LayerNorm
            if not isinstance(find(layer, place.path), kind):
                leaves = ((path, module) for path, module in layer.named_modules() if not list(module.children()))
                raise InputError(
                    f"layer {i} of teacher {name!r} has no {kind.__name__} {place.path!r}; found: {_listed(leaves)}"
                )
        sizes, first = _sizes(layer, family), _sizes(layers[0], family)
        if sizes != first or len({sizes[part] for part in ("query", "key", "value")}) > 1 or sizes["query"][0] % heads:
            raise InputError(
                f"layer {i} of teacher {name!r} has parts of {sizes}; allowed: the same in all layers, with queries, "
                f"keys and values alike and divisible by its {heads} heads"
            )
    return list(layers)


def _sizes(layer: nn.Module, family: Family) -> dict[str, tuple[int, ...]]:
    weights = {part: (find(layer, place.path).weight, place.of) for part, place in family.parts.items()}
    return {part: (weight.shape[0] // of, *weight.shape[1:]) for part, (weight, of) in weights.items()}


def _listed(modules: Any) -> str:
    return ", ".join(f"{path} ({type(module).__name__})" for path, module in modules) or "nothing"
