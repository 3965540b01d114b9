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


def precision(ranked: Sequence[int], relevant: Collection[int], k: int) -> float:
    return sum(1 for item in ranked[:k] if item in relevant) / k


def hit_rate(ranked: Sequence[int], relevant: Collection[int], k: int) -> float:
    for item in ranked[:k]:
        if item in relevant:
            return 1.0
    return 0.0


def mrr(ranked: Sequence[int], relevant: Collection[int], k: int) -> float:
    for place, item in enumerate(ranked[:k], start=1):
        if item in relevant:
            return 1 / place
    return 0.0


def average_precision(ranked: Sequence[int], relevant: Collection[int], k: int) -> float:
    total = 0.0
    for place, item in enumerate(ranked[:k], start=1):
        if item in relevant:
            total += precision(ranked, relevant, place)
    return total / len(relevant)


METRICS = {
    "recall": recall,
    "capped_recall": capped_recall,
    "precision": precision,
    "hit_rate": hit_rate,
    "ndcg": ndcg,
    "mrr": mrr,
    "map": average_precision,
}


# What lists are like. A list is a sequence of items, as long as it is.


def novelty(ranked: Sequence[int], owners: Sequence[int], num_users: int, k: int) -> float:
    bits = [-math.log2(max(owners[item], 1) / num_users) for item in ranked[:k]]
    return sum(bits) / len(bits) if bits else math.nan


def popularity(ranked: Sequence[int], owners: Sequence[int], num_users: int, k: int) -> float:
    shares = [owners[item] / num_users for item in ranked[:k]]
    return sum(shares) / len(shares) if shares else math.nan


def cosine(x: Sequence[float], y: Sequence[float]) -> float:
    if not any(x) or not any(y):
        return 0.0
    dot = sum(a * b for a, b in zip(x, y, strict=True))
    return dot / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))


def diversity(ranked: Sequence[int], features: Sequence[Sequence[float]], k: int) -> float:
    shown = ranked[:k]
    distances = []
    for a in range(len(shown)):
        for b in range(a + 1, len(shown)):
            distances.append(1 - cosine(features[shown[a]], features[shown[b]]))
    return sum(distances) / len(distances) if distances else math.nan


def overlap(ranked: Sequence[int], other: Sequence[int], k: int) -> float:
    longer = max(len(ranked[:k]), len(other[:k]))
    return len(set(ranked[:k]) & set(other[:k])) / longer if longer else math.nan


def coverage(lists: Sequence[Sequence[int]], num_candidates: int, k: int) -> float:
    return len({item for ranked in lists for item in ranked[:k]}) / num_candidates


def gini(lists: Sequence[Sequence[int]], num_candidates: int, k: int) -> float:
    """Half the mean absolute difference of all pairs, over the mean."""
    counts = Counter(item for ranked in lists for item in ranked[:k])
    shown = [counts[item] for item in counts] + [0] * (num_candidates - len(counts))
    total = sum(shown)
    if not total:
        return math.nan
    differences = sum(abs(x - y) for x in shown for y in shown)
    return differences / (2 * num_candidates * total)


# Labels.


def auc(labels: Sequence[int], scores: Sequence[float]) -> float:
    wins = pairs = 0.0
    for positive, high in zip(labels, scores, strict=True):
        for negative, low in zip(labels, scores, strict=True):
            if positive and not negative:
                pairs += 1
                wins += 1.0 if high > low else 0.5 if high == low else 0.0
    return wins / pairs if pairs else math.nan


def log_loss(labels: Sequence[int], probabilities: Sequence[float]) -> float:
    total = 0.0
    for label, p in zip(labels, probabilities, strict=True):
        p = min(max(p, 2.0**-52), 1 - 2.0**-52)
        total -= math.log(p) if label else math.log(1 - p)
    return total / len(labels)


def calibration_error(labels: Sequence[int], probabilities: Sequence[float]) -> float:
    total = 0.0
    for b in range(15):
        inside = [
            (label, p)
            for label, p in zip(labels, probabilities, strict=True)
            if (p > b / 15 or (b == 0 and p == 0)) and p <= (b + 1) / 15
        ]
        if inside:
            share = sum(label for label, _ in inside) / len(inside)
            total += abs(share - sum(p for _, p in inside) / len(inside)) * len(inside)
    return total / len(labels)


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


