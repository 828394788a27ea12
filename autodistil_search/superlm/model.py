"""The encoder: one class is both the SuperLM and a student.

A SuperLM is a BERT-like encoder at the largest sizes of a search space. Every subnet is a leading slice of its
weights: the first rows and columns of each matrix, as many in each layer as that layer has (`Subnet.each_layer`), and
some of its layers (`space.kept_layers`). `forward` takes
the subnet as an argument; `extract` cuts it out as a model of the same class. Trailing comments give shapes:
B sequences, T tokens, H hidden size, A heads, D head_dim, W = A * D, F FFN width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from autodistil_search.base.manifest import MODEL_TYPE
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet, kept_layers
from autodistil_search.superlm.modeling_student import relative_buckets

Projections = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values, each `(B, T, W)`."""


_REQUESTS = ("quantization_config", "transformers_weights", "fusion_config", "distributed_config", "per_layer_config")


class AutoDistilConfig(PreTrainedConfig):
    """Sizes of an `AutoDistilModel`. Unlike BERT's, `head_dim` is free of the hidden size.

    num_attention_heads, intermediate_size: a list with a number for each layer, if layers differ.
    classifier_dropout: probability that a head drops a number of the pooled output while it is trained.
    relative_attention_buckets: rows of a table of numbers that attention adds to its scores, by the distance between
        two tokens, for each head; all layers share it. None for no such table.
    relative_attention_max_distance: from this distance on, tokens share the last bucket of their side.
    relation_heads: into how many relation heads the dimensions of the last layer's queries, keys and values go in
        turns, as those of a SuperLM and its students do; None if relation heads are blocks of neighbouring dimensions.
    search_space: the space (`SearchSpace.to_dict`) whose SuperLM this is; None for a student.
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
        """Drop entries of a `config.json` that ask for kernels, quantization or other files."""
        super().__post_init__(
            **{key: value for key, value in undeclared.items() if not key.startswith("_") and key not in _REQUESTS}
        )

    @property
    def subnet(self) -> Subnet:
        """The sizes of the whole model."""
        ffn_sizes, heads = (
            value if isinstance(value, list) else [value] * self.num_hidden_layers
            for value in (self.intermediate_size, self.num_attention_heads)
        )
        return Subnet.of_layers(self.hidden_size, ffn_sizes, heads, self.head_dim)

    def resized(self, subnet: Subnet, search_space: SearchSpace | None = None) -> AutoDistilConfig:
        """The same embeddings and activation with the sizes of `subnet`."""
        values: dict[str, Any] = {key: getattr(self, key) for key in self._shared}
        values |= {
            "num_hidden_layers": subnet.layers,
            "hidden_size": subnet.hidden_size,
            "intermediate_size": _one_or_each(subnet.ffn_size, [each.ffn_size for each in subnet.each_layer]),
            "num_attention_heads": _one_or_each(subnet.heads, [each.heads for each in subnet.each_layer]),
            "head_dim": subnet.head_dim,
            "search_space": search_space.to_dict() if search_space else None,
        }
        return AutoDistilConfig(**values)


def _one_or_each(most: int, of_layers: list[int]) -> int | list[int]:
    """One number if all layers have it, else that of each."""
    return most if set(of_layers) == {most} else of_layers


class ElasticLinear(nn.Linear):
    """A linear layer of which the leading `n_out` rows and as many columns as the input has can be used."""

    def forward(self, x: Tensor, n_out: int) -> Tensor:  # type: ignore[override]
        """`(..., n_in)` to `(..., n_out)`."""
        return F.linear(x, self.weight[:n_out, : x.shape[-1]], self.bias[:n_out])


class ElasticLayerNorm(nn.LayerNorm):
    """Layer norm over the leading dimensions that the input has."""

    def forward(self, x: Tensor) -> Tensor:
        """`(..., n)` to the same shape."""
        n = x.shape[-1]
        return F.layer_norm(x, (n,), self.weight[:n], self.bias[:n], self.eps)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention of `(B, A, T, D)` tensors.

    mask: broadcasts to `(B, A, T, T)`. Booleans are False where a key is padding; numbers are added to the scores.

    The fused kernel where it measures faster (docs/benchmarks.md): on CUDA, and on a CPU in float32. Plain products in
    bfloat16 on a CPU, and while being traced: FLOP counters that trace a model do not look into the kernel.
    """
    added = mask is not None and mask.is_floating_point()
    traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined]
    if not traced and (query.is_cuda or query.dtype == torch.float32):
        mask = cast(Tensor, mask).to(query.dtype) if added else mask
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # (B, A, T, T)
    if added:
        scores = scores + mask  # in bfloat16, the sum is in float32, as the softmax is
    elif mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    context: Tensor = scores.softmax(dim=-1).to(value.dtype) @ value
    return context


