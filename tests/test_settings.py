"""Settings: declared constraints, groups and descriptions, shared by checks, help and YAML files."""

from dataclasses import fields

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from autodistil_search.base.errors import InputError
from autodistil_search.cli.registry import make_parser, parsers_of
from autodistil_search.settings.common import GROUPS, Count, Rate, check_value, descriptions, grouped_yaml, groups_of
from autodistil_search.settings.compress import CompressConfig
from autodistil_search.settings.distil import DistilConfig
from autodistil_search.settings.export import ExportOptions
from autodistil_search.settings.finetune import FinetuneConfig
from autodistil_search.settings.search import SearchConfig
from autodistil_search.settings.train import TrainConfig
from autodistil_search.settings.validate_proxy import ValidateConfig

CLASSES = {
    "all": CompressConfig,
    "train": TrainConfig,
    "search": SearchConfig,
    "distil": DistilConfig,
    "finetune": FinetuneConfig,
    "validate-proxy": ValidateConfig,
    "export": ExportOptions,
}


@pytest.mark.parametrize("command", CLASSES)
def test_every_setting_declares_a_group_and_a_description_and_is_listed_under_it_in_the_help(command):
    config = CLASSES[command]
    parser = parsers_of(make_parser())[command]
    listed = {action.dest: group.title for group in parser._action_groups for action in group._group_actions}
    for setting in fields(config):
        assert groups_of(config)[setting.name] in GROUPS
        assert descriptions(config)[setting.name]
        positional = setting.name in ("run", "model") and command in ("distil", "finetune", "validate-proxy")
        assert positional or listed[setting.name] == groups_of(config)[setting.name].title


def test_settings_in_a_yaml_file_are_grouped_and_read_back():
    config = SearchConfig(space="debug", constraint=["flops<=1M"], lr=1e-3)
    text = grouped_yaml(SearchConfig, config.to_dict())
    assert [line[2:] for line in text.splitlines() if line.startswith("# ")] == [group.title for group in GROUPS]
    assert SearchConfig.from_dict(yaml.safe_load(text)) == config


@given(st.one_of(st.integers(), st.floats(), st.booleans(), st.text(), st.none()))
def test_a_count_is_a_whole_number_within_its_limits(value):
    if type(value) is int and 1 <= value <= 10**6:
        assert check_value("--steps", value, Count) == value
    else:
        with pytest.raises(InputError, match=r"^--steps must be a whole number from 1( to 1000000)? \(got .*\)$"):
            check_value("--steps", value, Count)


@given(st.one_of(st.integers(), st.floats(), st.booleans(), st.text(), st.none()))
def test_a_rate_is_a_finite_number_above_0(value):
    if type(value) in (int, float) and 0 < value < float("inf"):
        assert check_value("--lr", value, Rate) == value
    else:
        with pytest.raises(InputError, match=r"^--lr must be a number above 0 \(got .*\)$"):
            check_value("--lr", value, Rate)


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"in_place": 1.5}, r"--in-place must be a number from 0 to 1 \(got 1\.5\)"),
        ({"hidden": -0.1}, r"--hidden must be a number from 0 \(got -0\.1\)"),
        ({"loss": "kll"}, r"--loss must be one of kl, mse \(got 'kll'; did you mean 'kl'\?\)"),
        ({"stream": 1}, r"--stream must be true or false \(got 1\)"),
        ({"text": [1]}, r"--text must be one or more texts \(got \[1\]\)"),
        ({"teacher": 3}, r"--teacher must be text, such as 'packaged' \(got 3\)"),
        ({"out": ""}, r"--out must be text that is not empty \(got ''\)"),
        ({"seed": 2**32}, r"--seed must be a whole number from 0 to 4294967295 \(got 4294967296\)"),
    ],
)
def test_a_value_that_its_annotation_does_not_allow_is_refused_in_one_line(change, refusal):
    with pytest.raises(InputError, match=f"^{refusal}$"):
        TrainConfig(**change)


@pytest.mark.parametrize("command", ["train", "search", "finetune", "validate-proxy"])
def test_a_run_goes_on_with_another_executor(command):
    config = CLASSES[command](executor="dask", workers=2)
    assert config.to_dict() == CLASSES[command]().to_dict()
