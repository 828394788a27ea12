"""A student as standard BERT or MPNet: the same numbers, wherever there is such a model."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from transformers import BertForSequenceClassification, BertModel, MPNetForSequenceClassification, MPNetModel

from autodistil_search.exporting.standard_models import bert_heads, bert_sizes, to_standard, why_not
from autodistil_search.spaces.cost import Vocabulary, flops, params
from autodistil_search.spaces.search_space import load_space
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilConfig, AutoDistilForSequenceClassification, AutoDistilModel

CONFIG = AutoDistilConfig(vocab_size=95, max_position_embeddings=24)


def _inputs(toy_batch: Callable[..., tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    ids, mask = toy_batch()
    kinds = torch.arange(ids.numel()).reshape(ids.shape) % 2
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds}


@pytest.mark.parametrize(("name", "count"), [("tiny", 14), ("small", 13), ("base", 6)])
def test_so_many_pairs_of_hidden_size_and_heads_are_a_bert(name: str, count: int) -> None:
    space = load_space(name)
    pairs = list(itertools.product(space.hidden_size, space.heads))
    assert len(pairs) == 16
    assert sum(bert_heads(Subnet(2, hidden, hidden, heads, space.head_dim)) is not None for hidden, heads in pairs) == (
        count
    )


@given(
    hidden=st.sampled_from([12, 16, 24, 30, 36, 48]),
    heads=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    head_dim=st.sampled_from([2, 3, 4, 8]),
)
def test_the_bert_of_a_student_computes_what_the_student_computes(
    hidden: int,
    heads: list[int],
    head_dim: int,
    toy_batch: Callable[..., tuple[Tensor, Tensor]],
    randomised: Callable[..., AutoDistilModel],
) -> None:
    subnet = Subnet.of_layers(hidden, [2 * hidden] * len(heads), heads, head_dim)
    fits = any(hidden % n == 0 and n >= max(heads) and hidden / n >= head_dim for n in range(1, hidden + 1))
    assert (bert_heads(subnet) is not None) == fits
    student = randomised(AutoDistilModel(CONFIG.resized(subnet)))
    if not fits:
        with pytest.raises(ValueError, match="no bert computes what the student does: no divisor of hidden size"):
            to_standard(student, 0)
        return
    bert = to_standard(student, 0)
    assert type(bert) is BertModel
    assert not bert.training
    inputs = _inputs(toy_batch)
    for given_inputs in (inputs, {"input_ids": inputs["input_ids"]}):
        with torch.no_grad():
            mine, theirs = student(**given_inputs), bert(**given_inputs)
        assert_close(theirs.last_hidden_state, mine.last_hidden_state, rtol=1e-5, atol=1e-5)
        assert_close(theirs.pooler_output, mine.pooler_output, rtol=1e-5, atol=1e-5)
    sizes = bert_sizes(subnet)
    assert bert.num_parameters() == params(sizes, Vocabulary(95, 24, 2))
    assert flops(sizes) >= flops(subnet)


def test_layers_of_unlike_ffn_sizes_are_no_bert() -> None:
    assert bert_heads(Subnet.of_layers(48, [96, 48], [2, 2], 8)) is None
    assert bert_heads(Subnet.of_layers(48, [96, 96], [2, 3], 8)) == 3


@pytest.mark.parametrize("labels", [1, 3])
def test_the_bert_of_a_student_keeps_its_head(
    labels: int, toy_batch: Callable[..., tuple[Tensor, Tensor]], randomised: Callable[..., AutoDistilModel]
) -> None:
    config = CONFIG.resized(Subnet(2, 48, 96, 3, 8))
    config.num_labels = labels
    config.classifier_dropout = 0.25
    if labels == 3:
        config.id2label = {0: "no", 1: "maybe", 2: "yes"}
        config.label2id = {"no": 0, "maybe": 1, "yes": 2}
    model = randomised(AutoDistilForSequenceClassification(config))
    bert = to_standard(model, 0)
    assert type(bert) is BertForSequenceClassification
    assert bert.config.id2label == config.id2label
    assert bert.num_labels == labels
    assert (bert.config.hidden_dropout_prob, bert.config.attention_probs_dropout_prob, bert.dropout.p) == (0, 0, 0.25)
    inputs = _inputs(toy_batch)
    with torch.no_grad():
        assert_close(bert(**inputs).logits, model(**inputs).logits, rtol=1e-5, atol=1e-5)


BIASED = AutoDistilConfig(
    vocab_size=95, max_position_embeddings=40, type_vocab_size=1, pad_token_id=1, relative_attention_buckets=32
)


@pytest.mark.parametrize(
    ("subnet", "heads"), [(Subnet(2, 48, 96, 6, 8), 6), (Subnet.of_layers(48, [96, 96], [2, 3], 8), 3)]
)
@pytest.mark.parametrize("labels", [0, 1, 3])
def test_a_student_with_relative_attention_bias_is_computed_by_an_mpnet(
    subnet: Subnet,
    heads: int,
    labels: int,
    toy_batch: Callable[..., tuple[Tensor, Tensor]],
    randomised: Callable[..., AutoDistilModel],
) -> None:
    config = BIASED.resized(subnet)
    if labels:
        config.num_labels = labels
    student = randomised((AutoDistilForSequenceClassification if labels else AutoDistilModel)(config))
    mpnet = to_standard(student, 1)
    assert type(mpnet) is (MPNetForSequenceClassification if labels else MPNetModel)
    assert (mpnet.config.num_attention_heads, mpnet.config.max_position_embeddings) == (heads, 42)
    assert not mpnet.training
    ids, mask = toy_batch(tokens=36)
    ids[mask == 0] = 1  # padding, to which MPNet gives no position
    with torch.no_grad():
        mine, theirs = student(ids, mask), mpnet(input_ids=ids, attention_mask=mask, token_type_ids=0 * ids)
    if labels:
        assert_close(theirs.logits, mine.logits, rtol=1e-5, atol=1e-5)
        return
    assert_close(theirs.last_hidden_state[mask == 1], mine.last_hidden_state[mask == 1], rtol=1e-5, atol=1e-5)
    assert_close(theirs.pooler_output, mine.pooler_output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "pad", "reason"),
    [
        ({}, 1, ""),
        ({}, 0, "the tokenizer pads with token 0, and MPNet with token 1"),
        ({"type_vocab_size": 2}, 1, "it has 2 token types"),
        ({"relative_attention_buckets": 16}, 1, "it has 16 buckets up to a distance of 128"),
        ({"relative_attention_max_distance": 64}, 1, "it has 32 buckets up to a distance of 64"),
        ({"relative_attention_buckets": None}, 1, "the student has no relative attention bias"),
        ({"head_dim": 32}, 1, "no divisor of hidden size 48"),
    ],
)
def test_a_student_that_is_no_mpnet_has_a_reason(changed: dict[str, int | None], pad: int, reason: str) -> None:
    config = BIASED.resized(Subnet(2, 48, 96, 6, 8))
    for key, value in changed.items():
        setattr(config, key, value)
    found = why_not(config, "mpnet", pad)
    assert found.startswith(reason)
    assert bool(found) == bool(reason)
    assert ("has relative attention bias" in why_not(config, "bert", pad)) == bool(config.relative_attention_buckets)
