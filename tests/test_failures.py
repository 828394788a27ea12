"""Errors among processes that train together: told once, with rank and host, and none waits for one that failed."""

import platform
import subprocess
import time

from processes import LAUNCH_TWO, TORCHRUN

FAILING = """
import os, signal, sys, time, torch
from autodistil_search.cli.main import main
from autodistil_search.runs import train

def of_rank(*_, **__):  # the processes are connected by now
    if os.environ["RANK"] == "1":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 3 has a total of 80 GiB")
    signal.signal(signal.SIGTERM, lambda *_: None)  # as in training
    while True:
        time.sleep(1)  # as in a collective of NCCL

train.resolve_training = of_rank
sys.exit(main(["train", "--space", "debug", "--out", sys.argv[1], "--batch-size", "4", "--accumulate", "2"]))
"""


def run(*arguments):
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120)
    return done, [line for line in done.stderr.splitlines() if line.startswith("error: ")]


def test_an_error_of_another_rank_is_told_with_rank_and_host_and_ends_a_process_that_waits(tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    begun = time.monotonic()
    done, told = run(*TORCHRUN, str(tmp_path / "failing.py"), str(tmp_path / "out"))
    seconds = time.monotonic() - begun
    assert done.returncode == 1
    assert told == [
        f"error: rank 1 on host {platform.node()}: out of memory on GPU 3 (tried to allocate 2.00 GiB); "
        "finished work is kept; try --accumulate 4, a smaller --batch-size, a shorter --seq-len, or a machine with "
        "more memory"
    ]
    assert done.stderr.count("Traceback") == 1, done.stderr  # the launcher's own
    assert seconds < 30  # when the launcher would kill the process that waits


def test_an_error_that_all_ranks_have_is_told_once(tmp_path):
    done, told = run(*LAUNCH_TWO, "train", "--steps", "0", "--out", str(tmp_path / "out"))
    assert done.returncode == 1  # the launcher's
    assert told == ["error: --steps must be a whole number from 1 (got 0)"]
    assert done.stderr.count("Traceback") == 1, done.stderr
