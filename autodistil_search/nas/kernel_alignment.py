"""Centred kernel alignment (CKA) of two representations of the same examples, with linear kernels.

CKA is invariant to translations, orthogonal maps and isotropic scaling of either side (Kornblith et al., 2019, arXiv
1905.00414). The usual estimate is biased: it grows with the widths of unrelated representations, and would favour wide
students. Here the Hilbert-Schmidt independence criterion (HSIC) has its unbiased estimate (Song et al., 2012, Journal
of Machine Learning Research 13, equation 5), as in Nguyen et al. (2021, arXiv 2010.15327).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autodistil_search.base.device import as_float64
from autodistil_search.base.errors import InputError

_EQUAL = 1e-12
"""Variance of states that are equal up to rounding in float32, as a share of their mean square."""


def linear_hsic(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Return the unbiased estimate of HSIC with linear kernels, a float64 scalar.

    The Gram matrices `(n, n)` of the examples are never formed. Time is O(n H H') and memory O(H H').

    Args:
        a: Batches of one representation, `(n_i, H)` each.
        b: Batches of the other representation of the same examples, `(n_i, H')` each.

    Raises:
        InputError: for fewer than four examples, for which there is no such estimate.
    """
    n = sum(map(len, a))
    if n < 4:
        raise InputError(f"kernel alignment of {n} tokens; allowed: four or more, which take more text")
    means = [_mean(side, n) for side in (a, b)]  # the estimate does not depend on them, its rounding does
    sums = [torch.zeros_like(mean) for mean in means]
    mixed = torch.zeros(len(means[0]), len(means[1]), dtype=torch.float64, device=means[0].device)
    weighted = [torch.zeros_like(mean) for mean in means]  # sums over examples, weighted by the other side's norms
    norms = torch.zeros(3, dtype=torch.float64, device=means[0].device)
    for batches in zip(a, b, strict=True):
        x, y = (as_float64(batch) - mean for batch, mean in zip(batches, means, strict=True))
        of_x, of_y = x.square().sum(1), y.square().sum(1)
        mixed += x.mT @ y
        sums = [sums[0] + x.sum(0), sums[1] + y.sum(0)]
        weighted = [weighted[0] + of_y @ x, weighted[1] + of_x @ y]
        norms += torch.stack([of_x.sum(), of_y.sum(), of_x @ of_y])
    in_a, in_b, in_both = norms
    # K and L are the Gram matrices with zeros on their diagonals.
    trace = mixed.square().sum() - in_both  # tr(K L)
    totals = (sums[0].square().sum() - in_a) * (sums[1].square().sum() - in_b)  # (1' K 1) (1' L 1)
    rows = sums[0] @ mixed @ sums[1] - sums[0] @ weighted[0] - sums[1] @ weighted[1] + in_both  # 1' K L 1
    hsic: Tensor = (trace + totals / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)) / (n * (n - 3))
    return hsic


def linear_cka(a: Sequence[Tensor], b: Sequence[Tensor], of_b: Tensor | None = None) -> float:
    """Return the linear CKA of two representations, by unbiased estimates of HSIC.

    The estimates are inner products of U-centred Gram matrices (Székely and Rizzo, 2014, arXiv 1310.2926). So the
    alignment lies between -1 and 1, and is 1 for representations that differ by an invariance. It is 0 on average for
    independent ones, and 0 if either side is the same for all examples.

    Args:
        a: Batches of one representation, `(n_i, H)` each.
        b: Batches of the other representation of the same examples, `(n_i, H')` each.
        of_b: `linear_hsic(b, b)`, if known.
    """
    of_b = linear_hsic(b, b) if of_b is None else of_b
    alignment = linear_hsic(a, b) / (linear_hsic(a, a) * of_b).sqrt()
    alike = torch.stack([_all_equal(a), _all_equal(b)]).any()
    return float(torch.where(alike, torch.zeros_like(alignment), alignment))


def _mean(batches: Sequence[Tensor], n: int) -> Tensor:
    return torch.stack([as_float64(batch).sum(0) for batch in batches]).sum(0) / n


def _all_equal(batches: Sequence[Tensor]) -> Tensor:
    """Return True as a tensor if all examples have the same representation, up to rounding."""
    n = sum(map(len, batches))
    mean = _mean(batches, n)
    spread = torch.stack([(as_float64(batch) - mean).square().sum() for batch in batches]).sum()
    return spread <= _EQUAL * n * mean.square().sum()
