"""The inputs of a training: spaces, teacher and text, loaded and checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from autodistil_search.base.device import Device, choose_device
from autodistil_search.base.errors import InputError
from autodistil_search.base.files import cache_folder
from autodistil_search.base.plugins import Plugins, guarded
from autodistil_search.base.pretrained import check_weights, model_sha256, quiet_transformers
from autodistil_search.base.progress import Reporter
from autodistil_search.base.weighted_names import parse_relations, parse_subnet_weights
from autodistil_search.distillation.learning_rate import default_learning_rate
from autodistil_search.distillation.options import Execution, TrainOptions
from autodistil_search.runs.named_parts import plugged
from autodistil_search.settings.train import TrainConfig
from autodistil_search.spaces.cost import training_bytes
from autodistil_search.spaces.search_space import SearchSpace, load_space
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.teachers.initial_weights import SAMPLE_BLOCKS
from autodistil_search.teachers.loading import checked_teacher, load_teacher
from autodistil_search.teachers.teacher import Teacher
from autodistil_search.text.blocks import Blocks, Tokens, TrainingText
from autodistil_search.text.token_store import load_corpus
from autodistil_search.text.token_stream import open_stream

if TYPE_CHECKING:
    from autodistil_search.base.executors import AnyExecutor


@dataclass(frozen=True)
class Text:
    """Text of a training and its held-out split.

    Args:
        begin: Function that returns the training text from its start.
        held_out: Blocks of the held-out split.
        digest: Digest of everything that determines both.
        description: Amount of text in words.
    """

    begin: Callable[[], TrainingText]
    held_out: Blocks
    digest: str
    description: str


@dataclass(frozen=True)
class TrainingInputs:
    """Inputs of a training that a `TrainConfig` names, loaded and checked."""

    config: TrainConfig
    spaces: Sequence[SearchSpace]
    device: Device
    teacher: Teacher
    text: Text | None
    """Text of the training; None if no model is trained or compared on text."""

    @property
    def options(self) -> TrainOptions:
        """Return the training options of the SuperLM of the first space."""
        return self.options_of(self.spaces[0].largest)

    def options_of(self, subnet: Subnet) -> TrainOptions:
        """Return the training options of a student of this size, or of a SuperLM with this largest subnet."""
        chosen = {field.name: getattr(self.config, field.name) for field in fields(TrainOptions)}
        if self.config.lr is None:
            chosen["lr"] = default_learning_rate(subnet)
        return TrainOptions(**{**chosen, "relation_heads": self.spaces[0].relation_heads})

    @property
    def execution(self) -> Execution:
        """Return the execution settings of the training on this machine."""
        return Execution(**{field.name: getattr(self.config, field.name) for field in fields(Execution)})

    @cached_property
    def identity(self) -> dict[str, str]:
        """Return digests of the contents behind the settings: weights of the teacher, text, content of the spaces."""
        identity = {
            "teacher_model": model_sha256(self.teacher.model),
            "teacher_layer": str(self.teacher.layer),
            "computed_in": f"{self.device.precision} on {self.device.type}",
        }
        if self.text is not None:
            identity["text"] = self.text.digest
        identity["spaces"] = json.dumps([space.to_dict() for space in self.spaces])
        return identity

    @cached_property
    def sample_ids(self) -> Tensor:
        """Return the token ids of the first blocks of the training text, from which initial weights are computed."""
        assert self.text is not None
        return self.text.begin().rows(0, SAMPLE_BLOCKS, self.config.seed, slice(None))

    @property
    def environment(self) -> dict[str, Any]:
        """Return the entries of `environment.json` about the inputs."""
        return {"inputs": self.identity, "device": self.device.name, "precision": self.device.precision}


def resolve_training(
    config: TrainConfig,
    reporter: Reporter | None = None,
    needs_text: bool = True,
    plugins: Plugins | None = None,
    trains: bool = True,
    executor: AnyExecutor | None = None,
) -> TrainingInputs:
    """Load and check the inputs of a training, or of scoring with a trained SuperLM.

    Args:
        config: Settings of the training.
        reporter: Receiver of progress and messages; by default nothing is shown.
        needs_text: If False, no text is loaded and no SuperLM is used.
        plugins: Parts that `config` may name, in addition to installed ones.
        trains: If False, SuperLMs are only read, which needs less memory.
        executor: Executor that tokenizes the text.

    Raises:
        InputError: if an input cannot be used.
    """
    parse_relations(config.relations)
    parse_subnet_weights(config.subnet_weights)
    plugins = plugins or Plugins()
    spaces = load_spaces(config.space_names, config.depth, config.relation_heads, plugins)
    device = choose_device(config.device, config.precision)
    check_cuda_graphs(config, device)
    teacher = find_teacher(config, device, plugins)
    for note in teacher.notes:
        (reporter or Reporter()).say(note)
    for space in spaces if needs_text else []:  # without text, no SuperLM is used
        _check_memory(space, teacher, device, trains)
    if config.seq_len > teacher.vocabulary.positions:
        raise InputError(
            f"--seq-len {config.seq_len}; the teacher has positions for 8 to {teacher.vocabulary.positions}"
        )
    text = open_text(config, teacher, device, reporter or Reporter(), executor) if needs_text else None
    return TrainingInputs(config, spaces, device, teacher, text)


def check_cuda_graphs(config: TrainConfig, device: Device) -> None:
    """Refuse `--cuda-graphs` where passes cannot be recorded.

    Raises:
        InputError: naming what does not allow it.
    """
    hindrances = {
        f"--device {device.type}": device.type != "cuda",
        f"{device.processes.count} processes": device.processes.count > 1,
        "--compile": config.compile,
        f"--in-place {config.in_place:g}": config.in_place > 0,
    }
    if config.cuda_graphs and (found := [name for name, hinders in hindrances.items() if hinders]):
        raise InputError(
            f"--cuda-graphs with {', '.join(found)}; allowed: a CUDA device, one process, neither --compile nor "
            "--in-place"
        )


def find_teacher(config: TrainConfig, device: Device, plugins: Plugins) -> Teacher:
    """Return the teacher that `config` names, placed on `device`.

    Raises:
        InputError: if the teacher is unknown, or the model cannot be used as a teacher.
    """
    if (load := plugged(plugins, "teachers", config.teacher)) is None:
        return load_teacher(config.teacher, config.teacher_layer, device.name)
    with quiet_transformers(), guarded(f"teacher {config.teacher!r} cannot be loaded"):
        model, tokenizer = load()
    check_weights(f"teacher {config.teacher!r}", model)
    return checked_teacher(model, tokenizer, config.teacher, config.teacher_layer, device.name)


def open_text(
    config: TrainConfig, teacher: Teacher, device: Device, reporter: Reporter, executor: AnyExecutor | None = None
) -> Text:
    """Return the text that `config` names, tokenized for `teacher`.

    Args:
        config: Settings of the training.
        teacher: Teacher whose tokenizer is used.
        device: Device and processes of the training.
        reporter: Receiver of progress and messages.
        executor: Executor whose workers tokenize the text; None tokenizes in this process. A stream does not use it.

    Raises:
        InputError: if the text cannot be read, or is too short.
    """
    if config.stream:
        stream, held_out = open_stream(config.texts, teacher.tokenizer, config.seq_len, group=device.processes)
        about = f"streamed, {_count(held_out.tokens):,} tokens held out by document"
        return Text(stream.begin, held_out, stream.digest, about)
    with reporter.bar("tokenizing", "documents", None) as bar:
        corpus = load_corpus(
            config.texts,
            teacher.tokenizer,
            cache_folder(),
            group=device.processes,
            executor=executor,
            progress=bar.advance_by,
            reporter=reporter,
        )
    train, held_out = corpus.blocks(config.seq_len)  # refuses a text that is too short
    about = f"{_count(corpus.train):,} tokens to train on, {_count(corpus.held_out):,} held out by document"
    return Text(lambda: train, held_out, corpus.digest, about)


def _count(arrays: Sequence[Tokens]) -> int:
    return sum(map(len, arrays))


def _check_memory(space: SearchSpace, teacher: Teacher, device: Device, trains: bool) -> None:
    """Refuse a SuperLM whose float32 numbers do not fit into the free memory.

    A training holds weights, gradients and the two moments of AdamW. A trained SuperLM holds its weights, and as many
    numbers again while it is read or a student is extracted.
    """
    what = "weights and optimizer" if trains else "its weights and a student's"
    needed, free = _bytes_needed(space, teacher, trains), device.free_memory()
    if free is not None and needed > free.size:
        raise InputError(
            f"the SuperLM of space {space.name!r} ({space.largest}) needs {needed / 1e9:,.1f} GB for {what}; "
            f"{free.owner} has {free.size / 1e9:,.1f} GB free"
        )


def _bytes_needed(space: SearchSpace, teacher: Teacher, trains: bool = True) -> int:
    """Return the bytes of the float32 numbers of a SuperLM; see `_check_memory`."""
    whole = training_bytes(space.largest, teacher.vocabulary)
    return whole if trains else whole // 2


def fit_together(inputs: TrainingInputs) -> bool:
    """Return True if the SuperLMs of all spaces fit into the free memory while they train."""
    free = inputs.device.free_memory()
    return free is None or sum(_bytes_needed(space, inputs.teacher) for space in inputs.spaces) <= free.size


def load_spaces(
    names: Sequence[str],
    depth: str | None = None,
    relation_heads: int | None = None,
    plugins: Plugins | None = None,
) -> list[SearchSpace]:
    """Return the spaces of the given names or paths.

    Args:
        names: Names of shipped spaces or plug-ins, or paths of YAML files.
        depth: Depth rule in place of that of the spaces.
        relation_heads: Number of relation heads in place of that of the spaces.
        plugins: Plug-ins that may define a space.

    Raises:
        InputError: if two spaces have the same name, or different relation heads, whose losses cannot be compared.
    """
    changes = {"depth": depth, "relation_heads": relation_heads}
    overrides: dict[str, Any] = {key: value for key, value in changes.items() if value is not None}
    plugins = plugins or Plugins()
    sources = [plugged(plugins, "search_spaces", name) or name for name in names]
    spaces = [
        replace(source if isinstance(source, SearchSpace) else load_space(source), **overrides) for source in sources
    ]
    if len({space.name for space in spaces}) < len(spaces):
        raise InputError(f"--space names {', '.join(space.name for space in spaces)}; allowed: each space once")
    if len({space.relation_heads for space in spaces}) > 1:
        heads = ", ".join(f"{space.name} {space.relation_heads}" for space in spaces)
        raise InputError(f"relation_heads are {heads}; allowed: the same in all spaces, for losses to be comparable")
    return spaces
