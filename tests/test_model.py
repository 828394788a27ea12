"""The SuperLM sliced, extracted, reloaded, and as transformers' own BERT computes it: always the same numbers."""

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from processes import SERVER
from rounding import rounding
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, BertModel
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from autodistil_search.base.errors import InputError
from autodistil_search.base.pretrained import quiet_transformers
from autodistil_search.spaces.search_space import SearchSpace, load_space
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm import model as model_module
from autodistil_search.superlm.model import (
    AutoDistilConfig,
    AutoDistilForSequenceClassification,
    AutoDistilModel,
    attend,
)
from autodistil_search.superlm.modeling_student import relative_buckets
from autodistil_search.superlm.relation_loss import split_heads
from autodistil_search.teachers.teacher import FAMILIES

OTHER = SearchSpace("other", (1, 2, 4), (16, 40), (1.0, 2.5), (1, 3), head_dim=16, relation_heads=4)
UNLIKE = SearchSpace(
    "unlike", (1, 2), (16, 40), (1.0, 2.5), (1, 3), head_dim=16, relation_heads=4, per_layer=("mlp_ratio", "heads")
)
SPACES = {"debug": load_space("debug"), "other": OTHER, "unlike": UNLIKE}


def _superlm(
    space: SearchSpace, randomised: Callable[..., AutoDistilModel], buckets: int | None = None
) -> AutoDistilModel:
    config = AutoDistilConfig(
        vocab_size=95,
        max_position_embeddings=24,
        relation_heads=space.relation_heads,
        relative_attention_buckets=buckets,
        relative_attention_max_distance=8,
    )
    return randomised(AutoDistilModel(config.resized(space.largest, space)))


def _subnets(space: SearchSpace) -> Iterator[Subnet]:
    return (space.decode(genome) for genome in space.genomes())


def _reloaded(model: AutoDistilModel, folder: Path) -> AutoDistilModel:
    with quiet_transformers():
        model.save_pretrained(folder)
        assert (folder / "model.safetensors").exists()
        return AutoModel.from_pretrained(folder)


@pytest.fixture(params=[*SPACES, "unlike with bias"])
def superlm(request: pytest.FixtureRequest, randomised: Callable[..., AutoDistilModel]) -> AutoDistilModel:
    name, *bias = request.param.split(" with ")
    return _superlm(SPACES[name], randomised, 8 if bias else None)


@pytest.mark.parametrize("padded", [False, True])
def test_each_subnet_computes_what_its_extracted_and_its_reloaded_student_compute(
    superlm: AutoDistilModel, toy_batch: Callable[..., tuple[Tensor, Tensor]], tmp_path: Path, padded: bool
) -> None:
    ids, mask = toy_batch()
    kinds = torch.arange(ids.numel()).reshape(ids.shape) % 2
    inputs = {"input_ids": ids, "attention_mask": mask if padded else None}
    with torch.no_grad():
        for subnet in _subnets(superlm.space):
            student = superlm.extract(subnet)
            sliced = superlm(**inputs, token_type_ids=kinds, subnet=subnet)
            assert sliced.last_hidden_state.shape == (*ids.shape, subnet.hidden_size)
            for model in (student, _reloaded(student, tmp_path / "student")):
                assert model.config.subnet == subnet
                found = model(**inputs, token_type_ids=kinds)
                assert_close(found.last_hidden_state, sliced.last_hidden_state, atol=1e-5, rtol=0)
                assert_close(found.pooler_output, sliced.pooler_output, atol=1e-5, rtol=0)
                assert_close(
                    model.last_projections(**inputs),
                    superlm.last_projections(**inputs, subnet=subnet),
                    atol=1e-5,
                    rtol=0,
                )


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("in_turns", [False, True])
def test_last_projections_are_those_the_full_forward_pass_computes(
    superlm: AutoDistilModel, toy_batch: Callable[..., tuple[Tensor, Tensor]], padded: bool, in_turns: bool
) -> None:
    """Ordered by relation heads: as they are in blocks, every so many-th dimension in turns."""
    heads = superlm.space.relation_heads
    if not in_turns:
        superlm.config.relation_heads = None
    ids, mask = toy_batch()
    last, seen = superlm.layers[-1], []
    for part in (last.query, last.key, last.value):
        part.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        for subnet in _subnets(superlm.space):
            superlm(ids, mask if padded else None, subnet=subnet)
            order = [i for head in range(heads) for i in range(head, seen[0].shape[-1], heads)]
            expected = tuple(each[..., order] if in_turns else each for each in seen)
            seen.clear()
            found = superlm.last_projections(ids, mask if padded else None, subnet=subnet)
            seen.clear()
            assert_close(found, expected, atol=rounding(48), rtol=0)  # sums over 48 dimensions
            if not padded:
                projections, hidden = superlm.last_layer(ids, subnet)
                seen.clear()
                assert_close(projections, expected, atol=rounding(48), rtol=0)
                whole = superlm(ids, subnet=subnet).last_hidden_state
                assert_close(hidden, whole, atol=rounding(96), rtol=0)
                seen.clear()


