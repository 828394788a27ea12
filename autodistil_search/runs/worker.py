"""A worker: scores the subnets that searches at a study ask for, on whatever machine it runs."""

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
"""Seconds between looks at a study that has no work, at first; they double up to `_LONGEST_POLL`."""
_LONGEST_POLL = 2.0


def work(
    storage: str,
    study: str,
    superlm: str | Path | None = None,
    patience: float | None = None,
    reporter: Reporter | None = None,
    plugins: Plugins | None = None,
) -> int:
    """Score subnets for the searches at `study` until they have ended; returns how many.

    Settings, teacher and text are those of the search, whose names must mean the same here; that they do is checked.

    Args:
        storage: As given to the search: a database's URL, or the path of a journal file.
        study: Name of the study there. If it is not there yet, or not ready, the worker waits.
        superlm: Folder of the search, or a copy of it, with the SuperLMs; the path that it has there if not given.
        patience: Seconds without work after which to leave; else the worker waits for as long as a search may go on.
        reporter: Told of what happens.
        plugins: As of the search.

    Raises:
        InputError: if something is not what the search has.
    """
    if patience is not None and not (is_finite(patience) and patience >= 0):
        raise InputError(f"--patience {quoted(patience)}; allowed: 0 or numbers above")
    reporter = reporter or Reporter()
    wait = _Patience(patience)
    with open_storage(storage) as opened:

        def published() -> dict[str, Any]:
            studies = optuna.get_all_study_summaries(opened, include_best_trial=False)
            return next((each.user_attrs for each in studies if each.study_name == study), {})

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
        ready = wait.again()  # loading teacher and text may have taken longer than patience lasts
        return _work(inputs, archive, Scorer(inputs, superlms), ready, lambda: all_ended(published()), reporter)


def _load_superlms(inputs: SearchInputs, folder: Path) -> dict[str, AutoDistilModel]:
    """The SuperLM of each space from the `folder` of a search, if an objective needs them."""
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
    """Waits a little longer each time, as long as there is patience left."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds, self._since, self._poll = seconds, time.monotonic(), _POLL

    def again(self) -> _Patience:
        """All patience from now on."""
        return _Patience(self._seconds)

    def goes_on(self) -> bool:
        """Wait; False if patience has run out."""
        if self._seconds is not None and time.monotonic() - self._since >= self._seconds:
            return False
        time.sleep(self._poll)
        self._poll = min(2 * self._poll, _LONGEST_POLL)
        return True
