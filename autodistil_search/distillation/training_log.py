"""Logs of a training run: two CSV files, the metrics for trackers, and a progress line for the user."""

from __future__ import annotations

import csv
import itertools
import os
import re
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from statistics import fmean
from typing import Any, BinaryIO, Self

import pandas as pd

from autodistil_search.base.files import readable, write_atomically, writing
from autodistil_search.base.tracking import Part
from autodistil_search.distillation.sampling import Drawn
from autodistil_search.spaces.subnet import DIMENSIONS, Subnet

TRAINING_CSV = "training.csv"
HELD_OUT_CSV = "held_out.csv"
COLUMNS = ("step", "role", *DIMENSIONS, "loss")
HIDDEN = "hidden_loss"
"""Column of `training.csv` for the losses of last hidden states, if they are trained."""
_SIZE = r"[0-9.]+(?:-[0-9.]+)*"
_LOSS = r"(?:-?[0-9]+\.[0-9]+|-?inf|nan|)"
"""Formats in which `_Table` writes a size (a number for each layer if layers differ) and a loss."""
_ROWS = {
    columns: re.compile(",".join(["([0-9]+),[A-Za-z]+", *[_SIZE] * len(DIMENSIONS), *[_LOSS] * losses]))
    for losses, columns in enumerate((COLUMNS, (*COLUMNS, HIDDEN)), start=1)
}
"""Format of a row, with its step as a group, by the columns of the file."""
_WINDOWS, _WINDOW_BYTES = 256, 1 << 14
"""Parts of a long log that are read for a figure: 4 MB, which are more than 50,000 rows."""


class TrainingLog:
    """Writer of `training.csv` and `held_out.csv`.

    `training.csv` has a row for each subnet of each step, `held_out.csv` a row for each measurement on held-out text.
    The column "loss" has relation losses; the column `HIDDEN` of `training.csv` has losses of last hidden states.

    Args:
        folder: Folder of the files; rows after step `first` are dropped.
        first: Number of steps before the training was resumed.
        part: Part of the command whose trackers get the metrics, too; None for no trackers.

    Use it as a context manager, which closes the files whether or not training ends with an error. Weights do not
    depend on the logs: if a log is damaged, its good rows are kept, with a warning.

    Raises:
        InputError: if a tracker cannot be started.
    """

    def __init__(self, folder: Path, first: int, part: Part | None = None) -> None:
        with ExitStack() as opened:
            self._track = None if part is None else opened.enter_context(part.opened(first))
            self._training = opened.enter_context(closing(_Table(folder / TRAINING_CSV, (*COLUMNS, HIDDEN), first)))
            self._held_out = opened.enter_context(closing(_Table(folder / HELD_OUT_CSV, COLUMNS, first)))
            self._opened = opened.pop_all()
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
        if self._track is not None:
            metrics = {f"loss/{role}": mean for role, mean in means.items()}
            metrics |= {"hidden_loss": fmean(of_hidden)} if of_hidden else {}
            self._track.log(step, {**metrics, "learning_rate": lr, "tokens_per_second": pace})
        parts = [f"{pace:,.0f} tokens/s", "loss " + ", ".join(f"{role} {mean:.3f}" for role, mean in means.items())]
        if of_hidden:
            parts.append(f"hidden {fmean(of_hidden):.3f}")
        return "; ".join([*parts, self._last_held_out] if self._last_held_out else parts)

    def write_held_out(self, step: int, measured: Sequence[tuple[str, Subnet, float]]) -> None:
        """Write the losses `measured` on held-out text after `step` steps: role, sizes and loss of each subnet."""
        self._held_out.append(step, measured)
        means = _means((role, loss) for role, _, loss in measured)
        self._last_held_out = "held out " + ", ".join(f"{role} {mean:.3f}" for role, mean in means.items())
        if self._track is not None:
            self._track.log(step, {f"held_out_loss/{role}": mean for role, mean in means.items()})
        self._since = time.monotonic()  # the time of measurements does not count in tokens per second

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        self._opened.close()


