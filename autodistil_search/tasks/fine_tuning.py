"""Fine-tuning on a task with its labels, with a fine-tuned teacher, or with both.

The best epoch is chosen on a part of the training rows; the `dev` rows of the task are used once, at the end. Seed and
step number determine each step, so a killed training continues exactly as without interruption.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from autodistil_search.base.device import Device, send
from autodistil_search.base.files import file_sha256, write_atomically
from autodistil_search.base.pretrained import ends, matched
from autodistil_search.base.progress import Bar, Reporter
from autodistil_search.base.seeding import seeded
from autodistil_search.base.tracking import Part, Track
from autodistil_search.base.weighted_names import parse_terms
from autodistil_search.distillation.checkpoints import Checkpoints
from autodistil_search.distillation.layer_losses import LAYER_TERMS, LayerTransfer
from autodistil_search.distillation.learning_rate import MAX_GRADIENT_NORM, WEIGHT_DECAY, set_learning_rate
from autodistil_search.superlm.model_folder import check_weights
from autodistil_search.tasks.labelled_data import Rows, Task
from autodistil_search.tasks.metrics import METRICS, Array

_ROWS_AT_ONCE = 64
"""Rows of a batch in evaluation."""
_BATCHES_SORTED = 32
"""Batches among which rows are sorted by length, for less padding while the order stays random."""
_BEST = "best-{}.safetensors"
"""File of the best weights so far, by number of the epoch; a checkpoint names the best file at its time."""


@dataclass(frozen=True)
class FinetuneOptions:
    """Hyperparameters of fine-tuning, which determine the weights together with model, rows and teacher.

    Attributes:
        epochs: Number of epochs.
        batch_size: Rows of a batch.
        lr: Peak learning rate.
        seed: Seed of the order of rows and of dropout.
        losses: Loss terms and their weights; see `weighted_names.parse_terms`.
        temperature: Divisor of the logits of student and teacher in the term `logits`.
    """

    epochs: int = 3
    batch_size: int = 32
    lr: float = 1e-4
    seed: int = 0
    losses: str = "labels"
    temperature: float = 1.0


@dataclass(frozen=True)
class Finetuned:
    """Result of a fine-tuning.

    Attributes:
        epochs: Metric of each epoch on the rows to choose by.
        dev: All metrics on the `dev` rows; empty if they were not measured.
    """

    epochs: Sequence[float]
    dev: Mapping[str, float]

    @property
    def chosen_by(self) -> float:
        """Metric of the best epoch on the rows to choose by."""
        return max(self.epochs)

    @property
    def epoch(self) -> int:
        """Number of the best epoch, from 1; the first of equals."""
        return 1 + self.epochs.index(self.chosen_by)


class Encoded:
    """Rows of a task as token ids, with their batches."""

    def __init__(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.labels = np.array(rows.labels)
        self._tokenizer = tokenizer
        second = None if rows.second is None else list(rows.second)
        ids = tokenizer(list(rows.first), second, truncation=True, max_length=max_length, return_attention_mask=True)
        self._columns: dict[str, list[list[int]]] = dict(ids)
        _fill_empty(self._columns, tokenizer)
        self._lengths = [len(ids) for ids in self._columns["input_ids"]]

    def __len__(self) -> int:
        return len(self._lengths)

    def batch(self, indices: Sequence[int], device: str) -> tuple[dict[str, Tensor], Tensor]:
        """Return the inputs `(B, T)` of the given rows, padded to the longest, and their labels `(B,)`."""
        columns = {name: [column[i] for i in indices] for name, column in self._columns.items()}
        inputs = self._tokenizer.pad(columns, return_tensors="pt")
        tensors = {name: send(cast(Tensor, tensor), device) for name, tensor in inputs.items()}
        return tensors, send(torch.tensor(self.labels[list(indices)], dtype=torch.float32), device)

    def shuffled(self, size: int, seed: str) -> list[list[int]]:
        """Return the batches of an epoch as indices: all rows once, in an order determined by `seed`."""
        rng, order = random.Random(seed), list(range(len(self)))
        rng.shuffle(order)
        together = size * _BATCHES_SORTED
        batches = []
        for start in range(0, len(order), together):
            by_length = sorted(order[start : start + together], key=self._lengths.__getitem__)
            batches += [by_length[i : i + size] for i in range(0, len(by_length), size)]
        rng.shuffle(batches)
        return batches

    def by_length(self) -> list[list[int]]:
        """Return batches of indices sorted by length, for little padding: all rows once."""
        order = sorted(range(len(self)), key=self._lengths.__getitem__)
        return [order[i : i + _ROWS_AT_ONCE] for i in range(0, len(order), _ROWS_AT_ONCE)]


def _fill_empty(columns: dict[str, list[list[int]]], tokenizer: PreTrainedTokenizerBase) -> None:
    """Give rows without a token the two that begin and end a text, for tokenizers that add none."""
    for row, ids in enumerate(columns["input_ids"]):
        if not ids:
            filled = {"input_ids": [*ends("the model", tokenizer)], "attention_mask": [1, 1]}
            for name, column in columns.items():
                column[row] = filled.get(name, [0, 0])


@dataclass(frozen=True)
class Prepared:
    """Task that is encoded with one tokenizer, for any number of models.

    Attributes:
        task: The task.
        tokenizer: Tokenizer of the models.
        max_length: Tokens to which rows are truncated.
        most: Largest number of training rows; None for all.
    """

    task: Task
    tokenizer: PreTrainedTokenizerBase
    max_length: int = 128
    most: int | None = None

    @cached_property
    def _parts(self) -> tuple[Encoded, Encoded]:
        train, choose = self.task.split(self.most)
        return self._encoded(train), self._encoded(choose)

    @property
    def train(self) -> Encoded:
        """Rows to train on."""
        return self._parts[0]

    @property
    def choose(self) -> Encoded:
        """Rows to choose by."""
        return self._parts[1]

    @cached_property
    def dev(self) -> Encoded:
        """Rows for the reported scores."""
        return self._encoded(self.task.dev)

    def _encoded(self, rows: Rows) -> Encoded:
        return Encoded(rows, self.tokenizer, self.max_length)


@torch.no_grad()
def predict(model: Callable[..., Any], rows: Encoded, device: Device) -> Array:
    """Return the outputs of a classifier for all rows, `(n, outputs)`.

    Args:
        model: Module, or other function that takes inputs by name and returns an object with `logits`.
        rows: Encoded rows.
        device: Device and precision to run on.
    """
    outputs: list[tuple[int, Array]] = []
    if isinstance(model, nn.Module):
        model.eval()
    for indices in rows.by_length():
        inputs, _ = rows.batch(indices, device.name)
        with device.autocast():
            logits = model(**matched(model, inputs)).logits
        outputs += zip(indices, logits.cpu().double().numpy(), strict=True)
    return np.stack([output for _, output in sorted(outputs, key=lambda row: row[0])])


def scores(task: Task, labels: Array, outputs: Array) -> dict[str, float]:
    """Return every metric of `task`, by name, for outputs `(n, outputs)` and labels `(n,)`."""
    predicted = outputs.argmax(-1).astype(float) if task.labels else outputs[:, 0]
    return {name: METRICS[name].compute(labels, predicted) for name in task.metrics}


def score_of_one_answer(task: Task, labels: Array) -> float:
    """Return the first metric of `task` for the best model that gives all rows the same answer, with labels `(n,)`."""
    compute = METRICS[task.metrics[0]].compute
    return max(compute(labels, np.full(len(labels), float(answer))) for answer in range(task.outputs))


def fine_tune(
    model: PreTrainedModel,
    prepared: Prepared,
    options: FinetuneOptions,
    device: Device,
    folder: Path | None = None,
    reporter: Reporter | None = None,
    title: str = "fine-tuning",
    teacher: PreTrainedModel | None = None,
    identity: Mapping[str, str] | None = None,
    report: bool = True,
    part: Part | None = None,
) -> Finetuned:
    """Train a classifier in place, and restore its weights after the best epoch.

    Args:
        model: Classifier with as many outputs as the task.
        prepared: Task that is encoded with the tokenizer of the model.
        options: Hyperparameters.
        device: Device and precision to run on.
        folder: Folder of the checkpoints, from which a killed training continues; None for no checkpoints.
        reporter: Reporter of progress and messages.
        title: Title of the progress bar.
        teacher: Classifier for the same task, needed if `options.losses` names more than `labels`.
        identity: Other settings that determine the weights, for checkpoints.
        report: True to measure the `dev` rows as well.
        part: Part of the command whose trackers get loss and metrics; None for no trackers.

    Raises:
        InputError: if the checkpoints in `folder` were made with other options.
        FloatingPointError: if the loss or the weights are not finite; the message names learning rate, seed and epoch.
    """
    device.place(model)
    if teacher is not None:
        device.place(teacher)
        teacher.eval().requires_grad_(False)
    learner = _Learner(model, teacher, prepared.task, options)
    device.place(learner)
    run = _Run(learner, prepared, options, device, folder, dict(identity or {}), part)
    with (reporter or Reporter()).bar(title, "steps", run.steps) as bar:
        try:
            run.train(bar)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{title} diverged in epoch {len(run.scores) + 1}, at learning rate {options.lr:g} with seed "
                f"{options.seed}: {error}; try a lower --lr"
            ) from None
    model.load_state_dict(run.best)
    model.eval()
    dev = scores(prepared.task, prepared.dev.labels, predict(model, prepared.dev, device)) if report else {}
    return Finetuned(run.scores, dev)


class _Learner(nn.Module):
    """Classifier with the linear maps through which its layers are compared with those of a teacher."""

    def __init__(
        self, student: PreTrainedModel, teacher: PreTrainedModel | None, task: Task, options: FinetuneOptions
    ) -> None:
        super().__init__()
        self.student, self._task, self._options = student, task, options
        self._weights = parse_terms(options.losses)
        self._teacher = [teacher]  # a list keeps the teacher out of the trained and saved modules
        self._by_layer = tuple(name for name in self._weights if name in LAYER_TERMS)
        self.transfer = None
        if self._by_layer:
            assert teacher is not None
            with seeded(options.seed):
                self.transfer = LayerTransfer(_encoder(student), _encoder(teacher))

    def loss(self, inputs: Mapping[str, Tensor], labels: Tensor, device: Device) -> Tensor:
        """Return the weighted sum of the loss terms of a batch."""
        (teacher,) = self._teacher
        with ExitStack() as watching, device.autocast():
            seen = watching.enter_context(self.transfer.watching()) if self.transfer is not None else None
            logits = self.student(**matched(self.student, inputs)).logits
            teacher_logits = None
            if teacher is not None:
                with torch.no_grad():
                    teacher_logits = teacher(**matched(teacher, inputs)).logits.float()
            terms = {"labels": self._label_loss(logits.float(), labels)}
            if teacher_logits is not None:
                terms["logits"] = self._logit_loss(logits.float(), teacher_logits)
            if self.transfer is not None and seen is not None:
                layer_losses = self.transfer(*seen, inputs["attention_mask"], self._by_layer)
                terms |= dict(zip(self._by_layer, layer_losses, strict=True))
        return torch.stack([weight * terms[name] for name, weight in self._weights.items()]).sum()

    def _label_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self._task.labels:
            return F.cross_entropy(logits, labels.long())
        return F.mse_loss(logits[:, 0], labels)

    def _logit_loss(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the soft cross-entropy (Hinton et al., arXiv 1503.02531), or in regression the squared difference."""
        if not self._task.labels:
            return F.mse_loss(logits, teacher_logits)
        temperature = self._options.temperature
        return temperature**2 * F.cross_entropy(logits / temperature, (teacher_logits / temperature).softmax(-1))


