"""Exploring a run: what a budget and a click show, as data, as widgets, and in JupyterLab in a real browser."""

import base64
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from html import escape
from itertools import pairwise
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from autodistil_search import load_run, search
from autodistil_search.base.errors import InputError
from autodistil_search.base.manifest import add_to_manifest
from autodistil_search.nas import baselines
from autodistil_search.nas.baselines import Baseline
from autodistil_search.nas.engine_comparison import COLUMNS
from autodistil_search.nas.evaluation import Evaluation
from autodistil_search.nas.objectives import FLOPS, PARAMS, RELATION_LOSS, Constraint, Objective
from autodistil_search.report.data import baseline_table, pareto_report
from autodistil_search.report.explore import (
    best_within,
    engine_marks,
    engines_after,
    explorable_costs,
    facts,
    named_cost,
    point_sets,
    stops,
)
from autodistil_search.report.picking import pick
from autodistil_search.report.run_parts import RunPart
from autodistil_search.report.widgets import EngineExplorer, Explorer
from autodistil_search.spaces import cost
from autodistil_search.spaces.search_space import load_space

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "3_pareto_exploration.ipynb"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
SPEED = Objective("speed", "speed", "rows/s <batch 1>", "maximize")
VOCABULARY = cost.Vocabulary(90, 40, 2)
ENGINES = pd.DataFrame(
    [("debug", name, mark, share, 0.01) for name, *found in [("random", 0.6, 0.8), ("nsga2", 0.7, 0.9)]
     for mark, share in zip((20, 40), found, strict=True)],
    columns=COLUMNS,
)  # fmt: skip


@pytest.fixture
def report():
    """All subnets of two spaces, whose loss falls with costs but for noise; the slowest are not allowed."""
    rng = np.random.default_rng(0)
    space = load_space("debug")
    evaluations = []
    for i, genome in enumerate([*space.genomes()] * 2):
        subnet = space.decode(genome)
        flops, params = float(cost.flops(subnet)), cost.params(subnet, VOCABULARY)
        measured = {"relation_loss": 3e6 / flops + rng.random(), "flops": flops, "params": params, "speed": 1e9 / flops}
        evaluations.append(Evaluation(f"space {i // 16}", subnet, measured | {"speed_q1": 2.0}))
    columns = [RELATION_LOSS, FLOPS, PARAMS, SPEED]
    far = {"relation_loss": 0.1, "flops": 4.5e9, "params": 7e7, "speed": 2.0}
    made = pareto_report(
        title="toys",
        evaluations=evaluations,
        objectives=[RELATION_LOSS, PARAMS, FLOPS],
        columns=columns,
        constraints=[Constraint(SPEED, 1e9 / 6e6, upper=False)],
        box={"relation_loss": [0.0, 9.0], "flops": [0.0, 5e8], "params": [0.0, 8e7]},
        baselines=baseline_table([Baseline("B & <b>", evaluations[0].subnet, "distilled alone", far)], columns),
        published=baselines.published(),
        engines=ENGINES,
        exact=True,
        conditions={},
        findings=[],
    )
    return replace(made, runs=[RunPart("toys", "runs/toys")])


def test_a_budget_begins_with_the_first_cost_asked_for_and_may_be_any_other(report):
    assert [each.name for each in explorable_costs(report)] == ["params", "flops", "speed"]
    assert named_cost(report, None) == PARAMS
    assert named_cost(report, "speed") == SPEED
    with pytest.raises(InputError, match="budget 'relation_loss'; allowed: params, flops, speed"):
        named_cost(report, "relation_loss")
    only_costs = replace(report, objectives=[FLOPS])
    assert [each.name for each in explorable_costs(only_costs)] == ["params", "speed"]


