"""Which subnets a step trains, by each rule's name."""

import random

import pytest

from autodistil_search.distillation.sampling import SAMPLINGS, draw
from autodistil_search.spaces.search_space import load_space

SPACE = load_space("debug")


@pytest.mark.parametrize(
    ("sampling", "roles"),
    [
        ("largest-random", ["largest", "random"]),
        ("sandwich", ["largest", "smallest", "random", "random"]),
        ("random", ["random"] * 4),
        ("largest", ["largest"]),
    ],
)
def test_each_rule_draws_its_ends_and_others_from_the_whole_space(sampling: str, roles: list[str]) -> None:
    seen = set()
    for seed in range(100):
        drawn = draw(SPACE, sampling, None, "", random.Random(seed))
        assert [each.role for each in drawn] == roles
        ends = {"largest": SPACE.largest, "smallest": SPACE.smallest}
        assert all(each.subnet == ends.get(each.role, each.subnet) for each in drawn)
        assert [each.weight for each in drawn] == [1 / len(roles)] * len(roles)
        seen.update(each.subnet for each in drawn if each.role == "random")
    assert len(seen) == (SPACE.size if "random" in roles else 0)


def test_every_rule_is_tested() -> None:
    assert set(SAMPLINGS) == {"largest-random", "sandwich", "random", "largest"}


@pytest.mark.parametrize("sampling", ["largest-random", "sandwich", "random"])
def test_the_number_of_random_subnets_can_be_chosen(sampling: str) -> None:
    for count in (1, 2, 7):
        drawn = draw(SPACE, sampling, count, "", random.Random(0))
        assert sum(each.role == "random" for each in drawn) == count
        assert len(drawn) == count + len(SAMPLINGS[sampling].ends)


def test_weights_by_role_share_out_the_loss_of_a_step() -> None:
    drawn = draw(SPACE, "sandwich", 2, "largest:4,random:0.5", random.Random(0))
    assert [each.weight for each in drawn] == pytest.approx([4 / 6, 1 / 6, 0.5 / 6, 0.5 / 6])
