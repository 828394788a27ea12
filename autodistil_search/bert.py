"""A student as transformers' own BERT, where one with the same outputs exists.

BERT's heads are as wide as hidden size / heads. A student's have a width of their own, so each head is padded with
zeros to BERT's width, and heads that only give zeros are added. BERT divides scores by the root of its wider heads:
queries are scaled up by as much. H hidden size, A heads, D head_dim, A' and D' those of the BERT, W = A * D.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertModel

from autodistil_search.model import AutoDistilConfig, AutoDistilForSequenceClassification, AutoDistilModel, ElasticLayer
from autodistil_search.space import Subnet

_SHARED = (
    *("vocab_size", "max_position_embeddings", "type_vocab_size", "hidden_act", "layer_norm_eps", "initializer_range"),
    *("pad_token_id", "classifier_dropout", "id2label", "label2id", "problem_type"),
)
"""What both configurations call by the same name."""


def bert_heads(subnet: Subnet) -> int | None:
    """The least number of BERT's heads that hold the student's; None if no BERT does.

    It divides the hidden size, is at least the student's, and leaves heads at least as wide. The layers of a BERT all
    have one FFN size.
    """
    if len({layer.ffn_size for layer in subnet.each_layer}) > 1:
        return None
    hidden = subnet.hidden_size
    fitting = (n for n in range(subnet.heads, hidden + 1) if hidden % n == 0 and hidden // n >= subnet.head_dim)
    return next(fitting, None)


def bert_sizes(subnet: Subnet) -> Subnet:
    """The sizes of the BERT that holds the student: attention as wide as the hidden size.

    Raises:
        ValueError: if there is none.
    """
    if (heads := bert_heads(subnet)) is None:
        raise ValueError(f"no BERT has the sizes of {subnet}")
    hidden = subnet.hidden_size
    return Subnet(subnet.layers, hidden, subnet.ffn_size, heads, hidden // heads)


@torch.no_grad()
def to_bert(
    model: AutoDistilModel | AutoDistilForSequenceClassification,
) -> BertModel | BertForSequenceClassification:
    """The stock BERT with the outputs of `model`, and with its head if it has one; in evaluation mode.

    Raises:
        ValueError: if there is none (`bert_heads`).
    """
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
    """With no dropout in the encoder, as the student was trained."""
    return BertConfig(
        **{key: getattr(config, key) for key in _SHARED},
        num_hidden_layers=sizes.layers,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.ffn_size,
        num_attention_heads=sizes.heads,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def _copy_encoder(student: AutoDistilModel, bert: BertModel) -> None:
    embeddings = bert.embeddings
    for table in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        getattr(embeddings, table).weight.copy_(getattr(student, table).weight)
    _copy(student.embedding_norm, embeddings.LayerNorm)
    for layer, sizes, target in zip(student.layers, student.config.subnet.each_layer, bert.encoder.layer, strict=True):
        _copy_layer(cast(ElasticLayer, layer), sizes, target, bert_sizes(student.config.subnet))
    _copy(student.pooler, cast(Any, bert.pooler).dense)


def _copy_layer(layer: ElasticLayer, mine: Subnet, target: Any, theirs: Subnet) -> None:
    attention = target.attention
    for part in ("query", "key", "value"):
        source, into = getattr(layer, part), getattr(attention.self, part)
        scale = math.sqrt(theirs.head_dim / mine.head_dim) if part == "query" else 1.0
        into.weight.copy_(scale * _padded(source.weight, mine, theirs))
        into.bias.copy_(scale * _padded(source.bias, mine, theirs))
    output = attention.output
    output.dense.weight.copy_(_padded(layer.attention_output.weight.T, mine, theirs).T)
    output.dense.bias.copy_(layer.attention_output.bias)
    _copy(layer.attention_norm, output.LayerNorm)
    _copy(layer.ffn_in, target.intermediate.dense)
    _copy(layer.ffn_out, target.output.dense)
    _copy(layer.ffn_norm, target.output.LayerNorm)


def _padded(rows: Tensor, mine: Subnet, theirs: Subnet) -> Tensor:
    """`(A * D, ...)` rows of heads as `(A' * D', ...)`: the others are zeros."""
    heads = rows.unflatten(0, (mine.heads, mine.head_dim))
    wide = rows.new_zeros(theirs.heads, theirs.head_dim, *rows.shape[1:])
    wide[: mine.heads, : mine.head_dim] = heads
    return wide.flatten(0, 1)


def _copy(source: nn.Module, target: nn.Module) -> None:
    target.load_state_dict(source.state_dict())
