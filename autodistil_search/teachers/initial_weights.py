"""How a SuperLM or a student starts: from slices of its teacher, which may first be turned so that what matters leads.

A slice takes the first hidden dimensions, heads, dimensions of each head and FFN neurons, and a subnet's slice is the
first part of that slice again: the order decides what is kept. So a copy of the teacher is rewritten before it is
sliced, by averages over a sample of training text; the teacher itself, which gives the targets, stays as it is.
Letters: H hidden size, A heads, D head_dim, W = A D, F FFN width, R relation heads, G groups of dimensions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autodistil_search.base.errors import InputError
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel, ElasticLayer
from autodistil_search.superlm.relation_loss import relation_loss, relation_target
from autodistil_search.teachers.teacher import Teacher

STARTS = ("auto", "pca", "slices", "embeddings", "random")
"""Every way to start a model: see `start_from`."""

COPYING_STARTS = ("auto", "pca", "slices")
"""Starts that make a student of the teacher's own shape its copy, where students have all the parts of its layers."""

_LEAST_GAIN = 0.01
"""Share by which copying more must lower the relation loss: layers that gain less were mangled by the copy, and a
SuperLM of MPNet's trained more slowly from such layers than from embeddings alone."""

_JUDGED_BLOCKS = 8
"""Blocks of the sample on which the starts that "auto" chooses from are compared."""

SAMPLE_BLOCKS = 64
"""How many blocks of training text to take the averages over: 8,192 tokens at 128 a block."""

_BLOCKS_AT_ONCE = 16
_KNOWN_FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "mpnet")
"""Post-norm families whose layers have the parts that are rewritten here."""

_SMALLEST_VARIANCE = 1e-6
"""Share of the largest variance that every direction is taken to have at least: its inverse stays finite."""

_Watched = tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]


def superlm(
    teacher: Teacher, space: SearchSpace, init: str, sample_ids: Tensor | None = None
) -> tuple[AutoDistilModel, list[str]]:
    """A SuperLM for `space` with the teacher's vocabulary, and notes on its start; see `start_from`."""
    model = AutoDistilModel(teacher.student_config(space.largest, space))
    return model, start_from(model, teacher, init, sample_ids, space.relation_heads)


@torch.no_grad()
def start_from(
    model: AutoDistilModel, teacher: Teacher, init: str, sample_ids: Tensor | None, relation_heads: int
) -> list[str]:
    """Give `model`, a SuperLM or a student, its first weights; returns notes on what did not come from the teacher.

    Args:
        model: Model that starts, with random weights.
        teacher: Teacher that gives the weights.
        init: One of `STARTS`. "random" leaves the model as it is; "embeddings" copies slices of the teacher's
            embeddings; "slices" copies slices of its layers, too; "pca" does so after turning hidden dimensions, heads
            and relation heads, so that the first dimensions carry most. Dimensions that are not cut off are not turned:
            a student of the teacher's own shape is its copy either way. "auto" tries all of them that the teacher
            allows and keeps the one with the lowest relation loss on the sample, so it never starts worse than random;
            a start that copies more must be better by a hundredth.
        sample_ids: `(N, T)` token ids of training text; only "pca" and "auto" look at them.
        relation_heads: Number of heads into which the loss splits Q, K and V.

    Raises:
        InputError: for another `init`.
    """
    if init not in STARTS:
        raise InputError(f"init {init!r}; allowed: {', '.join(STARTS)}")
    if init == "auto":
        assert sample_ids is not None
        return _best_start(model, teacher, sample_ids, relation_heads)
    if init == "random":
        return ["starts wholly at random"]
    if init == "embeddings":
        return teacher.copy_into(model, layers=False)
    family = teacher.model.config.model_type
    if init == "slices" or family not in _KNOWN_FAMILIES:
        other = [] if init == "slices" else [f"init {init} does not know teachers of type {family!r}: slices instead"]
        return [*other, *_slices(model, teacher, relation_heads)]
    assert sample_ids is not None
    turned = Teacher(copy.deepcopy(teacher.model), teacher.tokenizer, teacher.name, teacher.layer)
    _turn_heads(turned, teacher, sample_ids, model.config.subnet)
    widths = model.space.hidden_size if model.config.search_space else (model.config.hidden_size,)
    turn = _turn_hidden(turned, teacher, sample_ids, widths)
    notes = turned.copy_into(model)
    _align_relations(model, teacher, sample_ids, turn, relation_heads)
    return notes


