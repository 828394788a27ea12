"""`worker`: the scoring of subnets for searches on other machines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from autodistil_search.cli.command import Command, Outcome, lines
from autodistil_search.cli.parser import CommandParser, as_number, as_text
from autodistil_search.settings.search import SearchConfig

if TYPE_CHECKING:
    from autodistil_search.base.progress import Reporter


def _add_worker(parser: CommandParser) -> None:
    parser.add_argument("--storage", type=as_text, required=True, help="URL of a database, or path of a journal file.")
    parser.add_argument("--study", type=as_text, default=SearchConfig.study, help="Name of the study in the storage.")
    parser.add_argument(
        "--superlm", type=as_text, help="Folder of the search on this machine, if its path is different."
    )
    parser.add_argument("--patience", type=as_number, help="Seconds without work after which the worker ends.")


def _worker(settings: Mapping[str, Any], reporter: Reporter) -> Outcome:
    from autodistil_search.runs.worker import work

    scored = work(**settings, reporter=reporter)
    return Outcome({"study": settings["study"], "scored": scored}, lines(f"scored {scored} subnets"))


COMMAND = Command(
    "worker",
    summary="score subnets for searches on other machines",
    description=(
        "Score subnets for the searches of a study on this machine until they have ended. Start one worker on each "
        "machine. Teacher, text and settings are those of `search --storage URL --study NAME`."
    ),
    examples=(
        "autodistil-search worker --storage postgresql://me@db/nas --study small-1",
        "autodistil-search worker --storage nas.journal --patience 600",
    ),
    run=_worker,
    add_flags=_add_worker,
)
