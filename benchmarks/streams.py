"""The text streams of this package against mosaicml-streaming: preparation, reading, resuming, number of processes.

    python benchmarks/streams.py
    python benchmarks/streams.py --text FILE --batches 8192

There are four readers:

- `stream` tokenizes while it reads;
- `store` maps tokens that were written once;
- `mds` reads blocks of tokens that were converted to MDS, in files on the disk;
- `mds, cache` reads the same files through a bounded cache, as from an object store. A folder stands in for the store.

Tokens take 4 bytes in all of them. Each figure is of a fresh process. `disk` is the peak of what a reader adds to the
disk. The time to a first batch starts with opening the text and excludes imports. A run is resumed after three quarters
of its batches.

Two and four processes read global batches of 8 blocks as ranks of one node, connected by gloo where the reader asks for
it. Two orders are the same if each global batch holds the same blocks.

mosaicml-streaming is skipped if it is not installed. Its requirements exclude the numpy and the transformers of this
package, so it needs an environment of its own, without its requirements:

    pip install --no-deps mosaicml-streaming==0.13.0 Brotli python-snappy cramjam zstd "catalogue<3" xxhash
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tracemalloc
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from autodistil_search.base.distributed import Processes
from autodistil_search.base.errors import InputError
from autodistil_search.base.user_input import PACKAGED
from autodistil_search.teachers.loading import packaged_folder
from autodistil_search.text.sources import find_sources
from autodistil_search.text.token_store import load_corpus
from autodistil_search.text.token_stream import open_stream
from autodistil_search.text.tokenization import CHARACTERS_AT_ONCE, Encoder

BATCH_SIZE, SEQ_LEN, SEED = 8, 128, 0
SHUFFLED = 4096
"""Blocks over which mosaicml-streaming shuffles: as many as a window of the stream."""
SHARD_BYTES = 1 << 19
"""Size of an MDS shard; a cache holds 8 of them."""
PROCESSES, COMPARED = (2, 4), 64
"""Numbers of processes, and batches in which their order is compared; a job is resumed in the middle of these."""
LISTED = 10_000_000
"""Blocks of the epoch whose order is listed."""
_SECONDS_BETWEEN_SAMPLES = 0.02
STREAM, STORE, MDS, CACHED = "stream", "store", "mds", "mds, cache"

COLUMNS = (
    "reader",
    "prepare, s",
    "disk, MB",
    "first batch, s",
    "blocks/s",
    "ratio to stream",
    "resumed, s",
    "same order resumed",
    f"same order with {PROCESSES[0]}, {PROCESSES[1]} processes",
    f"1 process resumed by {PROCESSES[0]}, {PROCESSES[1]}",
)

State = dict[str, Any]


class Reader(Protocol):
    """Reader of a process's rows of each global batch."""

    def batch(self) -> Tensor:
        """Return the rows of the next batch."""

    def state(self) -> State:
        """Return the position."""

    def restore(self, state: State) -> None:
        """Continue from a position."""


