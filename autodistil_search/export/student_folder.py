"""A student as a folder that others can load: weights, tokenizer, ONNX files and a card with what was measured.

As stock BERT or MPNet where one computes the same (`bert.py`), else with a modelling file of its own
(`modeling_student.py`), so that nobody who loads it needs this package.
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
from autodistil_search.base.pretrained import quiet_transformers
from autodistil_search.base.progress import Reporter
from autodistil_search.export import onnx_files
from autodistil_search.export.model_card import Card, Variant
from autodistil_search.export.onnx_files import MODEL, MODEL_INT8, TOLERANCE
from autodistil_search.export.stock_models import bert_sizes, stock_format, to_stock, why_not
from autodistil_search.export.student_source import CPU, Exportable, Student, find_exportable, load_task_as_finetuned
from autodistil_search.nas import hardware
from autodistil_search.nas.hardware import Load
from autodistil_search.report.escape import markdown
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
    """What was found out about an export: rows of the card, the teacher's last if there is one, and notes."""

    variants: list[Variant]
    notes: list[str]
    load: Load


def export_student(source: Path, to: Path, options: ExportOptions, reporter: Reporter | None = None) -> Path:
    """Write the student of `source`, a run's folder or a saved student's, into the folder `to`, which is returned.

    Raises:
        InputError: for input that cannot be used, before anything is written.
        ExportError: if the exported model or its ONNX file computes something else than the student.
    """
    if options.writes_onnx:
        onnx_files.require_onnx()
    reporter, to = reporter or Reporter(), to.absolute()
    _refuse_places(to, source)
    with ExitStack() as held:
        with usable(to, "--to"):
            held.enter_context(locked_beside(to, "--to"))
        _check_target(to)
        _export(source, to, options, reporter)
    return to


def _export(source: Path, to: Path, options: ExportOptions, reporter: Reporter) -> None:
    """Write the folder `to`, which this process holds."""
    found = find_exportable(source, options.pick, options.teacher, options.writes_onnx, reporter)
    task = None if options.task is None else _fitting_task(options.task, source, found.student)
    for note in task[0].notes if task is not None else ():
        reporter.say(note)
    exported = _converted(found, options.format)
    with whole_folder(to) as folder:
        with quiet_transformers():
            exported.save_pretrained(folder)
            _save_tokenizer(found, folder)
            _save_pooling(found, folder)
            exported = type(exported).from_pretrained(folder, use_safetensors=True).eval()
        if _is_own(exported):
            shutil.copyfile(modeling_student.__file__, folder / _OWN_FILE)
        measured = _measure(found, exported, folder, options, reporter)
        if task is not None:
            measured.notes.append(_task_note(*task, found, exported, folder))
        repository = None if options.push_to_hub is None else make_repository(options.push_to_hub, options.public)
        name = to.name if options.push_to_hub is None else getattr(repository, "repo_id", options.push_to_hub)
        _write_words(found, exported, measured, options, folder, name)
        write_manifest(folder, "export", model_files(folder))
    if repository is not None:
        upload(to, name, repository)
        reporter.say(f"uploaded to {repository}")


def make_repository(repo_id: str, public: bool = False) -> huggingface_hub.RepoUrl | Exception:
    """Make a repository on the hub, private unless `public`; one that is there stays as it is.

    Returns:
        Its address with its whole id, which has the owner's name; or the error, as the folder is to be written first.
    """
    try:
        return huggingface_hub.create_repo(repo_id, exist_ok=True, private=not public)
    except Exception as error:  # whatever token, name or connection lead to
        return error


