"""What is measured of every model, alike: relevance, slices, what its lists are like, labels.

Models come one after the other, seed by seed; then the tables are compared and written.

| file | a row is |
|---|---|
| results.parquet | the value of a metric for a user |
| comparison.parquet | the difference of two models, in all or in a segment |
| slices.parquet | the same in a slice of the test rows, on the headline metric |
| lists.parquet | what a model's lists are like: novelty, popularity, coverage, ... |
| conventions.parquet | what other systems would report of a model's lists |
| labels.parquet | how a model's scores fit labels, where there are some |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from reclora.comparison import compare, means
from reclora.evaluation import (
    HeldOut,
    LabelledRows,
    Lists,
    Slice,
    headline_of,
    measure,
    measure_catalogue,
    measure_labels,
    measure_lists,
    measure_slice,
    measure_stages,
    probabilities,
    recommend,
    user_log_likelihoods,
)
from reclora.files import write_parquet
from reclora.interactions import IdMap
from reclora.metrics import CONVENTIONS
from reclora.ranking import PairScorer, Scorer


@dataclass(frozen=True)
class Yardstick:
    """What models are held against, the same for all of them."""

    run: str
    held_out: HeldOut
    slices: dict[str, Slice]
    users: IdMap
    features_NF: NDArray[np.float32] | None = None
    """Of items: with them lists have a diversity."""
    current: Lists | None = None
    """The lists of the current release: with them lists have an overlap with it."""
    labelled: LabelledRows | None = None
    labelled_unknown: int = 0
    """Labelled rows that were dropped: the base does not know the user or the item."""


@dataclass(frozen=True)
class ModelTables:
    """The tables of one model and seed."""

    model: str
    results: pd.DataFrame
    lists: pd.DataFrame
    catalogue: pd.DataFrame
    conventions: pd.DataFrame
    slices: dict[str, pd.DataFrame]
    labels: pd.DataFrame


@dataclass
class Assessment:
    """The tables of all models and seeds."""

    yardstick: Yardstick
    processes: int = 1
    """That rank at once."""
    parts: list[ModelTables] = field(default_factory=list)
    _results: pd.DataFrame | None = None
    """Those of the parts that were joined already: millions of rows are held once."""

    def rank(self, model: str, scorer_of: Callable[[str], Scorer], seed: int = 0) -> Lists:
        """Rank with a model, and measure; the lists are returned.

        Raises:
            ValueError: a scorer has another catalogue, or a score is NaN or +inf; it names the
                segment.
        """
        stages = recommend(
            self.yardstick.held_out, scorer_of, model=model, processes=self.processes
        )
        self.parts.append(_measured(self.yardstick, stages, scorer_of, model, seed))
        return stages[""]

    def take(self, model: str, lists: Lists) -> None:
        """Measure lists that some other system made."""
        self.parts.append(_measured(self.yardstick, {"": lists}, None, model, 0))

    @property
    def models(self) -> list[str]:
        """The models, in the order in which they came."""
        return list(dict.fromkeys(part.model for part in self.parts))

    @property
    def results(self) -> pd.DataFrame:
        """The long results table: run, model, segment, seed, user_id, metric, k, value."""
        fresh = [part.results for part in self.parts if len(part.results)]
        if self._results is None or fresh:
            before = [] if self._results is None else [self._results]
            joined = [*before, *fresh] or [part.results for part in self.parts]
            self._results = pd.concat(joined, ignore_index=True)
            self.parts = [replace(part, results=pd.DataFrame()) for part in self.parts]
        return self._results

    def tables(self, pairs: Sequence[tuple[str, str]], sliced: Sequence[tuple[str, str]]) -> Tables:
        """All that was measured, compared.

        Args:
            pairs: (model, baseline) to compare in all segments and in each.
            sliced: those to compare in the slices.
        """
        results = self.results
        return Tables(
            results=results,
            means=means(results),
            comparison=compare_all(results, pairs),
            slices=self._slices(sliced),
            lists=self._lists(),
            conventions=self._conventions(),
            labels=pd.concat([part.labels for part in self.parts], ignore_index=True),
        )

    def _lists(self) -> pd.DataFrame:
        rows = pd.concat([part.lists for part in self.parts], ignore_index=True)
        own = [means(rows, segment_intervals=False)] if len(rows) else []
        catalogue = pd.concat([part.catalogue for part in self.parts], ignore_index=True)
        keys = ["scope", "segment", "model", "metric", "k"]
        values = catalogue.groupby(keys, sort=False)["value"].mean()
        return pd.concat([*own, values.rename("mean").reset_index()], ignore_index=True)

    def _conventions(self) -> pd.DataFrame:
        table = pd.concat([part.conventions for part in self.parts], ignore_index=True)
        keys = ["model", "convention", "metric", "k"]
        return table.groupby(keys, sort=False)["value"].mean().reset_index()

    def _slices(self, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
        headline = headline_of(self.yardstick.held_out).config
        tables = []
        for name in self.yardstick.slices:
            rows = pd.concat([part.slices[name] for part in self.parts], ignore_index=True)
            for model, baseline in pairs:
                table = compare(rows, model, baseline, metric=headline.metrics[0], k=headline.ks[0])
                each = table[table["scope"] == "segment"]
                tables.append(each.rename(columns={"segment": "value"}).drop(columns="scope"))
                tables[-1].insert(0, "slice", name)
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


@dataclass(frozen=True)
class Tables:
    """All that was measured, compared; a table without rows where there was nothing to."""

    results: pd.DataFrame
    """The long results table: run, model, segment, seed, user_id, metric, k, value."""
    means: pd.DataFrame
    """Of the results; see `reclora.comparison.means`."""
    comparison: pd.DataFrame
    """See `compare_all`."""
    slices: pd.DataFrame
    """slice, value, and the columns of `compare`, on the headline metric; q is corrected for the
    values of a slice."""
    lists: pd.DataFrame
    """What lists are like: scope, segment, model, metric, k, users, mean, low, high. Of segments
    there are no intervals. Coverage and gini are of all lists together: they have no users and no
    interval, and are averaged over seeds."""
    conventions: pd.DataFrame
    """model, convention, metric, k, value: means over seeds, all segments together."""
    labels: pd.DataFrame
    """run, model, scope, segment, seed, rows, positives, metric, value."""

    def of_run(self) -> dict[str, pd.DataFrame]:
        """By name, those that a run's folder keeps beside its results."""
        names = ("comparison", "slices", "lists", "conventions", "labels")
        return {name: getattr(self, name) for name in names}

    def write(self, folder: Path) -> None:
        """Write the tables that have rows, all but results and their means, into a folder.

        Raises:
            OSError: a file cannot be written.
        """
        for name, table in self.of_run().items():
            if len(table):
                write_table(folder / f"{name}.parquet", table)


