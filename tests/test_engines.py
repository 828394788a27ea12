"""What every engine must do, written once and run for each name in ENGINES; then what only NSGA-II must."""

import random
from contextlib import suppress
from functools import cache
from itertools import product
from statistics import mean

import numpy as np
import pytest
from processes import SERVER

from autodistil_search.base.progress import Reporter
from autodistil_search.nas.archive import Archive
from autodistil_search.nas.engines.base import Candidates, Goal
from autodistil_search.nas.engines.registry import ENGINES
from autodistil_search.nas.engines.running import run_engine
from autodistil_search.nas.evaluation import Evaluation
from autodistil_search.nas.objectives import Objective
from autodistil_search.nas.pareto import hypervolume, is_on_frontier
from autodistil_search.spaces.search_space import SearchSpace, load_space

pytestmark = pytest.mark.usefixtures("undrawn")

ERROR = Objective("error", "error", "", "minimize")
SIZE = Objective("size", "size", "", "minimize")
SPEED = Objective("speed", "speed", "", "maximize")
OBJECTIVES = [ERROR, SIZE, SPEED]
ENOUGH = 10**6
NOTHING = np.zeros((ENOUGH, 0))


def make_space(layers, hidden_size, mlp_ratio, heads):
    """A space with so many choices in each dimension."""
    hidden = tuple(8 * n for n in range(1, hidden_size + 1))
    counts = (tuple(range(1, n + 1)) for n in (mlp_ratio, heads))
    return SearchSpace("toy", tuple(range(1, layers + 1)), hidden, *counts, head_dim=4, relation_heads=2)


SPACE = make_space(3, 2, 2, 4)
POINT = make_space(1, 1, 1, 1)
LINE = make_space(1, 9, 1, 1)
LARGE = make_space(20, 20, 20, 20)
UNLIKE = SearchSpace("toy", (1, 2, 3), (8,), (1.0,), (1, 2), head_dim=4, relation_heads=2, per_layer=("heads",))
SMALLER = {
    "optuna-gp": make_space(2, 3, 1, 2),
    "optuna-tpe": make_space(2, 2, 2, 2),
    "surrogate": make_space(2, 3, 2, 2),
}
"""Of engines that think long about each question."""


def space_of(name):
    return SMALLER.get(name, SPACE)


def measure(space, subnet):
    """A closed form with a trade-off in each dimension: larger is better, dearer and slower, but not evenly so."""

    def level(key, value):
        return (getattr(space, key).index(value) + 1) / len(getattr(space, key))

    layers, hidden = level("layers", subnet.layers), level("hidden_size", subnet.hidden_size)
    each_layer = subnet.each_layer if subnet.each else [subnet]
    ratio = mean(level("mlp_ratio", sizes.mlp_ratio) for sizes in each_layer)
    heads = mean(level("heads", sizes.heads) for sizes in each_layer)
    error = (1 - layers) ** 2 + (1 - hidden) ** 2 + 0.3 * (ratio - 0.5) ** 2 + 0.1 * (heads - 0.7) ** 2
    size = layers * hidden * (1 + ratio) + 0.2 * heads
    speed = 1 / (layers + 0.05 * heads)
    return Evaluation(space.name, subnet, {"error": error, "size": size, "speed": speed})


def minimised(space, subnet, objectives):
    measured = measure(space, subnet).measured
    return [objective.minimised(measured[objective.name]) for objective in objectives]


def costs_of(space, objectives):
    """The error must be measured; size and speed follow from the sizes."""

    def cost(objective):
        return lambda subnet: objective.minimised(measure(space, subnet).measured[objective.name])

    return [None if objective is ERROR else cost(objective) for objective in objectives]


def make_engine(name, space, admits, seed, population, objectives):
    """An engine of that name, and its candidates."""
    candidates = Candidates(space, admits, seed)
    goal = Goal(costs_of(space, OBJECTIVES[:objectives]))
    return ENGINES[name](candidates, seed=seed, population=population, goal=goal), candidates


def admit_all(subnet):
    return True


class Asking:
    """An engine of that name, questioned without an archive."""

    def __init__(self, name, space, admits=admit_all, seed=0, population=6, objectives=2):
        self.space, self.objectives = space, OBJECTIVES[:objectives]
        self.engine, _ = make_engine(name, space, admits, seed, population, objectives)

    def rounds(self, most=ENOUGH):
        """The lists of genomes asked for, until there are no more or `most` were asked."""
        asked = 0
        while asked < most and (genomes := self.engine.ask()):
            values = [minimised(self.space, self.space.decode(genome), self.objectives) for genome in genomes]
            self.engine.tell(genomes, np.array(values), NOTHING[: len(genomes)])
            asked += len(genomes)
            yield genomes

    def all(self, most=ENOUGH):
        return [genome for genomes in self.rounds(most) for genome in genomes]


