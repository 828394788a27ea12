"""What commands found, as JSON can hold it: names are those of the CSV columns, or carry their unit; NaN is null."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from autodistil_search.base.errors import InputError
from autodistil_search.base.plugins import GROUPS, Plugins
from autodistil_search.nas.objectives import COSINE, PROBE, TASK, Objective
from autodistil_search.spaces.cost import Vocabulary, params
from autodistil_search.spaces.partition import flops_of, spread_within
from autodistil_search.spaces.search_space import SearchSpace

if TYPE_CHECKING:
    from autodistil_search.distillation.plan import Plan
    from autodistil_search.runs.distil import Distilled
    from autodistil_search.runs.finetune import FinetuneRun
    from autodistil_search.runs.finished_run import Run
    from autodistil_search.runs.profile import Profile
    from autodistil_search.runs.validate_proxy import Validation

Record = dict[str, Any]


def _plain(value: Any) -> Any:
    """The same in what JSON has: tables as lists of rows, numbers of numpy as Python's, what is not finite as null."""
    if isinstance(value, pd.DataFrame):
        return [_plain(row) for row in value.to_dict("records")]
    if isinstance(value, pd.Series):
        return _plain(value.to_dict())
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def search_record(run: Run) -> Record:
    """The frontier, and what `summary.json` says of the search."""
    report = run.folder / "report.html"
    record = {"folder": run.folder, "report": report, "frontier": run.frontier, "baselines": run.baselines}
    return dict(_plain({**record, "summary": run.summary}))


def plans_record(plans: Sequence[Plan], speed: str, keep: int) -> Record:
    """A row for each space. speed: where the seconds of a step come from; keep: checkpoints on disk at a time."""
    rows = [
        {
            "space": plan.space.name,
            "steps": plan.steps,
            "devices": plan.devices,
            "rows_per_device": plan.rows,
            "seq_len": plan.seq_len,
            "step_flops_per_device": plan.flops,
            "step_seconds": plan.seconds,
            "hours": plan.hours,
            "device_hours": plan.hours * plan.devices,
            "memory_bytes": {**asdict(plan.memory), "total": plan.memory.total},
            "checkpoint_bytes": plan.checkpoint,
            "checkpoints_bytes": keep * plan.checkpoint,
        }
        for plan in plans
    ]
    return dict(_plain({"speed": speed, "hours": sum(plan.hours for plan in plans), "plans": rows}))


def profiles_record(profiled: Sequence[tuple[SearchSpace, Sequence[Profile]]], costs: Sequence[Objective]) -> Record:
    """Of each space the profiled subnets, a row each: role, sizes and a column for each of `costs`."""
    spaces = [
        {
            "space": space.name,
            "subnets": space.size,
            "profiles": [{"role": each.role, **each.subnet.to_row(), **each.costs} for each in profiles],
        }
        for space, profiles in profiled
    ]
    columns = [{key: getattr(each, key) for key in ("name", "label", "unit", "direction")} for each in costs]
    return dict(_plain({"columns": columns, "spaces": spaces}))


def distilled_record(found: Distilled) -> Record:
    """The student, the row of the frontier that it was, and what training it further gained."""
    losses = {"before": found.before, "after": found.after}
    return dict(_plain({"student": found.folder, "row": found.row, "relation_loss": losses}))


def finetuning_record(run: FinetuneRun) -> Record:
    """Mean and spread of each metric over the seeds, and what each seed and learning rate gave."""
    means = {metric: run.mean_and_spread(metric) for metric in run.task.metrics}
    several = len(run.chosen) > 1
    return dict(
        _plain(
            {
                "folder": run.folder,
                "model": run.model_folder,
                "task": run.task.name,
                "dev_rows": len(run.task.dev),
                "lr": run.lr,
                "seeds": len(run.chosen),
                "metrics": {
                    name: {"mean": mean, "standard_deviation": spread if several else None}
                    for name, (mean, spread) in means.items()
                },
                "results": run.results,
            }
        )
    )


def validation_record(found: Validation) -> Record:
    """Rank correlations with their intervals, the measures they compare, and every measured subnet."""
    return dict(
        _plain(
            {
                "folder": found.folder,
                "figure": found.folder / "ranking.png",
                "measures": [asdict(each) for each in found.measures],
                "ranking": found.ranking,
                "measured": found.measured,
                "notes": found.notes,
            }
        )
    )


def names_record(plugins: Plugins) -> Record:
    """What can be named, by group: our own, and what is installed beside it, with its origin or its error."""
    from autodistil_search.runs.named_parts import built_in  # it loads torch, which most commands' records do without

    of_tasks = {"proxies": [f"{kind}NAME" for kind in (COSINE, PROBE, TASK)]}
    return {
        group: {
            "own": [*built_in(group), *of_tasks.get(group, ())],
            "installed": [_installed(plugins, group, name) for name in plugins.all_names(group)],
        }
        for group in GROUPS
    }


def _installed(plugins: Plugins, group: str, name: str) -> Record:
    from autodistil_search.runs.named_parts import plugged

    try:
        plugged(plugins, group, name)
    except InputError as error:
        return {"name": name, "origin": plugins.origin(group, name), "error": str(error)}
    return {"name": name, "origin": plugins.origin(group, name), "error": None}


def partition_record(parent: SearchSpace, parts: Sequence[SearchSpace], paths: Sequence[Path]) -> Record:
    """The sub-spaces, how alike they are inside, and the value of `--space` that searches them all.

    FLOPs are multiply-adds at 128 tokens and batch 1, parameters those with BERT's vocabulary.
    """
    rows = []
    for part, path in zip(parts, paths, strict=True):
        flops = flops_of(part)
        row: Record = {"name": part.name, "path": path, "subnets": part.size}
        row |= {"flops_smallest": flops.min(), "flops_median": np.median(flops), "flops_largest": flops.max()}
        row |= {f"params_{end}": params(getattr(part, end), Vocabulary()) for end in ("smallest", "largest")}
        rows.append(row)
    record = {
        "space": parent.name,
        "sub_spaces": rows,
        "share_of_variance_within": spread_within(parent, parts),
        "space_flag": f"--space {shlex.quote(','.join(map(str, paths)))}",
    }
    return dict(_plain(record))
