"""Studies: the best is found and written, a kill loses nothing, several processes share one."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pandas as pd
import pytest

from reclora.pipelines.alone import alone_in
from reclora.pipelines.retrain import retrain
from reclora.pipelines.run import RunSettings, Search
from reclora.pipelines.search_space import Space, with_values
from reclora.pipelines.settings import load
from reclora.pipelines.tune import JOURNAL, STUDY, Tuned, tune
from tests.small_runs import random_log, small_settings, write_toml
from tests.test_trial import BASE, SPLIT

SPACE = """
[training]
bias_lr = { low = 0.001, high = 1.0, log = true }
num_negatives = { low = 4, high = 64, log = true }
[adapter]
rank = [1, 2, 99]
"""
ENDED = ("complete", "pruned")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> RunSettings:
    """At its rates nothing is learned."""
    folder = tmp_path_factory.mktemp("tune")
    log = random_log(folder / "log.parquet", {"de": (0, 1), "fr": (0, 1)})
    return small_settings(
        folder,
        log,
        base=BASE,
        split=SPLIT,
        kinds="given",
        parent="none",
        compared=(),
        search=Search((1e-6,), (1e-6,), (0.0,)),
        repeat="reclora tune run.toml",
    )


@pytest.fixture(scope="module")
def space(settings: RunSettings) -> Space:
    path = settings.folder.parent / "run.space.toml"
    path.write_text(SPACE)
    return Space.read(path, settings)


@pytest.fixture(scope="module")
def unbroken(settings: RunSettings, space: Space) -> Tuned:
    """A study of one process; what was read is `settings.folder`."""
    return tune(settings, space, trials=12)


def ended(trials: pd.DataFrame) -> pd.DataFrame:
    """What is the same however often a study was broken off."""
    kept = trials[trials["state"].isin(ENDED)].sort_values("trial")
    return kept.drop(columns=["trial", "seconds"]).reset_index(drop=True)


def test_the_best_is_found_and_better(settings: RunSettings, unbroken: Tuned) -> None:
    trials = unbroken.trials.set_index("trial")
    assert unbroken.best == trials["value"].idxmax()
    assert unbroken.compared["baseline_mean"] < unbroken.compared["model_mean"]
    assert unbroken.compared["model_mean"] == trials["value"].max()
    assert unbroken.compared["verdict"] == "better" and unbroken.compared["low"] > 0
    assert unbroken.values["training.bias_lr"] > 0.005
    # The first is what the settings say, as far as the space has it: their rate it has not.
    assert trials["training.num_negatives"][0] == settings.training.num_negatives
    assert trials["adapter.rank"][0] == settings.adapter.rank
    assert trials["training.bias_lr"].between(0.001, 1).all()


def test_trials_that_are_behind_or_cannot_be_are_pruned(unbroken: Tuned) -> None:
    trials = unbroken.trials
    assert {*trials["state"]} == {*ENDED}
    wrong = trials["adapter.rank"] == 99
    assert wrong.any() and trials["why"][wrong].str.contains("rank 99 is above the tables'").all()
    behind = (trials["state"] == "pruned") & ~wrong
    complete = trials["state"] == "complete"
    assert behind.any() and (trials["why"][behind] == "").all()
    assert trials["epochs"][behind].max() <= trials["epochs"][complete].max() == 3
    assert trials["value"][~complete].isna().all() and trials["value"][complete].notna().all()


def test_the_best_settings_load_and_run(
    settings: RunSettings, unbroken: Tuned, tmp_path: Path
) -> None:
    text = unbroken.best_settings.read_text()
    best = load(unbroken.best_settings, RunSettings)
    expected = with_values(settings, unbroken.values)
    assert best == replace(expected, repeat=RunSettings.repeat)
    assert best.training.bias_lr == unbroken.values["training.bias_lr"]
    assert best.search.bias_lr == () and best.search.rows_lr == settings.search.rows_lr
    low, high = (f"{unbroken.compared[end]:.4f}" for end in ("low", "high"))
    comments = " ".join(re.findall(r"(?m)^# (.*)$", text))
    assert "ndcg@10 of the defaults on validation is" in comments and f"[{low}, {high}]" in comments
    assert re.search(rf"(?m)^bias_lr = [\d.]+  # trial {unbroken.best}$", text)
    assert re.search(r"(?m)^patience = 3  # as it was$", text)
    outcome = retrain(replace(best, runs=tmp_path, seeds=(1,)))
    assert outcome.release and outcome.folder.report.exists()


def test_what_was_tried_is_a_table_and_a_page(unbroken: Tuned) -> None:
    table = pd.read_csv(unbroken.folder / "trials.csv", keep_default_na=False)
    assert table["trial"].tolist() == list(range(12))
    assert {"state", "value", "why", "training.bias_lr", "adapter.rank"} <= {*table}
    page = unbroken.page.read_text(encoding="utf-8")
    assert page.count('role="img"') >= 5 and f"of trial {unbroken.best} 0." in page
    assert "What matters" in page and "reclora tune run.toml" in page


def test_the_same_call_finds_what_is_there(
    settings: RunSettings, space: Space, unbroken: Tuned
) -> None:
    journal = (unbroken.folder / JOURNAL).read_bytes()
    again = tune(settings, space, trials=12)
    assert again.folder == unbroken.folder
    pd.testing.assert_frame_equal(again.trials, unbroken.trials)
    # Nothing was tried; that the study is there stands in the journal, again.
    assert len((unbroken.folder / JOURNAL).read_bytes()) - len(journal) < 500
    other = replace(settings, training=replace(settings.training, patience=2))
    assert tune(other, space, trials=1).folder != unbroken.folder


def test_defaults_that_nothing_is_better_than(
    settings: RunSettings, space: Space, unbroken: Tuned, tmp_path: Path
) -> None:
    good = with_values(settings, unbroken.values)
    path = tmp_path / "space.toml"
    path.write_text("training.bias_lr = [1e-6, 1e-5]")
    told = tune(replace(good, runs=tmp_path), Space.read(path, good), trials=2)
    assert told.best is None and not told.values
    assert told.compared["difference"] == 0 and told.compared["verdict"] == "cannot tell"
    assert load(told.best_settings, RunSettings) == replace(
        good, runs=tmp_path, repeat=RunSettings.repeat
    )
    assert "None of 2 trials is better than the defaults" in told.page.read_text()


COMMAND = "from reclora.pipelines.tune_cli import verbs; verbs()"


@pytest.fixture
def copied(settings: RunSettings, unbroken: Tuned, tmp_path: Path) -> Iterator[RunSettings]:
    """The settings in another place, with the log and the base that are there."""
    shutil.copytree(settings.folder, tmp_path / "work")
    mine = replace(settings, folder=tmp_path / "work", runs=tmp_path / "runs")
    write_toml(tmp_path / "run.toml", mine)
    (tmp_path / "run.space.toml").write_text(SPACE)
    yield mine


def started(folder: Path, *words: object) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "run.toml", *map(str, words)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_study_that_was_broken_off_is_gone_on_with(
    how: signal.Signals, copied: RunSettings, space: Space, unbroken: Tuned, tmp_path: Path
) -> None:
    """To the same trials as without the break."""
    with started(tmp_path, "--trials", 12) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("trial 2:"):
                break
        process.send_signal(how)
        process.communicate()
    assert process.returncode != 0
    (journal,) = copied.runs.glob(f"*/{JOURNAL}")
    assert not journal.with_name("best.toml").exists()
    told = tune(copied, space, trials=12)
    assert told.folder == journal.parent and told.folder.name == unbroken.folder.name
    pd.testing.assert_frame_equal(ended(told.trials), ended(unbroken.trials))
    assert told.values == unbroken.values and told.compared == unbroken.compared
    # The one that was under way is told of, and counts for nothing.
    assert (~told.trials["state"].isin(ENDED)).sum() <= 1
    assert "running" not in {*told.trials["state"]}


def test_a_journal_that_was_torn_is_mended(
    settings: RunSettings, space: Space, unbroken: Tuned, tmp_path: Path
) -> None:
    """By a kill in the middle of a line, while its writer held the lock."""
    mine = replace(settings, runs=tmp_path)
    shutil.copytree(unbroken.folder, tmp_path / unbroken.folder.name)
    journal = tmp_path / unbroken.folder.name / JOURNAL
    with journal.open("ab") as file:
        file.write(b'{"op_code": 5, "worker')
    journal.with_name(f"{JOURNAL}.lock").symlink_to(journal.name)
    began = time.monotonic()
    told = tune(mine, space, trials=12)
    assert time.monotonic() - began < 25, "nobody waits for a lock that nobody holds"
    pd.testing.assert_frame_equal(told.trials, unbroken.trials)


def test_two_commands_share_a_study(copied: RunSettings, tmp_path: Path) -> None:
    with contextlib.ExitStack() as running:
        with alone_in(copied.folder):
            one, other = (running.enter_context(started(tmp_path, "--trials", 8)) for _ in range(2))
            # Both are there before one can begin.
            for process in (one, other):
                assert process.stdout is not None
                assert process.stdout.readline().startswith("waiting: ")
        said = [process.communicate()[0] for process in (one, other)]
    assert one.returncode == other.returncode == 0, said
    both = "".join(said)
    assert both.count("\ndefaults: ") == 1
    numbers = sorted(map(int, re.findall(r"(?m)^trial (\d+):", both)))
    assert numbers == list(range(len(numbers))) and 8 <= len(numbers) <= 9
    assert all(re.search(r"(?m)^trial \d+:", text) for text in said)
    (folder,) = copied.runs.iterdir()
    assert (folder / "best.toml").exists() and (folder / "tuning.html").exists()


def test_workers_share_a_study(copied: RunSettings, space: Space, unbroken: Tuned) -> None:
    told = tune(copied, space, trials=6, workers=2)
    assert told.trials["state"].isin(ENDED).sum() in (6, 7)
    study = optuna.load_study(
        study_name=STUDY,
        storage=optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(told.folder / JOURNAL))
        ),
    )
    trials = study.get_trials()
    # At least once two were under way at the same time.
    pairs = zip(trials, trials[1:], strict=False)
    assert any(b.datetime_start < a.datetime_complete for a, b in pairs)  # type: ignore[operator]
    assert told.compared["baseline_mean"] == unbroken.compared["baseline_mean"]


def test_a_run_that_is_at_work_is_waited_for(
    settings: RunSettings, space: Space, unbroken: Tuned, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = threading.Event()

    def work() -> None:
        with alone_in(settings.folder):
            begun.set()
            time.sleep(1)

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    told = tune(settings, space, trials=12)
    thread.join()
    assert told.best == unbroken.best
    said = capsys.readouterr().err
    assert said.count("waiting: ") == 1 and "another run is at work here" in said


def test_without_optuna_it_says_what_to_install(
    settings: RunSettings, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(RuntimeError, match="pip install optuna"):
        tune(settings, space)
