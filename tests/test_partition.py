"""K-shot partition: nothing lost or added, the best cuts, files that `--space` takes."""

import itertools
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autodistil_search.base.errors import InputError
from autodistil_search.base.files import locked
from autodistil_search.cli.main import main
from autodistil_search.runs.training_inputs import load_spaces
from autodistil_search.spaces.cost import flops
from autodistil_search.spaces.partition import partition, spread_within, write_spaces
from autodistil_search.spaces.search_space import SearchSpace, load_space, shipped_spaces
from autodistil_search.spaces.subnet import DIMENSIONS

TOY = SearchSpace("toy", (1, 2, 4), (32, 48), (1.5, 2.0), (2, 4), head_dim=8, relation_heads=4, depth="uniform")


def subnets(space):
    return [space.decode(genome) for genome in space.genomes()]


def values(elements):
    return st.lists(elements, min_size=1, max_size=4, unique=True)


spaces = st.builds(
    SearchSpace,
    name=st.sampled_from(["toy", "a" * 64, "null", "7", "1e5", "x.y_z-1of2"]),
    layers=values(st.integers(1, 12)),
    hidden_size=values(st.integers(1, 9).map(lambda n: 16 * n)),
    mlp_ratio=values(st.integers(1, 64).map(lambda n: n / 16)),
    heads=values(st.integers(1, 9)),
    head_dim=st.sampled_from([8, 16]),
    relation_heads=st.just(4),
    depth=st.sampled_from(["first_last", "uniform", "prefix"]),
)
cases = spaces.flatmap(lambda space: st.tuples(st.just(space), st.integers(1, min(space.size, 20))))


@given(cases)
def test_every_subnet_lies_in_exactly_one_sub_space(case):
    space, k = case
    parts = partition(space, k)
    assert len(parts) == k
    assert sorted(itertools.chain(*map(subnets, parts))) == sorted(subnets(space))


@given(cases)
def test_sub_spaces_hold_neighbouring_values_are_ordered_by_cost_and_share_the_rest(case):
    space, k = case
    parts = partition(space, k)
    for part, dimension in itertools.product(parts, DIMENSIONS):
        kept, every = getattr(part, dimension), getattr(space, dimension)
        start = every.index(kept[0])
        assert kept == every[start : start + len(kept)]
    assert {(part.head_dim, part.relation_heads, part.depth) for part in parts} == {
        (space.head_dim, space.relation_heads, space.depth)
    }
    medians = [statistics.median(map(flops, subnets(part))) for part in parts]
    assert medians == sorted(medians)


@given(cases)
def test_the_files_hold_the_sub_spaces_under_names_of_their_own(tmp_path_factory, case):
    space, k = case
    parts = partition(space, k)
    paths = write_spaces(parts, space, tmp_path_factory.mktemp("parts"))
    assert len({part.name for part in parts}) == k
    assert [path.stem for path in paths] == [part.name for part in parts]
    assert load_spaces(list(map(str, paths))) == parts


def squares(logs):
    return math.fsum((each - statistics.fmean(logs)) ** 2 for each in logs)


def halved(space):
    """Every way to cut a space in two, one value list at a time."""
    for dimension in DIMENSIONS:
        every = getattr(space, dimension)
        for at in range(1, len(every)):
            yield [SearchSpace(**{**space.to_dict(), dimension: list(part)}) for part in (every[:at], every[at:])]


@given(spaces.filter(lambda space: space.size > 1))
def test_two_sub_spaces_are_the_pair_with_the_least_spread_of_log_flops(space):
    best = min(
        sum(squares([math.log(flops(each)) for each in subnets(half)]) for half in pair) for pair in halved(space)
    )
    whole = squares([math.log(flops(each)) for each in subnets(space)])
    assert spread_within(space, partition(space, 2)) == pytest.approx(best / whole, abs=1e-9)


@given(cases)
def test_one_more_sub_space_divides_one_and_leaves_the_others(case):
    space, k = case
    fewer, more = (
        {frozenset(subnets(part)) for part in partition(space, each)} for each in (k, min(k + 1, space.size))
    )
    assert len(fewer - more) == (k < space.size)


def test_one_sub_space_is_the_space_itself():
    assert partition(TOY, 1) == [TOY]
    assert spread_within(TOY, [TOY]) == 1


def test_as_many_sub_spaces_as_subnets_hold_one_each_cheapest_first():
    parts = partition(TOY, TOY.size)
    assert [part.size for part in parts] == [1] * TOY.size
    assert [part.smallest for part in parts] == sorted(subnets(TOY), key=flops)
    assert spread_within(TOY, parts) == 0


@pytest.mark.parametrize("k", [-1, 0, TOY.size + 1])
def test_more_sub_spaces_than_subnets_or_none_are_refused(k):
    with pytest.raises(InputError, match=f"--k {k}; allowed: 1 to {TOY.size}, the number of subnets of space 'toy'"):
        partition(TOY, k)


def test_a_space_too_large_to_count_is_refused():
    large = SearchSpace("large", range_of(100), range_of(100), (16, 32), range_of(100), head_dim=4, relation_heads=4)
    with pytest.raises(InputError, match=r"'large' has 2,000,000 subnets; allowed: up to 1,000,000"):
        partition(large, 2)