class Job(NamedTuple):
    """Place of this process among the processes that train together."""

    rank: int
    world: int

    @property
    def share(self) -> slice:
        """Rows of this process in a global batch."""
        return slice(self.rank * BATCH_SIZE // self.world, (self.rank + 1) * BATCH_SIZE // self.world)


class Stream:
    """The stream of this package."""

    def __init__(self, text: Path, tokenizer: PreTrainedTokenizerBase, job: Job) -> None:
        group = Processes()
        group.rank, group.count = job.rank, job.world
        self._stream, _ = open_stream([str(text)], tokenizer, SEQ_LEN, group=group)
        self._share, self._step = job.share, 0

    def batch(self) -> Tensor:
        """Return the rows of the next batch."""
        self._step += 1
        return self._stream.rows(self._step - 1, BATCH_SIZE, SEED, self._share)

    def state(self) -> State:
        """Return the position."""
        return self._stream.state()

    def restore(self, state: State) -> None:
        """Continue from a position."""
        self._stream.restore(state)
        self._step = state["step"]


class Store:
    """The store of this package."""

    def __init__(self, text: Path, tokenizer: PreTrainedTokenizerBase, job: Job, folder: Path) -> None:
        self._blocks, _ = load_corpus([str(text)], tokenizer, folder).blocks(SEQ_LEN)
        self._share, self._step = job.share, 0

    def batch(self) -> Tensor:
        """Return the rows of the next batch."""
        self._step += 1
        return self._blocks.rows(self._step - 1, BATCH_SIZE, SEED, self._share)

    def state(self) -> State:
        """Return the position."""
        return {"step": self._step}

    def restore(self, state: State) -> None:
        """Continue from a position."""
        self._step = state["step"]


class Mosaic:
    """StreamingDataset and StreamingDataLoader of mosaicml-streaming, which finds its rank in the environment."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, job: Job, local: Path, remote: Path | None) -> None:
        from streaming import StreamingDataLoader, StreamingDataset

        ends, size = Encoder(tokenizer).ends, BATCH_SIZE // job.world
        dataset = StreamingDataset(
            local=str(local),
            remote=str(remote) if remote else None,
            cache_limit=8 * SHARD_BYTES if remote else None,
            batch_size=size,
            shuffle=True,
            shuffle_seed=SEED,
            shuffle_block_size=SHUFFLED,
        )
        self._loader = StreamingDataLoader(
            dataset,
            batch_size=size,
            collate_fn=lambda samples: ends.around(np.stack([sample["tokens"] for sample in samples])),
        )
        self._batches: Iterator[Tensor] | None = None

    def batch(self) -> Tensor:
        """Return the rows of the next batch."""
        if self._batches is None:
            self._batches = iter(self._loader)
        return next(self._batches)

    def state(self) -> State:
        """Return the position."""
        state: State = self._loader.state_dict()
        return state

    def restore(self, state: State) -> None:
        """Continue from a position."""
        self._loader.load_state_dict(state)


def open_reader(kind: str, text: Path, folder: Path, job: Job) -> Reader:
    """Open the reader of that name."""
    tokenizer = packaged_tokenizer()
    if kind == STREAM:
        return Stream(text, tokenizer, job)
    if kind == STORE:
        return Store(text, tokenizer, job, folder / STORE)
    if kind == MDS:
        return Mosaic(tokenizer, job, folder / MDS, None)
    return Mosaic(tokenizer, job, folder / CACHED, folder / MDS)


def import_mosaic() -> None:
    """Import mosaicml-streaming, with stand-ins for a missing torchvision, which only its image data sets use."""
    if importlib.util.find_spec("torchvision") is None:
        stand_ins: dict[str, dict[str, object]] = {
            "torchvision": {},
            "torchvision.datasets": {"VisionDataset": type("VisionDataset", (), {})},
            "torchvision.transforms": {},
            "torchvision.transforms.functional": {"to_tensor": None},
        }
        for name, names in stand_ins.items():
            sys.modules[name] = types.ModuleType(name)
            vars(sys.modules[name]).update(names)
    importlib.import_module("streaming")


def packaged_tokenizer() -> PreTrainedTokenizerBase:
    """Return the tokenizer of the packaged teacher."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(packaged_folder())
    return tokenizer


def read(
    kind: str, text: str, folder: str, batches: int, states_at: list[int], state: State | None = None
) -> dict[str, Any]:
    """Read batches in this process: seconds, a digest of each block, and the positions after some of the batches."""
    packaged_tokenizer()  # its first load imports modules
    if kind in (MDS, CACHED):
        import_mosaic()
    job = Job(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    rows: list[Tensor] = []
    states: dict[int, State] = {}
    begun = time.perf_counter()
    reader = open_reader(kind, Path(text), Path(folder), job)
    try:
        if state is not None:
            reader.restore(state)
    except InputError as error:
        return {"refused": str(error)}
    opened = time.perf_counter()
    first = 0.0
    for number in range(1, batches + 1):
        rows.append(reader.batch())
        first = first or time.perf_counter() - begun
        if number in states_at:
            states[number] = reader.state()
    seconds = time.perf_counter() - opened
    digests = [[hashlib.blake2b(row.numpy().tobytes(), digest_size=8).hexdigest() for row in batch] for batch in rows]
    return {"first": first, "seconds": seconds, "rows": digests, "states": states}


def prepare(kind: str, text: str, folder: str) -> dict[str, Any]:
    """Write what a reader needs, in this process; return the seconds."""
    tokenizer = packaged_tokenizer()
    if kind == MDS:
        import_mosaic()
    begun = time.perf_counter()
    if kind == STORE:
        load_corpus([text], tokenizer, Path(folder) / STORE)
    else:
        convert(Path(text), Encoder(tokenizer), Path(folder) / MDS)
    return {"seconds": time.perf_counter() - begun}


def convert(text: Path, encoder: Encoder, folder: Path) -> None:
    """Write the blocks of a text as MDS, without the ends that reading adds."""
    from streaming import MDSWriter

    inner = SEQ_LEN - 2
    columns = {"tokens": f"ndarray:uint32:{inner}"}
    with MDSWriter(columns=columns, out=str(folder), size_limit=SHARD_BYTES) as writer:
        rest = np.zeros(0, dtype=np.uint32)
        for paragraphs in pieces(text):
            tokens = np.concatenate([rest, encoder(paragraphs)])
            whole = len(tokens) // inner * inner
            for row in tokens[:whole].reshape(-1, inner):
                writer.write({"tokens": row})
            rest = tokens[whole:]


def pieces(text: Path) -> Iterator[list[str]]:
    """Yield the paragraphs of a text, as many at a time as are tokenized in one call."""
    paragraphs: list[str] = []
    length = 0
    for source in find_sources([str(text)]):
        for shard in source.shards:
            for document in shard.read():
                paragraphs += document
                length += sum(map(len, document))
                if length >= CHARACTERS_AT_ONCE:
                    yield paragraphs
                    paragraphs, length = [], 0
    if paragraphs:
        yield paragraphs


def list_order() -> dict[str, Any]:
    """List the order of a long epoch as StreamingDataset does before its first batch: seconds, and MiB at the peak."""
    import_mosaic()
    from streaming.base.partition import get_partitions
    from streaming.base.shuffle import get_shuffle

    per_shard = SHARD_BYTES // (4 * SEQ_LEN)
    shards = np.full(LISTED // per_shard, per_shard, dtype=np.int64)

    def order() -> None:
        ids = get_partitions("relaxed", int(shards.sum()), 1, 1, 1, 1, BATCH_SIZE)
        get_shuffle("py1e", shards, 1, SEED, 0, SHUFFLED)[ids]

    begun = time.perf_counter()
    order()
    seconds = time.perf_counter() - begun
    tracemalloc.start()
    order()
    return {"seconds": seconds, "mebibytes": tracemalloc.get_traced_memory()[1] / 2**20}


WORK: dict[str, Callable[..., dict[str, Any]]] = {"read": read, "prepare": prepare, "list": list_order}


class Bench:
    """A text, a folder for what readers write, and processes that read."""

    def __init__(self, text: Path, folder: Path) -> None:
        self._text, self._folder = text, folder

    def run(self, work: str, world: int = 1, **arguments: Any) -> list[dict[str, Any]]:
        """Do one piece of work in `world` new processes; return what each of them measured."""
        if "kind" in arguments:
            arguments |= {"text": str(self._text), "folder": str(self._folder)}
            shutil.rmtree(self._folder / CACHED, ignore_errors=True)
        command = [sys.executable, __file__, "--measure", work]
        here = {"TMPDIR": str(self._folder)}  # mosaicml-streaming leaves lock files behind
        with ExitStack() as files:
            outputs = [files.enter_context(tempfile.TemporaryFile("w+")) for _ in range(world)]
            running = []
            for place, output in zip(places(world), outputs, strict=True):
                told = files.enter_context(tempfile.TemporaryFile("w+"))  # a state may be too long for an argument
                told.write(json.dumps(arguments))
                told.seek(0)
                running.append(subprocess.Popen(command, env=os.environ | here | place, stdin=told, stdout=output))
            peak = 0
            while any(process.poll() is None for process in running):
                peak = max(peak, folder_bytes(self._folder))
                time.sleep(_SECONDS_BETWEEN_SAMPLES)
            if any(process.returncode for process in running):
                raise RuntimeError(f"{work} failed with {arguments.get('kind')}; see above")
            for output in outputs:
                output.seek(0)
            return [json.loads(output.read()) | {"peak": peak} for output in outputs]

    def row(self, kind: str, batches: int, fastest: float) -> tuple[str, float]:
        """Measure a reader; return its row of the table, and its blocks a second."""
        before = folder_bytes(self._folder)
        prepared = {STREAM: "0", CACHED: f"as {MDS}"}.get(kind)
        if prepared is None:
            prepared = f"{self.run('prepare', kind=kind)[0]['seconds']:.1f}"
        middle = batches * 3 // 4
        (whole,) = self.run("read", kind=kind, batches=batches, states_at=[COMPARED // 2, middle])
        (rest,) = self.run(
            "read", kind=kind, batches=batches - middle, states_at=[], state=whole["states"][str(middle)]
        )
        rate = batches * BATCH_SIZE / whole["seconds"]
        cells = [
            kind,
            prepared,
            f"{(whole['peak'] - before) / 1e6:.1f}",
            f"{whole['first']:.2f}",
            f"{rate:,.0f}",
            f"{rate / (fastest or rate):.1f}",
            f"{rest['first']:.2f}",
            "yes" if rest["rows"] == whole["rows"][middle:] else "no",
            *(self._with_processes(kind, whole, resumed) for resumed in (False, True)),
        ]
        return f"| {' | '.join(cells)} |", rate

    def _with_processes(self, kind: str, whole: dict[str, Any], resumed: bool) -> str:
        """Say for each number of processes if their global batches are those of one process."""
        begin = COMPARED // 2 if resumed else 0
        state = whole["states"][str(begin)] if resumed else None
        answers = []
        for world in PROCESSES:
            parts = self.run("read", world, kind=kind, batches=COMPARED - begin, states_at=[], state=state)
            if any("refused" in part for part in parts):
                answers.append("refused")
                continue
            batches = [
                sorted(itertools.chain.from_iterable(rows))
                for rows in zip(*(part["rows"] for part in parts), strict=True)
            ]
            answers.append("yes" if batches == list(map(sorted, whole["rows"][begin:COMPARED])) else "no")
        return ", ".join(answers)


def places(world: int) -> list[dict[str, str]]:
    """Return the environment of each process of a job on this machine."""
    if world == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    job = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [job | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder, some of which may vanish meanwhile."""
    size = 0
    for path in folder.rglob("*"):
        try:
            size += path.stat().st_size
        except FileNotFoundError:
            continue
    return size


def write_packaged_text(path: Path) -> None:
    """Write the packaged text as one file, with blank lines between its documents."""
    (source,) = find_sources([PACKAGED])
    documents = ("\n".join(document) for shard in source.shards for document in shard.read())
    path.write_text("\n\n".join(documents), encoding="utf-8")


def main() -> None:
    """Measure each reader and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a text file; by default the packaged text as one file")
    parser.add_argument("--batches", type=int, default=1024, help="batches of 8 blocks to read")
    parser.add_argument("--measure", choices=WORK, help=argparse.SUPPRESS)  # work of a process of its own
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(WORK[given.measure](**json.load(sys.stdin))))
        return
    if given.batches < 2 * COMPARED:
        parser.error(f"--batches must be at least {2 * COMPARED} (got {given.batches})")
    has_mosaic = importlib.util.find_spec("streaming") is not None
    if not has_mosaic:
        print("mosaicml-streaming skipped: it is not installed (see --help)", file=sys.stderr)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = given.text or folder / "packaged.txt"
        if given.text is None:
            write_packaged_text(text)
        bench = Bench(text, folder)
        print(f"{text.name}: {text.stat().st_size / 1e6:.1f} MB\n")
        print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
        reference = 0.0
        for kind in (STREAM, STORE, *([MDS, CACHED] if has_mosaic else [])):
            row, rate = bench.row(kind, given.batches, reference)
            reference = reference or rate
            print(row, flush=True)
        if has_mosaic:
            (listed,) = bench.run("list")
            print(
                f"\nmosaicml-streaming lists the order of an epoch of {LISTED:,} blocks in {listed['seconds']:.1f} s, "
                f"with {listed['mebibytes']:,.0f} MiB at the peak."
            )


if __name__ == "__main__":
    main()
