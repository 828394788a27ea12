"""The relation proxy against the same loss computed in one go."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from autodistil_search import proxies
from autodistil_search.device import Device
from autodistil_search.model import AutoDistilModel
from autodistil_search.proxies import RelationProxy
from autodistil_search.relations import relation_loss, relation_scores, relation_target, split_heads
from autodistil_search.teacher import Teacher


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
            assert proxy.score(model, subnet) == pytest.approx(float(expected), rel=1e-5)
    assert proxy.score(model) == proxy.score(model, model.space.largest)
    assert proxy.score(model.extract(model.space.smallest)) == pytest.approx(proxy.score(model, model.space.smallest))
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
        monkeypatch.setattr(proxies, "BLOCKS_AT_ONCE", size)
        proxy = RelationProxy(toy_teacher(), held_out, 4, "kl", cpu)
        scores.append((proxy.score(model), proxy.reference))
    for score in scores[1:]:
        assert score == pytest.approx(scores[0], rel=1e-5)


def test_uniform_relations_cost_log_of_the_tokens_less_the_teachers_entropy(
    toy_teacher: Callable[..., Teacher], held_out: Tensor, cpu: Device
) -> None:
    teacher = toy_teacher()
    expected = 0.0
    for x in teacher.projections(held_out):
        p = relation_scores(split_heads(x, 4).double()).softmax(-1).double()
        expected += float(torch.log(torch.tensor(10.0)) + (p * p.log()).sum(-1).mean())
    proxy = RelationProxy(teacher, held_out, 4, "kl", cpu)
    assert proxy.reference == pytest.approx(expected, rel=1e-5)


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
    assert fp32.score(twin) == pytest.approx(0, abs=1e-6)
    assert bf16.score(twin) == pytest.approx(0, abs=0.002 * fp32.reference)
