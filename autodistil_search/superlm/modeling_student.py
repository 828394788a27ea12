"""A student as one modelling file, which needs only torch and transformers. Exported folders contain a copy of it.

The `auto_map` in the folder's `config.json` names this file. So `AutoModel.from_pretrained(FOLDER,
trust_remote_code=True)` loads the model without autodistil_search. Classes and weights have the same names as in
autodistil_search, which loads the same folder where it is installed. Trailing comments give shapes: B sequences,
T tokens, H hidden size, A heads, D head_dim, W = A * D, F FFN width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput


class AutoDistilConfig(PreTrainedConfig):
    """Configuration of a student. Unlike in BERT, `head_dim` is independent of the hidden size.

    num_attention_heads, intermediate_size: one number for all layers, or a list with a number for each layer.
    classifier_dropout: dropout probability of the pooled output, while a classification head is trained.
    relative_attention_buckets: rows of the table of relative attention bias. Attention adds the bias to its scores, by
        head and by the distance between two tokens; all layers share the table. None for no such table.
    relative_attention_max_distance: distance from which on tokens share the last bucket of their side.
    relation_heads: number of relation heads in which the last layer's queries, keys and values were distilled. Nothing
        in this file depends on it.
    """

    model_type = "autodistil"

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


def relative_buckets(tokens: int, device: torch.device, buckets: int, max_distance: int) -> Tensor:
    """Return the bucket of each query's distance to each key, `(T, T)`, numbered as in MPNet and in T5's encoder.

    Half of the buckets are for keys after their query. In each half, the first half of the buckets stands for one
    distance each. The other buckets grow geometrically up to `max_distance`. Their bounds are whole numbers, so that
    the rounding of logarithms, which varies between runtimes, cannot move a distance to the next bucket.
    """
    per_side = buckets // 2
    exact = per_side // 2
    positions = torch.arange(tokens, device=device)
    ahead = positions[None, :] - positions[:, None]  # (T, T)
    distance = ahead.abs()
    bucket = (ahead > 0) * per_side + distance.clamp(max=exact)
    for bound in _bucket_bounds(exact, per_side - exact, max_distance):
        bucket = bucket + (distance >= bound)
    return bucket


def _bucket_bounds(exact: int, grown: int, max_distance: int) -> list[int]:
    """Return the smallest integers n >= exact (max_distance / exact)^(k / grown), for k from 1 to `grown` - 1."""
    bounds, distance = [], exact
    for k in range(1, grown):
        while distance**grown < exact ** (grown - k) * max_distance**k:
            distance += 1
        bounds.append(distance)
    return bounds


class StudentLayer(nn.Module):
    """Transformer layer (post-norm, as in BERT) with heads of any width."""

    def __init__(self, config: AutoDistilConfig, heads: int, ffn: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, config.head_dim
        hidden, width = config.hidden_size, heads * config.head_dim
        self.query = nn.Linear(hidden, width)
        self.key = nn.Linear(hidden, width)
        self.value = nn.Linear(hidden, width)
        self.attention_output = nn.Linear(width, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.ffn_in = nn.Linear(hidden, ffn)
        self.ffn_out = nn.Linear(ffn, hidden)
        self.ffn_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map hidden states `(B, T, H)` to those of the next layer.

        mask: `(B, 1, 1, T)` booleans, False where a key is padding, or numbers to add to the scores, `(B, A, T, T)`.
        """
        split = (*x.shape[:2], self.heads, self.head_dim)
        query, key, value = (linear(x).view(split).transpose(1, 2) for linear in (self.query, self.key, self.value))
        mask = None if mask is None else mask[:, : self.heads]
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # (B, A, T, D)
        context = context.transpose(1, 2).reshape(*x.shape[:2], self.heads * self.head_dim)  # (B, T, W)
        x = self.attention_norm(x + self.attention_output(context))  # (B, T, H)
        out: Tensor = self.ffn_norm(x + self.ffn_out(self.activation(self.ffn_in(x))))  # (B, T, H)
        return out


class _Student(PreTrainedModel):
    config_class = AutoDistilConfig
    base_model_prefix = "autodistil"
    config: AutoDistilConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, nn.Linear | nn.LayerNorm):
            nn.init.zeros_(module.bias)


class AutoDistilModel(_Student):
    """Encoder of a student."""

    def __init__(self, config: AutoDistilConfig) -> None:
        super().__init__(config)
        hidden = config.hidden_size
        heads, ffn_sizes = (
            value if isinstance(value, list) else [value] * config.num_hidden_layers
            for value in (config.num_attention_heads, config.intermediate_size)
        )
        self.word_embeddings = nn.Embedding(config.vocab_size, hidden)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, hidden)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, hidden)
        self.embedding_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(StudentLayer(config, *sizes) for sizes in zip(heads, ffn_sizes, strict=True))
        self.pooler = nn.Linear(hidden, hidden)
        buckets = config.relative_attention_buckets
        self.relative_attention_bias = None if buckets is None else nn.Embedding(buckets, max(heads))
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the word embeddings."""
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:  # type: ignore[override]
        """Replace the word embeddings."""
        self.word_embeddings = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling | tuple[Tensor, Tensor]:
        """Encode `(B, T)` token ids.

        attention_mask: `(B, T)`, 1 for tokens and 0 for padding. Returns `last_hidden_state` `(B, T, H)` and
        `pooler_output` `(B, H)`.
        """
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(types) + self.position_embeddings(positions)
        x = self.embedding_norm(x)  # (B, T, H)
        mask = self._mask(input_ids, attention_mask)
        for layer in self.layers:
            x = layer(x, mask)
        pooled = torch.tanh(self.pooler(x[:, 0]))
        if return_dict is False:
            return x, pooled
        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=pooled)

    def _mask(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        seen = None if attention_mask is None else (attention_mask != 0)[:, None, None, :]  # (B, 1, 1, T)
        if self.relative_attention_bias is None:
            return seen
        sizes = self.relative_attention_bias.num_embeddings, self.config.relative_attention_max_distance
        buckets = relative_buckets(input_ids.shape[1], input_ids.device, *sizes)  # (T, T)
        bias: Tensor = self.relative_attention_bias(buckets).permute(2, 0, 1)[None]  # (1, A, T, T)
        return bias.contiguous() if seen is None else bias.masked_fill(~seen, torch.finfo(bias.dtype).min)


class AutoDistilForSequenceClassification(_Student):
    """Encoder with a linear head on its pooled output: classes, or one number if `config.num_labels` is 1."""

    def __init__(self, config: AutoDistilConfig) -> None:
        super().__init__(config)
        self.autodistil = AutoDistilModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels or 1)
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
        """Compute logits `(B, num_labels)` of `(B, T)` token ids, and the loss if `labels` `(B,)` are given.

        The loss is the one that transformers computes for `config.num_labels` labels.
        """
        pooled = self.autodistil(input_ids, attention_mask, token_type_ids).pooler_output
        logits = self.classifier(self.dropout(pooled))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return SequenceClassifierOutput(loss=loss, logits=logits)
