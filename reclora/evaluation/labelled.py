"""Labelled logs: what was shown, and whether it was taken. Scores are held against the labels.

The rows come from a log that says 0 as well as 1; the lists of `recommend` have no part in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from reclora.evaluation.lists import ScorerOf
from reclora.evaluation.plain import ForeignError, PlainTable
from reclora.interactions import IdMap, LogContract
from reclora.metrics import auc, calibration_error, log_loss
from reclora.metrics.labels import log_likelihoods
from reclora.ranking import PairScorer

_PAIRS_AT_ONCE = 2**16


@dataclass(frozen=True)
class LabelledRows:
    """n shown items."""

    segments: NDArray[np.str_]
    user_rows: NDArray[np.int64]
    item_rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    """0 or 1."""


def read_labelled(
    files: Sequence[Path], users: IdMap, items: IdMap, contract: LogContract
) -> tuple[LabelledRows, int, int | None]:
    """Read labelled rows: user_id, item_id, label, and perhaps segment and timestamp.

    Args:
        users, items: the id maps of the models; rows that they do not know are dropped.
        contract: of it `min_label`: labels from it on are 1, those below 0 (None: labels are 0 and
            1 already); and `time_unit` of integer timestamps.

    Returns:
        The rows, how many were dropped, and the earliest timestamp of those kept: microseconds, or
        None where a file has no times.

    Raises:
        ForeignError: a column is missing or of another kind, a value is null, a label is neither 0
            nor 1, integer timestamps have no unit, or no row is left.
        OSError: a file cannot be read.
    """
    parts, dropped, times = [], 0, []
    for path in files:
        table = PlainTable.read(path, ("user_id", "item_id", "label"), ("timestamp",))
        labels = table.numbers("label").astype(np.float64)
        if contract.min_label is not None:
            labels = (labels >= contract.min_label).astype(np.float64)
        wrong = np.flatnonzero(~np.isin(labels, (0, 1)))
        if wrong.size:
            raise table.error(
                "label",
                f"{labels[wrong[0]]:g} is neither 0 nor 1; set log.contract.min_label",
                int(wrong[0]),
            )
        user_rows, item_rows = table.rows("user_id", users), table.rows("item_id", items)
        known = (user_rows >= 0) & (item_rows >= 0)
        dropped += int((~known).sum())
        names = table.segments
        segments = np.array(names, dtype=np.str_)[table.codes(names)]
        parts.append((segments[known], user_rows[known], item_rows[known], labels[known]))
        if table.has_integer_times and contract.time_unit is None:
            raise ForeignError(f"{path}: timestamps are integers; set log.contract.time_unit")
        moments = table.timestamps(contract.time_unit)
        times.append(None if moments is None else moments[known])
    segments, user_rows, item_rows, labels = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    if not len(labels):
        raise ForeignError(f"{files[0]}: the models know no user with an item of a labelled row")
    rows = LabelledRows(segments, user_rows, item_rows, labels.astype(np.int64))
    known_times = [moments for moments in times if moments is not None]
    first = int(np.concatenate(known_times).min()) if len(known_times) == len(times) else None
    return rows, dropped, first


def probabilities(rows: LabelledRows, scorer_of: ScorerOf) -> NDArray[np.float64]:
    """The logistic function of a model's score of each row: 1 / (1 + exp(-score)).

    A model that was trained to rank is under no duty to be calibrated: its AUC says whether it
    orders, its calibration error how far its numbers are from chances.

    Args:
        scorer_of: segment name -> scorer that scores pairs.

    Raises:
        TypeError: a scorer scores no pairs.
        ValueError: a score is NaN; names segment, user row and item row.
    """
    found = np.empty(len(rows.labels))
    for name in np.unique(rows.segments):
        scorer = scorer_of(str(name))
        if not isinstance(scorer, PairScorer):
            raise TypeError(
                f"segment {str(name)!r}: {type(scorer).__name__} scores whole catalogues only; "
                "labelled rows need pair_scores"
            )
        for part in np.array_split(
            own := np.flatnonzero(rows.segments == name), max(1, len(own) // _PAIRS_AT_ONCE)
        ):
            users, items = (
                torch.from_numpy(each[part]) for each in (rows.user_rows, rows.item_rows)
            )
            scores = scorer.pair_scores(users, items.unsqueeze(1)).squeeze(1)
            _check(scores, str(name), users, items)
            found[part] = torch.sigmoid(scores.double()).numpy()
    return found


def measure_labels(
    rows: LabelledRows, probabilities: NDArray[np.float64], *, model: str, run: str, seed: int
) -> pd.DataFrame:
    """AUC, log loss and calibration error of a model's probabilities, in all and in each segment.

    Returns:
        run, model, scope, segment, seed, rows, positives, metric, value. AUC is NaN where all
        labels are the same.

    Raises:
        ValueError: lengths differ, or a probability is not within 0 to 1.
    """
    metrics: dict[str, Callable[..., float]] = {
        "auc": auc,
        "log_loss": log_loss,
        "calibration_error": calibration_error,
    }
    groups = [("all", "", np.ones(len(rows.labels), bool))]
    groups += [("segment", str(s), rows.segments == s) for s in np.unique(rows.segments)]
    table = [
        (
            run,
            model,
            scope,
            segment,
            seed,
            int(own.sum()),
            int(rows.labels[own].sum()),
            name,
            metric(rows.labels[own], probabilities[own]),
        )
        for scope, segment, own in groups
        for name, metric in metrics.items()
    ]
    columns = ["run", "model", "scope", "segment", "seed", "rows", "positives", "metric", "value"]
    return pd.DataFrame(table, columns=columns)


def user_log_likelihoods(
    rows: LabelledRows,
    probabilities: NDArray[np.float64],
    users: IdMap,
    *,
    model: str,
    run: str,
    seed: int,
) -> pd.DataFrame:
    """The mean over each user's rows of log p of what came about: -log loss, user by user.

    Returns:
        Rows of a results table, with the metric "log_likelihood" at k = 0, so that `compare` can
        say which of two models is better calibrated to whom.
    """
    values = log_likelihoods(rows.labels == 1, probabilities)
    frame = pd.DataFrame({"segment": rows.segments, "user": rows.user_rows, "value": values})
    means = frame.groupby(["segment", "user"], sort=True)["value"].mean().reset_index()
    return pd.DataFrame(
        {
            "run": run,
            "model": model,
            "segment": means["segment"].astype(str),
            "seed": seed,
            "user_id": users.ids_of(means["user"].to_numpy()).to_pandas(),
            "metric": "log_likelihood",
            "k": 0,
            "value": means["value"],
        }
    )


def _check(scores: Tensor, segment: str, users: Tensor, items: Tensor) -> None:
    bad = scores.isnan().nonzero()
    if len(bad):
        row = int(bad[0])
        raise ValueError(
            f"segment {segment!r}: the score of user row {int(users[row])} and item row "
            f"{int(items[row])} is NaN; look for NaN in the model's tensors"
        )
