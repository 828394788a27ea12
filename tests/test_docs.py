"""README and docs say what is so: their code runs as written."""

import importlib
import os
import re
import runpy
import shlex
import socket
import subprocess
import sys
from argparse import SUPPRESS
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import pytest
import yaml
from distributed.cli import dask_scheduler, dask_worker

import autodistil_search
from autodistil_search import load_run
from autodistil_search.cli.main import main
from autodistil_search.cli.registry import NAMES, make_parser, parsers_of
from autodistil_search.nas.engines.registry import ENGINES
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.tasks import labelled_data

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
FIGURES = ("docs/benchmarks.md", "docs/results.md")  # of the benchmarks' own commands


@pytest.fixture(autouse=True)
def a_start_from_less_text(monkeypatch):
    """With the real teacher the averages that a PCA start takes are most of the time of so short a run."""
    monkeypatch.setattr("autodistil_search.runs.training_inputs.SAMPLE_BLOCKS", 4)


@pytest.fixture
def few_rows_to_report(monkeypatch):
    """Likewise the 1,807 rows on which a student is measured after each epoch, of 64 that it was trained on."""

    def topic():
        task = real()
        return replace(task, dev=task.dev.take(range(64)))

    real = labelled_data._topic
    monkeypatch.setattr(labelled_data, "_topic", topic)


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
    assert names["student"].num_parameters() == names["run"].pick("flops<=6M")["params"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in Path("student").iterdir()}


def test_the_python_of_a_search_and_its_report_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec("\n".join(blocks("python", "docs/searching.md")), names)
    assert names["again"].frontier.equals(names["run"].frontier)
    assert names["student"].num_parameters() == names["run"].knee["params"]
    assert Path("student/model.safetensors").exists()
    assert Path("frontier.png").stat().st_size > 10_000
    for page in ("docs/reports.md", "docs/api.md"):  # they read the same run
        exec("\n".join(blocks("python", page)), {})
    assert Path("frontier.pdf").stat().st_size > 10_000


def test_the_python_of_the_page_on_plugging_in_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec("\n".join(blocks("python", "docs/plugins.md")), names)
    assert (load_run("runs/mine").evaluations["depth"] >= 2).all()
    assert len(names["study"].trials) == 10
    assert (names["result"].F[:, 1] > 1e6).all()  # FLOPs


def test_the_callback_of_the_page_on_training_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks("python", "docs/training.md")), {})
    assert len(load_run("runs/watched").evaluations) == len(capsys.readouterr().out.splitlines()) == 16


def test_the_tutorial_leads_to_a_student_that_others_load(few_rows_to_report, tmp_path, monkeypatch):
    """Its commands, one after another, then its Python, in a process that does not know this package."""
    monkeypatch.chdir(tmp_path)
    commands = commands_in("docs/tutorial.md")
    assert [each[0] for each in commands] == ["profile", "search", "distil", "finetune", "export", "all"]
    for words in commands:
        assert main(words) == 0
    (python,) = blocks("python", "docs/tutorial.md")
    script = f"{python}\nimport sys; print(tuple(logits.shape), 'autodistil_search' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "(1, 11) False", done.stderr


