"""Processes for tests that kill them or need several: forked from one that has imported all, which takes seconds."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from autodistil_search.cli.main import main
from autodistil_search.distillation.checkpoints import Checkpoints

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["pytest", "hypothesis", *(f"autodistil_search.runs.{name}" for name in ("finetune", "search", "distil"))]
)

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
"""Two processes that train together, connected by a free port; a script or a module follows."""
LAUNCH_TWO = [*TORCHRUN, "-m", "autodistil_search"]
"""`autodistil-search` in two such processes; its arguments follow."""


def _run(arguments: list[str], printed: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with printed.open("w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    sys.exit(main(arguments))


def start_command(arguments: list[str], printed: Path) -> BaseProcess:
    """`autodistil-search` with those arguments in a process of its own; what it prints goes to the file `printed`."""
    process = SERVER.Process(target=_run, args=(arguments, printed))
    process.start()
    return process


def killed_after_saving(step: int, train: Callable[[Any], object], config: Any) -> None:
    """For a process of `SERVER`: `train(config)` that saves at every step, and is killed when it has saved this one."""
    save = Checkpoints.save

    def save_and_die(self: Checkpoints, now: int, *rest: Any, **named: Any) -> None:
        save(self, now, *rest, **named)
        if now == step:
            os.kill(os.getpid(), signal.SIGKILL)

    Checkpoints.save, Checkpoints.due = save_and_die, True  # type: ignore[method-assign,assignment]
    train(config)


def in_processes(count: int, folder: Path, target: Callable[..., object], *args: Any) -> None:
    """Call `target(*args)` in `count` processes that train together over Gloo; they meet by a file in `folder`."""
    meeting = folder / "meeting"
    ranked = [SERVER.Process(target=_as_rank, args=(rank, count, meeting, target, args)) for rank in range(count)]
    for process in ranked:
        process.start()
    for process in ranked:
        process.join()
    assert [process.exitcode for process in ranked] == [0] * count


def _as_rank(rank: int, count: int, meeting: Path, target: Callable[..., object], args: Sequence[Any]) -> None:
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}.items():
        os.environ[name] = str(value)
    # A file, not a port, which another run on this machine could hold.
    torch.distributed.init_process_group(
        "gloo", init_method=meeting.as_uri(), rank=rank, world_size=count, timeout=timedelta(minutes=3)
    )
    try:
        target(*args)
    finally:
        torch.distributed.destroy_process_group()
