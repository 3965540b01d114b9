"""This file is how ranks are chosen after one training: adapters are cut, not trained again.

A product of rank R is put into the order of its singular values once, from its factors alone. The
nearest product of each smaller rank r is then a prefix of it (Eckart and Young, 1936):

    L M = sum over i <= R of s_i u_i v_i^T      (P x Q)
    cut = sum over i <= r of s_i u_i v_i^T      |L M - cut|_F^2 = sum over i > r of s_i^2

So the whole curve, metric by rank, costs O((T + D) R^2) a segment and one ranking of its held-out
users a rank. Nearest in the table is not best in the lists: the curve says what a cut is worth.

rank_curve   adapters and held-out users -> RankCurve: what every rank is worth to every user
RankCurve    -> the rank of a bank, or of each segment: the smallest that is as good, or by bytes
truncate     adapters and ranks -> the adapters cut to them
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from reclora.adapters import Adapter
from reclora.arithmetic import recompress
from reclora.arithmetic.parts import PRODUCTS, deltas_of, resized
from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.configs import AdapterConfig, AdapterError
from reclora.evaluation import HeldOut, evaluate, headline_of
from reclora.ladder import choose_rungs


@dataclass(frozen=True)
class RankCurve:
    """What each rank is worth to each held-out user, all of them cut from one training."""

    values: pd.DataFrame
    """segment, rank, user_id, value of the headline metric: the same users at every rank."""
    bytes_SK: pd.DataFrame
    """What a segment's stored adapter (row) takes at a rank (column, ascending)."""

    def table(self) -> pd.DataFrame:
        """The curve of all users, then that of each segment, as `reclora.ladder` compares them.

        Returns:
            scope ("all", whose segment is empty, or "segment"), segment, rank, bytes, users, mean,
            behind (the best rank's mean minus this one's), error (of behind, users paired), chosen
            (the smallest rank that is behind by no more than its error). A scope without users
            takes the smallest rank.
        """
        tables = [self._of_all(), *self._of_each()]
        columns = ["scope", "segment", "rank", "bytes", "users", "mean", "behind", "error"]
        return pd.concat(tables, ignore_index=True)[[*columns, "chosen"]]

    def smallest_rank(self) -> int:
        """One rank for all segments: the smallest whose users do no worse than the best rank's by
        more than a standard error.

        Source: as `reclora.ladder.choose_rungs`.
        """
        return _chosen(self._of_all())

    def smallest_ranks(self) -> dict[str, int]:
        """The same for each segment by its own users. A few users tell no rank from another, so
        that a small segment takes the smallest.
        """
        return {str(own["segment"].iat[0]): _chosen(own) for own in self._of_each()}

    def ranks_within(self, num_bytes: int) -> dict[str, int]:
        """The rank of each segment whose adapters together take at most so many bytes.

        A rank's gain is the sum of its users' values, less that at the smallest rank: what the mean
        over all users grows by. How bytes are spent: see `within_budget`. Gains are taken as they
        are measured, chance included: of a segment with a handful of users they are mostly that.

        Args:
            num_bytes: of the adapters' tensors, those of a parent not counted.

        Raises:
            ValueError: the segments take more at the smallest rank.
        """
        sums = self.values.groupby(["segment", "rank"], observed=True)["value"].sum().unstack()
        gains_SK = sums.reindex(index=self.bytes_SK.index, columns=self.bytes_SK.columns)
        # The same values in another order have another sum, by rounding; that is no gain.
        gains = np.round(gains_SK.fillna(0).to_numpy(np.float64), 9)
        places_S = within_budget(self.bytes_SK.to_numpy(np.int64), gains, num_bytes)
        return {s: self.ranks[at] for s, at in zip(self.segments, places_S, strict=True)}

    @property
    def segments(self) -> list[str]:
        """In the order of the adapters."""
        return [str(segment) for segment in self.bytes_SK.index]

    @property
    def ranks(self) -> list[int]:
        """Ascending."""
        return [int(rank) for rank in self.bytes_SK.columns.to_numpy()]

    def _of_all(self) -> pd.DataFrame:
        compared = _compared(self.values, self.segments, self.ranks)
        return compared.assign(scope="all", segment="", bytes=self.bytes_SK.sum().to_numpy())

    def _of_each(self) -> Iterator[pd.DataFrame]:
        parts: dict[Any, pd.DataFrame] = dict(iter(self.values.groupby("segment", observed=True)))
        nobody = self.values.iloc[:0]
        for segment, bytes_K in zip(self.segments, self.bytes_SK.to_numpy(), strict=True):
            compared = _compared(parts.get(segment, nobody), [segment], self.ranks)
            yield compared.assign(scope="segment", segment=segment, bytes=bytes_K)


