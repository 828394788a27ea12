"""Python: the commands as functions of keywords, progress by default, and runs with the steps that follow."""

import inspect
import logging
import subprocess
import sys
import webbrowser
from dataclasses import fields, replace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from transformers import AutoModel, AutoTokenizer

import autodistil_search
from autodistil_search import (
    ExportOptions,
    InputError,
    Reporter,
    SearchConfig,
    distil,
    export,
    load_run,
    plan,
    profile,
    search,
)
from autodistil_search.base import default_reporter as reporting
from autodistil_search.base.progress import ConsoleReporter
from autodistil_search.settings.plan import OWN, PLANNED

pytestmark = pytest.mark.usefixtures("undrawn")

COMMANDS = ("search", "train", "distil", "finetune", "validate_proxy", "export", "plan", "profile", "open_subnets")


@pytest.fixture
def run(toy_config, searched):
    return searched(toy_config)


def test_keywords_and_an_object_of_settings_give_the_same_run(toy_config, searched, run):
    settings = {name.name: getattr(toy_config, name.name) for name in fields(SearchConfig)}
    assert repr(search(**settings, reporter=Reporter())) == repr(search(toy_config)) == repr(search(config=toy_config))
    assert repr(load_run(run.folder)) == repr(search(toy_config))


@pytest.mark.parametrize(
    ("call", "refusal"),
    [
        (lambda: search(spce="debug"), r"^unknown setting 'spce' \(did you mean 'space'\?\); allowed: config, space, "),
        (lambda: search(SearchConfig(), steps=3), "search has a SearchConfig and also steps; allowed: either"),
        (lambda: search("debug"), "search has settings of type str; allowed: a SearchConfig"),
        (lambda: search(SearchConfig(), config=SearchConfig()), "search has two values of config; allowed: one"),
        (lambda: search(SearchConfig(), Reporter()), "search has 2 positional arguments; allowed: one, and all others"),
        (lambda: distil("x", run="y"), "distil has two values of run; allowed: one"),
        (lambda: distil("missing"), "'missing' is no folder|holds no finished run"),
        (lambda: plan(tokens="1M", steps=3), "--steps 3 with --tokens 1M; allowed: one of them"),
        (lambda: search(tokens="1M", steps=3), "--steps 3 with --tokens 1M; allowed: one of them"),
        (lambda: search(tokens="much"), "--tokens 'much'; allowed: a number above 0"),
        (lambda: distil("x", tokens="1M"), "unknown setting 'tokens'"),
        (lambda: profile(objectives="acc"), "unknown setting 'objectives'"),
        (lambda: export("x", out="y", config=ExportOptions(), int8=True), "export has a ExportOptions and also int8"),
    ],
)
def test_a_call_that_cannot_be_meant_is_refused_in_one_line(call, refusal):
    with pytest.raises(InputError, match=refusal) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_each_setting_of_a_command_with_its_default(name):
    function = getattr(autodistil_search, name)
    parameters = inspect.signature(function).parameters
    described = inspect.getdoc(function)
    first, *others = parameters.values()
    assert first.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert {parameter.kind for parameter in others} == {inspect.Parameter.KEYWORD_ONLY}
    assert "reporter" in parameters or name == "profile"
    assert all(f"    {setting}: " in described for setting in parameters)
    assert not any("Annotated" in str(parameter.annotation) for parameter in others)
    if name in ("search", "train"):
        assert "tokens" in parameters
    if name == "search":
        assert {*parameters} > {setting.name for setting in fields(SearchConfig)}
        assert parameters["steps"].default == SearchConfig.steps
    if name == "plan":
        assert {*parameters} == {*PLANNED, *OWN, "config", "reporter"}


def test_a_length_in_tokens_is_rounded_up_to_steps(toy_config):
    settings = {name.name: getattr(toy_config, name.name) for name in fields(SearchConfig) if name.name != "steps"}
    run = search(**settings, tokens=65, reporter=Reporter())
    assert run.config.steps == 3  # of 2 blocks of 16 tokens


def test_a_script_gets_messages_and_progress_by_logging(toy_config, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="autodistil_search")
    search(replace(toy_config, steps=2, evaluations=2, out=str(tmp_path / "logged")))
    assert ("autodistil_search", logging.INFO, "loading the teacher and the text") in caplog.record_tuples
    assert any("2/2 steps" in message for message in caplog.messages)
    learnt_nothing = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "learnt" in learnt_nothing[0].getMessage()
    caplog.clear()
    search(replace(toy_config, steps=2, evaluations=2, out=str(tmp_path / "silent")), reporter=Reporter())
    assert not caplog.records


