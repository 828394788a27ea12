"""The report as data, and that its tables, figures and page show that data."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from autodistil_search import baselines
from autodistil_search.archive import Evaluation
from autodistil_search.baselines import Baseline
from autodistil_search.comparison import COLUMNS
from autodistil_search.objectives import FLOPS, PARAMS, RELATION_LOSS, Constraint, Objective
from autodistil_search.pareto import hypervolume
from autodistil_search.report import (
    baseline_table,
    frontier_figure,
    pareto_report,
    published_figure,
    shown,
    write_report,
)
from autodistil_search.report.data import against_frontier, progress_table
from autodistil_search.report.figures import axes_pairs
from autodistil_search.space import Subnet

LIKEWISE = {"relation_loss": 0.7, "flops": 300, "params": 3000}
FRONT = [(1.0, 100.0), (0.5, 200.0), (0.2, 400.0)]
DOMINATED = [(1.1, 150.0), (0.6, 390.0)]


def evaluation(loss: float, cost: float, space: str = "toy") -> Evaluation:
    measured = {"relation_loss": loss, "flops": cost, "params": 10 * cost}
    return Evaluation(space, Subnet(2, 32, 64, 4, 8), measured)


@pytest.fixture
def report():
    measured = [Baseline("hand-made <b>", Subnet(4, 312, 1200, 12, 26), "distilled alone", LIKEWISE)]
    return pareto_report(
        title="toy <i>",
        evaluations=[evaluation(*point) for point in DOMINATED + FRONT[::-1]],
        objectives=[RELATION_LOSS, FLOPS],
        columns=[RELATION_LOSS, FLOPS, PARAMS],
        constraints=[],
        box={"relation_loss": [0.0, 2.0], "flops": [0.0, 500.0]},
        baselines=baseline_table(measured, [RELATION_LOSS, FLOPS, PARAMS]),
        published=baselines.published(),
        engines=pd.DataFrame(columns=COLUMNS),
        exact=False,
        conditions={"teacher": "a <script>alert(1)</script> teacher"},
        notes=["a note & more"],
    )


def test_the_frontier_is_sorted_by_cost_and_has_one_knee(report):
    assert report.frontier[["relation_loss", "flops"]].to_numpy().tolist() == [list(point) for point in FRONT]
    assert report.frontier["knee"].tolist() == [False, True, False]  # (0.5, 200) is nearest the ideal (0.2, 100)


def test_the_hypervolume_is_the_area_below_the_reference(report):
    area = (500 - 100) * (2 - 1.0) + (500 - 200) * (1.0 - 0.5) + (500 - 400) * (0.5 - 0.2)
    assert report.hypervolume == pytest.approx(area)
    assert report.hypervolume_share == pytest.approx(area / (2 * 500))


def test_progress_is_the_hypervolume_of_what_was_scored_so_far(report):
    assert report.progress["evaluations"].tolist() == [1, 2, 3, 4, 5]
    values = report.evaluations[["relation_loss", "flops"]].to_numpy()
    volumes = [hypervolume(values[:count], np.array([2.0, 500.0])) for count in range(1, 6)]
    assert report.progress["hypervolume"].tolist() == pytest.approx(volumes)
    assert report.progress["share"].tolist() == pytest.approx([volume / volumes[-1] for volume in volumes])


def test_what_breaks_a_constraint_adds_nothing_to_the_hypervolume(report):
    bound = [Constraint(FLOPS, 300.0, upper=True)]
    reference = np.array([2.0, 500.0])
    progress = progress_table(report.evaluations, report.objectives, bound, reference)
    within = report.evaluations[report.evaluations["flops"] <= 300]
    final = hypervolume(within[["relation_loss", "flops"]].to_numpy(), reference)
    assert progress["hypervolume"].iloc[-1] == pytest.approx(final)
    assert final < report.hypervolume


def test_the_step_line_follows_the_frontier(report):
    axes = frontier_figure(report).axes[0]
    (line,) = axes.lines
    assert line.get_drawstyle() == "steps-post"
    np.testing.assert_array_equal(line.get_xdata(), [cost for _, cost in FRONT])
    np.testing.assert_array_equal(line.get_ydata(), [loss for loss, _ in FRONT])


def test_axes_name_what_was_measured_its_unit_and_direction(report):
    axes = frontier_figure(report).axes[0]
    assert axes.get_ylabel() == "held-out relation loss (nats, sum of QQ, KK and VV)\nlower is better"
    assert axes.get_xlabel() == "FLOPs (multiply-adds, 128 tokens, batch 1)\nlower is better"
    labels = {text.get_text() for text in axes.figure.legends[0].get_texts()}
    assert labels == {"scored, toy", "frontier", "knee", "hand-made <b>"}


def test_every_pair_of_objectives_has_a_panel(report):
    three = replace(report, objectives=[FLOPS, RELATION_LOSS, PARAMS])
    assert axes_pairs(three) == [(FLOPS, RELATION_LOSS), (FLOPS, PARAMS), (PARAMS, RELATION_LOSS)]
    assert len(frontier_figure(three).axes) == 3
    assert axes_pairs(replace(report, objectives=[RELATION_LOSS])) == [(FLOPS, RELATION_LOSS)]
    assert axes_pairs(replace(report, objectives=[FLOPS])) == [(PARAMS, FLOPS)]


def test_the_published_figure_shows_each_published_model(report):
    axes = published_figure(report.published).axes[0]
    points = np.concatenate([collection.get_offsets() for collection in axes.collections])
    assert sorted(map(tuple, points.tolist())) == sorted(
        zip(report.published["flops_g"], report.published["average"], strict=True)
    )
    assert {text.get_text() for text in axes.texts} == set(report.published["model"])


def test_csv_files_hold_the_tables_in_full(report, tmp_path):
    write_report(report, tmp_path)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "evaluations.csv"), report.evaluations)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "frontier.csv"), report.frontier)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "baselines.csv"), report.baselines)


class Page(HTMLParser):
    """Collects what a browser would load and the text of table cells."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.loads, self.cells, self._in_cell = [], [], [], False

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href")]
        self._in_cell = tag == "td"

    def handle_data(self, data):
        if self._in_cell:
            self.cells.append(data)


