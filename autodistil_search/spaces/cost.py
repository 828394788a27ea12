"""What a subnet costs, by formula; tests tie each formula to the module that ships. No torch.

FLOPs follow the papers: multiply-adds of all matrix products (linear layers and attention) of one forward
pass at batch 1; one multiply-add counts once. Norms, activations, softmax and look-ups are not matrix
products and do not count: relative attention bias, which is looked up and added to the scores, costs no FLOPs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from autodistil_search.spaces.subnet import Subnet

FLOPS_SEQ_LEN = 128
"""Tokens in the sequence for which FLOPs are stated, as in MiniLM, TinyBERT and AutoDistil."""


@dataclass(frozen=True)
class Vocabulary:
    """Rows of the embedding tables; a SuperLM takes them from its teacher. Defaults: BERT's.

    relative_buckets: rows of the table of relative attention bias, which has a number for each head; 0 for none.
    """

    tokens: int = 30522
    positions: int = 512
    token_types: int = 2
    relative_buckets: int = 0


def params(subnet: Subnet, vocabulary: Vocabulary) -> int:
    """Number of parameters of the extracted student, embeddings and pooler included."""
    rows = vocabulary.tokens + vocabulary.positions + vocabulary.token_types
    embeddings = rows * subnet.hidden_size + 2 * subnet.hidden_size + vocabulary.relative_buckets * subnet.heads
    return embeddings + params_non_embedding(subnet)


def params_non_embedding(subnet: Subnet) -> int:
    """Number of parameters of the extracted student's layers and pooler: what does not depend on the vocabulary."""
    return sum(params_by_part(subnet).values())


def params_by_part(subnet: Subnet) -> dict[str, int]:
    """`params_non_embedding` by what holds them; a norm counts with what it follows."""
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
    """Multiply-adds of one forward pass over `seq_len` tokens at batch 1; the pooler sees one token."""
    pooler = subnet.hidden_size * subnet.hidden_size
    return _over_layers(subnet, partial(_layer_flops, seq_len=seq_len)) + pooler


def _layer_flops(sizes: Subnet, seq_len: int) -> int:
    hidden, width, ffn = sizes.hidden_size, sizes.attention_width, sizes.ffn_size
    linear = seq_len * (4 * hidden * width + 2 * hidden * ffn)
    attention = 2 * seq_len * seq_len * width  # scores, and their product with the values
    return linear + attention


def _over_layers(subnet: Subnet, of_layer: Callable[[Subnet], int]) -> int:
    """The sum over all layers; counted once where they are alike."""
    return sum(map(of_layer, subnet.each_layer)) if subnet.each else subnet.layers * of_layer(subnet)
