"""Whole runs on toy inputs: what a folder holds, how it is continued, what is refused."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from processes import SERVER

from autodistil_search import InputError, SearchConfig, load_run, search
from autodistil_search.base.files import locked
from autodistil_search.base.progress import Reporter
from autodistil_search.nas import hardware
from autodistil_search.nas.evaluation import DISTURBANCE
from autodistil_search.report import findings
from autodistil_search.runs.training_inputs import resolve_training
from autodistil_search.spaces.cost import flops, params
from autodistil_search.spaces.search_space import load_space
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.teachers.loading import load_teacher

pytestmark = pytest.mark.usefixtures("undrawn")


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_run_leaves_everything_that_the_readme_names(toy_config):
    run = search(replace(toy_config, baselines="shapes"))
    expected = {
        "archive.log",
        "baselines.csv",
        "config.yaml",
        "engines.csv",
        "environment.json",
        "evaluations.csv",
        "frontier.csv",
        "frontier.png",
        "manifest.json",
        "progress.csv",
        "progress.png",
        "published.csv",
        "published.png",
        "report.html",
        "seconds.json",
        "summary.json",
        "superlm",
    }
    assert expected == {path.name for path in run.folder.iterdir() if not path.name.startswith(".")}
    superlm = {path.name for path in (run.folder / "superlm" / "debug").iterdir() if not path.name.startswith(".")}
    assert superlm == {
        "config.json",
        "held_out.csv",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "trainer_state.json",
        "training.csv",
        "training.png",
    }


def test_tables_hold_sizes_then_what_was_measured(toy_config, searched):
    run = searched(toy_config)
    sizes = ["space", "layers", "hidden_size", "mlp_ratio", "heads", "head_dim"]
    assert list(run.evaluations.columns) == [*sizes, "relation_loss", "flops", "params"]
    assert list(run.frontier.columns) == [*sizes, "relation_loss", "flops", "params", "knee"]
    assert len(run.evaluations) == 8
    assert run.frontier["knee"].sum() == 1
    vocabulary = load_teacher(toy_config.teacher).vocabulary
    for row in run.evaluations.to_dict("records"):
        ffn_size = round(row["hidden_size"] * row["mlp_ratio"])
        subnet = Subnet(row["layers"], row["hidden_size"], ffn_size, row["heads"], row["head_dim"])
        assert (row["flops"], row["params"]) == (flops(subnet), params(subnet, vocabulary))


def test_the_frontier_is_what_no_other_row_dominates(toy_config, searched):
    run = searched(replace(toy_config, engine="exhaustive", evaluations=16))
    assert run.summary["exact"]
    table = run.evaluations
    for row in table.itertuples():
        no_worse = (table.relation_loss <= row.relation_loss) & (table.flops <= row.flops)
        better = (table.relation_loss < row.relation_loss) | (table.flops < row.flops)
        match = (run.frontier[list(table.columns)] == table.loc[row.Index]).all(axis=1).any()
        assert match == (not (no_worse & better).any())


def test_nsga2_with_the_whole_budget_finds_the_exact_frontier(toy_config, searched):
    exact = searched(replace(toy_config, engine="exhaustive", evaluations=16, out=toy_config.out + "-exact"))
    nsga2 = search(replace(toy_config, evaluations=100))
    assert nsga2.summary["exact"]
    pd.testing.assert_frame_equal(nsga2.frontier, exact.frontier)


def test_the_same_settings_give_the_same_tables(toy_config, searched):
    first = searched(toy_config)
    second = search(replace(toy_config, out=toy_config.out + "-again"))
    for name in ("evaluations.csv", "frontier.csv"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()


def test_another_seed_gives_other_weights_and_questions(toy_config, searched):
    first = searched(toy_config).evaluations
    second = search(replace(toy_config, seed=1, out=toy_config.out + "-again")).evaluations
    assert not first.equals(second)


def test_a_finished_run_is_not_done_again(toy_config, searched):
    run = searched(toy_config)
    before = files(run.folder)
    lines = []
    reporter = Reporter()
    reporter.say = lines.append
    assert search(toy_config, reporter=reporter).frontier.equals(run.frontier)
    assert files(run.folder) == before
    assert lines[-1] == f"{run.folder} is already finished; showing its result"


def test_a_deleted_report_is_written_again_from_what_was_measured(toy_config):
    run = search(toy_config)
    before = files(run.folder)
    (run.folder / "report.html").unlink()
    search(toy_config)
    after = files(run.folder)
    for name in ("evaluations.csv", "report.html", "archive.log"):
        assert after[name][1] == before[name][1]
    for name in ("archive.log", "superlm/debug/model.safetensors", "superlm/debug/training.csv"):
        assert after[name] == before[name]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": 4}, "steps was 3 and is now 4"),
        ({"objectives": "acc,params"}, "objectives was 'acc,flops' and is now 'acc,params'"),
        ({"constraint": ["flops<=300M"]}, r"constraint was None and is now \['flops<=300M'\]"),
    ],
)
def test_a_folder_with_other_settings_is_refused_untouched(toy_config, change, named, searched):
    run = searched(toy_config)
    before = files(run.folder)
    with pytest.raises(InputError, match=named):
        search(replace(toy_config, **change))
    assert files(run.folder) == before


def test_a_text_that_changed_since_is_refused(toy_config, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(Path(toy_config.text[0]).read_text())
    toy_config = replace(toy_config, text=[str(text)])
    search(toy_config)
    text.write_text(text.read_text() + "\n\none more document\n")
    with pytest.raises(InputError, match="text was"):
        search(toy_config)


def test_a_space_that_changed_since_is_refused(toy_config, tmp_path):
    path = tmp_path / "mine.yaml"
    content = load_space("debug").to_dict() | {"name": "mine"}
    path.write_text(yaml.safe_dump(content))
    toy_config = replace(toy_config, space=str(path))
    search(toy_config)
    path.write_text(yaml.safe_dump(content | {"layers": [2]}))
    with pytest.raises(InputError, match="spaces was"):
        search(toy_config)


def test_a_folder_with_other_files_is_refused(toy_config):
    Path(toy_config.out).mkdir()
    (Path(toy_config.out) / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"holds 'thesis.tex' but no such run"):
        search(toy_config)


def test_a_folder_in_use_is_refused(toy_config):
    folder = Path(toy_config.out)
    folder.mkdir()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import filelock\nwith filelock.FileLock({str(folder / '.lock')!r}):\n print('held', flush=True); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="another process is using"):
            search(toy_config)
        holder.kill()


@pytest.mark.parametrize("command", ["train", "distil", "finetune", "validate-proxy", "report"])
def test_the_other_commands_refuse_a_folder_in_use_too(command, toy_config, searched, refusal, tmp_path):
    folder, run = tmp_path / "out", str(searched(toy_config).folder)
    folder.mkdir()
    table = tmp_path / "task.csv"
    table.write_text("text,label\n" + "".join(f"w{i} w{i % 7},{'ab'[i % 2]}\n" for i in range(40)))
    given = {
        "train": ["--space", "debug", "--teacher", toy_config.teacher, "--text", *toy_config.texts, "--seq-len", "16"],
        "finetune": [toy_config.teacher, "--task", str(table), "--max-length", "16"],
        "validate-proxy": [run, "--subnets", "4", "--bands", "1"],
    }
    with locked(folder / ".lock", folder, "--out"):
        told = refusal([command, *given.get(command, [run]), "--out", str(folder)])
        assert "another process is using" in told
        assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_run_killed_while_it_wrote_its_settings_goes_on(toy_config, searched):
    run = searched(toy_config)
    for name in ("environment.json", "manifest.json"):
        (run.folder / name).unlink()
    (run.folder / ".environment.json.new").write_text("{")
    with pytest.warns(UserWarning, match=r"manifest\.json is missing and will be written again"):
        assert search(toy_config).frontier.equals(run.frontier)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe\x00", b"{}"])
@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "environment.json",
        "seconds.json",
        "superlm/debug/model.safetensors",
        "superlm/debug/trainer_state.json",
    ],
)
def test_a_damaged_file_is_named_in_one_line(toy_config, name, content, searched):
    run = searched(toy_config)
    (run.folder / "report.html").unlink()  # something is left to do
    path = run.folder / name
    path.write_bytes(content)
    if (name, content) == ("seconds.json", b"{}"):  # seconds start at zero
        assert search(toy_config).frontier.equals(run.frontier)
        return
    with pytest.raises(InputError) as refusal:
        search(toy_config)
    told = (
        f"{re.escape(path.name)} is damaged",
        f"{re.escape(path.name)} is not the file",
        "a run with other settings",
    )
    assert re.match(rf"^[^\n]*({'|'.join(told)})[^\n]*$", str(refusal.value))


@pytest.mark.parametrize("line", [b"[]", b"{}", b"\xff\xfe\x00", b"no journal"])
def test_a_damaged_archive_is_named_in_one_line(toy_config, line, searched):
    run = searched(toy_config)
    (run.folder / "report.html").unlink()
    lines = (run.folder / "archive.log").read_bytes().splitlines()
    lines[2] = line
    (run.folder / "archive.log").write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(InputError, match=r"^[^\n]*archive\.log is damaged[^\n]*$"):
        search(toy_config)


def test_a_damaged_checkpoint_is_named_in_one_line(toy_config, searched):
    folder = Path(toy_config.out) / "superlm" / "debug"
    run = searched(toy_config)
    (run.folder / "report.html").unlink()
    for name in ("trainer_state.json", "manifest.json"):
        (folder / name).unlink()
    (folder / "checkpoint-00000003.safetensors").write_bytes(b"garbage")
    (folder / "checkpoint-00000003.json").write_text("{}")
    with (
        pytest.warns(UserWarning, match=r"checkpoint-00000003\.safetensors is damaged"),
        pytest.raises(InputError, match=r"^all 1 checkpoints in [^\n]* are damaged"),
    ):
        search(toy_config)


def test_a_superlm_that_is_not_the_one_trained_is_refused(toy_config, searched):
    run = searched(toy_config)
    (run.folder / "report.html").unlink()
    path = run.folder / "superlm" / "debug" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^[^\n]*model\.safetensors is damaged: its sha256 is [^\n]*$"):
        search(toy_config)


def test_another_precision_does_not_go_on_with_a_run(toy_config, searched):
    searched(replace(toy_config, precision="fp32"))
    path = Path(toy_config.out) / "environment.json"
    path.write_text(path.read_text().replace("fp32 on cpu", "bf16 on cpu"))
    path.with_name("manifest.json").unlink()
    with pytest.raises(InputError, match="computed_in was 'bf16 on cpu' and is now 'fp32 on cpu'"):
        search(replace(toy_config, precision="fp32"))


def test_an_empty_folder_will_do(toy_config):
    Path(toy_config.out).mkdir()
    with pytest.raises(InputError):
        search(replace(toy_config, text=["missing.txt"]))
    assert len(search(toy_config).evaluations) == 8


def test_a_run_means_the_same_from_another_folder(toy_config, monkeypatch):
    texts = Path(toy_config.texts[0])
    monkeypatch.chdir(texts.parent)
    relative = replace(toy_config, text=[texts.name], teacher=os.path.relpath(toy_config.teacher))
    run = search(relative)
    monkeypatch.chdir("/")
    assert search(toy_config).frontier.equals(run.frontier)


def test_a_space_too_large_for_the_machine_is_refused(toy_config, tmp_path):
    path = tmp_path / "huge.yaml"
    path.write_text(yaml.safe_dump(load_space("debug").to_dict() | {"name": "huge", "hidden_size": [1_000_000]}))
    with pytest.raises(InputError, match=r"needs .* GB for weights and optimizer; .* has [\d,.]+ GB free"):
        search(replace(toy_config, space=str(path)))


def test_refused_input_leaves_no_folder(toy_config):
    with pytest.raises(InputError):
        search(replace(toy_config, text=["missing.txt"]))
    assert not Path(toy_config.out).exists()


def test_the_callers_random_numbers_are_left_alone(toy_config):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    search(toy_config)
    assert torch.rand(3).tolist() == expected.tolist()


def test_costs_alone_need_no_training(toy_config):
    run = search(replace(toy_config, objectives="flops,params", text=["does-not-exist.txt"], evaluations=16))
    assert list(run.evaluations.columns)[-2:] == ["flops", "params"]
    assert not (run.folder / "superlm").exists()
    assert len(run.frontier) == 1  # the smallest subnet is cheapest in both
    with pytest.raises(InputError, match="no SuperLM"):
        run.student()


@pytest.mark.parametrize(
    ("names", "columns"),
    [("params,acc", ["relation_loss", "params"]), ("acc", ["relation_loss"]), ("flops,acc,params", None)],
)
def test_objectives_in_any_number_and_order(toy_config, names, columns):
    run = search(replace(toy_config, objectives=names))
    table, wanted = run.evaluations, columns or ["relation_loss", "flops", "params"]
    best = run.frontier[wanted].min()
    assert (best == table[wanted].min()).all()
    assert run.summary["objectives"] == [{"acc": "relation_loss"}.get(name, name) for name in names.split(",")]


def test_the_mse_loss_is_reported_under_its_own_name(toy_config):
    run = search(replace(toy_config, loss="mse"))
    assert "relation_mse" in run.evaluations.columns
    assert "relation_loss" not in run.evaluations.columns


def test_several_spaces_give_one_frontier(toy_config, tmp_path):
    path = tmp_path / "wider.yaml"
    path.write_text(yaml.safe_dump(load_space("debug").to_dict() | {"name": "wider", "hidden_size": [64]}))
    run = search(replace(toy_config, space=f"debug,{path}", engine="exhaustive", evaluations=16))
    assert run.evaluations["space"].value_counts().to_dict() == {"debug": 16, "wider": 8}
    values = run.evaluations[["relation_loss", "flops"]].to_numpy()
    on_frontier = [not ((values <= row).all(1) & (values < row).any(1)).any() for row in values]
    assert len(run.frontier) == sum(on_frontier)


def test_spaces_with_other_relation_heads_are_not_compared(toy_config, tmp_path):
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(load_space("debug").to_dict() | {"name": "other", "relation_heads": 2}))
    with pytest.raises(InputError, match="relation_heads are debug 4, other 2"):
        search(replace(toy_config, space=f"debug,{path}"))


def test_bounds_hold_for_all_that_is_scored(toy_config, searched):
    free = searched(replace(toy_config, engine="exhaustive", evaluations=16, out=toy_config.out + "-free")).evaluations
    limit = int(free["flops"].median())
    run = search(replace(toy_config, constraint=[f"flops<={limit}"], evaluations=16))
    assert len(run.evaluations) == (free["flops"] <= limit).sum()
    assert run.summary["exact"]


def test_what_breaks_a_measured_constraint_is_scored_but_not_on_the_frontier(toy_config, searched):
    free = searched(replace(toy_config, engine="exhaustive", evaluations=16, out=toy_config.out + "-free"))
    limit = float(free.frontier["relation_loss"].median())
    bounded = replace(toy_config, constraint=[f"acc<={limit!r}"], engine="exhaustive", evaluations=16)
    run = search(bounded)
    kept = free.frontier[free.frontier["relation_loss"] <= limit]
    pd.testing.assert_frame_equal(
        run.frontier.drop(columns="knee"), kept.drop(columns="knee").reset_index(drop=True), check_exact=True
    )
    assert len(run.evaluations) == 16
    assert load_run(run.folder).report.constraints == run.report.constraints


@pytest.mark.parametrize(("init", "lr", "steps", "learnt"), [("random", 1e-9, 3, False), ("pca", 4e-3, 60, True)])
def test_a_superlm_that_has_learnt_nothing_is_not_passed_off_as_a_frontier(toy_config, init, lr, steps, learnt):
    run = search(replace(toy_config, init=init, lr=lr, steps=steps))
    said = [note for note in run.report.notes if "hardly learnt anything" in note]
    assert len(said) == (not learnt)
    assert findings.read(run.summary) == list(run.report.findings)
    kinds = [found["kind"] for found in run.summary["findings"]]
    assert {"training", "not_validated", "one_seed"} <= set(kinds)
    assert kinds.count("learnt_little") == (not learnt)
    assert kinds.count("watched_learnt_little") == (not learnt)
    assert dict(run.report.conditions)["text"] == ", ".join(run.config.texts)
    assert all("lower --lr (it was 1e-09)" in note for note in said)


@pytest.mark.parametrize(
    ("spaces", "lr", "expected"),
    [("tiny", None, [1.2e-3]), ("tiny,small,base", None, [1.2e-3, 5.8e-4, 4.3e-4]), ("tiny,small", 2e-3, [2e-3, 2e-3])],
)
def test_wide_and_deep_spaces_train_at_a_lower_rate_unless_told_otherwise(toy_config, spaces, lr, expected):
    config = replace(toy_config, space=spaces, lr=lr, relation_heads=4)
    materials = resolve_training(config, needs_text=False)
    assert [materials.options_of(space.largest).lr for space in materials.spaces] == expected


def test_where_nothing_scored_keeps_a_measured_constraint_the_run_says_so_and_keeps_what_it_scored(toy_config):
    said = (
        r"none of the 8 scored subnets keeps relation_loss<=1e-09; best values reached: relation_loss [\d.]+; allowed:"
    )
    with pytest.raises(InputError, match=said):
        search(replace(toy_config, constraint=["acc<=.000000001"], baselines="shapes"))
    assert "baselines" not in json.loads((Path(toy_config.out) / "seconds.json").read_text())  # nor before it says so
    assert (Path(toy_config.out) / "archive.log").read_text().count("measured") == 8


def test_a_bound_that_could_be_kept_when_a_search_began_is_not_tried_out_again(toy_config, monkeypatch):
    """A machine may be busier when a search goes on, or when a worker comes along."""
    config = replace(toy_config, constraint=["latency<=5000"], measured_seq_len=8)
    search(config)
    for name in ("summary.json", "manifest.json"):  # as of a search that was killed at its end
        (Path(config.out) / name).unlink()
    monkeypatch.setattr(hardware, "latency", lambda *_, **__: {"latency": 1e6, "latency_iqr": 0.0})
    assert len(search(config).evaluations) == 8
    with pytest.raises(InputError, match="latency<=5000 cannot be kept"):
        search(replace(config, out=config.out + "-new"))


def test_measured_costs_are_objectives_like_others(toy_config):
    chosen = replace(toy_config, objectives="acc,latency,memory,throughput,size_mb", measured_seq_len=8)
    chosen = replace(chosen, precision="fp32")  # auto takes bfloat16 where the processor has it
    run = search(replace(chosen, throughput_batch=2))
    names = ["relation_loss", "latency", "memory", "throughput", "size_mb"]
    assert [objective.name for objective in run.report.objectives] == names
    assert (run.evaluations[[*names, "latency_iqr"]] >= 0).all(axis=None)
    assert run.evaluations["size_mb"].tolist() == pytest.approx((4e-6 * run.evaluations["params"]).tolist())
    assert run.report.box["throughput"][1] == 0 < run.report.box["throughput"][0]
    assert 0 < run.report.hypervolume_share < 1
    assert "1 x 8 tokens, cpu fp32, " in run.summary["conditions"]["latency"]
    assert "2 x 8 tokens, cpu fp32, " in run.summary["conditions"]["throughput"]
    pd.testing.assert_frame_equal(search(replace(chosen, throughput_batch=2)).evaluations, run.evaluations)


@pytest.mark.parametrize("objective", ["latency", "predicted_latency"])
def test_a_search_says_that_its_latencies_were_disturbed_and_keeps_the_share(objective, toy_config, monkeypatch):
    def latency(student, *_, **__):
        return {"latency": float(student.num_parameters()), "latency_iqr": 0.1, DISTURBANCE: 0.43}

    monkeypatch.setattr(hardware, "latency", latency)
    run = search(replace(toy_config, objectives=f"params,{objective}", measured_seq_len=8, latency_samples=8))
    (finding,) = (finding for finding in run.report.findings if finding.kind == findings.LATENCY_DISTURBED)
    assert finding.values["most"] == 0.43
    assert finding.values["disturbed"] == finding.values["measured"]
    assert str(finding) in run.summary["notes"]
    if objective == "latency":
        assert (run.evaluations[DISTURBANCE] == 0.43).all()


def test_costs_alone_are_searched_without_training_also_measured_ones(toy_config):
    run = search(replace(toy_config, objectives="memory,params_non_embedding", measured_seq_len=8))
    assert not (run.folder / "superlm").exists()
    assert (run.evaluations["memory"] > 4 * run.evaluations["params"]).all()


def test_an_unreachable_bound_says_what_the_space_has(toy_config):
    least = re.escape(f"{flops(load_space('debug').smallest):,.4g}")
    with pytest.raises(InputError, match=rf"--constraint flops<=1000 cannot be kept.* goes from {least} to"):
        search(replace(toy_config, constraint=["flops<=1K"]))
    assert not (Path(toy_config.out) / "superlm").exists()


def test_a_student_is_the_subnet_that_was_scored(toy_config, tmp_path, searched):
    run = searched(toy_config)
    student = run.student()
    assert student.num_parameters() == run.knee["params"]
    row = run.evaluations.iloc[0]
    student = run.student(row)
    assert student.num_parameters() == row["params"]
    assert student.config.num_hidden_layers == row["layers"]


def test_a_run_is_read_back_as_it_was(toy_config):
    run = search(toy_config)
    again = load_run(run.folder)
    pd.testing.assert_frame_equal(run.frontier, again.frontier)
    assert run.summary == again.summary
    with pytest.raises(InputError, match="no finished run"):
        load_run(run.folder / "superlm")


def test_the_summary_states_what_a_reader_needs(toy_config, searched):
    summary = json.loads((searched(toy_config).folder / "summary.json").read_text())
    loss, cost, _ = summary["columns"]
    assert summary["objectives"] == ["relation_loss", "flops"]
    assert (loss["name"], loss["direction"]) == ("relation_loss", "minimize")
    assert cost["unit"] == "multiply-adds, 128 tokens, batch 1"
    assert summary["evaluations"] == {"debug": 8}
    assert 0 <= summary["hypervolume_share"] <= 1
    assert set(summary["box"]) == {"relation_loss", "flops"}
    assert set(summary["seconds"]) == {"prepare", "train debug", "search debug", "report"}
    assert summary["versions"]["torch"]


def run_in_child(settings: dict) -> None:
    search(SearchConfig.from_dict(settings))


def kill_when(seen: set, paths: list[Path], settings: dict) -> bool:
    """Run in a child that is killed as soon as the sizes of `paths` are new; whether it was."""
    process = SERVER.Process(target=run_in_child, args=(settings,))
    process.start()
    while process.is_alive():
        state = tuple(path.stat().st_size if path.exists() else 0 for path in paths)
        if state not in seen and any(state):
            seen.add(state)
            process.kill()
        time.sleep(0.001)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def test_a_run_killed_at_any_moment_ends_as_one_never_stopped(toy_config):
    whole = search(replace(toy_config, steps=6))
    killed = replace(toy_config, steps=6, out=toy_config.out + "-killed")
    folder = Path(killed.out)
    watched = [
        folder / name for name in ("superlm/debug/training.csv", "superlm/debug/trainer_state.json", "archive.log")
    ]
    seen: set = set()
    settings = {**killed.to_dict(), "out": killed.out}
    while kill_when(seen, watched if len(seen) < 8 else [], settings):
        pass
    assert len(seen) >= 6
    for name in ("evaluations.csv", "frontier.csv", "superlm/debug/model.safetensors", "superlm/debug/training.csv"):
        assert (folder / name).read_bytes() == (whole.folder / name).read_bytes(), name


def test_a_space_of_unlike_layers_is_searched_and_its_students_are_those_of_their_rows(toy_config, tmp_path):
    space = load_space("debug").to_dict() | {"name": "unlike", "per_layer": ["mlp_ratio", "heads"]}
    (tmp_path / "unlike.yaml").write_text(yaml.safe_dump(space))
    run = search(replace(toy_config, space=str(tmp_path / "unlike.yaml"), seed=5, baselines="random"))
    for table in (run.evaluations, run.baselines):  # some are trained alone
        assert table["heads"].astype(str).str.contains("-").any()
    again = load_run(run.folder)
    vocabulary = load_teacher(toy_config.teacher).vocabulary
    for row in again.evaluations.to_dict("records"):
        student = again.student(pd.Series(row))
        assert student.config.subnet == Subnet.from_row(row)
        assert row["params"] == sum(each.numel() for each in student.parameters())
        assert row["flops"] == flops(student.config.subnet)
        assert row["params"] == params(student.config.subnet, vocabulary)
    unlike = next(row for row in run.frontier.to_dict("records") if "-" in str(row["heads"]))
    assert f">{unlike['heads']}<" in (run.folder / "report.html").read_text()
