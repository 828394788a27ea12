"""Numbers, names and YAML of users: read alike everywhere, and refused in one line."""

import itertools
import math
import os
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from autodistil_search import Plugins, SearchConfig, TrainConfig
from autodistil_search.base.errors import InputError
from autodistil_search.base.user_input import (
    LARGEST,
    PACKAGED,
    TASKS,
    absolute_path,
    load_yaml,
    meant,
    parse_number,
    parse_whole_number,
    parse_yaml,
    quoted,
    read_yaml,
)
from autodistil_search.nas.objectives import parse_amount
from autodistil_search.settings.distil import DistilConfig
from autodistil_search.settings.finetune import FinetuneConfig
from autodistil_search.settings.validate_proxy import ValidateConfig
from autodistil_search.tasks.labelled_data import GLUE, TOPIC

ODD = (
    "",
    " ",
    "1_000",
    "\uff13",
    "\u0663",
    "1e400",
    "inf",
    "-inf",
    "nan",
    "Infinity",
    "0x10",
    "1,5",
    "1 2",
    "--1",
    "1e99999",
    "1" * 5000,
    "²",
)
"""Texts that Python or YAML may take for a number, and people do not."""


@pytest.mark.parametrize("text", ODD)
def test_what_is_no_plain_number_is_none(text):
    assert parse_whole_number(text) is None
    assert parse_number(text) is None or text == "1" * 5000  # a finite number has no more than 309 digits
    with pytest.raises(InputError, match=r"^--tokens .{0,80}; allowed: a number above 0"):
        parse_amount(text, "--tokens")


@given(st.integers(-LARGEST, LARGEST), st.sampled_from(["{}", " {} ", "{:+}", "{:020}"]))
def test_a_whole_number_is_read_as_it_is_written(value, style):
    text = style.format(value)
    assert parse_whole_number(text) == (value if len(text.strip().lstrip("+-")) <= 18 else None)
    assert parse_number(text) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_read_as_it_is_written(value):
    assert parse_number(repr(value)) == value


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=10,
    )
)
def test_yaml_that_was_written_is_read_back(content):
    assert parse_yaml(yaml.safe_dump(content), "x") == content


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(20)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "more than 200,000 values"),
        ("[" * 100_000, "nested deeper than 32 levels"),
        ("{a: " * 100_000, "nested deeper than 32 levels"),
        ("- " * 100_000 + "a", "nested deeper than 32 levels"),
        ("a: &a [*a]", "alias 'a'"),
        ("a: *b", "alias 'b'"),
        ("a: 1\na: 2", "line 2: repeated key 'a'"),
        ("[a]: 2", "a key is not text"),
        ("1: 2\n'1': 3", "line 2: repeated key '1'"),
        ("a: 2020-13-45", "month must be"),
        ("a: !!python/object/apply:os.system ['true']", "tag"),
        ("a: !!binary aGVsbG8=", "tag"),
        ("a: !!set {b, c}", "tag"),
        ("a: !thing b", "tag"),
        (f"a: {'9' * 5000}", "too many digits"),
        ("a: !!int b", "invalid literal"),
        ("a: !!bool b", "b"),
        ("a: b: c", "line 1"),
        ("a: 'b", "line"),
        ("a: \x01", "line 1|special characters|control characters"),
        ("a: 1\n---\nb: 2", "document"),
    ],
)
def test_yaml_that_is_no_plain_data_is_one_line(text, said):
    with pytest.raises(InputError, match=rf"^x cannot be read as YAML: .*({said})") as refused:
        parse_yaml(text, "x")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def test_an_alias_may_repeat_a_little():
    assert parse_yaml("a: &a [1, 2]\nb: *a", "x") == {"a": [1, 2], "b": [1, 2]}


def test_keys_and_dates_are_text():
    assert parse_yaml("1: 2020-01-31\nyes: yes", "x") == {"1": "2020-01-31", "yes": True}


@pytest.mark.parametrize("content", [b"\xff\xfe", bytes(range(256)), b" " * ((1 << 24) + 1)])
def test_a_file_that_is_no_yaml_is_one_line(content, tmp_path):
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.yaml cannot be read as YAML: "):
        read_yaml(tmp_path / "a.yaml")
    for name in (tmp_path, tmp_path / "none.yaml", "/dev/zero", "a\0b"):
        with pytest.raises(InputError, match=r"cannot be read as YAML: "):
            read_yaml(type(tmp_path)(name))


@contextmanager
def piped(content):
    """The path of a pipe through which another thread sends `content`, as the shell's `<(...)` makes one."""
    reading, writing = os.pipe()

    def send():
        with suppress(BrokenPipeError), os.fdopen(writing, "wb") as file:
            file.write(content)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield Path(f"/dev/fd/{reading}")
    finally:
        os.close(reading)
        sender.join()