def _best_start(model: AutoDistilModel, teacher: Teacher, sample_ids: Tensor, relation_heads: int) -> list[str]:
    """Start `model` in each way that the teacher allows, and keep the start with the lowest relation loss.

    Every start draws the same random numbers, so that the result is that of naming the start that is kept.
    """
    blocks = sample_ids[:_JUDGED_BLOCKS].to(teacher.model.device)
    projections = [part.to(model.device) for part in teacher.projections(blocks)]
    target = relation_target(projections, None, relation_heads, "kl")
    subnets = model.space.ends if model.config.search_space else [model.config.subnet]
    untouched = _weights_of(model)
    losses: dict[str, float] = {}
    best, kept = "", (untouched, [""])
    for init in _starts_for(teacher):
        model.load_state_dict(untouched)
        with torch.random.fork_rng(devices=[]):
            notes = start_from(model, teacher, init, sample_ids, relation_heads)
        scores = [
            relation_loss(model.last_projections(blocks.to(model.device), subnet=subnet), target).item()
            for subnet in subnets
        ]
        losses[init] = sum(scores) / len(scores)
        if losses[init] < (1 - _LEAST_GAIN) * losses.get(best, math.inf):
            best, kept = init, (_weights_of(model), notes)
    model.load_state_dict(kept[0])
    others = ", ".join(f"{init} {loss:.4g}" for init, loss in losses.items() if init != best)
    return [f"starts from {best}, chosen by relation loss: {losses[best]:.4g} ({others})", *kept[1]]


