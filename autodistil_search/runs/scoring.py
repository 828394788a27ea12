"""The scoring of subnets and baselines by a search and its workers, and the conditions under which scores are equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from autodistil_search.base.distributed import machine
from autodistil_search.base.errors import InputError
from autodistil_search.base.jobs import Job, Team, refuse_other_conditions
from autodistil_search.base.manifest import kind_of
from autodistil_search.base.plugins import Plugins
from autodistil_search.base.pretrained import model_sha256
from autodistil_search.base.progress import Reporter
from autodistil_search.nas import objectives
from autodistil_search.nas.archive import Archive
from autodistil_search.nas.baseline_training import Bench, RecipeGroup
from autodistil_search.nas.baselines import Baseline
from autodistil_search.nas.evaluation import Evaluation
from autodistil_search.nas.proxies import Proxy
from autodistil_search.runs.named_parts import plugin_origins
from autodistil_search.runs.run_folder import computing_versions, folder_id, mark_folder, superlm_folder
from autodistil_search.runs.search_inputs import SearchInputs, resolve_search
from autodistil_search.settings.search import SearchConfig
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.superlm.model_folder import load_model

_SCORED_WITH = (
    *("seq_len", "eval_blocks", "loss", "relations", "relation_heads"),
    *("proxy", "proxy_rows", "proxy_epochs", "proxy_lr"),
    *("latency_batch", "throughput_batch", "measured_seq_len"),
)
"""Settings on which the scores of a subnet depend."""

_AGREED = "scored with"
_SUPERLM = "SuperLM "


@dataclass(frozen=True)
class SubnetToScore:
    """Task of scoring a subnet."""

    space: str
    subnet: Subnet

    def __str__(self) -> str:
        return f"{self.subnet} of space {self.space}"


class Scorer:
    """Scorer of subnets and baselines. The teacher runs on the held-out text when the proxy is first needed.

    Args:
        inputs: Inputs of the search.
        superlms: SuperLM of each space by its name, if an objective needs them.
        plugins: Plug-ins of the search.
        reporter: Receiver of the progress of baselines.
        cache: Folder of trained baselines; None if none are trained.
    """

    def __init__(
        self,
        inputs: SearchInputs,
        superlms: Mapping[str, AutoDistilModel],
        plugins: Plugins | None = None,
        reporter: Reporter | None = None,
        cache: Path | None = None,
    ) -> None:
        self._inputs, self.superlms, self._plugins = inputs, superlms, plugins or Plugins()
        self._reporter, self._cache = reporter or Reporter(), cache

    def conditions(self) -> dict[str, str]:
        """Return everything on which scores depend; see `jobs.LoadedJob`."""
        return {
            **scored_with(self._inputs, self.superlms),
            **computing_versions(),
            **plugin_origins(self._inputs.config, self._plugins),
            **({} if self._cache is None else {"cache of baselines": folder_id(self._cache)}),
        }

    def job(self) -> Job:
        """Return the job by which workers score as this scorer does."""
        if self._cache is not None:
            mark_folder(self._cache)
        return ScoringJob(
            conditions=self.conditions(),
            threads=torch.get_num_threads(),
            settings=self._inputs.config.for_workers(),
            plugins=self._plugins,
            predictor=self._inputs.predictor.fitted if self._inputs.predicts else None,
            cache=self._cache,
        )

    def run(self, task: SubnetToScore | RecipeGroup) -> Evaluation | list[Baseline]:
        """Return the evaluation of a subnet, or the measured baselines of a group of recipes."""
        if isinstance(task, RecipeGroup):
            return self.bench.train_and_score(task)
        return self.evaluate(self._spaces[task.space], task.subnet)

    @cached_property
    def _spaces(self) -> dict[str, SearchSpace]:
        return {space.name: space for space in self._inputs.spaces}

    @cached_property
    def proxy(self) -> Proxy:
        """Return the proxy of this run, which must have an objective that needs it."""
        inputs, blocks = self._inputs, self._inputs.config.eval_blocks
        assert inputs.text is not None
        return inputs.proxy_kind.open(inputs.teacher, inputs.text.held_out.spread, blocks, inputs.device)

    @cached_property
    def bench(self) -> Bench:
        """Return the conditions under which baselines are trained and measured."""
        inputs = self._inputs
        assert inputs.text is not None
        assert self._cache is not None
        identity = {**inputs.identity, "seq_len": str(inputs.config.seq_len)}
        for name in ("spaces", "proxy_task"):  # the baselines' weights do not depend on them
            identity.pop(name, None)
        return Bench(
            teacher=inputs.teacher,
            begin_text=inputs.text.begin,
            proxy=self.proxy,
            compares=inputs.proxy_kind.compares,
            columns=inputs.columns,
            options_of=inputs.options_of,
            init=inputs.config.init,
            sample_ids=inputs.sample_ids,
            held_out=inputs.text.held_out.spread,
            identity=identity,
            cache=self._cache,
            device=inputs.device,
            reporter=self._reporter,
            execution=inputs.execution,
        )

    def evaluate(self, space: SearchSpace, subnet: Subnet) -> Evaluation:
        """Return the evaluation of a subnet with every column of the run."""
        if (superlm := self.superlms.get(space.name)) is None:
            measured = self.costs(subnet)
            self._inputs.check_within_box(space, subnet, measured)
            return Evaluation(space.name, subnet, measured)
        measured = self._costs(subnet, lambda: superlm.extract(subnet))
        if (proxy := self._inputs.proxy_objective) is not None:
            measured[proxy.name] = self.proxy.score(superlm, subnet)
        self._inputs.check_within_box(space, subnet, measured)
        return Evaluation(space.name, subnet, measured)

    def costs(self, subnet: Subnet) -> dict[str, float]:
        """Return every column except the proxy, measured on a student with random weights."""
        return self._costs(subnet, lambda: self._inputs.student(subnet))

    def _costs(self, subnet: Subnet, student: Callable[[], AutoDistilModel]) -> dict[str, float]:
        return objectives.costs(self._inputs.columns, subnet, self._inputs.teacher.vocabulary, student)


def scored_by(team: Team, space: SearchSpace, subnets: Sequence[Subnet]) -> Iterator[Evaluation]:
    """Yield the evaluations of subnets as the processes of a team finish them."""
    for _, evaluation in team.results([SubnetToScore(space.name, subnet) for subnet in subnets]):
        yield evaluation


@dataclass(frozen=True, kw_only=True)
class ScoringJob(Job):
    """Scoring in a worker, which reads teacher, text and SuperLMs by the paths and names of the search.

    Attributes:
        settings: Settings of the search, from `SearchConfig.for_workers`.
        plugins: Plug-ins that were given in Python.
        predictor: State of the fitted predictor of latency; None if it is not used.
        cache: Folder of trained baselines; None if none are trained.
    """

    settings: Mapping[str, Any]
    plugins: Plugins
    predictor: Mapping[str, Any] | None
    cache: Path | None

    def load(self) -> Scorer:
        """Load the inputs of the search; see `jobs.Job`."""
        config = SearchConfig.from_dict(self.settings)
        inputs = resolve_search(config, plugins=self.plugins, begun=True, trains=False)
        if self.predictor is not None:
            inputs.predictor.take(self.predictor)
        return Scorer(inputs, _load_superlms(inputs, config.folder), self.plugins, cache=self.cache)


def _load_superlms(inputs: SearchInputs, folder: Path) -> dict[str, AutoDistilModel]:
    """Return the SuperLM of each space from the `folder` of a search, if an objective needs it."""
    if inputs.proxy_objective is None:
        return {}
    superlms = {}
    for space in inputs.spaces:
        path = superlm_folder(folder, space.name)
        if kind_of(path) is None and not (path / "model.safetensors").is_file():
            raise InputError(f"{path} holds no SuperLM; allowed: workers that see the folder of the search")
        superlms[space.name] = load_model(path, AutoDistilModel)
        inputs.device.place(superlms[space.name])
    return superlms


def scored_with(inputs: SearchInputs, superlms: Mapping[str, AutoDistilModel] | None) -> dict[str, str]:
    """Return the data and settings on which the scores of subnets depend.

    Args:
        inputs: Inputs of the search.
        superlms: SuperLMs by space; None before their training.
    """
    conditions = {
        **inputs.identity,
        **{name: str(getattr(inputs.config, name)) for name in _SCORED_WITH},
        "columns": ", ".join(sorted(column.name for column in inputs.columns)),
        **{f"{_SUPERLM}{name}": model_sha256(superlm) for name, superlm in (superlms or {}).items()},
    }
    if inputs.predicts or any(column.measure is not None for column in inputs.columns):
        conditions["machine"] = machine()
    return conditions


def check_scored_alike(
    inputs: SearchInputs, superlms: Mapping[str, AutoDistilModel] | None, archive: Archive, study: str
) -> None:
    """Check that all searches that use `study` give the same subnet the same scores.

    Args:
        inputs: Inputs of this search.
        superlms: SuperLMs by space; None before their training, to find all other differences first.
        archive: Archive of the study.
        study: Name of the study, for messages.

    Raises:
        InputError: if the study has another teacher, text, SuperLM or setting. Another machine is an error only if
            time or memory is measured.
    """
    here = scored_with(inputs, superlms)
    there = archive.fixed(_AGREED, lambda: here) if superlms is not None else archive.attribute(_AGREED) or here
    if superlms is None:
        there = {key: value for key, value in there.items() if not key.startswith(_SUPERLM)}
    refuse_other_conditions(
        there, here, f"study {study!r} holds subnets that were scored differently", "another --study"
    )
