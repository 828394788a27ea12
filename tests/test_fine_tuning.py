"""Fine-tuning: learns what there is to learn, resumes exactly, never looks at the reported rows before the end."""

import json
import random
import signal
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from processes import SERVER, killed_after_saving
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from autodistil_search.base.errors import InputError
from autodistil_search.base.pretrained import load_tokenizer, quiet_transformers
from autodistil_search.base.progress import Reporter
from autodistil_search.cli.main import main
from autodistil_search.runs.finetune import finetune, load_classifier
from autodistil_search.settings.finetune import FinetuneConfig
from autodistil_search.tasks.fine_tuning import FinetuneOptions, Prepared, fine_tune, predict, score_of_one_answer
from autodistil_search.tasks.labelled_data import Rows, Task
from autodistil_search.teachers.families import FAMILIES

OTHERS = [f"w{i}" for i in range(20, 90)]
OPTIONS = FinetuneOptions(epochs=2, batch_size=16, lr=2e-3)


def rows(n, seed=0, pairs=False):
    """Which half of twenty words the first one is of: a rule that an encoder can learn from a few hundred rows."""
    rng = random.Random(seed)
    texts = [[f"w{rng.randrange(20)}", *rng.choices(OTHERS, k=rng.randrange(2, 7))] for _ in range(n)]
    second = [" ".join(reversed(words)) for words in texts] if pairs else None
    return Rows([" ".join(words) for words in texts], second, [float(int(words[0][1:]) < 10) for words in texts])


def toy_task(labels=("high", "low"), n=240, pairs=False):
    metrics = ("accuracy", "f1") if labels else ("pearson", "spearman")
    return Task("toy", labels, metrics, rows(n, 1, pairs), rows(60, 2, pairs), "made up")


@pytest.fixture
def classifier(teacher_folder):
    """A function that gives the same classifier each time, and its tokenizer."""
    folder = str(teacher_folder())
    return lambda task=None, seed=0: load_classifier("toy", folder, task or toy_task(), seed)


@pytest.mark.parametrize("pairs", [False, True])
def test_what_can_be_learnt_is_learnt(pairs, classifier, tokenizer, cpu):
    task = toy_task(pairs=pairs)
    prepared, model = Prepared(task, tokenizer), classifier(task)
    before = predict(model, prepared.dev, cpu)
    ended = fine_tune(model, prepared, replace(OPTIONS, epochs=5), cpu)
    assert ended.dev["accuracy"] > 0.9
    assert ended.dev["accuracy"] == (predict(model, prepared.dev, cpu).argmax(-1) == task.dev.labels).mean()
    assert ended.epochs[ended.epoch - 1] == max(ended.epochs) == ended.chosen_by
    assert not np.allclose(before, predict(model, prepared.dev, cpu))


def test_numbers_are_learnt_by_squared_error(classifier, tokenizer, cpu):
    task = toy_task(labels=(), n=480)
    ended = fine_tune(classifier(task), Prepared(task, tokenizer), replace(OPTIONS, epochs=5), cpu)
    assert ended.dev["pearson"] > 0.8


def test_the_best_epoch_is_kept_and_chosen_without_the_reported_rows(classifier, tokenizer, cpu):
    task = toy_task()
    model, options = classifier(), replace(OPTIONS, epochs=3, lr=5e-3)
    ended = fine_tune(model, Prepared(task, tokenizer), options, cpu)
    prepared = Prepared(task, tokenizer)
    right = predict(model, prepared.choose, cpu).argmax(-1) == prepared.choose.labels
    assert right.mean() == ended.chosen_by
    turned = replace(task, dev=replace(task.dev, labels=[1 - label for label in task.dev.labels]))
    other = classifier()
    again = fine_tune(other, Prepared(turned, tokenizer), options, cpu)
    assert again.epochs == ended.epochs
    assert again.dev["accuracy"] == pytest.approx(1 - ended.dev["accuracy"])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_predictions_do_not_depend_on_the_rows_beside_them(classifier, tokenizer, cpu):
    model, prepared = classifier(), Prepared(toy_task(), tokenizer)
    together = predict(model, prepared.dev, cpu)
    for i in (0, 17, 59):
        inputs, _ = prepared.dev.batch([i], "cpu")
        np.testing.assert_allclose(model(**inputs).logits.detach().numpy()[0], together[i], atol=1e-5)


