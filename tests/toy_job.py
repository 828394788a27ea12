"""A job for tests of executors. Its tasks tell what a worker is, wait, fail, or kill their worker."""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autodistil_search.base.errors import InputError
from autodistil_search.base.jobs import Job


@dataclass(frozen=True)
class ToyLoaded:
    data: str

    def job(self) -> Job:
        return toy_job()

    def conditions(self) -> Mapping[str, str]:
        return {"data": self.data}

    def run(self, task: tuple[Any, ...]) -> Any:
        kind, *values = task
        if kind == "worker":
            return os.getpid(), torch.get_num_threads(), os.environ.get("CUDA_VISIBLE_DEVICES")
        if kind == "sleep":
            time.sleep(values[0])
        if kind == "fail":
            raise values[0]
        if kind == "die once" and not Path(values[0]).exists():
            Path(values[0]).touch()
            kind = "die"
        if kind == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return task


@dataclass(frozen=True, kw_only=True)
class ToyJob(Job):
    """A worker loads what its environment variable TOY_DATA says; every loading leaves a file in `folder`."""

    folder: Path | None = None

    def load(self) -> ToyLoaded:
        data = os.environ.get("TOY_DATA", "same")
        if data == "die once" and not (mark := Path(os.environ["TOY_MARK"])).exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if data == "missing":
            raise InputError("the data are missing; allowed: data")
        if self.folder is not None:
            (self.folder / f"{time.monotonic_ns()}").touch()
        return ToyLoaded("same" if data == "die once" else data)


LOADED = ToyLoaded("same")


def toy_job(**changes: Any) -> ToyJob:
    return ToyJob(**{"conditions": {"data": "same"}, "threads": torch.get_num_threads(), **changes})
