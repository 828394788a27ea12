"""Estimates of the cost of training a SuperLM: steps, hours, memory of a device and size of a checkpoint.

Time is measured on a few training steps on this machine, or follows from the rates of a device (`step_cost`). Only the
work of distillation counts, which is less than a forward pass of the whole encoder:

- no pooler;
- in the teacher, no layer after the distilled one;
- in the distilled layer of the teacher and the last layer of a subnet, only Q, K and V, unless hidden states are
  distilled, too.

One multiply-add is two FLOPs here, as in the FLOP/s of a device.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from autodistil_search.base.device import Device
from autodistil_search.base.progress import Reporter
from autodistil_search.base.weighted_names import parse_relations
from autodistil_search.distillation.options import Execution, TrainOptions
from autodistil_search.distillation.sampling import Drawn
from autodistil_search.distillation.step_cost import Cost, Rates, costs
from autodistil_search.distillation.teacher_batches import Batch
from autodistil_search.distillation.training_step import ModelInTraining, last_hidden_of, subnets_of_step
from autodistil_search.spaces.cost import flops
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilConfig, AutoDistilModel
from autodistil_search.teachers.teacher import Teacher

_DRAWN_STEPS = 2000
"""Largest number of steps whose subnets are drawn for an estimate. Their mean cost is within 1 % of a longer run's."""

STRATA = 5
"""Number of steps that are timed: one from each fifth of a run's steps, ordered by work."""

_ROUNDS = 3
"""Timings of each step. Their median ignores one slow timing, such as the first or a disturbed one."""

_LONGEST_TIMING = 100.0
"""Seconds after which no further round of timings begins. The times of long steps vary little."""

_MAP = ("map of hidden states", "offset of that map")
"""Parameters of `layer_losses.LastHidden`, which train with a model and are not part of it."""

_FLOAT = 4
"""Bytes of a number: weights, gradients and moments are float32 in every precision."""

_HALF = 2
"""Bytes of a number in half precision."""


@dataclass(frozen=True)
class Work:
    """Multiply-adds of one step for one sequence.

    teacher: multiply-adds of the targets: forward pass and relations of the teacher, and with in-place distillation the
        relations of the largest subnet.
    subnets: multiply-adds of the forward passes of all subnets of the step.
    """

    teacher: float
    subnets: float

    @property
    def multiply_adds(self) -> float:
        """Return all multiply-adds: the teacher's, the subnets' forward, and twice the latter backward."""
        return self.teacher + 3 * self.subnets


@dataclass(frozen=True)
class Memory:
    """Bytes of memory on one device.

    teacher, weights, gradients, moments: bytes of the teacher's weights, and of the model's weights, gradients and
        AdamW moments.
    activations: bytes that the largest subnet keeps for its backward pass, and of the relations of teacher and student.
    peak: peak memory while steps were timed; on a CPU that of the whole process, with its libraries. None if no step
        was timed or the system does not report it.
    """

    teacher: int
    weights: int
    gradients: int
    moments: int
    activations: int
    peak: int | None = None

    @property
    def total(self) -> int:
        """Return the measured peak, or else the sum of the parts."""
        if self.peak is not None:
            return self.peak
        return self.teacher + self.weights + self.gradients + self.moments + self.activations


@dataclass(frozen=True)
class Plan:
    """Cost of training a SuperLM, or several together.

    Attributes:
        name: Name of the space, or `TOGETHER`.
        steps: Number of training steps.
        devices: Number of devices.
        rows: Sequences of a step on one device.
        seq_len: Tokens of a sequence.
        seconds: Seconds of a step.
        teacher_seconds: Seconds of the teacher in a step. They count only once for SuperLMs that train together.
        teacher: Cost of the teacher in a step on one device.
        rest: Cost of everything else in a step on one device.
        memory: Memory of a device.
        checkpoint: Bytes of a checkpoint.
        rates: Rates of the device; None if steps were timed.
    """

    name: str
    steps: int
    devices: int
    rows: int
    seq_len: int
    seconds: float
    teacher_seconds: float
    teacher: Cost
    rest: Cost
    memory: Memory
    checkpoint: int
    rates: Rates | None = None

    @property
    def hours(self) -> float:
        """Return the hours of all steps, without loading, saving and exchanging gradients."""
        return self.steps * self.seconds / 3600

    @property
    def flops(self) -> float:
        """Return the FLOPs of a step on one device, two for each multiply-add."""
        return self.teacher.flops + self.rest.flops

    @property
    def bounds(self) -> dict[str, float]:
        """Return the seconds of a step by FLOPs, memory traffic and launches alone; empty if steps were timed."""
        return self.rates.bounds(self.teacher + self.rest) if self.rates else {}


