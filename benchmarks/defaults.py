"""What a batch size, number of steps and learning rate give on `tiny` in one short run.

python benchmarks/defaults.py --batch-size 4 --steps 200 --lr 4e-3
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from statistics import mean

from autodistil_search import start
from autodistil_search.corpus import load_corpus
from autodistil_search.device import choose_device
from autodistil_search.distill import TrainOptions, distill
from autodistil_search.files import cache_folder
from autodistil_search.proxies import RelationProxy
from autodistil_search.schedule import seeded
from autodistil_search.space import load_space
from autodistil_search.teacher import load_teacher


def main() -> None:
    """Train, score 16 subnets and print a row of a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--sampling", default="largest-random")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    device, space = choose_device(), load_space("tiny")
    teacher = load_teacher(device=device.name)
    train, held_out = load_corpus(["packaged"], teacher.tokenizer, cache_folder()).blocks(128)
    with seeded(given.seed):
        superlm, _ = start.superlm(teacher, space, "slices")
    options = TrainOptions(given.steps, given.batch_size, given.lr, given.seed, sampling=given.sampling)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        distill(superlm, teacher, train, options, Path(folder), device)
    took = time.perf_counter() - began
    proxy = RelationProxy(teacher, held_out.spread(32), space.relation_heads, "kl", device)
    rng = random.Random(5)
    subnets = [space.largest, space.smallest, *(space.sample(rng) for _ in range(14))]
    losses = [proxy.score(superlm, subnet) for subnet in subnets]
    print("| batch x steps | lr | mean | largest | smallest | seconds |\n|---|---|---|---|---|---|")
    print(
        f"| {given.batch_size} x {given.steps} | {given.lr:g} | {mean(losses):.3f} "
        f"| {losses[0]:.3f} | {losses[1]:.3f} | {took:.0f} |"
    )


if __name__ == "__main__":
    main()
