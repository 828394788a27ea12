"""Input of users, read in one way everywhere: numbers, names that may also be paths, and YAML files."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import yaml

from autodistil_search.base.errors import InputError
from autodistil_search.base.passwords import without_password

PACKAGED = "packaged"
"""The teacher, and the text, of the extra `quickstart`."""
TASKS = ("mnli", "qnli", "qqp", "sst2", "cola", "mrpc", "rte", "stsb", "topic")
"""Labelled tasks that have a name; see `tasks.data`."""

LARGEST = 10**9
"""No whole number that can be given is larger, unless its range says so."""

_DIGITS = 18
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?", re.ASCII)
_SHOWN = 60

_LARGEST_YAML = 1 << 24
"""Bytes: some 100,000 names of text files."""
_STANDARD_INPUT = (Path("/dev/stdin"), Path("/dev/fd/0"))
"""A pipe, a file, a terminal or another device, as whoever started the command chose."""
_MOST_NODES = 200_000
"""Values of a YAML file, those that aliases repeat among them."""
_DEEPEST = 32
_LONGEST_NUMBER = 4000
"""Digits; Python writes 300 more."""
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")


def quoted(value: object) -> str:
    """Return `value` as an error may show it: in quotes where it is text, cut where it is long."""
    try:
        text = without_password(value) if isinstance(value, str) else value
        words = repr(text)
    except (ValueError, RecursionError):  # more digits than Python writes
        words = f"a {type(value).__name__} too long to show"
    return words if len(words) <= _SHOWN else f"{words[:_SHOWN]}..."


def meant(name: object, known: Iterable[str]) -> str:
    """Return a question for a name much like one of `known`, to put behind an error; nothing if there is none."""
    near = difflib.get_close_matches(name[:100], list(known), n=1) if isinstance(name, str) else []
    return f" (did you mean {near[0]!r}?)" if near else ""


def parse_whole_number(text: str) -> int | None:
    """Return the whole number that `text` is, in ASCII digits with at most a sign; None for any other text."""
    return int(text) if re.fullmatch(rf"\s*[+-]?[0-9]{{1,{_DIGITS}}}\s*", text, re.ASCII) else None


def parse_number(text: str) -> float | None:
    """Return the finite number that `text` is, in ASCII digits; None for any other text."""
    value = float(text) if len(text) < 400 and _NUMBER.fullmatch(text.strip()) else math.nan
    return value if math.isfinite(value) else None


def is_finite(value: object) -> bool:
    """Return whether `value` is a number, neither a switch nor infinite nor beyond what a float holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def absolute_path(name: str, known: Container[str] = ()) -> str:
    """Return the absolute path of the file or folder `name`, and any other name as it is.

    This is the one rule for names that may also be paths: those of `known` win, whatever lies in the working
    directory. `./NAME` means the file or folder of that name.
    """
    if name in known:
        return name
    try:
        return str(Path(name).resolve()) if name and Path(name).exists() else name
    except (OSError, ValueError, RuntimeError):  # a name no file can have
        return name


def read_yaml(path: Path) -> Any:
    """Return what a YAML file of the user holds, or what comes through a pipe or standard input; see `parse_yaml`.

    Raises:
        InputError: if it is no such file, larger than 16 MiB, or cannot be read.
    """
    try:
        return load_yaml(path, or_pipe=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read as YAML: {reason}") from None


def parse_yaml(text: str, name: str) -> Any:
    """Return what YAML text holds: text, numbers, true, false, null, lists, and mappings of text to these.

    Aliases count as what they repeat. Refused are mappings with the same key twice, other tags, and what is nested or
    repeated beyond measure.

    Args:
        text: The YAML text.
        name: Named in errors.

    Raises:
        InputError: if it holds anything else, or more than that.
    """
    try:
        return _load(text)
    except ValueError as error:
        raise InputError(f"{name} cannot be read as YAML: {error}") from None


def load_yaml(path: Path, or_pipe: bool = False) -> Any:
    """Return what a YAML file of a run holds, whose reader says what is damaged; see `parse_yaml`.

    or_pipe: whether it may also be a pipe, such as the shell's `<(...)`, or standard input.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it holds anything else; its text is one line.
    """
    if not path.is_file() and not (or_pipe and (path.is_fifo() or path in _STANDARD_INPUT)):
        raise ValueError("it is no file")
    with path.open("rb") as file:
        content = file.read(_LARGEST_YAML + 1)
    if len(content) > _LARGEST_YAML:
        raise ValueError(f"it has more than {_LARGEST_YAML:,} bytes")
    return _load(content.decode("utf-8-sig"))


def _load(text: str) -> Any:
    try:
        _check_size(text)
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        place = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        reason = f"{place}{error.problem}"
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error)
    raise ValueError(without_password(" ".join(reason.split()))[:300])


def _check_size(text: str) -> None:
    """Refuse what would be too much once it is read, before any of it is built."""
    total, sizes = 0, dict[str, int]()
    opened: list[tuple[str | None, int]] = []
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"alias {event.anchor!r:.50} stands for nothing before it")
            total += sizes[event.anchor]
        elif isinstance(event, yaml.CollectionStartEvent):
            total += 1
            opened.append((event.anchor, total))
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor:
                sizes[anchor] = total - before + 1
        if len(opened) > _DEEPEST or total > _MOST_NODES:
            raise ValueError(f"it is nested deeper than {_DEEPEST} levels, or holds more than {_MOST_NODES:,} values")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Builds plain data alone."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        """Build a mapping whose keys are text, or taken for it, each once."""
        keys = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is not text", key.start_mark)
            key.tag = "tag:yaml.org,2002:str"  # as JSON has it
            if key.value in keys:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r:.50} again", key.start_mark)
            keys.add(key.value)
        content: dict[str, Any] = super().construct_mapping(node, deep)
        return content

    def construct_whole_number(self, node: yaml.ScalarNode) -> Any:
        """Build a whole number that can be shown."""
        if len(node.value) > _LONGEST_NUMBER:
            raise yaml.constructor.ConstructorError(None, None, "a number of too many digits", node.start_mark)
        return self.construct_yaml_int(node)

    def construct_date(self, node: yaml.ScalarNode) -> str:
        """Build the text of a date, which must be one."""
        self.construct_yaml_timestamp(node)
        return str(node.value)


_Loader.yaml_constructors = {
    tag: construct
    for tag, construct in _Loader.yaml_constructors.items()
    if tag is None or tag.removeprefix("tag:yaml.org,2002:") in _PLAIN
}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole_number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_date)