TOGETHER = "together"
"""Name of the plan of several SuperLMs that train together."""


def together(plans: Sequence[Plan]) -> Plan:
    """Return the plan of SuperLMs that train together, with one pass of the teacher for each batch."""
    first, teacher = plans[0], min((plan.teacher for plan in plans), key=lambda cost: cost.flops)
    rest = sum((plan.teacher + plan.rest - teacher for plan in plans), Cost(0, 0, 0))
    teacher_seconds = min(plan.teacher_seconds for plan in plans)
    if first.rates:
        seconds = first.rates.seconds(teacher + rest)
    else:
        seconds = teacher_seconds + sum(plan.seconds - teacher_seconds for plan in plans)
    memories = [plan.memory for plan in plans]
    states = [memory.weights + memory.gradients + memory.moments for memory in memories]
    peaks = [
        memory.peak + sum(states) - own for memory, own in zip(memories, states, strict=True) if memory.peak is not None
    ]
    memory = Memory(
        teacher=first.memory.teacher,
        weights=sum(memory.weights for memory in memories),
        gradients=sum(memory.gradients for memory in memories),
        moments=sum(memory.moments for memory in memories),
        activations=max(memory.activations for memory in memories),
        peak=max(peaks, default=None),
    )
    return replace(
        first,
        name=TOGETHER,
        seconds=seconds,
        teacher_seconds=teacher_seconds,
        teacher=teacher,
        rest=rest,
        memory=memory,
        checkpoint=sum(plan.checkpoint for plan in plans),
    )


def make_plan(
    space: SearchSpace,
    teacher: Teacher,
    options: TrainOptions,
    seq_len: int,
    device: Device,
    devices: int = 1,
    rates: Rates | None = None,
    reporter: Reporter | None = None,
) -> Plan:
    """Estimate the cost of training the SuperLM of `space`.

    Args:
        space: Space of the SuperLM.
        teacher: Teacher that gives the targets.
        options: Settings of the training.
        seq_len: Tokens of a sequence.
        device: Device and precision to run on.
        devices: Number of devices, each with its share of the batch.
        rates: Sustained rates of one device; None to time steps on `device`.
        reporter: Receiver of progress.
    """
    model = AutoDistilModel(teacher.student_config(space.largest, space))
    device.place(model)
    model.train()
    rows = math.ceil(options.batch_size / devices)
    work = work_of(teacher, model, options, seq_len)
    trained = trained_parameters(model.config, _map_width(teacher, options))
    memory = Memory(
        teacher=_teacher_bytes(teacher, device),
        weights=_FLOAT * (model.num_parameters() + sum(trained[name] for name in _MAP if name in trained)),
        gradients=_FLOAT * sum(trained.values()),
        moments=2 * _FLOAT * sum(trained.values()),
        activations=activation_bytes(model, teacher, options, rows, seq_len, device),
    )
    of_teacher, rest = costs(
        (work.teacher, 3 * work.subnets),
        teacher.subnet.first(teacher.layer + 1),
        _subnets_of_steps(model, options),
        options,
        (rows, seq_len),
        sum(trained.values()),
        device.precision,
    )
    if rates is None:
        timer = _Timer(model, teacher, options, (rows, seq_len), device)
        reset_peak_memory(device)
        timer.seconds(_largest_alone(space.largest))  # warms up, and needs more memory than any other step
        seconds = seconds_of_step(timer, typical_steps(model, options), reporter or Reporter(), space.name)
        memory = replace(memory, peak=peak_memory(device))
        teacher_seconds = statistics.median(timer.teacher_seconds() for _ in range(_ROUNDS))
    else:
        seconds, teacher_seconds = rates.seconds(of_teacher + rest), rates.seconds(of_teacher)
    return Plan(
        name=space.name,
        steps=options.steps,
        devices=devices,
        rows=rows,
        seq_len=seq_len,
        seconds=seconds,
        teacher_seconds=teacher_seconds,
        teacher=of_teacher,
        rest=rest,
        memory=memory,
        checkpoint=checkpoint_bytes(model.config, _map_width(teacher, options)),
        rates=rates,
    )


def _teacher_bytes(teacher: Teacher, device: Device) -> int:
    """Return the bytes of the teacher's weights, and of their copy in the precision of a step."""
    numbers = sum(parameter.numel() for parameter in teacher.model.parameters())
    return int(numbers) * (_FLOAT if device.precision == "fp32" else _FLOAT + _HALF)


