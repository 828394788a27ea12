"""Manifests of finished folders: a digest of each file, written last and checked when a file is read back.

`manifest.json` names the kind of a folder, and the size and SHA-256 of each file that is read back from it. State files
of JSON, which change while a command runs, contain a digest of their own content. Folders and files of versions without
digests are read unchecked. The file of results also names the manifest, so that a deleted manifest is noticed.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from autodistil_search.base.errors import InputError
from autodistil_search.base.files import EXPORT_RECORD, file_sha256, read_json, write_atomically

MANIFEST = "manifest.json"
MODEL_TYPE = "autodistil"
"""The `model_type` in the configuration of a model of this package."""
SEARCH_CONFIG = "config.yaml"
TRAIN_CONFIG = "train.yaml"
DISTIL_CONFIG = "distil.yaml"
VALIDATE_CONFIG = "validate.yaml"
FINETUNE_CONFIG = "finetune.yaml"
CONFIGS = (SEARCH_CONFIG, TRAIN_CONFIG, DISTIL_CONFIG, VALIDATE_CONFIG, FINETUNE_CONFIG)
ENVIRONMENT = "environment.json"
ARCHIVE = "archive.log"
SUMMARY = "summary.json"
DISTIL_SUMMARY = "distil.json"
TRAINER_STATE = "trainer_state.json"
"""File that marks a trained model as finished."""
RESULT = "result.json"
"""File that marks a fine-tuned model as finished."""

LOGS = ("training.csv", "held_out.csv")
"""Files that serve only as data of curves: damage to them is a warning, not an error."""
NAMES_MANIFEST = "manifest"
"""Key in a file of results that names the manifest of its folder."""
_DIGEST = "digest"
"""Key in a state file of the digest of the rest of its content."""
_GROWING = (".log",)
"""Suffixes of append-only files, whose first bytes never change."""
_MODEL_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".jinja", ".csv", ".onnx", ".py")
"""Suffixes of the files of a model's folder that are read back; the card and figures are not."""
_MODULE_FILES = "[0-9]_*/*"
"""Pattern of the module files of sentence-transformers, such as `1_Pooling/config.json`."""
_LARGE = 64 * 2**20
"""Size in bytes from which a digest is remembered while the file is unchanged."""

_remembered: dict[tuple[int, ...], str] = {}


@dataclass(frozen=True)
class Kind:
    """Kind of folder.

    Attributes:
        title: Name of the kind in messages.
        marker: File that identifies a folder of this kind if it has no manifest.
        remedy: Advice, in the imperative, that restores all files of the folder.
        results: JSON file that names the manifest of a finished folder.
        command: Command that writes a deleted file of `rewritten` again.
        rewritten: Patterns of the names of such files.
    """

    title: str
    marker: str
    remedy: str
    results: str
    command: str
    rewritten: tuple[str, ...] = ()


_TOKENIZER = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "*.jinja",
)

KINDS: Mapping[str, Kind] = {
    "export": Kind(
        "an export",
        EXPORT_RECORD,
        f"delete the folder and repeat the export, or delete its {MANIFEST} and the entry {NAMES_MANIFEST!r} of "
        f"{EXPORT_RECORD} if the change is yours",
        EXPORT_RECORD,
        "export",
    ),
    "finetune": Kind(
        "the folder of a finetune",
        FINETUNE_CONFIG,
        "restore it from a copy, or repeat the finetune with another --out",
        SUMMARY,
        "finetune",
        ("results.csv", SUMMARY),
    ),
    "distil": Kind(
        "the folder of a distil",
        DISTIL_CONFIG,
        "restore it from a copy, or repeat the distil with another --out",
        DISTIL_SUMMARY,
        "distil",
        (DISTIL_SUMMARY,),
    ),
    "train": Kind(
        "the folder of a train",
        TRAIN_CONFIG,
        "restore it from a copy, or repeat the train with another --out",
        ENVIRONMENT,
        "train",
    ),
    "validate-proxy": Kind(
        "the folder of a validate-proxy",
        VALIDATE_CONFIG,
        "restore it from a copy, or repeat the validate-proxy with another --out",
        SUMMARY,
        "validate-proxy",
        ("subnets.csv", "ranking.csv", SUMMARY),
    ),
    "search": Kind(
        "the folder of a search",
        SEARCH_CONFIG,
        "restore it from a copy, or repeat the search with another --out",
        SUMMARY,
        "search",
        ("*.csv", "*.log", SUMMARY),
    ),
    "classifier": Kind(
        "a fine-tuned model",
        RESULT,
        "delete its folder and repeat the finetune, which trains it again",
        RESULT,
        "finetune",
    ),
    "superlm": Kind(
        "a SuperLM",
        TRAINER_STATE,
        "restore it from a copy, or delete its folder and repeat the command that trained it",
        TRAINER_STATE,
        "command that trained it",
    ),
    "student": Kind(
        "a trained student",
        TRAINER_STATE,
        "restore it from a copy, or delete its folder and repeat the command that made it",
        TRAINER_STATE,
        "command that made it",
        _TOKENIZER,
    ),
    "report": Kind("a report", "report.html", "repeat the report", SUMMARY, "report"),
}
"""Kinds of folders by their name in a manifest; a folder without a manifest is of the first kind that fits."""