class StoppedError(Exception):
    """The process was killed."""


class Advances:
    """A bar that counts."""

    def __init__(self):
        self.units = 0

    def advance(self, note=""):
        self.units += 1

    def skip(self, units):
        pass


def search(name, path, budget, space=None, admits=admit_all, stop_after=ENOUGH, seed=3, population=6, objectives=2):
    """A session of a search: new engine, archive from disk. Returns the archive, what was evaluated and how many."""
    space, wanted = space or space_of(name), OBJECTIVES[:objectives]
    archive = Archive(path, [space], wanted)
    engine, candidates = make_engine(name, space, admits, seed, population, objectives)
    evaluated = []

    def evaluate(space, subnets):
        for subnet in subnets:
            if len(evaluated) == stop_after:
                raise StoppedError
            evaluated.append(subnet)
            yield measure(space, subnet)

    with Reporter().bar("search", "subnets", budget) as bar:
        try:
            scored = run_engine(engine, candidates, evaluate, archive, wanted, [], budget, bar)
        except StoppedError:
            scored = None
    return archive, evaluated, scored


every_engine = pytest.mark.parametrize("name", ENGINES)
every_number_of_objectives = pytest.mark.parametrize("objectives", [1, 2, 3])


@every_engine
def test_an_engine_asks_for_each_genome_once_and_then_stays_silent(name):
    space = space_of(name)
    asking = Asking(name, space)
    assert sorted(asking.all()) == list(space.genomes())
    assert [asking.engine.ask() for _ in range(3)] == [[], [], []]


@every_engine
def test_genomes_are_tuples_of_plain_integers(name):
    space = space_of(name)
    for genome in Asking(name, space).all(30):
        assert type(genome) is tuple
        assert {type(index) for index in genome} == {int}


@every_engine
@pytest.mark.parametrize("share", [0.02, 0.5])
def test_only_and_all_subnets_within_the_bounds_are_asked_for(name, share):
    space = space_of(name)
    size_of = {genome: measure(space, space.decode(genome)).measured["size"] for genome in space.genomes()}
    upper = sorted(size_of.values())[int(share * len(size_of))]

    def admits(subnet):
        return measure(space, subnet).measured["size"] <= upper

    asked = Asking(name, space, admits).all()
    assert sorted(asked) == sorted(genome for genome, size in size_of.items() if size <= upper)


@every_engine
def test_where_nothing_keeps_the_bounds_nothing_is_asked_for(name):
    space = space_of(name)
    assert Asking(name, space, lambda subnet: False).all() == []


@every_engine
@every_number_of_objectives
def test_the_same_seed_asks_the_same_questions_without_a_look_or_change_at_global_generators(name, objectives):
    space = space_of(name)
    asked = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        asked.append(list(Asking(name, space, seed=5, objectives=objectives).rounds(40)))
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002
    assert asked[0] == asked[1]


@every_engine
@pytest.mark.parametrize("space", [POINT, LINE, make_space(1, 2, 1, 3), make_space(2, 1, 1, 1)])
def test_a_space_with_single_choices_is_searched_whole(name, space):
    assert sorted(Asking(name, space).all()) == list(space.genomes())


@every_engine
@pytest.mark.parametrize("population", [2, 100])
def test_any_population_searches_the_space_whole(name, population):
    space = make_space(3, 2, 2, 1)
    assert sorted(Asking(name, space, population=population).all()) == list(space.genomes())


@every_engine
@every_number_of_objectives
def test_with_the_whole_budget_the_frontier_is_the_exact_one(name, objectives, tmp_path):
    space = space_of(name)
    wanted = OBJECTIVES[:objectives]
    archive, evaluated, scored = search(name, tmp_path / "archive.log", ENOUGH, objectives=objectives)
    assert len(set(evaluated)) == len(evaluated) == scored == space.size

    def frontier(subnets):
        values = np.array([minimised(space, subnet, wanted) for subnet in subnets])
        return {subnet for subnet, on in zip(subnets, is_on_frontier(values), strict=True) if on}

    exact = frontier([space.decode(genome) for genome in space.genomes()])
    assert frontier([evaluation.subnet for evaluation in archive.evaluations]) == exact
    assert len(exact) < space.size


@every_engine
def test_a_subnet_of_unlike_layers_is_scored_once_whatever_genome_describes_it(name, tmp_path):
    archive, evaluated, scored = search(name, tmp_path / "archive.log", ENOUGH, space=UNLIKE)
    assert scored == len(evaluated) == UNLIKE.size == 2 + 4 + 8
    assert {evaluation.subnet for evaluation in archive.evaluations} == set(map(UNLIKE.decode, UNLIKE.genomes()))


