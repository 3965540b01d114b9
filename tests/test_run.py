"""A run's settings and folder: what is refused, what names it, what it leaves behind."""

import json
import os
import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from reclora.factorisation import FactorisationConfig
from reclora.interactions import LogContract
from reclora.pipelines import run
from reclora.pipelines.base_settings import BaseSettings
from reclora.pipelines.run import (
    LogSettings,
    RunFolder,
    RunSettings,
    files_of,
    git_commit,
)
from reclora.splits import SplitConfig
from tests.small_runs import small_settings

INPUTS = {"log.parquet": "ab" * 32}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, "seeds must be different numbers"),
        ({"seeds": (1, 1)}, "seeds must be different numbers"),
        ({"name": ""}, "name must be usable"),
        ({"name": "a/b"}, "name must be usable"),
        ({"name": "..x"}, "name must be usable"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"ages": (0, 7)}, r"ages must be days that ascend from above 0, got \[0, 7\]"),
        ({"ages": (7, 7)}, "ages must be days that ascend"),
        ({"ages": (7, float("inf"))}, "ages must be days that ascend"),
        ({"ages": (float("nan"),)}, "ages must be days that ascend"),
        (
            {"ages": (7,), "split": SplitConfig("user_time")},
            "ages need split.by = 'global_time', got 'user_time'",
        ),
    ],
)
def test_a_run_that_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunSettings(LogSettings((Path("log.parquet"),)), **changes)  # type: ignore[arg-type]


def test_declined_rows_are_kept_for_a_base_that_is_pretrained_on_them() -> None:
    log = LogSettings((Path("log.parquet"),), contract=LogContract(min_label=1, declined="keep"))
    both = "log.contract.declined = 'keep' .*base.factorisation.loss = 'bce' alone, got 'softmax'"
    with pytest.raises(ValueError, match=both):
        RunSettings(log)
    RunSettings(log, base=BaseSettings(FactorisationConfig(loss="bce")))
    # A base that is there is trained on nothing.
    RunSettings(log, base=BaseSettings(saved=Path("base")))
    RunSettings(log, base=BaseSettings(import_users=Path("u"), import_items=Path("i")))


def test_the_folders_name_follows_what_decides_the_numbers(tmp_path: Path) -> None:
    settings = small_settings(tmp_path, Path("a.parquet"))

    def name(changed: RunSettings, base: str = "f", inputs: dict[str, str] = INPUTS) -> str:
        return RunFolder(changed, base, inputs).id

    same = [
        replace(settings, folder=Path("x"), runs=Path("y"), author="me", repeat="again"),
        replace(settings, log=replace(settings.log, files=(Path("b"),), memory_limit="9GB")),
    ]
    others = [
        replace(settings, seeds=(1,)),
        replace(settings, unknown="grow"),
        replace(settings, parent="none"),
        replace(settings, kinds="given"),
        replace(settings, ages=(7.0,)),
        replace(settings, training=replace(settings.training, epochs=9)),
    ]
    assert {name(each) for each in same} == {name(settings)}
    assert name(settings, inputs={"elsewhere/b.parquet": "ab" * 32}) == name(settings)
    names = [name(settings), *map(name, others)]
    names += [name(settings, base="g"), name(settings, inputs={"log.parquet": "cd" * 32})]
    assert len(set(names)) == len(names)
    assert re.fullmatch(r"small-[0-9a-f]{10}", name(settings))


def test_a_folder_is_complete_when_all_is_there(tmp_path: Path) -> None:
    settings = small_settings(tmp_path, Path("log.parquet"))
    folder = RunFolder(settings, "base", INPUTS)
    assert not folder.is_complete
    folder.begin()
    folder.event("chosen", rate=0.1, path=Path("x"))
    files = (folder.results, folder.comparison, folder.report)
    for file in files:
        file.touch()
    assert not folder.is_complete
    folder.complete({"release": 3})
    assert folder.is_complete
    about = json.loads((folder.path / "run.json").read_text())
    assert about == folder.summary()
    assert about["id"] == folder.id and about["release"] == 3 and about["inputs"] == INPUTS
    assert about["settings"]["training"]["epochs"] == settings.training.epochs
    events = (folder.path / "events.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in events]
    assert [line["event"] for line in lines] == ["begin", "chosen", "complete"]
    assert lines[1]["rate"] == 0.1 and lines[1]["path"] == "x"
    for file in files:
        file.unlink()
        assert not folder.is_complete
        file.touch()
    folder.begin()
    assert len((folder.path / "events.jsonl").read_text().splitlines()) == 1
    assert not list(tmp_path.rglob("*.tmp.*"))


def test_what_broken_runs_left_a_week_ago_is_removed(tmp_path: Path) -> None:
    settings = small_settings(tmp_path, Path("log.parquet"))
    folders = [RunFolder(settings, base, INPUTS) for base in ("old", "young", "mine")]
    other = RunFolder(replace(settings, name="another"), "old", INPUTS)
    for folder in (*folders, other):
        folder.begin()
        for kept in (folder.training, folder.measuring):
            kept.mkdir()
            (kept / "file").write_bytes(b"12345")
        assert folder.bytes_held > 10
    for folder in (folders[0], other):
        os.utime(folder.path / "events.jsonl", (0, time.time() - 8 * 86_400))
    folders[2].begin()
    assert not folders[0].training.exists() and not folders[0].measuring.exists()
    assert folders[0].has_begun, "what happened is still told"
    for folder in (*folders[1:], other):
        assert folder.training.exists() and folder.measuring.exists()
    folders[2].forget()
    assert folders[2].bytes_held == 0 and not folders[2].has_begun


def test_the_commit_is_that_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that is installed inside another project's repository is not of its commit."""
    code = tmp_path / "run.py"
    code.write_text("1\n")
    monkeypatch.setattr(run, "__file__", str(code))
    git = ["git", "-c", "user.name=n", "-c", "user.email=n@example.org"]

    def do(*words: str) -> None:
        subprocess.run([*git, *words], cwd=tmp_path, check=True, capture_output=True)

    assert git_commit() is None
    do("init")
    do("commit", "--allow-empty", "-m", "theirs")
    assert git_commit() is None
    do("add", "run.py")
    do("commit", "-m", "ours")
    commit = git_commit()
    assert commit is not None and re.fullmatch("[0-9a-f]{40,64}", commit)
    code.write_text("2\n")
    assert git_commit() == f"{commit}+"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() is None


def test_patterns_name_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.parquet", "a.parquet", "odd[1].parquet", "note.txt"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert files_of([Path("*.parquet")]) == [
        Path("a.parquet"),
        Path("b.parquet"),
        Path("odd[1].parquet"),
    ]
    assert files_of([tmp_path / "?.parquet"]) == [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    assert files_of([Path("odd[1].parquet"), Path("a.parquet")]) == [
        Path("odd[1].parquet"),
        Path("a.parquet"),
    ]
    for missing in ("c.parquet", "c*.parquet", "no/*.parquet"):
        with pytest.raises(FileNotFoundError, match="no log file matches"):
            files_of([Path("a.parquet"), Path(missing)])