OF_RUNS = ("search", "train", "distil", "finetune", "validate-proxy", "report")
"""Kinds of folders without a model of their own; those of a distil and a finetune hold a model in a subfolder."""


def kind_of(folder: Path) -> str | None:
    """Return the kind of `folder` by its manifest, or else by its files; None for a folder of another program.

    Raises:
        InputError: for a damaged manifest.
    """
    if (manifest := _read(folder)) is not None:
        return str(manifest["kind"])
    return _kind_by_files(folder)


def _kind_by_files(folder: Path) -> str | None:
    holds_model = (folder / "config.json").is_file()
    for name, kind in KINDS.items():
        if (folder / kind.marker).is_file() and not (holds_model and name in OF_RUNS):
            return _kind_of_model(folder) if kind.marker == TRAINER_STATE else name
    return None


def _kind_of_model(folder: Path) -> str | None:
    """Return the kind of a folder with a trainer_state.json; None if transformers' own trainer wrote the file."""
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    if config.get("model_type") != MODEL_TYPE:
        return None
    return "superlm" if config.get("search_space") else "student"


def described(folder: Path) -> str:
    """Return a description of `folder` for a message that refuses it."""
    kind = kind_of(folder) if folder.is_dir() else None
    if kind is not None:
        return f"{str(folder)!r} is {KINDS[kind].title}"
    if (folder / "config.json").is_file():
        return f"{str(folder)!r} is the folder of a model"
    return f"{str(folder)!r} is " + ("another folder" if folder.is_dir() else "no folder")


def model_files(folder: Path) -> list[str]:
    """Return the names of the files of a model's folder that its manifest covers, including those of its pooling."""
    paths = (*folder.iterdir(), *folder.glob(_MODULE_FILES))
    return [path.relative_to(folder).as_posix() for path in paths if path.is_file() and _is_of_model(path)]


def _is_of_model(path: Path) -> bool:
    return path.suffix in _MODEL_SUFFIXES and path.name != MANIFEST and not path.name.startswith((".", "checkpoint-"))


def write_manifest(folder: Path, kind: str, names: Iterable[str]) -> None:
    """Write the manifest of an otherwise finished folder: its kind, and a digest of each file in `names`.

    From then on, the file of results of this kind names the manifest.
    """
    covered, results = set(names), folder / KINDS[kind].results
    if results.name in covered:
        _name_manifest(results, True)
    files = {name: _fingerprint(folder / name) for name in sorted(covered) if (folder / name).is_file()}
    write_sealed(folder / MANIFEST, {"kind": kind, "files": files})


