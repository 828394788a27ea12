"""A student as ONNX files: `model.onnx`, checked against torch, and `model_int8.onnx`, with what it costs.

Needs the extra "onnx". The files hold the student as it is: none of the zeros that a stock model needs.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from autodistil_search.base.errors import InputError
from autodistil_search.teachers.pooling import Pooling

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

MODEL, MODEL_INT8 = "model.onnx", "model_int8.onnx"
TOLERANCE = 1e-4
"""The largest difference to torch's outputs that is put down to rounding."""
_OPSET = 17
"""The first with LayerNormalization; onnxruntime has it since 1.12."""
_SHAPES = ((1, 1.0), (3, 0.5), (8, 0.9), (2, 0.1))
"""Sequences, and the share of their length, of the batches that outputs are compared on."""

SearchInputs = dict[str, Tensor]


@dataclass(frozen=True)
class Sample:
    """Token ids of text and their mask, both `(n, T)`, and in words where they come from."""

    ids: Tensor
    mask: Tensor
    words: str

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Token ids and masks in several shapes; every second sequence of a batch ends in padding."""
        for rows, share in _SHAPES:
            tokens = max(2, round(share * self.ids.shape[1]))
            ids, mask = self.ids[:rows, :tokens], self.mask[:rows, :tokens].clone()
            mask[1::2, max(1, tokens * 2 // 3) :] = 0
            mask[:, 0] = 1  # where padding leads, a short cut could be nothing else
            yield ids, mask


def require_onnx() -> None:
    """Raises InputError unless what writes and runs ONNX files is installed."""
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"--onnx needs {package}; run pip install 'autodistil_search[onnx]'")


class _Tuples(nn.Module):
    """A model that takes its inputs by position and returns a tuple, as the exporter wants it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.model(*inputs, return_dict=False)
        return outputs


def inputs_of(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> SearchInputs:
    """What an ONNX file of `model` takes, by name; token types, all 0, where the model has more than one."""
    given = {"input_ids": ids, "attention_mask": mask}
    return given | (
        {"token_type_ids": torch.zeros_like(ids)} if getattr(model.config, "type_vocab_size", 1) > 1 else {}
    )


def write_onnx(model: PreTrainedModel, sample: Sample, path: Path) -> None:
    """Write `model`, of `modeling_student`, to be run with any batch size and length.

    Outputs: `last_hidden_state` and `pooler_output`, or `logits` of a model with a head.
    """
    given = inputs_of(model, *next(sample.batches()))
    outputs = {"last_hidden_state": {0: "batch", 1: "tokens"}, "pooler_output": {0: "batch"}}
    if hasattr(model, "classifier"):
        outputs = {"logits": {0: "batch"}}
    # The exporter that traces: deprecated since torch 2.9, but it takes 2 s instead of 14, needs no other package,
    # and the numbers are the same. Nothing in a student's forward pass depends on what it is given.
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Tuples(model).eval(),
            tuple(given.values()),
            str(path),
            input_names=list(given),
            output_names=list(outputs),
            dynamic_axes={name: {0: "batch", 1: "tokens"} for name in given} | outputs,
            opset_version=_OPSET,
            dynamo=False,
        )


def _session(path: Path) -> InferenceSession:
    """An ONNX file in ONNX Runtime, on the CPU, with as many threads as torch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def runner(path: Path) -> Callable[[SearchInputs], list[Tensor]]:
    """What computes the outputs of an ONNX file in ONNX Runtime."""
    session = _session(path)

    def run(inputs: SearchInputs) -> list[Tensor]:
        arrays: list[Any] = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        return [torch.from_numpy(array) for array in arrays]

    return run


def classifier(path: Path) -> Callable[..., SequenceClassifierOutput]:
    """An ONNX file with a head, called as its model is; what it has no input for is left out."""
    session = _session(path)
    names = {each.name for each in session.get_inputs()}

    def call(**inputs: Tensor) -> SequenceClassifierOutput:
        arrays = session.run(["logits"], {key: each.numpy() for key, each in inputs.items() if key in names})
        return SequenceClassifierOutput(logits=torch.from_numpy(arrays[0]))

    return call


@torch.no_grad()
def largest_difference(
    model: PreTrainedModel, other: Callable[[SearchInputs], Iterable[Tensor]], sample: Sample
) -> float:
    """The largest absolute difference between the outputs of `model` and of `other`, in several shapes; NaN if any is.

    Hidden states of padding tokens do not count: MPNet gives such a token no position.

    other: gives the same outputs in the same order, as a `runner` does.
    """
    found: list[Tensor] = []
    for batch in sample.batches():
        given = inputs_of(model, *batch)
        read = (batch[0] != model.config.pad_token_id) | (batch[1] == 1)  # (B, T)
        pairs = zip(model(**given, return_dict=False), other(given), strict=True)
        differences = [(mine - theirs).abs() for mine, theirs in pairs]
        found += [(each[read] if each.dim() == 3 else each).max() for each in differences]
    return float(torch.stack(found).max())


def write_int8(path: Path, target: Path) -> None:
    """Write `target`, `path` with weights in 8 bits, whose inputs are rounded to 8 bits while it runs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet_quantiser():
        quantize_dynamic(path, target, weight_type=QuantType.QInt8)


@contextmanager
def _quiet_quantiser() -> Iterator[None]:
    """It advises on convolutions by a warning on the root logger."""
    root = logging.getLogger()
    handlers = list(root.handlers)

    def is_ours(record: logging.LogRecord) -> bool:
        return "pre-processing before quantization" not in record.getMessage()

    root.addFilter(is_ours)
    try:
        yield
    finally:
        root.removeFilter(is_ours)
        root.handlers[:] = handlers  # a logger without any is given one by its first warning


def embedding_cosines(path: Path, other: Path, model: PreTrainedModel, sample: Sample, pooling: Pooling) -> Tensor:
    """Cosine similarities `(n,)` of each text's vector in two ONNX files of `model`."""
    a, b = (_outputs(each, model, sample) for each in (path, other))
    return F.cosine_similarity(pooling.vectors(a, sample.mask), pooling.vectors(b, sample.mask))


def logit_differences(path: Path, other: Path, model: PreTrainedModel, sample: Sample) -> tuple[float, float]:
    """Mean absolute difference of the logits of two ONNX files of `model`; the share of texts with equal classes."""
    a, b = (_outputs(each, model, sample) for each in (path, other))
    return float((a - b).abs().mean()), float((a.argmax(-1) == b.argmax(-1)).double().mean())


def _outputs(path: Path, model: PreTrainedModel, sample: Sample) -> Tensor:
    """The first output on all of a sample, a few texts at a time."""
    run = runner(path)
    rows: Sequence[tuple[Tensor, Tensor]] = list(zip(sample.ids.split(8), sample.mask.split(8), strict=True))
    return torch.cat([run(inputs_of(model, ids, mask))[0] for ids, mask in rows])
