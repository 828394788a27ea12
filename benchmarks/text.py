"""Memory and seconds of tokenizing text and of drawing batches from it, for texts of two sizes.

    python benchmarks/text.py [--megabytes 30 300]
    python benchmarks/text.py --tokens-per-second [--megabytes 64] [--part-megabytes 8] [--rounds 3]

Each figure is of a process of its own. Anonymous memory is what the process asked for; pages of mapped files are a
cache that the system takes back when it needs the room, and are told apart (Linux: /proc/self/status, read every
5 ms). The last row draws from a sparse file of 100 GB, which has the size and not the content of a large store.

The second command compares ways to tokenize the same text: threads of this process, and worker processes. The ways run
in turn, and the fastest round of each counts. Workers are started before. Processor time, of this process and all
workers, depends less on other work of the machine (Linux: /proc/PID/stat).
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from autodistil_search.base.user_input import PACKAGED
from autodistil_search.teachers.loading import packaged_folder
from autodistil_search.text import sources
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
    parser.add_argument("--megabytes", type=int, nargs="+")
    parser.add_argument("--tokens-per-second", action="store_true", help="Compare threads and worker processes.")
    parser.add_argument("--part-megabytes", type=int, default=8, help="Size of a part in this comparison.")
    parser.add_argument("--rounds", type=int, default=3, help="Rounds of this comparison.")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)  # what a process of its own is told
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    if arguments.tokens_per_second:
        for megabytes in arguments.megabytes or [64]:
            compare(megabytes, arguments.part_megabytes, arguments.rounds)
        return
    print("| text | work | seconds | anonymous memory, MiB | of it added by the work | mapped file pages, MiB |")
    print("|---|---|---|---|---|---|")
    for megabytes in arguments.megabytes or [30, 300]:
        with tempfile.TemporaryDirectory() as folder:
            text = Path(folder) / "text.txt"
            write_text(text, megabytes)
            for work in ("tokenize", "draw", "stream"):
                command = [sys.executable, __file__, "--measure", work, str(text), folder]
                show(f"{megabytes} MB", command)
    with tempfile.TemporaryDirectory() as folder:
        show("100 GB", [sys.executable, __file__, "--measure", "sparse", str(Path(folder) / "sparse.bin"), folder])


def compare(megabytes: int, part_megabytes: int, rounds: int) -> None:
    """Print a table of the tokens per second of each way to tokenize a text."""
    tokenizer, best = packaged_tokenizer(), dict[str, Tokenized]()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        text, whole = Path(folder) / "text.txt", megabytes * 2_000_000
        write_text(text, megabytes)
        ways: dict[str, tuple[int, Executor | None]] = {
            "threads of this process, one part": (whole, None),
            "threads of this process, parts": (part_megabytes * 1_000_000, None),
        }
        for count in (1, 2):
            pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))
            stack.enter_context(pool)
            list(pool.map(_prepare, range(8 * count)))
            ways[f"{count} worker process{'es' * (count > 1)}, parts"] = part_megabytes * 1_000_000, pool
        for _ in range(rounds):
            for name, (size, executor) in ways.items():
                found = tokenized(text, tokenizer, size, executor)
                best[name] = Tokenized(*map(min, found, best.get(name, found)))
    first = next(iter(best.values()))
    print(f"| {megabytes} MB of text, parts of {part_megabytes} MB | million tokens/s | against the first | ", end="")
    print("processor s per million tokens | against the first |")
    print("|---|---|---|---|---|")
    for name, (seconds, processor_seconds) in best.items():
        print(f"| {name} | {1 / seconds:.2f} | {first.seconds / seconds:.2f} | {processor_seconds:.2f} | ", end="")
        print(f"{processor_seconds / first.processor_seconds:.2f} |")
    print(f"load average at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs", file=sys.stderr)


def _prepare(_: int) -> None:
    """Import in a worker, and wait so that each worker takes part."""
    import autodistil_search.text.token_store  # noqa: F401 - imported for its time

    time.sleep(0.5)


class Tokenized(NamedTuple):
    """Seconds and processor seconds to tokenize a million tokens."""

    seconds: float
    processor_seconds: float


def tokenized(text: Path, tokenizer: PreTrainedTokenizerBase, size: int, executor: Executor | None) -> Tokenized:
    """Tokenize the text in parts of `size` bytes, into a cache of its own."""
    sources.PART_BYTES = size
    with tempfile.TemporaryDirectory() as cache:
        start, processor_start = time.perf_counter(), processor_seconds()
        corpus = load_corpus([str(text)], tokenizer, Path(cache), executor=executor)
        seconds, used = time.perf_counter() - start, processor_seconds() - processor_start
    millions = sum(map(len, (*corpus.train, *corpus.held_out))) / 1e6
    return Tokenized(seconds / millions, used / millions)


def processor_seconds() -> float:
    """Processor time of this process and its workers until now."""
    workers = (Path(f"/proc/{child.pid}/stat").read_text() for child in multiprocessing.active_children())
    ticks = sum(int(ticks) for stat in workers for ticks in stat.rpartition(")")[2].split()[11:13])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def show(text: str, command: list[str]) -> None:
    """Run one measurement and print its row."""
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(
        f"| {text} | {found['what']} | {found['seconds']:.1f} | {found['anonymous']:.0f} | "
        f"{found['anonymous'] - found['before']:.0f} | {found['file']:.0f} |",
        flush=True,
    )


def packaged_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of the packaged teacher."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(packaged_folder())
    return tokenizer


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
    tokenizer = packaged_tokenizer()
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
