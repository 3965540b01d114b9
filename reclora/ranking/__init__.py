"""From scores to lists: exact top-k over the catalogue, in one stage or two; sets of items for many
users.
"""

from reclora.ranking.catalogue import RankedLists, Scorer, rank
from reclora.ranking.two_stages import PairScorer, TwoStageScorer, rank_in_two_stages
from reclora.ranking.user_items import UserItems

__all__ = [
    "PairScorer",
    "RankedLists",
    "Scorer",
    "TwoStageScorer",
    "UserItems",
    "rank",
    "rank_in_two_stages",
]
