"""Time and memory of a forward pass, on modules whose both are known."""

from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock, Timeout
from torch import nn

from autodistil_search.base.device import Device
from autodistil_search.base.resources import CpuSeconds
from autodistil_search.nas import hardware
from autodistil_search.nas.evaluation import DISTURBANCE
from autodistil_search.nas.hardware import Load, Passes, latency, peak_bytes, throughput, timed_passes


class Toy(nn.Module):
    """Sees what it is given; waits, and holds some memory, at each pass."""

    def __init__(self, wait=lambda: None, numbers=0):
        super().__init__()
        self.wait, self.numbers = wait, numbers
        self.weight = nn.Parameter(torch.zeros(1000))
        self.config = type("Config", (), {"vocab_size": 50})
        self.seen = []

    def forward(self, input_ids):
        self.seen.append((tuple(input_ids.shape), self.training, torch.is_grad_enabled()))
        self.wait()
        for _ in range(2):  # one after the other: only one of them is held at a time
            held = torch.ones(self.numbers)
            del held


@pytest.fixture
def load(cpu):
    return Load(batch=3, seq_len=7, device=cpu)


def test_passes_run_as_the_shipped_student_would(load):
    toy = Toy()
    seconds = timed_passes(toy.train(), load).seconds
    assert set(toy.seen) == {((3, 7), False, False)}
    assert 10 <= len(seconds) == len(toy.seen) - 3 <= 200
    assert seconds == sorted(seconds)


def test_latency_is_the_median_in_milliseconds_and_throughput_its_inverse(load, monkeypatch):
    passes = Passes([0.001, 0.002, 0.003, 0.004, 0.1], None)
    monkeypatch.setattr(hardware, "timed_passes", lambda *_: passes)
    assert latency(Toy(), load) == pytest.approx({"latency": 3.0, "latency_iqr": 2.0})
    assert throughput(Toy(), load) == pytest.approx(3 / 0.003)


def test_a_pass_takes_what_it_waits_and_passes_are_repeated_for_some_time(load, monkeypatch):
    """A clock that only the passes move; each takes a power of two, so that sums are exact."""
    clock = [0.0]

    def wait():
        clock[0] += 1 / 64

    monkeypatch.setattr(hardware, "time", SimpleNamespace(perf_counter=lambda: clock[0], process_time=lambda: 0.0))
    monkeypatch.setattr(hardware, "_SECONDS", 0.5)
    assert timed_passes(Toy(wait), load).seconds == [1 / 64] * 32


@pytest.mark.parametrize(
    ("readings", "share"),
    [
        ([CpuSeconds(50, 20), CpuSeconds(52, 21)], 0.0),  # all of the second of work was this process's
        ([CpuSeconds(50, 20), CpuSeconds(52, 21.9)], 0.45),
        ([CpuSeconds(50, 20), CpuSeconds(52, 20.9)], 0.0),  # counted in hundredths: a little less than was used
        ([CpuSeconds(50, 20), CpuSeconds(50.05, 20.05)], None),  # too short to tell
        ([None, None], None),
    ],
)
def test_a_latency_tells_what_share_of_the_processors_others_took(readings, share, load, monkeypatch):
    given, own = iter(readings), iter([7.0, 8.0])
    monkeypatch.setattr(hardware, "cpu_seconds", lambda: next(given))
    monkeypatch.setattr(hardware, "time", SimpleNamespace(perf_counter=lambda: 0.0, process_time=lambda: next(own)))
    found = latency(Toy(), load)
    assert found.get(DISTURBANCE) == (None if share is None else pytest.approx(share))


def test_memory_is_weights_and_the_most_that_is_held_at_a_time(load):
    assert peak_bytes(Toy(numbers=50_000), load) - peak_bytes(Toy(), load) == 4 * 50_000
    assert peak_bytes(Toy(), load) >= 4 * 1000


def test_memory_of_a_student_is_the_same_each_time_and_grows_with_the_batch(debug_superlm, debug_space, cpu):
    student = debug_superlm().extract(debug_space.smallest)
    weights = sum(each.nbytes for each in student.parameters())
    single, again, many = (peak_bytes(student, Load(batch, 16, cpu)) for batch in (1, 1, 8))
    assert weights < single == again < many


class Noting(nn.Module):
    """A layer that notes the precision of its weights and of its output at each pass."""

    def __init__(self, noted):
        super().__init__()
        self.layer, self.noted = nn.Linear(4, 4), noted
        self.config = type("Config", (), {"vocab_size": 50})

    def forward(self, input_ids):
        output = self.layer(torch.ones(2, 4, dtype=self.layer.weight.dtype))
        self.noted.append((self.layer.weight.dtype, output.dtype))

    def __deepcopy__(self, memo):
        copied = type(self)(self.noted)
        copied.load_state_dict(self.state_dict())
        return copied


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_a_student_is_cast_once_for_all_passes_and_itself_stays_as_it_was(precision, dtype):
    noted, load = [], Load(2, 4, Device("cpu", precision))
    module = Noting(noted)
    before = [weight.clone() for weight in module.parameters()]
    timed_passes(module, load)
    assert set(noted) == {(dtype, dtype)}
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert all(weight.dtype == torch.float32 for weight in module.parameters())
    assert f"cpu {precision}" in load.words
    assert ("weights" in load.words) == (precision != "fp32")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_student_that_is_cast_computes_the_same_but_for_rounding_in_less_memory(
    precision, debug_superlm, debug_space, toy_batch, cpu
):
    student, half = debug_superlm().extract(debug_space.largest).eval(), Device("cpu", precision)
    ids, mask = toy_batch()
    with torch.no_grad():
        exact, rough = (module(ids, mask).last_hidden_state for module in (student, half.cast(student)))
    # bfloat16 rounds by up to 2^-8 of a number: here a dozen times in a row, and norms make numbers large again.
    assert (rough.float() - exact).abs().max() < 0.1 * exact.abs().max()
    memory = [peak_bytes(student, Load(1, 16, device)) for device in (half, cpu)]
    assert memory[0] < 0.75 * memory[1]  # half, but for what softmax and norms may hold in float32


def test_only_one_measures_at_a_time(load, monkeypatch):
    path = hardware._lock_path()

    class Nosy(Toy):
        def forward(self, input_ids):
            with pytest.raises(Timeout):
                FileLock(path, timeout=0).acquire()
            return super().forward(input_ids)

    timed_passes(Nosy(), load)
    FileLock(path, timeout=0).acquire()  # and it is free again
