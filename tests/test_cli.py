"""The command line: what it prints, where its flags go, and how it refuses."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import get_type_hints
from unittest.mock import Mock

import pytest
import torch
import yaml
from processes import start_command

from autodistil_search import SearchConfig, TrainConfig, load_run
from autodistil_search.base.errors import InputError
from autodistil_search.cli.command import Outcome
from autodistil_search.cli.main import main
from autodistil_search.cli.parser import as_number, as_whole_number
from autodistil_search.cli.registry import NAMES, make_parser, parsers_of
from autodistil_search.settings.common import GROUPS, grouped_yaml
from autodistil_search.settings.distil import DistilConfig
from autodistil_search.settings.finetune import FinetuneConfig
from autodistil_search.settings.recipes import PRESETS
from autodistil_search.settings.validate_proxy import ValidateConfig

pytestmark = pytest.mark.usefixtures("undrawn")

ROOT = Path(__file__).parent.parent


def arguments(config: SearchConfig, without: tuple[str, ...] = ()) -> list[str]:
    left_out = ("text", *without)
    values = {key: value for key, value in config.to_dict().items() if value is not None and key not in left_out}
    switches = {key for key, value in values.items() if isinstance(value, bool)}
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in values.items() if key not in switches]
    flags += [f"--{key}" for key in switches if values[key]]
    return [*flags, f"--out={config.out}", "--text", *config.texts]


def test_a_search_prints_the_frontier_and_where_the_report_lies(toy_config, capsys):
    assert main(["search", *arguments(toy_config)]) == 0
    shown = capsys.readouterr()
    printed, progress = shown.out, shown.err
    run = load_run(toy_config.out)
    assert "training SuperLM debug: 3/3 steps" in progress
    assert "searching debug: 8/8 subnets" in progress
    assert "training" not in printed
    assert f"Pareto frontier of debug: {len(run.frontier)} of 8 scored" in printed
    assert printed.count("knee") == 1
    assert f"report: {run.folder / 'report.html'}" in printed


def in_a_process(*command):
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, check=False)


def test_a_process_of_its_own_searches(toy_config):
    outcome = in_a_process("-m", "autodistil_search", "search", *arguments(toy_config), "--quiet")
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stderr == ""
    assert len(load_run(toy_config.out).evaluations) == 8


def test_every_way_in_is_the_same_command():
    refused = ("--evaluations", "0")  # at once, without torch
    outcomes = [in_a_process(*way, *refused) for way in (["search.py"], ["-m", "autodistil_search", "search"])]
    assert [outcome.returncode for outcome in outcomes] == [2, 2]
    assert outcomes[0].stderr == outcomes[1].stderr == ("error: --evaluations must be a whole number from 1 (got 0)\n")


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        *(("search", field.name) for field in fields(SearchConfig)),
        *(("train", field.name) for field in fields(TrainConfig)),
    ],
)
def test_every_setting_has_a_flag_with_help_and_the_default(name, setting):
    parser = make_parser()
    command = next(action for action in parser._actions if action.dest == "command").choices[name]
    action = next(action for action in command._actions if action.dest == setting)
    assert f"--{setting.replace('_', '-')}" in action.option_strings
    assert action.help
    default = SearchConfig.__dataclass_fields__[setting].default
    shown = f"{default:g}" if isinstance(default, float) else str(default)
    assert (f"(default: {shown})." in action.help) == (default is not None and default is not False and default != "")


def test_a_config_file_gives_the_settings_and_flags_override_it(toy_config, tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump({**toy_config.to_dict(), "out": toy_config.out}))
    assert main(["search", "--config", str(path), "--evaluations", "5"]) == 0
    run = load_run(toy_config.out)
    assert len(run.evaluations) == 5
    assert yaml.safe_load((run.folder / "config.yaml").read_text()) == replace(toy_config, evaluations=5).to_dict()


@pytest.mark.parametrize("setting", ["steps: 1e400", "lr: 1e400", "text: {a: b}", "text: [5]", 'space: "a\\0"'])
def test_a_setting_of_a_config_file_is_refused_in_one_line(setting, tmp_path, capsys):
    path = tmp_path / "settings.yaml"
    path.write_text(setting)
    assert main(["search", "--config", str(path), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}: {setting.partition(':')[0]} " in line
    assert " must be " in line


def test_the_config_a_run_leaves_repeats_it(toy_config, searched, tmp_path):
    searched(toy_config)
    again = str(tmp_path / "again")
    assert main(["search", "--config", str(Path(toy_config.out) / "config.yaml"), "--out", again]) == 0
    assert load_run(again).evaluations.equals(load_run(toy_config.out).evaluations)


@pytest.mark.parametrize(
    ("flags", "got", "allowed"),
    [
        (["--objectives", "acc,speed"], "speed", "acc, flops, params"),
        (["--objectives", ""], "''", "acc, flops, params"),
        (["--space", "huge"], "huge", "base, debug, elastic, oneshot, shallow, small, tiny"),
        (["--space", "debug,debug"], "debug, debug", "each space once"),
        (["--engine", "annealing"], "annealing", "nsga2"),
        (["--evaluations", "0"], "0", "from 1"),
        (["--evaluations", "many"], "many", "whole number"),
        (["--steps", "-3"], "-3", "from 1"),
        (["--lr", "0"], "0", "above 0"),
        (["--lr", "nan"], "nan", "finite number"),
        (["--seed", "-1"], "-1", "from 0"),
        (["--seed", "99999999999"], "99999999999", "4294967295"),
        (["--out", "/proc/nowhere"], "/proc/nowhere", "folder"),
        (["--text", "/proc/1/mem.txt"], "mem.txt", ".txt.gz"),
        (["--constraint", "flops<=lots"], "lots", "300M"),
        (["--constraint", "flops=3M"], "flops=3M", "NAME<=AMOUNT"),
        (["--constraint", "speed<=3"], "speed<=3", "throughput"),
        (["--constraint", "params<=1K"], "params<=1000", "goes from"),
        (["--constraint", "throughput>=1T", "--measured-seq-len", "8"], "throughput>=1e+12", "goes from"),
        (["--objectives", "acc,latency"], "--measured-seq-len 128", "1 to 40"),
        (["--constraint", "flops<=2.4M", "--constraint", "flops>=2.37M"], "flops>=2.37e+06", "keeps all of them"),
        (["--latency-batch", "0"], "--latency-batch", "from 1"),
        (["--seq-len", "4"], "4", "from 8"),
        (["--seq-len", "4000"], "4000", "8 to 40"),
        (["--teacher-layer", "9"], "9", "0 to 2"),
        (["--text", "missing.txt"], "missing.txt", ".txt.gz"),
        (["--teacher", "/no/such/folder"], "/no/such/folder", "safetensors"),
        (["--device", "tpu"], "tpu", "cuda"),
        (["--precision", "fp8"], "fp8", "fp16"),
        (["--sampling", "smallest"], "smallest", "sandwich"),
        (["--depth", "top"], "top", "first_last"),
        (["--relations", "qv"], "qv", "qq, kk, vv, qk"),
        (["--relation-heads", "3"], "3", "multiple"),
        (["--subnet-weights", "tallest:2"], "tallest", "largest, smallest, random"),
        (["--random-subnets", "-1"], "-1", "from 0"),
        (["--sampling", "random", "--random-subnets", "0"], "--random-subnets 0", "1 or more"),
        (["--sampling", "largest", "--random-subnets", "2"], "--random-subnets 2", "largest-random"),
        (["--in-place", "1.5"], "1.5", "from 0 to 1"),
        (["--in-place", "0.5", "--sampling", "random"], "--in-place", "trains the largest"),
        (["--proxy", "hidden", "--eval-blocks", "1"], "--eval-blocks 1", "2 or more"),
        (["--proxy", "combined", "--eval-blocks", "1"], "--proxy combined", "2 or more"),
        (["--hidden", "-1"], "-1", "from 0"),
        (["--accumulate", "0"], "0", "from 1"),
        (["--accumulate", "3"], "--accumulate 3", "one part a block"),
        (["--keep", "0"], "0", "from 1"),
        (["--superlm", "/no/such/folder"], "/no/such/folder", "train"),
        (["--no-such-flag"], "--no-such-flag", "--help"),
        (["--config", "missing.yaml"], "missing.yaml", ""),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(flags, got, allowed, toy_config, capsys):
    try:
        code = main(["search", "--quiet", *arguments(toy_config), *flags])
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    assert code == 2
    assert got in printed.err
    assert allowed in printed.err
    assert printed.err.count("\n") == 1
    assert not (Path(toy_config.out) / "superlm").exists()


def test_a_short_flag_means_the_same_everywhere_and_a_long_one_has_two_dashes(refusal):
    long = {}
    for command in parsers_of(make_parser()).values():
        for action in command._actions:
            for letter in (flag for flag in action.option_strings if re.fullmatch("-[a-zA-Z]", flag)):
                assert long.setdefault(letter, action.option_strings[-1]) in action.option_strings
    assert long == {
        **{"-h": "--help", "-p": "--preset", "-c": "--config", "-q": "--quiet", "-s": "--space", "-t": "--teacher"},
        **{"-o": "--out", "-n": "--steps", "-b": "--batch-size", "-e": "--evaluations", "-d": "--device"},
    }
    for given in (["-out=x"], ["-space", "debug"]):
        flag = given[0].partition("=")[0]
        assert refusal(["train", *given]) == (
            f"error: unrecognized arguments: {flag} (did you mean '-{flag}'?) (see --help)\n"
        )


def help_of(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", NAMES)
def test_the_help_is_short_and_plain_and_names_the_flag_that_shows_all(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = help_of(capsys, command, "--help")
    assert len(shown.splitlines()) <= (46 if command == "search" else 54)  # `all` has the usual settings of four
    hidden = parsers_of(make_parser())[command].hidden
    flags = set(re.findall(r"--[a-z][a-z-]+", shown))
    everything = help_of(capsys, command, "--help-all") if hidden else shown
    assert {f"--{name.replace('_', '-')}" for name in hidden} & {*re.findall("^  (--[a-z-]+)", shown, re.M)} == set()
    assert ("--help-all" in flags) == bool(hidden)
    assert not re.search(r"^  (-[a-z], )?--out (?!FOLDER)", everything, re.MULTILINE)
    assert flags <= set(re.findall(r"--[a-z][a-z-]+", everything))
    for words in ("Optional", "Literal", "type:", "null", "None", "==SUPPRESS==", "default: False"):
        assert words not in everything
    assert "%%" not in everything


def test_the_help_of_a_search_shows_the_presets_and_all_groups_on_request(capsys):
    shown = help_of(capsys, "search", "-h")
    assert [name for name in PRESETS if f"\n                         {name} " not in shown] == []
    everything = help_of(capsys, "search", "--help-all")
    assert [group.title for group in GROUPS if f"\n{group.title}:\n" not in everything] == []


def test_the_length_of_a_training_is_given_in_steps_or_tokens(toy_config, searched, refusal, capsys):
    run = searched(toy_config)
    sizes = ["--batch-size", "2", "--seq-len", "16"]
    assert "--steps 3 with --tokens 1K; allowed: one of them" in refusal(["train", "--steps", "3", "--tokens", "1K"])
    assert "--tokens '1X'; allowed: a number above 0" in refusal(["search", "--tokens", "1X"])
    assert "--tokens with --superlm" in refusal(["search", "--tokens", "1K", "--superlm", "x"])
    assert (
        main(["search", *arguments(toy_config, without=("steps",)), "--tokens", "70"]) == 0
    )  # that run, not a new one
    assert "--tokens 70: 3 steps of 2 x 16 tokens, 96 tokens, rounded up\n" in capsys.readouterr().err
    for command, given in {"train": ["--tokens", "1K", *sizes], "search": ["--tokens=1e3", *sizes]}.items():
        assert main([command, *given, "--print-config"]) == 0
        assert yaml.safe_load(capsys.readouterr().out)["steps"] == 32
    out = str(run.folder / "student")
    assert main(["distill", str(run.folder), "--tokens", "64", "--out", out]) == 0
    assert "--tokens 64: 2 steps of 2 x 16 tokens, 64 tokens\n" in capsys.readouterr().err
    assert yaml.safe_load((run.folder / "student" / "distil.yaml").read_text())["steps"] == 2
    assert main(["distil", "--config", f"{out}/distil.yaml", "--out", out, "--quiet"]) == 0  # finished: shown again


@pytest.mark.parametrize("command", ["train", "finetune", "validate-proxy"])
def test_the_settings_that_a_command_writes_are_a_recipe_of_it(command, toy_config, run_instead, tmp_path):
    config = {
        "train": toy_config.training(),
        "finetune": FinetuneConfig(model="me/x", task="topic", lr="1e-4,2e-4"),
        "validate-proxy": ValidateConfig(run="runs/mine", subnets=16),
    }[command]
    path = tmp_path / "written.yaml"
    path.write_text(grouped_yaml(type(config), config.to_dict()))
    taken = []
    run_instead(
        command.replace("-", "_"), lambda settings, _: taken.append(type(config)(**settings)) or Outcome({}, print)
    )
    assert main([command, "--config", str(path), "--json"]) == 0
    assert taken[0].to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["search", "--objective", "acc"], "did you mean '--objectives'"),
        (["search", "--objectives=acc", "--eval=3"], "unrecognized arguments: --eval"),
        (["train", "--step", "3"], "did you mean '--steps'"),
        (["finetune", "packaged", "--seed", "3"], "did you mean '--seeds'"),
        (["export", "x", "--out", "y", "--push", "me/x"], "unrecognized arguments: --push"),
        (["serach"], "did you mean 'search'"),
        (["search", "--config", "{stepz: 3}"], "did you mean 'steps'"),
        (["search", "--engine", "nsga22"], "did you mean 'nsga2'"),
        (["search", "--objectives", "acc,flop"], "did you mean 'flops'"),
        (["search", "--constraint", "flop<=3M"], "did you mean 'flops'"),
        (["search", "--proxy", "relatoin"], "did you mean 'relation'"),
        (["search", "--baselines", "shape"], "did you mean 'shapes'"),
        (["train", "--teacher", "packged"], "did you mean 'packaged'"),
        (["list", "--jsn"], "did you mean '--json'"),
        (["distil"], "RUN is required"),
        ([], "COMMAND is required"),
        (["search", "--sampling", "sandwhich"], "did you mean 'sandwich'"),
        (["search", "--space", "tinyy"], "did you mean 'tiny'"),
    ],
)
def test_nothing_is_abbreviated_and_what_may_be_meant_is_asked(arguments, meant, refusal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert meant in refusal(arguments)


@pytest.mark.parametrize("flag", ["--task", "--model", "--teacher"])
def test_a_name_that_no_file_can_have_is_refused(flag, capsys):
    named = {"--model": "packaged", "--task": "topic", flag: 300 * "x"}
    losses = ["--losses", "logits"] if "--teacher" in named else []
    rest = [word for name, value in named.items() if name != "--model" for word in (name, value)]
    assert main(["finetune", named["--model"], *rest, *losses]) == 2
    assert capsys.readouterr().err.count("\n") <= 2


def test_every_number_of_every_command_is_plain_digits(refusal):
    commands = next(action for action in make_parser()._actions if action.dest == "command").choices
    whole, numbers = (
        {
            f"{name} {action.dest}"
            for name, command in commands.items()
            for action in command._actions
            if action.type is kind
        }
        for kind in (as_whole_number, as_number)
    )
    settings = {"search": SearchConfig, "train": TrainConfig, "finetune": FinetuneConfig, "distil": DistilConfig}
    for name, config in {**settings, "validate-proxy": ValidateConfig}.items():
        for setting, hint in get_type_hints(config).items():
            if setting in {field.name for field in fields(config)}:
                assert (f"{name} {setting}" in whole) == ("int" in str(hint))
                assert (f"{name} {setting}" in numbers) == ("float" in str(hint))
    assert {"plan devices", "plan batch_size", "partition k", "profile latency_batch"} < whole
    for text in ("1_0", "\uff13", "nan", "1e400", "&a [*a]", "9" * 5000):
        for flag in ("--steps", "--lr"):
            assert re.match(
                rf"error: {flag} must be a .*number.* \(got '.{{1,64}}\)", refusal(["search", f"{flag}={text}"])
            )


def test_the_worker_of_earlier_versions_says_what_replaces_it(refusal):
    line = refusal(["worker", "--storage", "postgresql://me@db/nas"])
    assert line.startswith("error: worker is no longer a command; allowed: start Dask workers, such as ")


@pytest.mark.parametrize("command", [["search"], ["train"], ["finetune", "packaged"], ["validate-proxy", "runs/a"]])
def test_an_executor_that_is_not_known_is_refused(command, refusal):
    for given in ("ray", "dask:", "dask "):
        assert f"--executor {given!r}; allowed: dask (a local cluster), or " in refusal([*command, "--executor", given])
    for given in (["--workers", "2"], ["--workers", "2", "--executor", "dask:tcp://host:8786"]):
        assert "--workers 2 without a local cluster; allowed: with --executor dask" in refusal([*command, *given])


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (MemoryError(), ""),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 80000000 bytes. Error"),
            " (tried to allocate 80000000 bytes)",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of ..."),
            " on GPU 1 (tried to allocate 2.00 GiB)",
        ),
        (RuntimeError("std::bad_alloc"), ""),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ""),
        (ImportError("x.so: failed to map segment from shared object"), ""),
    ],
)
def test_out_of_memory_is_one_line_that_says_what_to_do(error, what, run_instead, capsys):
    def search(*_):
        try:
            raise error
        except Exception:
            raise InputError("superlm is damaged; delete it") from None  # as readers take it

    for run in (search, Mock(side_effect=error)):
        run_instead("search", run)
        assert main(["search"]) == 1
        told = capsys.readouterr().err
        assert told.startswith(f"error: out of memory{what}; finished work is kept; try --accumulate 2, ")
        assert "a smaller --batch-size, a shorter --seq-len, fewer --eval-blocks" in told
        assert told.count("\n") == 1
    blameless = InputError("no text file 'out of memory.txt'")
    run_instead("search", Mock(side_effect=blameless))
    assert main(["search"]) == 2


def test_an_interrupted_search_says_how_to_go_on(toy_config, tmp_path):
    config = replace(toy_config, steps=100_000)
    process = start_command(["search", "--quiet", *arguments(config)], tmp_path / "printed")
    log = Path(config.out) / "superlm" / "debug" / "training.csv"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.stat().st_size > 200) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    process.join(timeout=60)
    assert process.exitcode == 130
    assert (tmp_path / "printed").read_text() == "stopped; the same command continues from here\n"
    assert list((Path(config.out) / "superlm" / "debug").glob("checkpoint-*.json"))
