"""Archive of a search: every scored subnet, as a trial of one Optuna study.

By default the study lies in a journal file of the run folder. Each evaluation is one finished trial, whichever engine
asked for it, so that Optuna's own tools read the study. A dictionary in memory serves look-ups.
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
"""Default name of a study."""

_ATTRIBUTES = "measured"
_FIRST_BYTES = b'{"op_code":'
"""First bytes of every Optuna journal."""
_LONGEST_FIRST_LINE = 1 << 16
_DIGEST_SUFFIX = " sha256"
"""Suffix that turns the name of a study's attribute into the name of the attribute with its digest."""
_DIGEST = "trial sha256"
"""User attribute of a trial with the digest of its parameters and measured values."""


class Archive:
    """Evaluations in the order they were made, by space and subnet. A single process uses an archive.

    Args:
        storage: Journal file, created if missing and continued otherwise, or an Optuna storage.
        spaces: Searched spaces; they fix the study's parameter ranges.
        objectives: Objectives of the study, in order.
        study: Name of the study.

    Raises:
        InputError: if the file is damaged, or the study has other objectives.
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
        else:  # another process may create the study at the same moment
            self._study = optuna.create_study(
                study_name=name, storage=storage, directions=directions, load_if_exists=True
            )
        stored = [direction.name.lower() for direction in self._study.directions]
        if stored != directions or self._study.metric_names not in (None, names):
            raise InputError(
                f"study {name!r} has the objectives {', '.join(self._study.metric_names or stored)}, not "
                f"{', '.join(names)}; allowed: the same objectives, or another study"
            )
        if self._study.metric_names is None:
            with warnings.catch_warnings():  # naming metrics is marked experimental; the dashboard shows the names
                warnings.simplefilter("ignore", ExperimentalWarning)
                self._study.set_metric_names(names)
        for trial in self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
            self._learn(trial)

    def _learn(self, trial: FrozenTrial) -> None:
        """Add the measured values of a finished trial. The first trial of a subnet counts.

        Trials of other spaces, and trials without measured values, are ignored.

        Raises:
            InputError: if the parameters or values of the trial differ from those that were written.
        """
        if _DIGEST in trial.user_attrs and not self._is_as_written(trial):  # trials of earlier versions have none
            raise self._damaged(f"the parameters or values of trial {trial.number} are not as written")
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
        """Return the user attributes of a trial: all measured values, and a digest of values and parameters."""
        params = {"space": space_name, **self._spaces[space_name].parameters(subnet)}
        return {_ATTRIBUTES: dict(measured), _DIGEST: _trial_sha256(params, measured)}

    def _key(self, trial: FrozenTrial) -> tuple[str, Subnet]:
        space = self._spaces[trial.params["space"]]
        return space.name, space.with_parameters(trial.params)

    def _trial(self, space_name: str, subnet: Subnet, **what: Any) -> FrozenTrial:
        """Return a trial of a subnet; `what` holds arguments of `optuna.trial.create_trial`."""
        params = {"space": space_name, **self._spaces[space_name].parameters(subnet)}
        return create_trial(params=params, distributions={name: self._distributions[name] for name in params}, **what)

    def answer(
        self,
        space: SearchSpace,
        subnets: Sequence[Subnet],
        evaluate: Callable[[SearchSpace, Subnet], Evaluation],
        advance: Callable[[], None],
    ) -> list[Evaluation]:
        """Return the evaluations of `subnets`. Missing ones are made by `evaluate` and kept, one by one.

        Args:
            space: Space of the subnets.
            subnets: Subnets to look up or evaluate.
            evaluate: Function that scores one subnet.
            advance: Callback after each new evaluation.
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
        """Return the evaluation of `subnet`; None if there is none."""
        return self._known.get((space, subnet))

    def record(self, evaluation: Evaluation) -> None:
        """Store `evaluation`; it is on disk when the method returns."""
        values = [evaluation.measured[objective.name] for objective in self._objectives]
        attributes = self._attributes(evaluation.space, evaluation.subnet, evaluation.measured)
        self._study.add_trial(self._trial(evaluation.space, evaluation.subnet, values=values, user_attrs=attributes))
        self._known[evaluation.space, evaluation.subnet] = evaluation

    def fixed(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the value that `make` gave on the first call with `name` in this study, as JSON holds it."""
        if name not in self._study.user_attrs:
            self._fix(name, make())
        return self._as_fixed(name, self._study.user_attrs)

    def _fix(self, name: str, value: Any) -> None:
        """Store a constant value among the study's attributes, with a digest."""
        self._study.set_user_attr(name, value)
        self._study.set_user_attr(name + _DIGEST_SUFFIX, _value_sha256(value))

    def _as_fixed(self, name: str, attributes: Mapping[str, Any]) -> Any:
        """Return the value under `name`; None if there is none. A value without a digest is not checked.

        Raises:
            InputError: if the value differs from the value that was written.
        """
        value, digest = attributes.get(name), attributes.get(name + _DIGEST_SUFFIX)
        if digest is not None and digest != _value_sha256(value):
            raise self._damaged(f"its value of {name!r} is not as written")
        return value

    def _damaged(self, reason: str) -> InputError:
        return InputError(
            f"{self._place} is damaged: {reason}; restore it from a copy, or delete it and repeat the search, which "
            "scores all subnets again"
        )

    @property
    def evaluations(self) -> list[Evaluation]:
        """Return all evaluations, oldest first."""
        return list(self._known.values())


class _ProcessLock(JournalFileOpenLock):
    """Lock of a journal that is released when its process is killed, and that removes an incomplete last line.

    Optuna's own lock delays the next run by half a minute, and its backend refuses a journal in which an incomplete
    line is followed by others.
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

    Nothing is created, truncated or locked before the file is known to be a journal. An empty file is an empty journal.

    Args:
        path: Journal file, created if missing. A link stands for its target.
        ours: True if this package named the file, so that even its first bytes may be incomplete.

    Raises:
        ValueError: if the path is another file, or cannot be read line by line.
        OSError: if the file cannot be opened.
    """
    path = path.resolve()
    if path.exists() and not _is_journal(path, ours):
        raise ValueError("it is not an Optuna journal")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _ProcessLock(path)
    lock.acquire()
    lock.release()
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _is_journal(path: Path, ours: bool) -> bool:
    """Return True if `path` begins as Optuna's journals do. Reads a few bytes and changes nothing."""
    if not path.is_file():  # a folder, a pipe or a device
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
    """Return the digest of a trial's parameters and measured values, equal for every storage that returns them."""
    sizes = {name: value if name == "space" else float(value) for name, value in params.items()}
    numbers = {name: float(value) for name, value in measured.items()}
    return content_sha256({"params": sizes, "measured": numbers})


def _distributions(spaces: Sequence[SearchSpace]) -> dict[str, BaseDistribution]:
    """Return the distribution of each parameter: from the least to the greatest value of any space."""
    distributions: dict[str, BaseDistribution] = {"space": CategoricalDistribution([space.name for space in spaces])}
    for name in dict.fromkeys(name for space in spaces for name in space.dimensions):
        values = [value for space in spaces if name in space.dimensions for value in space.values(name)]
        if name.startswith("mlp_ratio"):
            distributions[name] = FloatDistribution(min(values), max(values))
        else:
            distributions[name] = IntDistribution(min(values), max(values))
    return distributions


def _drop_torn_line(path: Path) -> None:
    """Cut off the incomplete last line that a killed process left."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read() != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