def work_of(teacher: Teacher, model: AutoDistilModel, options: TrainOptions, seq_len: int) -> Work:
    """Return the work of a step; the work of subnets is the mean over the steps of the run."""
    reached = teacher.subnet.first(teacher.layer + 1)
    drawn = _subnets_of_steps(model, options)
    relations = parse_relations(options.relations)
    unused = len({*"qkv"} - {*"".join(name for name, _ in relations)})
    width, count = _map_width(teacher, options), len(relations)
    # The scores of X with itself have one gradient product, those of X and Y have two.
    trained = sum(1 if len(set(name)) > 1 else 2 / 3 for name, _ in relations)
    target = float(_forward_work(reached, seq_len, width > 0) + _relations_work(reached, seq_len, count))
    subnets = 0.0
    for step in drawn:
        in_place = False
        for subnet, role, _ in step:
            compared = _relations_work(subnet, seq_len, trained)
            subnets += _forward_work(subnet, seq_len, width > 0) + seq_len * subnet.hidden_size * width
            subnets += (1 + in_place) * compared  # with the teacher's relations, and with those of the largest subnet
            if not width:  # projections that no relation uses have no gradient
                subnets -= 2 / 3 * unused * seq_len * subnet.hidden_size * subnet.each_layer[-1].attention_width
            if options.in_place and not in_place and role == "largest":
                target, in_place = target + _relations_work(subnet, seq_len, count) / len(drawn), True
    return Work(target, subnets / len(drawn))


def _forward_work(subnet: Subnet, seq_len: int, hidden: bool) -> int:
    """Return the multiply-adds of the distilled part of a forward pass on one sequence.

    That is all layers but the last, and Q, K and V of the last; with `hidden`, all of the last.
    """
    last = subnet.each_layer[-1]
    if hidden:
        return flops(subnet, seq_len) - subnet.hidden_size**2
    return flops(subnet, seq_len) - flops(last, seq_len) + 3 * seq_len * subnet.hidden_size * last.attention_width


def _relations_work(subnet: Subnet, seq_len: int, count: float) -> float:
    """Return the multiply-adds of the scores of `count` relations of the last layer."""
    return count * seq_len * seq_len * subnet.each_layer[-1].attention_width


def _map_width(teacher: Teacher, options: TrainOptions) -> int:
    """Return the width to which hidden states are mapped; 0 if they are not distilled."""
    return teacher.subnet.hidden_size if options.hidden else 0


def _subnets_of_steps(model: AutoDistilModel, options: TrainOptions) -> list[list[Drawn]]:
    """Return the subnets of each step, of at most `_DRAWN_STEPS` steps."""
    return [subnets_of_step(model, options, step) for step in range(min(options.steps, _DRAWN_STEPS))]


