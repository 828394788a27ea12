"""Plans: arithmetic against closed forms, counters and files. Never the clock."""

import statistics
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from steps import gradients_of_step
from torch.utils.flop_counter import FlopCounterMode

from autodistil_search.base.device import Device
from autodistil_search.base.progress import Reporter
from autodistil_search.cli.main import main
from autodistil_search.distillation import plan as planning
from autodistil_search.distillation.checkpoints import Checkpoints
from autodistil_search.distillation.options import TrainOptions
from autodistil_search.distillation.plan import (
    STRATA,
    activation_bytes,
    checkpoint_bytes,
    make_plan,
    seconds_of_step,
    together,
    trained_parameters,
    typical_steps,
    work_of,
)
from autodistil_search.distillation.sampling import Drawn
from autodistil_search.distillation.step_cost import DEVICES, Cost, Rates, peak_of
from autodistil_search.distillation.training_step import last_hidden_of, subnets_of_step
from autodistil_search.nas.objectives import parse_amount
from autodistil_search.spaces.cost import flops, params
from autodistil_search.spaces.search_space import load_space
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilConfig, AutoDistilModel

OPTIONS = TrainOptions(steps=6, batch_size=4, lr=1e-3, seed=0, relation_heads=4, random_subnets=3)
TOKENS = 12


@pytest.fixture
def teacher(toy_teacher):
    return toy_teacher()


@pytest.fixture
def planned(debug_space, teacher, cpu):
    """A plan at 1 MFLOP/s, so that nothing is timed."""

    def make(devices=1, options=OPTIONS):
        return make_plan(debug_space, teacher, options, TOKENS, cpu, devices, Rates(1e6, None))

    return make


@pytest.mark.parametrize(
    ("layer", "changes"),
    [
        (2, {"hidden": 0}),
        (0, {"hidden": 1}),
        (1, {"hidden": 0, "loss": "mse"}),
        (2, {"hidden": 1}),
        (2, {"relations": "qk"}),
        (2, {"in_place": 0.5, "relations": "qq,vv"}),
    ],
)
def test_work_is_what_a_flop_counter_sees_in_the_steps_of_a_run(
    layer, changes, toy_teacher, debug_superlm, cpu, monkeypatch
):
    monkeypatch.setattr("torch.jit.is_tracing", lambda: True)  # plain products: the counter looks into no kernel
    teacher, model, options = toy_teacher(layer=layer), debug_superlm(), replace(OPTIONS, **changes)
    last_hidden = last_hidden_of(model, teacher, options, cpu)
    teacher.model.set_attn_implementation("eager")  # the counter does not know the CPU's fused attention
    ids = torch.randint(5, 90, (2, TOKENS))
    with FlopCounterMode(display=False) as counter:
        for step in range(options.steps):
            drawn = subnets_of_step(model, options, step)
            gradients_of_step(model, teacher, ids, drawn, options, cpu, last_hidden)
    counted = counter.get_total_flops() / options.steps  # two for each multiply-add
    assert counted == pytest.approx(2 * 2 * work_of(teacher, model, options, TOKENS).multiply_adds, rel=1e-12)


def test_a_stated_speed_gives_the_time_of_a_step_and_of_all(planned, debug_superlm, teacher):
    plan, work = planned(), work_of(teacher, debug_superlm(), OPTIONS, TOKENS)
    assert plan.flops == pytest.approx(2 * 4 * (work.teacher + 3 * work.subnets))
    assert plan.seconds == pytest.approx(plan.flops / 1e6)
    assert plan.hours == pytest.approx(6 * plan.seconds / 3600)
    assert plan.memory.peak is None


def test_more_devices_share_the_batch(planned):
    one, two, three = planned(1), planned(2), planned(3)
    assert (one.rows, two.rows, three.rows) == (4, 2, 2)  # of three, the first has two rows
    assert two.seconds == pytest.approx(one.seconds / 2)
    assert two.steps == one.steps
    assert two.memory.activations < one.memory.activations
    assert replace(two.memory, activations=0) == replace(one.memory, activations=0)


