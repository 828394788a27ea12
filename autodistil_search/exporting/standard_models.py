"""Conversion of a student to a standard BERT or MPNet of transformers, if one has the same outputs.

A standard BERT holds a student without relative attention bias, a standard MPNet a student with it. Their heads are
hidden size / heads wide, while a student's heads have a width of their own. So each head is padded with zeros to the
standard model's width, and heads of zeros are added. A standard model divides scores by the root of its wider heads;
the queries are scaled to compensate. Symbols: H hidden size, A heads, D head_dim, A' and D' those of the standard
model, W = A * D.
"""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    MPNetConfig,
    MPNetForSequenceClassification,
    MPNetModel,
    PreTrainedModel,
)

from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import (
    AutoDistilConfig,
    AutoDistilForSequenceClassification,
    AutoDistilModel,
    ElasticLayer,
)

_SHARED = (
    *("vocab_size", "hidden_act", "layer_norm_eps", "initializer_range"),
    *("pad_token_id", "id2label", "label2id", "problem_type"),
)
"""Settings with the same name in all configurations."""

MPNET_BUCKETS, MPNET_MAX_DISTANCE = 32, 128
"""Number of buckets and largest distance in MPNet's encoder, whatever its configuration states."""

MPNET_PADDING = 1
"""Id of MPNet's padding token. Positions start at the next number and count all other tokens."""

Standard = Literal["bert", "mpnet"]


def standard_format(config: AutoDistilConfig) -> Standard:
    """Return the kind of standard model that a student of this configuration could become."""
    return "bert" if config.relative_attention_buckets is None else "mpnet"


def why_not(config: AutoDistilConfig, standard: Standard, pad_token_id: int | None) -> str:
    """Return the reason why no standard model of a kind has the student's outputs; empty if there is such a model.

    Args:
        config: Configuration of the student.
        standard: Kind of the standard model.
        pad_token_id: Id of the tokenizer's padding token.
    """
    if standard != standard_format(config):
        has = "has" if standard == "bert" else "has no"
        return f"the student {has} relative attention bias"
    if standard == "mpnet":
        distances = config.relative_attention_buckets, config.relative_attention_max_distance
        if distances != (MPNET_BUCKETS, MPNET_MAX_DISTANCE):
            return (
                f"it has {distances[0]} buckets up to a distance of {distances[1]}, and MPNet {MPNET_BUCKETS} up to "
                f"{MPNET_MAX_DISTANCE}"
            )
        if config.type_vocab_size > 1:
            return f"it has {config.type_vocab_size} token types, and MPNet has none"
        if pad_token_id != MPNET_PADDING:
            return f"the tokenizer pads with token {pad_token_id}, and MPNet with token {MPNET_PADDING}"
    subnet = config.subnet
    if len({layer.ffn_size for layer in subnet.each_layer}) > 1:
        return "its layers have different FFN sizes"
    if bert_heads(subnet) is None:
        return (
            f"no divisor of hidden size {subnet.hidden_size} is at least {subnet.heads} and leaves heads at least "
            f"{subnet.head_dim} wide"
        )
    return ""