def test_an_epoch_has_all_rows_once_in_an_order_of_its_own(tokenizer):
    train = Prepared(toy_task(), tokenizer).train
    first, second = (train.shuffled(16, seed) for seed in ("0-0", "0-1"))
    assert sorted(i for batch in first for i in batch) == list(range(len(train)))
    assert first != second
    assert first == train.shuffled(16, "0-0")
    assert max(map(len, first)) == 16


def test_seeds_and_only_seeds_change_the_result(classifier, tokenizer, cpu):
    prepared = Prepared(toy_task(), tokenizer)

    def weights(seed):
        model = classifier(seed=seed)
        fine_tune(model, prepared, replace(OPTIONS, seed=seed, epochs=1), cpu)
        return torch.cat([each.flatten() for each in model.parameters()])

    state = torch.random.get_rng_state()
    assert torch.equal(weights(0), weights(0))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(weights(0), weights(1))


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("stops", [[1, 13, 14], [20]])
def test_a_training_stopped_anywhere_ends_as_one_never_stopped(
    stops, classifier, tokenizer, cpu, tmp_path, monkeypatch
):
    prepared = Prepared(toy_task(), tokenizer)
    options = replace(OPTIONS, losses="labels,hidden,logits")
    teacher = classifier(seed=5)
    whole = classifier()
    ended = fine_tune(whole, prepared, options, cpu, teacher=teacher)
    from autodistil_search.distillation.checkpoints import Checkpoints

    monkeypatch.setattr(Checkpoints, "due", True)
    save = Checkpoints.save
    for stop in stops:

        def failing(self, step, text, stop=stop):
            save(self, step, text)
            if step >= stop:
                raise StoppedError

        monkeypatch.setattr(Checkpoints, "save", failing)
        with pytest.raises(StoppedError):
            fine_tune(classifier(), prepared, options, cpu, tmp_path / "t", teacher=teacher)
    monkeypatch.setattr(Checkpoints, "save", save)
    resumed = classifier()
    assert fine_tune(resumed, prepared, options, cpu, tmp_path / "t", teacher=teacher) == ended
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


@pytest.fixture
def short(classifier, tokenizer, cpu, tmp_path, monkeypatch):
    """A training of four epochs of three steps, a checkpoint after each step, and its result when never stopped."""
    from autodistil_search.distillation.checkpoints import Checkpoints

    monkeypatch.setattr(Checkpoints, "due", True)
    prepared, options = Prepared(toy_task(n=52), tokenizer), replace(OPTIONS, epochs=4, lr=1e-2)

    def train(folder=tmp_path / "t"):
        model = classifier()
        ended = fine_tune(model, prepared, options, cpu, folder)
        return ended, torch.cat([each.detach().flatten() for each in model.parameters()])

    return train, train(None), tmp_path / "t"


def same(found, expected):
    return found[0] == expected[0] and torch.equal(found[1], expected[1])


def test_a_training_killed_between_any_two_files_ends_as_one_never_stopped(short, monkeypatch):
    from autodistil_search.base import files

    train, whole, folder = short
    replace_file, writes = files.os.replace, 0

    def killed(source, target):
        nonlocal writes
        writes += 1
        if writes in stops:
            raise StoppedError
        replace_file(source, target)

    monkeypatch.setattr(files.os, "replace", killed)
    stops = range(4, 60, 5)  # of the writes of all starts together: a weight file, a checkpoint or its state is next
    for _ in range(len(stops) + 1):
        try:
            found = train()
        except StoppedError:
            continue
        break
    assert same(found, whole)
    assert writes > 20
    assert len(list(folder.glob("best-*"))) <= 2
    assert list(folder.glob(".*")) == []


@pytest.mark.parametrize("damage", ["of another epoch", "cut", "gone"])
def test_best_weights_that_are_not_those_of_the_state_are_not_taken(damage, short, monkeypatch):
    from autodistil_search.distillation.checkpoints import Checkpoints

    train, whole, folder = short
    save = Checkpoints.save

    def stopped(self, step, text):
        save(self, step, text)
        if step == 8:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", stopped)
        with pytest.raises(StoppedError):
            train()
    for path in folder.glob("best-*"):
        if damage == "of another epoch":
            save_file({name: 0.5 * each for name, each in load_file(path).items()}, path)
        elif damage == "cut":
            path.write_bytes(path.read_bytes()[:-100])
        else:
            path.unlink()
    with pytest.warns(UserWarning, match="the best weights in .* are damaged; this training restarts"):
        assert same(train(), whole)


