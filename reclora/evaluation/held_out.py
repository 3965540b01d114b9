"""What lists are held against: for each user of each segment, what is relevant and what is seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from reclora.evaluation.config import EvaluationConfig
from reclora.interactions import Interactions
from reclora.notebook import as_html
from reclora.ranking import UserItems


@dataclass(frozen=True, repr=False)
class HeldOutSegment:
    """The U users of a segment who have something relevant, in the same order in every field."""

    name: str
    user_rows_U: Tensor
    """Ascending."""
    user_ids: pa.Array
    relevant: UserItems
    seen: UserItems
    candidates_N: Tensor | None
    users_without_relevant: int
    """Users whose held-out items in the segment they had all seen; they are in no table."""

    def __repr__(self) -> str:
        return (
            f"HeldOutSegment({self.name!r}, {self.num_users:,} users, "
            f"{len(self.relevant.item_rows):,} relevant items)"
        )

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.user_rows_U)

    def pieces(self, at_most: int) -> list[HeldOutSegment]:
        """Its users in their order, so many in a piece."""
        if self.num_users <= at_most:
            return [self]
        return [
            replace(
                self,
                user_rows_U=self.user_rows_U[places],
                user_ids=self.user_ids.slice(int(places[0]), len(places)),
                relevant=self.relevant.take(places),
                seen=self.seen.take(places),
            )
            for places in torch.split(torch.arange(self.num_users), at_most)
        ]

    def hits(self, item_rows_UK: Tensor) -> NDArray[np.bool_]:
        """Which places of the users' lists hold something relevant, shape (U, K)."""
        hits_UK: NDArray[np.bool_] = self.relevant.contains(
            torch.arange(self.num_users), item_rows_UK
        ).numpy()
        return hits_UK


@dataclass(frozen=True, repr=False)
class HeldOut:
    """What lists are held against; made once by `hold_out`, used for every model and seed."""

    config: EvaluationConfig
    item_users_N: Tensor
    """How many users of the seen log have each item, int64."""
    num_seen_users: int
    """Users of the seen log."""
    segments: tuple[HeldOutSegment, ...]

    def __repr__(self) -> str:
        config, relevant = self.config, sum(len(s.relevant.item_rows) for s in self.segments)
        return (
            f"HeldOut({self.num_users:,} users of {len(self.segments):,} segments, {relevant:,} "
            f"relevant items of {self.num_items:,}; {', '.join(config.metrics)} at "
            f"{', '.join(map(str, config.ks))})"
        )

    def _repr_html_(self) -> str:
        return as_html(self, self.counts().to_dict("list"))

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.item_users_N)

    @property
    def num_users(self) -> int:
        """Users with something relevant; one who has it in two segments counts twice."""
        return sum(s.num_users for s in self.segments)

    def only_users(self, chosen: Callable[[Tensor], Tensor]) -> HeldOut:
        """The same with the users of whose rows, shape (U,), `chosen` says True."""
        segments = (_take(s, chosen(s.user_rows_U), s.relevant) for s in self.segments)
        return replace(self, segments=tuple(segments))

    def check_segments(self, log: Interactions) -> None:
        """Refuse segments that a log does not have (ValueError)."""
        known = set(log.segment_names)
        missing = [segment.name for segment in self.segments if segment.name not in known]
        if missing:
            raise ValueError(
                f"segment {missing[0]!r} is held out but not in the log: hold out its segments "
                "alone"
            )

    def only(self, part: Interactions) -> HeldOut:
        """The same with what is relevant by some rows of the held-out log alone: a slice of it.

        Users to whom nothing else is relevant leave; what was seen and the candidates stay, so that
        the lists of the whole are those of the slice.
        """
        return replace(self, segments=tuple(_only(s, part) for s in self.segments))

    def counts(self) -> pd.DataFrame:
        """One row per segment: segment, users, users_without_relevant, relevant (items)."""
        rows = [
            (s.name, s.num_users, s.users_without_relevant, len(s.relevant.item_rows))
            for s in self.segments
        ]
        columns = ["segment", "users", "users_without_relevant", "relevant"]
        return pd.DataFrame(rows, columns=columns)


