"""Settings as text: TOML that loads again, with the source of every value and what it means."""

import json
import re
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reclora.pipelines.base_settings import TowerTraining
from reclora.pipelines.run import RunSettings
from reclora.pipelines.settings import SettingsError, flat, load, resolved
from reclora.pipelines.settings_shown import (
    as_json,
    as_toml,
    beginning,
    meanings,
    schema,
    shown,
    starting_point,
    toml,
)
from reclora.training import TrainingConfig

RUN = """\
name = "night \\u001b \\u202e"
search = {l2 = [0.1], shrinkage = [1.0]}

[log.windows]
pretrain = ["a.parquet"]
train = ["b.parquet"]
validation = ["c.parquet"]
test = ["d # e.parquet"]

[training]
epochs = 3
rows_lr = 1
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "run.toml").write_text(RUN)
    return tmp_path / "run.toml"


def keys_of(settings: Any) -> dict[str, Any]:
    return flat(resolved(settings))


@pytest.mark.parametrize("explain", [False, True])
def test_what_is_shown_loads_to_the_same_settings(path: Path, explain: bool) -> None:
    changes = ["training.epochs=5", "base.seed=7", 'author="tab\\t and \\u0085"']
    found = shown(path, changes)
    assert found.settings == load(path, RunSettings, changes)
    text = as_toml(found, explain)
    assert not [c for c in text if not (c.isprintable() or c == "\n")]
    path.write_text(text)
    assert load(path, RunSettings) == found.settings
    assert ("# Learning rate of the tables' factors; positive.\nrows_lr = 1.0  # " in text) == (
        explain
    )


def test_every_value_has_its_source(path: Path) -> None:
    found = shown(path, ["training.epochs=5", "search.l2=[0.5]", "gate={rule='none'}"])
    sources = {key: place for key, place in found.sources.items() if place != "default"}
    assert sources == {
        "name": f"{path}:1",
        "log.windows.pretrain": f"{path}:5",
        "log.windows.train": f"{path}:6",
        "log.windows.validation": f"{path}:7",
        "log.windows.test": f"{path}:8",
        "training.epochs": "--set",
        "training.rows_lr": f"{path}:12",
        "search.l2": "--set",
        "search.shrinkage": f"{path}:2",
        "gate.rule": "--set",
    }
    assert found.sources.keys() == keys_of(found.settings).keys()
    lines = as_toml(found, explain=False).splitlines()
    assert "epochs = 5  # --set" in lines and "rank = 8  # default" in lines
    assert f"rows_lr = 1.0  # {path}:12" in lines
    assert "# candidates is not set" in lines


def test_a_wrong_file_is_refused_as_ever(path: Path) -> None:
    with pytest.raises(SettingsError, match="did you mean epochs"):
        shown(path, ["training.epohs=3"])


def test_a_new_run_begins_with_all_defaults_in_comments() -> None:
    text = starting_point()
    assert [line for line in text.splitlines() if re.match(r"\w", line)] == [
        'files = ["logs/*.parquet"]'
    ]
    named: dict[str, Any] = tomllib.loads(without_comments(text))
    known = keys_of(beginning().settings)
    assert flat(named) == {key: value for key, value in known.items() if value is not None}
    assert max(map(len, text.splitlines())) <= 100


def test_the_beginning_loads_as_it_is_and_with_its_comments_taken_away(path: Path) -> None:
    text = starting_point()
    for each in (text, without_comments(text)):
        path.write_text(each)
        assert load(path, RunSettings) == beginning().settings


def without_comments(text: str) -> str:
    """With the `#` of every default taken away, not those of examples."""
    return re.sub(r"(?m)^#(?=\w+ = .*$)(?!.*  # e\.g\.$)", "", text)


NOT_ALONE = {
    "windows": "two ways to give the log",
    "candidates": "evaluation.candidates = 'given'",
    "import_users": "import_users and import_items go together",
    "import_items": "import_users and import_items go together",
    "import_tables": "import_tables needs import_users and import_items",
}
"""Keys that need another one, and what they are told."""


def test_the_comment_of_any_one_key_may_be_taken_away(path: Path) -> None:
    lines = starting_point().splitlines()
    places = [place for place, line in enumerate(lines) if re.match(r"#\w", line)]
    refused = {}
    for place in places:
        changed = [*lines[:place], lines[place][1:], *lines[place + 1 :]]
        path.write_text("\n".join(changed))
        # Parsed by itself too: a line is a key and a value.
        (key,) = tomllib.loads(lines[place][1:])
        tomllib.loads(path.read_text())
        try:
            load(path, RunSettings)
        except SettingsError as error:
            refused[key] = str(error)
    assert refused.keys() == NOT_ALONE.keys()
    for key, message in NOT_ALONE.items():
        assert message in refused[key]
    # Every setting is on such a line, but for the log's files, which are given.
    named = [line.partition(" = ")[0][1:] for place, line in enumerate(lines) if place in places]
    known = keys_of(beginning().settings)
    assert sorted([*named, "files"]) == sorted(key.rpartition(".")[2] for key in known)
    assert '#time_unit = "s"  # e.g.' in lines and '#saved = "FILE"  # e.g.' in lines


def test_json_has_settings_sources_and_meanings(path: Path) -> None:
    found = shown(path)
    about = json.loads(as_json(found, explain=True))
    assert about["settings"] == resolved(found.settings)
    assert about["from"] == found.sources and about["from"]["training.epochs"] == f"{path}:11"
    assert about["meaning"]["training.epochs"].startswith("Passes over a segment's rows")
    assert about["meaning"]["training"] == "How a bank is trained."
    assert "meaning" not in json.loads(as_json(found, explain=False))


def test_the_schema_describes_what_the_door_lets_in() -> None:
    found = json.loads(schema())
    settings = beginning().settings
    assert_described(found, settings, found["$defs"])
    epochs = found["$defs"]["TrainingConfig"]["properties"]["epochs"]
    assert epochs["type"] == "integer" and epochs["default"] == 20
    assert found["$schema"].startswith("https://json-schema.org/") and found["required"] == ["log"]


def assert_described(part: dict[str, Any], settings: Any, parts: dict[str, Any]) -> None:
    names = [field.name for field in fields(settings)]
    assert list(part["properties"]) == names and part["additionalProperties"] is False
    for name in names:
        inner, text = getattr(settings, name), meanings(type(settings)).get(name)
        assert part["properties"][name].get("description") == text
        if is_dataclass(inner):
            below = parts[type(inner).__name__]
            assert below["description"]
            assert_described(below, inner, parts)


def test_a_field_means_what_is_written_below_it() -> None:
    assert meanings(RunSettings)["author"] == "Written into the release."
    assert "log" not in meanings(RunSettings)
    # Declared anew with another default, and without a text.
    assert meanings(TowerTraining)["epochs"] == meanings(TrainingConfig)["epochs"]
    assert "\n" not in "".join(meanings(TrainingConfig).values())


PLAIN = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(PLAIN)
def test_any_value_comes_back_from_its_toml(value: object) -> None:
    text = toml(value)
    assert text.isprintable()
    assert tomllib.loads(f"value = {text}") == {"value": value}