def range_of(n):
    return tuple(range(1, n + 1))


def test_the_one_shot_space_is_that_of_the_released_code():
    space = load_space("oneshot")
    assert space.size == 12 * 12 * 12 * 8 == 13_824
    assert space.largest == load_space("oneshot").decode((11, 11, 7, 11))
    assert (space.largest.layers, space.largest.hidden_size, space.largest.ffn_size) == (12, 768, 3072)
    assert (space.largest.heads, space.head_dim) == (12, 64)  # BERT-base


def test_the_one_shot_space_in_three():
    space = load_space("oneshot")
    found = [
        (part.name, part.size, part.layers, part.hidden_size, flops(part.smallest), flops(part.largest))
        for part in partition(space, 3)
    ]
    deep, wide, narrow = tuple(range(4, 13)), tuple(range(320, 769, 64)), (64, 128, 192, 256)
    assert found == [
        ("oneshot-1of3", 4608, range_of(12), narrow, 4_722_688, 2_315_321_344),
        ("oneshot-2of3", 2304, (1, 2, 3), wide, 25_792_512, 2_793_996_288),
        ("oneshot-3of3", 6912, deep, wide, 102_862_848, 11_174_215_680),
    ]
    assert all(part.mlp_ratio == space.mlp_ratio for part in partition(space, 3))
    assert all(part.heads == space.heads for part in partition(space, 3))


def printed_spaces(printed):
    line = next(line for line in printed.splitlines() if line.startswith("--space "))
    return line.removeprefix("--space ").strip("'").split(",")


@pytest.mark.parametrize("name", [name for name in shipped_spaces() if name != "elastic"])
def test_the_command_prints_the_flag_that_takes_all_sub_spaces(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    assert main(["partition", name, "--k", "3", "--out", "my parts"]) == 0
    printed = capsys.readouterr().out
    parts = load_spaces(printed_spaces(printed))
    assert parts == partition(load_space(name), 3)
    for part in parts:
        row = next(line for line in printed.splitlines() if line.startswith(part.name)).split()
        assert row[1] == f"{part.size:,}"
        assert [row[2], row[4]] == [f"{flops(end) / 1e6:,.1f}M" for end in (part.smallest, part.largest)]
    head = (tmp_path / "my parts" / f"{name}-1of3.yaml").read_text().splitlines()[:2]
    assert f"{parts[0].size:,} subnets of {flops(parts[0].smallest) / 1e6:,.1f}M to" in head[0]
    assert head[0].endswith(f"a part of space {name},")
    assert f"{load_space(name).size:,} subnets of" in head[1]


def test_the_same_command_again_changes_no_file(tmp_path, capsys):
    command = ["partition", "tiny", "--k", "2", "--out", str(tmp_path)]
    assert main(command) == 0
    path = tmp_path / "tiny-2of2.yaml"
    path.write_text("# my own words\n" + path.read_text())
    before = path.stat().st_mtime_ns, path.read_text()
    assert main(command) == 0
    assert (path.stat().st_mtime_ns, path.read_text()) == before


def test_a_space_in_one_part_may_go_where_its_file_lies(tmp_path):
    path = tmp_path / "tiny.yaml"
    assert main(["partition", "tiny", "--k", "1", "--out", str(tmp_path)]) == 0
    assert main(["partition", str(path), "--k", "1", "--out", str(tmp_path)]) == 0
    assert load_space(path) == load_space("tiny")


@pytest.mark.parametrize("content", ["name: tiny-2of2", "", "\x00", "layers: ["])
def test_a_file_with_anything_else_is_left_alone_and_nothing_is_written(content, tmp_path, capsys):
    path = tmp_path / "tiny-2of2.yaml"
    path.write_text(content)
    assert main(["partition", "tiny", "--k", "2", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {path} exists and holds something else; move it away, or name another folder with --out\n"
    )
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "--k", "0"], "--k 0; allowed: 1 to 256"),
        (["tiny", "--k", "257"], "--k 257; allowed: 1 to 256"),
        (["tiny", "--k", "two"], "two"),
        (["tiny"], "--k is required"),
        (["huge", "--k", "2"], "no search space 'huge'; allowed: base, debug"),
        (["tiny", "--k", "2", "--out", "a,b"], "'a,b'; allowed: a folder without a comma"),
        (["tiny", "--k", "2", "--out", "/dev/null"], "--out '/dev/null' cannot be used as a folder"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(arguments, message, refusal):
    assert message in refusal(["partition", *arguments])


def test_a_space_with_choices_per_layer_is_refused(refusal):
    assert "space 'elastic' chooses mlp_ratio and heads per layer; allowed: spaces with equal layers" in refusal(
        ["partition", "elastic", "--k", "3"]
    )


def test_a_folder_in_use_is_refused_and_what_is_there_needs_none(tmp_path, refusal, capsys):
    arguments = ["partition", "debug", "--k", "2", "--out", str(tmp_path)]
    with locked(tmp_path / ".lock", tmp_path, "--out"):
        assert "another process is using" in refusal(arguments)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert main(arguments) == 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".yaml", ".yaml"]
    with locked(tmp_path / ".lock", tmp_path, "--out"):
        assert main(arguments) == 0
