"""Train a base model on a window of the log: tables by factorisation, then perhaps a tower.

Settings and epochs are chosen by NDCG@10 on the last tenth of the window; then the base is trained
anew on the whole of it. A tower is trained on the finished tables by the one loop.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.configs import AdapterConfig
from reclora.evaluation import EvaluationConfig, HeldOut, RankingJudge, evaluate
from reclora.factorisation import factorise
from reclora.interactions import IdMap, Interactions
from reclora.recency import DAY, faded
from reclora.splits import SplitBy, cut
from reclora.tower import Tower
from reclora.training import Training, train

from .base_settings import BaseSettings
from .held_out import hold_out_some
from .progress import step

TOWER_ALONE = AdapterConfig("none", "none", "none", "full", rank=1)
JUDGED_BY = EvaluationConfig(metrics=("ndcg",), ks=(10,))


@dataclass(frozen=True)
class Pretrained:
    """A base model, and how it came about.

    Attributes:
        chosen: the settings that validation chose, without a search.
        epochs: of the factorisation.
        tower_epochs: 0 where there is no tower, or none that helped.
        tried: what the search tried: its values, epochs, value (on validation), chosen.
        seconds: CPU time of the last training, that on the whole window.
    """

    base: BaseModel
    chosen: BaseSettings
    epochs: int
    tower_epochs: int
    tried: pd.DataFrame
    seconds: float


def train_base(
    window: Interactions,
    settings: BaseSettings,
    by: SplitBy,
    *,
    declined: Interactions | None = None,
    own_ids: bool = True,
) -> Pretrained:
    """A base model trained on a window of the log.

    Args:
        by: how the last tenth is cut off, which chooses.
        declined: rows that were shown and not taken, on the window's id maps. What is trained on
            some rows is trained on those of them that came no later than the last of these.
        own_ids: the base knows the users and items of the window; else those of its id maps.

    Raises:
        ValueError: nobody has anything new in the last tenth; or what `factorise` says of declined
            rows.
        FactorisationError: the numbers are not finite.
    """
    known, declined = window.pooled(), None if declined is None else declined.pooled()
    if own_ids:
        users = IdMap.of(window.users.ids_of(np.unique(window.user_rows)))
        items = IdMap.of(window.items.ids_of(np.unique(window.item_rows)))
        known, _ = known.onto(users, items)
        declined = None if declined is None else declined.onto(users, items)[0]
    earlier, later = cut(known, (0.9, 0.1), by)
    held_out = hold_out_some("the last tenth of what the base trains on", later, earlier, JUDGED_BY)
    declined_earlier = _until(declined, earlier, by)
    tried = [_try(earlier, declined_earlier, s, held_out) for s in _counted(settings.grid())]
    best = max(tried, key=lambda t: t.value)
    chosen = best.settings
    with step(f"pretraining: {best.epochs} epochs") as progress:
        made = factorise(
            faded(known, chosen.half_life),
            chosen.factorisation,
            seed=chosen.seed,
            declined=_faded(_until(declined, known, by), known, chosen.half_life),
            epochs=best.epochs,
            progress=progress,
        )
    base, seconds, tower_epochs = made.base, made.seconds, 0
    if chosen.hidden:
        with step("pretraining: choosing the tower's epochs"):
            _, training = _with_tower(best.base, earlier, chosen, RankingJudge(held_out))
            tower_epochs = training.best_epoch["pooled"]
        if tower_epochs == 0:
            print("pretraining: a tower did not help; there is none", file=sys.stderr)
        else:
            once = replace(chosen.tower, epochs=tower_epochs)
            with step(f"pretraining: the tower, {tower_epochs} epochs"):
                base, training = _with_tower(base, known, replace(chosen, tower=once), None)
            seconds += training.seconds
    rows = [
        t.settings.searched | {"epochs": t.epochs, "value": t.value, "chosen": t is best}
        for t in tried
    ]
    return Pretrained(base, chosen, best.epochs, tower_epochs, pd.DataFrame(rows), seconds)


@dataclass(frozen=True)
class _Tried:
    settings: BaseSettings
    base: BaseModel
    epochs: int
    value: float


def _counted(grid: Sequence[BaseSettings]) -> Sequence[tuple[str, BaseSettings]]:
    of = f" of {len(grid)}" if len(grid) > 1 else ""
    return [(f"setting {at}{of}" if of else "the epochs", s) for at, s in enumerate(grid, 1)]


def _until(declined: Interactions | None, log: Interactions, by: SplitBy) -> Interactions | None:
    """What was declined no later than the log's last row, or with cuts that are each user's own no
    later than the user's last.
    """
    if declined is None:
        return None
    last_U = np.full(len(log.users), log.timestamps.max())
    if by != "global_time":
        last_U[:] = np.iinfo(np.int64).min
        np.maximum.at(last_U, log.user_rows, log.timestamps)
    return declined.select(declined.timestamps <= last_U[declined.user_rows])


def _faded(
    declined: Interactions | None, log: Interactions, half_life: float
) -> Interactions | None:
    """Declined rows that count for less the older they are at the log's last moment."""
    if declined is None or half_life == 0 or len(declined) == 0:
        return declined
    own = faded(declined, half_life)
    assert own.weights is not None
    ahead = (log.timestamps.max() - own.timestamps.max()) / DAY
    return replace(own, weights=own.weights * np.float32(np.exp2(-ahead / half_life)))


def _try(
    earlier: Interactions,
    declined: Interactions | None,
    each: tuple[str, BaseSettings],
    held_out: HeldOut,
) -> _Tried:
    """Factorise all but the last tenth; the best epoch of it."""
    what, settings = each

    def judge(base: BaseModel) -> float:
        scorer = base.scorer()
        table = evaluate(held_out, lambda segment: scorer, model="", run="", seed=0)
        return float(table["value"].mean())

    with step(f"pretraining: choosing, {what}") as progress:
        found = factorise(
            faded(earlier, settings.half_life),
            settings.factorisation,
            seed=settings.seed,
            declined=_faded(declined, earlier, settings.half_life),
            judge=judge,
            progress=progress,
        )
    return _Tried(settings, found.base, found.best_epoch, float(found.curve["score"].max()))


def _with_tower(
    base: BaseModel, log: Interactions, settings: BaseSettings, judge: RankingJudge | None
) -> tuple[BaseModel, Training]:
    """The base with a tower trained on its tables as they are."""
    generator = torch.Generator().manual_seed(settings.seed)
    start = BaseModel.of(
        base.users,
        base.items,
        base.user_table.materialised(),
        base.item_table.materialised(),
        base.item_bias.materialised(),
        Tower.random(base.embedding_dim, settings.hidden, generator),
    )
    bank = AdapterBank.for_log(start, log, TOWER_ALONE, settings.seed)
    training = train(bank, log, settings.tower, judge=judge, seed=settings.seed)
    return bank.merged("pooled"), training
