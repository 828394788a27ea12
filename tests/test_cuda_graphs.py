"""Recorded passes of subnets, with a recorder that runs the same function again: what a GPU replays."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training_loop import CPU, OPTIONS, WITH_HIDDEN, _rows, _same, _superlm, _weights, streams, teacher
from torch import Tensor

from autodistil_search.base.errors import InputError
from autodistil_search.distillation import cuda_graphs
from autodistil_search.distillation.cuda_graphs import Pass, SubnetGraphs
from autodistil_search.distillation.options import Execution, TrainOptions
from autodistil_search.distillation.training_loop import distill
from autodistil_search.runs.training_inputs import check_cuda_graphs
from autodistil_search.settings.train import TrainConfig
from autodistil_search.superlm.step_weights import StepWeights
from autodistil_search.teachers.teacher import Teacher
from autodistil_search.text.blocks import Blocks

__all__ = ["streams", "teacher"]  # fixtures


class Tape:
    """Recorder that counts, and replays by running the function again. Recording itself computes nothing."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, compute: Pass) -> tuple[Callable[[], None], Tensor]:
        self.recorded += 1
        weights: StepWeights = compute.func.__self__.weights  # type: ignore[attr-defined]
        sums = [weights.word_sums, weights._sums]
        before = [tensor.clone() for tensor in sums]
        words = compute.args[0].words.grad  # type: ignore[attr-defined]
        words_before = words.clone()
        losses = compute()  # a recording marks the copies that are used, but changes no number
        for tensor, number in zip((*sums, words), (*before, words_before), strict=True):
            tensor.copy_(number)

        def replay() -> None:
            self.replayed += 1
            used = weights.unmark()
            losses.copy_(compute())
            weights.unmark()
            weights.mark(used)

        return replay, losses


@pytest.mark.parametrize("options", [OPTIONS, WITH_HIDDEN], ids=["relations", "hidden"])
def test_recorded_passes_train_the_same_weights(
    teacher: Teacher,
    streams: tuple[Blocks, Blocks],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: TrainOptions,
) -> None:
    tape, options, sample = Tape(), replace(options, steps=8, batch_size=5), streams[0].spread(4)
    monkeypatch.setattr(SubnetGraphs, "__init__", _with_recorder(SubnetGraphs.__init__, tape))
    found = []
    for recorded in (False, True):
        model, execution = _superlm(teacher), Execution(accumulate=2, cuda_graphs=recorded)
        folder = tmp_path / str(recorded)
        distill(model, teacher, streams[0], options, folder, CPU, execution=execution, sample_ids=sample)
        found.append(_weights(model))
    assert tape.recorded >= 2  # the largest subnet, for parts of three and of two rows
    assert tape.replayed > tape.recorded
    assert _same(*found)
    assert _rows(tmp_path / "False") == _rows(tmp_path / "True")


def _with_recorder(init: Any, recorder: Tape) -> Any:
    return lambda self, weights: init(self, weights, recorder)


def test_the_pass_that_was_not_used_for_the_longest_time_leaves() -> None:
    weights = StepWeights.__new__(StepWeights)
    weights._users = []
    recorded: list[int] = []

    def recorder(compute: Pass) -> tuple[Callable[[], None], Tensor]:
        recorded.append(int(compute()))
        return (lambda: None), compute()

    graphs = SubnetGraphs(weights, recorder, most=2)
    for key in [1] * 3 + [2] * 3 + [1] + [3] * 3 + [1] + [2] * 3:
        assert graphs.run(key, lambda key=key: torch.tensor(key)).item() == key  # type: ignore[misc]
    assert recorded == [1, 2, 3, 2]  # 2 left for 3, and 3 for 2


@pytest.mark.parametrize(
    ("changes", "named"),
    [({}, "--device cpu;"), ({"compile": True}, "--device cpu, --compile;"), ({"in_place": 0.5}, "--in-place 0.5;")],
)
def test_cuda_graphs_are_refused_where_nothing_can_be_recorded(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        check_cuda_graphs(TrainConfig(cuda_graphs=True, **changes), CPU)
    check_cuda_graphs(TrainConfig(**changes), CPU)


def test_all_tensors_of_the_inputs_are_copied() -> None:
    pytest.importorskip("triton")
    from autodistil_search.superlm.relation_kernels import Heads, KernelTarget

    x = torch.ones(1, 2, 1, 3)
    assert len(cuda_graphs._tensors(KernelTarget(Heads.of(x, x), torch.ones(1, 2), torch.ones(1, 1, 2)))) == 4
    nested = (torch.ones(2), ("a", torch.zeros(1)), None)
    assert len(cuda_graphs._tensors(nested)) == 2
    copies = cuda_graphs._with_tensors(nested, lambda tensor: tensor + 1)
    assert copies[1][0] == "a"
    assert copies[1][1].item() == 1
