"""Proxies: the relation loss against the same loss computed in one go; those of a task against extracted students."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from rounding import loss_rounding
from scipy.stats import spearmanr
from torch import Tensor

from autodistil_search import search
from autodistil_search.base.device import Device
from autodistil_search.base.errors import InputError
from autodistil_search.base.progress import Reporter
from autodistil_search.nas import baselines, label_free_proxies, task_proxies
from autodistil_search.nas.baselines import MINILM, TINYBERT
from autodistil_search.nas.kernel_alignment import linear_cka
from autodistil_search.nas.label_free_proxies import HiddenProxy, RelationProxy, SimilarityProxy, label_free_kinds
from autodistil_search.nas.objectives import LABEL_FREE, Objective
from autodistil_search.nas.proxies import ProxyKind
from autodistil_search.nas.task_proxies import TaskBudget, task_proxy
from autodistil_search.runs import search_findings
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.superlm.relation_loss import relation_loss, relation_target, split_heads
from autodistil_search.tasks.fine_tuning import Prepared, fine_tune
from autodistil_search.tasks.labelled_data import load_task
from autodistil_search.teachers.teacher import Teacher

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def held_out(toy_batch: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
    return toy_batch(rows=37, tokens=10)[0]


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_the_score_is_the_relation_loss_over_all_blocks(
    toy_teacher: Callable[..., Teacher],
    debug_superlm: Callable[..., AutoDistilModel],
    held_out: Tensor,
    cpu: Device,
    loss: str,
) -> None:
    model, proxy = debug_superlm(), RelationProxy(toy_teacher(), held_out, 4, loss, cpu)
    with torch.no_grad():
        target = relation_target(toy_teacher().projections(held_out), None, 4, loss)
        for subnet in (None, model.space.smallest, model.space.largest):
            expected = relation_loss(model.last_projections(held_out, subnet=subnet), target)
            assert proxy.score(model, subnet) == pytest.approx(float(expected), rel=1e-5, abs=loss_rounding(10))
    assert proxy.score(model) == proxy.score(model, model.space.largest)
    extracted, sliced = proxy.score(model.extract(model.space.smallest)), proxy.score(model, model.space.smallest)
    assert extracted == pytest.approx(sliced, rel=1e-5, abs=loss_rounding(10))
    assert proxy.blocks == 37


def test_the_batch_size_inside_changes_nothing(
    toy_teacher: Callable[..., Teacher],
    debug_superlm: Callable[..., AutoDistilModel],
    held_out: Tensor,
    cpu: Device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, scores = debug_superlm(), []
    for size in (1, 5, 16, 100):
        monkeypatch.setattr(label_free_proxies, "BLOCKS_AT_ONCE", size)
        proxy = RelationProxy(toy_teacher(), held_out, 4, "kl", cpu)
        scores.append((proxy.score(model), proxy.reference))
    for score in scores[1:]:
        assert score == pytest.approx(scores[0], abs=loss_rounding(10))


def test_the_hidden_proxy_is_what_least_squares_on_other_blocks_leave(
    toy_teacher: Callable[..., Teacher],
    debug_superlm: Callable[..., AutoDistilModel],
    toy_batch: Callable[..., tuple[Tensor, Tensor]],
    cpu: Device,
) -> None:
    teacher, model, blocks = toy_teacher(), debug_superlm(), toy_batch(rows=40, tokens=10)[0]
    proxy = HiddenProxy(teacher, blocks, cpu)
    for subnet in (model.space.smallest, model.space.largest):
        with torch.no_grad():
            mine = model(blocks, subnet=subnet).last_hidden_state.double()
            theirs = teacher.model(blocks).last_hidden_state.double()
        mine = torch.cat([mine, torch.ones(40, 10, 1)], dim=-1)
        left = 0.0
        for part in torch.arange(40).split(5):
            others = [i for i in range(40) if i not in part]
            best = torch.linalg.lstsq(mine[others].flatten(0, 1), theirs[others].flatten(0, 1)).solution
            left += float((mine[part] @ best - theirs[part]).square().sum())
        left /= float((theirs - theirs.mean((0, 1))).square().sum())
        assert proxy.score(model, subnet) == pytest.approx(left, rel=0.05)  # a ridge keeps the map from what is noise
        assert proxy.score(model.extract(subnet)) == pytest.approx(proxy.score(model, subnet), rel=1e-4)


def test_the_hidden_proxy_is_near_zero_for_the_teacher_and_near_one_for_what_tells_nothing(
    toy_teacher: Callable[..., Teacher], toy_batch: Callable[..., tuple[Tensor, Tensor]], cpu: Device
) -> None:
    teacher, blocks = toy_teacher(), toy_batch(rows=80, tokens=10)[0]
    proxy = HiddenProxy(teacher, blocks, cpu)
    copy = AutoDistilModel(teacher.student_config(teacher.subnet))
    teacher.copy_into(copy)
    assert proxy.score(copy.eval()) < 1e-4
    torch.nn.init.zeros_(copy.layers[-1].ffn_norm.weight)  # always the same
    assert proxy.score(copy) == pytest.approx(proxy.reference, rel=0.02)


@pytest.fixture
def free(toy_teacher: Callable[..., Teacher], toy_batch: Callable[..., tuple[Tensor, Tensor]], cpu: Device):
    """The proxies without labels by name, on 16 blocks and on 128 passages."""
    kinds = label_free_kinds("kl", "qq,kk,vv", 4)
    return {
        name: (kind, kind.open(toy_teacher(), lambda rows: toy_batch(rows=rows, tokens=10)[0], 16, cpu))
        for name, kind in kinds.items()
    }


def test_every_proxy_without_labels_knows_the_teacher_and_a_model_that_tells_nothing(free, toy_teacher) -> None:
    teacher = toy_teacher()
    copy = AutoDistilModel(teacher.student_config(teacher.subnet))
    teacher.copy_into(copy)
    assert list(free) == list(LABEL_FREE)
    for name, (kind, proxy) in free.items():
        assert proxy.score(copy.eval()) == pytest.approx(kind.ideal, abs=2e-3), name
    torch.nn.init.zeros_(copy.layers[-1].ffn_norm.weight)  # the same states for all tokens, and the teacher's relations
    for name in ("hidden", "similarity", "cka"):
        assert free[name][1].score(copy) == pytest.approx(free[name][1].reference, abs=0.05), name
    assert free["combined"][1].score(copy) == pytest.approx(2 / 3, abs=0.05)


def test_proxies_without_labels_score_a_subnet_as_its_extracted_student(free, debug_superlm) -> None:
    model = debug_superlm()
    for name, (kind, proxy) in free.items():
        of_subnets = [proxy.score(model, subnet) for subnet in (model.space.smallest, model.space.largest)]
        assert proxy.score(model.extract(model.space.smallest)) == pytest.approx(of_subnets[0], abs=1e-4), name
        assert of_subnets[0] != of_subnets[1]
        assert (proxy.reference, kind.ideal) in {(proxy.reference, 0.0), (0.0, 1.0)}


def test_the_combination_is_the_mean_of_what_its_parts_lack(free, debug_superlm, debug_space) -> None:
    relation, hidden, similarity = (
        free[name][1].score(debug_superlm(), debug_space.smallest) for name in ("relation", "hidden", "similarity")
    )
    expected = (relation / free["relation"][1].reference + hidden + 1 - similarity) / 3
    assert free["combined"][1].score(debug_superlm(), debug_space.smallest) == pytest.approx(expected, rel=1e-6)


def test_alignment_is_that_of_all_tokens_with_the_teachers(free, toy_teacher, toy_batch, debug_superlm) -> None:
    blocks, model = toy_batch(rows=16, tokens=10)[0], debug_superlm()
    with torch.no_grad():
        states = [f(blocks).last_hidden_state.flatten(0, 1) for f in (model, toy_teacher().model)]
    assert free["cka"][1].score(model) == pytest.approx(linear_cka([states[0]], [states[1]]), abs=1e-5)


def test_similarities_of_two_passages_are_refused_and_broken_states_are_not_a_rank(
    toy_teacher: Callable[..., Teacher], held_out: Tensor, cpu: Device, free, debug_superlm
) -> None:
    with pytest.raises(InputError, match="similarities of 2 held-out passages; allowed: three or more"):
        SimilarityProxy(toy_teacher(), held_out[:2], cpu)
    model = debug_superlm()
    torch.nn.init.constant_(model.layers[-1].ffn_norm.weight, math.nan)
    for name in ("hidden", "similarity", "cka", "combined"):
        with pytest.raises(InputError, match="FloatingPointError"):
            free[name][1].score(model)


def test_the_hidden_proxy_needs_two_blocks(toy_teacher: Callable[..., Teacher], held_out: Tensor, cpu: Device) -> None:
    with pytest.raises(InputError, match="hidden-state loss on 1 held-out block; allowed: two or more"):
        HiddenProxy(toy_teacher(), held_out[:1], cpu)


def test_uniform_relations_cost_log_of_the_tokens_less_the_teachers_entropy(
    toy_teacher: Callable[..., Teacher], held_out: Tensor, cpu: Device
) -> None:
    teacher = toy_teacher()
    expected = 0.0
    for x in teacher.projections(held_out):
        heads = split_heads(x, 4).double()
        p = (heads @ heads.mT / heads.shape[-1] ** 0.5).softmax(-1)
        expected += float(torch.log(torch.tensor(10.0)) + (p * p.log()).sum(-1).mean())
    proxy = RelationProxy(teacher, held_out, 4, "kl", cpu)
    assert proxy.reference == pytest.approx(expected, abs=loss_rounding(10))


def test_scoring_leaves_weights_and_gradients_alone(
    toy_teacher: Callable[..., Teacher], debug_superlm: Callable[..., AutoDistilModel], held_out: Tensor, cpu: Device
) -> None:
    model, before = debug_superlm(), debug_superlm().state_dict()
    RelationProxy(toy_teacher(), held_out, 4, "kl", cpu).score(model)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(weight.equal(before[name]) for name, weight in model.state_dict().items())


def test_bf16_scores_are_close_to_those_of_fp32_and_a_perfect_student_costs_nothing(
    toy_teacher: Callable[..., Teacher], debug_superlm: Callable[..., AutoDistilModel], held_out: Tensor, cpu: Device
) -> None:
    teacher, model = toy_teacher(), debug_superlm()
    bf16 = RelationProxy(teacher, held_out, 4, "kl", Device("cpu", "bf16"))
    fp32 = RelationProxy(teacher, held_out, 4, "kl", cpu)
    assert bf16.score(model) == pytest.approx(fp32.score(model), rel=0.02)
    twin = AutoDistilModel(teacher.student_config(teacher.subnet)).eval()
    teacher.copy_into(twin)
    assert fp32.score(twin) == pytest.approx(0, abs=loss_rounding(10))
    # Scores of bfloat16 are off by some 2^-8 of numbers below 10, and the loss by half the square of that.
    assert bf16.score(twin) == pytest.approx(0, abs=0.002 * fp32.reference)


def table_of(folder, n=80):
    """Rows whose label is whether their first word is one of ten."""
    rng = random.Random(0)
    words = [[f"w{rng.randrange(20)}", *(f"w{rng.randrange(20, 90)}" for _ in range(4))] for _ in range(n)]
    lines = [f"{' '.join(row)},{'low' if int(row[0][1:]) < 10 else 'high'}" for row in words]
    folder.mkdir()
    for name, part in (("train", lines), ("dev", lines[:4])):
        (folder / f"{name}.csv").write_text("text,label\n" + "\n".join(part) + "\n")
    return folder


@pytest.fixture
def toy_task(tmp_path):
    return table_of(tmp_path / "mail")


BUDGET = TaskBudget(rows=60, epochs=1, lr=1e-3, seed=0)


@pytest.mark.parametrize("kind", ["probe", "task"])
def test_a_subnet_scores_on_a_task_what_its_extracted_student_does(
    kind, toy_task, toy_teacher, debug_superlm, debug_space, cpu
):
    made = task_proxy(f"{kind}:{toy_task}", BUDGET)
    proxy = made.make(toy_teacher(), torch.empty(0), cpu)
    superlm = debug_superlm()
    before = [each.clone() for each in superlm.parameters()]
    score = proxy.score(superlm, debug_space.smallest)
    student = superlm.extract(debug_space.smallest)
    assert proxy.score(student) == score == proxy.score(superlm, debug_space.smallest)
    assert all(torch.equal(a, b) for a, b in zip(before, superlm.parameters(), strict=True))
    labels = [float(label) for label in load_task(str(toy_task)).split()[1].labels]
    assert proxy.reference == max(labels.count(0.0), labels.count(1.0)) / 8  # the commoner label of the eight kept back
    assert made.objective.name == ("mail_accuracy_probe" if kind == "probe" else "mail_accuracy")
    assert (made.objective.direction, made.ideal) == ("maximize", 1.0)


def test_a_probe_learns_what_frozen_features_tell(tmp_path, toy_teacher, debug_superlm, debug_space, cpu):
    task = table_of(tmp_path / "much", 600)
    proxy = task_proxy(f"probe:{task}", replace(BUDGET, rows=500)).make(toy_teacher(), torch.empty(0), cpu)
    superlm = debug_superlm()
    assert proxy.score(superlm, debug_space.largest) > proxy.reference + 0.1
    with torch.no_grad():
        superlm.word_embeddings.weight.zero_()
    assert proxy.score(superlm, debug_space.largest) <= proxy.reference  # all rows look alike


@pytest.mark.parametrize("kind", ["probe", "task", "cosine"])
def test_students_with_one_token_type_are_scored_on_pairs(kind, tmp_path, toy_teacher, debug_space, cpu, randomised):
    lines = [f"w{i} w{i % 7},w{i % 11},{i % 3}" for i in range(60)]
    (tmp_path / "pairs.csv").write_text("text1,text2,label\n" + "\n".join(lines) + "\n")
    teacher = toy_teacher("distilbert")
    proxy = task_proxy(f"{kind}:{tmp_path / 'pairs.csv'}", BUDGET).make(teacher, torch.empty(0), cpu)
    student = randomised(AutoDistilModel(teacher.student_config(debug_space.smallest)))
    assert -1 <= proxy.score(student) <= 1


@pytest.mark.parametrize("change", [{"rows": 20}, {"epochs": 12}, {"lr": 1e-5}, {"seed": 1}])
def test_every_part_of_the_budget_changes_a_task_score(
    change, toy_task, toy_teacher, debug_superlm, debug_space, cpu, monkeypatch
):
    seen = []

    def record(classifier, prepared, options, *_, **__):
        ended = fine_tune(classifier, prepared, options, cpu, report=False)
        seen.append(torch.cat([each.flatten() for each in classifier.parameters()]))
        return ended

    monkeypatch.setattr(task_proxies, "fine_tune", record)
    for budget in (BUDGET, replace(BUDGET, **change)):
        proxy = task_proxy(f"task:{toy_task}", budget).make(toy_teacher(), torch.empty(0), cpu)
        proxy.score(debug_superlm(), debug_space.smallest)
    assert not torch.equal(*seen)


def test_reported_rows_are_never_looked_at(toy_task, toy_teacher, debug_superlm, debug_space, cpu, monkeypatch):
    monkeypatch.setattr(Prepared, "dev", property(lambda _: pytest.fail("the dev rows were read")))
    for kind in ("probe", "task"):
        proxy = task_proxy(f"{kind}:{toy_task}", BUDGET).make(toy_teacher(), torch.empty(0), cpu)
        assert 0 <= proxy.score(debug_superlm(), debug_space.smallest) <= 1


@pytest.mark.parametrize("kind", ["probe", "task"])
def test_a_search_for_a_tasks_metric_maximises_it_and_says_what_it_is(kind, toy_config, toy_task):
    column = "mail_accuracy_probe" if kind == "probe" else "mail_accuracy"
    config = replace(toy_config, proxy=f"{kind}:{toy_task}", evaluations=4, proxy_rows=40, proxy_epochs=1)
    run = search(config)
    assert run.summary["box"][column][0] == 1.0
    assert 0 <= run.summary["hypervolume_share"] <= 1
    assert run.evaluations[column].between(0, 1).all()
    assert run.frontier[column].is_monotonic_increasing
    assert "40 rows of mail" in run.summary["conditions"]["proxy"]
    for part in toy_task.glob("*.csv"):
        part.write_text(part.read_text().replace("low", "deep"))
    with pytest.raises(InputError, match="proxy_task was"):
        search(config)


def test_a_task_that_is_not_there_is_refused_before_anything_is_trained(toy_config):
    with pytest.raises(InputError, match="'nowhere' is not known"):
        search(replace(toy_config, proxy="task:nowhere"))
    assert not toy_config.folder.exists()


def test_columns_of_a_table_are_named_to_its_proxy_and_to_no_other(toy_config, tmp_path):
    path = tmp_path / "mail.csv"
    rows = [f"w{i % 40} w{i % 7},{'ab'[i % 40 < 20]},x" for i in range(60)]
    path.write_text("\n".join(["subject,folder,label", *rows, "w1 w2,,x"]))
    config = replace(toy_config, proxy=f"probe:{path}", evaluations=2, proxy_rows=30)
    named, told = replace(config, proxy_text_columns="subject", proxy_label_column="folder"), Mock(wraps=Reporter())
    assert search(named, reporter=told).evaluations["mail_accuracy_probe"].between(0, 1).all()
    told.say.assert_any_call(f"table {path}: of 61 rows, 1 with a blank label left out")
    with pytest.raises(InputError, match="of a search, --proxy-text-columns"):
        search(replace(config, out=str(tmp_path / "usual")))
    with pytest.raises(InputError, match="has 1 different labels"):
        search(replace(named, proxy_label_column=None, out=str(tmp_path / "label")))
    with pytest.raises(InputError, match="--proxy 'relation' reads no table; allowed: --proxy-text-columns"):
        replace(toy_config, proxy_text_columns="subject")


@pytest.mark.parametrize(
    ("proxy", "column", "box"),
    [("similarity", "sentence_similarity", [1.0, 0.0]), ("combined", "combined_loss", [0.0, 1.0])],
)
def test_a_search_without_labels_names_its_measure_in_its_columns(toy_config, monkeypatch, proxy, column, box):
    """TinyBERT's own objective trains the last hidden states, and MiniLM's does not. Here, too little is learnt."""
    monkeypatch.setattr(search_findings, "HARDLY_LEARNT", -math.inf)
    shapes = {name: Subnet(1, 8, 8, 2, 4) for name in ("TinyBERT 4x312", "MiniLM 6x384")}
    monkeypatch.setattr(baselines, "SHAPES", shapes)
    run = search(replace(toy_config, proxy=proxy, baselines="tinybert,minilm", evaluations=4))
    assert run.evaluations[column].notna().all()
    assert "relation_loss" not in run.evaluations
    assert run.summary["box"][column] == box
    known = run.baselines.set_index("how")[column].notna()
    assert (known[TINYBERT], known[MINILM]) == (proxy != "combined", False)
    (little,) = [finding for finding in run.report.findings if finding.kind == "learnt_little"]
    assert little.values["best"] == (max if box[0] else min)(run.evaluations[column])


@pytest.fixture
def pairs(tmp_path: Path) -> Callable[..., str]:
    """A table of pairs of texts with what is said of them."""

    def write(labels: Sequence[object], texts: str = "sentence1,sentence2") -> str:
        path = tmp_path / "pairs.csv"
        rows = [f"w{i % 9} w{i % 5},w{i % 7} w{i % 5} w8,{label}" for i, label in enumerate(labels)]
        path.write_text("\n".join([f"{texts},label", *rows]))
        return str(path)

    return write


def test_cosines_of_mean_hidden_states_rank_pairs(
    toy_teacher: Callable[..., Teacher],
    debug_superlm: Callable[..., AutoDistilModel],
    pairs: Callable[..., str],
    cpu: Device,
) -> None:
    teacher, model = toy_teacher(), debug_superlm()
    name = pairs([i % 11 / 10 for i in range(80)])
    kind = task_proxy(f"cosine:{name}", replace(BUDGET, rows=30))
    rows = load_task(name).split(30)[0]

    def vector(text: str, subnet: Subnet) -> Tensor:
        ids = torch.tensor([teacher.tokenizer(text)["input_ids"]])
        return model(ids, subnet=subnet).last_hidden_state[0].mean(0)

    for subnet in (model.space.smallest, model.space.largest):
        with torch.no_grad():
            cosines = [
                float(torch.cosine_similarity(vector(a, subnet), vector(b, subnet), dim=0))
                for a, b in zip(rows.first, rows.second or (), strict=True)
            ]
        expected = spearmanr(cosines, rows.labels).statistic
        assert kind.make(teacher, torch.empty(0), cpu).score(model, subnet) == pytest.approx(expected, abs=0.02)
    assert (kind.objective.name, kind.objective.direction) == ("pairs_cosine", "maximize")
    assert "30 training rows" in kind.objective.unit


@pytest.mark.parametrize(
    ("labels", "columns", "got"),
    [
        (["a", "b", "c"] * 20, "sentence1,sentence2", "two texts, labels a, b, c"),
        (["entailment", "not_entailment"] * 30, "sentence1,sentence2", "two texts, labels entailment, not_entailment"),
        ([0, 1] * 30, "text,other", "one text"),
    ],
)
def test_pairs_without_an_order_are_refused(
    pairs: Callable[..., str], labels: Sequence[str], columns: str, got: str
) -> None:
    with pytest.raises(InputError, match=f"cosine:pairs: rows of {got}.*allowed: tasks of two texts"):
        task_proxy(f"cosine:{pairs(labels, columns)}", BUDGET)


@pytest.mark.parametrize("labels", [[0, 1] * 30, [3, 1, 5, 2] * 20, [0.5, 1] * 30])
def test_pairs_with_numbers_go_from_unlike_to_alike(pairs: Callable[..., str], labels: Sequence[float]) -> None:
    assert task_proxy(f"cosine:{pairs(labels)}", BUDGET).objective.direction == "maximize"


def test_one_label_only_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    rare = tmp_path / "rare.csv"
    rare.write_text("text,label\n" + "".join(f"w{i},{int(i == 0)}\n" for i in range(40)))
    (train, choose), place = load_task(str(rare)).split(BUDGET.rows), "kept back to measure on|to train on"
    assert min(len({*train.labels}), len({*choose.labels})) == 1
    for kind in ("probe", "task"):
        with pytest.raises(InputError, match=rf"{kind}:.*rows ({place}) have label '0'; allowed: two labels or more"):
            task_proxy(f"{kind}:{rare}", BUDGET)


class Given:
    """A proxy of a plug-in that gives what it is told."""

    def __init__(self, score, reference=1.0):
        self.reference, self.description, self._score = reference, "given", score

    def score(self, model, subnet=None):
        if isinstance(self._score, BaseException):
            raise self._score
        return self._score


def opened(proxy, direction="minimize", ideal=0.0):
    objective = Objective("given", "given", "", direction, is_proxy=True)
    return ProxyKind(objective, lambda *_: proxy, ideal).open(None, lambda _: None, 1, None)


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (math.nan, "proxy 'given' gave nan (float) for subnet 2x32"),
        (None, "proxy 'given' gave None (NoneType) for subnet 2x32"),
        (-0.5, "proxy 'given' gave -0.5 for subnet 2x32, ratio 1.5, 2 heads of 8, better than its ideal 0"),
        (SystemExit(), "proxy 'given' failed on subnet 2x32, ratio 1.5, 2 heads of 8: SystemExit"),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
def test_a_proxys_numbers_pass_the_gate_of_objectives(score, words, debug_space, debug_superlm):
    with pytest.raises(InputError) as refused:
        opened(Given(score)).score(debug_superlm(), debug_space.smallest)
    assert words in str(refused.value)
    assert opened(Given(np.float32(0.5))).score(debug_superlm(), debug_space.smallest) == 0.5


@pytest.mark.parametrize(
    ("reference", "direction", "ideal"),
    [(0.0, "minimize", 0.0), (-1.0, "minimize", 0.0), (1.0, "maximize", 0.0), (math.inf, "minimize", 0.0)],
)
def test_a_proxy_whose_reference_is_no_worse_than_its_ideal_is_refused(reference, direction, ideal):
    with pytest.raises(InputError, match="proxy 'given'"):
        opened(Given(0.5, reference), direction, ideal)
    with pytest.raises(InputError, match="proxy 'given' cannot be made: AttributeError"):
        opened(object())
