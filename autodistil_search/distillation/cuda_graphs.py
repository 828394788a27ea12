"""Recorded passes of subnets, as CUDA graphs: one launch for all kernels of a forward and a backward pass."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from autodistil_search.distillation.teacher_batches import Targets
from autodistil_search.superlm.step_weights import StepWeights
from autodistil_search.superlm.working_copy import WorkingCopy

_RUNS_BEFORE = 2
"""Runs of a pass before it is recorded: they load kernels and allocate what must stay where it is."""

_MOST = 256
"""Largest number of recorded passes, that of the subnets in a shipped space. They share one pool of memory."""

Pass = Callable[[], Tensor]


class SubnetInputs(NamedTuple):
    """Inputs of the passes of a step.

    input_ids: `(B, T)` token ids. words: their word embeddings, a leaf of the graph of gradients. targets: outputs of
    the teacher.
    """

    input_ids: Tensor
    words: Tensor
    targets: Targets


@dataclass(frozen=True)
class _Recorded:
    replay: Callable[[], None]
    losses: Tensor
    used: list[WorkingCopy]


def record(compute: Pass) -> tuple[Callable[[], None], Tensor]:
    """Record `compute` as a CUDA graph, without running it; returns its replay, and its result in static memory."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_pool(), stream=_stream()):
        losses = compute()
    return graph.replay, losses


class SubnetGraphs:
    """Recorded passes of the subnets of a model. A pass that is rarely used runs as it is.

    Args:
        weights: Weights of the model; they and their gradients stay where they are.
        recorder: Function that records a pass.
        most: Largest number of recorded passes; the one that was not used for the longest time leaves.
    """

    def __init__(
        self,
        weights: StepWeights,
        recorder: Callable[[Pass], tuple[Callable[[], None], Tensor]] = record,
        most: int = _MOST,
    ) -> None:
        self._weights, self._recorder, self._most = weights, recorder, most
        self._inputs: dict[torch.Size, SubnetInputs] = {}
        self._runs: Counter[Hashable] = Counter()
        self._recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()

    def static(self, inputs: SubnetInputs) -> SubnetInputs:
        """Return a copy of `inputs` in memory that is the same for all steps with inputs of this shape."""
        shape = inputs.input_ids.shape
        if shape not in self._inputs:
            copies = _with_tensors(inputs, lambda tensor: tensor.detach().clone())
            copies.words.requires_grad_().grad = torch.zeros_like(copies.words)
            self._inputs[shape] = copies
        kept = self._inputs[shape]
        with torch.no_grad():
            for own, given in zip(_tensors(kept), _tensors(inputs), strict=True):
                own.copy_(given)
            assert kept.words.grad is not None
            kept.words.grad.zero_()
        return kept

    def run(self, key: Hashable, compute: Pass) -> Tensor:
        """Return the result of `compute`, which reads static inputs and adds to gradients: run, or replayed.

        key: everything on which the kernels of the pass and their constants depend.
        """
        if key not in self._recorded:
            self._runs[key] += 1
            if self._runs[key] <= _RUNS_BEFORE:
                return _aside(compute)
            self._record(key, compute)
        self._recorded.move_to_end(key)
        recorded = self._recorded[key]
        recorded.replay()
        self._weights.mark(recorded.used)
        return recorded.losses.clone()  # the memory is used by other graphs, too

    def _record(self, key: Hashable, compute: Pass) -> None:
        before = self._weights.unmark()
        replay, losses = self._recorder(compute)
        used = self._weights.unmark()
        self._weights.mark(before)
        self._recorded[key] = _Recorded(replay, losses, used)
        if len(self._recorded) > self._most:
            old, _ = self._recorded.popitem(last=False)
            self._runs[old] = 0


def _aside(compute: Pass) -> Tensor:
    """Run `compute` on the stream on which it is recorded later, as CUDA graphs of backward passes require."""
    if not torch.cuda.is_available():
        return compute()
    current, stream = torch.cuda.current_stream(), _stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        losses = compute()
    current.wait_stream(stream)
    return losses


_shared: dict[str, Any] = {}


def _pool() -> Any:
    if "pool" not in _shared:
        _shared["pool"] = torch.cuda.graph_pool_handle()
    return _shared["pool"]


def _stream() -> torch.cuda.Stream:
    if "stream" not in _shared:
        _shared["stream"] = torch.cuda.Stream()
    stream: torch.cuda.Stream = _shared["stream"]
    return stream


def _with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return `value` with changed tensors; they may be inside of tuples and dataclasses."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        items = [_with_tensors(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{field.name: _with_tensors(getattr(value, field.name), change) for field in fields(value)}
        )
    return value


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors inside of `value`."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _with_tensors(value, keep)
    return found
