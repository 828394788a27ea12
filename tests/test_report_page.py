"""The report's page in a real browser: it opens offline, its controls find what the data says, and all can use it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from autodistil_search.nas import baselines
from autodistil_search.nas.baselines import Baseline
from autodistil_search.nas.engine_comparison import COLUMNS
from autodistil_search.nas.evaluation import Evaluation
from autodistil_search.nas.objectives import FLOPS, PARAMS, RELATION_LOSS, Objective
from autodistil_search.report.data import baseline_table, pareto_report
from autodistil_search.report.findings import remark
from autodistil_search.report.html import render_html
from autodistil_search.report.run_parts import Curve, RunPart
from autodistil_search.report.style import DARK, LIGHT
from autodistil_search.runs.finished_run import Run
from autodistil_search.spaces.subnet import Subnet

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
SPEED = Objective("speed", "speed", "rows/s", "maximize")

pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is installed")


def toy_report(seed=0, name="toy"):
    """Thirty subnets of two spaces, by loss, FLOPs and parameters; bounded by speed, too."""
    rng = np.random.default_rng(seed)
    evaluations = []
    for i in range(30):
        flops = float(rng.integers(1, 40)) * 1e7 + 12_345
        measured = {"relation_loss": 2e4 / flops**0.5 + rng.random(), "flops": flops, "params": flops / 7}
        subnet = Subnet(2 + i % 3, 32 * (1 + i), 64 * (1 + i), 4, 8)
        evaluations.append(Evaluation(f"space {i % 2}", subnet, measured | {"speed": 1e9 / flops}))
    columns = [RELATION_LOSS, FLOPS, PARAMS, SPEED]
    far = {"relation_loss": 7.0, "flops": 4.5e8, "params": 7e7, "speed": 2.0}
    shape = Baseline("B & <b>", Subnet(4, 312, 1200, 12, 26), "distilled alone", far)
    curves = {"space 0": [Curve("largest", False, [1, 2, 3], [3, 2, 1]), Curve("largest", True, [3], [2])]}
    report = pareto_report(
        title="toys",
        evaluations=evaluations,
        objectives=[RELATION_LOSS, FLOPS, PARAMS],
        columns=columns,
        constraints=[],
        box={"relation_loss": [0.0, 9.0], "flops": [0.0, 5e8], "params": [0.0, 8e7]},
        baselines=baseline_table([shape], columns),
        published=baselines.published(),
        engines=pd.DataFrame(columns=COLUMNS),
        exact=False,
        conditions={"teacher": "a teacher"},
        findings=[remark("a note")],
    )
    return replace(report, runs=[RunPart(name, f"runs/{name}", curves=curves)])


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield started
        started.close()


def opened(browser, folder, report, **context):
    """The page of a report with its figures drawn, with all that it asked for and complained of."""
    file = folder / "report.html"
    file.write_text(render_html(report, {"frontier": b"picture"}), encoding="utf-8")
    new = browser.new_context(offline=True, viewport={"width": 1000, "height": 800}, **context)
    page = new.new_page()
    page.complaints, page.asked_for = [], []
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda request: page.asked_for.append(request.url))
    page.goto(file.as_uri())
    return page


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("page"), toy_report(), {})


@pytest.fixture(scope="module")
def page(browser, run):
    page = opened(browser, run.folder, run.report, permissions=["clipboard-read", "clipboard-write"])
    page.wait_for_selector("html[data-drawn]")
    yield page
    page.context.close()


def marks(page):
    """The budget's coordinates and the place of the ring, as drawn."""
    return page.evaluate(
        """() => {
            const [line, ring] = document.querySelector('[data-chart="frontier"]').data.slice(-2);
            return [line.x, line.y, ring.x, ring.y].map((values) => [...values]);
        }"""
    )


