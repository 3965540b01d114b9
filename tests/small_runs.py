"""Small logs, settings and finished runs that the tests of the pipelines share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reclora.configs import AdapterConfig
from reclora.datasets.planted import PlantedConfig, plant
from reclora.evaluation import EvaluationConfig
from reclora.factorisation import FactorisationConfig
from reclora.files import make_folder, read_parquet, write_parquet, write_text
from reclora.gate import GateConfig
from reclora.pipelines.alone import OWNER
from reclora.pipelines.base_settings import BaseSearch, BaseSettings, TowerTraining
from reclora.pipelines.retrain import Outcome, retrain
from reclora.pipelines.run import LogSettings, RunSettings, Search, WindowFiles
from reclora.pipelines.settings import resolved
from reclora.splits import WINDOWS, SplitConfig
from reclora.store import AdapterStore
from reclora.training import TrainingConfig

HOSTILE = (
    "../x",
    "</script><script>alert(1)</script>",
    "🦊 日本",
    "=cmd()|' /C calc'!A0",
    "pooled",
)
"""Names of segments that break paths, pages, tables and spreadsheets; one is a word of ours."""
NUM_ITEMS = 150
START = 1_700_000_000_000_000


def planted_log(path: Path, seed: int = 0) -> Path:
    """A log of a small planted world: shifted, unshifted and tiny segments."""
    world = plant(
        PlantedConfig(
            num_users=150,
            num_items=200,
            dim=8,
            num_segments=4,
            unshifted_segments=1,
            num_base_interactions=5000,
            num_interactions=5000,
            shift=0.5,
            bias_shift=3.5,
            seed=seed,
        )
    )
    make_folder(path.parent)
    write_parquet(path, world.table())
    return path


def random_log(
    path: Path, segments: Mapping[str, tuple[float, float]], users: int = 24, rows: int = 900
) -> Path:
    """A log in which each segment has rows from one share of the log to another.

    No user takes an item twice, and each segment has items that it likes best.
    """
    rng = np.random.default_rng(0)
    names = list(segments)
    of_user = np.arange(users) % len(names)
    first, last = (np.array([segments[name][i] for name in names])[of_user] for i in (0, 1))
    liking = np.stack([rng.permutation(NUM_ITEMS) for _ in names]) / 30
    orders = [np.argsort(liking[s] + rng.gumbel(size=NUM_ITEMS)).tolist() for s in of_user]
    places = np.arange(rows) / rows
    user = [rng.choice(np.flatnonzero((first <= p) & (p < last))) for p in places]
    table = pa.table(
        {
            "user_id": [f"u{u}" for u in user],
            "item_id": [f"i{orders[u].pop(0)}" for u in user],
            "timestamp": pa.array(START + np.arange(rows) * 10**9, pa.timestamp("us", "UTC")),
            "segment": [names[of_user[u]] for u in user],
        }
    )
    make_folder(path.parent)
    write_parquet(path, table)
    return path


def small_settings(folder: Path, log: Path, **changes: Any) -> RunSettings:
    """A run of a few seconds: one seed, one setting, few epochs."""
    short = TrainingConfig(epochs=3, batch_rows=32, num_negatives=32, rows_lr=0.1)
    tables = FactorisationConfig(
        embedding_dim=8, epochs=20, batch_users=16, temperature=0.3, bias_lr=0.03
    )
    tower = TowerTraining(epochs=3, batch_rows=128, num_negatives=32)
    base = BaseSettings(tables, search=BaseSearch(()), hidden=(8,), tower=tower)
    settings = RunSettings(
        log=LogSettings((log,)),
        name="small",
        folder=folder / "work",
        runs=folder / "runs",
        base=base,
        adapter=AdapterConfig(rank=2, alpha=2.0),
        parent="pooled",
        training=short,
        search=Search((0.1,), (0.1,), (0.01,)),
        seeds=(0,),
        evaluation=EvaluationConfig((10, 5), ("ndcg", "recall")),
        gate=GateConfig(rule="none"),
        repeat="",
    )
    return replace(settings, **changes)


def finished(factory: pytest.TempPathFactory) -> tuple[RunSettings, Outcome]:
    """A run of the planted world, made once a session; tests leave it as it is."""
    return _finished(factory.getbasetemp() / "finished")


@cache
def _finished(folder: Path) -> tuple[RunSettings, Outcome]:
    settings = small_settings(
        folder,
        planted_log(folder / "log.parquet"),
        # The world shifts half-way.
        split=SplitConfig("global_time", pretrain=0.5, train=0.3, validation=0.08, test=0.12),
        training=TrainingConfig(epochs=6, batch_rows=32, num_negatives=32),
        search=Search((0.05,), (0.2,), (0.01,)),
    )
    return settings, retrain(settings)


def files_below(folder: Path) -> dict[Path, tuple[int, int, bytes]]:
    """Inode, time of change and bytes of every file, but that of who is at work."""
    return {
        path: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != OWNER
    }


def write_toml(path: Path, settings: RunSettings) -> Path:
    """A settings file that gives `settings`, but for `repeat`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    given = resolved(settings)
    sections = {n: part for n, part in given.items() if n != "repeat" and part is not None}
    write_text(path, "".join(f"{name} = {_toml(part)}\n" for name, part in sections.items()))
    return path


def _toml(value: object) -> str:
    if isinstance(value, dict):
        inner = [f"{name} = {_toml(part)}" for name, part in value.items() if part is not None]
        return "{" + ", ".join(inner) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def reclora(*words: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a process of its own."""
    return subprocess.run(
        [Path(sys.executable).with_name("reclora"), *map(str, words)],
        cwd=cwd,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "COLUMNS": "160", **environment},
        capture_output=True,
        text=True,
    )


def live(store: Path) -> dict[str, bytes]:
    """The bytes of every adapter that is live, and of its parent."""
    held = AdapterStore(store)
    release = held.current()
    assert release is not None
    held.verify()
    found = {}
    for adapter in held.load_all(base_fingerprint=release.base_fingerprint):
        parts = [adapter, *([adapter.parent] if adapter.parent else [])]
        found[adapter.segment] = b"".join(
            name.encode() + tensor.numpy().tobytes()
            for part in parts
            for name, tensor in sorted(part.tensors.items())
        )
    return found


def same_tables(ours: Path, theirs: Path, names: Sequence[str]) -> None:
    """Tables of two runs are the same, to the last bit, but for the runs' ids."""
    for name in names:
        own, its = (
            read_parquet(folder / f"{name}.parquet").to_pandas() for folder in (ours, theirs)
        )
        columns = [column for column in its if column != "run"]
        pd.testing.assert_frame_equal(own[columns], its[columns], check_exact=True)


def poisoned_windows(table: pa.Table, ends: Sequence[int], folder: Path) -> dict[str, WindowFiles]:
    """`clean`: a table cut into windows; `poisoned`: the same with other items in the test rows."""
    found = {}
    for night in ("clean", "poisoned"):
        files = {}
        for name, first, last in zip(WINDOWS, ends, ends[1:], strict=False):
            part = table.slice(first, last - first)
            if name == "test" and night == "poisoned":
                items = part["item_id"].to_pylist()
                part = part.set_column(1, "item_id", pa.array(items[::-1]))
            files[name] = (folder / night / f"{name}.parquet",)
            files[name][0].parent.mkdir(exist_ok=True)
            pq.write_table(part, files[name][0])
        found[night] = WindowFiles(**files)
    return found