def _encoder(classifier: PreTrainedModel) -> PreTrainedModel:
    return cast(PreTrainedModel, classifier.base_model)


@dataclass
class _Run:
    """State of a fine-tuning."""

    learner: _Learner
    prepared: Prepared
    options: FinetuneOptions
    device: Device
    folder: Path | None
    identity: Mapping[str, str]
    part: Part | None = None
    scores: list[float] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._optimizer = torch.optim.AdamW(
            self.learner.parameters(), lr=self.options.lr, weight_decay=WEIGHT_DECAY, fused=True
        )
        self._scaler = self.device.scaler()
        self._steps_per_epoch = math.ceil(len(self.prepared.train) / self.options.batch_size)
        self._checkpoints = None
        self._best_file: dict[str, str] = {}
        self._saved: list[str] = []  # files of best weights that the kept checkpoints name
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            settings: dict[str, Any] = {**self.identity, **asdict(self.options)}
            self._checkpoints = Checkpoints(self.folder, self.learner, self._optimizer, self._scaler, settings)

    @property
    def steps(self) -> int:
        """Number of steps of all epochs."""
        return self.options.epochs * self._steps_per_epoch

    def train(self, bar: Bar) -> None:
        """Train all epochs, and set `best` and `scores`."""
        first = self._resume()
        bar.skip(first)
        with nullcontext() if self.part is None else self.part.opened(first) as track:
            self._train_from(first, bar, track)

    def _train_from(self, first: int, bar: Bar, track: Track | None) -> None:
        """Train all steps after the first `first`."""
        for epoch in range(first // self._steps_per_epoch, self.options.epochs):
            batches = self.prepared.train.shuffled(self.options.batch_size, f"{self.options.seed}-{epoch}")
            for batch, indices in enumerate(batches):
                step = epoch * self._steps_per_epoch + batch
                if step < first:
                    continue
                loss = self._step(step, indices)
                if batch + 1 == len(batches):
                    self._end_epoch()
                if self._checkpoints is not None and self._checkpoints.due:
                    self._save(self._checkpoints, step + 1)
                if track is not None:
                    track.log(step + 1, self._metrics(loss, ended=batch + 1 == len(batches)))
                bar.advance(f"loss {loss:.3f}" + (f", chosen by {max(self.scores):.4f}" if self.scores else ""))

    def _metrics(self, loss: float, ended: bool) -> dict[str, float]:
        """Return the metrics of a step for trackers; at the end of an epoch with the metric to choose by."""
        metrics = {"loss": loss, "learning_rate": float(self._optimizer.param_groups[0]["lr"])}
        return metrics | ({f"chosen_by/{self.prepared.task.metrics[0]}": self.scores[-1]} if ended else {})

    def _step(self, step: int, indices: Sequence[int]) -> float:
        set_learning_rate(self._optimizer, self.options.lr, step, self.steps)
        self.learner.train()
        inputs, labels = self.prepared.train.batch(indices, self.device.name)
        with seeded(hash((self.options.seed, step)) % 2**32):  # for dropout
            loss = self.learner.loss(inputs, labels, self.device)
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        torch.nn.utils.clip_grad_norm_(self.learner.parameters(), MAX_GRADIENT_NORM)
        value = loss.item()  # waits for the device: late, when all but the update is queued
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {step + 1}")
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        return value

    def _end_epoch(self) -> None:
        """Measure the rows to choose by, and keep the weights if they are the best so far."""
        student, task, rows = self.learner.student, self.prepared.task, self.prepared.choose
        check_weights(student)
        score = scores(task, rows.labels, predict(student, rows, self.device))[task.metrics[0]]
        if not self.scores or score > max(self.scores):
            self.best = {name: tensor.detach().clone() for name, tensor in student.state_dict().items()}
            if self.folder is not None:
                path = self.folder / _BEST.format(len(self.scores) + 1)
                write_atomically(path, lambda file: save_file(self.best, file))
                self._best_file = {"file": path.name, "sha256": file_sha256(path)}
                self._delete_best_except([*self._saved, path.name])
        self.scores.append(score)

    def _save(self, checkpoints: Checkpoints, step: int) -> None:
        """Write a checkpoint that names the best weights so far, and delete weights that no checkpoint names."""
        check_weights(self.learner)
        checkpoints.save(step, [{"scores": self.scores, "best": self._best_file}])
        self._saved = [*self._saved, self._best_file.get("file", "")][-checkpoints.keep :]
        self._delete_best_except(self._saved)

    def _delete_best_except(self, names: Sequence[str]) -> None:
        assert self.folder is not None
        for path in self.folder.glob(_BEST.format("*")):
            if path.name not in names:
                path.unlink()

    def _resume(self) -> int:
        """Restore the last checkpoint, and return the number of its steps; later steps will give the same results.

        If the best weights that it names are damaged or missing, training restarts with a warning.
        """
        if self._checkpoints is None or self.folder is None:
            return 0
        initial = {name: tensor.detach().clone() for name, tensor in self.learner.state_dict().items()}
        scale = self._scaler.state_dict()
        step, text = self._checkpoints.restore()
        if not step:
            return 0
        state = text[0] if text else {}  # earlier versions did not name the best weights
        scores, best_file = state.get("scores", []), state.get("best", {})
        if len(scores) != step // self._steps_per_epoch or not self._load_best(scores, best_file):
            warnings.warn(f"the best weights in {self.folder} are damaged; this training restarts", stacklevel=2)
            self._checkpoints.discard()
            self.learner.load_state_dict(initial)
            self._scaler.load_state_dict(scale)
            return 0
        self.scores, self._best_file, self._saved = scores, best_file, [best_file.get("file", "")]
        return step

    def _load_best(self, scores: Sequence[float], best_file: Mapping[str, str]) -> bool:
        """Load the weights that a checkpoint names, and return True if they are intact."""
        assert self.folder is not None
        if not scores:
            return True
        path = self.folder / best_file["file"]
        if not path.is_file() or file_sha256(path) != best_file["sha256"]:
            return False
        self.best = load_file(path, device=self.device.name)
        return True
