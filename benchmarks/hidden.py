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
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor

from autodistil_search import start
from autodistil_search.corpus import Blocks, load_corpus
from autodistil_search.device import Device, choose_device
from autodistil_search.distill import TrainOptions, distill
from autodistil_search.files import cache_folder
from autodistil_search.proxies import HiddenProxy, RelationProxy
from autodistil_search.schedule import seeded
from autodistil_search.space import Subnet, load_space
from autodistil_search.tasks.data import Rows, load_task
from autodistil_search.teacher import Teacher, load_teacher

HELD_OUT_BLOCKS = 32

MEASURED = ("seconds a step", "relation loss", "hidden loss", "STS-B")


@torch.no_grad()
def sentence_vectors(model: Any, tokenizer: Any, sentences: Sequence[str]) -> Tensor:
    """The mean hidden state of each sentence, of length 1: `(N, H)`."""
    found = []
    for first in range(0, len(sentences), 64):
        rows = tokenizer(list(sentences[first : first + 64]), padding=True, truncation=True, return_tensors="pt")
        hidden = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).last_hidden_state
        real = rows["attention_mask"][..., None]
        found.append(F.normalize((hidden * real).sum(1) / real.sum(1), dim=-1))
    return torch.cat(found)


def rank_correlation(model: Any, tokenizer: Any, rows: Rows) -> float:
    """Spearman's rho of the cosines of pairs of sentences and the scores that people gave them."""
    assert rows.second is not None
    first, second = (sentence_vectors(model, tokenizer, side) for side in (rows.first, rows.second))
    return float(spearmanr((first * second).sum(-1), rows.labels).statistic)


def measure(
    options: TrainOptions, teacher: Teacher, train: Blocks, held_out: Blocks, dev: Rows, device: Device
) -> dict[str, float]:
    """Train a SuperLM of `tiny`, and measure its subnets."""
    space, sample = load_space("tiny"), train.spread(start.SAMPLE_BLOCKS)
    blocks = held_out.spread(HELD_OUT_BLOCKS)
    relation, hidden = (
        RelationProxy(teacher, blocks, space.relation_heads, "kl", device),
        HiddenProxy(teacher, blocks, device),
    )
    with seeded(options.seed):
        superlm, _ = start.superlm(teacher, space, "pca", sample)
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
        "STS-B": mean(rank_correlation(each, teacher.tokenizer, dev) for each in students),
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
    teacher, dev = load_teacher(), load_task(str(given.data / "glue" / "STS-B")).dev
    text = [str(given.data / "wiki" / "train.txt.gz")]
    train, held_out = load_corpus(text, teacher.tokenizer, cache_folder()).blocks(128)
    print("| weight | " + " | ".join(MEASURED) + " |\n" + "|---" * (1 + len(MEASURED)) + "|")
    for weight in given.weights:
        setting = {"weight": weight, "steps": given.steps, "batch": given.batch_size, "lr": given.lr}
        setting |= {"seed": given.seed, "computed_in": device.precision}
        row = next((row for row in rows if setting.items() <= row.items()), None)
        if row is None:
            options = TrainOptions(given.steps, given.batch_size, given.lr, given.seed, hidden=weight)
            row = setting | measure(options, teacher, train, held_out, dev, device)
            with given.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
        print(f"| {weight:g} | " + " | ".join(f"{row[name]:.3f}" for name in MEASURED) + " |", flush=True)
    print(f"teacher, STS-B: {rank_correlation(teacher.model, teacher.tokenizer, dev):.3f}")


if __name__ == "__main__":
    main()