def bert_heads(subnet: Subnet) -> int | None:
    """Return the least number of heads of a standard model that holds the student; None if there is no such model.

    The number divides the hidden size, is at least the student's number, and leaves heads at least as wide. All layers
    of a standard model have the same FFN size.
    """
    if len({layer.ffn_size for layer in subnet.each_layer}) > 1:
        return None
    hidden = subnet.hidden_size
    fitting = (n for n in range(subnet.heads, hidden + 1) if hidden % n == 0 and hidden // n >= subnet.head_dim)
    return next(fitting, None)


def bert_sizes(subnet: Subnet) -> Subnet:
    """Return the sizes of the standard model that holds the student, whose attention is as wide as the hidden size.

    Raises:
        ValueError: if there is no such model.
    """
    if (heads := bert_heads(subnet)) is None:
        raise ValueError(f"no standard model has the sizes of {subnet}")
    hidden = subnet.hidden_size
    return Subnet(subnet.layers, hidden, subnet.ffn_size, heads, hidden // heads)


@torch.no_grad()
def to_standard(
    model: AutoDistilModel | AutoDistilForSequenceClassification, pad_token_id: int | None
) -> PreTrainedModel:
    """Return the standard model with the outputs of `model`, including its head if any, in evaluation mode.

    Args:
        model: Student to convert.
        pad_token_id: Id of the tokenizer's padding token.

    Raises:
        ValueError: if there is no such model, with the reason from `why_not`.
    """
    standard = standard_format(model.config)
    if reason := why_not(model.config, standard, pad_token_id):
        raise ValueError(f"no {standard} computes what the student does: {reason}")
    return _to_bert(model) if standard == "bert" else _to_mpnet(model)


def _to_bert(
    model: AutoDistilModel | AutoDistilForSequenceClassification,
) -> BertModel | BertForSequenceClassification:
    config = _bert_config(model.config, bert_sizes(model.config.subnet))
    if isinstance(model, AutoDistilForSequenceClassification):
        whole = BertForSequenceClassification(config)
        whole.classifier.load_state_dict(model.classifier.state_dict())
        _copy_encoder(model.autodistil, whole.bert)
        return cast(BertForSequenceClassification, whole.eval())
    bert = BertModel(config)
    _copy_encoder(model, bert)
    return cast(BertModel, bert.eval())


def _bert_config(config: AutoDistilConfig, sizes: Subnet) -> BertConfig:
    """Return the configuration of the BERT, without dropout in the encoder, as the student was trained."""
    return BertConfig(
        **_settings(config, sizes),
        max_position_embeddings=config.max_position_embeddings,
        type_vocab_size=config.type_vocab_size,
        classifier_dropout=config.classifier_dropout,
    )


def _settings(config: AutoDistilConfig, sizes: Subnet) -> dict[str, Any]:
    """Return the settings that both kinds of standard models share."""
    return {
        **{key: getattr(config, key) for key in _SHARED},
        "num_hidden_layers": sizes.layers,
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.ffn_size,
        "num_attention_heads": sizes.heads,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def _copy_encoder(student: AutoDistilModel, bert: BertModel) -> None:
    embeddings = bert.embeddings
    for table in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        getattr(embeddings, table).weight.copy_(getattr(student, table).weight)
    _copy(student.embedding_norm, embeddings.LayerNorm)
    for layer, sizes, target in zip(student.layers, student.config.subnet.each_layer, bert.encoder.layer, strict=True):
        attention = cast(Any, target).attention
        linears = attention.self.query, attention.self.key, attention.self.value, attention.output.dense
        sizes_of_both = sizes, bert_sizes(student.config.subnet)
        _copy_layer(cast(ElasticLayer, layer), linears, attention.output.LayerNorm, target, *sizes_of_both)
    _copy(student.pooler, cast(Any, bert.pooler).dense)


def _to_mpnet(
    model: AutoDistilModel | AutoDistilForSequenceClassification,
) -> MPNetModel | MPNetForSequenceClassification:
    """Return the MPNet, without dropout in its head, since an MPNet's encoder and head share one dropout rate."""
    config, sizes = model.config, bert_sizes(model.config.subnet)
    settings = MPNetConfig(
        **_settings(config, sizes),
        max_position_embeddings=MPNET_PADDING + 1 + config.max_position_embeddings,
        relative_attention_num_buckets=MPNET_BUCKETS,
    )
    if isinstance(model, AutoDistilForSequenceClassification):
        whole = MPNetForSequenceClassification(settings)
        _copy(model.autodistil.pooler, whole.classifier.dense)
        _copy(model.classifier, whole.classifier.out_proj)
        _copy_to_mpnet(model.autodistil, whole.mpnet)
        return cast(MPNetForSequenceClassification, whole.eval())
    mpnet = MPNetModel(settings)
    _copy(model.pooler, cast(Any, mpnet.pooler).dense)
    _copy_to_mpnet(model, mpnet)
    return cast(MPNetModel, mpnet.eval())


def _copy_to_mpnet(student: AutoDistilModel, mpnet: MPNetModel) -> None:
    """Copy all weights except the pooler; the single row of token types is added to each position."""
    embeddings, encoder, sizes = mpnet.embeddings, mpnet.encoder, bert_sizes(student.config.subnet)
    positions = student.position_embeddings.weight + student.token_type_embeddings.weight
    embeddings.word_embeddings.weight.copy_(student.word_embeddings.weight)
    embeddings.position_embeddings.weight.zero_()  # padding has no position
    embeddings.position_embeddings.weight[MPNET_PADDING + 1 :].copy_(positions)
    _copy(student.embedding_norm, embeddings.LayerNorm)
    bias = cast(nn.Embedding, student.relative_attention_bias).weight
    encoder.relative_attention_bias.weight.zero_()  # for the added heads of zeros
    encoder.relative_attention_bias.weight[:, : bias.shape[1]].copy_(bias)
    for layer, own, target in zip(student.layers, student.config.subnet.each_layer, encoder.layer, strict=True):
        attention = cast(Any, target).attention
        linears = attention.attn.q, attention.attn.k, attention.attn.v, attention.attn.o
        _copy_layer(cast(ElasticLayer, layer), linears, attention.LayerNorm, target, own, sizes)


def _copy_layer(
    layer: ElasticLayer, linears: tuple[nn.Linear, ...], norm: nn.Module, target: Any, own: Subnet, standard: Subnet
) -> None:
    """Copy a layer of the student into a standard model.

    Args:
        layer: Layer of the student.
        linears: Query, key, value and output of the attention of `target`.
        norm: Norm after the attention of `target`.
        target: Layer of the standard model.
        own: Sizes of the student's layer.
        standard: Sizes of the standard model.
    """
    *sides, output = linears
    for part, into in zip(("query", "key", "value"), sides, strict=True):
        source = getattr(layer, part)
        scale = math.sqrt(standard.head_dim / own.head_dim) if part == "query" else 1.0
        into.weight.copy_(scale * _padded(source.weight, own, standard))
        into.bias.copy_(scale * _padded(source.bias, own, standard))
    output.weight.copy_(_padded(layer.attention_output.weight.T, own, standard).T)
    output.bias.copy_(layer.attention_output.bias)
    _copy(layer.attention_norm, norm)
    _copy(layer.ffn_in, target.intermediate.dense)
    _copy(layer.ffn_out, target.output.dense)
    _copy(layer.ffn_norm, target.output.LayerNorm)


def _padded(rows: Tensor, own: Subnet, standard: Subnet) -> Tensor:
    """Return the rows of heads `(A * D, ...)` padded with zeros to `(A' * D', ...)`."""
    heads = rows.unflatten(0, (own.heads, own.head_dim))
    wide = rows.new_zeros(standard.heads, standard.head_dim, *rows.shape[1:])
    wide[: own.heads, : own.head_dim] = heads
    return wide.flatten(0, 1)


def _copy(source: nn.Module, target: nn.Module) -> None:
    target.load_state_dict(source.state_dict())
