"""Multi-objective search for compressed language encoders, after AutoDistil (arXiv 2201.12507).

    from autodistil_search import SearchConfig, search

    run = search(SearchConfig(objectives="acc,flops", space="tiny"))
    print(run.frontier)

Names are imported when first used, so that `import autodistil_search` needs neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from autodistil_search.base.errors import InputError
    from autodistil_search.base.plugins import Plugins
    from autodistil_search.nas.adapters import SubnetObjective, SubnetProblem
    from autodistil_search.nas.objectives import Objective
    from autodistil_search.runs.finished_run import Run, load_run
    from autodistil_search.runs.search import open_subnets, search
    from autodistil_search.runs.train import train
    from autodistil_search.settings.search import SearchConfig
    from autodistil_search.settings.train import TrainConfig
    from autodistil_search.spaces.search_space import SearchSpace, load_space
    from autodistil_search.spaces.subnet import Subnet

_HOMES = {
    "InputError": "base.errors",
    "Objective": "nas.objectives",
    "Plugins": "base.plugins",
    "Run": "runs.finished_run",
    "SearchConfig": "settings.search",
    "SubnetObjective": "nas.adapters",
    "SubnetProblem": "nas.adapters",
    "SearchSpace": "spaces.search_space",
    "Subnet": "spaces.subnet",
    "TrainConfig": "settings.train",
    "load_run": "runs.finished_run",
    "load_space": "spaces.search_space",
    "open_subnets": "runs.search",
    "search": "runs.search",
    "train": "runs.train",
}

__all__ = [
    "InputError",
    "Objective",
    "Plugins",
    "Run",
    "SearchConfig",
    "SearchSpace",
    "Subnet",
    "SubnetObjective",
    "SubnetProblem",
    "TrainConfig",
    "__version__",
    "load_run",
    "load_space",
    "open_subnets",
    "search",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