def test_a_subnet_with_fewer_heads_has_the_leading_dimensions_of_every_relation_head(
    randomised: Callable[..., AutoDistilModel], toy_batch: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    """So a weight means the same to the loss of every subnet that uses it. One layer: what is below it is equal."""
    space = SearchSpace("heads", (1,), (16,), (1.0,), (1, 2, 3), head_dim=8, relation_heads=4)
    superlm, (ids, _) = _superlm(space, randomised), toy_batch()
    narrow, _, wide = (
        [split_heads(each, 4) for each in superlm.last_projections(ids, subnet=subnet)] for subnet in _subnets(space)
    )
    assert narrow[0].shape[-1] == 2
    assert_close(narrow, [each[..., :2] for each in wide], atol=rounding(16, 2), rtol=0)  # numbers up to 2


def _as_bert(model: AutoDistilModel) -> BertModel:
    """Transformers' BERT with the weights of `model`, part by part."""
    config, family = model.config, FAMILIES["bert"]
    bert = BertModel(
        BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_position_embeddings,
            hidden_act=config.hidden_act,
        )
    ).eval()
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        getattr(bert.embeddings, name).load_state_dict(getattr(model, name).state_dict())
    bert.embeddings.LayerNorm.load_state_dict(model.embedding_norm.state_dict())
    bert.pooler.dense.load_state_dict(model.pooler.state_dict())
    parts = ("query", "key", "value", "attention_output", "attention_norm", "ffn_in", "ffn_out", "ffn_norm")
    for mine, theirs in zip(model.layers, bert.get_submodule(family.layers), strict=True):
        for part in parts:
            theirs.get_submodule(getattr(family, part)).load_state_dict(getattr(mine, part).state_dict())
    return bert


