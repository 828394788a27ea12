"""Objectives and constraints of a search. Each objective states its name, unit and direction once.

On the command line `acc` means the accuracy proxy. Files, axes and tables use the name of the measured quantity.
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
from autodistil_search.base.user_input import meant, parse_number, quoted
from autodistil_search.base.weighted_names import parse_relations
from autodistil_search.spaces.cost import FLOPS_SEQ_LEN, Vocabulary, flops, params, params_non_embedding
from autodistil_search.spaces.subnet import DIMENSIONS, Subnet

if TYPE_CHECKING:
    from torch import nn

    from autodistil_search.nas.hardware import Load
    from autodistil_search.nas.latency_predictor import Predictor

Direction = Literal["minimize", "maximize"]
Measured = float | Mapping[str, float]
"""A number, or numbers by column; one column has the objective's own name."""


@dataclass(frozen=True)
class Objective:
    """A quantity to minimise or maximise, and one column of the results.

    Attributes:
        name: Name of the column, and of the objective on the command line.
        label: Name in figures and tables.
        unit: Unit of the values.
        direction: "minimize" or "maximize".
        cost: Function that computes the value from the sizes alone, exactly and without a measurement.
        measure: Function that measures the value on an extracted student.
        is_proxy: True for the accuracy proxy (`acc`), which needs a trained SuperLM; all other objectives are costs.
    """

    name: str
    label: str
    unit: str
    direction: Direction
    cost: Callable[[Subnet, Vocabulary], float] | None = None
    measure: Callable[[nn.Module], Measured] | None = None
    is_proxy: bool = False

    def minimised(self, value: float) -> float:
        """Return `value` with a sign such that lower is better. The function is its own inverse."""
        return value if self.direction == "minimize" else -value

    def free(self, vocabulary: Vocabulary) -> Callable[[Subnet], float] | None:
        """Return the minimised value as a function of the sizes alone; None if it must be measured."""
        if self.cost is None:
            return None
        return lambda subnet: self.minimised(self.cost_of(subnet, vocabulary))

    def cost_of(self, subnet: Subnet, vocabulary: Vocabulary) -> float:
        """Return the result of `cost` for a subnet, checked.

        Raises:
            InputError: if `cost` fails or returns anything but a finite number; the message names objective and subnet.
        """
        assert self.cost is not None
        with guarded(f"objective {self.name!r} failed on subnet {subnet}"):
            value = self.cost(subnet, vocabulary)
        return number(value, f"objective {self.name!r}", subnet)

    def measured_on(self, student: nn.Module, subnet: Subnet) -> dict[str, float]:
        """Return the result of `measure` for the student of a subnet, by column, checked.

        Raises:
            InputError: if `measure` fails, no column has the objective's name, or a value is not a finite number.
        """
        assert self.measure is not None
        with guarded(f"objective {self.name!r} failed on subnet {subnet}"):
            result = self.measure(student)
            values: dict[Any, object] = dict(result) if isinstance(result, Mapping) else {self.name: result}
        if self.name not in values or not all(map(is_name, values)):
            raise InputError(
                f"objective {self.name!r} measured {shown(values)} for subnet {subnet}; allowed: a number, or numbers "
                f"by column that include {self.name!r}"
            )
        return {column: number(value, f"objective {column!r}", subnet) for column, value in values.items()}


def number(value: object, what: str, subnet: Subnet | str) -> float:
    """Return a number from a plug-in, a worker or this package, as JSON and pandas hold it.

    Scalars of numpy and torch become Python numbers. An integer that a float holds exactly stays an integer.

    Args:
        value: Value to check.
        what: Source of the value, for the message.
        subnet: Subnet that the value describes.

    Raises:
        InputError: for anything but a finite real number; the message states the value and its type.
    """
    plain: Any = value
    with guarded(f"{what} gave a {type(value).__name__} for subnet {subnet} that cannot be read"):
        if getattr(plain, "ndim", None) == 0 and hasattr(plain, "item"):  # a scalar of numpy or torch, on any device
            plain = plain.item()
    if isinstance(plain, Real) and not isinstance(plain, bool):
        with suppress(OverflowError, ValueError, TypeError):
            real = float(plain)
            if abs(real) <= _MOST:  # False for NaN
                return int(plain) if isinstance(plain, Integral) and abs(real) <= _EXACT else real
    raise InputError(f"{what} gave {shown(value)} for subnet {subnet}; allowed: a finite number, at most {_MOST:g}")


