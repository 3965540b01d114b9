"""The bounds of what is tuned: read, refused with their place, put into settings."""

import tomllib
from pathlib import Path

import optuna
import pytest

from reclora.pipelines.run import LogSettings, RunSettings, Search
from reclora.pipelines.search_space import DEFAULT, Range, Space, space_of, with_values
from reclora.pipelines.settings import SettingsError, flat, resolved

SETTINGS = RunSettings(log=LogSettings((Path("a.parquet"),)))


def read(text: str, folder: Path) -> Space:
    path = folder / "run.space.toml"
    path.write_text(text)
    return Space.read(path, SETTINGS)


def test_a_space_has_the_keys_of_the_settings(tmp_path: Path) -> None:
    space = read(
        'parent = ["none"]\nhalf_life = { low = 0, high = 9 }\n'
        "[training]\nepochs = { low = 2, high = 8, log = true }\nl2 = [0, 0.5]\n"
        "[adapter]\nmagnitude = [true, false]\n",
        tmp_path,
    )
    assert space.bounds == {
        "parent": ("none",),
        "half_life": Range(0.0, 9.0),
        "training.epochs": Range(2.0, 8.0, log=True),
        "training.l2": (0.0, 0.5),
        "adapter.magnitude": (True, False),
    }
    assert {key for key in space.bounds if space.is_log(key)} == {"training.epochs"}


def test_what_is_suggested_is_within_the_bounds_and_of_the_settings_types(tmp_path: Path) -> None:
    space = read(
        'kinds = ["auto", "given"]\n'
        "training.num_negatives = { low = 3, high = 7 }\ntraining.rows_lr = { low = 1, high = 2 }",
        tmp_path,
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = [space.suggest(study.ask()) for _ in range(40)]
    assert {v["training.num_negatives"] for v in found} == {3, 4, 5, 6, 7}
    assert {v["kinds"] for v in found} == {"auto", "given"}
    assert all(1 <= v["training.rows_lr"] <= 2 for v in found)
    for values in found:
        changed = with_values(SETTINGS, values)
        assert {k: v for k, v in flat(resolved(changed)).items() if k in values} == values


def test_what_is_given_is_no_longer_searched() -> None:
    search = Search((0.1, 0.2), (0.3,), (0.4,), (1.0, 2.0))
    settings = RunSettings(log=SETTINGS.log, search=search)
    changed = with_values(settings, {"training.rows_lr": 0.5, "adapter.alpha": 3.0})
    assert changed.search == Search((), (0.3,), (0.4,), (1.0, 2.0))
    assert (changed.training.rows_lr, changed.adapter.alpha) == (0.5, 3.0)
    assert with_values(settings, {"adapter.rank": 2, "parent": "none"}).search == search


def test_what_settings_say_within_the_bounds(tmp_path: Path) -> None:
    text = 'parent = ["none"]\nkinds = ["auto"]\nadapter.rank = { low = 1, high = 7 }\n'
    space = read(text + "adapter.alpha = { low = 1, high = 8 }", tmp_path)
    # The defaults are `auto`, `auto`, 8 and 8.
    assert space.inside(SETTINGS) == {"kinds": "auto", "adapter.alpha": 8.0}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("training.rows_rl = [1.0]", r":1: training.rows_rl: unknown key; did you mean rows_lr\?"),
        ("\n[split]\nby = ['x']", ":2: split: unknown key; allowed here: adapter, half_life, his"),
        ("training.l2 = { low = 2, high = 1 }", ":1: training.l2.low: low must be below high, got"),
        ("training.l2 = { low = 1 }", ":1: training.l2.high: missing, and it has no default$"),
        ("training.l2 = { low = 1, high = 2, lgo = true }", "lgo: unknown key; did you mean log?"),
        ("training.l2 = 3", ":1: training.l2: expected a table or a valid array, got 3"),
        ("training.l2 = { low = 0, high = 1, log = true }", "low must be above 0 where log = true"),
        ("training.l2 = { low = -1, high = 1 }", ":1: training.l2: l2 must be 0 or more, got -1"),
        ("training.epochs = { low = 1.5, high = 3 }", "whole numbers are needed, got 1.5 to 3"),
        ("kinds = []", ":1: kinds: different values are needed, at least one, got "),
        ("training.l2 = [1, 1.0]", "different values are needed"),
        (
            "parent = ['poled']",
            r":1: parent\[0\]: expected 'pooled', 'none' or 'auto', got",
        ),
        ("adapter.user_table = ['row']", "got 'row'; did you mean 'rows'"),
        (
            "adapter.user_table = { low = 1, high = 2 }",
            "adapter.user_table: expected a valid array",
        ),
        ("adapter.rank = [0, 2]", ":1: adapter.rank: the adapter: rank must be at least 1"),
        ("", "run.space.toml: it names nothing to tune; allowed are parent, kinds, history"),
        ("parent = ", ":1: not TOML"),
    ],
)
def test_a_wrong_space_is_refused_with_its_place(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=said):
        read(text, tmp_path)


def test_the_space_of_a_run_lies_beside_it(tmp_path: Path) -> None:
    run = tmp_path / "run.toml"
    assert space_of(run) == DEFAULT
    (tmp_path / "run.space.toml").touch()
    assert space_of(run) == tmp_path / "run.space.toml"


def test_the_space_that_comes_with_reclora() -> None:
    space = Space.read(DEFAULT, SETTINGS)
    assert {*tomllib.loads(DEFAULT.read_text())} == {
        *("parent", "kinds", "history", "half_life", "adapter", "training")
    }
    assert {"training.rows_lr", "adapter.alpha", "training.num_negatives"} <= {*space.bounds}
