"""Count every shipped subnet with fvcore and torch, and compare with the formulas: 768 students, some five minutes.

    python benchmarks/costs.py

The tests reach the same by counting one-layer students of all widths and whole students at the ends of each space.
"""

from __future__ import annotations

import time

import torch
from fvcore.nn import FlopCountAnalysis

from autodistil_search.spaces.cost import FLOPS_SEQ_LEN, Vocabulary, flops, params
from autodistil_search.spaces.search_space import load_space
from autodistil_search.superlm.model import AutoDistilConfig, AutoDistilModel


def main() -> None:
    """Count and print a Markdown table."""
    print("| space | subnets | params equal `numel` | FLOPs equal fvcore | layer norms, which fvcore adds | seconds |")
    print("|---|---|---|---|---|---|")
    for name in ("tiny", "small", "base"):
        space, start = load_space(name), time.perf_counter()
        equal_params = equal_flops = 0
        most_norm = 0.0
        for genome in space.genomes():
            subnet = space.decode(genome)
            with torch.device("meta"):
                student = AutoDistilModel(AutoDistilConfig().resized(subnet)).eval()
                token_ids = torch.zeros(1, FLOPS_SEQ_LEN, dtype=torch.long)
            counted = FlopCountAnalysis(student, token_ids).unsupported_ops_warnings(False).by_operator()
            equal_params += params(subnet, Vocabulary()) == sum(each.numel() for each in student.parameters())
            equal_flops += flops(subnet) == counted["linear"] + counted["matmul"]
            most_norm = max(most_norm, counted["layer_norm"] / flops(subnet))
        took = time.perf_counter() - start
        print(f"| {name} | {space.size} | {equal_params} | {equal_flops} | at most {most_norm:.2%} | {took:.0f} |")


if __name__ == "__main__":
    main()
