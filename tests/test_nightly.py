"""The nightly pass as cron runs it: killed, told to stop, run twice, poisoned, out of memory."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from numpy.typing import NDArray
from small_runs import (
    finished,
    live,
    planted_log,
    reclora,
    same_tables,
    small_settings,
    write_toml,
)
from small_worlds import KINDS, make_base, make_log, numbers

from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.checkpoints import Checkpoint
from reclora.configs import AdapterConfig
from reclora.files import read_parquet, write_parquet
from reclora.gate import GateConfig
from reclora.interactions import Interactions
from reclora.pipelines.alone import OWNER, Busy, alone_in
from reclora.pipelines.plan import plan
from reclora.pipelines.retrain import Outcome, retrain
from reclora.pipelines.run import RunSettings, Search
from reclora.pipelines.settings import SettingsError, load
from reclora.pipelines.workshop import Workshop, chunks_of
from reclora.splits import SplitConfig
from reclora.store import AdapterStore
from reclora.training import Training, TrainingConfig

SPLIT = SplitConfig("global_time", pretrain=0.5, train=0.3, validation=0.08, test=0.12)


def nightly(folder: Path, base: Path, **changes: object) -> RunSettings:
    """A night of a few seconds: one training of all segments, in several chunks."""
    settings = small_settings(
        folder,
        planted_log(folder / "log.parquet"),
        split=SPLIT,
        training=TrainingConfig(epochs=6, patience=6, batch_rows=16, num_negatives=32),
        search=Search((), (), ()),
        adapter=AdapterConfig(user_table="none", item_table="rows", tower="none", rank=2),
        kinds="given",
        compared=(),
        chunk_rows=300,
    )
    return replace(settings, base=replace(settings.base, saved=base), **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that is there already."""
    settings, _ = finished(tmp_path_factory)
    return settings.base_folder


@cache
def _whole(folder: Path, base: Path) -> tuple[RunSettings, Outcome]:
    settings = nightly(folder, base)
    return settings, retrain(settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, base: Path) -> tuple[RunSettings, Outcome]:
    """A night that nothing broke."""
    return _whole(tmp_path_factory.getbasetemp() / "whole", base)


def same_night(outcome: Path, expected: Outcome, settings: RunSettings) -> None:
    """The same bytes live, the same decisions, the same results."""
    assert live(settings.store_folder) == live(expected.store)
    (folder,) = (path for path in outcome.iterdir() if path.is_dir())
    same_tables(folder, expected.folder.path, ("decisions", "results", "comparison"))
    assert not (folder / "training").exists() and (folder / "run.json").exists()
    assert len(AdapterStore(settings.store_folder).releases()) == 1


ALL_MODELS = [
    "segment popularity, all time",
    "segment popularity, recent",
    "frozen base",
    "pooled adapter",
    "per-segment adapters",
    "live after the run",
]


