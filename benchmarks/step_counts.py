"""Count launches and memory traffic of a training step on the fake GPU of the tests: the constants of `step_cost`.

    python benchmarks/step_counts.py

Prints `LAUNCHES` and `TRAFFIC` of `autodistil_search/distillation/step_cost.py` as counted now, in bfloat16. Steps that
differ in one part are compared. Sizes are toys: launches do not depend on them, and bytes grow with them. Each
operation reads its inputs once and writes its outputs once; attention is one kernel forward and two backward. Traffic
of weights is not among them. A kernel that the fake GPU does not run, such as one of Triton, is not counted either.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformers import BertConfig, BertModel

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import fake_gpu  # type: ignore[import-not-found]

from autodistil_search.base.device import Device
from autodistil_search.distillation.options import Execution, TrainOptions
from autodistil_search.distillation.step_cost import LAUNCHES, TRAFFIC
from autodistil_search.distillation.teacher_batches import TeacherBatches
from autodistil_search.distillation.training_step import ModelInTraining, last_hidden_of, subnets_of_step
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.teachers.loading import load_teacher
from autodistil_search.teachers.teacher import Teacher
from autodistil_search.text.blocks import Blocks

TOKENS = 8
OVERWRITES = ("copy_", "zero_", "fill_")
"""In-place operators that do not read what they write."""

_bytes = 0.0


def watch_traffic() -> None:
    """Add the bytes of all operators of the fake GPU, which must not be installed yet, to `_bytes`."""
    run, attention = fake_gpu._run, fake_gpu._Attention

    def counting_run(op: Any, *args: Any, **kwargs: Any) -> Any:
        result = run(op, *args, **kwargs)
        name = op._schema.name.removeprefix("aten::")
        if not op.is_view and name not in fake_gpu._ALLOCATIONS:
            moved = {id(tensor): tensor for tensor in tensors((args, kwargs, result))}
            again = [] if name in OVERWRITES else written(op, args)
            add(*moved.values(), *again)
        return result

    def forward(ctx: Any, *args: Any) -> Tensor:
        result: Tensor = attention_forward(ctx, *args)
        add(*tensors(args), result)
        return result

    def backward(ctx: Any, *gradients: Any) -> Any:
        results = attention_backward(ctx, *gradients)
        query, *_ = ctx.saved_tensors
        add(*tensors(ctx.saved_tensors), query, *gradients, *tensors(results))  # also its output, as large as queries
        return results

    attention_forward, attention_backward = attention.forward, attention.backward
    fake_gpu._run = counting_run
    attention.forward, attention.backward = staticmethod(forward), staticmethod(backward)


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors among arguments or results."""
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def written(op: Any, args: Any) -> Iterator[Tensor]:
    """The arguments that an operator changes."""
    for argument, value in zip(op._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from tensors(value)


def add(*moved: Tensor) -> None:
    """Add the bytes of tensors; expanded dimensions are in memory once."""
    global _bytes
    for tensor in moved:
        sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
        _bytes += tensor.element_size() * float(np.prod(sizes))


@cache
def step(
    rows: int = 2,
    teacher_layers: int = 2,
    teacher_hidden: int = 32,
    teacher_ffn: int = 64,
    layers: int = 3,
    hidden_size: int = 32,
    ffn: int = 64,
    heads: int = 4,
    relation_heads: int = 4,
    subnets: int = 1,
    relations: str = "qq",
    hidden: float = 1.0,
    loss: str = "kl",
) -> tuple[float, float]:
    """Launches and bytes of a step that trains the largest subnet, or the largest and another."""
    global _bytes
    device = Device(fake_gpu.NAME, "bf16")
    sizes: dict[str, Any] = {
        "num_hidden_layers": teacher_layers,
        "hidden_size": teacher_hidden,
        "intermediate_size": teacher_ffn,
    }
    bert = BertModel(BertConfig(vocab_size=100, num_attention_heads=4, max_position_embeddings=16, **sizes))
    teacher = Teacher(bert.eval().to(device.name), load_teacher().tokenizer, "toy", -1)
    choices: dict[str, Any] = {"hidden_size": (hidden_size,), "heads": (heads,)}
    if subnets > 1:
        choices = {"hidden_size": (16, hidden_size), "heads": (heads // 2, heads)}
    space = SearchSpace(
        name="toy",
        layers=(layers,),
        mlp_ratio=(ffn / hidden_size,),
        head_dim=8,
        relation_heads=relation_heads,
        **choices,
    )
    options = TrainOptions(
        steps=10,
        batch_size=rows,
        lr=1e-3,
        seed=0,
        loss=loss,
        sampling="largest" if subnets == 1 else "sandwich",
        random_subnets=None if subnets == 1 else 0,
        relations=relations,
        relation_heads=relation_heads,
        hidden=hidden,
    )
    model = AutoDistilModel(teacher.student_config(space.largest, space))
    device.place(model)
    model.train()
    text = Blocks([np.arange(5, 95, dtype=np.uint32)], TOKENS, 2, 3)
    last_hidden = last_hidden_of(model, teacher, options, device)
    training = ModelInTraining(model, options, Execution(), device, last_hidden)
    with TeacherBatches(teacher.cast(device), text, options, Execution(), device) as batches, ExitStack() as stack:
        for step in range(2):
            if step == 1:  # the first step also measures an uninformed model
                counts, _bytes = stack.enter_context(fake_gpu.counting()), 0.0
            training.begin(subnets_of_step(model, options, step))
            for batch in batches.of_step(step):
                training.learn(batch)
            training.update(step, (False, False))
    return float(counts.totals()["launches"]), _bytes


def launches(**changes: Any) -> float:
    """Launches of a step."""
    return step(**changes)[0]


def per_token(**changes: Any) -> float:
    """Bytes of a step for each token, without those that do not grow with the rows."""
    return (step(rows=6, **changes)[1] - step(rows=2, **changes)[1]) / 4 / TOKENS


def slope(measure: Callable[..., float], name: str, first: float, last: float, **others: Any) -> float:
    """Mean change of a measure with one of the arguments of `step`."""
    low, high = (measure(**{name: value}, **others) for value in (first, last))
    return (high - low) / (last - first)


THREE = "qq,kk,vv"


def counted_launches() -> dict[str, float]:
    """The constants of `LAUNCHES`."""
    one, two = launches(), launches(subnets=2)
    teacher_layer, first_layer = slope(launches, "teacher_layers", 2, 4), slope(launches, "layers", 3, 5)
    layer = slope(launches, "layers", 3, 5, subnets=2) - first_layer
    of_both = (launches(relations=THREE) - one) / 2
    relation = (launches(relations=THREE, subnets=2) - two) / 2 - of_both
    hidden = one - launches(hidden=0.0) - (teacher_layer + first_layer) / 2  # without it, the last layers are half
    subnet = two - one - 3 * layer - relation - hidden
    rest = one - 2 * teacher_layer - 3 * first_layer - of_both - subnet - hidden
    values = (rest, teacher_layer, of_both - relation, first_layer, layer, subnet, relation, hidden)
    return dict(zip(LAUNCHES._fields, values, strict=True))


def counted_traffic() -> dict[str, float]:
    """The constants of `TRAFFIC` for a token."""

    def of_layer(**sizes: Any) -> float:
        return slope(per_token, "layers", 3, 5, **sizes)

    def of_teacher_layer(**sizes: Any) -> float:
        return slope(per_token, "teacher_layers", 2, 4, **sizes)

    def of_relation(**sizes: Any) -> float:
        return (per_token(relations=THREE, **sizes) - per_token(relations="qq", **sizes)) / 2

    def of_hidden(**sizes: Any) -> float:
        return per_token(**sizes) - per_token(hidden=0.0, **sizes)

    found = {
        "layer, hidden": slope(of_layer, "hidden_size", 32, 64),
        "layer, attention": slope(of_layer, "heads", 4, 8) / 8,
        "layer, FFN": slope(of_layer, "ffn", 64, 128),
        "teacher layer, hidden and attention": slope(of_teacher_layer, "teacher_hidden", 32, 64),
        "teacher layer, FFN": slope(of_teacher_layer, "teacher_ffn", 64, 128),
        "width": slope(of_relation, "heads", 4, 8) / 8,
        "teacher width": slope(of_relation, "teacher_hidden", 32, 64),
        "hidden": slope(of_hidden, "teacher_hidden", 32, 64) - slope(of_teacher_layer, "teacher_hidden", 32, 64) / 2,
    }
    for loss in TRAFFIC.tables:
        of_one, of_two = (
            slope(of_relation, "relation_heads", 2, 4, loss=loss, subnets=subnets) / 4 / TOKENS for subnets in (1, 2)
        )
        found |= {f"tables of {loss}, teacher": 2 * of_one - of_two, f"tables of {loss}, subnet": of_two - of_one}
    return found


def main() -> None:
    """Count and print Markdown tables."""
    torch.manual_seed(0)
    watch_traffic()
    fake_gpu.install()
    print("| launches | now | in `step_cost` |\n|---|---|---|")
    for name, now in counted_launches().items():
        print(f"| {name} | {now:g} | {getattr(LAUNCHES, name):g} |")
    known = [*TRAFFIC.layer, sum(TRAFFIC.teacher_layer[:2]), TRAFFIC.teacher_layer[2]]
    known += [TRAFFIC.width, TRAFFIC.teacher_width, TRAFFIC.hidden]
    known += [passes for of_loss in TRAFFIC.tables.values() for passes in of_loss]
    print("\n| bytes of a token | now | in `step_cost` |\n|---|---|---|")
    for (name, now), before in zip(counted_traffic().items(), known, strict=True):
        print(f"| {name} | {now:.1f} | {before:g} |")


if __name__ == "__main__":
    main()
