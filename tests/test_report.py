"""The report as data, and that its tables, figures and page show that data."""

import base64
import hashlib
import json
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from autodistil_search.base.errors import InputError
from autodistil_search.nas import baselines
from autodistil_search.nas.baselines import COPY, Baseline
from autodistil_search.nas.engine_comparison import COLUMNS
from autodistil_search.nas.evaluation import Evaluation
from autodistil_search.nas.objectives import FLOPS, PARAMS, RELATION_LOSS, Constraint, Objective
from autodistil_search.nas.pareto import hypervolume
from autodistil_search.nas.rank_correlation import Agreement
from autodistil_search.report import figures, findings
from autodistil_search.report.caveats import warnings_of
from autodistil_search.report.charts import overlay_traces, parallel_chart
from autodistil_search.report.data import (
    against_frontier,
    baseline_table,
    frontier_table,
    pareto_report,
    progress_table,
)
from autodistil_search.report.figures import for_papers, frontier_figure, parallel_figure, published_figure
from autodistil_search.report.findings import NOT_VALIDATED, ONE_SEED, VERSUS_BASELINE, Finding, comparison, remark
from autodistil_search.report.html import LISTED, render_html
from autodistil_search.report.importance import edge_findings, importance_table, importance_words
from autodistil_search.report.key_figures import baselines_at_equal_cost, runs_side_by_side
from autodistil_search.report.overlay import overlay
from autodistil_search.report.papers import latex_table, markdown_table, write_for_papers
from autodistil_search.report.run_parts import Input, ProxyCheck, RunPart
from autodistil_search.report.views import (
    DRAWN,
    ParallelAxis,
    axes_pairs,
    axis_span,
    baseline_points,
    export_commands,
    parallel_axes,
    parallel_rows,
    shown,
    step_lines,
    teacher_lines,
)
from autodistil_search.report.writing import write_report
from autodistil_search.spaces.subnet import Subnet

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
        findings=[remark("a note & more")],
    )


def test_the_frontier_is_sorted_by_cost_and_has_one_knee(report):
    assert report.frontier[["relation_loss", "flops"]].to_numpy().tolist() == [list(point) for point in FRONT]
    assert report.frontier["knee"].tolist() == [False, True, False]  # (0.5, 200) is nearest the ideal (0.2, 100)


def test_the_hypervolume_is_the_area_below_the_reference(report):
    area = (500 - 100) * (2 - 1.0) + (500 - 200) * (1.0 - 0.5) + (500 - 400) * (0.5 - 0.2)
    assert report.hypervolume == pytest.approx(area)
    assert report.hypervolume_share == pytest.approx(area / (2 * 500))


