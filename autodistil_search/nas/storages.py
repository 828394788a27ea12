"""Storages of Optuna studies: journal files, which survive a killed process, and databases."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from autodistil_search.base.errors import InputError
from autodistil_search.base.passwords import HIDDEN, conceal, names_database, without_password

_FIRST_BYTES = b'{"op_code":'
"""First bytes of every Optuna journal."""
_LONGEST_FIRST_LINE = 1 << 16
_FAILURES = (StorageInternalError, SQLAlchemyError)
"""Errors of a storage that is no longer reachable."""
_TRIES_TO_MAKE = 10
"""Times that the tables of a database are created if another process creates them at the same moment."""


@contextmanager
def open_storage(name: str) -> Iterator[BaseStorage]:
    """Open a storage, and close it at the end of the context.

    Args:
        name: URL of a database, or path of a journal file.

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
    except _FAILURES as error:
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
    except (ImportError, RuntimeError, ValueError, *_FAILURES) as error:
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


def _drop_torn_line(path: Path) -> None:
    """Cut off the incomplete last line that a killed process left."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read() != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