def upload(folder: Path, name: str, repository: huggingface_hub.RepoUrl | Exception) -> None:
    """Upload an exported folder into a repository that was made for it.

    Raises:
        OSError: if it could not be made, or the upload fails; the folder stays.
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
    """Raise InputError for a place whose replacement would take more along than an earlier export."""
    places = {"the current folder": Path.cwd(), "the home folder": Path.home(), "the folder to export": source}
    for name, place in places.items():
        if place.resolve().is_relative_to(to.resolve()):
            raise InputError(
                f"--to {str(to)!r} is or holds {name}; allowed: a new or empty folder, or an earlier export"
            )


def _check_target(to: Path) -> None:
    """Refuse a place for the folder that holds anything but an earlier export."""
    if to.is_symlink() or (to.exists() and not to.is_dir()):
        raise InputError(f"--to {str(to)!r} is not a folder; allowed: a new or empty folder, or an earlier export")
    names = {item.name for item in to.iterdir()} if to.exists() else set()
    known = set()
    if EXPORT_RECORD in names:
        with readable(to / EXPORT_RECORD):
            known = set(read_json(to / EXPORT_RECORD).get("files", ()))
    if strangers := sorted(names - known):
        raise InputError(
            f"--to {str(to)!r} holds {strangers[0]!r}, which no export wrote; allowed: a new or empty folder, or an "
            "earlier export"
        )


def _converted(found: Exportable, wanted: Format) -> PreTrainedModel:
    """The student in the format wanted."""
    student = found.student
    if wanted == "own" or (wanted == "auto" and _why_own(found)):
        return _standalone(student)
    stock = stock_format(student.config) if wanted == "auto" else wanted
    if reason := why_not(student.config, stock, found.tokenizer.pad_token_id):
        allowed = "own" if _why_own(found) else f"{stock_format(student.config)}, own"
        raise InputError(
            f"--format {stock}, but none is equal to {student.config.subnet}: {reason}; allowed: {allowed}"
        )
    return to_stock(student, found.tokenizer.pad_token_id)


def _why_own(found: Exportable) -> str:
    """Return the reason why no stock model computes what the student does; empty if one does."""
    config = found.student.config
    return why_not(config, stock_format(config), found.tokenizer.pad_token_id)


def _standalone(student: Student) -> PreTrainedModel:
    """The same model in the classes of the file that goes with it, which the configuration names."""
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


def _save_tokenizer(found: Exportable, folder: Path) -> None:
    tokenizer = found.tokenizer
    tokenizer.model_max_length = min(tokenizer.model_max_length, found.student.config.max_position_embeddings)
    tokenizer.save_pretrained(folder)


def _save_pooling(found: Exportable, folder: Path) -> None:
    """Write how sentences are embedded, where the teacher's folder says so and the student has no head."""
    if found.pooling.stated and isinstance(found.student, AutoDistilModel):
        config = found.student.config
        found.pooling.write(folder, config.hidden_size, found.tokenizer.model_max_length)


def _measure(
    found: Exportable, exported: PreTrainedModel, folder: Path, options: ExportOptions, reporter: Reporter
) -> _Measured:
    """Check the exported model against the student, write and check the ONNX files, and time them all."""
    reporter.say("measuring")
    student, teacher = found.student, found.teacher
    positions = [student.config.max_position_embeddings] + ([teacher.vocabulary.positions] if teacher else [])
    load = Load(1, min(FLOPS_SEQ_LEN, *positions), CPU)
    sizes = student.config.subnet if _is_own(exported) else bert_sizes(student.config.subnet)
    kind = "own modelling file" if _is_own(exported) else f"stock `{type(exported).__name__}`"
    variants = [_variant(f"PyTorch, {kind}", exported, sizes, folder / WEIGHTS, hardware.latency(exported, load))]
    measured = _Measured(variants, [_format_note(found, exported, options.format)], load)
    if options.writes_onnx:
        _measure_onnx(found, exported, folder, measured, options.int8)
    if teacher is not None:
        numbers = hardware.latency(teacher.model, load)
        params = sum(each.numel() for each in teacher.model.parameters())
        variants.append(Variant("the teacher, PyTorch", "", params, None, 4 * params / 1e6, **numbers))
    return measured


