"""Commands of the product, run by results.py one or several at a time, with the cost of each."""

from __future__ import annotations

import csv
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

_COLUMNS = ("part", "step", "seconds", "peak_mb", "tokens", "exit_code", "command")
_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in a unit of `ru_maxrss`."""


class Commands:
    """Runner of commands that appends the cost of each to `costs.csv`, one row a session.

    A row has the seconds, the peak resident memory of the process in MB, and the tokens of the step once it succeeds.
    A step that was stopped and continued has several rows; their sum is its cost.

    Args:
        out: Folder of `costs.csv` and of the logs of the steps.
    """

    def __init__(self, out: Path) -> None:
        self._out, self._lock, self.stopped = out, threading.Lock(), False
        self._running: set[subprocess.Popen[bytes]] = set()

    @property
    def costs(self) -> pd.DataFrame:
        """Return all rows so far."""
        path = self._out / "costs.csv"
        return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=list(_COLUMNS))

    def run(
        self, words: list[str], part: str, step: str, tokens: Callable[[], int] = lambda: 0, threads: int | None = None
    ) -> None:
        """Run a command of the product; its output is appended to `logs/STEP.log`.

        Args:
            words: Command and flags.
            part: Part of the measurement, by which the table of costs adds up.
            step: Name of the step.
            tokens: Function that returns the trained tokens, called after success.
            threads: Number of threads; the product's default if not given.

        Raises:
            RuntimeError: if the command fails, with the last line of its log.
        """
        command = f"autodistil-search {shlex.join(words)}"
        print(f"{command}\n", end="", flush=True)  # one write, because other threads print as well
        log = self._out / "logs" / f"{step}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
        begun = time.monotonic()
        with log.open("ab") as file:
            process = self._started([sys.executable, "-m", "autodistil_search", *words], file.fileno(), environment)
            code, peak, interruption = self._ended(process)
        seconds = time.monotonic() - begun
        self._append([part, step, f"{seconds:.1f}", f"{peak:.0f}", 0 if code else tokens(), code, command])
        if interruption is not None:
            raise interruption
        if code:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise RuntimeError(f"{command} ended with {code}: {lines[-1] if lines else 'no output'} (log: {log})")

    def stop(self) -> None:
        """Ask all running commands to save their state and end, and start no others."""
        with self._lock:
            self.stopped = True
            for process in self._running:
                process.terminate()

    def _started(self, words: list[str], log: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with self._lock:
            if self.stopped:
                raise RuntimeError("stopped; the same command continues")
            process = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
            self._running.add(process)
        return process

    def _ended(self, process: subprocess.Popen[bytes]) -> tuple[int, float, BaseException | None]:
        """Return exit code and peak memory in MB of a process that has ended, and what interrupted the wait for it."""
        interruption = None
        while True:
            try:
                _, status, usage = os.wait4(process.pid, 0)
                break
            except (KeyboardInterrupt, SystemExit) as error:
                interruption = error
                self.stop()
        with self._lock:
            self._running.discard(process)
            process.returncode = os.waitstatus_to_exitcode(status)  # `Popen` must not wait for it again
        return process.returncode, usage.ru_maxrss * _UNIT / 1e6, interruption

    def _append(self, row: list[object]) -> None:
        path = self._out / "costs.csv"
        with self._lock, path.open("a", newline="") as file:
            writer = csv.writer(file)
            if not file.tell():
                writer.writerow(_COLUMNS)
            writer.writerow(row)


def by_part(costs: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each part: steps, hours, peak memory and tokens, summed over steps and their sessions."""
    parts = costs.groupby("part", sort=False)
    table = pd.DataFrame(
        {
            "steps": parts["step"].nunique(),
            "hours": parts["seconds"].sum() / 3600,
            "peak memory of a process, MB": parts["peak_mb"].max(),
            "million tokens": parts["tokens"].sum() / 1e6,
        }
    )
    total = [table["steps"].sum(), table["hours"].sum(), costs["peak_mb"].max(), table["million tokens"].sum()]
    whole = pd.concat([table, pd.DataFrame([total], ["all"], table.columns)])
    return whole.round({"hours": 2, "million tokens": 3}).rename_axis("part").reset_index()
