"""Uniform reading of user input: numbers, names that may also be paths, and YAML files."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Container, Iterable
from pathlib import Path
from typing import Any

import yaml

from autodistil_search.base.errors import InputError
from autodistil_search.base.passwords import without_password

PACKAGED = "packaged"
"""Name of the teacher and of the text of the extra `quickstart`."""
TASKS = ("mnli", "qnli", "qqp", "sst2", "cola", "mrpc", "rte", "stsb", "topic")
"""Names of the built-in labelled tasks; see `tasks.labelled_data`."""

LARGEST = 10**9
"""Largest whole number that is allowed unless its range says otherwise."""

_DIGITS = 18
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?", re.ASCII)
_SHOWN = 60

_LARGEST_YAML = 1 << 24
"""Bytes allowed in a YAML file, enough for some 100,000 names of text files."""
_STANDARD_INPUT = (Path("/dev/stdin"), Path("/dev/fd/0"))
"""Paths of standard input, which may be a pipe, a file, a terminal or another device."""
_MOST_NODES = 200_000
"""Values allowed in a YAML file, including those that aliases repeat."""
_DEEPEST = 32
_LONGEST_NUMBER = 4000
"""Digits allowed in a number; Python's limit is 300 digits higher."""
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")


def quoted(value: object) -> str:
    """Return `value` for an error message: text in quotes, long values shortened, passwords removed."""
    try:
        text = without_password(value) if isinstance(value, str) else value
        words = repr(text)
    except (ValueError, RecursionError):  # more digits than Python prints
        words = f"a {type(value).__name__} too long to show"
    return words if len(words) <= _SHOWN else f"{words[:_SHOWN]}..."


def meant(name: object, known: Iterable[str]) -> str:
    """Return a question that suggests the nearest of the `known` names, for an error; an empty text if none is near."""
    near = difflib.get_close_matches(name[:100], list(known), n=1) if isinstance(name, str) else []
    return f" (did you mean {near[0]!r}?)" if near else ""


def refuse_near_miss(what: str, name: str, known: Collection[str], others: str) -> None:
    """Refuse a word that is nearly a known name, before it is looked for on the hub; paths and OWNER/NAME pass.

    Args:
        what: Flag or subject that the message begins with.
        name: Given name.
        known: Known names.
        others: Further values that are allowed, in words.

    Raises:
        InputError: naming the known name that may be meant.
    """
    if name not in known and "/" not in name and not Path(name).exists() and (near := meant(name, known)):
        raise InputError(f"{what} {quoted(name)}{near}; allowed: {', '.join(known)}, {others}")


def parse_whole_number(text: str) -> int | None:
    """Return the whole number in `text`, in ASCII digits with an optional sign; None for any other text."""
    return int(text) if re.fullmatch(rf"\s*[+-]?[0-9]{{1,{_DIGITS}}}\s*", text, re.ASCII) else None


def parse_number(text: str) -> float | None:
    """Return the finite number in `text`, in ASCII digits; None for any other text."""
    value = float(text) if len(text) < 400 and _NUMBER.fullmatch(text.strip()) else math.nan
    return value if math.isfinite(value) else None


def is_finite(value: object) -> bool:
    """Return True if `value` is a finite number within the range of a float, and not a boolean."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def absolute_path(name: str, known: Container[str] = ()) -> str:
    """Return the absolute path of the file or folder `name`; any other name is returned unchanged.

    This is the only rule for names that may also be paths: `known` names take precedence over files in the working
    directory. `./NAME` always means the file or folder.
    """
    if name in known:
        return name
    try:
        return str(Path(name).resolve()) if name and Path(name).exists() else name
    except (OSError, ValueError, RuntimeError):  # not a valid file name
        return name


def shipped_folder(name: str) -> Path:
    """Return a folder of shipped YAML files: inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / name
    return installed if installed.is_dir() else package.parent / name


def read_yaml(path: Path) -> Any:
    """Return the content of a user's YAML file, pipe or standard input; see `parse_yaml`.

    Raises:
        InputError: if `path` is none of these, its content is larger than 16 MiB, or it cannot be read.
    """
    try:
        return load_yaml(path, or_pipe=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read as YAML: {reason}") from None


def parse_yaml(text: str, name: str) -> Any:
    """Return the content of YAML text: text, numbers, true, false, null, lists, and mappings of text to these.

    Mappings with repeated keys, other tags, and content that is nested too deeply or has too many values are refused.
    An alias counts as the values that it repeats.

    Args:
        text: The YAML text.
        name: Name of the text in errors.

    Raises:
        InputError: if the text holds anything else.
    """
    try:
        return _load(text)
    except ValueError as error:
        raise InputError(f"{name} cannot be read as YAML: {error}") from None


def load_yaml(path: Path, or_pipe: bool = False) -> Any:
    """Return the content of a YAML file of a run; the caller reports damage. See `parse_yaml`.

    Args:
        path: The file.
        or_pipe: True to accept also a pipe, such as the shell's `<(...)`, or standard input.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file holds anything else than `parse_yaml` allows; the message is one line.
    """
    if not path.is_file() and not (or_pipe and (path.is_fifo() or path in _STANDARD_INPUT)):
        raise ValueError("it is not a file")
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
    """Refuse text that would give too many or too deeply nested values, before any value is built."""
    total, sizes = 0, dict[str, int]()
    opened: list[tuple[str | None, int]] = []
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"alias {event.anchor!r:.50} is used before it is defined")
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
    """YAML loader that builds only plain data."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        """Build a mapping whose keys are unique and read as text."""
        keys = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is not text", key.start_mark)
            key.tag = "tag:yaml.org,2002:str"  # as JSON has it
            if key.value in keys:
                raise yaml.constructor.ConstructorError(None, None, f"repeated key {key.value!r:.50}", key.start_mark)
            keys.add(key.value)
        content: dict[str, Any] = super().construct_mapping(node, deep)
        return content

    def construct_whole_number(self, node: yaml.ScalarNode) -> Any:
        """Build a whole number, and refuse a number with too many digits to print."""
        if len(node.value) > _LONGEST_NUMBER:
            raise yaml.constructor.ConstructorError(None, None, "a number with too many digits", node.start_mark)
        return self.construct_yaml_int(node)

    def construct_date(self, node: yaml.ScalarNode) -> str:
        """Build the text of a date, and refuse an invalid date."""
        self.construct_yaml_timestamp(node)
        return str(node.value)


_Loader.yaml_constructors = {
    tag: construct
    for tag, construct in _Loader.yaml_constructors.items()
    if tag is None or tag.removeprefix("tag:yaml.org,2002:") in _PLAIN
}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole_number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_date)
