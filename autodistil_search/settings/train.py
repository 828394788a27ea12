"""The settings of a training: `TrainConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Ge, Le

from autodistil_search.base.errors import InputError
from autodistil_search.base.plugins import Plugins
from autodistil_search.base.user_input import LARGEST, PACKAGED, absolute_path
from autodistil_search.settings.common import (
    CHANGES_NOTHING,
    DATA,
    MANY,
    OUTPUT,
    SPACE,
    TRAINING,
    Count,
    Device,
    Precision,
    Rate,
    Seed,
    Steps,
    check_settings,
)
from autodistil_search.spaces.search_space import shipped_spaces


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Which SuperLMs to train, from which teacher and text, and how.

    Args:
        space: Search spaces, separated by commas: tiny, shallow, small, base, oneshot, elastic, debug, or the path of a
            YAML file.
        depth: Which layers a subnet with fewer keeps: first_last, uniform (the released AutoDistil code) or prefix;
            that of the space if not given.
        teacher: Hugging Face id or folder of the teacher, or "packaged" for the one in the quickstart extra.
        teacher_layer: Layer whose relations are distilled, from 0; -1 is the last.
        text: Files (.txt, .txt.gz, one paragraph a line, blank lines between documents; .jsonl, .csv, .parquet with a
            column "text"), folders of datasets, hf:NAME[:CONFIG[:SPLIT[:COLUMN]]], or "packaged".
        stream: Read and tokenize the text as it is needed, for what does not fit on the disk.
        seq_len: Tokens in a block of text.
        init: Start from slices of the teacher's weights, turned by PCA so that what matters leads (pca) or as they are
            (slices), from its embeddings alone, or at random; auto takes the one with the lowest loss before training.
        loss: kl (MiniLMv2) or mse on raw scores (the released AutoDistil code).
        relations: Relations of the loss, with weights: of qq, kk, vv, qk (the first MiniLM's attention), such as
            qq,kk,vv:0.5.
        relation_heads: Heads of the relations; those of the space if not given.
        sampling: Subnets a step trains: largest-random, sandwich (largest, smallest and random), random, largest.
        random_subnets: How many are drawn at random; by default 1 of largest-random, 2 of sandwich, 4 of random.
        subnet_weights: How much the loss of each counts, such as largest:2,random:1; all alike if not given.
        in_place: Share of a subnet's loss taken against the largest subnet's relations instead of the teacher's.
        hidden: Weight in the loss of the last hidden states, against the teacher's through a learned linear map; 0
            trains by relations alone, as the paper does.
        steps: Training steps of each SuperLM and of each baseline.
        batch_size: Blocks in a step, over all processes.
        accumulate: Parts that each process divides its blocks into, one in memory at a time.
        lr: Peak learning rate; if not given, 0.13 / (layers x root of the hidden size), and at most 4e-3.
        seed: Fixes initial weights, the order of text, the subnets of each step and the search.
        device: Where to compute; auto takes CUDA if there is one.
        precision: auto takes bf16 where the hardware has it; fp16 scales the loss.
        compile: Run layers through torch.compile.
        held_out_every: Steps between measurements on held-out text, 0 for none; a tenth of the steps if not given.
        keep: Checkpoints kept while training.
        tensorboard: Log for TensorBoard, too (extra "tracking").
        out: Folder of the result; if not given, superlms/<space names> of train and runs/<space names> of search.
    """

    space: Annotated[str, SPACE] = "tiny"
    depth: Annotated[Literal["first_last", "uniform", "prefix"] | None, SPACE] = None
    teacher: Annotated[str, DATA] = "packaged"
    teacher_layer: Annotated[Annotated[int, Ge(-MANY), Le(MANY)], DATA] = -1
    text: Annotated[list[str] | None, DATA] = None
    stream: Annotated[bool, DATA] = False
    seq_len: Annotated[Annotated[int, Ge(8), Le(MANY)], DATA] = 128
    init: Annotated[Literal["auto", "pca", "slices", "embeddings", "random"], TRAINING] = "auto"
    loss: Annotated[Literal["kl", "mse"], TRAINING] = "kl"
    relations: Annotated[str, TRAINING] = "qq,kk,vv"
    relation_heads: Annotated[Count | None, TRAINING] = None
    sampling: Annotated[Literal["largest-random", "sandwich", "random", "largest"], TRAINING] = "largest-random"
    random_subnets: Annotated[Annotated[int, Ge(0), Le(MANY)] | None, TRAINING] = None
    subnet_weights: Annotated[str, TRAINING] = ""
    in_place: Annotated[Annotated[float, Ge(0), Le(1)], TRAINING] = 0.0
    hidden: Annotated[Annotated[float, Ge(0)], TRAINING] = 1.0
    steps: Annotated[Steps, TRAINING] = 200
    batch_size: Annotated[Count, TRAINING] = 4
    accumulate: Annotated[Count, TRAINING] = 1
    lr: Annotated[Rate | None, TRAINING] = None
    seed: Annotated[Seed, TRAINING] = 0
    device: Annotated[Device, OUTPUT] = "auto"
    precision: Annotated[Precision, OUTPUT] = "auto"
    compile: Annotated[bool, OUTPUT] = False
    held_out_every: Annotated[Annotated[int, Ge(0), Le(LARGEST)] | None, OUTPUT] = None
    keep: Annotated[Count, OUTPUT] = 2
    tensorboard: Annotated[bool, OUTPUT] = False
    out: Annotated[str | None, OUTPUT] = None
    given: InitVar[Mapping[str, Any] | None] = None
    """The settings that were chosen; those named when this was made, if not told. `replace` hands it on."""

    _parent: ClassVar[str] = "superlms"

    def __new__(cls, **settings: Any) -> Self:
        """Note which settings are named: one that equals its default may have been chosen, too."""
        config = super().__new__(cls)
        object.__setattr__(config, "given", settings)
        return config

    def __post_init__(self, given: Mapping[str, Any] | None) -> None:
        if given is not None:
            object.__setattr__(self, "given", given)
        check_settings(self)
        if not self.space_names:
            raise InputError(f"--space {self.space!r}; allowed: one or more spaces, separated by commas")
        if self.batch_size < self.accumulate:
            raise InputError(
                f"--accumulate {self.accumulate} with --batch-size {self.batch_size}; allowed: at most one part a block"
            )
        self._check_subnets()

    def _check_subnets(self) -> None:
        if self.in_place and self.sampling == "random":
            raise InputError("--in-place with --sampling random; allowed: a sampling that trains the largest subnet")
        if self.sampling == "largest" and self.random_subnets:
            raise InputError(
                f"--random-subnets {self.random_subnets} with --sampling largest; allowed: --sampling largest-random"
            )
        if self.sampling == "random" and self.random_subnets == 0:
            raise InputError("--random-subnets 0 with --sampling random; allowed: 1 or more, or another sampling")

    def absolute(self, plugins: Plugins | None = None) -> Self:
        """Return the same with the absolute paths of files and folders, so that it means the same wherever it is read.

        plugins: whose names are no paths either.
        """
        plugins = plugins or Plugins()
        known = (*shipped_spaces(), *plugins.names("search_spaces"))
        spaces = ",".join(absolute_path(name, known) for name in self.space_names)
        texts = self.text and [
            name if name.startswith("hf:") else absolute_path(name, (PACKAGED,)) for name in self.text
        ]
        teacher = absolute_path(self.teacher, (PACKAGED, *plugins.names("teachers")))
        return replace(self, space=spaces, text=texts, teacher=teacher)

    def was_given(self, name: str) -> bool:
        """Return whether a setting was chosen, its default among the values; None leaves it open.

        So does `dataclasses.replace` with the default.
        """
        value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
        return value is not None and (value != default or vars(self)["given"].get(name) == value)

    @property
    def space_names(self) -> list[str]:
        """The spaces asked for, as given."""
        return [name.strip() for name in self.space.split(",") if name.strip()]

    @property
    def folder(self) -> Path:
        """The folder of the result."""
        return Path(self.out or Path(self._parent) / "-".join(Path(name).stem for name in self.space_names))

    @property
    def texts(self) -> list[str]:
        """The text asked for; the packaged one by default."""
        return self.text or [PACKAGED]

    def is_measured_after(self, step: int, steps: int) -> bool:
        """Return whether held-out text is measured after `step` of `steps` steps: every so often, and at the end."""
        every = max(1, steps // 10) if self.held_out_every is None else self.held_out_every
        return every > 0 and (step % every == 0 or step == steps)

    def to_dict(self) -> dict[str, Any]:
        """As `config.yaml` holds it: all that was chosen and can change a number."""
        return {key: value for key, value in asdict(self).items() if key not in CHANGES_NOTHING}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            InputError: for an unknown key or a value that is not allowed.
        """
        known = [field.name for field in fields(cls)]
        if unknown := [key for key in content if key not in known]:
            raise InputError(f"unknown setting {', '.join(unknown)}; allowed: {', '.join(known)}")
        return cls(**content)
