"""The settings of `export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from autodistil_search.base.errors import InputError
from autodistil_search.settings.common import DATA, OUTPUT, Name, check_settings

Format = Literal["auto", "bert", "mpnet", "own"]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Settings of an export: student, formats, and the comparisons for its card.

    Args:
        pick: Row of the frontier: knee (the default), a number from 1, cheapest first, or bounds such as flops<=200M:
            of the rows that keep them, the best in the search's first objective.
        teacher: Teacher to compare with, if not the search's.
        task: Task to measure a fine-tuned student on, in every runtime.
        format: Stock BERT (bert) or MPNet (mpnet), with its own modelling file (own), or the first that can be (auto).
        onnx: Write model.onnx, checked against PyTorch (extra onnx).
        int8: Write model_int8.onnx, too, and say what it costs.
        license: Licence of the weights, for the card, such as apache-2.0.
        push_to_hub: Repository of the hub to upload the folder to: NAME, of the user's own, or OWNER/NAME.
        public: Let everyone see the repository; else it is private.

    Raises:
        InputError: for a value that is not allowed.
    """

    pick: Annotated[Name | None, DATA] = None
    teacher: Annotated[Name | None, DATA] = None
    task: Annotated[Name | None, DATA] = None
    format: Annotated[Format, OUTPUT] = "auto"
    onnx: Annotated[bool, OUTPUT] = False
    int8: Annotated[bool, OUTPUT] = False
    license: Annotated[Name | None, OUTPUT] = None
    push_to_hub: Annotated[Name | None, OUTPUT] = None
    public: Annotated[bool, OUTPUT] = False

    def __post_init__(self) -> None:
        check_settings(self)
        if self.public and self.push_to_hub is None:
            raise InputError("--public without --push-to-hub; allowed: both, or neither")
        if self.push_to_hub is not None:
            from huggingface_hub.errors import HFValidationError
            from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

            try:
                validate_repo_id(self.push_to_hub)
            except HFValidationError:
                raise InputError(f"--push-to-hub {self.push_to_hub!r}; allowed: NAME or OWNER/NAME") from None

    @property
    def writes_onnx(self) -> bool:
        """True if ONNX files are to be written."""
        return self.onnx or self.int8