H100 = Rates.of(DEVICES["H100"], "bf16")
AT_128 = {
    "tiny": (Cost(3.4e12, 86.2e9, 3372), 31e-3, 30e-3),
    "small": (Cost(6.8e12, 142.9e9, 5452), 54e-3, 50e-3),
    "base": (Cost(17.1e12, 223.6e9, 5452), 92e-3, 49e-3),
}
"""Sandwich steps of 128 x 128 tokens with a BERT-base teacher in an early version, which had no fused loss on a GPU:
FLOPs, bytes and launches as counted; and the seconds of GPU and host that an independent estimate had for an H100."""


@pytest.mark.parametrize("space", AT_128)
def test_the_time_of_a_step_is_within_a_quarter_of_an_independent_estimate(space):
    cost, gpu, host = AT_128[space]
    bounds = H100.bounds(cost)
    assert bounds["launches"] == pytest.approx(host, rel=0.25)
    assert max(bounds["FLOPs"], bounds["memory traffic"]) == pytest.approx(gpu, rel=0.25)
    assert H100.seconds(cost) == pytest.approx(max(gpu, host), rel=0.25)


BERT_BASE = SimpleNamespace(subnet=Subnet(12, 768, 3072, 12, 64), layer=11)


@pytest.mark.parametrize("space", AT_128)
def test_the_flops_of_those_steps_are_those_of_the_formula(space):
    shape, (cost, *_) = load_space(space), AT_128[space]
    with torch.device("meta"):
        model = AutoDistilModel(AutoDistilConfig().resized(shape.largest, shape))
    options = TrainOptions(500, 128, 1e-3, 0, sampling="sandwich", hidden=1)
    assert 2 * 128 * work_of(BERT_BASE, model, options, 128).multiply_adds == pytest.approx(cost.flops, rel=0.1)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("h100", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-PCIE-40GB", "A100 40GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe"),
        ("Tesla T4", "T4"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "RTX 4090"),
    ],
)
def test_a_device_is_known_by_the_name_that_its_driver_states(name, known):
    assert peak_of(name) == (DEVICES[known] if known else None)


def test_superlms_that_train_together_share_the_teacher(planned, debug_space, teacher, cpu):
    other = replace(debug_space, name="other", mlp_ratio=(1.0,))
    plans = [planned(), make_plan(other, teacher, OPTIONS, TOKENS, cpu, 1, Rates(1e6, None))]
    joint = together(plans)
    assert joint.teacher == plans[0].teacher == plans[1].teacher
    assert joint.flops == pytest.approx(sum(plan.flops for plan in plans) - joint.teacher.flops)
    assert joint.seconds == pytest.approx(joint.flops / 1e6)
    assert joint.memory.weights == sum(plan.memory.weights for plan in plans)
    assert joint.memory.teacher == plans[0].memory.teacher
    timed = [
        replace(plan, rates=None, seconds=seconds, teacher_seconds=2)
        for plan, seconds in zip(plans, (5, 9), strict=True)
    ]
    assert together(timed).seconds == 2 + 3 + 7
    assert together(plans[:1]).seconds == pytest.approx(plans[0].seconds)


@pytest.mark.parametrize("hidden", [0, 1])
def test_memory_is_the_sum_of_its_parts_in_float32(planned, debug_space, teacher, hidden):
    memory, width = planned(options=replace(OPTIONS, hidden=hidden)).memory, 48 * hidden
    weights = params(debug_space.largest, teacher.vocabulary) + (debug_space.largest.hidden_size + 1) * width
    trained = sum(trained_parameters(teacher.student_config(debug_space.largest, debug_space), width).values())
    assert memory.weights == 4 * weights
    assert memory.gradients == 4 * trained
    assert memory.moments == 8 * trained
    assert memory.teacher == 4 * teacher.model.num_parameters()
    parts = (memory.weights, memory.gradients, memory.moments, memory.teacher, memory.activations)
    assert memory.total == sum(parts)
    assert replace(memory, peak=7).total == 7


