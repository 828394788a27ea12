"""What the term of the last hidden states gives on `tiny`, after equal steps, for some of its weights.

    python benchmarks/hidden.py --data DATA --weights 0 1 3 --steps 400

DATA holds `wiki/train.txt.gz` (paragraphs, one a line) and `glue/STS-B`. Means over the largest, the smallest and six
other subnets: the held-out relation loss; the held-out loss of hidden states (the share of the variance of the
teacher's that no linear map of the student's gives); and, with nothing trained on it, how well the cosines of sentence
vectors rank the pairs of STS-B's dev (Spearman's rho). What was measured before is read from --results.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from statistics import mean

from autodistil_search.base.device import Device, choose_device
from autodistil_search.base.files import cache_folder
from autodistil_search.base.seeding import seeded
from autodistil_search.base.user_input import PACKAGED
from autodistil_search.distillation.options import TrainOptions
from autodistil_search.distillation.training_loop import distill
from autodistil_search.nas.label_free_proxies import HiddenProxy, RelationProxy
from autodistil_search.nas.task_proxies import Pairs
from autodistil_search.spaces.search_space import load_space
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.tasks.labelled_data import load_task
from autodistil_search.teachers import initial_weights
from autodistil_search.teachers.loading import load_as_student, load_teacher
from autodistil_search.teachers.teacher import Teacher
from autodistil_search.text.blocks import Blocks
from autodistil_search.text.token_store import load_corpus

HELD_OUT_BLOCKS = 32

EXACT = Device("cpu", "fp32")
"""Where sentence vectors are computed."""

MEASURED = ("seconds a step", "relation loss", "hidden loss", "STS-B")


def measure(
    options: TrainOptions, teacher: Teacher, train: Blocks, held_out: Blocks, pairs: Pairs, device: Device
) -> dict[str, float]:
    """Train a SuperLM of `tiny`, and measure its subnets."""
    space, sample = load_space("tiny"), train.spread(initial_weights.SAMPLE_BLOCKS)
    blocks = held_out.spread(HELD_OUT_BLOCKS)
    relation, hidden = (
        RelationProxy(teacher, blocks, space.relation_heads, "kl", device),
        HiddenProxy(teacher, blocks, device),
    )
    with seeded(options.seed):
        superlm, _ = initial_weights.superlm(teacher, space, "pca", sample)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        distill(superlm, teacher, train, options, Path(folder), device, sample_ids=sample)
    seconds = (time.perf_counter() - begun) / options.steps
    rng = random.Random(5)
    subnets: list[Subnet] = [space.largest, space.smallest, *(space.sample(rng) for _ in range(6))]
    students = [superlm.extract(subnet) for subnet in subnets]
    return {
        "seconds a step": seconds,
        "relation loss": mean(map(relation.score, students)),
        "hidden loss": mean(map(hidden.score, students)),
        "STS-B": mean(pairs.correlation(each, EXACT) for each in students),
    }


def main() -> None:
    """Measure what was not measured yet and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder with wiki/ and glue/")
    parser.add_argument("--weights", nargs="+", type=float, default=[0.0, 1.0, 3.0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("runs/hidden.jsonl"))
    given = parser.parse_args()
    rows = [json.loads(line) for line in given.results.read_text().splitlines()] if given.results.exists() else []
    given.results.parent.mkdir(parents=True, exist_ok=True)
    device = choose_device("cpu")
    teacher = load_teacher()
    pairs = Pairs(load_task(str(given.data / "glue" / "STS-B")).dev, teacher.tokenizer, 128)
    text = [str(given.data / "wiki" / "train.txt.gz")]
    train, held_out = load_corpus(text, teacher.tokenizer, cache_folder()).blocks(128)
    print("| weight | " + " | ".join(MEASURED) + " |\n" + "|---" * (1 + len(MEASURED)) + "|")
    for weight in given.weights:
        setting = {"weight": weight, "steps": given.steps, "batch": given.batch_size, "lr": given.lr}
        setting |= {"seed": given.seed, "computed_in": device.precision}
        row = next((row for row in rows if setting.items() <= row.items()), None)
        if row is None:
            options = TrainOptions(given.steps, given.batch_size, given.lr, given.seed, hidden=weight)
            row = setting | measure(options, teacher, train, held_out, pairs, device)
            with given.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
        print(f"| {weight:g} | " + " | ".join(f"{row[name]:.3f}" for name in MEASURED) + " |", flush=True)
    print(f"teacher, STS-B: {pairs.correlation(load_as_student(PACKAGED, teacher), EXACT):.3f}")


if __name__ == "__main__":
    main()
