"""How well scores fit labels, where a log says what was shown and not taken: 0 or 1 for each row.

`auc` is of scores in any unit; `log_loss` and `calibration_error` are of probabilities.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

BINS = 15


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """P(a positive row scores above a negative one), equal scores counting half; 0 to 1.

    NaN where all labels are the same.

    Raises:
        ValueError: lengths differ, a label is not 0 or 1, or a score is NaN; names the position.

    Source: Hanley and McNeil, "The meaning and use of the area under a ROC curve", Radiology
    143(1), 1982.
    """
    # It takes a second to import, and every command that reads settings comes by here.
    from scipy.stats import rankdata

    is_positive, values = _checked(labels, scores)
    positives = int(is_positive.sum())
    negatives = len(is_positive) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(values)
    above = ranks[is_positive].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def log_loss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """-mean(y log p + (1 - y) log(1 - p)) in nats; NaN without rows.

    Probabilities are clipped to within 2.2e-16 of 0 and 1, as scikit-learn does.

    Raises:
        ValueError: as `auc`; or a probability is outside 0 to 1.

    Source: Good, "Rational decisions", JRSS B 14(1), 1952.
    """
    is_positive, p = _checked(labels, probabilities, within_01=True)
    if len(p) == 0:
        return float("nan")
    return float(-log_likelihoods(is_positive, p).mean())


def log_likelihoods(
    is_positive: NDArray[np.bool_], probabilities: NDArray[np.float64]
) -> NDArray[np.float64]:
    """log p of each positive row, log(1 - p) of each negative one, clipped as in `log_loss`."""
    tiny = np.finfo(np.float64).eps
    p = np.clip(probabilities, tiny, 1 - tiny)
    return np.where(is_positive, np.log(p), np.log1p(-p))


def calibration_error(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """sum over 15 bins of equal width of (rows in it / rows) * |share of positives - mean p|, 0 to
    1; NaN without rows.

    Bin b holds b / 15 < p <= (b + 1) / 15, the first also p = 0.

    Raises:
        ValueError: as `log_loss`.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017, section 2 (ECE).
    """
    table = calibration_bins(labels, probabilities)
    if len(table) == 0:
        return float("nan")
    gaps = (table["positives"] - table["probability"]).abs()
    return float((gaps * table["rows"]).sum() / table["rows"].sum())


def calibration_bins(labels: ArrayLike, probabilities: ArrayLike) -> pd.DataFrame:
    """The bins of `calibration_error` that have rows: bin, rows, probability (their mean),
    positives (their share).

    Raises:
        ValueError: as `log_loss`.
    """
    is_positive, p = _checked(labels, probabilities, within_01=True)
    bins = np.searchsorted(np.arange(1, BINS) / BINS, p)
    rows = pd.DataFrame({"bin": bins, "probability": p, "positives": is_positive.astype(float)})
    groups = rows.groupby("bin", sort=True)
    return groups.agg(
        rows=("probability", "size"),
        probability=("probability", "mean"),
        positives=("positives", "mean"),
    ).reset_index()


def _checked(
    labels: ArrayLike, scores: ArrayLike, within_01: bool = False
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    y, values = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    if y.ndim != 1 or y.shape != values.shape:
        raise ValueError(
            f"labels and scores must be of one length, got shapes {y.shape} and {values.shape}"
        )
    for name, array, wrong, wanted in (
        ("label", y, ~np.isin(y, (0, 1)), "0 or 1"),
        ("score", values, np.isnan(values), "a number"),
        ("probability", values, within_01 & ~((values >= 0) & (values <= 1)), "within 0 to 1"),
    ):
        if wrong.any():
            position = int(np.flatnonzero(wrong)[0])
            raise ValueError(f"a {name} must be {wanted}, got {array[position]} in row {position}")
    return y == 1, values
