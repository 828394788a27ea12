"""Compare K = 1, 2 and 4 SuperLMs of one search space at equal training FLOPs, as few-shot NAS claims to gain from K.

    python benchmarks/k_shot.py --out runs/k-shot
    python benchmarks/k_shot.py --out runs/k-shot --space tiny --text wiki/train.txt.gz --seeds 0,1,2,3,4

`partition` splits the space into K sub-spaces. The K SuperLMs of a seed train together, with one teacher pass for each
batch. K = 1 trains for `--budget` steps. Every other K gets the number of steps whose FLOPs are nearest to that. The
FLOPs are those of `plan`: the teacher's forward pass once a batch, and forward and backward passes of the subnets that
each step draws, with their losses. The optimizer, elementwise operations, the initial weights and measurements do not
count.

All K start alike (`--init`) and are measured on the same subnets, drawn evenly over log FLOPs from the whole space.
Each is scored on the SuperLM of the sub-space that contains it. Twelve subnets are also distilled alone from the same
start. Their losses are the target of the rank agreement.

`FOLDER/k_shot.md`, `k_shot.png` and `scores.csv` hold the result. Finished pieces are kept in `FOLDER/pieces` and not
repeated, and an unfinished training continues from its checkpoint. Processes with different seeds can share a folder;
the same command with all seeds then only writes the tables:

    OMP_NUM_THREADS=1 python benchmarks/k_shot.py --out runs/k-shot --seeds 0,1 --alone-seeds "" &
    OMP_NUM_THREADS=1 python benchmarks/k_shot.py --out runs/k-shot --seeds 2
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats

from autodistil_search.base.default_reporter import default_reporter
from autodistil_search.base.errors import InputError, Terminated
from autodistil_search.base.files import read_json, refuse_other_settings, write_atomically
from autodistil_search.base.user_input import PACKAGED
from autodistil_search.distillation.plan import make_plan, peak_memory, reset_peak_memory, together, work_of
from autodistil_search.distillation.training_loop import distill
from autodistil_search.nas.baseline_training import begin_alone, options_alone
from autodistil_search.nas.cost_bands import draw_in_bands
from autodistil_search.nas.label_free_proxies import RelationProxy
from autodistil_search.nas.pareto import is_on_frontier, share_of_box
from autodistil_search.nas.rank_correlation import Agreement, agreement, kendall
from autodistil_search.report.style import LIGHT, series_colour, series_marker
from autodistil_search.runs.run_folder import superlm_folder
from autodistil_search.runs.search_inputs import MARGIN
from autodistil_search.runs.train import relation_proxy, train_superlms
from autodistil_search.runs.training_inputs import TrainingInputs, resolve_training
from autodistil_search.settings.train import TrainConfig
from autodistil_search.spaces.cost import flops
from autodistil_search.spaces.partition import partition, write_spaces
from autodistil_search.spaces.search_space import SearchSpace, load_space
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.superlm.model_folder import load_model

SPACE = SearchSpace(
    name="k-shot",
    layers=(3, 4, 5, 6, 7),
    hidden_size=(128, 160, 192, 224, 256, 288, 320, 352),
    mlp_ratio=(2.0, 2.5, 3.0, 3.5),
    heads=(8, 9, 10, 11),
    head_dim=32,
    relation_heads=16,
    depth="first_last",
)
"""640 subnets of 101M to 1,302M FLOPs."""

IN_BAND = 4
"""Number of scored subnets that are drawn in each narrow band of FLOPs."""

BANDS = 4
"""Number of bands of log FLOPs in the tables."""

ALONE, ALONE_BANDS, BAND_WIDTH = 12, 3, 0.1
"""Subnets that are distilled alone, their narrow bands of FLOPs, and half the width of a band."""

TOLERANCE = 0.01
"""Largest difference of the FLOPs of two K, as a share."""

Array = NDArray[np.float64]


class Ablation:
    """All pieces of the comparison, each measured once and then read from the output folder."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self._out, self._reporter = given, Path(given.out), default_reporter()
        self.space = load_space(given.space) if given.space else SPACE
        self.parts = {k: partition(self.space, k) for k in given.k}
        self._paths = {k: write_spaces(parts, self.space, self._out / "spaces") for k, parts in self.parts.items()}
        whole = write_spaces([self.space], self.space, self._out / "spaces")[0]
        names = ("teacher", "text", "init", "batch_size", "seq_len", "sampling")
        config = TrainConfig(space=str(whole), steps=given.budget, **{name: getattr(given, name) for name in names})
        self._inputs = resolve_training(config, self._reporter)
        bands = max(1, given.subnets // IN_BAND) if given.subnets < self.space.size else 1
        self.subnets = [entry.subnet for entry in draw_in_bands([self.space], given.subnets, bands, BAND_WIDTH, 0)]
        drawn = draw_in_bands([self.space], ALONE, ALONE_BANDS, BAND_WIDTH, 1)
        self.few, self.few_bands = [entry.subnet for entry in drawn], np.array([entry.band for entry in drawn])
        settings = {name: getattr(given, name) for name in (*names, "budget", "subnets", "alone_steps", "eval_blocks")}
        settings |= self._inputs.identity  # digests of teacher, text and space
        path = self._out / "settings.json"
        if path.exists():
            refuse_other_settings(read_json(path), settings, self._out)
        write_atomically(path, lambda file: file.write_text(json.dumps(settings, indent=2)))

    def _of(self, seed: int, steps: int, k: int) -> TrainingInputs:
        """Return the inputs of training the `k` SuperLMs together."""
        spaces = ",".join(map(str, self._paths[k]))
        config = replace(self._inputs.config, seed=seed, steps=steps, space=spaces)
        return replace(self._inputs, config=config, spaces=self.parts[k])

    @cached_property
    def proxy(self) -> RelationProxy:
        """Return the held-out relation loss that scores all subnets."""
        return relation_proxy(self._inputs, self.given.eval_blocks)

    def _flops(self, parts: Sequence[SearchSpace], seed: int, steps: int) -> float:
        """Return the FLOPs of all steps of SuperLMs that train together."""
        teacher, options = self._inputs.teacher, replace(self._inputs.options, seed=seed, steps=steps)
        with torch.device("meta"):
            models = [AutoDistilModel(teacher.student_config(part.largest, part)) for part in parts]
        works = [work_of(teacher, model, options, self.given.seq_len) for model in models]
        a_sequence = works[0].teacher + sum(work.multiply_adds - work.teacher for work in works)
        return 2 * a_sequence * options.batch_size * steps

    def steps(self, k: int, seed: int) -> dict[str, Any]:
        """Return the steps of `k` SuperLMs whose FLOPs are nearest to those of K = 1, and the FLOPs of both."""
        steps, of_one = self.given.budget, self._flops([self.space], seed, self.given.budget)
        for _ in range(5 if k > 1 else 0):  # the number of a step determines its subnets, so their mean cost varies
            steps = max(1, round(steps * of_one / self._flops(self.parts[k], seed, steps)))
        return {"steps": steps, "flops": self._flops(self.parts[k], seed, steps), "flops_of_one": of_one}

    def piece(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a piece, measured now or earlier, with the time and the memory that it took."""
        path = self._out / "pieces" / f"{name}.json"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            resumed = (self._out / name).exists()
            reset_peak_memory(self._inputs.device)
            start, cpu = time.perf_counter(), time.process_time()
            content = measure()
            content |= {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
            content |= {"resumed": resumed, "threads": torch.get_num_threads()}
            content |= {"peak_bytes": peak_memory(self._inputs.device) or 0}
            write_atomically(path, lambda file: file.write_text(json.dumps(content, indent=2)))
            print(f"{name}: {content['seconds']:,.0f} s, {content['peak_bytes'] / 1e9:.2f} GB", flush=True)
        return read_json(path)

    def training(self, k: int, seed: int) -> dict[str, Any]:
        """Train the SuperLMs of `k` sub-spaces together."""

        def train() -> dict[str, Any]:
            content = self.steps(k, seed)
            inputs = self._of(seed, content["steps"], k)
            _, findings = train_superlms(inputs, self._out / f"k{k}-seed{seed}", self._reporter)
            tokens = content["steps"] * self.given.batch_size * self.given.seq_len
            return {**content, "tokens": tokens, "findings": list(map(str, findings))}

        return self.piece(f"k{k}-seed{seed}", train)

    def scoring(self, k: int, seed: int) -> dict[str, Any]:
        """Score all subnets, each in the SuperLM of its sub-space; every subnet is in exactly one."""

        def score() -> dict[str, Any]:
            losses: dict[str, float] = {}
            for part in self.parts[k]:
                model = load_model(superlm_folder(self._out / f"k{k}-seed{seed}", part.name), AutoDistilModel)
                self._inputs.device.place(model)
                inside = [subnet for subnet in {*self.subnets, *self.few} if holds(part, subnet)]
                losses |= {str(subnet): self.proxy.score(model, subnet) for subnet in inside}
            return {"losses": losses}

        return self.piece(f"k{k}-seed{seed}-scores", score)

    def alone(self, number: int, seed: int) -> dict[str, Any]:
        """Distil one of the few subnets alone, with the learning rate of its size."""
        name, subnet = f"alone-seed{seed}-{number:02}", self.few[number]

        def train() -> dict[str, Any]:
            config = replace(self._inputs.config, seed=seed, steps=self.given.alone_steps)
            inputs, folder = replace(self._inputs, config=config), self._out / name
            assert inputs.text is not None
            options, sample, more = options_alone(inputs.options_of(subnet)), inputs.sample_ids, (self._reporter,)
            model = begin_alone(inputs.teacher, subnet, options, config.init, sample)
            begun, title = inputs.text.begin(), f"alone: {subnet}"
            distill(model, inputs.teacher, begun, options, folder, inputs.device, *more, sample_ids=sample, title=title)
            tokens = options.steps * options.batch_size * self.given.seq_len
            return {"subnet": str(subnet), "loss": self.proxy.score(model), "lr": options.lr, "tokens": tokens}

        content = self.piece(name, train)
        shutil.rmtree(self._out / name, ignore_errors=True)  # large, and no longer needed
        return content

    def planned(self, k: int) -> dict[str, Any]:
        """Return the seconds and the memory that `plan` expects of a training, from timings of a few steps."""

        def plan() -> dict[str, Any]:
            inputs = self._of(0, self.steps(k, 0)["steps"], k)
            teacher, options, device = inputs.teacher, inputs.options, inputs.device
            plans = [make_plan(part, teacher, options, self.given.seq_len, device) for part in self.parts[k]]
            return {"planned_seconds": together(plans).hours * 3600, "planned_bytes": together(plans).memory.total}

        return self.piece(f"k{k}-plan", plan)

    def measure(self) -> None:
        """Measure all pieces of the given seeds that are not measured yet."""
        for k in self.given.k:
            self.planned(k)
        for seed, k in itertools.product(self.given.seeds, self.given.k):
            self.training(k, seed)
            self.scoring(k, seed)
        for seed, number in itertools.product(self.given.alone_seeds, range(ALONE)):
            self.alone(number, seed)


def holds(space: SearchSpace, subnet: Subnet) -> bool:
    """Return True if `subnet` is in `space`."""
    try:
        space.encode(subnet)
    except InputError:
        return False
    return True


class Comparison:
    """Tables and figure of the measured pieces.

    Attributes:
        costs: FLOPs of the scored subnets `(n,)`.
        losses: Their losses by K, `(seeds, n)`.
        inherited: Losses of the twelve subnets by K, `(seeds, 12)`.
        alone: Losses of the same subnets trained alone, `(alone seeds, 12)`.
    """

    def __init__(self, ablation: Ablation) -> None:
        self.ablation, given = ablation, ablation.given
        self.ks, self.seeds, self.alone_seeds = given.k, given.seeds, given.alone_seeds
        self.costs = np.array([flops(subnet) for subnet in ablation.subnets], dtype=float)
        self.losses, self.inherited = self._losses_of(ablation.subnets), self._losses_of(ablation.few)
        alone = [[ablation.alone(number, seed)["loss"] for number in range(ALONE)] for seed in self.alone_seeds]
        self.alone = np.array(alone).reshape(-1, ALONE)
        smallest, largest = map(flops, ablation.space.ends)
        self.edges: Array = np.geomspace(smallest, largest, BANDS + 1)
        self.bands = np.searchsorted(self.edges[1:-1], self.costs, side="right")

    def _losses_of(self, subnets: Sequence[Subnet]) -> dict[int, Array]:
        scored = {k: [self.ablation.scoring(k, seed)["losses"] for seed in self.seeds] for k in self.ks}
        names = list(map(str, subnets))
        return {k: np.array([[losses[name] for name in names] for losses in of_k]) for k, of_k in scored.items()}

    def _agreements(self, measured: Array, target: Array) -> tuple[Agreement, Agreement]:
        """Return Kendall's tau of losses of the twelve subnets, over all and within bands of FLOPs."""
        bands = self.ablation.few_bands
        return agreement(kendall, measured, target, 0 * bands), agreement(kendall, measured, target, bands)

    def measures(self, k: int) -> dict[str, Array]:
        """Return the measures of `k` by name, each with a value for every seed."""
        losses, largest = self.losses[k], flops(self.ablation.space.largest)
        reference = np.array([self.ablation.proxy.reference, MARGIN * largest])
        points = [np.column_stack([of_seed, self.costs]) for of_seed in losses]
        shares = [share_of_box(of_seed, np.zeros(2), reference) for of_seed in points]
        values = {"mean loss": losses.mean(axis=1), "hypervolume share": np.array(shares)}
        for band in np.unique(self.bands):
            inside, name = (
                losses[:, self.bands == band],
                "{:.0f}M to {:.0f}M".format(*self.edges[band : band + 2] / 1e6),
            )
            values |= {f"mean loss, {name}": inside.mean(axis=1), f"lowest loss, {name}": inside.min(axis=1)}
        if len(self.alone):
            target = self.alone.mean(axis=0)
            taus = [[tau.value for tau in self._agreements(of_seed, target)] for of_seed in self.inherited[k]]
            values |= dict(zip(("tau with training alone", "tau within bands"), np.array(taus).T, strict=True))
            values["loss inherited / alone"] = (self.inherited[k] / target).mean(axis=1)
        return values

    def text(self) -> str:
        """Return all tables in Markdown."""
        return "\n".join([*self._conditions(), "", *self._quality(), "", *self._ranking(), *self._cost(), ""])

    def _conditions(self) -> Iterator[str]:
        ablation, worst = self.ablation, 0.0
        yield f"Space {ablation.space.name}: {ablation.space}; {len(self.costs)} subnets are scored."
        yield f"Loss: {ablation.proxy.description}. The box of the hypervolume ends at that loss and at the most FLOPs."
        yield from ("", *head("K", "FLOPs of sub-spaces", "seed", "steps", "FLOPs, K = 1 is 1", "at equal steps"))
        for k, seed in itertools.product(self.ks, self.seeds):
            piece = ablation.training(k, seed)
            share = piece["flops"] / piece["flops_of_one"]
            worst = max(worst, abs(share - 1))
            ends = [f"{flops(part.smallest) / 1e6:.0f}M-{flops(part.largest) / 1e6:.0f}M" for part in ablation.parts[k]]
            equal_steps = share * ablation.given.budget / piece["steps"]
            yield row(k, ", ".join(ends), seed, f"{piece['steps']:,}", f"{share:.4f}", f"{equal_steps:.2f}")
        if worst > TOLERANCE:
            yield f"\nFLOPs differ by up to {worst:.1%}, because steps are whole; a larger --budget makes them equal."

    def _quality(self) -> Iterator[str]:
        n, values = len(self.seeds), {k: self.measures(k) for k in self.ks}
        first = values[self.ks[0]]
        differences = [f"K = {k} minus K = {self.ks[0]}" for k in self.ks[1:]]
        yield from head("measure", *(f"K = {k}" for k in self.ks), *differences)
        for name in first:
            paired = [interval(values[k][name] - first[name]) for k in self.ks[1:]]
            yield row(name, *(spread(values[k][name]) for k in self.ks), *paired)
        if n > 1:
            t = stats.t.ppf(0.975, n - 1)
            yield (
                f"\nMean ± standard deviation of {n} seeds. Differences are paired by seed, with 95 % intervals of "
                f"± {t:.2f} standard errors (Student's t, {n - 1} degrees of freedom). A mean difference below "
                f"{t / n**0.5:.1f} standard deviations cannot be told from chance. Chance alone gives the same sign in "
                f"all seeds with a probability of {0.5 ** (n - 1):.2g}. Seeds vary the sample of the start, the order "
                "of text and the subnets of each step. They do not vary space, text or teacher."
            )

    def _ranking(self) -> Iterator[str]:
        if not len(self.alone):
            return
        few, target = self.ablation.few, self.alone.mean(axis=0)
        yield from head("compared with training alone", "tau, 95 % interval", "tau within bands, 95 % interval")
        for k, (place, seed) in itertools.product(self.ks, enumerate(self.seeds)):
            yield row(f"K = {k}, seed {seed}", *self._agreements(self.inherited[k][place], target))
        for a, b in itertools.combinations(range(len(self.alone)), 2):
            name = f"alone, seed {self.alone_seeds[a]}, with seed {self.alone_seeds[b]}"
            yield row(name, *self._agreements(self.alone[a], self.alone[b]))
        yield (
            f"\nKendall's tau over {ALONE} subnets, or within {ALONE_BANDS} bands of {ALONE // ALONE_BANDS}; intervals "
            "by bootstrap over the subnets. Target: the mean loss of training alone for "
            f"{self.ablation.given.alone_steps} steps, seeds {', '.join(map(str, self.alone_seeds))}.\n"
        )
        yield from head("subnet", "FLOPs", "loss alone", *(f"inherited, K = {k}" for k in self.ks))
        for number, subnet in enumerate(few):
            cells = (spread(self.inherited[k][:, number]) for k in self.ks)
            yield row(subnet, f"{flops(subnet) / 1e6:.0f}M", spread(self.alone[:, number]), *cells)
        yield ""

    def _cost(self) -> Iterator[str]:
        columns = ("seconds", "planned", "CPU seconds", "threads", "peak GB of the process", "planned", "text tokens")
        yield from head("piece", *columns)
        for k, seed in itertools.product(self.ks, self.seeds):
            plan, name = self.ablation.planned(k), f"K = {k}, seed {seed}"
            planned = f"{plan['planned_seconds']:,.0f}", f"{plan['planned_bytes'] / 1e9:.2f}"
            yield cost_row(f"training, {name}", [self.ablation.training(k, seed)], planned)
            yield cost_row(f"scoring, {name}", [self.ablation.scoring(k, seed)])
        for seed in self.alone_seeds:
            alone = [self.ablation.alone(number, seed) for number in range(ALONE)]
            yield cost_row(f"{ALONE} subnets alone, seed {seed}", alone)
        yield "\nTimes with ≥ lack earlier sessions of a stopped training. Peaks include what earlier pieces left."

    def table(self) -> pd.DataFrame:
        """Return a row for each K, seed and scored subnet."""
        rows = [
            {"k": k, "seed": seed, **subnet.to_row(), "flops": flops(subnet), "relation_loss": loss}
            for k in self.ks
            for seed, losses in zip(self.seeds, self.losses[k], strict=True)
            for subnet, loss in zip(self.ablation.subnets, losses, strict=True)
        ]
        return pd.DataFrame(rows)

    def draw(self, path: Path) -> None:
        """Draw the frontiers of all seeds, the differences from the first K, and inherited against own weights."""
        figure, panels = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
        for number, k in enumerate(self.ks):
            style: dict[str, Any] = {"color": LIGHT[series_colour(number)], "lw": 1}
            marker, losses = series_marker(number).matplotlib, self.losses[k]
            for seed, of_seed in enumerate(losses):
                points = np.column_stack([self.costs, of_seed])
                front = points[is_on_frontier(points)]
                front, label = front[front[:, 0].argsort()], None if seed else f"K = {k}"
                panels[0].step(*front.T, where="post", marker=marker, ms=2.5, label=label, **style)
            change = losses.mean(axis=0) - self.losses[self.ks[0]].mean(axis=0)
            panels[1].plot(self.costs, change, *(["-"] if number == 0 else [marker]), ms=3.5, alpha=0.7, **style)
            if len(self.alone):
                bars, own = self.inherited[k].std(axis=0), self.alone.mean(axis=0)
                panels[2].errorbar(own, self.inherited[k].mean(axis=0), bars, fmt=marker, ms=4.5, **style)
                panels[2].axline((own.mean(), own.mean()), slope=1, color=LIGHT["quiet"], lw=0.8, ls=":")
        panels[0].set(title="Frontiers, a line for each seed", ylabel="held-out relation loss, lower is better")
        panels[1].set(title=f"Each subnet, mean of the seeds, minus K = {self.ks[0]}", ylabel="difference of the loss")
        panels[2].set(title="Subnets trained alone", xlabel="loss of training alone", ylabel="loss in the SuperLM")
        for axes in panels[:2]:
            axes.set(xscale="log", xlabel="FLOPs (multiply-adds, 128 tokens)")
            axes.set_xticks(self.edges, [f"{edge / 1e6:.0f}M" for edge in self.edges])
            axes.minorticks_off()
        for axes in panels:
            axes.grid(alpha=0.3)
        panels[0].legend(frameon=False)
        figure.savefig(path, dpi=120)


def head(*names: str) -> tuple[str, str]:
    """Return the first two lines of a table."""
    return row(*names), "|---" * len(names) + "|"


def row(*cells: object) -> str:
    """Return a line of a table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def spread(values: Array) -> str:
    """Return mean and standard deviation, or a single value, as text."""
    return f"{values.mean():.4f} ± {values.std(ddof=1):.4f}" if len(values) > 1 else f"{values[0]:.4f}"


def interval(differences: Array) -> str:
    """Return the mean of paired differences with its 95 % interval by Student's t, as text."""
    n, mean = len(differences), differences.mean()
    if n == 1:
        return f"{mean:+.4f}"
    half = stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / n**0.5
    return f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]"


def cost_row(name: str, pieces: Sequence[dict[str, Any]], planned: tuple[str, str] = ("", "")) -> str:
    """Return the line of pieces in the table of costs."""
    total, cpu = (sum(piece[key] for piece in pieces) for key in ("seconds", "cpu_seconds"))
    tokens, peak = sum(piece.get("tokens", 0) for piece in pieces), max(piece["peak_bytes"] for piece in pieces)
    seconds = f"{'≥ ' * any(piece['resumed'] for piece in pieces)}{total:,.0f}"
    cells = (seconds, planned[0], f"{cpu:,.0f}", pieces[0]["threads"], f"{peak / 1e9:.2f}", planned[1])
    return row(name, *cells, f"{tokens:,}" if tokens else "")


def whole_numbers(text: str) -> list[int]:
    """Return the whole numbers of a list with commas."""
    return [int(word) for word in text.split(",") if word.strip()]


def main() -> None:
    """Measure the missing pieces, then write and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument(
        "--space", help="space without choices per layer; by default 640 subnets, 3-7 layers, 128-352 wide"
    )
    parser.add_argument("--teacher", default=PACKAGED)
    parser.add_argument("--text", nargs="+", help="files or hf:NAME; the packaged text if not given")
    parser.add_argument(
        "--k", type=whole_numbers, default=[1, 2, 4], help="numbers of sub-spaces; the first is compared"
    )
    parser.add_argument("--seeds", type=whole_numbers, default=[0, 1, 2])
    parser.add_argument("--alone-seeds", type=whole_numbers, default=[0], help='of training alone; "" for none')
    parser.add_argument("--budget", type=int, default=1600, help="steps of K = 1, which set the FLOPs of every K")
    parser.add_argument("--alone-steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--sampling", default="sandwich")
    parser.add_argument("--init", default="fitted", help="start of all models; auto may choose another one for each K")
    parser.add_argument("--subnets", type=int, default=256, help="number of scored subnets")
    parser.add_argument("--eval-blocks", type=int, default=32)
    given = parser.parse_args()
    if not given.k or not given.seeds:
        parser.error("--k and --seeds need at least one number each")
    try:
        ablation = Ablation(given)
        ablation.measure()
        comparison = Comparison(ablation)
    except (InputError, Terminated) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    out, text = Path(given.out), comparison.text()
    write_atomically(out / "k_shot.md", lambda path: path.write_text(text))
    write_atomically(out / "scores.csv", lambda path: comparison.table().to_csv(path, index=False))
    comparison.draw(out / "k_shot.png")
    print(text)


if __name__ == "__main__":
    main()
