"""`doctor`: an inspection of this machine for missing, broken or slow parts. It changes nothing.

A broken package must not prevent the report. Therefore everything but the standard library is imported only when it is
examined.
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

from autodistil_search.base.distributed import machine
from autodistil_search.base.errors import InputError
from autodistil_search.base.files import cache_folder
from autodistil_search.base.idle_threads import SPINS, VARIABLES
from autodistil_search.base.resources import cgroup_limits
from autodistil_search.base.version import __version__
from autodistil_search.text.digests import digests_file, known_digests

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from rich.console import Console

_PACKAGE = "autodistil_search"
_SHOWN = ("torch", "transformers", "pymoo", "optuna")
"""Requirements that are imported and have a line of their own. The others are only counted."""

PURPOSES = {
    "quickstart": "the packaged teacher and text",
    "wiki": "the task topic",
    "tracking": "--track tensorboard",
    "numba": "--engine age-moea2",
    "triton": "the relation loss on CUDA",
    "postgres": "--storage postgresql://...",
    "distributed": "--executor dask",
    "dashboard": "viewing a search in a browser",
    "onnx": "export --onnx and --int8",
    "notebooks": "notebooks/, and exploring a run in Jupyter",
    "docs": "building the documentation site",
    "test": "the tests",
}
"""Purpose of each extra."""

State = Literal["ok", "slow", "missing", "broken"]
_TITLES: Mapping[str, str] = {"broken": "broken", "missing": "not installed or not found", "slow": "slow, and why"}


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Args:
        name: Name of the examined part.
        value: Version, number or other value of the part; None if there is none.
        unit: Unit of a number.
        state: "ok"; "slow" if work will take longer than necessary; "missing" if an optional part is absent; or
            "broken" if a required part is absent or does not work.
        remark: Consequence, and the remedy.
    """

    name: str
    value: str | float | None
    unit: str = ""
    state: State = "ok"
    remark: str = ""

    @property
    def words(self) -> str:
        """Return value and unit as text."""
        if self.value is None:
            return "-"
        value = f"{self.value:,.4g}" if isinstance(self.value, float) else str(self.value)
        return f"{value} {self.unit}".strip()


def examine() -> list[Finding]:
    """Run all checks, without network access."""
    findings = list(_versions())
    if not any(finding.state == "broken" and finding.name in ("torch", "transformers") for finding in findings):
        findings += [*_device(), *_threads(), *_packaged(), _hub()]
    return [*findings, _memory(), *_cache(), *_extras()]


def is_usable(findings: Sequence[Finding]) -> bool:
    """Return True if no required part is broken."""
    return all(finding.state != "broken" for finding in findings)


def findings_record(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return all findings as a JSON object."""
    return {"usable": is_usable(findings), "findings": [asdict(finding) for finding in findings]}


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """Print a table of all findings, then the broken, missing and slow ones with their remarks."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1), show_header=False)
    for finding in findings:
        style = {"broken": "bold red", "slow": "yellow", "missing": "dim"}.get(finding.state, "")
        remark = finding.remark if finding.state == "ok" else finding.state
        table.add_row(Text(finding.name), Text(finding.words), Text(remark), style=style)
    console.print(table)
    for state, title in _TITLES.items():
        if lines := [f"  {finding.name}: {finding.remark}" for finding in findings if finding.state == state]:
            for line in ("", f"{title}:", *lines):
                console.print(line, highlight=False, markup=False, soft_wrap=True)


def _requirements(extra: str = "") -> list[Requirement]:
    """Return the requirements of the installed package, or those that `extra` adds."""
    from packaging.requirements import Requirement

    requirements = [Requirement(text) for text in metadata.requires(_PACKAGE) or ()]
    always = [
        requirement
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    ]
    if not extra:
        return always
    return [
        requirement
        for requirement in requirements
        if requirement not in always and requirement.marker and requirement.marker.evaluate({"extra": extra})
    ]


def _problem_with(requirement: Requirement) -> str | None:
    """Return the problem with an installed requirement in words, or None."""
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
            "requirements", "unknown", state="missing", remark="run from a source folder: pip install the package"
        )
        return
    problems = {requirement.name: _problem_with(requirement) for requirement in required}
    for name in _SHOWN:
        yield _check_import(name, problems.pop(name, None))
    for name, problem in problems.items():
        if problem:
            yield Finding(name, None, state="broken", remark=f"{problem}; pip install '{_PACKAGE}' again")
    kept = sum(not problem for problem in problems.values())
    yield Finding("other requirements", kept, f"of {len(problems)}", remark="as required")


def _check_import(name: str, problem: str | None) -> Finding:
    try:
        version = metadata.version(name)
        importlib.import_module(name)
    except Exception as error:  # a third-party package may raise anything
        words = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return Finding(name, None, state="broken", remark=problem or f"cannot be imported: {words}")
    return Finding(name, version, state="broken" if problem else "ok", remark=problem or "")


