"""A GPU that is not there: tensors on the device `fakegpu`, computed by the CPU, with counts of what a GPU would do.

`install()` registers torch's spare backend (PrivateUse1) under the name `fakegpu`, for the rest of the process. Its
tensors have storages of their own, whose memory the CPU reads. So views, in-place operations, autograd, optimizers and
saving work as on any device, and every operator passes `_run`:

- It refuses to mix tensors of the two devices, as CUDA does. Numbers (tensors without dimensions) may be mixed.
- It counts kernel launches, casts, copies between host and device, and the places where the host waits for the device.
  Each count has the line of this package that causes it; in a backward pass, the line of the forward pass.

A launch is an operator that is neither a view nor an allocation. A few operators are two kernels on CUDA, such as
`slice_backward`; they count once. Operators on lists of tensors (`_foreach_*`, `_fused_*`) count once if CUDA has one
kernel for such lists, else once for each tensor. Attention is one launch forward and two backward, as FlashAttention
is. Autocast changes the types of the operators that CUDA's autocast changes.

A process cannot unregister a backend, and `--device auto` would find it. Tests run it in a process of its own:

    python tests/fake_gpu.py run search --space debug --device fakegpu ...   # any command; counts on standard error
    python tests/fake_gpu.py commands LIST.json COUNTS.json                  # several commands in one process
    python tests/fake_gpu.py step --space tiny [--kernels]                   # counts of one training step
"""

from __future__ import annotations

import argparse
import json
import linecache
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._prims_common import is_non_overlapping_and_dense_or_false
from torch.autograd import Function

if TYPE_CHECKING:
    from autodistil_search.base.device import Device
    from autodistil_search.distillation.options import TrainOptions
    from autodistil_search.superlm.model import AutoDistilModel
    from autodistil_search.teachers.teacher import Teacher

NAME = "fakegpu"
HAS_FLOAT64 = os.environ.get("FAKE_GPU_FLOAT64", "1") != "0"
"""False for a device without float64, such as MPS."""
SYNC, UP, DOWN = "sync", "host to device", "device to host"
_DEVICE = None
_ROOT = Path(__file__).resolve().parent.parent
_PACKAGE = str(_ROOT / "autodistil_search")

_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

