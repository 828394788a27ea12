"""A search with all steps that follow it, in one folder, each of which is done once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from autodistil_search.api.keywords import by_keyword
from autodistil_search.api.run import Run
from autodistil_search.base.default_reporter import default_reporter
from autodistil_search.base.errors import InputError
from autodistil_search.base.manifest import (
    SEARCH_CONFIG,
    lacking,
    read_sealed,
    sha256_of,
    verify,
    write_sealed,
)
from autodistil_search.runs import finished_run
from autodistil_search.runs.run_folder import check_folder, exclusive, model_folder, usable
from autodistil_search.settings.compress import STAGES, CompressConfig

if TYPE_CHECKING:
    from autodistil_search.base.executors import AnyExecutor
    from autodistil_search.base.plugins import Plugins
    from autodistil_search.base.progress import Reporter
    from autodistil_search.base.tracking import Callback
    from autodistil_search.runs.distil import Distilled
    from autodistil_search.runs.finetune import FinetuneRun

_EXPORTED = "exported.json"
"""File that says of which model, and with which options, the export was made."""
_OWN_FILE = "modeling_student.py"
_Result = TypeVar("_Result")


@dataclass(frozen=True, repr=False)
class Compressed:
    """Result of a search with all steps that follow it.

    Args:
        folder: Output folder.
        run: Finished search.
        distilled: Student that was trained further; None if it was not.
        finetuned: Fine-tuning; None without a task.
        exported: Folder that loads without this package.
    """

    folder: Path
    run: Run
    distilled: Distilled | None
    finetuned: FinetuneRun | None
    exported: Path

    @property
    def loading_code(self) -> str:
        """Return the line of Python that loads the exported model."""
        kind = "AutoModel" if self.finetuned is None else "AutoModelForSequenceClassification"
        own = ", trust_remote_code=True" if (self.exported / _OWN_FILE).exists() else ""
        return f'transformers.{kind}.from_pretrained("{self.exported}"{own})'

    def __repr__(self) -> str:
        parts = [str(self.run).rpartition("\n")[0]]
        parts += [str(stage) for stage in (self.distilled, self.finetuned) if stage is not None]
        return "\n".join([*parts, f"exported to {self.exported}", f"load it with {self.loading_code}"])


@by_keyword(CompressConfig)
def compress(
    config: CompressConfig,
    *,
    reporter: Reporter | None = None,
    plugins: Plugins | None = None,
    executor: AnyExecutor | None = None,
    callback: Callback | None = None,
) -> Compressed:
    """Search, train the picked student further, fine-tune it if a task is given, and export it.

    This is the command `all`. Each stage has a folder of its own in the output folder. The same call continues at the
    stage that was stopped; finished stages are not repeated.

    Args:
        config: Settings, as one object or as keywords.
        reporter: Receiver of progress and messages; see `search`.
        plugins: Objectives, engines and other parts that the settings may name; see `search`.
        executor: Executor whose workers score subnets and train baselines; see `search`.
        callback: Function `callback(step, metrics)` that gets all metrics; see `search`.

    Raises:
        InputError: if an input cannot be used, or a folder holds another run.
    """
    reporter = reporter or default_reporter()
    _check_target(config.folder)
    _check_inputs(config)
    with exclusive(config.folder):
        stages = _Stages(config, reporter, plugins, executor, callback)
        run = stages.search()
        distilled = stages.distil(run) if config.distil_steps else None
        student = config.folder / "distil" if distilled is not None else run.saved_student(config.pick)
        finetuned = stages.finetune(student)
        exported = stages.export(student if finetuned is None else finetuned.folder)
    return Compressed(config.folder, run, distilled, finetuned, exported)


def _check_target(folder: Path) -> None:
    """Refuse a folder with other content.

    Raises:
        InputError: naming a file that is of no stage.
    """
    with usable(folder):
        names = {item.name for item in folder.iterdir() if not item.name.startswith(".")} if folder.is_dir() else set()
    if foreign := sorted(names - {*STAGES, _EXPORTED}):
        raise InputError(
            f"--out {str(folder)!r} holds {foreign[0]!r}; allowed: a new or empty folder, or that of the same command"
        )


def _check_inputs(config: CompressConfig) -> None:
    """Refuse inputs of later stages that cannot be used, before hours of search.

    Raises:
        InputError: for a task that cannot be read, or a missing extra.
    """
    if config.export.writes_onnx:
        from autodistil_search.exporting.onnx_files import require_onnx

        require_onnx()
    if config.task is not None:
        from autodistil_search.tasks.labelled_data import load_task

        finetuning = config.finetune("student")
        assert finetuning is not None
        load_task(config.task, finetuning.columns, config.label_column)


class _Stages:
    """Stages of one call, each of which is done now or read from its folder."""

    def __init__(
        self,
        config: CompressConfig,
        reporter: Reporter,
        plugins: Plugins | None,
        executor: AnyExecutor | None,
        callback: Callback | None,
    ) -> None:
        self._config, self._reporter, self._plugins = config, reporter, plugins
        self._executor, self._callback = executor, callback
        left_out = {"distil": not config.distil_steps, "finetune": config.task is None}
        self._names = [name for name in STAGES if not left_out.get(name)]

    def search(self) -> Run:
        """Return the finished search."""
        from autodistil_search.runs import search as module

        config = self._config.search

        def finished() -> Run | None:
            if not finished_run.is_finished(config.folder) or config.superlm is not None:
                return None
            check_folder(config.folder, SEARCH_CONFIG, config.absolute(self._plugins).to_dict())
            return Run.of(finished_run.load_run(config.folder))

        return self._done(
            "search",
            finished,
            lambda: Run.of(module.search(config, self._reporter, self._plugins, self._executor, self._callback)),
        )

    def distil(self, run: Run) -> Distilled:
        """Return the picked student, trained further."""
        from autodistil_search.runs import distil as module

        config = self._config.distil(run.folder)
        return self._done(
            "distil",
            lambda: module.finished_distil(config, run),
            lambda: module.distil(config, self._reporter, self._callback),
        )

    def finetune(self, student: Path) -> FinetuneRun | None:
        """Return the fine-tuning of the student in a folder, which trains only what is not finished."""
        from autodistil_search.runs import finetune as module

        if (config := self._config.finetune(str(student))) is None:
            return None
        return self._done(
            "finetune", lambda: None, lambda: module.finetune(config, self._reporter, None, self._callback)
        )

    def export(self, source: Path) -> Path:
        """Return the folder of the exported model of `source`."""
        from autodistil_search.exporting.student_folder import export_student

        folder, options = (self._config.folder / "export").absolute(), self._config.export
        state = {"options": asdict(options), "model": _model_digest(source)}
        record = self._config.folder / _EXPORTED

        def finished() -> Path | None:
            same = record.is_file() and read_sealed(record, "delete it; the export is then repeated") == state
            return folder if same and folder.is_dir() and not lacking(folder) and verify(folder) else None

        def work() -> Path:
            export_student(source, folder, options, self._reporter)
            write_sealed(record, state)
            return folder

        return self._done("export", finished, work)

    def _done(self, name: str, finished: Callable[[], _Result | None], work: Callable[[], _Result]) -> _Result:
        """Return the result of a stage that is finished, or else of its work, with a message."""
        where = f"stage {self._names.index(name) + 1} of {len(self._names)}, {name}"
        if (result := finished()) is not None:
            self._reporter.say(f"{where}: already finished, in {self._config.folder / name}")
            return result
        self._reporter.say(f"{where}: results go to {self._config.folder / name}")
        return work()


def _model_digest(folder: Path) -> str:
    """Return the digest of the weights of the student in the folder of a model, a distil or a finetune."""
    return sha256_of(model_folder(folder) / "model.safetensors")
