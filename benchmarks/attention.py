"""Plain attention (matmul, softmax, matmul) against `scaled_dot_product_attention`, forward and backward, in one run.

    python benchmarks/attention.py

On shapes of `tiny` and `base`: batch 8, 128 tokens.
"""

from __future__ import annotations

import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor

SHAPES = {"tiny largest": (8, 10, 128, 16), "tiny smallest": (8, 7, 128, 16), "base": (8, 12, 128, 48)}


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention as three operations."""
    weights: Tensor = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(dim=-1)
    return weights @ value


def milliseconds(attention: object, shape: tuple[int, ...], backward: bool) -> float:
    """Median over 20 calls."""
    assert callable(attention)
    inputs = [torch.randn(shape, requires_grad=backward) for _ in range(3)]
    times = []
    for _ in range(25):
        start = time.perf_counter()
        out = attention(*inputs)
        if backward:
            out.sum().backward()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[5:])


def main() -> None:
    """Measure and print a Markdown table."""
    print("| shape | | plain ms | fused ms | plain / fused |\n|---|---|---|---|---|")
    for name, shape in SHAPES.items():
        for backward in (False, True):
            ours = milliseconds(plain, shape, backward)
            fused = milliseconds(F.scaled_dot_product_attention, shape, backward)
            what = "forward and backward" if backward else "forward"
            print(f"| {name} | {what} | {ours:.2f} | {fused:.2f} | {ours / fused:.2f} |")


if __name__ == "__main__":
    main()