def started(toml: Path, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [Path(sys.executable).with_name("reclora"), "retrain", toml],
        cwd=cwd,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_row_07_a_night_killed_again_and_again_ends_with_the_same_bytes(
    tmp_path: Path, base: Path, whole: tuple[RunSettings, Outcome], workers: int
) -> None:
    settings = nightly(tmp_path, base, workers=workers)
    toml = write_toml(tmp_path / "run.toml", settings)
    kills = 0

    def happened() -> list[str]:
        texts = [path.read_text() for path in settings.runs.glob("*/events.jsonl")]
        return [json.loads(line)["event"] for text in texts for line in text.splitlines()]

    for attempt in range(40):
        before = len(happened())
        process = started(toml, tmp_path)
        while len(happened()) == before and process.poll() is None:
            time.sleep(0.02)
        try:
            # From its first word on each attempt lives a little longer.
            _, errors = process.communicate(timeout=0.4 + 0.3 * attempt)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
    assert process.returncode == 0, errors
    assert kills >= 2 and happened().count("resume") >= 2
    same_night(settings.runs, whole[1], settings)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_row_08_told_to_stop_it_stops_and_can_be_resumed(
    tmp_path: Path, base: Path, whole: tuple[RunSettings, Outcome], number: signal.Signals
) -> None:
    settings = nightly(tmp_path, base)
    toml = write_toml(tmp_path / "run.toml", settings)
    process = started(toml, tmp_path)
    while not list(settings.runs.glob("*/training/*.safetensors")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    told = time.monotonic()
    _, errors = process.communicate()
    assert process.returncode == 130 and time.monotonic() - told < 10
    assert (
        errors.splitlines()[-1]
        == "interrupted; run the same command again: it goes on where it was"
    )
    assert AdapterStore(settings.store_folder).current() is None
    kept = {path.name for path in settings.runs.glob("*/training/*.safetensors")}
    assert kept
    done = reclora("retrain", toml, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["release"] == 1 and not found["reused"]
    assert "\x1b" not in done.stdout + done.stderr
    same_night(settings.runs, whole[1], settings)
    lines = (Path(found["folder"]) / "events.jsonl").read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert events[0] == "begin" and "resume" in events and events[-1] == "complete"


def test_a_night_killed_after_publishing_publishes_once(
    tmp_path: Path, base: Path, whole: tuple[RunSettings, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    from reclora.pipelines import retrain as pipeline

    settings = nightly(tmp_path, base)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_run_report", killed)
        with pytest.raises(KeyboardInterrupt):
            retrain(settings)
    assert AdapterStore(settings.store_folder).releases() == [1]
    outcome = retrain(settings)
    assert outcome.release == 1 and not outcome.was_there
    same_night(settings.runs, whole[1], settings)


@pytest.mark.parametrize("where", ["decided", "measured", "compared", "written", "complete"])
def test_a_kill_after_training_costs_no_training(
    tmp_path: Path,
    base: Path,
    whole: tuple[RunSettings, Outcome],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """What was made is read: nothing that ran before the kill runs again."""
    from reclora.pipelines import assessment, workshop
    from reclora.pipelines import retrain as pipeline

    settings = nightly(tmp_path, base)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    stages = {
        "decided": (pipeline, "publish"),
        "measured": (pipeline.Assessment, "take"),
        "compared": (pipeline.Assessment, "write_results"),
        "written": (pipeline, "write_run_report"),
        "complete": (pipeline.RunFolder, "tidy"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*stages[where], killed)
        with pytest.raises(KeyboardInterrupt):
            retrain(settings)
    trained, ranked = list[object](), list[object]()
    train, rank = workshop.train, assessment._measured

    def training(*given: Any, checkpoint: Checkpoint, **further: Any) -> Training:
        trained.append(checkpoint.load() is not None)
        return train(*given, checkpoint=checkpoint, **further)

    # The training on nothing, which checks the config, is another `train`.
    monkeypatch.setattr(workshop, "train", training)
    monkeypatch.setattr(assessment, "_measured", lambda *a: ranked.append(a[3]) or rank(*a))
    outcome = retrain(settings)
    assert outcome.was_there == (where == "complete")
    same_night(settings.runs, whole[1], settings)
    assert all(trained) and bool(trained) == (where != "complete")
    assert ranked == {"decided": ALL_MODELS, "measured": ALL_MODELS[-1:]}.get(where, [])


def test_workers_change_no_byte(
    tmp_path: Path,
    base: Path,
    whole: tuple[RunSettings, Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from reclora.evaluation import pieces

    monkeypatch.setattr(pieces, "PIECE_USERS", 10)
    monkeypatch.setattr(pieces, "LEAST_USERS", 0)
    settings = nightly(tmp_path, base, workers=2)
    log = Interactions.read(whole[0].log_folder)
    assert len(chunks_of(log, 300)) > 1
    retrain(settings)
    same_night(settings.runs, whole[1], settings)


def test_row_30_two_nights_at_once_are_one_and_a_refusal(tmp_path: Path, base: Path) -> None:
    settings = nightly(tmp_path, base)
    with alone_in(settings.folder), pytest.raises(Busy, match=rf"at work here .*{os.getpid()}"):
        retrain(settings)
    assert not settings.runs.exists()
    # Of a dead one nothing but its name is left, and that holds nobody up.
    (settings.folder / OWNER).write_text('{"pid": 1}')
    assert retrain(settings).release == 1


def test_row_20_a_poisoned_segment_is_quarantined_and_the_others_go_on(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers overflow in a step; in the others nothing is seen of it."""
    from reclora.optim import RowwiseAdagrad

    settings = nightly(tmp_path, base)
    expected = nightly(tmp_path / "clean", base)
    retrain(expected)
    step, poisoned = RowwiseAdagrad.step, "日本"
    log = Interactions.read(expected.log_folder)
    rows = len(log.only(poisoned))
    assert rows

    def spoilt_step(self: RowwiseAdagrad, closure: None = None) -> None:
        step(self, closure)
        bank = BANKS[-1]
        if poisoned in bank.segment_names and len(bank.segment_names) < 4:
            for _, delta in bank.deltas():
                for name, part in delta.slices(bank.code(poisoned)).items():
                    delta.get_parameter(name).data[part] = torch.nan

    made = AdapterBank.for_log.__func__  # type: ignore[attr-defined]
    BANKS: list[AdapterBank] = []

    def for_log(cls: type[AdapterBank], *given: Any, **named: Any) -> AdapterBank:
        BANKS.append(made(cls, *given, **named))
        return BANKS[-1]

    monkeypatch.setattr(AdapterBank, "for_log", classmethod(for_log))
    monkeypatch.setattr(RowwiseAdagrad, "step", spoilt_step)
    outcome = retrain(settings)
    assert outcome.decisions.of("quarantined") == [poisoned]
    row = outcome.decisions.table.set_index("segment").loc[poisoned]
    assert "is not finite" in row["reason"] and "step" in row["reason"]
    ours, theirs = live(settings.store_folder), live(expected.store_folder)
    assert poisoned not in ours and poisoned in theirs
    assert ours.keys() | {poisoned} == theirs.keys()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_chunk_of_which_nothing_is_left_says_why(tmp_path: Path, workers: int) -> None:
    """One segment, whose scores overflow, is a chunk of its own; the others are as ever."""
    base, names = make_base(hidden=()), ("poisoned", "well", "too")
    log = make_log(base, dict.fromkeys(names, 12))
    others = set(log.only("well").user_rows) | set(log.only("too").user_rows)
    users = base.user_table.materialised()
    users[next(row for row in log.only("poisoned").user_rows if row not in others)] = 3e38
    items, bias = base.item_table.materialised(), base.item_bias.materialised().squeeze(1)
    spoilt = BaseModel.of(base.users, base.items, users, items, bias, None)

    def trained(model: BaseModel, folder: str) -> tuple[AdapterBank, Training]:
        def bank_of(base: BaseModel, part: Interactions, codes: object) -> AdapterBank:
            return AdapterBank.for_log(base, part, KINDS["bias"])

        def judge(bank: AdapterBank, segments: NDArray[np.int64]) -> NDArray[np.float64]:
            return asked.pop(0) + np.zeros(len(segments))

        asked = [float(n) for n in range(100)]
        config = TrainingConfig(epochs=2, batch_rows=4, num_negatives=8)
        shop = Workshop(tmp_path / folder, chunk_rows=1, workers=workers)
        return shop.train(folder, bank_of, model, log, config, lambda ranking: judge, 0)

    bank, training = trained(spoilt, "spoilt")
    assert list(training.quarantined) == ["poisoned"]
    assert "the loss is not finite in epoch 1, step " in training.quarantined["poisoned"]
    assert training.best_epoch == {"poisoned": 0, "well": 2, "too": 2}
    clean, _ = trained(base, "clean")
    for name in ("well", "too"):
        assert numbers(bank, name) == numbers(clean, name)
    fresh = AdapterBank.for_log(spoilt, log, KINDS["bias"])
    assert numbers(bank, "poisoned") == numbers(fresh, "poisoned")


def test_row_12_without_memory_steps_are_halved_and_then_it_is_an_error(tmp_path: Path) -> None:
    """A real limit of the address space, in a process of its own."""
    script = """
import resource, sys
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from small_worlds import KINDS, make_base, make_log
from reclora.bank import AdapterBank
from reclora.pipelines.workshop import Workshop
from reclora.training import HeldOutLoss, TrainingConfig
base = make_base(num_items=2000)
names = {f"s{n}": 40 for n in range(64)}
log = make_log(base, names)
config = TrainingConfig(epochs=1, batch_rows=64, num_negatives=8000, step_rows=int(sys.argv[1]))
def bank_of(base, part, codes):
    return AdapterBank.for_log(base, part, KINDS["bias"])
judge = lambda bank, segments: np.ones(len(segments))
judge_of = lambda ranking: judge
Workshop().train("warm", bank_of, base, log, replace(config, num_negatives=8), judge_of, 0)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
limit = used + int(sys.argv[2]) * 2**20
workshop = Workshop(Path(sys.argv[3]))
for most in (limit, resource.RLIM_INFINITY):
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    bank, training = workshop.train("it", bank_of, base, log, config, judge_of, 0)
    print(training.steps)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}

    def run(step_rows: int, megabytes: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script, str(step_rows), str(megabytes), tmp_path],
            capture_output=True,
            text=True,
            env=environment,
        )

    tight = run(4096, 300)
    assert tight.returncode == 0, tight.stderr
    assert "no memory for steps of 4,096 rows, at " in tight.stderr
    # The rows fit into one step; what was trained in halves is not trained again.
    first, again = map(int, tight.stdout.split())
    assert "going on with half of them" in tight.stderr and first == again > 1
    hopeless = run(64, 1)
    assert hopeless.returncode == 1
    assert "set training.batch_rows below 64" in hopeless.stderr


def test_the_next_night_goes_on_from_what_is_live(tmp_path: Path, base: Path) -> None:
    settings = nightly(tmp_path, base)
    first = retrain(settings)
    again = replace(settings, start="current")
    planned = plan(again)
    assert planned.current == 1 and planned.models == ("per-segment adapters",)
    assert planned.begin_with_current == len(first.decisions.of("promoted"))
    second = retrain(again)
    for name in first.decisions.of("promoted"):
        row = second.decisions.table.set_index("segment").loc[name]
        assert row["status"] in ("promoted", "kept")
    models = set(read_parquet(second.folder.results).to_pandas()["model"])
    assert {
        "live before the run",
        "live after the run",
    } <= models and "pooled adapter" not in models
    store = AdapterStore(settings.store_folder)
    parents = {
        id(adapter.parent)
        for adapter in store.load_all(base_fingerprint=BaseModel.load(base).fingerprint)
    }
    assert len(parents) == 1, "all still stand on the parent of the first night"


def test_only_some_segments_are_trained_and_the_others_stay(tmp_path: Path, base: Path) -> None:
    settings = nightly(tmp_path, base)
    with pytest.raises(SettingsError, match="--only trains some segments on the parent"):
        retrain(settings, ["日本"])
    # Whatever is live, a name that the log does not have is the first thing to mend.
    with pytest.raises(SettingsError, match="no segment '日本n' in the log; near names: '日本'"):
        retrain(settings, ["日本n"])
    retrain(settings)
    before = live(settings.store_folder)
    outcome = retrain(settings, ["日本"])
    assert outcome.decisions.table["segment"].tolist() == ["日本"]
    assert outcome.release == 2
    after = live(settings.store_folder)
    assert {name for name in before if before[name] != after[name]} <= {"日本"}
    with pytest.raises(SettingsError, match="near names"):
        retrain(settings, ["日"])


def test_a_dry_run_changes_nothing(tmp_path: Path, base: Path) -> None:
    settings = nightly(tmp_path, base)
    toml = write_toml(tmp_path / "run.toml", settings)
    done = reclora("retrain", toml, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nothing was trained" in done.stdout and "nothing is live" in done.stdout
    assert not settings.store_folder.exists() and not settings.runs.exists()
    as_json = reclora("retrain", toml, "--dry-run", "--json", cwd=tmp_path)
    found = json.loads(as_json.stdout)
    assert found["models"] == ["pooled adapter", "per-segment adapters"] and not found["reused"]


def test_a_dry_run_of_a_complete_run_says_that_it_is_reused(tmp_path: Path, base: Path) -> None:
    toml = write_toml(tmp_path / "run.toml", nightly(tmp_path, base))
    settings = load(toml, RunSettings)
    outcome = retrain(settings)
    planned = plan(settings)
    assert planned.reused and planned.run == outcome.folder.id
    assert (planned.models, planned.trainings, planned.bytes_needed) == ((), 0, 0)
    assert retrain(settings).was_there, "as it said"
    done = reclora("retrain", toml, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == (
        f"{planned.run} is complete already, with the same log, settings and versions: it would be "
        "reused, and nothing trained"
    )
    # What it published is in the store; where that is another one, it is not done.
    shutil.rmtree(settings.store_folder)
    assert not plan(settings).reused


def test_a_gate_that_lets_nothing_pass_is_exit_code_5(tmp_path: Path, base: Path) -> None:
    settings = nightly(tmp_path, base, gate=GateConfig(min_gain=0.9))
    toml = write_toml(tmp_path / "run.toml", settings)
    done = reclora("retrain", toml, cwd=tmp_path)
    assert done.returncode == 5, done.stderr
    assert "release   none: what was live stays" in done.stdout
    assert AdapterStore(settings.store_folder).current() is None
    again = reclora("retrain", toml, "--json", cwd=tmp_path)
    assert again.returncode == 5 and json.loads(again.stdout)["reused"]


def test_a_canary_is_promoted_later(tmp_path: Path, base: Path) -> None:
    settings = nightly(tmp_path, base)
    retrain(settings)
    before = live(settings.store_folder)
    night = replace(settings, gate=GateConfig(rule="none", canary=0.1), seeds=(5,))
    assert retrain(night).release == 2
    store = AdapterStore(settings.store_folder)
    release = store.current()
    assert release is not None and release.canary is not None and release.canary.share == 0.1
    assert live(settings.store_folder) == before
    promoted = store.promote(reason="the canary sings")
    assert promoted.canary is None and live(settings.store_folder) != before


def test_what_others_change_during_a_night_stays(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reclora.pipelines import retrain as pipeline

    settings = nightly(tmp_path, base)
    first = retrain(settings)
    gone, *others = first.decisions.of("promoted")
    assert others
    store = AdapterStore(settings.store_folder)
    again = replace(settings, training=replace(settings.training, epochs=5))
    # Whatever a candidate is like it goes live, so that what stays is the others' doing.
    again = replace(again, gate=GateConfig(rule="none"))
    publish = pipeline.publish

    def changed(*given: Any) -> Any:
        if store.releases() == [1]:
            store.publish([], reason="it is haunted", remove=[gone])
        return publish(*given)

    monkeypatch.setattr(pipeline, "publish", changed)
    second = retrain(again)
    assert second.release == 3 and store.releases() == [1, 2, 3]
    release = store.release(3)
    assert gone not in release.segments and set(others) <= set(release.segments)
    row = second.decisions.table.set_index("segment").loc[gone]
    assert row["status"] == "kept" and "changed by others, by release 2" in row["reason"]
    written = store.decisions(3)
    assert written is not None and written.equals(second.decisions.table)
    assert read_parquet(second.folder.decisions).to_pandas().equals(second.decisions.table)
    # Its own release is not on the one that it began from; the run finds it all the same.
    assert retrain(again).was_there and store.releases() == [1, 2, 3]
    store.rollback(1, reason="for now")
    assert retrain(again).was_there and store.releases() == [1, 2, 3, 4]


def test_a_live_segment_without_rows_is_named(tmp_path: Path, base: Path) -> None:
    settings = nightly(tmp_path, base)
    retrain(settings)
    (path,) = settings.log.files
    table = read_parquet(path)
    others = table.filter(pc.not_equal(table["segment"], "日本"))
    write_parquet(path, others)
    outcome = retrain(settings)
    row = outcome.decisions.table.set_index("segment").loc["日本"]
    assert row["status"] == "kept" and row["reason"] == "no row in this log"
    current = AdapterStore(settings.store_folder).current()
    assert current is not None and "日本" in current.segments


def test_what_was_decided_is_not_decided_again(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment that was quarantined as its worker was killed may train well the next time."""
    from reclora.pipelines import learning
    from reclora.pipelines import retrain as pipeline

    settings = nightly(tmp_path, base)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def poisoned(*given: Any) -> Any:
        learned = learning.learn(*given)
        learned.subject.training.quarantined["日本"] = "its worker ended by signal 9"
        return learned

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "learn", poisoned)
        patch.setattr(pipeline, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            retrain(settings)
    outcome = retrain(settings)
    assert outcome.release == 1 and outcome.decisions.of("quarantined") == ["日本"]
    store = AdapterStore(settings.store_folder)
    assert store.releases() == [1] and "日本" not in store.release(1).segments
    assert read_parquet(outcome.folder.decisions).to_pandas().equals(outcome.decisions.table)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_worker_is_the_nights(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """A full disk is no reason to give segments up for good."""
    settings = nightly(tmp_path, base, workers=workers)

    def full(self: Checkpoint, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(self.path))

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", full)
        with pytest.raises(OSError, match="No space left"):
            retrain(settings)
    assert not settings.store_folder.exists()
    assert not retrain(settings).decisions.of("quarantined")


def test_a_damaged_table_that_was_kept_is_made_again(
    tmp_path: Path, base: Path, whole: tuple[RunSettings, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    from reclora.pipelines import retrain as pipeline

    settings = nightly(tmp_path, base)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_run_report", killed)
        with pytest.raises(KeyboardInterrupt):
            retrain(settings)
    kept = sorted(settings.runs.glob("*/measuring/*.parquet"))
    assert len(kept) > 20
    for path in kept[::3]:
        path.write_bytes(path.read_bytes()[:-9])
    retrain(settings)
    same_night(settings.runs, whole[1], settings)


def test_row_03_a_disk_without_room_is_refused_before_training(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reclora.pipelines import retrain as pipeline

    settings = nightly(tmp_path, base)
    monkeypatch.setattr(pipeline, "bytes_needed", lambda *_: 2**62)
    with pytest.raises(OSError, match="bytes are needed here, and .* are free"):
        retrain(settings)
    assert not settings.store_folder.exists() and not settings.runs.exists()
