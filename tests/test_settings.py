"""Settings: what a file may say, what is refused, and where the error points."""

import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reclora.pipelines.bases_settings import StudySettings
from reclora.pipelines.run import RunSettings
from reclora.pipelines.settings import (
    SettingsError,
    flat,
    json_schema,
    load,
    places,
    read,
    resolved,
)


@dataclass(frozen=True)
class Delta:
    kind: Literal["rows", "bias"] = "rows"
    rank: int = 8

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}; use 1 to 64")


@dataclass(frozen=True)
class Training:
    epochs: int = 3
    learning_rate: float = 0.1
    batch: int | Literal["all"] = "all"
    stratified: bool = True
    minimum: int = 1
    maximum: int = 9

    def __post_init__(self) -> None:
        if self.minimum > self.maximum:
            raise ValueError("the least is above the most")


@dataclass(frozen=True, slots=True)
class Data:
    folder: Path
    columns: tuple[str, ...] = ("user_id", "item_id")
    limit: float | None = None


@dataclass(frozen=True)
class Run:
    data: Data
    training: Training = field(default_factory=Training)
    deltas: tuple[Delta, ...] = (Delta(),)
    seed: int = 0


GOOD = """\
seed = 7

[data]
folder = "logs/july"
columns = [
    "user_id",
    "item_id",  # a comment
]

[training]
learning_rate = 1
batch = 64

[[deltas]]
kind = "bias"

[[deltas]]
rank = 4
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.toml"


def refused(path: Path, text: str, *overrides: str) -> list[str]:
    """Return the lines of the error that these settings get, with the file as `run.toml`."""
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as raised:
        load(path, Run, overrides)
    return str(raised.value).replace(str(path), "run.toml").split("\n")


def test_a_file_becomes_the_dataclasses(path: Path) -> None:
    path.write_text(GOOD)
    assert load(path, Run) == Run(
        data=Data(folder=Path("logs/july"), columns=("user_id", "item_id")),
        training=Training(learning_rate=1.0, batch=64),
        deltas=(Delta(kind="bias"), Delta(rank=4)),
        seed=7,
    )


def test_overrides_replace_and_add(path: Path) -> None:
    path.write_text(GOOD)
    changes = (
        "training.learning_rate=1e-3",
        "training.stratified = false",
        "data.folder=logs/august",
        "deltas=[{rank=2}]",
        "data.limit=0.5",
        "seed=1",
        "seed=2",
    )
    found = load(path, Run, changes)
    assert found.training == Training(learning_rate=0.001, batch=64, stratified=False)
    assert found.data == Data(folder=Path("logs/august"), limit=0.5)
    assert found.deltas == (Delta(rank=2),)
    assert found.seed == 2


@pytest.mark.parametrize("override", ["seed", "=3", "a b=3", "[x]\na=3", "a#=3", "a..b=1", ""])
def test_an_override_that_names_no_key_is_refused(path: Path, override: str) -> None:
    expected = [f"an override is section.key=value, got {override!r}"]
    assert refused(path, GOOD, override) == expected


def test_an_override_is_named_in_its_error(path: Path) -> None:
    assert refused(path, GOOD, "training.epohs=4") == [
        "override 'training.epohs=4': training.epohs: unknown key; did you mean epochs? allowed "
        "here: batch, epochs, learning_rate, maximum, minimum, stratified"
    ]
    assert refused(path, GOOD, "seed=x") == [
        "override 'seed=x': seed: expected a valid integer, got \"x\""
    ]
    assert refused(path, GOOD, "deltas=[{rank=0}]") == [
        "override 'deltas=[{rank=0}]': deltas[0].rank: rank must be at least 1, got 0; use 1 to 64"
    ]
    assert refused(path, GOOD, "seed.x=1") == ["override 'seed.x=1': seed is a key, not a section"]


def test_a_value_with_a_line_break_brings_no_second_key(path: Path) -> None:
    path.write_text(GOOD)
    assert load(path, Run, ["data.folder='x'\nlimit = 1"]).data.folder == Path("'x'\nlimit = 1")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("seed = 7", "sed = 7", "run.toml:1: sed: unknown key; did you mean seed? allowed here: "),
        ("[training]", "[trainig]", "run.toml:10: trainig: unknown key; did you mean training?"),
        ("rank = 4", "rnk = 4", "run.toml:18: deltas[1].rnk: unknown key; did you mean rank?"),
        ("rank = 4", "zzz = 4", "run.toml:18: deltas[1].zzz: unknown key; allowed here: kind, ra"),
        ("seed = 7", "seed = true", "run.toml:1: seed: expected a valid integer, got true"),
        ("seed = 7", "seed = 7.0", "run.toml:1: seed: expected a valid integer, got 7.0"),
        ("batch = 64", "batch = 'x'", "run.toml:12: training.batch: expected a valid integer or "),
        ('    "item_id"', "    3", "run.toml:5: data.columns[1]: expected a valid string, got 3"),
        ('"bias"', '"blas"', "run.toml:15: deltas[0].kind: expected 'rows' or 'bias', got \"bl"),
        ("= 1\n", "= nan\n", "run.toml:11: training.learning_rate: expected a finite number, got"),
        ("= 1\n", "= -inf\n", "run.toml:11: training.learning_rate: expected a finite number, go"),
        ("= 1\n", '= "1"\n', "run.toml:11: training.learning_rate: expected a valid number, got"),
        ("= 1\n", "= 2026-01-01\n", "run.toml:11: training.learning_rate: dates and times go in"),
        ('"logs/july"', "07:00:00", "run.toml:4: data.folder: dates and times go in quotes, as in"),
        ('folder = "logs/july"', "", "run.toml:3: data.folder: missing, and it has no default"),
        ("rank = 4", "rank = 0", "run.toml:18: deltas[1].rank: rank must be at least 1, got 0;"),
        ("batch = 64", "minimum = 10", "run.toml:10: training: the least is above the most"),
        ("seed = 7", "training = 7", "run.toml:10: not TOML: Cannot"),
        ("batch = 64", "learning_rate = 2", "run.toml:12: not TOML: Cannot overwrite a value"),
        ("seed = 7", "seed = no", "run.toml:1: not TOML: Invalid value (column 8); strings and da"),
        ("seed = 7", "seed: 7", "run.toml:1: not TOML: Expected '='"),
        ("seed = 7", "seed = " + "9" * 5000, "run.toml:1: not TOML: Exceeds the limit"),
        ("rank = 4", f"x = {'[' * 9000}", "run.toml:18: settings nest at most 32 deep"),
        ("rank = 4", f"{'a.' * 900}a = 1", "run.toml:18: settings nest at most 32 deep"),
        ("rank = 4", 'x = """', "run.toml:18: not TOML: "),
    ],
)
def test_the_error_names_file_line_and_key(path: Path, old: str, new: str, expected: str) -> None:
    assert GOOD.count(old) == 1
    (line,) = refused(path, GOOD.replace(old, new))
    assert line.startswith(expected)


