"""`distil`: the last step of the method, which trains a selected student further from its SuperLM weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from autodistil_search.base.files import read_json, write_atomically
from autodistil_search.base.manifest import (
    DISTIL_CONFIG,
    DISTIL_SUMMARY,
    ENVIRONMENT,
    MANIFEST,
    lacking,
    reopen,
    verify,
    write_manifest,
)
from autodistil_search.base.pretrained import model_sha256
from autodistil_search.base.progress import Reporter
from autodistil_search.base.tracking import LOGS, Callback, Part, Tracking, tracker_names
from autodistil_search.distillation.options import TrainOptions
from autodistil_search.distillation.training_loop import distill
from autodistil_search.nas.label_free_proxies import RelationProxy
from autodistil_search.report.training_figure import write_training_figure
from autodistil_search.runs.finished_run import Run, load_run
from autodistil_search.runs.run_folder import STUDENT, check_folder, exclusive, open_folder
from autodistil_search.runs.train import relation_proxy
from autodistil_search.runs.training_inputs import TrainingInputs, resolve_training
from autodistil_search.settings.distil import DistilConfig
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.superlm.model_folder import save_tokenizer

_SHARE_OF_RATE = 0.25
"""Share of the SuperLM's peak learning rate. A higher rate loses the gains from the end of the SuperLM's schedule."""


@dataclass(frozen=True)
class Distilled:
    """Result of training a student further.

    Args:
        folder: Folder of the model and its tokenizer.
        row: Row of the student in the frontier of the run.
        before: Held-out relation loss of the student as a subnet of its SuperLM, on as many blocks as in the run.
        after: Held-out relation loss after training, on the same blocks.
    """

    folder: Path
    row: pd.Series[Any]
    before: float
    after: float

    def __repr__(self) -> str:
        return f"student {self.folder}: held-out relation loss {self.before:.4f} before, {self.after:.4f} after"


def distil(config: DistilConfig, reporter: Reporter | None = None, callback: Callback | None = None) -> Distilled:
    """Train the student `config.pick` of `config.run` into `config.folder`, or continue a stopped training.

    The arguments are those of `autodistil_search.distil`; without a reporter, nothing is shown.

    Raises:
        InputError: if an input cannot be used, or the folder holds another training.
        Terminated: after SIGTERM, once the state is saved.
    """
    reporter = reporter or Reporter()
    run = load_run(config.run)
    row = run.pick(config.pick)
    student = run.student(row)
    materials = resolve_training(config.training(run.config), reporter)
    share = 1.0 if config.lr else _SHARE_OF_RATE
    own_space = next(space for space in materials.spaces if space.name == row["space"])
    options = materials.options_of(own_space.largest)  # the options of its SuperLM
    options = replace(options, in_place=0.0, lr=share * options.lr)
    job = _Job(materials, student, run.config.eval_blocks, config.folder, options)
    settings = {**config.to_dict(), "run": str(run.folder.resolve())}
    check_folder(config.folder, DISTIL_CONFIG, settings)
    group = materials.device.processes
    if not group.main:
        job.train(reporter)
        return Distilled(job.student_folder, row, job.before, job.after)
    with exclusive(config.folder):
        identity = {**materials.identity, "student": model_sha256(student)}
        open_folder(config.folder, DISTIL_CONFIG, DistilConfig, settings, {**materials.environment, "inputs": identity})
        reopen(config.folder)
        tracking = Tracking(tuple(tracker_names(config.track)), callback, config.folder.name, settings)
        job.train(reporter, tracking.part("student", job.student_folder / LOGS))
        distilled = Distilled(job.student_folder, row, job.before, job.after)
        job.finish(distilled, run.folder)
    return distilled


def finished_distil(config: DistilConfig, run: Run) -> Distilled | None:
    """Return the result of a finished training with these settings; None if it is not finished.

    Raises:
        InputError: if the folder holds another training, or a file of it is damaged.
    """
    folder, student = config.folder, config.folder / STUDENT
    if not (folder / MANIFEST).is_file() or lacking(folder) or not student.is_dir() or lacking(student):
        return None
    check_folder(folder, DISTIL_CONFIG, {**config.to_dict(), "run": str(run.folder.resolve())})
    verify(folder)
    verify(student)
    losses = read_json(folder / DISTIL_SUMMARY)["relation_loss"]
    return Distilled(student, run.pick(config.pick), losses["before"], losses["after"])


class _Job:
    """Training of one student, with all inputs loaded."""

    def __init__(
        self, materials: TrainingInputs, student: AutoDistilModel, eval_blocks: int, folder: Path, options: TrainOptions
    ) -> None:
        self._materials, self._student, self._eval_blocks, self._folder = materials, student, eval_blocks, folder
        self._options = options
        materials.device.place(student)
        self.before = self._proxy.score(student)

    @property
    def student_folder(self) -> Path:
        """Return the folder of the model."""
        return self._folder / STUDENT

    @cached_property
    def _proxy(self) -> RelationProxy:
        return relation_proxy(self._materials, self._eval_blocks)

    @property
    def after(self) -> float:
        """Return the current held-out loss of the student."""
        return self._proxy.score(self._student)

    def train(self, reporter: Reporter, part: Part | None = None) -> None:
        """Train all steps, and draw the training figure."""
        materials = self._materials
        assert materials.text is not None
        try:
            distill(
                self._student,
                materials.teacher,
                materials.text.begin(),
                self._options,
                self.student_folder,
                materials.device,
                reporter,
                materials.execution,
                title=f"training {self._student.config.subnet}",
                held_out=self,
                sample_ids=materials.sample_ids,
                part=part,
            )
        finally:
            if materials.device.processes.main:
                write_training_figure(self.student_folder, f"Training of {self._student.config.subnet}")

    def due(self, step: int, steps: int) -> bool:
        """Return True if the loss is due after `step` of `steps`; see `HeldOut`."""
        return self._materials.config.is_measured_after(step, steps)

    def measure(self, model: AutoDistilModel) -> Sequence[tuple[str, Subnet, float]]:
        """Return role, sizes and held-out loss of the student; see `HeldOut`."""
        model.eval()
        loss = self._proxy.score(model)
        model.train()
        return [("student", model.config.subnet, loss)]

    def finish(self, distilled: Distilled, run: Path) -> None:
        """Write the tokenizer, the losses before and after, and the manifest."""
        save_tokenizer(self._materials.teacher.tokenizer, distilled.folder)
        summary = {
            "run": str(run),
            "row": json.loads(distilled.row.to_json(double_precision=15)),
            "relation_loss": {"before": distilled.before, "after": distilled.after},
            "measured": self._proxy.description,
        }
        text = json.dumps(summary, indent=2)
        write_atomically(self._folder / DISTIL_SUMMARY, lambda path: path.write_text(text))
        write_manifest(self._folder, "distil", (DISTIL_CONFIG, ENVIRONMENT, DISTIL_SUMMARY))
