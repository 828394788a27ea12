"""The time of a training step by formula: FLOPs, memory traffic and launches against the rates of a device.

A step takes at least as long as the slowest of the three needs alone. On a GPU the other two overlap with it: kernels
compute while they read, and the host launches ahead of them. Waits of the host for the device are not counted; a step
has one.

The counts below are those of a step in half precision on a fake GPU, which sees every operation and its tensors:
`python benchmarks/step_counts.py` prints them. Each operation reads its inputs once and writes its outputs once.
`tests/test_fake_gpu.py` compares the formula with the launches of a whole step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from autodistil_search.base.errors import InputError
from autodistil_search.base.user_input import meant, quoted
from autodistil_search.base.weighted_names import parse_relations
from autodistil_search.distillation.options import TrainOptions
from autodistil_search.distillation.sampling import Drawn
from autodistil_search.spaces.cost import params_by_part
from autodistil_search.spaces.subnet import Subnet

SUSTAINED_FLOPS = 0.4
"""Share of a device's peak FLOP/s that the matrix products of a step reach. They are small: a few hundred wide."""

SUSTAINED_BANDWIDTH = 0.8
"""Share of a device's peak bandwidth that elementwise kernels reach."""

LAUNCH_SECONDS = 9e-6
"""Time that the host needs for one operation: Python, autograd, the dispatcher and the driver."""


class Peak(NamedTuple):
    """Peak rates of a device, as its maker states them, without sparsity.

    half: FLOP/s of matrix products in bfloat16, or in float16 if `bf16` is False. single: FLOP/s in float32, not TF32,
    which torch does not use by default. bandwidth: bytes per second of its memory.
    """

    half: float
    single: float
    bandwidth: float
    bf16: bool = True


DEVICES = {
    # NVIDIA H200 datasheet, nvidia.com/en-us/data-center/h200
    "H200 NVL": Peak(835e12, 60e12, 4.8e12),
    "H200": Peak(989e12, 67e12, 4.8e12),
    # NVIDIA H100 datasheet, nvidia.com/en-us/data-center/h100; bandwidth of PCIe: product brief PB-11133-001
    "H100 NVL": Peak(835e12, 60e12, 3.9e12),
    "H100 PCIe": Peak(756e12, 51e12, 2.0e12),
    "H100": Peak(989e12, 67e12, 3.35e12),
    # NVIDIA A100 datasheet, nvidia.com/en-us/data-center/a100
    "A100 40GB": Peak(312e12, 19.5e12, 1.555e12),
    "A100 PCIe": Peak(312e12, 19.5e12, 1.935e12),
    "A100": Peak(312e12, 19.5e12, 2.039e12),
    # NVIDIA A30, A40 and A10 datasheets, nvidia.com/en-us/data-center/products
    "A30": Peak(165e12, 10.3e12, 0.933e12),
    "A40": Peak(149.7e12, 37.4e12, 0.696e12),
    "A10": Peak(125e12, 31.2e12, 0.6e12),
    # NVIDIA L40S and L4 datasheets, nvidia.com/en-us/data-center/l40s and /l4
    "L40S": Peak(362e12, 91.6e12, 0.864e12),
    "L4": Peak(121e12, 30.3e12, 0.3e12),
    # NVIDIA V100 and T4 datasheets, nvidia.com/en-us/data-center/v100 and /tesla-t4
    "V100 PCIe": Peak(112e12, 14e12, 0.9e12, bf16=False),
    "V100": Peak(125e12, 15.7e12, 0.9e12, bf16=False),
    "T4": Peak(65e12, 8.1e12, 0.3e12, bf16=False),
    # NVIDIA RTX A6000 datasheet; NVIDIA Ada and Ampere GA102 architecture whitepapers (float32 accumulation)
    "RTX A6000": Peak(154.8e12, 38.7e12, 0.768e12),
    "RTX 6000 Ada": Peak(364e12, 91.1e12, 0.96e12),
    "RTX 4090": Peak(165e12, 82.6e12, 1.008e12),
    "RTX 3090": Peak(71e12, 35.6e12, 0.936e12),
    # AMD Instinct MI300X data sheet, amd.com/en/products/accelerators/instinct/mi300/mi300x.html
    "MI300X": Peak(1307e12, 163.4e12, 5.3e12),
}
"""Known devices. A name without form factor is the SXM module."""


def peak_of(name: str) -> Peak | None:
    """Return the peak rates of a device by its name, such as "NVIDIA H100 80GB HBM3"; None for an unknown device.

    A name of `DEVICES` matches if all of its words are among those of `name`. The most words decide.
    """
    words = _words(name)
    matches = [known for known in DEVICES if _words(known) <= words]
    return DEVICES[max(matches, key=lambda known: len(_words(known)))] if matches else None


