"""An archive at which several processes work, on one machine or many: who asks, who scores, and who has been lost.

A subnet to be scored is a waiting trial of the study. Whoever is free takes the first, which only one process can,
shows at intervals that it is alive, and tells what it measured. Nothing depends on clocks of different machines: a
process is taken for lost when a counter of its own has not moved for a while, as seen by the one that waits for it.
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

from autodistil_search.base.errors import InputError, ScoringError
from autodistil_search.base.passwords import HIDDEN, conceal, names_database, without_password
from autodistil_search.nas.archive import Archive, journal
from autodistil_search.nas.evaluation import Evaluation
from autodistil_search.nas.objectives import Objective
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet

TRIES = 3
"""Errors of workers while scoring one subnet after which a search gives up."""

_BEAT = "beat"
_ERROR = "error"
_FIXED, _VALUE = "fixed", "value"
"""Of a trial that scores nothing: what is fixed for all processes at the study, by its name."""
_BEATS = 6
"""Signs of life within the time after which their absence counts."""
_POLL = 0.05
"""Seconds between looks at a storage in which nothing happens, at first; they double up to `_LONGEST_POLL`."""
_LONGEST_POLL = 1.0
_TRIES_TO_MAKE = 10

PREDICTOR = "latency predictor"
"""Name under which a search keeps what its predictor was fitted to."""
CONFIG = "config"
"""Name under which a search publishes its settings."""

FAILURES = (StorageInternalError, SQLAlchemyError)
"""What a storage that is gone raises."""


@contextmanager
def open_storage(name: str) -> Iterator[BaseStorage]:
    """The storage of that name, for as long as it is needed.

    Args:
        name: A database's URL, or the path of a journal file for processes of one machine.

    Raises:
        InputError: if it cannot be opened.
        OSError: if it is lost while it is needed.
    """
    if HIDDEN in name:
        raise InputError(f"--storage {name}: its password was left out; allowed: the URL with the password")
    if "://" not in name:
        yield _open_journal(name)
        return
    database = _open_database(name)
    try:
        yield get_storage(database)  # which remembers finished trials
    except FAILURES as error:
        raise OSError(f"the storage failed: {_reason(error, name)}; what was scored is kept") from None
    finally:
        database.remove_session()
        database.engine.dispose()


def _open_journal(name: str) -> JournalStorage:
    path = Path(name)
    try:
        if names_database(name) and not path.exists():
            raise ValueError("it names a database in another form than a URL")
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
        # Others may end a connection that was long unused: ask before use.
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True}, skip_table_creation=True)
    except (ImportError, RuntimeError, ValueError, *FAILURES) as error:
        raise _unusable(name, _reason(error, name)) from None


def _make_tables(url: str) -> None:
    """Optuna's tables, where they are missing; of several processes that begin at once, some only find them made."""
    for left in reversed(range(_TRIES_TO_MAKE)):
        try:
            RDBStorage(url, engine_kwargs={"poolclass": NullPool})
            return
        except (IntegrityError, ProgrammingError):  # what another process's half-made tables look like
            if not left:
                raise
            time.sleep(0.2)


def _reason(error: BaseException, name: str) -> str:
    """The first line of what went wrong at the storage of that name, without its password."""
    words = str(error.__cause__ or error).strip() or type(error).__name__
    return conceal(words.splitlines()[0], name)


def state_of(folder: Path, state: str) -> tuple[str, str]:
    """What a search publishes of itself: where it runs, and that it is "searching" or has "ended"."""
    return f"search {platform.node()}:{folder.resolve()}", state


def all_ended(attributes: Mapping[str, Any]) -> bool:
    """Whether every search that ever worked at a study has ended, going by its attributes."""
    states = [value for name, value in attributes.items() if name.startswith("search ")]
    return bool(states) and set(states) == {"ended"}


@dataclass(frozen=True)
class Claim:
    """A subnet that this process has taken to score; nobody else does, unless it is lost."""

    trial_id: int
    space: str
    subnet: Subnet


