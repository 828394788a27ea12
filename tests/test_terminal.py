"""What commands print, for people and for programs, and what a shell completes."""

import io
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from autodistil_search import load_run, load_space
from autodistil_search.cli.command import Outcome, json_record
from autodistil_search.cli.commands.search import print_frontier
from autodistil_search.cli.completion_script import completion_script
from autodistil_search.cli.main import main
from autodistil_search.cli.registry import make_parser
from autodistil_search.nas.engines.registry import ENGINES
from autodistil_search.nas.label_free_proxies import RelationProxy
from autodistil_search.runs.doctor import Finding, print_findings
from autodistil_search.runs.train import train
from autodistil_search.settings.recipes import PRESETS, shipped_recipes
from autodistil_search.spaces.cost import flops, params
from autodistil_search.spaces.search_space import shipped_spaces


@pytest.fixture
def given(toy_config, tmp_path):
    """The toy run as a file of settings."""
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(toy_config.to_dict() | {"out": toy_config.out}))
    return str(path)


def test_a_search_as_json_is_its_files_and_nothing_else(given, toy_config, printed_json, capsys, monkeypatch):
    real = RelationProxy.score
    with monkeypatch.context() as patch:
        patch.setattr(RelationProxy, "score", lambda *given: print("a talkative part") or real(*given))
        assert main(["search", "--config", given, "--json"]) == 0
    shown = capsys.readouterr()
    assert "searching debug: 8/8 subnets" in shown.err
    assert "a talkative part" in shown.err
    found = printed_json(["search", "--config", given])  # the run is there: it is shown, not made again
    assert json.loads(shown.out) == found
    run = load_run(toy_config.out)
    assert found["folder"] == str(run.folder)
    assert found["summary"] == run.summary
    assert Path(found["report"]).is_file()
    pd.testing.assert_frame_equal(pd.DataFrame(found["frontier"]), run.frontier)
    monkeypatch.delenv("COLUMNS", raising=False)
    wide = run.frontier.assign(heads="4-" * 60 + "4")
    monkeypatch.setattr(type(run), "frontier", property(lambda _: wide))
    Outcome({}, partial(print_frontier, run)).print(as_json=False)
    assert wide["heads"][0] in capsys.readouterr().out  # in a file a table is as wide as it must be


def test_a_training_as_json(given, toy_config, printed_json, tmp_path):
    config = toy_config.training(out=str(tmp_path / "superlms"), steps=1)
    train(config)
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(config.to_dict()))
    found = printed_json(["train", "--config", str(path), "--out", config.out])
    assert found == {"folder": config.out, "spaces": ["debug"]}


def test_an_error_is_not_json(refusal, capsys):
    assert "'speed'" in refusal(["search", "--objectives", "speed", "--json"])
    assert capsys.readouterr().out == ""


def test_plan_and_profile_as_json(teacher_folder, toy_teacher, printed_json):
    teacher, space, vocabulary = f"--teacher={teacher_folder()}", load_space("debug"), toy_teacher().vocabulary
    stated = ["--tokens=26K", "--seq-len=16", "--devices=2", "--batch-size=8", "--flops-per-second=0.5M", "--keep=3"]
    found = printed_json(["plan", "--space=debug", teacher, "--precision=fp32", "--device=cpu", *stated])
    (plan,) = found["plans"]
    assert (plan["steps"], plan["rows_per_device"], plan["device_hours"]) == (204, 4, 2 * plan["hours"])
    assert plan["step_seconds"] == pytest.approx(plan["step_flops_per_device"] / 0.5e6)
    assert plan["checkpoints_bytes"] == 3 * plan["checkpoint_bytes"]
    assert plan["memory_bytes"]["peak"] is None  # nothing was timed
    assert found["hours"] == plan["hours"]

    small = ["--measured-seq-len=8", "--throughput-batch=2", "--device=cpu", "--precision=fp32"]
    found = printed_json(["profile", "--space=debug", teacher, *small])
    units = {column["name"]: column["unit"] for column in found["columns"]}
    assert units["latency"].startswith("ms, 1 x 8 tokens, cpu fp32")
    smallest = found["spaces"][0]["profiles"][0]
    assert smallest["role"] == "smallest"
    assert smallest["hidden_size"] == space.smallest.hidden_size
    assert (smallest["flops"], smallest["params"]) == (flops(space.smallest), params(space.smallest, vocabulary))


def test_list_and_partition_as_json(printed_json, tmp_path):
    listed = printed_json(["list"])
    assert listed["engines"]["own"] == list(ENGINES)
    assert [*listed["presets"], *listed["recipes"]] == shipped_recipes()
    found = printed_json(["partition", "tiny", "--k", "2", "--out", str(tmp_path)])
    parts = [load_space(each["path"]) for each in found["sub_spaces"]]
    assert sum(part.size for part in parts) == load_space("tiny").size
    assert [each["flops_largest"] for each in found["sub_spaces"]] == [flops(part.largest) for part in parts]
    assert 0 < found["share_of_variance_within"] < 1


