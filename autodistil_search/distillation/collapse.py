"""Notice when a model in training loses what it had learnt, from its training losses alone.

Everything follows from the losses and the step's number, so that a resumed training decides as one never stopped.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, Literal, Self, cast

WINDOWS, SHORTEST = 20, 5
"""Windows into which a training is divided, each of at least so many steps; a window's mean loss is judged."""

UNJUDGED = 3
"""Windows before the first that is judged: the warm-up of the learning rate, and one more to recover from it."""

MOST_RETURNS = 2
"""Times that a training goes back; after that, a collapse ends it."""

LOST, STILL_GOOD = 0.5, 0.25
"""A model that lost more than the first share of what it had learnt has collapsed; up to the second, it is good."""

LEAST_LEARNT = 0.1
"""Share of the loss of knowing nothing that must have been learnt before it can be lost: less may be noise."""

Verdict = Literal["open", "good", "collapsed"]


class CollapseError(FloatingPointError):
    """Training lost again what it had learnt, at every learning rate that was tried."""


@dataclass(frozen=True)
class Return:
    """A collapse after `step` steps, from which training went back to `to` steps and a peak learning rate of `lr`."""

    step: int
    to: int
    lr: float
    loss: float
    best: float

    def __str__(self) -> str:
        return (
            f"collapsed at step {self.step} (mean loss {self.loss:.3g}, at best {self.best:.3g} before); went back to "
            f"step {self.to} and on at a peak learning rate of {self.lr:g}"
        )


@dataclass
class LossWatch:
    """The course of a training's loss, by means over windows of steps.

    A model has collapsed if it has lost half of what it had learnt: the distance of its lowest loss from the loss of a
    model that knows nothing.

    Args:
        window: Steps in a window.
        nothing: Loss of a model that knows nothing; None until it is known. Training whose loss has no such value takes
            its first loss.
        best: Lowest of the first loss and the means of windows; None before the first step.
        windows: Windows that have ended.
        losses: Losses of the steps of the window that has not.
        mean: Mean of the last window; None before the first has ended.
        returns: Collapses from which training went back.
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
        """Return the watch of a training of so many steps."""
        return cls(max(SHORTEST, -(-steps // WINDOWS)))

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Return the watch that `to_dict` described."""
        return cls(**{**content, "returns": [Return(**entry) for entry in content["returns"]]})

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON holds it."""
        return asdict(self)

    @property
    def factor(self) -> float:
        """The learning rate as a share of the one asked for: half of it after each return."""
        return float(0.5 ** len(self.returns))

    def see(self, loss: float) -> Verdict:
        """Add the loss of a step; "open" within a window, else whether the model is good or has collapsed.

        A window that is neither is "open", too: training goes on, but its state is not one to go back to.
        """
        if self.best is None:  # before the first update: what the start gave
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
