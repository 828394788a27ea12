"""The best student for a budget beside baselines and teacher: what is measured, and what is said of it."""

import json
from dataclasses import replace

import pytest
import torch
from scipy.stats import spearmanr

from autodistil_search import InputError, load_run, search
from autodistil_search.base.progress import plain_console
from autodistil_search.cli.commands.search import print_frontier
from autodistil_search.nas.sentence_similarity import SentenceSimilarity
from autodistil_search.report.headline import Headline, Standing, read_headline
from autodistil_search.runs import best_student
from autodistil_search.spaces.cost import flops
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel

STANDINGS = (
    Standing("pick", "tiny 4x128, ratio 2, 8 heads of 16", 200e6, 5e6, 2.0, 0.7, 0.81),
    Standing("knee", "tiny 3x128, ratio 2, 8 heads of 16", 100e6, 4e6, 1.0, 0.9, 0.75),
    Standing("baseline", "TinyBERT 4x312", 624e6, 14.4e6, 6.0, 0.5, 0.84),
    Standing("teacher", "packaged", 1.4346e9, 22.7e6, 10.0, None, 1.0),
)
HEADLINE = Headline(
    7, 312e6, "TinyBERT 4x312", True, STANDINGS, "relation loss", "1 x 128 tokens, cpu", 0.02, 256, 32, 0.35
)


def test_a_headline_says_what_is_picked_what_it_saves_and_what_it_keeps():
    assert HEADLINE.sentences == [
        "Best student within half of the FLOPs of TinyBERT 4x312 (312M): tiny 4x128, ratio 2, 8 heads of 16, 200M "
        "FLOPs, relation loss 0.7, row 7 of the frontier.",
        "Beside the teacher, it has 5M of 22.7M parameters (4.5 times smaller), 14% of the FLOPs, and takes 2 ms "
        "instead of 10 ms (5.0 times faster; 1 x 128 tokens, cpu).",
        "Its sentence similarities agree with the teacher's at a rank correlation of 0.81 on 256 held-out passages of "
        "32 tokens (1: the same order; averaged word vectors 0.35; TinyBERT 4x312 0.84).",
    ]


def test_a_headline_says_that_a_budget_is_not_kept_and_that_latencies_were_disturbed():
    pick, cost, _ = replace(HEADLINE, kept=False, disturbance=0.4).sentences
    assert pick.startswith(
        "No student of the frontier costs at most half of the FLOPs of TinyBERT 4x312 (312M). The knee:"
    )
    assert "cpu; other processes took up to 40% of the processors meanwhile)." in cost


def test_a_headline_without_a_similarity_says_nothing_of_it():
    undefined = replace(HEADLINE, standings=(replace(STANDINGS[0], similarity=None), *STANDINGS[1:]))
    assert len(undefined.sentences) == 2


def test_a_headline_is_read_back_as_it_was():
    assert read_headline(json.loads(json.dumps(HEADLINE.record()))) == HEADLINE
    assert read_headline(None) is None


@pytest.mark.parametrize(
    "damaged",
    [
        {"standings": []},
        {"standings": [{"role": "pick"}]},
        {"row": None, "budget": "much"},
        {"standings": [vars(replace(STANDINGS[0], latency=0.0)), *map(vars, STANDINGS[1:])]},
    ],
)
def test_a_damaged_headline_is_refused(damaged):
    with pytest.raises((LookupError, TypeError, ValueError)):
        read_headline(HEADLINE.record() | damaged)


@pytest.fixture
def similarity(toy_teacher, toy_batch, cpu):
    teacher = toy_teacher()
    return teacher, SentenceSimilarity(teacher, toy_batch(rows=12, tokens=9)[0], cpu)


def test_similarities_of_a_copy_of_the_teacher_have_the_teachers_order(similarity):
    teacher, compared = similarity
    copied = AutoDistilModel(teacher.student_config(teacher.subnet))
    teacher.copy_into(copied)
    assert compared.of(copied) > 0.999
    assert -1 <= compared.of_word_vectors() < 0.9


