"""`validate-proxy`: subnets of like cost, measured in several ways, and how these rank them."""

import json
import math
import shutil
from collections import Counter
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import pytest
from rounding import loss_rounding
from scipy.stats import kendalltau

from autodistil_search import load_run
from autodistil_search.base.errors import InputError
from autodistil_search.cli.main import main
from autodistil_search.nas import objectives
from autodistil_search.nas.cost_bands import draw_in_bands
from autodistil_search.runs.validate_proxy import validate_proxy
from autodistil_search.settings.validate_proxy import ValidateConfig
from autodistil_search.spaces.cost import flops
from autodistil_search.spaces.search_space import load_space

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.mark.parametrize("name", ["tiny", "small", "elastic"])
def test_subnets_are_drawn_within_narrow_bands_over_the_whole_range(name):
    space = load_space(name)
    drawn = draw_in_bands([space], 24, 4, 0.1, seed=0)
    assert len({subnet for _, _, subnet in drawn}) == 24
    assert [band for band, _, _ in drawn] == sorted([0, 1, 2, 3] * 6)
    low, high = (math.log(flops(end)) for end in space.ends)
    for band, _, subnet in drawn:
        middle = low + (high - low) * (band + 0.5) / 4
        assert abs(math.log(flops(subnet)) - middle) < 0.1
    assert drawn == draw_in_bands([space], 24, 4, 0.1, seed=0)
    assert drawn != draw_in_bands([space], 24, 4, 0.1, seed=1)


def test_spaces_that_reach_a_band_have_equally_many_subnets_of_it():
    tiny, _, small = spaces = [load_space(name) for name in ("tiny", "shallow", "small")]
    drawn = draw_in_bands(spaces, 42, 4, 0.1, seed=0)
    low, high = math.log(flops(tiny.smallest)), math.log(flops(small.largest))
    counts = Counter((band, space) for band, space, _ in drawn)
    for band in range(4):
        middle = math.exp(low + (high - low) * (band + 0.5) / 4)
        assert all(abs(math.log(flops(subnet) / middle)) < 0.1 for at, _, subnet in drawn if at == band)
        reach = Counter(
            space.name
            for space in spaces
            for genome in space.genomes()
            if abs(math.log(flops(space.decode(genome)) / middle)) <= math.log(1.1)
        )
        most = max(counts[band, name] for name in reach)
        assert all(min(reach[name], most - 1) <= counts[band, name] for name in reach)
        assert sum(counts[band, name] for name in reach) == (11, 11, 10, 10)[band]
    assert len({space for _, space, _ in drawn}) == 3


def test_where_a_band_is_nearly_empty_the_nearest_are_taken():
    space = load_space("debug")
    drawn = draw_in_bands([space], 16, 4, 0.001, seed=0)
    assert len({subnet for _, _, subnet in drawn}) == space.size == 16
    two = [space, replace(space, name="other")]
    assert len(set(draw_in_bands(two, 32, 4, 0.001, seed=0))) == 32  # the same sizes, of two SuperLMs


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.csv"
    rows = [f"w{i % 9} w{i % 5},w{i % 7} w{i % 5},{i % 11 / 10}" for i in range(60)]
    path.write_text("\n".join(["sentence1,sentence2,label", *rows]))
    return path


LABEL_FREE = ["relation_loss", "hidden_loss", "sentence_similarity", "cka", "combined_loss"]
ALONE = [f"alone_{column}" for column in LABEL_FREE]


@pytest.fixture
def run(toy_config, searched):
    return searched(toy_config)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "mail.csv"
    path.write_text("subject,folder\n" + "".join(f"w{i % 40} w{i % 7},{'ab'[i % 40 < 20]}\n" for i in range(100)))
    return path


@pytest.fixture
def config(run, table):
    return ValidateConfig(
        run=str(run.folder), subnets=8, bands=2, alone_steps=3, probe=str(table), task=str(table), train_rows=40,
        text_columns="subject", label_column="folder", precision="fp32",
    )  # fmt: skip


@pytest.mark.drawn
def test_every_measure_is_there_and_ranks_are_those_of_the_rows(run, config):
    found = validate_proxy(config)
    rows = pd.read_csv(found.folder / "subnets.csv")
    shared = [*LABEL_FREE, "mail_accuracy_probe"]
    columns = ["flops", *shared, *ALONE, "mail_accuracy"]
    assert [each.column for each in found.measures] == columns
    assert set(rows["space"]) == {"debug"}
    assert rows[columns].notna().all(axis=None)
    both = rows.merge(run.evaluations, on=["layers", "hidden_size", "mlp_ratio", "heads"])
    assert len(both)
    scored = both["relation_loss_y"].to_list()
    assert both["relation_loss_x"].to_list() == pytest.approx(scored, abs=loss_rounding(16))
    ranking = found.ranking.set_index(["measure", "target", "scope"])
    assert len(ranking) == 2 * (2 * len(ALONE) + 1 + len(shared) + len(ALONE))
    expected = kendalltau(-rows["relation_loss"], -rows["alone_relation_loss"]).statistic
    assert ranking.loc[("relation_loss", "alone_relation_loss", "all"), "kendall"] == pytest.approx(expected)
    expected = kendalltau(rows["flops"], -rows["alone_relation_loss"]).statistic
    assert ranking.loc[("flops", "alone_relation_loss", "all"), "kendall"] == pytest.approx(expected)
    assert (found.folder / "ranking.png").stat().st_size > 10_000
    assert not (found.folder / "alone").exists()
    notes = json.loads((found.folder / "summary.json").read_text())["notes"]
    assert any("tau" in note for note in notes)  # before it, whether toys are fine-tuned to one accuracy