@pytest.mark.usefixtures("undrawn")
def test_the_first_how_tos_lead_to_a_student_a_comparison_and_a_space(toy_config, tmp_path, monkeypatch):
    """Their commands in order, with toy settings for those of a search, then their Python."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    Path("mine.yaml").write_text(blocks("yaml", "docs/howto.md")[0])
    commands = commands_in("docs/howto.md")[:5]
    assert [words[0] for words in commands] == ["search", "export", "search", "search", "report"]
    toy = ["--teacher", toy_config.teacher, "--text", *toy_config.text, "--seq-len", "16", "--steps", "3"]
    toy += ["--batch-size", "2", "--eval-blocks", "4", "--evaluations", "4", "--population", "4"]
    for words in commands:
        words = ["debug" if word == "shallow" else word for word in words]
        more = {"runs/shallow": ["--baselines", "shapes:4x312"], "runs/mine": ["--objectives", "params,flops"]}.get(
            words[-1], ["--baselines", "none"]
        )
        assert main([*words, *toy, *more] if words[0] == "search" else words) == 0
    baselines, student, _ = blocks("python", "docs/howto.md")
    (exported,) = blocks("python", "docs/export.md")
    exec(exported.replace("my-student", "student"), {})
    names: dict = {}
    exec(f"{baselines}\n{student}", names)
    assert any("TinyBERT" in name for name in names["run"].baselines["name"])
    assert names["states"].shape[-1] in (48, 64)
    assert (load_run("runs/mine").evaluations["params"] <= 8e6).all()
    assert Path("both/report.html").exists()


def test_the_gallery_makes_each_of_its_images_by_its_own_blocks(toy_config, tmp_path, monkeypatch):
    """With toy settings for those of a search, without drawing and without the screenshots of a browser."""

    def savefig(_, target, **__):
        if isinstance(target, str | Path):
            Path(target).write_bytes(b"")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)
    monkeypatch.setattr("autodistil_search.nas.engine_comparison._EXCLUDED", {*ENGINES} - {"random", "nsga2"})
    monkeypatch.chdir(tmp_path)
    space = ["layers: [1, 2]", "hidden_size: [16, 32]", "mlp_ratio: [1, 2]", "heads: [1, 2, 3]", "head_dim: 8"]
    Path("toy.yaml").write_text("\n".join([*space, "relation_heads: 8"]))  # large enough to compare engines
    toy = f"--space toy.yaml --teacher {toy_config.teacher} --text {toy_config.text[0]} --seq-len 16 --steps 3"
    page = (ROOT / "docs/gallery.md").read_text()
    for real, small in {
        "--space shallow": f"{toy} --batch-size 2 --init random",
        "superlm/shallow/": "superlm/toy/",
        "--subnets 8 --alone-steps 5": "--subnets 4 --bands 2 --alone-steps 2",
        "--out runs/gallery": "--eval-blocks 4 --evaluations 8 --baselines none --out runs/gallery",
        "--evaluations 256": "--eval-blocks 4 --evaluations 24 --baselines none",
    }.items():
        assert real in page
        page = page.replace(real, small)
    gallery = runpy.run_path(str(ROOT / "docs/gallery.py"))
    gallery["save_images"](
        page, gallery["run_blocks"](page.replace("--probe topic", "--probe toy.csv")), Path("images")
    )
    shown = set(re.findall(r"\(images/gallery/(\S+)\)", page))
    assert {path.name for path in Path("images").iterdir()} == shown - {"report.png", "dashboard.png"}


def test_the_site_builds_with_every_command_public_name_and_notebook_and_loads_nothing_from_elsewhere(tmp_path):
    """Strict: a link or anchor that leads nowhere fails the build. --quiet would hide it from mkdocs, too."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr

    def page(name):
        return (tmp_path / name / "index.html").read_text()

    index = page("commands")
    for name, command in parsers_of(make_parser()).items():
        assert f'href="{name}/"' in index
        flags = {flag for action in command._actions for flag in action.option_strings if action.help != SUPPRESS}
        assert {flag for flag in flags if f"<code>{flag}" not in page(f"commands/{name}")} == set()
    index = page("api")
    for name, module in autodistil_search._HOMES.items():
        assert f'href="{name}/"' in index
        assert f'id="autodistil_search.{module}.{name}"' in page(f"api/{name}")
    index = page("notebooks")
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert f'href="{path.stem}/"' in index
        assert page(f"notebooks/{path.stem}").count("<img") >= path.read_text().count('"image/png"') > 0
    for path in tmp_path.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|link)[^>]*(?:src|href)="(https?:[^"]*)"', path.read_text())
        assert loaded == [], path


def test_the_spaces_of_the_docs_are_valid():
    (text,) = blocks("yaml", "docs/searching.md")
    assert SearchSpace(name="mine", **yaml.safe_load(text)).size == 27 * (3**4 + 3**6 + 3**8) / 3
    text, _ = blocks("yaml", "docs/howto.md")
    assert SearchSpace(name="mine", **yaml.safe_load(text)).size == 3 * 2 * 2 * 2