def compare_all(results: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Every (model, baseline) on every metric and k that both have; see `compare`."""
    measures = results[["metric", "k"]].drop_duplicates().itertuples(index=False, name=None)
    tables = []
    for metric, k in measures:
        rows = results[(results["metric"] == metric) & (results["k"] == k)]
        have = set(rows["model"])
        tables += [
            compare(rows, model, baseline, metric=str(metric), k=int(k))
            for model, baseline in pairs
            if {model, baseline} <= have
        ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet, whole or not at all."""
    write_parquet(path, pa.Table.from_pandas(table, preserve_index=False))


def _measured(
    yardstick: Yardstick,
    stages: dict[str, Lists],
    scorer_of: Callable[[str], Scorer] | None,
    model: str,
    seed: int,
) -> ModelTables:
    """Everything of one model and seed; `scorer_of` scores labelled rows."""
    held_out, shown, run = yardstick.held_out, stages[""], yardstick.run
    results = measure_stages(held_out, stages, model=model, run=run, seed=seed)
    labels = pd.DataFrame()
    rows = yardstick.labelled
    if rows is not None and scorer_of is not None and _scores_pairs(rows, scorer_of):
        p = probabilities(rows, scorer_of)
        labels = measure_labels(rows, p, model=model, run=run, seed=seed)
        fit = user_log_likelihoods(rows, p, yardstick.users, model=model, run=run, seed=seed)
        results = pd.concat([results, fit], ignore_index=True)
    return ModelTables(
        model=model,
        results=results,
        lists=measure_lists(
            held_out,
            shown,
            model=model,
            run=run,
            seed=seed,
            features_NF=yardstick.features_NF,
            others=yardstick.current,
        ),
        catalogue=measure_catalogue(held_out, shown, model=model, run=run, seed=seed),
        conventions=_conventions(held_out, shown, model),
        slices={
            name: measure_slice(
                parts,
                lambda part: measure(headline_of(part), shown, model=model, run=run, seed=seed),
            )
            for name, parts in yardstick.slices.items()
        },
        labels=labels,
    )


def _scores_pairs(rows: LabelledRows, scorer_of: Callable[[str], Scorer]) -> bool:
    """Whether a model says anything of a pair; popularity orders, and gives no chances."""
    return isinstance(scorer_of(str(rows.segments[0])), PairScorer)


def _conventions(held_out: HeldOut, lists: Lists, model: str) -> pd.DataFrame:
    """What every convention reports of the lists, at every k."""
    segments = [s for s in held_out.segments if s.num_users]
    longest = max(held_out.config.ks)
    shown = [lists.of(segment, longest) for segment in segments]
    hits_UK = np.concatenate([s.hits(rows) for s, rows in zip(segments, shown, strict=True)])
    has_list_U = np.concatenate([(rows[:, 0] >= 0).numpy() for rows in shown])
    num_relevant_U = np.concatenate([s.relevant.sizes_U.numpy() for s in segments])
    rows = [
        (model, name, metric, k, value)
        for name, convention in CONVENTIONS.items()
        for k in held_out.config.ks
        for metric, value in convention.of(hits_UK, num_relevant_U, has_list_U, k).items()
    ]
    return pd.DataFrame(rows, columns=["model", "convention", "metric", "k", "value"])
