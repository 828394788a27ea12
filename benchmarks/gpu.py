"""What a GPU shows in fifteen minutes, as Markdown tables; benchmarks/gpu.sh runs it.

    python benchmarks/gpu.py [--fake] [--spaces tiny,small] [--only tests,speed,resume]

`tests` runs tests/test_cuda.py. `speed` takes default steps of each space with a random teacher of BERT-base's size,
and counts the waits for the device. FLOPs are those of `plan`; the peak is that of one large matrix product in the same
run. `resume` kills a training, continues it, and compares it with one that was not killed. On the fake GPU (`--fake`,
or if there is no other) there are no times; launches, casts, copies and waits of a step are counted. There, Triton's
interpreter runs the kernels of the relation losses, if Triton is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.profiler import ProfilerActivity, profile

from autodistil_search.base.device import Device, accelerator, choose_device
from autodistil_search.distillation.plan import work_of
from autodistil_search.runs.run_folder import superlm_folder

_ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(_ROOT / "tests"))
fake_gpu: Any = importlib.import_module("fake_gpu")  # of the tests

SPACES = "tiny,small,base,shallow,elastic,oneshot"
PARTS = ("tests", "speed", "resume")
_NONE = "-"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print Markdown."""
    print()
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(row) + " |", flush=True)


def seconds_of(work: Callable[[], object], device: Device, repeats: int) -> float:
    """Mean seconds of a call, after one that does not count."""
    work()
    device.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    device.synchronize()
    return (time.perf_counter() - start) / repeats


def peak_of(device: Device, size: int) -> float:
    """FLOP/s of a square matrix product in the device's precision."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(device.precision, torch.float32)
    a, b = (torch.randn(size, size, device=device.name, dtype=dtype) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: a @ b, device, 20)


def waits(step: Callable[[], object], device: Device) -> str:
    """The number of times that a step waits for the device, if torch can tell."""
    if device.type != "cuda":
        return _NONE
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return str(sum("synchronizing" in str(warning.message) for warning in caught))


def launches(step: Callable[[], object], device: Device) -> str:
    """The number of kernels that a step launches, if torch can tell."""
    if device.type != "cuda":
        return _NONE
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        device.synchronize()
    names = ("cudaLaunchKernel", "cuLaunchKernel", "hipLaunchKernel", "hipExtModuleLaunchKernel")
    return str(sum(event.count for event in profiler.key_averages() if event.key.startswith(names)))


def counts_of(space: str, precision: str) -> list[str]:
    """The cells of a row on the fake GPU: no times, and the counts of a step, which do not depend on its sizes."""
    options = ["--space", space, "--precision", precision, "--batch", "1", "--seq-len", "16"]
    options += ["--kernels"] if importlib.util.find_spec("triton") else []
    command = [sys.executable, fake_gpu.__file__, "step", *options]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    totals = json.loads(printed.splitlines()[0])
    return [*[_NONE] * 5, *(str(totals[key]) for key in ("syncs", fake_gpu.UP, "launches", "casts"))]


def times_of(training: Any, shape: tuple[int, int], device: Device, repeats: int, peak: float) -> list[str]:
    """The cells of a row: times of a step, peak memory and waits."""
    if device.counts_memory:
        device.reset_peak_memory()
    numbers = iter(range(training.options.steps))

    def step() -> None:
        training.take(next(numbers))

    for _ in range(3):
        step()
    seconds = seconds_of(step, device, repeats)
    flops = 2 * shape[0] * work_of(training.teacher, training.model, training.options, shape[1]).multiply_adds / seconds
    memory = f"{device.peak_memory() / 1e9:.1f}" if device.counts_memory else _NONE
    rate = f"{shape[0] * shape[1] / seconds:,.0f}"
    times = [f"{1000 * seconds:.1f}", rate, f"{flops / 1e12:.1f}", f"{flops / peak:.2f}", memory]
    return [*times, waits(step, device), _NONE, launches(step, device), _NONE]


def speed(spaces: Sequence[str], device: Device, given: argparse.Namespace) -> None:
    """Time and count default steps of each space."""
    fake = device.type == fake_gpu.NAME
    peak = 0.0 if fake else peak_of(device, given.size)
    shape = (given.batch_size, 128)
    rows = []
    for name in spaces:
        if fake:
            measured = counts_of(name, device.precision)
        else:
            with fake_gpu.begin_training(name, device, shape=shape) as training:
                measured = times_of(training, shape, device, given.steps, peak)
        rows.append([name, *measured])
    sizes = f"{shape[0]} x {shape[1]} tokens; one matrix product {peak / 1e12:.0f} TFLOP/s"
    print(f"\nA default step, {device.precision}, {'without times' if fake else sizes}.")
    times = ("ms a step", "tokens/s", "TFLOP/s", "share of peak", "peak memory GB")
    table(("space", *times, "waits", "copies to the device", "launches", "casts"), rows)


def cuda_tests() -> str:
    """The last line of pytest on the tests for CUDA."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "--durations=0", "tests/test_cuda.py"]
    return subprocess.run(command, cwd=_ROOT, capture_output=True, text=True).stdout.strip().rpartition("\n")[2]


