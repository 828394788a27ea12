"""Detection of collapses: a model in training loses what it had learnt.

Verdicts depend only on the training losses and the number of the step. So a resumed training makes the same decisions
as an uninterrupted one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, Literal, Self, cast

WINDOWS, SHORTEST = 20, 5
"""Number of windows of a training, and the smallest number of steps of a window. Verdicts are on mean losses."""

UNJUDGED = 3
"""Windows before the first verdict: the warm-up of the learning rate, and one window to recover from it."""

MOST_RETURNS = 2
"""Largest number of returns of a training; the next collapse ends it."""

LOST, STILL_GOOD = 0.5, 0.25
"""Shares of what a model had learnt: a model that lost more than the first has collapsed; up to the second, it is good.
"""

LEAST_LEARNT = 0.1
"""Least share of the uninformed model's loss that must be learnt before a collapse is possible; less may be noise."""

Verdict = Literal["open", "good", "collapsed"]


class CollapseError(FloatingPointError):
    """Training collapsed at every learning rate that was tried."""


@dataclass(frozen=True)
class Return:
    """Collapse after `step` steps, and the return to the checkpoint of step `to`.

    lr: peak learning rate after the return. loss: mean loss of the last window. best: lowest loss before.
    """

    step: int
    to: int
    lr: float
    loss: float
    best: float

    def __str__(self) -> str:
        return (
            f"collapsed at step {self.step} (mean loss {self.loss:.3g}, at best {self.best:.3g} before); went back to "
            f"step {self.to} and continued at a peak learning rate of {self.lr:g}"
        )


@dataclass
class LossWatch:
    """Course of a training's loss, by means over windows of steps.

    A model has collapsed if it has lost half of what it had learnt. What it had learnt is the difference between the
    loss of an uninformed model and its own lowest loss.

    Args:
        window: Number of steps in a window.
        nothing: Loss of an uninformed model; None until it is known. A training whose loss has no such value uses its
            first loss.
        best: Lowest of the first loss and the means of windows; None before the first step.
        windows: Number of complete windows.
        losses: Losses of the steps in the current window.
        mean: Mean of the last complete window; None before the first.
        returns: Collapses after which training returned to a checkpoint.
    """

    window: int
    nothing: float | None = None
    best: float | None = None
    windows: int = 0
    losses: list[float] = field(default_factory=list)
    mean: float | None = None
    returns: list[Return] = field(default_factory=list)

    @classmethod
    def of(cls, steps: int) -> Self:
        """Return the watch of a training of `steps` steps."""
        return cls(max(SHORTEST, -(-steps // WINDOWS)))

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Return the watch from the content of `to_dict`."""
        return cls(**{**content, "returns": [Return(**entry) for entry in content["returns"]]})

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as a dictionary for JSON."""
        return asdict(self)

    @property
    def factor(self) -> float:
        """Return the factor of the learning rate, which each return halves."""
        return float(0.5 ** len(self.returns))

    def see(self, loss: float) -> Verdict:
        """Add the loss of a step; returns the verdict: "open" within a window, else "good", "collapsed" or "open".

        "open" at the end of a window means that training continues, but does not return to this state later.
        """
        if self.best is None:  # before the first update: the loss of the initial weights
            self.best = loss
            self.nothing = loss if self.nothing is None else self.nothing
        self.losses.append(loss)
        if len(self.losses) < self.window:
            return "open"
        self.mean, self.losses = fmean(self.losses), []
        self.windows += 1
        self.best = min(self.best, self.mean)
        learnt, lost = max(0.0, cast(float, self.nothing) - self.best), self.mean - self.best
        least = LEAST_LEARNT * cast(float, self.nothing)
        if self.windows > UNJUDGED and learnt > least and lost > LOST * learnt:
            return "collapsed"
        return "good" if lost <= STILL_GOOD * learnt else "open"
