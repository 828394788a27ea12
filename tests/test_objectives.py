"""Objectives, amounts and bounds as a user writes them."""

import itertools
import json
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autodistil_search.base.errors import InputError, Terminated
from autodistil_search.nas.objectives import (
    COSTS,
    FLOPS,
    PARAMS,
    PARAMS_NON_EMBEDDING,
    RELATION_LOSS,
    RELATION_MSE,
    SIZE_MB,
    Constraint,
    Objective,
    answer,
    check_reachable,
    checked_objective,
    number,
    parse_amount,
    parse_constraint,
    parse_objectives,
    proxy_objective,
)
from autodistil_search.nas.objectives import costs as cost_columns
from autodistil_search.spaces import cost
from autodistil_search.spaces.cost import Vocabulary
from autodistil_search.spaces.search_space import load_space

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
    with pytest.raises(InputError, match=r"objective '.*'.*; allowed: acc, flops, params"):
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


SMALLEST = load_space("debug").smallest


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no words")


def of_measure(found):
    return Objective("watts", "power", "W", "minimize", measure=lambda student: found)


def test_a_measurement_is_a_number_or_several_by_name():
    assert of_measure(3).measured_on(None, SMALLEST) == {"watts": 3.0}
    assert of_measure({"watts": 3, "volts": 5.0}).measured_on(None, SMALLEST) == {"watts": 3.0, "volts": 5.0}
    for wrong in ({"volts": 5}, {"watts": 1, 2: 1}, {"watts": 1, "a,b": 1}, {"watts": 1, "line\nbreak": 1}):
        with pytest.raises(InputError, match=r"objective 'watts' measured .*; allowed: a number, or numbers by"):
            of_measure(wrong).measured_on(None, SMALLEST)
    refused = r"objective 'volts' gave inf \(float\) for subnet 2x32, .*; allowed: a finite"
    with pytest.raises(InputError, match=refused):
        of_measure({"watts": 1, "volts": math.inf}).measured_on(None, SMALLEST)


def test_a_measurement_cannot_stand_for_a_column_that_is_not_its_own():
    for name in ("flops", "layers"):
        with pytest.raises(InputError, match=f"objective 'watts' measured {name} for subnet"):
            cost_columns([of_measure({"watts": 1, name: 2}), FLOPS], SMALLEST, Vocabulary(), lambda: None)


def test_each_measurement_has_a_student_of_its_own():
    def spoils(student):
        with torch.no_grad():
            student.weight.zero_()
        return 1

    columns = [
        Objective("spoils", "", "", "minimize", measure=spoils),
        Objective("sum", "", "", "minimize", measure=lambda student: student.weight.sum()),
    ]
    found = cost_columns(columns, SMALLEST, Vocabulary(), lambda: torch.nn.Embedding.from_pretrained(torch.ones(2, 2)))
    assert found == {"spoils": 1, "sum": 4.0}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3),
        (2.5, 2.5),
        (Fraction(1, 4), 0.25),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.array(7), 7),
        (torch.tensor(2.5), 2.5),
        (torch.tensor(3), 3),
        (torch.nn.Parameter(torch.tensor(2.0)), 2.0),
        (10**20, 1e20),
        (-0.0, 0.0),
    ],
    ids=repr,
)
def test_a_scalar_becomes_a_number_that_json_and_pandas_hold(value, expected):
    found = number(value, "objective 'x'", SMALLEST)
    assert found == expected
    assert type(found) is type(expected)
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "None (NoneType)"),
        (True, "True (bool)"),
        (np.bool_(True), "(bool"),
        ("3", "'3' (str)"),
        (b"3", "b'3' (bytes)"),
        (3 + 0j, "(3+0j) (complex)"),
        (np.complex64(1), "(complex64)"),
        (torch.tensor(1j), "(Tensor)"),
        (math.nan, "nan (float)"),
        (-math.inf, "-inf (float)"),
        (np.float64("nan"), "(float64)"),
        (torch.tensor(math.nan), "(Tensor)"),
        (10**400, "(int)"),
        (10**5000, "a value that cannot be printed (int)"),
        (1e61, "1e+61 (float)"),
        (np.array([3.0]), "array([3.]) (ndarray)"),
        (torch.ones(1), "tensor([1.]) (Tensor)"),
        (torch.zeros((), device="meta"), "that cannot be read: "),
        ([1.0], "[1.0] (list)"),
        ("two\nlines" * 100, "... (str)"),
        (Unprintable(), "a value that cannot be printed (Unprintable)"),
        (lambda: 1, "(function)"),
    ],
    ids=lambda value: str(type(value)),
)
def test_what_is_no_finite_number_is_refused_in_one_line_with_its_type(value, words):
    for objective in (Objective("x", "", "", "minimize", cost=lambda subnet, vocabulary: value), of_measure(value)):
        with pytest.raises(InputError) as refused:
            cost_columns([objective], SMALLEST, Vocabulary(), lambda: None)
        (line,) = str(refused.value).splitlines()
        assert line.startswith(f"objective {objective.name!r} gave ")
        assert words in line
        assert f"for subnet {SMALLEST}" in line
        assert len(line) < 500


