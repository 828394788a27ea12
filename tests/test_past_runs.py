"""Past runs: found, told apart and opened, whatever lies beside them."""

import os
import platform
import shutil
import webbrowser
from pathlib import Path
from unittest.mock import Mock

import pytest

from autodistil_search.cli.main import main
from autodistil_search.runs.past_runs import find_runs

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def runs(toy_config, searched, tmp_path, monkeypatch):
    """A finished search and copies of it: stopped twice, in use and damaged, and other folders."""
    monkeypatch.chdir(tmp_path)
    run = searched(toy_config)
    for name in ("done", "stopped", "trained", "used", "broken", "group/other"):
        shutil.copytree(run.folder, tmp_path / "runs" / name)
    shutil.rmtree(run.folder)
    for name in ("stopped", "trained", "used"):
        (tmp_path / "runs" / name / "manifest.json").unlink()
    superlm = tmp_path / "runs" / "stopped" / "superlm" / "debug"
    (superlm / "trainer_state.json").unlink()
    for step in (1, 2):
        (superlm / f"checkpoint-{step}.json").touch()
    (tmp_path / "runs" / "used" / ".lock").write_text(f"process {os.getpid()} on {platform.node()}")
    (tmp_path / "runs" / "trained" / ".lock").write_text(f"process {2**22 + 1} on {platform.node()}")  # it has ended
    (tmp_path / "runs" / "broken" / "frontier.csv").write_text("space\n")
    (tmp_path / "runs" / "notes").mkdir()
    return run


def test_every_run_is_listed_with_its_state_and_figures(runs, printed_json, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    found = {run["folder"]: run for run in printed_json(["runs"])["runs"]}
    assert {folder: (run["state"], run["remark"][:30]) for folder, run in found.items()} == {
        "runs/broken": ("damaged", "runs/broken/frontier.csv is da"),
        "runs/done": ("finished", ""),
        "runs/group/other": ("finished", ""),
        "runs/notes": ("no run", "another folder"),
        "runs/stopped": ("stopped", "at step 2 of 3 (debug)"),
        "runs/trained": ("stopped", "after training"),
        "runs/used": ("running", f"process {os.getpid()} on {platform.node()}"[:30]),
    }
    done = found["runs/done"]
    assert (done["kind"], done["spaces"], done["objectives"]) == ("search", ["debug"], ["acc", "flops"])
    assert (done["frontier"], done["hypervolume_share"]) == (len(runs.frontier), runs.report.hypervolume_share)
    assert done["knee"][done["accuracy"]] == runs.knee["relation_loss"]
    assert main(["runs", "runs/done", "runs/notes"]) == 0
    printed = capsys.readouterr().out
    assert "runs/done" in printed
    assert f"{runs.report.hypervolume_share:.1%}" in printed
    assert "group" not in printed


def test_folders_that_are_missing_are_refused_unless_they_are_the_default(tmp_path, refusal, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_runs() == []
    assert main(["runs"]) == 0
    assert "no runs" in capsys.readouterr().out
    assert "'nowhere' is no folder" in refusal(["runs", "nowhere"])
    assert "no finished search under runs, superlms, compressed" in refusal(["open"])


def test_the_newest_report_is_opened_where_there_is_a_browser(runs, printed_json, refusal, capsys, monkeypatch):
    page = Path("runs/done/report.html")
    os.utime(page, (2e9, 2e9))  # in 2033
    browser = Mock(spec=webbrowser.BackgroundBrowser("firefox"))
    monkeypatch.setattr(webbrowser, "get", lambda: browser)
    browser.open.return_value = True
    assert printed_json(["open"]) == {"page": str(page), "opened": True}
    browser.open.assert_called_once_with(page.resolve().as_uri())
    assert printed_json(["open", "runs/done", "--print"]) == {"page": str(page), "opened": False}
    assert "'runs/notes' holds no report.html" in refusal(["open", "runs/notes"])
    monkeypatch.delenv("BROWSER", raising=False)
    for get in (Mock(side_effect=webbrowser.Error), Mock(return_value=webbrowser.GenericBrowser("w3m"))):
        monkeypatch.setattr(webbrowser, "get", get)
        assert main(["open", "runs/done"]) == 0
        assert capsys.readouterr().out == f"{page}\n"
