"""`doctor`: what this machine offers, what is missing or broken, and what would be slow. It looks; it changes nothing.

What is broken must not keep it from telling so: all but the standard library is imported when it is looked at.
"""

from __future__ import annotations

import importlib
import math
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autodistil_search import __version__
from autodistil_search.base.distributed import machine
from autodistil_search.base.errors import InputError
from autodistil_search.base.files import cache_folder
from autodistil_search.base.resources import cgroup_limits

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from rich.console import Console

_PACKAGE = "autodistil_search"
_SHOWN = ("torch", "transformers", "pymoo", "optuna")
"""Requirements with a line of their own, which are imported, too; the others are counted."""

PURPOSES = {
    "quickstart": "the packaged teacher and text",
    "wiki": "the task topic",
    "tracking": "--tensorboard",
    "numba": "--engine age-moea2, which is refused without it",
    "postgres": "--storage postgresql://...",
    "dashboard": "looking at a search in a browser",
    "onnx": "export --onnx and --int8",
    "notebooks": "notebooks/, and exploring a run in Jupyter",
    "docs": "this documentation as a site",
    "test": "the tests",
}
"""What each extra is for."""

State = Literal["ok", "slow", "missing", "broken"]
_TITLES: Mapping[str, str] = {"broken": "broken", "missing": "not here", "slow": "what would be slow, and why"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        name: What it is.
        value: What was found.
        unit: Of a number.
        state: ok; slow, if something will take longer than it could; missing, if something optional is not here; or
            broken, if something required is.
        remark: What follows from it, and what to do.
    """

    name: str
    value: str | float | None
    unit: str = ""
    state: State = "ok"
    remark: str = ""

    @property
    def words(self) -> str:
        """Value and unit."""
        if self.value is None:
            return "-"
        value = f"{self.value:,.4g}" if isinstance(self.value, float) else str(self.value)
        return f"{value} {self.unit}".strip()


def examine() -> list[Finding]:
    """Look at everything, without a network."""
    found = list(_versions())
    if not any(each.state == "broken" and each.name in ("torch", "transformers") for each in found):
        found += [*_device(), *_threads(), *_packaged(), _hub()]
    return [*found, _memory(), *_cache(), *_extras()]


def is_usable(findings: Sequence[Finding]) -> bool:
    """Whether nothing that is required is broken."""
    return all(each.state != "broken" for each in findings)


def findings_record(findings: Sequence[Finding]) -> dict[str, Any]:
    """All that was found, as JSON can hold it."""
    return {"usable": is_usable(findings), "findings": [asdict(each) for each in findings]}


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """A table of all that was found; then what is broken, what is not here, and what would be slow and why."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1), show_header=False)
    for each in findings:
        style = {"broken": "bold red", "slow": "yellow", "missing": "dim"}.get(each.state, "")
        remark = each.remark if each.state == "ok" else each.state
        table.add_row(Text(each.name), Text(each.words), Text(remark), style=style)
    console.print(table)
    for state, title in _TITLES.items():
        if lines := [f"  {each.name}: {each.remark}" for each in findings if each.state == state]:
            for line in ("", f"{title}:", *lines):
                console.print(line, highlight=False, markup=False, soft_wrap=True)


def _requirements(extra: str = "") -> list[Requirement]:
    """What the installed package requires; with an extra, what that adds."""
    from packaging.requirements import Requirement

    found = [Requirement(text) for text in metadata.requires(_PACKAGE) or ()]
    always = [each for each in found if each.marker is None or each.marker.evaluate({"extra": ""})]
    if not extra:
        return always
    return [each for each in found if each not in always and each.marker and each.marker.evaluate({"extra": extra})]


def _lack(requirement: Requirement) -> str | None:
    """What is wrong with what is installed of it, in words; None if nothing is."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return f"{requirement.name} is {version}; required: {requirement.specifier}"


def _versions() -> Iterator[Finding]:
    yield Finding(_PACKAGE, __version__)
    yield Finding("python", platform.python_version(), remark=platform.platform())
    try:
        required = _requirements()
    except metadata.PackageNotFoundError:
        yield Finding(
            "requirements", "unknown", state="missing", remark="run from a folder: pip install it to have them"
        )
        return
    lacks = {each.name: _lack(each) for each in required}
    for name in _SHOWN:
        yield _imported(name, lacks.pop(name, None))
    for name, lack in lacks.items():
        if lack:
            yield Finding(name, None, state="broken", remark=f"{lack}; pip install '{_PACKAGE}' again")
    kept = sum(not lack for lack in lacks.values())
    yield Finding("other requirements", kept, f"of {len(lacks)}", remark="as required")


def _imported(name: str, lack: str | None) -> Finding:
    try:
        version = metadata.version(name)
        importlib.import_module(name)
    except Exception as error:  # whatever someone else's package raises
        words = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return Finding(name, None, state="broken", remark=lack or f"cannot be imported: {words}")
    return Finding(name, version, state="broken" if lack else "ok", remark=lack or "")


def _device() -> Iterator[Finding]:
    import torch

    from autodistil_search.base.device import choose_device, has_bf16

    try:
        chosen = choose_device()
        gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    except RuntimeError as error:  # a driver that does not fit, say
        yield Finding("device", None, state="broken", remark=" ".join(str(error).split())[:300])
        return
    if chosen.type == "cuda":
        for index, properties in enumerate(gpus):
            yield Finding(f"cuda:{index}", properties.name, remark=f"{properties.total_memory / 1e9:.1f} GB")
    else:
        built = torch.version.cuda or torch.version.hip
        why = f"torch, built for {built}, sees none" if built else "this torch is built without CUDA"
        if not built and Path("/dev/nvidia0").exists():
            why += ", though there is /dev/nvidia0"
        remark = (
            f"no GPU ({why}), so all is computed here; how long a training takes is not known before it is measured: "
            "autodistil-search plan --space tiny --tokens 100M"
        )
        yield Finding("device", f"cpu: {machine()}", state="slow", remark=remark)
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION")
    hardware = has_bf16(chosen.type)
    why = "bfloat16 instructions found" if hardware else "no bfloat16 instructions found"
    if launched in ("bf16", "fp16"):
        why = "ACCELERATE_MIXED_PRECISION"
    yield Finding("precision", chosen.precision, remark=f"what auto takes: {why}")
    if not hardware:
        remark = f"--precision bf16 would be emulated: no bfloat16 instructions found; auto takes {chosen.precision}"
        yield Finding("bf16", "emulated", state="slow", remark=remark)


def _threads() -> Iterator[Finding]:
    import torch

    cores = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    quota = cgroup_limits()[0]
    usable = max(1, min(allowed, math.ceil(quota) if quota else allowed))
    limits = [f"{allowed} by affinity"] if allowed < cores else []
    limits += [f"{quota:g} by the quota of a control group"] if quota and quota < cores else []
    yield Finding("CPUs", usable, f"of {cores}", remark=", ".join(limits))
    threads, given = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    told = f"OMP_NUM_THREADS={given}" if given else "OMP_NUM_THREADS not set"
    if threads > usable:
        remark = f"{threads} threads on {usable} CPUs wait for each other ({told}): set OMP_NUM_THREADS={usable}"
    elif 2 * threads < usable or (threads == 1 < usable):  # half of them is a thread for each core, torch's own choice
        remark = f"torch uses {threads} of {usable} CPUs ({told}): set OMP_NUM_THREADS={usable}"
    elif usable == 1:
        remark = "one CPU: nothing is computed side by side"
    else:
        yield Finding("threads", threads, remark=told)
        return
    yield Finding("threads", threads, state="slow", remark=remark)


def _packaged() -> Iterator[Finding]:
    from autodistil_search.teachers.loading import packaged_folder
    from autodistil_search.text.sources import packaged_files

    try:
        yield Finding("packaged teacher", packaged_folder().parent.name, remark="digest as expected")
    except (InputError, OSError) as error:
        yield Finding("packaged teacher", None, state="missing", remark=str(error))
    try:
        files = packaged_files()
        yield Finding("packaged text", len(files), "documents", *(() if files else ("missing", "it has no documents")))
    except InputError as error:
        yield Finding("packaged text", None, state="missing", remark=str(error))


def _hub() -> Finding:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return Finding("model hub", "offline", remark="HF_HUB_OFFLINE: only what was downloaded before is found")
    return Finding("model hub", "allowed", remark="HF_HUB_OFFLINE is not set; whether it can be reached was not tried")


def _memory() -> Finding:
    if not hasattr(os, "sysconf"):
        return Finding("memory", "unknown")
    total, limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), cgroup_limits()[1]
    if limit is not None and limit < total:
        return Finding("memory", limit / 1e9, "GB", remark=f"by a control group; the machine has {total / 1e9:.1f} GB")
    return Finding("memory", total / 1e9, "GB")


def _cache() -> Iterator[Finding]:
    """The folder for tokenized text and baselines, or the one that would hold it; the trial leaves nothing there."""
    folder = cache_folder().absolute()
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        remark = f"cannot be written ({error.strerror}); name another with AUTODISTIL_SEARCH_CACHE"
        yield Finding("cache", str(folder), state="broken", remark=remark)
        return
    yield Finding("cache", str(folder), remark="can be written" if existing == folder else "can be made")
    yield Finding("free disk there", shutil.disk_usage(existing).free / 1e9, "GB")


def _extras() -> Iterator[Finding]:
    try:
        extras = metadata.metadata(_PACKAGE).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return
    for extra in extras:
        name, purpose = f"extra {extra}", PURPOSES.get(extra, "")
        if lacks := [lack for each in _requirements(extra) if (lack := _lack(each))]:
            remark = f"{'; '.join(lacks)}: pip install '{_PACKAGE}[{extra}]', for {purpose}"
            yield Finding(name, "not installed", state="missing", remark=remark)
        else:
            yield Finding(name, "installed", remark=purpose)
