"""Multi-objective search for compressed language encoders, after AutoDistil (arXiv 2201.12507).

    from autodistil_search import SearchConfig, search

    run = search(SearchConfig(objectives="acc,flops", space="tiny"))
    print(run.frontier)

Names are imported when first used, so that `import autodistil_search` needs neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from autodistil_search.base.idle_threads import let_idle_threads_sleep
from autodistil_search.base.version import __version__

let_idle_threads_sleep()  # before anything loads torch

if TYPE_CHECKING:
    from autodistil_search.base.errors import ExecutorError, InputError
    from autodistil_search.base.plugins import Plugins
    from autodistil_search.exporting.student_folder import export_student
    from autodistil_search.nas.adapters import SubnetObjective, SubnetProblem
    from autodistil_search.nas.objectives import Objective
    from autodistil_search.nas.proxies import ProxyKind
    from autodistil_search.report.data import ParetoReport
    from autodistil_search.runs.distil import distil
    from autodistil_search.runs.finetune import finetune
    from autodistil_search.runs.finished_run import Run, load_run
    from autodistil_search.runs.search import open_subnets, search
    from autodistil_search.runs.train import train
    from autodistil_search.runs.validate_proxy import validate_proxy
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
    "DistilConfig": "settings.distil",
    "ExecutorError": "base.errors",
    "ExportOptions": "settings.export",
    "FinetuneConfig": "settings.finetune",
    "InputError": "base.errors",
    "Objective": "nas.objectives",
    "ParetoReport": "report.data",
    "Plugins": "base.plugins",
    "ProxyKind": "nas.proxies",
    "Run": "runs.finished_run",
    "SearchConfig": "settings.search",
    "SearchSpace": "spaces.search_space",
    "Subnet": "spaces.subnet",
    "SubnetObjective": "nas.adapters",
    "SubnetProblem": "nas.adapters",
    "TrainConfig": "settings.train",
    "ValidateConfig": "settings.validate_proxy",
    "distil": "runs.distil",
    "export_student": "exporting.student_folder",
    "finetune": "runs.finetune",
    "flops": "spaces.cost",
    "load_run": "runs.finished_run",
    "load_space": "spaces.search_space",
    "load_teacher": "teachers.loading",
    "open_subnets": "runs.search",
    "params": "spaces.cost",
    "partition": "spaces.partition",
    "search": "runs.search",
    "shipped_spaces": "spaces.search_space",
    "train": "runs.train",
    "validate_proxy": "runs.validate_proxy",
}

__all__ = [
    "AutoDistilForSequenceClassification",
    "AutoDistilModel",
    "DistilConfig",
    "ExecutorError",
    "ExportOptions",
    "FinetuneConfig",
    "InputError",
    "Objective",
    "ParetoReport",
    "Plugins",
    "ProxyKind",
    "Run",
    "SearchConfig",
    "SearchSpace",
    "Subnet",
    "SubnetObjective",
    "SubnetProblem",
    "TrainConfig",
    "ValidateConfig",
    "__version__",
    "distil",
    "export_student",
    "finetune",
    "flops",
    "load_run",
    "load_space",
    "load_teacher",
    "open_subnets",
    "params",
    "partition",
    "search",
    "shipped_spaces",
    "train",
    "validate_proxy",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
