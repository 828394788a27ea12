"""Rows that are read one step ahead: the same rows, the state before them, and errors at their own step."""

from typing import Any

import pytest
import torch
from torch import Tensor

from autodistil_search.base.errors import InputError
from autodistil_search.text.prefetch import PrefetchedRows


class Counting:
    """Text whose rows are the number of its step, which it gives in order only; `broken` cannot be read."""

    def __init__(self, broken: int | None = None) -> None:
        self.read, self.broken = 0, broken

    def rows(self, step: int, batch_size: int, seed: int, share: slice) -> Tensor:
        assert step == self.read
        if step == self.broken:
            raise InputError("unreadable")
        self.read += 1
        return torch.full((batch_size, seed), step)[share]

    def state(self) -> dict[str, Any]:
        return {"step": self.read}

    def restore(self, state: dict[str, Any]) -> None:
        self.read = state["step"]


def prefetched(text: Counting, steps: int = 5) -> PrefetchedRows:
    return PrefetchedRows(text, 4, 3, slice(0, 2), steps)


def test_rows_are_read_one_step_ahead_and_the_state_is_that_before_them() -> None:
    text = Counting()
    rows = prefetched(text)
    for step in range(5):
        assert rows.rows(step).equal(torch.full((2, 3), step))
        assert rows.state() == {"step": step + 1}
    assert text.read == 5  # nothing is read after the last step
    rows.close()


def test_training_goes_on_from_a_restored_state() -> None:
    rows = prefetched(Counting())
    rows.rows(0)
    state = rows.state()
    rows.rows(1)
    rows.rows(2)
    rows.restore(state)
    assert rows.rows(1).equal(torch.full((2, 3), 1))
    assert rows.state() == {"step": 2}
    rows.close()


def test_an_error_is_raised_at_the_step_that_cannot_be_read() -> None:
    rows = prefetched(Counting(broken=1))
    rows.rows(0)
    with pytest.raises(InputError, match="unreadable"):
        rows.rows(1)
    rows.close()
