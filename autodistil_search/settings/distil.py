"""The settings of `distil`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from autodistil_search.base.tracking import tracker_names
from autodistil_search.base.user_input import LARGEST
from autodistil_search.settings.common import (
    CHANGES_NOTHING,
    DATA,
    OUTPUT,
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
    check_settings,
)
from autodistil_search.settings.search import SearchConfig
from autodistil_search.settings.train import TrainConfig


@dataclass(frozen=True, kw_only=True)
class DistilConfig:
    """Settings of the further training of one student of a finished search.

    Args:
        run: Output folder of a finished search.
        pick: Student: knee, a row of frontier.csv, or bounds such as 'flops<=200M'.
        steps: Training steps.
        batch_size: Blocks in a step, summed over all processes; the run's if not given.
        lr: Peak learning rate; a quarter of the run's if not given.
        text: Training text, as in search; the run's if not given.
        accumulate: Number of parts of a process's blocks; one part is in memory at a time.
        seed: Seed of the order of text.
        device: Device to run on: auto, cpu, cuda, mps or xpu. auto takes an accelerator if there is one.
        precision: Precision of matrix products. auto takes the fastest that the hardware has; fp16 scales the loss.
        held_out_every: Steps between measurements on held-out text, 0 for none; a tenth of the steps if not given.
        keep: Number of checkpoints that are kept during training.
        track: Trackers that get losses and other metrics, separated by commas: tensorboard (extra "tracking"), wandb,
            mlflow, trackio.
        out: Output folder; by default students/RUN-PICK.
    """

    run: Annotated[Folder, DATA, Placeholder("RUN")] = "runs/shallow"
    pick: Annotated[Name, DATA, Usual(), Placeholder("PICK")] = "knee"
    steps: Annotated[Steps, TRAINING, Usual("n")] = 1000
    batch_size: Annotated[Count | None, TRAINING, Usual("b")] = None
    lr: Annotated[Rate | None, TRAINING, Usual(), Placeholder("RATE")] = None
    text: Annotated[list[str] | None, DATA, Usual()] = None
    accumulate: Annotated[Count, TRAINING] = 1
    seed: Annotated[Seed, TRAINING] = 0
    device: Annotated[Device, OUTPUT, Usual("d")] = "auto"
    precision: Annotated[Precision, OUTPUT] = "auto"
    held_out_every: Annotated[Annotated[int, Ge(0), Le(LARGEST)] | None, OUTPUT] = None
    keep: Annotated[Count, OUTPUT] = 2
    track: Annotated[Names | None, OUTPUT] = None
    out: Annotated[Folder | None, OUTPUT, Usual("o")] = None

    def __post_init__(self) -> None:
        check_settings(self)
        tracker_names(self.track)

    @property
    def folder(self) -> Path:
        """Return the output folder."""
        words = "".join(letter if letter.isalnum() else "-" for letter in self.pick.replace("<=", "-"))
        return Path(self.out or Path("students") / f"{Path(self.run).name}-{words}")

    def training(self, run: SearchConfig) -> TrainConfig:
        """Return the settings of the student's training: those of the run's SuperLMs, changed by the values given here.

        Raises:
            InputError: for values that do not go together.
        """
        names = {setting.name for setting in fields(TrainConfig)}
        own = {name: value for name, value in asdict(self).items() if name in names and value is not None}
        return run.training(**{"held_out_every": None, **own})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that can change a number."""
        return {key: value for key, value in asdict(self).items() if key not in CHANGES_NOTHING}
