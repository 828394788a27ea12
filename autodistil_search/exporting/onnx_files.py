"""Export of a student to ONNX: `model.onnx`, checked against torch, and `model_int8.onnx`, with its loss of accuracy.

The extra "onnx" is required. The files hold the student itself, without the zeros that a standard model needs.
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
"""Largest difference from torch's outputs that counts as rounding."""
_OPSET = 17
"""First opset with LayerNormalization; onnxruntime supports it since 1.12."""
_SHAPES = ((1, 1.0), (3, 0.5), (8, 0.9), (2, 0.1))
"""Batches on which outputs are compared: number of sequences, and length as a share of the sample's."""

SearchInputs = dict[str, Tensor]


@dataclass(frozen=True)
class Sample:
    """Tokenized text on which models are compared.

    Attributes:
        ids: Token ids `(n, T)`.
        mask: Attention mask `(n, T)`.
        words: Origin of the text, in words.
    """

    ids: Tensor
    mask: Tensor
    words: str

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield token ids and masks in several shapes; every second sequence of a batch ends in padding."""
        for rows, share in _SHAPES:
            tokens = max(2, round(share * self.ids.shape[1]))
            ids, mask = self.ids[:rows, :tokens], self.mask[:rows, :tokens].clone()
            mask[1::2, max(1, tokens * 2 // 3) :] = 0
            mask[:, 0] = 1  # with padding on the left, a short excerpt could consist of padding alone
            yield ids, mask


def require_onnx() -> None:
    """Check that the packages that write and run ONNX files are installed.

    Raises:
        InputError: if a package is missing.
    """
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"--onnx needs {package}; run pip install 'autodistil_search[onnx]'")


class _PositionalModel(nn.Module):
    """A model that takes its inputs by position and returns a tuple, as the exporter requires."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.model(*inputs, return_dict=False)
        return outputs


def inputs_of(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> SearchInputs:
    """Return the inputs of an ONNX file of `model`, by name. Token types are 0, and only given if there are several."""
    given = {"input_ids": ids, "attention_mask": mask}
    return given | (
        {"token_type_ids": torch.zeros_like(ids)} if getattr(model.config, "type_vocab_size", 1) > 1 else {}
    )


def write_onnx(model: PreTrainedModel, sample: Sample, path: Path) -> None:
    """Write a model of `modeling_student` as an ONNX file for any batch size and length.

    The outputs are `last_hidden_state` and `pooler_output`, or `logits` for a model with a head.
    """
    given = inputs_of(model, *next(sample.batches()))
    outputs = {"last_hidden_state": {0: "batch", 1: "tokens"}, "pooler_output": {0: "batch"}}
    if hasattr(model, "classifier"):
        outputs = {"logits": {0: "batch"}}
    # The tracing exporter is deprecated since torch 2.9, but takes 2 s instead of 14 and needs no further package.
    # The numbers are the same: no branch in a student's forward pass depends on its inputs.
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _PositionalModel(model).eval(),
            tuple(given.values()),
            str(path),
            input_names=list(given),
            output_names=list(outputs),
            dynamic_axes={name: {0: "batch", 1: "tokens"} for name in given} | outputs,
            opset_version=_OPSET,
            dynamo=False,
        )


def _session(path: Path) -> InferenceSession:
    """Open an ONNX file in ONNX Runtime, on the CPU, with torch's number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def runner(path: Path) -> Callable[[SearchInputs], list[Tensor]]:
    """Return a function that computes the outputs of an ONNX file in ONNX Runtime."""
    session = _session(path)

    def run(inputs: SearchInputs) -> list[Tensor]:
        arrays: list[Any] = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        return [torch.from_numpy(array) for array in arrays]

    return run


def classifier(path: Path) -> Callable[..., SequenceClassifierOutput]:
    """Return a function that runs an ONNX file with a head under the model's signature; unknown inputs are ignored."""
    session = _session(path)
    names = {argument.name for argument in session.get_inputs()}

    def call(**inputs: Tensor) -> SequenceClassifierOutput:
        arrays = session.run(["logits"], {key: tensor.numpy() for key, tensor in inputs.items() if key in names})
        return SequenceClassifierOutput(logits=torch.from_numpy(arrays[0]))

    return call


@torch.no_grad()
def largest_difference(
    model: PreTrainedModel, other: Callable[[SearchInputs], Iterable[Tensor]], sample: Sample
) -> float:
    """Return the largest absolute difference between the outputs of two models, in several shapes.

    The difference is NaN if any output is. Hidden states of padding tokens do not count, since MPNet gives these tokens
    no position.

    Args:
        model: Model to compare.
        other: Function with the same outputs in the same order, such as a `runner`.
        sample: Text on which the outputs are compared.
    """
    largest: list[Tensor] = []
    for batch in sample.batches():
        given = inputs_of(model, *batch)
        read = (batch[0] != model.config.pad_token_id) | (batch[1] == 1)  # (B, T)
        pairs = zip(model(**given, return_dict=False), other(given), strict=True)
        differences = [(output - other_output).abs() for output, other_output in pairs]
        largest += [(difference[read] if difference.dim() == 3 else difference).max() for difference in differences]
    return float(torch.stack(largest).max())


def write_int8(path: Path, target: Path) -> None:
    """Write the ONNX file `path` to `target` with 8-bit weights. Inputs of linear layers are quantised at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet_quantiser():
        quantize_dynamic(path, target, weight_type=QuantType.QInt8)


@contextmanager
def _quiet_quantiser() -> Iterator[None]:
    """Suppress the quantiser's advice on convolutions, a warning on the root logger."""
    root = logging.getLogger()
    handlers = list(root.handlers)

    def is_kept(record: logging.LogRecord) -> bool:
        return "pre-processing before quantization" not in record.getMessage()

    root.addFilter(is_kept)
    try:
        yield
    finally:
        root.removeFilter(is_kept)
        root.handlers[:] = handlers  # the first warning adds a handler to a logger that has none


def embedding_cosines(path: Path, other: Path, model: PreTrainedModel, sample: Sample, pooling: Pooling) -> Tensor:
    """Return the cosine similarities `(n,)` between the sentence vectors of two ONNX files of `model`."""
    a, b = (_outputs(file, model, sample) for file in (path, other))
    return F.cosine_similarity(pooling.vectors(a, sample.mask), pooling.vectors(b, sample.mask))


def logit_differences(path: Path, other: Path, model: PreTrainedModel, sample: Sample) -> tuple[float, float]:
    """Return the mean absolute difference of two ONNX files' logits, and the share of texts with equal classes."""
    a, b = (_outputs(file, model, sample) for file in (path, other))
    return float((a - b).abs().mean()), float((a.argmax(-1) == b.argmax(-1)).double().mean())


def _outputs(path: Path, model: PreTrainedModel, sample: Sample) -> Tensor:
    """Return the first output on the whole sample, computed in batches of 8 texts."""
    run = runner(path)
    rows: Sequence[tuple[Tensor, Tensor]] = list(zip(sample.ids.split(8), sample.mask.split(8), strict=True))
    return torch.cat([run(inputs_of(model, ids, mask))[0] for ids, mask in rows])
