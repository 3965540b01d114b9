"""The results table: one row per user and metric, for each model and seed.

hold_out  ->  evaluate, once per model and seed  ->  pd.concat  ->  means, compare (comparison)
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from reclora.bank import AdapterBank
from reclora.interactions import Interactions
from reclora.metrics import METRICS
from reclora.ranking import Scorer, UserItems, rank


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, and over which candidates.

    Raises:
        ValueError: a name is unknown (near ones are offered), or a list is empty or repeats itself.
    """

    ks: tuple[int, ...] = (10, 20)
    """List lengths, each at least 1."""
    metrics: tuple[str, ...] = ("ndcg", "recall")
    """Names in `reclora.metrics.METRICS`; the first, at the first k, is the headline."""
    candidates: Literal["catalogue", "segment"] = "catalogue"
    """The items ranked: all, or those with an interaction of the segment in the seen log."""

    def __post_init__(self) -> None:
        if not self.ks or len(set(self.ks)) < len(self.ks) or min(self.ks) < 1:
            raise ValueError(f"ks must be different whole numbers from 1, got {self.ks}")
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise ValueError(f"metrics must be different names, got {self.metrics}")
        for metric in self.metrics:
            check_name("metric", metric, METRICS)
        check_name("candidates", self.candidates, ("catalogue", "segment"))


@dataclass(frozen=True)
class HeldOutSegment:
    """The U users of a segment who have something relevant, in the same order in every field."""

    name: str
    user_rows_U: Tensor
    user_ids: pa.Array
    relevant: UserItems
    seen: UserItems
    candidates_N: Tensor | None
    users_without_relevant: int
    """Users whose held-out items in the segment they had all seen; they are in no table."""

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.user_rows_U)


@dataclass(frozen=True)
class HeldOut:
    """What lists are held against; made once by `hold_out`, used for every model and seed."""

    config: EvaluationConfig
    num_items: int
    segments: tuple[HeldOutSegment, ...]

    @property
    def num_users(self) -> int:
        """Users with something relevant; one who has it in two segments counts twice."""
        return sum(s.num_users for s in self.segments)

    def only_users(self, chosen: Callable[[Tensor], Tensor]) -> HeldOut:
        """The same with the users of whose rows, shape (U,), `chosen` says True."""
        return replace(self, segments=tuple(_only_users(s, chosen) for s in self.segments))

    def counts(self) -> pd.DataFrame:
        """One row per segment: segment, users, users_without_relevant, relevant (items)."""
        rows = [
            (s.name, s.num_users, s.users_without_relevant, len(s.relevant.item_rows))
            for s in self.segments
        ]
        columns = ["segment", "users", "users_without_relevant", "relevant"]
        return pd.DataFrame(rows, columns=columns)


def _only_users(segment: HeldOutSegment, chosen: Callable[[Tensor], Tensor]) -> HeldOutSegment:
    positions = chosen(segment.user_rows_U).nonzero().squeeze(1)
    return replace(
        segment,
        user_rows_U=segment.user_rows_U[positions],
        user_ids=segment.user_ids.take(pa.array(positions.numpy())),
        relevant=segment.relevant.take(positions),
        seen=segment.seen.take(positions),
    )


def hold_out(heldout: Interactions, seen: Interactions, config: EvaluationConfig) -> HeldOut:
    """What each user of each segment should be shown, and what not.

        seen(u)        = items of u in `seen`, in any segment
        relevant(u, s) = items of u in segment s of `heldout`, minus seen(u)
        candidates(s)  = the catalogue, or the items of segment s in `seen`; minus seen(u)

    A relevant item outside the candidates stays relevant and counts as missed.

    Args:
        heldout: the window to predict, validation or test.
        seen: all that came before it.
        config: what will be measured, over which candidates.

    Raises:
        ValueError: the two logs are on different id maps, or the held-out one has no segments.
    """
    if not heldout.segment_names:
        raise ValueError(f"the held-out log must have segments, got {heldout!r}")
    if heldout.users != seen.users or heldout.items != seen.items:
        raise ValueError(
            f"the held-out log {heldout!r} and the seen log {seen!r} must be on the same id maps, "
            "but are on different ones; bring both onto one with Interactions.onto"
        )
    seen_by_user = UserItems.from_pairs(
        torch.from_numpy(seen.user_rows), torch.from_numpy(seen.item_rows), len(seen.users)
    )
    segments = []
    for name in heldout.segment_names:
        users, items = _pairs_of(heldout, name)
        is_new = ~seen_by_user.contains(users, items.unsqueeze(1)).squeeze(1)
        user_rows_U, positions = torch.unique(users[is_new], return_inverse=True)
        segments.append(
            HeldOutSegment(
                name=name,
                user_rows_U=user_rows_U,
                user_ids=heldout.users.ids_of(user_rows_U.numpy()),
                relevant=UserItems.from_pairs(positions, items[is_new], len(user_rows_U)),
                seen=seen_by_user.take(user_rows_U),
                candidates_N=_items_of(seen, name) if config.candidates == "segment" else None,
                users_without_relevant=len(torch.unique(users)) - len(user_rows_U),
            )
        )
    return HeldOut(config, len(heldout.items), tuple(segments))


