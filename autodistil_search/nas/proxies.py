"""Accuracy proxies: cheap measurements on a SuperLM that stand for what a subnet is worth."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from autodistil_search.base.device import Device
from autodistil_search.base.errors import InputError
from autodistil_search.base.plugins import guarded
from autodistil_search.base.pretrained import matched
from autodistil_search.base.seeding import seeded
from autodistil_search.base.weighted_names import Weights
from autodistil_search.distillation.layer_losses import share_left
from autodistil_search.nas.objectives import COSINE, HIDDEN_LOSS, PROBE, Objective, number
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilForSequenceClassification, AutoDistilModel
from autodistil_search.superlm.relation_loss import DEFAULT_RELATIONS, relation_loss, relation_target, uniform_loss
from autodistil_search.tasks.fine_tuning import Encoded, FinetuneOptions, Prepared, fine_tune
from autodistil_search.tasks.labelled_data import Rows, Task, load_task
from autodistil_search.tasks.metrics import METRICS, Array
from autodistil_search.teachers.pooling import Pooling
from autodistil_search.teachers.teacher import Teacher

BLOCKS_AT_ONCE = 16

_FROM_UNLIKE_TO_ALIKE = (("not_equivalent", "equivalent"), ("not_duplicate", "duplicate"))
"""Named labels whose order is that of how alike two texts are: of MRPC and QQP on the hub."""

_HIDDEN_PARTS = 8
"""Parts of the held-out blocks, each measured by what was fitted to the others."""

HARDLY_LEARNT = 0.95
"""Share of the relation loss of one that knows nothing, above which a model has learnt next to nothing."""


class Proxy(Protocol):
    """Scores subnets of a SuperLM, and models as they are."""

    @property
    def reference(self) -> float:
        """A value that a model which has learnt nothing gets; the hypervolume is measured from it."""
        ...

    @property
    def description(self) -> str:
        """How it is measured, for the reader of a report."""
        ...

    def score(self, model: AutoDistilModel, subnet: Subnet | None = None) -> float:
        """What `subnet` of `model`, or the whole model, is worth, by the objective that the proxy has."""
        ...


@dataclass(frozen=True)
class ProxyKind:
    """What `--proxy` names: what it measures, and how one is made from teacher, held-out blocks `(N, T)` and device.

    ideal: the best value there can be. digest: of the data that scores depend on, beside text and teacher. notes: lines
    on what looks wrong in these data, and how they were read.
    """

    objective: Objective
    make: Callable[[Teacher, Tensor, Device], Proxy]
    ideal: float = 0.0
    digest: str = ""
    notes: tuple[str, ...] = ()

    def open(self, teacher: Teacher, held_out: Tensor, device: Device) -> Proxy:
        """Return the proxy, made and checked: its numbers are finite, and none is better than `ideal`.

        Raises:
            InputError: if it cannot be made, or its reference is not worse than `ideal`.
        """
        return _Checked(self, teacher, held_out, device)


_ROUNDING = 1e-5
"""Share of the way from `ideal` to the reference by which float32 sums may go beyond `ideal`."""


class _Checked:
    """A proxy whose every number passes `objectives.number`; errors name the proxy and the subnet."""

    def __init__(self, kind: ProxyKind, teacher: Teacher, held_out: Tensor, device: Device) -> None:
        self._objective, self._what = kind.objective, f"proxy {kind.objective.name!r}"
        self._ideal = number(kind.ideal, f"the ideal of {self._what}", "any")
        with guarded(f"{self._what} cannot be made"):
            self._proxy = kind.make(teacher, held_out, device)
            reference, description = self._proxy.reference, self._proxy.description
        self.reference = number(reference, f"the reference of {self._what}", "any")
        self.description = str(description)
        if not self._worse(self.reference):
            raise InputError(
                f"{self._what} has reference {self.reference:g} and ideal {self._ideal:g}, to "
                f"{self._objective.direction}; allowed: a reference that is worse"
            )

    def _worse(self, value: float) -> float:
        """Return by how much a value is worse than `ideal`; 0 if it is not."""
        return max(self._objective.minimised(value) - self._objective.minimised(self._ideal), 0.0)

    def score(self, model: AutoDistilModel, subnet: Subnet | None = None) -> float:
        """The score of `subnet` of `model`, or of the whole model.

        Raises:
            InputError: if the proxy fails, or gives anything but a finite number that is no better than `ideal`.
        """
        sizes = subnet or model.config.subnet
        with guarded(f"{self._what} failed on subnet {sizes}"):
            found = self._proxy.score(model) if subnet is None else self._proxy.score(model, subnet)
        value = number(found, self._what, sizes)
        beyond = self._objective.minimised(self._ideal) - self._objective.minimised(value)
        if beyond > _ROUNDING * self._worse(self.reference):
            raise InputError(
                f"{self._what} gave {value:g} of subnet {sizes}, better than its ideal {self._ideal:g}; allowed: a "
                "ProxyKind whose ideal is the best value there can be"
            )
        return value


class RelationProxy:
    """The relation loss on held-out text: the label-free proxy of AutoDistil's agnostic search. Lower is better.

    The teacher runs once, here; its relations are kept for every subnet that is scored.

    Args:
        teacher: Whose relations the students must match.
        held_out: `(N, T)` token ids that were not trained on.
        relation_heads: Heads of the relations.
        loss: One of `relations.LOSSES`.
        device: Where to compute.
        relations: Of which relations, with weights.
    """

    def __init__(
        self,
        teacher: Teacher,
        held_out: Tensor,
        relation_heads: int,
        loss: str,
        device: Device,
        relations: Weights = DEFAULT_RELATIONS,
    ) -> None:
        self._device = device
        self._batches = [batch.to(device.name) for batch in held_out.split(BLOCKS_AT_ONCE)]
        with torch.no_grad(), device.autocast():
            self._targets = [
                relation_target(teacher.projections(batch), None, relation_heads, loss, relations)
                for batch in self._batches
            ]
        self.blocks = len(held_out)
        self._relation_heads = relation_heads

    @torch.no_grad()
    def score(self, model: AutoDistilModel, subnet: Subnet | None = None) -> float:
        """The loss of `subnet` of `model`, or of the whole model.

        Raises:
            FloatingPointError: if it is not finite.
        """
        total = 0.0
        for batch, target in zip(self._batches, self._targets, strict=True):
            with self._device.autocast():
                projections = model.last_projections(batch, subnet=subnet)
            total += float(relation_loss(projections, target)) * len(batch)
        if not math.isfinite(total):
            raise FloatingPointError(f"the held-out loss of subnet {subnet or model.config.subnet} is {total}")
        return max(total / self.blocks, 0.0)  # float32 can leave a perfect student a hair below zero

    @property
    def description(self) -> str:
        """How it is measured, for the reader of a report."""
        return (
            f"{self.blocks} held-out blocks of {self._batches[0].shape[1]} tokens, {self._relation_heads} relation "
            f"heads; a student that relates all tokens alike scores {self.reference:.4g}"
        )

    @property
    def reference(self) -> float:
        """The loss of a student that relates every token to all others alike."""
        losses = [uniform_loss(target) * len(batch) for batch, target in zip(self._batches, self._targets, strict=True)]
        return sum(losses) / self.blocks


class HiddenProxy:
    """What the last hidden states lack of the teacher's on held-out text. Lower is better; no labels are needed.

    It sees what a student gives in the end, which the relation loss does not, and counts all heads alike. Hidden states
    are compared by `transfer.share_left`, so that students of any width are on equal terms.

    Args:
        teacher: Whose hidden states the students should have.
        held_out: `(N, T)` token ids that were not trained on; two blocks or more.
        device: Where to compute.

    Raises:
        InputError: for fewer blocks.
    """

    reference = 1.0

    def __init__(self, teacher: Teacher, held_out: Tensor, device: Device) -> None:
        if len(held_out) < 2:
            raise InputError(
                f"the hidden-state loss on {len(held_out)} held-out block; allowed: two or more, so more text"
            )
        self._device = device
        self._parts = [part.to(device.name) for part in held_out.tensor_split(min(len(held_out), _HIDDEN_PARTS))]
        with device.autocast():
            self._theirs = [teacher.last_layer(part)[1].float() for part in self._parts]
        self.blocks = len(held_out)

    @torch.no_grad()
    def score(self, model: AutoDistilModel, subnet: Subnet | None = None) -> float:
        """The loss of `subnet` of `model`, or of the whole model.

        Raises:
            FloatingPointError: if it is not finite.
        """
        with self._device.autocast():
            mine = [model(part, subnet=subnet).last_hidden_state.float() for part in self._parts]
        found = share_left(list(zip(mine, self._theirs, strict=True)))
        if not math.isfinite(found):
            raise FloatingPointError(f"the held-out loss of subnet {subnet or model.config.subnet} is {found}")
        return found

    @property
    def description(self) -> str:
        """How it is measured, for the reader of a report."""
        return (
            f"{self.blocks} held-out blocks of {self._parts[0].shape[1]} tokens: what a linear map of a student's last "
            f"hidden states lacks of the teacher's, by least squares on other parts of {len(self._parts)}; a student "
            "that tells nothing scores 1"
        )


HIDDEN_KIND = ProxyKind(HIDDEN_LOSS, HiddenProxy)
"""What `--proxy hidden` names."""


@dataclass(frozen=True)
class TaskBudget:
    """What scoring one subnet on a task may cost.

    rows: to train on, at most. epochs, lr, batch_size: of fine-tuning; a probe has none. seed: of the head and of the
    order of rows.
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
    """The proxy `probe:TASK` or `task:TASK`: the task's first metric on a part of its training rows; or `cosine:TASK`.

    The task's `dev` rows are never looked at: what a search chooses by cannot be what it reports. Columns of a table:
    see `tasks.data.load_task`.

    Raises:
        InputError: if there is no such task, or it has one label only where it is trained on or measured.
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
                "labels or more in either part, by more rows"
            )


def _cosine_proxy(task: Task, budget: TaskBudget) -> ProxyKind:
    """The proxy `cosine:TASK`.

    Raises:
        InputError: for a task whose pairs have no order, or not one that is known to go from unlike to alike.
    """
    if task.train.second is None or not (_are_numbers(task.labels) or task.labels in _FROM_UNLIKE_TO_ALIKE):
        texts = "one text" if task.train.second is None else "two texts"
        labels = ", ".join(task.labels) or "numbers"
        raise InputError(
            f"{COSINE}{task.name}: rows of {texts}, labels {labels}; allowed: tasks of two texts with a number, the "
            "higher the more alike"
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
    """Whether labels are numbers, which are in their order, or a task has none but its rows have numbers."""
    return all(label.lstrip("+-").isdigit() for label in labels)


class _OfTask:
    """What the proxies of a task share."""

    def __init__(self, task: Task, teacher: Teacher, budget: TaskBudget, device: Device) -> None:
        self._task, self._budget, self._device = task, budget, device
        length = min(budget.max_length, teacher.vocabulary.positions)
        self._prepared = Prepared(task, teacher.tokenizer, length, budget.rows)

    @property
    def reference(self) -> float:
        """The metric of the best answer that is the same for all rows."""
        labels = self._prepared.choose.labels
        constant = [np.full((len(labels), 1), value) for value in range(self._task.outputs)]
        if not self._task.labels:
            return 0.0
        compute = METRICS[self._task.metrics[0]].compute
        return max(compute(labels, each[:, 0].astype(float)) for each in constant)

    @property
    def _rows(self) -> str:
        prepared = self._prepared
        return (
            f"{len(prepared.train):,} rows of {self._task.name} ({self._task.source}), measured on "
            f"{len(prepared.choose):,} others of its training rows; the same answer for all would score "
            f"{self.reference:.4g}"
        )


class TaskProxy(_OfTask):
    """The metric of a candidate that is fine-tuned for a stated budget: AutoDistil's task proxy with MNLI."""

    def score(self, model: AutoDistilModel, subnet: Subnet | None = None) -> float:
        """The metric of `subnet` of `model`, or of the whole model; both stay as they are."""
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
        """How it is measured, for the reader of a report."""
        budget = self._budget
        return (
            f"best of {budget.epochs} epochs of fine-tuning, batch {budget.batch_size}, peak learning rate "
            f"{budget.lr:g}, seed {budget.seed}, on {self._rows}"
        )