@pytest.mark.parametrize("objectives", [2, 5])
def test_progress_ends_at_the_hypervolume_of_all(objectives):
    names = [f"o{i}" for i in range(objectives)]
    table = pd.DataFrame(np.random.default_rng(0).random((30, objectives)), columns=names)
    asked = [Objective(name, name, "", "minimize") for name in names]
    reference = np.full(objectives, 0.9)
    found = progress_table(table, asked, [], reference)["hypervolume"]
    expected = [hypervolume(table.to_numpy()[: i + 1], reference) for i in range(30)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_the_cheapest_comes_first_whichever_way_a_cost_is_better(report):
    speed = replace(FLOPS, name="speed", direction="maximize")
    turned = report.evaluations.assign(speed=1000 - report.evaluations["flops"])
    found = frontier_table(turned, [RELATION_LOSS, speed])
    assert found["flops"].to_list() == [cost for _, cost in FRONT]


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
    """Collects what a browser would load and run, and the text of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.loads, self.scripts, self.cells, self._in = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href") and not value.startswith("#")]
        self._in = tag

    def handle_data(self, data):
        if self._in == "td":
            self.cells.append(data)
        if self._in == "script":
            self.scripts.append(data)

    def handle_endtag(self, tag):
        self._in = ""

    @property
    def data(self):
        """The data of the page's script."""
        return json.loads(self.scripts[0])


HOSTILE = "</script><script>alert(1)</script><b>"


def test_the_page_loads_nothing_and_hostile_names_stay_text(report):
    named = report.evaluations.assign(space=HOSTILE)
    hostile = replace(
        report,
        title=HOSTILE,
        evaluations=named,
        frontier=report.frontier.assign(space=HOSTILE),
        findings=[remark(HOSTILE)],
        runs=[RunPart("toy", HOSTILE)],
    )
    text = render_html(hostile)
    page = Page(text)
    assert page.loads == []
    assert not re.search(r"https?://|@import|url\(", text)
    assert page.tags.count("script") == 3  # the data, the library and the page's own
    assert not {"b", "i"} & set(page.tags)
    assert {"hand-made <b>", HOSTILE} <= set(page.cells)
    data = page.data
    assert data["points"][0]["trace"]["hovertext"][0].startswith("&lt;/script&gt;&lt;script&gt;alert(1)")
    assert "alert" not in page.scripts[2]
    (policy,) = re.findall('Content-Security-Policy" content="([^"]*)"', text)
    digest = base64.b64encode(hashlib.sha256(page.scripts[2].encode()).digest()).decode()
    assert policy.replace("&#39;", "'").startswith(f"default-src 'none'; script-src 'sha256-{digest}' blob:; ")
    assert shlex.split(data["frontier"][0]["command"])[2] == HOSTILE


def test_the_page_shows_every_frontier_row_and_note(report):
    text = render_html(report)
    frontier = text[text.index('aria-label="Frontier"') : text.index("Sizes and their importance")]
    assert frontier.count("<tr") == 1 + len(FRONT)
    assert frontier.count('<tr class="knee"') == 1
    (points,) = [part for part in Page(text).data["points"] if part["rows"]]
    assert points["rows"] == [0, 1, 2]
    assert points["values"]["flops"] == [cost for _, cost in FRONT]
    assert "a note &amp; more" in text
    assert "of those scored" in text


def test_a_page_of_many_subnets_stays_small(report):
    rng = np.random.default_rng(0)
    many = [evaluation(*point) for point in zip(rng.random(20_000), 100 + 900 * rng.random(20_000), strict=True)]
    table = pd.concat([report.evaluations, pd.DataFrame([each.measured for each in many])], ignore_index=True)
    table = table.fillna(table.iloc[0])
    text = render_html(replace(report, evaluations=table, objectives=[RELATION_LOSS, FLOPS, PARAMS]))
    assert len(text) < 5e6
    assert len(Page(text).data["points"][0]["trace"]["hovertext"]) == DRAWN
    assert f"Show {LISTED:,} rows, the first of 20,005" in text


def test_a_step_holds_what_is_had_where_more_of_the_cost_is_better(report):
    speed = Objective("speed", "speed", "rows/s", "maximize")
    table = report.evaluations.assign(speed=1000 - report.evaluations["flops"])
    frontier = report.frontier.assign(speed=1000 - report.frontier["flops"])
    fast = replace(report, objectives=[RELATION_LOSS, speed], evaluations=table, frontier=frontier)
    (line,) = step_lines(fast, speed, RELATION_LOSS)
    assert line.where == "pre"  # who needs 700 a second gets the student of 800
    assert list(zip(line.x, line.y, strict=True)) == [(600, 0.2), (800, 0.5), (900, 1.0)]


def test_each_space_has_its_own_step_line_beside_the_frontier(report):
    spaces = report.evaluations.assign(space=["a", "b", "a", "b", "b"])  # losses 1.1, .6, .2, .5, 1
    lines = step_lines(replace(report, evaluations=spaces), FLOPS, RELATION_LOSS)
    assert [(line.name, line.whole, line.series) for line in lines] == [
        ("frontier", True, None),
        ("frontier of a alone", False, 0),
        ("frontier of b alone", False, 1),
    ]
    assert lines[1].y == [1.1, 0.2]
    assert lines[2].y == [1.0, 0.5]


def test_every_baseline_is_drawn_however_many(report):
    ten = pd.concat([report.baselines] * 10, ignore_index=True)
    many = replace(report, baselines=ten.assign(name=[f"B{i}" for i in range(10)]))
    assert len(baseline_points(many, FLOPS, RELATION_LOSS)) == 10
    labels = {text.get_text() for text in frontier_figure(many).legends[0].get_texts()}
    assert {f"B{i}" for i in range(10)} <= labels
    assert {f"B{i}" for i in range(10)} <= {trace["name"] for trace in overlay_traces(many, FLOPS, RELATION_LOSS)}


def test_a_legend_of_long_names_takes_no_more_width_than_its_figure(report):
    named = replace(report, baselines=report.baselines.assign(name="a baseline of several runs with a long name"))
    for figure in (frontier_figure(report), frontier_figure(named), frontier_figure(report, figures.ONE_COLUMN)):
        figure.canvas.draw()
        legend = figure.legends[0].get_window_extent()
        assert legend.x0 >= 0
        assert legend.x1 <= figure.bbox.width


def test_a_baseline_far_off_is_drawn_on_the_edge_with_its_value(report):
    scored = report.evaluations["relation_loss"]
    dear = 2 * report.evaluations["flops"].max()
    far = report.baselines.head(1).assign(name="far", relation_loss=scored.max() + 6 * np.ptp(scored), flops=dear)
    near = report.baselines.head(1).assign(name="near", relation_loss=scored.max() + np.ptp(scored))
    panel = frontier_figure(replace(report, baselines=pd.concat([near, far]))).axes[0]
    drawn = {each.get_label(): each.get_offsets()[0][1] for each in panel.collections}
    assert drawn["near"] == near["relation_loss"].item()
    name = f"far ({shown(far['relation_loss'].item())}, outside the axes)"
    assert near["relation_loss"].item() < drawn[name] < panel.get_ylim()[1]
    assert name in {trace["name"] for trace in overlay_traces(replace(report, baselines=far), FLOPS, RELATION_LOSS)}
    assert panel.get_ylim()[1] < far["relation_loss"].item()
    assert panel.get_xlim()[1] > dear
    three = replace(report, objectives=[FLOPS, PARAMS, RELATION_LOSS], baselines=far)  # the first panel has no loss
    told = {text.get_text() for text in frontier_figure(three).legends[0].get_texts()}
    assert name in told
    one = replace(report, evaluations=report.evaluations.head(1), baselines=far)  # has no range to be far off from
    assert frontier_figure(one).axes[0].get_ylim()[1] > far["relation_loss"].item()


def test_parallel_coordinates_put_small_sizes_and_the_best_of_each_objective_at_the_bottom(report):
    three = replace(report, objectives=[RELATION_LOSS, FLOPS, replace(PARAMS, direction="maximize")])
    rows = parallel_rows(three)
    np.testing.assert_allclose(rows, [[1, 0, 1], [0.375, 1 / 3, 2 / 3], [0, 1, 0]])  # no size varies
    lines = [line.get_ydata() for line in parallel_figure(three).axes[0].lines if len(line.get_xdata()) == 3]
    np.testing.assert_allclose(lines, rows)
    frontier = report.frontier.assign(heads=["2-4", 4, 6])  # a mean of 3 heads
    sized = replace(report, frontier=frontier, evaluations=report.evaluations.assign(heads=[2, 4, 6, 6, 6]))
    np.testing.assert_allclose(parallel_rows(sized)[:, 0], [0.25, 0.5, 1])
    assert parallel_axes(sized)[:2] == [
        ParallelAxis("heads", "2", "6"),
        ParallelAxis(RELATION_LOSS.label, "0.2000", "1.000"),
    ]
    *others, knee = parallel_chart(sized)["data"]
    assert len(others) == 2
    assert knee["y"] == pytest.approx([0.5, 0.375, 1 / 3])
    assert knee["line"]["color"] == "ink"


def test_the_copy_of_the_teacher_is_a_line_and_no_baseline(report):
    copy = report.baselines.assign(how=COPY, relation_loss=0.0, flops=9e9)
    taught = replace(report, baselines=pd.concat([report.baselines, copy], ignore_index=True))
    assert [point.name for point in baseline_points(taught, FLOPS, RELATION_LOSS)] == ["hand-made <b>"]
    (line,) = teacher_lines(taught, FLOPS, RELATION_LOSS)
    assert (line.axis, line.place) == ("y", 0.0)
    assert line.name == "teacher (copy, hand-made <b>): 0.000 at 9.00G FLOPs"
    assert [across.axis for across in teacher_lines(taught, RELATION_LOSS, FLOPS)] == ["x"]
    assert teacher_lines(taught, FLOPS, PARAMS) == []
    axes = frontier_figure(taught).axes[0]
    assert axes.get_xlim()[1] < 1e3  # its FLOPs squeeze nothing
    assert axes.lines[1].get_ydata() == [0.0, 0.0]
    far = replace(taught, baselines=copy.assign(relation_loss=-90.0))
    (line,) = teacher_lines(far, FLOPS, RELATION_LOSS)
    assert line.name.endswith("outside the axes")
    assert axis_span(far, RELATION_LOSS).low < line.place < far.evaluations["relation_loss"].min()
    compared = [Finding(VERSUS_BASELINE, {**VERSUS, "how": how}) for how in (COPY, "distilled alone")]
    assert list(baselines_at_equal_cost(replace(report, findings=compared))["how"]) == ["distilled alone"]


VERSUS = {"baseline": "B", "label": "loss", "flops": 4e6, "score": 1.0, "reached_with": 0.5, "cheapest_reaches": False}
VERSUS |= {"compared_at": 1.0, "gain": 0.25}


def test_results_are_told_apart_from_limits(report):
    unlike = {"reached_with": None, "compared_at": None, "gain": None}
    both = [{**VERSUS, "how": "alone"}, {**VERSUS, "how": "as it is", **unlike}]
    found = [*(Finding(VERSUS_BASELINE, values) for values in both), Finding(ONE_SEED)]
    told = replace(report, findings=found, exact=True)
    assert [warning.kind for warning in warnings_of(told)] == [ONE_SEED]
    table = baselines_at_equal_cost(told)
    assert table["FLOPs to reach it"].to_list() == ["50%", "not reached"]
    assert table["at its FLOPs"].to_list() == ["0.2500 better", "costs less than any subnet"]
    text = render_html(told)
    assert text.index('<dl class="cards"') < text.index('data-chart="frontier"') < text.index('id="equal-cost"')
    assert text.index('id="equal-cost"') < text.index("1 limit of these results") < text.index('aria-label="Frontier"')


def grown(sizes, loss):
    """The report of subnets with these (layers, heads), whose loss is a function of both."""
    evaluations = [
        Evaluation(
            "toy", Subnet(layers, 32, 64, heads, 8), {"relation_loss": loss(layers, heads), "flops": layers * heads}
        )
        for layers, heads in sizes
    ]
    box = {"relation_loss": [0.0, 99.0], "flops": [0.0, 99.0]}
    empty = baseline_table([], [RELATION_LOSS, FLOPS])
    return pareto_report(
        "toy", evaluations, [RELATION_LOSS, FLOPS], [RELATION_LOSS, FLOPS], [], box, empty, baselines.published(),
        pd.DataFrame(columns=COLUMNS), False, {}, [],
    )  # fmt: skip


def test_importance_is_the_share_of_variance_that_a_size_explains():
    grid = [(layers, heads) for layers in range(1, 7) for heads in range(1, 7)]
    table = importance_table(grown(grid, lambda layers, heads: 3 * heads + layers))
    assert table["size"].to_list() == ["layers", "heads"]
    np.testing.assert_allclose(table["relation_loss"], [0.1, 0.9], atol=0.05)  # variances 1 : 9
    words = importance_words(grown(grid, lambda layers, heads: 3 * heads + layers), table)
    assert words[0].startswith("The number of heads dominates: it explains ")
    assert words[0].endswith("; 1 of the 1 subnets of the frontier have 1 heads.")
    assert importance_table(grown(grid[:15], lambda *_: 1.0)).empty


def test_a_frontier_at_the_edge_of_its_space_is_a_limit():
    grid = [(layers, heads) for layers in (2, 3, 4) for heads in (2, 4, 6)]
    steep = grown(grid, lambda layers, heads: 10 - heads - layers / 9)  # more heads for less than more layers
    frontier = steep.frontier
    (finding,) = edge_findings(replace(steep, frontier=frontier[frontier["heads"] == 6]))
    assert str(finding) == (
        "All 3 subnets of toy on the frontier have 6 heads (the largest): the frontier is at the edge of the space and "
        "may continue beyond it."
    )
    assert edge_findings(steep) == []
    assert finding in warnings_of(replace(steep, frontier=frontier[frontier["heads"] == 6]))


def test_export_commands_count_the_rows_of_each_run_as_pick_does(report):
    alone = replace(report, runs=[RunPart("toy", "runs/my toy")])
    assert export_commands(alone) == [
        f"autodistil-search export 'runs/my toy' --pick {number} --out student" for number in (1, 2, 3)
    ]
    both = overlay([part(report, "a"), part(report, "b")])
    assert [command.split()[2:5] for command in export_commands(both)] == [
        [f"runs/{run}", "--pick", str(number)] for run in "ab" for number in (1, 2, 3)
    ]
    untrained = replace(alone, columns=[FLOPS, PARAMS])
    assert export_commands(untrained) == [None] * 3


def part(report, name, **inputs):
    """The report as that of a run."""
    known = {"proxy": {what: Input(words) for what, words in inputs.items()}}
    return replace(report, runs=[RunPart(name, f"runs/{name}", inputs=known)])


def test_runs_together_share_a_reference_point(report):
    small = replace(part(report, "small"), box={"relation_loss": [0.0, 1.5], "flops": [0.0, 400.0]})
    both = overlay([small, part(report, "large")])
    assert both.box == {"relation_loss": [0.0, 2.0], "flops": [0.0, 500.0]}
    assert both.hypervolume == pytest.approx(report.hypervolume)
    last = both.progress.groupby("run")["hypervolume"].last()
    assert last.to_list() == pytest.approx([report.hypervolume] * 2)
    assert both.frontier["run"].to_list() == ["small"] * 3 + ["large"] * 3
    assert both.baselines["run"].to_list() == ["small, large"]  # the same numbers: one point
    assert both.notes == ["a note & more"]
    lines = step_lines(both, FLOPS, RELATION_LOSS)
    assert [(line.name, line.series) for line in lines] == [("frontier, small", 0), ("frontier, large", 1)]
    page = render_html(both)
    data = Page(page).data
    assert [trace["name"] for trace in data["overlays"]["flops relation_loss"] if trace["mode"] == "lines"] == [
        "frontier, small", "frontier, large",
    ]  # fmt: skip
    assert [part["rows"] for part in data["points"] if part["rows"]] == [[0, 1, 2], [3, 4, 5]]
    side_by_side = runs_side_by_side(both)
    assert side_by_side["run"].to_list() == ["small", "large"]
    assert side_by_side["joint frontier"].to_list() == [3, 3]  # equal rows dominate nothing
    assert side_by_side["hypervolume %"].to_list() == [pytest.approx(100 * report.hypervolume_share, abs=0.01)] * 2


def test_what_runs_measured_differently_beside_their_objectives_is_left_out(report):
    other = replace(PARAMS, unit="without embeddings")
    both = overlay([part(report, "a"), replace(part(report, "b"), columns=[RELATION_LOSS, FLOPS, other])])
    assert both.columns == [RELATION_LOSS, FLOPS]
    assert "params" not in both.evaluations
    assert both.notes[0] == "Columns that are not measured alike in all runs are left out: params."


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"teacher": "another"}, "the teacher behind relation_loss is 'BERT' and 'another'"),
        ({"objectives": [RELATION_LOSS]}, "their objectives are flops, relation_loss and relation_loss"),
        ({"objectives": [replace(RELATION_LOSS, unit="bits"), FLOPS]}, "the unit of relation_loss is 'nats, sum"),
    ],
)
def test_runs_that_cannot_share_axes_are_refused(report, other, message):
    second = part(report, "b", teacher=other.get("teacher", "BERT"))
    if "objectives" in other:
        second = replace(second, objectives=other["objectives"])
    with pytest.raises(InputError, match=f"runs 'a' and 'b' cannot share axes: {message}"):
        overlay([part(report, "a", teacher="BERT"), second])