def test_a_step_in_half_precision_also_holds_a_copy_of_the_teacher(debug_space, teacher):
    plan = make_plan(debug_space, teacher, OPTIONS, TOKENS, Device("cpu", "bf16"), 1, Rates(1e6, None))
    assert plan.memory.teacher == 6 * teacher.model.num_parameters()


@pytest.mark.parametrize("hidden", [0, 1])
@pytest.mark.parametrize("depth", ["first_last", "uniform", "prefix"])
def test_trained_are_the_parameters_that_get_moments_in_a_run(depth, hidden, debug_space, teacher, cpu):
    space, options = replace(debug_space, layers=(2, 3, 5), depth=depth), replace(OPTIONS, hidden=hidden)
    model = AutoDistilModel(teacher.student_config(space.largest, space))
    last_hidden = last_hidden_of(model, teacher, options, cpu)
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(4):
        drawn = subnets_of_step(model, options, step)
        gradients_of_step(model, teacher, torch.full((1, TOKENS), 7), drawn, options, cpu, last_hidden)
        optimizer.step()
    with_moments = {name: each.numel() for name, each in model.named_parameters() if each in optimizer.state}
    in_map = sorted(each.numel() for each in last_hidden.parameters()) if hidden else []
    found = trained_parameters(model.config, 48 * hidden)
    assert sorted(found.values()) == sorted([*with_moments.values(), *in_map])
    assert with_moments.items() <= found.items()
    parts = () if hidden else ("attention_output", "attention_norm", "ffn_in", "ffn_out", "ffn_norm")
    assert set(dict(model.named_parameters())) - set(with_moments) == {
        *(f"layers.4.{part}.{kind}" for part in parts for kind in ("weight", "bias")),
        "pooler.weight",
        "pooler.bias",
    }


@pytest.mark.parametrize("hidden", [0, 1])
def test_a_checkpoint_is_as_large_as_planned(tmp_path, teacher, cpu, hidden):
    space, options = load_space("tiny"), replace(OPTIONS, hidden=hidden)
    model, ids = AutoDistilModel(teacher.student_config(space.largest, space)), torch.full((1, TOKENS), 7)
    last_hidden = last_hidden_of(model, teacher, options, cpu)
    learner = torch.nn.ModuleList([model, last_hidden]) if last_hidden else model
    optimizer = torch.optim.AdamW(learner.parameters())
    gradients_of_step(model, teacher, ids, [Drawn(space.largest, "largest", 1.0)], options, cpu, last_hidden)
    optimizer.step()
    Checkpoints(tmp_path, learner, optimizer, cpu.scaler(), {}).save(1, [{}])
    (file,) = tmp_path.glob("*.safetensors")
    assert checkpoint_bytes(model.config, 48 * hidden) == pytest.approx(file.stat().st_size, rel=0.01)


@pytest.mark.parametrize(("changes", "tables"), [({}, 5), ({"relations": "qk"}, 3), ({"in_place": 0.5}, 8)])
def test_activations_of_any_batch_follow_from_those_of_one_and_two(changes, tables, debug_superlm, teacher, cpu):
    model, rows, options = debug_superlm(), 7, replace(OPTIONS, **changes)
    relations = tables * 4 * rows * options.relation_heads * TOKENS**2
    kept = planning._saved_bytes(model, teacher, options, (rows, TOKENS), cpu)
    assert activation_bytes(model, teacher, options, rows, TOKENS, cpu) == kept + relations
    assert all(parameter.grad is None for parameter in model.parameters())


def test_activations_hold_at_least_the_inputs_of_all_matrix_products(debug_superlm, teacher, cpu):
    model, tokens = debug_superlm(), 4 * TOKENS
    sizes = model.config.subnet
    body = 4 * tokens * (sizes.layers - 1) * (2 * sizes.hidden_size + 4 * sizes.attention_width + sizes.ffn_size)
    kept = planning._saved_bytes(model, teacher, OPTIONS, (4, TOKENS), cpu)
    assert body < kept < 4 * body  # besides: norms, GELU, softmax; weights are not among them


