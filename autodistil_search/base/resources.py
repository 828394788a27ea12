"""CPUs and memory that control groups, limits and other programs leave to this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NO_LIMIT = 2**60
"""Number from which a limit of a control group of version 1 means that there is no limit."""


@dataclass(frozen=True)
class FreeMemory:
    """Memory that this process can still allocate.

    Attributes:
        size: Free memory in bytes.
        owner: Description of the owner of the memory, for messages.
    """

    size: int
    owner: str


def free_memory(root: Path = Path("/")) -> FreeMemory | None:
    """Return the smallest free memory of the machine, the control groups and the limit of address space.

    The result is None on systems that state none of them.

    Args:
        root: Folder with `proc` and `sys/fs/cgroup`.
    """
    free = [*_machine_memory(root), *_control_group_memory(root), *_address_space_memory(root)]
    return min(free, key=lambda part: part.size, default=None)


def _machine_memory(root: Path) -> Iterator[FreeMemory]:
    owner = "this machine"
    if (kilobytes := _named_number(root / "proc/meminfo", "MemAvailable:")) is not None:
        yield FreeMemory(1024 * kilobytes, owner)
    elif hasattr(os, "sysconf"):  # not Linux: total memory is an upper bound of free memory
        yield FreeMemory(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), owner)


def _control_group_memory(root: Path) -> Iterator[FreeMemory]:
    for folder in _cgroup_folders(root):
        for prefix, limited, used in (
            ("", "memory.max", "memory.current"),
            ("total_", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit = _number(folder / limited)
            if limit is None or limit >= _NO_LIMIT:
                continue
            # Cached files count as used, but are dropped when memory is needed.
            kinds = ("inactive_file", "active_file")
            cached = sum(_named_number(folder / "memory.stat", prefix + kind) or 0 for kind in kinds)
            in_use = max(0, (_number(folder / used) or 0) - cached)
            yield FreeMemory(max(0, limit - in_use), "the control group of this process")


def _address_space_memory(root: Path) -> Iterator[FreeMemory]:
    try:
        import resource
    except ImportError:  # Windows
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        used = (_number(root / "proc/self/statm") or 0) * resource.getpagesize()
        yield FreeMemory(max(0, limit - used), "the address space of this process (ulimit -v)")


def cgroup_limits(root: Path = Path("/")) -> tuple[float | None, int | None]:
    """Return the CPUs and the bytes of memory that control groups of either version allow; None without a limit."""
    cpus, memory = [], []
    for folder in _cgroup_folders(root):
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if (folder / "cpu.max").is_file():
            quota, period = _number(folder / "cpu.max"), _number(folder / "cpu.max", 1)
        if quota and period and quota > 0:
            cpus.append(quota / period)
        limits = (_number(folder / name) for name in ("memory.max", "memory.limit_in_bytes"))
        memory += [limit for limit in limits if limit is not None and limit < _NO_LIMIT]
    return min(cpus, default=None), min(memory, default=None)


@dataclass(frozen=True)
class CpuSeconds:
    """Seconds of the CPUs on which this process may run, since the machine started.

    Attributes:
        total: Seconds of all of these CPUs, busy or idle.
        busy: Seconds in which they worked, for any process or for another virtual machine.
    """

    total: float
    busy: float


def cpu_seconds(root: Path = Path("/")) -> CpuSeconds | None:
    """Return the CPU seconds so far; None on systems that do not state them (other than Linux)."""
    try:
        lines = (root / "proc/stat").read_text().splitlines()
        allowed = {f"cpu{index}" for index in os.sched_getaffinity(0)}
        ticks = [[int(number) for number in line.split()[1:9]] for line in lines if line.split(" ", 1)[0] in allowed]
    except (OSError, ValueError, AttributeError):
        return None
    if not ticks or any(len(numbers) < 8 for numbers in ticks):
        return None
    total = sum(map(sum, ticks))
    idle = sum(numbers[3] + numbers[4] for numbers in ticks)  # idle, and waiting for a disk
    hertz = os.sysconf("SC_CLK_TCK")
    return CpuSeconds(total / hertz, (total - idle) / hertz)


def _cgroup_folders(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups and of their parents."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        base = root / "sys/fs/cgroup" / controllers
        parts = [part for part in path.split("/") if part not in ("", "..")]
        yield from (base.joinpath(*parts[:depth]) for depth in range(len(parts) + 1))


def _number(path: Path, word: int = 0) -> int | None:
    """Return a word of a file as a number; None if it is missing or not a number, such as "max"."""
    try:
        return int(path.read_text().split()[word])
    except (OSError, ValueError, IndexError):
        return None


def _named_number(path: Path, name: str) -> int | None:
    """Return the number that follows `name` on a line of a file; None if it is missing."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError):
        return None
    numbers = (words[1] for words in map(str.split, lines) if len(words) > 1 and words[0] == name)
    number = next(numbers, "")
    return int(number) if number.isdigit() else None
