"""What a start gives on `tiny`: held-out loss before training and after equal steps, mean and spread over seeds.

    python benchmarks/starts.py --starts slices pca --steps 60 --seeds 0 1 2

The loss is the mean over 18 subnets: the largest, the smallest and 16 drawn ones. What was measured before is read
from --results, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from autodistil_search.base.device import Device, choose_device
from autodistil_search.base.files import cache_folder
from autodistil_search.base.seeding import seeded
from autodistil_search.distillation.options import TrainOptions
from autodistil_search.distillation.training_loop import distill
from autodistil_search.nas.label_free_proxies import RelationProxy
from autodistil_search.spaces.search_space import load_space
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.teachers import initial_weights
from autodistil_search.teachers.loading import load_teacher
from autodistil_search.teachers.teacher import Teacher
from autodistil_search.text.blocks import Blocks
from autodistil_search.text.token_store import load_corpus

HELD_OUT_BLOCKS = 16


BLOCKS = "pca, relation heads in blocks"
"""The default start with another layout of the last layer: a relation head of every subnet is a block of dimensions."""


def begin(name: str, teacher: Teacher, train: Blocks) -> AutoDistilModel:
    """A SuperLM of `tiny` before its training."""
    space = load_space("tiny")
    config = teacher.student_config(space.largest, space)
    if name == BLOCKS:
        config.relation_heads = None
    superlm = AutoDistilModel(config)
    init = name.partition(",")[0]
    initial_weights.start_from(
        superlm, teacher, init, train.spread(initial_weights.SAMPLE_BLOCKS), space.relation_heads
    )
    return superlm


def measure(
    name: str, options: TrainOptions, teacher: Teacher, train: Blocks, proxy: RelationProxy, device: Device
) -> dict[str, Any]:
    """The losses of the 18 subnets before and after training."""
    space = load_space("tiny")
    rng = random.Random(5)
    subnets = [space.largest, space.smallest, *(space.sample(rng) for _ in range(16))]
    with seeded(options.seed):
        superlm = begin(name, teacher, train)
    device.place(superlm)
    before = [proxy.score(superlm, subnet) for subnet in subnets]
    with tempfile.TemporaryDirectory() as folder:
        distill(superlm, teacher, train, options, Path(folder), device)
    return {"before": before, "after": [proxy.score(superlm, subnet) for subnet in subnets]}


def spread(values: list[float]) -> str:
    """Mean and, of several, the standard deviation."""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def main() -> None:
    """Measure what was not measured yet and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--starts", nargs="+", choices=[*initial_weights.STARTS, BLOCKS], default=["slices", BLOCKS, "pca"]
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--results", type=Path, default=Path("runs/starts.jsonl"))
    given = parser.parse_args()
    rows = [json.loads(line) for line in given.results.read_text().splitlines()] if given.results.exists() else []
    given.results.parent.mkdir(parents=True, exist_ok=True)
    device = choose_device()
    teacher = load_teacher(device=device.name)
    train, held_out = load_corpus(["packaged"], teacher.tokenizer, cache_folder()).blocks(128)
    proxy = RelationProxy(teacher, held_out.spread(HELD_OUT_BLOCKS), 16, "kl", device)
    print("| start | steps | seeds | mean before | mean after | largest | smallest |\n|---|---|---|---|---|---|---|")
    for name in given.starts:
        found = []
        for seed in given.seeds:
            setting = {"start": name, "steps": given.steps, "batch": given.batch_size, "lr": given.lr, "seed": seed}
            setting |= {"computed_in": f"{device.precision} on {device.name}"}
            row = next((row for row in rows if setting.items() <= row.items()), None)
            if row is None:
                options = TrainOptions(given.steps, given.batch_size, given.lr, seed, random_subnets=3)
                row = setting | measure(name, options, teacher, train, proxy, device)
                with given.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            found.append(row)
        losses = [[mean(row["before"]), mean(row["after"]), row["after"][0], row["after"][1]] for row in found]
        cells = " | ".join(spread(list(column)) for column in zip(*losses, strict=True))
        print(f"| {name} | {given.steps} | {len(found)} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
