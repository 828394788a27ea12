"""What a search may minimise or maximise, and bound: every objective has a name, a unit and a direction, stated once.

On the command line `acc` means the accuracy proxy. Files, axes and tables call it by what was measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, get_args

from autodistil_search.base import plugins
from autodistil_search.base.errors import InputError
from autodistil_search.base.plugins import guarded, is_name, shown
from autodistil_search.base.user_input import parse_number, quoted
from autodistil_search.base.weighted_names import parse_relations
from autodistil_search.spaces.cost import FLOPS_SEQ_LEN, Vocabulary, flops, params, params_non_embedding
from autodistil_search.spaces.subnet import DIMENSIONS, Subnet

if TYPE_CHECKING:
    from torch import nn

    from autodistil_search.nas.hardware import Load
    from autodistil_search.nas.latency_predictor import Predictor

Direction = Literal["minimize", "maximize"]
Measured = float | Mapping[str, float]
"""A number, or several by their columns, that of the objective's own name among them."""


@dataclass(frozen=True)
class Objective:
    """One column of the results.

    cost: how to compute it from the sizes alone, exact and free. measure: how to measure it on an extracted student.
    is_proxy: whether it is what `acc` means, which needs a trained SuperLM; all others are costs.
    """

    name: str
    label: str
    unit: str
    direction: Direction
    cost: Callable[[Subnet, Vocabulary], float] | None = None
    measure: Callable[[nn.Module], Measured] | None = None
    is_proxy: bool = False

    def minimised(self, value: float) -> float:
        """`value` with its sign such that lower is better; its own inverse."""
        return value if self.direction == "minimize" else -value

    def free(self, vocabulary: Vocabulary) -> Callable[[Subnet], float] | None:
        """The minimised value as a function of the sizes alone; None if it must be measured."""
        if self.cost is None:
            return None
        return lambda subnet: self.minimised(self.cost_of(subnet, vocabulary))

    def cost_of(self, subnet: Subnet, vocabulary: Vocabulary) -> float:
        """Return what `cost` gives for a subnet, checked.

        Raises:
            InputError: if it fails, or gives anything but a finite number; naming objective and subnet.
        """
        assert self.cost is not None
        with guarded(f"objective {self.name!r} failed on subnet {subnet}"):
            value = self.cost(subnet, vocabulary)
        return number(value, f"objective {self.name!r}", subnet)

    def measured_on(self, student: nn.Module, subnet: Subnet) -> dict[str, float]:
        """Return what `measure` gives for the student of a subnet, by columns, checked.

        Raises:
            InputError: if it fails, its own name is not among the columns, or a value is not a finite number.
        """
        assert self.measure is not None
        with guarded(f"objective {self.name!r} failed on subnet {subnet}"):
            found = self.measure(student)
            values: dict[Any, object] = dict(found) if isinstance(found, Mapping) else {self.name: found}
        if self.name not in values or not all(map(is_name, values)):
            raise InputError(
                f"objective {self.name!r} measured {shown(values)} of subnet {subnet}; allowed: a number, or numbers "
                f"by column, {self.name!r} among them"
            )
        return {column: number(value, f"objective {column!r}", subnet) for column, value in values.items()}


def number(value: object, what: str, subnet: Subnet | str) -> float:
    """Return a number from a plug-in, a worker or our own code, as JSON and pandas hold it.

    Scalars of numpy and torch become Python's numbers. An integer that a float holds exactly stays an integer.

    Args:
        value: What was got.
        what: What gave it, for the message.
        subnet: What it is about.

    Raises:
        InputError: for anything but a finite real number; naming what was got and its type.
    """
    plain: Any = value
    with guarded(f"{what} gave a {type(value).__name__} of subnet {subnet} that cannot be read"):
        if getattr(plain, "ndim", None) == 0 and hasattr(plain, "item"):  # of numpy or torch, whatever its device
            plain = plain.item()
    if isinstance(plain, Real) and not isinstance(plain, bool):
        with suppress(OverflowError, ValueError, TypeError):
            found = float(plain)
            if abs(found) <= _MOST:  # which a NaN is not
                return int(plain) if isinstance(plain, Integral) and abs(found) <= _EXACT else found
    raise InputError(f"{what} gave {shown(value)} of subnet {subnet}; allowed: a finite number, at most {_MOST:g}")


def answer(found: Mapping[str, object], columns: Iterable[Objective], subnet: Subnet) -> dict[str, float]:
    """Return what someone else measured of a subnet, checked: all its numbers, those of `columns` among them.

    Raises:
        InputError: if a column is missing, or a value is not a finite number.
    """
    if not isinstance(found, Mapping) or (lacking := [each.name for each in columns if each.name not in found]):
        missing = "" if not isinstance(found, Mapping) else f", without {', '.join(lacking)}"
        raise InputError(f"{shown(found)} was measured of subnet {subnet}{missing}; allowed: numbers by objective")
    return {str(name): number(value, f"objective {name!r}", subnet) for name, value in found.items()}


