"""Scoring many subnets at once against scoring each on its own, in one run.

    python benchmarks/scoring.py [--subnets 256] [--blocks 32]

"Shared" is `RelationProxy`: the teacher runs once, its relations serve every subnet, the last layer stops at its
projections. "Separate" makes a `RelationProxy` for each subnet, so that each has its own teacher pass.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

import torch

from autodistil_search.base.device import choose_device
from autodistil_search.base.files import cache_folder
from autodistil_search.nas.label_free_proxies import BLOCKS_AT_ONCE, RelationProxy
from autodistil_search.spaces.search_space import load_space
from autodistil_search.teachers import initial_weights
from autodistil_search.teachers.loading import load_teacher
from autodistil_search.text.token_store import load_corpus


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subnets", type=int, default=256, help="drawn evenly from the space")
    parser.add_argument("--blocks", type=int, default=32, help="held-out blocks of 128 tokens")
    arguments = parser.parse_args()
    device = choose_device()
    teacher, space = load_teacher(device=device.name), load_space("tiny")
    corpus = load_corpus(["packaged"], teacher.tokenizer, cache_folder())
    blocks = corpus.blocks(128)[1].spread(arguments.blocks)
    superlm, _ = initial_weights.superlm(teacher, space, "slices")
    device.place(superlm)
    genomes = list(space.genomes())
    random.Random(0).shuffle(genomes)
    subnets = [space.decode(genome) for genome in genomes[: arguments.subnets]]

    def make() -> RelationProxy:
        return RelationProxy(teacher, blocks, space.relation_heads, "kl", device)

    def score_all() -> list[float]:
        proxy = make()
        return [proxy.score(superlm, subnet) for subnet in subnets]

    make().score(superlm, space.largest)  # warm up
    shared = seconds(score_all)
    separate = seconds(lambda: [make().score(superlm, subnet) for subnet in subnets])
    batches = blocks.to(device.name).split(BLOCKS_AT_ONCE)

    def encode_all() -> None:
        with torch.no_grad(), device.autocast():
            for subnet in subnets:
                for batch in batches:
                    superlm.last_projections(batch, subnet=subnet)

    encoder, teacher_pass = seconds(encode_all), seconds(make)
    print(f"{len(subnets)} subnets of tiny, {len(blocks)} blocks of 128 tokens, {device.name} {device.precision}\n")
    print("| | seconds | ratio |\n|---|---|---|")
    for name, took in (
        ("separate: a teacher pass for each subnet", separate),
        ("shared: one teacher pass for all", shared),
        ("of which teacher and its relations", teacher_pass),
        ("of which encoder", encoder),
        ("the rest: relation loss", shared - teacher_pass - encoder),
    ):
        print(f"| {name} | {took:.1f} | {took / separate:.2f} |")


if __name__ == "__main__":
    main()
