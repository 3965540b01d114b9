"""Figures of little data: 1,000 segments of eight interactions each, with and without shrinkage.

A planted world in which half of the segments go on as before: their own adapters have nothing to
learn and can only harm. Six users of each segment judge on validation, 34 others on test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
import torch

from reclora.adapters import Adapter
from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.comparison import compare
from reclora.configs import AdapterConfig
from reclora.datasets.planted import PlantedConfig, plant
from reclora.evaluation import EvaluationConfig, HeldOut, evaluate, hold_out
from reclora.gate import CANDIDATE, LIVE, GateConfig, decide
from reclora.interactions import IdMap, Interactions
from reclora.learning_curves import learning_curves
from reclora.shrinkage import Shrinkage, scaled, shrink, toward_parents
from reclora.training import TrainingConfig, train

from .harness import Figure, measures

SEGMENTS: Final = 1000
USERS: Final = 40
"""Of each segment; the first `JUDGES` of them are of validation, the others of test."""
JUDGES: Final = 6
ROWS: Final = 8
"""What each segment trains on."""
RATES: Final = (0.01, 0.02, 0.05, 0.1, 0.2)
HEADLINE: Final = EvaluationConfig(ks=(10,), metrics=("ndcg",))


@dataclass(frozen=True)
class World:
    """Tiny segments, those who judge them, and others who judge that."""

    base: BaseModel
    log: Interactions
    validation: HeldOut
    test: HeldOut
    unshifted: frozenset[str]

    @classmethod
    def of(cls, segments: int, rows: int = ROWS, seed: int = 0) -> World:
        """The base has the true vectors; a segment's first rows train it, all others are held out.

        Args:
            segments: half of them, rounded down, are not shifted.
            rows: of each segment that it trains on.
        """
        planted = plant(
            PlantedConfig(
                num_users=segments * USERS,
                num_items=50,
                dim=8,
                num_segments=segments,
                unshifted_segments=segments // 2,
                tiny_segments=0,
                num_base_interactions=1,
                num_interactions=segments * (rows + USERS * 4),
                rank=1,
                bias_shift=4.0,
                signal=1.0,
                seed=seed,
            )
        )
        chunks = [*planted.chunks()][1:]
        users = np.concatenate([chunk.user_rows for chunk in chunks])
        codes = planted.user_segment[users].astype(np.int64)
        base = BaseModel.of(
            IdMap(planted.user_ids),
            IdMap(planted.item_ids),
            torch.from_numpy(planted.user_vectors),
            torch.from_numpy(planted.item_vectors),
            torch.from_numpy(planted.item_bias),
        )
        log = Interactions.from_arrays(
            users=base.users,
            items=base.items,
            segment_names=planted.segment_names,
            segments=codes,
            user_rows=base.users.rows_of(planted.user_ids.take(users)),
            item_rows=base.items.rows_of(
                planted.item_ids.take(np.concatenate([chunk.item_rows for chunk in chunks]))
            ),
            timestamps=np.concatenate([chunk.timestamps for chunk in chunks]),
        )
        place = np.arange(len(log)) - np.repeat(log.offsets[:-1], np.diff(log.offsets))
        trained = log.select(place < rows)
        later = hold_out(log.select(place >= rows), trained, HEADLINE)
        judges = set[int]()
        for segment in later.segments:
            judges |= {*segment.user_rows_U[:JUDGES].tolist()}
        is_judge = torch.zeros(len(base.users), dtype=torch.bool)
        is_judge[list(judges)] = True
        return cls(
            base,
            trained,
            later.only_users(lambda of_users: is_judge[of_users]),
            later.only_users(lambda of_users: ~is_judge[of_users]),
            frozenset(planted.unshifted_segments),
        )

    def trained(self) -> list[Adapter]:
        """Own adapters with the learning rate that all who judge on validation like best."""
        found = []
        for rate in RATES:
            bank = AdapterBank.for_log(self.base, self.log, AdapterConfig(rank=2), seed=0)
            train(bank, self.log, TrainingConfig(rows_lr=rate, bias_lr=rate, epochs=10), judge=None)
            adapters = bank.adapters()
            found.append((self.values(adapters, self.validation)["value"].mean(), rate, adapters))
        mean, rate, adapters = max(found, key=lambda one: one[0])
        print(f"rate {rate}: {mean:.4f} on validation of {[round(m, 4) for m, *_ in found]}")
        return adapters

    def values(self, adapters: list[Adapter], held_out: HeldOut) -> pd.DataFrame:
        """Each held-out user's value."""
        scorer_of = AdapterBank.of(self.base, adapters).scorer
        results = evaluate(held_out, scorer_of, model="own", run="", seed=0)
        return results[results["model"] == "own"]

    def compared(self, adapters: list[Adapter]) -> pd.DataFrame:
        """`compare` with the base on test."""
        of_base = evaluate(self.test, lambda _: self.base.scorer(), model="parent", run="", seed=0)
        both = pd.concat([self.values(adapters, self.test), of_base], ignore_index=True)
        return compare(both, "own", "parent", metric="ndcg", k=10)


