"""Time and memory of a forward pass, on modules whose both are known."""

import time

import pytest
import torch
from filelock import FileLock, Timeout
from torch import nn

from autodistil_search import hardware
from autodistil_search.hardware import Load, latency, pass_seconds, peak_bytes, throughput


class Toy(nn.Module):
    """Sees what it is given; waits, and holds some memory, at each pass."""

    def __init__(self, milliseconds=0.0, numbers=0):
        super().__init__()
        self.milliseconds, self.numbers = milliseconds, numbers
        self.weight = nn.Parameter(torch.zeros(1000))
        self.config = type("Config", (), {"vocab_size": 50})
        self.seen = []

    def forward(self, input_ids):
        self.seen.append((tuple(input_ids.shape), self.training, torch.is_grad_enabled()))
        time.sleep(self.milliseconds / 1000)
        for _ in range(2):  # one after the other: only one of them is held at a time
            held = torch.ones(self.numbers)
            del held


@pytest.fixture
def load(cpu):
    return Load(batch=3, seq_len=7, device=cpu)


def test_passes_run_as_the_shipped_student_would(load):
    toy = Toy()
    seconds = pass_seconds(toy.train(), load)
    assert set(toy.seen) == {((3, 7), False, False)}
    assert 10 <= len(seconds) == len(toy.seen) - 3 <= 200
    assert seconds == sorted(seconds)


def test_latency_is_the_median_in_milliseconds_and_throughput_its_inverse(load, monkeypatch):
    monkeypatch.setattr(hardware, "pass_seconds", lambda *_: [0.001, 0.002, 0.003, 0.004, 0.1])
    assert latency(Toy(), load) == pytest.approx({"latency": 3.0, "latency_iqr": 2.0})
    assert throughput(Toy(), load) == pytest.approx(3 / 0.003)


def test_a_pass_takes_at_least_what_it_waits(load):
    assert min(pass_seconds(Toy(milliseconds=5), load)) >= 0.005


def test_memory_is_weights_and_the_most_that_is_held_at_a_time(load):
    assert peak_bytes(Toy(numbers=50_000), load) - peak_bytes(Toy(), load) == 4 * 50_000
    assert peak_bytes(Toy(), load) >= 4 * 1000


def test_memory_of_a_student_is_the_same_each_time_and_grows_with_the_batch(debug_superlm, debug_space, cpu):
    student = debug_superlm().extract(debug_space.smallest)
    weights = sum(each.nbytes for each in student.parameters())
    single, again, many = (peak_bytes(student, Load(batch, 16, cpu)) for batch in (1, 1, 8))
    assert weights < single == again < many


def test_only_one_measures_at_a_time(load, monkeypatch):
    path = hardware._lock_path()

    class Nosy(Toy):
        def forward(self, input_ids):
            with pytest.raises(Timeout):
                FileLock(path, timeout=0).acquire()
            return super().forward(input_ids)

    pass_seconds(Nosy(), load)
    FileLock(path, timeout=0).acquire()  # and it is free again
