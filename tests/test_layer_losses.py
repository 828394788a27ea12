"""What a student learns from its teacher layer by layer, against plain formulas."""

import pytest
import torch
from rounding import loss_rounding

from autodistil_search.base.errors import InputError
from autodistil_search.distillation.layer_losses import LastHidden, LayerTransfer, Watched, layer_pairs
from autodistil_search.superlm.model import AutoDistilModel

TERMS = ("embeddings", "hidden", "attention")


def seen_of(encoder, ids, mask):
    with Watched(encoder).states() as seen:
        encoder(input_ids=ids, attention_mask=mask)
    return seen


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra", "mpnet", "modernbert"])
def test_states_are_those_of_transformers_own(kind, toy_encoder, toy_batch):
    encoder, (ids, mask) = toy_encoder(kind), toy_batch()
    seen = seen_of(encoder, ids, mask)
    expected = encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    if kind == "modernbert":  # whose last hidden states come after a norm of their own
        expected = expected[:-1]
    found = [seen.embeddings, *(seen.hidden[i] for i in range(len(expected) - 1))]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine[mask == 1], theirs[mask == 1])
    assert seen.queries[0].shape == seen.keys[2].shape == (*ids.shape, 48)


def test_queries_and_keys_are_of_the_text_where_positions_go_through_the_same_layers(toy_encoder, toy_batch):
    shared = {"relative_attention": True, "pos_att_type": "p2c|c2p", "share_att_key": True, "position_buckets": 4}
    encoder, (ids, mask) = toy_encoder("deberta-v2", position_biased_input=False, **shared), toy_batch()
    seen = seen_of(encoder, ids, mask)
    attention = encoder.encoder.layer[1].attention.self
    for found, linear in ((seen.queries[1], attention.query_proj), (seen.keys[1], attention.key_proj)):
        torch.testing.assert_close(found[mask == 1], linear(seen.hidden[0])[mask == 1])


def test_states_of_a_student_are_its_own(debug_superlm, debug_space, toy_batch):
    ids, mask = toy_batch()
    student = debug_superlm().extract(debug_space.smallest)
    seen = seen_of(student, ids, mask)
    last = debug_space.smallest.layers - 1
    torch.testing.assert_close(seen.hidden[last], student(ids, mask).last_hidden_state)
    student.config.relation_heads = None  # as the layer gives them, not by relation heads
    query, key, _ = student.last_projections(ids, mask)
    torch.testing.assert_close((seen.queries[last], seen.keys[last]), (query, key))


def test_layers_learn_from_the_last_of_equal_parts():
    assert layer_pairs(4, 12) == [(0, 2), (1, 5), (2, 8), (3, 11)]  # TinyBERT's g(m) = 3 m
    assert layer_pairs(3, 3) == [(0, 0), (1, 1), (2, 2)]
    for mine in range(1, 9):
        assert layer_pairs(mine, 6)[-1] == (mine - 1, 5)


def test_a_copy_of_the_teacher_has_nothing_to_learn(toy_encoder, toy_batch):
    teacher, student, (ids, mask) = toy_encoder(), toy_encoder(), toy_batch()
    transfer = LayerTransfer(student, teacher)
    for each in (transfer.embedding_map, transfer.hidden_map):
        torch.nn.init.eye_(each.weight)
    losses = transfer(seen_of(student, ids, mask), seen_of(teacher, ids, mask), mask, TERMS)
    torch.testing.assert_close(torch.stack(losses), torch.zeros(3), atol=loss_rounding(9), rtol=0)


@pytest.mark.parametrize("compared", ["kl", "mse"])
def test_losses_are_those_of_the_plain_formulas(compared, toy_encoder, debug_superlm, debug_space, toy_batch):
    teacher, (ids, mask) = toy_encoder(num_hidden_layers=4), toy_batch()
    student = debug_superlm().extract(debug_space.smallest)  # 2 layers, 16 wide for the teacher's 6 heads
    transfer = LayerTransfer(student, teacher, compared)
    mine, theirs = seen_of(student, ids, mask), seen_of(teacher, ids, mask)
    embeddings, hidden, attention = transfer(mine, theirs, mask, TERMS)
    real = mask == 1
    torch.testing.assert_close(
        embeddings, (transfer.embedding_map(mine.embeddings) - theirs.embeddings)[real].square().mean()
    )
    each = [(transfer.hidden_map(mine.hidden[i]) - theirs.hidden[j])[real].square().mean() for i, j in [(0, 1), (1, 3)]]
    torch.testing.assert_close(hidden, torch.stack(each).mean())
    torch.testing.assert_close(attention, plain_attention(mine, theirs, mask, compared), rtol=1e-4, atol=1e-6)


