"""Failures of processes that train together: one line tells the reason, and no process waits for one that has failed.

A failing process leaves word in the store of the launcher (`torchrun`, `accelerate launch`), which all processes reach
before they are connected and after a connection broke. Without such a launcher, each process prints its own error.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from autodistil_search.base.distributed import is_main, launched

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_HEAD_START = 2.0
"""Seconds that other processes leave to rank 0, which prints an error that all processes see alike."""
_LINGER = 1.0
"""Seconds that rank 0 stays after its error, because the store ends with the launcher on its host."""
_GRACE = 5.0
"""Seconds in which a process ends by itself after another one has failed."""
_BETWEEN_LOOKS = 0.5
_FAILED = "failed"


def report_failure(message: str, show: Callable[[str], object], lost: bool = False) -> None:
    """Show the error of this process, which ends; an error that several processes have is shown once.

    The first process that reports a message shows it, and rank 0 has a head start. Other ranks add rank and host.

    Args:
        message: Message of the error.
        show: Function that prints the message that it is given.
        lost: True if another process may be the cause (`lost_connection`); if one has failed, only its error is shown.
    """
    if launched() == 1:
        show(message)
        return
    _stop_watching()
    if lost and _store_says(lambda store: _appears(store, _FAILED, _GRACE)):
        return
    key = f"shown {hashlib.sha256(message.encode()).hexdigest()}"
    if is_main():
        show(message)  # before others are told, because their end may end this process
        _store_says(lambda store: _is_taken(store, key, 0.0))
        time.sleep(_LINGER)
    elif not _store_says(lambda store: _is_taken(store, key, _HEAD_START)):
        show(f"rank {os.environ['RANK']} on host {platform.node()}: {message}")


def _is_taken(store: Store, key: str, seconds: float) -> bool:
    """Return True if another process shows the error of this key within some seconds, else take it for this process.

    All processes learn that this process has failed.
    """
    store.set(_FAILED, "")
    return _appears(store, key, seconds) or store.add(key, 1) > 1


def _appears(store: Store, key: str, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not store.check([key]):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _store_says(ask: Callable[[Store], bool]) -> bool:
    """Return the answer of the launcher's store; False if there is none."""
    try:
        store = _launcher_store()
        return store is not None and ask(store)
    except (RuntimeError, ValueError):  # the launcher on the host of rank 0 has ended
        return False


def _launcher_store(seconds: float = 3.0) -> Store | None:
    """Return the store that `torchrun` or `accelerate launch` keeps on the host of rank 0; None without them."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined] # not declared as exported

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=seconds), wait_for_workers=False)
    return PrefixStore(f"autodistil_search/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def lost_connection(error: BaseException) -> bool:
    """Return True if `error` says that processes cannot reach each other, as after the end of one of them."""
    if launched() == 1 or not isinstance(error, RuntimeError):
        return False
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error)


_watch: tuple[threading.Thread, threading.Event] | None = None


def end_with_others() -> None:
    """End this process some seconds after another process has failed, even if it waits for that process.

    A collective of NCCL does not notice each failure, and no signal handler runs while it waits.
    """
    global _watch
    store = None
    with suppress(RuntimeError):  # it does not answer: only the end of a connection then tells of a failure
        store = _launcher_store(seconds=30.0)
    if _watch is None and store is not None:
        ended = threading.Event()
        thread = threading.Thread(target=_watch_others, args=(store, ended), daemon=True)
        _watch = thread, ended
        atexit.register(_stop_watching)
        thread.start()


def _watch_others(store: Store, ended: threading.Event) -> None:
    while not ended.wait(_BETWEEN_LOOKS):
        try:
            failed = store.check([_FAILED])
        except RuntimeError:  # the launcher of rank 0 waits for all processes, unless one has failed
            failed = True
        if failed and not ended.wait(_GRACE):
            sys.stderr.flush()
            os._exit(1)


def _stop_watching() -> None:
    if _watch is not None:
        thread, ended = _watch
        ended.set()
        thread.join()
