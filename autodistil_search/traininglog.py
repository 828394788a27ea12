"""What a training run writes down while it runs: two CSV files, TensorBoard when asked, and a line for the user."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from autodistil_search.errors import InputError
from autodistil_search.files import readable
from autodistil_search.sampling import Drawn
from autodistil_search.space import DIMENSIONS, Subnet

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TRAINING_CSV = "training.csv"
HELD_OUT_CSV = "held_out.csv"
COLUMNS = ("step", "role", *DIMENSIONS, "loss")


class TrainingLog:
    """`training.csv`, a row for each subnet of each step, and `held_out.csv`, the same of what was measured.

    Args:
        folder: Where they lie; rows after the step resumed from are dropped.
        first: Steps done before.
        tensorboard: Whether to write event files into `folder/tensorboard`, too.

    Raises:
        InputError: if TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, first: int, tensorboard: bool = False) -> None:
        self._training = _Table(folder / TRAINING_CSV, first)
        self._held_out = _Table(folder / HELD_OUT_CSV, first)
        self._board = _summary_writer(folder, first) if tensorboard else None
        self._since = time.monotonic()
        self._last_held_out = ""

    def write(self, step: int, drawn: Sequence[Drawn], losses: Sequence[float], tokens: int, lr: float) -> str:
        """Write down what the `step`-th step gave (counted from 1), on `tokens` tokens; returns a line about it."""
        self._training.append(step, [(each.role, each.subnet, loss) for each, loss in zip(drawn, losses, strict=True)])
        now = time.monotonic()
        pace, self._since = tokens / max(now - self._since, 1e-9), now
        means = _means((each.role, loss) for each, loss in zip(drawn, losses, strict=True))
        if self._board is not None:
            for role, mean in means.items():
                self._board.add_scalar(f"loss/{role}", mean, step)
            self._board.add_scalar("learning rate", lr, step)
            self._board.add_scalar("tokens per second", pace, step)
        parts = [f"{pace:,.0f} tokens/s", "loss " + ", ".join(f"{role} {mean:.3f}" for role, mean in means.items())]
        return "; ".join([*parts, self._last_held_out] if self._last_held_out else parts)

    def write_held_out(self, step: int, measured: Sequence[tuple[str, Subnet, float]]) -> None:
        """Write down what was measured on held-out text after `step` steps."""
        self._held_out.append(step, measured)
        means = _means((role, loss) for role, _, loss in measured)
        self._last_held_out = "held out " + ", ".join(f"{role} {mean:.3f}" for role, mean in means.items())
        if self._board is not None:
            for role, mean in means.items():
                self._board.add_scalar(f"held-out loss/{role}", mean, step)
        self._since = time.monotonic()  # measuring is not training

    def close(self) -> None:
        """Let go of the files."""
        if self._board is not None:
            self._board.close()


def _means(losses: Iterable[tuple[str, float]]) -> dict[str, float]:
    by_role: dict[str, list[float]] = {}
    for role, loss in losses:
        by_role.setdefault(role, []).append(loss)
    return {role: fmean(values) for role, values in by_role.items()}


def _summary_writer(folder: Path, first: int) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("--tensorboard needs pip install 'autodistil_search[tracking]'") from None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=first + 1)


class _Table:
    """A CSV file with `COLUMNS` that is only ever appended to."""

    def __init__(self, path: Path, first: int) -> None:
        self._path = path
        kept: list[list[str]] = []
        if path.exists():
            with readable(path), path.open(newline="") as file:
                kept = [row for row in list(csv.reader(file))[1:] if len(row) == len(COLUMNS) and int(row[0]) <= first]
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *kept])

    def append(self, step: int, rows: Sequence[tuple[str, Subnet, float]]) -> None:
        lines: list[tuple[Any, ...]] = []
        for role, subnet, loss in rows:
            sizes = subnet.to_row()
            lines.append((step, role, *(sizes[key] for key in DIMENSIONS), f"{loss:.6f}"))
        with self._path.open("a", newline="") as file:
            csv.writer(file).writerows(lines)