def answer(found: Mapping[str, object], columns: Iterable[Objective], subnet: Subnet) -> dict[str, float]:
    """Return the checked measurements of a subnet from a plug-in or another process.

    Args:
        found: Measured values, by column name.
        columns: Objectives that must be among the columns.
        subnet: Measured subnet, for the message.

    Raises:
        InputError: if a column is missing, or a value is not a finite number.
    """
    if not isinstance(found, Mapping) or (lacking := [column.name for column in columns if column.name not in found]):
        missing = "" if not isinstance(found, Mapping) else f", without {', '.join(lacking)}"
        raise InputError(f"{shown(found)} was measured for subnet {subnet}{missing}; allowed: numbers by objective")
    return {str(name): number(value, f"objective {name!r}", subnet) for name, value in found.items()}


def checked_objective(found: object, name: str, taken: Collection[str], is_proxy: bool = False) -> Objective:
    """Return a plug-in after checking that it is an objective with a valid name and direction.

    Args:
        found: Plug-in to check.
        name: Name under which it was requested.
        taken: Names of columns that it must not have.
        is_proxy: True if the objective of a proxy is expected.

    Raises:
        InputError: if the plug-in is anything else, or has the name of an existing column.
    """
    if not isinstance(found, Objective):
        raise InputError(f"objective {name!r} is {shown(found)}; allowed: an Objective")
    if not is_name(found.name) or found.name in taken:
        raise InputError(
            f"objective {name!r} has the column {shown(found.name)}; allowed: {plugins.NAMES}; but none of "
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
"""Greatest integer up to which floats hold every integer exactly."""
_MOST = 1e60
"""Greatest absolute value allowed, so that products of a few values stay finite."""

_PROXIES = {
    "kl": Objective("relation_loss", "held-out relation loss", "nats", "minimize", is_proxy=True),
    "mse": Objective("relation_mse", "held-out relation MSE", "squared scores", "minimize", is_proxy=True),
}


RELATION, HIDDEN, SIMILARITY, CKA, COMBINED = "relation", "hidden", "similarity", "cka", "combined"
LABEL_FREE = (RELATION, HIDDEN, SIMILARITY, CKA, COMBINED)
"""Names for `--proxy` of the proxies that need no labels."""
DEFAULT_PROXY = RELATION
"""Default of `--proxy`, one of `LABEL_FREE`."""
COSINE, PROBE, TASK = "cosine:", "probe:", "task:"
"""Prefixes of the proxies of a labelled task for `--proxy`, before the name of the task."""


def proxy_objective(loss: str, relations: str) -> Objective:
    """Return the objective of the proxy `relation`: the run's distillation loss on held-out text.

    The unit of the objective names the relations.

    Args:
        loss: One of `relation_loss.LOSSES`.
        relations: Relations with weights; see `weighted_names.parse_relations`.
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
SENTENCE_SIMILARITY = Objective(
    "sentence_similarity",
    "held-out sentence similarity",
    "rank correlation with the teacher's",
    "maximize",
    is_proxy=True,
)
KERNEL_ALIGNMENT = Objective(
    "cka",
    "held-out kernel alignment",
    "linear CKA with the teacher's last hidden states, without bias",
    "maximize",
    is_proxy=True,
)
COMBINED_LOSS = Objective(
    "combined_loss",
    "combined held-out loss",
    "mean of shares of relation loss, hidden-state loss and sentence similarity",
    "minimize",
    is_proxy=True,
)
OF_STATES = (HIDDEN_LOSS, SENTENCE_SIMILARITY, KERNEL_ALIGNMENT, COMBINED_LOSS)
"""Objectives of the proxies that look at the last hidden states."""
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
"""Costs that follow from the sizes alone."""


MEASURED = ("latency", "memory", "throughput")
"""Costs that are measured on a student, on this machine."""


PREDICTED_LATENCY = "predicted_latency"
NAMES = ("acc", *(cost.name for cost in COSTS), *MEASURED, PREDICTED_LATENCY)
"""Names of the built-in objectives on the command line."""


RESERVED = ("space", *DIMENSIONS, "head_dim", "knee", "run", "band", "pick", "name", "how", "source", "weights")
"""Columns of the tables that no objective can have."""


def measured_costs(single: Load, many: Load) -> list[Objective]:
    """Return the objectives `MEASURED`: latency and memory under the load `single`, throughput under `many`."""
    from autodistil_search.nas import hardware  # imports torch, which the command line loads only when needed

    latency = partial(hardware.latency, load=single)
    memory = partial(hardware.peak_bytes, load=single)
    throughput = partial(hardware.throughput, load=many)
    return [
        Objective("latency", "latency", f"ms, {single.words}", "minimize", measure=latency),
        Objective("memory", "peak memory", f"bytes, {single.words}", "minimize", measure=memory),
        Objective("throughput", "throughput", f"sequences/s, {many.words}", "maximize", measure=throughput),
    ]


def predicted_latency(predictor: Predictor, single: Load) -> Objective:
    """Return the predicted latency under the load `single`, an objective computed from the sizes."""
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
    """Return the values of all `columns` except proxies, computed from the sizes or measured.

    Args:
        columns: Objectives to compute or measure.
        subnet: Subnet of the values.
        vocabulary: Vocabulary of the student.
        student: Function that makes the student. It is called for each measurement, which may change its student.

    Raises:
        InputError: if an objective fails, returns anything but finite numbers, or measures columns of another.
    """
    values: dict[str, float] = {}
    for column in columns:
        if column.cost is not None:
            values[column.name] = column.cost_of(subnet, vocabulary)
        elif column.measure is not None:
            new = column.measured_on(student(), subnet)
            others = {*RESERVED, *(other.name for other in columns if other != column)}
            if clash := sorted(others & {*new}):
                raise InputError(
                    f"objective {column.name!r} measured {', '.join(clash)} for subnet {subnet}; allowed: columns of "
                    "its own"
                )
            values |= new
    return values


def parse_objectives(text: str, known: Mapping[str, Objective], others: Iterable[str] = ()) -> list[Objective]:
    """Return the objectives of a comma-separated list, in its order.

    Args:
        text: Names of objectives, separated by commas.
        known: Objectives by name.
        others: Further names for the list of allowed ones in the message.

    Raises:
        InputError: for an unknown or repeated name; the message lists the allowed names.
    """
    return [known[name] for name in objective_names(text, known, others)]


def objective_names(text: str, known: Collection[str], others: Iterable[str] = ()) -> list[str]:
    """Return the names in a comma-separated list of objectives; see `parse_objectives`."""
    allowed = ", ".join(dict.fromkeys((*known, *others)))
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            near = meant(name, (*known, *others))
            raise InputError(f"objective {name!r}{near}; allowed: {allowed}, separated by commas")
    if not names or len(set(names)) < len(names):
        raise InputError(f"objectives {text!r}; allowed: one or more of {allowed}, each once")
    return names


_SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}


def parse_amount(text: str | float | None, flag: str) -> float | None:
    """Return a positive number from text such as 300M; None for None.

    The suffixes K, M, G (or B) and T stand for 1e3, 1e6, 1e9 and 1e12.

    Raises:
        InputError: for anything else; the message names `flag`.
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
        """Return the excess of `value` over the bound, as a share of the bound; 0 or negative if the bound is kept."""
        over = value - self.bound if self.upper else self.bound - value
        return over / self.bound


def parse_constraint(
    text: str, known: Mapping[str, Objective], flag: str = "--constraint", others: Iterable[str] = ()
) -> Constraint:
    """Return the constraint in a text such as `params<=8M` or `throughput>=100`.

    Args:
        text: Name of an objective, `<=` or `>=`, and a bound.
        known: Objectives by name.
        flag: Name of the flag, for the message.
        others: Further names for the list of allowed ones in the message.

    Raises:
        InputError: for anything else; the message names `flag` and lists the allowed objectives.
    """
    name, relation, bound = constraint_parts(text, known, flag, others)
    amount = parse_amount(bound, f"{flag} {name}{relation}")
    assert amount is not None
    return Constraint(known[name], amount, relation == "<=")


def constraint_parts(
    text: str, known: Collection[str], flag: str = "--constraint", others: Iterable[str] = ()
) -> tuple[str, str, str]:
    """Return the name, the relation and the bound in a text such as `params<=8M`; see `parse_constraint`."""
    match = re.fullmatch(r"\s*([^\s<>=]+)\s*(<=|>=)\s*([^<>=]*)", text)
    if match is None or match[1] not in known:
        names = ", ".join(dict.fromkeys((*known, *others)))
        near = "" if match is None else meant(match[1], (*known, *others))
        raise InputError(f"{flag} {text!r}{near}; allowed: NAME<=AMOUNT or NAME>=AMOUNT, NAME one of {names}")
    return match[1], match[2], match[3]


def check_reachable(constraints: Sequence[Constraint], space: str, reached: Mapping[str, Sequence[float]]) -> None:
    """Check that at least one known value of a space keeps each constraint.

    Args:
        constraints: Constraints to check.
        space: Name of the space, for the message.
        reached: Values in the space, by objective name; a constraint on any other objective is not checked.

    Raises:
        InputError: if a constraint cannot be kept; the message names the constraint and the range of values.
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