# Deltas and training. Vectors are lists of floats, matrices lists of rows.

Vector = Sequence[float]
Matrix = Sequence[Vector]
Layers = Sequence[tuple[Matrix, Vector]]


def product(x: Vector, factor: Matrix) -> list[float]:
    """x M."""
    columns = len(factor[0]) if factor else 0
    total = [0.0] * columns
    for value, row in zip(x, factor, strict=True):
        for d in range(columns):
            total[d] += value * row[d]
    return total


def length(x: Vector) -> float:
    total = 0.0
    for value in x:
        total += value * value
    return math.sqrt(total)


def squared_distance(x: Vector, y: Vector) -> float:
    total = 0.0
    for one, other in zip(x, y, strict=True):
        total += (one - other) ** 2
    return total


def low_rank_row(row: Vector, a: Vector, b: Matrix, scaling: float) -> list[float]:
    """e + scaling * a B."""
    return [e + scaling * change for e, change in zip(row, product(a, b), strict=True)]


def scaled_row(row: Vector, c: Vector) -> list[float]:
    """e * (1 + c)."""
    return [e * (1 + x) for e, x in zip(row, c, strict=True)]


def mapped_row(row: Vector, a: Matrix, b: Matrix, scaling: float) -> list[float]:
    """e + scaling * (e A^T) B."""
    inner = [sum(e * x for e, x in zip(row, each, strict=True)) for each in a]
    return low_rank_row(row, inner, b, scaling)


def moved_row(row: Vector, change: Vector) -> list[float]:
    """e + d."""
    return [e + x for e, x in zip(row, change, strict=True)]


def row_of_length(row: Vector, v: Vector, m: float) -> list[float]:
    """(|e| + m) * v / |v|."""
    return [(length(row) + m) * x / length(v) for x in v]


