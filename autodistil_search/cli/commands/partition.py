"""`partition`: the split of a space into K sub-spaces."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodistil_search.cli.command import Command, Outcome, json_record
from autodistil_search.cli.parser import CommandParser, as_text, as_whole_number

if TYPE_CHECKING:
    from rich.console import Console

    from autodistil_search.base.progress import Reporter
    from autodistil_search.spaces.search_space import SearchSpace


def _add_partition(parser: CommandParser) -> None:
    parser.add_argument("space", type=as_text, metavar="SPACE", help="Name of a shipped space, or a YAML file.")
    parser.add_argument("--k", type=as_whole_number, metavar="N", required=True, help="Number of sub-spaces.")
    parser.add_argument(
        *("-o", "--out"),
        type=as_text,
        metavar="FOLDER",
        default=".",
        help="Folder for the YAML files; the current one if not given.",
    )


def _partition(settings: Mapping[str, Any], _: Reporter) -> Outcome:
    from autodistil_search.spaces.partition import partition, write_spaces
    from autodistil_search.spaces.search_space import load_space

    parent = load_space(settings["space"])
    parts = partition(parent, settings["k"])
    record = partition_record(parent, parts, write_spaces(parts, parent, Path(settings["out"])))
    return Outcome(record, partial(print_partition, record))


def partition_record(parent: SearchSpace, parts: Sequence[SearchSpace], paths: Sequence[Path]) -> dict[str, Any]:
    """Return the sub-spaces, the share of variance within them, and the value of `--space` that searches them all.

    FLOPs are multiply-adds at 128 tokens and batch 1. Parameters are counted with BERT's vocabulary.
    """
    import numpy as np

    from autodistil_search.spaces.cost import Vocabulary, params
    from autodistil_search.spaces.partition import flops_of, spread_within

    rows = []
    for part, path in zip(parts, paths, strict=True):
        flops = flops_of(part)
        row: dict[str, Any] = {"name": part.name, "path": path, "subnets": part.size}
        row |= {"flops_smallest": flops.min(), "flops_median": np.median(flops), "flops_largest": flops.max()}
        row |= {f"params_{end}": params(getattr(part, end), Vocabulary()) for end in ("smallest", "largest")}
        rows.append(row)
    record = {
        "space": parent.name,
        "sub_spaces": rows,
        "share_of_variance_within": spread_within(parent, parts),
        "space_flag": f"--space {shlex.quote(','.join(map(str, paths)))}",
    }
    return json_record(record)


def print_partition(record: Mapping[str, Any], console: Console) -> None:
    """Print the sub-spaces as a table, the share of variance within them, and the flag that searches them all."""
    from rich.table import Table

    from autodistil_search.spaces.partition import millions

    rows = record["sub_spaces"]
    table = Table(title=f"{record['space']} in {len(rows)}", box=None, pad_edge=False, padding=(0, 1))
    for name in ("sub-space", "subnets", "FLOPs from", "median", "to", "params from", "to"):
        table.add_column(name, justify="left" if name == "sub-space" else "right", no_wrap=True)
    costs = ("flops_smallest", "flops_median", "flops_largest", "params_smallest", "params_largest")
    for row in rows:
        table.add_row(row["name"], f"{row['subnets']:,}", *(millions(row[cost]) for cost in costs))
    console.print(table)
    for line in (
        f"{record['share_of_variance_within']:.0%} of the variance of log FLOPs is within the sub-spaces. FLOPs: "
        "multiply-adds at 128 tokens, batch 1; params: with BERT's vocabulary",
        record["space_flag"],
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


COMMAND = Command(
    "partition",
    summary="split a search space into K sub-spaces",
    description="Split a search space into K sub-spaces of neighbouring cost, each a YAML file.",
    examples=("autodistil-search partition oneshot --k 3 --out spaces",),
    run=_partition,
    add_flags=_add_partition,
)
