"""`finetune`: a model on a task, several times over, into a folder that can be stopped and continued."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from autodistil_search.base.device import Device, choose_device
from autodistil_search.base.errors import InputError
from autodistil_search.base.files import clear_leftovers, read_json, readable, write_atomically, write_together
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
)
from autodistil_search.base.progress import Reporter
from autodistil_search.base.seeding import seeded
from autodistil_search.base.user_input import PACKAGED
from autodistil_search.runs.run_folder import check_folder, exclusive, model_folder, open_folder, versions
from autodistil_search.settings.finetune import FinetuneConfig
from autodistil_search.tasks.fine_tuning import FinetuneOptions, Prepared, fine_tune
from autodistil_search.tasks.labelled_data import Task, load_task
from autodistil_search.teachers.families import FAMILIES, check_layers
from autodistil_search.teachers.loading import packaged_folder

_RESULTS, _DIVERGED, _TRAINING = "results.csv", "diverged.json", "training"


@dataclass(frozen=True)
class FinetuneRun:
    """What a fine-tuning left.

    Args:
        folder: Where it lies.
        task: What it was on.
        results: A row for each learning rate and seed: the metric it was chosen by, and all metrics on `dev`. A rate
            that diverged has none of them.
        lr: The learning rate that was chosen.
    """

    folder: Path
    task: Task
    results: pd.DataFrame
    lr: float

    @property
    def chosen(self) -> pd.DataFrame:
        """The rows of the chosen learning rate, one for each seed."""
        return self.results[self.results["lr"] == self.lr].reset_index(drop=True)

    @property
    def model_folder(self) -> Path:
        """The model of the seed that did best on the rows to choose by."""
        chosen = self.chosen
        return self.folder / f"seed-{chosen['seed'].to_list()[int(chosen['chosen_by'].argmax())]:.0f}"

    def mean_and_spread(self, metric: str) -> tuple[float, float]:
        """Mean and standard deviation (n - 1) of a metric on `dev` over the seeds; no spread of one seed."""
        values = self.chosen[metric]
        return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def finetune(config: FinetuneConfig, reporter: Reporter | None = None) -> FinetuneRun:
    """Fine-tune `config.model` on `config.task` into `config.folder`, or go on where it was stopped.

    Raises:
        InputError: for input that cannot be used, or a folder that holds another fine-tuning.
    """
    reporter = reporter or Reporter()
    config = config.absolute()
    folder = config.folder
    check_folder(folder, FINETUNE_CONFIG, config.to_dict())
    job = _Job(config, reporter)
    with exclusive(folder):
        open_folder(folder, FINETUNE_CONFIG, config.to_dict(), job.environment)
        return job.run(folder)


class _Job:
    """All that a fine-tuning needs, loaded and checked."""

    def __init__(self, config: FinetuneConfig, reporter: Reporter) -> None:
        self._config, self._reporter = config, reporter
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
        """What `environment.json` says."""
        return {"inputs": self._identity, "device": self._device.name, "precision": self._device.precision}

    def _load(self, role: str, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The classifier of that name and its tokenizer, checked; role: "model" or "teacher"."""
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
        teacher, own = self._load("teacher", name)
        if own.get_vocab() != tokenizer.get_vocab():
            raise InputError(f"teacher {name!r} has another vocabulary than the model; allowed: the same tokens")
        return teacher

    def run(self, folder: Path) -> FinetuneRun:
        """Each learning rate with the first seed, then the best one with the others.

        Of several learning rates one that diverges is recorded without figures, and never chosen.
        """
        reopen(folder)
        rows = [self._first(folder, rate) for rate in self._config.rates]
        learnt = [row for row in rows if "chosen_by" in row]
        if not learnt:
            raise FloatingPointError(f"every learning rate of --lr {self._config.lr} diverged; try lower ones")
        best = max(learnt, key=lambda row: row["chosen_by"])["lr"]
        rows += [self._one(folder, best, seed) for seed in range(1, self._config.seeds)]
        results = pd.DataFrame(rows)
        found = FinetuneRun(folder, self._task, results, best)
        self._take_models(folder, best)
        write_atomically(folder / _RESULTS, lambda path: results.to_csv(path, index=False))
        self._summarise(found)
        write_manifest(folder, "finetune", (FINETUNE_CONFIG, ENVIRONMENT, _RESULTS, SUMMARY))
        return found

    def _options(self, rate: float, seed: int) -> FinetuneOptions:
        kept = {key: getattr(self._config, key) for key in ("epochs", "batch_size", "losses", "temperature")}
        return FinetuneOptions(**kept, lr=rate, seed=seed)

    def _first(self, folder: Path, rate: float) -> dict[str, float]:
        """The result of one of the learning rates with the first seed: both alone, if it diverged."""
        record = folder / f"lr-{rate:g}-seed-0" / _DIVERGED
        row = {"lr": rate, "seed": 0.0}
        if _recorded_rate(record) == rate:
            return row
        try:
            return self._one(folder, rate, 0)
        except FloatingPointError as error:
            if len(self._config.rates) == 1:
                raise
            self._reporter.say(str(error))
            write_sealed(record, {"lr": rate, "reason": str(error)})
            shutil.rmtree(record.with_name(_TRAINING), ignore_errors=True)
            return row

    def _one(self, folder: Path, rate: float, seed: int) -> dict[str, float]:
        """The result of one learning rate and seed: made now, or read from its folder."""
        own = folder / f"lr-{rate:g}-seed-{seed}"
        for done in (folder / f"seed-{seed}", own):
            clear_leftovers(done)
            if (found := _finished(done)) is not None and found["lr"] == rate:
                return found
        options = self._options(rate, seed)
        model = load_classifier(f"model {self._config.model!r}", self._source, self._task, seed)
        title = f"{self._task.name}, lr {rate:g}, seed {seed}"
        ended = fine_tune(
            model, self._prepared, options, self._device, own / _TRAINING, self._reporter, title, self._teacher,
            self._identity,
        )  # fmt: skip
        row = {"lr": rate, "seed": seed, "chosen_by": ended.chosen_by, "epoch": ended.epoch, **ended.dev}
        self._save(own, model, row)
        return {key: float(value) for key, value in row.items()}

    def _save(self, folder: Path, model: PreTrainedModel, row: Mapping[str, float]) -> None:
        """The model and its tokenizer, then its result, by which it is known to be whole."""
        model.config.label2id = {str(label): int(index) for index, label in (model.config.id2label or {}).items()}

        def save(new: Path) -> None:
            with quiet_transformers():
                model.save_pretrained(new)
            self._prepared.tokenizer.save_pretrained(new)

        write_together(folder, "model.safetensors", save)
        write_atomically(folder / RESULT, lambda path: path.write_text(json.dumps(row)))
        write_manifest(folder, "classifier", model_files(folder))
        shutil.rmtree(folder / _TRAINING, ignore_errors=True)

    def _take_models(self, folder: Path, best: float) -> None:
        """Keep the models of the chosen learning rate, by their seeds."""
        for own in folder.glob("lr-*-seed-*"):
            rate, _, seed = own.name.removeprefix("lr-").partition("-seed-")
            if float(rate) == float(f"{best:g}") and not (folder / f"seed-{seed}").exists():
                own.rename(folder / f"seed-{seed}")

    def _summarise(self, found: FinetuneRun) -> None:
        task, prepared = self._task, self._prepared
        means = {metric: found.mean_and_spread(metric) for metric in task.metrics}
        summary = {
            "task": task.name,
            "source": task.source,
            "metrics": {name: {"mean": mean, "standard_deviation": spread} for name, (mean, spread) in means.items()},
            "rows": {"train": len(prepared.train), "choose": len(prepared.choose), "dev": len(prepared.dev)},
            "lr": found.lr,
            "diverged": found.results.loc[found.results["chosen_by"].isna(), "lr"].to_list(),
            "seeds": self._config.seeds,
            "options": asdict(self._options(found.lr, 0)),
            "model": found.model_folder.name,
            "versions": versions(),
        }
        write_atomically(found.folder / SUMMARY, lambda path: path.write_text(json.dumps(summary, indent=2)))