def _weights_of(model: AutoDistilModel) -> dict[str, Tensor]:
    """Return a copy of the weights by their names."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _starts_for(teacher: Teacher) -> list[str]:
    """Return the ways to start that differ for this teacher, from what copies least to what copies most."""
    if not teacher.copies_layers:
        return ["random", "embeddings"]
    turned = ["pca"] if teacher.model.config.model_type in _KNOWN_FAMILIES else []
    return ["random", "embeddings", "slices", *turned]


def _slices(model: AutoDistilModel, teacher: Teacher, relation_heads: int) -> list[str]:
    """Slices of the teacher as it is; a SuperLM's relation heads get the leading dimensions of the teacher's."""
    notes = teacher.copy_into(model)
    if teacher.copies_layers and model.config.relation_heads is not None:
        unturned = torch.eye(teacher.subnet.hidden_size, dtype=torch.double, device=teacher.model.device)
        _align_relations(model, teacher, None, unturned, relation_heads)
    return notes


def _turn_heads(turned: Teacher, teacher: Teacher, sample_ids: Tensor, mine: Subnet) -> None:
    """Inside each head, dimensions that carry Q Kᵀ and W_o V best come first.

    Exact but for a factor: Q and K are scaled so that scores, divided by √D, keep their size when D changes. With the
    square roots of the second moments, S_q and S_k, and S_q S_k = U s Vᵀ, the turned q is √s Uᵀ S_q⁻¹ q and k alike:
    their product is unchanged, and its first terms are the best approximation by so few. V and W_o likewise.
    """
    theirs = teacher.subnet
    if mine.head_dim >= theirs.head_dim or mine.attention_width >= theirs.attention_width:
        return
    watched: list[_Watched] = []
    for layer in range(theirs.layers):
        watched += [
            (_linear(teacher, layer, "query"), lambda _, y: _moments(y, theirs.heads)),
            (_linear(teacher, layer, "key"), lambda _, y: _moments(y, theirs.heads)),
            (_linear(teacher, layer, "attention_output"), lambda x, _: _moments(x, theirs.heads)),
        ]
    moments = iter(_averages(teacher, sample_ids, watched))
    scale = (mine.head_dim / theirs.head_dim) ** 0.25
    for layer, *of_layer in zip(range(theirs.layers), moments, moments, moments, strict=True):
        (root_q, inverse_q), (root_k, inverse_k), (root_v, inverse_v) = (_roots(moment) for moment in of_layer)
        u, s, vh = torch.linalg.svd(root_q @ root_k)  # (A, D, D), (A, D), (A, D, D)
        _mix_rows(_linear(turned, layer, "query"), scale * s.sqrt()[..., None] * u.mT @ inverse_q)
        _mix_rows(_linear(turned, layer, "key"), scale * s.sqrt()[..., None] * vh @ inverse_k)
        output = _linear(teacher, layer, "attention_output").weight.double()
        output = output.unflatten(1, (theirs.heads, -1)).transpose(0, 1) @ root_v  # (A, H, D)
        components = torch.stack([_principal(each) for each in output.mT @ output])  # (A, D, D)
        size = (output @ components).norm(dim=1).clamp(min=_SMALLEST_VARIANCE).sqrt()[:, None]  # (A, 1, D)
        _mix_rows(_linear(turned, layer, "value"), (components * size).mT @ inverse_v)
        _mix_columns(_linear(turned, layer, "attention_output"), root_v @ (components / size))


def _turn_hidden(turned: Teacher, teacher: Teacher, sample_ids: Tensor, widths: Sequence[int]) -> Tensor:
    """Hidden dimensions become the principal components of the hidden states, averaged over all layers.

    As SliceGPT (arXiv 2401.15024), but with one rotation for all layers, as a student has no place for one in between.
    Not exact: a layer norm subtracts the mean of, and weighs, the dimensions that it finds. Its weights are fitted by
    least squares to the turned hidden states, over the widths that the student may have.

    Returns the rotation, `(H, H)`: the identity if none of the widths is less than the teacher's.
    """
    hidden = teacher.subnet.hidden_size
    norms = _norms(teacher)
    if min(widths) >= hidden:
        return torch.eye(hidden, dtype=torch.double, device=teacher.model.device)
    moments = _averages(teacher, sample_ids, [(norm, lambda _, y: y.mT @ y) for norm in norms])
    turn = _principal(torch.stack(moments).sum(0))

    def sums(x: Tensor, y: Tensor) -> Tensor:
        return _norm_sums(x.double() @ turn, y.double() @ turn, [min(width, hidden) for width in widths])

    fits = _averages(teacher, sample_ids, [(norm, sums) for norm in norms])
    for norm, fit in zip(_norms(turned), fits, strict=True):
        n, n_n, y, n_y = fit[1:] / fit[0].clamp(min=1)  # beyond all widths there is nothing to fit
        weight = (n_y - n * y) / (n_n - n.square()).clamp(min=_SMALLEST_VARIANCE)
        norm.weight.copy_(weight)
        norm.bias.copy_(y - weight * n)
    _turn_embeddings(turned, turn)
    for layer in range(teacher.subnet.layers):
        for part in ("query", "key", "value", "ffn_in"):
            _mix_columns(_linear(turned, layer, part), turn[None])
        for part in ("attention_output", "ffn_out"):
            _mix_rows(_linear(turned, layer, part), turn.mT[None])
    pooler: Any = getattr(turned.model, "pooler", None)
    if pooler is not None:
        _mix_columns(pooler.dense, turn[None])
    return turn


def _align_relations(
    model: AutoDistilModel, teacher: Teacher, sample_ids: Tensor | None, turn: Tensor, relation_heads: int
) -> None:
    """In the last layer, relation head by relation head, the whole model gets the teacher's leading dimensions.

    Of a sample of text, their principal components: orthogonal, so all of them together have the teacher's relations;
    Q and K share theirs. Their scale keeps the scores' size when the width changes. Without a sample, the dimensions as
    they are. Attention's own heads are not kept apart: the loss sees the relation heads only. What is wider than the
    teacher starts at random.

    turn: What the hidden states were turned by, `(H, H)`.
    """
    mine, theirs = model.config.subnet, teacher.subnet
    width, hidden = mine.each_layer[-1].attention_width, min(mine.hidden_size, theirs.hidden_size)
    if width >= theirs.attention_width and model.config.relation_heads is None:
        return
    source = cast(int, teacher.sources(model)[-1])
    mine_each, theirs_each = (-(-each // relation_heads) for each in (width, theirs.attention_width))
    groups = torch.arange(theirs.attention_width, device=turn.device).split(theirs_each)
    rows, order = _places(groups, relation_heads, mine_each, model.config.relation_heads is not None)
    rows, order = rows[:width], order[:width]
    last, parts = cast(ElasticLayer, model.layers[-1]), teacher.layer_parts(source)
    components, scale = _relation_components(teacher, source, sample_ids, groups), 1.0
    if sample_ids is not None:
        scale = (mine_each / theirs_each) ** 0.25
    for name in ("query", "key", "value"):
        target, chosen = getattr(last, name), scale * components[name][order]  # (rows, W)
        if len(rows) < width:
            model._init_weights(target)
        weight = chosen @ parts[name].weight.double() @ turn
        target.weight[rows, :hidden] = weight[:, :hidden].to(target.weight)
        target.bias[rows] = (chosen @ parts[name].bias.double()).to(target.bias)
    output = turn.mT @ parts["attention_output"].weight.double() @ components["value"][order].mT / scale
    last.attention_output.weight[:hidden, rows] = output[:hidden].to(last.attention_output.weight)


def _places(groups: Sequence[Tensor], relation_heads: int, each: int, in_turns: bool) -> tuple[Tensor, Tensor]:
    """Which of a model's rows get which of the teacher's components, at most `each` of every relation head's group.

    In blocks, the components that are left follow: they complete a width that the relation heads do not divide.
    """
    leading = [group[:each] for group in groups]
    order = torch.cat(leading)
    if in_turns:
        turns = torch.arange(relation_heads * each, device=order.device).unflatten(0, (each, relation_heads)).T
        return torch.cat([turn[: len(group)] for turn, group in zip(turns, leading, strict=False)]), order
    order = torch.cat([order, *(group[each:] for group in groups)])
    return torch.arange(len(order), device=order.device), order


def _relation_components(
    teacher: Teacher, layer: int, sample_ids: Tensor | None, groups: Sequence[Tensor]
) -> dict[str, Tensor]:
    """What each relation head's dimensions are turned by, `(W, W)` in blocks, for query, key and value."""
    if sample_ids is None:
        same = torch.eye(teacher.subnet.attention_width, dtype=torch.double, device=teacher.model.device)
        return dict.fromkeys(("query", "key", "value"), same)
    watched = [(_linear(teacher, layer, part), lambda _, y: y.mT @ y) for part in ("query", "key", "value")]
    q, k, v = _averages(teacher, sample_ids, watched)
    both, value = (
        torch.block_diag(*(_principal(moment[group][:, group]).mT for group in groups))
        for moment in (q / q.trace() + k / k.trace(), v)
    )
    return {"query": both, "key": both, "value": value}


