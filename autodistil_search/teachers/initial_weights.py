"""Initial weights of SuperLMs and students: slices of the teacher, which may first be rotated.

A slice takes the first hidden dimensions, heads, dimensions of each head and FFN neurons. The slice of a subnet is in
turn the first part of that slice, so the order of dimensions decides which of them are kept. A rotation or a sorting
puts the most important dimensions first, by averages over a sample of training text. It is applied to a copy of the
teacher; the teacher that gives the targets does not change. Letters: H hidden size, A heads, D head_dim, W = A D,
F FFN width, R relation heads, G groups of dimensions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autodistil_search.base.device import as_float64
from autodistil_search.base.errors import InputError
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel, ElasticLayer
from autodistil_search.superlm.relation_loss import relation_loss, relation_target
from autodistil_search.teachers.averages import Watched, averages, linear
from autodistil_search.teachers.fitted_readers import fit_readers, most_varied, read_moments
from autodistil_search.teachers.teacher import Teacher

STARTS = ("auto", "fitted", "pca", "slices", "embeddings", "random")
"""Names of the initial weights that `start_from` gives a model."""

STARTS_VERSION = 3
"""Number that is raised when a start gives other weights than before, so that no cached model of before is taken."""

COPYING_STARTS = ("auto", "fitted", "pca", "slices")
"""Starts that make a student of the teacher's own shape its copy, if students have all parts of its layers."""

_LEAST_GAIN = {"embeddings": 0.01, "slices": 0.03, "pca": 0.03, "fitted": 0.03}
"""Share by which a start must lower the relation loss of those before it, which copy less. A small gain from layers
shows that the copy destroyed them: a SuperLM of MPNet learns more slowly from such layers than from embeddings alone.
"""

_LEAST_SHARE = 0.4
"""Least width of a model, as a share of the teacher's, for which "fitted" is taken without a comparison."""

_JUDGED_BLOCKS = 8
"""Blocks of the sample on which "auto" compares the starts."""

SAMPLE_BLOCKS = 64
"""Blocks of training text for the averages: 8,192 tokens with 128 tokens a block."""

_KNOWN_FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "mpnet")
"""Post-norm families whose layers have all the parts that the rotation rewrites."""

_SMALLEST_VARIANCE = 1e-6
"""Lower bound of the variance in any direction, as a share of the largest; it keeps the inverse finite."""

_Attention = dict[str, tuple[Tensor, Tensor]]


def superlm(
    teacher: Teacher, space: SearchSpace, init: str, sample_ids: Tensor | None = None
) -> tuple[AutoDistilModel, list[str]]:
    """Return a SuperLM for `space` with the teacher's vocabulary, and notes on its start; see `start_from`."""
    model = AutoDistilModel(teacher.student_config(space.largest, space))
    return model, start_from(model, teacher, init, sample_ids, space.relation_heads)


