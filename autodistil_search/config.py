"""Everything a search can be told, as one typed record: Python API, command-line flags and YAML file alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from autodistil_search.errors import InputError

_LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What to search, from which teacher and text, and with what effort.

    Args:
        objectives: What to minimise, separated by commas: acc (the accuracy proxy: relation loss on held-out text),
            flops (multiply-adds at 128 tokens, batch 1), params.
        space: Search spaces, separated by commas: tiny, small, base, debug, or the path of a YAML file.
        engine: Search engine.
        evaluations: Subnets to score in each space, at most.
        population: Subnets in a generation of nsga2.
        max_flops: Upper bound on FLOPs, such as 300M.
        max_params: Upper bound on parameters, such as 8M.
        teacher: Hugging Face id or folder of the teacher, or "packaged" for the one in the quickstart extra.
        teacher_layer: Layer whose relations are distilled, from 0; -1 is the last.
        text: Files (.txt, .txt.gz, one paragraph a line, blank lines between documents), or "packaged".
        seq_len: Tokens in a block of text.
        eval_blocks: Held-out blocks on which the proxy is measured; each keeps about 3 MB of memory.
        init: Start the SuperLM from slices of the teacher's weights, or at random.
        loss: kl (MiniLMv2) or mse on raw scores (the released AutoDistil code).
        sampling: Subnets a step trains: largest-random (largest, 3 random) or sandwich (largest, smallest, 2 random).
        steps: Training steps of each SuperLM and of each baseline.
        batch_size: Blocks in a step.
        lr: Peak learning rate.
        seed: Fixes initial weights, the order of text, the subnets of each step and the search.
        device: Where to compute; auto takes CUDA if there is one.
        precision: auto takes bf16 where the hardware has it.
        baselines: Whether to measure the shapes of TinyBERT and MiniLM on equal terms.
        out: Folder of the run; runs/<space names> if not given.
    """

    objectives: str = "acc,flops"
    space: str = "tiny"
    engine: Literal["nsga2", "exhaustive"] = "nsga2"
    evaluations: int = 128
    population: int = 16
    max_flops: str | float | None = None
    max_params: str | float | None = None
    teacher: str = "packaged"
    teacher_layer: int = -1
    text: list[str] | None = None
    seq_len: int = 128
    eval_blocks: int = 32
    init: Literal["teacher", "random"] = "teacher"
    loss: Literal["kl", "mse"] = "kl"
    sampling: Literal["largest-random", "sandwich"] = "largest-random"
    steps: int = 180
    batch_size: int = 4
    lr: float = 4e-3
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    baselines: Literal["measured", "none"] = "measured"
    out: str | None = None

    def __post_init__(self) -> None:
        defaults = {setting.name: setting.default for setting in fields(self)}
        for name, allowed in choices().items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{_flag(name)} {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        for name in ("objectives", "space", "teacher"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"{_flag(name)} {getattr(self, name)!r}; allowed: text, such as {defaults[name]!r}")
        if isinstance(self.text, str):
            object.__setattr__(self, "text", [self.text])
        least = {
            "evaluations": 1,
            "population": 2,
            "seq_len": 8,
            "eval_blocks": 1,
            "steps": 1,
            "batch_size": 1,
            "seed": 0,
        }
        for name, lowest in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                raise InputError(f"{_flag(name)} {value!r}; allowed: whole numbers from {lowest}")
        if self.seed > _LARGEST_SEED:
            raise InputError(f"--seed {self.seed}; allowed: whole numbers from 0 to {_LARGEST_SEED}")
        if isinstance(self.lr, bool) or not isinstance(self.lr, int | float) or not 0 < self.lr < float("inf"):
            raise InputError(f"--lr {self.lr!r}; allowed: numbers above 0")
        if not self.space_names:
            raise InputError(f"--space {self.space!r}; allowed: one or more spaces, separated by commas")

    def absolute(self) -> SearchConfig:
        """The same with the absolute paths of files and folders, so that it means the same wherever it is read."""
        spaces = ",".join(_absolute(name) if name.endswith((".yaml", ".yml")) else name for name in self.space_names)
        texts = None if self.text is None else [name if name == "packaged" else _absolute(name) for name in self.text]
        return replace(self, space=spaces, text=texts, teacher=_absolute(self.teacher))

    @property
    def space_names(self) -> list[str]:
        """The spaces asked for, as given."""
        return [name.strip() for name in self.space.split(",") if name.strip()]

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return Path(self.out or Path("runs") / "-".join(Path(name).stem for name in self.space_names))

    @property
    def texts(self) -> list[str]:
        """The text asked for; the packaged one by default."""
        return self.text or ["packaged"]

    def to_dict(self) -> dict[str, Any]:
        """As `config.yaml` holds it: all that was chosen, except where the run lies."""
        return {key: value for key, value in asdict(self).items() if key != "out"}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> SearchConfig:
        """The inverse of `to_dict`.

        Raises:
            InputError: for an unknown key or a value that is not allowed.
        """
        known = [field.name for field in fields(cls)]
        if unknown := [key for key in content if key not in known]:
            raise InputError(f"unknown setting {', '.join(unknown)}; allowed: {', '.join(known)}")
        return cls(**content)


def choices() -> dict[str, tuple[str, ...]]:
    """The allowed words of each setting that has a closed list."""
    hints = get_type_hints(SearchConfig)
    return {name: get_args(hint) for name, hint in hints.items() if getattr(hint, "__origin__", None) is Literal}


def _absolute(name: str) -> str:
    """The absolute path of what exists, and any other name as it is."""
    try:
        return str(Path(name).resolve()) if Path(name).exists() else name
    except (OSError, ValueError):  # a name no file can have
        return name


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