def test_a_budget_picks_what_pick_picks_and_its_stops_all_that_it_can(report):
    for objective, sign in ((FLOPS, "<="), (PARAMS, "<="), (SPEED, ">=")):
        found = stops(report, objective)
        assert found == sorted(set(report.frontier[objective.name]))
        picked = [best_within(report, objective, each) for each in found]
        assert [row.name for row in picked] == [pick(report, f"{objective.name}{sign}{each!r}").name for each in found]
        between = [(a + b) / 2 for a, b in pairwise(found)]
        assert {best_within(report, objective, each).name for each in between} <= {row.name for row in picked}
    assert best_within(report, FLOPS, "4M").equals(pick(report, "flops<=4M"))
    slow = replace(report, frontier=report.frontier.assign(speed=report.frontier["speed"] / 1e12))
    assert [best_within(slow, SPEED, each).name for each in stops(slow, SPEED)] == [
        best_within(report, SPEED, each).name for each in stops(report, SPEED)
    ]  # however small, and written as the command line takes it


def test_facts_say_which_row_of_the_frontier_a_subnet_is_and_how_to_get_it(report):
    for number, (_, row) in enumerate(report.frontier.iterrows(), 1):
        same = report.evaluations.merge(row.to_frame().T[["space", "flops", "params", "relation_loss"]]).iloc[0]
        told = facts(report, same)
        assert told == facts(report, row)
        knee = ", its knee" if row["knee"] else ""
        assert told.place == f"row {number} of {len(report.frontier)} of the frontier{knee}"
        assert told.get == f"autodistil-search export runs/toys --pick {number} --out student"
        assert sum(told.parts.values()) == row["params"]
        assert list(told.parts) == ["embeddings", "attention", "FFN", "pooler"]
    knee = facts(report, pick(report, "knee"))
    assert [name for name, _, _ in knee.measured] == [*(each.label for each in report.columns), "speed_q1"]
    assert knee.measured[2][2] == "parameters, embeddings included, lower is better"
    assert knee.measured[3][2] == "rows/s <batch 1>, higher is better"
    assert facts(replace(report, runs=[]), pick(report, "knee")).get is None


def test_facts_say_why_a_subnet_is_not_on_the_frontier(report):
    on = set(report.frontier[["space", "flops", "relation_loss"]].itertuples(index=False, name=None))
    reasons = []
    for i, row in report.evaluations.iterrows():
        if (row["space"], row["flops"], row["relation_loss"]) in on:
            continue
        told = facts(report, row)
        assert told.get == f"run.student(run.evaluations.loc[{i}])"
        number = re.fullmatch(r"not on the frontier: its row (\d+) is as good or better in every objective", told.place)
        if number:
            better = report.frontier.iloc[int(number[1]) - 1]
            assert all(better[each.name] <= row[each.name] for each in report.objectives)
        else:
            assert told.place == "not on the frontier: it breaks speed>=166.667"
            assert row["flops"] > 6e6
        reasons.append(bool(number))
    assert {*reasons} == {True, False}


def test_engines_are_compared_at_the_same_number_of_evaluations(report):
    assert engine_marks(report) == [20, 40]
    assert engines_after(report, 40).to_numpy().tolist() == [["nsga2", 0.9, 0.01], ["random", 0.8, 0.01]]
    both = pd.concat([ENGINES, ENGINES.assign(space="other", share=0.75)])
    names = engines_after(replace(report, engines=both), 20)["name"].tolist()
    assert names == ["other: nsga2", "other: random", "debug: nsga2", "debug: random"]
    with pytest.raises(InputError, match="no comparison of engines"):
        EngineExplorer(replace(report, engines=ENGINES.head(0)))
    widget = EngineExplorer(report)
    assert widget._table.value.index("nsga2") < widget._table.value.index("random")
    widget._choice.value = 40
    assert "90.00% ± 1.00%" in widget._table.value
    assert set(widget._repr_mimebundle_()) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}


