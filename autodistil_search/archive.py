"""The memory of a search: every scored subnet, as trials of one Optuna study.

By default the study lies in a journal file of the run folder. Whatever engine asked, each evaluation is one
finished trial, so that Optuna's own tools read the study; looking a subnet up is a dictionary here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState, create_trial

from autodistil_search.files import readable
from autodistil_search.objectives import Objective
from autodistil_search.space import SearchSpace, Subnet

_STUDY = "search"
_ATTRIBUTES = "measured"


@dataclass(frozen=True)
class Evaluation:
    """One subnet of one space and what was measured on it, by objective name."""

    space: str
    subnet: Subnet
    measured: Mapping[str, float]


class Archive:
    """Evaluations in the order they were made, looked up by space and subnet.

    Args:
        path: The journal file; created if missing, continued if not.
        spaces: The spaces searched; they fix the study's parameter ranges.
        objectives: What the study minimises or maximises, in order.
    """

    def __init__(self, path: Path, spaces: Sequence[SearchSpace], objectives: Sequence[Objective]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._objectives = list(objectives)
        self._distributions = _distributions(spaces)
        self._spaces = {space.name: space for space in spaces}
        self._known: dict[tuple[str, Subnet], Evaluation] = {}
        with readable(path):
            _drop_torn_line(path)
            self._study = _open_study(path, objectives)
            self._read()
        if self._study.metric_names is None:
            with warnings.catch_warnings():  # naming metrics is marked experimental; the dashboard shows the names
                warnings.simplefilter("ignore", ExperimentalWarning)
                self._study.set_metric_names([objective.name for objective in objectives])

    def _read(self) -> None:
        for trial in self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
            if _ATTRIBUTES in trial.user_attrs:  # others are not ours
                space = self._spaces[trial.params["space"]]
                subnet = space.with_parameters(trial.params)
                evaluation = Evaluation(space.name, subnet, trial.user_attrs[_ATTRIBUTES])
                self._known[evaluation.space, evaluation.subnet] = evaluation

    def find(self, space: str, subnet: Subnet) -> Evaluation | None:
        """What was measured on `subnet`, if it was."""
        return self._known.get((space, subnet))

    def record(self, evaluation: Evaluation) -> None:
        """Keep `evaluation`, on disk when this returns."""
        space, subnet = self._spaces[evaluation.space], evaluation.subnet
        params = {"space": space.name, **space.parameters(subnet)}
        self._study.add_trial(
            create_trial(
                params=params,
                distributions={name: self._distributions[name] for name in params},
                values=[evaluation.measured[objective.name] for objective in self._objectives],
                user_attrs={_ATTRIBUTES: dict(evaluation.measured)},
            )
        )
        self._known[evaluation.space, subnet] = evaluation

    def fixed(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gave the first time that `name` was asked for in this study, as JSON holds it."""
        if name not in self._study.user_attrs:
            self._study.set_user_attr(name, make())
        return self._study.user_attrs[name]

    @property
    def evaluations(self) -> list[Evaluation]:
        """All evaluations, oldest first."""
        return list(self._known.values())


class _ProcessLock(JournalFileOpenLock):
    """A lock that a killed process leaves free: Optuna's own keeps the next run waiting for half a minute."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


def _open_study(path: Path, objectives: Sequence[Objective]) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(path), lock_obj=_ProcessLock(path)))
    if any(study.study_name == _STUDY for study in storage.get_all_studies()):
        return optuna.load_study(study_name=_STUDY, storage=storage)
    directions = [objective.direction for objective in objectives]
    return optuna.create_study(study_name=_STUDY, storage=storage, directions=directions)


def _distributions(spaces: Sequence[SearchSpace]) -> dict[str, BaseDistribution]:
    """Of each parameter: from the least to the most that any of the spaces allows."""
    found: dict[str, BaseDistribution] = {"space": CategoricalDistribution([space.name for space in spaces])}
    for name in dict.fromkeys(name for space in spaces for name in space.dimensions):
        values = [value for space in spaces if name in space.dimensions for value in space.values(name)]
        if name.startswith("mlp_ratio"):
            found[name] = FloatDistribution(min(values), max(values))
        else:
            found[name] = IntDistribution(min(values), max(values))
    return found


def _drop_torn_line(path: Path) -> None:
    """Cut off what a killed process left of a line: Optuna refuses a journal with more lines behind a torn one."""
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
