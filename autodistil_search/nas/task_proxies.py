"""Proxies of a labelled task: short fine-tuning, a linear probe, and the ranking of pairs of texts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from autodistil_search.base.device import Device
from autodistil_search.base.errors import InputError
from autodistil_search.base.pretrained import matched
from autodistil_search.base.seeding import seeded
from autodistil_search.nas.objectives import COSINE, PROBE, Objective
from autodistil_search.nas.proxies import ProxyKind
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilForSequenceClassification, AutoDistilModel
from autodistil_search.tasks.fine_tuning import Encoded, FinetuneOptions, Prepared, fine_tune, score_of_one_answer
from autodistil_search.tasks.labelled_data import Rows, Task, load_task
from autodistil_search.tasks.metrics import METRICS, Array
from autodistil_search.teachers.pooling import Pooling
from autodistil_search.teachers.teacher import Teacher

_LABELS_BY_SIMILARITY = (("not_equivalent", "equivalent"), ("not_duplicate", "duplicate"))
"""Named labels in the order of the similarity of two texts: those of MRPC and QQP on the hub."""


@dataclass(frozen=True)
class TaskBudget:
    """Limits on scoring one subnet on a task.

    Attributes:
        rows: Greatest number of rows to train on.
        epochs: Epochs of fine-tuning; unused by a probe.
        lr: Peak learning rate of fine-tuning; unused by a probe.
        seed: Seed of the head and of the order of rows.
        max_length: Greatest number of tokens of a row.
        batch_size: Batch size of fine-tuning; unused by a probe.
    """

    rows: int
    epochs: int
    lr: float
    seed: int
    max_length: int = 128
    batch_size: int = 32


def task_proxy(
    name: str, budget: TaskBudget, text_columns: Sequence[str] | None = None, label_column: str | None = None
) -> ProxyKind:
    """Return the proxy `probe:TASK`, `task:TASK` or `cosine:TASK`.

    The first two give the task's first metric on a part of its training rows. The task's `dev` rows are never used,
    since a search must not choose subnets by the rows on which it reports.

    Args:
        name: Name of the proxy.
        budget: Limits on scoring one subnet.
        text_columns: Text columns of a table; see `labelled_data.load_task`.
        label_column: Label column of a table; see `labelled_data.load_task`.

    Raises:
        InputError: if the task does not exist, or has a single label in the rows to train on or to measure on.
    """
    probing = name.startswith(PROBE)
    task = load_task(name.partition(":")[2], text_columns, label_column)
    if name.startswith(COSINE):
        return _cosine_proxy(task, budget)
    _refuse_one_label(name, task, budget.rows)
    metric = METRICS[task.metrics[0]]
    objective = Objective(
        f"{task.column}_probe" if probing else task.column,
        f"{task.name} {metric.label}" + (", probe of frozen features" if probing else ""),
        f"share, {len(task.split()[1]):,} rows kept back from train",
        "maximize",
        is_proxy=True,
    )
    make = ProbeProxy if probing else TaskProxy
    return ProxyKind(
        objective, lambda teacher, _, device: make(task, teacher, budget, device), 1.0, task.digest, task.notes
    )


def _refuse_one_label(name: str, task: Task, most: int) -> None:
    for rows, what in zip(task.split(most), ("to train on", "kept back to measure on"), strict=True):
        if task.labels and len({*rows.labels}) == 1:
            raise InputError(
                f"{name}: all {len(rows):,} rows {what} have label {task.labels[int(rows.labels[0])]!r}; allowed: two "
                "labels or more in each part, which may take more rows"
            )


def _cosine_proxy(task: Task, budget: TaskBudget) -> ProxyKind:
    """Return the proxy `cosine:TASK`.

    Raises:
        InputError: for a task without pairs of texts, or without labels known to grow with their similarity.
    """
    if task.train.second is None or not (_are_numbers(task.labels) or task.labels in _LABELS_BY_SIMILARITY):
        texts = "one text" if task.train.second is None else "two texts"
        labels = ", ".join(task.labels) or "numbers"
        raise InputError(
            f"{COSINE}{task.name}: rows of {texts}, labels {labels}; allowed: tasks of two texts with a number that "
            "grows with their similarity"
        )
    objective = Objective(
        f"{task.column.rpartition('_')[0]}_cosine",
        f"{task.name} Spearman correlation of cosines",
        f"correlation, {len(task.split(budget.rows)[0]):,} training rows",
        "maximize",
        is_proxy=True,
    )
    return ProxyKind(
        objective, lambda teacher, _, device: CosineProxy(task, teacher, budget, device), 1.0, task.digest, task.notes
    )


def _are_numbers(labels: Sequence[str]) -> bool:
    """Return True if the labels are numbers, in their order, or if there are none, as in regression."""
    return all(label.lstrip("+-").isdigit() for label in labels)


class _LabelledProxy:
    """Base class of the proxies of a labelled task."""

    def __init__(self, task: Task, teacher: Teacher, budget: TaskBudget, device: Device) -> None:
        self._task, self._budget, self._device = task, budget, device
        length = min(budget.max_length, teacher.vocabulary.positions)
        self._prepared = Prepared(task, teacher.tokenizer, length, budget.rows)

    @property
    def reference(self) -> float:
        """Return the metric of the best constant prediction."""
        return score_of_one_answer(self._task, self._prepared.choose.labels)

    @property
    def _rows(self) -> str:
        prepared = self._prepared
        return (
            f"{len(prepared.train):,} rows of {self._task.name} ({self._task.source}), measured on "
            f"{len(prepared.choose):,} others of its training rows; the same answer for all would score "
            f"{self.reference:.4g}"
        )


class TaskProxy(_LabelledProxy):
    """Metric of a candidate that is fine-tuned within a stated budget: AutoDistil's task proxy with MNLI."""

    def score(self, model: AutoDistilModel, subnet: Subnet | None = None) -> float:
        """Return the metric of `subnet` of `model`, or of the whole model, without a change to the model."""
        student = model if subnet is None else model.extract(subnet)
        config = copy.deepcopy(student.config)
        config.num_labels = self._task.outputs
        with seeded(self._budget.seed):
            classifier = AutoDistilForSequenceClassification(config)
        classifier.autodistil.load_state_dict(student.state_dict())
        budget = self._budget
        options = FinetuneOptions(budget.epochs, budget.batch_size, budget.lr, budget.seed)
        return fine_tune(classifier, self._prepared, options, self._device, report=False).chosen_by

    @property
    def description(self) -> str:
        """Return a description of the measurement, for the reader of a report."""
        budget = self._budget
        return (
            f"best of {budget.epochs} epochs of fine-tuning, batch {budget.batch_size}, peak learning rate "
            f"{budget.lr:g}, seed {budget.seed}, on {self._rows}"
        )