@torch.no_grad()
def start_from(
    model: AutoDistilModel, teacher: Teacher, init: str, sample_ids: Tensor | None, relation_heads: int
) -> list[str]:
    """Set the initial weights of `model`, a SuperLM or a student; returns notes on parts not copied from the teacher.

    Args:
        model: Model with random weights.
        teacher: Source of the weights.
        init: One of `STARTS`:

            - "random" leaves the model unchanged.
            - "embeddings" copies slices of the teacher's embeddings.
            - "slices" also copies slices of its layers.
            - "pca" does so after a rotation of hidden dimensions, heads and relation heads, which puts the dimensions
              of largest variance first.
            - "fitted" sorts hidden dimensions and FFN neurons instead of rotating them, and fits the linear layers that
              read them to stand for those that are cut; see `fitted_readers`.
            - "auto" takes "slices" for a model as wide as the teacher, and "fitted" for a model that is at least 0.4
              times as wide and not deeper. For others it tries all of these that the teacher allows, and keeps the
              start with which the largest subnet has the lowest relation loss on the sample. Embeddings must lower it
              by 1 %, and layers by 3 %.

            What is not cut stays as it is: a student of the teacher's own shape is its copy with "slices", "pca" and
            "fitted".
        sample_ids: `(N, T)` token ids of training text, used only by "pca", "fitted" and "auto".
        relation_heads: Number of heads into which the loss splits Q, K and V.

    Raises:
        InputError: for any other `init`.
    """
    if init not in STARTS:
        raise InputError(f"init {init!r}; allowed: {', '.join(STARTS)}")
    if init == "auto" and (known := _known_start(model, teacher)) is not None:
        start, reason = known
        notes = start_from(model, teacher, start, sample_ids, relation_heads)
        return [f"starts from {start}, because it {reason}", *notes]
    if init == "auto":
        assert sample_ids is not None
        return _best_start(model, teacher, sample_ids, relation_heads)
    if init == "random":
        return ["all weights start at random"]
    if init == "embeddings":
        return teacher.copy_into(model, layers=False)
    family = teacher.model.config.model_type
    if init == "slices" or family not in _KNOWN_FAMILIES:
        other = (
            []
            if init == "slices"
            else [f"init {init} does not support teachers of type {family!r}; slices are copied instead"]
        )
        return [*other, *_copy_slices(model, teacher, relation_heads)]
    assert sample_ids is not None
    turned = Teacher(copy.deepcopy(teacher.model), teacher.tokenizer, teacher.name, teacher.layer)
    if init == "pca":
        _turn_hidden(turned, teacher, sample_ids, _widths(model), _components(teacher, sample_ids, _widths(model)))
    else:
        moments = read_moments(teacher, sample_ids)
        order = most_varied(moments)
        permutation = as_float64(torch.eye(len(order), device=order.device))[:, order]
        _turn_hidden(turned, teacher, sample_ids, _widths(model), permutation)
        fit_readers(turned, moments, order, _widths(model), _ffn_sizes(model))
    last = _last_attention(turned, model)
    _turn_heads(turned, teacher, sample_ids, model.config.subnet)
    notes = turned.copy_into(model)
    _align_relations(model, teacher, last, sample_ids, relation_heads)
    return notes


def _known_start(model: AutoDistilModel, teacher: Teacher) -> tuple[str, str] | None:
    """Return the start of a model for which it needs no comparison, with the reason; None for other models.

    With fewer layers than the teacher, the loss before training says nothing about the loss afterwards.
    """
    own, largest, widths = teacher.subnet, model.config.subnet, _widths(model)
    if not teacher.copies_layers:
        return None
    if set(widths) == {own.hidden_size}:
        return "slices", "is as wide as the teacher"
    turns = teacher.model.config.model_type in _KNOWN_FAMILIES
    if turns and largest.layers <= own.layers and _LEAST_SHARE * own.hidden_size <= max(widths) < own.hidden_size:
        return "fitted", f"is at most as deep as the teacher, and at least {_LEAST_SHARE:g} times as wide"
    return None


def _best_start(model: AutoDistilModel, teacher: Teacher, sample_ids: Tensor, relation_heads: int) -> list[str]:
    """Start `model` in each way that the teacher allows, and keep the start with the lowest relation loss.

    It is the loss of the largest subnet. Those that are cut most have lost most of what any start copies, so that their
    loss before training tells little about the loss afterwards.

    Every start draws the same random numbers, so the result equals that of an explicit `init` of the kept start.
    """
    blocks = sample_ids[:_JUDGED_BLOCKS].to(teacher.model.device)
    projections = [part.to(model.device) for part in teacher.projections(blocks)]
    target = relation_target(projections, None, relation_heads, "kl")
    untouched = _weights_of(model)
    losses: dict[str, float] = {}
    best, kept = "", (untouched, [""])
    for init in _starts_for(teacher):
        model.load_state_dict(untouched)
        with torch.random.fork_rng(devices=[]):
            notes = start_from(model, teacher, init, sample_ids, relation_heads)
        losses[init] = relation_loss(model.last_projections(blocks.to(model.device)), target).item()
        if losses[init] < (1 - _LEAST_GAIN.get(init, 0.0)) * losses.get(best, math.inf):
            best, kept = init, (_weights_of(model), notes)
    model.load_state_dict(kept[0])
    others = ", ".join(f"{init} {loss:.4g}" for init, loss in losses.items() if init != best)
    return [f"starts from {best}, chosen by relation loss: {losses[best]:.4g} ({others})", *kept[1]]


