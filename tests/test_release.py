"""What is released: complete, small, of one version; and the files that a host of repositories reads."""

import re
import subprocess
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

from autodistil_search import __version__

ROOT = Path(__file__).parent.parent
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".npz", ".pkl")
MB = 1_000_000


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An sdist of the tree and the wheel that is built from it, as pip would: their files by name, and their sizes."""
    from hatchling.build import build_sdist, build_wheel

    folder = tmp_path_factory.mktemp("dist")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        sdist = folder / build_sdist(str(folder))
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        unpacked = folder / sdist.name.removesuffix(".tar.gz")
        patch.chdir(unpacked)
        wheel = folder / build_wheel(str(folder))
    in_sdist = {str(path.relative_to(unpacked)): path.read_bytes() for path in unpacked.rglob("*") if path.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name: archive.read(name) for name in archive.namelist()}
    return {"sdist": (in_sdist, sdist.stat().st_size), "wheel": (in_wheel, wheel.stat().st_size)}


@pytest.mark.parametrize(("kind", "most"), [("wheel", 0.6 * MB), ("sdist", 3 * MB)])
def test_what_is_released_is_small_and_holds_no_weights(built, kind, most):
    files, size = built[kind]
    assert size < most
    assert {name: len(content) for name, content in files.items() if len(content) > MB} == {}
    assert [name for name in files if name.endswith(WEIGHTS)] == []


def test_the_wheel_holds_all_that_the_package_reads(built):
    files, _ = built["wheel"]
    shipped = {f"{name}/{path.name}" for name in ("search_spaces", "recipes") for path in (ROOT / name).glob("*.yaml")}
    package = {str(path.relative_to(ROOT / "autodistil_search")) for path in (ROOT / "autodistil_search").rglob("*.*")}
    package = {name for name in package if "__pycache__" not in name}
    assert {"py.typed", "nas/baselines.csv", "exporting/card.md", "report/page.html"} <= package
    ours = {name.removeprefix("autodistil_search/") for name in files if name.startswith("autodistil_search/")}
    assert ours == package | shipped


def test_the_sdist_holds_all_that_is_kept_under_version_control(built):
    files, _ = built["sdist"]
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    assert set(listed) - set(files) == set()  # none is listed where there is no repository
    assert {"LICENSE", "CITATION.cff", "tests/test_release.py", "docs/design.md", ".ci/run"} <= set(files)


def test_all_say_the_same_version(built):
    files, _ = built["wheel"]
    told = Parser().parsestr(files[f"autodistil_search-{__version__}.dist-info/METADATA"].decode())
    assert told["Version"] == __version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == __version__


def test_the_citation_has_what_its_format_requires():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license"} <= set(cited)
    for work in cited["references"]:
        assert {"type", "title", "authors", "year"} <= set(work)
    assert "arXiv:2201.12507" in [each["value"] for each in cited["references"][0]["identifiers"]]


def test_the_workflow_runs_what_is_run_here_and_nothing_else():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    lowest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    assert lowest in [step.get("with", {}).get("python-version") for step in job["steps"]]


def test_the_hooks_are_the_tools_of_make_lint():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    recipe = (ROOT / "Makefile").read_text().partition("lint:")[2].partition("\n\n")[0]
    tools = [line.strip().removeprefix("$(BIN)/").removesuffix(" --check .").removesuffix(" .")
             for line in recipe.splitlines()[1:]]  # fmt: skip
    entries = [hook["entry"].removesuffix(" --force-exclude") for hook in repository["hooks"]]
    assert entries == [f".venv/bin/{tool}" for tool in tools]


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name)
def test_an_issue_template_is_a_form(path):
    form = yaml.safe_load(path.read_text())
    if path.name == "config.yml":
        assert set(form) <= {"blank_issues_enabled", "contact_links"}
        return
    assert {"name", "description", "body"} <= set(form)
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids)
    for field in form["body"]:
        assert field["type"] in {"textarea", "input", "dropdown", "checkboxes"}
        assert field["attributes"]["label"]
