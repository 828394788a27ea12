"""Frontier, hypervolume and knee, against definitions and closed forms."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autodistil_search.nas.pareto import box_of, hypervolume, hypervolume_gains, is_on_frontier, knee, share_of_box

few = settings(deadline=None, max_examples=80)


def point_sets(elements, most_objectives=4):
    """`(n, m)` arrays; whole numbers from few values give ties and equal rows."""
    shape = st.tuples(st.integers(1, 14), st.integers(1, most_objectives))
    return shape.flatmap(lambda size: arrays(np.float64, size, elements=elements))


coarse = st.integers(0, 3).map(float)
fine = st.floats(-1e6, 1e6)


def dominates(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def frontier_by_definition(values):
    rows = values.tolist()
    return [not any(dominates(other, row) for other in rows) for row in rows]


@few
@given(st.one_of(point_sets(coarse), point_sets(fine)))
def test_the_frontier_is_the_rows_that_no_row_dominates(values):
    assert is_on_frontier(values).tolist() == frontier_by_definition(values)


def test_equal_rows_are_all_on_the_frontier():
    values = np.array([[1.0, 2.0], [2.0, 2.0], [1.0, 2.0], [0.0, 3.0]])
    assert is_on_frontier(values).tolist() == [True, False, True, True]


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_no_rows_have_no_frontier_and_no_volume(objectives):
    values = np.zeros((0, objectives))
    assert is_on_frontier(values).tolist() == []
    assert hypervolume(values, np.ones(objectives)) == 0.0


@pytest.mark.parametrize("n", [1, 2, 5, 50])
def test_points_on_an_anti_diagonal_enclose_a_staircase(n):
    points = np.array([[i, n - 1 - i] for i in range(n)], dtype=float)
    # columns of width 1 below the reference (n, n), of heights 1, 2, ..., n
    assert hypervolume(points, np.array([n, n], dtype=float)) == pytest.approx(n * (n + 1) / 2)


@few
@given(arrays(np.float64, st.integers(1, 4), elements=st.floats(-10, 10)))
def test_one_point_encloses_a_box(point):
    reference = point + np.arange(1, len(point) + 1)
    assert hypervolume(point[None], reference) == pytest.approx(np.prod(np.arange(1, len(point) + 1)))


def test_two_boxes_in_space_overlap_once():
    points = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    # 3 x 2 x 2 + 2 x 3 x 3 - 2 x 2 x 2
    assert hypervolume(points, np.full(3, 3.0)) == pytest.approx(22.0)


def test_with_one_objective_it_is_the_distance_to_the_reference():
    assert hypervolume(np.array([[3.0], [1.5], [9.0]]), np.array([4.0])) == 2.5


@few
@given(point_sets(coarse))
def test_the_volume_is_the_number_of_unit_cells_a_point_reaches(values):
    objectives = values.shape[1]
    cells = np.stack(np.meshgrid(*[np.arange(3)] * objectives, indexing="ij"), axis=-1).reshape(-1, objectives)
    reached = (values[None] <= cells[:, None]).all(axis=2).any(axis=1).sum()
    assert hypervolume(values, np.full(objectives, 3.0)) == pytest.approx(reached)


@few
@given(point_sets(st.floats(0, 1)))
def test_dominated_points_add_nothing(values):
    reference = np.full(values.shape[1], 2.0)
    front = values[is_on_frontier(values)]
    assert hypervolume(values, reference) == pytest.approx(hypervolume(front, reference))


@few
@given(point_sets(st.floats(0, 1)), st.floats(0, 1), st.integers(0, 3))
def test_points_not_below_the_reference_add_nothing(values, overshoot, at):
    reference = np.full(values.shape[1], 1.5)
    beyond = np.full((1, values.shape[1]), -1.0)
    beyond[0, at % values.shape[1]] = 1.5 + overshoot
    assert hypervolume(np.vstack([values, beyond]), reference) == hypervolume(values, reference)
    assert hypervolume(beyond, reference) == 0.0


@few
@given(point_sets(st.floats(0, 1)))
def test_the_volume_never_shrinks_as_points_are_added(values):
    reference = np.full(values.shape[1], 1.25)
    volumes = [hypervolume(values[:n], reference) for n in range(len(values) + 1)]
    assert volumes[0] == 0.0
    assert all(after >= before * (1 - 1e-12) for before, after in pairwise(volumes))


def test_the_arrays_are_left_as_they_were():
    values = np.array([[1.0, 5.0], [2.0, 2.0], [3.0, 3.0], [5.0, 1.0]])
    before = values.copy()
    is_on_frontier(values), hypervolume(values, np.array([6.0, 6.0])), knee(values)
    assert (values == before).all()


@pytest.mark.parametrize(
    ("values", "balanced"),
    [
        ([[0, 10], [1, 1], [10, 0]], 1),
        ([[0, 1], [1, 0], [0.6, 0.6], [0.4, 0.4]], 3),
        ([[0, 1e9], [1e-3, 2e8], [5e-3, 0]], 1),  # scale does not matter
        ([[5, 5], [4, 4], [6, 6]], 1),  # one point dominates all
        ([[7]], 0),
        ([[7], [3], [5]], 1),
        ([[2, 2], [2, 2]], 0),  # of equals, the first
        ([[0, 1, 5], [0.2, 0.2, 5], [1, 0, 5]], 1),  # what does not vary does not count
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.3, 0.3, 0.3]], 3),
    ],
)
def test_the_knee_is_the_balanced_choice(values, balanced):
    assert knee(np.array(values, dtype=float)) == balanced


def test_a_dominated_row_is_never_the_knee_and_does_not_move_the_scale():
    front = [[0.0, 1.0], [0.3, 0.3], [1.0, 0.0]]
    worse = [[0.31, 0.31], [100.0, 100.0]]
    assert knee(np.array(worse + front)) == 3


@few
@given(point_sets(fine, most_objectives=3))
def test_the_knee_lies_on_the_frontier_nearest_the_ideal_point(values):
    chosen = knee(values)
    front = values[frontier_by_definition(values)]
    span = front.max(axis=0) - front.min(axis=0)
    scaled = (front - front.min(axis=0)) / np.where(span > 0, span, 1.0)
    distance = ((values[chosen] - front.min(axis=0)) / np.where(span > 0, span, 1.0)).tolist()
    assert frontier_by_definition(values)[chosen]
    assert np.linalg.norm(distance) == pytest.approx(np.linalg.norm(scaled, axis=1).min())


@few
@given(st.data())
def test_the_gain_of_a_point_is_the_volume_that_it_adds(data):
    values = data.draw(point_sets(st.one_of(coarse, st.floats(-2, 5))))
    front, points = np.split(values, [data.draw(st.integers(0, len(values)))])
    reference = np.full(values.shape[1], 2.5)
    added = [hypervolume(np.vstack([front, point]), reference) - hypervolume(front, reference) for point in points]
    assert hypervolume_gains(front, points, reference) == pytest.approx(np.array(added), abs=1e-9)


REAL = st.one_of(st.floats(-1e60, 1e60), st.integers(-3, 3).map(float), st.just(-0.0), st.floats(-1e-300, 1e-300))


@few
@given(st.lists(REAL, min_size=1, max_size=12), st.booleans(), st.sampled_from([1.01, 1.1]))
def test_a_box_holds_every_value_and_leaves_room_for_the_worst(values, maximize, margin):
    ideal, reference = box_of(min(values), max(values), maximize, margin)
    sign = -1 if maximize else 1
    assert sign * ideal <= min(sign * value for value in values)
    # Of what is maximised, 0 is the reference, and nothing is gained by it.
    assert max(sign * value for value in values) < sign * reference or (maximize and min(values) == 0 == reference)
    if min(values) >= 0 and max(values) > 0:
        assert sorted((ideal, reference)) == [0.0, margin * max(values)]


@few
@given(st.data())
def test_the_share_of_a_box_is_between_0_and_1_whatever_the_costs(data):
    count = data.draw(st.integers(1, 3))
    columns, ideals, references = [], [], []
    for _ in range(count):
        values, maximize = data.draw(st.lists(REAL, min_size=4, max_size=4)), data.draw(st.booleans())
        ends = box_of(min(values), max(values), maximize, 1.01)
        sign = -1 if maximize else 1
        columns.append([sign * value for value in values])
        ideals.append(sign * ends[0])
        references.append(sign * ends[1])
    share = share_of_box(np.array(columns).T, np.array(ideals), np.array(references))
    assert 0 <= share <= 1


def test_the_share_of_a_box_is_that_of_its_volume_and_no_more():
    ideal, reference = np.zeros(2), np.array([2.0, 4.0])
    assert share_of_box(np.array([[1.0, 2.0]]), ideal, reference) == 0.25
    assert share_of_box(np.array([[-5.0, -5.0]]), ideal, reference) == 1.0
    assert share_of_box(np.array([[5.0, 1.0]]), ideal, reference) == 0.0
    tiny = np.array([2e-200, 4e-200])
    assert share_of_box(np.array([[1e-200, 2e-200]]), ideal, tiny) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("low", "high", "maximize", "expected"),
    [
        (2.0, 100.0, False, (0.0, 101.0)),
        (2.0, 100.0, True, (101.0, 0.0)),
        (-3.0, -2.0, False, (-3.0, -1.97)),
        (-3.0, 2.0, False, (-3.0, 2.05)),
        (-3.0, -2.0, True, (0.0, -3.03)),
        (0.0, 0.0, False, (0.0, 0.01)),
    ],
)
def test_a_box_is_measured_from_0_unless_values_are_negative(low, high, maximize, expected):
    assert box_of(low, high, maximize, 1.01) == pytest.approx(expected)