def resume(device: Device) -> str:
    """Kill a training without warning, continue it, and compare its weights with those of one that was not killed."""
    fake = device.type == fake_gpu.NAME
    product = [sys.executable, *([fake_gpu.__file__, "run"] if fake else ["-m", "autodistil_search"])]
    size, steps = (["--batch-size", "2", "--seq-len", "16"], 10) if fake else (["--batch-size", "32"], 400)
    settings = ["--space", "debug", "--steps", str(steps), "--device", device.type, "--precision", device.precision]
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            name: [*product, "train", *settings, *size, "--held-out-every", "0", "--out", str(Path(folder) / name)]
            for name in ("whole", "killed")
        }
        subprocess.run(commands["whole"], check=True, capture_output=True)
        log = superlm_folder(Path(folder) / "killed", "debug") / "training.csv"
        process = subprocess.Popen(commands["killed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not log.exists() or log.read_text().count("\n") < steps // 2):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = log.read_text().count("\n") - 1
        subprocess.run(commands["killed"], check=True, capture_output=True)
        whole, killed = (
            load_file(superlm_folder(Path(folder) / name, "debug") / "model.safetensors") for name in commands
        )
    difference = max(float((whole[key] - killed[key]).norm() / whole[key].norm()) for key in whole if whole[key].any())
    return (
        f"killed after {done} of {steps} steps; weights differ by {difference:.1g} at most (share of a tensor's norm)"
    )


def main() -> None:
    """Run the parts and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fake", action="store_true", help="run on the fake GPU of the tests")
    parser.add_argument("--spaces", default=SPACES)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20, help="timed steps")
    parser.add_argument("--size", type=int, default=8192, help="of the matrices of the largest product")
    given = parser.parse_args()
    fake = given.fake or accelerator() is None
    if fake:
        fake_gpu.install()
        warnings.simplefilter("ignore")
    device = choose_device("auto", given.precision)
    properties = getattr(torch.get_device_module(device.type), "get_device_properties", None)
    name = "the fake GPU: counts without times" if fake or not properties else properties(0).name
    print(f"## {name}\n\ntorch {torch.__version__}, {device.precision}, {os.cpu_count()} CPUs")
    parts = given.only.split(",")
    rows = []
    if "tests" in parts:
        rows.append(["tests/test_cuda.py", "skipped: no CUDA device" if device.type != "cuda" else cuda_tests()])
    if "resume" in parts:
        rows.append(["kill and resume", resume(device)])
    if rows:
        table(("check", "result"), rows)
    if "speed" in parts:
        speed(given.spaces.split(","), device, given)


if __name__ == "__main__":
    main()
