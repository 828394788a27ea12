"""Learning rates that every training loop shares."""

from __future__ import annotations

import torch

from autodistil_search.spaces.subnet import Subnet

_RATE_TIMES_SIZE, _HIGHEST_RATE = 0.13, 4e-3
"""Default peak learning rate times layers times the root of the hidden size, and its upper limit; measured in
docs/benchmarks.md."""

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises from 0; it then falls to 0 linearly."""

MAX_GRADIENT_NORM = 1.0
WEIGHT_DECAY = 0.01


def default_learning_rate(subnet: Subnet) -> float:
    """Return the peak learning rate at which a SuperLM with this largest subnet, or a student of this size, trains.

    The rate at which training collapses falls with width and with depth; so does the default, which keeps a factor of 2
    below it. It is rounded to two digits.
    """
    return min(_HIGHEST_RATE, float(f"{_RATE_TIMES_SIZE / (subnet.layers * subnet.hidden_size**0.5):.2g}"))


def set_learning_rate(optimizer: torch.optim.Optimizer, peak: float, step: int, steps: int) -> None:
    """Linear warm-up over the first `WARM_UP` of the steps, then linear decay to 0."""
    warm_up = max(1, round(WARM_UP * steps))
    factor = min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))
    for group in optimizer.param_groups:
        group["lr"] = peak * factor