def _words(name: str) -> set[str]:
    return set(name.lower().replace("-", " ").replace("_", " ").split())


def known_peak(name: str) -> Peak:
    """Return the peak rates of the device that `--device-name` names.

    Raises:
        InputError: if the device is unknown; the message lists the known names.
    """
    peak = peak_of(name)
    if peak is None:
        raise InputError(
            f"--device-name {quoted(name)}{meant(name.upper(), DEVICES)}; allowed: {', '.join(DEVICES)}, or state "
            "--flops-per-second and --bandwidth"
        )
    return peak


@dataclass(frozen=True)
class Cost:
    """FLOPs, bytes of memory traffic and launched operations, of a step or a part of it, on one device."""

    flops: float
    traffic: float
    launches: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.traffic + other.traffic, self.launches + other.launches)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.flops - other.flops, self.traffic - other.traffic, self.launches - other.launches)


@dataclass(frozen=True)
class Rates:
    """Sustained rates of a device.

    flops: FLOP/s. bandwidth: bytes per second; None if it is not known, and traffic then does not count.
    launch_seconds: seconds of one launch.
    """

    flops: float
    bandwidth: float | None
    launch_seconds: float = LAUNCH_SECONDS

    @classmethod
    def of(cls, peak: Peak, precision: str) -> Rates:
        """Return the rates that a device with these peak rates sustains in `fp32`, `bf16` or `fp16`."""
        flops = peak.single if precision == "fp32" else peak.half
        return cls(SUSTAINED_FLOPS * flops, SUSTAINED_BANDWIDTH * peak.bandwidth)

    def bounds(self, cost: Cost) -> dict[str, float]:
        """Return the seconds that FLOPs, memory traffic and launches need alone, by name."""
        bounds = {"FLOPs": cost.flops / self.flops, "launches": cost.launches * self.launch_seconds}
        return bounds if self.bandwidth is None else {**bounds, "memory traffic": cost.traffic / self.bandwidth}

    def seconds(self, cost: Cost) -> float:
        """Return the seconds of a step: those of the slowest bound."""
        return max(self.bounds(cost).values())


class Launches(NamedTuple):
    """Operations that each part of a step launches.

    step: once a step: loading, clipping, AdamW, the gradient of the word embeddings.
    teacher_layer: a layer of the teacher, forward.
    teacher_relation: the table of one relation.
    first_layer: a layer of the step's first subnet, forward and backward.
    layer: a layer of a later subnet, whose weights are slices.
    subnet: a subnet, besides its layers and losses.
    relation: one relation of a subnet, with its gradient.
    hidden: the loss of hidden states of a subnet, with its gradient.
    """

    step: float
    teacher_layer: float
    teacher_relation: float
    first_layer: float
    layer: float
    subnet: float
    relation: float
    hidden: float


LAUNCHES = Launches(
    step=36, teacher_layer=12, teacher_relation=1, first_layer=42, layer=44, subnet=28, relation=4, hidden=27
)
"""Counts with the Triton kernels of the relation losses."""

_UNFINISHED = 0.5
"""Share of a layer's launches and traffic for its Q, K and V alone, to which a last layer is reduced without the loss
of hidden states."""


class Traffic(NamedTuple):
    """Bytes of memory traffic.

    Of a token, for each dimension of hidden states, attention and FFN: `layer` of a subnet forward and backward,
    `teacher_layer` forward. `width`: for each attention dimension of a subnet and relation, to split and merge heads.
    `teacher_width`: likewise of the teacher. `hidden`: for each hidden dimension of the teacher, the loss of hidden
    states. `embeddings`: for each hidden dimension of a subnet, its embeddings.

    `tables`: passes over the float32 scores of a relation, by loss: of the teacher and of a subnet. The Triton kernels
    store none; `width` and `teacher_width` are then estimates by what the kernels load.

    Of a weight, by estimate: `teacher_weight` to read it, `trained_weight` for its copy, clipping and AdamW, and
    `weight` to read it and add to its gradient in each subnet.
    """

    layer: tuple[float, float, float]
    teacher_layer: tuple[float, float, float]
    width: float
    teacher_width: float
    tables: dict[str, tuple[float, float]]
    hidden: float
    embeddings: float
    teacher_weight: float
    trained_weight: float
    weight: float


