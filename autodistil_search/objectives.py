"""What a search may minimise: every objective has a name, a unit and a direction, stated once.

On the command line `acc` means the accuracy proxy. Files, axes and tables call it by what was measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from autodistil_search.cost import FLOPS_SEQ_LEN, Vocabulary, flops, params
from autodistil_search.errors import InputError
from autodistil_search.space import SearchSpace, Subnet


@dataclass(frozen=True)
class Objective:
    """One column of the results.

    cost: how to compute it from the sizes alone, exact and free; None if it must be measured on the SuperLM.
    """

    name: str
    label: str
    unit: str
    direction: Literal["minimize", "maximize"]
    cost: Callable[[Subnet, Vocabulary], int] | None = None

    def minimised(self, value: float) -> float:
        """`value` with its sign such that lower is better; its own inverse."""
        return value if self.direction == "minimize" else -value


RELATION_LOSS = Objective("relation_loss", "held-out relation loss", "nats, sum of QQ, KK and VV", "minimize")
RELATION_MSE = Objective("relation_mse", "held-out relation MSE", "squared scores, sum of QQ, KK and VV", "minimize")
FLOPS = Objective(
    "flops",
    "FLOPs",
    f"multiply-adds, {FLOPS_SEQ_LEN} tokens, batch 1",
    "minimize",
    lambda subnet, _: flops(subnet),
)
PARAMS = Objective("params", "parameters", "parameters, embeddings included", "minimize", params)

PROXIES = {"kl": RELATION_LOSS, "mse": RELATION_MSE}
"""What `acc` stands for, by the distillation loss of the run."""


def parse_objectives(text: str, loss: str = "kl") -> list[Objective]:
    """The objectives of a comma-separated list, in its order.

    loss: the distillation loss of the run, which says what `acc` measures.

    Raises:
        InputError: for an unknown or repeated name; it lists those allowed.
    """
    known = {"acc": PROXIES[loss], "flops": FLOPS, "params": PARAMS}
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise InputError(f"objective {name!r}; allowed: {', '.join(known)}, separated by commas")
    if not names or len(set(names)) < len(names):
        raise InputError(f"objectives {text!r}; allowed: one or more of {', '.join(known)}, each once")
    return [known[name] for name in names]


def parse_amount(text: str | float | None, flag: str) -> float | None:
    """A positive number, with K, M or G behind it for thousands, millions and thousands of millions.

    Raises:
        InputError: for anything else; it names `flag`.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)(?:[eE]\+?(\d+))?\s*([KMGkmg]?)\s*", str(text))
    if match is None:
        raise InputError(f"{flag} {text!r}; allowed: a number above 0 such as 300M, 1.5G or 8000000")
    number, exponent, suffix = match.groups()
    amount = float(f"{number}e{exponent or 0}") * {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}[suffix.upper()]
    if not 0 < amount < float("inf"):
        raise InputError(f"{flag} {text!r}; allowed: a number above 0 such as 300M, 1.5G or 8000000")
    return amount


@dataclass(frozen=True)
class Bound:
    """An upper bound on an objective that is computed from sizes alone."""

    objective: Objective
    upper: float

    def admits(self, subnet: Subnet, vocabulary: Vocabulary) -> bool:
        """Whether `subnet` keeps the bound."""
        assert self.objective.cost is not None
        return self.objective.cost(subnet, vocabulary) <= self.upper


def check_reachable(bounds: list[Bound], space: SearchSpace, vocabulary: Vocabulary) -> None:
    """Check that some subnet of `space` keeps all `bounds`; each cost is lowest for the smallest subnet.

    Raises:
        InputError: naming the bound and what the smallest subnet costs.
    """
    for bound in bounds:
        assert bound.objective.cost is not None
        least = bound.objective.cost(space.smallest, vocabulary)
        if least > bound.upper:
            raise InputError(
                f"--max-{bound.objective.name} {bound.upper:,.0f} cannot be reached in space {space.name!r}: "
                f"its smallest subnet ({space.smallest}) costs {least:,} {bound.objective.name}"
            )
