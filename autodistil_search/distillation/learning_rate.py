"""Learning-rate schedule and optimizer constants of all training loops."""

from __future__ import annotations

import torch

from autodistil_search.spaces.subnet import Subnet

_RATE_TIMES_SIZE, _HIGHEST_RATE = 0.13, 4e-3
"""Product of the default peak learning rate, the layers and the square root of the hidden size, and the upper limit of
the rate. Both are measured in docs/benchmarks.md."""

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises from 0. Afterwards it falls linearly to 0."""

MAX_GRADIENT_NORM = 1.0
WEIGHT_DECAY = 0.01


def default_learning_rate(subnet: Subnet) -> float:
    """Return the default peak learning rate of a SuperLM with this largest subnet, or of a student of this size.

    The rate at which training collapses falls with width and depth. The default falls alike, and stays below it by a
    factor of 2. It is rounded to two digits.
    """
    return min(_HIGHEST_RATE, float(f"{_RATE_TIMES_SIZE / (subnet.layers * subnet.hidden_size**0.5):.2g}"))


def set_learning_rate(optimizer: torch.optim.Optimizer, peak: float, step: int, steps: int) -> None:
    """Set the learning rate of a step: linear warm-up over the first `WARM_UP` of the steps, then linear decay to 0.

    peak: largest learning rate. step: index of the step, from 0. steps: number of all steps.
    """
    warm_up = max(1, round(WARM_UP * steps))
    factor = min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))
    for group in optimizer.param_groups:
        group["lr"] = peak * factor
