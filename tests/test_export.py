"""A student as a folder: it computes the same wherever it is loaded, and its card says what was measured."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import onnx
import onnxruntime
import pytest
import torch
import yaml
from processes import SERVER
from tokenizers import Tokenizer
from torch import Tensor
from torch.testing import assert_close
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    MPNetForSequenceClassification,
    MPNetModel,
)

from autodistil_search import SearchConfig, load_run
from autodistil_search.base.errors import ExportError, InputError
from autodistil_search.base.pretrained import quiet_transformers
from autodistil_search.cli.main import main
from autodistil_search.exporting import onnx_files
from autodistil_search.exporting.student_folder import export_student
from autodistil_search.runs.finished_run import Run
from autodistil_search.settings.export import ExportOptions
from autodistil_search.spaces.cost import flops
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm import modeling_student
from autodistil_search.superlm.model import AutoDistilConfig, AutoDistilForSequenceClassification, AutoDistilModel

FITS = Subnet(2, 48, 96, 3, 8)  # with BERT's 3 heads of 16
UNLIKE_HEADS = Subnet.of_layers(48, [96, 96], [2, 3], 8)
NO_BERT = Subnet(2, 40, 80, 3, 16)  # 5 x 8: too narrow
UNLIKE_FFN = Subnet.of_layers(48, [96, 48], [3, 3], 8)
TEXTS = ["w1 w2 w3 w4 w5", "w6", "w7 w8 w9"]


@pytest.fixture
def saved(tmp_path: Path, randomised: Callable[..., Any], tokenizer: Any) -> Callable[..., tuple[Any, Path]]:
    """A random student of those sizes, with a head of so many labels if any, and its folder with the tokenizer.

    biased: with MPNet's relative attention bias, padding token and lack of token types.
    """

    def save(
        subnet: Subnet = FITS, labels: int = 0, name: str = "student", types: int = 2, biased: bool = False
    ) -> tuple[Any, Path]:
        sizes: dict[str, Any] = {"vocab_size": 95, "max_position_embeddings": 40, "type_vocab_size": types}
        words = tokenizer
        if biased:
            sizes |= {"type_vocab_size": 1, "pad_token_id": 1, "relative_attention_buckets": 32}
            vocabulary = {**tokenizer.get_vocab(), "[PAD]": 1, "[UNK]": 0}
            words = BertTokenizerFast(vocab=vocabulary, model_input_names=["input_ids", "attention_mask"])
        config = AutoDistilConfig(**sizes).resized(subnet)
        if labels:
            config.num_labels = labels
        student = randomised((AutoDistilForSequenceClassification if labels else AutoDistilModel)(config))
        with quiet_transformers():
            student.save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
        return student, tmp_path / name

    return save


def inputs(toy_batch: Callable[..., tuple[Tensor, Tensor]], rows: int = 3, tokens: int = 9) -> dict[str, Tensor]:
    ids, mask = toy_batch(rows, tokens)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": (ids % 2)}


def outputs(model: Any, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        found: tuple[Tensor, ...] = model(**given, return_dict=False)
    return found


def config_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


@pytest.mark.parametrize("labels", [0, 1, 3])
@pytest.mark.parametrize(
    ("subnet", "asked", "own"),
    [
        (FITS, "auto", False),
        (FITS, "own", True),
        (FITS, "bert", False),
        (UNLIKE_HEADS, "auto", False),
        (UNLIKE_HEADS, "own", True),
        (NO_BERT, "auto", True),
        (UNLIKE_FFN, "auto", True),
    ],
)
def test_an_exported_student_computes_the_same(
    saved: Callable[..., tuple[Any, Path]],
    toy_batch: Callable[..., tuple[Tensor, Tensor]],
    tmp_path: Path,
    subnet: Subnet,
    asked: Any,
    own: bool,
    labels: int,
) -> None:
    student, source = saved(subnet, labels)
    folder = export_student(source, tmp_path / "out", ExportOptions(format=asked))
    assert (folder / "modeling_student.py").exists() == own
    assert config_of(folder)["model_type"] == ("autodistil" if own else "bert")
    auto = AutoModelForSequenceClassification if labels else AutoModel
    with quiet_transformers():
        loaded = auto.from_pretrained(folder)  # our class is registered here: no code of the folder is needed
        tokens = AutoTokenizer.from_pretrained(folder)
    encoder, with_head = (
        (AutoDistilModel, AutoDistilForSequenceClassification) if own else (BertModel, BertForSequenceClassification)
    )
    assert type(loaded) is (with_head if labels else encoder)
    for given in (inputs(toy_batch), {"input_ids": inputs(toy_batch)["input_ids"]}):
        for mine, theirs in zip(outputs(student, given), outputs(loaded, given), strict=True):
            assert_close(theirs, mine, rtol=1e-5, atol=1e-5)
    assert tokens(TEXTS)["input_ids"][0] == [2, 6, 7, 8, 9, 10, 3]
    assert tokens.model_max_length == 40
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        json.loads((folder / "export.json").read_text())["files"]
    )


@pytest.mark.parametrize("labels", [0, 2])
@pytest.mark.parametrize(("subnet", "asked"), [(UNLIKE_HEADS, "auto"), (FITS, "own"), (NO_BERT, "auto")])
def test_an_exported_student_with_relative_attention_bias_computes_the_same_in_torch_and_onnx(
    saved: Callable[..., tuple[Any, Path]],
    toy_batch: Callable[..., tuple[Tensor, Tensor]],
    tmp_path: Path,
    subnet: Subnet,
    asked: Any,
    labels: int,
) -> None:
    """As standard MPNet, or with its own file; padding of sentences has no position in the former."""
    student, source = saved(subnet, labels, biased=True)
    folder = export_student(source, tmp_path / "out", ExportOptions(format=asked, int8=True))
    auto = AutoModelForSequenceClassification if labels else AutoModel
    with quiet_transformers():
        loaded = auto.from_pretrained(folder)
        tokens = AutoTokenizer.from_pretrained(folder)
    own = subnet is not UNLIKE_HEADS
    encoder, with_head = (
        (AutoDistilModel, AutoDistilForSequenceClassification) if own else (MPNetModel, MPNetForSequenceClassification)
    )
    assert type(loaded) is (with_head if labels else encoder)
    assert tokens(TEXTS, padding=True)["input_ids"][1] == [2, 11, 3, 1, 1, 1, 1]
    run = onnx_files.runner(folder / "model.onnx")
    for rows, length in ((1, 2), (3, 39)):
        given = dict(zip(("input_ids", "attention_mask"), toy_batch(rows, length), strict=True))
        expected = outputs(student, given)
        assert_close(outputs(loaded, given), expected, rtol=1e-5, atol=1e-5)
        assert_close(tuple(run(given)), expected, rtol=0, atol=1e-4)
    stored = sum(onnx.numpy_helper.to_array(each).size for each in onnx.load(folder / "model.onnx").graph.initializer)
    assert stored < student.num_parameters() * 1.01
    torch_row, onnx_row, _ = json.loads((folder / "export.json").read_text())["variants"]
    assert torch_row["params"] == sum(each.numel() for each in loaded.parameters())
    head = 48 * labels if subnet is not NO_BERT else 40 * labels
    assert onnx_row["flops"] == flops(subnet) + head
    assert torch_row["flops"] == (onnx_row["flops"] if own else flops(Subnet(2, 48, 96, 3, 16)) + head)


SCRIPT = """
import json, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "autodistil_search":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline
found = {}
for folder in sys.argv[1:]:
    own = {"trust_remote_code": True} if folder.endswith("own") else {}
    tokenizer = AutoTokenizer.from_pretrained(folder, **own)
    given = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        if "head" in folder:
            model = AutoModelForSequenceClassification.from_pretrained(folder, **own)
            found[folder] = [model(**given).logits.tolist(), type(model).__name__]
            pipe = pipeline("text-classification", model=folder, **own)
            found[folder].append(len(pipe(TEXTS)))
        else:
            model = AutoModel.from_pretrained(folder, **own)
            found[folder] = [model(**given).last_hidden_state.tolist(), type(model).__name__]
            pipe = pipeline("feature-extraction", model=folder, **own)
            found[folder].append(pipe(TEXTS[0]))
            found[folder].append(SentenceTransformer(folder, device="cpu", **own).encode(TEXTS).tolist())
    assert "autodistil_search" not in sys.modules