class ProbeProxy(_OfTask):
    """The metric of a linear model on a candidate's frozen features: its last hidden states, averaged over tokens.

    Logistic regression for classes, ridge regression for numbers, both of scikit-learn with its own settings, on
    features of mean 0 and variance 1.
    """

    def score(self, model: AutoDistilModel, subnet: Subnet | None = None) -> float:
        """The metric of `subnet` of `model`, or of the whole model."""
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
        """How it is measured, for the reader of a report."""
        kind = "logistic" if self._task.labels else "ridge"
        return f"{kind} regression on frozen features, their mean over tokens, on {self._rows}"


class CosineProxy(_OfTask):
    """How well the cosines of sentence vectors rank the pairs of a task: Spearman's rho. Nothing is trained on them.

    A sentence's vector is made of its last hidden states as the teacher makes it (`Teacher.pooling`).
    """

    reference = 0.0

    def __init__(self, task: Task, teacher: Teacher, budget: TaskBudget, device: Device) -> None:
        super().__init__(task, teacher, budget, device)
        self._pooling, rows = teacher.pooling, task.split(budget.rows)[0]
        self._pairs = Pairs(rows, teacher.tokenizer, self._prepared.max_length, teacher.pooling)

    def score(self, model: AutoDistilModel, subnet: Subnet | None = None) -> float:
        """The correlation of `subnet` of `model`, or of the whole model."""
        return self._pairs.correlation(model, self._device, subnet)

    @property
    def description(self) -> str:
        """How it is measured, for the reader of a report."""
        return (
            f"cosines of the two texts' vectors ({self._pooling.words}), on {len(self._pairs):,} "
            f"training rows of {self._task.name} ({self._task.source}); nothing is trained on them"
        )