def test_a_run_is_not_laid_over_itself(report):
    with pytest.raises(InputError, match="run 'runs/a' is given twice"):
        overlay([part(report, "a"), part(report, "a")])


def test_a_report_warns_of_a_search_that_was_still_finding_something(report):
    (warning, _) = warnings_of(report)  # the fourth and fifth of five evaluations are on the frontier
    assert str(warning) == (
        "The last tenth of the 5 evaluations still increased the hypervolume: the frontier has not converged."
    )
    assert warnings_of(replace(report, exact=True)) == [remark("a note & more")]


def test_the_report_decides_by_data_whatever_the_sentences_say(report, monkeypatch):
    better = Agreement(0.5, 0.4, 0.6)
    found = [comparison("loss", "score", better, better, better, subnets=2)]
    check = ProxyCheck("v", {}, pd.DataFrame({"band": [0, 0]}), pd.DataFrame(), found, fine_tuned=True)
    checked = replace(
        report, exact=True, findings=[Finding(NOT_VALIDATED)], runs=[RunPart("toy", "toy", checks=[check])]
    )
    monkeypatch.setattr(findings, "_WORDS", dict.fromkeys(findings._WORDS, lambda values: "reworded"))
    (worth,) = warnings_of(checked)
    assert (worth.values["better"], worth.values["comparisons"], str(worth)) == (1, 1, "reworded")


