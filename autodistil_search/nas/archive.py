"""The memory of a search: every scored subnet, as trials of one Optuna study.

By default the study lies in a journal file of the run folder. Whatever engine asked, each evaluation is one
finished trial, so that Optuna's own tools read the study; looking a subnet up is a dictionary here.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from autodistil_search.base.errors import InputError
from autodistil_search.base.files import readable
from autodistil_search.base.manifest import content_sha256
from autodistil_search.nas.evaluation import Evaluation
from autodistil_search.nas.objectives import Objective, answer
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet

STUDY = "search"
"""Name of a study that was not given one."""

_ATTRIBUTES = "measured"
_FIRST_BYTES = b'{"op_code":'
"""A journal of Optuna begins with these."""
_LONGEST_FIRST_LINE = 1 << 16
_OF_FIXED = " sha256"
"""Ending of the name of a study's attribute that has the digest of another."""
_DIGEST = "trial sha256"
"""User attribute of a trial with the digest of its parameters and of what was measured."""


class Archive:
    """Evaluations in the order they were made, looked up by space and subnet; for one process alone.

    Args:
        storage: A journal file, created if missing and continued if not, or an Optuna storage.
        spaces: The spaces searched; they fix the study's parameter ranges.
        objectives: What the study minimises or maximises, in order.
        study: The study's name.

    Raises:
        InputError: if the file is damaged, or the study is one of other objectives.
    """

    def __init__(
        self,
        storage: Path | BaseStorage,
        spaces: Sequence[SearchSpace],
        objectives: Sequence[Objective],
        study: str = STUDY,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._objectives = list(objectives)
        self._distributions = _distributions(spaces)
        self._spaces = {space.name: space for space in spaces}
        self._known: dict[tuple[str, Subnet], Evaluation] = {}
        self._place = str(storage) if isinstance(storage, Path) else f"study {study!r}"
        if isinstance(storage, Path):
            with readable(storage):
                self._open(journal(storage, ours=True), study)
        else:
            self._open(storage, study)

    def _open(self, storage: BaseStorage, name: str) -> None:
        directions = [objective.direction for objective in self._objectives]
        names = [objective.name for objective in self._objectives]
        self._storage = storage
        if any(study.study_name == name for study in storage.get_all_studies()):
            self._study = optuna.load_study(study_name=name, storage=storage)
        else:  # unless another process makes it at the same moment
            self._study = optuna.create_study(
                study_name=name, storage=storage, directions=directions, load_if_exists=True
            )
        found = [direction.name.lower() for direction in self._study.directions]
        if found != directions or self._study.metric_names not in (None, names):
            raise InputError(
                f"study {name!r} is one of {', '.join(self._study.metric_names or found)}, not of {', '.join(names)}; "
                "allowed: the same objectives, or another study"
            )
        if self._study.metric_names is None:
            with warnings.catch_warnings():  # naming metrics is marked experimental; the dashboard shows the names
                warnings.simplefilter("ignore", ExperimentalWarning)
                self._study.set_metric_names(names)
        for trial in self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
            self._learn(trial)

    def _learn(self, trial: FrozenTrial) -> None:
        """Take up what a finished trial measured; the first counts. Trials that are not ours do not.

        Raises:
            InputError: if its parameters or numbers are not those that were written.
        """
        if _DIGEST in trial.user_attrs and not self._is_as_written(trial):  # trials of earlier versions have none
            raise self._damaged(f"the parameters or numbers of trial {trial.number} are not those that were written")
        if _ATTRIBUTES in trial.user_attrs and trial.params.get("space") in self._spaces:
            key = self._key(trial)
            measured = answer(trial.user_attrs[_ATTRIBUTES], self._objectives, key[1])
            self._known.setdefault(key, Evaluation(*key, measured))

    def _is_as_written(self, trial: FrozenTrial) -> bool:
        try:
            measured = trial.user_attrs[_ATTRIBUTES]
            numbers = [measured[objective.name] for objective in self._objectives]
            digest = _trial_sha256(trial.params, measured)
        except (LookupError, TypeError, ValueError, AttributeError):
            return False
        return bool(digest == trial.user_attrs[_DIGEST] and numbers == trial.values)

    def _attributes(self, space_name: str, subnet: Subnet, measured: Mapping[str, float]) -> dict[str, Any]:
        """What a trial keeps of `subnet`: all that was measured, and a digest of that and of its parameters."""
        params = {"space": space_name, **self._spaces[space_name].parameters(subnet)}
        return {_ATTRIBUTES: dict(measured), _DIGEST: _trial_sha256(params, measured)}

    def _key(self, trial: FrozenTrial) -> tuple[str, Subnet]:
        space = self._spaces[trial.params["space"]]
        return space.name, space.with_parameters(trial.params)

    def _trial(self, space_name: str, subnet: Subnet, **what: Any) -> FrozenTrial:
        """A trial of that subnet; `what` as of `optuna.trial.create_trial`."""
        params = {"space": space_name, **self._spaces[space_name].parameters(subnet)}
        return create_trial(params=params, distributions={name: self._distributions[name] for name in params}, **what)

    def answer(
        self,
        space: SearchSpace,
        subnets: Sequence[Subnet],
        evaluate: Callable[[SearchSpace, Subnet], Evaluation],
        advance: Callable[[], None],
    ) -> list[Evaluation]:
        """The evaluations of `subnets`; those that are not known are made by `evaluate` and kept, one by one.

        advance: called after each that was made.
        """
        answers = []
        for subnet in subnets:
            evaluation = self.find(space.name, subnet)
            if evaluation is None:
                evaluation = evaluate(space, subnet)
                self.record(evaluation)
                advance()
            answers.append(evaluation)
        return answers

    def find(self, space: str, subnet: Subnet) -> Evaluation | None:
        """What was measured on `subnet`, if it was."""
        return self._known.get((space, subnet))

    def record(self, evaluation: Evaluation) -> None:
        """Keep `evaluation`, on disk when this returns."""
        values = [evaluation.measured[objective.name] for objective in self._objectives]
        attributes = self._attributes(evaluation.space, evaluation.subnet, evaluation.measured)
        self._study.add_trial(self._trial(evaluation.space, evaluation.subnet, values=values, user_attrs=attributes))
        self._known[evaluation.space, evaluation.subnet] = evaluation

    def fixed(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gave the first time that `name` was asked for in this study, as JSON holds it."""
        if name not in self._study.user_attrs:
            self._fix(name, make())
        return self._as_fixed(name, self._study.user_attrs)

    def _fix(self, name: str, value: Any) -> None:
        """Keep a value that stays as it is among the study's attributes, with a digest."""
        self._study.set_user_attr(name, value)
        self._study.set_user_attr(name + _OF_FIXED, _value_sha256(value))

    def _as_fixed(self, name: str, attributes: Mapping[str, Any]) -> Any:
        """The value under `name`; None if there is none. One without a digest is taken as it is.

        Raises:
            InputError: if it is not what was written.
        """
        value, digest = attributes.get(name), attributes.get(name + _OF_FIXED)
        if digest is not None and digest != _value_sha256(value):
            raise self._damaged(f"what it states of {name!r} is not what was written")
        return value

    def _damaged(self, reason: str) -> InputError:
        return InputError(
            f"{self._place} is damaged: {reason}; restore it from a copy, or delete it and repeat the search, which "
            "scores all subnets again"
        )

    @property
    def evaluations(self) -> list[Evaluation]:
        """All evaluations, oldest first."""
        return list(self._known.values())


class _ProcessLock(JournalFileOpenLock):
    """A lock that a killed process leaves free, and whose holder finds whole lines only.

    Optuna's own keeps the next run waiting for half a minute, and refuses a journal with more lines behind a torn one.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path, self._lock = path, FileLock(path.with_name(f".{path.name}.lock"))

    def acquire(self) -> bool:
        self._lock.acquire()
        _drop_torn_line(self._path)
        return True

    def release(self) -> None:
        self._lock.release()


def journal(path: Path, ours: bool = False) -> JournalStorage:
    """Open the storage in a journal file, which processes on one machine can share.

    Nothing is created, cut or locked before the file is known to be a journal; an empty file is an empty journal.

    Args:
        path: The file, created if missing. A link stands for the file that it leads to.
        ours: Whether the file has its name from this package, so that even its first bytes may be torn.

    Raises:
        ValueError: if it is another file, or none that can be read line by line.
        OSError: if it cannot be opened.
    """
    path = path.resolve()
    if path.exists() and not _is_journal(path, ours):
        raise ValueError("it is no journal of Optuna")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _ProcessLock(path)
    lock.acquire()
    lock.release()
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _is_journal(path: Path, ours: bool) -> bool:
    """Return whether `path` begins as Optuna's journals do; reads a few bytes and changes nothing."""
    if not path.is_file():  # a folder, a pipe, a device
        return False
    with path.open("rb") as file:
        first = file.readline(_LONGEST_FIRST_LINE)
    if not first.endswith(b"\n"):
        torn = first.startswith(_FIRST_BYTES) and len(first) < _LONGEST_FIRST_LINE
        return not first or torn or (ours and _FIRST_BYTES.startswith(first))
    try:
        operation = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(operation, dict) and {"op_code", "worker_id"} <= operation.keys()


def _value_sha256(value: Any) -> str:
    return content_sha256({"value": json.loads(json.dumps(value))})


def _trial_sha256(params: Mapping[str, Any], measured: Mapping[str, float]) -> str:
    """The digest of a trial's parameters and of what was measured, as numbers come back from any storage."""
    sizes = {name: value if name == "space" else float(value) for name, value in params.items()}
    numbers = {name: float(value) for name, value in measured.items()}
    return content_sha256({"params": sizes, "measured": numbers})


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
    """Cut off what a killed process left of a line."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read() != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
