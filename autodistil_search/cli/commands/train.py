"""`train`: the training of SuperLMs for later searches."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from autodistil_search.cli.command import Command, Outcome, lines
from autodistil_search.cli.parser import add_settings
from autodistil_search.runs.named_parts import check_names
from autodistil_search.settings.train import TrainConfig

if TYPE_CHECKING:
    from autodistil_search.base.progress import Reporter


def _train(settings: Mapping[str, Any], reporter: Reporter) -> Outcome:
    config = TrainConfig.from_dict(settings)
    check_names(config)
    reporter.say(f"training SuperLMs of {config.space}; results go to {config.folder}")

    from autodistil_search.runs.train import train

    folder = train(config, reporter)
    record = {"folder": str(folder), "spaces": config.space_names}
    return Outcome(record, lines(f"search them: autodistil-search search --space {config.space} --superlm {folder}"))


COMMAND = Command(
    "train",
    summary="train SuperLMs for later searches with search --superlm",
    description=(
        "Train the SuperLM of each space for later searches. For several processes, on one or more machines, start "
        "the command with `accelerate launch -m autodistil_search train ...` or `torchrun -m ...`."
    ),
    examples=(
        "autodistil-search train --space small --text hf:wikimedia/wikipedia:20231101.en --stream --steps 100000",
        "autodistil-search train --space tiny --steps 20000 --precision bf16 --out superlms/tiny",
    ),
    run=_train,
    add_flags=partial(add_settings, config=TrainConfig),
)
