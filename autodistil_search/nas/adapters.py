"""Adapters for searches of other libraries: a pymoo `Problem` and an Optuna objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from optuna.trial import Trial
from pymoo.core.problem import Problem

from autodistil_search.nas.objectives import Constraint, Objective, answer
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet


class Scored(Protocol):
    """Subnets of one space that can be scored; `open_subnets` returns an implementation."""

    @property
    def space(self) -> SearchSpace:
        """Return the space of the subnets."""
        ...

    @property
    def objectives(self) -> Sequence[Objective]:
        """Return the objectives to minimise or maximise, in order."""
        ...

    @property
    def constraints(self) -> Sequence[Constraint]:
        """Return the constraints to keep."""
        ...

    def evaluate(self, subnet: Subnet) -> Mapping[str, float]:
        """Return the measured values of `subnet`, by objective name."""
        ...

    def evaluate_all(self, subnets: Sequence[Subnet]) -> Sequence[Mapping[str, float]]:
        """Return the measured values of each of `subnets`, by objective name."""
        ...


class SubnetProblem(Problem):  # type: ignore[misc]
    """Subnets of a space as a pymoo problem. Each variable is an integer, the index of the choice in one dimension.

    Objectives are minimised, as pymoo expects: a maximised objective has its sign turned. A value that is not an
    integer, as from an operator without rounding, stands for the nearest choice.

    Args:
        subnets: Subnets to search, from `open_subnets`.
    """

    def __init__(self, subnets: Scored) -> None:
        self.subnets = subnets
        last = np.array(subnets.space.choices) - 1
        super().__init__(
            n_var=len(last),
            n_obj=len(subnets.objectives),
            n_ieq_constr=len(subnets.constraints),
            xl=np.zeros(len(last)),
            xu=last,
            vtype=int,
        )

    def subnet(self, x: NDArray[Any]) -> Subnet:
        """Return the subnet that a row of a result's `X` describes."""
        return self.subnets.space.decode(tuple(int(index) for index in np.rint(x)))

    def _evaluate(self, x: NDArray[Any], out: dict[str, Any], *_: Any, **__: Any) -> None:
        drawn = [self.subnet(genome) for genome in x]
        rows = [
            answer(measured, _columns(self.subnets), subnet)
            for subnet, measured in zip(drawn, self.subnets.evaluate_all(drawn), strict=True)
        ]
        out["F"] = np.array(
            [[column.minimised(row[column.name]) for column in self.subnets.objectives] for row in rows]
        )
        if self.subnets.constraints:
            out["G"] = np.array([[_excess(constraint, row) for constraint in self.subnets.constraints] for row in rows])


class SubnetObjective:
    """Subnets of a space as an Optuna objective: `optuna.create_study(directions=objective.directions)`.

    Each dimension of the space is a parameter, the index of the choice. The subnet and all its measured values become
    user attributes of the trial.

    Args:
        subnets: Subnets to search, from `open_subnets`.
    """

    def __init__(self, subnets: Scored) -> None:
        self.subnets = subnets

    @property
    def directions(self) -> list[str]:
        """Return the directions of the objectives, in order."""
        return [objective.direction for objective in self.subnets.objectives]

    def __call__(self, trial: Trial) -> tuple[float, ...]:
        """Return the objective values of the subnet that `trial` suggests."""
        space = self.subnets.space
        genome = [
            trial.suggest_int(dimension, 0, count - 1)
            for dimension, count in zip(space.dimensions, space.choices, strict=True)
        ]
        subnet = space.decode(tuple(genome))
        measured = answer(self.subnets.evaluate(subnet), _columns(self.subnets), subnet)
        trial.set_user_attr("subnet", str(subnet))
        trial.set_user_attr("measured", dict(measured))
        for constraint in self.subnets.constraints:
            trial.set_constraint(str(constraint), _excess(constraint, measured))
        return tuple(measured[objective.name] for objective in self.subnets.objectives)


def _columns(subnets: Scored) -> list[Objective]:
    """Return the objectives and the constrained quantities."""
    return [*subnets.objectives, *(constraint.objective for constraint in subnets.constraints)]


def _excess(constraint: Constraint, measured: Mapping[str, float]) -> float:
    return constraint.excess(measured[constraint.objective.name])