def test_the_widget_shows_what_slider_amount_and_click_find(report):
    explorer = Explorer(report)
    assert explorer.row.equals(best_within(report, PARAMS, float(pick(report, "knee")["params"])))
    for objective in explorable_costs(report):
        explorer._choice.value = objective
        for amount in stops(report, objective):
            explorer._slider.value = amount
            assert explorer.row.equals(best_within(report, objective, amount))
            budget, ring = explorer._figure.data[-2:]
            assert budget.x == (amount, amount)
            assert (ring.x, ring.y) == ((explorer.row[objective.name],), (explorer.row["relation_loss"],))
    explorer._choice.value = FLOPS
    explorer._amount.value = "4M"
    assert explorer.row.equals(pick(report, "flops<=4M"))
    assert explorer._slider.value == explorer.row["flops"]
    assert explorer._figure.data[-2].x == (4e6, 4e6)
    before = explorer.row
    for wrong, words in (("many", "allowed: a number above 0"), ("1", "no row of the frontier keeps it")):
        explorer._amount.value = wrong
        assert words in explorer._facts.value
        assert explorer.row is before
    explorer._slider.value = stops(report, FLOPS)[0]
    assert explorer._amount.value == ""


def test_a_click_shows_the_subnet_that_is_drawn_there(report):
    callbacks = pytest.importorskip("plotly.callbacks")
    explorer = Explorer(report, "flops")
    sets = point_sets(report)
    assert sum(len(each.rows) for each in sets if not each.on_frontier) == len(report.evaluations)
    assert sum(len(each.rows) for each in sets if each.on_frontier) == len(report.frontier)
    for trace, points in zip(explorer._figure.data, sets, strict=False):
        for i, (_, row) in enumerate(points.rows.iterrows()):
            assert (trace.x[i], trace.y[i]) == (row["flops"], row["relation_loss"])
        trace._dispatch_on_click(callbacks.Points(point_inds=[i]), None)
        assert explorer.row.equals(points.rows.iloc[i])
        assert escape(facts(report, explorer.row).place) in explorer._facts.value
        assert explorer._figure.data[-2].x == ()
    baseline = next(trace for trace in explorer._figure.data if trace.name.startswith("B"))
    assert baseline.name == "B &amp; &lt;b&gt; (4.50G, outside the axes)"
    assert not explorer._figure._config["showSendToCloud"]  # nothing leaves the notebook
    explorer._height.value, explorer._colours.value = PARAMS, "heads"
    for trace, points in zip(explorer._figure.data, sets, strict=False):
        assert list(trace.y) == points.rows["params"].tolist()
        assert list(trace.marker.color) == points.rows["heads"].tolist()
    assert (explorer._figure.layout.yaxis.title.text, explorer._figure.layout.coloraxis.colorbar.title.text) == (
        "parameters<br>parameters, embeddings included; lower is better",
        "heads",
    )