@pytest.mark.parametrize(
    ("target", "words"), [("score", "with fine-tuned accuracy"), ("alone_loss", "training alone only")]
)
def test_a_validation_takes_the_place_of_the_note_that_there_is_none(report, target, words):
    scopes = ["all", "within bands"] * 2
    ranking = pd.DataFrame({"measure": ["flops"] * 2 + ["loss"] * 2, "target": target, "scope": scopes})
    nan = float("nan")
    numbers = {"kendall": [0.9, 0.2, 0.5, 0.1], "over_flops": [nan, nan, nan, -0.1], "over_default": [nan] * 4}
    for name, values in numbers.items():
        ranking[name] = values
        ranking = ranking.assign(**{f"{name}_low": ranking[name] - 0.1, f"{name}_high": ranking[name] + 0.05})
    measured = pd.DataFrame({"loss": [1.0, 2.0], target: [1.0, 3.0], "band": [0, 0], "flops": [2e6, 3e6]})
    labels = {"flops": "FLOPs", "loss": "loss, shared", "score": "MCC, fine-tuned", "alone_loss": "loss, trained alone"}
    taus = Agreement(0.1, 0.0, 0.2), Agreement(0.2, 0.1, 0.3), Agreement(-0.1, -0.2, 0.1)
    found = [comparison("loss, shared", labels[target], *taus, subnets=2), remark("tau within bands")]
    check = ProxyCheck("validation-toy", labels, measured, ranking, found, fine_tuned=target == "score")
    unvalidated = [Finding(NOT_VALIDATED)]
    checked = replace(report, exact=True, findings=unvalidated, runs=[RunPart("toy", "toy", checks=[check])])
    (warning,) = warnings_of(checked)
    assert words in str(warning)
    assert "in 0 of 1 comparisons" in str(warning)
    page = render_html(checked)
    assert "Proxy validation: validation-toy" in page
    assert "tau within bands</li>" in page
    assert "not distinguishable with 2 subnets" not in page  # the table has it
    assert "-0.10 [-0.20, -0.05] -" in page
    (chart,) = [chart for name, chart in Page(page).data["charts"].items() if name.startswith("check-")]
    assert {trace["name"]: trace["x"] for trace in chart["data"]} == {
        "measure, within bands": [0.1],
        "FLOPs, within bands": [0.2],
        "over all subnets": [0.9, 0.5],
    }
    assert chart["data"][2]["y"][1] == "loss, shared"
    assert warnings_of(replace(checked, runs=[])) == unvalidated
    older = replace(check, findings=[remark("a sentence of before")], has_data=False)
    (warning,) = warnings_of(replace(checked, runs=[RunPart("toy", "toy", checks=[older])]))
    assert str(warning).endswith("; its own section has the figures.")


