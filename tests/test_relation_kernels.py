"""The Triton kernels without a GPU: their results in Triton's interpreter, and what they need on two generations."""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from autodistil_search.superlm import relation_kernels  # noqa: E402

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes that a block may have, by compute capability: A100 and H100."""

POINTERS = {
    "weights": "*fp32",
    "log_sums": "*fp32",
    "teacher_log_sums": "*fp32",
    "losses": "*fp32",
    "gradient": "*fp32",
}
FLOATS = ("scale", "u_scale", "factor")

# Each case is compared with the torch implementation, which test_relation_loss.py holds to a float64 reference.
IN_THE_INTERPRETER = """
import torch
from torch.testing import assert_close
from autodistil_search.superlm import relation_kernels, relation_loss as module

relation_kernels.TILE = 16  # the least: toys have several tiles of rows, columns and dimensions
torch.manual_seed(0)


def loss_and_gradients(projections, teacher, mask, heads, loss, relations, kernels):
    module._have_kernels = lambda device: kernels
    inputs = [x.clone().requires_grad_() for x in projections]
    value = module.relation_loss(inputs, module.relation_target(teacher, mask, heads, loss, relations))
    (3 * value).backward()
    return [value.detach(), *(x.grad for x in inputs)]


def check(loss, relations, batch, tokens, width, teacher_width, heads, dtype, padded):
    projections, teacher = (
        [torch.randn(batch, tokens, size).to(dtype) for _ in range(3)] for size in (width, teacher_width)
    )
    mask = None
    if padded:
        mask = (torch.rand(batch, tokens) < 0.7).long()
        mask[0, 0], mask[1:] = 1, 0  # a sequence of padding only
        for x in (*projections, *teacher):
            x[mask == 0] *= 100
    arguments = projections, teacher, mask, heads, loss, relations
    found, expected = (loss_and_gradients(*arguments, kernels) for kernels in (True, False))
    # Gradients are rounded to the precision of the projections, of two nearly equal numbers maybe to two neighbours.
    rounding = {} if dtype == torch.float32 else {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-5}
    assert_close(found[0], expected[0])
    assert_close(found[1:], expected[1:], **rounding)


def check_nested_heads():
    x = torch.randn(1, 5, 6).requires_grad_()
    nested = x.unflatten(-1, (3, 2)).transpose(-1, -2)  # dimension i belongs to head i mod 2
    weights = torch.full((1, 5), 0.1)
    teacher = relation_kernels.Heads.of(*[torch.randn(1, 5, 2, 3)] * 2)
    target = relation_kernels.KernelTarget.of(teacher, weights, "kl")
    results = []
    for heads in (nested, nested.contiguous()):
        value = relation_kernels.KernelLoss.apply([(0, 0, 1.0)], [target], *[heads] * 3)
        results.append((value, *torch.autograd.grad(value, x)))
    assert_close(results[0], results[1], atol=0, rtol=0)


QQ, BOTH = (("qq", 1.0),), (("qk", 0.5), ("qq", 2.0))
check("kl", BOTH, 2, 17, 5, 7, 2, torch.float32, True)  # 2 heads divide neither 5 nor 7
check("mse", BOTH, 1, 17, 5, 7, 2, torch.float32, True)
check("kl", BOTH, 1, 3, 20, 4, 1, torch.bfloat16, False)  # 20 dimensions are two tiles
check("mse", QQ, 1, 3, 20, 4, 1, torch.float16, False)
check("kl", QQ, 1, 1, 1, 1, 1, torch.float32, False)
check_nested_heads()
"""


def test_in_the_interpreter_the_kernels_give_the_loss_and_gradients_of_torch() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", IN_THE_INTERPRETER], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("log_sum_exp_kernel", {}),
        ("loss_kernel", {"kl": True}),
        ("gradient_kernel", {"kl": True, "as_rows": True, "as_columns": True, "add": True}),
        ("gradient_kernel", {"kl": False, "as_rows": False, "as_columns": True, "add": False}),
    ],
)
def test_a_gpu_has_enough_shared_memory_and_registers(
    name: str, constants: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(relation_kernels, name)
    for (capability, limit), (dtype, precision) in product(SHARED_MEMORY.items(), (("bf16", "tf32"), ("fp32", "ieee"))):
        tile = relation_kernels.TILE
        fixed = {"tile": tile, "step": tile, "u_step": tile, "precision": precision, "u_precision": precision}
        fixed |= {"by_dim": 1, "u_by_dim": 1, **constants}
        fixed = {argument: value for argument, value in fixed.items() if argument in kernel.arg_names}
        signature = {
            argument: "constexpr"
            if argument in fixed
            else POINTERS.get(argument, f"*{dtype}" if argument in "xyuv" else "fp32" if argument in FLOATS else "i32")
            for argument in kernel.arg_names
        }
        places = {(kernel.arg_names.index(argument),): value for argument, value in fixed.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=places)
        target = GPUTarget("cuda", capability, 32)
        compiled = triton.compile(source, target=target, options=relation_kernels.OPTIONS)
        assert compiled.metadata.shared <= limit
        assert stack(compiled.asm["cubin"], tmp_path) <= 32


def stack(cubin: bytes, folder: Path) -> int:
    """Bytes that a thread has in memory because registers are too few, by the tool that Triton ships with.

    The assembler spills a few bytes on its own account, so that more blocks fit. A tile too large spills hundreds.
    """
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    done = subprocess.run([tool, "--dump-resource-usage", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.partition("STACK:")[2].split()[0])