class SharedArchive(Archive):
    """An archive whose evaluations are made by whichever process is free, this one included.

    Args:
        storage: An Optuna storage that all of them reach.
        spaces: The spaces searched.
        objectives: What the study minimises or maximises, in order.
        study: The study's name.
        timeout: Seconds without a sign of life after which a process is lost, and its subnet given out again.

    Raises:
        InputError: if the study is one of other objectives.
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
        """All trials before this one are finished, and known."""
        self._open_trials: dict[tuple[str, Subnet], FrozenTrial] = {}
        self._errors: dict[tuple[str, Subnet], list[str]] = {}
        self._counted: set[int]
        """Trials whose errors are among these, or were there before: whoever comes back may have mended the cause."""
        self._seen: dict[int, tuple[Any, float]] = {}
        """Of trials that are being scored: the last sign of life, and when it was first seen here."""
        self._asked: dict[tuple[str, Subnet], None] = {}
        super().__init__(storage, spaces, objectives, study)
        self._study_id = storage.get_study_id_from_name(study)
        trials = storage.get_all_trials(self._study_id, deepcopy=False)
        self._counted = {trial.number for trial in trials if _ERROR in trial.user_attrs}

    @property
    def evaluations(self) -> list[Evaluation]:
        """All evaluations: those asked for here in this order, whoever made them when; then those of others."""
        return [self._known[key] for key in dict.fromkeys((*self._asked, *self._known)) if key in self._known]

    def attribute(self, name: str) -> Any:
        """What was last published under `name`; None if nothing was."""
        return self._as_fixed(name, self._storage.get_study_user_attrs(self._study_id))

    def publish(self, name: str, value: Any) -> None:
        """Tell all processes at this study something, as JSON holds it."""
        self._study.set_user_attr(name, value)

    def fixed(self, name: str, make: Callable[[], Any]) -> Any:
        """As `Archive.fixed`, whichever processes ask at the same moment.

        Each of them adds what it made as a trial, which both kinds of storage number in one step; the first counts for
        all, and only then stands among the study's attributes.
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
        """As `Archive.answer`, with the help of whoever works at the study.

        Raises:
            ScoringError: if a subnet could not be scored, several times.
        """
        keys = [(space.name, subnet) for subnet in subnets]
        self._asked |= dict.fromkeys(keys)
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
            found = {key for key in missing if key in self._known}
            for _ in found:
                advance()
            missing -= found
            poll = _POLL if found or claim else min(2 * poll, _LONGEST_POLL)
        return [self._known[key] for key in keys]

    def refresh(self) -> None:
        """Take up what has happened since the last time."""
        trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        self._open_trials, settled = {}, True
        for trial in trials[self._settled :]:
            if trial.state in (TrialState.WAITING, TrialState.RUNNING):
                settled = False
                if trial.params.get("space") in self._spaces:  # others are not ours
                    self._note_open(trial)
                continue
            if trial.state == TrialState.COMPLETE:
                self._learn(trial)
            elif _ERROR in trial.user_attrs and trial.number not in self._counted:
                self._counted.add(trial.number)
                self._errors.setdefault(self._key(trial), []).append(trial.user_attrs[_ERROR])
            self._settled += settled

    def _note_open(self, trial: FrozenTrial) -> None:
        """Note what is to be scored; of what two searches asked for at the same moment, the first trial stays."""
        first = self._open_trials.setdefault(self._key(trial), trial)
        if first is not trial and trial.state == TrialState.WAITING:
            self._end(trial._trial_id, TrialState.FAIL)

    def _request(self, keys: Sequence[tuple[str, Subnet]]) -> None:
        """Give out those of `keys` that nobody has been asked for yet."""
        for key in keys:
            if len(errors := self._errors.get(key, [])) >= TRIES:
                raise ScoringError(f"{key[1]} of space {key[0]} could not be scored, {TRIES} times: {errors[-1]}")
        new = [key for key in keys if key not in self._open_trials]
        for key in new:
            self._study.add_trial(self._trial(*key, state=TrialState.WAITING))
        if new:
            self.refresh()

    def claim(self, spaces: Collection[str]) -> Claim | None:
        """Take the first subnet of these spaces that waits to be scored; None if there is none."""
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
        """Score what was claimed, and tell; None if this process had been taken for lost meanwhile.

        If scoring fails, or is interrupted, the subnet is given out again, and the error goes on.
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
        """Show at intervals that this process is alive."""
        done = threading.Event()

        def beat() -> None:
            beats = 0
            while not done.wait(self._timeout / _BEATS):
                beats += 1
                try:
                    self._annotate(claim.trial_id, _BEAT, beats)
                except FAILURES:  # the next one may get through; if none does, this process is lost
                    continue

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _give_up_lost(self) -> None:
        """End the trials of processes that show no more signs of life, so that they are given out again."""
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
        with suppress(UpdateFinishedTrialError):  # somebody took this process for lost
            self._storage.set_trial_user_attr(trial_id, name, value)

    def _end(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Whether the trial was still open, and is ended now."""
        try:
            self._storage.set_trial_state_values(trial_id, state, values)
        except UpdateFinishedTrialError:
            return False
        return True
