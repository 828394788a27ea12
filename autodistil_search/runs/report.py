"""`report`: the page of a finished run with what was found out since, or of several together; figures for papers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autodistil_search.base.errors import InputError
from autodistil_search.report.file_names import PAGE
from autodistil_search.report.overlay import overlay
from autodistil_search.report.papers import FIGURES, write_for_papers
from autodistil_search.report.writing import write_page, write_report
from autodistil_search.runs.finished_run import load_run
from autodistil_search.runs.run_folder import exclusive


def report_runs(folders: Sequence[Path], to: Path | None = None, figure: bool = False) -> list[Path]:
    """Write the report of finished runs, all on the same axes.

    Args:
        folders: Of the runs.
        to: Where it goes; if not given, to the run's own folder, or of several to one beside the first.
        figure: Whether to write what is for papers into its folder `figures`, too.

    Returns:
        The page, and the folder of the figures.

    Raises:
        InputError: if a folder holds no finished run, the runs cannot share axes, or `to` holds something else.
    """
    report = overlay([load_run(folder).report for folder in folders])
    own = len(folders) == 1 and (to is None or to.resolve() == folders[0].resolve())
    folder = folders[0] if own else to or _beside(folders)
    if not own:
        _refuse_strangers(folder)
    with exclusive(folder, "--out" if own else "--to"):
        if own:
            write_page(report, folder)  # its tables are as the search left them
        else:
            write_report(report, folder)
        if figure:
            write_for_papers(report, folder / FIGURES)
    return [folder / PAGE, *([folder / FIGURES] if figure else [])]


def _beside(folders: Sequence[Path]) -> Path:
    names = [folder.resolve().name for folder in folders]
    shown = names if len(names) <= 3 else [*names[:2], f"{len(names) - 2}-more"]
    return folders[0].resolve().parent / f"report-{'-'.join(shown)}"


def _refuse_strangers(folder: Path) -> None:
    """Raises InputError if a report in `folder` would mix with something else."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--to {str(folder)!r} is a file; allowed: a folder")
    names = {item.name for item in folder.iterdir() if not item.name.startswith(".")} if folder.is_dir() else set()
    if names and (PAGE not in names or "summary.json" in names or "config.yaml" in names):
        raise InputError(f"--to {str(folder)!r} holds something else; allowed: a new or empty folder, or a report's")
