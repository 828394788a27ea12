"""A shared archive for several processes, on one machine or many: work requests, results and lost workers.

A requested subnet is a waiting trial of the study. A free process claims the first waiting trial; only one process
can succeed. While it scores the subnet, it raises a counter at intervals; afterwards it stores the measured values.
The clocks of different machines are never compared. A process counts as lost when its counter has not moved for the
timeout, by the clock of the process that waits for the result.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from autodistil_search.base.errors import ExecutorError, InputError
from autodistil_search.base.passwords import HIDDEN, conceal, names_database, without_password
from autodistil_search.nas.archive import Archive, journal
from autodistil_search.nas.evaluation import Evaluation
from autodistil_search.nas.objectives import Objective
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet

TRIES = 3
"""Number of errors in scoring one subnet after which a search gives up."""

_BEAT = "beat"
_ERROR = "error"
_FIXED, _VALUE = "fixed", "value"
"""Attributes of a trial that proposes a value for all processes of the study: the name and the value."""
_BEATS = 6
"""Number of heartbeats within the timeout."""
_POLL = 0.05
"""Initial seconds between two polls of an idle storage; they double up to `_LONGEST_POLL`."""
_LONGEST_POLL = 1.0
_TRIES_TO_MAKE = 10

PREDICTOR = "latency predictor"
"""Name under which a search stores the result of fitting its predictor."""
CONFIG = "config"
"""Name under which a search publishes its settings."""

FAILURES = (StorageInternalError, SQLAlchemyError)
"""Errors of a storage that is no longer reachable."""


@contextmanager
def open_storage(name: str) -> Iterator[BaseStorage]:
    """Open a storage, and close it at the end of the context.

    Args:
        name: URL of a database, or path of a journal file for processes of one machine.

    Raises:
        InputError: if the storage cannot be opened.
        OSError: if the storage fails within the context.
    """
    if HIDDEN in name:
        raise InputError(f"--storage {name}: the password is missing; allowed: the URL with the password")
    if "://" not in name:
        yield _open_journal(name)
        return
    database = _open_database(name)
    try:
        yield get_storage(database)  # adds a cache of finished trials
    except FAILURES as error:
        raise OSError(f"the storage failed: {_reason(error, name)}; all scored subnets are kept") from None
    finally:
        database.remove_session()
        database.engine.dispose()


def _open_journal(name: str) -> JournalStorage:
    path = Path(name)
    try:
        if names_database(name) and not path.exists():
            raise ValueError("it names a database, but is not a URL")
        return journal(path)
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
        raise _unusable(name, reason) from None


def _unusable(name: str, reason: str) -> InputError:
    return InputError(
        f"--storage {' '.join(without_password(name).split())[:300] or repr(name)} cannot be used: {reason}; allowed: "
        "the path of a journal file, new or old, or a URL such as postgresql://user@host/database (extra 'postgres')"
    )


def _open_database(name: str) -> RDBStorage:
    url = name.replace("postgresql://", "postgresql+psycopg://", 1)  # the driver of the extra "postgres"
    try:
        _make_tables(url)
        # A server or firewall may close a connection that was idle for long, so each is tested before use.
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True}, skip_table_creation=True)
    except (ImportError, RuntimeError, ValueError, *FAILURES) as error:
        raise _unusable(name, _reason(error, name)) from None


def _make_tables(url: str) -> None:
    """Create Optuna's tables if they are missing. Another process may create them at the same moment."""
    for left in reversed(range(_TRIES_TO_MAKE)):
        try:
            RDBStorage(url, engine_kwargs={"poolclass": NullPool})
            return
        except (IntegrityError, ProgrammingError):  # another process has created only some of the tables yet
            if not left:
                raise
            time.sleep(0.2)


def _reason(error: BaseException, name: str) -> str:
    """Return the first line of an error of a storage, without the password in the storage's name."""
    words = str(error.__cause__ or error).strip() or type(error).__name__
    return conceal(words.splitlines()[0], name)


def state_of(folder: Path, state: str) -> tuple[str, str]:
    """Return the attribute that a search publishes: machine and folder as its name, "searching" or "ended" as value."""
    return f"search {platform.node()}:{folder.resolve()}", state


def all_ended(attributes: Mapping[str, Any]) -> bool:
    """Return True if every search that used a study has ended, by the study's attributes."""
    states = [value for name, value in attributes.items() if name.startswith("search ")]
    return bool(states) and set(states) == {"ended"}


