"""Processes for tests that kill them or need several: forked from one that has imported all, which takes seconds."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from autodistil_search.checkpoint import Checkpoints
from autodistil_search.cli import main

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["pytest", "hypothesis", *(f"autodistil_search.{name}" for name in ("finetuning", "run", "students", "worker"))]
)


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

    def save_and_die(self: Checkpoints, now: int, text: Any) -> None:
        save(self, now, text)
        if now == step:
            os.kill(os.getpid(), signal.SIGKILL)

    Checkpoints.save, Checkpoints.due = save_and_die, True  # type: ignore[method-assign,assignment]
    train(config)
