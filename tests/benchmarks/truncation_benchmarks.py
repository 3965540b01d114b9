"""Figures of choosing a rank: one training that is cut, beside one training a rank.

Planted worlds whose shifts have rank 2 and 4, three of each. Both ways choose learning rates on
validation; what they end with is held against test.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.configs import AdapterConfig
from reclora.datasets.planted import PlantedConfig, plant, write_log
from reclora.evaluation import EvaluationConfig, HeldOut, RankingJudge, evaluate, hold_out
from reclora.interactions import IdMap, Interactions, LogContract, prepare_log
from reclora.splits import SplitConfig, split
from reclora.training import TrainingConfig, train
from reclora.truncation import rank_curve, truncate

from .harness import Figure, measures

RANKS: Final = (1, 2, 4, 8, 16)
RATES: Final = (0.05, 0.1, 0.2)
PLANTED: Final = (2, 4)
SEEDS: Final = range(3)
HEADLINE: Final = EvaluationConfig(ks=(10,), metrics=("ndcg",))


@dataclass(frozen=True)
class World:
    """A base model, what adapts it, and what judges that."""

    base: BaseModel
    log: Interactions
    validation: HeldOut
    test: HeldOut

    @classmethod
    def of(cls, rank: int, seed: int) -> World:
        """A planted world whose segments shift by so many directions."""
        planted = plant(
            PlantedConfig(
                num_segments=6,
                unshifted_segments=1,
                tiny_segments=0,
                num_base_interactions=40_000,
                num_interactions=60_000,
                rank=rank,
                seed=seed,
            )
        )
        base = BaseModel.of(
            IdMap(planted.user_ids),
            IdMap(planted.item_ids),
            torch.from_numpy(planted.user_vectors),
            torch.from_numpy(planted.item_vectors),
            torch.from_numpy(planted.item_bias),
        )
        with tempfile.TemporaryDirectory() as folder:
            file = write_log(planted, Path(folder) / "log.parquet")
            prepare_log([file], Path(folder) / "log", LogContract())
            log, _ = Interactions.read(Path(folder) / "log").onto(base.users, base.items)
            windows = split(log, SplitConfig(pretrain=0.4, train=0.4, validation=0.1, test=0.1))
            seen = windows.pretrain.joined(windows.train)
            later = seen.joined(windows.validation)
            return cls(
                base,
                windows.train,
                hold_out(windows.validation, seen, HEADLINE),
                hold_out(windows.test, later, HEADLINE),
            )

    def trained(self, rank: int) -> AdapterBank:
        """The bank of the learning rate that validation likes best."""
        judge, banks = RankingJudge(self.validation), []
        for rate in RATES:
            bank = AdapterBank.for_log(
                self.base, self.log, AdapterConfig(rank=rank, alpha=rank), seed=0
            )
            train(bank, self.log, TrainingConfig(rows_lr=rate, epochs=15, patience=2), judge=judge)
            banks.append(bank)
        return max(banks, key=lambda bank: ndcg(bank, self.validation))


def ndcg(bank: AdapterBank, held_out: HeldOut) -> float:
    """The mean NDCG@10 over all users."""
    table = evaluate(held_out, bank.scorer, model="", run="", seed=0)
    return float(table["value"].mean())


@measures("rank_by_cutting_ndcg", "rank_by_cutting_cpu_s")
def rank_by_cutting() -> list[Figure]:
    """NDCG@10 on test, and the time that choosing took, of one training cut to the smallest rank
    within a standard error; beside the best of five separately trained ranks.
    """
    torch.set_num_threads(1)
    found = np.array([_both(World.of(rank, seed), rank) for rank in PLANTED for seed in SEEDS])
    gains_W = found[:, 0] - found[:, 1]
    for rank, part_W in zip(PLANTED, np.split(gains_W, len(PLANTED)), strict=True):
        print(f"planted rank {rank}: cut less separately trained {_interval(part_W)}")
    print(f"all worlds: {_interval(gains_W)}")
    cut, best, *_ = found.mean(axis=0).tolist()
    *_, choosing, trainings = found.sum(axis=0).tolist()
    peer = f"the best of ranks {', '.join(map(str, RANKS))}, each trained"
    return [
        Figure("rank_by_cutting_ndcg", cut, "NDCG@10", ">= 0.97", peer, best),
        Figure("rank_by_cutting_cpu_s", choosing, "CPU-s", "<= 0.35", peer, trainings),
    ]


def _both(world: World, planted: int) -> tuple[float, float, float, float]:
    """NDCG@10 on test of what was cut and of the best that was trained; the CPU-s of both."""
    banks, seconds = dict[int, AdapterBank](), dict[int, float]()
    for rank in RANKS:
        began = time.process_time()
        banks[rank] = world.trained(rank)
        seconds[rank] = time.process_time() - began
    began = time.process_time()
    adapters = banks[max(RANKS)].adapters()
    chosen = rank_curve(adapters, world.base, world.validation).smallest_rank()
    cut = AdapterBank.of(world.base, truncate(adapters, chosen))
    choosing = time.process_time() - began
    best = max(RANKS, key=lambda rank: ndcg(banks[rank], world.validation))
    shown = ndcg(cut, world.test), ndcg(banks[best], world.test)
    taken = seconds[max(RANKS)] + choosing, sum(seconds.values())
    print(
        f"planted rank {planted}: cut to {chosen} {shown[0]:.4f} in {taken[0]:.1f} CPU-s, "
        f"trained at {best} {shown[1]:.4f} in {taken[1]:.1f} CPU-s, "
        f"uncut {ndcg(banks[max(RANKS)], world.test):.4f}",
        flush=True,
    )
    return *shown, *taken


def _interval(gains_W: NDArray[Any]) -> str:
    """The mean over worlds and its 95 % interval by Student's t."""
    half = stats.t.ppf(0.975, len(gains_W) - 1) * stats.sem(gains_W)
    return (
        f"{np.mean(gains_W):+.4f} [{np.mean(gains_W) - half:+.4f}, {np.mean(gains_W) + half:+.4f}]"
    )