def read_log(path: Path) -> pd.DataFrame:
    """Return the rows of a `training.csv` or `held_out.csv`; damaged rows are left out with a warning.

    Of a file beyond 4 MB, only the rows in windows are returned, which are evenly spaced over the file.

    Raises:
        InputError: if this user cannot read the file.
    """
    with readable(path), path.open("rb") as file, _Rows(path, file, thin=True) as rows:
        cells = [line.split(",") for _, line in rows]
        numbers = {"step": int, "loss": float} | ({HIDDEN: float} if HIDDEN in rows.columns else {})
        table = pd.DataFrame(cells, columns=list(rows.columns)).replace({"loss": "", HIDDEN: ""}, "nan")
        return table.astype(numbers)


class _Rows:
    """Valid rows of a log, read one after another, each as its step and its line; a warning counts the damaged lines.

    A last line without a line break is left by a killed process, and does not count as damage.
    """

    def __init__(self, path: Path, file: BinaryIO, thin: bool = False) -> None:
        self._path, self._file = path, file
        self._spans = _windows(os.fstat(file.fileno()).st_size) if thin else [(0, None)]
        first = file.readline()
        header = tuple(_text(first).split(","))
        self._has_header = header in _ROWS or not first
        self.columns = header if header in _ROWS else self._likely_columns([first, *itertools.islice(file, 1000)])
        self._damaged = 0

    @staticmethod
    def _likely_columns(lines: Sequence[bytes]) -> Sequence[str]:
        """Return the columns of a log whose header is damaged, or of an empty log."""
        return max(_ROWS, key=lambda columns: sum(line.count(b",") == len(columns) - 1 for line in lines))

    def __enter__(self) -> Self:
        return self

    def __iter__(self) -> Iterator[tuple[int, str]]:
        pattern = _ROWS[tuple(self.columns)]
        for line in itertools.islice(self._lines(), int(self._has_header), None):
            if row := pattern.fullmatch(line):
                yield int(row[1]), line
            else:
                self._damaged += 1

    def _lines(self) -> Iterator[str]:
        for begin, end in self._spans:
            self._file.seek(begin)
            if begin:
                self._file.readline()  # it begins before the window
            for line in self._file:
                if not line.endswith(b"\n"):
                    break
                yield _text(line)
                if end is not None and self._file.tell() >= end:
                    break

    def __exit__(self, *_: object) -> None:
        if self._damaged:
            warnings.warn(
                f"{self._damaged} lines of {self._path} are damaged and left out; weights do not depend on it",
                stacklevel=3,
            )


def _text(line: bytes) -> str:
    return line.decode("utf-8", errors="replace").rstrip("\r\n")


def _windows(size: int) -> list[tuple[int, int | None]]:
    """Return begin and end of the parts of a log that are read: all of it, or windows from its start to its end."""
    if size <= _WINDOWS * _WINDOW_BYTES:
        return [(0, None)]
    begins = [(size - _WINDOW_BYTES) * number // (_WINDOWS - 1) for number in range(_WINDOWS)]
    return [(begin, begin + _WINDOW_BYTES) for begin in begins]


def _means(losses: Iterable[tuple[str, float]]) -> dict[str, float]:
    by_role: dict[str, list[float]] = {}
    for role, loss in losses:
        by_role.setdefault(role, []).append(loss)
    return {role: fmean(values) for role, values in by_role.items()}


class _Table:
    """CSV file to which rows are only appended. Its columns are `COLUMNS`, in `training.csv` with `HIDDEN`."""

    def __init__(self, path: Path, columns: Sequence[str], first: int) -> None:
        self._path = path
        write_atomically(path, lambda new: self._keep(new, columns, first))
        with writing(path):
            self._file = path.open("a", newline="")

    def _keep(self, new: Path, columns: Sequence[str], first: int) -> None:
        """Write the rows up to the step `first` to a new file, row by row: a long log does not fit into memory."""
        with new.open("w", newline="") as kept:
            csv.writer(kept).writerow(columns)
            if not self._path.exists():
                return
            with readable(self._path), self._path.open("rb") as file, _Rows(self._path, file) as rows:
                if tuple(rows.columns) == tuple(columns):
                    kept.writelines(f"{line}\r\n" for step, line in rows if step <= first)

    def close(self) -> None:
        """Close the file; each step is already written."""
        with suppress(OSError):
            self._file.close()

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
            csv.writer(self._file).writerows(lines)
            self._file.flush()
