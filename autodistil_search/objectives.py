"""What a search may minimise: every objective has a name, a unit and a direction, stated once.

On the command line `acc` means the accuracy proxy. Files, axes and tables call it by what was measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from autodistil_search.cost import FLOPS_SEQ_LEN, Vocabulary, flops, params
from autodistil_search.errors import InputError
from autodistil_search.space import SearchSpace, Subnet
from autodistil_search.weights import parse_relations


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


_PROXIES = {
    "kl": Objective("relation_loss", "held-out relation loss", "nats", "minimize"),
    "mse": Objective("relation_mse", "held-out relation MSE", "squared scores", "minimize"),
}


def proxy_objective(loss: str, relations: str) -> Objective:
    """What `acc` stands for: the distillation loss of the run, on held-out text; its unit says of which relations.

    loss: one of `relations.LOSSES`; relations: see `weights.parse_relations`.
    """
    words = [
        name.upper() if weight == 1 else f"{weight:g} {name.upper()}" for name, weight in parse_relations(relations)
    ]
    parts = words[0] if len(words) == 1 else f"sum of {', '.join(words[:-1])} and {words[-1]}"
    return replace(_PROXIES[loss], unit=f"{_PROXIES[loss].unit}, {parts}")


RELATION_LOSS = proxy_objective("kl", "qq,kk,vv")
RELATION_MSE = proxy_objective("mse", "qq,kk,vv")
FLOPS = Objective(
    "flops",
    "FLOPs",
    f"multiply-adds, {FLOPS_SEQ_LEN} tokens, batch 1",
    "minimize",
    lambda subnet, _: flops(subnet),
)
PARAMS = Objective("params", "parameters", "parameters, embeddings included", "minimize", params)

KNOWN = (RELATION_LOSS, RELATION_MSE, FLOPS, PARAMS)
"""Every column that a run can have."""


def parse_objectives(text: str, loss: str = "kl", relations: str = "qq,kk,vv") -> list[Objective]:
    """The objectives of a comma-separated list, in its order.

    loss, relations: those of the distillation, which say what `acc` measures.

    Raises:
        InputError: for an unknown or repeated name; it lists those allowed.
    """
    known = {"acc": proxy_objective(loss, relations), "flops": FLOPS, "params": PARAMS}
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise InputError(f"objective {name!r}; allowed: {', '.join(known)}, separated by commas")
    if not names or len(set(names)) < len(names):
        raise InputError(f"objectives {text!r}; allowed: one or more of {', '.join(known)}, each once")
    return [known[name] for name in names]


_SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}


def parse_amount(text: str | float | None, flag: str) -> float | None:
    """A positive number, with K, M, G (or B) or T behind it for 1e3, 1e6, 1e9 or 1e12.

    Raises:
        InputError: for anything else; it names `flag`.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)(?:[eE]\+?(\d+))?\s*([KMGBTkmgbt]?)\s*", str(text))
    if match is None:
        raise InputError(f"{flag} {text!r}; allowed: a number above 0 such as 300M, 1.5G or 8000000")
    number, exponent, suffix = match.groups()
    amount = float(f"{number}e{exponent or 0}") * _SUFFIXES[suffix.upper()]
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
