"""Offline evaluation: lists held against what users did next.

hold_out      the held-out log -> what is relevant to each user, and what was seen
recommend     a scorer -> lists of every user (or `read_foreign`: those of any other system)
measure       lists -> the results table, one row per user and metric; means come last
evaluate      recommend, then measure
slices_of     the held-out log by what its users and items are like
measure_lists, measure_catalogue, measure_labels     what stands beside relevance
"""

from reclora.evaluation.beyond import measure_catalogue, measure_lists
from reclora.evaluation.config import EvaluationConfig, check_name
from reclora.evaluation.foreign import Foreign, read_foreign
from reclora.evaluation.held_out import HeldOut, HeldOutSegment, hold_out
from reclora.evaluation.judge import Ranking, RankingJudge, headline_of
from reclora.evaluation.labelled import (
    LabelledRows,
    measure_labels,
    probabilities,
    read_labelled,
    user_log_likelihoods,
)
from reclora.evaluation.lists import Lists, ScorerOf, SegmentLists, recommend
from reclora.evaluation.pieces import KeptLists
from reclora.evaluation.plain import ForeignError
from reclora.evaluation.results import evaluate, measure, measure_stages, stage_name
from reclora.evaluation.slices import Slice, measure_slice, slices_of

__all__ = [
    "EvaluationConfig",
    "Foreign",
    "ForeignError",
    "HeldOut",
    "HeldOutSegment",
    "KeptLists",
    "LabelledRows",
    "Lists",
    "Ranking",
    "RankingJudge",
    "ScorerOf",
    "SegmentLists",
    "Slice",
    "check_name",
    "evaluate",
    "headline_of",
    "hold_out",
    "measure",
    "measure_catalogue",
    "measure_labels",
    "measure_lists",
    "measure_slice",
    "measure_stages",
    "probabilities",
    "read_foreign",
    "read_labelled",
    "recommend",
    "slices_of",
    "stage_name",
    "user_log_likelihoods",
]