def test_a_notebook_and_a_prompt_in_a_terminal_get_a_display(monkeypatch):
    assert isinstance(reporting.default_reporter(), reporting.LoggingReporter)
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert isinstance(reporting.default_reporter(), reporting.LoggingReporter)  # its output is not a terminal
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert type(reporting.default_reporter()) is ConsoleReporter
    monkeypatch.delattr(sys, "ps1")
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert type(reporting.default_reporter()) is reporting.NotebookReporter


def test_a_notebook_shows_messages_and_one_line_for_each_task(monkeypatch, capsys):
    shown = []

    def display(data, **options):
        assert options == {"raw": True, "display_id": True}
        shown.append(data)
        return SimpleNamespace(update=lambda data, raw: shown.append(data))

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(reporting._InPlace, "seconds_between", 0.0)
    reporter = reporting.NotebookReporter()
    reporter.say("loading <this>")
    with reporter.bar("scoring <that>", "subnets", 2) as bar:
        bar.advance("best 3")
    assert capsys.readouterr().out == "loading <this>\n"
    assert [data["text/plain"].split(",")[0] for data in shown] == ["scoring <that>: 1/2 subnets"] * 2
    assert '<progress value="1" max="2"' in shown[0]["text/html"]
    assert "scoring &lt;that&gt;" in shown[0]["text/html"]
    assert "took " in shown[1]["text/plain"]


def test_a_run_says_what_it_holds_and_what_to_call_next(run):
    run = load_run(run.folder)
    words = str(run)
    assert str(run.folder) in words
    assert f"{len(run.evaluations)} subnets, {len(run.frontier)} on the frontier" in words
    (number,) = (i for i, knee in enumerate(run.frontier["knee"], start=1) if knee)
    assert f"row {number}, debug: " in words
    assert "objectives relation_loss, flops" in words
    assert run.report.headline.sentences[0] in words
    for call in ("distil", "finetune", "export", "open_report", "student", "pick"):
        assert f"run.{call}(" in words
        assert callable(getattr(run, call))


def test_a_saved_student_has_its_tokenizer(run, tmp_path):
    run = load_run(run.folder)
    run.student().save_pretrained(tmp_path / "student")
    tokenizer, model = (kind.from_pretrained(tmp_path / "student") for kind in (AutoTokenizer, AutoModel))
    ids = tokenizer("w1 w2 w3", return_tensors="pt")
    assert ids["input_ids"].shape[1] == 5
    assert model(**ids).last_hidden_state.shape[2] == run.knee["hidden_size"]
    assert AutoTokenizer.from_pretrained(run.folder / "superlm" / "debug").get_vocab() == tokenizer.get_vocab()


def test_the_steps_after_a_search_are_methods_of_the_run(run, tmp_path, monkeypatch):
    run = load_run(run.folder)
    distilled = run.distil(pick=1, steps=2, precision="fp32", out=str(tmp_path / "distil"))
    assert distilled.row["flops"] == run.frontier["flops"].iloc[0]
    assert str(distilled) == (
        f"student {distilled.folder}: held-out relation loss {distilled.before:.4f} before, {distilled.after:.4f} after"
    )
    assert (export(distilled, out=tmp_path / "of-distil") / "model.safetensors").is_file()
    folder = run.export(tmp_path / "exported", pick=1)
    assert AutoModel.from_pretrained(folder).config.hidden_size == run.frontier["hidden_size"].iloc[0]
    table = tmp_path / "table.csv"
    table.write_text("text,label\n" + "".join(f"w{i % 7} w{i % 3},{'ab'[i % 2]}\n" for i in range(60)))
    tuned = run.finetune(str(table), pick=1, epochs=1, seeds=1, max_length=16, out=str(tmp_path / "tuned"))
    assert f"accuracy {tuned.mean_and_spread('accuracy')[0]:.4f}, " in str(tuned)
    browser = Mock(spec=webbrowser.BackgroundBrowser("firefox"))
    monkeypatch.setattr(webbrowser, "get", lambda: browser)
    assert run.open_report() == (run.folder / "report.html").resolve()
    browser.open.assert_called_once_with((run.folder / "report.html").resolve().as_uri())


def test_the_package_and_its_search_are_imported_without_torch():
    script = "import sys, autodistil_search as a; a.search, a.export, a.load_run; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
