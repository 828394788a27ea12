"""The settings of `export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from autodistil_search.base.errors import InputError
from autodistil_search.settings.common import DATA, OUTPUT, Name, Placeholder, Usual, check_settings

Format = Literal["auto", "bert", "mpnet", "own"]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Settings of an export: student, formats, and the comparisons for its card.

    Args:
        pick: Row of the frontier: knee (the default), a number, or bounds such as 'flops<=200M'. Numbers count from 1,
            cheapest first. Bounds select the best row within them, by the search's first objective.
        teacher: Teacher to compare with, if not the search's.
        task: Labelled task on which a fine-tuned student is measured in every runtime.
        format: Format of the model. bert and mpnet are the standard models, own has a bundled modelling file, and auto
            is the first of these that the shapes allow.
        onnx: Write model.onnx and compare it with PyTorch (extra onnx).
        int8: Also write model_int8.onnx and measure what it costs.
        license: Licence of the weights for the card, such as apache-2.0.
        push_to_hub: Repository of the hub for the folder: NAME in the user's own account, or OWNER/NAME.
        public: Make the repository public; it is private by default.

    Raises:
        InputError: for a value that is not allowed.
    """

    pick: Annotated[Name | None, DATA, Usual(), Placeholder("PICK")] = None
    teacher: Annotated[Name | None, DATA, Usual("t")] = None
    task: Annotated[Name | None, DATA, Usual(), Placeholder("TASK")] = None
    format: Annotated[Format, OUTPUT, Usual()] = "auto"
    onnx: Annotated[bool, OUTPUT, Usual()] = False
    int8: Annotated[bool, OUTPUT, Usual()] = False
    license: Annotated[Name | None, OUTPUT, Usual(), Placeholder("LICENCE")] = None
    push_to_hub: Annotated[Name | None, OUTPUT, Usual()] = None
    public: Annotated[bool, OUTPUT, Usual()] = False

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