def typical_steps(model: AutoDistilModel, options: TrainOptions) -> list[list[Drawn]]:
    """Return the subnets of `STRATA` steps whose mean cost is about that of the run.

    The steps are sorted by their work and divided into `STRATA` groups of equal size. The step nearest to the mean of
    each group is taken.
    """
    drawn = sorted(_subnets_of_steps(model, options), key=_work_of_subnets)
    strata = min(STRATA, len(drawn))
    edges = [len(drawn) * i // strata for i in range(strata + 1)]
    groups = [drawn[first:end] for first, end in itertools.pairwise(edges)]
    means = [statistics.fmean(map(_work_of_subnets, group)) for group in groups]
    return [
        min(group, key=lambda step: abs(_work_of_subnets(step) - mean))
        for group, mean in zip(groups, means, strict=True)
    ]


def _work_of_subnets(drawn: list[Drawn]) -> int:
    return sum(flops(subnet) for subnet, _, _ in drawn)


def _largest_alone(subnet: Subnet) -> list[Drawn]:
    return [Drawn(subnet, "largest", 1.0)]


class _Timer:
    """Timer of training steps on random token ids; the content of the ids does not affect the time."""

    def __init__(
        self,
        model: AutoDistilModel,
        teacher: Teacher,
        options: TrainOptions,
        shape: tuple[int, int],
        device: Device,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._teacher, self._options, self._device = teacher.cast(device), replace(options, lr=1e-6), device
        self._ids = _random_ids(model, shape, device)
        last_hidden = last_hidden_of(model, teacher, options, device)
        self._training = ModelInTraining(model, self._options, Execution(), device, last_hidden)
        self._clock = clock

    def seconds(self, drawn: list[Drawn]) -> float:
        """Return the seconds of one step with those subnets, as in `training_loop.distill`."""
        start = self._clock()
        self._training.begin(drawn)
        self._training.learn(self._batch())
        self._training.update(0, ())
        return self._since(start)

    def teacher_seconds(self) -> float:
        """Return the seconds of the teacher's part of a step: its forward pass and its relations."""
        start, batch = self._clock(), self._batch()
        assert batch.targets
        return self._since(start)

    def _batch(self) -> Batch:
        return Batch(self._ids, 1.0, True, self._teacher, self._options)

    def _since(self, start: float) -> float:
        self._device.synchronize()
        return self._clock() - start


def seconds_of_step(timer: _Timer, steps: list[list[Drawn]], reporter: Reporter, name: str) -> float:
    """Return the mean over `steps` of the median time of each step, in seconds.

    Each round times every step once, so that a slow period of the machine affects all steps alike.
    """
    timings: list[list[float]] = [[] for _ in steps]
    with reporter.bar(f"timing {name}", "steps", _ROUNDS * len(steps)) as bar:
        while len(timings[-1]) < _ROUNDS and sum(map(sum, timings)) < _LONGEST_TIMING:
            for times, drawn in zip(timings, steps, strict=True):
                times.append(timer.seconds(drawn))
                bar.advance(f"{times[-1]:.3g} s a step")
    return statistics.fmean(map(statistics.median, timings))


def activation_bytes(
    model: AutoDistilModel, teacher: Teacher, options: TrainOptions, rows: int, seq_len: int, device: Device
) -> int:
    """Return the bytes that the largest subnet keeps for its backward pass, and of the relations at their peak.

    Bytes are counted with one sequence and with two. Bytes that do not grow with sequences, such as weights in another
    precision, count once. Relations are float32 `(rows, R, T, T)`: those of the teacher, with in-place distillation
    those of the largest subnet, and two more while a loss is computed.
    """
    one, two = (_saved_bytes(model, teacher, options, (n, seq_len), device) for n in (1, 2))
    kept = len(parse_relations(options.relations)) * (2 if options.in_place else 1)
    relations = (kept + 2) * _FLOAT * rows * options.relation_heads * seq_len**2
    return one + (rows - 1) * (two - one) + relations


def _saved_bytes(
    model: AutoDistilModel, teacher: Teacher, options: TrainOptions, shape: tuple[int, int], device: Device
) -> int:
    last_hidden = last_hidden_of(model, teacher, options, device)
    training = ModelInTraining(model, options, Execution(), device, last_hidden)
    weights = {parameter.untyped_storage().data_ptr() for parameter in training.learner.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        training.begin(_largest_alone(model.config.subnet))
        training.learn(Batch(_random_ids(model, shape, device), 1.0, True, teacher, options))
    model.zero_grad(set_to_none=True)
    return sum(kept.values())


def _random_ids(model: AutoDistilModel, shape: tuple[int, int], device: Device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.config.vocab_size, shape, generator=generator).to(device.name)


def trained_parameters(config: AutoDistilConfig, map_width: int = 0) -> dict[str, int]:
    """Return the names and sizes of the parameters that distillation trains.

    They are those with a gradient from the largest subnet, which uses every parameter of any subnet. The pooler is
    never among them. They are determined without data.

    map_width: width to which hidden states are mapped; the map (`_MAP`) is then trained, too. 0 for relations alone,
        which do not train most of the last layer.
    """
    with torch.device("meta"):
        model = AutoDistilModel(config)
        ids = torch.zeros(1, 2, dtype=torch.long)
    projections, hidden = model.last_layer(ids)
    torch.stack([output.sum() for output in (*projections, *([hidden] if map_width else []))]).sum().backward()
    trained = {name: weight.numel() for name, weight in model.named_parameters() if weight.grad is not None}
    return trained | (dict(zip(_MAP, (config.hidden_size * map_width, map_width), strict=True)) if map_width else {})


def checkpoint_bytes(config: AutoDistilConfig, map_width: int = 0) -> int:
    """Return the bytes of the tensors in a checkpoint.

    They are all weights, and AdamW's two moments and step for each trained parameter.
    """
    with torch.device("meta"):
        weights = AutoDistilModel(config).num_parameters()
    trained = trained_parameters(config, map_width)
    weights += sum(trained[name] for name in _MAP if name in trained)
    return _FLOAT * (weights + 2 * sum(trained.values()) + len(trained))


def reset_peak_memory(device: Device) -> None:
    """Reset the count of `peak_memory`."""
    if device.counts_memory:
        device.reset_peak_memory()
        return
    with suppress(OSError):  # not on Linux, or not permitted: the peak then counts from the start of the process
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: Device) -> int | None:
    """Return the peak memory since the reset, in bytes; None if the system does not report it.

    The peak is that of tensors if the device counts its memory, else the resident memory of the process.
    """
    if device.counts_memory:
        return device.peak_memory()
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    kilobytes = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(kilobytes[0]) if kilobytes else None
