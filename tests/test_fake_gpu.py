"""What the product does on a GPU, on a device that a CPU computes: no mixed devices, few copies and waits."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import fake_gpu
import pytest
import torch
from matplotlib.figure import Figure
from processes import SERVER
from torch import nn

from autodistil_search.base.device import Device
from autodistil_search.distillation.options import TrainOptions
from autodistil_search.distillation.step_cost import launches
from autodistil_search.distillation.training_step import subnets_of_step
from autodistil_search.nas import hardware
from autodistil_search.nas.label_free_proxies import BLOCKS_AT_ONCE, label_free_kinds
from autodistil_search.nas.task_proxies import TaskBudget, task_proxy
from autodistil_search.spaces.search_space import load_space
from autodistil_search.superlm.model import AutoDistilConfig, AutoDistilModel
from autodistil_search.teachers import initial_weights
from autodistil_search.teachers.loading import load_teacher

pytestmark = pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="needs a newer torch",
)


def elsewhere(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function in a process of its own, because a backend cannot be unregistered."""
    with ProcessPoolExecutor(1, mp_context=SERVER) as pool:
        return pool.submit(function, *arguments).result()


def errors_of_mixed_devices() -> list[str]:
    fake_gpu.install()
    gpu, cpu = torch.ones(3, device=fake_gpu.NAME), torch.ones(3)
    layer = nn.Linear(3, 3).to(fake_gpu.NAME)
    mixed: list[Callable[[], object]] = [
        lambda: gpu + cpu,
        lambda: layer(cpu),
        lambda: torch.cat([gpu, cpu]),
        lambda: cpu.add_(gpu),
        lambda: cpu.new_zeros(()).add_(gpu.sum()),
        lambda: cpu[torch.zeros(1, dtype=torch.long, device=fake_gpu.NAME)],
        lambda: nn.functional.scaled_dot_product_attention(*[side.view(1, 1, 3) for side in (gpu, gpu, cpu)]),
    ]
    errors = []
    for run in mixed:
        with pytest.raises(RuntimeError, match=r"device|cpu") as error:
            run()
        errors.append(str(error.value))
    assert (gpu + torch.tensor(2.0)).tolist() == [3, 3, 3]
    return errors


def test_tensors_of_two_devices_do_not_mix():
    assert all("at tests/test_fake_gpu.py:" in error for error in elsewhere(errors_of_mixed_devices))


def counts_of_an_autocast() -> tuple[dict[str, Any], dict[str, int], float]:
    fake_gpu.install()
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 6), torch.randn(5, 4)
    expected = torch.autograd.grad(layer(x).square().sum(), layer.weight)[0]
    layer.to(fake_gpu.NAME)
    x = x.pin_memory()
    with fake_gpu.counting() as counts:
        gpu = x.to(fake_gpu.NAME, non_blocking=True)
        with torch.autocast(fake_gpu.NAME, dtype=torch.bfloat16):
            first = layer(gpu)
            loss = (first + layer(gpu)).float().square().sum() / 4
        loss.backward()
        loss.item()
        layer.bias[layer.bias > 0].sum()
        layer.weight.cpu()
    gradient = layer.weight.grad.cpu()
    operators: dict[str, int] = {}
    for (operator, _), count in counts.launches.items():
        operators[operator] = operators.get(operator, 0) + count
    return counts.to_dict(), operators, float((gradient - expected).norm() / expected.norm())


def test_launches_casts_copies_and_waits_are_counted():
    counts, operators, error = elsewhere(counts_of_an_autocast)
    assert operators["addmm"] == 2
    # Weight and bias once for both calls, the input twice; the sum; backward, the sum and each cast of a weight.
    assert counts["casts"] == 2 + 2 + 1 + 1 + 2
    assert counts[fake_gpu.UP] == 1
    assert counts[fake_gpu.DOWN] == 1
    assert sorted(line.split(" at ")[0] for line in counts["syncs_at"]) == [
        "1 copy to the host",
        "1 index by booleans",
        "1 item",
    ]
    assert error < 2 * 2**-8  # products of bfloat16


def launches_of_lists() -> list[int]:
    fake_gpu.install()
    whole = [torch.ones(4, 4, device=fake_gpu.NAME) for _ in range(3)]
    slices, halves = [tensor[:, :2] for tensor in whole], [tensor.half() for tensor in whole]
    launches = []
    for into, source in ((whole, whole), (slices, slices), (halves, whole)):
        with fake_gpu.counting() as counts:
            torch._foreach_copy_(into, source)
        launches.append(counts.launches.total())
    weight = nn.Parameter(torch.ones(4, 4, device=fake_gpu.NAME))
    weight.grad = whole[0].mT
    with pytest.raises(RuntimeError, match="layout"):
        torch.optim.AdamW([weight], fused=True).step()
    return launches


