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
    COSTS,
    FLOPS,
    PARAMS,
    PARAMS_NON_EMBEDDING,
    RELATION_LOSS,
    RELATION_MSE,
    SIZE_MB,
    Constraint,
    Objective,
    check_reachable,
    measured,
    parse_amount,
    parse_constraint,
    parse_objectives,
    proxy_objective,
)
from autodistil_search.space import load_space

THROUGHPUT = Objective("throughput", "throughput", "sequences/s", "maximize")
MEANING = {"acc": RELATION_LOSS, "flops": FLOPS, "params": PARAMS}


@pytest.mark.parametrize(
    "names", [names for n in (1, 2, 3) for names in itertools.permutations(MEANING, n)], ids=",".join
)
def test_objectives_keep_the_order_they_are_given_in(names):
    assert parse_objectives(",".join(names), MEANING) == [MEANING[name] for name in names]


def test_spaces_around_a_name_do_not_matter():
    assert parse_objectives(" flops , acc ", MEANING) == [FLOPS, RELATION_LOSS]


def test_acc_stands_for_what_the_loss_of_the_run_measures():
    assert proxy_objective("kl", "qq,kk,vv") == RELATION_LOSS
    assert proxy_objective("mse", "qq,kk,vv") == RELATION_MSE


@pytest.mark.parametrize(
    ("relations", "parts"),
    [
        ("qq,kk,vv", "sum of QQ, KK and VV"),
        ("vv", "VV"),
        ("qk,vv:0.5", "sum of QK and 0.5 VV"),
    ],
)
def test_the_unit_of_a_relation_loss_says_which_relations_it_sums(relations, parts):
    assert proxy_objective("kl", relations).unit == f"nats, {parts}"
    assert proxy_objective("mse", relations).unit == f"squared scores, {parts}"


@pytest.mark.parametrize("text", ["", " ", ",", "acc,acc", "flops,acc,flops", "params, params"])
def test_no_objective_or_one_twice_is_refused(text):
    with pytest.raises(InputError, match="allowed: one or more of acc, flops, params, each once"):
        parse_objectives(text, MEANING)


@pytest.mark.parametrize("text", ["latency", "acc,latency", "acc;flops", "ACC", "relation_loss", "acc flops"])
def test_an_unknown_objective_is_refused_listing_the_known(text):
    with pytest.raises(InputError, match=r"objective '.*'; allowed: acc, flops, params"):
        parse_objectives(text, MEANING)


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
    assert SIZE_MB.cost(subnet, vocabulary) == 4e-6 * cost.params(subnet, vocabulary)
    tables = (1000 + 64 + 1) * subnet.hidden_size + 2 * subnet.hidden_size  # with their norm
    assert PARAMS_NON_EMBEDDING.cost(subnet, vocabulary) == cost.params(subnet, vocabulary) - tables


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


KNOWN = {"flops": FLOPS, "throughput": THROUGHPUT}


@pytest.mark.parametrize(
    ("text", "constraint"),
    [
        ("flops<=300M", Constraint(FLOPS, 3e8, upper=True)),
        (" flops <= 1.5G", Constraint(FLOPS, 1.5e9, upper=True)),
        ("throughput>=100", Constraint(THROUGHPUT, 100, upper=False)),
    ],
)
def test_a_constraint_is_a_name_a_direction_and_an_amount(text, constraint):
    assert parse_constraint(text, KNOWN) == constraint


@pytest.mark.parametrize("text", ["", "flops", "flops=3", "flops<3", "params<=3", "<=3", "flops<=1<=2", "3>=flops"])
def test_what_is_no_constraint_is_refused(text):
    with pytest.raises(InputError, match=r"--constraint .*; allowed: .* flops, throughput"):
        parse_constraint(text, KNOWN)


@pytest.mark.parametrize("amount", ["", "fast", "-3", "0"])
def test_an_amount_of_a_constraint_is_positive(amount):
    with pytest.raises(InputError, match=r"--constraint flops<= .*; allowed: a number above 0"):
        parse_constraint(f"flops<={amount}", KNOWN)


def test_the_excess_is_a_share_of_the_bound_and_at_most_0_where_it_is_kept():
    upper, lower = (Constraint(FLOPS, 200, upper=upper) for upper in (True, False))
    assert [upper.excess(value) for value in (100, 200, 300)] == [-0.5, 0, 0.5]
    assert [lower.excess(value) for value in (100, 200, 300)] == [0.5, 0, -0.5]


def test_a_constraint_outside_what_a_space_reaches_is_refused_with_the_range():
    for constraint in (Constraint(FLOPS, 99, upper=True), Constraint(FLOPS, 501, upper=False)):
        with pytest.raises(InputError, match=r"cannot be kept in space 'tiny': its flops goes from 100 to 500"):
            check_reachable([constraint], "tiny", {"flops": [100, 500]})
    check_reachable(
        [Constraint(FLOPS, 100, upper=True), Constraint(THROUGHPUT, 1, upper=True)], "tiny", {"flops": [100]}
    )


@pytest.mark.parametrize("name", ["tiny", "small", "base", "debug"])
@pytest.mark.parametrize("objective", COSTS, ids=lambda objective: objective.name)
def test_costs_lie_between_those_of_the_ends(name, objective):
    space, vocabulary = load_space(name), Vocabulary()
    costs = [objective.cost(space.decode(genome), vocabulary) for genome in space.genomes()]
    assert [min(costs), max(costs)] == [objective.cost(end, vocabulary) for end in space.ends]


def test_a_measurement_is_a_number_or_several_by_name():
    def objective(found):
        return Objective("watts", "power", "W", "minimize", measure=lambda student: found)

    assert measured(objective(3), None) == {"watts": 3.0}
    assert measured(objective({"watts": 3, "volts": 5.0}), None) == {"watts": 3.0, "volts": 5.0}
    for wrong in ({"volts": 5}, math.nan, {"watts": 1, "volts": math.inf}):
        with pytest.raises(InputError, match=r"objective 'watts' measured .*; allowed: finite numbers, 'watts' among"):
            measured(objective(wrong), None)
