"""The relation losses against a plain float64 implementation that never sees a padded token."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounding import loss_rounding, rounding
from torch import Tensor
from torch.testing import assert_close

from autodistil_search.base.weighted_names import RELATIONS, parse_relations
from autodistil_search.superlm import relation_loss as relations_module
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.superlm.relation_loss import (
    DEFAULT_RELATIONS,
    relation_loss,
    relation_target,
    split_heads,
    uniform_loss,
)

Projections = list[Tensor]
Relations = tuple[tuple[str, float], ...]

ALL: Relations = tuple((name, 1.0) for name in RELATIONS)


def _projections(width: int, seed: int, shape: tuple[int, int] = (3, 7), scale: float = 1.0) -> Projections:
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(*shape, width, generator=generator) for _ in range(3)]


def _mask(shape: tuple[int, int] = (3, 7)) -> Tensor:
    rows, tokens = shape
    return (torch.arange(tokens)[None] < tokens - 2 * torch.arange(rows)[:, None]).long()


def _plain_heads(x: Tensor, heads: int) -> list[Tensor]:
    """The `(T, d)` pieces of a `(T, width)` matrix, the last one filled with zeros."""
    d = math.ceil(x.shape[1] / heads)
    full = torch.cat([x, x.new_zeros(x.shape[0], heads * d - x.shape[1])], dim=1)
    return [full[:, i * d : (i + 1) * d] for i in range(heads)]


def _plain_loss(
    student: Projections,
    teacher: Projections,
    mask: Tensor | None,
    heads: int,
    loss: str,
    relations: Relations = DEFAULT_RELATIONS,
) -> Tensor:
    mask = torch.ones(student[0].shape[:2]) if mask is None else mask
    total = torch.zeros((), dtype=torch.float64)
    for name, weight in relations:
        rows, columns = ("qkv".index(letter) for letter in name)
        for b, real in enumerate(mask.bool()):
            sides = (x[b, real].double() for x in (student[rows], student[columns], teacher[rows], teacher[columns]))
            for x, y, u, v in zip(*(_plain_heads(side, heads) for side in sides), strict=True):
                s, t = x @ y.T / math.sqrt(x.shape[1]), u @ v.T / math.sqrt(u.shape[1])
                if loss == "kl":
                    p, log_q = torch.softmax(t, -1), torch.log_softmax(s, -1)
                    total = total + weight * (p * (p.log() - log_q)).sum()
                else:
                    total = total + weight * ((s - t) ** 2).mean(-1).sum()
    return total / (mask.sum() * heads)


@pytest.mark.parametrize("relations", ["qq,kk,vv", "qq", "kk", "vv", "qk", "vv:0.25,qk:3,qq"])
@pytest.mark.parametrize("heads", [1, 4, 5])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_value_and_gradient_are_those_of_the_plain_implementation(
    loss: str, padded: bool, heads: int, relations: str
) -> None:
    teacher, mask, chosen = _projections(24, seed=1), _mask() if padded else None, parse_relations(relations)
    student = [x.requires_grad_() for x in _projections(20, seed=2)]  # 4 heads divide 20 and 24; 5 do not divide 24
    doubles = [x.detach().double().requires_grad_() for x in student]

    found = relation_loss(student, relation_target(teacher, mask, heads, loss, chosen))
    expected = _plain_loss(doubles, teacher, mask, heads, loss, chosen)
    assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)

    (3 * found).backward()  # a factor, as a mean over subnets has one
    (3 * expected).backward()
    for letter, mine, plain in zip("qkv", student, doubles, strict=True):
        if letter in relations:
            assert plain.grad.abs().max() > 1e-4
            assert_close(mine.grad.double(), plain.grad, rtol=1e-4, atol=1e-6)
        else:
            assert mine.grad is None


def test_without_being_told_all_three_of_minilm_v2_count_alike() -> None:
    teacher, student = _projections(24, seed=1), _projections(16, seed=2)
    told = relation_target(teacher, None, 4, "kl", parse_relations("qq,kk:1,vv:1.0"))
    assert relation_loss(student, relation_target(teacher, None, 4)).equal(relation_loss(student, told))


def test_the_last_layers_queries_and_keys_stay_as_they_are_when_only_values_count(
    debug_superlm: Callable[..., AutoDistilModel], toy_batch: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    superlm, (ids, _) = debug_superlm(), toy_batch()
    target = relation_target(_projections(24, 1, tuple(ids.shape)), None, 4, relations=parse_relations("vv"))
    relation_loss(superlm.last_projections(ids), target).backward()
    *body, last = superlm.layers
    assert last.query.weight.grad is None
    assert last.key.weight.grad is None
    assert last.value.weight.grad.count_nonzero() > 0
    assert body[0].query.weight.grad.count_nonzero() > 0


@pytest.mark.parametrize("at_once", [1, 3 * 7 * 7, 5 * 7 * 7])
@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_scores_worked_on_in_parts_give_the_loss_and_gradients_of_the_whole(
    loss: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, found = _projections(24, seed=1), []
    for size in (2**18, at_once):  # 3 sequences x 4 heads of 7 x 7 scores: one part, and parts across sequences
        monkeypatch.setitem(relations_module._SCORES_AT_ONCE, "cpu", size)
        student = [x.requires_grad_() for x in _projections(20, seed=2)]
        value = relation_loss(student, relation_target(teacher, _mask(), 4, loss, ALL))
        value.backward()
        found.append((value, *(x.grad for x in student)))
    assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padded", [False, True])
def test_kl_shifts_rows_whose_exponentials_would_overflow(padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, mask = _projections(24, seed=1), _mask() if padded else None
    for scale in (1.0, 10.0):  # scores of up to about 10, and of up to about 1,000
        student = [x.requires_grad_() for x in _projections(20, 2, scale=scale)]
        doubles = [x.detach().double().requires_grad_() for x in student]
        expected = _plain_loss(doubles, teacher, mask, 4, "kl", ALL)
        expected.backward()
        for safe in (60.0, 0.0):
            monkeypatch.setattr(relations_module, "_SAFE_SCORE", safe)
            found = relation_loss(student, relation_target(teacher, mask, 4, "kl", ALL))
            gradients = torch.autograd.grad(found, student)
            # A score of size s is off by s times the machine epsilon, and its exponential by as much of itself.
            assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
            for mine, plain in zip(gradients, doubles, strict=True):
                assert_close(mine.double(), plain.grad, rtol=1e-3, atol=1e-5)


@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 3),
    tokens=st.integers(1, 6),
    widths=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    heads=st.integers(1, 4),
    scale=st.sampled_from([0.1, 1.0, 4.0]),
    loss=st.sampled_from(["kl", "mse"]),
    relations=st.lists(
        st.tuples(st.sampled_from(RELATIONS), st.sampled_from([0.5, 1.0, 2.0])),
        min_size=1,
        unique_by=lambda pair: pair[0],
    ).map(tuple),
)
def test_any_sizes_give_the_plain_loss_and_never_less_than_zero(
    seed: int,
    rows: int,
    tokens: int,
    widths: tuple[int, int],
    heads: int,
    scale: float,
    loss: str,
    relations: Relations,
) -> None:
    teacher = _projections(widths[0], seed, (rows, tokens), scale)
    student = _projections(widths[1], seed + 1, (rows, tokens), scale)
    real = torch.rand(rows, tokens, generator=torch.Generator().manual_seed(seed)) < 0.7
    real[0, 0] = True  # others may be wholly padding
    value = relation_loss(student, relation_target(teacher, real.long(), heads, loss, relations))
    assert_close(value.double(), _plain_loss(student, teacher, real, heads, loss, relations), rtol=1e-4, atol=1e-4)
    assert value > -1e-4


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_what_stands_at_padded_positions_has_no_effect_and_no_gradient(loss: str) -> None:
    mask = _mask()
    teacher, student = _projections(24, seed=1), _projections(16, seed=2)
    before = relation_loss(student, relation_target(teacher, mask, 4, loss, ALL))
    noise = 100 * (mask == 0)[..., None]
    student = [(x + noise).requires_grad_() for x in student]
    after = relation_loss(student, relation_target([x - noise for x in teacher], mask, 4, loss, ALL))
    after.backward()
    assert_close(after, before, rtol=1e-6, atol=1e-6)
    for x in student:
        assert x.grad[mask == 0].count_nonzero() == 0
        assert x.grad[mask == 1].count_nonzero() > 0


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_a_sequence_of_padding_only_counts_for_nothing(loss: str) -> None:
    mask = _mask()
    teacher, student = _projections(24, seed=1), _projections(16, seed=2)
    mask[2] = 0
    whole = relation_loss(student, relation_target(teacher, mask, 4, loss))
    rest = relation_loss([x[:2] for x in student], relation_target([x[:2] for x in teacher], mask[:2], 4, loss))
    assert_close(whole, rest, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_a_student_equal_to_the_teacher_has_loss_zero_and_no_gradient(loss: str, padded: bool) -> None:
    teacher = _projections(24, seed=3)
    student = [x.clone().requires_grad_() for x in teacher]
    value = relation_loss(student, relation_target(teacher, _mask() if padded else None, 4, loss))
    value.backward()
    assert abs(value.item()) < loss_rounding(7)
    # Differences of probabilities by 7 keys, times keys and queries of size 4 at most, over more than 4 rows.
    assert max(x.grad.abs().max() for x in student) < rounding(7)


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_permuting_the_tokens_of_both_leaves_the_loss(loss: str) -> None:
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    teacher, student, mask = _projections(24, seed=1), _projections(16, seed=2), _mask()
    before = relation_loss(student, relation_target(teacher, mask, 4, loss, ALL))
    target = relation_target([x[:, order] for x in teacher], mask[:, order], 4, loss, ALL)
    assert_close(relation_loss([x[:, order] for x in student], target), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padded", [False, True])
def test_uniform_loss_of_kl_is_log_of_the_tokens_less_the_teachers_entropy(padded: bool) -> None:
    teacher, mask = _projections(24, seed=1), _mask() if padded else torch.ones(3, 7).long()
    expected = 0.0
    for x in teacher:
        for b, real in enumerate(mask.bool()):
            for y in _plain_heads(x[b, real].double(), 4):
                p = torch.softmax(y @ y.T / math.sqrt(y.shape[1]), -1)
                expected += float((math.log(len(y)) + (p * p.log()).sum(-1)).sum())
    target = relation_target(teacher, mask if padded else None, 4)
    assert uniform_loss(target) == pytest.approx(expected / (float(mask.sum()) * 4), rel=1e-5)


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_uniform_loss_is_that_of_zero_projections_under_the_relations_and_weights(loss: str) -> None:
    teacher, mask, relations = _projections(24, seed=1), _mask(), parse_relations("vv:0.25,qk:3")
    nothing = [torch.zeros(3, 7, 4)] * 3
    expected = _plain_loss(nothing, teacher, mask, 4, loss, relations)
    assert uniform_loss(relation_target(teacher, mask, 4, loss, relations)) == pytest.approx(float(expected), rel=1e-5)


def test_uniform_loss_of_mse_is_the_mean_square_of_the_teachers_scores() -> None:
    teacher = _projections(24, seed=1)
    heads = [split_heads(x, 4).double() for x in teacher]
    squares = [(x @ x.mT).square().mean() / x.shape[-1] for x in heads]
    assert uniform_loss(relation_target(teacher, None, 4, "mse")) == pytest.approx(float(sum(squares)), rel=1e-5)


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_under_autocast_relations_are_those_of_float32(loss: str) -> None:
    teacher, student = _projections(24, seed=1), _projections(16, seed=2)
    exact = relation_target(teacher, None, 4, loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        target = relation_target(teacher, None, 4, loss)
        value = relation_loss(student, target)
    assert [table.dtype for table in target.teacher] == [torch.float32]  # one for the three relations
    # bfloat16 would be off by 4e-3.
    assert_close(target.teacher, exact.teacher)
    assert_close(value, relation_loss(student, exact))


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_bfloat16_projections_are_related_in_float32(loss: str) -> None:
    teacher, student = ([x.bfloat16() for x in _projections(16, seed)] for seed in (1, 2))
    value = relation_loss(student, relation_target(teacher, None, 4, loss))
    assert value.dtype == torch.float32
    assert_close(value.double(), _plain_loss(student, teacher, None, 4, loss), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_scoring_without_gradients_gives_the_same_value(loss: str) -> None:
    target = relation_target(_projections(24, seed=1), _mask(), 4, loss)
    student = [x.requires_grad_() for x in _projections(16, seed=2)]
    with torch.no_grad():
        without = relation_loss(student, target)
    assert not without.requires_grad
    assert_close(without, relation_loss(student, target).detach())


def test_one_target_serves_many_students() -> None:
    target = relation_target(_projections(24, seed=1), _mask(), 4)
    before = [table.clone() for table in target.teacher]
    students = [[x.requires_grad_() for x in _projections(16, seed)] for seed in (2, 3)]
    first = relation_loss(students[0], target)
    first.backward()
    relation_loss(students[1], target).backward()
    assert_close(list(target.teacher), before, atol=0, rtol=0)
    assert_close(relation_loss(students[0], target), first, atol=0, rtol=0)


def test_the_backward_pass_of_kl_keeps_nothing_of_size_tokens_by_tokens() -> None:
    rows, tokens, width, heads = 2, 64, 16, 4
    target = relation_target(_projections(24, 1, (rows, tokens)), None, heads, relations=ALL)
    student = [x.requires_grad_() for x in _projections(width, 2, (rows, tokens))]
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        relation_loss(student, target)
    assert kept == [torch.Size([3, rows, heads, width // heads, tokens])]


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_a_loss_is_the_same_number_with_any_number_of_threads(loss: str) -> None:
    """A worker of a search may have fewer threads than the search. The scores of a part are more than torch splits."""
    before = torch.get_num_threads()
    student, teacher = _projections(24, 0, (2, 80)), _projections(24, 1, (2, 80))
    losses = set()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            losses.add(float(relation_loss(student, relation_target(teacher, None, 12, loss))))
    finally:
        torch.set_num_threads(before)
    assert len(losses) == 1
