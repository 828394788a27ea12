"""What is measured of a subnet in a run, wherever it is scored, and what makes two processes score it alike."""

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
"""Settings on which a subnet's numbers depend."""

_AGREED = "scored with"
_SUPERLM = "SuperLM "


class Scorer:
    """Measures subnets; runs the teacher on the held-out text when first needed."""

    def __init__(self, inputs: SearchInputs, superlms: Mapping[str, AutoDistilModel]) -> None:
        self._inputs, self._superlms = inputs, superlms

    @cached_property
    def proxy(self) -> Proxy:
        """The proxy of this run; only for runs with an objective that needs it."""
        inputs, blocks = self._inputs, self._inputs.config.eval_blocks
        if inputs.proxy_kind is None:
            return relation_proxy(inputs, blocks)
        assert inputs.text is not None
        return inputs.proxy_kind.open(inputs.teacher, inputs.text.held_out.spread(blocks), inputs.device)

    def evaluate(self, space: SearchSpace, subnet: Subnet) -> Evaluation:
        """Every column of the run."""
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
        """Every column but the proxy, on a student with random weights."""
        return self._costs(subnet, lambda: self._inputs.student(subnet))

    def _costs(self, subnet: Subnet, student: Callable[[], AutoDistilModel]) -> dict[str, float]:
        return objectives.costs(self._inputs.columns, subnet, self._inputs.teacher.vocabulary, student)


def check_scored_alike(
    inputs: SearchInputs, superlms: Mapping[str, AutoDistilModel] | None, archive: SharedArchive, study: str
) -> None:
    """Make sure that all who score subnets in `study` give the same subnet the same numbers.

    superlms: by space; None while they are not trained yet, to learn of other differences before.

    Raises:
        InputError: if others have another teacher, text, SuperLM or setting; or another machine, where time or memory
            is measured.
    """
    mine = {
        **inputs.identity,
        **{name: str(getattr(inputs.config, name)) for name in _SCORED_WITH},
        "columns": ", ".join(sorted(column.name for column in inputs.columns)),
        **{f"{_SUPERLM}{name}": model_sha256(superlm) for name, superlm in (superlms or {}).items()},
    }
    if inputs.predicts or any(column.measure is not None for column in inputs.columns):
        mine["machine"] = machine()
    theirs = archive.fixed(_AGREED, lambda: mine) if superlms is not None else archive.attribute(_AGREED) or mine
    if superlms is None:
        theirs = {key: value for key, value in theirs.items() if not key.startswith(_SUPERLM)}
    if unlike := [key for key in {**theirs, **mine} if theirs.get(key) != mine.get(key)]:
        details = "; ".join(f"{key} is {theirs.get(key)!r:.80} there and {mine.get(key)!r:.80} here" for key in unlike)
        raise InputError(
            f"study {study!r} holds what was scored otherwise: {details}. Use the same, or another --study"
        )
