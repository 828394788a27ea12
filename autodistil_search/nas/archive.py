"""Archive of a search: a record of every scored subnet, as a trial of one Optuna study.

By default the study lies in a journal file of the run folder. Each evaluation is one finished trial, whichever engine
asked for it and whichever process scored it, so that Optuna's own tools read the study. A dictionary in memory serves
look-ups.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from autodistil_search.base.errors import InputError
from autodistil_search.base.files import readable
from autodistil_search.base.manifest import content_sha256
from autodistil_search.nas.evaluation import Evaluation
from autodistil_search.nas.objectives import Objective, answer
from autodistil_search.nas.storages import journal
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet

STUDY = "search"
"""Default name of a study."""

_ATTRIBUTES = "measured"
_DIGEST_SUFFIX = " sha256"
"""Suffix that turns the name of a study's attribute into the name of the attribute with its digest."""
_DIGEST = "trial sha256"
"""User attribute of a trial with the digest of its parameters and measured values."""


class Archive:
    """Evaluations by space and subnet. Several searches may use one study, one after another or at once.

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
        self._requested: dict[tuple[str, Subnet], None] = {}
        self._read: set[int] = set()
        """Numbers of the trials that were read."""
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
        self._refresh()

    def _refresh(self) -> None:
        """Read the trials that were finished since the last call, by this search or another."""
        for trial in self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
            if trial.number not in self._read:
                self._read.add(trial.number)
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
        evaluate: Callable[[SearchSpace, Sequence[Subnet]], Iterable[Evaluation]],
        advance: Callable[[], None],
    ) -> list[Evaluation]:
        """Return the evaluations of `subnets`. Missing ones are made by `evaluate`, and each is stored as it comes.

        Args:
            space: Space of the subnets.
            subnets: Subnets to look up or evaluate.
            evaluate: Function that scores subnets, and yields their evaluations in any order.
            advance: Callback after each new evaluation.
        """
        self._refresh()
        keys = dict.fromkeys((space.name, subnet) for subnet in subnets)
        self._requested |= keys
        for evaluation in evaluate(space, [key[1] for key in keys if key not in self._known]):
            self.record(evaluation)
            advance()
        return [self._known[space.name, subnet] for subnet in subnets]

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
            value = make()
            self._study.set_user_attr(name, value)
            self._study.set_user_attr(name + _DIGEST_SUFFIX, _value_sha256(value))
        return self.attribute(name)

    def attribute(self, name: str) -> Any:
        """Return the value that `fixed` stored under `name`; None if there is none.

        A value without a digest, as of an earlier version, is not checked.

        Raises:
            InputError: if the value differs from the value that was written.
        """
        attributes = self._study.user_attrs
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
        """Return all evaluations: first those requested here, in the order of the requests, then all others."""
        return [self._known[key] for key in dict.fromkeys((*self._requested, *self._known)) if key in self._known]


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
