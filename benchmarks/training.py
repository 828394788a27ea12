"""What a training step costs and where its time goes: ratios in one run, as Markdown tables.

    python benchmarks/training.py [--only 1,2] [--repeats 5]

1 a step of four subnets against their four extracted students; 2 the fused relation losses against the plain formulas;
3 the kinds of work in a default step, and a cache of the teacher's outputs; 4 time against batch, length and space; 5 a
student against transformers' `BertModel` of the same shape; 6 layers through `torch.compile`, two minutes of compiling;
7 the share of this machine's own peak that a default step reaches, a few minutes; 8 three SuperLMs that train together;
9 a step beside busy processes. What is compared runs in turn, and the fastest pass of each counts. Peak memory is what
one pass allocates at most beyond what stood before it, by the allocations that torch.profiler records on a CPU.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from autodistil_search.base.device import Device, choose_device, has_bf16
from autodistil_search.base.files import cache_folder
from autodistil_search.base.idle_threads import VARIABLES
from autodistil_search.distillation.options import Execution, TrainOptions
from autodistil_search.distillation.plan import _Timer, typical_steps, work_of
from autodistil_search.distillation.sampling import Drawn
from autodistil_search.distillation.teacher_batches import Batch, Targets, TeacherBatches
from autodistil_search.distillation.training_step import (
    ModelInTraining,
    SubnetPasses,
    last_hidden_of,
    subnets_of_step,
    train_step,
)
from autodistil_search.nas.hardware import most_allocated
from autodistil_search.spaces.search_space import load_space
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilConfig, AutoDistilModel
from autodistil_search.superlm.relation_loss import (
    RelationTarget,
    relation_loss,
    relation_target,
    split_heads,
)
from autodistil_search.superlm.step_weights import StepWeights
from autodistil_search.teachers.loading import load_teacher
from autodistil_search.teachers.teacher import Teacher
from autodistil_search.text.token_store import load_corpus

RELATION_HEADS, TEACHER_WIDTH = 16, 384  # of the shipped spaces, and of the packaged teacher
CPU = Device("cpu", "fp32")
OPTIONS = TrainOptions(200, 8, 1e-4, 0, relation_heads=RELATION_HEADS)
Work = Callable[[], object]


def fastest(works: dict[str, Work], repeats: int) -> list[float]:
    """Least seconds of each, run in turn `repeats` times after one pass that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return [min(each[1:]) for each in seconds.values()]