def test_every_fault_of_a_file_is_told_at_once(path: Path) -> None:
    lines = refused(path, "sed = 1\nseed = 'x'\n[data]\nlimit = nan\n", "training.epochs=x")
    assert [line.partition(": ")[0] for line in sorted(lines)] == [
        "override 'training.epochs=x'",
        "run.toml:1",
        "run.toml:2",
        "run.toml:3",
        "run.toml:4",
    ]


def test_a_section_that_the_file_lacks_points_at_the_file(path: Path) -> None:
    assert refused(path, "\n\nseed = 1") == ["run.toml:1: data: missing, and it has no default"]


def test_the_example_of_a_missing_section_is_one(path: Path) -> None:
    path.write_text("")
    with pytest.raises(SettingsError) as raised:
        load(path, RunSettings)
    told = f"{path}:1: log: missing, and it has no default; give, for example, "
    assert str(raised.value).startswith(told)
    path.write_text(str(raised.value).removeprefix(told).replace(" with ", "\n"))
    assert load(path, RunSettings).log.files == (Path("logs/*.parquet"),)


@pytest.mark.parametrize(
    ("kind", "override", "expected"),
    [
        (RunSettings, "log.half_life=3", "the file itself, [base], [base.search]; allowed here: c"),
        (RunSettings, "epochs=3", "[training], [base.factorisation], [base.tower]; allowed here: "),
        (RunSettings, "train=3", "[split], [log.windows]; allowed here: "),
        (StudySettings, "factorisation=1", "[models.NAME]; allowed here: "),
    ],
)
def test_a_key_of_other_sections_is_told_where_it_lives(
    path: Path, kind: type, override: str, expected: str
) -> None:
    path.write_text('log.files = ["x"]' if kind is RunSettings else "")
    with pytest.raises(SettingsError) as raised:
        load(path, kind, [override])
    key = override.partition("=")[0]
    (line,) = [each for each in str(raised.value).split("\n") if "unknown key" in each]
    name = key.rpartition(".")[2]
    assert line.startswith(f"override {override!r}: {key}: unknown key; ")
    assert f" {name} is a key of {expected}" in line