@pytest.mark.parametrize("padded", [False, True])
def test_a_traced_model_computes_without_the_fused_kernel_what_it_computes_with_it(
    superlm: AutoDistilModel,
    toy_batch: Callable[..., tuple[Tensor, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    padded: bool,
) -> None:
    ids, mask = toy_batch()
    expected, calls, fused = [], [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k))
    for tracing in (False, True):
        monkeypatch.setattr(torch.jit, "is_tracing", lambda tracing=tracing: tracing)
        superlm.zero_grad()
        projections = superlm.last_projections(ids, mask if padded else None)
        torch.stack(projections)[:, mask == 1].square().sum().backward()
        expected.append([p.detach()[mask == 1] for p in projections] + [superlm.layers[0].key.weight.grad.clone()])
    assert_close(expected[1], expected[0], atol=1e-4, rtol=1e-4)
    assert len(calls) == len(superlm.layers) - 1  # of the last layer only the projections are computed


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_model_with_heads_as_wide_as_its_hidden_size_is_bert(
    randomised: Callable[..., AutoDistilModel],
    toy_batch: Callable[..., tuple[Tensor, Tensor]],
    padded: bool,
    activation: str,
) -> None:
    config = AutoDistilConfig(vocab_size=95, max_position_embeddings=24, hidden_act=activation)
    model = randomised(AutoDistilModel(config.resized(Subnet(3, 48, 96, 6, 8))))
    bert = _as_bert(model)
    ids, mask = toy_batch()
    kinds = torch.arange(ids.numel()).reshape(ids.shape) % 2
    inputs = {"input_ids": ids, "attention_mask": mask if padded else None, "token_type_ids": kinds}
    with torch.no_grad():
        expected, found = bert(**inputs), model(**inputs)
    assert_close(found.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=0)
    assert_close(found.pooler_output, expected.pooler_output, atol=1e-5, rtol=0)


def test_tokens_under_the_mask_do_not_influence_the_others(
    superlm: AutoDistilModel, toy_batch: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    ids, mask = toy_batch()
    others = torch.where(mask == 0, 5 + (ids + 1) % 90, ids)
    assert not others.equal(ids)
    with torch.no_grad():
        before, after = superlm(ids, mask).last_hidden_state, superlm(others, mask).last_hidden_state
        alone = superlm(ids[2:, :7]).last_hidden_state
    assert_close(after[mask == 1], before[mask == 1], atol=rounding(48), rtol=0)
    assert_close(before[2:, :7], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("rule", "used"), [("first_last", [0, 3]), ("uniform", [0, 2]), ("prefix", [0, 1])])
def test_the_depth_rule_says_which_layers_run_and_which_are_extracted(
    randomised: Callable[..., AutoDistilModel],
    toy_batch: Callable[..., tuple[Tensor, Tensor]],
    rule: str,
    used: list[int],
) -> None:
    space = SearchSpace("depths", (2, 4), (16,), (2.0,), (2,), head_dim=8, relation_heads=4, depth=rule)
    model, ran = _superlm(space, randomised), []
    for index, layer in enumerate(model.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    model(toy_batch()[0], subnet=space.smallest)
    assert ran == used
    student = model.extract(space.smallest)
    for mine, index in zip(student.layers, used, strict=True):
        assert_close(mine.state_dict(), model.layers[index].state_dict(), atol=0, rtol=0)


@pytest.mark.parametrize(
    "outside", [Subnet(1, 32, 48, 2, 8), Subnet(2, 40, 60, 2, 8), Subnet(2, 32, 40, 2, 8), Subnet(2, 32, 48, 2, 16)]
)
def test_extract_refuses_a_subnet_outside_of_the_space(
    debug_superlm: Callable[..., AutoDistilModel], outside: Subnet
) -> None:
    with pytest.raises(InputError, match=r"is not in space 'debug'.*layers \[2, 3\]"):
        debug_superlm().extract(outside)


def test_a_student_has_no_space_to_extract_from(debug_superlm: Callable[..., AutoDistilModel]) -> None:
    superlm = debug_superlm()
    student = superlm.extract(superlm.space.largest)
    assert student.config.search_space is None
    with pytest.raises(ValueError, match="student"):
        student.extract(superlm.space.smallest)


def test_an_extracted_student_shares_no_weights_with_the_superlm(debug_superlm: Callable[..., AutoDistilModel]) -> None:
    superlm = debug_superlm()
    before = {name: tensor.clone() for name, tensor in superlm.state_dict().items()}
    student = superlm.extract(superlm.space.largest)
    assert not student.training
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(7)
    assert_close(superlm.state_dict(), before, atol=0, rtol=0)


@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (32, 64), (8, 20)])
def test_buckets_of_distances_are_mpnets(buckets: int, farthest: int) -> None:
    positions = torch.arange(400)
    ahead = positions[None] - positions[:, None]
    expected = MPNetEncoder.relative_position_bucket(ahead, buckets, farthest)
    found = relative_buckets(400, torch.device("cpu"), buckets, farthest)
    assert found.equal(expected)
    assert found.unique().tolist() == [*range(buckets // 2), *range(buckets // 2 + 1, buckets)]  # 0 is not ahead


@pytest.mark.parametrize("padded", [False, True])
def test_attention_with_bias_is_the_softmax_of_biased_scores_in_each_path(padded: bool) -> None:
    """Float32 takes the fused kernel, float64 and bfloat16 take plain products; gradients reach the bias."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 9, 4, dtype=torch.double) for _ in range(3))
    bias = torch.randn(1, 3, 9, 9, dtype=torch.double)
    seen = (torch.arange(9) < 9 - 4 * padded)[None, None, None]
    scores = (query @ key.mT / 2 + bias).masked_fill(~seen, -torch.inf)
    expected = scores.softmax(-1) @ value
    for dtype, tolerance in ((torch.double, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        mask = bias.to(dtype).masked_fill(~seen, torch.finfo(dtype).min).requires_grad_()
        found = attend(*(each.to(dtype) for each in (query, key, value)), mask)
        assert_close(found.double(), expected, atol=tolerance, rtol=0)
        found.square().sum().backward()
        assert mask.grad[..., :5].count_nonzero(dim=-1).min() > 0


def test_the_bias_of_a_subnet_is_trained_by_its_own_heads_alone(
    randomised: Callable[..., AutoDistilModel], toy_batch: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    superlm, (ids, _) = _superlm(UNLIKE, randomised, 8), toy_batch(tokens=23)  # a length of no other test
    with torch.inference_mode():
        superlm(ids)  # as latency is measured; what it leaves behind must serve training
    superlm(ids, subnet=Subnet.of_layers(16, [16, 16], [1, 1], 16)).last_hidden_state.square().sum().backward()
    gradient = superlm.relative_attention_bias.weight.grad
    assert gradient[:, 0].count_nonzero() == 7  # of the eight buckets, that of distance 0 ahead holds none
    assert not gradient[:, 1:].any()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch warns itself while it traces
def test_a_compiled_layer_takes_relative_attention_bias_as_a_plain_one(
    randomised: Callable[..., AutoDistilModel], toy_batch: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    found, (ids, _) = [], toy_batch()
    for compiled in (False, True):
        superlm = _superlm(UNLIKE, randomised, 8)
        if compiled:
            superlm.layers[0].compile(dynamic=True, backend="eager")  # traced, and no code generated
        superlm.last_layer(ids, Subnet.of_layers(16, [16, 40], [1, 3], 16))[1].square().sum().backward()
        found.append(superlm.relative_attention_bias.weight.grad)
    torch.compiler.reset()
    assert found[0].abs().max() > 0
    assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)


def test_a_configuration_of_before_relative_attention_bias_has_none(
    debug_superlm: Callable[..., AutoDistilModel], tmp_path: Path
) -> None:
    superlm = debug_superlm()
    superlm.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    kept = {key: value for key, value in config.items() if not key.startswith("relative_attention")}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    assert AutoDistilModel.from_pretrained(tmp_path).relative_attention_bias is None


def test_the_space_of_a_superlm_is_checked_once_until_the_configuration_changes(
    debug_superlm: Callable[..., AutoDistilModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    superlm, made = debug_superlm(), []
    monkeypatch.setattr(model_module, "SearchSpace", lambda **given: made.append(given) or SearchSpace(**given))
    first = superlm.space
    assert superlm.space is first
    assert copy.deepcopy(superlm).space == pickle.loads(pickle.dumps(superlm)).space == first
    assert len(made) == 1
    superlm.config.search_space["depth"] = "prefix"  # in place
    assert superlm.space == dataclasses.replace(first, depth="prefix")
    superlm.config = superlm.config.resized(UNLIKE.largest, UNLIKE)
    assert superlm.space == UNLIKE


def _loss(model: AutoDistilModel, ids: Tensor, mask: Tensor, subnet: Subnet | None = None) -> Tensor:
    output = model(ids, mask, subnet=subnet)
    weights = torch.linspace(-1, 1, output.last_hidden_state.numel()).view_as(output.last_hidden_state)
    return (output.last_hidden_state * weights).sum() + output.pooler_output.square().sum()


def test_the_gradient_of_a_subnet_is_its_students_and_zero_outside_of_its_slices(
    debug_superlm: Callable[..., AutoDistilModel], toy_batch: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    superlm, (ids, mask) = debug_superlm(), toy_batch()
    subnet = superlm.space.smallest
    student = superlm.extract(subnet)
    _loss(superlm, ids, mask, subnet).backward()
    _loss(student, ids, mask).backward()
    gradients = {name: parameter.grad for name, parameter in superlm.named_parameters()}
    for name, parameter in student.named_parameters():
        own = gradients.pop(name.replace("layers.1", "layers.2"))  # two of three layers: the first and the last
        inside = tuple(slice(n) for n in parameter.shape)
        assert parameter.grad.abs().max() > 0 or name.endswith("key.bias")  # adds alike to all scores of a row
        assert_close(own[inside], parameter.grad, atol=1e-4, rtol=1e-4)
        own[inside] = 0
        assert own.count_nonzero() == 0
    assert set(gradients) == {name for name in superlm.state_dict() if name.startswith("layers.1.")}
    assert all(gradient is None for gradient in gradients.values())


def test_words_looked_up_once_for_several_subnets_get_the_sum_of_their_gradients(
    debug_superlm: Callable[..., AutoDistilModel], toy_batch: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    ids, mask = toy_batch()
    found, made = [], []
    for shared in (False, True):
        superlm = debug_superlm()
        table = superlm.word_embeddings.weight
        table.register_hook(lambda gradient, shared=shared: made.append(shared))
        with superlm.shared_words(ids) if shared else nullcontext() as words:
            for subnet in (superlm.space.largest, superlm.space.smallest):
                projections = superlm.last_projections(ids, mask, subnet=subnet, words=words)
                sum(each.square().sum() for each in projections).backward()
        found.append({name: parameter.grad for name, parameter in superlm.named_parameters()})
    assert made == [False, False, True]
    assert found[0]["word_embeddings.weight"].abs().max() > 0
    assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)


def _states_of_the_smallest(folder: Path) -> None:
    model = AutoModel.from_pretrained(folder / "superlm")
    ids, mask = torch.load(folder / "batch.pt")
    torch.save(model(ids, mask, subnet=model.space.smallest).last_hidden_state, folder / "found.pt")


def test_a_superlm_saved_here_is_the_same_in_a_fresh_process(
    debug_superlm: Callable[..., AutoDistilModel], toy_batch: Callable[..., tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    superlm, (ids, mask) = debug_superlm(), toy_batch()
    with quiet_transformers():
        superlm.save_pretrained(tmp_path / "superlm")
    torch.save((ids, mask), tmp_path / "batch.pt")
    process = SERVER.Process(target=_states_of_the_smallest, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    expected = superlm(ids, mask, subnet=superlm.space.smallest).last_hidden_state
    assert_close(torch.load(tmp_path / "found.pt"), expected, atol=1e-5, rtol=0)


def test_bfloat16_autocast_stays_close_to_float32(
    superlm: AutoDistilModel, toy_batch: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    ids, mask = toy_batch()
    with torch.no_grad():
        exact = superlm(ids, mask).last_hidden_state
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = superlm(ids, mask).last_hidden_state
            projections = superlm.last_projections(ids, mask)
    assert [each.dtype for each in projections] == [torch.bfloat16] * 3
    error = (rough.float() - exact).norm() / exact.norm()
    assert 0 < error < 0.03


def test_a_model_told_to_return_a_tuple_returns_states_and_pooled(
    debug_superlm: Callable[..., AutoDistilModel], toy_batch: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    superlm, (ids, mask) = debug_superlm(), toy_batch()
    output = superlm(ids, mask)
    assert_close(superlm(ids, mask, return_dict=False), (output.last_hidden_state, output.pooler_output))


def _with_head(debug_superlm: Callable[..., AutoDistilModel], tmp_path: Path, labels: int, **settings: float):
    """A head on a student, loaded from a folder that holds the student's encoder alone."""
    superlm = debug_superlm()
    student = superlm.extract(superlm.space.smallest)
    with quiet_transformers():
        student.save_pretrained(tmp_path / "encoder")
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "encoder", num_labels=labels, **settings)
    return student, model


@pytest.mark.parametrize("labels", [1, 3])
def test_a_head_on_an_encoder_keeps_the_encoder_and_is_the_same_when_loaded_again(
    debug_superlm: Callable[..., AutoDistilModel],
    toy_batch: Callable[..., tuple[Tensor, Tensor]],
    tmp_path: Path,
    labels: int,
) -> None:
    student, model = _with_head(debug_superlm, tmp_path, labels)
    assert isinstance(model, AutoDistilForSequenceClassification)
    assert model.classifier.weight.std() > 0
    inputs = dict(zip(("input_ids", "attention_mask"), toy_batch(), strict=True))
    with torch.no_grad(), quiet_transformers():
        logits = model(**inputs).logits
        assert logits.shape == (3, labels)
        assert_close(logits, model.classifier(student(**inputs).pooler_output))
        model.save_pretrained(tmp_path / "whole")
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole")
        assert_close(again(**inputs).logits, logits)
        encoder = AutoModel.from_pretrained(tmp_path / "whole")  # without its head
        assert_close(encoder(**inputs).pooler_output, student(**inputs).pooler_output)


def test_the_loss_of_a_head_is_cross_entropy_of_classes_and_the_squared_error_of_numbers(
    debug_superlm: Callable[..., AutoDistilModel], toy_batch: Callable[..., tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    ids, mask = toy_batch()
    _, classes = _with_head(debug_superlm, tmp_path, 3)
    wanted = torch.tensor([2, 0, 1])
    output = classes(ids, mask, labels=wanted)
    assert_close(output.loss, F.cross_entropy(output.logits, wanted))
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in classes.parameters())
    _, number = _with_head(debug_superlm, tmp_path, 1)
    values = torch.tensor([0.5, -1.0, 2.0])
    output = number(ids, mask, labels=values)
    assert_close(output.loss, F.mse_loss(output.logits[:, 0], values))
    assert_close(number(ids, mask, labels=values, return_dict=False), (output.loss, output.logits))
    assert number(ids, mask).loss is None


def test_the_dropout_of_a_head_is_the_configurations_and_acts_in_training_only(
    debug_superlm: Callable[..., AutoDistilModel], toy_batch: Callable[..., tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    ids, _ = toy_batch()
    _, model = _with_head(debug_superlm, tmp_path, 2, classifier_dropout=0.5)
    assert model.dropout.p == 0.5
    assert AutoDistilConfig().classifier_dropout == 0.1
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model(ids).logits)
        model.train()
        assert not torch.equal(model(ids).logits, model(ids).logits)


def test_a_head_has_the_word_embeddings_of_its_encoder(
    debug_superlm: Callable[..., AutoDistilModel], tmp_path: Path
) -> None:
    _, model = _with_head(debug_superlm, tmp_path, 2)
    assert model.get_input_embeddings() is model.autodistil.word_embeddings
    model.resize_token_embeddings(100)
    assert model.autodistil.word_embeddings.num_embeddings == model.config.vocab_size == 100


@pytest.mark.parametrize(
    "asked",
    [
        {"attn_implementation": "made-up/kernel"},
        {"_attn_implementation": "made-up/kernel"},
        {"quantization_config": {"quant_method": "made-up"}, "transformers_weights": "elsewhere.safetensors"},
    ],
)
def test_a_students_folder_cannot_ask_for_kernels(asked, debug_superlm, debug_space, tmp_path):
    debug_superlm().extract(debug_space.smallest).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | asked))
    for kind in (AutoDistilModel, AutoModel):
        assert kind.from_pretrained(tmp_path).config._attn_implementation == "eager"
