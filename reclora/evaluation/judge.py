"""A judge for training that ranks: it chooses epochs by what is reported."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from reclora.bank import AdapterBank
from reclora.evaluation.held_out import HeldOut
from reclora.evaluation.results import evaluate


class RankingJudge:
    """A judge for training: the headline metric (the first, at the first k) of a segment's users.

    It chooses by what is reported, where the loss on held-out rows only stands in for it.

    Args:
        held_out: the validation window, of the segments that train.
        processes: that rank at once.
    """

    def __init__(self, held_out: HeldOut, processes: int = 1) -> None:
        self._held_out, self._processes = headline_of(held_out), processes

    def __call__(self, bank: AdapterBank, segments: NDArray[np.int64]) -> NDArray[np.float64]:
        """The mean over each segment's users; NaN where no user has anything relevant."""
        names = [bank.segment_names[code] for code in segments]
        chosen = tuple(s for s in self._held_out.segments if s.name in set(names))
        if not chosen:
            return np.full(len(names), np.nan)
        held_out = replace(self._held_out, segments=chosen)
        table = evaluate(held_out, bank.scorer, model="", run="", seed=0, processes=self._processes)
        means = table[table["model"] == ""].groupby("segment", observed=True)["value"].mean()
        return means.reindex(names).to_numpy(dtype=np.float64)


def headline_of(held_out: HeldOut) -> HeldOut:
    """The same, with the first metric at the first k alone."""
    config = held_out.config
    return replace(held_out, config=replace(config, ks=config.ks[:1], metrics=config.metrics[:1]))
