"""The settings of a training: `TrainConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Ge, Le

from autodistil_search.base.errors import InputError
from autodistil_search.base.plugins import Plugins
from autodistil_search.base.tracking import tracker_names
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
    Folder,
    Name,
    Names,
    Placeholder,
    Precision,
    Rate,
    Seed,
    Steps,
    Usual,
    check_executor,
    check_settings,
    refuse_unknown,
)
from autodistil_search.spaces.search_space import shipped_spaces


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training: spaces, teacher, text and schedule.

    Args:
        space: Search spaces, separated by commas. Shipped are tiny, shallow, small, base, oneshot, elastic and debug;
            any other space is a YAML file.
        depth: Rule for the layers that a shallower subnet keeps; the space's own if not given. uniform is the rule of
            the released AutoDistil code.
        teacher: Hugging Face id or folder of the teacher; packaged is that of the extra quickstart.
        teacher_layer: Teacher layer whose relations are distilled, counted from 0; -1 is the last.
        text: Training text: files, folders, hf:NAME of the hub, or "packaged", the default. Files are .txt or .txt.gz
            (one paragraph a line, blank lines between documents), or .jsonl, .csv or .parquet with a column "text".
            Folders are of datasets. The full form of a name is hf:NAME[:CONFIG[:SPLIT[:COLUMN]]].
        stream: Read and tokenize the text while training, for text that does not fit on the disk.
        seq_len: Tokens in a block of text.
        init: Initial weights. They are the teacher's weights that matter most, fitted to stand for the rest (fitted),
            slices of them after a rotation by PCA (pca), slices as they are (slices), the teacher's embeddings alone
            (embeddings), or random. auto selects by shape, or else the lowest loss before training.
        loss: Relation loss. kl is that of MiniLMv2, mse compares raw scores, as the released AutoDistil code does.
        relations: Relations of the loss with their weights, such as qq,kk,vv:0.5. Allowed are qq, kk, vv and qk (the
            attention of the first MiniLM).
        relation_heads: Number of relation heads; the space's own if not given.
        sampling: Subnets that a step trains. sandwich is the largest, the smallest and random ones.
        random_subnets: Number of random subnets in a step; by default 1 for largest-random, 2 for sandwich, 4 for
            random.
        subnet_weights: Weights of the subnets' losses, such as largest:2,random:1; equal if not given.
        in_place: Share of a subnet's loss against the largest subnet's relations instead of the teacher's.
        hidden: Weight of the hidden-state loss, which compares the last hidden states with the teacher's through a
            learned linear map. 0 trains by relations alone, as in the paper.
        steps: Training steps of each SuperLM and of each baseline.
        batch_size: Blocks in a step, summed over all processes.
        accumulate: Number of parts of a process's blocks; one part is in memory at a time.
        lr: Peak learning rate; by default one that suits the space's sizes. It is 0.13 / (layers x root of the hidden
            size), at most 4e-3.
        seed: Seed of the initial weights, the order of text, the subnets of each step and the search.
        device: Device to run on: auto, cpu, cuda, mps or xpu. auto takes an accelerator if there is one.
        precision: Precision of matrix products. auto takes the fastest that the hardware has; fp16 scales the loss.
        compile: Compile the layers by torch.compile.
        cuda_graphs: Record the passes of subnets as CUDA graphs, on a CUDA device in one process. Experimental: no GPU
            has run it yet.
        held_out_every: Steps between measurements on held-out text, 0 for none; a tenth of the steps if not given.
        keep: Number of checkpoints that are kept during training.
        executor: Where large text is tokenized, subnets are scored and baselines trained; this process if not given.
            dask is a local cluster (extra "distributed"), dask:ADDRESS the cluster of that scheduler, such as
            tcp://host:8786, or its .json file.
        workers: Number of workers of the local cluster; by default one for each GPU, or for every OMP_NUM_THREADS CPUs.
        track: Trackers that get losses and other metrics, separated by commas: tensorboard (extra "tracking"), wandb,
            mlflow, trackio.
        out: Output folder; by default superlms/SPACES for train and runs/SPACES for search.
    """

    space: Annotated[Names, SPACE, Usual("s")] = "shallow"
    depth: Annotated[Literal["first_last", "uniform", "prefix"] | None, SPACE] = None
    teacher: Annotated[Name, DATA, Usual("t")] = "packaged"
    teacher_layer: Annotated[Annotated[int, Ge(-MANY), Le(MANY)], DATA] = -1
    text: Annotated[list[str] | None, DATA, Usual()] = None
    stream: Annotated[bool, DATA] = False
    seq_len: Annotated[Annotated[int, Ge(8), Le(MANY)], DATA] = 128
    init: Annotated[Literal["auto", "fitted", "pca", "slices", "embeddings", "random"], TRAINING] = "auto"
    loss: Annotated[Literal["kl", "mse"], TRAINING] = "kl"
    relations: Annotated[str, TRAINING] = "qq,kk,vv"
    relation_heads: Annotated[Count | None, TRAINING] = None
    sampling: Annotated[Literal["largest-random", "sandwich", "random", "largest"], TRAINING] = "largest-random"
    random_subnets: Annotated[Annotated[int, Ge(0), Le(MANY)] | None, TRAINING] = None
    subnet_weights: Annotated[str, TRAINING] = ""
    in_place: Annotated[Annotated[float, Ge(0), Le(1)], TRAINING] = 0.0
    hidden: Annotated[Annotated[float, Ge(0)], TRAINING] = 1.0
    steps: Annotated[Steps, TRAINING, Usual("n")] = 400
    batch_size: Annotated[Count, TRAINING, Usual("b")] = 4
    accumulate: Annotated[Count, TRAINING] = 1
    lr: Annotated[Rate | None, TRAINING, Usual(), Placeholder("RATE")] = None
    seed: Annotated[Seed, TRAINING] = 0
    device: Annotated[Device, OUTPUT, Usual("d")] = "auto"
    precision: Annotated[Precision, OUTPUT] = "auto"
    compile: Annotated[bool, OUTPUT] = False
    cuda_graphs: Annotated[bool, OUTPUT] = False
    held_out_every: Annotated[Annotated[int, Ge(0), Le(LARGEST)] | None, OUTPUT] = None
    keep: Annotated[Count, OUTPUT] = 2
    executor: Annotated[Name | None, OUTPUT, Placeholder("EXECUTOR")] = None
    workers: Annotated[Count | None, OUTPUT] = None
    track: Annotated[Names | None, OUTPUT] = None
    out: Annotated[Folder | None, OUTPUT, Usual("o")] = None
    given: InitVar[Mapping[str, Any] | None] = None
    """Settings that were given explicitly, by default the arguments of the constructor. `replace` passes them on."""

    _parent: ClassVar[str] = "superlms"

    def __new__(cls, **settings: Any) -> Self:
        """Note the settings that were given: a given value may equal the default."""
        config = super().__new__(cls)
        object.__setattr__(config, "given", settings)
        return config

    def __post_init__(self, given: Mapping[str, Any] | None) -> None:
        if given is not None:
            object.__setattr__(self, "given", given)
        check_settings(self)
        check_executor(self.executor, self.workers)
        tracker_names(self.track)
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
        """Return a copy with absolute paths, which means the same in any working directory.

        plugins: plug-ins, whose names are not paths.
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
        """Return True if a setting was given, even with its default value; None counts as not given.

        `dataclasses.replace` with the default value also counts as not given.
        """
        value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
        return value is not None and (value != default or vars(self)["given"].get(name) == value)

    @property
    def space_names(self) -> list[str]:
        """Return the names of the spaces, as given."""
        return [name.strip() for name in self.space.split(",") if name.strip()]

    @property
    def folder(self) -> Path:
        """Return the output folder."""
        return Path(self.out or Path(self._parent) / "-".join(Path(name).stem for name in self.space_names))

    @property
    def texts(self) -> list[str]:
        """Return the names of the text; the packaged text by default."""
        return self.text or [PACKAGED]

    def is_measured_after(self, step: int, steps: int) -> bool:
        """Return True if held-out text is measured after `step` of `steps` steps."""
        every = max(1, steps // 10) if self.held_out_every is None else self.held_out_every
        return every > 0 and (step % every == 0 or step == steps)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `config.yaml`: the settings that can change a number."""
        return {key: value for key, value in asdict(self).items() if key not in CHANGES_NOTHING}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Return the settings of a dictionary that `to_dict` made.

        Raises:
            InputError: for an unknown key or a value that is not allowed.
        """
        refuse_unknown(content, [field.name for field in fields(cls)])
        return cls(**content)
