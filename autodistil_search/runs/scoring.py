"""The scoring of subnets by searches and workers, and the conditions under which their scores are equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

from autodistil_search.base.distributed import machine
from autodistil_search.base.errors import InputError
from autodistil_search.base.pretrained import model_sha256
from autodistil_search.nas import objectives
from autodistil_search.nas.evaluation import Evaluation
from autodistil_search.nas.proxies import Proxy
from autodistil_search.nas.shared_archive import SharedArchive
from autodistil_search.runs.search_inputs import SearchInputs
from autodistil_search.runs.train import relation_proxy
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel

_SCORED_WITH = (
    *("seq_len", "eval_blocks", "loss", "relations", "relation_heads"),
    *("proxy", "proxy_rows", "proxy_epochs", "proxy_lr"),
    *("latency_batch", "throughput_batch", "measured_seq_len"),
)
"""Settings on which the scores of a subnet depend."""

_AGREED = "scored with"
_SUPERLM = "SuperLM "


class Scorer:
    """Scorer of subnets. The teacher runs on the held-out text when the proxy is first needed."""

    def __init__(self, inputs: SearchInputs, superlms: Mapping[str, AutoDistilModel]) -> None:
        self._inputs, self._superlms = inputs, superlms

    @cached_property
    def proxy(self) -> Proxy:
        """Return the proxy of this run, which must have an objective that needs it."""
        inputs, blocks = self._inputs, self._inputs.config.eval_blocks
        if inputs.proxy_kind is None:
            return relation_proxy(inputs, blocks)
        assert inputs.text is not None
        return inputs.proxy_kind.open(inputs.teacher, inputs.text.held_out.spread(blocks), inputs.device)

    def evaluate(self, space: SearchSpace, subnet: Subnet) -> Evaluation:
        """Return the evaluation of a subnet with every column of the run."""
        if (superlm := self._superlms.get(space.name)) is None:
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


def check_scored_alike(
    inputs: SearchInputs, superlms: Mapping[str, AutoDistilModel] | None, archive: SharedArchive, study: str
) -> None:
    """Check that all processes that score subnets in `study` give the same subnet the same scores.

    Args:
        inputs: Inputs of this process.
        superlms: SuperLMs by space; None before their training, to find all other differences first.
        archive: Archive of the study.
        study: Name of the study, for messages.

    Raises:
        InputError: if the study has another teacher, text, SuperLM or setting. Another machine is an error only if
            time or memory is measured.
    """
    conditions_here = {
        **inputs.identity,
        **{name: str(getattr(inputs.config, name)) for name in _SCORED_WITH},
        "columns": ", ".join(sorted(column.name for column in inputs.columns)),
        **{f"{_SUPERLM}{name}": model_sha256(superlm) for name, superlm in (superlms or {}).items()},
    }
    if inputs.predicts or any(column.measure is not None for column in inputs.columns):
        conditions_here["machine"] = machine()
    conditions_there = (
        archive.fixed(_AGREED, lambda: conditions_here)
        if superlms is not None
        else archive.attribute(_AGREED) or conditions_here
    )
    if superlms is None:
        conditions_there = {key: value for key, value in conditions_there.items() if not key.startswith(_SUPERLM)}
    if unlike := [
        key for key in {**conditions_there, **conditions_here} if conditions_there.get(key) != conditions_here.get(key)
    ]:
        details = "; ".join(
            f"{key} is {conditions_there.get(key)!r:.80} there and {conditions_here.get(key)!r:.80} here"
            for key in unlike
        )
        raise InputError(
            f"study {study!r} holds subnets that were scored differently: {details}; allowed: the same values, or "
            "another --study"
        )