def mix(counter: int) -> int:
    """SplitMix64's finaliser of one counter."""
    z = (counter + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def basis(rank: int, dim: int) -> list[list[float]]:
    """+-1 / sqrt(D), the sign from the top bit of the hash of r * 2^32 + d."""
    return [
        [(1 if mix(r * 2**32 + d) >= 2**63 else -1) / math.sqrt(dim) for d in range(dim)]
        for r in range(rank)
    ]


def dropped_row(a: Vector, row: int, stream: int, p: float) -> list[float]:
    """Each number is dropped with probability p, by the upper 24 bits of a hash."""
    kept = []
    for place, value in enumerate(a):
        drawn = mix(mix(row * len(a) + place) ^ stream) // 2**40
        kept.append(value / (1 - p) if drawn >= p * 2**24 else 0.0)
    return kept


def low_rank_weight(weight: Matrix, b: Matrix, a: Matrix, scaling: float) -> list[list[float]]:
    """W + scaling * B A."""
    changed = [list(row) for row in weight]
    for o in range(len(weight)):
        for i in range(len(weight[0])):
            for r in range(len(a)):
                changed[o][i] += scaling * b[o][r] * a[r][i]
    return changed


def tower(layers: Layers, u: Vector, v: Vector) -> float:
    """MLP([u, v, u * v]) with a ReLU between layers."""
    values = [*u, *v, *(x * y for x, y in zip(u, v, strict=True))]
    for depth, (weight, bias) in enumerate(layers):
        if depth > 0:
            values = [max(0.0, value) for value in values]
        outputs = []
        for row, start in zip(weight, bias, strict=True):
            total = start
            for w, value in zip(row, values, strict=True):
                total += w * value
            outputs.append(total)
        values = outputs
    return values[0]


def score(u: Vector, v: Vector, bias: float, layers: Layers) -> float:
    total = bias
    for x, y in zip(u, v, strict=True):
        total += x * y
    return total + tower(layers, u, v) if layers else total


def softmax_loss(positive: float, negatives: Vector) -> float:
    highest = max(positive, *negatives)
    total = math.exp(positive - highest)
    for negative in negatives:
        total += math.exp(negative - highest)
    return math.log(total) - (positive - highest)


def bpr_loss(positive: float, negatives: Vector) -> float:
    total = 0.0
    for negative in negatives:
        total += -math.log(1 / (1 + math.exp(negative - positive)))
    return total / len(negatives)


def rowwise_adagrad(
    table: list[list[float]],
    sums: list[float],
    gradients: Sequence[tuple[int, Vector]],
    lr: float,
    eps: float,
) -> None:
    """One step, in place; gradients of one row are added up first."""
    together: dict[int, list[float]] = {}
    for row, gradient in gradients:
        before = together.get(row, [0.0] * len(gradient))
        together[row] = [x + y for x, y in zip(before, gradient, strict=True)]
    for row, total in together.items():
        mean_square = 0.0
        for x in total:
            mean_square += x * x / len(total)
        sums[row] += mean_square
        for d, x in enumerate(total):
            table[row][d] -= lr * x / (math.sqrt(sums[row]) + eps)


# Factorisation: scores of one user, rows as lists.


def weighted_softmax_loss(positive: float, negatives: Vector, weights: Vector) -> float:
    """-log( e^s+ / (e^s+ + sum_j w_j e^s-_j) )."""
    total = math.exp(positive)
    for negative, weight in zip(negatives, weights, strict=True):
        total += weight * math.exp(negative)
    return -math.log(math.exp(positive) / total)


def ccl_loss(
    positive: float, negatives: Vector, weights: Vector, margin: float, negative_weight: float
) -> float:
    total = 0.0
    for negative, weight in zip(negatives, weights, strict=True):
        total += weight * max(0.0, negative - margin)
    return 1 - positive + negative_weight * total / len(negatives)


def bce_loss(positive: float, negatives: Vector, weights: Vector, negative_weight: float) -> float:
    total = 0.0
    for negative, weight in zip(negatives, weights, strict=True):
        total -= weight * math.log(1 - 1 / (1 + math.exp(-negative)))
    return -math.log(1 / (1 + math.exp(-positive))) + negative_weight * total / len(negatives)


def weighted_bpr_loss(positive: float, negatives: Vector, weights: Vector) -> float:
    total = 0.0
    for negative, weight in zip(negatives, weights, strict=True):
        total += weight * bpr_loss(positive, [negative])
    return total / len(negatives)


def solved(left: Matrix, right: Vector) -> list[float]:
    """x of left x = right, by Gauss with pivots."""
    rows = [[*row, value] for row, value in zip(left, right, strict=True)]
    size = len(rows)
    for column in range(size):
        pivot = max(range(column, size), key=lambda r: abs(rows[r][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for r in range(size):
            if r != column:
                factor = rows[r][column] / rows[column][column]
                rows[r] = [x - factor * y for x, y in zip(rows[r], rows[column], strict=True)]
    return [rows[r][size] / rows[r][r] for r in range(size)]


def ials_row(
    others: Matrix, weights: Vector, alpha: float, l2: float, exponent: float
) -> list[float]:
    """The row that fits the other side's rows best; weight 0 is a pair that is not in the log."""
    dim = len(others[0])
    known = sum(1 for weight in weights if weight > 0) + alpha * len(others)
    left = [[l2 * known**exponent * (d == e) for e in range(dim)] for d in range(dim)]
    right = [0.0] * dim
    for other, weight in zip(others, weights, strict=True):
        for d in range(dim):
            right[d] += weight * other[d]
            for e in range(dim):
                left[d][e] += (weight + alpha) * other[d] * other[e]
    return solved(left, right)


def ials_cost(
    users: Matrix, items: Matrix, weights: Matrix, alpha: float, l2: float, exponent: float
) -> float:
    """What the alternations minimise; weights by user and item, 0 where a pair is not there."""
    total = 0.0
    for user, row in zip(users, weights, strict=True):
        known = sum(1 for weight in row if weight > 0) + alpha * len(items)
        total += l2 * known**exponent * length(user) ** 2
        for item, weight in zip(items, row, strict=True):
            fit = sum(x * y for x, y in zip(user, item, strict=True))
            total += weight * (fit - 1) ** 2 + alpha * fit**2
    for i, item in enumerate(items):
        known = sum(1 for row in weights if row[i] > 0) + alpha * len(users)
        total += l2 * known**exponent * length(item) ** 2
    return total