@every_engine
def test_a_space_of_a_billion_subnets_is_searched_within_the_budget(name, tmp_path):
    space = load_space("elastic")
    path = tmp_path / "archive.log"
    whole, evaluated, scored = search(name, path, 9, space=space)
    assert len(set(evaluated)) == scored == 9
    assert Archive(path, [space], OBJECTIVES[:2]).evaluations == whole.evaluations


@every_engine
@pytest.mark.parametrize("budget", [1, 5, 7, 16])
def test_the_budget_is_kept_to_the_subnet(name, budget, tmp_path):
    archive, evaluated, scored = search(name, tmp_path / "archive.log", budget)
    expected = min(budget, space_of(name).size)
    assert len(set(evaluated)) == len(evaluated) == len(archive.evaluations) == scored == expected


@every_engine
def test_what_was_measured_is_recorded_as_it_is_whatever_the_direction(name, tmp_path):
    space = space_of(name)
    archive, evaluated, _ = search(name, tmp_path / "archive.log", 20, objectives=3)
    assert archive.evaluations == [measure(space, subnet) for subnet in evaluated]


@every_engine
@pytest.mark.parametrize(("every", "objectives"), [(1, 2), (7, 1), (7, 3)])
def test_a_search_stopped_again_and_again_ends_as_one_never_stopped(name, every, objectives, tmp_path):
    budget = min(21, space_of(name).size)
    whole, _, _ = search(name, tmp_path / "whole.log", budget, objectives=objectives)
    evaluated, scored, sessions = [], None, 0
    while scored is None:
        archive, new, scored = search(name, tmp_path / "parts.log", budget, stop_after=every, objectives=objectives)
        evaluated += new
        sessions += 1
    assert sessions >= budget // every
    assert scored == budget
    assert len(set(evaluated)) == len(evaluated) == budget
    assert archive.evaluations == whole.evaluations


@every_engine
def test_a_larger_budget_goes_on_from_a_smaller_one(name, tmp_path):
    budget = min(30, space_of(name).size)
    whole, _, _ = search(name, tmp_path / "whole.log", budget)
    search(name, tmp_path / "parts.log", 11)
    archive, evaluated, scored = search(name, tmp_path / "parts.log", budget)
    assert archive.evaluations == whole.evaluations
    assert (len(evaluated), scored) == (budget - 11, budget)


@every_engine
def test_the_bar_advances_by_what_was_evaluated_now(name, tmp_path):
    space = space_of(name)
    search(name, tmp_path / "archive.log", 5)
    engine, candidates = make_engine(name, space, admit_all, 3, 6, 2)
    archive, bar = Archive(tmp_path / "archive.log", [space], OBJECTIVES[:2]), Advances()
    run_engine(
        engine, candidates, lambda space, subnets: (measure(space, subnet) for subnet in subnets), archive,
        OBJECTIVES[:2], [], 12, bar,
    )  # fmt: skip
    assert bar.units == 7


@every_engine
def test_a_space_too_large_to_list_is_searched_within_the_budget(name, tmp_path):
    assert LARGE.size == 160_000
    _, evaluated, scored = search(name, tmp_path / "archive.log", 10, space=LARGE, population=6)
    assert len(set(evaluated)) == scored == 10


@pytest.mark.parametrize("name", ["surrogate", "nsga2", "nsga3", "sms-emoa", "exhaustive"])
def test_most_of_the_few_subnets_of_a_large_space_that_keep_a_bound_are_found(name):
    """One in 10,000 keeps it, so that most are found as neighbours of others; nothing promises all of them."""
    few = {genome for genome in product(range(3), repeat=4) if sum(genome) <= 2}
    assert len(few) == 15
    asked = Asking(name, LARGE, lambda subnet: LARGE.encode(subnet) in few, seed=3).all()
    assert len(set(asked)) == len(asked)
    assert set(asked) <= few
    assert len(asked) >= 12


def test_candidates_of_a_listed_space_are_counted():
    assert Candidates(SPACE, admit_all, 0).total == SPACE.size
    assert Candidates(SPACE, lambda subnet: subnet.heads == 1, 0).total == SPACE.size // 4
    assert Candidates(LARGE, admit_all, 0).total is None


def test_candidates_are_drawn_once_each_in_an_order_that_the_seed_sets():
    def drawn(seed):
        candidates = Candidates(SPACE, admit_all, seed)
        return list(iter(candidates.draw, None))

    assert sorted(drawn(0)) == list(SPACE.genomes())
    assert drawn(0) == drawn(0) != drawn(1)


def test_a_taken_candidate_is_neither_new_nor_drawn():
    candidates = Candidates(SPACE, admit_all, 0)
    taken = (1, 1, 0, 3)
    assert candidates.is_new(taken)
    candidates.take(taken)
    assert not candidates.is_new(taken)
    assert sorted([taken, *iter(candidates.draw, None)]) == list(SPACE.genomes())


