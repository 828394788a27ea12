"""SHA-256 digests of text files; a file that has not changed since it was read is not read again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from autodistil_search.base.files import file_sha256
from autodistil_search.base.manifest import is_as_written, seal

_NAME = "digests.json"
_RACY = 2.0
"""Seconds after a change in which a further change could leave the times of the file as they are: a file system counts
time in steps of up to 2 s. A digest of a file that has just changed is therefore not cached."""
_MOST = 100_000
"""Files in the cache; the ones that were added first go first."""

_State = list[int]
"""Size, time of the last change of the content, time of the last change of the content or its attributes, and inode.
The second time cannot be set back, as `cp -p` and `rsync -t` set the first one."""


def digests_file(cache: Path) -> Path:
    """Return the file of a cache folder that holds the digests."""
    return cache / "text" / _NAME


def known_digests(cache: Path) -> Mapping[str, tuple[_State, str]]:
    """Return the state and the digest of each file in the cache, by absolute path; nothing of a damaged cache."""
    try:
        content = json.loads(digests_file(cache).read_text(encoding="utf-8"))
        return (
            {path: (state, sha256) for path, (state, sha256) in content["files"].items()}
            if is_as_written(content)
            else {}
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def text_digests(files: Iterable[Path], cache: Path) -> list[bytes]:
    """Return the SHA-256 digest of each file, and read only those that are not in the cache as they are.

    Args:
        files: The files.
        cache: Folder of the cache.

    Raises:
        OSError: if a file cannot be read. A cache that cannot be written is no error.
    """
    known = dict(known_digests(cache))
    added, digests = {}, []
    for file in files:
        path, state = str(file.absolute()), _state(file)
        before = known.get(path)
        if before is not None and before[0] == state:
            digest = before[1]
        else:
            now = time.time()
            digest = file_sha256(file)
            if _state(file) == state and max(state[1:3]) < (now - _RACY) * 1e9:
                added[path] = (state, digest)
        digests.append(bytes.fromhex(digest))
    if added:
        with suppress(OSError):
            _write({**known, **added}, digests_file(cache))
    return digests


def _state(file: Path) -> _State:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _write(entries: Mapping[str, tuple[_State, str]], path: Path) -> None:
    """Replace the cache; of two processes that write at once, the entries of the last one stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{uuid4().hex}.new")
    try:
        new.write_text(json.dumps(seal({"files": dict(list(entries.items())[-_MOST:])})), encoding="utf-8")
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
