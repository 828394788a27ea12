"""Cost formulas of subnets, without torch; tests check each formula against the model.

FLOPs follow the papers: the multiply-adds of all matrix products (linear layers and attention) of one forward
pass at batch 1. A multiply-add counts once. Norms, activations, softmax and look-ups are not matrix products and do not
count. Relative attention bias, which is looked up and added to the scores, therefore costs no FLOPs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from autodistil_search.spaces.subnet import Subnet

FLOPS_SEQ_LEN = 128
"""Sequence length in tokens for which FLOPs are stated, as in MiniLM, TinyBERT and AutoDistil."""


@dataclass(frozen=True)
class Vocabulary:
    """Rows of the embedding tables, which a SuperLM takes from its teacher; the defaults are those of BERT.

    Attributes:
        tokens: Tokens of the vocabulary.
        positions: Positions.
        token_types: Token types.
        relative_buckets: Rows of the table of relative attention bias, with one number for each head; 0 for none.
    """

    tokens: int = 30522
    positions: int = 512
    token_types: int = 2
    relative_buckets: int = 0


def params(subnet: Subnet, vocabulary: Vocabulary) -> int:
    """Return the number of parameters of the extracted student, including embeddings and pooler.

    Args:
        subnet: Sizes of the student.
        vocabulary: Sizes of the embedding tables.
    """
    rows = vocabulary.tokens + vocabulary.positions + vocabulary.token_types
    embeddings = rows * subnet.hidden_size + 2 * subnet.hidden_size + vocabulary.relative_buckets * subnet.heads
    return embeddings + params_non_embedding(subnet)


def training_bytes(subnet: Subnet, vocabulary: Vocabulary) -> int:
    """Return the bytes of a model in training: float32 weights, gradients and the two moments of AdamW.

    Args:
        subnet: Sizes of the student, or the largest of a SuperLM.
        vocabulary: Sizes of the embedding tables.
    """
    return 4 * 4 * params(subnet, vocabulary)


def params_non_embedding(subnet: Subnet) -> int:
    """Return the number of parameters of the layers and the pooler, which do not depend on the vocabulary."""
    return sum(params_by_part(subnet).values())


def params_by_part(subnet: Subnet) -> dict[str, int]:
    """Return `params_non_embedding` by part of the model; a norm counts with the part that it follows."""
    hidden = subnet.hidden_size
    return {
        "attention": _over_layers(subnet, _attention_params),
        "FFN": _over_layers(subnet, _ffn_params),
        "pooler": hidden * hidden + hidden,
    }


def _attention_params(sizes: Subnet) -> int:
    hidden, width = sizes.hidden_size, sizes.attention_width
    return 3 * (hidden * width + width) + width * hidden + hidden + 2 * hidden


def _ffn_params(sizes: Subnet) -> int:
    hidden, ffn = sizes.hidden_size, sizes.ffn_size
    return hidden * ffn + ffn + ffn * hidden + hidden + 2 * hidden


def flops(subnet: Subnet, seq_len: int = FLOPS_SEQ_LEN) -> int:
    """Return the multiply-adds of one forward pass over `seq_len` tokens at batch 1; the pooler sees one token.

    Args:
        subnet: Sizes of the student.
        seq_len: Length of the sequence in tokens.
    """
    pooler = subnet.hidden_size * subnet.hidden_size
    return _over_layers(subnet, partial(_layer_flops, seq_len=seq_len)) + pooler


def _layer_flops(sizes: Subnet, seq_len: int) -> int:
    hidden, width, ffn = sizes.hidden_size, sizes.attention_width, sizes.ffn_size
    linear = seq_len * (4 * hidden * width + 2 * hidden * ffn)
    attention = 2 * seq_len * seq_len * width  # the scores and their product with the values
    return linear + attention


def _over_layers(subnet: Subnet, of_layer: Callable[[Subnet], int]) -> int:
    """Return the sum of `of_layer` over all layers; equal layers are computed once."""
    return sum(map(of_layer, subnet.each_layer)) if subnet.each else subnet.layers * of_layer(subnet)