def until(page, condition):
    """Wait until an expression is true; the page's policy forbids to poll it inside the page."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{condition} is never true")


def selected(page):
    """The row of the frontier that all parts of the page show as selected."""
    pressed = page.locator("button.pick[aria-pressed=true]")
    chosen = page.locator("tr.chosen")
    assert (pressed.count(), chosen.count()) == (1, 1)
    assert f"--pick {pressed.inner_text()} " in page.inner_text("#command code")
    return int(chosen.get_attribute("data-row"))


def test_it_opens_offline_and_without_complaints(page):
    assert page.complaints == []
    assert [url.partition(":")[0] for url in page.asked_for] == ["file", "blob"]  # itself, and the library inside it


def test_no_button_sends_the_figure_elsewhere(page):
    buttons = page.locator('[data-chart="frontier"] .modebar-btn').evaluate_all(
        "all => all.map((one) => one.ariaLabel)"
    )
    assert buttons == ["Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"]


def test_without_scripts_its_figures_are_pictures(browser, tmp_path):
    page = opened(browser, tmp_path, toy_report(), java_script_enabled=False)
    assert page.locator('[data-chart="frontier"] img').get_attribute("src") == "data:image/png;base64,cGljdHVyZQ=="
    assert "needs a browser with scripts" in page.inner_text('[data-chart="progress"]')
    assert not page.is_visible("#budget")
    page.context.close()


def test_the_budget_finds_the_row_that_pick_finds(page, run):
    assert selected(page) == run.knee.name  # where it begins
    for label, bound in [
        ("FLOPs", "flops<=200M"),
        ("FLOPs", "flops<=95.5M"),
        ("parameters", "params<=9000000"),
        ("speed", "speed>=5"),
    ]:
        page.select_option("#cost", label=label)
        page.fill("#amount", bound.partition("=")[2])
        row = run.pick(bound)
        assert page.inner_text("#command code") == (
            f"autodistil-search export runs/toy --pick {row.name + 1} --out student"
        )
        assert selected(page) == row.name
        stops = sorted(set(run.frontier[label.lower() if label != "parameters" else "params"]))
        limit = {"200M": 2e8, "95.5M": 95.5e6, "9000000": 9e6, "5": 5.0}[bound.partition("=")[2]]
        within = [stop for stop in stops if (stop >= limit if "speed" in bound else stop <= limit)]
        assert int(page.input_value("#slider")) == stops.index((min if "speed" in bound else max)(within))
        line_x, _, ring_x, ring_y = marks(page)  # the cost has become the horizontal axis
        assert (line_x, ring_x) == ([limit, limit], [row[bound.partition("=")[0].rstrip("<>")]])
        assert ring_y == [row["relation_loss"]]
    page.fill("#amount", "1000")
    assert page.inner_text("#words").startswith("No student fits; the frontier's highest speed: ")
    assert not page.is_visible("#command")
    assert page.locator(".chosen").count() == 0
    page.fill("#amount", "many")
    assert "“many” is not an amount" in page.inner_text("#words")
    assert marks(page) == [[], [], [], []]
    page.select_option("#cost", label="FLOPs")


def test_a_selected_row_moves_budget_slider_and_figure(page, run):
    stops = sorted(set(run.frontier["flops"]))
    for row, select in ((1, page.click), (3, page.press)):
        button = f'tr[data-row="{row}"] button.pick'
        select(*([button] if select == page.click else [button, "Enter"]))
        student = run.frontier.loc[row]
        assert selected(page) == row
        assert int(page.input_value("#slider")) == stops.index(student["flops"])
        line_x, _, ring_x, ring_y = marks(page)
        assert (ring_x, ring_y) == ([student["flops"]], [student["relation_loss"]])
        assert line_x[0] >= student["flops"]
        assert run.pick(f"flops<={page.input_value('#amount')}")["relation_loss"] <= student["relation_loss"]
    page.focus('[data-chart="frontier"]')
    page.keyboard.press("ArrowRight")
    order = run.frontier.sort_values("flops", kind="stable").index.to_list()
    assert selected(page) == order[order.index(3) + 1]
    page.keyboard.press("Home")
    assert selected(page) == order[0]


def test_a_click_on_a_point_selects_it_or_the_best_of_its_cost(page, run):
    panel = page.locator('[data-chart="frontier"]')
    panel.evaluate("panel => panel.emit('plotly_click', { points: [{ curveNumber: 0, pointIndex: 2 }] })")
    scored = run.evaluations[run.evaluations["space"] == "space 0"].iloc[2]
    assert "the cost of the subnet that you selected (space 0: 3 layers x 160, " in page.inner_text("#words")
    assert selected(page) == run.pick(f"flops<={scored['flops']:.0f}").name
    on_frontier = page.evaluate("data.points.findIndex((part) => part.rows)")
    page.evaluate(f"clicked({{ points: [{{ curveNumber: {on_frontier}, pointIndex: 1 }}] }})")
    assert selected(page) == page.evaluate(f"data.points[{on_frontier}].rows[1]")
    panel.scroll_into_view_if_needed()
    place = panel.evaluate(
        """panel => {
            const { xaxis, yaxis } = panel._fullLayout, { left, top } = panel.getBoundingClientRect();
            const { flops, relation_loss: loss } = data.frontier[0].values;
            return [left + xaxis._offset + xaxis.d2p(flops), top + yaxis._offset + yaxis.d2p(loss)];
        }"""
    )
    page.mouse.move(*place, steps=3)
    panel.locator(".hovertext").first.wait_for()
    page.mouse.down()
    page.mouse.up()
    until(page, "state.row === 0")
    assert selected(page) == 0


def test_axes_and_colours_can_be_chosen(page, run):
    page.select_option("#axis-x", label="speed")
    page.select_option("#axis-y", label="speed")  # the axes change places
    page.select_option("#colour", label="layers")
    drawn = page.evaluate(
        """() => {
            const { data, layout } = document.querySelector('[data-chart="frontier"]');
            return [data[0].x, data[0].y, data[0].marker.color, layout.yaxis.title.text].map((part) =>
                typeof part === "string" ? part : [...part]);
        }"""
    )
    first = run.evaluations[run.evaluations["space"] == "space 0"]
    assert drawn[:3] == [first[name].to_list() for name in ("relation_loss", "speed", "layers")]
    assert drawn[3] == "speed<br>rows/s; higher is better"
    assert page.complaints == []
    assert page.input_value("#axis-x") == "relation_loss"


def test_the_slider_reaches_every_student_that_is_best_for_a_budget(page):
    page.select_option("#cost", label="FLOPs")
    page.focus("#slider")
    page.keyboard.press("Home")
    cheapest = page.inner_text("#words")
    page.keyboard.press("End")
    assert cheapest != page.inner_text("#words")
    data = json.loads(page.inner_text("#data"))
    best = min(data["frontier"], key=lambda row: row["values"]["relation_loss"])
    assert page.inner_text("#command code") == best["command"]
    page.click("#command button")
    assert page.evaluate("navigator.clipboard.readText()") == best["command"]


def test_a_table_sorts_by_value_filters_and_copies_what_is_left(page):
    sheet = page.locator('.sheet[data-name="frontier"]')
    flops = [head.removesuffix(" ↕") for head in sheet.locator("th").all_inner_texts()].index("flops")

    def column():
        cells = sheet.locator(f"tbody tr:visible td:nth-child({flops + 1})")
        return [float(value) for value in cells.evaluate_all("cells => cells.map(cell => cell.dataset.v)")]

    sheet.get_by_role("button", name="flops").click()
    assert column() == sorted(column())
    sheet.get_by_role("button", name="flops").click()
    assert column() == sorted(column(), reverse=True)
    assert sheet.locator("th[aria-sort=descending]").count() == 1
    every = len(column())
    sheet.get_by_role("searchbox").fill("space=space 1 layers=3")
    assert 0 < len(column()) < every
    assert sheet.locator(".tools [role=status]").inner_text() == f"{len(column())} of {every} rows"
    sheet.get_by_role("button", name="Copy Frontier as CSV").click()
    copied = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert copied[0].startswith("pick,knee,space,layers")
    assert [float(line.split(",")[flops]) for line in copied[1:]] == column()
    sheet.get_by_role("searchbox").fill("")


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1024, "light"), (1600, "dark")])
def test_nothing_serious_is_in_the_way_of_anyone(page, width, scheme):
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    until(page, "[...document.querySelectorAll('.main-svg')].every((svg) => svg.clientWidth <= innerWidth)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    paper = page.evaluate("document.querySelector('[data-chart=frontier]').layout.paper_bgcolor")
    assert paper == (LIGHT if scheme == "light" else DARK)["paper"]
    frontier = page.locator('.sheet[data-name="frontier"] .scroll')
    assert frontier.evaluate("box => box.scrollHeight - box.clientHeight") == 0  # no row is hidden
    assert page.locator('.sheet[data-name="frontier"] th', has_text="knee").is_visible()
    assert page.locator(".toc").bounding_box()["y"] >= 0  # it stays
    if width != 1024:  # as at 1600
        axe = pytest.importorskip("axe_playwright_python.sync_playwright")
        found = axe.Axe().run(page).response["violations"]
        serious = {each["id"]: each["nodes"][0]["html"] for each in found if each["impact"] in ("serious", "critical")}
        assert serious == {}