def test_yaml_may_come_through_a_pipe_and_has_the_same_bounds_there(tmp_path):
    with piped(b"steps: 3") as path:
        assert read_yaml(path) == {"steps": 3}
    for content, said in (
        (b" " * ((1 << 24) + 1), "it has more than 16,777,216 bytes"),
        (LAUGHS.encode(), "more than 200,000 values"),
    ):
        with piped(content) as path, pytest.raises(InputError, match=said):
            read_yaml(path)
    with piped(b"steps: 3") as path, pytest.raises(ValueError, match="it is not a file"):
        load_yaml(path)  # of a run's own files none is a pipe


def test_a_config_may_come_through_standard_input():
    command = [sys.executable, "-m", "autodistil_search", "train", "--config", "/dev/stdin", "--print-config"]
    done = subprocess.run(command, input="steps: 3\nspace: debug\n", capture_output=True, text=True, check=True)
    assert yaml.safe_load(done.stdout)["steps"] == 3


def test_known_names_win_over_what_lies_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("packaged", "mine"):
        (tmp_path / name).mkdir()
    assert absolute_path("packaged", (PACKAGED,)) == "packaged"
    assert absolute_path("./packaged", (PACKAGED,)) == str(tmp_path / "packaged")
    assert absolute_path("mine", (PACKAGED,)) == str(tmp_path / "mine")
    for name in ("owner/model", "", "a\0b", "x" * 5000):
        assert absolute_path(name) == name


def test_settings_keep_known_names_whatever_lies_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("packaged", "shapes", "topic", "sst2", "tiny", "mine", "installed", "stock"):
        (tmp_path / name).mkdir()
    plugins = Plugins(teachers={"installed": None}, search_spaces={"stock": None})
    config = SearchConfig(
        text=["packaged", "./packaged"], baselines="shapes,mine", proxy="probe:topic", space="tiny,stock"
    )
    found = config.absolute(plugins)
    assert found.text == ["packaged", str(tmp_path / "packaged")]
    assert found.baselines == f"shapes,{tmp_path / 'mine'}"
    assert (found.teacher, found.proxy, found.space) == ("packaged", "probe:topic", "tiny,stock")
    assert SearchConfig(proxy="task:./topic").absolute().proxy == f"task:{tmp_path / 'topic'}"
    assert TrainConfig(teacher="installed").absolute(plugins).teacher == "installed"
    assert TrainConfig(teacher="installed").absolute().teacher == str(tmp_path / "installed")
    tuned = FinetuneConfig(model="packaged", task="sst2", teacher="./packaged", losses="logits").absolute()
    assert (tuned.model, tuned.task, tuned.teacher) == ("packaged", "sst2", str(tmp_path / "packaged"))
    assert FinetuneConfig(model="x", task="rte", teacher="packaged", losses="logits").absolute().teacher == "packaged"
    checked = ValidateConfig(probe="topic", cosine="./topic", task="mine").absolute()
    assert (checked.probe, checked.cosine, checked.task) == ("topic", str(tmp_path / "topic"), str(tmp_path / "mine"))


SETTINGS = [
    (config, field.name)
    for config in (TrainConfig, SearchConfig, DistilConfig, FinetuneConfig, ValidateConfig)
    for field in fields(config)
]


VALUES = [5, -(10**30), 16**6000, 1e308, math.nan, math.inf, True, "", "\0", "\udcff", [], [[]], {"a": 1}, None]
"""Of many kinds, as YAML and Python may give them."""


def refused_in_one_line(make):
    """Return what is made, or None if it is refused; other errors are not caught."""
    try:
        return make()
    except InputError as error:
        words = str(error)
    assert "\n" not in words
    assert len(words) < 400
    return None


def test_a_setting_of_any_kind_is_taken_or_refused_in_one_line():
    for (config, name), value in itertools.product(SETTINGS, VALUES):
        if (taken := refused_in_one_line(partial(config, **{name: value}))) is not None:
            kept = getattr(taken, name)
            assert kept is None or isinstance(kept, str | int | float | list)
            assert not isinstance(kept, float) or math.isfinite(kept)
            assert taken.folder.name is not None


def test_the_tasks_with_a_name_are_those_the_code_knows():
    assert set(TASKS) == {*GLUE, TOPIC}


def test_an_error_shows_a_value_in_short():
    assert quoted("tiny") == "'tiny'"
    assert len(quoted("x" * 10_000)) < 80
    assert len(quoted(16**6000)) < 80  # more digits than Python writes
    assert sys.get_int_max_str_digits() == 4300
    assert "secret" not in quoted("postgresql://me:secret@host/base")
    assert (meant("--objective", ["--objectives", "--out"]), meant("zzz", ["a"])) == (
        " (did you mean '--objectives'?)",
        "",
    )