def _name_manifest(path: Path, named: bool) -> None:
    """Add the name of the manifest to a file of results, or remove it."""
    if (content := _object(path)) is not None:
        rest = {key: value for key, value in content.items() if key != NAMES_MANIFEST}
        text = json.dumps(rest | ({NAMES_MANIFEST: MANIFEST} if named else {}), indent=2)
        write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def _object(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; None if it is missing or damaged, which its reader reports."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def reopen(folder: Path) -> None:
    """Check a finished folder that its command continues, and remove its manifest until it is finished again.

    A missing file that the command writes again is a warning.

    Raises:
        InputError: for a file that changed since it was written.
    """
    verify(folder, own=True)
    warn_of_lacking(folder)
    (folder / MANIFEST).unlink(missing_ok=True)
    if (kind := _kind_lacking_manifest(folder)) is not None:
        _name_manifest(folder / KINDS[kind].results, False)


def warn_of_lacking(folder: Path) -> None:
    """Warn of each missing file of a folder whose command writes it again."""
    for name in lacking(folder):
        warnings.warn(f"{folder / name} is missing and will be written again", stacklevel=3)


def add_to_manifest(folder: Path, names: Iterable[str]) -> None:
    """Add new or rewritten files to the manifest of a folder; a folder without a manifest gets none."""
    if (manifest := _read(folder)) is not None:
        files = {**manifest["files"], **{name: _fingerprint(folder / name) for name in names}}
        write_sealed(folder / MANIFEST, {**manifest, "files": dict(sorted(files.items()))})


def verify(folder: Path, names: Iterable[str] = ("*",), own: bool = False, shown: Path | None = None) -> bool:
    """Check the files of a folder against its manifest, and return True if it has a manifest.

    Damage to the log of a training is a warning.

    Args:
        folder: A folder that may have a manifest.
        names: Patterns of the files to check; files that the manifest does not name pass.
        own: True if the caller is the command that writes the folder. The manifest may then be missing, and so may the
            files that the command writes again.
        shown: Name of the folder in messages; by default its path.

    Raises:
        InputError: for the first file that is missing or changed; the message says what to do.
    """
    if (manifest := _read(folder)) is None:
        if not own and (named := _kind_lacking_manifest(folder)) is not None:
            place, results = (shown or folder) / MANIFEST, KINDS[named].results
            raise InputError(f"{place} is missing, though {results} names it; {_remedy_of_manifest(named)}")
        return False
    kind, patterns = KINDS[manifest["kind"]], tuple(names)
    for name, fingerprint in manifest["files"].items():
        if not _matches(name, patterns):
            continue
        path, place, rewritten = folder / name, (shown or folder) / name, _matches(name, kind.rewritten)
        if name in LOGS:
            if not path.exists() or _difference(path, fingerprint) is not None:
                warnings.warn(f"{place} changed after training wrote it; the weights do not depend on it", stacklevel=2)
            continue
        if not path.exists():
            if own and rewritten:
                continue
            remedy = f"repeat the {kind.command}, which writes it again" if rewritten else kind.remedy
            raise InputError(f"{place} is missing, though {MANIFEST} names it; {remedy}")
        if (difference := _difference(path, fingerprint)) is not None:
            remedy = f"delete it and repeat the {kind.command}, which writes it again" if rewritten else kind.remedy
            raise InputError(f"{place} is damaged: {difference}; {remedy}")
    return True


def lacking(folder: Path) -> list[str]:
    """Return the names of the missing files of the manifest of `folder`, or of the manifest itself if it is missing."""
    manifest = _read(folder)
    if manifest is None:
        return [] if _kind_lacking_manifest(folder) is None else [MANIFEST]
    return [name for name in manifest["files"] if not (folder / name).exists()]


def _kind_lacking_manifest(folder: Path) -> str | None:
    """Return the kind of a folder whose results name a manifest that it does not have; None for any other folder."""
    kind = _kind_by_files(folder)
    content = None if kind is None else _object(folder / KINDS[kind].results)
    return kind if content is not None and content.get(NAMES_MANIFEST) == MANIFEST else None


def _remedy_of_manifest(kind: str) -> str:
    facts = KINDS[kind]
    return f"repeat the {facts.command}, which writes it again" if kind in OF_RUNS else facts.remedy


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _read(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of `folder`; None if it has none."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        sealed = content[_DIGEST] == content_sha256(content)
        if sealed and content["kind"] in KINDS:
            return dict(content)
        reason = "its content does not match its digest" if not sealed else f"of kind {content['kind']!r}"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, IsADirectoryError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    if not any((folder / kind.marker).is_file() for kind in KINDS.values()):
        return None  # another program's file of the same name
    if (kind := _kind_lacking_manifest(folder)) is None:
        remedy = "restore it, or delete it: the files are then read without a check of digests"
    else:
        remedy = f"delete it and {_remedy_of_manifest(kind)}" if kind in OF_RUNS else KINDS[kind].remedy
    raise InputError(f"{path} is damaged: {reason}; {remedy}")


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}


def _difference(path: Path, fingerprint: Mapping[str, Any]) -> str | None:
    """Return the difference of a file from its fingerprint, in words; None if there is none."""
    if not path.is_file():
        return "it is not a file"
    size, expected = path.stat().st_size, int(fingerprint["size"])
    if size < expected or (size > expected and path.suffix not in _GROWING):
        return f"it has {size:,} bytes, and {expected:,} were written"
    digest = sha256_of(path, expected if size > expected else None)
    if digest == fingerprint["sha256"]:
        return None
    return f"its sha256 is {digest[:12]}..., and {str(fingerprint['sha256'])[:12]}... was written"


def sha256_of(path: Path, first: int | None = None) -> str:
    """Return the hex SHA-256 digest of a file, or of its first bytes.

    The digest of a large file is remembered while the file is unchanged, so that no command reads it twice.

    Args:
        path: The file.
        first: Number of bytes to read; by default all.
    """
    if first is not None:
        with path.open("rb") as file:
            return hashlib.sha256(file.read(first)).hexdigest()
    status = path.stat()
    if status.st_size < _LARGE:
        return file_sha256(path)
    key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if key not in _remembered:
        _remembered[key] = file_sha256(path)
    return _remembered[key]


def content_sha256(content: Mapping[str, Any]) -> str:
    """Return the hex SHA-256 digest of the content of a JSON object, leaving out the digest that it states."""
    rest = {key: value for key, value in content.items() if key != _DIGEST}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return `content` with its own digest added."""
    return {**content, _DIGEST: content_sha256(json.loads(json.dumps(content)))}


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with its own digest added."""
    text = json.dumps(seal(content), indent=2)
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def is_as_written(content: Mapping[str, Any]) -> bool:
    """Return True if a JSON object has the digest that it states, or states none."""
    return _DIGEST not in content or content[_DIGEST] == content_sha256(content)


def read_sealed(path: Path, remedy: str) -> dict[str, Any]:
    """Return the object of a file of `write_sealed`, without its digest; an object without a digest is not checked.

    Args:
        path: The file.
        remedy: Advice for a damaged file, in the imperative.

    Raises:
        InputError: for a damaged file.
    """
    content = read_json(path)
    if not is_as_written(content):
        raise InputError(f"{path} is damaged: its content does not match its digest; {remedy}")
    return {key: value for key, value in content.items() if key != _DIGEST}