def test_figures_for_papers_are_the_same_bytes_each_time(report, tmp_path, monkeypatch):
    assert figures.COLUMNS == {"one-column": 3.3, "two-columns": 6.9}
    monkeypatch.setattr(figures, "COLUMNS", {"one-column": 3.3})
    first, second = (
        {path.name: path.read_bytes() for path in write_for_papers(report, tmp_path / name)} for name in "ab"
    )
    assert first == second
    assert len(first) == 3 * 3 + 2
    assert b'width="237.6pt"' in first["frontier-one-column.svg"]  # 3.3 inches
    with for_papers():
        assert frontier_figure(report, 6.9).get_figwidth() == 6.9


def test_tables_for_papers_escape_what_they_show(report):
    table = pd.DataFrame({"hidden_size": [32], "name": ["50% & <b> of_it $x$ | \\ {a}"]})
    latex = latex_table(table, "100 #1")
    assert r"\caption{100 \#1}" in latex
    assert r"  hidden\_size & name \\" in latex
    body = r"50\% \& \textless{}b\textgreater{} of\_it \$x\$ \textbar{} \textbackslash{} \{a\} \\"
    assert f"  32 & {body}" in latex
    assert r"\begin{tabular}{rl}" in latex
    markdown = markdown_table(table, "100 #1").splitlines()
    assert markdown[2:4] == [r"| hidden\_size | name |", "| ---: | --- |"]
    assert markdown[4] == r"| 32 | 50% \& \<b\> of\_it \$x\$ \| \\ {a} |"


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
        return str(note)

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
    assert "reaches it with 75% of its FLOPs; at its FLOPs the frontier is 0.1 better" in str(note)
