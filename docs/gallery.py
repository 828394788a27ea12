"""Makes the images of docs/gallery.md by running the blocks of that page, from top to bottom.

    python docs/gallery.py [--work runs/gallery-work]

Commands and Python run in the folder `--work`. Finished steps are not repeated, so a second call only draws again. The
screenshots of the report and of Optuna Dashboard need Chromium and the extras `test` and `dashboard`.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from autodistil_search.cli.main import main as run_command

PAGE = Path(__file__).with_suffix(".md")
IMAGES = PAGE.parent / "images" / "gallery"
_BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"File:\s+`([^`]+)`\n\n!\[[^\]]*\]\(images/gallery/([^)]+)\)")
_SIZE = {"width": 1280, "height": 900}


def run_blocks(text: str) -> dict[str, Any]:
    """Run all commands and all Python of a page in the working directory; return the names that Python bound.

    Raises:
        RuntimeError: if a command fails.
    """
    names: dict[str, Any] = {}
    for language, block in _BLOCK.findall(text):
        if language == "python":
            exec(block, names)
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if code := run_command(shlex.split(line)[2:]):
                raise RuntimeError(f"{line} ended with exit code {code}")
    return names


def save_images(text: str, names: dict[str, Any], images: Path) -> None:
    """Copy the files that a page names before its images, and save the pictures of the widgets in `names`."""
    images.mkdir(parents=True, exist_ok=True)
    for file, image in _FILE.findall(text):
        if Path(file).suffix == ".png":
            shutil.copyfile(file, images / image)
    for name, value in names.items():
        if hasattr(value, "_repr_mimebundle_") and f"images/gallery/{name}.png" in text:
            bundle = value._repr_mimebundle_()
            data = bundle[0] if isinstance(bundle, tuple) else bundle
            (images / f"{name}.png").write_bytes(base64.b64decode(data["image/png"]))


def save_screenshots(images: Path) -> None:
    """Save the first screen of the report page, and the study in Optuna Dashboard, as Chromium shows them."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, served(Path("runs/gallery/archive.log")) as address:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=["--no-sandbox"]
        )
        pages = {
            "report": Path("runs/gallery/report.html").absolute().as_uri(),
            "dashboard": f"{address}/dashboard/studies/0",
        }
        for name, url in pages.items():
            page = browser.new_page(viewport=_SIZE)
            page.goto(url)
            page.wait_for_timeout(3000)  # both draw after they have loaded
            page.screenshot(path=images / f"{name}.png")
        browser.close()


@contextmanager
def served(journal: Path) -> Iterator[str]:
    """Serve a journal file by Optuna Dashboard; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-c", "from optuna_dashboard._cli import main; main()", "--port", str(port), str(journal)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/api/studies", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        server.kill()
        server.wait()


def main() -> None:
    """Run the page, then replace its images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/gallery-work"))
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    os.chdir(work)
    text = PAGE.read_text(encoding="utf-8")
    save_images(text, run_blocks(text), IMAGES)
    save_screenshots(IMAGES)
    for path in IMAGES.glob("*.png"):
        with Image.open(path) as image:
            image.convert("RGB").quantize(256).save(path, optimize=True)  # a third of the size, and looks alike


if __name__ == "__main__":
    main()
