"""`all`: a search and all steps that follow it, in one folder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from autodistil_search.cli.command import Command, Outcome, json_record, lines
from autodistil_search.cli.commands.distil import distilled_record
from autodistil_search.cli.commands.finetune import finetuning_record
from autodistil_search.cli.commands.search import search_record
from autodistil_search.cli.parser import add_settings
from autodistil_search.settings.compress import CompressConfig

if TYPE_CHECKING:
    from autodistil_search.api.compress import Compressed
    from autodistil_search.base.progress import Reporter


def _all(settings: Mapping[str, Any], reporter: Reporter) -> Outcome:
    config = CompressConfig.from_dict(settings)

    from autodistil_search.api.compress import compress

    compressed = compress(config, reporter=reporter)
    return Outcome(compressed_record(compressed), lines(*str(compressed).splitlines()))


def compressed_record(compressed: Compressed) -> dict[str, Any]:
    """Return the record of each stage, with the folder of the export and the code that loads it."""
    distilled, finetuned = compressed.distilled, compressed.finetuned
    return json_record(
        {
            "folder": compressed.folder,
            "search": search_record(compressed.run),
            "distil": None if distilled is None else distilled_record(distilled),
            "finetune": None if finetuned is None else finetuning_record(finetuned),
            "export": {"folder": compressed.exported, "load": compressed.loading_code},
        }
    )


COMMAND = Command(
    "all",
    summary="search, distil, finetune and export in one folder",
    description=(
        "Search, train the picked student further, fine-tune it if a task is given, and export it, all in one folder. "
        "The same command continues at the stage that was stopped."
    ),
    examples=(
        "autodistil-search all --space tiny --pick 'flops<=200M' --out compressed/mine",
        "autodistil-search all --space tiny --task mail.csv --text mail.txt --int8 --out compressed/mail",
    ),
    run=_all,
    add_flags=partial(add_settings, config=CompressConfig),
)
