"""Logs of a training run: two CSV files, optional TensorBoard event files, and a progress line for the user."""

from __future__ import annotations

import csv
import re
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Self

import pandas as pd

from autodistil_search.base.errors import InputError
from autodistil_search.base.files import readable, write_atomically, writing
from autodistil_search.distillation.sampling import Drawn
from autodistil_search.spaces.subnet import DIMENSIONS, Subnet

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TRAINING_CSV = "training.csv"
HELD_OUT_CSV = "held_out.csv"
COLUMNS = ("step", "role", *DIMENSIONS, "loss")
HIDDEN = "hidden_loss"
"""Column of `training.csv` for the losses of last hidden states, if they are trained."""
_SIZE = re.compile(r"[0-9.]+(-[0-9.]+)*")
_LOSS = re.compile(r"-?[0-9]+\.[0-9]+|-?inf|nan|")
"""Formats in which `_Table` writes a size (a number for each layer if layers differ) and a loss."""


class TrainingLog:
    """Writer of `training.csv` and `held_out.csv`.

    `training.csv` has a row for each subnet of each step, `held_out.csv` a row for each measurement on held-out text.
    The column "loss" has relation losses; the column `HIDDEN` of `training.csv` has losses of last hidden states.

    Args:
        folder: Folder of the files; rows after step `first` are dropped.
        first: Number of steps before the training was resumed.
        tensorboard: True to write event files into `folder/tensorboard`, too.

    Use it as a context manager, which closes the files whether or not training ends with an error. Weights do not
    depend on the logs: if a log is damaged, its good rows are kept, with a warning.

    Raises:
        InputError: if `tensorboard` is True and TensorBoard is not installed.
    """

    def __init__(self, folder: Path, first: int, tensorboard: bool = False) -> None:
        self._training = _Table(folder / TRAINING_CSV, (*COLUMNS, HIDDEN), first)
        self._held_out = _Table(folder / HELD_OUT_CSV, COLUMNS, first)
        self._board = _summary_writer(folder, first) if tensorboard else None
        self._since = time.monotonic()
        self._last_held_out = ""

    def write(self, step: int, drawn: Sequence[Drawn], losses: Sequence[float], tokens: int, lr: float) -> str:
        """Write the losses of step number `step` (counted from 1); returns a progress line.

        drawn: subnets of the step.
        losses: losses in the order of `training_step.train_step`.
        tokens: number of tokens in the step.
        lr: learning rate of the step.
        """
        losses, of_hidden = losses[: len(drawn)], losses[len(drawn) :]
        rows = [(entry.role, entry.subnet, loss) for entry, loss in zip(drawn, losses, strict=True)]
        self._training.append(step, rows, of_hidden or [None] * len(rows))
        now = time.monotonic()
        pace, self._since = tokens / max(now - self._since, 1e-9), now
        means = _means((entry.role, loss) for entry, loss in zip(drawn, losses, strict=True))
        if self._board is not None:
            for role, mean in means.items():
                self._board.add_scalar(f"loss/{role}", mean, step)
            if of_hidden:
                self._board.add_scalar("hidden loss", fmean(of_hidden), step)
            self._board.add_scalar("learning rate", lr, step)
            self._board.add_scalar("tokens per second", pace, step)
        parts = [f"{pace:,.0f} tokens/s", "loss " + ", ".join(f"{role} {mean:.3f}" for role, mean in means.items())]
        if of_hidden:
            parts.append(f"hidden {fmean(of_hidden):.3f}")
        return "; ".join([*parts, self._last_held_out] if self._last_held_out else parts)

    def write_held_out(self, step: int, measured: Sequence[tuple[str, Subnet, float]]) -> None:
        """Write the losses `measured` on held-out text after `step` steps: role, sizes and loss of each subnet."""
        self._held_out.append(step, measured)
        means = _means((role, loss) for role, _, loss in measured)
        self._last_held_out = "held out " + ", ".join(f"{role} {mean:.3f}" for role, mean in means.items())
        if self._board is not None:
            for role, mean in means.items():
                self._board.add_scalar(f"held-out loss/{role}", mean, step)
        self._since = time.monotonic()  # the time of measurements does not count in tokens per second

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        if self._board is not None:
            self._board.close()


def read_log(path: Path) -> pd.DataFrame:
    """Return the rows of a `training.csv` or `held_out.csv`; damaged rows are left out with a warning.

    Raises:
        InputError: if this user cannot read the file.
    """
    columns, rows = _good_rows(path)
    numbers = {"step": int, "loss": float} | ({HIDDEN: float} if HIDDEN in columns else {})
    table = pd.DataFrame(rows, columns=list(columns)).replace({"loss": "", HIDDEN: ""}, "nan")
    return table.astype(numbers)


def _good_rows(path: Path) -> tuple[Sequence[str], list[list[str]]]:
    """Return the columns of a log and its valid rows; a warning counts the damaged lines.

    A last line without a line break is left by a killed process, and does not count as damage.
    """
    with readable(path):
        *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    cells = [line.rstrip("\r").split(",") for line in lines]
    every = (*COLUMNS, HIDDEN)
    head = tuple(cells[0]) if cells else COLUMNS
    known = head in (COLUMNS, every)
    columns = head if known else max((COLUMNS, every), key=lambda names: sum(len(row) == len(names) for row in cells))
    rows = [row for row in cells[1:] if len(row) == len(columns) and _is_good(row)]
    if damaged := max(len(cells) - len(rows) - known, 0):
        warnings.warn(f"{damaged} lines of {path} are damaged and left out; weights do not depend on it", stacklevel=3)
    return columns, rows


def _is_good(row: Sequence[str]) -> bool:
    step, role, *sizes = row[: len(COLUMNS) - 1]
    losses = row[len(COLUMNS) - 1 :]
    whole = step.isascii() and step.isdigit() and role.isascii() and role.isalpha()
    return whole and all(map(_SIZE.fullmatch, sizes)) and all(map(_LOSS.fullmatch, losses))


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
    """CSV file to which rows are only appended. Its columns are `COLUMNS`, in `training.csv` with `HIDDEN`."""

    def __init__(self, path: Path, columns: Sequence[str], first: int) -> None:
        self._path = path
        kept: list[list[str]] = []
        if path.exists():
            kept = [row for row in _good_rows(path)[1] if len(row) == len(columns) and int(row[0]) <= first]
        write_atomically(path, lambda new: self._add(new, [columns, *kept]))

    def append(
        self, step: int, rows: Sequence[tuple[str, Subnet, float]], more: Sequence[float | None] | None = None
    ) -> None:
        """Append `rows`.

        more: value of the column `HIDDEN` for each row, None for an empty cell; None for a table without that column.
        """
        lines: list[tuple[Any, ...]] = []
        for role, subnet, loss in rows:
            sizes = subnet.to_row()
            lines.append((step, role, *(sizes[key] for key in DIMENSIONS), f"{loss:.6f}"))
        if more is not None:
            lines = [(*line, "" if loss is None else f"{loss:.6f}") for line, loss in zip(lines, more, strict=True)]
        with writing(self._path):
            self._add(self._path, lines)

    @staticmethod
    def _add(path: Path, lines: Sequence[Sequence[Any]]) -> None:
        with path.open("a", newline="") as file:
            csv.writer(file).writerows(lines)
