"""What a user is told who got it wrong: one line, what was expected, what came, what to do."""

import os
from pathlib import Path

import pytest

from reclora.pipelines.usage import of_work
from tests.small_runs import reclora


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("retrian run.toml", "no such verb 'retrian'; did you mean retrain? See `reclora --help`"),
        ("zzz", "no such verb 'zzz'; expected demo, "),
        ("retrain run.toml --onyl de", "no such option --onyl; did you mean --only? See `recl"),
        ("--verison", "reclora: no such option --verison; did you mean --version?"),
        ("diff . 1 --jsno", "reclora diff: no such option --jsno; did you mean --json?"),
        ("retrain", "Missing argument 'settings': The run's settings, a TOML file; see `reclora"),
        ("recommend run.toml", "Missing option '--into': The folder of the lists"),
        ("retrain run.toml --only", "Option '--only' requires an argument"),
        ("gc . --keep x", "'--keep': expected a valid integer, got 'x'; see `reclora gc --help`"),
        ("gc . --keep 0", "'--keep': expected a number greater than or equal to 1, got '0'"),
        ("diff . one", "expected a valid integer, got 'one'"),
        ("demo movielenz", "'movielenz' is not one of 'movielens', 'movielens-1m', "),
        ("demo xmarket --segment-by gender", "reclora demo: --segment-by is for movielens; xm"),
        ("history nope", "reclora history: nope: no store's folder and no settings file is there"),
        ("history . --at yesterday", "--at is a date such as 2026-07-01"),
        ("evaluate", "reclora evaluate: give a settings file, or --recommendations and --holdout"),
        ("evaluate run.toml -k 5", "reclora evaluate: with a settings file these are settings"),
        ("settings --set seed=1", "--set changes the settings of a file; name the file, too"),
        ("settings run.toml --schema", "--schema is the same for all runs"),
        ("settings rnu.toml", "cannot be read: No such file or directory; did you mean run.toml?"),
        ("settings folder", "folder: the settings cannot be read: Is a directory; expected a TOML"),
        ("settings run.toml --set seeds=x", "override 'seeds=x': seeds: expected a valid array, g"),
        ("settings run.toml --set seed", "an override is section.key=value, got 'seed'"),
        ("settings run.toml --set gate.rul=each", "gate.rul: unknown key; did you mean rule?"),
    ],
)
def test_wrong_usage_is_told_in_a_line(tmp_path: Path, words: str, told: str) -> None:
    (tmp_path / "run.toml").write_text('log.files = ["log.parquet"]\n')
    (tmp_path / "folder").mkdir()
    done = reclora(*words.split(), cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("reclora") and told in line


def test_without_words_there_is_help(tmp_path: Path) -> None:
    done = reclora(cwd=tmp_path)
    assert done.returncode == 2 and "Usage: reclora" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("before", "environment"), [(["--debug"], {}), ([], {"RECLORA_DEBUG": "1"})]
)
def test_who_asks_gets_the_traceback(
    tmp_path: Path, before: list[str], environment: dict[str, str]
) -> None:
    plain = reclora("settings", "none.toml", cwd=tmp_path, RECLORA_DEBUG="0")
    done = reclora(*before, "settings", "none.toml", cwd=tmp_path, **environment)
    assert done.returncode == plain.returncode == 2
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert "Traceback" not in plain.stderr
    assert done.stderr.splitlines()[-1] == plain.stderr.splitlines()[-1]


def test_errors_of_the_disk_and_of_keys_are_sentences() -> None:
    error = OSError(28, os.strerror(28), "a", None, "b")
    assert of_work(error) == "a -> b: No space left on device"
    assert of_work(KeyError("no segment de")) == "no segment de"
    assert of_work(ValueError("why")) == "why"