def rank_curve(
    adapters: Sequence[Adapter],
    base: BaseModel,
    held_out: HeldOut,
    ranks: Sequence[int] | None = None,
) -> RankCurve:
    """Cut each segment's adapter to each rank, and rank for the held-out users with what is left.

        curve = rank_curve(bank.adapters(), bank.base, validation)
        curve.table()                          # metric by rank
        curve.smallest_rank()                  # one rank for all
        curve.ranks_within(50_000_000)         # one for each segment, in 50 MB

    All products of an adapter (`rows`, `map`, `low_rank`) are cut to the same rank; what is none
    (item bias, `scale`, `basis`, `full`) stays whole. So rank 0 is that alone, and where there is
    none the parent, or the base. At its own rank an adapter is as it was trained, to the bit; above
    it, where others have more, it stays so.

    Args:
        adapters: of one parent, trained at the highest rank that is asked about.
        base: what they were trained on.
        held_out: validation, for what is chosen on test is no honest result; of segments of the
            adapters. The headline metric is what is measured.
        ranks: from 0 to the largest of the adapters; by default 0, the powers of two, the largest.

    Raises:
        AdapterError: an adapter is of modules of another model; it has, beside a product, the kind
            `basis`, whose directions are frozen and have no order; it has a learned magnitude or
            NaN; a held-out segment has no adapter; or as `AdapterBank.of`.
        ValueError: a rank is outside 0 to the largest, or none is given.

    Source: Eckart and Young, "The approximation of one matrix by another of lower rank",
    Psychometrika 1936.
    """
    wanted = _checked_ranks(ranks, max(map(_rank_of, adapters), default=0))
    # Where a cut drops rows, their identifiers are still those of the held-out log.
    grown = AdapterBank.of(base, adapters).base
    ordered = [_ordered(adapter) for adapter in adapters]
    headline = headline_of(held_out)
    values, sizes = list[pd.DataFrame](), dict[int, list[int]]()
    for rank in wanted:
        cuts = [_prefix(*each, rank) for each in zip(adapters, ordered, strict=True)]
        sizes[rank] = [sum(t.nbytes for t in cut.tensors.values()) for cut in cuts]
        scorer_of = AdapterBank.of(grown, cuts).scorer
        results = evaluate(headline, scorer_of, model="", run="", seed=0)
        shown = results[results["model"] == ""]
        values.append(shown[["segment", "user_id", "value"]].assign(rank=rank))
    segments = pd.Index([adapter.segment for adapter in adapters], name="segment", dtype=object)
    columns = ["segment", "rank", "user_id", "value"]
    return RankCurve(
        pd.concat(values, ignore_index=True)[columns], pd.DataFrame(sizes, index=segments)
    )


def truncate(adapters: Sequence[Adapter], ranks: int | Mapping[str, int]) -> list[Adapter]:
    """The adapters cut to ranks, each product to its largest singular values; ready to be stored.

    From rank 1 on it is `recompress`; at rank 0 the products go, and the rows that nothing else
    needs. An adapter of no larger rank stays as it is, in the same memory.

    Args:
        adapters: of a base model, of whatever parents.
        ranks: one for all, or that of each segment, 0 or more.

    Raises:
        AdapterError: a rank is negative, or a segment has none; or as `rank_curve`.
    """
    cuts = []
    for adapter in adapters:
        rank = ranks if isinstance(ranks, int) else ranks.get(adapter.segment)
        if rank is None or rank < 0:
            raise AdapterError(
                f"segment {adapter.segment!r} needs a rank of 0 or more, got {rank}: give one for "
                "each adapter that is to be cut"
            )
        is_smaller = rank < _rank_of(adapter)
        cuts.append(_prefix(adapter, _ordered(adapter), rank) if is_smaller else adapter)
    return cuts


def within_budget(
    bytes_SK: NDArray[np.int64], gains_SK: NDArray[np.float64], num_bytes: int
) -> NDArray[np.int64]:
    """Spend bytes where they gain most: for each segment the place of its choice among K.

    A segment's choices are those on the concave hull of gain over bytes, each step of which gains
    no more a byte than the one before. The steps of all segments are taken by gain per byte, the
    largest first, at a tie those of the earlier segment; a step that does not fit ends its segment,
    and the others go on. So it is never over the budget; the gain never falls as the budget grows;
    and it is short of the best possible by less than the first step that did not fit: by nothing
    where all fit, nor where the curves are concave and all steps of one size.

    Args:
        bytes_SK: what each choice takes, ascending.
        gains_SK: what it is worth, in one unit for all segments.
        num_bytes: all choices together, at most.

    Returns:
        int64, shape (S).

    Raises:
        ValueError: the first choices alone take more.

    Source: Dantzig, "Discrete-variable extremum problems", Operations Research 1957; on hulls:
    Sinha and Zoltners, "The multiple-choice knapsack problem", Operations Research 1979.
    """
    left = num_bytes - int(bytes_SK[:, 0].sum())
    if left < 0:
        raise ValueError(
            f"a budget must be at least the {num_bytes - left:,} bytes that {len(bytes_SK):,} "
            f"segments take at the smallest rank, got {num_bytes:,}: allow more, or train fewer "
            "kinds that cannot be cut"
        )
    steps = [
        (-slope, code, place)
        for code, (bytes_K, gains_K) in enumerate(zip(bytes_SK, gains_SK, strict=True))
        for slope, place in _hull(bytes_K, gains_K)
    ]
    places_S = np.zeros(len(bytes_SK), np.int64)
    ended = set()
    for _, code, place in sorted(steps):
        price = int(bytes_SK[code, place] - bytes_SK[code, places_S[code]])
        if code not in ended and price <= left:
            places_S[code], left = place, left - price
        else:
            ended.add(code)
    return places_S


