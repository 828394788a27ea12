"""`report`: the page of one or several finished runs, with later validations and results, and figures for papers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autodistil_search.base.errors import InputError
from autodistil_search.report.data import ParetoReport
from autodistil_search.report.file_names import PAGE
from autodistil_search.report.overlay import overlay
from autodistil_search.report.papers import FIGURES, write_for_papers
from autodistil_search.report.writing import write_page, write_report
from autodistil_search.runs.finished_run import load_run
from autodistil_search.runs.run_folder import exclusive


def report_runs(
    folders: Sequence[Path], out: Path | None = None, figure: bool = False
) -> tuple[ParetoReport, list[Path]]:
    """Write the report of finished runs on shared axes.

    Args:
        folders: Folders of the runs.
        out: Folder of the report. The default is the folder of a single run, or a new folder beside the first of
            several.
        figure: If True, also write figures and tables for papers into its folder `figures`.

    Returns:
        The report, and the paths of the page and, if they were written, of the folder of the figures.

    Raises:
        InputError: if a folder holds no finished run, the runs cannot share axes, or `out` holds other files.
    """
    report = overlay([load_run(folder).report for folder in folders])
    is_own_folder = len(folders) == 1 and (out is None or out.resolve() == folders[0].resolve())
    folder = folders[0] if is_own_folder else out or _beside(folders)
    if not is_own_folder:
        _refuse_other_content(folder)
    with exclusive(folder):
        if is_own_folder:
            write_page(report, folder)  # the search has already written its tables
        else:
            write_report(report, folder)
        if figure:
            write_for_papers(report, folder / FIGURES)
    return report, [folder / PAGE, *([folder / FIGURES] if figure else [])]


def _beside(folders: Sequence[Path]) -> Path:
    names = [folder.resolve().name for folder in folders]
    shown = names if len(names) <= 3 else [*names[:2], f"{len(names) - 2}-more"]
    return folders[0].resolve().parent / f"report-{'-'.join(shown)}"


def _refuse_other_content(folder: Path) -> None:
    """Raise InputError if `folder` holds anything but a report."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {str(folder)!r} is a file; allowed: a folder")
    names = {item.name for item in folder.iterdir() if not item.name.startswith(".")} if folder.is_dir() else set()
    if names and (PAGE not in names or "summary.json" in names or "config.yaml" in names):
        raise InputError(
            f"--out {str(folder)!r} holds other files; allowed: a new or empty folder, or the folder of a report"
        )
