"""`distil`: the further training of a selected student."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from autodistil_search.cli.command import Command, Outcome, json_record, lines
from autodistil_search.cli.parser import add_positional_and_settings
from autodistil_search.settings.common import steps_of
from autodistil_search.settings.distil import DistilConfig

if TYPE_CHECKING:
    from autodistil_search.base.progress import Reporter
    from autodistil_search.runs.distil import Distilled


def _distil(settings: Mapping[str, Any], reporter: Reporter) -> Outcome:
    config = DistilConfig(**_with_steps(settings, reporter))

    reporter.say(f"training a student of {config.run} further; results go to {config.folder}")

    from autodistil_search.runs.distil import distil

    distilled = distil(config, reporter)
    line = (
        f"held-out relation loss {distilled.before:.4f} before, {distilled.after:.4f} after; "
        f"student: {distilled.folder}"
    )
    return Outcome(distilled_record(distilled), lines(line))


def _with_steps(settings: Mapping[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Return the settings with `steps` in place of `tokens`; the sizes of a step may be those of the run."""
    others = {name: value for name, value in settings.items() if name != "tokens"}
    if settings.get("tokens") is None:
        return others
    from autodistil_search.runs.finished_run import load_run

    run = load_run(settings["run"]).config
    steps, note = steps_of(settings, settings.get("batch_size") or run.batch_size, run.seq_len)
    reporter.say(note)
    return {**others, "steps": steps}


def distilled_record(distilled: Distilled) -> dict[str, Any]:
    """Return the folder of the student, its row of the frontier, and its losses before and after."""
    losses = {"before": distilled.before, "after": distilled.after}
    return json_record({"student": distilled.folder, "row": distilled.row, "relation_loss": losses})


COMMAND = Command(
    "distil",
    summary="train a selected student further (also: distill)",
    description="Train a student of a finished search further, alone, starting from its SuperLM weights.",
    examples=(
        "autodistil-search distil runs/mine --pick 'flops<=200M' --steps 20000",
        "autodistil-search distil runs/mine --pick 3 --out students/third",
    ),
    run=_distil,
    add_flags=partial(add_positional_and_settings, config=DistilConfig, positional="run"),
)