def test_a_file_that_cannot_be_read_is_named(path: Path) -> None:
    with pytest.raises(SettingsError, match=r"run\.toml: the settings cannot be read: No such"):
        load(path, Run)
    with pytest.raises(SettingsError, match="`reclora settings` prints one"):
        load(path, Run)
    with pytest.raises(SettingsError, match="cannot be read: Is a directory; expected a TOML f"):
        load(path.parent, Run)
    path.write_bytes(b"seed = 1\n# caf\xe9\n")
    with pytest.raises(SettingsError, match=r"run\.toml:2: settings are UTF-8"):
        load(path, Run)
    with pytest.raises(SettingsError, match=r"did you mean .*/run\.toml\?$"):
        load(path.with_name("rnu.toml"), Run)


def test_each_key_has_its_place(path: Path) -> None:
    path.write_text(GOOD)
    found = places(path, ["training.epochs=3", "data={folder='x'}", "seed=1"])
    assert {".".join(map(str, key)): place for key, place in found.items()} == {
        "seed": "--set",
        "data": "--set",
        "data.folder": "--set",
        "training": f"{path}:10",
        "training.learning_rate": f"{path}:11",
        "training.batch": f"{path}:12",
        "training.epochs": "--set",
        "deltas": f"{path}:14",
        "deltas.0": f"{path}:14",
        "deltas.0.kind": f"{path}:15",
        "deltas.1": f"{path}:17",
        "deltas.1.rank": f"{path}:18",
    }
    assert read(path) == tomllib.loads(GOOD)
    with pytest.raises(SettingsError, match="an override is section.key=value"):
        places(path, ["seed"])


def test_nested_settings_become_flat_ones() -> None:
    nested = {"a": 1, "b": {"c": (1, 2), "d": {}, "e": {"f": None, "g": [{"h": 1}]}}}
    assert flat(nested) == {
        "a": 1,
        "b.c": (1, 2),
        "b.d": {},
        "b.e.f": None,
        "b.e.g": [{"h": 1}],
    }


def test_the_schema_is_as_strict_as_the_door() -> None:
    found = json_schema(Run)
    parts = [found, *found["$defs"].values()]
    assert len(parts) == 4 and all(part["additionalProperties"] is False for part in parts)
    assert found["required"] == ["data"] and found["properties"]["seed"]["type"] == "integer"


def test_the_dataclasses_stay_what_they_are(path: Path) -> None:
    path.write_text(GOOD)
    found = load(path, Run)
    assert type(found.training) is Training and type(found.deltas[0]) is Delta
    assert Training(epochs="many") == Training(epochs="many")  # type: ignore[arg-type]


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
RUNS = st.builds(
    Run,
    data=st.builds(
        Data,
        folder=NAMES.filter(lambda name: name != "\0").map(Path),
        columns=st.lists(NAMES, max_size=3).map(tuple),
        limit=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    ),
    training=st.builds(
        Training,
        epochs=st.integers(),
        learning_rate=st.floats(allow_nan=False, allow_infinity=False),
        batch=st.integers(-(2**63), 2**63 - 1) | st.just("all"),
        stratified=st.booleans(),
        minimum=st.integers(-5, 0),
        maximum=st.integers(0, 5),
    ),
    deltas=st.lists(st.builds(Delta, rank=st.integers(1, 64)), max_size=3).map(tuple),
    seed=st.integers(),
)


def toml(value: object) -> str:
    """Write plain values as inline TOML; JSON's strings, numbers and lists are TOML's."""
    if isinstance(value, dict):
        inner = (f"{toml(key)} = {toml(part)}" for key, part in value.items() if part is not None)
        return f"{{{', '.join(inner)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


@given(run=RUNS)
def test_what_is_resolved_loads_again(tmp_path_factory: pytest.TempPathFactory, run: Run) -> None:
    path = tmp_path_factory.getbasetemp() / "resolved.toml"
    sections = [f"{name} = {toml(part)}" for name, part in resolved(run).items()]
    path.write_text("\n".join(sections), encoding="utf-8")
    assert load(path, Run) == run
    json.dumps(resolved(run), allow_nan=False)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(lines=st.lists(st.sampled_from(GOOD.split("\n")) | st.text(max_size=12), max_size=12))
def test_any_text_loads_or_is_refused_with_its_place(path: Path, lines: list[str]) -> None:
    text = "\n".join(lines)
    path.write_text(text, encoding="utf-8", errors="replace", newline="")
    try:
        assert isinstance(load(path, Run), Run)
    except SettingsError as error:
        for line in str(error).split("\n"):
            number = int(line.removeprefix(f"{path}:").partition(":")[0])
            assert 1 <= number <= text.count("\n") + 1


@given(override=st.text(max_size=20) | st.builds("seed={}".format, st.text(max_size=12)))
def test_any_override_loads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, override: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "override.toml"
    path.write_text(GOOD)
    try:
        changed = load(path, Run, [override])
    except SettingsError as error:
        assert repr(override) in str(error)
    else:
        assert changed.seed == tomllib.loads(override)["seed"]