def _variant(name: str, model: PreTrainedModel, sizes: Subnet, path: Path, numbers: dict[str, float]) -> Variant:
    params = sum(each.numel() for each in model.parameters())
    return Variant(name, path.name, params, _flops(model, sizes), path.stat().st_size / 1e6, **numbers)


def _flops(model: PreTrainedModel, sizes: Subnet) -> int:
    """Multiply-adds of an encoder of those sizes and, if `model` has one, its head."""
    head: Any = getattr(model, "classifier", None)
    head = getattr(head, "out_proj", head)  # MPNet's head has the pooler inside
    return flops(sizes) + (0 if head is None else head.weight.numel())


def _fitting_task(name: str, source: Path, student: Student) -> tuple[Task, int]:
    """The task of that name, and tokens of a row at most; see `load_task_as_finetuned`.

    Raises:
        InputError: if the student has no head for it, or one for other labels.
    """
    task, length = load_task_as_finetuned(name, source)
    if not isinstance(student, AutoDistilForSequenceClassification) or student.config.num_labels != task.outputs:
        raise InputError(
            f"--task {name!r} has {task.outputs} outputs, and the student no such head; allowed: a student that "
            "finetune trained on that task"
        )
    task.check_labels("the student", student.config.id2label)
    return task, length


def _task_note(task: Task, most: int, found: Exportable, exported: PreTrainedModel, folder: Path) -> str:
    """The metrics of every file on the task's dev rows, of at most so many tokens each, in words."""
    length = min(most, found.student.config.max_position_embeddings)
    rows = Prepared(task, found.tokenizer, length).dev
    runtimes: dict[str, Callable[..., Any]] = {"PyTorch": exported}
    for name in (MODEL, MODEL_INT8):
        if (folder / name).is_file():
            runtimes[f"`{name}`"] = onnx_files.classifier(folder / name)
    measured = {name: scores(task, rows.labels, predict(model, rows, CPU)) for name, model in runtimes.items()}
    words = [
        f"{name} " + ", ".join(f"{METRICS[metric].label} {value:.4f}" for metric, value in found.items())
        for name, found in measured.items()
    ]
    on = f"the {len(rows):,} dev rows of {markdown(task.name)}, at most {length} tokens of each, in float32"
    return f"On {on}: {'; '.join(words)}."


def _format_note(found: Exportable, exported: PreTrainedModel, wanted: Format) -> str:
    difference = onnx_files.largest_difference(
        exported, lambda given: found.student(**given, return_dict=False), found.sample
    )
    _agreeing(difference, f"the exported {type(exported).__name__}")
    mine, agreed = (
        found.student.config.subnet,
        f"Largest absolute difference to the student's outputs: {difference:.1e}.",
    )
    if _is_own(exported):
        why = "as asked for" if wanted == "own" else f"because {_why_own(found)}"
        return f"The folder has a modelling file of its own, {why}. {agreed}"
    sizes, params = bert_sizes(mine), [sum(p.numel() for p in each.parameters()) for each in (exported, found.student)]
    if sizes == mine:
        return f"Stock `{type(exported).__name__}`, with the student's own sizes. {agreed}"
    return (
        f"Stock `{type(exported).__name__}`: {sizes.heads} heads of {sizes.head_dim}, which hold the student's "
        f"{mine.heads} of {mine.head_dim} and zeros. Zeros change no output, but they are stored and computed with: "
        f"{params[0]:,} parameters and {_flops(exported, sizes):,} multiply-adds, where the student has {params[1]:,} "
        f"and {_flops(exported, mine):,}. {agreed}"
    )


def _agreeing(difference: float, what: str) -> float:
    """That difference to the student's outputs.

    Raises:
        ExportError: if it is more than rounding.
    """
    if not difference <= TOLERANCE:  # a NaN is no agreement
        raise ExportError(f"{what} differs from the student by {difference:.2e}; allowed: at most {TOLERANCE:g}")
    return difference


