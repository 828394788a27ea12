"""Our subnets in a pymoo and in an Optuna script of the user's own."""

from dataclasses import replace

import numpy as np
import optuna
import pytest
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling
from pymoo.optimize import minimize

from autodistil_search.base.errors import InputError
from autodistil_search.nas.adapters import SubnetObjective, SubnetProblem
from autodistil_search.nas.objectives import Constraint, Objective
from autodistil_search.nas.pareto import is_on_frontier
from autodistil_search.runs.search import open_subnets
from autodistil_search.spaces.search_space import load_space
from autodistil_search.spaces.subnet import DIMENSIONS

ERROR = Objective("error", "error", "", "minimize")
SPEED = Objective("speed", "speed", "", "maximize")


class Closed:
    """Subnets of the debug space with values in closed form; counts what is asked."""

    space = load_space("debug")
    objectives = (ERROR, SPEED)

    def __init__(self, *constraints):
        self.constraints, self.asked = constraints, []

    def evaluate(self, subnet):
        self.asked.append(subnet)
        size = subnet.layers * subnet.hidden_size * (1 + subnet.mlp_ratio)
        return {"error": 1 / size + 0.001 * subnet.heads, "speed": 1e4 / (size + subnet.heads)}

    def evaluate_all(self, subnets):
        return [self.evaluate(subnet) for subnet in subnets]

    def exact(self):
        subnets = [self.space.decode(genome) for genome in self.space.genomes()]
        values = [[each["error"], -each["speed"]] for each in map(self.evaluate, subnets)]
        return {subnet for subnet, on in zip(subnets, is_on_frontier(np.array(values)), strict=True) if on}


def test_pymoo_finds_the_exact_frontier():
    problem = SubnetProblem(Closed())
    whole = {"eta": 3, "vtype": float, "repair": RoundingRepair()}
    algorithm = NSGA2(pop_size=16, sampling=IntegerRandomSampling(), crossover=SBX(**whole), mutation=PM(**whole))
    result = minimize(problem, algorithm, ("n_gen", 25), seed=1)
    found = {problem.subnet(x) for x in result.X}
    assert found == Closed().exact()
    for x, f in zip(result.X, result.F, strict=True):
        measured = Closed().evaluate(problem.subnet(x))
        assert f.tolist() == [measured["error"], -measured["speed"]]


def test_pymoo_keeps_constraints():
    bound = Constraint(SPEED, 60.0, upper=False)
    result = minimize(SubnetProblem(Closed(bound)), NSGA2(pop_size=16), ("n_gen", 10), seed=1)
    assert (-result.F[:, 1] >= 60).all()


def test_optuna_finds_the_exact_frontier_and_reads_what_was_measured():
    subnets = Closed(Constraint(SPEED, 60.0, upper=False))
    objective = SubnetObjective(subnets)
    assert objective.directions == ["minimize", "maximize"]
    choices = [range(count) for count in subnets.space.choices]
    sampler = optuna.samplers.GridSampler(dict(zip(DIMENSIONS, choices, strict=True)))
    study = optuna.create_study(directions=objective.directions, sampler=sampler)
    study.optimize(objective)
    assert len(study.trials) == subnets.space.size
    for trial, subnet in zip(study.trials, subnets.asked, strict=True):
        measured = Closed().evaluate(subnet)
        assert trial.values == [measured["error"], measured["speed"]]
        assert trial.user_attrs == {"subnet": str(subnet), "measured": measured}
    assert all(trial.values[1] >= 60 for trial in study.best_trials)


def test_subnets_of_a_run_are_measured_once_and_kept_in_its_archive(toy_config):
    with open_subnets(toy_config) as subnets:
        problem = SubnetProblem(subnets)
        result = minimize(problem, NSGA2(pop_size=4), ("n_gen", 3), seed=1)
        known = {problem.subnet(x): dict(subnets.evaluate(problem.subnet(x))) for x in result.X}
    assert all(set(measured) == {"relation_loss", "flops", "params"} for measured in known.values())
    with open_subnets(toy_config) as again:
        assert {subnet: again.evaluate(subnet) for subnet in known} == known
        with pytest.raises(InputError, match="is not in space"):
            again.evaluate(replace(again.space.smallest, layers=9))


def test_several_spaces_at_once_are_refused(toy_config):
    with (
        pytest.raises(InputError, match="allowed: one space for a custom search"),
        open_subnets(replace(toy_config, objectives="flops,params", space="tiny,debug", relation_heads=4)),
    ):
        pass
