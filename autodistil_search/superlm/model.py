"""The elastic encoder: one class for SuperLMs and students.

A SuperLM is a BERT-like encoder at the largest sizes of a search space. Every subnet is a leading slice of its
weights: the first rows and columns of each matrix. Each layer has sizes of its own (`Subnet.each_layer`), and a subnet
keeps some of the layers (`subnet.kept_layers`). `forward` takes the subnet as an argument; `extract` copies it into a
model of the same class. Trailing comments give shapes: B sequences, T tokens, H hidden size, A heads, D head_dim,
W = A * D, F FFN width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from autodistil_search.base.manifest import MODEL_TYPE
from autodistil_search.base.pretrained import write_tokenizer
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet, kept_layers
from autodistil_search.superlm.modeling_student import relative_buckets
from autodistil_search.superlm.working_copy import WorkingCopy

Projections = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values, each `(B, T, W)`."""


_REQUESTS = ("quantization_config", "transformers_weights", "fusion_config", "distributed_config", "per_layer_config")


class AutoDistilConfig(PreTrainedConfig):
    """Configuration of an `AutoDistilModel`. Unlike in BERT, `head_dim` is independent of the hidden size.

    num_attention_heads, intermediate_size: one number for all layers, or a list with a number for each layer.
    classifier_dropout: dropout probability of the pooled output, while a classification head is trained.
    relative_attention_buckets: rows of the table of relative attention bias. Attention adds the bias to its scores, by
        head and by the distance between two tokens; all layers share the table. None for no such table.
    relative_attention_max_distance: distance from which on tokens share the last bucket of their side.
    relation_heads: number of relation heads to which the dimensions of the last layer's queries, keys and values are
        assigned in turns, as in a SuperLM and its students. None if relation heads are blocks of adjacent dimensions.
    search_space: space of this SuperLM (`SearchSpace.to_dict`); None for a student.
    """

    model_type = MODEL_TYPE

    vocab_size: int = 30522
    hidden_size: int = 224
    num_hidden_layers: int = 7
    num_attention_heads: int | list[int] = 10
    head_dim: int = 16
    intermediate_size: int | list[int] = 784
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    classifier_dropout: float = 0.1
    relative_attention_buckets: int | None = None
    relative_attention_max_distance: int = 128
    relation_heads: int | None = None
    search_space: dict[str, Any] | None = None

    _shared = (
        "vocab_size",
        "max_position_embeddings",
        "type_vocab_size",
        "hidden_act",
        "layer_norm_eps",
        "initializer_range",
        "pad_token_id",
        "relative_attention_buckets",
        "relative_attention_max_distance",
        "relation_heads",
    )

    def __post_init__(self, **undeclared: Any) -> None:
        """Drop the entries of a `config.json` that request kernels, quantization or other files."""
        super().__post_init__(
            **{key: value for key, value in undeclared.items() if not key.startswith("_") and key not in _REQUESTS}
        )

    @property
    def subnet(self) -> Subnet:
        """Return the sizes of the whole model."""
        ffn_sizes, heads = (
            value if isinstance(value, list) else [value] * self.num_hidden_layers
            for value in (self.intermediate_size, self.num_attention_heads)
        )
        return Subnet.of_layers(self.hidden_size, ffn_sizes, heads, self.head_dim)

    def resized(self, subnet: Subnet, search_space: SearchSpace | None = None) -> AutoDistilConfig:
        """Return a configuration with the sizes of `subnet` and the same embeddings and activation."""
        values: dict[str, Any] = {key: getattr(self, key) for key in self._shared}
        values |= {
            "num_hidden_layers": subnet.layers,
            "hidden_size": subnet.hidden_size,
            "intermediate_size": _number_or_list(subnet.ffn_size, [layer.ffn_size for layer in subnet.each_layer]),
            "num_attention_heads": _number_or_list(subnet.heads, [layer.heads for layer in subnet.each_layer]),
            "head_dim": subnet.head_dim,
            "search_space": search_space.to_dict() if search_space else None,
        }
        return AutoDistilConfig(**values)


def _number_or_list(largest: int, of_layers: list[int]) -> int | list[int]:
    """Return one number if all layers have it, else the list of the layers' numbers."""
    return largest if set(of_layers) == {largest} else of_layers