@pytest.mark.parametrize("sampling", ["largest-random", "sandwich", "random"])
def test_the_steps_that_are_timed_cost_what_the_run_costs_on_average(sampling, teacher):
    space = load_space("tiny")
    model = AutoDistilModel(teacher.student_config(space.largest, space))
    options = replace(OPTIONS, steps=500, sampling=sampling)

    def cost(drawn):
        return sum(flops(subnet) for subnet, _, _ in drawn)

    run = [cost(subnets_of_step(model, options, step)) for step in range(options.steps)]
    chosen = [cost(drawn) for drawn in typical_steps(model, options)]
    assert len(chosen) == STRATA
    assert statistics.fmean(chosen) == pytest.approx(statistics.fmean(run), rel=0.003)
    assert chosen == sorted(chosen)
    assert chosen[-1] - chosen[0] > statistics.stdev(run)


def test_a_run_of_fewer_steps_is_timed_on_each_of_them(debug_superlm):
    model, options = debug_superlm(), replace(OPTIONS, steps=2)
    steps = [subnets_of_step(model, options, step) for step in range(2)]
    assert sorted(typical_steps(model, options)) == sorted(steps)


class Scripted:
    """A timer whose times are given: what is slow now and then, or always."""

    def __init__(self, times):
        self.times, self.asked = list(times), []

    def seconds(self, subnets):
        self.asked.append(subnets)
        return self.times.pop(0)


def test_a_disturbed_time_does_not_count_and_all_steps_count_alike():
    timer = Scripted([9, 2, 1, 30, 1, 2])
    assert seconds_of_step(timer, ["light", "heavy"], Reporter(), "") == 1.5
    assert timer.asked == ["light", "heavy"] * 3


def test_slow_steps_are_timed_once():
    timer = Scripted([60.0, 80.0])
    assert seconds_of_step(timer, ["light", "heavy"], Reporter(), "") == 70
    assert timer.times == []