def _pairs_of(log: Interactions, segment: str) -> tuple[Tensor, Tensor]:
    """User rows and item rows of a segment's interactions; none where the log lacks it."""
    start = stop = 0
    if segment in log.segment_names:
        s = log.segment_names.index(segment)
        start, stop = int(log.offsets[s]), int(log.offsets[s + 1])
    return torch.from_numpy(log.user_rows[start:stop]), torch.from_numpy(log.item_rows[start:stop])


def _items_of(log: Interactions, segment: str) -> Tensor:
    """Which items the segment interacted with, bool, shape (N,)."""
    has_N = torch.zeros(len(log.items), dtype=torch.bool)
    has_N[_pairs_of(log, segment)[1]] = True
    return has_N


def evaluate(
    heldout: HeldOut,
    scorer_of: Callable[[str], Scorer],
    *,
    model: str,
    run: str,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Rank for every user with something relevant, and measure each list.

    Args:
        heldout: from `hold_out`; its config says what is measured.
        scorer_of: segment name -> scorer; called once for each segment that has users.
        model, run, seed: written into every row.
        progress: called with (users done, users in all) after each segment.

    Returns:
        run, model, segment, seed, user_id, metric, k, value: one row per segment, metric, k, user.

    Raises:
        ValueError: a scorer has another catalogue, or a score is NaN or +inf; it names the segment.
    """
    values = [np.empty(0)]
    done = 0
    for segment in heldout.segments:
        if segment.num_users == 0:
            continue
        scorer = scorer_of(segment.name)
        if scorer.num_items != heldout.num_items:
            raise ValueError(
                f"segment {segment.name!r}: {model!r} must score the {heldout.num_items} items of "
                f"the held-out log, got a scorer of {scorer.num_items} items; "
                "bring the log onto the model's id maps with Interactions.onto"
            )
        values += _measure(segment, scorer, heldout.config)
        done += segment.num_users
        if progress is not None:
            progress(done, heldout.num_users)
    return _table(heldout, np.concatenate(values), model=model, run=run, seed=seed)


class RankingJudge:
    """A judge for training: the headline metric (the first, at the first k) of a segment's users.

    It chooses by what is reported, where the loss on held-out rows only stands in for it.

    Args:
        held_out: the validation window, of the segments that train.
    """

    def __init__(self, held_out: HeldOut) -> None:
        config = held_out.config
        headline = replace(config, ks=config.ks[:1], metrics=config.metrics[:1])
        self._held_out = replace(held_out, config=headline)

    def __call__(self, bank: AdapterBank, segments: NDArray[np.int64]) -> NDArray[np.float64]:
        """The mean over each segment's users; NaN where no user has anything relevant."""
        names = [bank.segment_names[code] for code in segments]
        chosen = tuple(s for s in self._held_out.segments if s.name in set(names))
        if not chosen:
            return np.full(len(names), np.nan)
        held_out = replace(self._held_out, segments=chosen)
        table = evaluate(held_out, bank.scorer, model="", run="", seed=0)
        means = table.groupby("segment", observed=True)["value"].mean()
        return means.reindex(names).to_numpy(dtype=np.float64)


def _measure(
    segment: HeldOutSegment, scorer: Scorer, config: EvaluationConfig
) -> list[NDArray[np.float64]]:
    """The values of the segment's users, for each metric for each k."""
    lists = rank(
        scorer,
        segment.user_rows_U,
        max(config.ks),
        seen=segment.seen,
        candidates_N=segment.candidates_N,
        segment=segment.name,
    )
    positions_U = torch.arange(segment.num_users)
    hits_UK = segment.relevant.contains(positions_U, lists.item_rows_UK).numpy()
    num_relevant_U = segment.relevant.sizes_U.numpy()
    return [METRICS[m](hits_UK, num_relevant_U, k) for m in config.metrics for k in config.ks]


def _table(
    heldout: HeldOut, values: NDArray[np.float64], *, model: str, run: str, seed: int
) -> pd.DataFrame:
    """The long table of values that are ordered by segment, metric, k, user."""
    config = heldout.config
    measures = [(m, k) for m in config.metrics for k in config.ks]
    blocks = pd.DataFrame(
        [(run, model, s.name, seed, m, k) for s in heldout.segments for m, k in measures],
        columns=["run", "model", "segment", "seed", "metric", "k"],
    ).astype(
        {
            "run": "category",
            "model": "category",
            "segment": pd.CategoricalDtype([s.name for s in heldout.segments]),
            "metric": pd.CategoricalDtype(list(config.metrics)),
        }
    )
    sizes = [s.num_users for s in heldout.segments for _ in measures]
    table = blocks.loc[blocks.index.repeat(sizes)].reset_index(drop=True)
    ids = pa.chunked_array([s.user_ids for s in heldout.segments for _ in measures])
    table.insert(4, "user_id", ids.to_pandas())
    table["value"] = values
    return table


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Refuse an unknown name, offering near ones (ValueError)."""
    names = list(known)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3) or names[:10]
        raise ValueError(f"unknown {what} {name!r}; did you mean {' or '.join(map(repr, near))}?")
