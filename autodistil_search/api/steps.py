"""The commands before and after a search, as functions with the settings of the commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autodistil_search.api.keywords import by_keyword
from autodistil_search.base.default_reporter import default_reporter
from autodistil_search.settings.distil import DistilConfig
from autodistil_search.settings.export import ExportOptions
from autodistil_search.settings.finetune import FinetuneConfig
from autodistil_search.settings.plan import PLANNED
from autodistil_search.settings.search import PROFILED, SearchConfig
from autodistil_search.settings.train import TrainConfig
from autodistil_search.settings.validate_proxy import ValidateConfig

if TYPE_CHECKING:
    from autodistil_search.base.executors import AnyExecutor
    from autodistil_search.base.plugins import Plugins
    from autodistil_search.base.progress import Reporter
    from autodistil_search.base.tracking import Callback
    from autodistil_search.runs.distil import Distilled
    from autodistil_search.runs.finetune import FinetuneRun
    from autodistil_search.runs.plan import PlannedTraining
    from autodistil_search.runs.profile import Profiles
    from autodistil_search.runs.validate_proxy import Validation


@by_keyword(TrainConfig)
def train(
    config: TrainConfig,
    *,
    reporter: Reporter | None = None,
    executor: AnyExecutor | None = None,
    callback: Callback | None = None,
) -> Path:
    """Train the SuperLM of each space, or continue a stopped training, and return its folder.

    Search the SuperLMs later with `search(superlm=folder)`.

    Args:
        config: Settings, as one object or as keywords.
        reporter: Receiver of progress and messages; by default a display in a notebook, and `logging` in a script.
        executor: Executor whose workers tokenize large text; see `search`.
        callback: Function `callback(step, metrics)` that gets the metrics; see `search`.

    Raises:
        InputError: if an input cannot be used, or the folder holds another training.
        Terminated: after SIGTERM, once the state is saved.
    """
    from autodistil_search.runs import train as module

    return module.train(config, reporter or default_reporter(), executor, callback)


@by_keyword(DistilConfig, positional="run")
def distil(config: DistilConfig, *, reporter: Reporter | None = None, callback: Callback | None = None) -> Distilled:
    """Train a student of a finished search further, alone, or continue a stopped training.

    Args:
        config: Settings, as one object or as keywords, or the folder of the run.
        reporter: Receiver of progress and messages; see `train`.
        callback: Function `callback(step, metrics)` that gets the metrics; see `search`.

    Raises:
        InputError: if an input cannot be used, or the folder holds another training.
        Terminated: after SIGTERM, once the state is saved.
    """
    from autodistil_search.runs import distil as module

    return module.distil(config, reporter or default_reporter(), callback)


@by_keyword(FinetuneConfig, positional="model")
def finetune(
    config: FinetuneConfig,
    *,
    reporter: Reporter | None = None,
    executor: AnyExecutor | None = None,
    callback: Callback | None = None,
) -> FinetuneRun:
    """Fine-tune a model on a labelled task with several seeds, or continue a stopped fine-tuning.

    Args:
        config: Settings, as one object or as keywords, or the model.
        reporter: Receiver of progress and messages; see `train`.
        executor: Executor whose workers train the learning rates, and then the seeds; see `search`. Not with trackers.
        callback: Function `callback(step, metrics)` that gets the metrics; see `search`.

    Raises:
        InputError: if an input cannot be used, or the folder holds another fine-tuning.
    """
    from autodistil_search.runs import finetune as module

    return module.finetune(config, reporter or default_reporter(), executor, callback)


@by_keyword(ValidateConfig, positional="run")
def validate_proxy(
    config: ValidateConfig, *, reporter: Reporter | None = None, executor: AnyExecutor | None = None
) -> Validation:
    """Measure how well proxies rank subnets of a finished search at similar cost, and whether they beat FLOPs.

    Each subnet is recorded once it is measured. A stopped validation is continued.

    Args:
        config: Settings, as one object or as keywords, or the folder of the run.
        reporter: Receiver of progress and messages; see `train`.
        executor: Executor whose workers measure the subnets; see `search`.

    Raises:
        InputError: if an input cannot be used, or the folder holds another validation.
    """
    from autodistil_search.runs import validate_proxy as module

    return module.validate_proxy(config, reporter or default_reporter(), executor)


@by_keyword(ExportOptions, positional="model")
def export(config: ExportOptions, *, model: str | Path, out: str | Path, reporter: Reporter | None = None) -> Path:
    """Write a student as a folder that loads without this package, and return the absolute path of the folder.

    Args:
        config: Options, as one object or as keywords.
        model: Folder of a finished search, `distil` or `finetune`, or of a saved student; also the positional argument.
        out: Folder to write: new, empty, or an earlier export, which is replaced.
        reporter: Receiver of progress and messages; see `train`.

    Raises:
        InputError: for input that cannot be used or a missing extra, before anything is written.
        ExportError: if outputs of the exported model or its ONNX file differ from the student's.
        OSError: if the folder is written but cannot be uploaded.
    """
    from autodistil_search.exporting.student_folder import export_student

    return export_student(Path(model), Path(out), config, reporter or default_reporter())


@by_keyword(TrainConfig, names=PLANNED)
def plan(
    config: TrainConfig,
    *,
    steps: int | None = None,
    tokens: str | float | None = None,
    devices: int = 1,
    batch_size: int | None = None,
    device_name: str | None = None,
    flops_per_second: str | float | None = None,
    bandwidth: str | float | None = None,
    launch_microseconds: str | float | None = None,
    reporter: Reporter | None = None,
) -> PlannedTraining:
    """Estimate the steps, hours, device memory and checkpoints of training SuperLMs.

    Args:
        config: Settings of the training, as one object or as keywords.
        steps: Training steps.
        tokens: Tokens to train on, such as "26B", in place of `steps`; rounded up to whole steps.
        devices: Devices that share each step.
        batch_size: Blocks of a step on all devices; by default 4 for each device.
        device_name: Device to plan for by its known rates, such as "H100"; by default steps are timed on this machine.
        flops_per_second: Sustained FLOP/s of a device, such as "400T"; by default that of `device_name`.
        bandwidth: Sustained bytes per second of a device's memory, such as "2.7T"; by default that of `device_name`.
        launch_microseconds: Microseconds that the host needs to launch an operation.
        reporter: Receiver of progress; see `train`.

    Raises:
        InputError: if an input cannot be used, or a device is unknown.
    """
    from autodistil_search.runs import plan as module

    return module.plan(
        config,
        reporter or default_reporter(),
        steps=steps,
        tokens=tokens,
        devices=devices,
        batch_size=batch_size,
        device_name=device_name,
        flops_per_second=flops_per_second,
        bandwidth=bandwidth,
        launch_microseconds=launch_microseconds,
    )


@by_keyword(SearchConfig, names=PROFILED)
def profile(config: SearchConfig, *, plugins: Plugins | None = None) -> Profiles:
    """Measure the costs of the smallest, median and largest subnet of each space, as a guide for constraints.

    Args:
        config: Settings, as one object or as keywords.
        plugins: Costs, teachers and spaces that the settings may name, in addition to installed ones.

    Raises:
        InputError: if an input cannot be used.
    """
    from autodistil_search.runs import profile as module

    return module.profile(config, plugins)