print("RESULT" + json.dumps(found))
""".replace("TEXTS", repr(TEXTS))


def test_both_formats_load_where_this_package_is_not_installed(
    saved: Callable[..., tuple[Any, Path]], tmp_path: Path, tokenizer: Any
) -> None:
    encoder, source = saved(UNLIKE_HEADS)
    head, source_of_head = saved(UNLIKE_HEADS, 3, "with-head")
    for format_ in ("bert", "own"):
        export_student(source, tmp_path / f"encoder-{format_}", ExportOptions(format=format_))  # type: ignore[arg-type]
        export_student(source_of_head, tmp_path / f"head-{format_}", ExportOptions(format=format_))  # type: ignore[arg-type]
    biased, source = saved(UNLIKE_HEADS, name="biased", biased=True)
    export_student(source, tmp_path / "encoder-mpnet", ExportOptions(format="mpnet"))
    export_student(source, tmp_path / "encoder-bias-own", ExportOptions(format="own"))
    names = ["encoder-bert", "encoder-own", "head-bert", "head-own", "encoder-mpnet", "encoder-bias-own"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, *names], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.rpartition("RESULT")[2])
    given = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states, logits = encoder(**given).last_hidden_state, head(**given).logits
    weights = given["attention_mask"][..., None]
    means = (states * weights).sum(1) / weights.sum(1)
    for name, kind in zip(names[:2], ["BertModel", "AutoDistilModel"], strict=True):
        theirs, loaded, one, embeddings = found[name]
        assert loaded == kind
        assert_close(torch.tensor(theirs), states, rtol=1e-5, atol=1e-5)
        assert_close(torch.tensor(one)[0], states[0], rtol=1e-5, atol=1e-5)
        assert_close(torch.tensor(embeddings), means, rtol=1e-5, atol=1e-5)
    with quiet_transformers():
        given = AutoTokenizer.from_pretrained(source)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = biased(**given).last_hidden_state
    for name, kind in zip(names[4:], ["MPNetModel", "AutoDistilModel"], strict=True):
        theirs, loaded, *_, embeddings = found[name]
        assert loaded == kind
        read = weights[..., 0] == 1
        assert_close(torch.tensor(theirs)[read], states[read], rtol=1e-5, atol=1e-5)
        assert_close(torch.tensor(embeddings), (states * weights).sum(1) / weights.sum(1), rtol=1e-5, atol=1e-5)
    for name, kind in zip(names[2:4], ["BertFor", "AutoDistilFor"], strict=True):
        theirs, loaded, count = found[name]
        assert loaded == f"{kind}SequenceClassification"
        assert count == len(TEXTS)
        assert_close(torch.tensor(theirs), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("labels", [0, 2])
@pytest.mark.parametrize("subnet", [UNLIKE_HEADS, UNLIKE_FFN], ids=["bert", "own"])
def test_the_onnx_file_computes_what_torch_computes(
    saved: Callable[..., tuple[Any, Path]],
    toy_batch: Callable[..., tuple[Tensor, Tensor]],
    tmp_path: Path,
    subnet: Subnet,
    labels: int,
) -> None:
    student, source = saved(subnet, labels)
    folder = export_student(source, tmp_path / "out", ExportOptions(onnx=True))
    assert not (folder / "model_int8.onnx").exists()
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [each.name for each in session.get_outputs()] == (
        ["logits"] if labels else ["last_hidden_state", "pooler_output"]
    )
    for rows, tokens in ((1, 2), (3, 9), (7, 40)):
        given = inputs(toy_batch, rows, tokens)
        theirs = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
        for mine, array in zip(outputs(student, given), theirs, strict=True):
            assert_close(torch.from_numpy(array), mine, rtol=0, atol=1e-4)
    stored = sum(onnx.numpy_helper.to_array(each).size for each in onnx.load(folder / "model.onnx").graph.initializer)
    assert stored < student.num_parameters() * 1.01  # no zeros of a standard BERT
    (stated,) = re.findall(r"difference from\s+PyTorch: ([\d.e-]+)", (folder / "README.md").read_text())
    assert 0 <= float(stated) < 1e-5


def test_a_student_with_one_token_type_takes_none_in_onnx(
    saved: Callable[..., tuple[Any, Path]], toy_batch: Callable[..., tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    student, source = saved(types=1)
    folder = export_student(source, tmp_path / "out", ExportOptions(onnx=True))
    run = onnx_files.runner(folder / "model.onnx")
    given = dict(zip(("input_ids", "attention_mask"), toy_batch(), strict=True))
    for mine, theirs in zip(outputs(student, given), run(given), strict=True):
        assert_close(theirs, mine, rtol=0, atol=1e-4)


@pytest.mark.parametrize("labels", [0, 1, 3])
def test_the_int8_file_is_smaller_and_the_card_says_what_it_costs(
    saved: Callable[..., tuple[Any, Path]], tmp_path: Path, labels: int, caplog: pytest.LogCaptureFixture
) -> None:
    _, source = saved(Subnet(2, 96, 192, 3, 16), labels)
    folder = export_student(source, tmp_path / "out", ExportOptions(int8=True))
    small, whole = ((folder / name).stat().st_size for name in ("model_int8.onnx", "model.onnx"))
    assert small < 0.5 * whole
    card = (folder / "README.md").read_text()
    assert "16 built-in English sentences" in card
    if labels:
        assert re.search(r"Mean absolute difference of its logits .*: 0\.\d{5}", card)
        assert ("the same class for" in card) == (labels > 1)
    else:
        mean, worst = map(float, re.search(r"mean ([\d.]+), worst ([\d.]+)\.", card).groups())  # type: ignore[union-attr]
        assert 0.9 < worst <= mean <= 1
    assert "pre-processing" not in caplog.text


def test_the_card_holds_what_was_measured(
    saved: Callable[..., tuple[Any, Path]], teacher_folder: Callable[..., Path], tmp_path: Path
) -> None:
    student, source = saved(UNLIKE_HEADS)
    options = ExportOptions(int8=True, teacher=str(teacher_folder()), license="apache-2.0")
    folder = export_student(source, tmp_path / "out", options)
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "transformers"
    assert front["license"] == "apache-2.0"
    assert "base_model" not in front  # a folder is no model of the hub
    record = json.loads((folder / "export.json").read_text())
    torch_row, onnx_row, int8_row, teacher_row = record["variants"]
    exported = BertModel.from_pretrained(folder)
    assert torch_row["params"] == sum(each.numel() for each in exported.parameters()) > student.num_parameters()
    assert torch_row["flops"] == flops(Subnet(2, 48, 96, 3, 16))
    assert onnx_row["params"] == int8_row["params"] == student.num_parameters()
    assert onnx_row["flops"] == flops(UNLIKE_HEADS) < torch_row["flops"]
    for row in record["variants"]:
        assert row["latency"] > 0
        assert f"{row['latency']:.2f} ms (IQR {row['latency_iqr']:.2f})" in card
        assert f"{row['params']:,}" in card
        assert f"{row['megabytes']:.2f} MB" in card
        if row["file"]:
            assert row["megabytes"] == (folder / row["file"]).stat().st_size / 1e6
    assert f"{student.num_parameters():,}" in card
    assert teacher_row["name"] == "the teacher, PyTorch"
    assert "1 x 40 tokens, cpu fp32, " in card
    assert "architecture search after" not in card  # of a saved student nobody knows that here
    assert "3 heads of 16, which hold the student's 3 heads of 8 and zeros" in card
    assert f"onnxruntime {onnxruntime.__version__}" in card
    texts = [path.read_text() for path in folder.iterdir() if path.suffix in (".md", ".json")]
    assert str(tmp_path) not in "".join(texts)


CARDS = """
import re, socket, sys
from pathlib import Path
def refuse(*_, **__):
    raise OSError("no network here")