class ElasticLinear(nn.Linear):
    """Linear layer that applies the leading `n_out` rows and as many columns as the input has dimensions."""

    working: WorkingCopy | None = None

    def forward(self, x: Tensor, n_out: int) -> Tensor:  # type: ignore[override]
        """Map `(..., n_in)` to `(..., n_out)`."""
        if self.working is not None:
            return self.working.linear(x, n_out)
        return F.linear(x, self.weight[:n_out, : x.shape[-1]], self.bias[:n_out])


class ElasticLayerNorm(nn.LayerNorm):
    """Layer norm that applies as many of its leading weights as the input has dimensions."""

    working: WorkingCopy | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `(..., n)`; the shape stays the same."""
        if self.working is not None:
            return self.working.norm(x, self.eps)
        n = x.shape[-1]
        return F.layer_norm(x, (n,), self.weight[:n], self.bias[:n], self.eps)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Compute softmax attention of `(B, A, T, D)` tensors.

    mask: tensor that broadcasts to `(B, A, T, T)`. Booleans are False where a key is padding; numbers are added to the
        scores.

    The fused kernel runs where it is faster (docs/benchmarks.md): on a GPU, and on a CPU in float32. Plain matrix
    products run in bfloat16 on a CPU. They also run while a model is traced, because FLOP counters that trace a model
    do not see inside the kernel.
    """
    added = mask is not None and mask.is_floating_point()
    traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined]
    if not traced and (query.device.type != "cpu" or query.dtype == torch.float32):
        mask = cast(Tensor, mask).to(query.dtype) if added else mask
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # (B, A, T, T)
    if added:
        scores = scores + mask  # with bfloat16 scores, sum and softmax are in float32
    elif mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    context: Tensor = scores.softmax(dim=-1).to(value.dtype) @ value
    return context


@lru_cache(maxsize=8)
def _cached_buckets(tokens: int, device: torch.device, buckets: int, max_distance: int) -> Tensor:
    with torch.inference_mode(False):  # tensors created in inference mode cannot be used in training
        return relative_buckets(tokens, device, buckets, max_distance)


class ElasticLayer(nn.Module):
    """Transformer layer (post-norm, as in BERT) whose sizes are an argument of each call.

    Args:
        config: Configuration of the model.
        sizes: Largest sizes of this layer (an item of `Subnet.each_layer`).
    """

    working: WorkingCopy | None = None
    """Working copy of queries, keys and values, which are then one product."""

    def __init__(self, config: AutoDistilConfig, sizes: Subnet) -> None:
        super().__init__()
        hidden, ffn, width = sizes.hidden_size, sizes.ffn_size, sizes.attention_width
        self.query = ElasticLinear(hidden, width)
        self.key = ElasticLinear(hidden, width)
        self.value = ElasticLinear(hidden, width)
        self.attention_output = ElasticLinear(width, hidden)
        self.attention_norm = ElasticLayerNorm(hidden, eps=config.layer_norm_eps)
        self.ffn_in = ElasticLinear(hidden, ffn)
        self.ffn_out = ElasticLinear(ffn, hidden)
        self.ffn_norm = ElasticLayerNorm(hidden, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.hidden_act]

    def project(self, x: Tensor, sizes: Subnet, apart: bool = False) -> Projections:
        """Return queries, keys and values of `(B, T, H)` hidden states, each `(B, T, W)`.

        apart: True for three products, so that weights of unused outputs get no gradient.
        """
        width = sizes.attention_width
        if self.working is not None and not apart:
            query, key, value = self.working.linear(x, width).unflatten(-1, (3, width)).unbind(-2)
            return query, key, value
        return self.query(x, width), self.key(x, width), self.value(x, width)

    def forward(self, x: Tensor, sizes: Subnet, mask: Tensor | None) -> Tensor:
        """Map hidden states `(B, T, H)` to those of the next layer.

        mask: mask of `attend`, for the heads of `sizes` or more.
        """
        heads = sizes.heads, sizes.head_dim
        if self.working is None:
            return self.complete(x, self.project(x, sizes), sizes, mask)
        projected = self.working.linear(x, sizes.attention_width).unflatten(-1, (3, *heads))  # (B, T, 3, A, D)
        return self._complete(x, projected.unbind(2), sizes, mask)

    def complete(self, x: Tensor, projections: Projections, sizes: Subnet, mask: Tensor | None) -> Tensor:
        """Compute the rest of `forward`, after `project`."""
        split = [projection.unflatten(-1, (sizes.heads, sizes.head_dim)) for projection in projections]
        return self._complete(x, split, sizes, mask)

    def _complete(self, x: Tensor, heads: Sequence[Tensor], sizes: Subnet, mask: Tensor | None) -> Tensor:
        """Compute the rest of `forward`, after queries, keys and values were split into `heads`, `(B, T, A, D)`."""
        mask = None if mask is None else mask[:, : sizes.heads]
        query, key, value = (part.transpose(1, 2) for part in heads)  # (B, A, T, D)
        context = attend(query, key, value, mask).transpose(1, 2).flatten(2)  # (B, T, W)
        x = self.attention_norm(x + self.attention_output(context, sizes.hidden_size))  # (B, T, H)
        inner = self.activation(self.ffn_in(x, sizes.ffn_size))  # (B, T, F)
        return cast(Tensor, self.ffn_norm(x + self.ffn_out(inner, sizes.hidden_size)))  # (B, T, H)


