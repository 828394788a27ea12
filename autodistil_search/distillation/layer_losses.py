"""What students learn of their teacher beside relations: its last hidden states; or its layers, one by one.

Layers' embeddings, hidden states and attention maps are watched while both run, whatever family of encoders they are
of. Letters: B sequences, T tokens, H hidden size, W width of queries and keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from autodistil_search.base.errors import InputError
from autodistil_search.superlm.model import AutoDistilConfig, AutoDistilModel
from autodistil_search.superlm.relation_loss import relation_loss, relation_target
from autodistil_search.teachers.families import FAMILIES, Block, Family, find
from autodistil_search.teachers.teacher import Teacher

_OURS = Family(
    layers="layers",
    query="query",
    key="key",
    value="value",
    attention_output="attention_output",
    attention_norm="attention_norm",
    ffn_in="ffn_in",
    ffn_out="ffn_out",
    ffn_norm="ffn_norm",
    embedding_norm="embedding_norm",
)
"""A student's own parts."""


_BLOCKS_AT_ONCE = 16
_RIDGE = 1e-6
"""Share of the mean variance added to each dimension's: of those that say the same, least squares take all alike."""

LAYER_TERMS = ("embeddings", "hidden", "attention")
"""What `LayerTransfer` compares."""


@dataclass
class States:
    """What was seen of one forward pass: `(B, T, H)` embeddings and outputs of layers, `(B, T, W)` queries and keys."""

    embeddings: Tensor | None = None
    hidden: dict[int, Tensor] = field(default_factory=dict)
    queries: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)


class Watched:
    """An encoder whose states can be read while it runs.

    Args:
        encoder: Of one of `FAMILIES`, or a student.

    Raises:
        InputError: for another model.
    """

    def __init__(self, encoder: PreTrainedModel) -> None:
        kind = encoder.config.model_type
        family = _OURS if kind == AutoDistilConfig.model_type else FAMILIES.get(kind)
        if family is None:
            raise InputError(f"a model of type {kind!r} has no layers known here; allowed: {', '.join(FAMILIES)}")
        self._family, self._layers = family, list(find(encoder, family.layers))
        self.layers = len(self._layers)
        self.hidden_size = int(encoder.config.hidden_size)
        self.heads = encoder.config.num_attention_heads

    @contextmanager
    def states(self) -> Iterator[States]:
        """The states of the forward pass that is made inside."""
        seen = States()
        handles = [self._layers[0].register_forward_pre_hook(_embeddings_of(seen), with_kwargs=True)]
        for i, layer in enumerate(self._layers):
            handles.append(layer.register_forward_hook(_keep(seen.hidden, i, Block(""))))
            for part, kept in (("query", seen.queries), ("key", seen.keys)):
                place = self._family.parts[part]
                handles.append(find(layer, place.path).register_forward_hook(_keep(kept, i, place)))
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()


def _embeddings_of(seen: States) -> Any:
    def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.embeddings = arguments[0] if arguments else named["hidden_states"]

    return hook


def _keep(kept: dict[int, Tensor], layer: int, place: Block) -> Any:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        whole = output[0] if isinstance(output, tuple) else output
        # The first: DeBERTa gives the same linear layers its positions, too.
        kept.setdefault(layer, whole.chunk(place.of, dim=-1)[place.index])

    return hook


