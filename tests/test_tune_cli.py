"""The verb `reclora tune`: what it prints, what it refuses."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from reclora.pipelines.run import RunSettings, Search
from reclora.pipelines.settings import SettingsError, load
from reclora.pipelines.tune_cli import verbs
from tests.small_runs import random_log, small_settings, write_toml
from tests.test_trial import BASE, SPLIT


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune cli")
    settings = small_settings(
        folder,
        random_log(folder / "log.parquet", {"de": (0, 1), "fr": (0, 1)}),
        base=BASE,
        split=SPLIT,
        kinds="given",
        parent="none",
        search=Search((0.1,), (1e-6,), (0.0,)),
    )
    write_toml(folder / "run.toml", settings)
    (folder / "run.space.toml").write_text("training.bias_lr = [0.1, 0.3]")
    return folder


def test_what_is_said_and_what_is_next(place: Path) -> None:
    words = [str(place / "run.toml"), "--trials", "2", "--set", "training.epochs=2"]
    done = CliRunner().invoke(verbs, words)
    assert done.exit_code == 0, done.exception
    outcome, settings, page, following = done.stdout.splitlines()
    assert outcome.startswith("ndcg@10 of the defaults on validation is 0.") and "of trial" in (
        outcome
    )
    best = Path(settings.removeprefix("settings  "))
    assert Path(page.removeprefix("page      ")).exists()
    assert shlex.split(following) == ["next:", "reclora", "retrain", str(best)]
    tuned = load(best, RunSettings)
    assert tuned.training.epochs == 2 and tuned.training.bias_lr in (0.1, 0.3)
    repeat = f"reclora tune {shlex.quote(words[0])} --trials 2 --segments 200 --set"
    assert f"# {repeat} training.epochs=2\n" in best.read_text()
    said = CliRunner().invoke(verbs, [*words, "--json"])
    told = json.loads(said.stdout)
    assert told["settings"] == str(best) and told["best"] in (0, 1)
    assert told["values"] == {"training.bias_lr": tuned.training.bias_lr}
    assert told["compared"]["baseline_mean"] < told["compared"]["model_mean"]


def test_a_space_of_ones_own(place: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text("training.bias_lr = [0.2]")
    words = [str(place / "run.toml"), "--space", str(own), "--trials", "1", "--segments", "1"]
    done = CliRunner().invoke(verbs, [*words, "--json"])
    assert done.exit_code == 0, done.exception
    told = json.loads(done.stdout)
    assert told["values"] == {"training.bias_lr": 0.2}
    text = Path(told["settings"]).read_text()
    assert "on 1 of 2 segments" in text and f"--space {own} --trials 1 --segments 1" in text


def test_a_wrong_space_and_wrong_settings_are_refused(place: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text("training.bias_rl = [0.2]")
    wrong = CliRunner().invoke(verbs, [str(place / "run.toml"), "--space", str(own)])
    assert isinstance(wrong.exception, SettingsError)
    assert re.search(r"own.toml:1: training.bias_rl: .*did you mean bias_lr", str(wrong.exception))
    missing = CliRunner().invoke(verbs, [str(place / "run.toml"), "--space", "none.toml"])
    assert isinstance(missing.exception, SettingsError) and "none.toml" in str(missing.exception)
    assert CliRunner().invoke(verbs, [str(place / "run.toml"), "--trials", "0"]).exit_code == 2


def test_its_examples_are_commands() -> None:
    command = typer.main.get_command(verbs)
    assert command.help is not None
    examples = re.findall(r"(?m)^ *Example: reclora tune (.*)$", command.help)
    assert len(examples) == 2
    for example in examples:
        assert command.make_context("tune", shlex.split(example)).params["trials"] in (50, 100)
    assert "the extra `tune`" in command.help
