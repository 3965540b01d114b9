"""One run on several ranks: what torchrun makes is what one process makes, killed or not."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch.distributed as dist
from small_runs import finished, live, planted_log, same_tables, small_settings, write_toml

from reclora.base import BaseModel
from reclora.pipelines.ranks import is_first, num_ranks, together
from reclora.pipelines.retrain import Outcome, retrain
from reclora.pipelines.run import RunSettings, Search
from reclora.splits import SplitConfig
from reclora.training import TrainingConfig

RECLORA = Path(sys.executable).with_name("reclora")
TRAINED, RANKED = "training/*.safetensors", "measuring/lists-*.parquet"
"""What a run keeps as it goes: checkpoints of chunks, lists of models."""


def on_ranks(folder: Path, base: Path, **changes: object) -> RunSettings:
    """A run that asks for all that ranks can: with and without a parent, every rung, two seeds,
    items that the base does not know, several chunks.
    """
    settings = small_settings(
        folder,
        planted_log(folder / "log.parquet"),
        split=SplitConfig("global_time", pretrain=0.5, train=0.3, validation=0.08, test=0.12),
        training=TrainingConfig(epochs=4, patience=2, batch_rows=32, num_negatives=32),
        search=Search((0.05,), (0.2,), (0.01,)),
        parent="auto",
        unknown="grow",
        compared=(),
        seeds=(0, 1),
        chunk_rows=400,
    )
    return replace(settings, base=replace(settings.base, saved=base), **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory)[0].base_folder


@cache
def _whole(folder: Path, base: Path) -> tuple[RunSettings, Outcome]:
    settings = on_ranks(folder, base)
    return settings, retrain(settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, base: Path) -> tuple[RunSettings, Outcome]:
    """The run of one process."""
    return _whole(tmp_path_factory.getbasetemp() / "one-process", base)


def command(
    ranks: int, toml: Path, *words: str, restarts: int = 0, program: Path = RECLORA
) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
    launcher += ["--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
    return [*launcher, str(program), "retrain", str(toml), *words]


def environment() -> dict[str, str]:
    own = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    # Restarted ranks read stale addresses of the store that they share otherwise, and hang.
    return {**os.environ, **own, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def started(
    ranks: int, toml: Path, *words: str, cwd: Path, program: Path = RECLORA
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(ranks, toml, *words, program=program),
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


def check_same_run(settings: RunSettings, expected: Outcome) -> None:
    """The same is live, to the byte; and the same was decided, measured and compared."""
    assert live(settings.store_folder) == live(expected.store)
    (folder,) = (path for path in settings.runs.iterdir() if path.is_dir())
    same_tables(folder, expected.folder.path, ("decisions", "results", "comparison", "slices"))
    assert (folder / "report.html").exists() and not (folder / "training").exists()


TRACED = f"""#!/bin/sh
if [ "$RANK" = 0 ] || ! strace -o /dev/null true; then exec {RECLORA} "$@"; fi
exec strace -f -qq -e trace=open,openat -o opened.txt {RECLORA} "$@"
"""
"""Starts a rank; of the second one it is written down which files it opens."""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, base: Path) -> RunSettings:
    """The run of two ranks."""
    folder = tmp_path_factory.mktemp("two-ranks")
    settings = on_ranks(folder, base)
    toml = write_toml(folder / "run.toml", settings)
    bytes_before = {path.name: path.read_bytes() for path in base.iterdir()}
    program = folder / "traced.sh"
    program.write_text(TRACED)
    program.chmod(0o755)
    done = started(2, toml, "--json", cwd=folder, program=program)
    assert done.returncode == 0, done.stderr[-3000:]
    # One rank speaks.
    told = json.loads(done.stdout)
    assert told["release"] == 1 and done.stderr.count("training: pooled adapter: done") == 1
    assert {path.name: path.read_bytes() for path in base.iterdir()} == bytes_before
    BaseModel.load(base).verify()
    return settings


def test_two_ranks_make_the_run_of_one_process(
    two: RunSettings, whole: tuple[RunSettings, Outcome]
) -> None:
    check_same_run(two, whole[1])
    assert events(two) == events(whole[0])


def test_one_rank_alone_reads_the_log(two: RunSettings) -> None:
    """The other one opens what was sent to it, its checkpoints and its lists."""
    traced = two.folder.parent / "opened.txt"
    if not traced.exists():
        pytest.skip("strace cannot trace here, to see which files a rank opens")
    opened = set(re.findall(r'"([^"]+)"', traced.read_text()))
    inside = {path for path in opened if Path(path).is_relative_to(two.folder.parent)}
    assert not {
        path for path in inside if "log" in Path(path).parts or path.endswith("log.parquet")
    }
    assert any("/training/sent/" in path for path in inside)


def events(settings: RunSettings) -> list[str]:
    (path,) = settings.runs.glob("*/events.jsonl")
    return [json.loads(line)["event"] for line in path.read_text().splitlines()]


def test_what_needs_the_whole_base_is_refused(tmp_path: Path, base: Path) -> None:
    settings = on_ranks(tmp_path, base, compared=("from scratch",))
    done = started(2, write_toml(tmp_path / "run.toml", settings), cwd=tmp_path)
    assert done.returncode == 1
    assert (
        'compared = ["from scratch"]: that needs the whole base in one process, and here are 2 '
        "ranks, each with a part of it: leave it out, or start one process"
    ) in done.stderr
    assert not settings.runs.exists()


def test_other_verbs_and_plans_are_made_alone(tmp_path: Path, base: Path) -> None:
    words = command(2, tmp_path / "run.toml")
    words[words.index("retrain")] = "evaluate"
    done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("only `retrain` runs on several ranks; start evaluate alone") == 1
    toml = write_toml(tmp_path / "run.toml", on_ranks(tmp_path, base))
    done = started(2, toml, "--dry-run", cwd=tmp_path)
    assert done.returncode == 1 and "start --dry-run without torchrun" in done.stderr


def short(folder: Path, base: Path) -> RunSettings:
    """A run that is training for most of its time."""
    return on_ranks(
        folder,
        base,
        training=TrainingConfig(epochs=12, patience=12, batch_rows=8, num_negatives=32),
        search=Search((), (), ()),
        parent="none",
        kinds="given",
        compared=(),
        seeds=(0,),
        chunk_rows=100,
    )


@cache
def _unbroken(folder: Path, base: Path) -> Outcome:
    return retrain(short(folder, base))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Outcome:
    return _unbroken(tmp_path_factory.getbasetemp() / "unbroken", base)


def test_one_process_is_alone_and_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that look like torchrun's, without its own, are somebody else's."""
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert num_ranks() == 1 and is_first()
    with together(deadline_minutes=1):
        assert not dist.is_initialized()