@pytest.mark.parametrize("epochs", [1, 2])
def test_weights_that_are_not_finite_end_the_training_by_name(epochs, classifier, tokenizer, cpu):
    prepared = Prepared(toy_task(n=20), tokenizer)  # an epoch of one step, whose loss is finite
    options = replace(OPTIONS, epochs=epochs, batch_size=32, lr=1e300, seed=3)
    with pytest.raises(FloatingPointError, match=r"diverged in epoch 1, at learning rate 1e\+300 with seed 3: "):
        fine_tune(classifier(), prepared, options, cpu)


def distilled(losses, classifier, tokenizer, cpu, teacher, task=None, **changes):
    student = classifier(task, seed=3)
    fine_tune(student, Prepared(task or toy_task(), tokenizer), replace(OPTIONS, losses=losses, **changes), cpu,
             teacher=teacher)  # fmt: skip
    return student


def test_a_teacher_is_learnt_from_without_labels(classifier, tokenizer, cpu):
    task = toy_task(n=960)
    teacher = classifier()
    fine_tune(teacher, Prepared(task, tokenizer), replace(OPTIONS, epochs=2), cpu)
    silent = replace(task, train=replace(task.train, labels=[0.0] * len(task.train)))  # labels that teach nothing
    student = distilled("logits", classifier, tokenizer, cpu, teacher, silent, epochs=1)
    prepared = Prepared(task, tokenizer)
    agree = predict(student, prepared.dev, cpu).argmax(-1) == predict(teacher, prepared.dev, cpu).argmax(-1)
    assert agree.mean() > 0.8


@pytest.mark.parametrize("losses", ["labels", "logits", "embeddings", "hidden", "attention", "labels,hidden:0.1"])
def test_every_term_and_weight_changes_what_is_learnt(losses, classifier, tokenizer, cpu):
    teacher = classifier(seed=9)
    weights = [
        torch.cat(
            [each.flatten() for each in distilled(terms, classifier, tokenizer, cpu, teacher, epochs=1).parameters()]
        )
        for terms in (losses, losses, "labels,attention:0.5")
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_teacher_stays_as_it_is(classifier, tokenizer, cpu):
    teacher = classifier(seed=9)
    before = [each.clone() for each in teacher.parameters()]
    distilled("labels,hidden,attention,embeddings,logits", classifier, tokenizer, cpu, teacher, epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))


def test_temperature_softens_what_is_learnt(classifier, tokenizer, cpu):
    teacher = classifier(seed=9)
    one, two = (
        distilled("logits", classifier, tokenizer, cpu, teacher, epochs=1, temperature=heat) for heat in (1.0, 4.0)
    )
    assert not torch.equal(one.classifier.weight, two.classifier.weight)


@pytest.fixture
def table(tmp_path):
    """A folder with the toy task as tables."""
    folder = tmp_path / "mail"
    folder.mkdir()
    for name, part in (("train", rows(240, 1)), ("dev", rows(40, 2))):
        frame = pd.DataFrame({"text": part.first, "label": ["high" if label else "low" for label in part.labels]})
        frame.to_csv(folder / f"{name}.csv", index=False)
    return folder


@pytest.fixture
def config(teacher_folder, table, tmp_path):
    return FinetuneConfig(
        model=str(teacher_folder()), task=str(table), epochs=2, lr="2e-3", seeds=2, batch_size=16, max_length=16,
        out=str(tmp_path / "tuned"),
    )  # fmt: skip


