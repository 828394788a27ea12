"""Export of a student as a folder with weights, tokenizer, optional ONNX files and a model card.

The folder loads without this package. It holds a standard BERT or MPNet if one has the same outputs
(`standard_models.py`), and otherwise one bundled modelling file (`modeling_student.py`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import torch
from transformers import PreTrainedModel

from autodistil_search.base.errors import ExportError, InputError
from autodistil_search.base.files import EXPORT_RECORD, locked_beside, read_json, readable, whole_folder
from autodistil_search.base.manifest import MANIFEST, model_files, write_manifest
from autodistil_search.base.pretrained import quiet_transformers, write_tokenizer
from autodistil_search.base.progress import Reporter
from autodistil_search.exporting import onnx_files
from autodistil_search.exporting.model_card import Card, Variant
from autodistil_search.exporting.onnx_files import MODEL, MODEL_INT8, TOLERANCE
from autodistil_search.exporting.standard_models import bert_sizes, standard_format, to_standard, why_not
from autodistil_search.exporting.student_source import CPU, Exportable, Student, find_exportable, load_task_as_finetuned
from autodistil_search.nas import hardware
from autodistil_search.nas.hardware import Load
from autodistil_search.report.escape import markdown
from autodistil_search.report.findings import disturbed_latency
from autodistil_search.runs.run_folder import usable, versions
from autodistil_search.settings.export import ExportOptions, Format
from autodistil_search.spaces.cost import FLOPS_SEQ_LEN, flops
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm import modeling_student
from autodistil_search.superlm.model import AutoDistilForSequenceClassification, AutoDistilModel
from autodistil_search.tasks.fine_tuning import Prepared, predict, scores
from autodistil_search.tasks.labelled_data import Task
from autodistil_search.tasks.metrics import METRICS

WEIGHTS = "model.safetensors"
_OWN_FILE = "modeling_student.py"


@dataclass(frozen=True)
class _Measured:
    """Measurements of an export: rows of the card, with any teacher's row last, and notes."""

    variants: list[Variant]
    notes: list[str]
    load: Load


def export_student(source: Path, to: Path, options: ExportOptions, reporter: Reporter | None = None) -> Path:
    """Write a student as a folder that loads without this package, and return the absolute path of the folder.

    Args:
        source: Folder of a finished search, `distil` or `finetune`, or of a saved student.
        to: Folder to write: new, empty, or an earlier export, which is replaced.
        options: Options of the export.
        reporter: Receiver of progress and notes.

    Raises:
        InputError: for input that cannot be used or a missing extra, before anything is written.
        ExportError: if outputs of the exported model or its ONNX file differ from the student's.
        OSError: if the folder is written but cannot be uploaded.
    """
    if options.writes_onnx:
        onnx_files.require_onnx()
    reporter, to = reporter or Reporter(), to.absolute()
    _refuse_places(to, source)
    with ExitStack() as held:
        with usable(to, "--out"):
            held.enter_context(locked_beside(to, "--out"))
        _check_target(to)
        _export(source, to, options, reporter)
    return to


def _export(source: Path, to: Path, options: ExportOptions, reporter: Reporter) -> None:
    """Write the folder `to`, on which this process holds a lock."""
    exportable = find_exportable(source, options.pick, options.teacher, options.writes_onnx, reporter)
    task = None if options.task is None else _checked_task(options.task, source, exportable.student)
    for note in task[0].notes if task is not None else ():
        reporter.say(note)
    exported = _converted(exportable, options.format)
    with whole_folder(to) as folder:
        with quiet_transformers():
            exported.save_pretrained(folder)
            _save_tokenizer(exportable, folder)
            _save_pooling(exportable, folder)
            exported = type(exported).from_pretrained(folder, use_safetensors=True).eval()
        if _is_own(exported):
            shutil.copyfile(modeling_student.__file__, folder / _OWN_FILE)
        measured = _measure(exportable, exported, folder, options, reporter)
        if task is not None:
            measured.notes.append(_task_note(*task, exportable, exported, folder))
        repository = None if options.push_to_hub is None else make_repository(options.push_to_hub, options.public)
        name = to.name if options.push_to_hub is None else getattr(repository, "repo_id", options.push_to_hub)
        _write_card(exportable, exported, measured, options, folder, name)
        write_manifest(folder, "export", model_files(folder))
    if repository is not None:
        upload(to, name, repository)
        reporter.say(f"uploaded to {repository}")


def make_repository(repo_id: str, public: bool = False) -> huggingface_hub.RepoUrl | Exception:
    """Create a repository on the hub, private unless `public`. An existing repository stays as it is.

    Returns:
        The address, which contains the full id with the owner's name; or the error, so that the folder is written
        before the error is raised.
    """
    try:
        return huggingface_hub.create_repo(repo_id, exist_ok=True, private=not public)
    except Exception as error:  # a wrong token, name or connection raises errors of many classes
        return error