def _widths(model: AutoDistilModel) -> Sequence[int]:
    """Return the hidden sizes of the subnets of a SuperLM, or that of a student."""
    return model.space.hidden_size if model.config.search_space else (model.config.hidden_size,)


def _ffn_sizes(model: AutoDistilModel) -> Sequence[int]:
    """Return the FFN widths of the subnets of a SuperLM, or those of a student."""
    if model.config.search_space:
        return sorted({round(hidden * ratio) for hidden in model.space.hidden_size for ratio in model.space.mlp_ratio})
    return sorted({sizes.ffn_size for sizes in model.config.subnet.each_layer})


def _weights_of(model: AutoDistilModel) -> dict[str, Tensor]:
    """Return a copy of the weights by their names."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _starts_for(teacher: Teacher) -> list[str]:
    """Return the starts that differ for this teacher, in ascending order of the parts that they copy."""
    if not teacher.copies_layers:
        return ["random", "embeddings"]
    turned = ["pca", "fitted"] if teacher.model.config.model_type in _KNOWN_FAMILIES else []
    return ["random", "embeddings", "slices", *turned]


def _copy_slices(model: AutoDistilModel, teacher: Teacher, relation_heads: int) -> list[str]:
    """Copy slices of the unrotated teacher into `model`; returns notes as `Teacher.copy_into` does.

    The relation heads of a SuperLM get the leading dimensions of the teacher's relation heads.
    """
    notes = teacher.copy_into(model)
    if teacher.copies_layers and model.config.relation_heads is not None:
        _align_relations(model, teacher, _last_attention(teacher, model), None, relation_heads)
    return notes


def _turn_heads(turned: Teacher, teacher: Teacher, sample_ids: Tensor, student_sizes: Subnet) -> None:
    """Rotate the dimensions of each head so that the first ones approximate Q Kᵀ and W_o V best.

    The rotation is exact up to a factor: Q and K are scaled so that scores, divided by √D, keep their size when D
    changes. S_q and S_k are the square roots of the second moments, and S_q S_k = U s Vᵀ. The rotated q is
    √s Uᵀ S_q⁻¹ q, and k alike. Their product is unchanged, and its first terms are the best approximation of that
    rank. V and W_o are treated alike.
    """
    teacher_sizes = teacher.subnet
    if (
        student_sizes.head_dim >= teacher_sizes.head_dim
        or student_sizes.attention_width >= teacher_sizes.attention_width
    ):
        return
    watched: list[Watched] = []
    for layer in range(teacher_sizes.layers):
        watched += [
            (linear(teacher, layer, "query"), lambda _, y: _moments(y, teacher_sizes.heads)),
            (linear(teacher, layer, "key"), lambda _, y: _moments(y, teacher_sizes.heads)),
            (linear(teacher, layer, "attention_output"), lambda x, _: _moments(x, teacher_sizes.heads)),
        ]
    moments = iter(averages(teacher, sample_ids, watched))
    scale = (student_sizes.head_dim / teacher_sizes.head_dim) ** 0.25
    for layer, *of_layer in zip(range(teacher_sizes.layers), moments, moments, moments, strict=True):
        (root_q, inverse_q), (root_k, inverse_k), (root_v, inverse_v) = (_roots(moment) for moment in of_layer)
        u, s, vh = torch.linalg.svd(root_q @ root_k)  # (A, D, D), (A, D), (A, D, D)
        _mix_rows(linear(turned, layer, "query"), scale * s.sqrt()[..., None] * u.mT @ inverse_q)
        _mix_rows(linear(turned, layer, "key"), scale * s.sqrt()[..., None] * vh @ inverse_k)
        output = as_float64(linear(teacher, layer, "attention_output").weight)
        output = output.unflatten(1, (teacher_sizes.heads, -1)).transpose(0, 1) @ root_v  # (A, H, D)
        components = torch.stack([_principal(moment) for moment in output.mT @ output])  # (A, D, D)
        size = (output @ components).norm(dim=1).clamp(min=_SMALLEST_VARIANCE).sqrt()[:, None]  # (A, 1, D)
        _mix_rows(linear(turned, layer, "value"), (components * size).mT @ inverse_v)
        _mix_columns(linear(turned, layer, "attention_output"), root_v @ (components / size))


def _components(teacher: Teacher, sample_ids: Tensor, widths: Sequence[int]) -> Tensor:
    """Return the principal components of the hidden states, averaged over all layers, as the columns of `(H, H)`.

    It is the identity if no width is below the teacher's.
    """
    if min(widths) >= teacher.subnet.hidden_size:
        return as_float64(torch.eye(teacher.subnet.hidden_size, device=teacher.model.device))
    moments = averages(teacher, sample_ids, [(norm, lambda _, y: y.mT @ y) for norm in _norms(teacher)])
    return _principal(torch.stack(moments).sum(0))


def _turn_hidden(turned: Teacher, teacher: Teacher, sample_ids: Tensor, widths: Sequence[int], turn: Tensor) -> None:
    """Turn the hidden dimensions of `turned`.

    The method is that of SliceGPT (arXiv 2401.15024), with one rotation for all layers: a student has no place for a
    rotation between layers. The result is approximate, because a layer norm subtracts the mean of its dimensions and
    weighs them. Its weights are fitted to the turned hidden states by least squares, over the student's widths.

    Args:
        turned: Copy of the teacher that is turned in place.
        teacher: Teacher whose hidden states are averaged.
        sample_ids: `(N, T)` token ids of training text.
        widths: Hidden sizes that the student can have.
        turn: Orthogonal matrix `(H, H)`, whose columns are the new dimensions.
    """
    hidden = teacher.subnet.hidden_size
    norms = _norms(teacher)
    if min(widths) >= hidden:
        return

    def sums(x: Tensor, y: Tensor) -> Tensor:
        return _norm_sums(as_float64(x) @ turn, as_float64(y) @ turn, [min(width, hidden) for width in widths])

    fits = averages(teacher, sample_ids, [(norm, sums) for norm in norms])
    for norm, fit in zip(_norms(turned), fits, strict=True):
        n, n_n, y, n_y = fit[1:] / fit[0].clamp(min=1)  # dimensions beyond all widths have a count of 0
        weight = (n_y - n * y) / (n_n - n.square()).clamp(min=_SMALLEST_VARIANCE)
        norm.weight.copy_(weight)
        norm.bias.copy_(y - weight * n)
    _turn_embeddings(turned, turn)
    for layer in range(teacher.subnet.layers):
        for part in ("query", "key", "value", "ffn_in"):
            _mix_columns(linear(turned, layer, part), turn[None])
        for part in ("attention_output", "ffn_out"):
            _mix_rows(linear(turned, layer, part), turn.mT[None])
    pooler: Any = getattr(turned.model, "pooler", None)
    if pooler is not None:
        _mix_columns(pooler.dense, turn[None])


def _last_attention(turned: Teacher, model: AutoDistilModel) -> _Attention:
    """Return a copy of weights and biases of the attention of the layer that starts the last layer of `model`."""
    parts = turned.layer_parts(cast(int, turned.sources(model)[-1]))
    names = ("query", "key", "value", "attention_output")
    return {name: (as_float64(parts[name].weight).clone(), as_float64(parts[name].bias).clone()) for name in names}


def _align_relations(
    model: AutoDistilModel, teacher: Teacher, attention: _Attention, sample_ids: Tensor | None, relation_heads: int
) -> None:
    """Copy the teacher's leading dimensions of each relation head into the last layer of `model`.

    With a sample of text, the dimensions are first rotated to their principal components; Q and K share one rotation.
    It is orthogonal, so that all components together have the teacher's relations. Their scale keeps the size of the
    scores when the width changes. Without a sample, the dimensions are copied unrotated. Attention heads are not kept
    apart, because the loss depends on relation heads only. Dimensions beyond the teacher's start at random.

    attention: attention to copy, with the hidden dimensions of `model` in front; see `_last_attention`.
    """
    student_sizes, teacher_sizes = model.config.subnet, teacher.subnet
    width, hidden = (
        student_sizes.each_layer[-1].attention_width,
        min(student_sizes.hidden_size, teacher_sizes.hidden_size),
    )
    if width >= teacher_sizes.attention_width and model.config.relation_heads is None:
        return
    source = cast(int, teacher.sources(model)[-1])
    per_head, teacher_per_head = (-(-w // relation_heads) for w in (width, teacher_sizes.attention_width))
    groups = torch.arange(teacher_sizes.attention_width, device=attention["query"][0].device).split(teacher_per_head)
    rows, order = _matching_rows(groups, relation_heads, per_head, model.config.relation_heads is not None)
    rows, order = rows[:width].to(model.device), order[:width]
    last = cast(ElasticLayer, model.layers[-1])
    components, scale = _relation_components(teacher, source, sample_ids, groups), 1.0
    if sample_ids is not None:
        scale = (per_head / teacher_per_head) ** 0.25
    for name in ("query", "key", "value"):
        target, chosen = getattr(last, name), scale * components[name][order]  # (rows, W)
        weight, bias = attention[name]
        if len(rows) < width:
            model._init_weights(target)
        target.weight[rows, :hidden] = (chosen @ weight)[:, :hidden].to(target.weight)
        target.bias[rows] = (chosen @ bias).to(target.bias)
    output = attention["attention_output"][0] @ components["value"][order].mT / scale
    last.attention_output.weight[:hidden, rows] = output[:hidden].to(last.attention_output.weight)


def _matching_rows(
    groups: Sequence[Tensor], relation_heads: int, per_head: int, in_turns: bool
) -> tuple[Tensor, Tensor]:
    """Return rows of a model, and for each row the index of the teacher's component that it gets.

    Each relation head gets at most `per_head` components of its group. If relation heads are blocks, the remaining
    components follow: they complete a width that the relation heads do not divide.
    """
    leading = [group[:per_head] for group in groups]
    order = torch.cat(leading)
    if in_turns:
        turns = torch.arange(relation_heads * per_head, device=order.device).unflatten(0, (per_head, relation_heads)).T
        return torch.cat([turn[: len(group)] for turn, group in zip(turns, leading, strict=False)]), order
    order = torch.cat([order, *(group[per_head:] for group in groups)])
    return torch.arange(len(order), device=order.device), order


def _relation_components(
    teacher: Teacher, layer: int, sample_ids: Tensor | None, groups: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Return the block-diagonal rotations `(W, W)` of the relation heads' dimensions, for query, key and value.

    They are identities without a sample.
    """
    if sample_ids is None:
        identity = as_float64(torch.eye(teacher.subnet.attention_width, device=teacher.model.device))
        return dict.fromkeys(("query", "key", "value"), identity)
    watched = [(linear(teacher, layer, part), lambda _, y: y.mT @ y) for part in ("query", "key", "value")]
    q, k, v = averages(teacher, sample_ids, watched)
    both, value = (
        torch.block_diag(*(_principal(moment[group][:, group]).mT for group in groups))
        for moment in map(as_float64, (q / q.trace() + k / k.trace(), v))
    )
    return {"query": both, "key": both, "value": value}


