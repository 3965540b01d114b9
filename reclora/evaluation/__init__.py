"""Offline evaluation: lists held against what users did next.

hold_out   the held-out log -> what is relevant to each user, and what was seen
recommend  a scorer -> lists of every user      (or `Lists` of any other system)
measure    lists -> the results table, one row per user and metric; means come last
evaluate   recommend, then measure
"""

from reclora.evaluation.config import EvaluationConfig, check_name
from reclora.evaluation.held_out import HeldOut, HeldOutSegment, hold_out
from reclora.evaluation.judge import RankingJudge, headline_of
from reclora.evaluation.lists import Lists, SegmentLists, recommend
from reclora.evaluation.results import evaluate, measure, measure_stages, stage_name

__all__ = [
    "EvaluationConfig",
    "HeldOut",
    "HeldOutSegment",
    "Lists",
    "RankingJudge",
    "SegmentLists",
    "check_name",
    "evaluate",
    "headline_of",
    "hold_out",
    "measure",
    "measure_stages",
    "recommend",
    "stage_name",
]
