"""Plan a run, train it, and compare time, peak memory and size of a checkpoint, in one run.

    python benchmarks/plan.py

Plans and runs take turns, each in a process of its own, as the peak memory of a CPU is that of a process; ratios are
of the medians over the rounds. A run is `distill` on random token ids. Its time counts from the end of the first step
to the end of the last, saving included; its memory to the end of the last step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from autodistil_search.base.device import choose_device
from autodistil_search.base.progress import Bar, Reporter
from autodistil_search.distillation.options import TrainOptions
from autodistil_search.distillation.plan import make_plan, peak_memory, reset_peak_memory
from autodistil_search.distillation.training_loop import distill
from autodistil_search.spaces.search_space import load_space
from autodistil_search.teachers import initial_weights
from autodistil_search.teachers.loading import load_teacher
from autodistil_search.text.blocks import Blocks

WHAT = ("seconds of all steps but the first", "peak memory, MB", "checkpoint, MB")


@dataclass
class Watch(Reporter):
    """Notes when each step ends, and the size of the checkpoint then."""

    folder: Path
    ends: list[float] = field(default_factory=list)
    checkpoint: int = 0

    @contextmanager
    def bar(self, title: str, unit: str, total: int | None) -> Iterator[Bar]:  # noqa: ARG002
        """Itself."""
        yield self

    def advance(self, note: str = "") -> None:  # noqa: ARG002
        """A step has ended."""
        self.ends.append(time.perf_counter())
        sizes = [path.stat().st_size for path in self.folder.glob("*.safetensors")]
        self.checkpoint = max(self.checkpoint, *sizes, 0)

    def advance_by(self, units: int) -> None:
        """Nothing is tokenized here."""

    def skip(self, units: int) -> None:
        """No run here is continued."""


def measure(what: str, given: argparse.Namespace) -> list[float]:
    """The three numbers of `WHAT`: planned, or of a run."""
    space, device = load_space(given.space), choose_device(given.device, given.precision)
    teacher = load_teacher(device=device.name)
    options = TrainOptions(given.steps, given.batch_size, 1e-3, 0, relation_heads=space.relation_heads)
    if what == "plan":
        plan = make_plan(space, teacher, options, given.seq_len, device)
        return [plan.seconds * (plan.steps - 1), plan.memory.total / 1e6, plan.checkpoint / 1e6]
    model, _ = initial_weights.superlm(teacher, space, "slices")
    tokens = np.random.default_rng(0).integers(1000, 20000, 64 * given.seq_len, dtype=np.uint32)
    reset_peak_memory(device)
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch(Path(folder))
        distill(model, teacher, Blocks([tokens], given.seq_len, 101, 102), options, Path(folder), device, watch)
    return [watch.ends[-1] - watch.ends[0], (peak_memory(device) or 0) / 1e6, watch.checkpoint / 1e6]


def main() -> None:
    """Measure in child processes and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="tiny")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--only", choices=("plan", "run"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measure(given.only, given)))
        return
    found: dict[str, list[list[float]]] = {"plan": [], "run": []}
    for _ in range(given.rounds):
        for what, results in found.items():
            command = [sys.executable, *sys.argv, "--only", what]
            results.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    print("| | planned | run | planned / run | of each round |\n|---|---|---|---|---|")
    for i, name in enumerate(WHAT):
        planned, actual = ([each[i] for each in found[what]] for what in ("plan", "run"))
        a, b = statistics.median(planned), statistics.median(actual)
        rounds = ", ".join(f"{x / y:.2f}" for x, y in zip(planned, actual, strict=True))
        print(f"| {name} | {a:.4g} | {b:.4g} | {a / b:.2f} | {rounds} |")


if __name__ == "__main__":
    main()