class ProbeProxy(_LabelledProxy):
    """Metric of a linear model on a candidate's frozen features: its last hidden states, averaged over tokens.

    The model is scikit-learn's logistic regression for classes and its ridge regression for numbers, with default
    settings (1,000 iterations at most). Features have mean 0 and variance 1.
    """

    def score(self, model: AutoDistilModel, subnet: Subnet | None = None) -> float:
        """Return the metric of `subnet` of `model`, or of the whole model."""
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        train, choose = self._prepared.train, self._prepared.choose
        linear = LogisticRegression(max_iter=1000) if self._task.labels else Ridge()
        probe = make_pipeline(StandardScaler(), linear)
        probe.fit(mean_states(model, subnet, train, self._device), train.labels)
        answers = probe.predict(mean_states(model, subnet, choose, self._device))
        return METRICS[self._task.metrics[0]].compute(choose.labels, answers)

    @property
    def description(self) -> str:
        """Return a description of the measurement, for the reader of a report."""
        kind = "logistic" if self._task.labels else "ridge"
        return f"{kind} regression on frozen features, their mean over tokens, on {self._rows}"


class CosineProxy(_LabelledProxy):
    """Spearman's rho between the cosines of sentence vectors and the labels of a task's pairs, without training.

    The last hidden states of a sentence become a vector by the teacher's pooling (`Teacher.pooling`).
    """

    reference = 0.0

    def __init__(self, task: Task, teacher: Teacher, budget: TaskBudget, device: Device) -> None:
        super().__init__(task, teacher, budget, device)
        self._pooling, rows = teacher.pooling, task.split(budget.rows)[0]
        self._pairs = Pairs(rows, teacher.tokenizer, self._prepared.max_length, teacher.pooling)

    def score(self, model: AutoDistilModel, subnet: Subnet | None = None) -> float:
        """Return the correlation of `subnet` of `model`, or of the whole model."""
        return self._pairs.correlation(model, self._device, subnet)

    @property
    def description(self) -> str:
        """Return a description of the measurement, for the reader of a report."""
        return (
            f"cosines of the two texts' vectors ({self._pooling.words}), on {len(self._pairs):,} "
            f"training rows of {self._task.name} ({self._task.source}); nothing is trained on them"
        )


class Pairs:
    """Rows of two texts, with each text encoded separately."""

    def __init__(
        self, rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int, pooling: Pooling | None = None
    ) -> None:
        assert rows.second is not None
        self._pooling = pooling or Pooling()
        self._labels = np.array(rows.labels, float)
        self._sides = [
            Encoded(Rows(texts, None, rows.labels), tokenizer, max_length) for texts in (rows.first, rows.second)
        ]

    def __len__(self) -> int:
        return len(self._labels)

    def correlation(self, model: AutoDistilModel, device: Device, subnet: Subnet | None = None) -> float:
        """Return Spearman's rho of the labels and the cosines between the vectors of the two texts."""
        first, second = (sentence_vectors(model, subnet, side, device, self._pooling) for side in self._sides)
        lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        return METRICS["spearman"].compute(self._labels, (first * second).sum(1) / lengths)


def mean_states(model: AutoDistilModel, subnet: Subnet | None, rows: Encoded, device: Device) -> Array:
    """Return the last hidden states of each row, averaged over its tokens: `(n, H)`."""
    return sentence_vectors(model, subnet, rows, device, Pooling())


@torch.no_grad()
def sentence_vectors(
    model: AutoDistilModel, subnet: Subnet | None, rows: Encoded, device: Device, pooling: Pooling
) -> Array:
    """Return a vector of each row's last hidden states, `(n, M * H)`, where M is the number of modes of the pooling."""
    model.eval()
    vectors = np.empty((len(rows), len(pooling.modes) * (subnet or model.config.subnet).hidden_size))
    for indices in rows.by_length():
        inputs, _ = rows.batch(indices, device.name)
        with device.autocast():
            hidden = model(**matched(model, inputs), subnet=subnet).last_hidden_state.float()
        vectors[indices] = pooling.vectors(hidden, inputs["attention_mask"]).cpu().double().numpy()
    return vectors