def checked_objective(found: object, name: str, taken: Collection[str], is_proxy: bool = False) -> Objective:
    """Return a plug-in that is an objective of a name and direction that can be used.

    Args:
        found: The plug-in.
        name: By which it was asked for.
        taken: Names of columns that it must not have.
        is_proxy: Whether a proxy's is wanted.

    Raises:
        InputError: if it is something else, or would stand for a column that is not its own.
    """
    if not isinstance(found, Objective):
        raise InputError(f"objective {name!r} is {shown(found)}; allowed: an Objective")
    if not is_name(found.name) or found.name in taken:
        raise InputError(
            f"objective {name!r} has the column {shown(found.name)}; allowed: {plugins.NAMES}; none of "
            f"{', '.join(sorted(taken))}"
        )
    texts = (found.label, found.unit)
    if not all(isinstance(text, str) for text in texts) or found.direction not in get_args(Direction):
        raise InputError(
            f"objective {name!r} has label, unit and direction {shown((*texts, found.direction))}; allowed: texts, and "
            f"{' or '.join(get_args(Direction))}"
        )
    ways = [way for way in ("cost", "measure") if getattr(found, way) is not None]
    if len(ways) != (0 if is_proxy else 1) or found.is_proxy != is_proxy:
        has = f"is_proxy={found.is_proxy!r:.20} and {' and '.join(ways) or 'neither cost nor measure'}"
        allowed = "is_proxy=True and neither" if is_proxy else "is_proxy=False, and one of cost and measure"
        raise InputError(f"objective {name!r} has {has}; allowed: {allowed}")
    return found


_EXACT = 2**53
"""Integers up to this are the same as floats."""
_MOST = 1e60
"""No number is larger, so that products of a few stay finite."""

_PROXIES = {
    "kl": Objective("relation_loss", "held-out relation loss", "nats", "minimize", is_proxy=True),
    "mse": Objective("relation_mse", "held-out relation MSE", "squared scores", "minimize", is_proxy=True),
}


RELATION = "relation"
"""What `--proxy` calls the relation loss."""
HIDDEN = "hidden"
"""What `--proxy` calls the loss of the last hidden states."""
COSINE, PROBE, TASK = "cosine:", "probe:", "task:"
"""What `--proxy` calls the proxies of a labelled task, before its name."""


def proxy_objective(loss: str, relations: str) -> Objective:
    """What `acc` stands for: the distillation loss of the run, on held-out text; its unit says of which relations.

    loss: one of `relations.LOSSES`; relations: see `weights.parse_relations`.
    """
    words = [
        name.upper() if weight == 1 else f"{weight:g} {name.upper()}" for name, weight in parse_relations(relations)
    ]
    parts = words[0] if len(words) == 1 else f"sum of {', '.join(words[:-1])} and {words[-1]}"
    return replace(_PROXIES[loss], unit=f"{_PROXIES[loss].unit}, {parts}")


HIDDEN_LOSS = Objective(
    "hidden_loss",
    "held-out hidden-state loss",
    "share of the variance of the teacher's",
    "minimize",
    is_proxy=True,
)
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

PARAMS_NON_EMBEDDING = Objective(
    "params_non_embedding",
    "parameters without embeddings",
    "parameters of layers and pooler",
    "minimize",
    lambda subnet, _: params_non_embedding(subnet),
)
SIZE_MB = Objective(
    "size_mb",
    "size",
    "MB (10^6 bytes) of float32 weights",
    "minimize",
    lambda subnet, vocabulary: 4 * params(subnet, vocabulary) / 1e6,
)
COSTS = (FLOPS, PARAMS, PARAMS_NON_EMBEDDING, SIZE_MB)
"""What follows from the sizes alone."""


MEASURED = ("latency", "memory", "throughput")
"""What is measured on a student, on this machine."""


PREDICTED_LATENCY = "predicted_latency"
NAMES = ("acc", *(each.name for each in COSTS), *MEASURED, PREDICTED_LATENCY)
"""What our own objectives are called on the command line."""


RESERVED = ("space", *DIMENSIONS, "head_dim", "knee", "run", "band", "pick", "name", "how", "source", "weights")
"""Columns of the tables that no objective can have."""


def measured_costs(single: Load, many: Load) -> list[Objective]:
    """`MEASURED`: latency and memory under the load `single`, throughput under `many`."""
    from autodistil_search.nas import hardware  # torch, which the command line loads only when it must

    latency = partial(hardware.latency, load=single)
    memory = partial(hardware.peak_bytes, load=single)
    throughput = partial(hardware.throughput, load=many)
    return [
        Objective("latency", "latency", f"ms, {single.words}", "minimize", measure=latency),
        Objective("memory", "peak memory", f"bytes, {single.words}", "minimize", measure=memory),
        Objective("throughput", "throughput", f"sequences/s, {many.words}", "maximize", measure=throughput),
    ]