def test_a_run_has_mean_spread_and_a_model_that_gives_the_figures(config):
    run = finetune(config)
    summary = json.loads((run.folder / "summary.json").read_text())
    table = pd.read_csv(run.folder / "results.csv")
    assert table["seed"].tolist() == [0, 1]
    assert summary["metrics"]["accuracy"]["mean"] == pytest.approx(table["accuracy"].mean())
    assert summary["metrics"]["accuracy"]["standard_deviation"] == pytest.approx(table["accuracy"].std(ddof=1))
    assert summary["rows"] == {"train": 216, "choose": 24, "dev": 40}
    assert summary["options"] == asdict(FinetuneOptions(batch_size=16, epochs=2, lr=2e-3))
    model = AutoModelForSequenceClassification.from_pretrained(run.model_folder)
    assert model.config.id2label == {0: "high", 1: "low"}
    prepared = Prepared(run.task, AutoTokenizer.from_pretrained(run.model_folder), 16)
    from autodistil_search.base.device import Device

    right = predict(model, prepared.dev, Device("cpu", "fp32")).argmax(-1) == prepared.dev.labels
    assert right.mean() == pytest.approx(table.set_index("seed").loc[int(run.model_folder.name[-1]), "accuracy"])


def test_of_several_rates_the_best_on_the_rows_to_choose_by_is_taken(config):
    run = finetune(replace(config, lr="1e-6,2e-3", epochs=4))
    assert run.results[["lr", "seed"]].to_numpy().tolist() == [[1e-6, 0], [2e-3, 0], [2e-3, 1]]
    assert run.lr == 2e-3
    stamps = [(run.folder / name / "result.json").stat().st_mtime_ns for name in ("seed-0", "lr-1e-06-seed-0")]
    again = finetune(replace(config, lr="1e-6,2e-3", epochs=4))
    assert again.results.equals(run.results)
    assert stamps == [(run.folder / name / "result.json").stat().st_mtime_ns for name in ("seed-0", "lr-1e-06-seed-0")]
    assert run.results.loc[1, "chosen_by"] > run.results.loc[0, "chosen_by"]
    assert run.model_folder.is_dir()


