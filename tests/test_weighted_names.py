"""Names with weights, as the command line takes them."""

import pytest

from autodistil_search.base.errors import InputError
from autodistil_search.base.weighted_names import parse_relations, parse_subnet_weights


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("qq,kk,vv", (("qq", 1.0), ("kk", 1.0), ("vv", 1.0))),
        ("vv", (("vv", 1.0),)),
        ("qk:2, vv:1e-1", (("qk", 2.0), ("vv", 0.1))),
    ],
)
def test_relations_are_read_with_their_weights(text: str, expected: object) -> None:
    assert parse_relations(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", (1, 1, 1)), (" ", (1, 1, 1)), ("largest:2", (2, 1, 1)), ("random:0.5,smallest:3", (1, 3, 0.5))],
)
def test_the_roles_that_are_not_named_weigh_one(text: str, expected: tuple[float, ...]) -> None:
    assert parse_subnet_weights(text) == dict(zip(("largest", "smallest", "random"), expected, strict=True))


@pytest.mark.parametrize("text", ["", "qq,", "QQ", "qv", "qq kk", "qq,kk,qq", "vv:1,vv:2"])
def test_unknown_and_repeated_names_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^--relations '.*'; allowed: one or more of qq, kk, vv, qk, each once$"):
        parse_relations(text)


@pytest.mark.parametrize("weight", ["0", "-1", "", "much", "nan", "inf", "1:2"])
def test_a_weight_that_is_no_number_above_0_is_refused(weight: str) -> None:
    with pytest.raises(InputError, match=rf"^--subnet-weights: random has weight '{weight}'; allowed: numbers above 0"):
        parse_subnet_weights(f"largest,random:{weight}")
