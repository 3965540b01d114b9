"""The trained models of a run: each with its own learning rates, chosen on validation.

An untuned baseline flatters what is compared with it, so adapters and the full fine-tune go through
the same search over the same grid, and the first seed decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import pandas as pd

from reclora.adapters import FULL, AdapterConfig
from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.evaluation import HeldOut, evaluate, means
from reclora.interactions import Interactions
from reclora.ranking import Scorer
from reclora.training import Training, TrainingConfig, train

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
        for rows_lr, bias_lr, l2 in product(search.rows_lr, search.bias_lr, search.l2)
    ]


def train_contender(
    contender: Contender,
    base: BaseModel,
    log: Interactions,
    validation: Interactions,
    config: TrainingConfig,
    seed: int,
) -> Trained:
    """Train one contender on the adapt window with one setting and seed."""
    if contender.is_pooled:
        log, validation = log.pooled(), validation.pooled()
    bank = AdapterBank.for_log(base, log, contender.config, seed)
    return Trained(contender, bank, train(bank, log, config, validation=validation, seed=seed))


def choose(
    contender: Contender,
    base: BaseModel,
    log: Interactions,
    validation: Interactions,
    held_out: HeldOut,
    settings: RunSettings,
    progress: Step,
) -> tuple[TrainingConfig, pd.DataFrame]:
    """The setting with the best headline metric on validation, and what every setting gave.

    Args:
        held_out: the validation window, held out after the train window.
    """
    tried: list[tuple[TrainingConfig, float]] = []
    settings_tried: Sequence[TrainingConfig] = grid(settings.training, settings.search)
    for config in settings_tried:
        trained = train_contender(contender, base, log, validation, config, settings.seeds[0])
        tried.append((config, headline(held_out, trained.scorer_of(), contender.model)))
        progress(len(tried), len(settings_tried))
    best = max(tried, key=lambda one: one[1])[0]
    rows = [(contender.model, c.rows_lr, c.bias_lr, c.l2, value, c == best) for c, value in tried]
    columns = ["model", "rows_lr", "bias_lr", "l2", "value", "chosen"]
    return best, pd.DataFrame(rows, columns=columns)


def headline(held_out: HeldOut, scorer_of: Callable[[str], Scorer], model: str) -> float:
    """The first metric at the first k, over all users."""
    table = means(evaluate(held_out, scorer_of, model=model, run="", seed=0))
    config = held_out.config
    chosen = (table["scope"] == "all") & (table["metric"] == config.metrics[0])
    return float(table.loc[chosen & (table["k"] == config.ks[0]), "mean"].iloc[0])