class Own(BaseException):
    pass


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError(3), "KeyError: 3"),
        (SystemExit(0), "SystemExit: 0"),
        (Own(), "Own"),
        (GeneratorExit(), "GeneratorExit"),
        (StopIteration(), "StopIteration"),
        (OSError(2, "No such file", "table.csv"), "FileNotFoundError: [Errno 2] No such file: 'table.csv'"),
        (ValueError("two\nlines"), "ValueError: two lines"),
        (RuntimeError("x" * 10_000), "RuntimeError: xxx"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_an_objective_raises_is_one_line_with_its_type_and_the_subnet(error, words):
    def fail(*_):
        raise error

    for objective in (
        Objective("x", "", "", "minimize", cost=fail),
        Objective("x", "", "", "minimize", measure=fail),
    ):
        with pytest.raises(InputError) as refused:
            cost_columns([objective], SMALLEST, Vocabulary(), lambda: None)
        (line,) = str(refused.value).splitlines()
        assert line.startswith(f"objective 'x' failed on subnet {SMALLEST}: {words}")
        assert len(line) < 500


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), Terminated("stopped"), InputError("mine")])
def test_an_interrupt_is_no_failure_of_an_objective(error):
    def fail(*_):
        raise error

    with pytest.raises(type(error)):
        Objective("x", "", "", "minimize", cost=fail).cost_of(SMALLEST, Vocabulary())


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({}, "without flops"),
        ({"flops": "many"}, "objective 'flops' gave 'many' (str)"),
        ({"flops": 1, "other": None}, "objective 'other' gave None"),
        ([1], "[1] (list) was measured"),
    ],
)
def test_numbers_from_a_worker_pass_the_same_gate(found, words):
    with pytest.raises(InputError) as refused:
        answer(found, [FLOPS], SMALLEST)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (3, "objective 'x' is 3 (int); allowed: an Objective"),
        (replace(FLOPS, name="flops"), "has the column 'flops' (str)"),
        (replace(FLOPS, name="a,b"), "has the column 'a,b' (str)"),
        (replace(FLOPS, name=3), "has the column 3 (int)"),
        (replace(FLOPS, name="x", unit=None), "has label, unit and direction"),
        (replace(FLOPS, name="x", direction="up"), "has label, unit and direction"),
        (replace(FLOPS, name="x", cost=None), "and neither cost nor measure; allowed"),
        (replace(FLOPS, name="x", is_proxy=True), "has is_proxy=True and cost; allowed"),
    ],
)
def test_a_plugin_that_is_no_objective_of_its_own_is_refused(found, words):
    with pytest.raises(InputError) as refused:
        checked_objective(found, "x", {"flops"})
    assert words in str(refused.value)
