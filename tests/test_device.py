"""Which device and precision are chosen, and what replaces what a device lacks."""

from types import SimpleNamespace

import pytest
import torch

from autodistil_search.base import device as devices
from autodistil_search.base.device import Device, as_float64, choose_device, send
from autodistil_search.base.errors import InputError
from autodistil_search.base.seeding import seeded


@pytest.fixture
def has(monkeypatch):
    """Let torch have an accelerator, with the functions of its module."""

    def have(kind: str, **functions: object) -> None:
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: SimpleNamespace(type=kind))
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch, "get_device_module", lambda _: SimpleNamespace(**functions))
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
        monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)

    return have


@pytest.mark.parametrize(
    ("kind", "capability", "bf16", "precision"),
    [
        ("cuda", (8, 0), True, "bf16"),
        ("cuda", (7, 5), False, "fp16"),
        ("cuda", (7, 0), False, "fp16"),
        ("cuda", (6, 1), False, "fp32"),
        ("xpu", None, True, "bf16"),
        ("mps", None, None, "fp32"),
    ],
)
def test_auto_takes_the_accelerator_and_its_fastest_precision(kind, capability, bf16, precision, has, monkeypatch):
    has(kind, **({} if bf16 is None else {"is_bf16_supported": lambda including_emulation: bf16}))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert choose_device() == choose_device(kind) == Device(kind, precision)
    assert choose_device(kind, "fp16") == Device(kind, "fp16")
    assert choose_device("cpu", "fp32") == Device("cpu", "fp32")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device(precision="fp32").name == f"{kind}:1"
    assert choose_device("cpu", "fp32").name == "cpu"
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)  # the launcher shows each process its own
    assert choose_device(precision="fp32").name == f"{kind}:0"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert choose_device().precision == "fp16"


def test_a_device_that_a_package_adds_to_torch_is_taken(has):
    has("npu")
    assert choose_device("npu") == Device("npu", "fp32")
    with pytest.raises(InputError, match=r"^--device 'npv' \(did you mean 'npu'\?\); allowed: .*mps, xpu, npu$"):
        choose_device("npv")
    with pytest.raises(
        InputError, match=r"^--device cuda, but torch sees no cuda device here; allowed: auto, cpu, npu$"
    ):
        choose_device("cuda")


@pytest.mark.parametrize(("device", "allowed"), [("xpu", "auto, cpu"), ("gpu", "auto, cpu, cuda, mps, xpu")])
def test_a_device_that_is_not_here_or_unknown_is_refused(device, allowed, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(InputError, match=f"^--device .*{device}.*; allowed: {allowed}$"):
        choose_device(device)


def test_memory_is_that_of_the_machine_where_a_backend_counts_none(has, monkeypatch):
    has("mps")
    monkeypatch.setattr(devices, "free_memory", lambda: "the machine's")
    assert Device("mps", "fp16").free_memory() == "the machine's"
    assert not Device("mps", "fp16").counts_memory
    assert not Device("cpu", "fp32").counts_memory


def test_float64_is_computed_on_the_device_or_on_the_cpu(monkeypatch):
    devices.has_float64.cache_clear()
    supported = {"supported_dtypes": {torch.float32}}
    monkeypatch.setattr(torch.accelerator, "get_device_capability", lambda _: supported, raising=False)
    assert devices.has_float64("cpu")
    assert devices.has_float64("cuda")
    assert not devices.has_float64("mps")
    supported["supported_dtypes"].add(torch.float64)
    assert devices.has_float64("xpu")
    monkeypatch.delattr(torch.accelerator, "get_device_capability")  # of an older torch
    assert not devices.has_float64("npu")
    devices.has_float64.cache_clear()
    assert as_float64(torch.ones(2)).dtype == torch.float64


def test_on_a_cpu_nothing_is_copied():
    tensor = torch.ones(2)
    assert send(tensor, "cpu") is tensor


def test_random_numbers_of_an_accelerator_are_restored_too(has, monkeypatch):
    states = {"mps": torch.zeros(1)}
    has(
        "mps",
        device_count=lambda: 1,
        get_rng_state=lambda _: states["mps"],
        set_rng_state=lambda state, _: states.update(mps=state),
    )
    with seeded(3):
        states["mps"] = torch.ones(1)
    assert states["mps"].item() == 0