def ranks_below(launcher: int) -> list[int]:
    """The processes that a launcher has started, in the order of their ranks."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher:
                variables = (process / "environ").read_bytes().split(b"\0")
                (rank,) = (v for v in variables if v.startswith(b"RANK="))
                found.append((rank, int(process.name)))
        except (OSError, ValueError):
            continue
    return [pid for _, pid in sorted(found)]


def broken(
    tmp_path: Path,
    base: Path,
    moment: tuple[str, int],
    rank: int,
    number: int,
    minutes: float = 60.0,
) -> tuple[RunSettings, str]:
    """A run of which one rank is sent a signal when there are so many files; what it said."""
    pattern, files = moment
    settings = replace(short(tmp_path, base), deadline_minutes=minutes)
    toml = write_toml(tmp_path / "run.toml", settings)
    with (tmp_path / "said.txt").open("w+") as said:
        launcher = subprocess.Popen(
            command(2, toml, restarts=2), cwd=tmp_path, env=environment(), stdout=said, stderr=said
        )
        until = time.monotonic() + 240
        while len(list(settings.runs.glob(f"*/{pattern}"))) < files:
            assert launcher.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        os.kill(ranks_below(launcher.pid)[rank], number)
        try:
            code = launcher.wait(timeout=300)
        finally:
            launcher.kill()
        said.seek(0)
        text = said.read()
    assert code == 0, text[-3000:]
    return settings, text


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("moment", [*((TRAINED, files) for files in (1, 2, 3, 4)), (RANKED, 2)])
def test_row_13_a_rank_is_killed_and_all_go_on(
    tmp_path: Path, base: Path, unbroken: Outcome, moment: tuple[str, int], rank: int
) -> None:
    """torchrun starts the group again, and it goes on from what is kept, to the same bytes."""
    settings, _ = broken(tmp_path, base, moment, rank, signal.SIGKILL)
    check_same_run(settings, unbroken)
    assert "resume" in events(settings)


@pytest.mark.slow
def test_what_ranks_have_begun_one_process_ends(
    tmp_path: Path, base: Path, unbroken: Outcome
) -> None:
    settings = short(tmp_path, base)
    toml = write_toml(tmp_path / "run.toml", settings)
    launcher = subprocess.Popen(
        command(2, toml), cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL
    )
    while len(list(settings.runs.glob(f"*/{TRAINED}"))) < 2:
        assert launcher.poll() is None
        time.sleep(0.01)
    for pid in ranks_below(launcher.pid):
        os.kill(pid, signal.SIGKILL)
    assert launcher.wait(timeout=120) != 0
    retrain(settings)
    check_same_run(settings, unbroken)
    assert "resume" in events(settings)


@pytest.mark.slow
def test_row_11_a_hung_rank_is_ended_after_the_deadline(
    tmp_path: Path, base: Path, unbroken: Outcome
) -> None:
    settings, text = broken(tmp_path, base, (TRAINED, 3), 1, signal.SIGSTOP, minutes=0.5)
    check_same_run(settings, unbroken)
    assert "resume" in events(settings) and "imed out" in text
