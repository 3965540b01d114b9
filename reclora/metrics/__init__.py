"""Metrics: one formula and one edge rule per name, each with its source.

relevance    how well lists hit, one value per user: `METRICS`
lists        what lists are like: novelty, popularity, diversity, overlap; coverage, gini
labels       how well scores fit labels: auc, log loss, calibration error
conventions  what other systems would report of the same lists: `CONVENTIONS`
"""

from __future__ import annotations

from reclora.metrics.conventions import CONVENTIONS, Convention
from reclora.metrics.labels import auc, calibration_bins, calibration_error, log_loss
from reclora.metrics.lists import coverage, diversity, gini, novelty, overlap, popularity
from reclora.metrics.relevance import (
    Metric,
    average_precision,
    capped_recall,
    hit_rate,
    mrr,
    ndcg,
    precision,
    recall,
)

METRICS: dict[str, Metric] = {
    "recall": recall,
    "capped_recall": capped_recall,
    "precision": precision,
    "hit_rate": hit_rate,
    "ndcg": ndcg,
    "mrr": mrr,
    "map": average_precision,
}
"""The metrics of relevance, by the names that settings and results tables use."""

DEFINITIONS: dict[str, str] = {
    "recall": "recall@k = hits / |relevant|",
    "capped_recall": "capped_recall@k = hits / min(k, |relevant|)",
    "precision": "precision@k = hits / k",
    "hit_rate": "hit_rate@k = 1 with a hit among the first k places, else 0",
    "ndcg": (
        "ndcg@k = sum of 1 / log2(place + 1) over the hits among the first k places, divided by "
        "the same sum with hits at places 1 to min(k, |relevant|)"
    ),
    "mrr": "mrr@k = 1 / place of the first hit among the first k places, 0 without one",
    "map": "map@k = sum of precision at each hit among the first k places / |relevant|",
    "novelty": "novelty@k = mean over the list of -log2(share of users who have the item), in bits",
    "popularity": "popularity@k = mean over the list of the share of users who have the item",
    "diversity": "diversity@k = mean over the list's pairs of 1 - cosine of their features",
    "overlap": "overlap@k = items in common with the current release's list / the longer length",
    "coverage": "coverage@k = distinct items in all lists / candidates",
    "gini": "gini@k = Gini index of how often each candidate is shown: 0 evenly, near 1 only one",
    "auc": "auc = P(a positive row scores above a negative one), equal scores counting half",
    "log_loss": "log_loss = -mean(y log p + (1 - y) log(1 - p)), in nats",
    "log_likelihood": "log_likelihood = mean over the user's rows of log p of what came about",
    "calibration_error": (
        "calibration_error = mean over rows, in 15 bins of p, of |share of positives - mean p|"
    ),
}
"""The formula of each, as reports print it."""

__all__ = [
    "CONVENTIONS",
    "DEFINITIONS",
    "METRICS",
    "Convention",
    "Metric",
    "auc",
    "average_precision",
    "calibration_bins",
    "calibration_error",
    "capped_recall",
    "coverage",
    "diversity",
    "gini",
    "hit_rate",
    "log_loss",
    "mrr",
    "ndcg",
    "novelty",
    "overlap",
    "popularity",
    "precision",
    "recall",
]
