"""The notebooks run from a clean kernel, top to bottom, and show what they say; so do their stored outputs."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from rounding import loss_rounding

from autodistil_search import load_run
from autodistil_search.base.files import read_json

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
_ABSOLUTE = re.compile(r"(?<![\w./:])/(?:home|root|tmp|work|usr|opt|mnt|var|private|Users|builds?)/\S*|\b[A-Z]:\\\S*")


def read(name: str) -> NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def outputs(notebook: NotebookNode) -> Iterator[NotebookNode]:
    for cell in notebook.cells:
        yield from cell.get("outputs", [])


def words(output: NotebookNode) -> str:
    """All that an output shows, but pictures."""
    texts = [text for kind, text in output.get("data", {}).items() if not kind.startswith("image/")]
    return "\n".join([output.get("text", ""), *map(str, texts)])


def printed(notebook: NotebookNode) -> str:
    return "".join(output.text for output in outputs(notebook) if output.output_type == "stream")


def check_outputs(notebook: NotebookNode) -> None:
    """There are some, and neither errors nor warnings nor the places of files on a machine."""
    found = list(outputs(notebook))
    assert found, "no outputs"
    assert [each for each in found if each.output_type == "error" or each.get("name") == "stderr"] == []
    assert [match for each in found for match in _ABSOLUTE.findall(words(each))] == []


def search_spaces(shown: str, folder: Path) -> None:
    """Costs are counted on models, and a search keeps the bounds that the table does."""
    assert "NOT EQUAL" not in shown
    assert len(re.findall(r": equal$", shown, flags=re.MULTILINE)) == 3
    table, constraints = re.search(r"kept by the table: (\d+); kept by the search's constraints: (\d+)", shown).groups()
    assert table == constraints
    assert 0 < int(table) < 16
    assert "equal to the one in the file: True" in shown
    assert shown.count("allowed:") == 3  # refusals


def training_a_superlm(shown: str, folder: Path) -> None:
    """The loss is what it is explained as, slices are models, and a resumed training equals one never stopped."""
    by_hand, ours = re.search(r"on the sentence: ([\d.]+) by hand, ([\d.]+) by", shown).groups()
    assert float(by_hand) == pytest.approx(float(ours), abs=2e-5)
    assert re.search(r"stopped after step \d+, which is saved", shown)
    assert re.search(r"\d+ tensors, all equal: True", shown)
    assert "same losses in every step: True" in shown
    as_slice, alone = re.search(r"held-out loss: ([\d.]+) as a slice, ([\d.]+) as a model", shown).groups()
    assert float(as_slice) == pytest.approx(float(alone), abs=1.1e-4)  # the last digit may be rounded either way
    log = pd.read_csv(folder / "runs" / "notebook-2-smoke" / "superlm" / "superlm" / "debug" / "training.csv")
    trained = {*zip(log["layers"], log["hidden_size"], log["mlp_ratio"], log["heads"], strict=True)}
    assert f"{len(trained)} of 16 subnets were trained in at least one step" in shown


def pareto_exploration(shown: str, folder: Path) -> None:
    """The student taken out has the parameters that the table states. (Its widgets: test_explore.)"""
    counted, stated = re.search(r"([\d,]+) parameters; the table says ([\d,]+)", shown).groups()
    assert counted == stated


def your_own_parts(shown: str, folder: Path) -> None:
    """The search had the objectives, the engine and the space; others' searches score a subnet once, and alike."""
    runs = folder / "runs" / "notebook-4-smoke"
    frontier = load_run(runs / "objectives").frontier
    assert (frontier["tiled_flops"] >= frontier["flops"]).all()
    assert frontier["int8_drift"].between(1e-5, 0.1).all()
    table, again = re.search(r"int8_drift in the table ([\d.]+), of the extracted student ([\d.]+)", shown).groups()
    assert float(table) == pytest.approx(float(again), abs=1.1e-6)
    assert load_run(runs / "engine-neighbours").config.engine == "neighbours"
    assert set(load_run(runs / "space").evaluations["space"]) == {"filled"}
    assert "every width fills its own: True" in shown
    asked, scored = map(int, re.search(r"asked (\d+) times; (\d+) subnets were scored", shown).groups())
    assert 0 < scored <= 16 < asked
    common, apart = re.search(r"(\d+) subnets were in .* differ by at most ([\d.e+-]+)", shown).groups()
    assert int(common) > 0
    assert float(apart) < loss_rounding(64)


def from_frontier_to_student(shown: str, folder: Path) -> None:
    """A process without this package, and ONNX Runtime, compute what the student here does."""
    assert "modules of autodistil_search loaded: 0" in shown
    assert float(re.search(r"logits to those of the student here: (\S+)", shown).group(1)) < 1e-5
    assert float(re.search(r"ONNX logits to PyTorch's: (\S+)", shown).group(1)) < 1e-4
    reported, of_card = re.search(r"accuracy: ([\d.]+) by finetune in \w+, ([\d.]+) in the card", shown).groups()
    assert float(of_card) == pytest.approx(float(reported), abs=0.01)  # in bfloat16 and float32
    runs = folder / "runs" / "notebook-5-smoke"
    flops, budget = load_run(runs / "search").frontier["flops"], re.search(r"best within ([\d,]+)", shown).group(1)
    chosen = read_json(runs / "distilled" / "distil.json")["row"]["flops"]
    assert chosen == flops[flops <= int(budget.replace(",", ""))].max()


CHECKS: dict[str, Callable[[str, Path], None]] = {
    "1_search_spaces": search_spaces,
    "2_training_a_superlm": training_a_superlm,
    "3_pareto_exploration": pareto_exploration,
    "4_your_own_parts": your_own_parts,
    "5_from_frontier_to_student": from_frontier_to_student,
}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_from_a_clean_kernel_and_shows_what_it_says(name, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTODISTIL_SMOKE", "1")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "notebooks"  # its runs go beside it
    folder.mkdir()
    shutil.copy(FOLDER / f"{name}.ipynb", folder)
    notebook = nbformat.read(folder / f"{name}.ipynb", as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, coalesce_streams=True, resources=resources).execute()
    check_outputs(notebook)
    assert str(tmp_path) not in "".join(map(words, outputs(notebook)))
    CHECKS[name](printed(notebook), tmp_path)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_stored_as_a_clean_run_left_it(name):
    notebook = read(name)
    check_outputs(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any("execution" in cell.metadata for cell in notebook.cells)  # times
    assert any("image/png" in each.get("data", {}) for each in outputs(notebook))
    assert not any(_ABSOLUTE.findall(cell.source) for cell in notebook.cells)
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 500_000
    assert "AUTODISTIL_SMOKE" in code[0].source
