"""The results table: one row per user and metric, for each model and seed.

hold_out  ->  evaluate, once per model and seed  ->  pd.concat  ->  means, compare (comparison)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from reclora.evaluation.held_out import HeldOut, HeldOutSegment
from reclora.evaluation.lists import Lists, Progress, ScorerOf, recommend
from reclora.metrics import METRICS

Measure = tuple[str, int]
"""A metric's name and k."""


def evaluate(
    heldout: HeldOut,
    scorer_of: ScorerOf,
    *,
    model: str,
    run: str,
    seed: int,
    progress: Progress | None = None,
    processes: int = 1,
) -> pd.DataFrame:
    """Rank for every user with something relevant, and measure each list.

    Args:
        heldout: from `hold_out`; its config says what is measured.
        scorer_of: segment name -> scorer; called for each segment that has users.
        model, run, seed: written into every row.
        progress: called with (users done, users in all) after each piece of them.
        processes: that rank at once.

    Returns:
        run, model, segment, seed, user_id, metric, k, value: one row per segment, metric, k, user.
        Where the config says `retrieve`, what was retrieved is measured too, as the model
        "MODEL, retrieved".

    Raises:
        ValueError: a scorer has another catalogue, or a score is NaN or +inf; it names the segment.
    """
    lists = recommend(heldout, scorer_of, model=model, progress=progress, processes=processes)
    return measure_stages(heldout, lists, model=model, run=run, seed=seed)


def measure_stages(
    held_out: HeldOut, stages: dict[str, Lists], *, model: str, run: str, seed: int
) -> pd.DataFrame:
    """The results of the lists of every stage, those of earlier stages also at their own length;
    see `measure`.
    """
    tables = [measure(held_out, stages[""], model=model, run=run, seed=seed)]
    for stage, lists in stages.items():
        if stage:
            config = held_out.config
            longer = replace(config, ks=tuple(dict.fromkeys((*config.ks, config.retrieve))))
            own = replace(held_out, config=longer)
            tables.append(measure(own, lists, model=stage_name(model, stage), run=run, seed=seed))
    return tables[0] if len(tables) == 1 else pd.concat(tables, ignore_index=True)


def stage_name(model: str, stage: str) -> str:
    """What a model's stage is called in the results: the last one by the model's own name."""
    return f"{model}, {stage}" if stage else model


def measure(held_out: HeldOut, lists: Lists, *, model: str, run: str, seed: int) -> pd.DataFrame:
    """Hold lists against what is relevant; a user without a list found nothing.

    Returns:
        run, model, segment, seed, user_id, metric, k, value: one row per segment, metric, k, user.
    """
    config = held_out.config
    values = [_measure(segment, lists, config.metrics, config.ks) for segment in held_out.segments]
    measures = [(metric, k) for metric in config.metrics for k in config.ks]
    return results_table(held_out, measures, values, model=model, run=run, seed=seed)


def _measure(
    segment: HeldOutSegment, lists: Lists, metrics: Sequence[str], ks: Sequence[int]
) -> list[NDArray[np.float64]]:
    """The values of the segment's users, for each metric for each k."""
    if segment.num_users == 0:
        return [np.empty(0)] * (len(metrics) * len(ks))
    hits_UK = segment.hits(lists.of(segment, max(ks)))
    num_relevant_U = segment.relevant.sizes_U.numpy()
    return [METRICS[metric](hits_UK, num_relevant_U, k) for metric in metrics for k in ks]


def results_table(
    held_out: HeldOut,
    measures: Sequence[Measure],
    values: Sequence[Sequence[NDArray[np.float64]]],
    *,
    model: str,
    run: str,
    seed: int,
) -> pd.DataFrame:
    """The long table of the values of every segment, each with those of every measure."""
    names = [s.name for s in held_out.segments]
    blocks = pd.DataFrame(
        [(run, model, name, seed, metric, k) for name in names for metric, k in measures],
        columns=["run", "model", "segment", "seed", "metric", "k"],
    ).astype(
        {
            "run": "category",
            "model": "category",
            "segment": pd.CategoricalDtype(names),
            "metric": pd.CategoricalDtype(list(dict.fromkeys(metric for metric, _ in measures))),
        }
    )
    sizes = [s.num_users for s in held_out.segments for _ in measures]
    table = blocks.loc[blocks.index.repeat(sizes)].reset_index(drop=True)
    kind = held_out.segments[0].user_ids.type if held_out.segments else pa.string()
    ids = pa.chunked_array([s.user_ids for s in held_out.segments for _ in measures], kind)
    table.insert(4, "user_id", ids.to_pandas())
    table["value"] = np.concatenate([np.empty(0), *(v for each in values for v in each)])
    return table
