"""The command `report`, on finished runs."""

import shutil

import pytest

from autodistil_search import load_run, search
from autodistil_search.base.manifest import reopen
from autodistil_search.cli.main import main
from autodistil_search.report.file_names import REPORT_FILES


@pytest.fixture
def run(toy_config):
    return search(toy_config)


def test_a_run_is_reported_again_alone_and_with_others(run, tmp_path, capsys, refusal, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("autodistil_search.report.figures.FORMATS", ("svg",))  # test_report.py has the others
    tables = {path: path.read_bytes() for path in run.folder.glob("*.csv")}
    page = run.folder / "report.html"
    before = page.read_text()
    assert "Training of the SuperLM" in before  # also at the end of a search
    assert f"export {run.folder} --pick 1 --out student" in before
    page.unlink()
    assert main(["report", str(run.folder)]) == 0
    assert page.read_text() == before
    assert {path: path.read_bytes() for path in tables} == tables

    other = tmp_path / "other"
    shutil.copytree(run.folder, other)
    capsys.readouterr()
    assert main(["report", str(run.folder), str(other), "--figure"]) == 0
    together = tmp_path / "report-run-other"
    *table, page, figures = capsys.readouterr().out.splitlines()
    assert (page, figures) == (str(together / "report.html"), str(together / "figures"))
    assert table[1].split()[:4] == ["run", "scored", "frontier", "hypervolume"]
    assert [line.split()[0] for line in table[2:]] == ["run", "other"]
    assert {*REPORT_FILES, "figures"} <= {path.name for path in together.iterdir()}

    assert "holds other files" in refusal(["report", str(run.folder), "--out", str(other)])
    assert "holds no finished run" in refusal(["report", str(tmp_path / "nothing")])
    reopen(other)  # as of an earlier version: nothing tells that it is not what was written
    (other / "environment.json").write_text((other / "environment.json").read_text().replace('"text": "', '"text": "0'))
    refused = refusal(["report", str(run.folder), str(other)])
    assert "cannot share axes: the text behind relation_loss is" in refused
    assert "a different one of the same name" in refused


def test_a_run_shows_itself_in_a_notebook_and_its_tables_have_units(run, monkeypatch):
    shown = run._repr_html_()
    assert f"parameters: {run.knee['params'] / 1e3:.2f}k" in shown
    monkeypatch.chdir(run.folder / "superlm")
    assert load_run("..").report.runs[0].folder == ".."  # as notebooks name it, not as the machine does
    assert shown.count("<tr") == 1 + len(run.frontier)
    assert f"Knee: debug: {run.knee['layers']} layers" in shown
    for table in (run.evaluations, run.frontier):
        assert table.attrs["units"] == {
            "relation_loss": "nats, sum of QQ, KK and VV",
            "flops": "multiply-adds, 128 tokens, batch 1",
            "params": "parameters, embeddings included",
        }