TRAFFIC = Traffic(
    layer=(72, 66, 24),
    teacher_layer=(40, 8, 8),
    width=46,
    teacher_width=12,
    tables={"kl": (0, 0), "mse": (0, 0)},
    hidden=90,
    embeddings=100,
    teacher_weight=2,
    trained_weight=50,
    weight=12,
)


def launches(
    teacher_layers: int, layers: Sequence[int], relations: int, hidden: bool, counts: Launches = LAUNCHES
) -> tuple[float, float]:
    """Return the launches of the teacher in a step, and those of everything else.

    Args:
        teacher_layers: Number of layers of the teacher up to the distilled layer.
        layers: Number of layers of each subnet of the step.
        relations: Number of relations in the loss.
        hidden: True if the last hidden states are distilled.
        counts: Launches of each part.
    """
    unfinished = 0 if hidden else _UNFINISHED
    teacher = counts.teacher_layer * (teacher_layers - unfinished) + counts.teacher_relation * relations
    subnet = counts.subnet + counts.relation * relations + counts.hidden * hidden
    per_layer = [counts.first_layer, *[counts.layer] * (len(layers) - 1)]
    of_layers = sum(cost * (depth - unfinished) for cost, depth in zip(per_layer, layers, strict=True))
    return teacher, counts.step + subnet * len(layers) + of_layers


def costs(
    multiply_adds: tuple[float, float],
    teacher: Subnet,
    steps: Sequence[Sequence[Drawn]],
    options: TrainOptions,
    shape: tuple[int, int],
    trained: int,
    precision: str,
) -> tuple[Cost, Cost]:
    """Return the cost of the teacher in a step and that of everything else, as means over `steps`.

    Args:
        multiply_adds: Multiply-adds of the teacher and of everything else, for one sequence.
        teacher: Layers of the teacher up to the distilled one.
        steps: Subnets of each step.
        options: Settings of the training.
        shape: Number of sequences of a step on one device, and of tokens in a sequence.
        trained: Number of trained parameters.
        precision: Precision of the matrix products.
    """
    rows, seq_len = shape
    relations, hidden = len(parse_relations(options.relations)), options.hidden > 0
    teacher_launches = other_launches = traffic = 0.0
    for step in steps:
        parts = launches(teacher.layers, [drawn.subnet.layers for drawn in step], relations, hidden)
        teacher_launches += parts[0] / len(steps)
        other_launches += parts[1] / len(steps)
        for drawn in step:
            of_tokens = _layers_traffic(drawn.subnet, TRAFFIC.layer, hidden, precision)
            of_tokens += TRAFFIC.embeddings * drawn.subnet.hidden_size + TRAFFIC.hidden * hidden * teacher.hidden_size
            of_tokens += relations * TRAFFIC.width * drawn.subnet.each_layer[-1].attention_width
            of_tokens += relations * _table(options, seq_len, teacher=False)
            traffic += (rows * seq_len * of_tokens + TRAFFIC.weight * _weights(drawn.subnet)) / len(steps)
    of_tokens = _layers_traffic(teacher, TRAFFIC.teacher_layer, hidden, precision)
    of_tokens += relations * TRAFFIC.teacher_width * teacher.each_layer[-1].attention_width
    of_tokens += relations * _table(options, seq_len, teacher=True)
    teacher_traffic = rows * seq_len * of_tokens + TRAFFIC.teacher_weight * _weights(teacher)
    return (
        Cost(2 * rows * multiply_adds[0], teacher_traffic, teacher_launches),
        Cost(2 * rows * multiply_adds[1], traffic + TRAFFIC.trained_weight * trained, other_launches),
    )


def _layers_traffic(subnet: Subnet, per_dimension: tuple[float, float, float], hidden: bool, precision: str) -> float:
    """Return the bytes of a token in all layers. In float32, attention and FFN move twice the bytes."""
    of_hidden, of_attention, of_ffn = per_dimension
    wide = 2 if precision == "fp32" else 1
    of_layers = [
        of_hidden * sizes.hidden_size + wide * (of_attention * sizes.attention_width + of_ffn * sizes.ffn_size)
        for sizes in subnet.each_layer
    ]
    return sum(of_layers) - (0 if hidden else _UNFINISHED * of_layers[-1])


def _table(options: TrainOptions, seq_len: int, teacher: bool) -> float:
    """Return the bytes of a token's scores in one relation, over all passes."""
    of_teacher, of_subnet = TRAFFIC.tables[options.loss]
    return 4 * options.relation_heads * seq_len * (of_teacher if teacher else of_subnet)


def _weights(subnet: Subnet) -> int:
    """Return the number of weights in the layers."""
    parts = params_by_part(subnet)
    return parts["attention"] + parts["FFN"]
