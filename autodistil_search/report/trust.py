"""Where a claim drawn from a report is weak, beyond what its search noted."""

from __future__ import annotations

from autodistil_search.report.data import ParetoReport
from autodistil_search.report.runs import ProxyCheck
from autodistil_search.report.views import of_runs

NOT_VALIDATED = "The proxy was not compared with fine-tuned accuracy in this run."
"""A search's note, which a `validate-proxy` in the run's folder may have overtaken since."""

_LAST = 0.1
"""What is found in this last share of the evaluations says that there may be more."""


def warnings_of(report: ParetoReport) -> list[str]:
    """What a reader should know before trusting the report: convergence, the proxy's worth, then the search's notes."""
    checks = [(part, check) for part in report.runs for check in part.checks]
    notes = [note for note in report.notes if not (checks and note.endswith(NOT_VALIDATED))]
    return [*_not_converged(report), *(_worth(report, part.name, check) for part, check in checks), *notes]


def found_after(report: ParetoReport) -> list[tuple[str, list[tuple[int, int]]]]:
    """Of each run, after how many evaluations 90, 99 and 100 % of its last hypervolume were there."""
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


def _not_converged(report: ParetoReport) -> list[str]:
    exact = {part.name for part in report.runs if part.exact} if "run" in report.progress else set()
    totals = {run: len(table) for run, table in of_runs(report.progress)}
    return [
        f"{run + ': ' if run else ''}The last tenth of the {totals[run]} evaluations still found something: the "
        "frontier has not converged."
        for run, counts in found_after(report)
        if not report.exact and run not in exact and counts[-1][1] > (1 - _LAST) * totals[run]
    ]


def _worth(report: ParetoReport, run: str, check: ProxyCheck) -> str:
    """How far a `validate-proxy` bears the proxy out."""
    before = f"{run}, {check.name}" if len(report.runs) > 1 else check.name
    fine_tuned = any(check.labels[target].endswith("fine-tuned") for _, target in check.pairs)
    against = "fine-tuned accuracy" if fine_tuned else "training alone only, not with fine-tuned accuracy"
    judged = [note for note in check.notes if " within bands, FLOPs alone " in note]
    borne_out = sum(note.endswith("better than FLOPs") for note in judged)
    return (
        f"Proxy validation ({before}) on {len(check.measured)} subnets compared with {against}: in {borne_out} of "
        f"{len(judged)} comparisons a measure ranks subnets of like cost better than FLOPs do."
    )
