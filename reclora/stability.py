"""This file is what depends on the seed: one training under n of them, and what of it stays.

A segment stands once a seed in the log, and all its copies train in one pass. As a segment draws
from (seed, name) alone and trains as if it were alone, the copy of a seed has the numbers of a
training with that seed.

copied, copied_users   a log, held-out users -> the same with each segment once a seed
adapters_under, training_under    what was trained -> the part of one seed, by the segments' names
spread      mean and deviation of a metric over the seeds
overlaps    how much of a user's list stays from seed to seed
agreed      decisions, seed by seed -> the one that all came to, or "not decided"
averaged    adapters, seed by seed -> their mean, exact or cut to their rank
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reclora.adapters import Adapter
from reclora.arithmetic import average, recompress
from reclora.bank import AdapterBank
from reclora.configs import AdapterConfig
from reclora.counted import under_seed
from reclora.evaluation import HeldOut, Lists
from reclora.interactions import Interactions
from reclora.metrics.lists import overlap
from reclora.training import Training

NOT_DECIDED = "not decided"


def copied(log: Interactions, seeds: Sequence[int]) -> Interactions:
    """The log with each segment once a seed, to be trained with any seed of the run's own.

        many, judge = copied(log, seeds), RankingJudge(copied_users(held_out, seeds))
        bank = AdapterBank.for_log(base, many, config)
        train(bank, many, TrainingConfig(), judge=judge)
        adapters = adapters_under(seeds[0], bank, log.segment_names)

    It holds its rows n times, 24 bytes each, or 28 with weights; attributes are left out. Copy a
    part of a log at a time where that is too much: segments do not see each other.

    Args:
        seeds: n different ones.

    Raises:
        ValueError: there is no seed, or one twice.
    """
    _check_seeds(seeds)
    n = len(seeds)
    begins = np.arange(n)[:, None] * len(log) + log.offsets[:-1]
    return Interactions(
        log.users,
        log.items,
        tuple(under_seed(name, seed) for seed in seeds for name in log.segment_names),
        np.append(begins.ravel(), n * len(log)),
        np.tile(log.user_rows, n),
        np.tile(log.item_rows, n),
        np.tile(log.timestamps, n),
        None if log.weights is None else np.tile(log.weights, n),
    )


def copied_users(held_out: HeldOut, seeds: Sequence[int]) -> HeldOut:
    """What each copy of a segment is judged by: the segment's users, in the same memory.

    Raises:
        ValueError: there is no seed, or one twice.
    """
    _check_seeds(seeds)
    copies = tuple(
        replace(segment, name=under_seed(segment.name, seed))
        for seed in seeds
        for segment in held_out.segments
    )
    return replace(held_out, segments=copies)


def adapters_under(seed: int, bank: AdapterBank, segments: Sequence[str]) -> list[Adapter]:
    """The adapters of one seed, of the segments that they are copies of.

    Raises:
        AdapterError: the bank has no copy of a segment under that seed.
    """
    return [replace(bank.adapter(under_seed(name, seed)), segment=name) for name in segments]


def training_under(seed: int, training: Training, segments: Sequence[str]) -> Training:
    """What became of the copies of one seed; steps and seconds are those of all seeds together.

    Raises:
        KeyError: a segment was not trained under that seed.
    """
    names = {under_seed(name, seed): name for name in segments}
    curves = training.curves[training.curves["segment"].isin(names)]
    broken = training.quarantined
    return replace(
        training,
        curves=curves.assign(segment=curves["segment"].map(names)).reset_index(drop=True),
        best_epoch={name: training.best_epoch[copy] for copy, name in names.items()},
        quarantined={name: broken[copy] for copy, name in names.items() if copy in broken},
    )


def spread(results: pd.DataFrame) -> pd.DataFrame:
    """How far a metric differs from seed to seed, over all users and in each segment.

        m_k = mean over the users, with seed k        mean = sum_k m_k / n
        sd  = sqrt( sum_k (m_k - mean)^2 / (n - 1) )

    It says what another seed would do on the same users; what other users would do, intervals say.

    Args:
        results: rows of the results table of one model, metric and k, with every seed.

    Returns:
        scope ("all", whose segment is empty, or "segment"), segment, users, seeds, mean, sd (NaN
        of one seed), low, high: the least and the largest m_k.

    Raises:
        ValueError: there are several models, metrics or k, or seeds of different users.
    """
    kinds = results[["model", "metric", "k"]].drop_duplicates()
    if len(kinds) != 1:
        raise ValueError(
            f"a spread is of one model, metric and k, got {kinds.values.tolist()}: select the rows"
        )
    values = results.assign(segment=results["segment"].astype(str))
    per_user = values.set_index(["segment", "user_id", "seed"])["value"].unstack("seed")
    if per_user.isna().any(axis=None):
        some = per_user.index[per_user.isna().any(axis=1)][0]
        raise ValueError(f"a spread is of the same users under each seed; {some} is not under all")
    rows = [_spread("all", "", per_user)]
    rows += [_spread("segment", str(name), own) for name, own in per_user.groupby(level="segment")]
    return pd.DataFrame(rows)


def _spread(scope: str, segment: str, per_user: pd.DataFrame) -> dict[str, object]:
    """Args:
    per_user: a column a seed.
    """
    m_K = per_user.mean(axis=0).to_numpy(dtype=np.float64)
    return {
        "scope": scope,
        "segment": segment,
        "users": len(per_user),
        "seeds": len(m_K),
        "mean": float(m_K.mean()),
        "sd": float(m_K.std(ddof=1)) if len(m_K) > 1 else np.nan,
        "low": float(m_K.min()),
        "high": float(m_K.max()),
    }


def overlaps(held_out: HeldOut, lists: Mapping[int, Lists], k: int) -> pd.DataFrame:
    """overlap@k of the lists of every pair of seeds, as `reclora.metrics.lists.overlap` has it.

        overlap(s) = mean over the users of s and the n (n - 1) / 2 pairs of seeds

    Args:
        lists: seed -> the lists of `held_out`'s users.

    Returns:
        scope, segment, users, overlap: over all users, then in each segment that has some; NaN of
        one seed, or where all lists are empty.
    """
    pairs = list(combinations(lists.values(), 2))
    segments = [segment for segment in held_out.segments if segment.num_users]
    per_user = [
        [overlap(a.of(segment, k).numpy(), b.of(segment, k).numpy(), k) for a, b in pairs]
        for segment in segments
    ]
    rows = [("all", "", held_out.num_users, _mean([v for own in per_user for v in own]))]
    for segment, own in zip(segments, per_user, strict=True):
        rows.append(("segment", segment.name, segment.num_users, _mean(own)))
    return pd.DataFrame(rows, columns=["scope", "segment", "users", "overlap"])


def _mean(parts: Sequence[NDArray[np.float64]]) -> float:
    values = np.concatenate(parts) if parts else np.empty(0)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def agreed(decisions: Mapping[int, Mapping[str, str]]) -> pd.DataFrame:
    """What every seed came to, segment by segment: a decision that flips is not decided.

    Args:
        decisions: seed -> segment -> any word for what was decided; the same segments of all seeds.

    Returns:
        segment, decision (the word that all seeds have, or "not decided"), and for each word how
        many seeds have it.

    Raises:
        ValueError: there is no seed, or seeds decide on different segments.
    """
    if not decisions:
        raise ValueError("decisions of at least one seed are needed, got none")
    first, *others = decisions.values()
    for seed, its in decisions.items():
        if its.keys() != first.keys():
            odd = sorted(its.keys() ^ first.keys())
            raise ValueError(
                f"seed {seed} decides on other segments than the first: {odd[:3]} are of one alone"
            )
    words = sorted({word for its in decisions.values() for word in its.values()})
    rows = []
    for segment in first:
        said = [its[segment] for its in decisions.values()]
        decision = said[0] if len({*said}) == 1 else NOT_DECIDED
        rows.append((segment, decision, *(said.count(word) for word in words)))
    return pd.DataFrame(rows, columns=["segment", "decision", *words])


def averaged(adapters: Sequence[Sequence[Adapter]], *, is_cut: bool) -> list[Adapter]:
    """Of each segment the mean of its adapters' changes over the seeds.

        exact: (change_1 + ... + change_n) / n, of rank n R at the most;    cut: its best rank R

    Args:
        adapters: of each seed those of the same segments in the same order.
        is_cut: to the rank that each has with one seed, so that it takes no more bytes than one.

    Raises:
        AdapterError: they have no mean of their own kinds; see `reclora.arithmetic.average`.

    Source: Wortsman et al., "Model soups", ICML 2022 (there of models tuned in different ways);
    `reclora.arithmetic` for the mean and the cut.
    """
    means = []
    for of_seeds in zip(*adapters, strict=True):
        first = of_seeds[0]
        mean = average(of_seeds, segment=first.segment)
        if is_cut and isinstance(first.config, AdapterConfig):
            mean = recompress(mean, first.config.rank)
        means.append(mean)
    return means


def _check_seeds(seeds: Sequence[int]) -> None:
    if not seeds or len({*seeds}) < len(seeds):
        raise ValueError(f"seeds must be different numbers, at least one, got {[*seeds]}")
