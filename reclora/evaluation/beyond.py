"""Beyond relevance: what the lists of a model are like, for each user and for the whole catalogue.

novelty, popularity    against the seen log
diversity              where items have features
overlap                with other lists, such as the current release's
coverage, gini         of a segment's lists together: no user has one
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from reclora.evaluation.held_out import HeldOut, HeldOutSegment
from reclora.evaluation.lists import Lists
from reclora.evaluation.results import results_table
from reclora.metrics import coverage, diversity, gini, novelty, overlap, popularity


def measure_lists(
    held_out: HeldOut,
    lists: Lists,
    *,
    model: str,
    run: str,
    seed: int,
    features_NF: NDArray[np.float32] | None = None,
    others: Lists | None = None,
) -> pd.DataFrame:
    """What each user's list is like, at every k of the config.

    Args:
        features_NF: of every item; with it lists have a diversity.
        others: with them lists have an overlap.

    Returns:
        Rows of a results table: run, model, segment, seed, user_id, metric, k, value, of those of
        the metrics novelty and popularity (where somebody was seen with something), diversity and
        overlap that there can be. NaN where a list is too short to have one.
    """
    owners_N, num_users = held_out.item_users_N.numpy(), held_out.num_seen_users
    ks = held_out.config.ks
    metrics: dict[str, Callable[[NDArray[np.int64], HeldOutSegment, int], NDArray[np.float64]]]
    metrics = {}
    if num_users:
        metrics["novelty"] = lambda rows_UK, segment, k: novelty(rows_UK, owners_N, num_users, k)
        metrics["popularity"] = lambda rows_UK, segment, k: popularity(
            rows_UK, owners_N, num_users, k
        )
    if features_NF is not None:
        metrics["diversity"] = lambda rows_UK, segment, k: diversity(rows_UK, features_NF, k)
    if others is not None:
        metrics["overlap"] = lambda rows_UK, segment, k: overlap(
            rows_UK, others.of(segment, max(ks)).numpy(), k
        )
    values = []
    for segment in held_out.segments:
        rows_UK = lists.of(segment, max(ks)).numpy()
        values.append([metric(rows_UK, segment, k) for metric in metrics.values() for k in ks])
    measures = [(name, k) for name in metrics for k in ks]
    return results_table(held_out, measures, values, model=model, run=run, seed=seed)


def measure_catalogue(
    held_out: HeldOut, lists: Lists, *, model: str, run: str, seed: int
) -> pd.DataFrame:
    """How a model's lists spread over the catalogue, in each segment and in all together.

    Returns:
        run, model, scope, segment, seed, metric, k, value, of the metrics coverage and gini, at
        every k of the config; over the candidates of the segment, or of any segment.
    """
    segments = [segment for segment in held_out.segments if segment.num_users]
    ks = held_out.config.ks
    rows_of = {s.name: _shown(lists, s, max(ks)) for s in segments}
    groups = [("segment", s.name, rows_of[s.name], _candidates(held_out, [s])) for s in segments]
    if segments:
        together = np.concatenate(list(rows_of.values()))
        groups.insert(0, ("all", "", together, _candidates(held_out, segments)))
    rows = [
        (run, model, scope, name, seed, metric.__name__, k, metric(rows_UK, candidates, k))
        for scope, name, rows_UK, candidates in groups
        for metric in (coverage, gini)
        for k in ks
    ]
    columns = ["run", "model", "scope", "segment", "seed", "metric", "k", "value"]
    return pd.DataFrame(rows, columns=columns)


def _shown(lists: Lists, segment: HeldOutSegment, k: int) -> NDArray[np.int64]:
    """The lists of a segment; -1 also for what is no candidate, which other systems may show."""
    rows_UK = lists.of(segment, k)
    if segment.candidates_N is not None:
        rows_UK = rows_UK.masked_fill(~segment.candidates_N[rows_UK.clamp(min=0)], -1)
    return rows_UK.numpy()


def _candidates(held_out: HeldOut, segments: list[HeldOutSegment]) -> int:
    """How many items are candidates in any of the segments."""
    masks = [s.candidates_N for s in segments if s.candidates_N is not None]
    if len(masks) < len(segments):
        return held_out.num_items
    return int(torch.stack(masks).any(dim=0).sum())
