"""What the subnets of a space cost: the ends and the middle, by every cost."""

from statistics import median_low

import pytest

from autodistil_search.cli.main import main
from autodistil_search.nas import hardware
from autodistil_search.nas.evaluation import DISTURBANCE
from autodistil_search.nas.objectives import COSTS, Objective
from autodistil_search.runs import profile
from autodistil_search.runs.profile import profile_space
from autodistil_search.spaces.cost import flops, params
from autodistil_search.spaces.search_space import load_space


def test_ends_and_median_are_those_of_all_subnets(toy_teacher, debug_space):
    teacher = toy_teacher()
    layers = Objective("counted", "", "", "minimize", measure=lambda student: student.config.num_hidden_layers)
    smallest, median, largest = profile_space(debug_space, teacher, [*COSTS, layers])
    assert [each.role for each in (smallest, median, largest)] == ["smallest", "median", "largest"]
    assert (smallest.subnet, largest.subnet) == debug_space.ends
    every = [flops(debug_space.decode(genome)) for genome in debug_space.genomes()]
    assert median.costs["flops"] == median_low(every)
    for each in (smallest, median, largest):
        assert each.costs["params"] == params(each.subnet, teacher.vocabulary)
        assert each.costs["counted"] == each.subnet.layers


def test_a_space_too_large_to_list_is_sampled(toy_teacher, monkeypatch):
    monkeypatch.setattr(profile, "ENUMERABLE", 100)
    monkeypatch.setattr(profile, "_SAMPLE", 501)
    space = load_space("tiny")
    found = profile_space(space, toy_teacher(), COSTS)[1].costs["flops"]
    every = sorted(flops(space.decode(genome)) for genome in space.genomes())
    assert every[100] < found < every[156]


def test_the_command_shows_every_cost_with_its_unit(teacher_folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    small = ["--measured-seq-len=8", "--throughput-batch=2"]
    assert main(["profile", "--space=debug", f"--teacher={teacher_folder()}", *small]) == 0
    shown = capsys.readouterr().out
    for name in ("flops", "params", "params_non_embedding", "size_mb", "latency", "memory", "throughput"):
        assert f"\n{name} " in shown
    assert "debug: 16 subnets" in shown
    assert "2 x 8 tokens" in shown


def test_the_command_says_if_other_processes_disturbed_latency(teacher_folder, capsys, monkeypatch):
    numbers = {"latency": 1.0, "latency_iqr": 0.1, DISTURBANCE: 0.43}
    monkeypatch.setattr(hardware, "latency", lambda *_, **__: numbers)
    words = [
        "profile",
        "--space=debug",
        f"--teacher={teacher_folder()}",
        "--measured-seq-len=8",
        "--throughput-batch=2",
    ]
    assert main(words) == 0
    assert "Latency was disturbed: while 3 of 3 latencies were measured, up to 43 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--measured-seq-len=41", "--measured-seq-len 41; the teacher has positions for 1 to 40"),
        ("--space=huge", "no search space 'huge'"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(flag, said, teacher_folder, refusal):
    assert said in refusal(["profile", "--space=debug", f"--teacher={teacher_folder()}", flag])