def upload(folder: Path, name: str, repository: huggingface_hub.RepoUrl | Exception) -> None:
    """Upload an exported folder to its repository.

    Args:
        folder: Folder to upload.
        name: Name of the repository, for the message.
        repository: Result of `make_repository`.

    Raises:
        OSError: if the repository could not be created or the upload fails; the folder stays.
    """
    try:
        if isinstance(repository, Exception):
            raise repository
        huggingface_hub.upload_folder(
            repo_id=repository.repo_id, folder_path=folder, commit_message="Upload an exported student"
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise OSError(f"{folder} is written, but cannot be uploaded to {name}: {reason}") from None


def _refuse_places(to: Path, source: Path) -> None:
    """Refuse a target whose replacement would delete more than an earlier export.

    Raises:
        InputError: if the target is or contains the current folder, the home folder or the source.
    """
    places = {"the current folder": Path.cwd(), "the home folder": Path.home(), "the folder to export": source}
    for name, place in places.items():
        if place.resolve().is_relative_to(to.resolve()):
            raise InputError(
                f"--out {str(to)!r} is or holds {name}; allowed: a new or empty folder, or an earlier export"
            )


def _check_target(to: Path) -> None:
    """Refuse a target that contains anything other than an earlier export.

    Raises:
        InputError: if the target is not a folder, or contains a file that no export wrote.
    """
    if to.is_symlink() or (to.exists() and not to.is_dir()):
        raise InputError(f"--out {str(to)!r} is not a folder; allowed: a new or empty folder, or an earlier export")
    names = {item.name for item in to.iterdir()} if to.exists() else set()
    known = set()
    if EXPORT_RECORD in names:
        with readable(to / EXPORT_RECORD):
            known = set(read_json(to / EXPORT_RECORD).get("files", ()))
    if foreign := sorted(names - known):
        raise InputError(
            f"--out {str(to)!r} holds {foreign[0]!r}, which no export wrote; allowed: a new or empty folder, or an "
            "earlier export"
        )


def _converted(exportable: Exportable, form: Format) -> PreTrainedModel:
    """Return the student in a format.

    Raises:
        InputError: if no standard model of that format has the student's outputs.
    """
    student = exportable.student
    if form == "own" or (form == "auto" and _why_own(exportable)):
        return _standalone(student)
    standard = standard_format(student.config) if form == "auto" else form
    if reason := why_not(student.config, standard, exportable.tokenizer.pad_token_id):
        allowed = "own" if _why_own(exportable) else f"{standard_format(student.config)}, own"
        raise InputError(
            f"--format {standard}, but none is equal to {student.config.subnet}: {reason}; allowed: {allowed}"
        )
    return to_standard(student, exportable.tokenizer.pad_token_id)


def _why_own(exportable: Exportable) -> str:
    """Return the reason why no standard model has the student's outputs; empty if there is such a model."""
    config = exportable.student.config
    return why_not(config, standard_format(config), exportable.tokenizer.pad_token_id)


def _standalone(student: Student) -> PreTrainedModel:
    """Return the same model in the classes of the bundled modelling file, which its configuration names."""
    with_head = isinstance(student, AutoDistilForSequenceClassification)
    kinds = modeling_student.AutoDistilForSequenceClassification, modeling_student.AutoDistilModel
    settings = {key: value for key, value in student.config.to_dict().items() if key != "search_space"}
    config = modeling_student.AutoDistilConfig(**settings)
    names = ("AutoDistilConfig", "AutoDistilModel", "AutoDistilForSequenceClassification")
    autos = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")
    stem = Path(_OWN_FILE).stem
    config.auto_map = {auto: f"{stem}.{name}" for auto, name in zip(autos, names, strict=True)}
    model: PreTrainedModel = kinds[0 if with_head else 1](config)
    model.load_state_dict(student.state_dict())
    model.eval()
    return model


def _is_own(model: PreTrainedModel) -> bool:
    return isinstance(model.config, modeling_student.AutoDistilConfig)


def _save_tokenizer(exportable: Exportable, folder: Path) -> None:
    tokenizer = exportable.tokenizer
    tokenizer.model_max_length = min(tokenizer.model_max_length, exportable.student.config.max_position_embeddings)
    write_tokenizer(tokenizer, folder)


def _save_pooling(exportable: Exportable, folder: Path) -> None:
    """Write the pooling of sentence vectors, if the teacher's folder states it and the student has no head."""
    if exportable.pooling.stated and isinstance(exportable.student, AutoDistilModel):
        config = exportable.student.config
        exportable.pooling.write(folder, config.hidden_size, exportable.tokenizer.model_max_length)


def _measure(
    exportable: Exportable, exported: PreTrainedModel, folder: Path, options: ExportOptions, reporter: Reporter
) -> _Measured:
    """Check the exported model against the student, write and check the ONNX files, and measure all latencies."""
    reporter.say("measuring")
    student, teacher = exportable.student, exportable.teacher
    positions = [student.config.max_position_embeddings] + ([teacher.vocabulary.positions] if teacher else [])
    load = Load(1, min(FLOPS_SEQ_LEN, *positions), CPU)
    sizes = student.config.subnet if _is_own(exported) else bert_sizes(student.config.subnet)
    kind = "own modelling file" if _is_own(exported) else f"standard `{type(exported).__name__}`"
    variants = [_variant(f"PyTorch, {kind}", exported, sizes, folder / WEIGHTS, hardware.latency(exported, load))]
    measured = _Measured(variants, [_format_note(exportable, exported, options.format)], load)
    if options.writes_onnx:
        _measure_onnx(exportable, exported, folder, measured, options.int8)
    if teacher is not None:
        numbers = hardware.latency(teacher.model, load)
        params = sum(weight.numel() for weight in teacher.model.parameters())
        variants.append(Variant("the teacher, PyTorch", "", params, None, 4 * params / 1e6, **numbers))
    shares = [variant.latency_disturbance for variant in variants if variant.latency_disturbance is not None]
    if disturbed := disturbed_latency(shares):
        measured.notes.append(str(disturbed))
    return measured


def _variant(name: str, model: PreTrainedModel, sizes: Subnet, path: Path, numbers: dict[str, float]) -> Variant:
    params = sum(weight.numel() for weight in model.parameters())
    return Variant(name, path.name, params, _flops(model, sizes), path.stat().st_size / 1e6, **numbers)


def _flops(model: PreTrainedModel, sizes: Subnet) -> int:
    """Return the multiply-adds of an encoder of the given sizes, including the head of `model` if it has one."""
    head: Any = getattr(model, "classifier", None)
    head = getattr(head, "out_proj", head)  # MPNet's head has the pooler inside
    return flops(sizes) + (0 if head is None else head.weight.numel())


def _checked_task(name: str, source: Path, student: Student) -> tuple[Task, int]:
    """Return a task that fits the student's head, and the most tokens of a row; see `load_task_as_finetuned`.

    Raises:
        InputError: if the student has no head for the task, or has a head for other labels.
    """
    task, length = load_task_as_finetuned(name, source)
    if not isinstance(student, AutoDistilForSequenceClassification) or student.config.num_labels != task.outputs:
        raise InputError(
            f"--task {name!r} has {task.outputs} outputs, and the student no such head; allowed: a student that "
            "finetune trained on that task"
        )
    task.check_labels("the student", student.config.id2label)
    return task, length


def _task_note(task: Task, most: int, exportable: Exportable, exported: PreTrainedModel, folder: Path) -> str:
    """Return the metrics of every file on the task's dev rows, in words; `most` bounds the tokens of a row."""
    length = min(most, exportable.student.config.max_position_embeddings)
    rows = Prepared(task, exportable.tokenizer, length).dev
    runtimes: dict[str, Callable[..., Any]] = {"PyTorch": exported}
    for name in (MODEL, MODEL_INT8):
        if (folder / name).is_file():
            runtimes[f"`{name}`"] = onnx_files.classifier(folder / name)
    measured = {name: scores(task, rows.labels, predict(model, rows, CPU)) for name, model in runtimes.items()}
    words = [
        f"{name} " + ", ".join(f"{METRICS[metric].label} {value:.4f}" for metric, value in metrics.items())
        for name, metrics in measured.items()
    ]
    on = f"the {len(rows):,} dev rows of {markdown(task.name)}, at most {length} tokens of each, in float32"
    return f"On {on}: {'; '.join(words)}."


def _format_note(exportable: Exportable, exported: PreTrainedModel, form: Format) -> str:
    difference = onnx_files.largest_difference(
        exported, lambda given: exportable.student(**given, return_dict=False), exportable.sample
    )
    _checked_difference(difference, f"the exported {type(exported).__name__}")
    student_sizes, difference_words = (
        exportable.student.config.subnet,
        f"Largest absolute difference from the student's outputs: {difference:.1e}.",
    )
    if _is_own(exported):
        why = "as requested" if form == "own" else f"because {_why_own(exportable)}"
        return f"The folder has a modelling file of its own, {why}. {difference_words}"
    sizes, params = (
        bert_sizes(student_sizes),
        [sum(weight.numel() for weight in model.parameters()) for model in (exported, exportable.student)],
    )
    if sizes == student_sizes:
        return f"Standard `{type(exported).__name__}`, with the student's own sizes. {difference_words}"
    return (
        f"Standard `{type(exported).__name__}`: {sizes.heads} heads of {sizes.head_dim}, which hold the student's "
        f"{student_sizes.heads} heads of {student_sizes.head_dim} and zeros. Zeros change no output, but they are "
        f"stored and multiplied: {params[0]:,} parameters and {_flops(exported, sizes):,} multiply-adds, where the "
        f"student has {params[1]:,} and {_flops(exported, student_sizes):,}. {difference_words}"
    )


def _checked_difference(difference: float, what: str) -> float:
    """Return a difference from the student's outputs after checking that it is rounding.

    Raises:
        ExportError: if the difference is greater.
    """
    if not difference <= TOLERANCE:  # NaN counts as disagreement
        raise ExportError(f"{what} differs from the student by {difference:.2e}; allowed: at most {TOLERANCE:g}")
    return difference


def _measure_onnx(
    exportable: Exportable, exported: PreTrainedModel, folder: Path, measured: _Measured, int8: bool
) -> None:
    """Write the ONNX files, check `model.onnx` against the exported model, and measure the loss of accuracy by int8."""
    model, sizes, path = _standalone(exportable.student), exportable.student.config.subnet, folder / MODEL
    onnx_files.write_onnx(model, exportable.sample, path)
    difference = _checked_difference(
        onnx_files.largest_difference(exported, onnx_files.runner(path), exportable.sample), MODEL
    )
    measured.variants.append(_variant("ONNX Runtime", model, sizes, path, _onnx_latency(model, path, measured.load)))
    shapes = len(list(exportable.sample.batches()))
    measured.notes.append(
        f"`{MODEL}` holds the student without zeros, for any batch size and length. Largest absolute difference from "
        f"PyTorch: {difference:.1e}, in {shapes} shapes with padding of {exportable.sample.words}."
    )
    if not int8:
        return
    target = folder / MODEL_INT8
    onnx_files.write_int8(path, target)
    numbers = _onnx_latency(model, target, measured.load)
    measured.variants.append(_variant("ONNX Runtime, int8", model, sizes, target, numbers))
    measured.notes.append(f"`{MODEL_INT8}` has 8-bit weights. {_int8_note(model, path, target, exportable)}")


def _onnx_latency(model: PreTrainedModel, path: Path, load: Load) -> dict[str, float]:
    ids = torch.randint(model.config.vocab_size, (load.batch, load.seq_len), generator=torch.Generator().manual_seed(0))
    run = onnx_files.runner(path)
    return hardware.call_latency(partial(run, onnx_files.inputs_of(model, ids, torch.ones_like(ids))))


def _int8_note(model: PreTrainedModel, path: Path, target: Path, exportable: Exportable) -> str:
    """Return the changes in sentence vectors or logits by 8-bit rounding, on the sample, in words."""
    sample = exportable.sample
    if getattr(model, "classifier", None) is None:
        cosines = onnx_files.embedding_cosines(path, target, model, sample, exportable.pooling)
        return (
            f"Cosine similarity of its sentence vectors to those of `{MODEL}`, on {sample.words}: mean "
            f"{cosines.mean():.5f}, worst {cosines.min():.5f}."
        )
    classifies = cast(int, model.config.num_labels) > 1
    difference, same = onnx_files.logit_differences(path, target, model, sample)
    classes = f"; the same class for {same:.1%}" if classifies else ""
    return (
        f"Mean absolute difference of its logits from those of `{MODEL}`, on {sample.words}: {difference:.5f}{classes}."
    )


def _write_card(
    exportable: Exportable,
    exported: PreTrainedModel,
    measured: _Measured,
    options: ExportOptions,
    folder: Path,
    name: str,
) -> None:
    """Write the model card, and the measurements as JSON."""
    with_head = isinstance(exportable.student, AutoDistilForSequenceClassification)
    used = versions() | ({"onnxruntime": metadata.version("onnxruntime")} if options.writes_onnx else {})
    Card(
        name=name,
        student=str(exportable.student.config.subnet),
        labels=exportable.student.config.num_labels or 1 if with_head else 0,
        own_file=_is_own(exported),
        variants=measured.variants,
        has_teacher=exportable.teacher is not None,
        onnx=options.writes_onnx,
        load=measured.load.words,
        notes=measured.notes,
        vectors=exportable.pooling.words,
        facts=[*exportable.facts, ("versions", ", ".join(f"{key} {value}" for key, value in used.items()))],
        objectives=exportable.objectives,
        base_model=exportable.base_model,
        licence=options.license,
    ).write(folder / "README.md")
    files = sorted(path.name for path in folder.iterdir())
    record = {
        "variants": [asdict(variant) for variant in measured.variants],
        "load": measured.load.words,
        "notes": measured.notes,
        "versions": used,
        "files": [*files, EXPORT_RECORD, MANIFEST],
    }
    (folder / EXPORT_RECORD).write_text(json.dumps(record, indent=2), encoding="utf-8")