def ways(world: World) -> tuple[dict[str, list[Adapter]], Shrinkage]:
    """Ways to serve tiny segments, by name; and how the one that shrinks chose."""
    adapters = world.trained()
    rows = dict(zip(world.log.segment_names, np.diff(world.log.offsets).tolist(), strict=True))
    shrinkage = shrink(adapters, world.base, world.validation, rows)
    own = world.values(adapters, world.validation)
    below = evaluate(world.validation, lambda _: world.base.scorer(), model=LIVE, run="", seed=0)
    means = [each.groupby("segment", observed=True)["value"].mean() for each in (own, below)]
    judged = pd.concat([own.assign(model=CANDIDATE), below], ignore_index=True)
    gates = {
        f"the gate, {rule}": decide(
            judged, dict.fromkeys(rows, "own"), GateConfig(rule=rule), rows_of=rows
        ).set_index("segment")["goes_live"]
        for rule in ("shrunk", "together", "each")
    }
    chosen = {"own where its judges like it": means[0] > means[1]} | gates
    return {
        "own": adapters,
        "shrunk": toward_parents(adapters, shrinkage.factors),
        **{
            name: [scaled(a, float(lives.get(a.segment, False))) for a in adapters]
            for name, lives in chosen.items()
        },
    }, shrinkage


@measures(
    "little_data_segments_below",
    "little_data_ndcg",
    "little_data_ndcg_over_own",
    "gate_segments_below",
    "gate_ndcg_over_together",
)
def little_data() -> list[Figure]:
    """Segments that are significantly below their parent, and the mean of all, on test."""
    torch.set_num_threads(1)
    world = World.of(SEGMENTS)
    by_way, shrinkage = ways(world)
    told = {name: world.compared(adapters) for name, adapters in by_way.items()}
    for name, table in told.items():
        whole, each = table.iloc[0], table.iloc[1:]
        unshifted = each["segment"].isin(world.unshifted)
        print(
            f"{name}: {sum(a.num_numbers > 0 for a in by_way[name]):,} own, "
            f"{(each['verdict'] == 'worse').sum()} worse, {(each['verdict'] == 'better').sum()} "
            f"better, {(each['difference'] < 0).sum()} lower; gain {whole['difference']:+.4f} "
            f"[{whole['low']:+.4f}, {whole['high']:+.4f}], of the unshifted "
            f"{each.loc[unshifted, 'difference'].mean():+.4f}, of the shifted "
            f"{each.loc[~unshifted, 'difference'].mean():+.4f}"
        )
    print(shrinkage.sizes.to_string())
    shrunk, own = told["shrunk"], told["own"]
    below = float((shrunk.iloc[1:]["verdict"] == "worse").sum())
    mean, parent = float(shrunk.iloc[0]["model_mean"]), float(shrunk.iloc[0]["baseline_mean"])
    unshrunk = float(own.iloc[0]["model_mean"])
    gate, together = told["the gate, shrunk"], told["the gate, together"]
    gate_below = float((gate.iloc[1:]["verdict"] == "worse").sum())
    gated, as_one = (float(table.iloc[0]["model_mean"]) for table in (gate, together))
    return [
        Figure("little_data_segments_below", below, "segments", "<= 0"),
        Figure("little_data_ndcg", mean, "NDCG@10", ">= 1", "the parent alone", parent),
        Figure("little_data_ndcg_over_own", mean, "NDCG@10", ">= 1", "unshrunk", unshrunk),
        Figure("gate_segments_below", gate_below, "segments", "<= 0"),
        Figure("gate_ndcg_over_together", gated, "NDCG@10", ">= 1", "told together", as_one),
    ]


@measures("learning_curve_ahead")
def learning_curve_ahead() -> Figure:
    """The lift that the curve of 64 rows a segment promises for 256, over what 256 rows give."""
    torch.set_num_threads(1)
    world = World.of(100, rows=256)
    place = np.arange(len(world.log)) % 256
    training = TrainingConfig(rows_lr=0.05, bias_lr=0.05, epochs=10)
    early, late = (
        learning_curves(
            world.base,
            world.log.select(place < rows),
            AdapterConfig(rank=2),
            training,
            world.test,
            stopping=world.validation,
        )
        for rows in (64, 256)
    )
    for curves in (early, late):
        print(curves.table[curves.table["scope"] == "all"].to_string())
        print(f"slope {curves.slope:.4f} [{curves.slope_low:.4f}, {curves.slope_high:.4f}]")
        print(curves.advice["says"].value_counts().head(5).to_string(), flush=True)
    promised = float(early.level + early.slope * np.log2(256))
    whole = late.table[(late.table["scope"] == "all") & (late.table["share"] == 1)]
    lift = float(whole["lift"].iloc[0])
    return Figure("learning_curve_ahead", promised, "NDCG@10", "<= 1.5", "with 256 rows", lift)