def test_a_validation_goes_on_where_it_was_stopped(config, tmp_path, monkeypatch):
    from autodistil_search.runs import validate_proxy as module

    config = replace(config, subnets=4, probe=None)
    whole = validate_proxy(replace(config, out=str(tmp_path / "whole")))
    row, left = module._LoadedValidation.run, [3]

    def failing(self, *arguments):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return row(self, *arguments)

    monkeypatch.setattr(module._LoadedValidation, "run", failing)
    with pytest.raises(KeyboardInterrupt):
        validate_proxy(config)
    assert len(pd.read_csv(Path(config.folder) / "subnets.csv")) == 3
    left[0] = 1
    pd.testing.assert_frame_equal(validate_proxy(config).measured, whole.measured)


def test_measurements_do_not_depend_on_the_executor_nor_on_the_order_in_which_they_end(config, tmp_path, monkeypatch):
    from autodistil_search.runs import validate_proxy as module

    config = replace(config, subnets=4)
    alone = validate_proxy(replace(config, out=str(tmp_path / "alone")))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        run = validate_proxy(replace(config, out=str(tmp_path / "workers")), executor=pool)
    real, last_first = module._LoadedValidation.run, [3, 2, 1, 0]

    class Backwards(Executor):
        """Runs no task before all are there; then the last is done first."""

        def __init__(self):
            self._asked = []

        def submit(self, call, *given):
            self._asked.append((future := Future(), call, given))
            if len(self._asked) == len(last_first):
                for index in last_first:
                    future, call, given = self._asked[index]
                    future.set_result(call(*given))
                future = self._asked[-1][0]
            return future

    order = []

    def run_in_order(self, task):
        order.append(task.number)
        return real(self, task)

    monkeypatch.setattr(module._LoadedValidation, "run", run_in_order)
    backwards = validate_proxy(replace(config, out=str(tmp_path / "backwards")), executor=Backwards())
    assert order == last_first
    for other in (run, backwards):
        pd.testing.assert_frame_equal(other.measured, alone.measured)
        assert (other.folder / "subnets.csv").read_bytes() == (alone.folder / "subnets.csv").read_bytes()
        assert (other.folder / "ranking.csv").read_bytes() == (alone.folder / "ranking.csv").read_bytes()


def test_every_setting_changes_what_is_measured(config, tmp_path):
    numbers = tmp_path / "numbers.csv"
    numbers.write_text("subject,folder\n" + "".join(f"w{i % 40} w{i % 7},{i % 40 / 7}\n" for i in range(100)))
    small = replace(config, subnets=2, bands=1, probe=None, task=str(numbers))
    first = validate_proxy(replace(small, out=str(tmp_path / "first")))
    changes = {"alone_steps": 5, "alone_lr": 1e-5, "seed": 1, "lr": 1e-6, "train_rows": 20, "epochs": 1}
    for name, value in changes.items():
        other = validate_proxy(replace(small, out=str(tmp_path / name), **{name: value}))
        assert not first.measured.equals(other.measured), name


def test_what_is_not_asked_for_is_not_measured(config, tmp_path):
    found = validate_proxy(replace(config, probe=None, task=None, out=str(tmp_path / "a")))
    assert [each.column for each in found.measures] == ["flops", *LABEL_FREE, *ALONE]
    found = validate_proxy(replace(config, probe=None, alone_steps=0, out=str(tmp_path / "b")))
    assert [each.column for each in found.measures] == ["flops", *LABEL_FREE, "mail_accuracy"]


def test_pairs_are_ranked_by_the_student_that_is_measured(config, pairs):
    of_pairs = replace(config, probe=None, task=None, text_columns=None, label_column=None, cosine=str(pairs))
    alone = validate_proxy(of_pairs)
    assert alone.measures[-1].label.endswith("cosines, trained alone")
    shared = validate_proxy(replace(of_pairs, alone_steps=0, out=str(alone.folder) + "-shared"))
    assert [each.column for each in shared.measures] == ["flops", *LABEL_FREE, "pairs_cosine"]
    assert shared.measures[-1].label.endswith("cosines, shared")
    assert not shared.measured["pairs_cosine"].equals(alone.measured["pairs_cosine"])