def test_lists_of_tensors_are_one_launch_where_cuda_has_one_kernel_for_them():
    assert elsewhere(launches_of_lists) == [1, 3, 1]


@pytest.fixture
def table(tmp_path: Path) -> str:
    rows = [f"w{i % 9} w{i % 5},w{i % 7} w{i % 5},{i % 2}" for i in range(60)]
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(["sentence1,sentence2,label", *rows]))
    return str(path)


def run_all(commands: list[list[str]], float64: bool) -> list[dict[str, Any]]:
    fake_gpu.HAS_FLOAT64, hardware._SECONDS = float64, 0.0
    Figure.savefig = lambda _, path, **__: path.write_bytes(b"")  # type: ignore[method-assign]
    return [fake_gpu.run_command(command) for command in commands]


@pytest.fixture
def begin(teacher_folder, toy_text, tmp_path) -> Callable[..., list[str]]:
    """Settings of toy searches and trainings."""

    def settings(name: str, teacher: str = "bert", *others: str) -> list[str]:
        words = {
            "space": "debug",
            "teacher": str(teacher_folder(teacher)),
            "text": str(toy_text()),
            "seq-len": 16,
            "steps": 3,
            "batch-size": 2,
            "device": fake_gpu.NAME,
            "out": str(tmp_path / name),
        }
        return [part for name, value in words.items() for part in (f"--{name}", str(value))] + [*others]

    return settings


SEARCH = ["--eval-blocks", "4", "--evaluations", "4", "--population", "2", "--quiet"]


def test_every_command_runs_on_a_gpu(begin, table, teacher_folder, tmp_path):
    run, student, labelled = (str(tmp_path / name) for name in ("run", "student", "labelled"))
    teacher = str(teacher_folder("bert"))
    gpu, rows = ["--device", fake_gpu.NAME], ["--label-column", "label", "--train-rows", "40", "--epochs", "1"]
    measured = ["--measured-seq-len", "8", "--throughput-batch", "2"]
    drawn = ["--subnets", "2", "--bands", "1", "--alone-steps", "2"]
    shared = ["--proxy-rows", "40", "--proxy-epochs", "1", "--baselines", "none"]
    search = partial(begin, "run", "bert", *SEARCH)
    columns = "acc,flops,latency,throughput,memory"
    commands = [
        ["doctor"],
        ["plan", "--tokens", "1M", "--space", "debug", "--teacher", teacher, "--seq-len", "16", *gpu],
        ["profile", "--space", "debug", *gpu, *measured],
        ["partition", "debug", "--k", "2", "--out", str(tmp_path / "parts")],
        ["search", *search(), "--baselines", "tinybert:4x312,truncated", "--objectives", columns, *measured],
        ["search", *search(), "--baselines", "tinybert:4x312,truncated", "--objectives", columns, *measured],
        ["report", run],
        ["distil", run, "--pick", "1", "--steps", "3", "--out", student, *gpu],
        ["export", run, "--pick", "1", "--out", str(tmp_path / "exported")],
        ["finetune", student, "--task", table, "--max-length", "16", "--out", labelled, "--seeds", "1", *rows, *gpu],
        ["validate-proxy", run, *drawn, "--probe", table, "--cosine", table, "--task", table, *rows, *gpu],
        ["train", *begin("fp16", "bert", "--precision", "fp16", "--loss", "mse", "--in-place", "0.5"), "--hidden", "0"],
        ["train", *begin("mpnet", "mpnet", "--precision", "fp32", "--sampling", "sandwich", "--accumulate", "2")],
        ["train", *begin("distilbert", "distilbert", "--init", "slices")],
    ]
    for proxy in ("combined", "cka", *(f"{kind}:{table}" for kind in ("probe", "cosine", "task"))):
        name = proxy.partition(":")[0]
        commands.append(["search", *begin(name, "bert", *SEARCH), "--proxy", proxy, *shared])
    results = elsewhere(run_all, commands, True)
    assert [(result["command"][0], result["code"]) for result in results] == [(name, 0) for name, *_ in commands]
    (tuned,) = [result for result in results if result["command"][0] == "finetune"]
    items = [line for line in tuned["syncs_at"] if "item at autodistil_search/tasks/fine_tuning.py" in line]
    assert [line.split()[0] for line in items] == ["2"]  # one in each of two steps: 36 rows, 32 at a time