@pytest.fixture
def dask_processes():
    """Starts commands of Dask, and ends them."""
    started = []

    def start(words):
        local = ("--local-directory", "work") if words[1] == "worker" else ("--host", "127.0.0.1")
        command = [sys.executable, "-m", *words, *local]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment))

    yield start
    for process in reversed(started):
        process.kill()  # a worker ends with the process that watches it
        process.wait()


@pytest.mark.usefixtures("undrawn")
def test_the_commands_of_the_page_on_clusters_share_a_search(dask_processes, tmp_path, monkeypatch, capsys):
    """With a free port in place of 8786 and a toy search in place of that of `small`."""
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])

    def here(words):
        return [word.replace("node1", "127.0.0.1").replace("8786", port).replace("/shared", ".") for word in words]

    lines = "\n".join(blocks("console", "docs/clusters.md")).splitlines()
    scheduler, worker = [shlex.split(line)[1:] for line in lines if line.startswith("$ dask ")]
    (search,) = [words for words in commands_in("docs/clusters.md") if "dask:tcp://node1:8786" in words]
    dask_processes(here(scheduler))
    dask_processes(here(worker))
    toy = ["--space", "debug", "--init", "random", "--steps", "1", "--evaluations", "4", "--baselines", "none"]
    assert main([*here(search), *toy]) == 0
    assert f" workers at tcp://127.0.0.1:{port}\n" in capsys.readouterr().err
    assert len(load_run("runs/small").evaluations) == 4


def python_of(page, **replaced):
    """The last Python of a page, with another run in place of its own."""
    *_, python = blocks("python", page)
    return re.sub(r"SearchConfig\([^)]*\)", f"SearchConfig(**{replaced})", python)


TOY_RUN = {"space": "debug", "objectives": "flops,params", "evaluations": 4, "out": "run"}  # trains nothing


