"""`finetune`: a model on a task, several times over, into a folder that can be stopped and continued."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from autodistil_search.device import Device, choose_device
from autodistil_search.errors import InputError
from autodistil_search.families import FAMILIES
from autodistil_search.files import clear_leftovers, read_json, readable, write_atomically, write_together
from autodistil_search.given import PACKAGED
from autodistil_search.manifest import (
    ENVIRONMENT,
    FINETUNE_CONFIG,
    RESULT,
    SUMMARY,
    model_files,
    reopen,
    verify,
    write_manifest,
)
from autodistil_search.model import quiet_transformers
from autodistil_search.progress import Reporter
from autodistil_search.runfolder import check_folder, exclusive, model_folder, open_folder, versions
from autodistil_search.schedule import seeded
from autodistil_search.stepconfig import FinetuneConfig
from autodistil_search.tasks.data import Task, load_task
from autodistil_search.tasks.finetune import FinetuneOptions, Prepared, finetune
from autodistil_search.teacher import model_sha256, packaged_folder

_RESULTS, _DIVERGED = "results.csv", "diverged.json"


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


def run_finetuning(config: FinetuneConfig, reporter: Reporter | None = None) -> FinetuneRun:
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
        self._source = model_source(config.model)
        tokenizer = load_tokenizer(config.model, self._source)
        self._prepared = Prepared(self._task, tokenizer, config.max_length, config.train_rows)
        self._teacher = self._load_teacher(tokenizer) if config.teacher is not None else None
        first = load_classifier(config.model, self._source, self._task, 0)
        _check_positions(config, first)
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

    def _load_teacher(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        name = str(self._config.teacher)
        source = model_source(name)
        if load_tokenizer(name, source).get_vocab() != tokenizer.get_vocab():
            raise InputError(f"teacher {name!r} has another vocabulary than the model; allowed: the same tokens")
        teacher = load_classifier(name, source, self._task, 0, must_fit=True)
        with quiet_transformers():
            named = AutoConfig.from_pretrained(source, trust_remote_code=False).id2label
        self._task.check_labels(f"teacher {name!r}", named)
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
        if record.is_file() and read_json(record)["lr"] == rate:
            return row
        try:
            return self._one(folder, rate, 0)
        except FloatingPointError as error:
            if len(self._config.rates) == 1:
                raise
            self._reporter.say(str(error))
            text = json.dumps({"lr": rate, "reason": str(error)})
            write_atomically(record, lambda path: path.write_text(text))
            shutil.rmtree(record.with_name("training"), ignore_errors=True)
            return row

    def _one(self, folder: Path, rate: float, seed: int) -> dict[str, float]:
        """The result of one learning rate and seed: made now, or read from its folder."""
        own = folder / f"lr-{rate:g}-seed-{seed}"
        for done in (folder / f"seed-{seed}", own):
            if (found := _finished(done)) is not None and found["lr"] == rate:
                return found
        clear_leftovers(own)
        options = self._options(rate, seed)
        model = load_classifier(self._config.model, self._source, self._task, seed)
        title = f"{self._task.name}, lr {rate:g}, seed {seed}"
        ended = finetune(
            model, self._prepared, options, self._device, own / "training", self._reporter, title, self._teacher,
            self._identity,
        )  # fmt: skip
        row = {"lr": rate, "seed": seed, "chosen_by": ended.chosen_by, "epoch": ended.epoch, **ended.dev}
        self._save(own, model, row)
        return {key: float(value) for key, value in row.items()}

    def _save(self, folder: Path, model: PreTrainedModel, row: Mapping[str, float]) -> None:
        """The model and its tokenizer, then its result, by which it is known to be whole."""

        def save(new: Path) -> None:
            with quiet_transformers():
                model.save_pretrained(new)
            self._prepared.tokenizer.save_pretrained(new)

        write_together(folder, "model.safetensors", save)
        write_atomically(folder / RESULT, lambda path: path.write_text(json.dumps(row)))
        write_manifest(folder, "classifier", model_files(folder))
        shutil.rmtree(folder / "training", ignore_errors=True)

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


def _finished(folder: Path) -> dict[str, float] | None:
    """The result of a fine-tuned model; None if `folder` holds none that is finished.

    Raises:
        InputError: if a file of it is not as it was written.
    """
    checked, path = verify(folder), folder / RESULT
    if not path.is_file():
        return None
    if not checked and not (folder / "model.safetensors").is_file():
        raise InputError(
            f"{folder / 'model.safetensors'} is missing; delete its folder and repeat the finetune, which trains it "
            "again"
        )
    with readable(path):
        return {key: float(value) for key, value in read_json(path).items()}


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


def load_tokenizer(name: str, source: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model.

    Raises:
        InputError: if there is none.
    """
    if Path(source).is_dir() and not any(Path(source).glob("tokenizer*")) and not Path(source, "vocab.txt").is_file():
        raise InputError(f"model {name!r} has no tokenizer beside it; allowed: a folder with its tokenizer's files")
    try:
        with quiet_transformers():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # whatever the broken part of a folder leads to
        raise _unloadable(name, error) from None
    return tokenizer


def load_classifier(name: str, source: str, task: Task, seed: int, must_fit: bool = False) -> PreTrainedModel:
    """The encoder of that folder or id with a head for `task`, which starts at random (`seed`) if it has none.

    must_fit: refuse a model without such a head.

    Raises:
        InputError: if it cannot be loaded, lacks weights of the encoder, or has no head though it must.
    """
    kinds = {} if not task.labels else {"id2label": dict(enumerate(task.labels))}
    try:
        with quiet_transformers(), seeded(seed):
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                source,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                attn_implementation=None,  # torch's own, whatever the folder asks for: no kernel is fetched and run
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                num_labels=task.outputs,
                **kinds,
            )
    except Exception as error:
        raise _unloadable(name, error) from None
    lacking = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}
    encoder = f"{model.base_model_prefix}."
    untrained = sorted(key for key in lacking if key.startswith(encoder) and not key.startswith(f"{encoder}pooler."))
    if untrained:
        raise InputError(
            f"model {name!r} lacks {len(untrained)} weights of its encoder, {untrained[0]!r} first; allowed: folders "
            "with all of them"
        )
    if must_fit and any(not key.startswith(encoder) for key in lacking):
        raise InputError(f"teacher {name!r} has no head for task {task.name!r}; allowed: a model fine-tuned on it")
    found: PreTrainedModel = model
    return found


def _unloadable(name: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:300]
    return InputError(
        f"model {name!r} cannot be loaded: {reason}; allowed: the hub id or folder of an encoder with safetensors "
        f"weights and a tokenizer, or {PACKAGED!r}"
    )


def _check_positions(config: FinetuneConfig, model: PreTrainedModel) -> None:
    family = FAMILIES.get(model.config.model_type)
    most = int(model.config.max_position_embeddings)
    if family is not None and family.skips_padding:
        most -= int(model.config.pad_token_id) + 1
    if config.max_length > most:
        raise InputError(f"--max-length {config.max_length}; the model has positions for 4 to {most}")