def _hull(bytes_K: NDArray[np.int64], gains_K: NDArray[np.float64]) -> list[tuple[float, int]]:
    """The steps up the concave hull from the first choice: gain per byte, never rising; place."""
    hull: list[tuple[float, int]] = []
    for place in range(1, len(bytes_K)):
        while True:
            last = hull[-1][1] if hull else 0
            gain = float(gains_K[place] - gains_K[last])
            price = int(bytes_K[place] - bytes_K[last])
            slope = gain / price if price else np.inf
            if gain <= 0 or not hull or hull[-1][0] >= slope:
                break
            hull.pop()
        if gain > 0:
            hull.append((slope, place))
    return hull


def _rank_of(adapter: Adapter) -> int:
    """The smallest rank at which nothing is cut: its own, or 0 without a product."""
    if adapter.is_served:
        return 0
    if not isinstance(adapter.config, AdapterConfig):
        raise AdapterError(
            f"the adapter of segment {adapter.segment!r} is of modules of a model: cut it by "
            "`recompress`, and judge it there"
        )
    has_product = any(delta.is_product for delta in deltas_of(adapter).values())
    return adapter.config.rank if has_product else 0


def _ordered(adapter: Adapter) -> Adapter:
    """The same adapter with its directions by singular value, the largest first."""
    if not (rank := _rank_of(adapter)):
        return adapter
    if any(delta.kind == "basis" for delta in deltas_of(adapter).values()):
        raise AdapterError(
            f"the adapter of segment {adapter.segment!r} has the kind `basis`, whose directions "
            "are frozen and have no order to cut by, beside what is cut: train it without"
        )
    return recompress(adapter, rank)


@torch.no_grad()
def _prefix(adapter: Adapter, ordered: Adapter, rank: int) -> Adapter:
    """The first `rank` directions of an adapter whose ordered form is given; at its own rank the
    adapter itself, which no rounding has touched.
    """
    if rank >= _rank_of(adapter):
        return adapter
    if rank == 0:
        return _without_products(adapter)
    tensors = dict(ordered.tensors)
    for delta in deltas_of(ordered).values():
        if delta.is_product:
            left_Pr = delta.left_PR[:, :rank].contiguous()
            right_rQ = delta.right_RQ[:rank].clone()
            tensors.update(delta.with_product(left_Pr, right_rQ).tensors())
    return replace(ordered, config=resized(ordered.config, [rank]), tensors=tensors)


def _without_products(adapter: Adapter) -> Adapter:
    """What is no product alone, and the rows and identifiers that it needs."""
    assert isinstance(adapter.config, AdapterConfig)
    deltas = deltas_of(adapter).values()
    products = tuple(f"{delta.name}." for delta in deltas if delta.is_product)
    needed = {delta.rows for delta in deltas if not delta.is_product}
    unused = tuple(f"{s}." for s in ("users", "items") if f"{s}.rows" not in needed)
    tensors = {
        name: tensor[:0].clone() if name.startswith(unused) else tensor
        for name, tensor in adapter.tensors.items()
        if not name.startswith(products)
    }
    config = replace(
        adapter.config,
        user_table=_other_kinds(adapter.config.user_kinds),
        item_table=_other_kinds(adapter.config.item_kinds),
        tower="none" if adapter.config.tower in PRODUCTS else adapter.config.tower,
    )
    return replace(adapter, config=config, tensors=tensors)


def _other_kinds(kinds: Sequence[str]) -> str:
    return " + ".join(kind for kind in kinds if kind not in PRODUCTS) or "none"


def _compared(values: pd.DataFrame, segments: Sequence[str], ranks: Sequence[int]) -> pd.DataFrame:
    """rank, users, mean, behind, error, chosen: all these segments' users as one class."""
    by_rank = dict(iter(values.groupby("rank")))
    rungs = {str(rank): by_rank.get(rank, values.iloc[:0]) for rank in ranks}
    _, compared = choose_rungs(rungs, dict.fromkeys(segments, 1))
    rank = compared["rung"].astype(np.int64)
    return compared.assign(rank=rank)[["rank", "users", "mean", "behind", "error", "chosen"]]


def _chosen(compared: pd.DataFrame) -> int:
    return int(compared.loc[compared["chosen"], "rank"].iat[0])


def _checked_ranks(ranks: Sequence[int] | None, largest: int) -> list[int]:
    if ranks is None:
        powers = (1 << exponent for exponent in range(largest.bit_length()))
        return sorted({0, *powers, largest})
    wanted = sorted(set(ranks))
    if not wanted or not 0 <= wanted[0] <= wanted[-1] <= largest:
        raise ValueError(
            f"ranks must be from 0 to {largest}, the largest that was trained, got {list(ranks)}: "
            "leave out the others, or train at a higher rank"
        )
    return wanted