@lru_cache(maxsize=8)
def _kept_buckets(tokens: int, device: torch.device, buckets: int, max_distance: int) -> Tensor:
    with torch.inference_mode(False):  # tensors that are made in inference mode cannot be used in training
        return relative_buckets(tokens, device, buckets, max_distance)


class ElasticLayer(nn.Module):
    """A Transformer layer (post-norm, as BERT's) whose sizes are chosen at each call.

    Args:
        config: Of the model that it is a layer of.
        sizes: The layer's own, at most (an item of `Subnet.each_layer`).
    """

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

    def project(self, x: Tensor, sizes: Subnet) -> Projections:
        """Queries, keys and values of `(B, T, H)` hidden states, each `(B, T, W)`."""
        width = sizes.attention_width
        return self.query(x, width), self.key(x, width), self.value(x, width)

    def forward(self, x: Tensor, sizes: Subnet, mask: Tensor | None) -> Tensor:
        """Hidden states `(B, T, H)` to the next layer's; mask: as `attend` takes it, for these heads or more."""
        return self.complete(x, self.project(x, sizes), sizes, mask)

    def complete(self, x: Tensor, projections: Projections, sizes: Subnet, mask: Tensor | None) -> Tensor:
        """The rest of `forward`, after `project`."""
        mask = None if mask is None else mask[:, : sizes.heads]
        query, key, value = (
            each.unflatten(-1, (sizes.heads, sizes.head_dim)).transpose(1, 2) for each in projections
        )  # (B, A, T, D)
        context = attend(query, key, value, mask).transpose(1, 2).flatten(2)  # (B, T, W)
        x = self.attention_norm(x + self.attention_output(context, sizes.hidden_size))  # (B, T, H)
        inner = self.activation(self.ffn_in(x, sizes.ffn_size))  # (B, T, F)
        return cast(Tensor, self.ffn_norm(x + self.ffn_out(inner, sizes.hidden_size)))  # (B, T, H)


