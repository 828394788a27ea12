"""README, docs and notebook say what is so: their code runs as written."""

import re
import shlex
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient

from autodistil_search import load_run, search
from autodistil_search.cli import make_parser
from autodistil_search.space import SearchSpace

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def a_start_from_less_text(monkeypatch):
    """With the real teacher the averages that a PCA start takes are most of the time of so short a run."""
    monkeypatch.setattr("autodistil_search.inputs.SAMPLE_BLOCKS", 4)


def blocks(language: str, page: str = "README.md") -> list[str]:
    """The fenced blocks of a page in a language, without indentation."""
    text = (ROOT / page).read_text()
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, flags=re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def test_the_python_of_readme_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec("\n".join(blocks("python")), names)
    assert names["again"].frontier.equals(names["run"].frontier)
    assert names["student"].num_parameters() == names["run"].knee["params"]
    assert Path("student/model.safetensors").exists()
    assert Path("frontier.png").stat().st_size > 10_000
    assert len(names["study"].trials) == 10
    assert (names["result"].F[:, 1] > 1e6).all()  # FLOPs
    assert "widest" in load_run("runs/widest").frontier


def test_the_python_of_the_page_on_plugging_in_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks("python", "docs/plugins.md")), {})
    assert (load_run("runs/mine").evaluations["depth"] >= 2).all()


def test_the_space_of_readme_is_valid():
    (text,) = blocks("yaml")
    assert SearchSpace(name="mine", **yaml.safe_load(text)).size == 27 * (3**4 + 3**6 + 3**8) / 3


def commands_in(page):
    """Every command line of ours in its console blocks, as words."""
    lines = "\n".join(blocks("console", page)).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [each[2:] for each in words if each[:2] == ["$", "autodistil-search"]]


@pytest.mark.parametrize(
    "page",
    ["README.md", *(f"docs/{name}.md" for name in ("training", "workers", "plugins", "tasks", "export", "reports"))],
)
def test_the_commands_of_a_page_are_accepted(page):
    parsed = [make_parser().parse_args(words) for words in commands_in(page)]
    if page == "README.md":
        assert parsed[0].search.objectives == "acc,flops,params"
        assert parsed[0].search.text == ["wiki/*.txt.gz", "books.txt"]
        assert [each.command for each in parsed] == ["search", "search", "worker"]


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_links_between_files_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    for link in links:
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_every_flag_named_in_readme_and_docs_exists():
    commands = next(action for action in make_parser()._actions if action.dest == "command").choices.values()
    known = {flag for command in commands for action in command._actions for flag in action.option_strings}
    known |= {"--multi_gpu", "--num_processes", "--nnodes", "--nproc_per_node", "--rdzv_backend", "--rdzv_endpoint"}
    known |= {"--cpu", "--mixed_precision"}  # of accelerate launch and torchrun
    for page in (
        ROOT / "README.md",
        *(
            ROOT / "docs" / f"{name}.md"
            for name in ("design", "training", "plugins", "workers", "tasks", "export", "reports")
        ),
    ):
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]+", page.read_text()))
        assert named <= known, named - known


def test_the_notebook_runs_from_top_to_bottom(toy_config, monkeypatch):
    run = search(toy_config)
    monkeypatch.setenv("AUTODISTIL_RUN", str(run.folder))
    notebook = nbformat.read(ROOT / "notebooks" / "pareto_exploration.ipynb", as_version=4)
    stored = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert any(stored), "the notebook is stored without the outputs of a real run"
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    shown = "".join(str(cell.get("outputs", "")) for cell in notebook.cells)
    assert "image/png" in shown
    (counted, stated) = re.search(r"([\d,]+) parameters; the table says ([\d,]+)", shown).groups()
    assert counted == stated
