"""What the rules for a step's subnets give on `tiny` at equal time, against subnets distilled alone.

python benchmarks/strategies.py --results strategies.jsonl

Each rule gets the steps that fit into the time `--steps` steps of the first rule take; time is the processor time
of one thread, measured beforehand, the teacher included. A finished row is kept in `--results` and not made again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from scipy.stats import kendalltau
from torch import Tensor

from autodistil_search.base.device import Device
from autodistil_search.base.files import cache_folder
from autodistil_search.base.seeding import seeded
from autodistil_search.distillation.options import TrainOptions
from autodistil_search.distillation.training_loop import distill
from autodistil_search.nas.label_free_proxies import RelationProxy
from autodistil_search.nas.pareto import hypervolume
from autodistil_search.spaces.cost import flops
from autodistil_search.spaces.search_space import load_space
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.teachers import initial_weights
from autodistil_search.teachers.loading import load_teacher
from autodistil_search.teachers.teacher import Teacher
from autodistil_search.text.token_store import load_corpus

RULES: dict[str, dict[str, object]] = {
    "largest, 3 random": {"random_subnets": 3},
    "largest, 1 random": {"random_subnets": 1},
    "sandwich: largest, smallest, 2 random": {"sampling": "sandwich"},
    "4 random": {"sampling": "random"},
    "2 random": {"sampling": "random", "random_subnets": 2},
    "1 random": {"sampling": "random", "random_subnets": 1},
    "largest only": {"sampling": "largest"},
    "largest, 3 random, half in place": {"random_subnets": 3, "in_place": 0.5},
}
BAND = 50e6
DEVICE = Device("cpu", "fp32")


class RememberedTeacher:
    """A teacher that answers a batch it has seen from memory: the rules see the same text in the same order."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self._seen: dict[bytes, tuple[Tensor, Tensor, Tensor]] = {}

    def projections(self, input_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `Teacher.projections`."""
        key = input_ids.numpy().tobytes()
        if key not in self._seen:
            self._seen[key] = self._teacher.projections(input_ids)
        return self._seen[key]


def main() -> None:
    """Train what is not in the results yet, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--eval-blocks", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(given.results, TrainOptions(given.steps, given.batch_size, given.lr, 0), given.eval_blocks)
    for seed in range(given.seeds):
        for rule in RULES:
            bench.row(rule, seed)
        if seed == 0:
            bench.alone()
    bench.print_tables()


class Bench:
    """The space, the text and the teacher, and the rows made so far."""

    def __init__(self, results: Path, options: TrainOptions, eval_blocks: int) -> None:
        self._path, self._options = results, options
        lines = results.read_text().splitlines() if results.exists() else []
        self._rows = {row["key"]: row for row in map(json.loads, lines)}
        self.space = load_space("tiny")
        self._real = load_teacher()
        self._teacher = RememberedTeacher(self._real)
        self._train, held_out = load_corpus(["packaged"], self._real.tokenizer, cache_folder()).blocks(128)
        heads = self.space.relation_heads
        self._proxy = RelationProxy(self._real, held_out.spread(eval_blocks), heads, "kl", DEVICE)
        self.subnets = sorted(map(self.space.decode, self.space.genomes()), key=flops)
        self.few = self.subnets[10::21][:12]
        """Twelve over the whole range of costs."""

    def _keep(self, key: str, **content: object) -> None:
        self._rows[key] = {"key": key, **content}
        with self._path.open("a") as file:
            file.write(json.dumps(self._rows[key]) + "\n")

    def _start(self, seed: int) -> AutoDistilModel:
        with seeded(seed):
            return initial_weights.superlm(self._real, self.space, "slices")[0]

    def _train_in_a_folder(self, model: AutoDistilModel, options: TrainOptions, teacher: object) -> float:
        start = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            distill(model, teacher, self._train, options, Path(folder), DEVICE)  # type: ignore[arg-type]
        return time.process_time() - start

    def seconds_of_a_step(self, rule: str) -> float:
        """Processor seconds, teacher included; of 40 steps, so that the random subnets average out."""
        key = f"time {rule}"
        if key not in self._rows:
            options = replace(self._options, **RULES[rule])  # type: ignore[arg-type]
            few, many = (
                self._train_in_a_folder(self._start(0), replace(options, steps=steps), self._real) for steps in (2, 42)
            )
            self._keep(key, seconds=(many - few) / 40)
        return float(self._rows[key]["seconds"])

    def row(self, rule: str, seed: int) -> None:
        """Train by one rule with one seed and score all subnets."""
        key = f"{rule} seed {seed}"
        if key in self._rows:
            return
        first = next(iter(RULES))
        steps = round(self._options.steps * self.seconds_of_a_step(first) / self.seconds_of_a_step(rule))
        model = self._start(seed)
        self._train_in_a_folder(
            model,
            replace(self._options, steps=steps, seed=seed, **RULES[rule]),  # type: ignore[arg-type]
            self._teacher,
        )
        losses = [self._proxy.score(model, subnet) for subnet in self.subnets]
        self._keep(key, steps=steps, losses=losses)
        print(f"{key}: {steps} steps, mean {mean(losses):.4f}", flush=True)

    def alone(self) -> None:
        """Distil each of the twelve alone, from the same start, for as many steps as the first rule has."""
        for number, subnet in enumerate(self.few):
            key = f"alone {number}"
            if key not in self._rows:
                student = self._start(0).extract(subnet)
                self._train_in_a_folder(student, self._options, self._teacher)
                self._keep(key, loss=self._proxy.score(student), subnet=str(subnet))
                print(key, subnet, flush=True)

    def print_tables(self) -> None:
        """One line for each rule: mean and spread over the seeds."""
        costs = np.array([flops(subnet) for subnet in self.subnets], dtype=float)
        bands = ((costs - costs[0]) // BAND).astype(int)
        alone = [self._rows[f"alone {number}"]["loss"] for number in range(len(self.few))]
        positions = [self.subnets.index(subnet) for subnet in self.few]
        reference = np.array([self._proxy.reference, costs[-1] * 1.01])
        whole = float(np.prod(reference - np.array([0, costs[0]])))
        print("| a step trains | steps | mean of 256 | smallest | largest | hypervolume share | tau with 12 alone |")
        print("|---|---|---|---|---|---|---|")
        best: dict[str, np.ndarray] = {}
        for rule in RULES:
            rows = [row for key, row in self._rows.items() if key.startswith(f"{rule} seed ")]
            losses = np.array([row["losses"] for row in rows])
            volumes = [hypervolume(np.column_stack([each, costs]), reference) / whole for each in losses]
            taus = [kendalltau(each[positions], alone).statistic for each in losses]
            columns = [losses.mean(axis=1), losses[:, 0], losses[:, -1], volumes, taus]
            cells = " | ".join(f"{mean(column):.3f} ± {stdev(column):.3f}" for column in map(list, columns))
            print(f"| {rule} | {rows[0]['steps']} | {cells} |")
            best[rule] = np.array([losses[:, bands == band].min(axis=1).mean() for band in range(bands.max() + 1)])
        print("\nBest of each 50 M band of FLOPs, from the smallest subnet's, mean of the seeds:\n")
        print(
            "| a step trains |"
            + " ".join(f" {(costs[0] + band * BAND) / 1e6:.0f}M |" for band in range(bands.max() + 1))
        )
        print("|---|" + "---|" * (bands.max() + 1))
        for rule, values in best.items():
            print(f"| {rule} | " + " | ".join(f"{value:.3f}" for value in values) + " |")


if __name__ == "__main__":
    main()
