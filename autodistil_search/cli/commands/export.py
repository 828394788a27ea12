"""`export`: a student as a folder that loads without this package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodistil_search.cli.command import Command, Outcome, lines
from autodistil_search.cli.parser import CommandParser, add_settings, as_text
from autodistil_search.settings.export import ExportOptions

if TYPE_CHECKING:
    from autodistil_search.base.progress import Reporter


def _add_export(parser: CommandParser) -> None:
    parser.add_argument(
        "model", type=as_text, metavar="MODEL", help="Folder of a finished search, distil or finetune, or of a student."
    )
    parser.add_argument(
        *("-o", "--out"),
        type=as_text,
        metavar="FOLDER",
        required=True,
        help="Folder to write: new, empty, or an earlier export.",
    )
    add_settings(parser, ExportOptions)


def _export(settings: Mapping[str, Any], reporter: Reporter) -> Outcome:
    from autodistil_search.base.files import EXPORT_RECORD, read_json
    from autodistil_search.exporting.student_folder import export_student
    from autodistil_search.report.escape import without_markdown

    arguments = ("model", "out")
    options = ExportOptions(**{name: value for name, value in settings.items() if name not in arguments})
    folder = export_student(Path(settings["model"]), Path(settings["out"]), options, reporter)
    record = {"folder": str(folder), **read_json(folder / EXPORT_RECORD)}
    notes = [without_markdown(note) for note in record["notes"]]
    return Outcome(record, lines(*notes, f"exported to {folder}; its README.md shows how to load it"))


COMMAND = Command(
    "export",
    summary="write a student as a folder that loads without this package",
    description="Write a student, with a model card, as a folder that loads without this package.",
    examples=(
        "autodistil-search export runs/mine --out my-student",
        "autodistil-search export runs/mine --out my-student --pick 1 --int8 --license apache-2.0",
    ),
    run=_export,
    add_flags=_add_export,
)
