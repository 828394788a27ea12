"""A worker, which scores the subnets that the searches of a study request, on the same or another machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna

from autodistil_search.base.errors import InputError
from autodistil_search.base.manifest import kind_of
from autodistil_search.base.plugins import Plugins
from autodistil_search.base.progress import Reporter
from autodistil_search.base.user_input import is_finite, quoted
from autodistil_search.nas.shared_archive import CONFIG, PREDICTOR, SharedArchive, all_ended, open_storage
from autodistil_search.runs.run_folder import superlm_folder
from autodistil_search.runs.scoring import Scorer, check_scored_alike
from autodistil_search.runs.search_inputs import SearchInputs, resolve_search
from autodistil_search.settings.search import SearchConfig
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.superlm.model_folder import load_model

_POLL = 0.1
"""First interval in seconds between queries of a study without work. It doubles up to `_LONGEST_POLL`."""
_LONGEST_POLL = 2.0
"""Longest interval in seconds between queries of a study without work."""


def work(
    storage: str,
    study: str,
    superlm: str | Path | None = None,
    patience: float | None = None,
    reporter: Reporter | None = None,
    plugins: Plugins | None = None,
) -> int:
    """Score subnets for the searches of `study` until they have ended, and return the number of scored subnets.

    Settings, teacher and text are those of the search. The contents behind their names are checked to be the same on
    this machine.

    Args:
        storage: Storage of the search: the URL of a database, or the path of a journal file.
        study: Name of the study in the storage. The worker waits until the study exists and is ready.
        superlm: Folder of the search, or a copy of it, with the SuperLMs; by default the path that the search used.
        patience: Seconds without work after which the worker ends; by default it waits until the searches have ended.
        reporter: Receiver of progress and messages; by default nothing is shown.
        plugins: Plug-ins of the search.

    Raises:
        InputError: if an input differs from that of the search.
    """
    if patience is not None and not (is_finite(patience) and patience >= 0):
        raise InputError(f"--patience {quoted(patience)}; allowed: 0 or numbers above")
    reporter = reporter or Reporter()
    wait = _Patience(patience)
    with open_storage(storage) as opened:

        def published() -> dict[str, Any]:
            studies = optuna.get_all_study_summaries(opened, include_best_trial=False)
            return next((summary.user_attrs for summary in studies if summary.study_name == study), {})

        reporter.say(f"waiting for study {study}")
        while CONFIG not in published():
            if not wait.goes_on():
                return 0
        config = SearchConfig.from_dict({**published()[CONFIG], "storage": storage, "study": study})
        inputs = resolve_search(config, reporter, plugins, begun=True, trains=False)
        superlms = _load_superlms(inputs, Path(superlm) if superlm is not None else config.folder)
        archive = SharedArchive(opened, inputs.spaces, inputs.objectives, study, config.worker_timeout)
        if inputs.predicts:
            inputs.predictor.take(archive.attribute(PREDICTOR))
        check_scored_alike(inputs, superlms, archive, study)
        ready = wait.again()  # loading teacher and text may have taken longer than `patience`
        return _work(inputs, archive, Scorer(inputs, superlms), ready, lambda: all_ended(published()), reporter)


def _load_superlms(inputs: SearchInputs, folder: Path) -> dict[str, AutoDistilModel]:
    """Return the SuperLM of each space from the `folder` of a search, if an objective needs it."""
    if inputs.proxy_objective is None:
        return {}
    superlms = {}
    for space in inputs.spaces:
        path = superlm_folder(folder, space.name)
        if kind_of(path) is None and not (path / "model.safetensors").is_file():
            raise InputError(
                f"{path} holds no SuperLM; allowed: --superlm with the folder of the search, or a copy of it"
            )
        superlms[space.name] = load_model(path, AutoDistilModel)
        inputs.device.place(superlms[space.name])
    return superlms


def _work(
    inputs: SearchInputs,
    archive: SharedArchive,
    scorer: Scorer,
    wait: _Patience,
    ended: Callable[[], bool],
    reporter: Reporter,
) -> int:
    spaces = {space.name: space for space in inputs.spaces}
    scored = 0
    reporter.say("ready")
    while True:
        archive.refresh()
        if claim := archive.claim(spaces):
            if archive.work(claim, spaces[claim.space], scorer.evaluate):
                scored += 1
                reporter.say(f"scored {claim.subnet} of {claim.space}")
            wait = wait.again()
        elif ended() or not wait.goes_on():
            return scored


class _Patience:
    """Timer of a wait for work, with growing intervals and an optional limit."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds, self._since, self._poll = seconds, time.monotonic(), _POLL

    def again(self) -> _Patience:
        """Return a timer that starts now with the same limit."""
        return _Patience(self._seconds)

    def goes_on(self) -> bool:
        """Wait for one interval and return True, or return False if the limit is reached."""
        if self._seconds is not None and time.monotonic() - self._since >= self._seconds:
            return False
        time.sleep(self._poll)
        self._poll = min(2 * self._poll, _LONGEST_POLL)
        return True