class _AutoDistil(PreTrainedModel):
    """Base class of the Hugging Face models of this package."""

    config_class = AutoDistilConfig
    base_model_prefix = "autodistil"
    config: AutoDistilConfig
    tokenizer: PreTrainedTokenizerBase | None = None
    """Tokenizer that `save_pretrained` writes beside the model; a loaded model has none."""

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write the model as `PreTrainedModel.save_pretrained` does, and its tokenizer if it has one."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.tokenizer is not None:
            write_tokenizer(self.tokenizer, save_directory)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a model as `PreTrainedModel.from_pretrained` does; custom kernels are never downloaded."""
        return super().from_pretrained(*args, **{"attn_implementation": None, **kwargs})

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, nn.Linear | nn.LayerNorm):
            nn.init.zeros_(module.bias)


class AutoDistilModel(_AutoDistil):
    """Hugging Face model of a SuperLM or a student; `save_pretrained`, `AutoModel` and `Trainer` work."""

    def __init__(self, config: AutoDistilConfig) -> None:
        super().__init__(config)
        hidden = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, hidden)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, hidden)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, hidden)
        self.embedding_norm = ElasticLayerNorm(hidden, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList([ElasticLayer(config, sizes) for sizes in config.subnet.each_layer])
        self.pooler = ElasticLinear(hidden, hidden)
        buckets = config.relative_attention_buckets
        self.relative_attention_bias = None if buckets is None else nn.Embedding(buckets, config.subnet.heads)
        self._last_space: tuple[dict[str, Any], SearchSpace] | None = None
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the word embeddings."""
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:  # type: ignore[override]
        """Replace the word embeddings."""
        self.word_embeddings = value

    @property
    def space(self) -> SearchSpace:
        """Return the space of this SuperLM. It is cached until the configuration changes.

        Raises:
            ValueError: if the model is a student.
        """
        settings = self.config.search_space
        if settings is None:
            raise ValueError("this model is a student: it has no search space")
        if self._last_space is None or self._last_space[0] != settings:
            self._last_space = deepcopy(settings), SearchSpace(**settings)
        return self._last_space[1]

    def _layers_of(self, subnet: Subnet) -> list[tuple[ElasticLayer, Subnet]]:
        """Return the layers that `subnet` keeps, each with its sizes in the subnet.

        Raises:
            ValueError: if the subnet does not fit into the model.
        """
        whole = self.config.subnet
        rule = self.space.depth if self.config.search_space else "prefix"
        if subnet.layers <= whole.layers and subnet.head_dim == whole.head_dim:
            kept = kept_layers(subnet.layers, whole.layers, rule)
            pairs = zip(subnet.each_layer, (whole.each_layer[i] for i in kept), strict=True)
            sizes = ("hidden_size", "ffn_size", "heads")
            if all(getattr(layer, key) <= getattr(largest, key) for layer, largest in pairs for key in sizes):
                layers = [cast(ElasticLayer, self.layers[i]) for i in kept]
                return list(zip(layers, subnet.each_layer, strict=True))
        raise ValueError(f"subnet {subnet} does not fit into {whole}")

    def _embed(
        self, input_ids: Tensor, token_type_ids: Tensor | None, hidden: int, words: Tensor | None = None
    ) -> Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        # Rows are looked up before they are sliced: in the other order the backward pass pads every table twice.
        words = self.word_embeddings(input_ids) if words is None else words  # (B, T, largest H)
        x = words + self.token_type_embeddings(token_type_ids)
        x = self.embedding_norm((x + self.position_embeddings(positions))[..., :hidden])  # (B, T, H)
        return cast(Tensor, x)

    def _mask(self, input_ids: Tensor, attention_mask: Tensor | None, heads: int) -> Tensor | None:
        """Return the mask of `attend` for all layers and `heads` heads, made of padding and relative bias."""
        seen = None if attention_mask is None else (attention_mask != 0)[:, None, None, :]  # (B, 1, 1, T)
        if self.relative_attention_bias is None:
            return seen
        sizes = self.relative_attention_bias.num_embeddings, self.config.relative_attention_max_distance
        table = self.relative_attention_bias.weight[:, :heads]  # (buckets, A)
        not_cached = torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined]
        make = relative_buckets if not_cached else _cached_buckets
        buckets = make(input_ids.shape[1], input_ids.device, *sizes)  # (T, T)
        bias: Tensor = F.embedding(buckets, table).permute(2, 0, 1).contiguous()[None]  # (1, A, T, T)
        return bias if seen is None else bias.masked_fill(~seen, torch.finfo(bias.dtype).min)

    @contextmanager
    def shared_words(self, input_ids: Tensor, word_sums: Tensor | None = None) -> Iterator[Tensor]:
        """Yield the word embeddings of a batch that several subnets train on, for `last_projections` and `last_layer`.

        Each backward pass inside the context adds to their gradient, `(B, T, largest H)`. On exit, this gradient is
        propagated to the embedding table. The table's gradient has a row for every word, and is computed only once.

        word_sums: tensor of the table's shape to which the gradient is added; None adds it to the table's own gradient.
        """
        words = self.word_embeddings(input_ids)
        shared = words.detach().requires_grad_()
        yield shared
        if word_sums is None:
            words.backward(shared.grad)
        else:
            _add_rows(word_sums, input_ids, cast(Tensor, shared.grad))

    def last_projections(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        subnet: Subnet | None = None,
        words: Tensor | None = None,
    ) -> Projections:
        """Return queries, keys and values of the last layer, each `(B, T, W)`, for relation distillation.

        Their dimensions are ordered by relation heads, as `relation_loss.split_heads` expects. The rest of the last
        layer is not computed.

        words: word embeddings of `input_ids`, if they were looked up before (`shared_words`).
        """
        x, last, sizes, _ = self._before_last(input_ids, attention_mask, subnet or self.config.subnet, words)
        return self._by_relation_heads(last.project(x, sizes, apart=True))

    def last_layer(
        self, input_ids: Tensor, subnet: Subnet | None = None, words: Tensor | None = None
    ) -> tuple[Projections, Tensor]:
        """Return `last_projections` and the last hidden states `(B, T, H)`."""
        x, last, sizes, mask = self._before_last(input_ids, None, subnet or self.config.subnet, words)
        projections = last.project(x, sizes)
        return self._by_relation_heads(projections), last.complete(x, projections, sizes, mask)

    def _before_last(
        self, input_ids: Tensor, attention_mask: Tensor | None, subnet: Subnet, words: Tensor | None
    ) -> tuple[Tensor, ElasticLayer, Subnet, Tensor | None]:
        """Return the input of the last layer of `subnet`, the layer, its sizes and its mask."""
        *body, (last, last_sizes) = self._layers_of(subnet)
        x, mask = (
            self._embed(input_ids, None, subnet.hidden_size, words),
            self._mask(input_ids, attention_mask, subnet.heads),
        )
        if last.working is not None:
            x = x.to(last.working.weight.dtype)
        for layer, sizes in body:
            x = layer(x, sizes, mask)
        return x, last, last_sizes, mask

    def _by_relation_heads(self, projections: Projections) -> Projections:
        query, key, value = projections
        return self._by_relation_head(query), self._by_relation_head(key), self._by_relation_head(value)

    def _by_relation_head(self, x: Tensor) -> Tensor:
        """Reorder the dimensions of `(..., W)` so that each relation head is one block.

        In the weights, consecutive dimensions belong to the relation heads in turns. So a weight belongs to the same
        relation head in every subnet, independently of the number of attention heads. The relation heads of a narrow
        subnet are leading dimensions of those of a wide subnet.
        """
        if self.config.relation_heads is None:
            return x
        blocks: Tensor = x.unflatten(-1, (-1, self.config.relation_heads)).transpose(-1, -2).flatten(-2)
        return blocks

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        subnet: Subnet | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling | tuple[Tensor, Tensor]:
        """Encode `(B, T)` token ids with `subnet`, or with the whole model if `subnet` is None.

        attention_mask: `(B, T)`, 1 for tokens and 0 for padding. Returns `last_hidden_state` `(B, T, H)` and
        `pooler_output` `(B, H)`.
        """
        subnet = subnet or self.config.subnet
        x = self._embed(input_ids, token_type_ids, subnet.hidden_size)
        mask = self._mask(input_ids, attention_mask, subnet.heads)
        for layer, sizes in self._layers_of(subnet):
            x = layer(x, sizes, mask)
        pooled = torch.tanh(self.pooler(x[:, 0], subnet.hidden_size))
        if return_dict is False:
            return x, pooled
        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=pooled)

    @torch.no_grad()
    def extract(self, subnet: Subnet) -> AutoDistilModel:
        """Return `subnet` as a student with its own copy of the weights, in evaluation mode.

        Raises:
            InputError: if the subnet is not in the space of this SuperLM.
        """
        self.space.encode(subnet)
        with torch.random.fork_rng(devices=[]):  # initial weights, which are replaced, must not use up random numbers
            student = AutoDistilModel(self.config.resized(subnet))
        nn.Module.to(student, self.device, self.dtype)
        sources = [self.word_embeddings, self.position_embeddings, self.token_type_embeddings, self.embedding_norm]
        targets = [student.word_embeddings, student.position_embeddings, student.token_type_embeddings]
        pairs = zip(
            [*sources, *(layer for layer, _ in self._layers_of(subnet)), self.pooler],
            [*targets, student.embedding_norm, *student.layers, student.pooler],
            strict=True,
        )
        for source, target in pairs:
            _copy_leading(source, target)
        if self.relative_attention_bias is not None:
            _copy_leading(self.relative_attention_bias, cast(nn.Embedding, student.relative_attention_bias))
        student.tokenizer = self.tokenizer
        student.eval()
        return student