@pytest.mark.usefixtures("undrawn")
def test_the_python_of_the_page_on_clusters_runs_in_a_pool(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    python = python_of("docs/clusters.md", **TOY_RUN).replace("Executor(2,", "Executor(1,")
    exec(python, {"__name__": "__main__"})
    assert len(load_run("run").evaluations) == 4


@pytest.mark.usefixtures("undrawn")
def test_the_how_to_of_slurm_submits_what_it_says(tmp_path, monkeypatch):
    """A stand-in for sbatch keeps a copy of the script, which is deleted at once, and starts it in the background."""
    import dask
    import dask_jobqueue  # noqa: F401 - sets the defaults of its configuration

    commands = {
        "sbatch": 'cp "$1" job; setsid sh job > log 2>&1 & echo "Submitted batch job $!"',
        "scancel": 'kill -- "-$1"',
    }
    for name, line in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    python = python_of("docs/howto.md", **TOY_RUN).replace("jobs=16", "jobs=1")
    names = {"__name__": "__main__"}
    with dask.config.set({"jobqueue.slurm.scheduler-options": {"dashboard_address": "127.0.0.1:0"}}):
        exec(python, names)
        script = names["cluster"].job_script().splitlines()
    assert len(names["run"].evaluations) == 4
    (options,) = blocks("bash", "docs/howto.md")
    assert [line for line in script if line.startswith("#SBATCH") and " -J " not in line] == options.splitlines()
    assert sum(" --nthreads 1 " in line for line in script) == 1


def test_the_manifest_of_the_how_to_starts_dask_by_its_commands():
    _, text = blocks("yaml", "docs/howto.md")
    manifest = yaml.safe_load(text)
    for name, command in {"scheduler": dask_scheduler.main, "worker": dask_worker.main}.items():
        spec = manifest["spec"][name]["spec"]
        (container,) = spec["containers"]
        assert container["args"][:2] == ["dask", name]
        command.make_context(name, container["args"][2:])  # refuses what it does not know
        volumes = [volume["name"] for volume in spec.get("volumes", [])]
        assert [mount["name"] for mount in container.get("volumeMounts", [])] == volumes
    ports = {port["name"]: port["port"] for port in manifest["spec"]["scheduler"]["service"]["ports"]}
    service = f"tcp://{manifest['metadata']['name']}-scheduler:{ports['tcp-comm']}"  # as the operator names it
    assert any(f"dask:{service}" in words for words in commands_in("docs/howto.md"))


def commands_in(page):
    """Every command line of ours in its console blocks, as words."""
    lines = "\n".join(blocks("console", page)).replace("\\\n", " ").splitlines()
    lines = [re.sub("^.* -m autodistil_search ", "$ autodistil-search ", line) for line in lines]
    return [words_of(line.removeprefix("$ ")) for line in lines if line.startswith("$ autodistil-search ")]


@pytest.mark.parametrize("page", PAGES)
def test_each_script_that_a_page_names_has_the_flags_that_the_page_gives_it(page):
    for script, flags in re.findall(r"python ((?:benchmarks|docs|tests)/\w+\.py)([^`\n]*)", (ROOT / page).read_text()):
        source = (ROOT / script).read_text()
        assert [flag for flag in re.findall(r"--[a-z-]+", flags) if f'"{flag}"' not in source] == []


def words_of(line):
    """The words of a command line of ours behind its name, up to a pipe or a file that it is written to."""
    return list(takewhile(lambda word: word not in ("|", ">"), shlex.split(line, comments=True)))[1:]


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_are_accepted(page):
    parsed = [make_parser().parse_args(words) for words in commands_in(page)]
    if page == "docs/searching.md":
        assert parsed[0].objectives == "acc,flops,params"
        assert parsed[0].text == ["wiki/*.txt.gz", "books.txt"]


def test_help_has_examples_that_are_accepted():
    parser = make_parser()
    commands = next(action for action in parser._actions if action.dest == "command").choices
    for name, command in {"": parser, **commands}.items():
        examples = [line[2:] for line in command.epilog.splitlines() if line.startswith("  autodistil-search ")]
        assert len(examples) in (1, 2, 4)
        for example in examples:
            assert f"\n  {example}\n" in f"{command.format_help()}\n"  # on a line of its own
            assert make_parser().parse_args(words_of(example)).command == (name or example.split()[1])


def test_help_and_the_page_on_the_command_line_tell_the_same_exit_codes():
    listed = re.findall(r"^\| (\d+) \|", (ROOT / "docs/cli.md").read_text(), flags=re.MULTILINE)
    assert listed == ["0", "1", "2", "130", "143"]
    assert re.findall(r"^  (\d+) ", make_parser().format_help(), flags=re.MULTILINE) == listed


def test_the_page_on_the_command_line_tells_what_each_command_prints_as_json():
    told = re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs/cli.md").read_text(), flags=re.MULTILINE)
    assert sorted(told) == sorted({*NAMES} - {"completion"})


def test_every_function_and_file_that_design_and_contributing_name_is_there():
    package = ROOT / "autodistil_search"
    named = re.findall(r"`((?:[a-z_]+\.)+[A-Za-z_]+)`", (ROOT / "docs/design.md").read_text())
    dotted = [name for name in named if (package / name.partition(".")[0]).is_dir()]
    assert len(dotted) > 25
    for name in dotted:
        target = autodistil_search
        for part in name.split("."):
            if not hasattr(target, part):
                importlib.import_module(f"{target.__name__}.{part}")
            target = getattr(target, part)
    paths = re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+\.py)?)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(paths) > 15
    for path in paths:
        assert (ROOT / path).exists() or (package / path).exists(), path


def test_links_of_readme_lead_somewhere():
    """Those of docs are held by the site's strict build."""
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    for link in links:
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link


def test_every_flag_named_in_readme_and_docs_exists():
    commands = next(action for action in make_parser()._actions if action.dest == "command").choices.values()
    known = {flag for command in commands for action in command._actions for flag in action.option_strings}
    known |= {"--multi_gpu", "--num_processes", "--nnodes", "--nproc_per_node", "--rdzv_backend", "--rdzv_endpoint"}
    known |= {"--cpu", "--mixed_precision"}  # of accelerate launch and torchrun
    known |= {"--logdir"}  # of TensorBoard
    known |= {"--extra-index-url"}  # of pip
    known |= {"--cpus-per-task", "--gres", "--mem"}  # of Slurm
    known |= {flag for dask in (dask_scheduler.main, dask_worker.main) for entry in dask.params for flag in entry.opts}
    for page in PAGES:
        if page in FIGURES:
            continue
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]+", (ROOT / page).read_text()))
        assert named <= known, named - known
