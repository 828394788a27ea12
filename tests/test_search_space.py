"""Search spaces: the shipped ones, reading a file, depth rules, genomes."""

import itertools
import json
import math
import random
from statistics import mean

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from autodistil_search.base.errors import InputError
from autodistil_search.nas.baselines import SHAPES
from autodistil_search.spaces.cost import flops
from autodistil_search.spaces.search_space import SearchSpace, load_space, shipped_spaces
from autodistil_search.spaces.subnet import DIMENSIONS, PER_LAYER, Subnet, kept_layers

VALID = {
    "name": "mine",
    "layers": [2, 3],
    "hidden_size": [32, 48],
    "mlp_ratio": [1.5, 2.0],
    "heads": [2, 4],
    "head_dim": 8,
    "relation_heads": 4,
    "depth": "uniform",
}


def write(tmp_path, content):
    path = tmp_path / "written.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


@pytest.fixture
def space():
    return SearchSpace(**VALID)


@pytest.mark.parametrize(
    ("name", "layers", "hidden_size", "mlp_ratio", "heads", "head_dim"),
    [
        ("tiny", (4, 5, 6, 7), (128, 160, 192, 224), (2.0, 2.5, 3.0, 3.5), (7, 8, 9, 10), 16),
        ("small", (9, 10, 11, 12), (256, 288, 320, 352), (2.5, 3.0, 3.5, 4.0), (7, 8, 9, 10), 32),
        ("base", (9, 10, 11, 12), (544, 576, 608, 640), (2.5, 3.0, 3.5, 4.0), (9, 10, 11, 12), 48),
    ],
)
def test_a_shipped_sub_space_holds_the_256_subnets_of_the_paper(name, layers, hidden_size, mlp_ratio, heads, head_dim):
    space = load_space(name)
    assert space == SearchSpace(name, layers, hidden_size, mlp_ratio, heads, head_dim, 16, "first_last")
    expected = {
        Subnet(n, hidden, int(hidden * ratio), a, head_dim)
        for n in layers
        for hidden in hidden_size
        for ratio in mlp_ratio
        for a in heads
    }
    decoded = [space.decode(genome) for genome in space.genomes()]
    assert len(decoded) == space.size == 256
    assert set(decoded) == expected


def test_the_debug_space_is_tiny():
    assert load_space("debug").size <= 16
    assert shipped_spaces() == ["base", "debug", "elastic", "oneshot", "shallow", "small", "tiny"]


def test_shallow_reaches_from_half_of_what_the_shapes_trained_as_baselines_cost_to_more_than_they_do():
    space = load_space("shallow")
    assert space.size == 256
    for shape in (SHAPES["TinyBERT 4x312"], SHAPES["MiniLM 3x384"]):
        assert flops(space.smallest) < flops(shape) / 2 < flops(shape) < flops(space.largest)


@pytest.mark.parametrize("name", ["tiny", "small", "base"])
def test_sixteen_relation_heads_divide_every_width_of_the_papers_spaces(name):
    space = load_space(name)
    widths = {space.decode(genome).attention_width for genome in space.genomes()}
    assert {width % 16 for width in widths} == {0}


depths = st.integers(1, 40).flatmap(lambda total: st.tuples(st.integers(1, total), st.just(total)))


@pytest.mark.parametrize("rule", ["first_last", "uniform", "prefix"])
@settings(deadline=None, max_examples=100)
@given(depths)
def test_kept_layers_are_as_many_as_asked_ascending_and_within_the_model(rule, depth):
    layers, total = depth
    kept = kept_layers(layers, total, rule)
    assert len(kept) == layers
    assert kept == sorted(set(kept))
    assert 0 <= kept[0] <= kept[-1] < total


@settings(deadline=None, max_examples=100)
@given(depths)
def test_first_last_keeps_both_ends_and_spreads_the_rest_evenly(depth):
    layers, total = depth
    kept = kept_layers(layers, total, "first_last")
    assert kept[-1] == total - 1
    if layers > 1:
        assert kept[0] == 0
        for i, layer in enumerate(kept):  # within half a layer of the even spacing
            assert abs(layer - i * (total - 1) / (layers - 1)) <= 0.5