class _AutoDistil(PreTrainedModel):
    """What all our Hugging Face models share."""

    config_class = AutoDistilConfig
    base_model_prefix = "autodistil"
    config: AutoDistilConfig

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As `PreTrainedModel.from_pretrained`, but a folder's wish for a kernel of the hub is not fulfilled."""
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
    """SuperLM or student, as a Hugging Face model: `save_pretrained`, `AutoModel` and `Trainer` work."""

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
        """The word embeddings."""
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:  # type: ignore[override]
        """Replace the word embeddings."""
        self.word_embeddings = value

    @property
    def space(self) -> SearchSpace:
        """Return the space of this SuperLM; it is made and checked again only after the configuration has changed."""
        given = self.config.search_space
        if given is None:
            raise ValueError("this model is a student: it has no search space")
        if self._last_space is None or self._last_space[0] != given:
            self._last_space = deepcopy(given), SearchSpace(**given)
        return self._last_space[1]

    def _layers_of(self, subnet: Subnet) -> list[tuple[ElasticLayer, Subnet]]:
        """The layers that `subnet` uses, each with the sizes it has there.

        Raises:
            ValueError: if the subnet does not fit into the model.
        """
        whole = self.config.subnet
        rule = self.space.depth if self.config.search_space else "prefix"
        if subnet.layers <= whole.layers and subnet.head_dim == whole.head_dim:
            kept = kept_layers(subnet.layers, whole.layers, rule)
            mine = zip(subnet.each_layer, (whole.each_layer[i] for i in kept), strict=True)
            sizes = ("hidden_size", "ffn_size", "heads")
            if all(getattr(each, key) <= getattr(most, key) for each, most in mine for key in sizes):
                layers = [cast(ElasticLayer, self.layers[i]) for i in kept]
                return list(zip(layers, subnet.each_layer, strict=True))
        raise ValueError(f"subnet {subnet} does not fit into {whole}")

    def _embed(
        self, input_ids: Tensor, token_type_ids: Tensor | None, hidden: int, words: Tensor | None = None
    ) -> Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        # Look-up first, slice after: the other way round the backward pass pads every table twice.
        words = self.word_embeddings(input_ids) if words is None else words  # (B, T, largest H)
        x = words + self.token_type_embeddings(token_type_ids)
        x = self.embedding_norm((x + self.position_embeddings(positions))[..., :hidden])  # (B, T, H)
        return cast(Tensor, x)

    def _mask(self, input_ids: Tensor, attention_mask: Tensor | None, heads: int) -> Tensor | None:
        """Return the mask of all layers, for so many heads, as `attend` takes it: of padding and relative bias."""
        seen = None if attention_mask is None else (attention_mask != 0)[:, None, None, :]  # (B, 1, 1, T)
        if self.relative_attention_bias is None:
            return seen
        sizes = self.relative_attention_bias.num_embeddings, self.config.relative_attention_max_distance
        table = self.relative_attention_bias.weight[:, :heads]  # (buckets, A)
        made_anew = torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined]
        make = relative_buckets if made_anew else _kept_buckets
        buckets = make(input_ids.shape[1], input_ids.device, *sizes)  # (T, T)
        bias: Tensor = F.embedding(buckets, table).permute(2, 0, 1).contiguous()[None]  # (1, A, T, T)
        return bias if seen is None else bias.masked_fill(~seen, torch.finfo(bias.dtype).min)

    @contextmanager
    def shared_words(self, input_ids: Tensor) -> Iterator[Tensor]:
        """The word embeddings of a batch that several subnets train on, for `last_projections` and `last_layer`.

        Each backward pass inside adds to their gradient, which is `(B, T, largest H)`; on leaving it goes on to the
        table, whose own gradient has a row for every word: made once, not once for each subnet.
        """
        words = self.word_embeddings(input_ids)
        shared = words.detach().requires_grad_()
        yield shared
        words.backward(shared.grad)

    def last_projections(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        subnet: Subnet | None = None,
        words: Tensor | None = None,
    ) -> Projections:
        """Queries, keys and values of the last layer, each `(B, T, W)`: all that relation distillation needs.

        Their dimensions are ordered by relation heads, as `relations.split_heads` takes them. The rest of the last
        layer is not computed. words: the word embeddings of `input_ids`, if they were looked up before
        (`shared_words`).
        """
        x, last, sizes, _ = self._before_last(input_ids, attention_mask, subnet or self.config.subnet, words)
        return self._by_relation_heads(last.project(x, sizes))

    def last_layer(
        self, input_ids: Tensor, subnet: Subnet | None = None, words: Tensor | None = None
    ) -> tuple[Projections, Tensor]:
        """`last_projections`, and the last hidden states `(B, T, H)`."""
        x, last, sizes, mask = self._before_last(input_ids, None, subnet or self.config.subnet, words)
        projections = last.project(x, sizes)
        return self._by_relation_heads(projections), last.complete(x, projections, sizes, mask)

    def _before_last(
        self, input_ids: Tensor, attention_mask: Tensor | None, subnet: Subnet, words: Tensor | None
    ) -> tuple[Tensor, ElasticLayer, Subnet, Tensor | None]:
        """Return the input of the last layer of `subnet`, that layer, its sizes, and its mask."""
        *body, (last, last_sizes) = self._layers_of(subnet)
        x, mask = (
            self._embed(input_ids, None, subnet.hidden_size, words),
            self._mask(input_ids, attention_mask, subnet.heads),
        )
        for layer, sizes in body:
            x = layer(x, sizes, mask)
        return x, last, last_sizes, mask

    def _by_relation_heads(self, projections: Projections) -> Projections:
        query, key, value = projections
        return self._by_relation_head(query), self._by_relation_head(key), self._by_relation_head(value)

    def _by_relation_head(self, x: Tensor) -> Tensor:
        """Dimensions that go to the relation heads in turns, `(..., W)`, put into one block for each relation head.

        In turns, a weight belongs to the same relation head in every subnet, whatever number of heads it has: the
        relation heads of a narrower subnet are the leading dimensions of a wider one's.
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
        """Encode `(B, T)` token ids with `subnet`, or with the whole model.

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
        """The student `subnet`, with its own copy of the weights, in evaluation mode.

        Raises:
            InputError: if the subnet is not in the space of this SuperLM.
        """
        self.space.encode(subnet)
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
        student.eval()
        return student


class AutoDistilForSequenceClassification(_AutoDistil):
    """A student with a linear head on its pooled output, for `config.num_labels` classes, or for a number if that is 1.

    A folder that holds an encoder alone loads as well: the head then starts at random.
    """

    def __init__(self, config: AutoDistilConfig) -> None:
        super().__init__(config)
        self.autodistil = AutoDistilModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, cast(int, config.num_labels))
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embeddings."""
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
        """Logits `(B, num_labels)` of `(B, T)` token ids.

        labels: `(B,)`; class numbers, for which the loss is cross-entropy, or, with one label, numbers, for which it is
        the mean squared error. Without labels there is no loss.
        """
        pooled = self.autodistil(input_ids, attention_mask, token_type_ids).pooler_output
        logits = self.classifier(self.dropout(pooled))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def _copy_leading(source: nn.Module, target: nn.Module) -> None:
    """Give each parameter of `target` the leading part of the same one of `source`."""
    for whole, part in zip(source.parameters(), target.parameters(), strict=True):
        part.copy_(whole[tuple(slice(n) for n in part.shape)])


AutoConfig.register("autodistil", AutoDistilConfig)
AutoModel.register(AutoDistilConfig, AutoDistilModel)
AutoModelForSequenceClassification.register(AutoDistilConfig, AutoDistilForSequenceClassification)
