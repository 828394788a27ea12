"""What an executor costs for each evaluation, and what two workers save.

    python benchmarks/executors.py                    overhead and speed-up
    python benchmarks/executors.py --only overhead --at 100,1000,10000
    python benchmarks/executors.py --only speed-up --subnets 8 --steps 50

Overhead: `archive.answer` scores subnets of `elastic` by FLOPs and parameters, whose computation takes next to no time,
in generations of 100, in this process, by two threads, by two spawned processes, and by two workers of a local Dask
cluster. Every evaluation is stored on the disk, as in a search; the archive alone is the row "this process".

Speed-up: the subnets of `validate-proxy --alone-steps`, and the baselines of a search, are trained by one and by two
Dask workers of one thread each, and by this process with one thread. Every measurement starts with an empty cache and
with workers that have loaded their inputs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from autodistil_search import SearchConfig, ValidateConfig, search
from autodistil_search.base.distributed import machine
from autodistil_search.base.executors import open_executor, open_team
from autodistil_search.base.progress import ConsoleReporter, Reporter, plain_console
from autodistil_search.nas.archive import Archive
from autodistil_search.nas.baseline_training import RecipeGroup
from autodistil_search.nas.cost_bands import draw_in_bands
from autodistil_search.runs.finished_run import load_run
from autodistil_search.runs.scoring import Scorer, scored_by
from autodistil_search.runs.search_inputs import resolve_search
from autodistil_search.runs.train import train_superlms
from autodistil_search.runs.validate_proxy import _LoadedValidation, _SubnetToMeasure

if TYPE_CHECKING:
    from autodistil_search.base.executors import AnyExecutor

GENERATION = 100
QUIET = Reporter()


@contextmanager
def executor_named(name: str) -> Iterator[AnyExecutor | None]:
    """Yield an executor of two workers, or of the number after `dask`, or None for this process."""
    with ExitStack() as stack:
        pools: dict[str, Executor] = {}
        if name == "two threads":
            pools[name] = stack.enter_context(ThreadPoolExecutor(2))
        if name == "two processes":
            context = multiprocessing.get_context("spawn")
            pools[name] = stack.enter_context(ProcessPoolExecutor(2, mp_context=context))
        dask, _, workers = name.partition(" ")
        opened = open_executor("dask", int(workers), QUIET) if dask == "dask" else open_executor(None, None, QUIET)
        yield pools.get(name) or stack.enter_context(opened)


def overhead(name: str, marks: list[int]) -> list[float]:
    """Return the milliseconds of each of the latest evaluations, at so many of them."""
    inputs = resolve_search(SearchConfig(space="elastic", objectives="flops,params", baselines="none"))
    (space,), rng = inputs.spaces, random.Random(0)
    subnets = list(dict.fromkeys(space.sample(rng) for _ in range(2 * max(marks))))[: max(marks)]
    seconds = [0.0]
    with (
        tempfile.TemporaryDirectory() as folder,
        executor_named(name) as executor,
        open_team(executor, Scorer(inputs, {}), QUIET) as team,
    ):
        archive = Archive(Path(folder) / "archive.log", inputs.spaces, inputs.objectives)
        evaluate = partial(scored_by, team)
        list(evaluate(space, [space.sample(rng) for _ in range(8)]))  # the workers load the inputs
        start = time.monotonic()
        for first in range(0, max(marks), GENERATION):
            archive.answer(space, subnets[first : first + GENERATION], evaluate, lambda: None)
            if first + GENERATION in marks:
                seconds.append(time.monotonic() - start)
    counts = [0, *marks]
    return [1000 * (seconds[i + 1] - seconds[i]) / (counts[i + 1] - counts[i]) for i in range(len(marks))]


def print_overhead(marks: list[int]) -> None:
    """Print a table of milliseconds for each evaluation."""
    print(f"| executor | {' | '.join(f'up to {mark:,}' for mark in marks)} |")
    print(f"|---|{'--:|' * len(marks)}")
    for name in ("this process", "two threads", "two processes", "dask 2"):
        print(f"| {name} | {' | '.join(f'{value:.2f} ms' for value in overhead(name, marks))} |", flush=True)
    print()


def alone_seconds(name: str, run_folder: Path, subnets: int, steps: int) -> float:
    """Return the seconds of measuring subnets that are trained alone, as `validate-proxy` does."""
    with tempfile.TemporaryDirectory() as folder, executor_named(name) as executor:
        config = ValidateConfig(run=str(run_folder), out=folder, subnets=subnets, bands=1, alone_steps=steps)
        run = load_run(run_folder)
        loaded = _LoadedValidation(config, run, QUIET)
        drawn = draw_in_bands([run.superlm("tiny").space], subnets + 2, 1, 0.1, 0)
        tasks = [_SubnetToMeasure(number, entry) for number, entry in enumerate(drawn)]
        with open_team(executor, loaded, QUIET) as team:
            list(team.results(tasks[:2]))  # the workers load the inputs
            start = time.monotonic()
            list(team.results(tasks[2:]))
            return time.monotonic() - start


def baseline_seconds(name: str, steps: int) -> float:
    """Return the seconds of training and scoring the baselines of a search on `tiny`, six of about equal size."""
    with tempfile.TemporaryDirectory() as folder, executor_named(name) as executor:
        config = SearchConfig(space="tiny", baselines="random,shapes", steps=steps, eval_blocks=8, out=folder)
        inputs = resolve_search(config)
        space = inputs.spaces[0]
        superlms, _ = train_superlms(inputs, Path(folder), QUIET)
        scorer = Scorer(inputs, superlms, cache=Path(folder) / "cache")
        recipes = scorer.bench.recipes(["random"], inputs.spaces)
        recipes += [recipe for recipe in scorer.bench.recipes(["shapes"], inputs.spaces) if "6x384" not in recipe.name]
        tasks = [RecipeGroup((recipe,)) for recipe in recipes]
        with open_team(executor, scorer, QUIET) as team:
            list(scored_by(team, space, list(space.ends)))  # the workers load the inputs
            start = time.monotonic()
            list(team.results([*tasks[-1:], *tasks[:-1]]))
            return time.monotonic() - start


def print_speed_up(subnets: int, steps: int) -> None:
    """Print a table of seconds and their ratio to those of one worker."""
    reporter = ConsoleReporter(plain_console(stderr=True))
    names = ("this process", "dask 1", "dask 2")
    with tempfile.TemporaryDirectory() as folder:
        run = search(SearchConfig(space="tiny", steps=2, evaluations=2, baselines="none", out=folder))
        print(f"| work | {' | '.join(names)} | one worker / two |")
        print("|---|--:|--:|--:|--:|")
        rows = {
            f"{subnets} subnets alone, {steps} steps": partial(
                alone_seconds, run_folder=run.folder, subnets=subnets, steps=steps
            ),
            f"5 baselines, {steps} steps": partial(baseline_seconds, steps=steps),
        }
        for title, measure in rows.items():
            seconds = {}
            for name in names:
                reporter.say(f"{title}: {name}")
                seconds[name] = measure(name)
            cells = " | ".join(f"{value:.1f} s" for value in seconds.values())
            print(f"| {title} | {cells} | {seconds['dask 1'] / seconds['dask 2']:.2f} |", flush=True)
    print()


def main() -> None:
    """Parse and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["overhead", "speed-up"])
    parser.add_argument("--at", default="100,1000,10000", help="Numbers of evaluations, ascending.")
    parser.add_argument("--subnets", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}, one thread for each process\n")
    if given.only != "speed-up":
        print_overhead([int(mark) for mark in given.at.split(",")])
    if given.only != "overhead":
        print_speed_up(given.subnets, given.steps)


if __name__ == "__main__":
    main()