def predicted_latency(predictor: Predictor, single: Load) -> Objective:
    """Latency under the load `single` as a function of the sizes: a prediction, and named as such."""
    return Objective(
        PREDICTED_LATENCY,
        "predicted latency",
        f"ms, {single.words}",
        "minimize",
        cost=lambda subnet, _: predictor.predict(subnet),
    )


def costs(
    columns: Sequence[Objective], subnet: Subnet, vocabulary: Vocabulary, student: Callable[[], nn.Module]
) -> dict[str, float]:
    """Return all of `columns` but a proxy: computed from the sizes, or measured.

    student: makes the student; called for each measurement, as one may leave its student changed.
    """
    found: dict[str, float] = {}
    for column in columns:
        if column.cost is not None:
            found[column.name] = column.cost_of(subnet, vocabulary)
        elif column.measure is not None:
            new = column.measured_on(student(), subnet)
            others = {*RESERVED, *(other.name for other in columns if other != column)}
            if clash := sorted(others & {*new}):
                raise InputError(
                    f"objective {column.name!r} measured {', '.join(clash)} of subnet {subnet}; allowed: columns of "
                    "its own"
                )
            found |= new
    return found


def parse_objectives(text: str, known: Mapping[str, Objective], others: Iterable[str] = ()) -> list[Objective]:
    """The objectives of a comma-separated list, in its order.

    others: names that are allowed, too, and were not asked for.

    Raises:
        InputError: for an unknown or repeated name; it lists those allowed.
    """
    allowed = ", ".join(dict.fromkeys((*known, *others)))
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise InputError(f"objective {name!r}; allowed: {allowed}, separated by commas")
    if not names or len(set(names)) < len(names):
        raise InputError(f"objectives {text!r}; allowed: one or more of {allowed}, each once")
    return [known[name] for name in names]


_SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}


def parse_amount(text: str | float | None, flag: str) -> float | None:
    """A positive number, with K, M, G (or B) or T behind it for 1e3, 1e6, 1e9 or 1e12.

    Raises:
        InputError: for anything else; it names `flag`.
    """
    if text is None:
        return None
    words = str(text).strip()
    digits = words.rstrip("KMGBTkmgbt")
    amount = (0.0 if "-" in digits else parse_number(digits) or 0.0) * _SUFFIXES.get(words[len(digits) :].upper(), 0.0)
    if not 0 < amount < float("inf"):
        raise InputError(f"{flag} {quoted(text)}; allowed: a number above 0 such as 300M, 1.5G or 8000000")
    return amount


@dataclass(frozen=True)
class Constraint:
    """A bound on an objective: `value <= bound` if `upper`, else `value >= bound`."""

    objective: Objective
    bound: float
    upper: bool

    def __str__(self) -> str:
        return f"{self.objective.name}{'<=' if self.upper else '>='}{self.bound:g}"

    def excess(self, value: float) -> float:
        """By how much `value` breaks the bound, as a share of it; negative or 0 where it is kept."""
        over = value - self.bound if self.upper else self.bound - value
        return over / self.bound


def parse_constraint(
    text: str, known: Mapping[str, Objective], flag: str = "--constraint", others: Iterable[str] = ()
) -> Constraint:
    """A constraint such as `params<=8M` or `throughput>=100`.

    others: names that are allowed, too, and were not asked for.

    Raises:
        InputError: for anything else; it names `flag` and lists the objectives allowed.
    """
    match = re.fullmatch(r"\s*([^\s<>=]+)\s*(<=|>=)\s*([^<>=]*)", text)
    if match is None or match[1] not in known:
        names = ", ".join(dict.fromkeys((*known, *others)))
        raise InputError(f"{flag} {text!r}; allowed: NAME<=AMOUNT or NAME>=AMOUNT, NAME one of {names}")
    amount = parse_amount(match[3], f"{flag} {match[1]}{match[2]}")
    assert amount is not None
    return Constraint(known[match[1]], amount, match[2] == "<=")


def check_reachable(constraints: Sequence[Constraint], space: str, reached: Mapping[str, Sequence[float]]) -> None:
    """Check that each constraint is kept somewhere between the smallest and the largest subnet of a space.

    reached: by objective, its values there; of others nothing is known.

    Raises:
        InputError: naming the constraint and the range.
    """
    for constraint in constraints:
        values = reached.get(constraint.objective.name)
        if values is not None and all(constraint.excess(value) > 0 for value in values):
            name = constraint.objective.name
            low, high = min(values), max(values)
            raise InputError(
                f"--constraint {constraint} cannot be kept in space {space!r}: its {name} goes from {low:,.4g} to "
                f"{high:,.4g} ({constraint.objective.unit})"
            )
