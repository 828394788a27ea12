"""Starts: what carries nothing is what a turned teacher loses, and the teacher itself is left alone."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.testing import assert_close

from autodistil_search.base.device import Device
from autodistil_search.base.errors import InputError
from autodistil_search.base.pretrained import model_sha256
from autodistil_search.nas.label_free_proxies import RelationProxy
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.superlm.relation_loss import relation_loss, relation_target
from autodistil_search.teachers import initial_weights
from autodistil_search.teachers.fitted_readers import fit_inputs
from autodistil_search.teachers.teacher import Teacher

FAMILIES = ["bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "mpnet"]
SPACE = SearchSpace("half", (3,), (32,), (1.5,), (4,), head_dim=4, relation_heads=4)
"""Everything but the depth cut from the toy teachers: 48 wide, FFN 96, 6 heads of 8."""


@pytest.fixture
def sample(toy_batch: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
    return toy_batch(rows=40, tokens=12, seed=1)[0]


def started(teacher: Teacher, subnet: Subnet, init: str, sample: Tensor) -> AutoDistilModel:
    torch.manual_seed(0)
    model = AutoDistilModel(teacher.student_config(subnet)).eval()
    initial_weights.start_from(model, teacher, init, sample, SPACE.relation_heads)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_of_the_teachers_shape_starts_as_its_copy(
    toy_teacher: Callable[..., Teacher], sample: Tensor, family: str
) -> None:
    teacher = toy_teacher(family)
    copied, *others = (started(teacher, teacher.subnet, init, sample) for init in ("slices", "pca", "fitted"))
    assert {model_sha256(other) for other in others} == {model_sha256(copied)}


@pytest.mark.parametrize("init", ["slices", "pca"])
def test_layers_of_unlike_sizes_start_as_slices_of_like_ones(
    toy_teacher: Callable[..., Teacher], sample: Tensor, init: str
) -> None:
    unlike, like = Subnet.of_layers(32, [48, 64, 48], [4, 6, 2], 8), Subnet(3, 32, 64, 6, 8)
    found, whole = (started(toy_teacher(), each, init, sample) for each in (unlike, like))
    for i, sizes in enumerate(unlike.each_layer):
        mine, other = found.layers[i], whole.layers[i]
        assert_close(mine.ffn_in.weight, other.ffn_in.weight[: sizes.ffn_size])
        if init == "slices" or i < 2:  # the last layer's heads are chosen for as many as there are
            assert_close(mine.query.weight, other.query.weight[: sizes.attention_width])
            assert_close(mine.attention_output.weight, other.attention_output.weight[:, : sizes.attention_width])
    assert found.layers[-1].query.weight.std() > 2 * found.config.initializer_range


def silence_leading_dimensions(teacher: Teacher) -> None:
    for norm in initial_weights._norms(teacher):
        norm.weight[:20] *= 0.01
        norm.bias[:20] = 0


def loss(teacher: Teacher, model: AutoDistilModel, cpu: Device, sample: Tensor) -> float:
    return RelationProxy(teacher, sample, SPACE.relation_heads, "kl", cpu).score(model)


@pytest.mark.parametrize(("family", "layers"), [*((family, 3) for family in FAMILIES), ("bert", 6)])
def test_heads_of_half_rank_lose_nothing_when_their_width_is_halved(
    toy_teacher: Callable[..., Teacher], sample: Tensor, family: str, layers: int
) -> None:
    teacher = toy_teacher(family)
    for layer in range(3):
        for part in ("query", "key", "value"):
            linear = teacher.module(layer, part)
            linear.weight[::2] = 0
            linear.bias[::2] = 0
    whole, narrow = Subnet(layers, 48, 96, 6, 8), Subnet(layers, 48, 96, 6, 4)
    copied, cut, *others = (
        started(teacher, subnet, init, sample)
        for subnet, init in ((whole, "slices"), (narrow, "slices"), (narrow, "pca"), (narrow, "fitted"))
    )
    with torch.no_grad():
        target = relation_target(copied.last_projections(sample), None, SPACE.relation_heads)
        assert relation_loss(cut.last_projections(sample), target) > 0.1
        for turned in others:
            assert relation_loss(turned.last_projections(sample), target) < 1e-4
            through = [
                model.layers[-1].attention_output.weight @ model.layers[-1].value.weight for model in (turned, copied)
            ]
            assert_close(*through, atol=1e-5, rtol=0)


@pytest.mark.parametrize("init", ["slices", "pca", "fitted"])
@pytest.mark.parametrize("head_dim", [4, 8, 16])
def test_a_superlm_has_the_relations_of_a_teacher_whose_relation_heads_lead_with_all_that_matters(
    toy_teacher: Callable[..., Teacher], sample: Tensor, init: str, head_dim: int
) -> None:
    """Half as wide as the teacher it has what matters of each relation head, as wide all, wider more than all.

    One layer, so that nothing else is sliced.
    """
    teacher, heads = toy_teacher(num_hidden_layers=1), 4
    for part in ("query", "key", "value"):
        linear = teacher.module(0, part)
        linear.weight.unflatten(0, (heads, 12))[:, 6:] = 0
        linear.bias.unflatten(0, (heads, 12))[:, 6:] = 0
    space = SearchSpace("one", (1,), (48,), (2.0,), (3, 6), head_dim=head_dim, relation_heads=heads)
    torch.manual_seed(0)
    superlm, _ = initial_weights.superlm(teacher, space, init, sample)
    with torch.no_grad():
        target = relation_target(teacher.projections(sample), None, heads)
        found = superlm.last_projections(sample)
        if init == "slices":  # does not scale: scores are divided by the root of another width
            found = [each * (head_dim / 8) ** 0.25 for each in found]
        assert relation_loss(found, target) < (1e-4 if head_dim <= 8 else 0.02)
    weight = superlm.layers[0].query.weight
    assert weight[48:].numel() == 0 or weight[48:].std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ("family", "sizes"), [*((family, {}) for family in FAMILIES), ("electra", {"embedding_size": 32})]
)
def test_hidden_dimensions_that_matter_are_kept_wherever_they_are(
    toy_teacher: Callable[..., Teacher], cpu: Device, sample: Tensor, family: str, sizes: dict[str, int]
) -> None:
    teacher = toy_teacher(family, **sizes)
    silence_leading_dimensions(teacher)
    narrow = Subnet(3, 28, 96, 6, 8)
    inits = ("slices", "pca", "fitted")
    cut, *others = (loss(teacher, started(teacher, narrow, init, sample), cpu, sample) for init in inits)
    assert others[0] < 0.5 * cut
    assert others[1] < 0.75 * cut


@given(arrays(np.float64, (9, 5), elements=st.floats(-2, 2)), st.sets(st.integers(1, 5), min_size=1))
def test_fitted_inputs_have_the_least_squared_error_of_all_widths(
    inputs: NDArray[np.float64], widths: set[int]
) -> None:
    """The gradient of the summed error is 0 at the fitted weights, up to the ridge that keeps the solution finite."""
    torch.manual_seed(0)
    module = nn.Linear(5, 3).double()
    x = torch.cat([torch.from_numpy(inputs), torch.ones(9, 1, dtype=torch.float64)], 1)
    moment, before = x.mT @ x, torch.cat([module.weight, module.bias[:, None]], 1).detach()
    with torch.no_grad():
        fit_inputs(module, moment, sorted(widths))
    weight = torch.cat([module.weight, module.bias[:, None]], 1).detach().requires_grad_()
    most, error = max(widths), torch.zeros((), dtype=torch.float64)
    for width in widths:
        read = torch.tensor([*range(width), 5])
        error = error + (x[:, read] @ weight[:, read].mT - x @ before.mT).square().sum()
    read = torch.tensor([*range(most), 5])
    ridge = max(1e-4 * float(sum(x[:, :width].square().sum() for width in widths)) / 5, 1e-9)
    error = error + ridge * (weight - before)[:, read].square().sum()
    error.backward()
    assert weight.grad is not None
    assert weight.grad[:, read].abs().max() < 1e-8 * (1 + moment.abs().max())


def test_neurons_that_repeat_others_are_cut_without_loss(
    toy_teacher: Callable[..., Teacher], cpu: Device, sample: Tensor
) -> None:
    teacher = toy_teacher()
    for layer in range(teacher.subnet.layers):
        into, out = teacher.module(layer, "ffn_in"), teacher.module(layer, "ffn_out")
        into.weight[:48], into.bias[:48] = into.weight[48:], into.bias[48:]
        out.weight[:, :48] *= 0.1
    narrow = replace(teacher.subnet, ffn_size=48)
    cut, fitted = (loss(teacher, started(teacher, narrow, init, sample), cpu, sample) for init in ("slices", "fitted"))
    assert cut > 1e-3
    assert fitted < 0.05 * cut


def test_a_superlm_as_wide_as_its_teacher_is_turned_for_its_narrower_subnets(
    toy_teacher: Callable[..., Teacher], cpu: Device, sample: Tensor
) -> None:
    teacher = toy_teacher()
    silence_leading_dimensions(teacher)
    space = SearchSpace("two", (3,), (28, 48), (2.0,), (6,), head_dim=8, relation_heads=4)
    proxy = RelationProxy(teacher, sample, space.relation_heads, "kl", cpu)
    turned, sliced = (initial_weights.superlm(teacher, space, init, sample)[0] for init in ("pca", "slices"))
    assert proxy.score(turned, space.smallest) < 0.5 * proxy.score(sliced, space.smallest)


def test_a_start_is_the_same_each_time_and_leaves_the_teacher_alone(
    toy_teacher: Callable[..., Teacher], sample: Tensor
) -> None:
    teacher = toy_teacher()
    before = model_sha256(teacher.model)
    for init in ("pca", "fitted"):
        first, second = (started(teacher, SPACE.largest, init, sample) for _ in range(2))
        assert model_sha256(first) == model_sha256(second)
        assert model_sha256(teacher.model) == before
        other = started(teacher, SPACE.largest, init, sample.flip(1)[:9])
        assert model_sha256(first) != model_sha256(other)


def test_a_family_that_cannot_be_turned_starts_from_slices_and_says_so(
    toy_teacher: Callable[..., Teacher], sample: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initial_weights, "_KNOWN_FAMILIES", ("roberta",))
    teacher = toy_teacher()
    model, notes = initial_weights.superlm(teacher, SPACE, "pca", sample)
    assert notes == ["init pca does not support teachers of type 'bert'; slices are copied instead"]
    assert model.layers[0].query.weight.equal(
        initial_weights.superlm(teacher, SPACE, "slices", sample)[0].layers[0].query.weight
    )


def test_a_random_start_takes_nothing_and_an_unknown_one_is_refused(
    toy_teacher: Callable[..., Teacher], sample: Tensor
) -> None:
    torch.manual_seed(3)
    model, notes = initial_weights.superlm(toy_teacher(), SPACE, "random", sample)
    assert notes == ["all weights start at random"]
    torch.manual_seed(3)
    untouched = AutoDistilModel(toy_teacher().student_config(SPACE.largest, SPACE))
    assert model_sha256(model) == model_sha256(untouched)
    with pytest.raises(InputError, match=r"init 'teacher'; allowed: auto, fitted, pca, "):
        initial_weights.superlm(toy_teacher(), SPACE, "teacher", sample)


def test_embeddings_alone_are_the_teachers_and_its_layers_are_not(
    toy_teacher: Callable[..., Teacher], sample: Tensor
) -> None:
    embeddings, slices, untouched = (
        started(toy_teacher(), SPACE.largest, init, sample) for init in ("embeddings", "slices", "random")
    )
    assert embeddings.word_embeddings.weight.equal(slices.word_embeddings.weight)
    assert embeddings.layers[0].query.weight.equal(untouched.layers[0].query.weight)
    assert not slices.layers[0].query.weight.equal(untouched.layers[0].query.weight)


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([2.0, 1.9, 1.7, 1.5, 1.4], "fitted"),
        ([2.0, 1.9, 1.7, 1.5, 1.6], "pca"),
        ([2.0, 1.9, 1.5, 3.5, 3.5], "slices"),
        ([2.0, 1.9, 2.1, 3.5, 1.9], "embeddings"),
        ([2.0, 2.2, 2.1, 3.5, 2.0], "random"),
        ([2.0, 1.99, 1.96, 1.95, 1.95], "random"),  # each is too little better: by 0.5, 2 and 2.5 %
        ([2.0, 1.97, 1.93, 1.92, 1.92], "embeddings"),  # layers must be better by 3 %
        ([2.0, 1.97, 1.9, 1.85, 1.85], "slices"),
    ],
)
def test_the_best_start_is_taken_and_is_the_one_that_its_name_gives(
    toy_teacher: Callable[..., Teacher],
    sample: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    losses: list[float],
    best: str,
) -> None:
    """Losses are of a random start, embeddings, slices, pca and fitted, in this order."""
    in_turn = iter(losses)
    monkeypatch.setattr(initial_weights, "relation_loss", lambda *_: torch.tensor(next(in_turn)))
    narrow = replace(SPACE.largest, hidden_size=16)  # a third as wide as the teacher
    chosen = started(toy_teacher(), narrow, "auto", sample)
    assert model_sha256(chosen) == model_sha256(started(toy_teacher(), narrow, best, sample))


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"layers": 2, "hidden_size": 48}, "slices"),  # as wide as the teacher
        ({"layers": 2, "hidden_size": 20}, "fitted"),  # 0.42 times as wide
        ({"layers": 3, "hidden_size": 40}, "fitted"),
    ],
)
def test_a_shape_for_which_the_loss_before_training_misleads_takes_its_start_without_a_comparison(
    toy_teacher: Callable[..., Teacher],
    sample: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, int],
    start: str,
) -> None:
    monkeypatch.delattr(initial_weights, "relation_loss")  # no losses are compared
    shape = replace(SPACE.largest, **changes)
    chosen, named = (started(toy_teacher(), shape, init, sample) for init in ("auto", start))
    assert model_sha256(chosen) == model_sha256(named)


@pytest.mark.parametrize("family", ["bert", "mpnet", "modernbert"])
def test_the_best_start_is_never_worse_than_random_and_is_told(
    toy_teacher: Callable[..., Teacher], sample: Tensor, cpu: Device, family: str
) -> None:
    teacher = toy_teacher(family)
    narrow = SearchSpace("narrow", (3,), (16,), (1.5,), (4,), head_dim=4, relation_heads=4)
    model = AutoDistilModel(teacher.student_config(narrow.largest, narrow)).eval()
    with torch.no_grad():
        untouched = loss(teacher, model, cpu, sample[:8])
    notes = initial_weights.start_from(model, teacher, "auto", sample, narrow.relation_heads)
    assert loss(teacher, model, cpu, sample[:8]) <= untouched
    told = re.fullmatch(r"starts from (\w+), chosen by relation loss: (\S+) \((.*)\)", notes[0])
    assert told
    others = [float(other.split()[1]) for other in told[3].split(", ")]
    assert float(told[2]) <= 1.032 * min(others)
