"""A judge for training that ranks: it chooses epochs by what is reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from reclora.bank import AdapterBank
from reclora.evaluation.held_out import HeldOut
from reclora.evaluation.lists import Lists, ScorerOf, recommend
from reclora.evaluation.results import measure

Ranking = Callable[[HeldOut, ScorerOf], Lists]
"""The lists of all users with something relevant; segment -> its scorer."""


class RankingJudge:
    """A judge for training: the headline metric (the first, at the first k) of a segment's users.

    It chooses by what is reported, where the loss on held-out rows only stands in for it.

    Args:
        held_out: the validation window, of the segments that train.
        ranking: who ranks; if not given, this process does.
    """

    def __init__(self, held_out: HeldOut, ranking: Ranking | None = None) -> None:
        self._held_out, self._ranking = headline_of(held_out), ranking or _here

    def __call__(self, bank: AdapterBank, segments: NDArray[np.int64]) -> NDArray[np.float64]:
        """The mean over each segment's users; NaN where no user has anything relevant."""
        names = [bank.segment_names[code] for code in segments]
        asked = set(names)
        chosen = tuple(s for s in self._held_out.segments if s.name in asked)
        if not chosen:
            return np.full(len(names), np.nan)
        held_out = replace(self._held_out, segments=chosen)
        lists = self._ranking(held_out, bank.scorer)
        table = measure(held_out, lists, model="", run="", seed=0)
        means = table.groupby("segment", observed=True)["value"].mean()
        return means.reindex(names).to_numpy(dtype=np.float64)


def _here(held_out: HeldOut, scorer_of: ScorerOf) -> Lists:
    return recommend(held_out, scorer_of, model="")[""]


def headline_of(held_out: HeldOut) -> HeldOut:
    """The same, with the first metric at the first k alone."""
    config = held_out.config
    return replace(held_out, config=replace(config, ks=config.ks[:1], metrics=config.metrics[:1]))
