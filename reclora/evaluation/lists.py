"""The lists of one model for the users of a held-out log: ranked here, or by any other system."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from reclora.evaluation.held_out import HeldOut, HeldOutSegment
from reclora.evaluation.processes import LEAST_USERS, rank_in_processes
from reclora.ranking import Scorer, TwoStageScorer, rank, rank_in_two_stages

ScorerOf = Callable[[str], Scorer]
Progress = Callable[[int, int], None]

RETRIEVED = "retrieved"
"""The first of two stages."""


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


def recommend(
    held_out: HeldOut,
    scorer_of: ScorerOf,
    *,
    model: str,
    progress: Progress | None = None,
    processes: int = 1,
) -> dict[str, Lists]:
    """Rank for every user with something relevant; by stage.

    Where the config says `retrieve`, models of two stages are ranked in two, and have the lists of
    both: those of stage "retrieved" are `retrieve` long.

    Args:
        scorer_of: segment name -> scorer; called once for each segment that has users.
        model: what errors call the model.
        progress: called with (users done, users in all) after each segment.
        processes: that rank at once, each a share of the segments; they are forked.

    Returns:
        Stage -> lists; the stage of what is finally shown is "".

    Raises:
        ValueError: a scorer has another catalogue, or a score is NaN or +inf; it names the segment.
    """
    asked = [segment for segment in held_out.segments if segment.num_users]
    is_large = held_out.num_users >= LEAST_USERS
    if processes > 1 and is_large and not held_out.config.retrieve:
        at_most = -(-held_out.num_users // processes)
        pieces = [piece for segment in asked for piece in segment.pieces(at_most)]
        shown = rank_in_processes(
            pieces,
            lambda segment: _rank(held_out, segment, scorer_of(segment.name), model)[""],
            max(held_out.config.ks),
            processes,
        )
        of: dict[str, list[Tensor]] = {}
        for piece, rows in zip(pieces, shown, strict=True):
            of.setdefault(piece.name, []).append(rows)
        made = ((s, torch.cat(of[s.name])) for s in asked)
        return {"": Lists({s.name: SegmentLists(s.user_rows_U, rows) for s, rows in made})}
    stages: dict[str, dict[str, SegmentLists]] = {"": {}}
    done = 0
    for segment in asked:
        for stage, lists in _rank(held_out, segment, scorer_of(segment.name), model).items():
            stages.setdefault(stage, {})[segment.name] = SegmentLists(segment.user_rows_U, lists)
        done += segment.num_users
        if progress is not None:
            progress(done, held_out.num_users)
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