def _device() -> Iterator[Finding]:
    import torch

    from autodistil_search.base.device import choose_device, fastest_precision, has_bf16

    try:
        chosen = choose_device()
        described = getattr(torch.get_device_module(chosen.type), "get_device_properties", None)  # MPS has none
        count = torch.accelerator.device_count() if chosen.type != "cpu" else 0
        properties = [described(index) if described else None for index in range(count)]
    except RuntimeError as error:  # such as a driver of the wrong version
        yield Finding("device", None, state="broken", remark=" ".join(str(error).split())[:300])
        return
    for index, device in enumerate(properties):
        memory = f"{device.total_memory / 1e9:.1f} GB" if device else ""
        yield Finding(f"{chosen.type}:{index}", device.name if device else chosen.type, remark=memory)
    if not properties:
        built = torch.version.cuda or torch.version.hip
        why = f"torch is built for {built} and sees none" if built else "torch is built without CUDA"
        if not built and Path("/dev/nvidia0").exists():
            why += ", although /dev/nvidia0 exists"
        remark = (
            f"no GPU ({why}), so everything runs on the CPU; to measure the time that a training takes: "
            "autodistil-search plan --space tiny --tokens 100M"
        )
        yield Finding("device", f"cpu: {machine()}", state="slow", remark=remark)
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION")
    hardware = has_bf16(chosen.type)
    why = "bfloat16 instructions found" if hardware else "no bfloat16 instructions found"
    if fastest_precision(chosen.type) == "fp16":
        why += ", and float16 is faster than float32"
    if launched in ("bf16", "fp16"):
        why = "ACCELERATE_MIXED_PRECISION"
    yield Finding("precision", chosen.precision, remark=f"selected by auto: {why}")
    if not hardware:
        remark = f"--precision bf16 would be emulated: no bfloat16 instructions found; auto selects {chosen.precision}"
        yield Finding("bf16", "emulated", state="slow", remark=remark)


def _threads() -> Iterator[Finding]:
    import torch

    yield _idle_threads()

    cores = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    quota = cgroup_limits()[0]
    usable = max(1, min(allowed, math.ceil(quota) if quota else allowed))
    limits = [f"{allowed} by affinity"] if allowed < cores else []
    limits += [f"{quota:g} by the quota of a control group"] if quota and quota < cores else []
    yield Finding("CPUs", usable, f"of {cores}", remark=", ".join(limits))
    threads, omp_threads = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    setting = f"OMP_NUM_THREADS={omp_threads}" if omp_threads else "OMP_NUM_THREADS not set"
    if threads > usable:
        remark = f"{threads} threads on {usable} CPUs wait for each other ({setting}): set OMP_NUM_THREADS={usable}"
    elif 2 * threads < usable or (threads == 1 < usable):  # half of them is a thread per core, the default of torch
        remark = f"torch uses {threads} of {usable} CPUs ({setting}): set OMP_NUM_THREADS={usable}"
    elif usable == 1:
        remark = "one CPU: nothing runs in parallel"
    else:
        yield Finding("threads", threads, remark=setting)
        return
    yield Finding("threads", threads, state="slow", remark=remark)


def _idle_threads() -> Finding:
    """Return how idle threads wait, which decides the speed beside other busy processes."""
    chosen = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    if chosen:
        return Finding("idle threads", ", ".join(chosen))
    remark = f"torch was loaded first, so they spin for milliseconds before they sleep: set {VARIABLES[0]}={SPINS}"
    return Finding("idle threads", "spin", state="slow", remark=remark)


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
        return Finding("model hub", "offline", remark="HF_HUB_OFFLINE is set: only downloaded models are found")
    return Finding("model hub", "allowed", remark="HF_HUB_OFFLINE is not set; the connection was not tested")


def _memory() -> Finding:
    if not hasattr(os, "sysconf"):
        return Finding("memory", "unknown")
    total, limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), cgroup_limits()[1]
    if limit is not None and limit < total:
        return Finding("memory", limit / 1e9, "GB", remark=f"by a control group; the machine has {total / 1e9:.1f} GB")
    return Finding("memory", total / 1e9, "GB")


def _cache() -> Iterator[Finding]:
    """Check that the folder for tokenized text and baselines, or its nearest existing parent, can be written.

    The trial file is removed.
    """
    folder = cache_folder().absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        remark = f"cannot be written ({error.strerror}); name another with AUTODISTIL_SEARCH_CACHE"
        yield Finding("cache", str(folder), state="broken", remark=remark)
        return
    yield Finding("cache", str(folder), remark="can be written" if existing == folder else "can be created")
    if known := len(known_digests(folder)):
        remark = f"{digests_file(folder)}; these files are read again only if they change"
        yield Finding("digests of text there", known, "files", remark=remark)
    yield Finding("free disk there", shutil.disk_usage(existing).free / 1e9, "GB")


def _extras() -> Iterator[Finding]:
    try:
        extras = metadata.metadata(_PACKAGE).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return
    for extra in extras:
        name, purpose = f"extra {extra}", PURPOSES.get(extra, "")
        if problems := [problem for requirement in _requirements(extra) if (problem := _problem_with(requirement))]:
            remark = f"{'; '.join(problems)}: pip install '{_PACKAGE}[{extra}]', for {purpose}"
            yield Finding(name, "not installed", state="missing", remark=remark)
        else:
            yield Finding(name, "installed", remark=purpose)
