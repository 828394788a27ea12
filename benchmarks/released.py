"""A sandwich step of the released AutoDistil code against ours: the same subnets, batch and teacher, in one run.

    python benchmarks/released.py FOLDER [--batch-size 8] [--repeats 5] [--threads N]

FOLDER is a checkout of microsoft/autodistil, which is not part of this repository. Without it the script says so and
ends with 0. Only the model is loaded from FOLDER; the modules of transformers 2.1.1 that it imports for loading and
saving are replaced by stand-ins, which take no part in a step.

Both sides train the largest, the smallest and two random subnets of `tiny`, with heads 64 wide as in the released code,
in float32, with a random teacher of BERT-base's size, MSE of Q, K and V relations and the last hidden states. They
differ in what each side does by itself:

- The released model keeps weights of 12 layers x 768 and cuts every subnet from them. It computes the relations of all
  layers and their maps, a classification loss, and dropout. It has 12 relation heads, ours has 16.
- AdamW is torch's on both sides: fused here, one parameter after the other there, as in transformers 2.1.1.

Steps of both sides run in turn. The table has the least and the median time of a step and of the teacher's part.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from transformers import BertConfig, BertModel

from autodistil_search.base.device import Device
from autodistil_search.distillation.learning_rate import MAX_GRADIENT_NORM, WEIGHT_DECAY
from autodistil_search.distillation.options import TrainOptions
from autodistil_search.distillation.plan import _Timer
from autodistil_search.distillation.sampling import Drawn, draw
from autodistil_search.spaces.search_space import load_space
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilConfig, AutoDistilModel
from autodistil_search.teachers.loading import load_teacher
from autodistil_search.teachers.teacher import Teacher

MODEL = "BertForSequenceClassification_v1_AddHidLoss"
LAYERS, HIDDEN, HEADS, RATIO = 12, 768, 12, 4
MULTIPLIERS = ("depth_mult", "width_mult", "hidden_mult", "intermediate_mult")
Step = Sequence[Drawn]


class StandIn(nn.Module):
    """Stands in for the base class of models in transformers 2.1.1."""

    def __init__(self, config: Any, *_: Any, **__: Any) -> None:
        super().__init__()
        self.config = config

    def init_weights(self) -> None:
        """Fill all weights as the model does."""
        fill: Any = self._init_weights
        self.apply(fill)


def released_model(folder: Path) -> Any | None:
    """The class of the released SuperLM; None if the folder has no file with it."""
    for path in sorted(folder.rglob("modeling_bert*.py"), key=lambda path: (len(path.name), path)):
        text = path.read_text(encoding="utf-8", errors="replace")
        if f"class {MODEL}(" not in text or "attention_scores_QQ" not in text:
            continue
        package = ModuleType("released")
        package.__path__ = []  # relative imports of the file look here
        utilities, configuration = ModuleType("released.modeling_utils"), ModuleType("released.configuration_bert")
        vars(utilities).update(PreTrainedModel=StandIn, prune_linear_layer=None)
        vars(configuration).update(BertConfig=SimpleNamespace)
        files = ModuleType("released.file_utils")
        vars(files).update(
            {f"add_{end}_docstrings": lambda *_: lambda decorated: decorated for end in ("start", "end")}
        )
        for module in (package, utilities, configuration, files):
            sys.modules[module.__name__] = module
        spec = importlib.util.spec_from_file_location("released.modeling_bert", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        before = list(sys.path)
        spec.loader.exec_module(module)
        sys.path[:] = before
        return getattr(module, MODEL)
    return None


class Released:
    """The released training step on one batch."""

    def __init__(self, model_class: Any, ids: Tensor) -> None:
        sizes = {
            "vocab_size": 30522,
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "intermediate_size": RATIO * HIDDEN,
            "max_position_embeddings": 512,
            "type_vocab_size": 2,
        }
        config = SimpleNamespace(
            **sizes,
            hidden_act="gelu",
            hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.1,
            layer_norm_eps=1e-12,
            initializer_range=0.02,
            num_labels=2,
            output_attentions=True,
            output_hidden_states=True,
            output_intermediate=True,
        )
        self._teacher, self._model = model_class(config).eval(), model_class(config).train()
        self._inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "token_type_ids": torch.zeros_like(ids),
            "labels": torch.zeros(len(ids), dtype=torch.long),
        }
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=1e-6, weight_decay=WEIGHT_DECAY, foreach=False, fused=False
        )

    def teacher_seconds(self) -> float:
        """Seconds of the teacher in a step."""
        start = time.perf_counter()
        with torch.no_grad():
            self._teacher(**self._inputs)
        return time.perf_counter() - start

    def seconds(self, step: Step) -> float:
        """Seconds of one step with those subnets."""
        start = time.perf_counter()
        with torch.no_grad():
            _, logits, states, _, *relations, _ = self._teacher(**self._inputs)
        for subnet, _, _ in step:
            self._resize(subnet)
            _, own_logits, own_states, _, *own_relations, _ = self._model(**self._inputs, is_student=True)
            loss = cross_entropy(own_logits, logits.softmax(-1)) + mse_loss(own_states[-1], states[-1])
            for own, of_teacher in zip(own_relations, relations, strict=True):
                loss = loss + mse_loss(own[-1], of_teacher[-1])
            loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), MAX_GRADIENT_NORM)
        loss.item()
        self._optimizer.step()
        self._model.zero_grad()
        return time.perf_counter() - start

    def _resize(self, subnet: Subnet) -> None:
        """Set the sizes of the model, as fractions of the largest; exact, so that sizes are not rounded down."""
        heads, ratio = Fraction(subnet.heads, HEADS), Fraction(subnet.ffn_size, subnet.hidden_size)
        sizes = (Fraction(subnet.layers, LAYERS), heads, Fraction(subnet.hidden_size, HIDDEN), ratio)
        for module in self._model.modules():
            for name, value in zip(MULTIPLIERS, sizes, strict=True):
                setattr(module, name, value)


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("autodistil"))
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    model_class = released_model(given.folder) if given.folder.is_dir() else None
    if model_class is None:
        print(f"skipped: {given.folder} is no checkout of microsoft/autodistil ({MODEL} is not there)")
        return
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    space = replace(load_space("tiny"), name="tiny-64", head_dim=64)
    teacher = Teacher(
        BertModel(BertConfig(), add_pooling_layer=False).eval(), load_teacher().tokenizer, "random BERT-base", -1
    )
    model = AutoDistilModel(AutoDistilConfig().resized(space.largest, space)).train()
    shape = given.batch_size, given.seq_len
    options = TrainOptions(1000, given.batch_size, 1e-6, 0, "mse", "sandwich", space.relation_heads, hidden=1.0)
    ours = _Timer(model, teacher, options, shape, Device("cpu", "fp32"))
    theirs = Released(model_class, torch.randint(1000, 30000, shape))
    rng = random.Random(0)
    steps = [draw(space, "sandwich", None, "", rng) for _ in range(given.repeats)]
    sides: dict[str, Any] = {"released": theirs, "ours": ours}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for step in [steps[0], *steps]:  # the first round warms up
        for name, side in sides.items():
            times[name].append((side.seconds(step), side.teacher_seconds()))
    print(
        f"sandwich steps of tiny with heads 64 wide, {shape[0]} x {shape[1]} tokens, float32, {given.threads} threads\n"
    )
    print("| | released s | ours s | ratio |\n|---|---|---|---|")
    for word, of in (("least", min), ("median", statistics.median)):
        a, b = ([of(column) for column in zip(*times[name][1:], strict=True)] for name in sides)
        for part, x, y in (("", a[0], b[0]), (", teacher", a[1], b[1]), (", the rest", a[0] - a[1], b[0] - b[1])):
            print(f"| {word}{part} | {x:.3f} | {y:.3f} | {y / x:.2f} |")


if __name__ == "__main__":
    main()