def plain_attention(mine, theirs, mask, compared):
    total = []
    for i, j in [(0, 1), (1, 3)]:
        s, t = scores(mine.queries[i], mine.keys[i]), scores(theirs.queries[j], theirs.keys[j])
        losses = []
        for row, n in enumerate(mask.sum(1).tolist()):
            for head in range(6):
                a, b = s[row, head, :n, :n], t[row, head, :n, :n]
                if compared == "mse":
                    losses.append((a - b).square().mean(-1))
                else:
                    losses.append((b.softmax(-1) * (b.log_softmax(-1) - a.log_softmax(-1))).sum(-1))
        total.append(torch.cat(losses).mean())
    return torch.stack(total).mean()


def scores(query, key):
    """Of six heads, whatever the width: padded with zeros."""
    query, key = (torch.nn.functional.pad(x, (0, -x.shape[-1] % 6)) for x in (query, key))
    query, key = (x.unflatten(-1, (6, -1)).transpose(1, 2) for x in (query, key))
    return query @ key.mT / query.shape[-1] ** 0.5


def test_every_term_teaches_what_it_compares(toy_encoder, debug_superlm, debug_space, toy_batch):
    teacher, (ids, mask) = toy_encoder(), toy_batch()
    touched = {}
    for term in TERMS:
        student: AutoDistilModel = debug_superlm().extract(debug_space.smallest)
        transfer = LayerTransfer(student, teacher)
        with transfer.watching() as (mine, theirs):
            student(ids, mask)
            teacher(input_ids=ids, attention_mask=mask)
        transfer(mine, theirs, mask, (term,))[0].backward()
        touched[term] = {name for name, each in student.named_parameters() if each.grad is not None}
    assert not any("layers" in name for name in touched["embeddings"])
    assert "layers.1.ffn_norm.weight" in touched["hidden"]
    assert "layers.1.query.weight" in touched["attention"]
    assert "layers.1.ffn_norm.weight" not in touched["attention"]


@pytest.fixture
def fitted(toy_teacher, debug_superlm):
    """A SuperLM, a teacher, some text, and what compares their last hidden states."""
    model, teacher, ids = debug_superlm(), toy_teacher(), torch.randint(5, 90, (20, 12))
    last_hidden = LastHidden(model.config.hidden_size, teacher.subnet.hidden_size)
    last_hidden.fit(model, teacher, ids)
    return model, teacher, ids, last_hidden


def test_the_map_of_last_hidden_states_starts_as_least_squares_have_it(fitted):
    model, teacher, ids, last_hidden = fitted
    mine, theirs = model(ids).last_hidden_state.flatten(0, 1), teacher.model(ids).last_hidden_state.flatten(0, 1)
    with_offset = torch.cat([mine, torch.ones(len(mine), 1)], dim=1).double()
    solution = torch.linalg.lstsq(with_offset, theirs.double()).solution
    left = (theirs - with_offset @ solution).square().sum() / (theirs - theirs.mean(0)).square().sum()
    found = last_hidden(mine[None], theirs[None])
    assert 0.1 < left < 0.9
    assert left <= found <= 1.02 * left  # least squares, but for what keeps directions that hardly vary from counting


def test_last_hidden_states_cost_nothing_if_they_are_the_teachers_but_for_a_linear_map(fitted):
    _, teacher, ids, last_hidden = fitted
    theirs = teacher.model(ids).last_hidden_state
    turned = torch.linalg.qr(torch.randn(48, 48))[0]
    with torch.no_grad():
        last_hidden.weight.copy_(turned.T)
        last_hidden.bias.fill_(0.5)
    assert last_hidden((theirs - 0.5) @ turned, theirs) < 1e-6
    last_hidden.weight.data.zero_()
    last_hidden.bias.data.copy_(theirs.mean((0, 1)))
    torch.testing.assert_close(last_hidden(theirs, theirs), torch.ones(()))  # what tells nothing


def test_a_subnet_uses_the_rows_of_its_own_hidden_dimensions(fitted):
    model, teacher, ids, last_hidden = fitted
    mine, theirs = model(ids, subnet=model.space.smallest).last_hidden_state, teacher.model(ids).last_hidden_state
    padded = torch.nn.functional.pad(mine, (0, model.config.hidden_size - mine.shape[-1]))
    assert mine.shape[-1] < padded.shape[-1]
    torch.testing.assert_close(last_hidden(mine, theirs), last_hidden(padded, theirs))


def test_nothing_is_watched_outside(toy_encoder, toy_batch):
    encoder, (ids, mask) = toy_encoder(), toy_batch()
    seen = seen_of(encoder, ids, mask)
    before = seen.hidden[0].clone()
    encoder(input_ids=ids[:, ::2], attention_mask=mask[:, ::2])
    torch.testing.assert_close(seen.hidden[0], before)


def test_a_model_whose_layers_are_unknown_is_refused(toy_encoder):
    encoder = toy_encoder()
    encoder.config.model_type = "albert"
    with pytest.raises(InputError, match="layers of models of type 'albert' are unknown; allowed: bert"):
        Watched(encoder)
