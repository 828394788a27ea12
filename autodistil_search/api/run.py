"""A search by keyword, and its run with the steps that follow it as methods."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from autodistil_search.api import steps
from autodistil_search.api.keywords import by_keyword
from autodistil_search.base.browser import open_in_browser
from autodistil_search.base.default_reporter import default_reporter
from autodistil_search.base.files import whole_folder
from autodistil_search.report.file_names import PAGE
from autodistil_search.runs import finished_run
from autodistil_search.settings.search import SearchConfig

if TYPE_CHECKING:
    from autodistil_search.base.executors import AnyExecutor
    from autodistil_search.base.plugins import Plugins
    from autodistil_search.base.progress import Reporter
    from autodistil_search.base.tracking import Callback
    from autodistil_search.runs.distil import Distilled
    from autodistil_search.runs.finetune import FinetuneRun
    from autodistil_search.runs.search import Subnets


class Run(finished_run.Run):
    """A finished search, read from its folder."""

    @classmethod
    def of(cls, run: finished_run.Run) -> Self:
        """Return a run with the methods of this class."""
        return cls(run.folder, run.report, run.summary)

    def __repr__(self) -> str:
        from autodistil_search.report.views import shown, subnet_words, value_words  # matplotlib

        report, frontier = self.report, self.frontier
        spaces = ", ".join(dict.fromkeys(str(space) for space in self.evaluations["space"]))
        ends = {column.name: sorted(frontier[column.name].tolist()) for column in report.columns}
        ranges = [f"{name} {shown(values[0])} to {shown(values[-1])}" for name, values in ends.items()]
        rows = frontier.to_dict("records")  # native numbers instead of numpy's
        number, row = next((i, row) for i, row in enumerate(rows, start=1) if row["knee"])
        knee = {str(key): value for key, value in row.items()}
        headline = [] if report.headline is None else report.headline.sentences[:1]
        return "\n".join(
            [
                f"Run {self.folder}: space {spaces}; objectives {', '.join(self.summary['objectives'])}",
                f"  scored    {len(self.evaluations)} subnets, {len(frontier)} on the frontier",
                f"  frontier  {', '.join(ranges)}",
                f"  knee      row {number}, {subnet_words(knee)}; {', '.join(value_words(knee, report.columns))}",
                *(f"  pick      {words}" for words in headline),
                "  next      run.frontier, run.pick('flops<=200M'), run.student(), run.distil(steps=...), "
                "run.finetune(task=...), run.export('my-student'), run.open_report()",
            ]
        )

    def distil(self, pick: str | int = "knee", **settings: Any) -> Distilled:
        """Train a student of this run further, and return its folder with its losses before and after.

        Args:
            pick: Row of the frontier; see `Run.pick`.
            settings: Further settings of `distil`.

        Raises:
            InputError: see `distil`.
        """
        return steps.distil(self, pick=str(pick), **settings)

    def finetune(self, task: str, pick: str | int = "knee", **settings: Any) -> FinetuneRun:
        """Fine-tune a student of this run on a labelled task, without further distillation.

        The student is written to the folder `students/<pick>` of the run first. A student of `distil` is fine-tuned by
        `finetune(distilled.folder, task=...)`.

        Args:
            task: Labelled task; see `FinetuneConfig`.
            pick: Row of the frontier; see `Run.pick`.
            settings: Further settings of `finetune`.

        Raises:
            InputError: see `finetune`.
        """
        return steps.finetune(self.saved_student(str(pick)), task=task, **settings)

    def export(self, out: str | Path, pick: str | int = "knee", **settings: Any) -> Path:
        """Write a student of this run as a folder that loads without this package, and return the folder.

        Args:
            out: Folder to write: new, empty, or an earlier export.
            pick: Row of the frontier; see `Run.pick`.
            settings: Further settings of `export`.

        Raises:
            InputError: see `export`.
        """
        return steps.export(self, out=out, pick=str(pick), **settings)

    def open_report(self) -> Path:
        """Open `report.html` in a browser, and return its path. Without a browser, only the path is returned."""
        page = (self.folder / PAGE).resolve()
        open_in_browser(page)
        return page

    def saved_student(self, pick: str) -> Path:
        """Return the folder of a student of this run with its tokenizer, written now unless it exists.

        Args:
            pick: Row of the frontier; see `Run.pick`.
        """
        from autodistil_search.base.pretrained import quiet_transformers  # torch

        student = self.student(self.pick(pick))
        words = "".join(letter if letter.isalnum() else "-" for letter in pick.replace("<=", "-"))
        folder = self.folder / "students" / words
        if not folder.exists():
            with whole_folder(folder) as new, quiet_transformers():
                student.save_pretrained(new)
        return folder


def load_run(folder: str | Path) -> Run:
    """Return the finished run in `folder`.

    Raises:
        InputError: if the folder holds no finished run, or a file of the run is damaged.
    """
    return Run.of(finished_run.load_run(folder))


@by_keyword(SearchConfig)
def search(
    config: SearchConfig,
    *,
    reporter: Reporter | None = None,
    plugins: Plugins | None = None,
    executor: AnyExecutor | None = None,
    callback: Callback | None = None,
) -> Run:
    """Train the SuperLM of each space, search it, measure the baselines, and write the report.

    A stopped run in the folder is continued. Finished steps are not repeated.

    Args:
        config: Settings, as one object or as keywords.
        reporter: Receiver of progress and messages; by default a display in a notebook, and `logging` in a script.
            `Reporter()` is silent.
        plugins: Objectives, engines and other parts that the settings may name, in addition to installed ones.
        executor: `concurrent.futures` executor, or `distributed.Client`, whose workers tokenize large text, score
            subnets and train baselines; takes precedence over the setting of that name. The results do not depend on
            it.
        callback: Function `callback(step, metrics)` that gets the metrics of trainings and search, in addition to the
            trackers of the setting `track`. The names of metrics begin with their part, such as
            "superlm tiny/loss/largest" and "search tiny/hypervolume_share". Steps count from 1 in each part.

    Raises:
        InputError: if an input cannot be used, or the folder holds another run.
    """
    from autodistil_search.runs import search as module

    return Run.of(module.search(config, reporter or default_reporter(), plugins, executor, callback))


@by_keyword(SearchConfig)
def open_subnets(
    config: SearchConfig,
    *,
    reporter: Reporter | None = None,
    plugins: Plugins | None = None,
    executor: AnyExecutor | None = None,
) -> AbstractContextManager[Subnets]:
    """Return a context manager with the subnets of a space, which are scored on request, for a custom search.

    The SuperLM is trained first, or its training is continued, as in `search`. Scores are kept in the archive that
    `search` would use. The settings of engine and budget are ignored.

    Args:
        config: Settings, as one object or as keywords; of one space.
        reporter: Receiver of progress and messages; see `search`.
        plugins: Parts that the settings may name, in addition to installed ones.
        executor: Executor whose workers score the subnets; see `search`.

    Raises:
        InputError: if an input cannot be used, there are several spaces, or the folder holds another run.
    """
    from autodistil_search.runs import search as module

    return module.open_subnets(config, reporter or default_reporter(), plugins, executor)
