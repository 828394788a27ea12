"""The same on a GPU; skipped where torch sees none."""

import warnings
from dataclasses import replace

import fake_gpu
import pytest
import torch

from autodistil_search import search
from autodistil_search.base.device import Device, choose_device, fastest_precision
from autodistil_search.superlm import relation_loss as relation_module
from autodistil_search.superlm.relation_loss import relation_loss, relation_target

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_cuda_is_chosen_where_there_is_one():
    assert choose_device() == Device("cuda", fastest_precision("cuda"))


def test_a_step_of_training_waits_for_the_device_once():
    with (
        fake_gpu.begin_training("debug", Device("cuda", "bf16")) as training,
        warnings.catch_warnings(record=True) as caught,
    ):
        for step in range(3):
            training.take(step)
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            training.take(3)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert sum("synchronizing" in str(warning.message) for warning in caught) <= 1


def test_the_fused_attention_of_cuda_computes_what_the_plain_one_does(debug_superlm, debug_space, toy_batch):
    superlm = debug_superlm()
    ids, mask = toy_batch()
    subnet = debug_space.largest
    expected = superlm(ids, attention_mask=mask, subnet=subnet)
    found = superlm.cuda()(ids.cuda(), attention_mask=mask.cuda(), subnet=subnet)
    seen = mask.bool()
    torch.testing.assert_close(
        found.last_hidden_state.cpu()[seen], expected.last_hidden_state[seen], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_relation_losses_and_gradients_on_cuda_are_those_of_the_cpu(loss, dtype, kernels, monkeypatch):
    if kernels:
        pytest.importorskip("triton")
    monkeypatch.setattr(relation_module, "_have_kernels", lambda device: kernels and device == "cuda")
    relations = (("qq", 1.0), ("qk", 0.5), ("vv", 2.0))
    mask = (torch.arange(70) < torch.tensor([[70], [40], [0]])).long()
    teacher, student = ([torch.randn(3, 70, width).to(dtype) for _ in range(3)] for width in (768, 150))
    found = {}
    for device in ("cpu", "cuda"):
        inputs = [each.to(device).requires_grad_() for each in student]
        target = relation_target([each.to(device) for each in teacher], mask.to(device), 16, loss, relations)
        value = relation_loss(inputs, target)
        value.backward()
        found[device] = [value.item(), *(each.grad.float().cpu() for each in inputs)]
    rtol = 1e-4 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found["cuda"], found["cpu"], atol=1e-5, rtol=rtol)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_whole_run_on_cuda_agrees_with_the_cpu(toy_config, precision):
    config = replace(toy_config, engine="exhaustive", evaluations=16)
    on_cuda = search(replace(config, device="cuda", precision=precision, out=toy_config.out + "-cuda"))
    on_cpu = search(replace(config, device="cpu", precision="fp32"))
    tolerance = {"fp32": 1e-3, "bf16": 5e-2}[precision]
    assert on_cuda.evaluations["flops"].tolist() == on_cpu.evaluations["flops"].tolist()
    assert on_cuda.evaluations["relation_loss"].tolist() == pytest.approx(
        on_cpu.evaluations["relation_loss"].tolist(), rel=tolerance
    )