def test_of_several_rates_one_that_diverges_is_recorded_and_never_chosen(config, printed_json, capsys):
    config = replace(config, epochs=1, seeds=1, lr="1e300,1e-3")
    run = finetune(config)
    assert run.lr == 1e-3
    assert run.results["chosen_by"].isna().tolist() == [True, False]
    assert json.loads((run.folder / "summary.json").read_text())["diverged"] == [1e300]
    before = (run.folder / "results.csv").read_bytes()
    arguments = ["finetune", config.model, "--task", config.task, "--epochs", "1", "--seeds", "1", "--batch-size", "16"]
    arguments += ["--max-length", "16", "--out", config.out]
    assert printed_json([*arguments, "--lr", "1e300,1e-3"])["lr"] == 1e-3
    assert (run.folder / "results.csv").read_bytes() == before
    for damage in ("{}", '{"lr": 1e-3, "digest": "0"}'):
        (run.folder / "lr-1e+300-seed-0" / "diverged.json").write_text(damage)
        with pytest.raises(InputError, match=r"diverged\.json is damaged.*; delete it, and the same command tries"):
            finetune(config)
    assert main([*arguments[:-1], f"{config.out}2", "--lr", "1e300", "--quiet"]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "diverged in epoch 1, at learning rate 1e+300 with seed 0" in told


def test_models_do_not_depend_on_the_executor(config, tmp_path):
    """A rate that diverges in a worker is said by this process."""
    config = replace(config, lr="1e-3,1e30", seeds=2)
    alone = finetune(replace(config, out=str(tmp_path / "alone")))

    class Said(Reporter):
        lines: ClassVar[list[str]] = []

        def say(self, message):
            self.lines.append(message)

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        run = finetune(replace(config, out=str(tmp_path / "workers")), Said(), executor=pool)
    assert run.results.equals(alone.results)
    for seed in ("seed-0", "seed-1"):
        weights = [found.folder / seed / "model.safetensors" for found in (run, alone)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    assert any("1e+30" in line and "diverged" in line for line in Said.lines)


def test_more_seeds_go_on_from_fewer(config):
    first = finetune(replace(config, seeds=1))
    more = finetune(config)
    assert more.results.iloc[:1].equals(first.results)
    assert len(more.results) == 2


def test_what_looks_wrong_in_a_table_is_said(config, tmp_path, capsys):
    table = tmp_path / "quoted.tsv"
    table.write_text(
        "text\tlabel\n" + "".join(f'"w{i}"\t{"ab"[i % 2]}\n' if i % 3 else f"w{i}\ta\n" for i in range(40))
    )
    arguments = ["finetune", config.model, "--task", str(table), "--out", config.out, "--max-length", "999"]
    assert main(arguments) == 2  # after the table is read, before anything is trained
    told = capsys.readouterr().err
    assert "has 26 cells that begin and end with quotes, which are kept as part of the text" in told
    assert "--max-length 999; " in told


@pytest.mark.parametrize(
    ("metric", "labels", "score"), [("accuracy", "ab", 0.75), ("matthews", "ab", 0.0), ("pearson", "", 0.0)]
)
def test_one_answer_for_all_rows_has_the_score_of_the_best_constant(metric, labels, score):
    task = replace(toy_task(tuple(labels)), metrics=(metric,))
    assert score_of_one_answer(task, np.array([0.0, 1.0, 0.0, 0.0])) == pytest.approx(score)


def test_what_is_no_better_than_one_answer_says_so(config, table, capsys):
    for part in ("train", "dev"):  # equal texts get equal answers
        path = table / f"{part}.csv"
        pd.read_csv(path).assign(text="w1").to_csv(path, index=False)
    words = ["--epochs", "1", "--seeds", "2", "--max-length", "16", "--quiet"]
    assert main(["finetune", config.model, "--task", str(table), "--out", config.out, *words]) == 0
    share = pd.read_csv(table / "dev.csv")["label"].value_counts(normalize=True).max()
    answer = f"no better than one answer for all rows of dev (accuracy {share:.4f}): 2 of 2 trainings, seed 0, 1"
    assert answer in " ".join(capsys.readouterr().out.split())


def test_what_is_learnt_has_no_warning(config):
    run = finetune(replace(config, epochs=4))
    assert (run.warning, run.unlearnt_seeds) == ("", [])


def test_other_settings_in_the_same_folder_are_refused(config):
    finetune(config)
    with pytest.raises(InputError, match="epochs was 2 and is now 3"):
        finetune(replace(config, epochs=3))


def test_a_killed_run_ends_as_one_never_stopped(config, tmp_path):
    whole = finetune(replace(config, out=str(tmp_path / "whole")))
    killed = SERVER.Process(target=killed_after_saving, args=(9, finetune, config))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    resumed = finetune(config)
    pd.testing.assert_frame_equal(resumed.results, whole.results)


def test_a_student_is_fine_tuned_and_then_teaches(config, debug_superlm, debug_space, tokenizer, tmp_path, capsys):
    with quiet_transformers():
        debug_superlm().extract(debug_space.smallest).save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    teacher = finetune(replace(config, seeds=1))
    arguments = ["finetune", str(tmp_path / "student"), "--task", config.task, "--losses", "logits,hidden:0.1"]
    arguments += ["--teacher", str(teacher.folder), "--out", str(tmp_path / "taught"), "--seeds", "1", "--epochs", "1"]
    assert main([*arguments, "--lr", "1e-3", "--max-length", "16"]) == 0
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / "taught" / "summary.json").read_text())
    assert f"{summary['metrics']['accuracy']['mean']:.4f}" in printed
    assert load_tokenizer("x", str(tmp_path / "taught" / "seed-0")).get_vocab() == tokenizer.get_vocab()