def test_without_a_kernel_it_is_a_picture_and_words(report):
    shown = Explorer(report)._repr_mimebundle_(include=None, exclude=None)
    assert base64.b64decode(shown["image/png"]).startswith(b"\x89PNG")
    told = facts(report, Explorer(report).row)
    assert told.place in shown["text/plain"]
    assert told.get in shown["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" in shown


@pytest.mark.parametrize("package", ["anywidget", "ipywidgets"])
def test_what_is_missing_is_said_in_one_line(report, package, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"needs {package}; .* 'autodistil_search\[notebooks\]'"):
        Explorer(report)


@pytest.fixture
def run(toy_config):
    """A toy run with every subnet scored, and a comparison of engines as larger spaces have one."""
    folder = search(replace(toy_config, engine="exhaustive", evaluations=16)).folder
    ENGINES.to_csv(folder / "engines.csv", index=False)
    add_to_manifest(folder, ["engines.csv"])
    return load_run(folder)


def test_the_notebook_is_stored_with_pictures_and_without_what_only_a_kernel_shows():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or cell.outputs, cell.source
    text = NOTEBOOK.read_text()
    assert text.count('"image/png"') == 3
    assert "widget" not in notebook.metadata
    assert "vnd.jupyter.widget" not in text
    assert re.findall(r"/(?:root|home|tmp|work|Users)/", text) == []
    assert "--pick" in text
    assert len(text) < 500_000


@contextmanager
def jupyterlab(folder, run_folder):
    """The address of a JupyterLab that knows nothing but `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = folder / "settings" / "@jupyterlab"
    for name, text in (
        ("apputils-extension/notification", '{"fetchNews": "false"}'),
        ("notebook-extension/tracker", '{"windowingMode": "none"}'),  # cells are there, wherever one looks
    ):
        (settings / name).parent.mkdir(parents=True, exist_ok=True)
        (settings / f"{name}.jupyterlab-settings").write_text(text)
    places = {"HOME": "", "IPYTHONDIR": "ipython", "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data"}
    places |= {"JUPYTER_RUNTIME_DIR": "runtime", "JUPYTERLAB_SETTINGS_DIR": "settings"}
    places |= {"JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    given = {name: str(folder / place) for name, place in places.items()} | {"AUTODISTIL_RUN": str(run_folder)}
    server = {"port": port, "ip": "127.0.0.1", "root_dir": folder / "root", "open_browser": False, "allow_root": True}
    quiet = ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    command = [sys.executable, "-m", "jupyterlab", "--IdentityProvider.token=toys", *quiet]
    command += [f"--ServerApp.{name}={value}" for name, value in server.items()]
    kept = {name: value for name, value in os.environ.items() if name != "AUTODISTIL_SMOKE"}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=kept | given, cwd=folder, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()  # it stops its kernels, too
        process.wait()


@pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is installed")
def test_in_jupyterlab_the_budget_moves_by_keyboard_and_a_click_shows_a_subnet(run, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    pytest.importorskip("jupyterlab")
    lab = tmp_path / "lab"
    (lab / "root").mkdir(parents=True)
    shutil.copy(NOTEBOOK, lab / "root" / "explore.ipynb")
    complaints, asked_for = [], []
    with jupyterlab(lab, run.folder) as address, sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(120_000)
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked_for.append(request.url))
        page.on("websocket", lambda opened: asked_for.append(opened.url))
        page.goto(f"{address}/lab/tree/explore.ipynb?token=toys")
        page.get_by_text("(ipykernel) | Idle").wait_for()  # before, running cells asks for a kernel in a dialog
        plot = page.locator(".js-plotly-plot")
        for _ in range(3):
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            page.get_by_text(re.compile("[0-9,]+ parameters; the table says")).wait_for(state="attached")
            try:
                plot.locator(".point").first.wait_for(state="attached", timeout=60_000)
                break
            except (
                sync_api.TimeoutError
            ):  # anywidget gives up a widget after two seconds, which a busy machine may take
                assert [each for each in complaints if "Failed to initialize model" not in each] == []
                complaints.clear()

        told = page.locator(".widget-html-content").first
        amounts = stops(run.report, FLOPS)
        page.locator(".noUi-handle").first.focus()
        for key, amount in (("Home", amounts[0]), ("ArrowRight", amounts[1]), ("End", amounts[-1])):
            page.keyboard.press(key)
            expected = facts(run.report, run.pick(f"flops<={amount}"))
            told.get_by_text(expected.place).wait_for()
            assert expected.subnet in told.inner_text()
            assert expected.get in told.inner_text()

        off = [i for i, row in run.evaluations.iterrows() if "not on" in facts(run.report, row).place]
        places = (
            plot.locator(".scatterlayer .trace")
            .first.locator(".point")
            .evaluate_all("points => points.map(point => point.getBoundingClientRect()).map(box => [box.x, box.y])")
        )
        alone = max(off, key=lambda i: sorted(np.hypot(*np.subtract(places, places[i]).T))[1])
        plot.scroll_into_view_if_needed()
        box = plot.locator(".scatterlayer .trace").first.locator(".point").nth(alone).bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
        plot.locator(".hoverlayer .hovertext").first.wait_for()
        page.mouse.down()
        page.mouse.up()
        clicked = facts(run.report, run.evaluations.loc[alone])
        told.get_by_text("The point you clicked").wait_for()
        assert clicked.subnet in told.inner_text()
        assert clicked.place in told.inner_text()
        browser.close()
    assert complaints == []
    assert {url.split("/")[2].partition(":")[0] for url in asked_for if "://" in url} == {"127.0.0.1"}
