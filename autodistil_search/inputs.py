"""What a `SearchConfig` stands for: spaces, objectives, teacher and text, loaded and checked before any training."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from autodistil_search import objectives
from autodistil_search.config import SearchConfig
from autodistil_search.corpus import Corpus, load_corpus
from autodistil_search.cost import params
from autodistil_search.device import Device, choose_device
from autodistil_search.distill import TrainOptions
from autodistil_search.errors import InputError
from autodistil_search.objectives import Bound, Objective
from autodistil_search.space import SearchSpace, Subnet, load_space
from autodistil_search.teacher import Teacher, load_teacher, model_sha256


def cache_folder() -> Path:
    """Where tokenized text and baselines are kept for later runs: AUTODISTIL_SEARCH_CACHE, or the user's cache."""
    if given := os.environ.get("AUTODISTIL_SEARCH_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autodistil_search"


@dataclass(frozen=True)
class Inputs:
    """What a `SearchConfig` stands for, loaded and checked."""

    config: SearchConfig
    spaces: Sequence[SearchSpace]
    objectives: Sequence[Objective]
    bounds: Sequence[Bound]
    device: Device
    teacher: Teacher
    corpus: Corpus | None
    """None if no objective needs training."""

    @property
    def options(self) -> TrainOptions:
        """How SuperLMs and baselines are trained."""
        config = self.config
        heads = self.spaces[0].relation_heads
        return TrainOptions(
            config.steps, config.batch_size, config.lr, config.seed, config.loss, config.sampling, heads
        )

    @property
    def proxy_objective(self) -> Objective | None:
        """The objective that must be measured on a trained SuperLM."""
        return next((objective for objective in self.objectives if objective.cost is None), None)

    def admits(self, subnet: Subnet) -> bool:
        """Whether `subnet` keeps all bounds."""
        return all(bound.admits(subnet, self.teacher.vocabulary) for bound in self.bounds)

    @cached_property
    def identity(self) -> dict[str, str]:
        """Digests of what the flags only name: the teacher's weights, the text, the spaces' content."""
        identity = {
            "teacher_model": model_sha256(self.teacher.model),
            "teacher_layer": str(self.teacher.layer),
            "computed_in": f"{self.device.precision} on {self.device.name}",
        }
        if self.corpus is not None:
            identity["text"] = self.corpus.digest
        identity["spaces"] = json.dumps([space.to_dict() for space in self.spaces])
        return identity


def resolve(config: SearchConfig) -> Inputs:
    """Load and check all that `config` names, before anything is trained.

    Raises:
        InputError: for whatever cannot be used.
    """
    wanted = objectives.parse_objectives(config.objectives, config.loss)
    limits = {objectives.FLOPS: config.max_flops, objectives.PARAMS: config.max_params}
    amounts = {cost: objectives.parse_amount(text, f"--max-{cost.name}") for cost, text in limits.items()}
    bounds = [Bound(cost, amount) for cost, amount in amounts.items() if amount is not None]
    spaces = load_spaces(config.space_names)
    device = choose_device(config.device, config.precision)
    teacher = load_teacher(config.teacher, config.teacher_layer, device.name)
    for space in spaces:
        objectives.check_reachable(bounds, space, teacher.vocabulary)
        _check_memory(space, teacher)
    if config.seq_len > teacher.vocabulary.positions:
        raise InputError(
            f"--seq-len {config.seq_len}; the teacher has positions for 8 to {teacher.vocabulary.positions}"
        )
    needs_text = any(objective.cost is None for objective in wanted)
    corpus = load_corpus(config.texts, teacher.tokenizer, cache_folder()) if needs_text else None
    if corpus is not None:
        corpus.blocks(config.seq_len)  # too short a text is refused here
    return Inputs(config, spaces, wanted, bounds, device, teacher, corpus)


def _check_memory(space: SearchSpace, teacher: Teacher) -> None:
    """Refuse a SuperLM whose weights, gradients and AdamW moments (float32) are more than this machine's memory."""
    needed = 16 * params(space.largest, teacher.vocabulary)
    if not hasattr(os, "sysconf"):
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise InputError(
            f"the SuperLM of space {space.name!r} ({space.largest}) needs {needed / 1e9:,.1f} GB for weights and "
            f"optimizer; this machine has {memory / 1e9:,.1f} GB"
        )


def load_spaces(names: Sequence[str]) -> list[SearchSpace]:
    """The spaces of those names or paths, which must be comparable with each other.

    Raises:
        InputError: if two have one name, or other relation heads: their losses would be unlike things.
    """
    spaces = [load_space(name) for name in names]
    if len({space.name for space in spaces}) < len(spaces):
        raise InputError(f"--space names {', '.join(space.name for space in spaces)}; allowed: each space once")
    if len({space.relation_heads for space in spaces}) > 1:
        heads = ", ".join(f"{space.name} {space.relation_heads}" for space in spaces)
        raise InputError(f"relation_heads are {heads}; allowed: the same in all spaces, for losses to be comparable")
    return spaces
