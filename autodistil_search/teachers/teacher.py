"""Teachers: Hugging Face encoders that give the outputs of one layer as targets, and initial weights of students."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from autodistil_search.base.device import Device
from autodistil_search.base.errors import InputError
from autodistil_search.spaces.cost import Vocabulary
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet, kept_layers
from autodistil_search.superlm.model import AutoDistilConfig, AutoDistilModel, ElasticLayer, ElasticLinear, Projections
from autodistil_search.teachers.families import (
    FAMILIES,
    RELATIVE_BUCKETS,
    WITHOUT_PLACE,
    check_family,
    find,
    find_layers,
)
from autodistil_search.teachers.pooling import Pooling


class _Captured(Exception):  # noqa: N818 - not an error: it ends a forward pass as soon as all outputs are captured
    pass


class Weights(NamedTuple):
    """Weight and bias of a linear layer or norm; the bias is zeros where the module has none."""

    weight: Tensor
    bias: Tensor


class Teacher:
    """Frozen encoder that gives Q, K and V of one layer as targets.

    layer: index of that layer, counted from 0; negative values count from the end, -1 is the last.
    notes: lines on repairs during loading. pooling: pooling of sentence vectors.

    Raises:
        InputError: if the model's family is not in `FAMILIES`, its layers lack parts of the family, or it has no such
            layer.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str = "teacher", layer: int = -1
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.model = model.eval().requires_grad_(False)
        check_family(name, model.config)
        self.family = FAMILIES[model.config.model_type]
        self._layers = find_layers(name, model, self.family, model.config.num_attention_heads)
        if not -len(self._layers) <= layer < len(self._layers):
            raise InputError(
                f"teacher layer {layer}; {name!r} has layers 0 to {len(self._layers) - 1} (or -1 for the last)"
            )
        self.layer = layer % len(self._layers)
        self.notes: tuple[str, ...] = ()
        self.pooling = Pooling()
        if self._relative_bias is not None and len(self._relative_bias) < RELATIVE_BUCKETS:
            raise InputError(
                f"teacher {name!r} has {len(self._relative_bias)} buckets of relative attention bias; allowed: "
                f"{RELATIVE_BUCKETS} or more, as its encoder uses that many"
            )

    def cast(self, device: Device) -> Teacher:
        """Return a copy of this teacher with weights in the precision of `device`; in float32, the teacher itself."""
        return Teacher(cast(PreTrainedModel, device.cast(self.model)), self.tokenizer, self.name, self.layer)

    @property
    def subnet(self) -> Subnet:
        """Return the teacher's own sizes; a gated FFN has its width after the gate."""
        parts, heads = self.layer_parts(0), int(self.model.config.num_attention_heads)
        width, hidden = parts["query"].weight.shape
        return Subnet(len(self._layers), hidden, len(parts["ffn_in"].weight), heads, width // heads)

    def layer_parts(self, layer: int) -> dict[str, Weights]:
        """Return the weights of a layer's parts by name.

        Parts are query, key, value, attention_output, ffn_in, ffn_out, attention_norm and ffn_norm. Weights are views
        of the teacher's own: writing to them changes the teacher. A part of a fused product has its rows. Families with
        norms before attention and FFN have no norms here. Of a gated FFN, `ffn_in` is the activated half.
        """
        parts = {}
        for part, place in self.family.parts.items():
            whole = _weights(find(self._layers[layer], place.path))
            parts[part] = Weights(*(tensor.chunk(place.of)[place.index] for tensor in whole))
        return parts

    def module(self, layer: int, part: str) -> nn.Module:
        """Return the module of a layer that computes `part`, one of the names of `layer_parts`.

        A fused module computes several parts.
        """
        return cast(nn.Module, find(self._layers[layer], self.family.parts[part].path))

    @property
    def copies_layers(self) -> bool:
        """Return True if students start from slices of the layers, False if from the embeddings alone."""
        return not self.family.unlike

    @property
    def copies_exactly(self) -> bool:
        """Return True if the start of a student of the teacher's own sizes is equivalent to the teacher.

        Then hidden states, queries, keys and values are equal, and both losses start at 0.
        """
        return not self._without_place() and self._score_divisor == 1

    @property
    def vocabulary(self) -> Vocabulary:
        """Return the sizes of the embeddings of this teacher's students.

        If the teacher has no position embeddings, the number of positions comes from its configuration.
        """
        positions, types = self._position_rows, find(self.model, "embeddings.token_type_embeddings")
        return Vocabulary(
            tokens=self._words.num_embeddings,
            positions=int(self.model.config.max_position_embeddings) if positions is None else len(positions),
            token_types=1 if types is None else types.num_embeddings,
            relative_buckets=0 if self._relative_bias is None else len(self._relative_bias),
        )

    @property
    def _words(self) -> nn.Embedding:
        return cast(nn.Embedding, self.model.get_input_embeddings())

    @property
    def _position_rows(self) -> Tensor | None:
        """Return the position embeddings from the first position on; None if there are none."""
        table = find(self.model, "embeddings.position_embeddings")
        padding: int | None = find(self.model, "embeddings.padding_idx") if self.family.skips_padding else None
        return None if table is None else table.weight[0 if padding is None else padding + 1 :]

    @property
    def _relative_bias(self) -> Tensor | None:
        """Return the relative attention bias, `(buckets, A)`; None if there is none."""
        table = find(self.model, self.family.relative_bias)
        return None if table is None else table.weight[:RELATIVE_BUCKETS]

    @torch.no_grad()
    def projections(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Projections:
        """Return queries, keys and values of the distilled layer, each `(B, T, width)`.

        They are the outputs of the model's linear layers, before attention uses positions (as RoPE in ModernBERT). A
        student has positions only in its hidden states. Later layers are not computed.
        """
        with self._watching(stop=True) as projections, suppress(_Captured):
            self.model(input_ids=input_ids, attention_mask=attention_mask)
        return projections()

    @torch.no_grad()
    def last_layer(self, input_ids: Tensor) -> tuple[Projections, Tensor]:
        """Return `projections` and the hidden states `(B, T, H)` after the distilled layer.

        The hidden states are the input of the next layer, or the model's output if the distilled layer is the last.
        Later layers are not computed.
        """
        after = self.layer + 1
        following = self._layers[after] if after < len(self._layers) else getattr(self.model, "pooler", None)
        with self._watching(stop=False) as projections:
            if following is None:
                hidden = self.model(input_ids=input_ids).last_hidden_state
            else:
                hidden = self._input_of(following, input_ids)
        return projections(), hidden

    def _input_of(self, module: nn.Module, input_ids: Tensor) -> Tensor:
        """Return the hidden states that are the input of `module`; the forward pass stops before it."""
        inputs: list[Tensor] = []

        def capture(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            inputs.append(arguments[0] if arguments else named["hidden_states"])
            raise _Captured

        handle = module.register_forward_pre_hook(capture, with_kwargs=True)
        try:
            self.model(input_ids=input_ids)
        except _Captured:
            pass
        finally:
            handle.remove()
        return inputs[0]

    @contextmanager
    def _watching(self, stop: bool) -> Iterator[Callable[[], Projections]]:
        """Yield a function that returns the distilled layer's projections, once the model has run inside the context.

        stop: True to end the forward pass as soon as the projections are computed.
        """
        places = [self.family.parts[part] for part in ("query", "key", "value")]
        paths = {place.path for place in places}
        outputs: dict[str, Tensor] = {}

        def capture(path: str, *hook_arguments: Any) -> None:
            # Arguments are module, inputs and output. Only the first call counts: DeBERTa then applies the same linear
            # layers to its positions.
            outputs.setdefault(path, hook_arguments[-1])
            if stop and len(outputs) == len(paths):
                raise _Captured

        def projections() -> Projections:
            query, key, value = (outputs[place.path].chunk(place.of, dim=-1)[place.index] for place in places)
            return query, key, value

        layer = self._layers[self.layer]
        handles = [find(layer, path).register_forward_hook(partial(capture, path)) for path in paths]
        try:
            yield projections
        finally:
            for handle in handles:
                handle.remove()

    def student_config(self, subnet: Subnet, space: SearchSpace | None = None) -> AutoDistilConfig:
        """Return the configuration of a model of those sizes, with this teacher's vocabulary and activation."""
        config = self.model.config
        vocabulary = self.vocabulary
        activations = (getattr(config, key, None) for key in ("hidden_act", "activation", "hidden_activation"))
        return AutoDistilConfig(
            vocab_size=vocabulary.tokens,
            max_position_embeddings=vocabulary.positions,
            type_vocab_size=vocabulary.token_types,
            relative_attention_buckets=vocabulary.relative_buckets or None,
            hidden_act=next(name for name in activations if name),
            layer_norm_eps=find(self.model, self.family.embedding_norm).eps,
            pad_token_id=config.pad_token_id,
            relation_heads=None if space is None else space.relation_heads,
        ).resized(subnet, space)

    @torch.no_grad()
    def copy_into(self, model: AutoDistilModel, layers: bool = True) -> list[str]:
        """Copy slices of this teacher into `model`; with `layers` False, of its embeddings alone.

        Layers are copied from those in `sources`, and of each head the first rows. Parts that the teacher does not have
        keep their random weights. Returns notes on such parts, one line each.
        """
        self._copy_embeddings(model)
        if not layers:
            return ["its layers start at random"]
        if self.copies_layers:
            self._copy_layers(model)
        if self._relative_bias is not None:
            # The bias of the first heads, as in the slices of each layer. It is not scaled: scores keep their size when
            # queries and keys are rotated and scaled (`initial_weights`).
            _copy_leading(self._relative_bias, cast(nn.Embedding, model.relative_attention_bias).weight)
        pooler: Any = getattr(self.model, "pooler", None)
        if pooler is not None:
            _copy_part(_weights(pooler.dense), model.pooler)
        lost = self._without_place()
        if lost:
            lost.append(
                "so not even a student of the teacher's own shape starts as its copy (docs/training.md, Teachers)"
            )
        return [*self._start_notes(model.config.subnet, pooler is not None), *lost]

    def _copy_layers(self, model: AutoDistilModel) -> None:
        student_sizes, teacher_sizes = model.config.subnet, self.subnet
        layers = cast(list[ElasticLayer], model.layers)
        for layer, sizes, source in zip(layers, student_sizes.each_layer, self.sources(model), strict=True):
            if source is None:
                continue
            parts = self.layer_parts(source)
            for part in ("query", "key", "value"):
                target: ElasticLinear = getattr(layer, part)
                scale = 1.0 if part == "value" else self._score_divisor**-0.5
                for rows, own in zip(parts[part], (target.weight, target.bias), strict=True):
                    _copy_leading(scale * _by_head(rows, teacher_sizes), _by_head(own, sizes))
            output = layer.attention_output
            _copy_leading(_by_head(parts["attention_output"].weight.T, teacher_sizes), _by_head(output.weight.T, sizes))
            _copy_leading(parts["attention_output"].bias, output.bias)
            for part in ("attention_norm", "ffn_in", "ffn_out", "ffn_norm"):
                _copy_part(parts[part], getattr(layer, part))
        self._pass_through(model)

    def sources(self, model: AutoDistilModel) -> list[int | None]:
        """Return the index of the teacher's layer that starts each layer of `model`; None for a pass-through.

        A model with at most as many layers as the teacher starts from evenly spaced layers, from the first to the
        distilled layer. In a deeper model, each layer of the teacher starts one layer, and the last starts the last.
        The other copies are at layers that most depths of the model's space keep. Consecutive copies of one layer would
        compute something else, so no layer is copied twice.
        """
        depth, teacher_depth = model.config.subnet.layers, self.subnet.layers
        if depth <= teacher_depth:
            return [*kept_layers(depth, self.layer + 1 if depth <= self.layer else teacher_depth, "first_last")]
        kept: Counter[int] = Counter(range(depth))
        if model.config.search_space is not None:
            kept.update(i for layers in model.space.layers for i in kept_layers(layers, depth, model.space.depth))
        *first, _ = range(depth)
        copies = sorted(sorted(first, key=lambda i: (-kept[i], i))[: teacher_depth - 1])
        return [copies.index(i) if i in copies else teacher_depth - 1 if i == depth - 1 else None for i in range(depth)]

    def _pass_through(self, model: AutoDistilModel) -> None:
        """Let the layers without a source return their input, up to the scale of each token.

        Attention and FFN add 0 at first. Their norms restore the mean and the scale of the preceding norm's output
        x = w n + b, where n has mean 0 and variance 1. The mean of x is mean(b), and its scale is the square root of
        mean(w^2) + var(b). Both are averaged over the hidden sizes of the model's subnets.
        """
        widths = model.space.hidden_size if model.config.search_space else (model.config.hidden_size,)
        norm = model.embedding_norm
        for layer, source in zip(cast(list[ElasticLayer], model.layers), self.sources(model), strict=True):
            if source is None:
                moments = [
                    (norm.weight[:n].square().mean(), norm.bias[:n].mean(), norm.bias[:n].var(correction=0))
                    for n in widths
                ]
                scale = torch.stack([(square + variance).sqrt() for square, _, variance in moments]).mean()
                for layer_norm in (layer.attention_norm, layer.ffn_norm):
                    layer_norm.weight.fill_(scale)
                    layer_norm.bias.fill_(torch.stack([mean for _, mean, _ in moments]).mean())
                for output in (layer.attention_output, layer.ffn_out):
                    output.weight.zero_()
                    output.bias.zero_()
            norm = layer.ffn_norm

    @property
    def _score_divisor(self) -> float:
        """Return the divisor of attention scores besides the root of `head_dim`: above 1 for DeBERTa's positions."""
        kinds = getattr(self.model.config, "pos_att_type", None) or ()
        return math.sqrt(1 + sum(kind in kinds for kind in ("c2p", "p2c")))

    def _copy_embeddings(self, model: AutoDistilModel) -> None:
        words = self._words.weight
        types = find(self.model, "embeddings.token_type_embeddings")
        # A teacher without token types adds nothing to its embeddings; a row of zeros has the same effect.
        kinds = torch.zeros_like(words[:1]) if types is None else types.weight
        sources = {"word_embeddings": words, "token_type_embeddings": kinds}
        if (positions := self._position_rows) is not None:
            sources["position_embeddings"] = positions
        projection = find(self.model, self.family.embedding_projection)
        if projection is not None:
            sources = {table: rows @ projection.weight.T for table, rows in sources.items()}
            if projection.bias is not None:
                sources["token_type_embeddings"] += projection.bias
        for table, rows in sources.items():
            _copy_leading(rows, getattr(model, table).weight)
        if not self._norm_is_projected:
            _copy_part(_weights(find(self.model, self.family.embedding_norm)), model.embedding_norm)

    @property
    def _norm_is_projected(self) -> bool:
        """Return True if the embeddings' norm precedes their projection, as in ELECTRA; a student's norm comes last."""
        return bool(find(self.model, self.family.embedding_norm).weight.shape[0] != self.subnet.hidden_size)

    def _start_notes(self, student: Subnet, pooler: bool) -> list[str]:
        """Return notes on weights that are not copied from the teacher, or are changed by the copy."""
        teacher = self.subnet
        sizes = ("hidden_size", "ffn_size", "heads", "head_dim") if self.copies_layers else ("hidden_size",)
        notes = [
            f"{key} is {getattr(student, key)} and the teacher's {getattr(teacher, key)}: the rest starts at random"
            for key in sizes
            if getattr(student, key) > getattr(teacher, key)
        ]
        if self.copies_layers and student.layers > teacher.layers:
            notes.append(
                f"the student has {student.layers} layers and the teacher {teacher.layers}; layers that start as "
                f"pass-throughs, which change nothing at first: {student.layers - teacher.layers}"
            )
        if not pooler:
            notes.append("the teacher has no pooler: it starts at random")
        if self.copies_layers and self._score_divisor > 1:
            notes.append(
                f"the teacher divides attention scores by {self._score_divisor:.3g} more than a student: "
                "queries and keys are scaled to give the same"
            )
        if find(self.model, self.family.embedding_projection) is not None:
            notes.append("the teacher's embeddings are of another width than its layers: their projection is folded in")
        return notes

    def _without_place(self) -> list[str]:
        """Return notes on the teacher's parts that no student has."""
        missing = [what for path, what in WITHOUT_PLACE.items() if find(self.model, path) is not None]
        if self._norm_is_projected:
            missing.append("norm before its embeddings' projection")
        notes = [f"the teacher's {what} has no place in a student" for what in missing]
        if self._position_rows is None:
            notes.append("the teacher has no position embeddings: a student's start at random")
        if self.family.unlike:
            notes.append(f"only the embeddings are copied; the teacher's layers differ too much: {self.family.unlike}")
        return notes


def _by_head(x: Tensor, sizes: Subnet) -> Tensor:
    heads: Tensor = x.unflatten(0, (sizes.heads, sizes.head_dim))
    return heads


def _weights(module: Any) -> Weights:
    bias = torch.zeros_like(module.weight[:, 0] if module.weight.dim() > 1 else module.weight)
    return Weights(module.weight, bias if module.bias is None else module.bias)


def _copy_leading(source: Tensor, target: Tensor) -> None:
    shared = tuple(slice(min(a, b)) for a, b in zip(source.shape, target.shape, strict=True))
    target[shared].copy_(source[shared])


def _copy_part(source: Weights, target: ElasticLinear | nn.LayerNorm) -> None:
    _copy_leading(source.weight, target.weight)
    _copy_leading(source.bias, target.bias)
