"""The verb `reclora segments discover`: what it prints, what it writes, what it refuses."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from reclora.files import read_parquet
from reclora.pipelines.discover_cli import _changes, verbs
from reclora.pipelines.run import LogSettings, RunSettings, WindowFiles
from reclora.pipelines.settings import load
from reclora.splits import WINDOWS
from tests.small_runs import write_toml
from tests.test_discover import bias_settings, tastes_log


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("discover cli")
    log = tastes_log(folder / "log.parquet", 3)
    write_toml(folder / "run.toml", bias_settings(folder, log))
    return folder


def test_what_is_said_and_what_is_written(place: Path, tmp_path: Path) -> None:
    toml, out, logs = place / "run.toml", tmp_path / "its.parquet", tmp_path / "logs"
    words = ["segments", "discover", str(toml), "--numbers", "3", "--out", str(out)]
    more = ["--write-log", str(logs), "--set", "seeds=[1]"]
    done = CliRunner().invoke(verbs, [*words, *more], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.exception
    assert "ndcg@10 on validation, 120 users; difference to 1, one segment of all" in done.stdout
    assert re.search(r"2 given +0?\.\d{4} +[+-]0\.\d{4} +\[[+-]", done.stdout)
    assert re.search(r"taste 1: i\d{3}, i\d{3}, i\d{3} +40", done.stdout)
    segments, log, following = done.stdout.splitlines()[-3:]
    assert segments == f"segments  {out}" and log == f"log       {logs}"
    next_words = shlex.split(following)
    assert next_words[:4] == ["next:", "reclora", "retrain", str(toml)]
    own = load(toml, RunSettings, next_words[5::2])
    assert own.log.files == (logs / "log.parquet",) and own.seeds == (1,)
    assert own.folder == Path(f"{place / 'work'}-discovered")
    table = read_parquet(out)
    assert len(table) == 120
    assert {*read_parquet(logs / "log.parquet")["segment"].to_pylist()} == {
        *table["segment"].to_pylist()
    }
    # Before anything is trained.
    again = CliRunner().invoke(verbs, [*words, *more])
    assert isinstance(again.exception, FileExistsError)

    said = CliRunner().invoke(verbs, [*words, "--json", *more[2:]])
    told = json.loads(said.stdout)
    assert told["segments"] == 3 and told["names"].keys() == {*table["segment"].to_pylist()}
    assert [row["segments"] for row in told["compared"]] == ["1", "3", "given"]
    assert told["against_given"]["baseline"] == "given" and told["moved"] == 0
    assert told["out"] == str(out) and told["log"] == []


def test_given_windows_are_named_in_the_next_command(place: Path) -> None:
    files = {name: (place / f"{name}.parquet",) for name in WINDOWS}
    settings = bias_settings(place, place / "log.parquet")
    settings = replace(settings, log=LogSettings(windows=WindowFiles(**files)))
    changes = _changes(settings, [Path("out") / name / f"{name}.parquet" for name in WINDOWS])
    own = load(write_toml(place / "windows.toml", settings), RunSettings, changes)
    assert own.log.windows is not None
    assert own.log.windows.test == (Path("out/test/test.parquet"),)


def test_wrong_numbers_are_refused(place: Path) -> None:
    words = ["segments", "discover", str(place / "run.toml"), "--numbers"]
    wrong = CliRunner().invoke(verbs, [*words, "two"])
    assert wrong.exit_code == 2 and "whole numbers with commas" in wrong.output
    alone = CliRunner().invoke(verbs, [*words, "1"])
    assert isinstance(alone.exception, ValueError) and "at least 2" in str(alone.exception)


def test_its_examples_are_commands() -> None:
    group = typer.main.get_command(verbs)
    assert isinstance(group, typer.core.TyperGroup)
    segments = group.commands["segments"]
    assert isinstance(segments, typer.core.TyperGroup)
    command = segments.commands["discover"]
    assert command.help is not None
    examples = re.findall(r"(?m)^ *Example: reclora segments discover (.*)$", command.help)
    assert len(examples) == 2
    for example in examples:
        parsed = command.make_context("discover", shlex.split(example)).params
        assert parsed["out"] == Path("segments.parquet")
