"""Where a claim drawn from a report is weak, beyond what its search noted."""

from __future__ import annotations

from autodistil_search.report.data import ParetoReport
from autodistil_search.report.findings import COMPARISON, NOT_CONVERGED, NOT_VALIDATED, PROXY_WORTH, Finding
from autodistil_search.report.run_parts import ProxyCheck
from autodistil_search.report.views import of_runs

_LAST = 0.1
"""What is found in this last share of the evaluations says that there may be more."""


def warnings_of(report: ParetoReport) -> list[Finding]:
    """Return what a reader should know before trusting the report.

    Convergence comes first, then what each `validate-proxy` in the run's folder says of the proxy, then what the search
    found itself. A search's finding that the proxy was not validated is dropped where a validation has been made since.
    """
    checks = [(part.name, check) for part in report.runs for check in part.checks]
    own = [finding for finding in report.findings if not (checks and finding.kind == NOT_VALIDATED)]
    return [*_not_converged(report), *(_worth(report, run, check) for run, check in checks), *own]


def found_after(report: ParetoReport) -> list[tuple[str, list[tuple[int, int]]]]:
    """Return for each run after how many evaluations 90, 99 and 100 % of its last hypervolume were there."""
    found = []
    for run, table in of_runs(report.progress):
        last = table["hypervolume"].iloc[-1]
        if last > 0:
            counts = [
                (percent, int(table.loc[table["hypervolume"] >= (percent / 100 - 1e-9) * last, "evaluations"].iloc[0]))
                for percent in (90, 99, 100)
            ]
            found.append((run, counts))
    return found


def _not_converged(report: ParetoReport) -> list[Finding]:
    exact = {part.name for part in report.runs if part.exact} if "run" in report.progress else set()
    totals = {run: len(table) for run, table in of_runs(report.progress)}
    return [
        Finding(NOT_CONVERGED, {"evaluations": totals[run]}, run)
        for run, counts in found_after(report)
        if not report.exact and run not in exact and counts[-1][1] > (1 - _LAST) * totals[run]
    ]


def _worth(report: ParetoReport, run: str, check: ProxyCheck) -> Finding:
    """Return how far a `validate-proxy` bears the proxy out."""
    compared = [finding for finding in check.findings if finding.kind == COMPARISON]
    values = {
        "check": f"{run}, {check.name}" if len(report.runs) > 1 else check.name,
        "subnets": len(check.measured),
        "fine_tuned": check.fine_tuned,
        "comparisons": len(compared) if check.has_data else None,
        "better": sum(finding.values["better"] is True for finding in compared),
    }
    return Finding(PROXY_WORTH, values)