def test_a_device_without_float64_computes_what_needs_it_on_the_cpu(begin, table, teacher_folder, tmp_path):
    rows = ["--label-column", "label", "--max-length", "16", "--epochs", "1", "--seeds", "1", "--device", fake_gpu.NAME]
    commands = [
        ["search", *begin("run", "bert", *SEARCH), "--init", "pca", "--proxy", "hidden", "--baselines", "none"],
        [
            "search",
            *begin("all", "mpnet", *SEARCH),
            "--init",
            "fitted",
            "--proxy",
            f"cosine:{table}",
            "--baselines",
            "none",
        ],
        ["finetune", str(teacher_folder("bert")), "--task", table, *rows, "--out", str(tmp_path / "tuned")],
    ]
    results = elsewhere(run_all, commands, False)
    assert [result["code"] for result in results] == [0] * len(commands)


def waits_of_scores(teacher_folder: str, table: str) -> dict[str, list[str]]:
    """The waits of scoring a subnet by each proxy, after a first score."""
    fake_gpu.install()
    device = Device(fake_gpu.NAME, "bf16")
    teacher, space = load_teacher(teacher_folder, -1, device.name), load_space("debug")
    model, _ = initial_weights.superlm(teacher, space, "embeddings")
    device.place(model)
    free = label_free_kinds("kl", "qq,kk,vv", 4)

    def spread(blocks: int) -> torch.Tensor:
        return torch.randint(5, 90, (blocks, 8))

    labelled = [task_proxy(f"{kind}:{table}", TaskBudget(40, 1, 1e-4, 0, 16)) for kind in ("probe", "cosine")]
    proxies = {
        **{name: kind.open(teacher, spread, 2 * BLOCKS_AT_ONCE, device) for name, kind in free.items()},
        **{kind.objective.name: kind.open(teacher, spread, 2 * BLOCKS_AT_ONCE, device) for kind in labelled},
    }
    waits = {}
    for name, proxy in proxies.items():
        proxy.score(model, space.smallest)
        with fake_gpu.counting() as counts:
            proxy.score(model, space.largest)
        waits[name] = counts.lines("syncs")
    return waits


def test_a_score_waits_for_the_device_at_most_once_a_batch(teacher_folder, table):
    waits = elsewhere(waits_of_scores, str(teacher_folder("bert")), table)
    # The rows are of two sets for a probe, and of two texts for cosines: a batch each.
    batches = {
        "relation": 1,
        "hidden": 1,
        "similarity": 1,
        "cka": 1,
        "combined": 3,
        "pairs_accuracy_probe": 2,
        "pairs_cosine": 2,
    }
    assert {name: sum(int(line.split()[0]) for line in lines) for name, lines in waits.items()} == batches, waits


def test_the_script_for_a_gpu_runs_on_the_fake_one():
    root = Path(fake_gpu.__file__).parents[1]
    environment = {**os.environ, "FAKE": "1", "PYTHON": sys.executable, "PYTHONPATH": str(root)}
    command = [str(root / "benchmarks" / "gpu.sh"), "--only", "tests,speed", "--spaces", "debug"]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert "the fake GPU: counts without times" in printed
    (row,) = [line.split(" | ") for line in printed.splitlines() if line.startswith("| debug ")]
    assert row[1:6] == ["-"] * 5
    assert all(int(count.strip(" |")) > 0 for count in row[6:])


def test_a_default_step_waits_once_and_launches_half_of_what_it_did_and_what_a_plan_says():
    """At first, 1,849 launches and 616 casts were counted."""
    pytest.importorskip("triton", reason="CUDA computes relation losses by Triton's kernels")
    # A new process, because Triton chooses its interpreter when it is imported. Counts do not depend on sizes.
    options = ["--space", "tiny", "--kernels", "--batch", "1", "--seq-len", "16"]
    command = [sys.executable, fake_gpu.__file__, "step", *options]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    counts = json.loads(printed.splitlines()[0])
    assert counts["syncs"] <= 1, printed
    assert counts[fake_gpu.UP] <= 1, printed
    assert counts["launches"] <= 1849 // 2, printed
    assert counts["casts"] <= 616 // 10, printed
    space = load_space("tiny")
    with torch.device("meta"):
        model = AutoDistilModel(AutoDistilConfig().resized(space.largest, space))
    drawn = subnets_of_step(model, TrainOptions(10, 1, 1e-3, 0), 1)  # the step that is counted
    planned = sum(launches(12, [entry.subnet.layers for entry in drawn], 3, hidden=True))
    assert planned == pytest.approx(counts["launches"], rel=0.1)
