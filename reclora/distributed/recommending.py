"""This file is the lists of a held-out log's users, ranked by all ranks and gathered once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from reclora.adapters import Adapter
from reclora.distributed.division import balanced
from reclora.distributed.ranking import Request, gathered, rank_sharded
from reclora.distributed.shards import ShardedBase
from reclora.evaluation import HeldOut, Lists, SegmentLists
from reclora.evaluation.pieces import PIECE_USERS
from reclora.ranking import RankedLists


def recommend_sharded(
    base: ShardedBase, held_out: HeldOut, adapter_of: Callable[[str], Adapter | None]
) -> Lists | None:
    """Rank for every user with something relevant, exactly; collective.

    Users are divided in the pieces that `recommend` ranks one after the other: how many are scored
    at once decides the last bit of a score, and so every list is that of one process. What
    `measure` makes of the lists is what `evaluate` finds with the whole base.

    Args:
        held_out: the same on every rank.
        adapter_of: segment name -> its adapter, None for the base alone; a rank asks for those of
            the pieces that it ranks.

    Returns:
        The lists of all users on rank 0, None elsewhere.

    Raises:
        ValueError: the config says `retrieve`: only exact lists are ranked here; or as `rank`.
        AdapterError: as `rank_sharded`.
    """
    if held_out.config.retrieve:
        raise ValueError(
            f"retrieve is {held_out.config.retrieve}, but ranks rank exactly, in one stage: "
            "evaluate with retrieve = 0"
        )
    asked = [segment for segment in held_out.segments if segment.num_users]
    pieces = [piece for segment in asked for piece in segment.pieces(PIECE_USERS)]
    owned = balanced([piece.num_users for piece in pieces], base.num_ranks)
    k = max(held_out.config.ks)
    requests = [
        Request(
            adapter_of(piece.name), piece.user_rows_U, piece.seen, piece.candidates_N, piece.name
        )
        for piece in (pieces[at] for at in owned[base.rank])
    ]
    whole = gathered(base, _joined(rank_sharded(base, requests, k), k))
    if whole is None:
        return None
    # They came rank after rank, each with its pieces.
    order = [at for own in owned for at in own]
    parts = whole.item_rows_UK.split([pieces[at].num_users for at in order])
    rows_of = dict(zip(order, parts, strict=True))
    found: dict[str, list[Tensor]] = {segment.name: [] for segment in asked}
    for at, piece in enumerate(pieces):
        found[piece.name].append(rows_of[at])
    return Lists({s.name: SegmentLists(s.user_rows_U, torch.cat(found[s.name])) for s in asked})


def _joined(lists: list[RankedLists], k: int) -> RankedLists:
    rows = [torch.empty(0, k, dtype=torch.int64), *(each.item_rows_UK for each in lists)]
    scores = [torch.empty(0, k), *(each.scores_UK for each in lists)]
    return RankedLists(torch.cat(rows), torch.cat(scores))
