"""The model card of an exported student: what was measured, where it comes from and how to load it."""

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
    """One way to run the model, or its teacher: a row of the table of costs.

    Attributes:
        name: Format and runtime.
        file: With the weights; empty for the teacher.
        params: Number of parameters.
        flops: Multiply-adds of matrix products at batch 1 and `FLOPS_SEQ_LEN` tokens; None where they were not counted.
        megabytes: 10^6 bytes of the file; of the teacher, of its weights in float32.
        latency: Median milliseconds of a forward pass.
        latency_iqr: Distance of their quartiles.
    """

    name: str
    file: str
    params: int
    flops: int | None
    megabytes: float
    latency: float
    latency_iqr: float


@dataclass(frozen=True)
class ObjectiveValue:
    """What the search knew of the subnet, in words; better: lower or higher."""

    label: str
    name: str
    value: str
    unit: str
    better: str


@dataclass(frozen=True)
class Card:
    """All that the card says.

    Attributes:
        name: Of the model: its repository on the hub, or its folder.
        student: Sizes, in words.
        labels: Of the head; 0 without one.
        own_file: Whether the folder brings its own modelling file.
        variants: What can be run, and the teacher's row last if `has_teacher`.
        load: What latency was measured under, in words.
        notes: On format and checks, a paragraph each.
        vectors: What a sentence's vector is, in words.
        facts: Teacher, text and training: (what, how) pairs.
        objectives: What the search knew.
        base_model: The teacher's id on the hub, if it has one.
        licence: As the hub names it; None if none was given.
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
        """The class of transformers that loads it."""
        return "AutoModelForSequenceClassification" if self.labels else "AutoModel"

    @property
    def task(self) -> str:
        """The pipeline of transformers that it is for."""
        return "text-classification" if self.labels else "feature-extraction"

    @property
    def trust(self) -> str:
        """The argument without which neither model nor tokenizer loads, or someone is asked, with its comma."""
        return ", trust_remote_code=True" if self.own_file else ""

    @property
    def licence_given(self) -> bool:
        """Whether the user said under which licence the weights are."""
        return self.licence is not None

    @property
    def front_matter(self) -> str:
        """What the hub reads, as YAML."""
        tags = ["autodistil", "neural-architecture-search", "knowledge-distillation"]
        tags += (["custom_code"] if self.own_file else []) + (["onnx"] if self.onnx else [])
        content: dict[str, object] = {"library_name": "transformers", "pipeline_tag": self.task, "tags": tags}
        if self.base_model:
            content["base_model"] = self.base_model
        content["license"] = self.licence or "unknown"
        return yaml.safe_dump(content, sort_keys=False)

    @property
    def words(self) -> str:
        """Return it as Markdown."""
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
        """Write it as Markdown."""
        path.write_text(self.words, encoding="utf-8")