class Pairs:
    """Rows of two texts, each text by itself."""

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
        """Spearman's rho of the labels and the cosines of the vectors of the two texts."""
        first, second = (sentence_vectors(model, subnet, side, device, self._pooling) for side in self._sides)
        lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        return METRICS["spearman"].compute(self._labels, (first * second).sum(1) / lengths)


def mean_states(model: AutoDistilModel, subnet: Subnet | None, rows: Encoded, device: Device) -> Array:
    """The last hidden states of each row, averaged over its tokens: `(n, H)`."""
    return sentence_vectors(model, subnet, rows, device, Pooling())


@torch.no_grad()
def sentence_vectors(
    model: AutoDistilModel, subnet: Subnet | None, rows: Encoded, device: Device, pooling: Pooling
) -> Array:
    """Return the last hidden states of each row as one vector: `(n, H)`, for each mode of the pooling."""
    model.eval()
    found = np.empty((len(rows), len(pooling.modes) * (subnet or model.config.subnet).hidden_size))
    for indices in rows.by_length():
        inputs, _ = rows.batch(indices, device.name)
        with device.autocast():
            hidden = model(**matched(model, inputs), subnet=subnet).last_hidden_state.float()
        found[indices] = pooling.vectors(hidden, inputs["attention_mask"]).double().cpu().numpy()
    return found
