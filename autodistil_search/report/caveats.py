"""Warnings about the conclusions from a report, in addition to the findings of its search."""

from __future__ import annotations

from autodistil_search.report.data import ParetoReport
from autodistil_search.report.findings import (
    COMPARISON,
    NOT_CONVERGED,
    NOT_TRAINED_FOR,
    NOT_VALIDATED,
    PROXY_WORTH,
    VERSUS_BASELINE,
    Finding,
)
from autodistil_search.report.importance import edge_findings
from autodistil_search.report.run_parts import ProxyCheck
from autodistil_search.report.views import of_runs

_LAST = 0.1
"""Last share of the evaluations. A gain of hypervolume within it shows that the frontier has not converged."""


def warnings_of(report: ParetoReport) -> list[Finding]:
    """Return the findings that limit the conclusions from the report.

    Convergence comes first, then frontiers at the edge of their space, then the result of each `validate-proxy` in the
    run's folder, then the findings of the search. The finding that the proxy was not validated is dropped if a
    validation exists by now. Comparisons with baselines are results; see `key_figures.baselines_at_equal_cost`.
    """
    checks = [(part.name, check) for part in report.runs for check in part.checks]
    left_out = {VERSUS_BASELINE, NOT_TRAINED_FOR, *([NOT_VALIDATED] if checks else [])}
    search_findings = [finding for finding in report.findings if finding.kind not in left_out]
    return [
        *_not_converged(report),
        *edge_findings(report),
        *(_validation_finding(report, run, check) for run, check in checks),
        *search_findings,
    ]


def found_after(report: ParetoReport) -> list[tuple[str, list[tuple[int, int]]]]:
    """Return for each run the numbers of evaluations that reached 90, 99 and 100 % of its final hypervolume.

    Each number is a pair of percentage and evaluations.
    """
    reached = []
    for run, table in of_runs(report.progress):
        last = table["hypervolume"].iloc[-1]
        if last > 0:
            counts = [
                (percent, int(table.loc[table["hypervolume"] >= (percent / 100 - 1e-9) * last, "evaluations"].iloc[0]))
                for percent in (90, 99, 100)
            ]
            reached.append((run, counts))
    return reached


def _not_converged(report: ParetoReport) -> list[Finding]:
    exact = {part.name for part in report.runs if part.exact} if "run" in report.progress else set()
    totals = {run: len(table) for run, table in of_runs(report.progress)}
    return [
        Finding(NOT_CONVERGED, {"evaluations": totals[run]}, run)
        for run, counts in found_after(report)
        if not report.exact and run not in exact and counts[-1][1] > (1 - _LAST) * totals[run]
    ]


def _validation_finding(report: ParetoReport, run: str, check: ProxyCheck) -> Finding:
    """Return a finding that summarises a `validate-proxy`."""
    compared = [finding for finding in check.findings if finding.kind == COMPARISON]
    values = {
        "check": f"{run}, {check.name}" if len(report.runs) > 1 else check.name,
        "subnets": len(check.measured),
        "fine_tuned": check.fine_tuned,
        "comparisons": len(compared) if check.has_data else None,
        "better": sum(finding.values["better"] is True for finding in compared),
    }
    return Finding(PROXY_WORTH, values)