def test_what_is_timed_is_a_whole_step(debug_superlm, teacher, cpu):
    model, ticks = debug_superlm(), iter([10.0, 12.5])
    before = [parameter.clone() for parameter in model.parameters()]
    timer = planning._Timer(model, teacher, OPTIONS, (2, TOKENS), cpu, clock=lambda: next(ticks))
    assert timer.seconds([Drawn(model.config.subnet, "largest", 1.0)]) == 2.5
    changed = [bool((a != b).any()) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(changed) >= len(trained_parameters(model.config))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_without_a_speed_steps_are_timed_and_memory_is_what_was_seen(debug_space, teacher, cpu, monkeypatch):
    monkeypatch.setattr(planning, "peak_memory", lambda device: 123)
    monkeypatch.setattr(planning._Timer, "seconds", lambda timer, subnets: 0.25 * len(subnets))
    plan = make_plan(debug_space, teacher, OPTIONS, TOKENS, cpu)
    assert plan.seconds == 1  # four subnets a step
    assert plan.memory.total == 123


def test_the_peak_of_this_process_is_seen_where_the_system_tells(cpu):
    planning.reset_peak_memory(cpu)
    before = planning.peak_memory(cpu)
    if before is None:
        pytest.skip("no /proc here")
    block = torch.ones(50_000_000)  # 200 MB
    grown = planning.peak_memory(cpu) - before
    del block
    assert grown == pytest.approx(200e6, rel=0.2)


def flags(folder, *more):
    return ["plan", "--space=debug", f"--teacher={folder}", "--seq-len=16", "--precision=fp32", "--device=cpu", *more]


def test_the_command_prints_the_plan_at_a_stated_speed(teacher_folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    stated = ["--tokens=26K", "--devices=2", "--batch-size=8", "--flops-per-second=0.5M", "--keep=3"]
    assert main(flags(teacher_folder(), *stated)) == 0
    cells = dict(line.rsplit("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line.strip())
    cells = {name.strip(): cell.strip() for name, cell in cells.items()}
    assert cells["steps"] == "204"  # 26,000 tokens, 128 a step
    assert cells["tokens of a step"] == "2 x 4 x 16"
    assert cells["FLOP/s of a device"] == "500.00k"
    assert float(cells["device-hours"]) == pytest.approx(2 * float(cells["hours"]), abs=0.011)
    assert float(cells["hours"]) == pytest.approx(204 * float(cells["seconds of a step (as stated)"]) / 3600, rel=0.02)
    one, three = (parse_amount(cells[name].removesuffix("B"), "") for name in ("checkpoint", "last 3 checkpoints"))
    assert three == pytest.approx(3 * one, rel=0.01)


def test_the_command_plans_for_a_device_by_its_name(teacher_folder, printed_json, tmp_path):
    path = tmp_path / "other.yaml"
    path.write_text("{layers: [1], hidden_size: [32], mlp_ratio: [2], heads: [2], head_dim: 8, relation_heads: 4}")
    stated = ["--device-name=NVIDIA H100 PCIe", "--launch-microseconds=1000", "--batch-size=8"]
    found = printed_json([*flags(teacher_folder(), "--tokens=1M", f"--space=debug,{path}"), *stated])
    assert found["speed"] == "NVIDIA H100 PCIe fp32, by formula"
    for plan in found["plans"]:
        bounds = plan["bounds_seconds"]
        assert set(bounds) == {"flops", "memory_traffic", "launches"}
        assert bounds["flops"] == pytest.approx(plan["step_flops_per_device"] / (0.4 * 51e12))
        assert plan["step_seconds"] == bounds["launches"] > 0.2  # hundreds, at a millisecond each
    assert found["hours_apart"] == sum(plan["hours"] for plan in found["plans"])
    teacher = found["plans"][0]["teacher_seconds"] * found["plans"][0]["steps"] / 3600
    assert found["hours"] == pytest.approx(found["hours_apart"] - teacher)


def test_the_command_times_steps_here_and_takes_several_spaces(teacher_folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(planning, "_ROUNDS", 1)
    path = tmp_path / "other.yaml"
    path.write_text("{layers: [1], hidden_size: [32], mlp_ratio: [2], heads: [2], head_dim: 8, relation_heads: 4}")
    assert main(flags(teacher_folder(), "--tokens=1K", f"--space=debug,{path}")) == 0
    printed, progress = capsys.readouterr()
    assert "timing debug: 5/5 steps" in progress
    assert "timing other: 5/5 steps" in progress
    assert "seconds of a step (measured here, cpu fp32)" in printed
    steps = next(line.split() for line in printed.splitlines() if line.startswith("steps"))
    assert steps == ["steps", "16", "16", "16"]  # 4 blocks of 16 tokens


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tokens=many"], "--tokens 'many'; allowed: a number above 0"),
        ([], "--steps or --tokens is required"),
        (["--tokens=1M", "--devices=0"], "--devices must be a whole number from 1 (got 0)"),
        (["--tokens=1M", "--keep=0"], "--keep must be a whole number from 1 (got 0)"),
        (["--tokens=1M", "--devices=8", "--batch-size=4"], "at least one block for each of 8 devices"),
        (["--tokens=1M", "--batch-size=0"], "--batch-size must be a whole number from 1 (got 0)"),
        (["--tokens=1M", "--flops-per-second=fast"], "--flops-per-second 'fast'"),
        (
            ["--tokens=1M", "--device-name=H300"],
            "--device-name 'H300' (did you mean 'H200'?); allowed: H",
        ),
        (["--tokens=1M", "--device-name=T4", "--precision=bf16"], "--precision bf16 with --device-name T4"),
        (["--tokens=1M", "--bandwidth=1T"], "--bandwidth and --launch-microseconds need the FLOP/s"),
        (["--tokens=1M", "--bandwidth=0"], "--bandwidth '0'"),
        (["--tokens=1M", "--seq-len=999"], "--seq-len 999; the teacher has positions for 8 to 40"),
        (["--tokens=1M", "--space=huge"], "no search space 'huge'"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(more, message, teacher_folder, refusal):
    assert message in refusal(flags(teacher_folder(), *more))
