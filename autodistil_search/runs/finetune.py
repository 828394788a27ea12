"""`finetune`: the fine-tuning of a model on a task with several seeds, in a folder that can be resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from autodistil_search.base.device import Device, choose_device
from autodistil_search.base.errors import InputError
from autodistil_search.base.executors import open_executor, open_team
from autodistil_search.base.files import clear_leftovers, read_json, readable, write_atomically, write_together
from autodistil_search.base.jobs import Job, Team
from autodistil_search.base.manifest import (
    ENVIRONMENT,
    FINETUNE_CONFIG,
    MANIFEST,
    NAMES_MANIFEST,
    RESULT,
    SUMMARY,
    lacking,
    model_files,
    read_sealed,
    reopen,
    verify,
    write_manifest,
    write_sealed,
)
from autodistil_search.base.pretrained import (
    fit_tokenizer,
    load_config,
    load_pretrained,
    load_tokenizer,
    model_sha256,
    quiet_transformers,
    write_tokenizer,
)
from autodistil_search.base.progress import Reporter
from autodistil_search.base.seeding import seeded
from autodistil_search.base.tracking import LOGS, Callback, Tracking, tracker_names
from autodistil_search.base.user_input import PACKAGED
from autodistil_search.runs.run_folder import (
    check_folder,
    computing_versions,
    exclusive,
    folder_id,
    mark_folder,
    model_folder,
    open_folder,
    versions,
)
from autodistil_search.settings.finetune import FinetuneConfig
from autodistil_search.tasks.fine_tuning import FinetuneOptions, Prepared, fine_tune, score_of_one_answer
from autodistil_search.tasks.labelled_data import Task, load_task
from autodistil_search.tasks.metrics import METRICS
from autodistil_search.teachers.families import FAMILIES, check_layers
from autodistil_search.teachers.loading import packaged_folder

if TYPE_CHECKING:
    from autodistil_search.base.executors import AnyExecutor

_RESULTS, _DIVERGED, _TRAINING = "results.csv", "diverged.json", "training"
_TRY_AGAIN = "delete it, and the same command tries this learning rate again"


@dataclass(frozen=True)
class FinetuneRun:
    """Result of a fine-tuning.

    Args:
        folder: Folder of the fine-tuning.
        task: Labelled task.
        results: Table with a row for each learning rate and seed: the metric on the rows to choose by, and all metrics
            on `dev`. A rate that diverged has no metrics.
        lr: Selected learning rate.
    """

    folder: Path
    task: Task
    results: pd.DataFrame
    lr: float

    @property
    def chosen(self) -> pd.DataFrame:
        """Return the rows of the selected learning rate, one for each seed."""
        return self.results[self.results["lr"] == self.lr].reset_index(drop=True)

    @property
    def model_folder(self) -> Path:
        """Return the folder of the model whose seed has the best metric on the rows to choose by."""
        chosen = self.chosen
        return self.folder / f"seed-{chosen['seed'].to_list()[int(chosen['chosen_by'].argmax())]:.0f}"

    def mean_and_spread(self, metric: str) -> tuple[float, float]:
        """Return mean and standard deviation (n - 1) of a metric on `dev` over the seeds; 0 for one seed."""
        values = self.chosen[metric]
        return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0

    @property
    def unlearnt_seeds(self) -> list[int]:
        """Return the seeds of the selected learning rate that are no better on `dev` than one answer for all rows."""
        chosen = self.chosen
        unlearnt = chosen[self.task.metrics[0]] <= self._score_of_one_answer
        return [int(seed) for seed in chosen.loc[unlearnt, "seed"]]

    @property
    def warning(self) -> str:
        """Return a sentence on the seeds that have learnt nothing; empty if there are none."""
        if not (seeds := self.unlearnt_seeds):
            return ""
        metric, named = METRICS[self.task.metrics[0]].label, ", ".join(map(str, seeds))
        return (
            f"no better than one answer for all rows of dev ({metric} {self._score_of_one_answer:.4f}): "
            f"{len(seeds)} of {len(self.chosen)} trainings, seed {named}; try another --lr or more --epochs"
        )

    @cached_property
    def _score_of_one_answer(self) -> float:
        return score_of_one_answer(self.task, np.array(self.task.dev.labels))

    def __repr__(self) -> str:
        count = len(self.chosen)
        words = []
        for metric in self.task.metrics:
            mean, spread = self.mean_and_spread(metric)
            words.append(f"{metric} {mean:.4f}" + (f" (standard deviation {spread:.4f})" if count > 1 else ""))
        return (
            f"fine-tuning {self.folder} on {self.task.name}: {', '.join(words)} on {len(self.task.dev):,} dev rows, "
            f"mean of {count} seeds at learning rate {self.lr:g}; model: {self.model_folder}"
            + (f"; {self.warning}" if self.warning else "")
        )


def finetune(
    config: FinetuneConfig,
    reporter: Reporter | None = None,
    executor: AnyExecutor | None = None,
    callback: Callback | None = None,
) -> FinetuneRun:
    """Fine-tune `config.model` on `config.task` into `config.folder`, or continue a stopped fine-tuning.

    The arguments are those of `autodistil_search.finetune`; without a reporter, nothing is shown.

    Raises:
        InputError: if an input cannot be used, or the folder holds another fine-tuning.
    """
    if executor is not None and (config.track or callback):
        raise InputError("metrics of workers are not tracked; allowed: an executor, or track and callback")
    reporter = reporter or Reporter()
    config = config.absolute()
    folder = config.folder
    check_folder(folder, FINETUNE_CONFIG, config.to_dict())
    tracking = Tracking(tuple(tracker_names(config.track)), callback, folder.name, config.to_dict())
    loaded = _LoadedFinetuning(config, reporter, tracking)
    with exclusive(folder), open_executor(config.executor, config.workers, reporter, executor) as workers:
        open_folder(folder, FINETUNE_CONFIG, FinetuneConfig, config.to_dict(), loaded.environment)
        with open_team(workers, loaded, reporter) as team:
            return loaded.train_all(team)


@dataclass(frozen=True)
class _Training:
    """Task of fine-tuning with a learning rate and a seed."""

    lr: float
    seed: int

    def __str__(self) -> str:
        return f"learning rate {self.lr:g} with seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class _FinetuningJob(Job):
    """Fine-tuning in a worker, which writes the models into the folder of the fine-tuning."""

    settings: Mapping[str, Any]

    def load(self) -> _LoadedFinetuning:
        """Load model, teacher and task; see `jobs.Job`."""
        return _LoadedFinetuning(FinetuneConfig(**self.settings), Reporter())


class _LoadedFinetuning:
    """A fine-tuning, with all inputs loaded and checked."""

    def __init__(self, config: FinetuneConfig, reporter: Reporter, tracking: Tracking | None = None) -> None:
        self._config, self._reporter, self._tracking = config, reporter, tracking or Tracking()
        self._device: Device = choose_device(config.device, config.precision)
        self._task = load_task(config.task, config.columns, config.label_column)
        for note in self._task.notes:
            reporter.say(note)
        self._source = model_source(config.model)
        first, tokenizer = self._load("model", config.model)
        self._prepared = Prepared(self._task, tokenizer, config.max_length, config.train_rows)
        self._teacher = self._load_teacher(tokenizer) if config.teacher is not None else None
        self._identity = {
            "model": model_sha256(first),
            "task": self._task.digest,
            "computed_in": f"{self._device.precision} on {self._device.type}",
            **({} if self._teacher is None else {"teacher": model_sha256(self._teacher)}),
        }

    @property
    def environment(self) -> dict[str, Any]:
        """Return the entries of `environment.json`."""
        return {"inputs": self._identity, "device": self._device.name, "precision": self._device.precision}

    def job(self) -> Job:
        """Return the job by which workers fine-tune as this process does."""
        mark_folder(self._config.folder)
        config = replace(self._config, executor=None, workers=None, out=str(self._config.folder.resolve()))
        return _FinetuningJob(conditions=self.conditions(), threads=torch.get_num_threads(), settings=asdict(config))

    def conditions(self) -> dict[str, str]:
        """Return everything on which the models depend; see `jobs.LoadedJob`."""
        return {
            **self._identity,
            **computing_versions(),
            "folder of the fine-tuning": folder_id(self._config.folder),
        }

    def _load(self, role: str, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load and check a classifier and its tokenizer.

        role: "model" or "teacher". name: folder, or id of the model hub.
        """
        what, source = f"{role} {name!r}", model_source(name)
        with quiet_transformers():
            tokenizer = load_tokenizer(what, source)
        model = load_classifier(what, source, self._task, 0, must_fit=role == "teacher")
        positions = _positions(model)
        with quiet_transformers():
            for note in fit_tokenizer(what, tokenizer, model, positions):
                self._reporter.say(note)
        if self._config.max_length > positions:
            raise InputError(f"--max-length {self._config.max_length}; {what} has positions for 4 to {positions}")
        return model, tokenizer

    def _load_teacher(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        name = str(self._config.teacher)
        teacher, teacher_tokenizer = self._load("teacher", name)
        if teacher_tokenizer.get_vocab() != tokenizer.get_vocab():
            raise InputError(f"teacher {name!r} has a different vocabulary from the model; allowed: the same tokens")
        return teacher

    def train_all(self, team: Team) -> FinetuneRun:
        """Train each learning rate with the first seed, then the best rate with the other seeds.

        If there are several learning rates, a rate that diverges is recorded without metrics and never selected.
        """
        config, folder = self._config, self._config.folder
        reopen(folder)
        rows = self._results([_Training(rate, 0) for rate in config.rates], team)
        learnt = [row for row in rows if "chosen_by" in row]
        if not learnt:
            raise FloatingPointError(f"every learning rate of --lr {config.lr} diverged; try lower ones")
        best = max(learnt, key=lambda row: row["chosen_by"])["lr"]
        rows += self._results([_Training(best, seed) for seed in range(1, config.seeds)], team)
        results = pd.DataFrame(rows)
        run = FinetuneRun(folder, self._task, results, best)
        self._take_models(folder, best)
        write_atomically(folder / _RESULTS, lambda path: results.to_csv(path, index=False))
        self._summarise(run)
        write_manifest(folder, "finetune", (FINETUNE_CONFIG, ENVIRONMENT, _RESULTS, SUMMARY))
        return run

    def _results(self, trainings: Sequence[_Training], team: Team) -> list[dict[str, float]]:
        """Return the results of trainings, and report the learning rates that diverged."""
        rows: list[dict[str, float]] = team.all_results(trainings, self._reporter, "fine-tuning", "models")
        for training, row in zip(trainings, rows, strict=True):
            if "chosen_by" not in row:
                record = self._config.folder / f"lr-{training.lr:g}-seed-0" / _DIVERGED
                self._reporter.warn(str(read_sealed(record, _TRY_AGAIN)["reason"]))
        return rows

    def run(self, task: _Training) -> dict[str, float]:
        """Return the result of a training; see `_result_of` and `_result_of_first_seed`."""
        folder = self._config.folder
        if task.seed == 0:
            return self._result_of_first_seed(folder, task.lr)
        return self._result_of(folder, task.lr, task.seed)

    def _options(self, rate: float, seed: int) -> FinetuneOptions:
        kept = {key: getattr(self._config, key) for key in ("epochs", "batch_size", "losses", "temperature")}
        return FinetuneOptions(**kept, lr=rate, seed=seed)

    def _result_of_first_seed(self, folder: Path, rate: float) -> dict[str, float]:
        """Return the result of a learning rate with the first seed: only rate and seed if it diverged."""
        record = folder / f"lr-{rate:g}-seed-0" / _DIVERGED
        row = {"lr": rate, "seed": 0.0}
        if _recorded_rate(record) == rate:
            return row
        try:
            return self._result_of(folder, rate, 0)
        except FloatingPointError as error:
            if len(self._config.rates) == 1:
                raise
            write_sealed(record, {"lr": rate, "reason": str(error)})
            shutil.rmtree(record.with_name(_TRAINING), ignore_errors=True)
            return row

    def _result_of(self, folder: Path, rate: float, seed: int) -> dict[str, float]:
        """Return the result of a learning rate and seed, trained now or read from its folder."""
        rate_folder = folder / f"lr-{rate:g}-seed-{seed}"
        for done in (folder / f"seed-{seed}", rate_folder):
            clear_leftovers(done)
            if (result := _finished_result(done)) is not None and result["lr"] == rate:
                return result
        options = self._options(rate, seed)
        model = load_classifier(f"model {self._config.model!r}", self._source, self._task, seed)
        title = f"{self._task.name}, lr {rate:g}, seed {seed}"
        ended = fine_tune(
            model, self._prepared, options, self._device, rate_folder / _TRAINING, self._reporter, title, self._teacher,
            self._identity, part=self._tracking.part(rate_folder.name, folder / LOGS / rate_folder.name),
        )  # fmt: skip
        row = {"lr": rate, "seed": seed, "chosen_by": ended.chosen_by, "epoch": ended.epoch, **ended.dev}
        self._save(rate_folder, model, row)
        return {key: float(value) for key, value in row.items()}

    def _save(self, folder: Path, model: PreTrainedModel, row: Mapping[str, float]) -> None:
        """Write the model and its tokenizer, then its result, which marks the folder as complete."""
        model.config.label2id = {str(label): int(index) for index, label in (model.config.id2label or {}).items()}

        def save(new: Path) -> None:
            with quiet_transformers():
                model.save_pretrained(new)
            write_tokenizer(self._prepared.tokenizer, new)

        write_together(folder, "model.safetensors", save)
        write_atomically(folder / RESULT, lambda path: path.write_text(json.dumps(row)))
        write_manifest(folder, "classifier", model_files(folder))
        shutil.rmtree(folder / _TRAINING, ignore_errors=True)

    def _take_models(self, folder: Path, best: float) -> None:
        """Rename the model folders of the selected learning rate by their seeds."""
        for rate_folder in folder.glob("lr-*-seed-*"):
            rate, _, seed = rate_folder.name.removeprefix("lr-").partition("-seed-")
            if float(rate) == float(f"{best:g}") and not (folder / f"seed-{seed}").exists():
                rate_folder.rename(folder / f"seed-{seed}")

    def _summarise(self, run: FinetuneRun) -> None:
        task, prepared = self._task, self._prepared
        means = {metric: run.mean_and_spread(metric) for metric in task.metrics}
        summary = {
            "task": task.name,
            "source": task.source,
            "metrics": {name: {"mean": mean, "standard_deviation": spread} for name, (mean, spread) in means.items()},
            "rows": {"train": len(prepared.train), "choose": len(prepared.choose), "dev": len(prepared.dev)},
            "lr": run.lr,
            "unlearnt_seeds": run.unlearnt_seeds,
            "diverged": run.results.loc[run.results["chosen_by"].isna(), "lr"].to_list(),
            "seeds": self._config.seeds,
            "options": asdict(self._options(run.lr, 0)),
            "model": run.model_folder.name,
            "versions": versions(),
        }
        write_atomically(run.folder / SUMMARY, lambda path: path.write_text(json.dumps(summary, indent=2)))


def _recorded_rate(record: Path) -> float | None:
    """Return the learning rate that `record` marks as diverged, or None if the file does not exist.

    Raises:
        InputError: if the file is damaged.
    """
    if not record.exists():
        return None
    with readable(record, _TRY_AGAIN):
        return float(read_sealed(record, _TRY_AGAIN)["lr"])


def _finished_result(folder: Path) -> dict[str, float] | None:
    """Return the result of the fine-tuned model in `folder`, or None if it is not finished.

    Raises:
        InputError: if a file of the model is damaged or missing.
    """
    if lacking(folder) == [MANIFEST] and (folder / _TRAINING).is_dir():
        return None  # killed before its manifest was written: training continues from its last checkpoint
    checked, path = verify(folder), folder / RESULT
    if not path.is_file():
        return None
    if not checked and not (folder / "model.safetensors").is_file():
        raise InputError(
            f"{folder / 'model.safetensors'} is missing; delete its folder and repeat the finetune, which trains the "
            "model again"
        )
    with readable(path):
        return {key: float(value) for key, value in read_json(path).items() if key != NAMES_MANIFEST}


def model_source(name: str) -> str:
    """Return the location of a model: a folder (see `model_folder`), or the name itself if it is a hub id.

    Raises:
        InputError: if a file of the folder differs from its manifest.
    """
    if name == PACKAGED:
        return str(packaged_folder())
    if not Path(name).is_dir():
        return name
    folder = model_folder(Path(name))
    verify(folder)
    return str(folder)


def load_classifier(what: str, source: str, task: Task, seed: int, must_fit: bool = False) -> PreTrainedModel:
    """Return the encoder of a folder or hub id with a head for `task`.

    An existing head is kept if it has the labels of the task, in any order. Without a head, a random one is added.

    Args:
        what: Model in words, such as "model 'name'".
        source: Folder or hub id.
        task: Labelled task, whose labels the model gets.
        seed: Seed of a random head.
        must_fit: If True, refuse a model without a head for the task.

    Raises:
        InputError: if the model cannot be loaded, lacks weights of the encoder, or has a head with other labels.
    """
    with quiet_transformers(), seeded(seed):
        config = load_config(what, source)
        before, head = config.id2label, config.num_labels
        config.num_labels = task.outputs
        if task.labels:
            config.id2label = dict(enumerate(task.labels))
        model, loading_info = load_pretrained(what, AutoModelForSequenceClassification, source, config)
    lacking = {*loading_info["missing_keys"], *(key for key, *_ in loading_info["mismatched_keys"])}
    encoder = f"{model.base_model_prefix}."
    untrained = sorted(key for key in lacking if key.startswith(encoder) and not key.startswith(f"{encoder}pooler."))
    if untrained:
        raise InputError(
            f"{what} lacks {len(untrained)} weights of its encoder, such as {untrained[0]!r}; allowed: folders with "
            "all of them"
        )
    if config.model_type in FAMILIES:
        check_layers(what, config, loading_info["unexpected_keys"])
    has_head = not any(not key.startswith(encoder) for key in lacking)
    if must_fit and not has_head:
        raise InputError(f"{what} has no head for task {task.name!r}; allowed: a model fine-tuned on it")
    if has_head and head == len(task.labels):
        _reorder_head(model, task.order_of(what, before))
    return model


def _reorder_head(model: PreTrainedModel, order: Sequence[int]) -> None:
    """Permute the outputs of a classifier: output i becomes the former output `order[i]`."""
    if list(order) == sorted(order):
        return
    encoder = f"{model.base_model_prefix}."
    *_, last = (
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(encoder) and module.out_features == len(order)
    )
    with torch.no_grad():
        for tensor in (last.weight, last.bias):
            if tensor is not None:
                tensor.copy_(tensor[list(order)])


def _positions(model: PreTrainedModel) -> int:
    """Return the number of tokens for which a model has positions."""
    config: PreTrainedConfig = model.config
    most = int(config.max_position_embeddings)
    family = FAMILIES.get(config.model_type)
    return most - int(config.pad_token_id) - 1 if family is not None and family.skips_padding else most