@settings(deadline=None, max_examples=100)
@given(depths)
def test_uniform_keeps_floor_of_i_total_over_layers(depth):
    layers, total = depth
    assert kept_layers(layers, total, "uniform") == [(i * total) // layers for i in range(layers)]


@pytest.mark.parametrize(
    ("rule", "kept"),
    [("first_last", [0, 2, 4, 6]), ("uniform", [0, 1, 3, 5]), ("prefix", [0, 1, 2, 3])],
)
def test_four_of_seven_layers(rule, kept):
    assert kept_layers(4, 7, rule) == kept


def test_first_last_rounds_halves_up():
    assert kept_layers(3, 6, "first_last") == [0, 3, 5]


@pytest.mark.parametrize("rule", ["first_last", "uniform", "prefix"])
def test_the_deepest_subnet_keeps_all_layers(rule):
    assert kept_layers(7, 7, rule) == list(range(7))


@pytest.mark.parametrize("name", [name for name in shipped_spaces() if name != "elastic"])
def test_encode_is_the_inverse_of_decode(name):
    space = load_space(name)
    genomes = list(space.genomes())
    assert [space.encode(space.decode(genome)) for genome in genomes] == genomes
    assert genomes == sorted(set(genomes))


@settings(deadline=None, max_examples=50)
@given(
    hidden_size=st.lists(st.integers(1, 64).map(lambda n: 16 * n), min_size=1, max_size=4, unique=True),
    sixteenths=st.lists(st.integers(1, 96), min_size=1, max_size=4, unique=True),
    layers=st.lists(st.integers(1, 24), min_size=1, max_size=3, unique=True),
    heads=st.lists(st.integers(1, 16), min_size=1, max_size=3, unique=True),
)
def test_encode_is_the_inverse_of_decode_in_any_space(hidden_size, sixteenths, layers, heads):
    ratios = [n / 16 for n in sixteenths]
    space = SearchSpace("any", layers, hidden_size, ratios, heads, head_dim=8, relation_heads=8)
    genomes = list(space.genomes())
    assert len(genomes) == space.size == len(layers) * len(hidden_size) * len(ratios) * len(heads)
    assert [space.encode(space.decode(genome)) for genome in genomes] == genomes


def test_the_elastic_space_has_more_than_a_billion_subnets():
    space = load_space("elastic")
    assert space.size == 4 * sum(16**layers for layers in (4, 5, 6, 7)) == 1_145_307_136
    assert space.size > 10**9
    assert len(space.dimensions) == len(space.choices) == 2 + 7 + 7
    assert space.dimensions[:3] == ("layers", "hidden_size", "mlp_ratio_1")
    assert space.dimensions[-1] == "heads_7"


per_layer_spaces = st.builds(
    SearchSpace,
    name=st.just("any"),
    layers=st.sampled_from([[1, 2], [3], [1, 2, 4], [2, 3]]),
    hidden_size=st.sampled_from([[16], [16, 32]]),
    mlp_ratio=st.sampled_from([[1.0], [1.0, 2.5]]),
    heads=st.sampled_from([[2], [1, 2], [1, 2, 4]]),
    head_dim=st.just(8),
    relation_heads=st.just(4),
    depth=st.sampled_from(["first_last", "uniform", "prefix"]),
    per_layer=st.sampled_from([["heads"], ["mlp_ratio"], ["mlp_ratio", "heads"]]),
)


@settings(deadline=None, max_examples=60)
@given(per_layer_spaces)
def test_genomes_of_layers_left_out_count_as_one(space):
    """Against the product of all choices: each subnet once, and each genome stands for the subnet it decodes to."""
    subnets = [space.decode(genome) for genome in space.genomes()]
    assert len(set(subnets)) == len(subnets) == space.size
    every = list(itertools.islice(itertools.product(*map(range, space.choices)), 3000))
    assert {space.decode(genome) for genome in every} <= set(subnets)
    if len(every) == math.prod(space.choices):
        assert {space.decode(genome) for genome in every} == set(subnets)
    canonical = set(space.genomes())
    for genome in every:
        assert space.canonical(genome) in canonical
        assert space.decode(space.canonical(genome)) == space.decode(genome)
        assert (space.canonical(genome) == genome) == (genome in canonical)


@settings(deadline=None, max_examples=60)
@given(per_layer_spaces, st.randoms(use_true_random=False))
def test_a_subnet_of_unlike_layers_comes_back_from_all_its_descriptions(space, rng):
    subnet = space.sample(rng)
    assert space.decode(space.encode(subnet)) == subnet
    assert space.with_parameters(json.loads(json.dumps(space.parameters(subnet)))) == subnet
    assert Subnet.from_row(subnet.to_row()) == subnet
    assert Subnet.from_row({key: str(value) for key, value in subnet.to_row().items()}) == subnet
    assert len(space.parameters(subnet)) == 2 + sum(subnet.layers if key in space.per_layer else 1 for key in PER_LAYER)
    for sizes, layers in zip(subnet.each_layer, range(1, subnet.layers + 1), strict=True):
        assert (sizes.layers, sizes.hidden_size, sizes.head_dim) == (1, subnet.hidden_size, 8)
        assert subnet.first(layers).each_layer == subnet.each_layer[:layers]


def test_a_genome_chooses_for_the_layers_of_the_superlm_that_the_subnet_keeps():
    space = SearchSpace("mine", [2, 4], [32], [1.0, 2.0], [1, 2, 3, 4], 8, 4, "first_last", ["heads"])
    assert space.dimensions == ("layers", "hidden_size", "mlp_ratio", "heads_1", "heads_2", "heads_3", "heads_4")
    assert space.decode((0, 0, 1, 2, 0, 0, 3)) == Subnet.of_layers(32, [64, 64], [3, 4], 8)
    assert space.canonical((0, 0, 1, 2, 0, 0, 3)) == (0, 0, 1, 2, 2, 2, 3)
    assert space.parameters(space.decode((0, 0, 1, 2, 0, 0, 3))) == {
        **{"layers": 2, "hidden_size": 32, "mlp_ratio": 2.0, "heads_1": 3, "heads_4": 4},
    }


def test_layers_that_are_alike_have_one_description():
    assert Subnet.of_layers(32, [64, 64], [2, 2], 8) == Subnet(2, 32, 64, 2, 8)
    assert str(Subnet(2, 32, 64, 2, 8)) == "2x32, ratio 2, 2 heads of 8"
    assert str(Subnet.of_layers(32, [64, 48], [2, 2], 8)) == "2x32, ratio 2-1.5, 2 heads of 8"
    for each in [((64, 2), (64, 2)), ((64, 2),), ((64, 2), (32, 1), (32, 1)), ((48, 2), (32, 1))]:
        with pytest.raises(ValueError, match="do not match"):
            Subnet(2, 32, 64, 2, 8, each)


def test_samples_of_unlike_layers_come_from_all_of_the_cost_range():
    """Independent layers would not: nine in ten of their sums would lie within the middle third."""
    space = load_space("elastic")
    rng = random.Random(0)
    means = [mean(sizes.heads for sizes in space.sample(rng).each_layer) for _ in range(1000)]
    thirds = [sum(low <= each < low + 2.001 for each in means) for low in (4, 6, 8)]
    assert min(thirds) > 150


@pytest.mark.parametrize("given", ["heads", ["layers"], ["heads", 3], {"heads": 1}, None])
def test_only_ratio_and_heads_can_be_chosen_per_layer(given, tmp_path):
    with pytest.raises(InputError, match=r"per_layer is .*; allowed: a list of mlp_ratio, heads"):
        load_space(write(tmp_path, VALID | {"per_layer": given}))


def test_a_space_per_layer_is_written_and_read_whatever_the_order(tmp_path):
    space = load_space(write(tmp_path, VALID | {"per_layer": ["heads", "mlp_ratio"]}))
    assert space.per_layer == ("mlp_ratio", "heads")
    assert load_space(write(tmp_path, space.to_dict())) == space
    assert "per_layer" not in load_space("tiny").to_dict()  # runs of before stay the same runs


def test_unlike_layers_are_not_in_a_space_of_like_ones(space):
    with pytest.raises(InputError, match="not in space 'mine'"):
        space.encode(Subnet.of_layers(32, [48, 64], [2, 2], 8))


@pytest.mark.parametrize(
    "change", [{"layers": 9}, {"hidden_size": 64}, {"ffn_size": 63}, {"heads": 3}, {"head_dim": 16}]
)
def test_a_subnet_of_another_space_is_refused(space, change):
    sizes = {"layers": 2, "hidden_size": 32, "ffn_size": 64, "heads": 2, "head_dim": 8}
    assert space.encode(Subnet(**sizes)) == (0, 0, 1, 0)
    with pytest.raises(InputError, match="not in space 'mine'"):
        space.encode(Subnet(**sizes | change))


def test_smallest_and_largest_bound_every_dimension(space):
    assert space.smallest == Subnet(2, 32, 48, 2, 8)
    assert space.largest == Subnet(3, 48, 96, 4, 8)


def test_choices_are_kept_ascending_whatever_their_order(space):
    shuffled = {key: value[::-1] if isinstance(value, list) else value for key, value in VALID.items()}
    assert SearchSpace(**shuffled) == space


def test_samples_are_in_the_space_reach_all_of_it_and_follow_the_seed(space):
    drawn = [space.sample(random.Random(seed)) for seed in range(200)]
    assert {space.encode(subnet) for subnet in drawn} == set(space.genomes())
    assert drawn == [space.sample(random.Random(seed)) for seed in range(200)]


def test_to_dict_is_what_a_yaml_file_holds(space, tmp_path):
    assert load_space(write(tmp_path, space.to_dict())) == space


def test_a_yaml_file_is_found_by_its_path_as_text_or_path(space, tmp_path):
    path = write(tmp_path, VALID)
    assert load_space(path) == load_space(str(path)) == space


def test_a_yaml_file_without_name_and_depth_has_its_own_name_and_the_default_depth(tmp_path):
    content = {key: value for key, value in VALID.items() if key not in ("name", "depth")}
    space = load_space(write(tmp_path, content))
    assert (space.name, space.depth) == ("written", "first_last")


def test_shipped_spaces_are_found_by_name_from_any_folder(tmp_path, monkeypatch):
    tiny = load_space("tiny")
    (tmp_path / "tiny").mkdir()  # a folder of the same name is no space
    monkeypatch.chdir(tmp_path)
    assert load_space("tiny") == tiny


@pytest.mark.parametrize(
    ("change", "key", "allowed"),
    [
        ({"layers": []}, "layers", "one or more"),
        ({"layers": 3}, "layers", "a list"),
        ({"layers": "2, 3"}, "layers", "a list"),
        ({"layers": {"2": 3}}, "layers", "a list"),
        ({"layers": None}, "layers", "a list"),
        ({"layers": [2, 2]}, "layers", "each value once"),
        ({"layers": [0, 2]}, "layers has 0", "whole numbers from 1"),
        ({"layers": [True]}, "layers has True", "whole numbers from 1"),
        ({"layers": [[2]]}, "layers", "whole numbers from 1"),
        ({"hidden_size": [-32]}, "hidden_size has -32", "whole numbers from 1"),
        ({"hidden_size": [32.0]}, "hidden_size has 32.0", "whole numbers from 1"),
        ({"hidden_size": ["32"]}, "hidden_size has '32'", "whole numbers from 1"),
        ({"heads": [None]}, "heads has None", "whole numbers from 1"),
        ({"heads": [4, 2, 4]}, "heads", "each value once"),
        ({"mlp_ratio": []}, "mlp_ratio", "one or more"),
        ({"mlp_ratio": [0]}, "mlp_ratio has 0", "numbers above 0"),
        ({"mlp_ratio": [-1.5]}, "mlp_ratio has -1.5", "numbers above 0"),
        ({"mlp_ratio": [True]}, "mlp_ratio has True", "numbers above 0"),
        ({"mlp_ratio": [float("nan")]}, "mlp_ratio has nan", "numbers above 0"),
        ({"mlp_ratio": [float("inf")]}, "mlp_ratio has inf", "numbers above 0"),
        ({"mlp_ratio": [2, 2.0]}, "mlp_ratio", "each value once"),
        ({"mlp_ratio": [1.51]}, "mlp_ratio 1.51 x hidden_size 32", "a whole number"),
        ({"mlp_ratio": [10**400]}, "mlp_ratio", "numbers above 0"),
        ({"head_dim": 0}, "head_dim has 0", "whole numbers from 1"),
        ({"head_dim": [8]}, "head_dim", "whole numbers from 1"),
        ({"head_dim": True}, "head_dim has True", "whole numbers from 1"),
        ({"relation_heads": -4}, "relation_heads has -4", "whole numbers from 1"),
        ({"relation_heads": 2.0}, "relation_heads has 2.0", "whole numbers from 1"),
        ({"relation_heads": 3}, "relation_heads 3", "widths that relation_heads divides"),
        ({"relation_heads": 32}, "heads 2 x head_dim 8 = 16", "widths that relation_heads divides"),
        ({"depth": "last_first"}, "depth is 'last_first'", "first_last, uniform, prefix"),
        ({"depth": None}, "depth is None", "first_last, uniform, prefix"),
        ({"depth": ["prefix"]}, "depth", "first_last, uniform, prefix"),
        ({"name": ""}, "name ''", "letters"),
        ({"name": 7}, "name 7", "letters"),
        ({"name": "../up"}, "name '../up'", "letters"),
        ({"width": 3}, "unknown key width", "layers, hidden_size, mlp_ratio"),
        ({1: 2}, "unknown key 1", "layers, hidden_size, mlp_ratio"),
    ],
)
def test_a_malformed_space_is_refused_naming_the_key_and_what_is_allowed(tmp_path, change, key, allowed):
    with pytest.raises(InputError) as refusal:
        load_space(write(tmp_path, {**VALID, **change}))
    message = str(refusal.value)
    assert key in message
    assert allowed in message
    assert "\n" not in message


@pytest.mark.parametrize("key", [*DIMENSIONS, "head_dim", "relation_heads"])
def test_a_missing_key_is_named(tmp_path, key):
    content = {each: value for each, value in VALID.items() if each != key}
    with pytest.raises(InputError, match=f"lacks {key}; a space has name, layers, hidden_size"):
        load_space(write(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("layers: [2, 3", "cannot be read as YAML"),
        ("a: b: c", "cannot be read as YAML"),
        ("\x00", "cannot be read as YAML"),
        ("{[1]: 2}: 3", "cannot be read as YAML"),
        ("name: 2020-13-45", "cannot be read as YAML"),
        ("", "holds NoneType; allowed: the keys name, layers"),
        ("- layers", "holds list; allowed: the keys name, layers"),
        ("tiny", "holds str; allowed: the keys name, layers"),
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_refused(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as refusal:
        load_space(write(tmp_path, content))
    assert "\n" not in str(refusal.value)


def test_a_binary_file_is_refused(tmp_path):
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="cannot be read as YAML"):
        load_space(path)


@pytest.mark.parametrize("missing", ["nothing", "nothing.yaml", "", ".", "tiny.yml"])
def test_a_space_that_is_not_there_is_refused_listing_the_shipped_ones(tmp_path, monkeypatch, missing):
    monkeypatch.chdir(tmp_path)
    shipped = "base, debug, elastic, oneshot, shallow, small, tiny"
    with pytest.raises(InputError, match=rf"no search space '.*'; allowed: {shipped}, or a YAML file"):
        load_space(missing)


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{}']]",
        "!!python/object/apply:os.system ['touch {}']",
        "!!python/object/new:os.mkdir ['{}']",
    ],
)
def test_python_tags_are_refused_and_not_run(tmp_path, tag):
    trace = tmp_path / "trace"
    with pytest.raises(InputError, match="cannot be read as YAML"):
        load_space(write(tmp_path, f"layers: {tag.format(trace)}"))
    assert not trace.exists()


@pytest.mark.parametrize(("ratio", "hidden", "ffn"), [(1.1, 50, 55), (2.2, 200, 440), (2.3, 100, 230)])
def test_a_whole_ffn_width_is_accepted_where_floating_point_misses_it_by_a_hair(ratio, hidden, ffn):
    space = SearchSpace("hair", (2,), (hidden,), (ratio,), (2,), head_dim=8, relation_heads=4)
    assert space.smallest.ffn_size == ffn
    assert space.encode(space.smallest) == (0, 0, 0, 0)