_ALLOCATIONS = ("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "empty_permuted", "resize_")
_IN_PLACE_OF_STORAGES = ("set_", "as_strided_")
_WAITS = {
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive"),
    *("repeat_interleave", "bincount", "_linalg_eigh", "_linalg_svd", "linalg_lstsq"),
}
"""Operators for which the host waits on CUDA, because the shape or the value of the result is needed on the host."""

_TO_HALF = {
    *("linear", "matmul", "mm", "bmm", "mv", "addmm", "addmv", "addr", "addbmm", "baddbmm", "chain_matmul", "einsum"),
    *("linalg_multi_dot", "linalg_vecdot", "scaled_dot_product_attention", "_scaled_dot_product_flash_attention"),
    *("prelu", "_convolution", "convolution", "conv1d", "conv2d", "conv3d", "conv_tbc", "conv_transpose1d"),
    *("conv_transpose2d", "conv_transpose3d", "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "lstm_cell", "gru_cell"),
    *("rnn_tanh_cell", "rnn_relu_cell"),
}
_TO_WIDEST = {
    *("addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sampler", "index_put", "tensordot"),
    "scatter_add",
}
"""Operators that autocast runs in half precision, and in the widest type of their arguments: the lists of torch's
autocast_mode.h. All others that CUDA's autocast treats run in float32."""


@dataclass
class Counts:
    """Counts by operator and line, and for copies and waits by reason and line."""

    launches: Counter[tuple[str, str]] = field(default_factory=Counter)
    casts: Counter[tuple[str, str]] = field(default_factory=Counter)
    copies: Counter[tuple[str, str]] = field(default_factory=Counter)
    syncs: Counter[tuple[str, str]] = field(default_factory=Counter)

    def number(self, direction: str) -> int:
        """Return the number of copies in a direction, `UP` or `DOWN`."""
        return sum(count for (way, _), count in self.copies.items() if way == direction)

    def totals(self) -> dict[str, int]:
        """Return the totals by name."""
        return {
            "launches": self.launches.total(),
            "casts": self.casts.total(),
            UP: self.number(UP),
            DOWN: self.number(DOWN),
            "syncs": self.syncs.total(),
        }

    def lines(self, of: str) -> list[str]:
        """Return the entries of one of the counts as text, the largest first."""
        return [f"{count} {what} at {line}" for (what, line), count in getattr(self, of).most_common()]

    def to_dict(self) -> dict[str, Any]:
        """Return the totals, and the lines of copies and waits."""
        return {**self.totals(), "copies_at": self.lines("copies"), "syncs_at": self.lines("syncs")}


_active: list[Counts] = []


@contextmanager
def counting(backward_lines: bool = False) -> Iterator[Counts]:
    """Yield the counts of what runs inside the context.

    Args:
        backward_lines: True to find the lines of backward passes, which takes time.
    """
    counts = Counts()
    _active.append(counts)
    try:
        with torch.autograd.set_detect_anomaly(backward_lines, check_nan=False):  # nodes then know their forward line
            yield counts
    finally:
        _active.remove(counts)


def _count(of: str, what: str) -> None:
    if _active:
        line = _line()
        for counts in _active:
            getattr(counts, of)[what, line] += 1


def _line() -> str:
    """Return the innermost line of the package on the stack, or that of the forward pass of a backward node."""
    frame: Any = sys._getframe(2)
    outside = "?"
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(_PACKAGE):
            return _place(path, frame.f_lineno)
        if outside == "?" and "/torch/" not in path and path != __file__ and not path.startswith("<"):
            outside = _place(path, frame.f_lineno)
        frame = frame.f_back
    if threading.current_thread() is threading.main_thread():
        return outside
    node = torch._C._current_autograd_node()
    stack = "".join(node.metadata.get("traceback_", [])) if node is not None else ""
    places = re.findall(rf'File "({re.escape(_PACKAGE)}[^"]*)", line (\d+)', stack)
    return f"backward of {_place(*places[-1])}" if places else "backward"


def _place(path: str, line: int | str) -> str:
    return f"{path.removeprefix(str(_ROOT) + '/')}:{line}"


def _is_fake(value: object) -> bool:
    return isinstance(value, Tensor) and value.device.type == NAME


def _on_cpu(fake: Tensor) -> Tensor:
    """Return a CPU tensor with the memory of a tensor of the fake GPU."""
    memory = fake.untyped_storage().memory  # type: ignore[attr-defined]
    return torch.empty(0, dtype=fake.dtype).set_(memory, fake.storage_offset(), fake.shape, fake.stride())


def _on_gpu(tensor: Tensor, storage: Any = None) -> Tensor:
    """Return a tensor of the fake GPU with the memory of a CPU tensor, on `storage` if its storage exists already."""
    if tensor.dtype == torch.float64 and not HAS_FLOAT64:
        raise TypeError(f"{NAME} has no float64 (at {_line()})")
    fake = torch._C._acc.create_empty_tensor([0], tensor.dtype)
    return _set(fake, tensor, storage)


def _set(fake: Tensor, tensor: Tensor, storage: Any = None) -> Tensor:
    if storage is None:
        memory = tensor.untyped_storage()
        storage = torch._C._construct_storage_from_data_pointer(memory.data_ptr(), _DEVICE, memory.nbytes())
        storage.memory = memory
    set_ = torch.ops.aten.set_.source_Storage_storage_offset
    set_.redispatch(_CPU, fake, storage, tensor.storage_offset(), tensor.shape, tensor.stride())
    return fake


def _map(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply `change` to the tensors among an operator's arguments or results."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(_map(change, item) for item in value)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operator of the fake GPU on the CPU, count it, and return its results on the fake GPU."""
    name = op._schema.name.removeprefix("aten::")
    if op.is_view or name in _IN_PLACE_OF_STORAGES:
        return op.redispatch(_CPU, *args, **kwargs)
    tensors = [*_tensors(args), *_tensors(tuple(kwargs.values()))]
    device = kwargs.get("device")
    to_cpu = device is not None and torch.device(device).type == "cpu"
    if name == "_to_copy" and device is not None and to_cpu == _is_fake(args[0]):
        _count_copy(not to_cpu, args[0] if not to_cpu else None, kwargs.get("non_blocking", False))
    elif name == "copy_" and _is_fake(args[0]) != _is_fake(args[1]):
        up = _is_fake(args[0])
        _count_copy(up, args[up], args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    else:
        _refuse_mixed(op, name, args, tensors)
        if name not in _ALLOCATIONS:
            _count_launch(name, args, kwargs)
    on_gpu: dict[int, Tensor] = {}
    storages: dict[int, Any] = {}

    def unwrapped(tensor: Tensor) -> Tensor:
        if not _is_fake(tensor):
            return tensor
        memory = _on_cpu(tensor)
        on_gpu[id(memory)] = tensor
        storages[memory.untyped_storage()._cdata] = tensor.untyped_storage()
        return memory

    inner_args = _map(unwrapped, args)
    inner_kwargs = {key: _map(unwrapped, value) for key, value in kwargs.items()}
    if device is not None:
        inner_kwargs["device"] = torch.device("cpu")
    inner_kwargs.pop("pin_memory", None)
    with _own_random_numbers(op):
        result = op(*inner_args, **inner_kwargs)
    for memory in [*_tensors(inner_args), *_tensors(tuple(inner_kwargs.values()))]:
        fake = on_gpu.get(id(memory))
        if fake is not None and (fake.shape != memory.shape or fake.data_ptr() != memory.data_ptr()):
            _set(fake, memory)  # the operator resized its output

    def wrapped(tensor: Tensor) -> Tensor:
        if id(tensor) in on_gpu:
            return on_gpu[id(tensor)]
        if to_cpu or any(tensor is other for other in tensors):  # a copy to the CPU, or written into its argument
            return tensor
        return _on_gpu(tensor, storages.get(tensor.untyped_storage()._cdata))

    return _map(wrapped, result)


def _refuse_mixed(op: Any, name: str, args: Any, tensors: list[Tensor]) -> None:
    """Refuse CPU tensors, except numbers that are read and the indices of `index`, as CUDA does."""
    cpu = [tensor for tensor in tensors if tensor.device.type == "cpu"]
    if not cpu or len(cpu) == len(tensors):
        return
    if name in ("index", "index_put_", "_index_put_impl_", "index_put"):
        if not _is_fake(args[0]):
            raise RuntimeError(
                f"indices should be either on cpu or on the same device as the indexed tensor (cpu) (at {_line()})"
            )
        indices = [index for index in _tensors(args[1]) if not _is_fake(index)]
        for _ in indices:
            _count("copies", UP)
            _count("syncs", "index on the host")
        cpu = [tensor for tensor in cpu if not any(tensor is index for index in indices)]
    written = [
        argument
        for argument, value in zip(op._schema.arguments, args, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write and any(map(_on_host, _tensors(value)))
    ]
    if written or any(tensor.dim() for tensor in cpu):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and cpu! "
            f"({name} at {_line()})"
        )


def _on_host(tensor: Tensor) -> bool:
    return not _is_fake(tensor)


def _count_copy(up: bool, host: Tensor | None, non_blocking: bool) -> None:
    """Count a copy; `host` is its side on the CPU, None if the copy makes it, which CUDA does in pinned memory."""
    _count("copies", UP if up else DOWN)
    if not (non_blocking and (host is None or _pinned(host))):
        _count("syncs", "copy from the host" if up else "copy to the host")


def _pinned(tensor: Tensor) -> bool:
    return bool(getattr(tensor.untyped_storage(), "pinned", False))


def _count_launch(name: str, args: Any, kwargs: Any) -> None:
    if name in _WAITS:
        _count("syncs", "item" if name == "_local_scalar_dense" else name)
    elif name in ("index", "index_put_", "_index_put_impl_", "index_put") and any(
        index.dtype in (torch.bool, torch.uint8) for index in _tensors(args[1])
    ):
        _count("syncs", "index by booleans")
    if name == "_local_scalar_dense":
        return
    launches = 1
    if name.startswith(("_foreach_", "_fused_adam")):
        lists = [value for value in args if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor)]
        fast = _one_kernel(lists[:4], any_dtype=name == "_foreach_copy_")
        if name.startswith("_fused") and not fast:
            raise RuntimeError(
                f"params, grads, exp_avgs, and exp_avg_sqs must have same dtype, device, and layout (at {_line()})"
            )
        launches = 1 if fast else len(lists[0])
    if name == "_to_copy":
        cast = kwargs.get("dtype") not in (None, args[0].dtype)
    elif name in ("copy_", "_foreach_copy_"):
        into, source = next(_tensors(args[0])), next(_tensors(args[1]))
        cast = into.dtype != source.dtype
    else:
        cast = False
    for _ in range(launches):
        _count("launches", name)
        if cast:
            _count("casts", name)


def _one_kernel(lists: list[Any], any_dtype: bool) -> bool:
    """Return True if CUDA computes on lists of tensors in one kernel: if all are dense, and alike from list to list."""
    for together in zip(*lists, strict=False):
        first = together[0]
        if not all(tensor.stride() == first.stride() and tensor.shape == first.shape for tensor in together):
            return False
        if not is_non_overlapping_and_dense_or_false(first):
            return False
    return any_dtype or len({tensor.dtype for tensors in lists for tensor in tensors}) == 1


_generator_state = torch.Generator().get_state()


@contextmanager
def _own_random_numbers(op: Any) -> Iterator[None]:
    """Let an operator draw from the generator of the fake GPU, not from that of the CPU."""
    global _generator_state
    if torch.Tag.nondeterministic_seeded not in op.tags:
        yield
        return
    before = torch.get_rng_state()
    torch.set_rng_state(_generator_state)
    try:
        yield
        _generator_state = torch.get_rng_state()
    finally:
        torch.set_rng_state(before)


def _capability(_: object = None) -> dict[str, Any]:
    types = {torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool, torch.uint8}
    return {"supported_dtypes": types | ({torch.float64} if HAS_FLOAT64 else set())}


class _Module:
    """`torch.fakegpu`: what torch asks of the module of a backend. It has no functions for memory."""

    _utils = None

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _lazy_init(self) -> None:
        pass

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def synchronize(self, _: object = None) -> None:
        _count("syncs", "synchronize")

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        return True

    def manual_seed_all(self, seed: int) -> None:
        global _generator_state
        _generator_state = torch.Generator().manual_seed(seed).get_state()

    manual_seed = manual_seed_all

    def get_rng_state(self, _: object = None) -> Tensor:
        return _generator_state

    def set_rng_state(self, state: Tensor, _: object = None) -> None:
        global _generator_state
        _generator_state = state


class _Attention(Function):
    """Attention as one kernel forward and two backward."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: Any) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.options = options
        _count("launches", "flash forward")
        with torch.no_grad():
            inner = [None if side is None else _on_cpu(side) for side in (query, key, value, mask)]
            return _on_gpu(_attention_on_cpu(*inner, *options))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        for _ in range(2):
            _count("launches", "flash backward")
        sides = [None if side is None else _on_cpu(side.detach()) for side in ctx.saved_tensors]
        asked = [i for i in range(4) if ctx.needs_input_grad[i]]
        with torch.enable_grad():
            for i in asked:
                sides[i].requires_grad_()  # type: ignore[union-attr]
            output = _attention_on_cpu(*sides, *ctx.options)
            gradients = torch.autograd.grad(output, [sides[i] for i in asked], _on_cpu(grad_outputs[0]))  # type: ignore
        results: list[Tensor | None] = [None] * 5
        for i, gradient in zip(asked, gradients, strict=True):
            results[i] = _on_gpu(gradient)
        return tuple(results)


def _attention_on_cpu(
    query: Any, key: Any, value: Any, mask: Any, dropout_p: float, is_causal: bool, scale: float | None, gqa: bool
) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, mask, dropout_p, is_causal, scale=scale, enable_gqa=gqa
    )


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    _refuse_mixed(
        torch.ops.aten.scaled_dot_product_attention.default,
        "scaled_dot_product_attention",
        (),
        [tensor for tensor in (query, key, value, attn_mask) if tensor is not None],
    )
    if len({query.dtype, key.dtype, value.dtype}) > 1:
        raise RuntimeError(f"Expected query, key, and value to have the same dtype (at {_line()})")
    return _Attention.apply(query, key, value, attn_mask, (dropout_p, is_causal, scale, enable_gqa))


_casts: dict[int, tuple[Tensor, Tensor]] = {}
"""Autocast's copies of weights, by the weight's id, until the outermost autocast ends."""


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in the type that autocast asks for; weights are cast once in an autocast, as on CUDA."""
    if not _is_fake(tensor) or not tensor.is_floating_point() or tensor.dtype in (dtype, torch.float64):
        return tensor
    weight = tensor.requires_grad and tensor.is_leaf and not tensor._is_view() and tensor.dtype == torch.float32
    if not weight or dtype == torch.float32 or not torch.is_autocast_cache_enabled():
        return tensor.to(dtype)
    if id(tensor) not in _casts:
        _casts[id(tensor)] = tensor, tensor.to(dtype)
    return _casts[id(tensor)][1]


def _autocast(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operator as CUDA's autocast does."""
    name = op._schema.name.removeprefix("aten::")
    with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
        if name in _TO_HALF:
            change = partial(_cast, dtype=torch.get_autocast_dtype(NAME))
        elif name in _TO_WIDEST:
            types = [t.dtype for t in [*_tensors(args), *_tensors(tuple(kwargs.values()))] if t.is_floating_point()]
            if len(set(types)) < 2:
                return op(*args, **kwargs)
            change = partial(_cast, dtype=torch.float32)
        elif any(argument.name == "dtype" for argument in op._schema.arguments) and kwargs.get("dtype") is None:
            position = next(i for i, argument in enumerate(op._schema.arguments) if argument.name == "dtype")
            if len(args) <= position and args[0].is_floating_point() and args[0].dtype != torch.float64:
                return op(*args, **{**kwargs, "dtype": torch.float32})  # the kernel casts while it reads
            return op(*args, **kwargs)
        else:
            change = partial(_cast, dtype=torch.float32)
        return op(*_map(change, args), **{key: _map(change, value) for key, value in kwargs.items()})


def _clear_casts(clear: Callable[[], None]) -> None:
    _casts.clear()
    clear()


def _operators() -> Iterator[tuple[str, Any]]:
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("aten::"):
            base, _, overload = name.removeprefix("aten::").partition(".")
            packet = getattr(torch.ops.aten, base, None)
            if packet is not None and hasattr(packet, overload or "default"):
                yield name, getattr(packet, overload or "default")


_libraries: list[torch.library.Library] = []


def install() -> None:
    """Register the fake GPU in this process, for good."""
    global _DEVICE
    if _libraries:
        return
    from torch.utils import backend_registration

    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    _DEVICE = torch.device(NAME, 0)
    every, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    _libraries.extend([every, aten])
    every.fallback(_run, "PrivateUse1")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    for name, op in _operators():
        plain = op._schema.name.removeprefix("aten::")
        if plain == "scaled_dot_product_attention":
            aten.impl(name, _attention, "PrivateUse1")
            aten.impl(name, _attention, "AutogradPrivateUse1")
        elif (
            not op.is_view
            and plain not in (*_ALLOCATIONS, "lift", "lift_fresh", "_unsafe_view", "is_pinned")
            and any(has(name, f"CompositeExplicitAutograd{kind}") for kind in ("", "NonFunctional"))
        ):
            # CUDA has kernels of its own for most operators that torch could also compose of others.
            aten.impl(name, partial(_run, op), "PrivateUse1")
        if has(name, "AutocastCUDA"):
            aten.impl(name, partial(_autocast, op), "AutocastPrivateUse1")
    aten.impl("_pin_memory", _pin, "CPU")
    aten.impl("is_pinned", lambda tensor, device=None: _pinned(tensor), "CPU")
    torch.clear_autocast_cache = partial(_clear_casts, torch.clear_autocast_cache)
    torch.accelerator.synchronize = torch.fakegpu.synchronize  # type: ignore[attr-defined]
    torch.accelerator.get_device_capability = _capability  # type: ignore[attr-defined]
    copied = Tensor.__deepcopy__
    Tensor.__deepcopy__ = lambda self, memo: (  # type: ignore[method-assign]
        _deep_copy(self, memo) if type(self) is Tensor and _is_fake(self) else copied(self, memo)
    )


def use_kernels() -> None:
    """Run the Triton kernels of relation losses, as on CUDA, in Triton's interpreter; each is one launch.

    Triton must not have been imported before.
    """
    os.environ["TRITON_INTERPRET"] = "1"  # read where a kernel is defined, Triton's own ones too
    from triton.runtime.interpreter import InterpretedFunction

    from autodistil_search.superlm import relation_loss

    run = InterpretedFunction.run

    def counted(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        _count("launches", kernel.__name__)
        return run(kernel, *(_on_cpu(arg) if _is_fake(arg) else arg for arg in args), **kwargs)

    InterpretedFunction.run = counted
    relation_loss._have_kernels = lambda kind: kind == NAME


def _pin(tensor: Tensor, device: object = None) -> Tensor:
    pinned = tensor.clone()
    pinned.untyped_storage().pinned = True  # type: ignore[attr-defined]
    return pinned


def _deep_copy(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    if id(tensor) not in memo:
        memo[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    copy: Tensor = memo[id(tensor)]
    return copy


def run_command(arguments: list[str]) -> dict[str, Any]:
    """Run a command of the product on the fake GPU; return its exit code and counts."""
    from autodistil_search.cli.main import main as product

    install()
    with counting() as counts:
        code = product(arguments)
    return {"command": arguments, "code": code, **counts.to_dict()}


@dataclass(frozen=True)
class RandomTraining:
    """Training of a space on random tokens, with a function that takes one step."""

    model: AutoDistilModel
    teacher: Teacher
    options: TrainOptions
    take: Callable[[int], None]


@contextmanager
def begin_training(
    space_name: str,
    device: Device,
    sampling: str = "largest-random",
    hidden: float = 1.0,
    shape: tuple[int, int] = (2, 128),
    teacher: str = "",
) -> Iterator[RandomTraining]:
    """Yield a training of a space on random tokens.

    Args:
        space_name: Name of the space.
        device: Device and precision, which need not be the fake GPU.
        sampling: Rule by which a step draws its subnets.
        hidden: Weight of the loss of hidden states.
        shape: Blocks of a step, and tokens of a block.
        teacher: Folder or hub id of the teacher; a random one of the size of BERT-base if empty.
    """
    import numpy as np
    from transformers import BertConfig, BertModel, BertTokenizerFast

    from autodistil_search.distillation.options import Execution, TrainOptions
    from autodistil_search.distillation.teacher_batches import TeacherBatches
    from autodistil_search.distillation.training_step import ModelInTraining, last_hidden_of, subnets_of_step
    from autodistil_search.spaces.search_space import load_space
    from autodistil_search.teachers import initial_weights
    from autodistil_search.teachers.loading import load_teacher
    from autodistil_search.teachers.teacher import Teacher
    from autodistil_search.text.blocks import Blocks

    space = load_space(space_name)
    torch.manual_seed(0)
    if teacher:
        guide = load_teacher(teacher, -1, device.name)
    else:
        words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
        guide = Teacher(BertModel(BertConfig()).to(device.name), BertTokenizerFast(vocab=words), "random BERT-base", -1)
    tokens = np.random.default_rng(0).integers(1000, 20000, 64 * shape[0] * shape[1], dtype=np.uint32)
    options = TrainOptions(
        100, shape[0], 1e-4, 0, relation_heads=space.relation_heads, sampling=sampling, hidden=hidden
    )
    model, _ = initial_weights.superlm(guide, space, "random")
    device.place(model)
    model.train()
    last_hidden = last_hidden_of(model, guide, options, device)
    training = ModelInTraining(model, options, Execution(), device, last_hidden)
    text = Blocks([tokens], shape[1], 2, 3)
    with TeacherBatches(guide.cast(device), text, options, Execution(), device) as batches:

        def take(step: int) -> None:
            training.begin(subnets_of_step(model, options, step))
            for batch in batches.of_step(step):
                training.learn(batch)
            training.update(step, (False, False))

        yield RandomTraining(model, guide, options, take)


def step_counts(training: RandomTraining) -> Counts:
    """Return the counts of the second step.

    The first one also measures an uninformed model, and makes the moments of the optimizer.
    """
    training.take(0)
    with counting(backward_lines=True) as counts:
        training.take(1)
    return counts


def main(arguments: list[str]) -> int:
    """Run a command of the product on the fake GPU, or count a training step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a command of the product; its counts go to standard error as JSON")
    run.add_argument("arguments", nargs=argparse.REMAINDER)
    several = commands.add_parser("commands", help="run several commands; write the exit code and counts of each")
    several.add_argument("list", type=Path, help="JSON: a list of lists of arguments")
    several.add_argument("counts", type=Path, help="JSON file to write")
    step = commands.add_parser("step", help="count a training step, by operator and by line")
    step.add_argument("--space", default="tiny")
    step.add_argument("--sampling", default="largest-random")
    step.add_argument("--hidden", type=float, default=1.0)
    step.add_argument("--precision", default="bf16")
    step.add_argument("--batch", type=int, default=2)
    step.add_argument("--seq-len", type=int, default=128)
    step.add_argument("--teacher", default="", help="folder or hub id; a random BERT-base without it")
    step.add_argument(
        "--kernels", action="store_true", help="run Triton's kernels, as CUDA does; give a small --seq-len"
    )
    step.add_argument("--most", type=int, default=40, help="rows of each table")
    given = parser.parse_args(arguments)
    if given.command == "run":
        result = run_command(given.arguments)
        print(json.dumps(result), file=sys.stderr)
        return int(result["code"])
    if given.command == "commands":
        results = [run_command(arguments) for arguments in json.loads(given.list.read_text())]
        given.counts.write_text(json.dumps(results, indent=1))
        return int(any(result["code"] for result in results))
    from autodistil_search.base.device import Device

    install()
    if given.kernels:
        use_kernels()
    device, shape = Device(NAME, given.precision), (given.batch, given.seq_len)
    with begin_training(given.space, device, given.sampling, given.hidden, shape, given.teacher) as training:
        counts = step_counts(training)
    print(json.dumps(counts.totals()))
    for of in ("launches", "casts", "copies", "syncs"):
        for key, title in ((0, "operator"), (1, "line")):
            by: Counter[str] = Counter()
            for entry, count in getattr(counts, of).items():
                by[entry[key]] += count
            print(f"\n{of} by {title}")
            for what, count in by.most_common(given.most):
                print(f"{count:6} {what}{_code(what)}")
    return 0


def _code(place: str) -> str:
    """Return the code of a line, after its place."""
    path, _, line = place.removeprefix("backward of ").rpartition(":")
    code = linecache.getline(str(_ROOT / path), int(line)).strip() if path and line.isdigit() else ""
    return f"  {code}" if code else ""


if __name__ == "__main__":
    sys.path[:1] = [str(_ROOT)]
    sys.exit(main(sys.argv[1:]))