def _measure_onnx(found: Exportable, exported: PreTrainedModel, folder: Path, measured: _Measured, int8: bool) -> None:
    """Write the ONNX files, check the first against the exported model, and say what the second costs."""
    model, sizes, path = _standalone(found.student), found.student.config.subnet, folder / MODEL
    onnx_files.write_onnx(model, found.sample, path)
    difference = _agreeing(onnx_files.largest_difference(exported, onnx_files.runner(path), found.sample), MODEL)
    measured.variants.append(_variant("ONNX Runtime", model, sizes, path, _onnx_latency(model, path, measured.load)))
    shapes = len(list(found.sample.batches()))
    measured.notes.append(
        f"`{MODEL}` holds the student without zeros; batch size and length are free. Largest absolute difference to "
        f"PyTorch: {difference:.1e}, in {shapes} shapes with padding of {found.sample.words}."
    )
    if not int8:
        return
    target = folder / MODEL_INT8
    onnx_files.write_int8(path, target)
    numbers = _onnx_latency(model, target, measured.load)
    measured.variants.append(_variant("ONNX Runtime, int8", model, sizes, target, numbers))
    measured.notes.append(f"`{MODEL_INT8}` has weights in 8 bits. {_int8_costs(model, path, target, found)}")


def _onnx_latency(model: PreTrainedModel, path: Path, load: Load) -> dict[str, float]:
    ids = torch.randint(model.config.vocab_size, (load.batch, load.seq_len), generator=torch.Generator().manual_seed(0))
    run = onnx_files.runner(path)
    return hardware.call_latency(partial(run, onnx_files.inputs_of(model, ids, torch.ones_like(ids))))


def _int8_costs(model: PreTrainedModel, path: Path, target: Path, found: Exportable) -> str:
    """What rounding to 8 bits changes in what the model is for, on the sample, in words."""
    sample = found.sample
    if getattr(model, "classifier", None) is None:
        cosines = onnx_files.embedding_cosines(path, target, model, sample, found.pooling)
        return (
            f"Cosine similarity of its sentence vectors to those of `{MODEL}`, on {sample.words}: mean "
            f"{cosines.mean():.5f}, worst {cosines.min():.5f}."
        )
    a_class = cast(int, model.config.num_labels) > 1
    difference, same = onnx_files.logit_differences(path, target, model, sample)
    classes = f"; the same class for {same:.1%}" if a_class else ""
    return (
        f"Mean absolute difference of its logits to those of `{MODEL}`, on {sample.words}: {difference:.5f}{classes}."
    )


def _write_words(
    found: Exportable, exported: PreTrainedModel, measured: _Measured, options: ExportOptions, folder: Path, name: str
) -> None:
    """Write the card, and what was measured as JSON."""
    with_head = isinstance(found.student, AutoDistilForSequenceClassification)
    used = versions() | ({"onnxruntime": metadata.version("onnxruntime")} if options.writes_onnx else {})
    Card(
        name=name,
        student=str(found.student.config.subnet),
        labels=found.student.config.num_labels or 1 if with_head else 0,
        own_file=_is_own(exported),
        variants=measured.variants,
        has_teacher=found.teacher is not None,
        onnx=options.writes_onnx,
        load=measured.load.words,
        notes=measured.notes,
        vectors=found.pooling.words,
        facts=[*found.facts, ("versions", ", ".join(f"{key} {value}" for key, value in used.items()))],
        objectives=found.objectives,
        base_model=found.base_model,
        licence=options.license,
    ).write(folder / "README.md")
    files = sorted(path.name for path in folder.iterdir())
    record = {
        "variants": [asdict(each) for each in measured.variants],
        "load": measured.load.words,
        "notes": measured.notes,
        "versions": used,
        "files": [*files, EXPORT_RECORD, MANIFEST],
    }
    (folder / EXPORT_RECORD).write_text(json.dumps(record, indent=2), encoding="utf-8")