def peak(work: Work) -> float:
    """MB that one pass allocates at most beyond what stood before it."""
    return most_allocated(work) / 1e6


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print Markdown."""
    print()
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(row) + " |", flush=True)


def projections(batch: int, tokens: int, width: int = TEACHER_WIDTH) -> list[Tensor]:
    """Queries, keys and values at random."""
    return [torch.randn(batch, tokens, width) for _ in range(3)]


def token_ids(batch: int, tokens: int) -> Tensor:
    """Random tokens."""
    return torch.randint(1000, 30000, (batch, tokens))


def model_of(name: str) -> AutoDistilModel:
    """The SuperLM of a shipped space, with random weights."""
    space = load_space(name)
    model = AutoDistilModel(AutoDistilConfig().resized(space.largest, space))
    model.train()
    return model


def alone(model: AutoDistilModel, ids: Tensor, target: RelationTarget) -> None:
    """Forward and backward of one student."""
    model.zero_grad()
    relation_loss(model.last_projections(ids), target).backward()


def in_training(model: AutoDistilModel, options: TrainOptions, device: Device, teacher: Teacher) -> ModelInTraining:
    """The model with its optimizer, as `distill` trains it."""
    return ModelInTraining(model, options, Execution(), device, last_hidden_of(model, teacher, options, device))


def together(passes: SubnetPasses, subnets: Sequence[Subnet], ids: Tensor, target: RelationTarget) -> None:
    """Forward and backward of several subnets of one SuperLM, as in a step of `distill`."""
    assert passes.weights is not None
    passes.weights.begin()
    drawn = [Drawn(subnet, "random", 1 / len(subnets)) for subnet in subnets]
    train_step(passes, ids, Targets(target, None), drawn)
    passes.weights.hand_over()


def sandwich(repeats: int) -> None:
    """1: a step of four subnets of `tiny` against four students of the same sizes, each trained on its own."""
    superlm, rng = model_of("tiny"), random.Random(0)
    space = superlm.space
    sampled = [space.sample(rng) for _ in range(3)]
    rows = []
    for batch in (8, 32):
        ids, target = token_ids(batch, 128), relation_target(projections(batch, 128), None, RELATION_HEADS)
        for rule, subnets in {
            "largest, smallest, 2 random": [space.largest, space.smallest, *sampled[:2]],
            "largest, 3 random": [space.largest, *sampled],
        }.items():
            students = [superlm.extract(subnet).train() for subnet in subnets]
            passes = SubnetPasses(superlm, OPTIONS, CPU, StepWeights(superlm, torch.float32))
            works: dict[str, Work] = {"step": partial(together, passes, subnets, ids, target)}
            works |= {str(i): partial(alone, student, ids, target) for i, student in enumerate(students)}
            step, *apart = fastest(works, repeats)
            superlm.zero_grad()
            students[0].zero_grad()
            most, largest = peak(works["step"]), peak(works["0"])
            ratios = f"{step / sum(apart):.2f}", f"{most:.0f}", f"{largest:.0f}", f"{most / largest:.2f}"
            rows.append((rule, f"{batch} x 128", f"{step:.3f}", f"{sum(apart):.3f}", *ratios))
    head = (
        "subnets",
        "tokens",
        "one step s",
        "apart s",
        "time ratio",
        "peak MB",
        "of the largest alone",
        "memory ratio",
    )
    table(head, rows)


def plain_scores(x: Tensor) -> Tensor:
    """Scores of a relation by the textbook formula, `(B, R, T, T)`."""
    heads = split_heads(x, RELATION_HEADS)
    scores: Tensor = (heads * heads.shape[-1] ** -0.5) @ heads.transpose(-1, -2)
    return scores


def plain_loss(student: list[Tensor], teacher: list[Tensor], loss: str) -> Tensor:
    """The textbook formulas, from the teacher's softmax (`kl`) or scores (`mse`)."""
    total = torch.zeros(())
    for x, known in zip(student, teacher, strict=True):
        scores = plain_scores(x)
        if loss == "mse":
            total = total + (scores - known).square().mean()
        else:
            total = total + (known * (known.log() - scores.log_softmax(dim=-1))).sum(dim=-1).mean()
    return total


RELATIONS = ((8, 128, 160), (32, 128, 160), (8, 128, 576), (8, 128, 312), (4, 512, 160), (32, 32, 160))
"""Batch, tokens and width: of `tiny`, a larger batch, `base`, TinyBERT, long and short sequences."""


def relations(repeats: int) -> None:
    """2: forward and backward of a relation loss, fused and plain; the teacher's side is given to both."""
    print(f"\n{torch.backends.cpu.get_cpu_capability()} instructions")
    rows = []
    for batch, tokens, width in RELATIONS:
        student = [x.requires_grad_() for x in projections(batch, tokens, width)]
        teacher = projections(batch, tokens)
        scores = [plain_scores(x) for x in teacher]
        for loss in ("kl", "mse"):
            target = relation_target(teacher, None, RELATION_HEADS, loss)
            known = scores if loss == "mse" else [each.softmax(dim=-1) for each in scores]

            def fused(target: RelationTarget = target, student: list[Tensor] = student) -> None:
                torch.autograd.grad(relation_loss(student, target), student)

            def plain(known: list[Tensor] = known, loss: str = loss, student: list[Tensor] = student) -> None:
                torch.autograd.grad(plain_loss(student, known, loss), student)

            ours, theirs = fastest({"fused": fused, "plain": plain}, 2 * repeats)
            least, most = peak(fused), peak(plain)
            times = f"{1e3 * ours:.1f}", f"{1e3 * theirs:.1f}", f"{ours / theirs:.2f}"
            memory = f"{least:.0f}", f"{most:.0f}", f"{least / most:.2f}"
            rows.append((loss, f"{batch} x {tokens} x {width}", *times, *memory))
    head = (
        "loss",
        "batch x tokens x width",
        "fused ms",
        "plain ms",
        "ratio",
        "fused peak MB",
        "plain peak MB",
        "ratio",
    )
    table(head, rows)


KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm"),
    "the teacher's attention": ("_scaled_dot_product_flash_attention_for_cpu",),
    "softmax of attention": ("_softmax", "_softmax_backward_data"),
    "exponentials of relations": ("exp", "exp_", "exp2", "exp2_"),
    "norms": ("native_layer_norm", "native_layer_norm_backward"),
    "activations": ("gelu", "gelu_backward"),
    "copies, casts and zeros": ("copy_", "fill_", "zero_", "cat", "_foreach_copy_", "index_select", "index_put_"),
    "sums, products and differences": ("add", "add_", "mul", "mul_", "sub", "sub_", "sum", "div", "amax"),
    "AdamW": ("_fused_adamw_",),
    "norm of the gradients": ("linalg_vector_norm", "_foreach_norm"),
}
"""Operators of torch by the kind of work; of the time, only that of the operator itself counts."""


def whole_step(repeats: int, batch: int = 8) -> None:
    """3: where the time of a default step of `tiny` with the packaged teacher goes, and a cache of the teacher."""
    teacher = load_teacher()
    blocks, _ = load_corpus(["packaged"], teacher.tokenizer, cache_folder()).blocks(128)
    for precision in ("fp32", *(["bf16"] if has_bf16("cpu") else [])):
        device, model = Device("cpu", precision), model_of("tiny")
        options = TrainOptions(200, batch, 1e-4, 0, relation_heads=RELATION_HEADS, hidden=1.0)
        training = in_training(model, options, device, teacher)
        with TeacherBatches(teacher.cast(device), blocks, options, Execution(), device) as batches:
            for step in range(2):  # warms up
                one_step(training, batches, step)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                for step in range(2, 2 + repeats):
                    one_step(training, batches, step)
        print_kinds(profile.key_averages(), precision, repeats)
    teacher_cache(teacher, blocks[range(batch)], repeats)


def one_step(training: ModelInTraining, batches: TeacherBatches, step: int) -> None:
    """A step of `distill`."""
    training.begin(subnets_of_step(training.model, training.options, step))
    for batch in batches.of_step(step):
        training.learn(batch)
    training.update(step, ())


def print_kinds(events: Any, precision: str, steps: int) -> None:
    """Print the share of each kind of work, by torch.profiler."""
    own = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in events}
    whole = sum(own.values())
    rows = []
    for kind, names in KINDS.items():
        part = sum(own.pop(name, 0.0) for name in names)
        rows.append((kind, f"{part / steps / 1e3:.1f}", f"{part / whole:.1%}"))
    rows.append(("all else", f"{sum(own.values()) / steps / 1e3:.1f}", f"{sum(own.values()) / whole:.1%}"))
    table((f"work in a step of 8 x 128, {precision}, profiled", "ms", "share"), rows)