def test_from_the_command_line_and_refusals(run, table, capsys, refusal, printed_json, tmp_path, monkeypatch):
    arguments = ["validate-proxy", str(run.folder), "--subnets", "4", "--bands", "2", "--alone-steps", "2"]
    monkeypatch.setenv("COLUMNS", "200")
    assert main([*arguments, "--out", str(tmp_path / "v")]) == 0
    printed = capsys.readouterr().out
    assert "for alone_cka" in printed
    assert "minus the default proxy" in printed
    assert "FLOPs alone" not in printed  # the table has it
    found = printed_json([*arguments, "--out", str(tmp_path / "v")])
    assert len(found["measured"]) == 4
    assert {row["measure"] for row in found["ranking"]} <= {each["column"] for each in found["measures"]}
    assert "two or more in each band" in refusal(["validate-proxy", str(run.folder), "--subnets", "5", "--bands", "3"])
    assert "--subnets 17; allowed: at most 16, all subnets of space 'debug'" in refusal(
        ["validate-proxy", str(run.folder), "--subnets", "17"]
    )
    assert "something that the proxy" in refusal(["validate-proxy", str(run.folder), "--alone-steps", "0"])
    assert "--space names debug, debug; allowed: each once" in refusal(
        ["validate-proxy", str(run.folder), "--space", "debug,debug"]
    )
    assert "has debug" in refusal(["validate-proxy", str(run.folder), "--space", "tiny"])
    assert "holds no finished run" in refusal(["validate-proxy", str(tmp_path / "nowhere")])


def test_what_all_score_alike_and_what_broke_is_said(run, config, tmp_path, monkeypatch):
    from autodistil_search.nas import task_proxies

    monkeypatch.setattr(task_proxies.TaskProxy, "score", lambda *_: 0.75)
    config = replace(config, subnets=4, probe=None)
    found = validate_proxy(replace(config, alone_lr=0.5, alone_steps=10))
    assert any("mail accuracy, fine-tuned is the same for all" in note for note in found.notes)
    assert any("learnt nothing when they were trained alone, at a peak learning rate of 0.5" in n for n in found.notes)
    assert not any("nan" in note for note in found.notes)
    with_sense = validate_proxy(replace(config, alone_lr=3e-3, alone_steps=40, out=str(tmp_path / "b")))
    assert not any("learnt nothing" in note for note in with_sense.notes)


def test_two_spaces_and_two_tasks_are_compared_with_the_default_proxy(toy_config, searched, table, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(Path("search_spaces/debug.yaml").read_text().replace("name: debug", "name: other"))
    run = searched(replace(toy_config, space=f"debug,{other}"))
    news = tmp_path / "news.csv"
    news.write_text(table.read_text())
    settings = {"text_columns": "subject", "label_column": "folder", "train_rows": 40, "precision": "fp32"}
    config = ValidateConfig(
        run=str(run.folder), subnets=8, bands=2, alone_steps=0, task=f"{table},{news}", epochs=1, **settings
    )
    found = validate_proxy(config)
    rows = found.measured
    assert rows.groupby(["band", "space"]).size().to_list() == [2, 2, 2, 2]
    assert rows["tasks_mean"].to_list() == pytest.approx(
        ((rows["mail_accuracy"] + rows["news_accuracy"]) / 2).to_list()
    )
    both = rows.merge(run.evaluations, on=["space", "layers", "hidden_size", "mlp_ratio", "heads"])
    assert set(both["space"]) == {"debug", "other"}
    scored = both["relation_loss_y"].to_list()
    assert both["relation_loss_x"].to_list() == pytest.approx(scored, abs=loss_rounding(16))
    ranking = found.ranking.set_index(["target", "measure", "scope"])
    assert set(ranking.index.get_level_values("target")) == {"mail_accuracy", "news_accuracy", "tasks_mean"}
    over = ranking["over_default"].loc["tasks_mean", :, "within bands"]
    default_column = dict(zip(objectives.LABEL_FREE, LABEL_FREE, strict=True))[objectives.DEFAULT_PROXY]
    assert over[["flops", default_column]].isna().all()
    own, default = (
        ranking.loc[("tasks_mean", name, "within bands"), "kendall"] for name in ("hidden_loss", default_column)
    )
    if math.isfinite(own):
        assert over["hidden_loss"] == pytest.approx(own - default)
        assert [f.values["difference"][0] for f in found.findings if f.kind == "versus_default_proxy"]
    (check,) = load_run(run.folder).report.runs[0].checks
    assert check.fine_tuned
    (tmp_path / "again").mkdir()
    again = shutil.copy(table, tmp_path / "again" / table.name)
    with pytest.raises(InputError, match="--task names 2 tasks with column mail_accuracy; allowed: one"):
        validate_proxy(replace(config, task=f"{table},{again}", out=str(tmp_path / "twice")))