def test_similarities_are_cosines_of_pooled_states_compared_by_ranks(similarity, toy_batch, debug_superlm, debug_space):
    teacher, compared = similarity
    ids, superlm, subnet = toy_batch(rows=12, tokens=9)[0], debug_superlm(), debug_space.smallest

    def cosines(states):
        vectors = states.double().mean(1)
        return torch.tensor(
            [torch.cosine_similarity(vectors[i], vectors[j], 0) for i in range(12) for j in range(i + 1, 12)]
        )

    with torch.no_grad():
        own = cosines(superlm.eval()(ids, subnet=subnet).last_hidden_state)
        target = cosines(teacher.model(input_ids=ids).last_hidden_state)
    assert compared.of(superlm, subnet) == pytest.approx(spearmanr(own, target).statistic, abs=0.02)


def test_passages_are_the_beginnings_of_long_blocks_with_their_end(toy_teacher, toy_batch, cpu):
    blocks = toy_batch(rows=4, tokens=40)[0]
    compared = SentenceSimilarity(toy_teacher(), blocks, cpu)
    assert (compared.passages, compared.tokens) == (4, 32)
    assert torch.equal(compared._passages, torch.cat([blocks[:, :31], blocks[:, -1:]], dim=1))


@pytest.mark.usefixtures("undrawn")
def test_a_search_compares_its_best_student_with_baselines_and_teacher(toy_config, monkeypatch, capsys):
    """TinyBERT is a toy here; the budget is half of its FLOPs."""
    shape = Subnet(layers=3, hidden_size=36, ffn_size=72, heads=4, head_dim=9)
    monkeypatch.setattr("autodistil_search.nas.baselines.SHAPES", {"TinyBERT 4x312": shape})
    monkeypatch.setattr(best_student, "SHAPES", {"TinyBERT 4x312": shape})
    run = search(replace(toy_config, baselines="shapes", evaluations=16, seed=5))
    headline, frontier = run.report.headline, run.frontier
    assert load_run(run.folder).report.headline == headline
    assert headline.budget == flops(shape) / 2
    within = frontier[frontier["flops"] <= headline.budget]
    assert headline.kept == (len(within) > 0)
    row = frontier.iloc[headline.row - 1]
    best = within["relation_loss"].min() if headline.kept else frontier["relation_loss"][frontier["knee"]].item()
    assert row["relation_loss"] == best
    pick, teacher = headline.pick, headline.teacher
    assert (pick.flops, pick.params, pick.score) == (row["flops"], row["params"], row["relation_loss"])
    by_role = {standing.role: standing for standing in headline.standings}
    assert by_role["baseline"].name == "TinyBERT 4x312"
    assert by_role["baseline"].flops == flops(shape)
    assert teacher.similarity == 1.0
    assert all(standing.latency > 0 for standing in headline.standings)
    print_frontier(run, plain_console(width=200))
    printed = capsys.readouterr().out
    assert all(words in printed for words in headline.sentences)


@pytest.mark.usefixtures("undrawn")
def test_where_no_student_keeps_the_budget_the_knee_is_compared(toy_config, monkeypatch):
    smallest = Subnet(layers=1, hidden_size=8, ffn_size=8, heads=1, head_dim=8)
    monkeypatch.setattr(best_student, "SHAPES", {"TinyBERT 4x312": smallest})
    run = search(toy_config)
    headline = run.report.headline
    assert not headline.kept
    assert run.frontier["knee"].iloc[headline.row - 1]
    assert [standing.role for standing in headline.standings] == ["pick", "teacher"]


def test_a_search_of_costs_alone_has_no_headline(toy_config, searched):
    assert searched(replace(toy_config, objectives="flops,params")).report.headline is None


def test_a_run_with_a_damaged_headline_is_refused(toy_config, searched):
    folder = searched(toy_config).folder
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    summary["headline"]["standings"][0]["latency"] = -1
    path.write_text(json.dumps(summary))
    with pytest.raises(InputError, match=r"summary\.json"):
        load_run(folder)
