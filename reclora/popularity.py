"""Popularity per segment: the baseline that counts.

    the order of items is that of (interactions in the segment, interactions in all segments)

Over the whole log it is popularity of all time; over the latest window it is recent popularity, and
an adapter that does not beat that is not worth its numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reclora.interactions import Interactions
from reclora.scoring import ALL


@dataclass(frozen=True)
class Popularity:
    """Scores every item the same for all users; a scorer for `reclora.ranking.rank`."""

    scores_N: Tensor

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.scores_N)

    def scores(self, user_rows_B: Tensor, items: slice = ALL) -> Tensor:
        """The same row for each user, float32, shape (B, C), without copies."""
        return self.scores_N[items].expand(len(user_rows_B), -1)


def popularity(log: Interactions) -> Callable[[str], Popularity]:
    """Popularity of the items of `log.items`: a function from a segment's name to its scorer.

    The score of an item is its place in the order of (interactions in the segment, interactions
    in all segments), from 0 for the least popular; items equal in both share a place. It is a place
    and not a count because places are exact in float32, where a large count with a fraction is not.
    Weights are ignored. A segment that `log` lacks is one without interactions: its order is that
    of all segments.

        evaluate(heldout, popularity(log), model="popularity", run=run, seed=0)

    Source: Ji et al., "A Re-visit of the Popularity Baseline in Recommender Systems", SIGIR 2020
    (why the window should be recent).
    """
    num_items = len(log.items)
    in_all_N = np.bincount(log.item_rows, minlength=num_items)

    def scorer_of(segment: str) -> Popularity:
        in_segment_N = np.zeros_like(in_all_N)
        if segment in log.segment_names:
            s = log.segment_names.index(segment)
            item_rows = log.item_rows[int(log.offsets[s]) : int(log.offsets[s + 1])]
            in_segment_N = np.bincount(item_rows, minlength=num_items)
        order_N = np.lexsort((in_all_N, in_segment_N))
        is_step = (np.diff(in_segment_N[order_N]) != 0) | (np.diff(in_all_N[order_N]) != 0)
        places_N = np.zeros(num_items, dtype=np.float32)
        places_N[order_N[1:]] = is_step.cumsum()
        return Popularity(torch.from_numpy(places_N))

    return scorer_of
