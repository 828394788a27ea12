"""Fine-tuning of all models of results.py on all tasks, by labels and by task distillation."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from autodistil_search.base.manifest import SUMMARY
from autodistil_search.base.pretrained import load_tokenizer, quiet_transformers
from autodistil_search.runs.finetune import model_source
from autodistil_search.tasks.labelled_data import load_task

if TYPE_CHECKING:  # a script that is started by its path finds its neighbours by their bare names
    from benchmarks.results_costs import Commands
    from benchmarks.results_models import Model
    from benchmarks.results_tables import DISTILLATION, HALF, LABELS, PUBLISHED, TEACHER, WAYS
else:
    from results_costs import Commands
    from results_models import Model
    from results_tables import DISTILLATION, HALF, LABELS, PUBLISHED, TEACHER, WAYS

PHRASES = "phrases"
"""Task of phrases.py."""
_TOKENS = 128
"""Tokens to which `finetune` truncates rows by default."""


@dataclass(frozen=True)
class Job:
    """Fine-tuning of a model on a task in one way, with all learning rates and seeds.

    Attributes:
        model: Model.
        task: Name of the task.
        rows: Largest number of training rows.
        by: Way of fine-tuning.
    """

    model: Model
    task: str
    rows: int
    by: str

    @property
    def folder(self) -> Path:
        """Return the folder of the fine-tuning, below that of all."""
        return Path(self.by, self.task, self.model.slug)

    def __str__(self) -> str:
        return f"{self.model.name} on {self.task} {WAYS[self.by]}"


@dataclass
class Finetuning:
    """All fine-tunings, of which `jobs` run side by side; finished ones are read from their folders.

    Attributes:
        arguments: Arguments of results.py.
        commands: Runner of the commands.
        out: Folder for everything.
        after_each: Function of the scores so far, called after each fine-tuning.
        failed: Errors of the fine-tunings that failed.
    """

    arguments: argparse.Namespace
    commands: Commands
    out: Path
    after_each: Callable[[pd.DataFrame, int, int], None]
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._scores: list[pd.DataFrame] = []
        self._teachers: dict[str, Path] = {}
        self._lock = threading.Lock()

    @property
    def tasks(self) -> dict[str, int]:
        """Return the largest number of training rows of each task, by its name."""
        asked = [task.partition(":") for task in self.arguments.tasks.split(",")]
        return {task: int(rows or self.arguments.rows) for task, _, rows in asked}

    def jobs(self, models: Sequence[Model]) -> list[Job]:
        """Return all jobs in their order: for each task the teacher first, then labels, then task distillation."""
        ways = self.arguments.by.split(",")
        order = sorted(models, key=lambda model: model.kind != TEACHER)
        return [
            Job(model, task, rows, by)
            for task, rows in self.tasks.items()
            for by in (LABELS, DISTILLATION)
            for model in order
            if self._asked(model, by, ways)
        ]

    def _asked(self, model: Model, by: str, ways: Sequence[str]) -> bool:
        if model.kind == TEACHER:  # the teacher of task distillation learns from labels
            return by == LABELS
        return by in ways and (by == LABELS or model.reads_as_teacher)

    def run(self, models: Sequence[Model]) -> None:
        """Run all jobs. A job that fails is recorded in `failed`, and the others go on."""
        if PHRASES in self.tasks:
            words = ["--data", str(self.arguments.data), "--out", str(self.out / PHRASES)]
            subprocess.run([sys.executable, str(Path(__file__).with_name("phrases.py")), *words], check=True)
        jobs = self.jobs(models)
        pool, teachers = ThreadPoolExecutor(self.arguments.jobs), dict[str, Future[None]]()
        try:
            futures: list[Future[None]] = []
            for job in jobs:
                futures.append(pool.submit(self._job, job, teachers.get(job.task), len(jobs)))
                if job.model.kind == TEACHER:
                    teachers[job.task], self._teachers[job.task] = futures[-1], self.out / "tuned" / job.folder
            for future in futures:
                future.result()
        except BaseException:
            self.commands.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _job(self, job: Job, teacher: Future[None] | None, total: int) -> None:
        try:
            if job.by == DISTILLATION and teacher is not None:
                teacher.result()  # submitted before, so it runs or has ended
            scores = self._finetuned(job)
        except RuntimeError as error:
            if not self.commands.stopped:
                self.failed.append(f"{job}: {error}")
                print(f"failed: {self.failed[-1]}\n", end="", flush=True)
            return
        with self._lock:
            self._scores.append(scores)
            self.after_each(pd.concat(self._scores, ignore_index=True), len(self._scores), total)

    def _finetuned(self, job: Job) -> pd.DataFrame:
        """Return a row for each seed: GLUE's first metric on dev."""
        out, model = self.out / "tuned" / job.folder, job.model
        results = out / "results.csv"
        if not (out / SUMMARY).exists():
            part = f"fine-tuning {WAYS[job.by]}: {model.kind}"
            step = "-".join(job.folder.parts)
            self.commands.run(self._command(job, out), part, step, lambda: self._tokens(job, results), threads=1)
        table = pd.read_csv(results).dropna(subset="chosen_by")
        summary = json.loads((out / SUMMARY).read_text())
        best = table[table["lr"] == summary["lr"]]
        metric = _metric(self.task(job.task))
        return pd.DataFrame(
            {
                "kind": model.kind,
                "model": model.name,
                "flops": model.flops,
                "params": model.params,
                "by": job.by,
                "task": job.task,
                "metric": metric,
                "seed": best["seed"].astype(int),
                "score": best[metric],
                "unlearnt": best["seed"].isin(summary["unlearnt_seeds"]),
                "lr": best["lr"],
            }
        )

    def _command(self, job: Job, out: Path) -> list[str]:
        given = self.arguments
        words = ["finetune", job.model.source, "--task", self.task(job.task), "--train-rows", str(job.rows)]
        seeds = given.teacher_seeds if job.model.kind == TEACHER and given.teacher_seeds is not None else given.seeds
        words += ["--lr", self._rates(job.model.kind), "--epochs", str(given.epochs), "--seeds", str(seeds)]
        if job.by == DISTILLATION:
            words += ["--losses", given.losses, "--teacher", str(self._teachers[job.task])]
        return [*words, "--out", str(out)]

    def _rates(self, kind: str) -> str:
        given = self.arguments
        rates: str = given.teacher_lr if kind == TEACHER else given.student_lr
        return given.published_lr if kind in (HALF, PUBLISHED) else rates

    def task(self, name: str) -> str:
        """Return the `--task` of a name: SST-2 with more rows, a folder of GLUE's files, or a task of the package."""
        if name == PHRASES:
            return str(self.out / PHRASES / "SST-2")
        return name if self.arguments.data is None else str(self.arguments.data / "glue" / name)

    def _tokens(self, job: Job, results: Path) -> int:
        """Return the tokens of all trainings of a finished fine-tuning, without padding."""
        trainings = int(pd.read_csv(results)["chosen_by"].notna().sum())
        in_epoch: int = _tokens(self.task(job.task), job.rows, model_source(job.model.source))
        return trainings * int(self.arguments.epochs) * in_epoch


@cache
def _metric(task: str) -> str:
    """Return the metric by which models are chosen on a task: the first of GLUE's."""
    return load_task(task).metrics[0]


@cache
def _tokens(task: str, most: int, source: str) -> int:
    """Return the tokens of the training rows of a task."""
    with quiet_transformers():
        tokenizer = load_tokenizer("model", source)
    rows = load_task(task).split(most)[0]
    second = None if rows.second is None else list(rows.second)
    ids: list[list[int]] = tokenizer(list(rows.first), second, truncation=True, max_length=_TOKENS)["input_ids"]
    return sum(len(row) for row in ids)