def _norm_sums(x: Tensor, y: Tensor, widths: Sequence[int]) -> Tensor:
    """Return the sums for a least-squares fit of y ≈ weight n + bias, where n is the norm of x's leading dimensions.

    The sums of 1, n, n², y and n y are `(5, H)`, for each dimension over the widths that include it.
    """
    sums = x.new_zeros(5, x.shape[-1])
    for width in widths:
        n = F.layer_norm(x[:, :width], (width,))
        target = y[:, :width]
        terms = (torch.ones_like(n), n, n.square(), target, n * target)
        sums[:, :width] += torch.stack([term.sum(0) for term in terms])
    return sums


def _norms(teacher: Teacher) -> list[Any]:
    """Return the layer norms whose outputs are hidden states, in order.

    The norm of narrow embeddings (ELECTRA) is left out, because it precedes their projection.
    """
    narrow = getattr(teacher.model, "embeddings_project", None) is not None
    embeddings: Any = teacher.model.embeddings
    norms = [
        teacher.module(layer, part) for layer in range(teacher.subnet.layers) for part in ("attention_norm", "ffn_norm")
    ]
    return norms if narrow else [embeddings.LayerNorm, *norms]


def _turn_embeddings(turned: Teacher, turn: Tensor) -> None:
    projection: Any = getattr(turned.model, "embeddings_project", None)
    if projection is not None:
        _mix_rows(projection, turn.mT[None])
        return
    embeddings: Any = turned.model.embeddings
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        table = getattr(embeddings, name, None)
        if table is not None:
            table.weight.copy_(table.weight @ turn.to(table.weight))


