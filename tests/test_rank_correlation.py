"""Rank correlations against SciPy's, within groups by hand, and their intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr

from autodistil_search.nas import rank_correlation as module
from autodistil_search.nas.rank_correlation import agreement, gain, resampled, signs


def kendall(a, b, groups):
    return agreement(module.kendall, a, b, groups).value


def spearman(a, b, groups):
    return agreement(module.spearman, a, b, groups).value


SMALL = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=30)


@given(SMALL)
def test_of_one_group_they_are_scipys(pairs):
    a, b = np.array(pairs, dtype=float).T
    one = np.zeros(len(a), dtype=np.int64)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert np.isnan(kendall(a, b, one))
        assert np.isnan(spearman(a, b, one))
        return
    assert kendall(a, b, one) == pytest.approx(kendalltau(a, b).statistic)
    assert spearman(a, b, one) == pytest.approx(spearmanr(a, b).statistic)


def test_only_pairs_of_one_group_count():
    groups = np.array([0, 0, 0, 1, 1, 1])
    a = np.array([1.0, 2, 3, 11, 12, 13])
    b = np.array([3.0, 2, 1, 13, 12, 11])  # reversed within each group, and alike between them
    assert kendall(a, b, groups) == spearman(a, b, groups) == -1
    assert kendall(a, b, np.zeros(6, dtype=np.int64)) == pytest.approx((9 - 6) / 15)
    half = np.array([1.0, 2, 3, 13, 12, 11])
    assert kendall(a, half, groups) == spearman(a, half, groups) == 0


@given(SMALL, st.integers(0, 100))
def test_nothing_depends_on_what_is_added_to_a_group(pairs, shift):
    a, b = np.array(pairs, dtype=float).T
    groups = np.arange(len(a)) % 2
    moved = a + shift * groups
    for statistic in (kendall, spearman):
        np.testing.assert_allclose(statistic(a, b, groups), statistic(moved, b, groups))


@pytest.mark.parametrize(("statistic", "scipys"), [(module.kendall, kendalltau), (module.spearman, spearmanr)])
def test_a_resample_given_as_counts_is_that_resample(statistic, scipys):
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, (2, 20)).astype(float)
    counts = resampled(np.zeros(20, dtype=np.int64), 50)
    found = statistic(signs(a, np.zeros(20)), signs(b, np.zeros(20)), counts)
    for value, count in zip(found, counts.astype(int), strict=True):
        rows = np.repeat(np.arange(20), count)
        assert value == pytest.approx(scipys(a[rows], b[rows]).statistic)


def test_a_resample_has_as_many_of_each_group():
    groups = np.array([0, 0, 0, 1, 1])
    counts = resampled(groups, 100)
    assert (counts[:, :3].sum(1) == 3).all()
    assert (counts[:, 3:].sum(1) == 2).all()


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth = 2 / np.pi * np.arcsin(0.6)  # tau of normal variables with correlation 0.6
    held = 0
    for _ in range(100):
        a = rng.normal(size=40)
        b = 0.6 * a + 0.8 * rng.normal(size=40)
        found = agreement(module.kendall, a, b, np.zeros(40, dtype=np.int64))
        assert found.low <= found.value <= found.high
        held += found.low <= truth <= found.high
    assert 88 <= held <= 100


def test_a_better_measure_is_told_from_a_worse_one_and_a_like_one_is_not():
    rng = np.random.default_rng(1)
    target = rng.normal(size=40)
    good, bad = target + 0.1 * rng.normal(size=40), rng.normal(size=40)
    one = np.zeros(40, dtype=np.int64)
    assert gain(module.kendall, good, bad, target, one).low > 0
    assert gain(module.kendall, bad, good, target, one).high < 0
    alike = gain(module.kendall, good, good + 1, target, one)
    assert (alike.value, alike.low, alike.high) == (0, 0, 0)


def test_of_what_is_constant_nothing_is_known():
    found = agreement(module.kendall, np.ones(5), np.arange(5.0), np.zeros(5, dtype=np.int64))
    assert np.isnan([found.value, found.low, found.high]).all()
