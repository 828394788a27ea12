"""`distil`: train a chosen student further."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from autodistil_search.cli.command import Command, Outcome, json_record, lines
from autodistil_search.cli.parser import add_positional_and_settings
from autodistil_search.settings.distil import DistilConfig

if TYPE_CHECKING:
    from autodistil_search.base.progress import Reporter
    from autodistil_search.runs.distil import Distilled


def _distil(settings: Mapping[str, Any], reporter: Reporter) -> Outcome:
    config = DistilConfig(**settings)

    from autodistil_search.runs.distil import distil

    reporter.say(f"training a student of {config.run} further; it goes to {config.folder}")
    found = distil(config, reporter)
    line = f"held-out relation loss {found.before:.4f} before, {found.after:.4f} now; student: {found.folder}"
    return Outcome(distilled_record(found), lines(line))


def distilled_record(found: Distilled) -> dict[str, Any]:
    """The student, the row of the frontier that it was, and what training it further gained."""
    losses = {"before": found.before, "after": found.after}
    return json_record({"student": found.folder, "row": found.row, "relation_loss": losses})


COMMAND = Command(
    "distil",
    summary="train a chosen student further",
    description="Train a student of a finished search further, alone, from the weights that its SuperLM has for it.",
    examples=(
        "autodistil-search distil runs/mine --pick 'flops<=200M' --steps 20000",
        "autodistil-search distil runs/mine --pick 3 --out students/third",
    ),
    run=_distil,
    add_flags=partial(add_positional_and_settings, config=DistilConfig, positional="run"),
)
