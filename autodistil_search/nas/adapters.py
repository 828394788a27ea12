"""Our subnets inside other people's searches: a pymoo `Problem` and an Optuna objective."""

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
    """Subnets of one space, and what each is worth; `run.open_subnets` gives one."""

    @property
    def space(self) -> SearchSpace:
        """Where they are from."""
        ...

    @property
    def objectives(self) -> Sequence[Objective]:
        """What is minimised or maximised, in order."""
        ...

    @property
    def constraints(self) -> Sequence[Constraint]:
        """What must be kept."""
        ...

    def evaluate(self, subnet: Subnet) -> Mapping[str, float]:
        """What is measured of `subnet`, by objective name."""
        ...


class SubnetProblem(Problem):  # type: ignore[misc]
    """The subnets of a space as a problem of pymoo: whole numbers, the index of the choice in each dimension.

    Objectives are minimised as pymoo expects: what is maximised has its sign turned. Values in between (of operators
    that do not round) stand for the nearest choice.

    Args:
        subnets: What to search.
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
        """The subnet that a row of a result's `X` stands for."""
        return self.subnets.space.decode(tuple(int(index) for index in np.rint(x)))

    def _evaluate(self, x: NDArray[Any], out: dict[str, Any], *_: Any, **__: Any) -> None:
        found = [_answer(self.subnets, self.subnet(row)) for row in x]
        out["F"] = np.array([[each.minimised(row[each.name]) for each in self.subnets.objectives] for row in found])
        if self.subnets.constraints:
            out["G"] = np.array([[_excess(each, row) for each in self.subnets.constraints] for row in found])


class SubnetObjective:
    """The subnets of a space as an objective of Optuna: `optuna.create_study(directions=objective.directions)`.

    Each dimension of a space is a parameter, the index of the choice; the subnet and all that is measured of it become
    user attributes of the trial.

    Args:
        subnets: What to search.
    """

    def __init__(self, subnets: Scored) -> None:
        self.subnets = subnets

    @property
    def directions(self) -> list[str]:
        """Of the objectives, in order."""
        return [objective.direction for objective in self.subnets.objectives]

    def __call__(self, trial: Trial) -> tuple[float, ...]:
        """The objectives of the subnet that `trial` suggests."""
        space = self.subnets.space
        genome = [
            trial.suggest_int(dimension, 0, count - 1)
            for dimension, count in zip(space.dimensions, space.choices, strict=True)
        ]
        subnet = space.decode(tuple(genome))
        found = _answer(self.subnets, subnet)
        trial.set_user_attr("subnet", str(subnet))
        trial.set_user_attr("measured", dict(found))
        for constraint in self.subnets.constraints:
            trial.set_constraint(str(constraint), _excess(constraint, found))
        return tuple(found[objective.name] for objective in self.subnets.objectives)


def _answer(subnets: Scored, subnet: Subnet) -> dict[str, float]:
    columns = [*subnets.objectives, *(constraint.objective for constraint in subnets.constraints)]
    return answer(subnets.evaluate(subnet), columns, subnet)


def _excess(constraint: Constraint, found: Mapping[str, float]) -> float:
    return constraint.excess(found[constraint.objective.name])