socket.socket.connect = refuse
for folder in sys.argv[1:]:
    names = {}
    card = Path(folder, "README.md").read_text(encoding="utf-8")
    exec("\\n".join(re.findall(r"^```python\\n(.*?)^```$", card, flags=re.S | re.M)), names)
    print(folder, *names["outputs"][0].shape, "encoder" in names and names["encoder"].encode(["A sentence."]).shape)
"""


def test_the_python_of_every_card_runs_as_written_and_asks_nothing(
    saved: Callable[..., tuple[Any, Path]], tmp_path: Path
) -> None:
    """On an open standard input a question would wait for an answer, and then fail."""
    _, unlike = saved(UNLIKE_FFN)
    _, head = saved(UNLIKE_FFN, 3, "with-head")
    export_student(unlike, tmp_path / "own", ExportOptions(onnx=True))
    export_student(head, tmp_path / "own-head", ExportOptions())
    _, fits = saved(name="fits")
    _, head = saved(labels=1, name="fits-with-head")
    export_student(fits, tmp_path / "bert", ExportOptions(int8=True))
    export_student(head, tmp_path / "bert head", ExportOptions())
    reading, writing = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", CARDS, "own", "own-head", "bert", "bert head"],
            cwd=tmp_path,
            env={**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
            stdin=reading,
            capture_output=True,
            text=True,
        )
    finally:
        os.close(reading)
        os.close(writing)
    assert done.returncode == 0, done.stderr
    assert "y/N" not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    shapes = [r"own 2 \d+ 48 \(1, 48\)", "own-head 2 3 False", r"bert 2 \d+ 48 \(1, 48\)", "bert head 2 1 False"]
    assert all(re.fullmatch(shape, line) for shape, line in zip(shapes, lines, strict=True)), lines


@pytest.fixture
def run(toy_config: SearchConfig, searched: Callable[[SearchConfig], Run]) -> Run:
    return searched(toy_config)


def test_a_picked_row_of_a_run_is_exported_with_what_is_known_of_it(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert main(["export", str(run.folder), "--out", str(folder), "--pick", "1", "--int8"]) == 0
    row = run.frontier.iloc[0]
    card = (folder / "README.md").read_text()
    assert f"row 1 of {len(run.frontier)} of the frontier of space debug" in card
    assert f"`relation_loss`) | {row['relation_loss']:#.4g} | nats, sum of QQ, KK and VV | lower" in card
    assert "blocks of 16 tokens of the run's held-out text" in card
    assert "3 steps of 2 x 16 tokens" in card
    assert "toy.txt: " in card
    assert "toy-bert (3x48" in card
    assert "It was found by a multi-objective\narchitecture search" in card
    assert str(tmp_path) not in card
    onnx_row = json.loads((folder / "export.json").read_text())["variants"][1]
    assert onnx_row["params"] == row["params"]
    assert onnx_row["flops"] == row["flops"]


def test_a_row_is_picked_by_number_by_name_and_by_bounds(run: Run) -> None:
    again = load_run(run.folder)
    frontier = again.frontier
    assert again.pick().equals(again.knee)
    for number in range(1, len(frontier) + 1):
        assert again.pick(str(number)).equals(frontier.iloc[number - 1])
    bound = float(frontier["flops"].median())
    within = frontier[frontier["flops"] <= bound]
    wanted = frontier.loc[within["relation_loss"].idxmin()]
    assert again.pick(f"flops<={bound}").equals(wanted)
    assert again.pick(f"flops<={bound},acc<=100").equals(wanted)
    least = float(frontier["flops"].max())
    assert again.pick(f"flops>={least}").equals(frontier.iloc[-1])
    with pytest.raises(InputError, match=r"--pick flops<=1: no row .* it has flops from [\d,.]+"):
        again.pick("flops<=1")
    for wrong in ("0", str(len(frontier) + 1), "best", "", "-1"):
        with pytest.raises(InputError, match=f"allowed: knee, a row of the frontier from 1 to {len(frontier)}"):
            again.pick(wrong)
    with pytest.raises(InputError, match=r"--pick 'speed<=1'; allowed: NAME<=AMOUNT"):
        again.pick("speed<=1")
    with pytest.raises(InputError, match=r"--pick flops<= 'many'; allowed: a number above 0"):
        again.pick("flops<=many")


def test_of_equally_good_rows_the_first_is_picked_and_what_is_maximised_is_best_when_high(run: Run) -> None:
    report = run.report
    report.frontier.loc[:, "relation_loss"] = 1.0
    assert run.pick("flops>=1").equals(run.frontier.iloc[0])
    (first, *others) = report.objectives
    object.__setattr__(report, "objectives", [type(first)("flops", "", "", "maximize"), *others])
    assert run.pick("flops>=1").equals(run.frontier.iloc[-1])


def test_what_cannot_be_exported_is_refused_in_one_line(
    saved: Callable[..., tuple[Any, Path]],
    debug_superlm: Callable[..., AutoDistilModel],
    teacher_folder: Callable[..., Path],
    refusal: Callable[[list[str]], str],
    tmp_path: Path,
) -> None:
    _, source = saved(NO_BERT)
    _, unlike = saved(UNLIKE_FFN, name="unlike")
    to = ["--out", str(tmp_path / "out")]
    assert "no divisor of hidden size 40 is at least 3" in refusal(["export", str(source), *to, "--format", "bert"])
    assert "its layers have different FFN sizes" in refusal(["export", str(unlike), *to, "--format", "bert"])
    assert "allowed: bert, own" in refusal(["export", str(saved(name="fits")[1]), *to, "--format", "mpnet"])
    biased = str(saved(name="biased", biased=True)[1])
    assert "the student has relative attention bias; allowed: mpnet, own" in refusal(
        ["export", biased, *to, "--format", "bert"]
    )
    assert "--pick '1', but" in refusal(["export", str(source), *to, "--pick", "1"])
    assert "neither a finished run nor a saved student" in refusal(["export", str(tmp_path / "none"), *to])
    assert "model of type 'bert'" in refusal(["export", str(teacher_folder()), *to])
    assert "--push-to-hub 'a b/c'; allowed" in refusal(["export", str(source), *to, "--push-to-hub", "a b/c"])
    assert "--format must be one of auto, bert, mpnet, own (got 'gguf')" in refusal(
        ["export", str(source), *to, "--format", "gguf"]
    )
    assert "--out is required" in refusal(["export", str(source)])
    with quiet_transformers():
        debug_superlm().save_pretrained(tmp_path / "superlm")
    assert "holds a SuperLM" in refusal(["export", str(tmp_path / "superlm"), *to])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink()
    assert "holds no tokenizer; allowed" in refusal(["export", str(source), *to])
    (unlike / "model.safetensors").write_bytes(b"damaged")
    assert "is damaged" in refusal(["export", str(unlike), *to])
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    with pytest.raises(InputError, match=r"--format must be one of auto, bert, mpnet, own \(got 'gguf'\)"):
        ExportOptions(format="gguf")  # type: ignore[arg-type]


def test_an_exported_tokenizer_cuts_and_pads_no_text_unless_asked(
    saved: Callable[..., tuple[Any, Path]], tmp_path: Path
) -> None:
    folder = export_student(saved()[1], tmp_path / "out", ExportOptions())
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))  # as libraries read it that do not use transformers
    lengths = [len(row.ids) for row in words.encode_batch(["w1", "w2 " * 30])]
    assert lengths == [3, 32]


def test_a_student_without_a_tokenizer_takes_its_teachers_if_that_has_no_more_words(
    saved: Callable[..., tuple[Any, Path]], teacher_folder: Callable[..., Path], tmp_path: Path
) -> None:
    _, source = saved()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink()
    folder = export_student(source, tmp_path / "out", ExportOptions(teacher=str(teacher_folder())))
    assert AutoTokenizer.from_pretrained(folder)("w0")["input_ids"] == [2, 5, 3]
    assert "toy-bert" in (folder / "README.md").read_text()
    small = AutoDistilModel(AutoDistilConfig(vocab_size=50).resized(FITS))
    with quiet_transformers():
        small.save_pretrained(tmp_path / "small")
    with pytest.raises(InputError, match="has 50 embeddings and its tokenizer 95 tokens"):
        export_student(tmp_path / "small", tmp_path / "out", ExportOptions(teacher=str(tmp_path / "toy-bert")))


def test_an_earlier_export_is_replaced_and_other_folders_are_left_alone(
    saved: Callable[..., tuple[Any, Path]], refusal: Callable[[list[str]], str], tmp_path: Path
) -> None:
    _, source = saved()
    to = tmp_path / "new" / "out"
    export_student(source, to, ExportOptions(onnx=True))
    export_student(source, to, ExportOptions(format="own"))
    assert (to / "modeling_student.py").exists()
    assert not (to / "model.onnx").exists()
    assert [path.name for path in to.parent.iterdir()] == ["out"]
    (to / "mine.txt").write_text("keep")
    assert "holds 'mine.txt', which no export wrote" in refusal(["export", str(source), "--out", str(to)])
    assert "is or holds the folder to export" in refusal(["export", str(source), "--out", str(source)])
    assert "is not a folder" in refusal(["export", str(source), "--out", str(source / "config.json")])
    empty = tmp_path / "empty"
    empty.mkdir()
    assert (export_student(source, empty, ExportOptions()) / "README.md").exists()


@pytest.mark.parametrize("to", [".", "", "..", "/", "~"])
def test_a_place_that_holds_more_than_an_export_is_refused(
    to: str,
    saved: Callable[..., tuple[Any, Path]],
    refusal: Callable[[list[str]], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, home = str(saved()[1]), tmp_path / "home"
    (home / "work").mkdir(parents=True)
    export_student(Path(source), home / "work" / "out", ExportOptions())
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "work" / "out")  # an earlier export, which may be replaced from elsewhere
    before = sorted(tmp_path.rglob("*"))
    told = refusal(["export", source, "--out", str(home) if to == "~" else to])
    assert re.search("is or holds the (current|home) folder; allowed", told)
    assert sorted(tmp_path.rglob("*")) == before


def _export_in_the_middle(source: Path, to: Path, begun: Any, goes_on: Any) -> None:
    """For a process of its own: export, but wait in the middle."""
    from autodistil_search.exporting import student_folder as module

    measure = module._measure

    def waiting(*arguments: Any) -> Any:
        begun.set()
        goes_on.wait()
        return measure(*arguments)

    module._measure = waiting
    sys.exit(main(["export", str(source), "--out", str(to), "--quiet"]))


def test_two_exports_to_one_folder_do_not_mix_and_a_killed_one_is_no_obstacle(
    saved: Callable[..., tuple[Any, Path]], refusal: Callable[[list[str]], str], tmp_path: Path
) -> None:
    first, other = saved()[1], saved(NO_BERT, name="other")[1]
    to, begun, goes_on = tmp_path / "new" / "out", SERVER.Event(), SERVER.Event()
    process = SERVER.Process(target=_export_in_the_middle, args=(first, to, begun, goes_on))
    process.start()
    begun.wait()
    told = refusal(["export", str(other), "--out", str(to)])
    assert f"another process is using {to} (process {process.pid} on " in told
    goes_on.set()
    process.join()
    assert process.exitcode == 0
    assert config_of(to)["hidden_size"] == config_of(first)["hidden_size"]
    begun.clear()
    goes_on.clear()
    killed = SERVER.Process(target=_export_in_the_middle, args=(first, to, begun, goes_on))
    killed.start()
    begun.wait()
    killed.kill()
    killed.join()
    export_student(other, to, ExportOptions())
    assert config_of(to)["hidden_size"] == config_of(other)["hidden_size"]
    assert list(to.parent.iterdir()) == [to]


def _with_a_limit(arguments: list[str], limit: int, printed: Path) -> None:
    """For a process of its own: a command that cannot write more than so many bytes to a file."""
    import resource

    with printed.open("w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    sys.exit(main(arguments))


@pytest.mark.parametrize("limit", [500, 3_000, 30_000, 0])
def test_a_full_disk_is_one_line_and_leaves_the_earlier_export(
    limit: int, saved: Callable[..., tuple[Any, Path]], tmp_path: Path
) -> None:
    """Of configuration, tokenizer, weights and ONNX files, another is the first that does not fit."""
    source, to, printed = saved(NO_BERT)[1], tmp_path / "out", tmp_path / "printed"
    export_student(saved(name="other")[1], to, ExportOptions())
    before = {path.name: path.read_bytes() for path in to.iterdir()}
    limit = limit or (source / "model.safetensors").stat().st_size + 500  # an ONNX file holds the graph, too
    arguments = ["export", str(source), "--out", str(to), "--int8", "--quiet"]
    process = SERVER.Process(target=_with_a_limit, args=(arguments, limit, printed))
    process.start()
    process.join()
    told = printed.read_text()
    assert (process.exitcode, told.count("\n")) == (1, 1), told
    assert f"{to} cannot be written: File too large; raise the limit" in told
    assert {path.name: path.read_bytes() for path in to.iterdir()} == before
    assert not list(tmp_path.glob(".*"))


def test_an_export_that_is_stopped_half_way_leaves_the_earlier_one_and_no_half_folder(
    saved: Callable[..., tuple[Any, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, source = saved()
    to = tmp_path / "out"

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("autodistil_search.exporting.model_card.Card.write", stop)
        with pytest.raises(KeyboardInterrupt):
            export_student(source, to, ExportOptions())
    assert not to.exists()
    assert list(tmp_path.glob(".out*")) == []
    export_student(source, to, ExportOptions())
    before = {path.name: path.read_bytes() for path in to.iterdir()}
    (tmp_path / ".out.autodistil-new").mkdir()  # as a killed process leaves it
    (tmp_path / ".out.new").mkdir()  # not ours
    with monkeypatch.context() as patch:
        patch.setattr("autodistil_search.exporting.model_card.Card.write", stop)
        with pytest.raises(KeyboardInterrupt):
            export_student(source, to, ExportOptions(format="own"))
    assert {path.name: path.read_bytes() for path in to.iterdir()} == before
    assert list(tmp_path.glob(".out*")) == [tmp_path / ".out.new"]


def test_an_onnx_file_that_computes_something_else_fails_the_export(
    saved: Callable[..., tuple[Any, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, source = saved()
    write = onnx_files.write_onnx

    def write_another(model: Any, *arguments: Any) -> None:
        model.pooler.bias.data += 0.01
        write(model, *arguments)

    monkeypatch.setattr(onnx_files, "write_onnx", write_another)
    assert main(["export", str(source), "--out", str(tmp_path / "out"), "--onnx"]) == 1
    assert "model.onnx differs from the student by" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with monkeypatch.context() as patch:
        patch.setattr("autodistil_search.exporting.student_folder.TOLERANCE", -1.0)
        with pytest.raises(ExportError, match="the exported BertModel differs"):
            export_student(source, tmp_path / "out", ExportOptions())
    student, source = saved()
    student.pooler.bias.data[0] = float("nan")  # compares as neither larger nor smaller
    with quiet_transformers():
        student.save_pretrained(source)
    with pytest.raises(InputError, match=r"weights of pooler\.bias are not finite"):
        export_student(source, tmp_path / "out", ExportOptions())


@pytest.mark.parametrize("option", ["--onnx", "--int8"])
def test_without_the_extra_the_options_that_need_it_are_refused(
    saved: Callable[..., tuple[Any, Path]],
    refusal: Callable[[list[str]], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
) -> None:
    _, source = saved()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = refusal(["export", str(source), "--out", str(tmp_path / "out"), option])
    assert "pip install 'autodistil_search[onnx]'" in line


def test_a_folder_is_uploaded_when_asked(
    saved: Callable[..., tuple[Any, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, source = saved()
    calls: list[tuple[str, dict[str, Any]]] = []

    def create(repo_id: str, **options: Any) -> huggingface_hub.RepoUrl:
        calls.append((repo_id, options))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id if '/' in repo_id else f'me/{repo_id}'}")

    monkeypatch.setattr(huggingface_hub, "create_repo", create)
    monkeypatch.setattr(huggingface_hub, "upload_folder", lambda **rest: calls.append(("upload", rest)))
    to = tmp_path / "out"
    assert main(["export", str(source), "--out", str(to), "--push-to-hub", "us/student"]) == 0
    assert calls[0] == ("us/student", {"exist_ok": True, "private": True})
    assert calls[1][1]["repo_id"] == "us/student"
    assert calls[1][1]["folder_path"] == to
    assert 'from_pretrained("us/student")' in (to / "README.md").read_text()
    assert main(["export", str(source), "--out", str(to)]) == 0
    assert len(calls) == 2

    # A name alone is one of the user's own: what was made is what the folder goes to, and what the card says.
    assert main(["export", str(source), "--out", str(to), "--push-to-hub", "student", "--public"]) == 0
    assert calls[2] == ("student", {"exist_ok": True, "private": False})
    assert calls[3][1]["repo_id"] == "me/student"
    assert 'from_pretrained("me/student")' in (to / "README.md").read_text()
    capsys.readouterr()
    assert main(["export", str(source), "--out", str(to), "--public"]) == 2
    assert "--public without --push-to-hub" in capsys.readouterr().err

    def refuse(repo_id: str, **_: Any) -> None:
        raise RuntimeError("no\nconnection")

    monkeypatch.setattr(huggingface_hub, "create_repo", refuse)
    assert main(["export", str(source), "--out", str(to), "--push-to-hub", "me/student"]) == 1
    assert f"{to} is written, but cannot be uploaded to me/student: no connection\n" in capsys.readouterr().err
    assert (to / "README.md").exists()


def test_the_file_that_goes_along_has_the_weights_and_settings_of_our_model() -> None:
    ours, theirs = AutoDistilConfig().to_dict(), modeling_student.AutoDistilConfig().to_dict()
    assert {key: value for key, value in ours.items() if key != "search_space"} == theirs
    for name in ("AutoDistilModel", "AutoDistilForSequenceClassification"):
        config = AutoDistilConfig(vocab_size=95, max_position_embeddings=24).resized(UNLIKE_FFN)
        mine = getattr(sys.modules["autodistil_search.superlm.model"], name)(config)
        alone = getattr(modeling_student, name)(modeling_student.AutoDistilConfig(**config.to_dict()))
        assert {key: value.shape for key, value in mine.state_dict().items()} == {
            key: value.shape for key, value in alone.state_dict().items()
        }


@pytest.mark.parametrize("padded", [False, True])
def test_the_file_that_goes_along_computes_relative_attention_bias_as_our_model(
    toy_batch: Callable[..., tuple[Tensor, Tensor]], randomised: Callable[..., Any], padded: bool
) -> None:
    config = AutoDistilConfig(vocab_size=95, max_position_embeddings=40, relative_attention_buckets=32)
    mine = randomised(AutoDistilModel(config.resized(UNLIKE_HEADS)))
    alone = modeling_student.AutoDistilModel(modeling_student.AutoDistilConfig(**mine.config.to_dict())).eval()
    alone.load_state_dict(mine.state_dict())
    given = inputs(toy_batch, tokens=30)
    given["attention_mask"] = given["attention_mask"] if padded else None  # type: ignore[assignment]
    assert_close(outputs(alone, given), outputs(mine, given), rtol=0, atol=1e-5)
    mine.relative_attention_bias.weight.data *= 2
    assert not outputs(alone, given)[0].allclose(outputs(mine, given)[0], rtol=0, atol=1e-2)


def test_the_student_file_trains_as_ours_does(toy_batch: Callable[..., tuple[Tensor, Tensor]]) -> None:
    config = modeling_student.AutoDistilConfig(
        vocab_size=95, max_position_embeddings=24, hidden_size=16, num_hidden_layers=2, intermediate_size=32
    )
    config.num_labels = 3
    model = modeling_student.AutoDistilForSequenceClassification(config)
    ids, mask = toy_batch()
    output = model(ids, mask, labels=torch.tensor([0, 1, 2]))
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, torch.tensor([0, 1, 2])))


def test_a_card_names_the_packaged_teacher_as_the_hub_does(
    saved: Callable[..., tuple[Any, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_teacher: Any
) -> None:
    teacher = toy_teacher()
    teacher.name = "packaged"
    monkeypatch.setattr("autodistil_search.exporting.student_source.find_teacher", lambda *_: teacher)
    _, source = saved()
    card = (export_student(source, tmp_path / "out", ExportOptions(teacher="packaged")) / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert "| teacher | sentence-transformers/all-MiniLM-L6-v2 (3x48, " in card


def test_the_teacher_of_a_run_can_be_replaced_and_must_exist(
    run: Run, tmp_path: Path, teacher_folder: Callable[..., Path]
) -> None:
    other = teacher_folder("electra")
    folder = export_student(run.folder, tmp_path / "other", ExportOptions(teacher=str(other)))
    assert "| teacher | toy-electra" in (folder / "README.md").read_text()
    with pytest.raises(InputError, match=r"cannot reach huggingface\.co for teacher 'nobody/nothing'"):
        export_student(run.folder, tmp_path / "out", ExportOptions(teacher="nobody/nothing"))
