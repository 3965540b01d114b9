"""The trained models of a run: each with its own learning rates, chosen on validation.

An untuned baseline flatters what is compared with it, so adapters and the full fine-tune go through
the same search over the same grid, and the first seed decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Literal

import pandas as pd

from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.comparison import means
from reclora.configs import FULL, AdapterConfig
from reclora.evaluation import EvaluationConfig, HeldOut, RankingJudge, evaluate
from reclora.interactions import Interactions
from reclora.ranking import Scorer
from reclora.training import Training, TrainingConfig, train

from .pretrain import hold_out_some
from .progress import Step
from .run import RunSettings, Search


@dataclass(frozen=True)
class Contender:
    """One way of training on the adapt window."""

    model: str
    config: AdapterConfig
    is_pooled: bool
    """Trained on all segments as one, and the same for all of them."""


@dataclass(frozen=True)
class Trained:
    """A trained contender."""

    contender: Contender
    bank: AdapterBank
    training: Training

    def scorer_of(self) -> Callable[[str], Scorer]:
        """Segment name -> scorer; a pooled model is materialised once."""
        if not self.contender.is_pooled:
            return self.bank.scorer
        scorer = self.bank.scorer(self.bank.segment_names[0])
        return lambda segment: scorer


SUBJECT = "per-segment adapters"


def contenders(settings: RunSettings) -> tuple[Contender, ...]:
    """The models that a run trains."""
    return (
        Contender("pooled full fine-tune", FULL, is_pooled=True),
        Contender("pooled adapter", settings.adapter, is_pooled=True),
        Contender(SUBJECT, settings.adapter, is_pooled=False),
    )


def grid(training: TrainingConfig, search: Search) -> list[TrainingConfig]:
    """Every setting that the search tries."""
    return [
        replace(training, rows_lr=rows_lr, bias_lr=bias_lr, l2=l2)
        for rows_lr, bias_lr, l2 in product(
            search.rows_lr or (training.rows_lr,),
            search.bias_lr or (training.bias_lr,),
            search.l2 or (training.l2,),
        )
    ]


@dataclass(frozen=True)
class Ground:
    """What every contender trains on and is chosen by, alike."""

    base: BaseModel
    log: Interactions
    """The train window."""
    validation: Interactions
    seen: Interactions
    """All that came before the validation window."""
    evaluation: EvaluationConfig
    users: Literal["all", "even", "odd"] = "all"
    """Validation users that count: all, or those of even or of odd rows, if there are any."""

    @cached_property
    def pooled(self) -> Ground:
        """The same with all segments as one."""
        return replace(
            self,
            log=self.log.pooled(),
            validation=self.validation.pooled(),
            seen=self.seen.pooled(),
        )

    @cached_property
    def held_out(self) -> HeldOut:
        """The validation window, held out after the train window."""
        what = "the validation window"
        whole = hold_out_some(what, self.validation, self.seen, self.evaluation)
        if self.users == "all":
            return whole
        half = whole.only_users(lambda rows: rows % 2 == int(self.users == "odd"))
        return half if half.num_users else whole


def train_contender(
    contender: Contender, ground: Ground, config: TrainingConfig, seed: int
) -> Trained:
    """Train one contender with one setting and seed; each segment keeps its best epoch."""
    if contender.is_pooled:
        ground = ground.pooled
    bank = AdapterBank.for_log(ground.base, ground.log, contender.config, seed)
    judge = RankingJudge(ground.held_out)
    return Trained(contender, bank, train(bank, ground.log, config, judge=judge, seed=seed))


def choose(
    contender: Contender, ground: Ground, settings: RunSettings, progress: Step
) -> tuple[TrainingConfig, pd.DataFrame]:
    """The setting with the best headline metric on validation, of the first seed.

    The epochs are chosen by one half of the validation users and the settings compared by the
    other: a maximum over epochs flatters whatever is noisiest, high rates and small segments above
    all, and would choose them. Of equal settings the first in the grid is chosen.

    Returns:
        The setting; and model, rows_lr, bias_lr, l2, value, chosen: one row a setting.
    """
    stopping, comparing = replace(ground, users="even"), replace(ground, users="odd")
    tried: list[tuple[TrainingConfig, float]] = []
    configs = grid(settings.training, settings.search)
    for config in configs:
        trained = train_contender(contender, stopping, config, settings.seeds[0])
        value = headline(comparing.held_out, trained.scorer_of(), contender.model)
        tried.append((config, value))
        progress(len(tried), len(configs))
    chosen = max(tried, key=lambda one: one[1])[0]
    rows = [(contender.model, c.rows_lr, c.bias_lr, c.l2, value, c == chosen) for c, value in tried]
    columns = ["model", "rows_lr", "bias_lr", "l2", "value", "chosen"]
    return chosen, pd.DataFrame(rows, columns=columns)


def headline(held_out: HeldOut, scorer_of: Callable[[str], Scorer], model: str) -> float:
    """The first metric at the first k, over all users."""
    table = means(evaluate(held_out, scorer_of, model=model, run="", seed=0))
    config = held_out.config
    chosen = (table["scope"] == "all") & (table["metric"] == config.metrics[0])
    return float(table.loc[chosen & (table["k"] == config.ks[0]), "mean"].iloc[0])
