"""Linear centred kernel alignment against its definition by Gram matrices, and its invariances."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from autodistil_search.base.errors import InputError
from autodistil_search.nas.kernel_alignment import linear_cka, linear_hsic

seeds = st.integers(0, 2**32 - 1)
sizes = st.tuples(st.integers(4, 12), st.integers(1, 9), st.integers(1, 9))


def drawn(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.standard_normal(shape)) for shape in shapes]


def by_gram_matrices(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate of HSIC, as Song et al. (2012) define it."""
    n = len(x)
    k, l_ = (side @ side.T * (1 - torch.eye(n)) for side in (x, y))
    ones = torch.ones(n, dtype=torch.float64)
    totals = (ones @ k @ ones) * (ones @ l_ @ ones) / ((n - 1) * (n - 2))
    return float(((k @ l_).trace() + totals - 2 / (n - 2) * ones @ k @ l_ @ ones) / (n * (n - 3)))


@given(seeds, sizes)
def test_hsic_is_that_of_the_gram_matrices_for_any_batches(seed: int, size: tuple[int, int, int]) -> None:
    n, width, other = size
    x, y, shift = drawn(seed, (n, width), (n, other), (width,))
    cut = seed % (n - 1) + 1
    batches = [[side[:cut], side[cut:]] for side in (x + 3 * shift, y)]
    assert float(linear_hsic(*batches)) == pytest.approx(by_gram_matrices(x, y), abs=1e-9 * width * other)


@given(seeds, st.integers(2, 8), st.floats(1e-3, 1e3))
def test_alignment_is_invariant_to_translations_orthogonal_maps_and_scaling(
    seed: int, width: int, scale: float
) -> None:
    x, y, shift, noise = drawn(seed, (20, width), (20, 5), (width,), (width, width))
    turned = scale * x @ torch.linalg.qr(noise)[0] + shift
    assert linear_cka([turned], [x]) == pytest.approx(1, abs=1e-9)
    assert linear_cka([turned], [y]) == pytest.approx(linear_cka([x], [y]), abs=1e-9)
    assert linear_cka([y], [x]) == pytest.approx(linear_cka([x], [y]), abs=1e-12)
    assert abs(linear_cka([x], [y])) <= 1 + 1e-12
    assert linear_cka([x], [y], linear_hsic([y], [y])) == linear_cka([x], [y])


def test_unrelated_representations_score_zero_on_average_however_wide() -> None:
    """The biased estimate of 40 wide examples would be near 1."""
    scores = [linear_cka(*([side] for side in drawn(seed, (40, 400), (40, 300)))) for seed in range(60)]
    assert np.mean(scores) == pytest.approx(0, abs=4 * np.std(scores) / 60**0.5)
    assert np.std(scores) < 0.1


def test_a_large_mean_in_float32_costs_no_digits() -> None:
    x, y = (side.float() for side in drawn(0, (64, 6), (64, 3)))
    y[:, 0] += x[:, 0]
    moved = x + 2**10
    exact = linear_cka([moved.double() - 2**10], [y])
    assert linear_cka([moved], [y]) == pytest.approx(exact, abs=1e-12)


def test_states_that_are_all_equal_align_with_nothing() -> None:
    (x,) = drawn(0, (10, 4))
    alike = torch.full((10, 3), 0.1, dtype=torch.float32)
    assert linear_cka([x], [alike]) == linear_cka([alike], [x]) == 0
    assert np.isnan(linear_cka([x], [x * torch.nan]))


def test_fewer_than_four_examples_are_refused() -> None:
    with pytest.raises(InputError, match="alignment of 3 tokens; allowed: four or more"):
        linear_hsic(*([side] for side in drawn(0, (3, 2), (3, 2))))
