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
    from autodistil_search.adapters import SubnetObjective, SubnetProblem
    from autodistil_search.config import SearchConfig, TrainConfig
    from autodistil_search.errors import InputError
    from autodistil_search.objectives import Objective
    from autodistil_search.plugins import Plugins
    from autodistil_search.results import Run, load_run
    from autodistil_search.run import open_subnets, search
    from autodistil_search.space import SearchSpace, Subnet, load_space
    from autodistil_search.training import train

_HOMES = {
    "InputError": "errors",
    "Objective": "objectives",
    "Plugins": "plugins",
    "Run": "results",
    "SearchConfig": "config",
    "SubnetObjective": "adapters",
    "SubnetProblem": "adapters",
    "SearchSpace": "space",
    "Subnet": "space",
    "TrainConfig": "config",
    "load_run": "results",
    "load_space": "space",
    "open_subnets": "run",
    "search": "run",
    "train": "training",
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
