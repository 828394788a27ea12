"""Names of the files of a report."""

from __future__ import annotations

PAGE = "report.html"
TABLES = ("baselines", "engines", "evaluations", "frontier", "progress", "published")
"""Tables of a `ParetoReport`, each written as a CSV file."""
FIGURES = ("frontier.png", "progress.png", "published.png")

REPORT_FILES = tuple(sorted([*(f"{name}.csv" for name in TABLES), *FIGURES, PAGE]))
"""All files that `writing.write_report` writes."""
