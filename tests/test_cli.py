"""The command line in processes of its own: verbs, exit codes, messages, interrupts."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from test_environment import distribution

from reclora.files import read_parquet
from reclora.pipelines.retrain import retrain
from reclora.pipelines.run import RunSettings
from reclora.pipelines.settings import load
from tests.small_runs import (
    files_below,
    finished,
    planted_log,
    reclora,
    small_settings,
    write_toml,
)

LIGHT = """
import sys
sys.argv = ["reclora", *sys.argv[1:]]
from reclora.pipelines.cli import main
try:
    main()
except SystemExit as exit:
    assert not exit.code, exit.code
heavy = {"torch", "torchrec", "pandas", "pyarrow", "sklearn", "scipy", "duckdb"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""


@pytest.mark.parametrize("words", [["--help"], ["retrain", "--help"], ["demo", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage: reclora" in done.stdout


def test_prepare_pretrain_retrain(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each names the next; in a folder of its own the numbers are those of the library's run."""
    settings, outcome = finished(tmp_path_factory)
    log = planted_log(tmp_path / "log.parquet")
    mine = replace(
        settings,
        log=replace(settings.log, files=(Path("*.parquet"),)),
        folder=Path("work"),
        runs=Path("runs"),
    )
    write_toml(tmp_path / "my run.toml", mine)
    words = ["prepare", "my run.toml", "--set", "author=me & you"]
    for following in ("pretrain", "retrain"):
        done = reclora(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        expected = f"next: reclora {following} 'my run.toml' --set 'author=me & you'"
        assert done.stdout.splitlines()[-1] == expected
        words[0] = following
    base = files_below(tmp_path / "work" / "base")
    done = reclora(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ranking: per-segment adapters, seed 0: done in" in done.stderr
    assert files_below(tmp_path / "work" / "base") == base
    run = tmp_path / "runs" / outcome.folder.id
    found, expected_results = (
        read_parquet(path).to_pandas() for path in (run / "results.parquet", outcome.folder.results)
    )
    pd.testing.assert_frame_equal(found, expected_results, check_exact=True)
    packs = [
        sorted(path.name for path in (store / "packs").iterdir())
        for store in (tmp_path / "work" / "store", outcome.store)
    ]
    assert packs[0] == packs[1]
    about = json.loads((run / "run.json").read_text())
    assert about["settings"]["repeat"] == "reclora retrain 'my run.toml' --set 'author=me & you'"
    assert about["inputs"] == {"log.parquet": about["inputs"]["log.parquet"]}
    release = json.loads((tmp_path / "work/store/releases/00000001.json").read_text())
    assert release["author"] == "me & you"
    # Again: what is there is reused, and nothing is written.
    before = files_below(tmp_path)
    began = time.monotonic()
    again = reclora(*words, cwd=tmp_path)
    assert again.returncode == 0 and "was complete already" in again.stdout
    assert files_below(tmp_path) == before and time.monotonic() - began < 20
    # Another log in the same folder is refused, and what was there goes on.
    planted_log(log, seed=1)
    refused = reclora(*words, cwd=tmp_path)
    assert refused.returncode == 2 and "name another `folder`, or remove work/base" in (
        refused.stderr
    )
    planted_log(log)
    monkeypatch.chdir(tmp_path)
    assert retrain(load(Path("my run.toml"), RunSettings, ["author=me & you"])).was_there
    kept = {path: file for path, file in before.items() if "log" not in path.parts}
    kept.pop(log)
    after = files_below(tmp_path)
    assert {path: after[path] for path in kept} == kept


def test_settings_are_refused_with_their_place(tmp_path: Path) -> None:
    write_toml(tmp_path / "run.toml", small_settings(Path("."), Path("log.parquet")))
    with (tmp_path / "run.toml").open("a") as file:
        file.write("\nunknwon = 'grow'\n")
    line = (tmp_path / "run.toml").read_text().count("\n")
    done = reclora("retrain", "run.toml", "--set", "training.epohs=3", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert f"run.toml:{line}: unknwon: unknown key; did you mean unknown?" in done.stderr
    assert "override 'training.epohs=3': training.epohs: unknown key; did you mean epochs" in (
        done.stderr
    )
    done = reclora("pretrain", "none.toml", cwd=tmp_path)
    assert done.returncode == 2 and "none.toml: the settings cannot be read" in done.stderr
    done = reclora("retrian", "run.toml", cwd=tmp_path)
    assert done.returncode == 2 and "retrian" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"run.toml"}


def test_a_bad_log_fails_with_its_place(tmp_path: Path) -> None:
    write_toml(tmp_path / "run.toml", small_settings(Path("."), Path("log.parquet")))
    table = pq.read_table(planted_log(tmp_path / "log.parquet"))
    pq.write_table(
        table.rename_columns(["User_id", *table.column_names[1:]]), tmp_path / "log.parquet"
    )
    done = reclora("retrain", "run.toml", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr and done.stdout == ""
    assert "log.parquet" in done.stderr and "user_id" in done.stderr and "User_id" in done.stderr
    assert not (tmp_path / "work" / "base").exists() and not (tmp_path / "runs").exists()


def test_a_wrong_triple_is_told_before_anything_else(tmp_path: Path) -> None:
    distribution(tmp_path, "torch", "2.12.1")
    done = reclora("retrain", "run.toml", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "pip install torch==2.13.0  # torch 2.12.1 is of another line" in done.stderr
    helped = reclora("--help", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert helped.returncode == 0


def test_an_interrupt_ends_with_a_line_and_the_next_run_completes(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    settings, _ = finished(tmp_path_factory)
    mine = replace(settings, folder=tmp_path / "work", runs=tmp_path / "runs", parent="none")
    shutil.copytree(settings.folder / "base", mine.base_folder)
    path = write_toml(tmp_path / "run.toml", mine)
    # So long a search that the signal meets it at work.
    long = ["--set", f"search.l2={[n / 1e6 for n in range(10_000, 12_000)]}"]
    words = [str(Path(sys.executable).with_name("reclora")), "retrain", str(path)]
    with subprocess.Popen([*words, *long], stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while not list(mine.runs.glob("*/events.jsonl")) and time.monotonic() < until:
            assert process.poll() is None, "it ended before it could be told to"
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read().splitlines()
    assert process.returncode == 130
    assert said[-1] == "interrupted; run the same command again: it goes on where it was"
    assert "Traceback" not in "".join(said)
    assert not mine.store_folder.exists() and not list(mine.runs.glob("*/run.json"))
    assert not list(tmp_path.rglob("*.tmp.*"))
    before = files_below(mine.base_folder)
    done = reclora("retrain", path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(mine.runs.glob("*/run.json"))) == 1
    assert files_below(mine.base_folder) == before
