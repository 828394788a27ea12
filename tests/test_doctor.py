"""What `doctor` tells of a machine, and of one with something missing, broken or slow."""

import json
import os
import socket
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from autodistil_search import __version__
from autodistil_search.base.errors import InputError
from autodistil_search.base.idle_threads import SPINS, VARIABLES
from autodistil_search.cli.main import main
from autodistil_search.runs import doctor
from autodistil_search.runs.doctor import PURPOSES, examine


def found(findings):
    return {each.name: each for each in findings}


def test_all_is_looked_at_without_a_network_and_nothing_is_left(monkeypatch, tmp_path, capsys):
    def refuse(*_):
        raise AssertionError("doctor asked the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("AUTODISTIL_SEARCH_CACHE", str(tmp_path / "new" / "cache"))
    assert main(["doctor", "--json"]) == 0
    told = {each["name"]: each for each in json.loads(capsys.readouterr().out)["findings"]}
    assert told["autodistil_search"]["value"] == __version__
    for name in ("torch", "transformers", "pymoo", "optuna"):
        assert (told[name]["value"], told[name]["state"]) == (metadata.version(name), "ok")
    assert told["packaged text"]["value"] == 249
    assert told["memory"]["value"] > 0.1
    assert told["cache"]["remark"] == "can be created"
    assert list(tmp_path.iterdir()) == []
    assert all(each["remark"] for each in told.values() if each["state"] != "ok")
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in told)


def test_every_extra_is_told_with_what_it_is_for(monkeypatch):
    extras = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert set(PURPOSES) == set(extras["optional-dependencies"])
    real = metadata.version

    def version(name):
        if name == "numba":
            raise metadata.PackageNotFoundError
        return "0.1" if name == "onnx" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    told = found(doctor._extras())
    assert told["extra numba"].state == told["extra onnx"].state == "missing"
    assert (
        "numba is not installed: pip install 'autodistil_search[numba]', for --engine age" in told["extra numba"].remark
    )
    assert "onnx is 0.1; required: >=1.16" in told["extra onnx"].remark
    assert told["extra quickstart"].state == "ok"


@pytest.mark.parametrize(
    ("requires", "importing", "name", "remark"),
    [
        (["torch>=99", "transformers", "pymoo", "optuna"], None, "torch", "required: >=99"),
        (["torch", "no-such-package"], None, "no-such-package", "no-such-package is not installed"),
        (["torch"], OSError("libcudart.so: no\nsuch file"), "torch", "OSError: libcudart.so: no such file"),
    ],
)
def test_what_is_required_and_broken_ends_with_exit_code_1(requires, importing, name, remark, monkeypatch, capsys):
    def broken(_):
        raise importing

    monkeypatch.setattr(metadata, "requires", lambda _: requires)
    if importing:
        monkeypatch.setattr(doctor.importlib, "import_module", broken)
    assert main(["doctor", "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    told = {each["name"]: each for each in printed["findings"]}
    assert printed["usable"] is False
    assert told[name]["state"] == "broken"
    assert remark in told[name]["remark"]
    assert ("threads" in told) is (name != "torch")  # what is not looked at is not told


@pytest.mark.parametrize(
    ("cpus", "quota", "threads", "advice"),
    [
        (8, None, 8, ""),
        (8, None, 4, ""),  # one for each of the cores, of which each counts twice
        (8, None, 3, "3 of 8 CPUs"),
        (2, None, 1, "OMP_NUM_THREADS=2"),
        (8, 2.0, 8, "8 threads on 2 CPUs wait for each other"),
        (8, 1.5, 2, ""),
        (1, None, 1, "one CPU"),
    ],
)
def test_threads_are_held_against_the_cpus_that_are_left(cpus, quota, threads, advice, monkeypatch):
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda _: set(range(cpus)), raising=False)
    monkeypatch.setattr(doctor, "cgroup_limits", lambda: (quota, None))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    told = found(doctor._threads())["threads"]
    assert told.state == ("slow" if advice else "ok")
    assert advice in told.remark


@pytest.mark.parametrize(
    ("variables", "first", "value", "state"),
    [
        ({}, "", f"GOMP_SPINCOUNT={SPINS}", "ok"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "", "OMP_WAIT_POLICY=ACTIVE", "ok"),
        ({"GOMP_SPINCOUNT": "7"}, "", "GOMP_SPINCOUNT=7", "ok"),
        ({}, "import torch", "spin", "slow"),
    ],
)
def test_idle_threads_sleep_soon_unless_the_environment_decides_or_torch_was_first(variables, first, value, state):
    kept = {name: each for name, each in os.environ.items() if name not in VARIABLES}
    show = "from autodistil_search.runs.doctor import _idle_threads as told; print(told().value, told().state)"
    code = f"{first}\nimport autodistil_search\n{show}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept | variables, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [value, state]


@pytest.mark.parametrize("has_bf16", [True, False])
def test_the_precision_that_auto_takes_is_told_with_its_reason(has_bf16, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setattr("autodistil_search.base.device.has_bf16", lambda _: has_bf16)
    told = found(doctor._device())
    assert told["precision"].value == ("bf16" if has_bf16 else "fp32")
    assert ("bf16" in told) is not has_bf16
    assert told["device"].state == "slow"
    assert "autodistil-search plan" in told["device"].remark


def test_a_gpu_is_told_with_its_memory_or_what_is_wrong_with_it(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    gpu = SimpleNamespace(name="A big one", total_memory=80_000_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    told = found(doctor._device())
    assert (told["cuda:0"].value, told["cuda:0"].remark) == ("A big one", "80.0 GB")
    assert told["precision"].value == "bf16"
    assert all(each.state == "ok" for each in told.values())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    told = found(doctor._device())
    assert (told["precision"].value, told["bf16"].state) == ("fp16", "slow")
    assert "float16 is faster than float32" in told["precision"].remark

    def fail(_):
        raise RuntimeError("CUDA error:\nunknown")

    monkeypatch.setattr(torch.cuda, "get_device_properties", fail)
    (told,) = doctor._device()
    assert (told.state, told.remark) == ("broken", "CUDA error: unknown")


def test_an_accelerator_without_properties_is_told_by_its_kind(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    told = found(doctor._device())
    assert (told["mps:0"].value, told["mps:0"].state, told["mps:0"].remark) == ("mps", "ok", "")
    assert told["precision"].value == "fp32"


def test_what_cannot_be_written_or_is_not_here_is_told(monkeypatch):
    def missing():
        raise InputError("the packaged teacher is not installed")

    monkeypatch.setenv("AUTODISTIL_SEARCH_CACHE", "/proc/nowhere/cache")
    monkeypatch.setattr("autodistil_search.teachers.loading.packaged_folder", missing)
    told = found(examine())
    assert told["cache"].state == "broken"
    assert "AUTODISTIL_SEARCH_CACHE" in told["cache"].remark
    assert told["packaged teacher"].state == "missing"