def _recorded_rate(record: Path) -> float | None:
    """Return the learning rate of which a file says that it diverged; None if there is no such file.

    Raises:
        InputError: if it is not as it was written.
    """
    if not record.exists():
        return None
    remedy = "delete it, and the same command tries this learning rate again"
    with readable(record, remedy):
        return float(read_sealed(record, remedy)["lr"])


def _finished(folder: Path) -> dict[str, float] | None:
    """The result of a fine-tuned model; None if `folder` holds none that is finished.

    Raises:
        InputError: if a file of it is not as it was written.
    """
    if lacking(folder) == [MANIFEST] and (folder / _TRAINING).is_dir():
        return None  # killed before its manifest was written: training goes on from its end
    checked, path = verify(folder), folder / RESULT
    if not path.is_file():
        return None
    if not checked and not (folder / "model.safetensors").is_file():
        raise InputError(
            f"{folder / 'model.safetensors'} is missing; delete its folder and repeat the finetune, which trains it "
            "again"
        )
    with readable(path):
        return {key: float(value) for key, value in read_json(path).items() if key != NAMES_MANIFEST}


def model_source(name: str) -> str:
    """Return where the model of that name lies: a folder (see `model_folder`), or a hub id as it is.

    Raises:
        InputError: if a file of a folder of ours is not as it was written.
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

    A head of the folder is kept if it has the task's labels, in whichever order; without one it starts at random.

    Args:
        what: The model in words, such as "model 'name'".
        source: Folder or hub id.
        task: Its labels become the model's.
        seed: Of a head that starts at random.
        must_fit: Refuse a model without a head for the task.

    Raises:
        InputError: if it cannot be loaded, lacks weights of the encoder, or its head is of other labels.
    """
    with quiet_transformers(), seeded(seed):
        config = load_config(what, source)
        before, head = config.id2label, config.num_labels
        config.num_labels = task.outputs
        if task.labels:
            config.id2label = dict(enumerate(task.labels))
        model, told = load_pretrained(what, AutoModelForSequenceClassification, source, config)
    lacking = {*told["missing_keys"], *(key for key, *_ in told["mismatched_keys"])}
    encoder = f"{model.base_model_prefix}."
    untrained = sorted(key for key in lacking if key.startswith(encoder) and not key.startswith(f"{encoder}pooler."))
    if untrained:
        raise InputError(
            f"{what} lacks {len(untrained)} weights of its encoder, {untrained[0]!r} first; allowed: folders with all "
            "of them"
        )
    if config.model_type in FAMILIES:
        check_layers(what, config, told["unexpected_keys"])
    has_head = not any(not key.startswith(encoder) for key in lacking)
    if must_fit and not has_head:
        raise InputError(f"{what} has no head for task {task.name!r}; allowed: a model fine-tuned on it")
    if has_head and head == len(task.labels):
        _reorder_head(model, task.order_of(what, before))
    return model


def _reorder_head(model: PreTrainedModel, order: Sequence[int]) -> None:
    """Let output i of a classifier be the one that was output `order[i]`."""
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
    """How many tokens a model has positions for."""
    config: PreTrainedConfig = model.config
    most = int(config.max_position_embeddings)
    family = FAMILIES.get(config.model_type)
    return most - int(config.pad_token_id) - 1 if family is not None and family.skips_padding else most