def test_numbers_that_are_none_are_null():
    table = pd.DataFrame({"a": [1, 2], "b": [float("nan"), 0.1]})
    value = {"table": table, "whole": np.int64(3), "endless": np.float32("inf"), "path": Path("x"), "pair": (True, "y")}
    assert json.loads(json.dumps(json_record(value), allow_nan=False)) == {
        "table": [{"a": 1, "b": None}, {"a": 2, "b": 0.1}],
        "whole": 3,
        "endless": None,
        "path": "x",
        "pair": [True, "y"],
    }


class Terminal(io.StringIO):
    """A standard output that is a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("file", "no_color", "coloured"), [(Terminal, "", True), (Terminal, "1", False), (io.StringIO, "", False)]
)
def test_colours_are_for_terminals_whose_user_wants_them(file, no_color, coloured, monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", printed := file())
    broken = [Finding("torch", None, state="broken", remark="not [red]installed[/red]")]
    Outcome({}, partial(print_findings, broken)).print(as_json=False)
    assert ("\x1b[1;31m" in printed.getvalue()) is coloured
    assert ("\x1b" in printed.getvalue()) is (file is Terminal)
    assert "torch: not [red]installed[/red]" in printed.getvalue()


ASKED = """
source {script}
COMP_WORDS=({words}) COMP_CWORD={last}
COMPREPLY=()
_shtab_autodistil_search autodistil-search "${{COMP_WORDS[-1]}}" "${{COMP_WORDS[-2]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_flags_words_and_files(tmp_path):
    script = tmp_path / "script"
    script.write_text(completion_script(make_parser(), "bash"))
    (tmp_path / "mine.yaml").touch()

    def completed(line):
        words = line.split(" ")
        quoted = " ".join(f"'{word}'" for word in words)
        asked = ASKED.format(script=script, words=quoted, last=len(words) - 1)
        done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True, cwd=tmp_path)
        assert done.stderr == ""
        return done.stdout.split()

    assert completed("autodistil-search se") == ["search"]
    assert completed("autodistil-search search --eng") == ["--engine"]
    assert completed("autodistil-search search --engine ") == list(ENGINES)
    assert completed("autodistil-search search --init ") == ["auto", "fitted", "pca", "slices", "embeddings", "random"]
    assert completed("autodistil-search search --objectives acc,lat") == ["acc,latency"]
    assert completed("autodistil-search train --space ") == [*shipped_spaces(), "mine.yaml"]
    assert completed("autodistil-search search --config mi") == ["mine.yaml"]
    assert completed("autodistil-search search --config own") == ["own-task"]
    assert completed("autodistil-search train -p ") == list(PRESETS)
    assert completed("autodistil-search completion ") == ["bash", "zsh"]


def test_the_command_prints_the_script_for_zsh(capsys):
    assert main(["completion", "zsh"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("#compdef autodistil-search")
    assert "_sequence compadd - acc flops" in printed
    assert "(nsga2 " in printed.replace("surrogate ", "")


@pytest.mark.parametrize(
    ("command", "stdout", "code", "told"),
    [
        ("completion bash", "left", 0, ""),
        ("completion bash", "closed", 0, ""),
        ("completion bash", "full", 1, "the result is saved, but cannot be printed: No space left"),
        ("search --help-all", "left", 0, ""),
    ],
)
def test_a_result_that_nobody_can_read_is_no_traceback(command, stdout, code, told):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as left, Path("/dev/full").open("w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "autodistil_search", *command.split()],
            stdout={"left": left, "closed": None, "full": full}[stdout],
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
            check=False,
            preexec_fn=partial(os.close, 1) if stdout == "closed" else None,
        )
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert done.stderr.count("\n") == bool(told)


def test_work_goes_on_where_nobody_reads_its_progress(run_instead, monkeypatch, capsys):
    class Left(io.StringIO):
        def write(self, _):
            raise BrokenPipeError

    def talk(_, reporter):
        reporter.say("some progress")
        print("a talkative part")
        return Outcome({"done": True}, print)

    run_instead("list", talk)
    monkeypatch.setattr(sys, "stderr", Left())
    assert main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"done": True}


def test_what_the_encoding_of_a_terminal_lacks_is_escaped(run_instead, monkeypatch):
    printed = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    outcome = Outcome({}, lambda _: print("4 \u00d7 5"))
    run_instead("list", lambda *_: outcome)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", printed)
        assert main(["list"]) == 0
    assert printed.buffer.getvalue() == b"4 \\xd7 5\n"
