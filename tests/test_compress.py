"""`all`: a search and the steps that follow it, each done once, however often the command is stopped."""

import signal
from dataclasses import fields, replace
from pathlib import Path

import pytest
from processes import SERVER, killed_after_saving
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from autodistil_search import CompressConfig, InputError, Reporter, compress
from autodistil_search.settings.distil import DistilConfig
from autodistil_search.settings.search import SearchConfig

pytestmark = pytest.mark.usefixtures("undrawn")


class Told(Reporter):
    def __init__(self):
        self.lines = []

    def say(self, message):
        self.lines.append(message)

    def stages(self):
        return [line.partition(":")[::2] for line in self.lines if line.startswith("stage ")]


@pytest.fixture
def config(toy_config, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("text,label\n" + "".join(f"w{i % 7} w{i % 3},{'ab'[i % 2]}\n" for i in range(80)))
    settings = {field.name: getattr(toy_config, field.name) for field in fields(SearchConfig)}
    more = {"distil_steps": 3, "task": str(table), "epochs": 1, "seeds": 1, "max_length": 16}
    return CompressConfig(**{**settings, **more, "evaluations": 4, "out": str(tmp_path / "all")})


def _compress(config):
    compress(config, reporter=Reporter())


def test_a_killed_command_continues_where_it_was_and_repeats_nothing(config):
    killed = SERVER.Process(target=killed_after_saving, args=(1, _later_stages, config))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    told = Told()
    compressed = compress(config, reporter=told)
    folder = Path(config.out)
    assert [words.split(",")[0] for _, words in told.stages()] == [
        " already finished",
        *(f" results go to {folder / name}" for name in ("distil", "finetune", "export")),
    ]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert len(before) == 4
    again = compress(config, reporter=(told := Told()))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before
    assert [words.split(",")[0] for _, words in told.stages()][::3] == [" already finished"] * 2
    assert str(again) == str(compressed)
    assert compressed.distilled.after == again.distilled.after
    model = AutoModelForSequenceClassification.from_pretrained(compressed.exported)
    assert model.config.hidden_size == compressed.run.knee["hidden_size"]
    assert len(AutoTokenizer.from_pretrained(compressed.exported)) == model.config.vocab_size
    assert f'AutoModelForSequenceClassification.from_pretrained("{compressed.exported}")' in str(compressed)
    with pytest.raises(InputError, match="pick was 'knee' and is now '1'"):
        compress(replace(config, pick="1"), reporter=Reporter())


def _later_stages(config):
    """Finish the search, whose training saves at every step, too; then the whole command."""
    from autodistil_search.distillation.checkpoints import Checkpoints
    from autodistil_search.runs.search import search

    save_and_die, Checkpoints.save = Checkpoints.save, lambda *_, **__: None
    search(config.search)
    Checkpoints.save = save_and_die
    _compress(config)


def test_stages_that_are_not_wanted_are_left_out(config, printed_json):
    flags = {"distil_steps": 0, "evaluations": 4, "pick": 1, **{name: getattr(config, name) for name in _FLAGS}}
    arguments = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    found = printed_json(["all", *arguments, "--text", *config.text])
    assert found["distil"] is found["finetune"] is None
    folder = Path(config.out)
    assert {path.name for path in folder.iterdir() if path.name[0] != "."} == {"search", "export", "exported.json"}
    assert found["export"]["load"] == f'transformers.AutoModel.from_pretrained("{folder / "export"}")'
    assert found["search"]["folder"] == str(folder / "search")


_FLAGS = ("space", "teacher", "seq_len", "steps", "batch_size", "eval_blocks", "population", "baselines", "out")


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"objectives": "flops,params"}, "--objectives flops,params trains no SuperLM"),
        ({"pick": "best"}, "--pick 'best'; allowed: knee, a number, or bounds"),
        ({"pick": "flops<=banana"}, "--pick flops<= 'banana'; allowed: a number above 0"),
        ({"pick": "flops<=3M,<=4M"}, "--pick 'flops<=3M,<=4M'; allowed: knee, a number, or bounds"),
        ({"pick": "flops<="}, "--pick"),
        ({"finetune_lr": "fast"}, "--lr 'fast'; allowed: one or more numbers above 0"),
        ({"task": "nothing.csv"}, "task 'nothing.csv' is not known"),
    ],
)
def test_what_a_later_stage_cannot_use_is_refused_before_the_search(config, change, refusal):
    with pytest.raises(InputError, match=refusal):
        compress(replace(config, **change), reporter=Reporter())
    assert not Path(config.out).exists()


def test_a_folder_of_something_else_stays_as_it_is(config):
    other = Path(config.out) / "mine.txt"
    other.parent.mkdir()
    other.write_text("mine")
    with pytest.raises(InputError, match=r"holds 'mine\.txt'; allowed: a new or empty folder"):
        _compress(config)
    assert [*other.parent.iterdir()] == [other]


def test_each_stage_gets_the_settings_that_it_shares(config):
    config = replace(config, pick="1", accumulate=2, seed=5, onnx=True, license="mit", text_columns="text")
    assert config.search == SearchConfig(
        **{field.name: getattr(config, field.name) for field in fields(SearchConfig)} | {"out": config.search.out}
    )
    distilled = config.distil(Path("run"))
    assert distilled == DistilConfig(
        run="run", pick="1", steps=3, accumulate=2, seed=5, precision="fp32", out=str(config.folder / "distil")
    )
    tuned = config.finetune("model")
    assert (tuned.task, tuned.epochs, tuned.seeds, tuned.text_columns) == (config.task, 1, 1, "text")
    assert (config.export.onnx, config.export.license, config.export.task) == (True, "mit", config.task)
