"""The measures of a proxy validation: its columns, and which of them should predict which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autodistil_search.base.errors import InputError
from autodistil_search.nas.label_free_proxies import AnyKind
from autodistil_search.nas.objectives import DEFAULT_PROXY, Objective
from autodistil_search.nas.proxies import ProxyKind
from autodistil_search.report.validation_table import ALONE

TASKS_MEAN = "tasks_mean"
"""Column of the mean score on several tasks."""


@dataclass(frozen=True)
class Measure:
    """Measure of a subnet: its column in the results, its label and its direction."""

    column: str
    label: str
    higher_is_better: bool


def _measure_of(column: str, objective: Objective, how: str) -> Measure:
    return Measure(column, f"{objective.label}, {how}", objective.direction == "maximize")


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Measures of a validation.

    Attributes:
        label_free: Proxies that need no labels, by their names for `--proxy`.
        probe: Probe of a task; None if none was asked for.
        cosine: Proxy of a task of pairs; None if none was asked for.
        tasks: Proxies of the tasks on which subnets are fine-tuned.
        alone: True if subnets are trained alone.

    Raises:
        InputError: if two tasks have the same column.
    """

    label_free: Mapping[str, AnyKind]
    probe: ProxyKind | None
    cosine: ProxyKind | None
    tasks: Sequence[ProxyKind]
    alone: bool

    def __post_init__(self) -> None:
        columns = Counter(task.objective.name for task in self.tasks)
        if twice := [column for column, count in columns.items() if count > 1]:
            raise InputError(f"--task names {columns[twice[0]]} tasks with column {twice[0]}; allowed: one")

    @property
    def default(self) -> str:
        """Return the column of the default proxy of a search."""
        return self.label_free[DEFAULT_PROXY].objective.name

    @property
    def objectives(self) -> list[Objective]:
        """Return the objectives of the proxies that need no labels."""
        return [kind.objective for kind in self.label_free.values()]

    @property
    def shared(self) -> list[Measure]:
        """Return the measures that are taken on the SuperLM's weights."""
        kinds = [*self.objectives, *([self.probe.objective] if self.probe else [])]
        return [_measure_of(objective.name, objective, "shared") for objective in kinds]

    @property
    def trained_alone(self) -> list[Measure]:
        """Return the measures that are taken after training alone, in the order of `objectives`."""
        objectives = self.objectives if self.alone else []
        return [_measure_of(f"{ALONE}{objective.name}", objective, "trained alone") for objective in objectives]

    @property
    def of_pairs(self) -> list[Measure]:
        """Return the measure of sentence vectors on a task of pairs, if there is one."""
        how = "trained alone" if self.alone else "shared"
        return [_measure_of(kind.objective.name, kind.objective, how) for kind in [self.cosine] if kind]

    @property
    def fine_tuned(self) -> list[Measure]:
        """Return the score of each task; of several tasks, also their mean."""
        measures = [_measure_of(task.objective.name, task.objective, "fine-tuned") for task in self.tasks]
        if len(measures) > 1:
            measures.append(Measure(TASKS_MEAN, f"mean of {len(measures)} tasks, fine-tuned", True))
        return measures

    @property
    def all(self) -> list[Measure]:
        """Return all measures, predictors before targets."""
        flops = Measure("flops", "FLOPs", True)
        return [flops, *self.shared, *self.trained_alone, *self.of_pairs, *self.fine_tuned]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Return the pairs of a measure and a target that it should predict.

        A proxy on shared weights should predict its own value after training alone. All of them should predict the
        targets with labels, and so should sentence vectors for fine-tuning.
        """
        pairs = []
        for objective, alone in zip(self.objectives, self.trained_alone, strict=False):
            pairs += [("flops", alone.column), (objective.name, alone.column)]
        predictors = ["flops", *(measure.column for measure in (*self.shared, *self.trained_alone))]
        pairs += [(column, target.column) for target in self.of_pairs for column in predictors]
        predictors += [measure.column for measure in self.of_pairs]
        return pairs + [(column, target.column) for target in self.fine_tuned for column in predictors]

    def with_mean(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Return the scores of all tasks by column; of several tasks, with their mean."""
        if len(self.tasks) < 2:
            return dict(scores)
        return {**scores, TASKS_MEAN: sum(scores.values()) / len(scores)}
