"""The lists of one model for the users of a held-out log: ranked here, or by any other system."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reclora.evaluation.held_out import HeldOut, HeldOutSegment
from reclora.evaluation.pieces import PIECE_USERS, KeptLists, rank_pieces
from reclora.ranking import Scorer, TwoStageScorer, rank, rank_in_two_stages

ScorerOf = Callable[[str], Scorer]
Progress = Callable[[int, int], None]

RETRIEVED = "retrieved"
"""The first of two stages."""
_NO_STAGE = -2
"""In place of what was retrieved, where a model has no such stage."""


@dataclass(frozen=True)
class SegmentLists:
    """The lists of the users of a segment."""

    user_rows_U: Tensor
    """Ascending, each once."""
    item_rows_UK: Tensor
    """Best first; -1 where a list is shorter."""


@dataclass(frozen=True)
class Lists:
    """The lists of one model; by segment."""

    segments: Mapping[str, SegmentLists]

    @classmethod
    def of_pieces(cls, pieces: Sequence[HeldOutSegment], rows: Sequence[Tensor]) -> Lists:
        """Those of segments that were ranked piece by piece.

        Args:
            pieces: see `pieces_of`.
            rows: the item rows of each piece's users, (U, K).
        """
        by_name: dict[str, list[tuple[HeldOutSegment, Tensor]]] = {}
        for piece, rows_UK in zip(pieces, rows, strict=True):
            by_name.setdefault(piece.name, []).append((piece, rows_UK))
        return cls({name: _joined(parts) for name, parts in by_name.items()})

    def of(self, segment: HeldOutSegment, k: int) -> Tensor:
        """The first k places of the lists of a held-out segment's users, int64, shape (U, k).

        A user without a list has -1 in every place, as has every place beyond the end of a list.
        """
        item_rows_Uk = torch.full((segment.num_users, k), -1)
        found = self.segments.get(segment.name)
        if found is None or len(found.user_rows_U) == 0:
            return item_rows_Uk
        slots_U = torch.searchsorted(found.user_rows_U, segment.user_rows_U)
        slots_U.clamp_(max=len(found.user_rows_U) - 1)
        has_U = found.user_rows_U[slots_U] == segment.user_rows_U
        first_Uk = found.item_rows_UK[slots_U[has_U], :k]
        item_rows_Uk[has_U, : first_Uk.shape[1]] = first_Uk
        return item_rows_Uk


def _joined(parts: Sequence[tuple[HeldOutSegment, Tensor]]) -> SegmentLists:
    if len(parts) == 1:
        return SegmentLists(parts[0][0].user_rows_U, parts[0][1])
    users, rows = zip(*((piece.user_rows_U, rows_UK) for piece, rows_UK in parts), strict=True)
    return SegmentLists(torch.cat(users), torch.cat(rows))


def pieces_of(held_out: HeldOut) -> list[HeldOutSegment]:
    """The users with something relevant, in the pieces that are ranked at once: how many are scored
    together decides the last bit of a score.
    """
    asked = [segment for segment in held_out.segments if segment.num_users]
    return [piece for segment in asked for piece in segment.pieces(PIECE_USERS)]


def recommend(
    held_out: HeldOut,
    scorer_of: ScorerOf,
    *,
    model: str,
    progress: Progress | None = None,
    processes: int = 1,
    kept: KeptLists | None = None,
) -> dict[str, Lists]:
    """Rank for every user with something relevant; by stage.

    Where the config says `retrieve`, models of two stages are ranked in two, and have the lists of
    both: those of stage "retrieved" are `retrieve` long.

    Args:
        scorer_of: segment name -> scorer; called for each segment that has users, one after the
            other, in each process again.
        model: what errors call the model.
        progress: called with (users done, users in all) after each piece of the users.
        processes: that rank at once; they are forked, and lists do not depend on them.
        kept: where lists are kept piece by piece; those that are there are not made again.

    Returns:
        Stage -> lists; the stage of what is finally shown is "".

    Raises:
        ValueError: a scorer has another catalogue, or a score is NaN or +inf; it names the segment.
    """
    k, retrieve = max(held_out.config.ks), held_out.config.retrieve
    pieces = pieces_of(held_out)
    scorers = functools.lru_cache(maxsize=1)(scorer_of)

    def rank_piece(piece: HeldOutSegment) -> Tensor:
        """What is shown, and beside it what was retrieved."""
        stages = _rank(held_out, piece, scorers(piece.name), model)
        if not retrieve:
            return stages[""]
        none = torch.full((piece.num_users, retrieve), _NO_STAGE)
        return torch.cat([stages[""], stages.get(RETRIEVED, none)], dim=1)

    made = rank_pieces(
        pieces, rank_piece, k + retrieve, processes=processes, kept=kept, progress=progress
    )
    stages: dict[str, dict[str, SegmentLists]] = {"": {}}
    for name, its in Lists.of_pieces(pieces, made).segments.items():
        users_U, rows = its.user_rows_U, its.item_rows_UK
        stages[""][name] = SegmentLists(users_U, rows[:, :k])
        if retrieve and rows[0, k] != _NO_STAGE:
            stages.setdefault(RETRIEVED, {})[name] = SegmentLists(users_U, rows[:, k:])
    return {stage: Lists(segments) for stage, segments in stages.items()}


def _rank(
    held_out: HeldOut, segment: HeldOutSegment, scorer: Scorer, model: str
) -> dict[str, Tensor]:
    """Stage -> the item rows of the lists."""
    if scorer.num_items != held_out.num_items:
        raise ValueError(
            f"segment {segment.name!r}: {model!r} must score the {held_out.num_items} items of "
            f"the held-out log, got a scorer of {scorer.num_items} items; "
            "bring the log onto the model's id maps with Interactions.onto"
        )
    k, retrieve = max(held_out.config.ks), held_out.config.retrieve
    if retrieve and isinstance(scorer, TwoStageScorer):
        retrieved, shown = rank_in_two_stages(
            scorer,
            segment.user_rows_U,
            k,
            retrieve,
            seen=segment.seen,
            candidates_N=segment.candidates_N,
            segment=segment.name,
        )
        return {"": shown.item_rows_UK, RETRIEVED: retrieved.item_rows_UK}
    shown = rank(
        scorer,
        segment.user_rows_U,
        k,
        seen=segment.seen,
        candidates_N=segment.candidates_N,
        segment=segment.name,
    )
    return {"": shown.item_rows_UK}