LEARN = [name for name in ENGINES if name not in ("exhaustive", "random", "optuna-gp")]


@cache
def kept_by(name, seed):
    """How many of the first 60 subnets that an engine asks for keep a constraint that only measuring tells."""
    space, limit = make_space(6, 6, 3, 6), 0.12
    candidates = Candidates(space, admit_all, seed)
    goal = Goal(costs_of(space, OBJECTIVES[:2]), constraints=1)
    engine, kept, asked = ENGINES[name](candidates, seed=seed, population=10, goal=goal), 0, 0
    while asked < 60:
        genomes = engine.ask()
        values = np.array([minimised(space, space.decode(genome), OBJECTIVES[:2]) for genome in genomes])
        excess = values[:, :1] / limit - 1
        engine.tell(genomes, values, excess)
        asked += len(genomes)
        kept += int((excess <= 0).sum())
    return kept


@pytest.mark.parametrize("name", LEARN)
def test_a_measured_constraint_draws_the_search_to_where_it_is_kept(name):
    seeds = (2, 3, 4)
    assert sum(kept_by(name, seed) for seed in seeds) > 2 * sum(kept_by("random", seed) for seed in seeds)


def test_exhaustive_asks_in_the_order_of_genomes():
    assert Asking("exhaustive", SPACE).all() == list(SPACE.genomes())


def test_another_seed_asks_nsga2_other_questions():
    assert Asking("nsga2", SPACE, seed=0).all(30) != Asking("nsga2", SPACE, seed=1).all(30)


def test_nsga2_starts_with_both_corners_and_a_full_population():
    first = next(Asking("nsga2", SPACE, population=8).rounds())
    assert first[:2] == [SPACE.encode(SPACE.smallest), SPACE.encode(SPACE.largest)]
    assert len(first) == 8


def test_nsga2_asks_for_whole_generations_while_there_are_enough_left():
    sizes = [len(genomes) for genomes in Asking("nsga2", SPACE, population=8).rounds()]
    assert sizes == [8] * (SPACE.size // 8)


def volume_of(genomes, space, objectives):
    values = np.array([minimised(space, space.decode(genome), objectives) for genome in genomes])
    corners = np.array([minimised(space, corner, objectives) for corner in (space.smallest, space.largest)])
    return hypervolume(values, corners.max(axis=0) * 1.01)


def test_nsga2_encloses_more_than_random_search_of_equal_budget():
    space, budget, seeds = make_space(10, 10, 10, 10), 160, range(6)
    wanted = OBJECTIVES[:2]

    def at_random(seed):
        candidates = Candidates(space, admit_all, seed)
        return [candidates.draw() for _ in range(budget)]

    evolved = [volume_of(Asking("nsga2", space, seed=seed, population=16).all(budget), space, wanted) for seed in seeds]
    drawn = [volume_of(at_random(seed), space, wanted) for seed in seeds]
    exact = volume_of(list(space.genomes()), space, wanted)
    assert mean(drawn) < mean(evolved) <= exact
    missed, missed_at_random = exact - mean(evolved), exact - mean(drawn)
    assert missed < 0.5 * missed_at_random


FEW = 10
TO_KILL = [name for name in ENGINES if name != "age-moea2"]
"""Numba would compile it anew in each process; but for its selection it is nsga2."""


def search_and_tell(folder, told):
    """Each of the engines in turn, in a process of its own; what was recorded is sent to `told`."""
    record = Archive.record

    def record_and_tell(self, evaluation):
        record(self, evaluation)
        told.send(evaluation)

    Archive.record = record_and_tell
    for name in TO_KILL:
        search(name, folder / f"{name}.log", FEW)


def test_searches_killed_again_and_again_end_as_those_never_stopped(tmp_path):
    """The engines one after the other in a process of their own, which is killed after some of their evaluations."""
    scored = []
    for evaluations in (13, 24, 38, ENOUGH):
        told, tells = SERVER.Pipe(duplex=False)
        process = SERVER.Process(target=search_and_tell, args=(tmp_path, tells))
        process.start()
        tells.close()
        with suppress(EOFError, OSError):  # it has ended, maybe in the middle of a message
            while True:
                scored.append(told.recv())
                evaluations -= 1
                if evaluations == 0:
                    process.kill()
        process.join()
    assert process.exitcode == 0
    assert len(TO_KILL) * FEW - 3 <= len(scored) <= len(TO_KILL) * FEW  # one for each kill was recorded, not printed
    for name in TO_KILL:
        whole, _, _ = search(name, tmp_path / "whole" / f"{name}.log", FEW)
        space = space_of(name)
        assert Archive(tmp_path / f"{name}.log", [space], OBJECTIVES[:2]).evaluations == whole.evaluations
