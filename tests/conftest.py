"""Toys that the tests share: a word vocabulary, random encoders of a few thousand weights, a text, a small space."""

import os

# Both are read once, at import. Threads that wait without spinning make toys 50 times faster on a busy machine.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Likewise torch. Toys gain nothing from threads, and lose on a busy machine; `make numbers` asks for two.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BertTokenizerFast, PreTrainedModel

from autodistil_search.base.device import Device
from autodistil_search.base.pretrained import quiet_transformers
from autodistil_search.cli.main import main
from autodistil_search.cli.registry import command
from autodistil_search.settings.search import SearchConfig
from autodistil_search.spaces.search_space import SearchSpace, load_space
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.teachers.teacher import Teacher

if TYPE_CHECKING:
    from autodistil_search import Run

settings.register_profile("toys", deadline=None, max_examples=25, database=None, derandomize=True)
settings.load_profile("toys")

WORDS = [f"w{i}" for i in range(90)]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One for all workers of the run: the packaged text is tokenized once."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTODISTIL_SEARCH_CACHE", str(shared / "cache"))
        yield


@pytest.fixture(autouse=True, scope="session")
def _short_measurements() -> Iterator[None]:
    """Of a toy, a latency is the median of ten passes; half a second of them is for numbers that someone reads.

    So are the pairs of 256 passages.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autodistil_search.nas.hardware._SECONDS", 0.0)
        patch.setattr("autodistil_search.nas.sentence_similarity.PASSAGES", 16)
        yield


@pytest.fixture
def cpu() -> Device:
    return Device("cpu", "fp32")


@pytest.fixture
def debug_space() -> SearchSpace:
    return load_space("debug")


def _word_tokenizer() -> BertTokenizerFast:
    return BertTokenizerFast(vocab={word: i for i, word in enumerate(VOCABULARY)})


@pytest.fixture
def tokenizer() -> BertTokenizerFast:
    """One token a word; "w0" is token 5."""
    return _word_tokenizer()


@pytest.fixture(scope="session")
def randomised() -> Callable[..., nn.Module]:
    """Gives every weight of a model, norms and biases too, a random value: defaults of 0 and 1 hide mistakes."""

    @torch.no_grad()
    def fill(model: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
            if "norm" in name.lower() and name.endswith("weight"):
                parameter += 1
        return model.eval()

    return fill


@pytest.fixture(scope="session")
def toy_encoder(randomised: Callable[..., nn.Module]) -> Callable[..., PreTrainedModel]:
    """A random Hugging Face encoder of a type; sizes by BERT's names."""

    def make(model_type: str = "bert", seed: int = 0, **sizes: Any) -> PreTrainedModel:
        given: dict[str, Any] = {
            "vocab_size": len(VOCABULARY),
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "intermediate_size": 96,
            "max_position_embeddings": 40,
        } | sizes
        if model_type == "distilbert":
            given["hidden_dim"] = given.pop("intermediate_size")
        if model_type == "electra":
            given.setdefault("embedding_size", given["hidden_size"])
        if model_type == "modernbert":  # its own lie beyond a toy vocabulary
            given |= {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
        return randomised(AutoModel.from_config(AutoConfig.for_model(model_type, **given)), seed)

    return make


@pytest.fixture(scope="session")
def _saved_teacher(
    toy_encoder: Callable[..., PreTrainedModel], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """A folder for each kind of toy encoder, which no test may change."""
    saved: dict[str, Path] = {}

    def save(model_type: str, **sizes: Any) -> Path:
        if (kind := f"{model_type} {sizes}") not in saved:
            folder = tmp_path_factory.mktemp("teacher") / f"toy-{model_type}"
            with quiet_transformers():
                toy_encoder(model_type, **sizes).save_pretrained(folder)
            _word_tokenizer().save_pretrained(folder)
            saved[kind] = folder
        return saved[kind]

    return save


@pytest.fixture
def teacher_folder(tmp_path: Path, _saved_teacher: Callable[..., Path]) -> Callable[..., Path]:
    """A folder with a toy encoder and its tokenizer, as `save_pretrained` writes it."""

    def save(model_type: str = "bert", **sizes: Any) -> Path:
        folder = tmp_path / f"toy-{model_type}"
        shutil.copytree(_saved_teacher(model_type, **sizes), folder, dirs_exist_ok=True)
        return folder

    return save


@pytest.fixture
def toy_teacher(toy_encoder: Callable[..., PreTrainedModel], tokenizer: BertTokenizerFast) -> Callable[..., Teacher]:
    """A teacher from `toy_encoder`, without files."""

    def make(model_type: str = "bert", layer: int = -1, **sizes: Any) -> Teacher:
        return Teacher(toy_encoder(model_type, **sizes), tokenizer, f"toy {model_type}", layer)

    return make


@pytest.fixture
def debug_superlm(
    debug_space: SearchSpace, toy_teacher: Callable[..., Teacher], randomised: Callable[..., AutoDistilModel]
) -> Callable[..., AutoDistilModel]:
    """A SuperLM of the debug space with the toy vocabulary and random weights."""

    def make(seed: int = 0) -> AutoDistilModel:
        return randomised(AutoDistilModel(toy_teacher().student_config(debug_space.largest, debug_space)), seed)

    return make


@pytest.fixture(scope="session")
def toy_batch() -> Callable[..., tuple[Tensor, Tensor]]:
    """Token ids `(B, T)` of words, and a mask that leaves each row one token fewer than the row before."""

    def make(rows: int = 3, tokens: int = 9, seed: int = 0) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(5, len(VOCABULARY), (rows, tokens), generator=generator)
        mask = (torch.arange(tokens)[None] < tokens - torch.arange(rows)[:, None]).long()
        return ids, mask

    return make


def _write_text(path: Path, documents: int, seed: int) -> Path:
    rng = random.Random(seed)
    paragraphs = [" ".join(rng.choices(WORDS, k=20)) for _ in range(2 * documents)]
    path.write_text("\n\n".join("\n".join(paragraphs[i : i + 2]) for i in range(0, len(paragraphs), 2)))
    return path


@pytest.fixture
def toy_text(tmp_path: Path) -> Callable[..., Path]:
    """A text file of random words in documents of two paragraphs."""

    def write(documents: int = 60, seed: int = 0, name: str = "toy.txt") -> Path:
        return _write_text(tmp_path / name, documents, seed)

    return write


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """Runs a command that must end with exit code 2 and, without progress, one line on standard error; gives it."""

    def run(arguments: list[str]) -> str:
        capsys.readouterr()
        try:
            code: object = main([*arguments, "--quiet"])
        except SystemExit as stop:
            code = stop.code
        errors = capsys.readouterr().err
        assert code == 2
        assert errors.count("\n") == 1
        return errors

    return run


@pytest.fixture
def printed_json(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], dict[str, Any]]:
    """Runs a command that must end well and print one JSON object, without NaN, and nothing else; gives the object."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    def run(arguments: list[str]) -> dict[str, Any]:
        capsys.readouterr()
        assert main([*arguments, "--json", "--quiet"]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        found = json.loads(printed.out, parse_constant=refuse)
        assert isinstance(found, dict)
        return found

    return run


@pytest.fixture(scope="session")
def _toy_settings(
    _saved_teacher: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SearchConfig]:
    """Those of `toy_config` but for the folder; their teacher and text must be left as they are."""
    teacher = _saved_teacher("bert")
    text = _write_text(tmp_path_factory.mktemp("text") / "toy.txt", documents=60, seed=0)
    inputs = [text, *sorted(teacher.iterdir())]
    before = [path.read_bytes() for path in inputs]
    yield SearchConfig(
        space="debug",
        teacher=str(teacher),
        text=[str(text)],
        seq_len=16,
        steps=3,
        batch_size=2,
        eval_blocks=4,
        evaluations=8,
        proxy="relation",
        population=4,
        baselines="none",
        held_out_every=0,
        precision="fp32",  # the same numbers on machines with and without bfloat16
    )
    assert [path.read_bytes() for path in inputs] == before


@pytest.fixture
def toy_config(_toy_settings: SearchConfig, tmp_path: Path) -> SearchConfig:
    """A whole run on the debug space that takes about a second."""
    return replace(_toy_settings, out=str(tmp_path / "run"))


@pytest.fixture
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are files without a picture: drawing them is half of the time of a toy run. Not with the mark `drawn`."""
    if request.node.get_closest_marker("drawn") is None:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **__: path.write_bytes(b""))


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Callable[[SearchConfig], "Run"]:
    """As `search`, for tests of what is done with a finished run: equal searches of a session are copies of one."""
    from autodistil_search import load_run, search

    made: dict[str, Path] = {}

    def find(config: SearchConfig) -> "Run":
        if (settings := repr(replace(config, out=None))) not in made:
            made[settings] = search(replace(config, out=str(tmp_path_factory.mktemp("made") / "run"))).folder
        shutil.copytree(made[settings], config.folder)
        return load_run(config.folder)

    return find


@pytest.fixture
def run_instead(monkeypatch):
    """Let a command run something else."""

    def replace_run(name, run):
        monkeypatch.setattr(f"autodistil_search.cli.commands.{name}.COMMAND", replace(command(name), run=run))

    return replace_run
