"""The same maths as the library in slow plain loops: what the laws are held against."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence

# Metrics: one user, a ranked list of items and the set of relevant ones.


def recall(ranked: Sequence[int], relevant: Collection[int], k: int) -> float:
    hits = 0
    for item in ranked[:k]:
        if item in relevant:
            hits += 1
    return hits / len(relevant)


def capped_recall(ranked: Sequence[int], relevant: Collection[int], k: int) -> float:
    hits = 0
    for item in ranked[:k]:
        if item in relevant:
            hits += 1
    return hits / min(k, len(relevant))


def ndcg(ranked: Sequence[int], relevant: Collection[int], k: int) -> float:
    gain = 0.0
    for place, item in enumerate(ranked[:k], start=1):
        if item in relevant:
            gain += 1 / math.log2(place + 1)
    ideal = 0.0
    for place in range(1, min(k, len(relevant)) + 1):
        ideal += 1 / math.log2(place + 1)
    return gain / ideal


METRICS = {"recall": recall, "capped_recall": capped_recall, "ndcg": ndcg}


# Ranking.


def rank(
    scores: Sequence[float],
    k: int,
    seen: Collection[int] = (),
    candidates: Collection[int] | None = None,
) -> list[int]:
    """The list of one user: item rows, best first, at most k."""
    left = []
    for item, score in enumerate(scores):
        allowed = candidates is None or item in candidates
        if allowed and item not in seen and score > -math.inf:
            left.append((-score, item))
    return [item for _, item in sorted(left)[:k]]


# A log is a list of (segment, user row, item row).

Log = Sequence[tuple[str, int, int]]


def popularity_order(log: Log, segment: str, num_items: int) -> list[int]:
    """Item rows, the most popular first."""
    in_segment = Counter(item for name, _, item in log if name == segment)
    in_all = Counter(item for _, _, item in log)
    return sorted(range(num_items), key=lambda item: (-in_segment[item], -in_all[item], item))


def evaluate(
    heldout: Log,
    seen: Log,
    scores: Sequence[Sequence[float]],
    metrics: Sequence[str],
    ks: Sequence[int],
    only_items_of_segment: bool = False,
) -> dict[tuple[str, int, str, int], float]:
    """(segment, user row, metric, k) -> value, with one matrix of scores, users x items."""
    values = {}
    for segment, user in sorted({(s, u) for s, u, _ in heldout}):
        seen_items = {i for _, u, i in seen if u == user}
        relevant = {i for s, u, i in heldout if s == segment and u == user} - seen_items
        if not relevant:
            continue
        candidates = {i for s, _, i in seen if s == segment} if only_items_of_segment else None
        ranked = rank(scores[user], max(ks), seen_items, candidates)
        for metric in metrics:
            for k in ks:
                values[segment, user, metric, k] = METRICS[metric](ranked, relevant, k)
    return values
