"""Model card of an exported student: measurements, origin and usage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jinja2
import yaml

from autodistil_search.report.escape import markdown, markdown_code
from autodistil_search.spaces.cost import FLOPS_SEQ_LEN


@dataclass(frozen=True)
class Variant:
    """A row of the table of costs: the model in one format and runtime, or its teacher.

    Attributes:
        name: Format and runtime.
        file: File with the weights; empty for the teacher.
        params: Number of parameters.
        flops: Multiply-adds of matrix products at batch 1 and `FLOPS_SEQ_LEN` tokens; None if they were not counted.
        megabytes: Size of the file in MB (10^6 bytes); for the teacher, size of its float32 weights.
        latency: Median milliseconds of a forward pass.
        latency_iqr: Interquartile range of the milliseconds.
        latency_disturbance: Share of the processors' time that other processes took meanwhile; None if it is not known.
    """

    name: str
    file: str
    params: int
    flops: int | None
    megabytes: float
    latency: float
    latency_iqr: float
    latency_disturbance: float | None = None


@dataclass(frozen=True)
class ObjectiveValue:
    """Value of one objective for the subnet, as text.

    Attributes:
        label: Name in figures and tables.
        name: Name of the column.
        value: Value, rounded for reading.
        unit: Unit of the value.
        better: "lower" or "higher".
    """

    label: str
    name: str
    value: str
    unit: str
    better: str


@dataclass(frozen=True)
class Card:
    """Content of a model card.

    Attributes:
        name: Name of the model: its repository on the hub, or its folder.
        student: Sizes of the student, in words.
        labels: Number of labels of the head; 0 without a head.
        own_file: True if the folder contains its own modelling file.
        variants: Rows of the table of costs, the teacher's row last if `has_teacher`.
        has_teacher: True if the teacher was measured, too.
        onnx: True if the folder contains ONNX files.
        load: Inputs and device of the latency, in words.
        notes: Paragraphs on format and checks.
        vectors: Description of sentence vectors.
        facts: Teacher, text and training, as pairs of a name and a description.
        objectives: Objectives of the search with their values; empty without a search.
        base_model: The teacher's id on the hub, if it has one.
        licence: Licence as the hub names it; None if none was given.
    """

    name: str
    student: str
    labels: int
    own_file: bool
    variants: Sequence[Variant]
    has_teacher: bool
    onnx: bool
    load: str
    notes: Sequence[str]
    vectors: str
    facts: Sequence[tuple[str, str]]
    objectives: Sequence[ObjectiveValue]
    base_model: str | None
    licence: str | None

    flops_seq_len: int = FLOPS_SEQ_LEN

    @property
    def auto_class(self) -> str:
        """Return the name of the transformers class that loads the model."""
        return "AutoModelForSequenceClassification" if self.labels else "AutoModel"

    @property
    def task(self) -> str:
        """Return the name of the model's transformers pipeline."""
        return "text-classification" if self.labels else "feature-extraction"

    @property
    def trust(self) -> str:
        """Return the argument that models with their own modelling file need to load, with a leading comma, or ''."""
        return ", trust_remote_code=True" if self.own_file else ""

    @property
    def licence_given(self) -> bool:
        """Return True if the user stated a licence of the weights."""
        return self.licence is not None

    @property
    def front_matter(self) -> str:
        """Return the metadata for the hub, as YAML."""
        tags = ["autodistil", "neural-architecture-search", "knowledge-distillation"]
        tags += (["custom_code"] if self.own_file else []) + (["onnx"] if self.onnx else [])
        content: dict[str, object] = {"library_name": "transformers", "pipeline_tag": self.task, "tags": tags}
        if self.base_model:
            content["base_model"] = self.base_model
        content["license"] = self.licence or "unknown"
        return yaml.safe_dump(content, sort_keys=False)

    @property
    def words(self) -> str:
        """Return the card as Markdown."""
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader(__name__.rpartition(".")[0], "."), keep_trailing_newline=True
        )
        environment.filters |= {
            "md": markdown,
            "code": markdown_code,
            "string": partial(json.dumps, ensure_ascii=False),
        }
        return environment.get_template("card.md").render(card=self, front_matter=self.front_matter)

    def write(self, path: Path) -> None:
        """Write the card as Markdown."""
        path.write_text(self.words, encoding="utf-8")