def _add_rows(sums: Tensor, indices: Tensor, rows: Tensor) -> None:
    """Add `rows` `(B, T, H)` to the rows of `sums` at `indices` `(B, T)`, always in the same order."""
    if sums.device.type == "cpu":
        sums.index_add_(0, indices.flatten(), rows.flatten(0, 1))
    else:  # sorts the indices on CUDA, where index_add_ adds in any order; on a CPU it is the other way around
        sums.index_put_((indices,), rows, accumulate=True)


class AutoDistilForSequenceClassification(_AutoDistil):
    """Student with a linear head on its pooled output.

    The head classifies into `config.num_labels` classes, or predicts a number if `config.num_labels` is 1. The folder
    of an encoder without a head loads as well; the head then starts at random.
    """

    def __init__(self, config: AutoDistilConfig) -> None:
        super().__init__(config)
        self.autodistil = AutoDistilModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, cast(int, config.num_labels))
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the word embeddings."""
        return self.autodistil.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:  # type: ignore[override]
        """Replace the word embeddings."""
        self.autodistil.word_embeddings = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """Compute logits `(B, num_labels)` of `(B, T)` token ids.

        labels: `(B,)`; class indices, for which the loss is the cross-entropy. If `config.num_labels` is 1, numbers,
            for which the loss is the mean squared error. Without labels there is no loss.
        """
        pooled = self.autodistil(input_ids, attention_mask, token_type_ids).pooler_output
        logits = self.classifier(self.dropout(pooled))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def _copy_leading(source: nn.Module, target: nn.Module) -> None:
    """Copy the leading part of each parameter of `source` into the same parameter of `target`."""
    for whole, part in zip(source.parameters(), target.parameters(), strict=True):
        part.copy_(whole[tuple(slice(n) for n in part.shape)])


AutoConfig.register("autodistil", AutoDistilConfig)
AutoModel.register(AutoDistilConfig, AutoDistilModel)
AutoModelForSequenceClassification.register(AutoDistilConfig, AutoDistilForSequenceClassification)