def teacher_cache(teacher: Teacher, ids: Tensor, repeats: int) -> None:
    """The teacher's outputs computed, and read from disk in bfloat16."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outputs"
        kept = torch.stack(teacher.projections(ids)).bfloat16()
        path.write_bytes(kept.view(torch.uint8).numpy().tobytes())

        def read(cold: bool) -> Tensor:
            with path.open("rb") as file:
                if cold:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                content = bytearray(file.read())
            return torch.frombuffer(content, dtype=torch.bfloat16).view(kept.shape).float()

        works: dict[str, Work] = {"computed": partial(teacher.projections, ids)}
        works |= {"cold": partial(read, True), "warm": partial(read, False)}
        seconds = fastest(works, repeats)
        exact, rounded = (
            relation_target(list(each), None, RELATION_HEADS)
            for each in (torch.stack(teacher.projections(ids)), read(False))
        )
        student = projections(len(ids), ids.shape[1], 160)
        error = abs(float(relation_loss(student, rounded)) / float(relation_loss(student, exact)) - 1)
    names = ("computed", "read in bfloat16, not in the page cache", "read in bfloat16, in the page cache")
    table(
        ("teacher's outputs", f"ms for {ids.numel()} tokens", "ratio"),
        [(name, f"{1e3 * each:.1f}", f"{each / seconds[0]:.3f}") for name, each in zip(names, seconds, strict=True)],
    )
    size = kept.numel() * 2 / ids.numel()
    print(
        f"\n{size:.0f} bytes a token, {size / 1e3:.1f} GB for a million; rounding moves the loss by {error:.0e} of it"
    )


def scaling(repeats: int) -> None:
    """4: forward and backward of the largest subnet against batch, length and space."""
    rows = []
    sizes = [("tiny", batch, 128) for batch in (8, 16, 32, 64, 128)] + [("tiny", 8, n) for n in (64, 256, 512)]
    for name, batch, tokens in [*sizes, ("small", 8, 128), ("base", 8, 128)]:
        model, ids = model_of(name), token_ids(batch, tokens)
        target = relation_target(projections(batch, tokens), None, RELATION_HEADS)
        found = [x.detach().requires_grad_() for x in model.last_projections(ids)]

        def encode(model: AutoDistilModel = model, ids: Tensor = ids) -> None:
            model.zero_grad()
            torch.stack(model.last_projections(ids)).sum().backward()

        def relate(found: list[Tensor] = found, target: RelationTarget = target) -> None:
            torch.autograd.grad(relation_loss(found, target), found)

        encoder, loss = fastest({"encoder": encode, "loss": relate}, 1 if batch * tokens > 4096 else repeats)
        per_token = 1e6 / batch / tokens
        figures = f"{encoder + loss:.2f}", f"{per_token * encoder:.0f}", f"{per_token * loss:.1f}"
        rows.append((name, str(batch), str(tokens), *figures))
    table(("largest of", "batch", "tokens", "seconds", "encoder us a token", "loss us a token"), rows)


class Bert:
    """Transformers' own encoder, of which the last layer's queries, keys and values are taken as they are computed."""

    def __init__(self, shape: Subnet, attention: str) -> None:
        config = BertConfig(
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=shape.ffn_size,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        config._attn_implementation = attention
        self.model = BertModel(config, add_pooling_layer=False)
        self.model.train()
        self._seen: list[Tensor] = []
        last: Any = self.model.encoder.layer[-1]
        for part in ("query", "key", "value"):
            last.get_submodule(f"attention.self.{part}").register_forward_hook(
                lambda *arguments: self._seen.append(arguments[-1])
            )

    def train(self, ids: Tensor, target: RelationTarget) -> None:
        """Forward and backward."""
        self.model.zero_grad()
        self._seen.clear()
        self.model(ids)
        relation_loss(self._seen, target).backward()


def against_bert(repeats: int) -> None:
    """5: forward and backward of a student and of a `BertModel` of its shape."""
    rows = []
    for name, shape in {"tiny": Subnet(7, 160, 560, 10, 16), "base": Subnet(12, 576, 2304, 12, 48)}.items():
        ids, target = token_ids(8, 128), relation_target(projections(8, 128), None, RELATION_HEADS)
        student = AutoDistilModel(AutoDistilConfig().resized(shape)).train()
        works: dict[str, Work] = {"ours": partial(alone, student, ids, target)}
        works |= {kind: partial(Bert(shape, kind).train, ids, target) for kind in ("sdpa", "eager")}
        ours, sdpa, eager = fastest(works, repeats)
        sizes = f"{shape.layers} x {shape.hidden_size} ({name})"
        rows.append((sizes, f"{ours:.3f}", f"{sdpa:.3f}", f"{ours / sdpa:.2f}", f"{eager:.3f}", f"{ours / eager:.2f}"))
    table(("layers x width, batch 8 x 128", "ours s", "BertModel sdpa s", "ratio", "BertModel eager s", "ratio"), rows)


def plainly(model: AutoDistilModel, subnets: Sequence[Subnet], ids: Tensor, target: RelationTarget) -> None:
    """Forward and backward of several subnets on the parameters themselves, as `--compile` runs them."""
    model.zero_grad()
    train_step(
        SubnetPasses(model, OPTIONS, CPU), ids, Targets(target, None), [Drawn(s, "random", 1.0) for s in subnets]
    )


def compiled(repeats: int) -> None:
    """6: layers through `torch.compile`, with sizes as symbols or compiled anew for each shape, against neither."""
    space, rng = load_space("tiny"), random.Random(0)
    subnets = [space.largest, space.smallest, space.sample(rng)]
    ids, target = token_ids(8, 128), relation_target(projections(8, 128), None, RELATION_HEADS)
    rows = []
    for name, dynamic in (("neither", None), ("symbols (`--compile`)", True), ("each shape", False)):
        model = model_of("tiny")
        torch.compiler.reset()
        if dynamic is not None:
            for layer in model.layers:
                layer.compile(dynamic=dynamic)
        first = []
        for subnet in subnets:
            start = time.perf_counter()
            plainly(model, [subnet], ids, target)
            first.append(time.perf_counter() - start)
        (step,) = fastest({"step": partial(plainly, model, subnets, ids, target)}, repeats)
        rows.append((name, *(f"{each:.1f}" for each in first), f"{step:.3f}"))
    firsts = [f"first pass, {which} s" for which in ("largest", "smallest", "random")]
    table(("layers compiled with", *firsts, "step of the three s"), rows)


SIDE = 2048
"""Side of the square matrices whose product gives the peak."""


def random_bert(like: Teacher) -> Teacher:
    """A teacher of 12 x 768 with random weights, as large as BERT-base."""
    return Teacher(BertModel(BertConfig(), add_pooling_layer=False).eval(), like.tokenizer, "12 x 768", -1)


def product(dtype: torch.dtype) -> Work:
    """The product of two square matrices."""
    a, b = torch.randn(SIDE, SIDE).to(dtype), torch.randn(SIDE, SIDE).to(dtype)
    return lambda: a @ b


def near_the_limit(repeats: int, batch: int = 8, tokens: int = 128) -> None:
    """7: the share of the best matrix product of this run that a default step reaches, with one and two threads.

    FLOPs of teacher and subnets are those of `plan`, which also times the steps: five steps that stand for a run.
    """
    precisions = ["fp32", *(["bf16"] if has_bf16("cpu") else [])]
    packaged = load_teacher()
    before, rounds = torch.get_num_threads(), max(1, repeats // 4)
    rows = []
    for precision in precisions:
        device = Device("cpu", precision)
        multiply = product(torch.float32 if precision == "fp32" else torch.bfloat16)
        measured: dict[tuple[str, str], list[float]] = {}
        peaks: dict[int, float] = {}
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for teacher in (packaged, random_bert(packaged)):
                for name in ("tiny", "shallow", "small"):
                    model = model_of(name)
                    options = TrainOptions(200, batch, 1e-4, 0, relation_heads=RELATION_HEADS, hidden=1.0)
                    timer = _Timer(model, teacher, options, (batch, tokens), device)
                    steps = typical_steps(model, options)
                    timer.seconds(steps[-1])  # warms up
                    times = [[timer.seconds(step) for step in steps] for _ in range(rounds)]
                    seconds = statistics.fmean(map(min, zip(*times, strict=True)))
                    flops = 2 * batch * work_of(teacher, model, options, tokens).multiply_adds
                    measured.setdefault((name, teacher.name), []).extend([seconds, flops / seconds])
                    (fastest_product,) = fastest({"product": multiply}, repeats)
                    peaks[threads] = max(peaks.get(threads, 0), 2 * SIDE**3 / fastest_product)
        for (name, teacher_name), (one, one_rate, two, two_rate) in measured.items():
            cells = f"{one:.3f}", f"{one_rate / peaks[1]:.2f}", f"{two:.3f}", f"{two_rate / peaks[2]:.2f}"
            rows.append((name, teacher_name, precision, *cells, f"{one / two / 2:.2f}"))
        rates = ", ".join(f"{rate / 1e9:.0f} GFLOP/s with {threads}" for threads, rate in peaks.items())
        print(f"\npeak in {precision}: {rates} threads", flush=True)
    torch.set_num_threads(before)
    head = ("space", "teacher", "precision", "1 thread s", "of the peak", "2 threads s", "of the peak", "speed-up / 2")
    table(head, rows)


def common_teacher(repeats: int, batch: int = 8, tokens: int = 128) -> None:
    """8: a step of three SuperLMs that train together, against a step of each by itself, in the default precision."""
    packaged, ids = load_teacher(), token_ids(batch, tokens)
    rows = []
    device = choose_device("cpu")
    for teacher in (packaged, random_bert(packaged)):
        options = TrainOptions(200, batch, 1e-4, 0, relation_heads=RELATION_HEADS, hidden=1.0)
        trainings = [in_training(model_of(name), options, device, teacher) for name in ("tiny", "small", "base")]
        cast = teacher.cast(device)

        def step(models: Sequence[ModelInTraining], cast: Teacher = cast, options: TrainOptions = options) -> None:
            given = Batch(ids, 1.0, True, cast, options)
            for model in models:
                model.begin([Drawn(subnet, "random", 0.5) for subnet in model.model.space.ends])
            for model in models:
                model.learn(given)
            for model in models:
                model.update(0, ())

        works: dict[str, Work] = {"together": partial(step, trainings)}
        works |= {training.model.space.name: partial(step, [training]) for training in trainings}
        joint, *apart = fastest(works, repeats)
        cells = [f"{joint:.2f}", *(f"{seconds:.2f}" for seconds in apart), f"{joint / sum(apart):.2f}"]
        rows.append((teacher.name, device.precision, *cells))
    head = ("teacher", "precision", "together s", "tiny s", "small s", "base s", "together / in turn")
    table(head, rows)


BUSY = "while True: pass"
STEPS = """
import sys
import autodistil_search  # before torch, so that it says how idle threads wait
from benchmarks.training import step_seconds
print(*step_seconds(int(sys.argv[1])))
"""


def step_seconds(steps: int) -> list[float]:
    """Seconds of default steps of `tiny`, 8 x 128, on all threads, after two that do not count."""
    teacher, device = load_teacher(), choose_device("cpu")
    model = model_of("tiny")
    options = TrainOptions(200, 8, 1e-4, 0, relation_heads=RELATION_HEADS, hidden=1.0)
    training, given = (
        in_training(model, options, device, teacher),
        Batch(token_ids(8, 128), 1.0, True, teacher.cast(device), options),
    )
    seconds = []
    for step in range(steps + 2):
        start = time.perf_counter()
        training.begin(subnets_of_step(model, options, step))
        training.learn(given)
        training.update(step, ())
        seconds.append(time.perf_counter() - start)
    return seconds[2:]


def busy_machine(repeats: int) -> None:
    """9: a default step beside no, one and two busy processes, with the default wait of idle threads and others."""
    waits = {
        "as this package sets it": {},
        "GNU OpenMP's own": {"GOMP_SPINCOUNT": "300000"},
        "none (OMP_WAIT_POLICY=PASSIVE)": {"OMP_WAIT_POLICY": "PASSIVE"},
    }
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    kept["PYTHONPATH"] = str(Path(__file__).parents[1])
    rows = []
    for wait, variables in waits.items():
        medians = []
        for others in (0, 1, 2):
            busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(others)]
            try:
                command = [sys.executable, "-c", STEPS, str(4 * repeats)]
                done = subprocess.run(command, env=kept | variables, capture_output=True, text=True, check=True)
            finally:
                for process in busy:
                    process.kill()
            medians.append(statistics.median(map(float, done.stdout.split())))
        rows.append((wait, *(f"{seconds:.3f}" for seconds in medians), *(f"{m / medians[0]:.2f}" for m in medians[1:])))
    head = ("idle threads wait", "alone s", "beside one s", "beside two s", "one / alone", "two / alone")
    table(head, rows)


SECTIONS = {
    "1": sandwich,
    "2": relations,
    "3": whole_step,
    "4": scaling,
    "5": against_bert,
    "6": compiled,
    "7": near_the_limit,
    "8": common_teacher,
    "9": busy_machine,
}


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    parser.add_argument("--repeats", type=int, default=5, help="passes of each, of which the fastest counts")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32")
    for section in arguments.only.split(","):
        SECTIONS[section](arguments.repeats)


if __name__ == "__main__":
    main()