def hold_out(
    heldout: Interactions,
    seen: Interactions,
    config: EvaluationConfig,
    candidates: Tensor | Mapping[str, Tensor] | None = None,
) -> HeldOut:
    """What each user of each segment should be shown, and what not.

        seen(u)        = items of u in `seen`, in any segment
        relevant(u, s) = items of u in segment s of `heldout`, minus seen(u)
        candidates(s)  = the catalogue, the items of segment s in `seen`, or those given; minus
                         seen(u)

    A relevant item outside the candidates stays relevant and counts as missed.

    Args:
        heldout: the window to predict, validation or test.
        seen: all that came before it.
        config: what will be measured, over which candidates.
        candidates: where the config says `given`: bool of shape (N,), for all segments or for each.

    Raises:
        ValueError: the two logs are on different id maps, the held-out one has no segments, or
            candidates are given though the config does not say so, or the other way round.
    """
    if not heldout.segment_names:
        raise ValueError(f"the held-out log must have segments, got {heldout!r}")
    if heldout.users != seen.users or heldout.items != seen.items:
        raise ValueError(
            f"the held-out log {heldout!r} and the seen log {seen!r} must be on the same id maps, "
            "but are on different ones; bring both onto one with Interactions.onto"
        )
    if (config.candidates == "given") != (candidates is not None):
        raise ValueError(
            f"candidates must be given exactly where the config says 'given', it says "
            f"{config.candidates!r}; pass a mask of items, or change the config"
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
                candidates_N=_candidates(name, seen, config, candidates),
                users_without_relevant=len(torch.unique(users)) - len(user_rows_U),
            )
        )
    owners_N = torch.bincount(seen_by_user.item_rows, minlength=len(seen.items))
    num_seen_users = int((seen_by_user.sizes_U > 0).sum())
    return HeldOut(config, owners_N, num_seen_users, tuple(segments))


def _candidates(
    name: str,
    seen: Interactions,
    config: EvaluationConfig,
    given: Tensor | Mapping[str, Tensor] | None,
) -> Tensor | None:
    """Which items are ranked for a segment, bool, shape (N,); None for all."""
    if config.candidates == "catalogue":
        return None
    if isinstance(given, Mapping):
        if name not in given:
            raise ValueError(f"segment {name!r} has no candidates; give a mask of items for it")
        return given[name]
    if given is not None:
        return given
    has_N = torch.zeros(len(seen.items), dtype=torch.bool)
    has_N[_pairs_of(seen, name)[1]] = True
    return has_N


def _pairs_of(log: Interactions, segment: str) -> tuple[Tensor, Tensor]:
    """User rows and item rows of a segment's interactions; none where the log lacks it."""
    start = stop = 0
    if segment in log.segment_names:
        s = log.segment_names.index(segment)
        start, stop = int(log.offsets[s]), int(log.offsets[s + 1])
    return torch.from_numpy(log.user_rows[start:stop]), torch.from_numpy(log.item_rows[start:stop])


def _only(segment: HeldOutSegment, part: Interactions) -> HeldOutSegment:
    """The segment with those relevant items that are in the rows of a part of its log."""
    users, items = _pairs_of(part, segment.name)
    if segment.num_users == 0 or len(users) == 0:
        nobody = torch.zeros(segment.num_users, dtype=torch.bool)
        return _take(segment, nobody, segment.relevant)
    positions = torch.searchsorted(segment.user_rows_U, users).clamp_(max=segment.num_users - 1)
    here = segment.user_rows_U[positions] == users
    here &= segment.relevant.contains(positions, items.unsqueeze(1)).squeeze(1)
    relevant = UserItems.from_pairs(positions[here], items[here], segment.num_users)
    return _take(segment, relevant.sizes_U > 0, relevant)


def _take(segment: HeldOutSegment, chosen_U: Tensor, relevant: UserItems) -> HeldOutSegment:
    """The chosen users of a segment, with what is relevant to them."""
    positions = chosen_U.nonzero().squeeze(1)
    return replace(
        segment,
        user_rows_U=segment.user_rows_U[positions],
        user_ids=segment.user_ids.take(pa.array(positions.numpy())),
        relevant=relevant.take(positions),
        seen=segment.seen.take(positions),
    )
