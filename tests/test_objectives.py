"""Objectives, amounts and bounds as a user writes them."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autodistil_search import cost
from autodistil_search.cost import Vocabulary
from autodistil_search.errors import InputError
from autodistil_search.objectives import (
    FLOPS,
    KNOWN,
    PARAMS,
    RELATION_LOSS,
    RELATION_MSE,
    Bound,
    Objective,
    check_reachable,
    parse_amount,
    parse_objectives,
)
from autodistil_search.space import load_space

MEANING = {"acc": RELATION_LOSS, "flops": FLOPS, "params": PARAMS}


@pytest.mark.parametrize(
    "names", [names for n in (1, 2, 3) for names in itertools.permutations(MEANING, n)], ids=",".join
)
def test_objectives_keep_the_order_they_are_given_in(names):
    assert parse_objectives(",".join(names)) == [MEANING[name] for name in names]


def test_spaces_around_a_name_do_not_matter():
    assert parse_objectives(" flops , acc ") == [FLOPS, RELATION_LOSS]


def test_acc_stands_for_what_the_loss_of_the_run_measures():
    assert parse_objectives("acc", "kl") == [RELATION_LOSS]
    assert parse_objectives("acc", "mse") == [RELATION_MSE]


@pytest.mark.parametrize(
    ("relations", "parts"),
    [
        ("qq,kk,vv", "sum of QQ, KK and VV"),
        ("vv", "VV"),
        ("qk,vv:0.5", "sum of QK and 0.5 VV"),
    ],
)
def test_the_unit_of_a_relation_loss_says_which_relations_it_sums(relations, parts):
    assert parse_objectives("acc", "kl", relations)[0].unit == f"nats, {parts}"
    assert parse_objectives("acc", "mse", relations)[0].unit == f"squared scores, {parts}"


@pytest.mark.parametrize("text", ["", " ", ",", "acc,acc", "flops,acc,flops", "params, params"])
def test_no_objective_or_one_twice_is_refused(text):
    with pytest.raises(InputError, match="allowed: one or more of acc, flops, params, each once"):
        parse_objectives(text)


@pytest.mark.parametrize("text", ["latency", "acc,latency", "acc;flops", "ACC", "relation_loss", "acc flops"])
def test_an_unknown_objective_is_refused_listing_the_known(text):
    with pytest.raises(InputError, match=r"objective '.*'; allowed: acc, flops, params"):
        parse_objectives(text)


def test_losses_are_lower_when_better_and_costs_too():
    assert {each.direction for each in KNOWN} == {"minimize"}
    assert [each.name for each in KNOWN if each.cost is None] == ["relation_loss", "relation_mse"]


@settings(deadline=None, max_examples=30)
@given(st.floats(allow_nan=False))
def test_a_value_to_maximise_is_minimised_with_its_sign_turned_and_back(value):
    accuracy = Objective("accuracy", "accuracy", "share", "maximize")
    assert accuracy.minimised(value) == -value
    assert accuracy.minimised(accuracy.minimised(value)) == value
    assert FLOPS.minimised(value) == value


def test_costs_of_objectives_are_those_of_the_formulas():
    subnet, vocabulary = load_space("tiny").largest, Vocabulary(1000, 64, 1)
    assert FLOPS.cost(subnet, vocabulary) == cost.flops(subnet)
    assert PARAMS.cost(subnet, vocabulary) == cost.params(subnet, vocabulary)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("300M", 300e6),
        ("1.5G", 1.5e9),
        ("8000000", 8e6),
        ("2e8", 2e8),
        ("2E+8", 2e8),
        ("1.5e3K", 1.5e6),
        (".5g", 5e8),
        ("12k", 12e3),
        ("26B", 26e9),
        ("1.5t", 1.5e12),
        (" 7 m ", 7e6),
        ("0.25", 0.25),
        (300, 300.0),
        (2.5e8, 2.5e8),
        (1e22, 1e22),
        (None, None),
    ],
)
def test_an_amount_is_a_number_with_or_without_a_suffix(text, amount):
    assert parse_amount(text, "--max-flops") == amount


@settings(deadline=None, max_examples=60)
@given(st.floats(min_value=1e-3, max_value=1e30))
def test_a_number_is_read_as_python_reads_it(number):
    assert parse_amount(number, "--max-flops") == pytest.approx(number, rel=1e-15)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "0",
        "0.0M",
        "-3M",
        "300MB",
        "M",
        "3 0M",
        "1,5G",
        "1_000",
        "nan",
        "inf",
        "ten",
        "1e",
        "0x10",
        "1e-3",
        True,
    ],
)
def test_what_is_no_positive_amount_is_refused_naming_the_flag(text):
    with pytest.raises(InputError, match=r"--max-params .*; allowed: a number above 0 such as 300M"):
        parse_amount(text, "--max-params")


@pytest.mark.parametrize("text", ["1e400", "9e307G"])
def test_an_amount_beyond_floating_point_is_refused(text):
    with pytest.raises(InputError, match="--max-flops"):
        parse_amount(text, "--max-flops")


@pytest.mark.parametrize("objective", [FLOPS, PARAMS])
def test_a_bound_admits_up_to_and_with_its_value(objective):
    space, vocabulary = load_space("debug"), Vocabulary(100, 64, 2)
    costs = sorted(objective.cost(space.decode(genome), vocabulary) for genome in space.genomes())
    bound = Bound(objective, costs[7])
    admitted = [genome for genome in space.genomes() if bound.admits(space.decode(genome), vocabulary)]
    assert len(admitted) == sum(each <= costs[7] for each in costs)
    assert not Bound(objective, math.nextafter(costs[0], 0)).admits(space.smallest, vocabulary)


@pytest.mark.parametrize("objective", [FLOPS, PARAMS])
def test_an_unreachable_bound_is_refused_quoting_the_smallest_subnet_and_its_cost(objective):
    space, vocabulary = load_space("tiny"), Vocabulary()
    least = objective.cost(space.smallest, vocabulary)
    check_reachable([Bound(objective, least)], space, vocabulary)
    with pytest.raises(InputError) as refusal:
        check_reachable([Bound(objective, least - 1)], space, vocabulary)
    message = str(refusal.value)
    assert message.startswith(f"--max-{objective.name} {least - 1:,} cannot be reached in space 'tiny'")
    assert message.endswith(f"its smallest subnet ({space.smallest}) costs {least:,} {objective.name}")


def test_each_of_several_bounds_is_checked():
    space, vocabulary = load_space("tiny"), Vocabulary()
    with pytest.raises(InputError, match="--max-params 10 cannot be reached"):
        check_reachable([Bound(FLOPS, 1e12), Bound(PARAMS, 10)], space, vocabulary)


@pytest.mark.parametrize("name", ["tiny", "small", "base", "debug"])
@pytest.mark.parametrize("objective", [FLOPS, PARAMS])
def test_no_subnet_costs_less_than_the_smallest(name, objective):
    space, vocabulary = load_space(name), Vocabulary()
    costs = [objective.cost(space.decode(genome), vocabulary) for genome in space.genomes()]
    assert min(costs) == objective.cost(space.smallest, vocabulary)