def _moments(x: Tensor, groups: int) -> Tensor:
    """Return the sums over tokens of x xᵀ in each of `groups` groups of dimensions.

    x: `(tokens, n)`; the sums are `(G, n / G, n / G)`.
    """
    grouped = x.unflatten(-1, (groups, -1)).transpose(0, 1)  # (G, tokens, n / G)
    moments: Tensor = grouped.mT @ grouped
    return moments


def _principal(moment: Tensor) -> Tensor:
    """Return the principal components of a second moment `(n, n)` as columns, the largest first, in float64."""
    components: Tensor = torch.linalg.eigh(as_float64(moment))[1].flip(-1)
    return components


def _roots(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Return the symmetric square roots of second moments `(G, n, n)`, and the inverses of the roots."""
    values, vectors = torch.linalg.eigh(as_float64(moment))
    values = values.clamp(min=_SMALLEST_VARIANCE * float(values.max()))
    roots = values.sqrt()[:, None]  # (G, 1, n)
    return (vectors * roots) @ vectors.mT, (vectors / roots) @ vectors.mT


def _mix_rows(linear: nn.Linear, blocks: Tensor) -> None:
    """Multiply the outputs of each group by its block of `blocks` `(G, n, n)`, from the left."""
    weight = as_float64(linear.weight).unflatten(0, (len(blocks), -1))  # (G, n, in)
    bias = as_float64(linear.bias).unflatten(0, (len(blocks), -1, 1))  # (G, n, 1)
    linear.weight.copy_((blocks @ weight).flatten(0, 1))
    linear.bias.copy_((blocks @ bias).flatten())


def _mix_columns(linear: nn.Linear, blocks: Tensor) -> None:
    """Multiply the weights of each group of inputs by its block of `blocks` `(G, n, n)`, from the right.

    An input x then has the effect that the block times x had before.
    """
    weight = as_float64(linear.weight).unflatten(1, (len(blocks), -1)).transpose(0, 1)  # (G, out, n)
    linear.weight.copy_((weight @ blocks).transpose(0, 1).flatten(1))
