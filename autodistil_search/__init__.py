"""Multi-objective search for compressed language encoders, after AutoDistil (arXiv 2201.12507).

    import autodistil_search

    run = autodistil_search.search(space="tiny", objectives="acc,flops")
    print(run)

Names are imported when first used, so that `import autodistil_search` needs neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from autodistil_search.base.idle_threads import let_idle_threads_sleep
from autodistil_search.base.version import __version__

let_idle_threads_sleep()  # before anything loads torch

if TYPE_CHECKING:
    from autodistil_search.api.compress import Compressed, compress
    from autodistil_search.api.run import Run, load_run, open_subnets, search
    from autodistil_search.api.steps import distil, export, finetune, plan, profile, train, validate_proxy
    from autodistil_search.base.errors import ExecutorError, InputError
    from autodistil_search.base.plugins import Plugins
    from autodistil_search.base.progress import Reporter
    from autodistil_search.nas.adapters import SubnetObjective, SubnetProblem
    from autodistil_search.nas.objectives import Objective
    from autodistil_search.nas.proxies import ProxyKind
    from autodistil_search.report.data import ParetoReport
    from autodistil_search.settings.compress import CompressConfig
    from autodistil_search.settings.distil import DistilConfig
    from autodistil_search.settings.export import ExportOptions
    from autodistil_search.settings.finetune import FinetuneConfig
    from autodistil_search.settings.search import SearchConfig
    from autodistil_search.settings.train import TrainConfig
    from autodistil_search.settings.validate_proxy import ValidateConfig
    from autodistil_search.spaces.cost import flops, params
    from autodistil_search.spaces.partition import partition
    from autodistil_search.spaces.search_space import SearchSpace, load_space, shipped_spaces
    from autodistil_search.spaces.subnet import Subnet
    from autodistil_search.superlm.model import AutoDistilForSequenceClassification, AutoDistilModel
    from autodistil_search.teachers.loading import load_teacher

_HOMES = {
    "AutoDistilForSequenceClassification": "superlm.model",
    "AutoDistilModel": "superlm.model",
    "CompressConfig": "settings.compress",
    "Compressed": "api.compress",
    "DistilConfig": "settings.distil",
    "ExecutorError": "base.errors",
    "ExportOptions": "settings.export",
    "FinetuneConfig": "settings.finetune",
    "InputError": "base.errors",
    "Objective": "nas.objectives",
    "ParetoReport": "report.data",
    "Plugins": "base.plugins",
    "ProxyKind": "nas.proxies",
    "Reporter": "base.progress",
    "Run": "api.run",
    "SearchConfig": "settings.search",
    "SearchSpace": "spaces.search_space",
    "Subnet": "spaces.subnet",
    "SubnetObjective": "nas.adapters",
    "SubnetProblem": "nas.adapters",
    "TrainConfig": "settings.train",
    "ValidateConfig": "settings.validate_proxy",
    "compress": "api.compress",
    "distil": "api.steps",
    "export": "api.steps",
    "finetune": "api.steps",
    "flops": "spaces.cost",
    "load_run": "api.run",
    "load_space": "spaces.search_space",
    "load_teacher": "teachers.loading",
    "open_subnets": "api.run",
    "params": "spaces.cost",
    "partition": "spaces.partition",
    "plan": "api.steps",
    "profile": "api.steps",
    "search": "api.run",
    "shipped_spaces": "spaces.search_space",
    "train": "api.steps",
    "validate_proxy": "api.steps",
}

__all__ = [
    "AutoDistilForSequenceClassification",
    "AutoDistilModel",
    "CompressConfig",
    "Compressed",
    "DistilConfig",
    "ExecutorError",
    "ExportOptions",
    "FinetuneConfig",
    "InputError",
    "Objective",
    "ParetoReport",
    "Plugins",
    "ProxyKind",
    "Reporter",
    "Run",
    "SearchConfig",
    "SearchSpace",
    "Subnet",
    "SubnetObjective",
    "SubnetProblem",
    "TrainConfig",
    "ValidateConfig",
    "__version__",
    "compress",
    "distil",
    "export",
    "finetune",
    "flops",
    "load_run",
    "load_space",
    "load_teacher",
    "open_subnets",
    "params",
    "partition",
    "plan",
    "profile",
    "search",
    "shipped_spaces",
    "train",
    "validate_proxy",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
