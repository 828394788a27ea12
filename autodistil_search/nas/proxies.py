"""Accuracy proxies: cheap measurements on a SuperLM in place of a subnet's accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from autodistil_search.base.device import Device
from autodistil_search.base.errors import InputError
from autodistil_search.base.plugins import guarded
from autodistil_search.nas.objectives import Objective, number
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.teachers.teacher import Teacher

HARDLY_LEARNT = 0.95
"""Share of the distance from a proxy's ideal to its reference beyond which a model has learnt next to nothing."""


class Proxy(Protocol):
    """A measurement that scores subnets of a SuperLM, and models on their own."""

    @property
    def reference(self) -> float:
        """Return the score of a model that has learnt nothing, from which the hypervolume is measured."""
        ...

    @property
    def description(self) -> str:
        """Return a description of the measurement, for the reader of a report."""
        ...

    def score(self, model: AutoDistilModel, subnet: Subnet | None = None) -> float:
        """Return the score of `subnet` of `model`, or of the whole model, in the unit of the proxy's objective."""
        ...


HeldOut = Callable[[int], Tensor]
"""Function that returns at most a number of held-out blocks `(N, T)`, evenly spread over the text."""

RELATIONS, STATES = "relations", "states"
"""Values of `ProxyKind.compares`."""


@dataclass(frozen=True)
class ProxyKind:
    """A proxy that `--proxy` can name.

    Attributes:
        objective: Objective that the proxy measures.
        make: Function that makes the proxy from teacher, held-out blocks `(N, T)` and device.
        ideal: Best possible value.
        digest: Digest of the data on which scores depend, other than text and teacher.
        notes: Lines on apparent faults in these data, and on their interpretation.
        rows_per_block: Held-out blocks that the proxy is given for each of `--eval-blocks`.
        compares: Parts of a student that are compared with the teacher's: `RELATIONS` for the self-attention relations
            of the last layer, `STATES` for its outputs. Empty for any other measure. It decides which baselines have
            a comparable score.
    """

    objective: Objective
    make: Callable[[Teacher, Tensor, Device], Proxy]
    ideal: float = 0.0
    digest: str = ""
    notes: tuple[str, ...] = ()
    rows_per_block: int = 1
    compares: str = ""

    def open(self, teacher: Teacher, held_out: HeldOut, blocks: int, device: Device) -> Proxy:
        """Return the proxy, with checks that its scores are finite and not better than `ideal`.

        Args:
            teacher: Teacher of the SuperLM.
            held_out: Function that returns held-out blocks.
            blocks: Number of held-out blocks, as in `--eval-blocks`.
            device: Device and precision to run on.

        Raises:
            InputError: if the proxy cannot be made, or its reference is not worse than `ideal`.
        """
        rows = held_out(blocks * self.rows_per_block)
        return CheckedProxy(self.objective, self.ideal, lambda: self.make(teacher, rows, device))


def share_lacking(value: float, ideal: float, reference: float) -> float:
    """Return a score as a share of the distance from the ideal to the reference: 0 at the ideal, 1 at the reference."""
    return (value - ideal) / (reference - ideal)


_ROUNDING = 1e-5
"""Share of the distance from `ideal` to the reference by which rounding in float32 may exceed `ideal`."""


class CheckedProxy:
    """A proxy whose numbers are all checked by `objectives.number`. Errors name the proxy and the subnet.

    Args:
        objective: Objective that the proxy measures.
        ideal: Best possible value.
        make: Function that makes the proxy.

    Raises:
        InputError: if the proxy cannot be made, or its reference is not worse than `ideal`.
    """

    def __init__(self, objective: Objective, ideal: float, make: Callable[[], Proxy]) -> None:
        self._objective, self._what = objective, f"proxy {objective.name!r}"
        self._ideal = number(ideal, f"the ideal of {self._what}", "any")
        with guarded(f"{self._what} cannot be made"):
            self._proxy = make()
            reference, description = self._proxy.reference, self._proxy.description
        self.reference = number(reference, f"the reference of {self._what}", "any")
        self.description = str(description)
        if not self._worse(self.reference):
            raise InputError(
                f"{self._what} has reference {self.reference:g} and ideal {self._ideal:g}, to "
                f"{self._objective.direction}; allowed: a reference worse than the ideal"
            )

    def _worse(self, value: float) -> float:
        """Return the amount by which a value is worse than `ideal`; 0 if it is not."""
        return max(self._objective.minimised(value) - self._objective.minimised(self._ideal), 0.0)

    def score(self, model: AutoDistilModel, subnet: Subnet | None = None) -> float:
        """Return the score of `subnet` of `model`, or of the whole model.

        Raises:
            InputError: if the proxy fails, or returns anything but a finite number that is not better than `ideal`.
        """
        sizes = subnet or model.config.subnet
        with guarded(f"{self._what} failed on subnet {sizes}"):
            score = self._proxy.score(model) if subnet is None else self._proxy.score(model, subnet)
        value = number(score, self._what, sizes)
        beyond = self._objective.minimised(self._ideal) - self._objective.minimised(value)
        if beyond > _ROUNDING * self._worse(self.reference):
            raise InputError(
                f"{self._what} gave {value:g} for subnet {sizes}, better than its ideal {self._ideal:g}; allowed: a "
                "ProxyKind whose ideal is the best possible value"
            )
        return value
