"""The means of every model, each with its interval."""

from __future__ import annotations

import numpy as np
import pandas as pd

from reclora.comparison.values import Values, values_of


def means(
    results: pd.DataFrame,
    *,
    confidence: float = 0.95,
    seed: int = 0,
    segment_intervals: bool = True,
) -> pd.DataFrame:
    """The mean over users of each metric, seeds averaged per user first, with a bootstrap interval
    over users and seeds.

    Users whose value is NaN (a list too short to have a diversity) have none and are not counted.

    Args:
        results: rows of `evaluate`.
        confidence: within 0 to 1.
        seed: of the bootstrap.
        segment_intervals: whether segments have intervals, too: of thousands they take a while.

    Returns:
        scope, segment, model, metric, k, users, mean, low, high. The rows of scope "all" come
        first; there the segment is empty and the unit is (segment, user). Then those of scope
        "segment", by name for each model, metric and k.

    Raises:
        ValueError: a user has two values for one model, seed, metric and k, or lacks one that the
            model has for others.
    """
    rows: list[tuple[object, ...]] = []
    measures = results[["model", "metric", "k"]].drop_duplicates()
    for model, metric, k in measures.itertuples(index=False, name=None):
        of_measure = results[(results["metric"] == metric) & (results["k"] == k)]
        units, matrix = values_of(of_measure, str(model))
        known = ~matrix.isna().any(axis=1).to_numpy()
        whole = Values(
            units["segment"].astype(str).to_numpy(dtype=np.str_)[known],
            np.ascontiguousarray(matrix.to_numpy()[known]),
            (slice(0, matrix.shape[1]),),
        )
        for scope, segment, part in whole.groups():
            low, high = np.nan, np.nan
            if segment_intervals or scope == "all":
                low, high = part.interval(confidence, seed)
            mean = part.units_U.mean() if len(part.columns_UC) else np.nan
            users = len(part.columns_UC)
            rows.append((scope, segment, str(model), str(metric), k, users, mean, low, high))
    columns = ["scope", "segment", "model", "metric", "k", "users", "mean", "low", "high"]
    table = pd.DataFrame(rows, columns=columns)
    first = table["scope"] == "all"
    return pd.concat([table[first], table[~first]], ignore_index=True)