@dataclass(frozen=True)
class Claim:
    """A subnet that this process has claimed. No other process scores it, unless this process is lost."""

    trial_id: int
    space: str
    subnet: Subnet


class SharedArchive(Archive):
    """An archive whose evaluations are made by any free process, including this process.

    Args:
        storage: Optuna storage that all processes can reach.
        spaces: Searched spaces.
        objectives: Objectives of the study, in order.
        study: Name of the study.
        timeout: Seconds without a heartbeat after which a process is lost and its subnet is requested again.

    Raises:
        InputError: if the study has other objectives.
    """

    def __init__(
        self,
        storage: BaseStorage,
        spaces: Sequence[SearchSpace],
        objectives: Sequence[Objective],
        study: str,
        timeout: float,
    ) -> None:
        self._timeout = timeout
        self._settled = 0
        """Index before which all trials are finished and known."""
        self._open_trials: dict[tuple[str, Subnet], FrozenTrial] = {}
        self._errors: dict[tuple[str, Subnet], list[str]] = {}
        self._counted: set[int]
        """Numbers of trials whose errors are counted, or are older than this process, as the cause may be mended."""
        self._seen: dict[int, tuple[Any, float]] = {}
        """Last heartbeat of each running trial, and the time at which this process first saw it."""
        self._requested: dict[tuple[str, Subnet], None] = {}
        super().__init__(storage, spaces, objectives, study)
        self._study_id = storage.get_study_id_from_name(study)
        trials = storage.get_all_trials(self._study_id, deepcopy=False)
        self._counted = {trial.number for trial in trials if _ERROR in trial.user_attrs}

    @property
    def evaluations(self) -> list[Evaluation]:
        """Return all evaluations: first those requested here, in the order of the requests, then all others."""
        return [self._known[key] for key in dict.fromkeys((*self._requested, *self._known)) if key in self._known]

    def attribute(self, name: str) -> Any:
        """Return the value last published under `name`; None if there is none."""
        return self._as_fixed(name, self._storage.get_study_user_attrs(self._study_id))

    def publish(self, name: str, value: Any) -> None:
        """Publish a JSON value to all processes of the study."""
        self._study.set_user_attr(name, value)

    def fixed(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the value of `Archive.fixed`, the same in all processes that call it at the same moment.

        Each process adds its value as a trial, since both kinds of storage number trials atomically. The first value
        counts for all processes, and is then stored among the study's attributes.
        """
        if (known := self.attribute(name)) is not None:
            return known
        if (first := self._first_offer(name)) is None:
            offer = {_FIXED: name, _VALUE: make()}
            self._study.add_trial(create_trial(state=TrialState.PRUNED, user_attrs=offer))
            first = self._first_offer(name)
        assert first is not None
        self._fix(name, first[_VALUE])
        return first[_VALUE]

    def _first_offer(self, name: str) -> dict[str, Any] | None:
        trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        offers = [trial for trial in trials if trial.user_attrs.get(_FIXED) == name]
        return min(offers, key=lambda trial: trial.number).user_attrs if offers else None

    def answer(
        self,
        space: SearchSpace,
        subnets: Sequence[Subnet],
        evaluate: Callable[[SearchSpace, Subnet], Evaluation],
        advance: Callable[[], None],
    ) -> list[Evaluation]:
        """Return the evaluations of `subnets`, as `Archive.answer` does, with the help of all workers of the study.

        Raises:
            ExecutorError: if scoring a subnet failed `TRIES` times.
        """
        keys = [(space.name, subnet) for subnet in subnets]
        self._requested |= dict.fromkeys(keys)
        poll = _POLL
        self.refresh()
        missing = {key for key in keys if key not in self._known}
        while missing:
            self._request([key for key in keys if key in missing])
            claim = self.claim([space.name])
            if claim is not None:
                self.work(claim, space, evaluate)
            else:
                self._give_up_lost()
                time.sleep(poll)
            self.refresh()
            scored = {key for key in missing if key in self._known}
            for _ in scored:
                advance()
            missing -= scored
            poll = _POLL if scored or claim else min(2 * poll, _LONGEST_POLL)
        return [self._known[key] for key in keys]

    def refresh(self) -> None:
        """Read the changes of the study since the last call."""
        trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        self._open_trials, settled = {}, True
        for trial in trials[self._settled :]:
            if trial.state in (TrialState.WAITING, TrialState.RUNNING):
                settled = False
                if trial.params.get("space") in self._spaces:  # trials of other spaces are ignored
                    self._add_open(trial)
                continue
            if trial.state == TrialState.COMPLETE:
                self._learn(trial)
            elif _ERROR in trial.user_attrs and trial.number not in self._counted:
                self._counted.add(trial.number)
                self._errors.setdefault(self._key(trial), []).append(trial.user_attrs[_ERROR])
            self._settled += settled

    def _add_open(self, trial: FrozenTrial) -> None:
        """Add an unfinished trial. If two searches requested the same subnet at once, the first trial stays."""
        first = self._open_trials.setdefault(self._key(trial), trial)
        if first is not trial and trial.state == TrialState.WAITING:
            self._end(trial._trial_id, TrialState.FAIL)

    def _request(self, keys: Sequence[tuple[str, Subnet]]) -> None:
        """Request the subnets of `keys` that have no unfinished trial."""
        for key in keys:
            if len(errors := self._errors.get(key, [])) >= TRIES:
                raise ExecutorError(f"{key[1]} of space {key[0]} could not be scored in {TRIES} tries: {errors[-1]}")
        new = [key for key in keys if key not in self._open_trials]
        for key in new:
            self._study.add_trial(self._trial(*key, state=TrialState.WAITING))
        if new:
            self.refresh()

    def claim(self, spaces: Collection[str]) -> Claim | None:
        """Claim the first waiting subnet of the given spaces; None if there is none."""
        for key, trial in self._open_trials.items():
            if trial.state != TrialState.WAITING or key[0] not in spaces:
                continue
            if key in self._known:
                self._end(trial._trial_id, TrialState.FAIL)
                continue
            try:
                if self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                    return Claim(trial._trial_id, *key)
            except UpdateFinishedTrialError:
                continue
        return None

    def work(
        self, claim: Claim, space: SearchSpace, evaluate: Callable[[SearchSpace, Subnet], Evaluation]
    ) -> Evaluation | None:
        """Score a claimed subnet, and store and return its evaluation; None if this process was taken for lost.

        If scoring fails or is interrupted, the subnet can be requested again, and the error is raised.
        """
        try:
            with self._beating(claim):
                evaluation = evaluate(space, claim.subnet)
        except BaseException as error:
            if isinstance(error, Exception):
                words = without_password(" ".join(f"{type(error).__name__}: {error}".split()))[:500]
                self._annotate(claim.trial_id, _ERROR, words)
            self._end(claim.trial_id, TrialState.FAIL)
            raise
        for name, value in self._attributes(claim.space, claim.subnet, evaluation.measured).items():
            self._annotate(claim.trial_id, name, value)
        values = [evaluation.measured[objective.name] for objective in self._objectives]
        return evaluation if self._end(claim.trial_id, TrialState.COMPLETE, values) else None

    @contextmanager
    def _beating(self, claim: Claim) -> Iterator[None]:
        """Store heartbeats of this process at intervals, within the context."""
        done = threading.Event()

        def beat() -> None:
            beats = 0
            while not done.wait(self._timeout / _BEATS):
                beats += 1
                try:
                    self._annotate(claim.trial_id, _BEAT, beats)
                except FAILURES:  # the next heartbeat may succeed; if none does, this process counts as lost
                    continue

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _give_up_lost(self) -> None:
        """End the trials of lost processes, so that their subnets are requested again."""
        now = time.monotonic()
        for trial in self._open_trials.values():
            if trial.state != TrialState.RUNNING:
                continue
            beat = trial.user_attrs.get(_BEAT)
            last, since = self._seen.get(trial._trial_id, (None, now))
            if trial._trial_id not in self._seen or beat != last:
                self._seen[trial._trial_id] = (beat, now)
            elif now - since > self._timeout:
                self._end(trial._trial_id, TrialState.FAIL)

    def _annotate(self, trial_id: int, name: str, value: Any) -> None:
        with suppress(UpdateFinishedTrialError):  # another process took this process for lost
            self._storage.set_trial_user_attr(trial_id, name, value)

    def _end(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """End a trial; return True if it was still open."""
        try:
            self._storage.set_trial_state_values(trial_id, state, values)
        except UpdateFinishedTrialError:
            return False
        return True