def _norm_sums(x: Tensor, y: Tensor, widths: Sequence[int]) -> Tensor:
    """What least squares needs to fit y ≈ weight n + bias with n the norm of x's leading dimensions: `(5, H)` sums.

    Of 1, n, n², y and n y; each dimension over the widths that have it.
    """
    sums = x.new_zeros(5, x.shape[-1])
    for width in widths:
        n = F.layer_norm(x[:, :width], (width,))
        target = y[:, :width]
        terms = (torch.ones_like(n), n, n.square(), target, n * target)
        sums[:, :width] += torch.stack([term.sum(0) for term in terms])
    return sums


def _linear(teacher: Teacher, layer: int, part: str) -> nn.Linear:
    module = teacher.module(layer, part)
    assert isinstance(module, nn.Linear)
    return module


def _norms(teacher: Teacher) -> list[Any]:
    """The layer norms that write hidden states, in order; that of narrow embeddings (ELECTRA) is before projection."""
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


def _averages(teacher: Teacher, sample_ids: Tensor, watched: Sequence[_Watched]) -> list[Tensor]:
    """Averages over the sample's tokens of what is summed of watched modules' inputs and outputs, `(tokens, n)`."""
    sums: list[Tensor | float] = [0.0] * len(watched)

    def add(index: int, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sums[index] = sums[index] + watched[index][1](inputs[0].flatten(0, -2), output.flatten(0, -2))

    handles = [module.register_forward_hook(partial(add, index)) for index, (module, _) in enumerate(watched)]
    try:
        for batch in sample_ids.to(teacher.model.device).split(_BLOCKS_AT_ONCE):
            teacher.model(input_ids=batch)
    finally:
        for handle in handles:
            handle.remove()
    return [each / sample_ids.numel() for each in sums]  # type: ignore[misc]


def _moments(x: Tensor, groups: int) -> Tensor:
    """Sums of x xᵀ inside each of so many groups of dimensions: `(tokens, n)` to `(G, n / G, n / G)`."""
    grouped = x.unflatten(-1, (groups, -1)).transpose(0, 1)  # (G, tokens, n / G)
    moments: Tensor = grouped.mT @ grouped
    return moments


def _principal(moment: Tensor) -> Tensor:
    """Principal components as columns, the largest first; `(n, n)`, in double precision."""
    components: Tensor = torch.linalg.eigh(moment.double())[1].flip(-1)
    return components


def _roots(moment: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric square roots of second moments `(G, n, n)`, and their inverses."""
    values, vectors = torch.linalg.eigh(moment.double())
    values = values.clamp(min=_SMALLEST_VARIANCE * float(values.max()))
    roots = values.sqrt()[:, None]  # (G, 1, n)
    return (vectors * roots) @ vectors.mT, (vectors / roots) @ vectors.mT


def _mix_rows(linear: nn.Linear, blocks: Tensor) -> None:
    """Let the outputs of each group be its block `(n, n)` of `blocks` `(G, n, n)` times what they were."""
    weight = linear.weight.double().unflatten(0, (len(blocks), -1))  # (G, n, in)
    bias = linear.bias.double().unflatten(0, (len(blocks), -1, 1))  # (G, n, 1)
    linear.weight.copy_((blocks @ weight).flatten(0, 1))
    linear.bias.copy_((blocks @ bias).flatten())


def _mix_columns(linear: nn.Linear, blocks: Tensor) -> None:
    """Let inputs x of each group do what its block of `blocks` `(G, n, n)` times x did."""
    weight = linear.weight.double().unflatten(1, (len(blocks), -1)).transpose(0, 1)  # (G, out, n)
    linear.weight.copy_((weight @ blocks).transpose(0, 1).flatten(1))
