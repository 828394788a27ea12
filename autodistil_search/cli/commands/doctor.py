"""`doctor`: an inspection of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from autodistil_search.cli.command import Command, Outcome

if TYPE_CHECKING:
    from autodistil_search.base.progress import Reporter


def _doctor(_: Mapping[str, Any], __: Reporter) -> Outcome:
    from autodistil_search.runs.doctor import examine, findings_record, is_usable, print_findings

    findings = examine()
    return Outcome(findings_record(findings), partial(print_findings, findings), 0 if is_usable(findings) else 1)


COMMAND = Command(
    "doctor",
    summary="check this machine: what is missing, broken or slow",
    description=(
        "Check versions, device, precision, threads, memory, disk and extras of this machine, without "
        "downloads. The exit code is 1 if a required part is broken."
    ),
    examples=("autodistil-search doctor", "autodistil-search doctor --json"),
    run=_doctor,
)
