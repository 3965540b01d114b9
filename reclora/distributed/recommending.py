"""This file is the lists of a held-out log's users, ranked by many ranks.

What one rank has ranked the others read from a folder that all of them see: there it is also found
by a run that goes on after a kill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from reclora.adapters import Adapter
from reclora.distributed.division import balanced
from reclora.distributed.placement import DistributedError
from reclora.distributed.ranking import Request
from reclora.distributed.rounds import Rounds
from reclora.distributed.shards import ShardedBase
from reclora.evaluation import HeldOut, HeldOutSegment, KeptLists, Lists, ScorerOf
from reclora.evaluation.lists import pieces_of
from reclora.evaluation.pieces import Span, tasks_of
from reclora.ranking import rank
from reclora.scoring import RemoteScorer


def recommend_here(rounds: Rounds, held_out: HeldOut, scorer_of: ScorerOf) -> Lists:
    """Rank for every user with something relevant on this rank alone, while the others help.

    It is a `Ranking` for `RankingJudge`, once `rounds` is given: a rank judges its own segments.

    Raises:
        ValueError, AdapterError: as `rank_sharded`.
    """
    pieces = pieces_of(held_out)
    return Lists.of_pieces(pieces, _ranked(rounds, pieces, scorer_of, max(held_out.config.ks)))


def recommend_sharded(
    base: ShardedBase, held_out: HeldOut, scorer_of: ScorerOf, kept: KeptLists
) -> Lists:
    """Rank for every user with something relevant, exactly; collective.

    Users are divided in the pieces that `recommend` ranks one after the other: how many are scored
    at once decides the last bit of a score, and so every list is that of one process. What
    `measure` makes of the lists is what `evaluate` finds with the whole base.

    Args:
        held_out: the same on every rank.
        scorer_of: segment name -> its scorer: that of a bank or base whose tables lie on the ranks
            (`RemoteScorer`), or any other; called for the segments that this rank ranks.
        kept: in a folder that all ranks see; lists that are there are not made again.

    Returns:
        The lists of all users, on every rank.

    Raises:
        ValueError: the config says `retrieve`: only exact lists are ranked here; or as `rank`.
        AdapterError: as `rank_sharded`.
        DistributedError: the lists of another rank are not in the folder.
        OSError: lists cannot be kept.
    """
    if held_out.config.retrieve:
        raise ValueError(
            f"retrieve is {held_out.config.retrieve}, but ranks rank exactly, in one stage: "
            "evaluate with retrieve = 0"
        )
    k, shares = max(held_out.config.ks), Shares.of(held_out, base.num_ranks)
    missing = shares.missing(base.rank, kept, k)
    rounds = Rounds(base)
    made = iter(_ranked(rounds, shares.pieces_of(missing), scorer_of, k))
    for task in missing:
        kept.write(task, torch.cat([next(made) for _ in task]))
    rounds.stand_by()
    return shares.lists(kept, k)


@dataclass(frozen=True)
class Shares:
    """The users of a held-out log, in the pieces that `recommend` ranks one after the other, and
    which rank ranks which.
    """

    pieces: list[HeldOutSegment]
    of_ranks: list[list[Span]]
    """Of each rank, the pieces that are kept in one file each."""

    @classmethod
    def of(cls, held_out: HeldOut, num_ranks: int) -> Shares:
        """About as many users for each of so many ranks."""
        pieces = pieces_of(held_out)
        sizes = [piece.num_users for piece in pieces]
        tasks = tasks_of(sizes)
        users = [sum(sizes[at] for at in task) for task in tasks]
        owned = balanced(users, num_ranks)
        return cls(pieces, [[tasks[at] for at in own] for own in owned])

    def pieces_of(self, tasks: Sequence[Span]) -> list[HeldOutSegment]:
        """The pieces of some tasks, one after the other."""
        return [self.pieces[at] for task in tasks for at in task]

    def missing(self, rank: int, kept: KeptLists, k: int) -> list[Span]:
        """The tasks of a rank whose lists, of length k, are not kept yet."""
        return [task for task in self.of_ranks[rank] if self._kept(task, kept, k) is None]

    def lists(self, kept: KeptLists, k: int) -> Lists:
        """All lists, as the ranks have kept them.

        Raises:
            DistributedError: some are not there.
        """
        found: list[Tensor] = [torch.empty(0)] * len(self.pieces)
        for task in (task for tasks in self.of_ranks for task in tasks):
            rows_UK = self._kept(task, kept, k)
            if rows_UK is None:
                raise DistributedError(
                    f"{kept.folder}: the lists that another rank has ranked are not there: all "
                    "ranks must see the same folders"
                )
            sizes = [self.pieces[at].num_users for at in task]
            for at, rows in zip(task, rows_UK.split(sizes), strict=True):
                found[at] = rows
        return Lists.of_pieces(self.pieces, found)

    def _kept(self, task: Span, kept: KeptLists, k: int) -> Tensor | None:
        return kept.read(task, sum(piece.num_users for piece in self.pieces_of([task])), k)


def _ranked(
    rounds: Rounds, pieces: Sequence[HeldOutSegment], scorer_of: ScorerOf, k: int
) -> list[Tensor]:
    """The item rows of each piece's users, (U, k): of scorers whose catalogue is here each for
    itself, of all others in one round.
    """
    scorers = lru_cache(maxsize=1)(scorer_of)
    found: list[Tensor | None] = []
    requests = []
    for piece in pieces:
        scorer = scorers(piece.name)
        if isinstance(scorer, RemoteScorer):
            assert scorer.adapter is None or isinstance(scorer.adapter, Adapter)
            requests.append(Request.of(piece, scorer.adapter))
            found.append(None)
            continue
        lists = rank(
            scorer,
            piece.user_rows_U,
            k,
            seen=piece.seen,
            candidates_N=piece.candidates_N,
            segment=piece.name,
        )
        found.append(lists.item_rows_UK)
    remote = (lists.item_rows_UK for lists in rounds.lists(requests, k))
    return [next(remote) if rows is None else rows for rows in found]
