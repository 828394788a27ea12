"""A search as Optuna Dashboard shows it, in a real browser."""

import re
import runpy
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from autodistil_search import search

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")


dashboard = runpy.run_path(str(Path(__file__).parent.parent / "docs" / "gallery.py"))["served"]


def page(address, folder):
    """The page as it is after its scripts have run."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", *QUIET, f"--user-data-dir={folder}"]
    command = [BROWSER, *flags, "--virtual-time-budget=20000", "--dump-dom", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is installed")
def test_the_dashboard_shows_directions_names_and_the_pareto_front(toy_config, tmp_path):
    storage = tmp_path / "study.log"
    run = search(replace(toy_config, storage=str(storage), study="toys", evaluations=16, engine="exhaustive"))
    with dashboard(storage) as address:
        home = " ".join(re.sub("<[^>]*>", " ", page(f"{address}/dashboard/", tmp_path / "browser")).split())
        study = page(f"{address}/dashboard/studies/0", tmp_path / "browser")
    assert "0. toys Direction: MINIMIZE, MINIMIZE" in home
    front = study[study.index('id="graph-pareto-front"') :]
    for name in ("Pareto Front", "relation_loss", "flops"):
        assert name in re.sub("<[^>]*>", " ", study)
    points = [trace.count('class="point"') for trace in front.split('<g class="trace')[1:]]
    dominated, best = [count for count in points if count][:2]  # a trace of infeasible trials has none
    assert (dominated + best, best) == (len(run.evaluations), len(run.frontier))