def test_the_page_is_self_contained_and_escapes_what_it_shows(report, tmp_path):
    write_report(report, tmp_path)
    text = (tmp_path / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.loads
    assert all(link.startswith("data:image/png;base64,") for link in page.loads)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert "hand-made <b>" in page.cells
    assert page.tags.count("table") == 4
    assert not re.search(r"https?://", text)


def test_the_page_shows_every_frontier_row_and_note(report, tmp_path):
    write_report(report, tmp_path)
    text = (tmp_path / "report.html").read_text()
    frontier = text[text.index('aria-label="Frontier"') : text.index("Baselines, measured here")]
    assert frontier.count("<tr") == 1 + len(FRONT)
    assert frontier.count('class="knee"') == 1
    assert "a note &amp; more" in text
    assert "of those scored" in text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1_234_567, "1.23M"),
        (2.128e9, "2.13G"),
        (9_999, "9999"),
        (0.123456, "0.1235"),
        (True, "knee"),
        (False, ""),
        ("x", "x"),
        (1.5, "1.500"),
    ],
)
def test_numbers_are_shown_for_people(value, expected):
    assert shown(value) == expected


def test_a_baseline_is_held_against_what_was_measured_and_nothing_beyond():
    rows = [(1.0, 100e6), (0.8, 200e6), (0.6, 400e6), (0.9, 300e6)]  # the last is dominated
    evaluations = pd.DataFrame(rows, columns=["relation_loss", "flops"])

    def words(loss, flops):
        baseline = pd.DataFrame([{"name": "B", "how": "as it is", "relation_loss": loss, "flops": flops}])
        (note,) = against_frontier(evaluations, baseline, RELATION_LOSS)
        return note

    assert "reaches it with 50% of its FLOPs; at its FLOPs the frontier is 0.2 better" in words(0.9, 300e6)
    assert "no subnet of the frontier reaches it; with 50% of its FLOPs the frontier is 0.1 worse" in words(0.5, 800e6)
    assert "cheapest subnet, with 25% of its FLOPs, is as good or better" in words(1.5, 400e6)
    assert "reaches it with 800% of its FLOPs; it costs less than any subnet" in words(0.6, 50e6)
    assert "reaches it with 100% of its FLOPs; at its FLOPs the frontier is 0 better" in words(0.7, 300e6)


def test_what_is_better_when_it_is_high_is_interpolated_alike():
    accuracy = Objective("accuracy", "accuracy", "share", "maximize", is_proxy=True)
    evaluations = pd.DataFrame([(0.5, 100e6), (0.7, 200e6)], columns=["accuracy", "flops"])
    baseline = pd.DataFrame([{"name": "B", "how": "as it is", "accuracy": 0.6, "flops": 200e6}])
    (note,) = against_frontier(evaluations, baseline, accuracy)
    assert "reaches it with 75% of its FLOPs; at its FLOPs the frontier is 0.1 better" in note
