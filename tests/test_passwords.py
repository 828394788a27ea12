"""Passwords: whatever their characters and wherever a storage's name has them, nothing that is written has them."""

import json
from urllib.parse import quote

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from autodistil_search import SearchConfig
from autodistil_search.base.errors import InputError
from autodistil_search.base.passwords import conceal, without_password
from autodistil_search.cli.main import main
from autodistil_search.nas.storages import open_storage

SHAPES = (
    "postgresql://me:{}@host/base",
    "postgresql://:{}@host:5432/base?sslmode=require",
    "mysql+pymysql://me@server:{}@host/base",
    "nonsense://host/base?user=me&password={}&sslmode=require",
    "nonsense://host/base?sslpassword={}",
    "nonsense://host/base?passfile={}",
    "nonsense://host/base?pass%77ord={}",
    "nonsense://host/base?odbc_connect=UID%3Dme%3BPWD%3D{}",
    "host=db user=me password={} dbname=base",
    "host=db PASSWORD = '{}'",
    "me:{}@host/base",
)
passwords = st.builds(
    lambda middle: f"Zq7{middle}Xj9", st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
)
"""Any characters between others that stand in no message by chance."""
quoted = st.builds(
    lambda password, is_quoted: quote(password, safe="") if is_quoted else password, passwords, st.booleans()
)


@pytest.mark.parametrize("shape", SHAPES)
@given(
    password=quoted,
    around=st.sampled_from(["{}", "--storage={}", "cannot reach --storage {}: refused", '{{"a": "{}"}}']),
)
def test_no_password_is_shown_wherever_it_stands(shape, password, around):
    url = shape.format(password)
    if shape == SHAPES[-1] and not around.endswith("{}"):
        return  # without a scheme it is known as one word alone
    shown = without_password(around.format(url))
    assert "Zq7" not in shown
    assert "Xj9" not in shown
    assert without_password(shown) == shown


@given(password=passwords, part=st.integers(0, 3))
def test_a_driver_shows_no_part_of_a_password_either(password, part):
    url = f"postgresql://me:{password}@host/base"
    parts = [password, *password.split("@")]
    assert parts[part % len(parts)] not in conceal(
        f'could not translate host name "{parts[part % len(parts)]}@host"', url
    )
    assert "x~1" not in conceal("failed for 'x~1'", "postgresql://me:x%7E1@host/base")


def test_what_was_left_out_by_an_earlier_version_is_the_same_storage():
    now = without_password("postgresql://host/base?user=me&password=secret&sslmode=require")
    assert without_password("postgresql://host/base?user=me&password=***&sslmode=require") == now
    told = f"--storage {now} cannot be used: no such host"
    assert without_password(told) == told


@pytest.mark.parametrize(
    "harmless",
    [
        *("postgresql://me@host:5432/base?sslmode=require&connect_timeout=3", "sqlite:////tmp/a.db?timeout=3", "://"),
        *("postgresql://me:@/base?host=/tmp/server", "postgresql://me:@host/base"),
        *("--executor dask:tcp://node1:8786: no scheduler answers there", "refused by 'tls://127.0.0.1:8786'"),
        *("runs/nas.journal", "see https://huggingface.co/docs: not a@b", "--storage x: it is not an Optuna journal"),
    ],
)
def test_what_has_no_password_stays_as_it_is(harmless):
    assert without_password(harmless) == harmless


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_that_is_written_of_a_setting_has_its_password(shape, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    storage = shape.format("Zq7 @/?:&#'Xj9")
    config = SearchConfig(storage=storage)
    written = [json.dumps(config.absolute().to_dict()), json.dumps(config.for_workers()), repr(config)]
    with pytest.raises(InputError) as refused:  # no such plugin, or no URL
        open_storage(storage.replace("postgresql", "nonsense").replace("mysql+pymysql", "nonsense")).__enter__()
    written.append(str(refused.value))
    (tmp_path / "given.yaml").write_text(yaml.safe_dump({"storage": storage}))
    for arguments in (["--storage", storage], ["--config", "given.yaml"], [f"--storage={storage}"]):
        assert main(["search", *arguments, "--print-config"]) == 0
    unusable = storage.replace("postgresql", "nonsense").replace("mysql+pymysql", "nonsense")
    assert main(["search", "--objectives", "flops,params", "--storage", unusable]) == 2
    assert main(["search", "--storage", *storage.split(" ")]) == 2  # as a shell splits what is not quoted
    printed = capsys.readouterr()
    written += [printed.out, printed.err]
    assert "storage: " in printed.out
    assert [text for text in written if "Zq7" in text or "Xj9" in text] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given.yaml", "runs"]  # with an empty folder


def test_a_storage_whose_password_was_left_out_is_asked_for():
    with pytest.raises(InputError, match=r"--storage postgresql://me:\*\*\*@host/base: the password is missing"):
        open_storage("postgresql://me:***@host/base").__enter__()
