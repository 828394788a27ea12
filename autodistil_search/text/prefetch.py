"""Rows of a training step that are read while the step before is computed."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from torch import Tensor

from autodistil_search.text.blocks import TrainingText
from autodistil_search.text.sources import State


class _Read(NamedTuple):
    """Rows that are being read, the step and the state of the text before it."""

    step: int
    state: State
    rows: Future[Tensor]


class PrefetchedRows:
    """Rows of a training text, read one step ahead in a thread.

    Args:
        text: Training text. No one else may read it until `close`.
        batch_size: Rows of a batch over all processes.
        seed: Seed of the order.
        share: Rows of this process.
        steps: Number of training steps; nothing is read ahead of the last.
        pin: True to return rows in pinned memory, from which they are copied to a GPU without waiting.
    """

    def __init__(
        self, text: TrainingText, batch_size: int, seed: int, share: slice, steps: int, pin: bool = False
    ) -> None:
        self._text, self._arguments = text, (batch_size, seed, share)
        self._steps, self._pin = steps, pin
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self._ahead: _Read | None = None

    def rows(self, step: int) -> Tensor:
        """Return this process's rows of a step, `(n, seq_len)` token ids, and begin to read those of the next step.

        Raises:
            InputError: for text that cannot be read.
        """
        ahead = self._ahead if self._ahead is not None and self._ahead.step == step else self._begin(step)
        rows = ahead.rows.result()
        self._ahead = self._begin(step + 1) if step + 1 < self._steps else None
        return rows

    def _begin(self, step: int) -> _Read:
        return _Read(step, self._text.state(), self._thread.submit(self._read, step))

    def _read(self, step: int) -> Tensor:
        rows = self._text.rows(step, *self._arguments)
        return rows.pin_memory() if self._pin else rows

    def state(self) -> State:
        """Return the state of the text before the next step."""
        return self._text.state() if self._ahead is None else self._ahead.state

    def restore(self, state: State) -> None:
        """Continue from the position of a `state()`."""
        self._drop()
        self._text.restore(state)

    def _drop(self) -> None:
        """Wait for rows that are read ahead, and forget them."""
        if self._ahead is not None:
            self._ahead.rows.exception()
        self._ahead = None

    def close(self) -> None:
        """End the thread."""
        self._drop()
        self._thread.shutdown()