def layer_pairs(mine: int, theirs: int) -> list[tuple[int, int]]:
    """Each layer of a student with the teacher's that it learns from: the last of as many equal parts.

    TinyBERT's uniform mapping g(m) = m theirs / mine (arXiv 1909.10351, section 4.1), rounded up where it is no whole
    number; layers are counted from 0.
    """
    return [(i, -(-(i + 1) * theirs // mine) - 1) for i in range(mine)]


class LayerTransfer(nn.Module):
    """The losses of a student's layers against its teacher's, each by its name in `weights.TERMS`.

    "embeddings" and "hidden" are mean squared differences, once the student's are taken to the teacher's width by a
    learned linear map: one for the embeddings, one for all layers, as in TinyBERT. "attention" compares Q Kᵀ / √d of
    as many heads as the teacher has, whatever heads the student has: as KL of the softmaxed scores, or as the mean
    squared difference of the scores (TinyBERT's).

    The maps are parameters that train with the student and are not part of it.
    """

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel, attention: str = "kl") -> None:
        super().__init__()
        self._student, self._teacher, self._compared = Watched(student), Watched(teacher), attention
        self._pairs = layer_pairs(self._student.layers, self._teacher.layers)
        widths = self._student.hidden_size, self._teacher.hidden_size
        self.embedding_map, self.hidden_map = nn.Linear(*widths, bias=False), nn.Linear(*widths, bias=False)

    @contextmanager
    def watching(self) -> Iterator[tuple[States, States]]:
        """The states of student and teacher in the forward passes that are made inside."""
        with self._student.states() as mine, self._teacher.states() as theirs:
            yield mine, theirs

    @property
    def description(self) -> str:
        """Which layers are compared and how, for records."""
        return f"attention by {self._compared}, layers {self._pairs}"

    def forward(
        self, mine: States, theirs: States, attention_mask: Tensor, terms: tuple[str, ...] = LAYER_TERMS
    ) -> list[Tensor]:
        """The losses of these `terms`, in their order; padding (0 in `attention_mask` `(B, T)`) does not count."""
        return [getattr(self, f"_{term}")(mine, theirs, attention_mask) for term in terms]

    def _embeddings(self, mine: States, theirs: States, mask: Tensor) -> Tensor:
        assert mine.embeddings is not None
        assert theirs.embeddings is not None
        return _distance(self.embedding_map(mine.embeddings), theirs.embeddings, mask)

    def _hidden(self, mine: States, theirs: States, mask: Tensor) -> Tensor:
        pairs = [_distance(self.hidden_map(mine.hidden[i]), theirs.hidden[j], mask) for i, j in self._pairs]
        return torch.stack(pairs).mean()

    def _attention(self, mine: States, theirs: States, mask: Tensor) -> Tensor:
        losses = []
        for i, j in self._pairs:
            sides = (theirs.queries[j], theirs.keys[j], theirs.keys[j])
            target = relation_target(sides, mask, self._teacher.heads, self._compared, (("qk", 1.0),))
            losses.append(relation_loss((mine.queries[i], mine.keys[i], mine.keys[i]), target))
        return torch.stack(losses).mean()


def _distance(mine: Tensor, theirs: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of `(B, T, H)` states over the tokens that are not padding."""
    each = (mine.float() - theirs.float()).square().mean(-1)  # (B, T)
    return (each * mask).sum() / mask.sum()


class LastHidden(nn.Module):
    """How much of the teacher's last hidden states no linear map of a student's gives, as a loss.

    Relations train the queries, keys and values of a student's last layer and what is below them; this trains the rest
    of that layer, too. It is the squared difference to the teacher's hidden states, once the student's are taken to
    their width (TinyBERT's, arXiv 1909.10351, equation 8, for the last layer), as a share of their variance: 0 for
    what is the teacher's but for such a map, 1 for what tells nothing.

    The map trains with the student, is not part of it, and starts as least squares have it on a sample of text. Subnets
    share it as they share weights: each uses the rows of its own hidden dimensions.

    Args:
        hidden_size: The student's, of a SuperLM the largest.
        teacher_hidden_size: The teacher's.
    """

    variance: Tensor

    def __init__(self, hidden_size: int, teacher_hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size, teacher_hidden_size))
        self.bias = nn.Parameter(torch.zeros(teacher_hidden_size))
        self.register_buffer("variance", torch.ones(()))

    @torch.no_grad()
    def fit(self, model: AutoDistilModel, teacher: Teacher, sample_ids: Tensor) -> None:
        """Start from the best map of what `model` gives for a sample of text, `(N, T)` token ids, as a whole."""
        size = 1 + len(self.weight)
        total = torch.zeros(size + len(self.bias), size + len(self.bias), dtype=torch.double, device=self.weight.device)
        for batch in sample_ids.to(total.device).split(_BLOCKS_AT_ONCE):
            total += _products(model(batch).last_hidden_state, teacher.last_layer(batch)[1])
        best = _best_map(total, size)
        self.weight.copy_(best[1:])
        self.bias.copy_(best[0])
        self.variance.copy_(_variance(total, size) / sample_ids.numel())

    def forward(self, mine: Tensor, theirs: Tensor) -> Tensor:
        """The loss of a student's hidden states `(B, T, H)`, or a subnet's, against the teacher's; in float32."""
        with torch.autocast(mine.device.type, enabled=False):
            given = mine.float() @ self.weight[: mine.shape[-1]] + self.bias
            return (given - theirs.float()).square().sum(-1).mean() / self.variance


def share_left(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Of the variance of a teacher's hidden states, the share that no linear map of a student's gives.

    Each pair `(N, T, H)` is measured by the map that least squares have on the others, so that a wide student gains
    nothing by fitting them.

    Args:
        pairs: Two or more of a student's and the teacher's hidden states of the same tokens.
    """
    size = 1 + pairs[0][0].shape[-1]
    products = [_products(mine, theirs) for mine, theirs in pairs]
    whole = torch.stack(products).sum(0)
    left = torch.stack([_squared_error(each, _best_map(whole - each, size)) for each in products]).sum()
    return float(left / _variance(whole, size))


def _squared_error(products: Tensor, linear_map: Tensor) -> Tensor:
    """What `linear_map` leaves of the teacher's hidden states: the sum of squares over tokens."""
    size = len(linear_map)
    own, both, theirs = products[:size, :size], products[:size, size:], products[size:, size:]
    error: Tensor = theirs.trace() + (linear_map * (own @ linear_map - 2 * both)).sum()
    return error


def _products(mine: Tensor, theirs: Tensor) -> Tensor:
    """Sums over tokens of the products of 1, a student's and the teacher's hidden states with each other.

    `(n, n)` in double precision, n = 1 + H of one + H of the other, in this order.
    """
    ones = mine.new_ones(*mine.shape[:-1], 1)
    tokens = torch.cat([ones, mine, theirs], dim=-1).flatten(0, -2).double()
    products: Tensor = tokens.mT @ tokens
    return products


def _best_map(products: Tensor, size: int) -> Tensor:
    """By least squares, from 1 and the student's hidden states (`size` numbers) to the teacher's: `(size, H)`."""
    own = products[:size, :size]
    ridge = _RIDGE * own[1:, 1:].trace() / (size - 1) * torch.eye(size, dtype=own.dtype, device=own.device)
    ridge[0, 0] = 0
    best: Tensor = torch.linalg.solve(own + ridge, products[:size, size:])
    return best


def _variance(products: Tensor, size: int) -> Tensor:
    """The sum over tokens of the squared distance of the teacher's hidden states from their mean."""
    return products[size:, size:].trace() - products[0, size:].square().sum() / products[0, 0]