def test_a_model_without_all_weights_of_its_encoder_is_refused(teacher_folder):
    folder = teacher_folder()
    weights = load_file(folder / "model.safetensors")
    layer = "encoder.layer.1.output.dense.weight"
    for changed, said in (
        (
            {name: each for name, each in weights.items() if name != layer},
            f"lacks 1 weights of its encoder, such as '.*{layer}",
        ),
        ({f"module.{name}": each for name, each in weights.items()}, "weights of its encoder"),
        (weights | {layer: weights[layer][:, :5].contiguous()}, rf"has '.*{layer}' of shape \(48, 5\); allowed"),
    ):
        save_file(changed, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(InputError, match=said):
            load_classifier("toy", str(folder), toy_task(), 0)


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_every_family_has_its_encoder_in_a_classifier_and_no_kernel_of_its_folder(kind, teacher_folder):
    folder = teacher_folder(kind)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attn_implementation": "made-up/kernel"}))
    found = load_classifier("toy", str(folder), toy_task(), 0)
    assert found.config._attn_implementation in ("sdpa", "eager")
    expected = load_file(folder / "model.safetensors")
    theirs = found.base_model.state_dict()
    assert all(torch.equal(theirs[name], each) for name, each in expected.items() if name in theirs)
    assert len(theirs.keys() & expected.keys()) > len(expected) - 3  # but for a pooler


def test_a_head_with_labels_in_another_order_is_mapped_by_their_names(config, tmp_path):
    tuned = finetune(replace(config, seeds=1, epochs=1))
    saved = json.loads((tuned.model_folder / "config.json").read_text())
    assert (saved["id2label"], saved["label2id"]) == ({"0": "high", "1": "low"}, {"high": 0, "low": 1})
    before = load_classifier("toy", str(tuned.model_folder), toy_task(), 0).classifier
    after = load_classifier("toy", str(tuned.model_folder), toy_task(("Low", "High")), 0).classifier
    assert torch.equal(after.weight, before.weight.flip(0))
    assert torch.equal(after.bias, before.bias.flip(0))
    counted = load_classifier("toy", str(tuned.model_folder), toy_task(("0", "1")), 0).classifier
    assert torch.equal(counted.weight, before.weight)
    with pytest.raises(InputError, match=r"a head for labels high, low, task 'toy' has spam, ham; allowed"):
        load_classifier("toy", str(tuned.model_folder), toy_task(("spam", "ham")), 0)
    assert load_classifier("toy", str(tuned.model_folder), toy_task(("a", "b", "c")), 0).num_labels == 3  # a new head


@pytest.mark.parametrize(
    ("kind", "sizes"), [("roberta", {"type_vocab_size": 1, "pad_token_id": 0}), ("distilbert", {})]
)
def test_a_model_without_token_types_is_fine_tuned_on_pairs(kind, sizes, teacher_folder, config, tmp_path):
    folder = teacher_folder(kind, **sizes)
    (tmp_path / "pairs.jsonl").write_text(
        "\n".join(json.dumps({"text1": f"w{i}", "text2": f"w{i % 7}", "label": i % 2}) for i in range(40))
    )
    shorter = replace(config, task=str(tmp_path / "pairs.jsonl"), seeds=1, epochs=1)
    tuned = finetune(replace(shorter, model=str(folder), out=str(tmp_path / "alone")))
    assert "token_type_ids" not in AutoTokenizer.from_pretrained(tuned.model_folder)("w1", "w2")
    finetune(replace(shorter, losses="logits", teacher=str(tuned.folder)))  # a student with token types


def test_roberta_has_no_positions_for_padding(teacher_folder, config, refusal):
    folder = str(teacher_folder("roberta"))
    assert "positions for 4 to 38" in refusal(["finetune", folder, "--task", config.task, "--max-length", "40"])


def test_what_cannot_be_used_is_one_line(config, refusal, teacher_folder, tmp_path):
    student, table = config.model, config.task
    (tmp_path / "empty").mkdir()
    assert "no tokenizer beside it" in refusal(["finetune", str(tmp_path / "empty"), "--task", table])
    assert "allowed: labels alone without a teacher" in refusal(
        ["finetune", student, "--task", table, "--losses", "logits"]
    )
    assert "has no head for task" in refusal(
        ["finetune", student, "--task", table, "--losses", "logits", "--teacher", student, "--max-length", "16"]
    )
    tuned = finetune(replace(config, seeds=1, epochs=1))
    swapped = tmp_path / "swapped.csv"
    swapped.write_text((config.folder.parent / "mail" / "dev.csv").read_text().replace("high", "zero"))
    assert "has a head for labels high, low, task 'swapped' has low, zero" in refusal(
        ["finetune", student, "--task", str(swapped), "--losses", "logits", "--teacher", str(tuned.folder),
         "--max-length", "16"]
    )  # fmt: skip
    assert "--lr 'fast'; allowed" in refusal(["finetune", student, "--task", table, "--lr", "fast"])
    assert "positions for 4 to 40" in refusal(["finetune", student, "--task", table, "--max-length", "41"])
    assert "'no-task' is not known" in refusal(["finetune", student, "--task", "no-task"])
    assert "--temperature must be" in refusal(["finetune", student, "--task", table, "--temperature", "0"])
    assert "labels, logits" in refusal(["finetune", student, "--task", table, "--losses", "logitz"])
