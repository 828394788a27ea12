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
from autodistil_search.report.overlay import overlay
from autodistil_search.report.run_parts import Curve, RunPart
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


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    """The page of two runs, with all that it asked for and complained of."""
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render_html(overlay([toy_report(), toy_report(1, "other")])), encoding="utf-8")
    context = browser.new_context(offline=True, viewport={"width": 1000, "height": 800})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened = context.new_page()
    opened.complaints, opened.asked_for = [], []
    opened.on("console", lambda message: opened.complaints.append(message.text))
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.on("request", lambda request: opened.asked_for.append(request.url))
    opened.goto(file.as_uri())
    yield opened
    context.close()


def test_it_opens_offline_and_without_complaints(page):
    assert page.complaints == []
    assert [url.partition(":")[0] for url in page.asked_for] == ["file"]


def test_the_budget_finds_the_row_that_pick_finds(browser, tmp_path):
    report = toy_report()
    run, file = Run(tmp_path, report, {}), tmp_path / "report.html"
    file.write_text(render_html(report), encoding="utf-8")
    page = browser.new_page()
    page.goto(file.as_uri())
    assert f"--pick {run.knee.name + 1} " in page.inner_text("#command code")  # where it begins
    for label, bound in [
        ("FLOPs", "flops<=200M"),
        ("FLOPs", "flops<=95.5M"),
        ("parameters", "params<=9000000"),
        ("speed", "speed>=5"),
    ]:
        page.select_option("#cost", label=label)
        page.fill("#amount", bound.partition("=")[2])
        row = run.pick(bound).name
        assert page.inner_text("#command code") == f"autodistil-search export runs/toy --pick {row + 1} --out student"
        assert page.get_attribute("tr.chosen", "data-row") == str(row)
    page.fill("#amount", "1000")
    assert page.inner_text("#words").startswith("No student fits; the frontier's highest speed: ")
    assert not page.is_visible("#command")
    assert page.locator(".chosen").count() == 0
    page.fill("#amount", "many")
    assert "“many” is not an amount" in page.inner_text("#words")
    page.close()


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
    sheet.get_by_role("searchbox").fill("run=other space=space 1")
    assert 0 < len(column()) < every
    assert sheet.locator(".tools [role=status]").inner_text() == f"{len(column())} of {every} rows"
    sheet.get_by_role("button", name="Copy Frontier as CSV").click()
    copied = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert copied[0].startswith("pick,run,space,layers")
    assert [float(line.split(",")[flops]) for line in copied[1:]] == column()
    sheet.get_by_role("searchbox").fill("")


def test_points_tell_what_they_are_to_pointer_and_keyboard(page):
    panel = page.locator("svg.frontier").first
    data = json.loads(page.inner_text("#data"))
    points = panel.locator(".best")
    points.first.focus()
    assert page.inner_text("#tip") == data["frontier"][0]["words"]
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#tip") == data["frontier"][1]["words"]
    page.keyboard.press("Enter")
    assert page.inner_text("#command code") == data["frontier"][1]["command"]
    page.keyboard.press("Escape")
    assert not page.is_visible("#tip")
    panel.scroll_into_view_if_needed()
    at = panel.evaluate(
        """svg => {
            const best = [...svg.querySelectorAll(".best path")].map(each => each.getAttribute("d"));
            const scored = svg.querySelector("path.scored").getAttribute("d").match(/M[^M]+/g);
            const [x, y] = scored.find(each => !best.includes(each)).match(/[0-9.]+/g);
            const { x: across, y: down } = new DOMPoint(x, y).matrixTransform(svg.getScreenCTM());
            return [across, down];
        }"""
    )
    page.mouse.move(*at)
    assert page.inner_text("#tip") in data["scored"]


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1000, "dark")])
def test_nothing_serious_is_in_the_way_of_anyone(page, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    page.click("summary")
    found = axe.Axe().run(page).response["violations"]
    serious = {each["id"]: each["nodes"][0]["html"] for each in found if each["impact"] in ("serious", "critical")}
    assert serious == {}
    assert page.evaluate("document.documentElement.scrollWidth") <= width
