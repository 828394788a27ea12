"""The settings of `distil`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from autodistil_search.base.user_input import LARGEST
from autodistil_search.settings.common import (
    CHANGES_NOTHING,
    DATA,
    OUTPUT,
    TRAINING,
    Count,
    Device,
    Precision,
    Rate,
    Seed,
    Steps,
    check_settings,
)
from autodistil_search.settings.search import SearchConfig
from autodistil_search.settings.train import TrainConfig


@dataclass(frozen=True, kw_only=True)
class DistilConfig:
    """Which student of a finished search to train further, and for how long.

    Args:
        run: The --out folder of a search that ended.
        pick: Which student: knee, the number of a row of frontier.csv, or bounds such as "flops<=200M".
        steps: Training steps.
        batch_size: Blocks in a step, over all processes; the run's if not given.
        lr: Peak learning rate; a quarter of the run's if not given.
        text: Text to train on, as search takes it; the run's if not given.
        accumulate: Parts that each process divides its blocks into, one in memory at a time.
        seed: Fixes the order of text.
        device: Where to compute; auto takes CUDA if there is one.
        precision: auto takes bf16 where the hardware has it; fp16 scales the loss.
        held_out_every: Steps between measurements on held-out text, 0 for none; a tenth of the steps if not given.
        keep: Checkpoints kept while training.
        out: Folder of the result; if not given, students/<run>-<pick>.
    """

    run: Annotated[str, DATA] = "runs/tiny"
    pick: Annotated[str, DATA] = "knee"
    steps: Annotated[Steps, TRAINING] = 1000
    batch_size: Annotated[Count | None, TRAINING] = None
    lr: Annotated[Rate | None, TRAINING] = None
    text: Annotated[list[str] | None, DATA] = None
    accumulate: Annotated[Count, TRAINING] = 1
    seed: Annotated[Seed, TRAINING] = 0
    device: Annotated[Device, OUTPUT] = "auto"
    precision: Annotated[Precision, OUTPUT] = "auto"
    held_out_every: Annotated[Annotated[int, Ge(0), Le(LARGEST)] | None, OUTPUT] = None
    keep: Annotated[Count, OUTPUT] = 2
    out: Annotated[str | None, OUTPUT] = None

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def folder(self) -> Path:
        """The folder of the result."""
        words = "".join(letter if letter.isalnum() else "-" for letter in self.pick.replace("<=", "-"))
        return Path(self.out or Path("students") / f"{Path(self.run).name}-{words}")

    def training(self, run: SearchConfig) -> TrainConfig:
        """How the student is trained: as the run trained its SuperLMs, but for what is given here.

        Raises:
            InputError: for values that do not go together.
        """
        names = {setting.name for setting in fields(TrainConfig)}
        own = {name: value for name, value in asdict(self).items() if name in names and value is not None}
        return run.training(**{"held_out_every": None, **own})

    def to_dict(self) -> dict[str, Any]:
        """All that was chosen and can change a number."""
        return {key: value for key, value in asdict(self).items() if key not in CHANGES_NOTHING}
