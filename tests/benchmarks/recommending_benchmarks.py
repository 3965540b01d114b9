"""Figures of batch scoring: what `reclora recommend` adds to ranking.

One thread, process-CPU time, the best of a few runs. Each measurement is a process of its own
(`alone`).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import pyarrow as pa
import torch

from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.configs import AdapterConfig
from reclora.files import write_parquet
from reclora.interactions import IdMap, Interactions
from reclora.pipelines.base_settings import BaseSettings
from reclora.pipelines.prepare import prepare
from reclora.pipelines.recommend import recommend
from reclora.pipelines.run import LogSettings, RunSettings
from reclora.ranking import UserItems, rank
from reclora.store import AdapterStore

from .engine_worlds import DIM, alone, cpu_seconds
from .harness import Figure, measures

USERS: Final = 20_000
ITEMS: Final = 100_000
K: Final = 100
SEEN: Final = 40
SEGMENTS: Final = 50
RUNS: Final = 3
MOMENT: Final = 1_700_000_000_000_000
"""When the log begins, in microseconds."""


@measures("recommend_users_per_cpu_s")
def recommending() -> Figure:
    """20,000 users of 50 segments, 49 of them with an adapter; from the laid-out log to Parquet."""
    return Figure(
        "recommend_users_per_cpu_s",
        USERS / alone(whole_verb),
        "users/CPU-s",
        ">= 0.4",
        "the same users ranked by the base, nothing read or written",
        USERS / alone(bare_ranking),
    )


def whole_verb() -> float:
    """CPU-seconds of a batch."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        settings = _settings(Path(name))
        again = iter(range(RUNS + 1))

        def batch() -> None:
            recommend(settings, k=K, into=Path(name) / f"lists {next(again)}")

        batch()
        return min(cpu_seconds(batch) for _ in range(RUNS))


def bare_ranking() -> float:
    """CPU-seconds of nothing but ranking."""
    torch.set_num_threads(1)
    log = _log()
    users, items = (torch.from_numpy(rows) for rows in (log.user_rows, log.item_rows))
    seen = UserItems.from_pairs(users, items, USERS)
    batch = partial(rank, _base().scorer(), torch.arange(USERS), K, seen=seen)
    batch()
    return min(cpu_seconds(batch) for _ in range(RUNS))


def _base() -> BaseModel:
    generator = torch.Generator().manual_seed(0)
    return BaseModel.of(
        IdMap([f"user {user:08d}" for user in range(USERS)]),
        IdMap([f"item {item:08d}" for item in range(ITEMS)]),
        torch.randn(USERS, DIM, generator=generator),
        torch.randn(ITEMS, DIM, generator=generator),
    )


def _log() -> Interactions:
    """What each user has seen, in one segment each."""
    base, rng = _base(), np.random.default_rng(0)
    users = np.repeat(np.arange(USERS), SEEN)
    return Interactions.from_arrays(
        users=base.users,
        items=base.items,
        segment_names=[f"segment {segment:02d}" for segment in range(SEGMENTS)],
        segments=users % SEGMENTS,
        user_rows=users,
        item_rows=rng.integers(ITEMS, size=len(users)),
        timestamps=MOMENT + rng.integers(10**9, size=len(users)),
    )


def _settings(folder: Path) -> RunSettings:
    """A run with a base, a log that is laid out, and a release."""
    base, log = _base(), _log()
    settings = RunSettings(
        LogSettings((folder / "log.parquet",)),
        folder=folder,
        base=BaseSettings(saved=folder / "saved"),
    )
    base.save(folder / "saved")
    table = {
        "user_id": log.users.ids_of(log.user_rows),
        "item_id": log.items.ids_of(log.item_rows),
        "timestamp": pa.array(log.timestamps).cast(pa.timestamp("us", "UTC")),
        "segment": np.array(log.segment_names)[log.segment_rows],
    }
    write_parquet(folder / "log.parquet", pa.table(table))
    prepare(settings)
    pooled = AdapterBank.for_log(base, log.pooled(), AdapterConfig(rank=8)).adapters()[0]
    bank = AdapterBank.for_log(base, log, AdapterConfig(rank=4), parent=pooled)
    AdapterStore(settings.store_folder).publish(bank.adapters()[1:], reason="benchmark")
    return settings
