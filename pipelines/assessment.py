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

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
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
    user_log_likelihoods,
)
from reclora.files import write_parquet, write_parquet_parts
from reclora.interactions import IdMap
from reclora.metrics import CONVENTIONS
from reclora.ranking import PairScorer, Scorer

from .kept import Kept, What

TABLES = RESULTS, LISTS, CATALOGUE, CONVENTIONS_OF, LABELS = (
    "results",
    "lists",
    "catalogue",
    "conventions",
    "labels",
)
"""The tables that are kept of a model and seed, beside those of its slices."""


@dataclass(frozen=True)
class Yardstick:
    """What models are held against, the same for all of them."""

    run: str
    held_out: HeldOut
    users: IdMap
    slices: Mapping[str, Slice] = field(default_factory=dict)
    features_NF: NDArray[np.float32] | None = None
    """Of items: with them lists have a diversity."""
    current: Lists | None = None
    """The lists of the current release: with them lists have an overlap with it."""
    labelled: LabelledRows | None = None
    labelled_unknown: int = 0
    """Labelled rows that were dropped: the base does not know the user or the item."""


Measure = tuple[str, str, int]
"""Model, metric and k; a stage of a model is a model of its own here."""
Job = tuple[What, Callable[[], pd.DataFrame]]


@dataclass(frozen=True)
class Part:
    """What was measured of one model and seed; its tables are kept by name."""

    model: str
    what: What
    measures: tuple[Measure, ...]
    """Those of its results."""


@dataclass
class Assessment:
    """The tables of all models and seeds.

    They have millions of rows where there are millions of users, so they are kept on the disk, and
    no more is read at once than one comparison needs.
    """

    yardstick: Yardstick
    kept: Kept
    parts: list[Part] = field(default_factory=list)

    def rank(
        self,
        model: str,
        scorer_of: Callable[[str], Scorer],
        seed: int = 0,
        of: str = "",
        progress: Callable[[int, int], None] | None = None,
    ) -> Lists:
        """Rank with a model, and measure; the lists are returned.

        Args:
            of: what decides the lists beside the model's name and the seed.
            progress: called with (users done, users in all).

        Raises:
            ValueError: a scorer has another catalogue, or a score is NaN or +inf; it names the
                segment.
            OSError: lists or tables cannot be kept.
        """
        stages = self.kept.recommend(
            self.yardstick.held_out,
            scorer_of,
            *("test", model, seed, of),
            model=model,
            progress=progress,
        )
        self._measure(model, seed, of, stages, scorer_of)
        return stages[""]

    def take(self, model: str, lists: Lists, of: str = "") -> None:
        """Measure lists that were not ranked here; for `of` and OSError see `rank`."""
        self._measure(model, 0, of, {"": lists}, None)

    def _measure(
        self,
        model: str,
        seed: int,
        of: str,
        stages: dict[str, Lists],
        scorer_of: Callable[[str], Scorer] | None,
    ) -> None:
        what = ("measured", model, seed, of)
        names = (*TABLES, *map(_slice, self.yardstick.slices))
        tables = {name: self.kept.read(*what, name) for name in names}
        if any(table is None for table in tables.values()):
            made = _measured(self.yardstick, stages, scorer_of, model, seed)
            for name, table in made.items():
                self.kept.write(table, *what, name)
            tables = dict(made)
        results = tables[RESULTS]
        assert results is not None
        measures = results[["model", "metric", "k"]].drop_duplicates()
        found = tuple(
            (str(m), str(name), int(k)) for m, name, k in measures.itertuples(index=False)
        )
        self.parts.append(Part(model, what, found))

    @property
    def models(self) -> list[str]:
        """The models, in the order in which they came."""
        return list(dict.fromkeys(part.model for part in self.parts))

    def mean_of(self, model: str, metric: str, k: int) -> float:
        """The mean over users of a model's first seed."""
        first = next(part for part in self.parts if part.model == model)
        return float(self._rows([first], RESULTS, metric, k, model)["value"].mean())

    def write_results(self, path: Path) -> None:
        """Write the long results table: run, model, segment, seed, user_id, metric, k, value.

        Raises:
            OSError: it cannot be written.
        """
        names = pa.dictionary(pa.int32(), pa.string())
        columns = dict.fromkeys(("run", "model", "segment", "metric"), names)

        def tables() -> Iterator[pa.Table]:
            for part in self.parts:
                rows = pa.Table.from_pandas(self._read(part, RESULTS), preserve_index=False)
                kinds = [columns.get(f.name, f.type) for f in rows.schema]
                yield rows.cast(pa.schema(zip(rows.schema.names, kinds, strict=True)))

        write_parquet_parts(path, tables())

    def tables(self, pairs: Sequence[tuple[str, str]], sliced: Sequence[tuple[str, str]]) -> Tables:
        """All that was measured, compared.

        Args:
            pairs: (model, baseline) to compare in all segments and in each.
            sliced: those to compare in the slices.

        Raises:
            OSError: a table cannot be kept.
        """
        measures = list(dict.fromkeys(m for part in self.parts for m in part.measures))
        slices = self._compared_in_slices(sliced)
        jobs = self._compared(measures, pairs), slices, self._averaged(measures), self._listed()
        made = iter(self.kept.tables([job for each in jobs for job in each]))
        compared, in_slices, averaged, listed = ([next(made) for _ in each] for each in jobs)
        return Tables(
            means=_all_first(averaged),
            comparison=_joined(compared),
            slices=_joined(in_slices),
            lists=_joined([_all_first(listed), self._spread()]),
            conventions=self._conventions(),
            labels=_joined([self._read(part, LABELS) for part in self.parts]),
        )

    def _compared(self, measures: Sequence[Measure], pairs: Sequence[tuple[str, str]]) -> list[Job]:
        """Every (model, baseline) on every metric and k that both have."""
        return [
            (
                ("compared", model, baseline, *self._of(model, baseline), metric, k),
                partial(self._compare, RESULTS, model, baseline, metric, k),
            )
            for metric, k in dict.fromkeys((metric, k) for _, metric, k in measures)
            for model, baseline in pairs
            if (model, metric, k) in measures and (baseline, metric, k) in measures
        ]

    def _compared_in_slices(self, pairs: Sequence[tuple[str, str]]) -> list[Job]:
        """Every (model, baseline) in every slice, on the headline metric."""
        config = headline_of(self.yardstick.held_out).config
        headline = config.metrics[0], config.ks[0]

        def compared(name: str, model: str, baseline: str) -> pd.DataFrame:
            table = self._compare(_slice(name), model, baseline, *headline)
            each = table[table["scope"] == "segment"]
            each = each.rename(columns={"segment": "value"}).drop(columns="scope")
            each.insert(0, "slice", name)
            return each

        return [
            (
                ("compared in a slice", name, model, baseline, *self._of(model, baseline)),
                partial(compared, name, model, baseline),
            )
            for name in self.yardstick.slices
            for model, baseline in pairs
        ]

    def _averaged(self, measures: Sequence[Measure]) -> list[Job]:
        """The means of the results of every model, metric and k."""

        def averaged(parts: Sequence[Part], measure: Measure) -> pd.DataFrame:
            model, metric, k = measure
            return means(self._rows(parts, RESULTS, metric, k, model))

        jobs = list[Job]()
        for each in measures:
            parts = [part for part in self.parts if each in part.measures]
            what = ("means", *(part.what for part in parts), *each)
            jobs.append((what, partial(averaged, parts, each)))
        return jobs

    def _listed(self) -> list[Job]:
        """The means over all segments and in each of what the lists of every model are like."""

        def listed(model: str) -> pd.DataFrame:
            parts = [part for part in self.parts if part.model == model]
            rows = _joined([self._read(part, LISTS) for part in parts])
            return means(rows, segment_intervals=False) if len(rows) else pd.DataFrame()

        return [(("lists", *self._of(model)), partial(listed, model)) for model in self.models]

    def _spread(self) -> pd.DataFrame:
        """What the lists of every model are like together."""
        catalogue = _joined([self._read(part, CATALOGUE) for part in self.parts])
        keys = ["scope", "segment", "model", "metric", "k"]
        values = catalogue.groupby(keys, sort=False)["value"].mean()
        return values.rename("mean").reset_index()

    def _conventions(self) -> pd.DataFrame:
        table = _joined([self._read(part, CONVENTIONS_OF) for part in self.parts])
        keys = ["model", "convention", "metric", "k"]
        return table.groupby(keys, sort=False)["value"].mean().reset_index()

    def _compare(self, name: str, model: str, baseline: str, metric: str, k: int) -> pd.DataFrame:
        parts = [part for part in self.parts if part.model in (model, baseline)]
        return compare(self._rows(parts, name, metric, k), model, baseline, metric=metric, k=k)

    def _rows(
        self, parts: Sequence[Part], name: str, metric: str, k: int, model: str = ""
    ) -> pd.DataFrame:
        """The rows of one metric and k, of all models of the parts or of one."""
        tables = []
        for part in parts:
            table = self._read(part, name)
            chosen = (table["metric"] == metric) & (table["k"] == k)
            tables.append(table[chosen & (table["model"] == model) if model else chosen])
        return _joined(tables)

    def _read(self, part: Part, name: str) -> pd.DataFrame:
        table = self.kept.read(*part.what, name)
        if table is None:
            raise OSError(
                f"{self.kept.folder}: what was measured of {part.model!r} was there and is gone; "
                "run the same command again"
            )
        return table

    def _of(self, *models: str) -> list[What]:
        """What decides the numbers of some models."""
        return [part.what for part in self.parts if part.model in models]


@dataclass(frozen=True)
class Tables:
    """All that was measured, compared; a table without rows where there was nothing to."""

    means: pd.DataFrame
    """Of the results; see `reclora.comparison.means`."""
    comparison: pd.DataFrame
    """Of every pair on every metric and k that both have; see `reclora.comparison.compare`."""
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


def _joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    filled = [table for table in tables if len(table)] or list(tables[:1])
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame()


def _all_first(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables of `means` as one: first the rows over all segments."""
    table = _joined(tables)
    if table.empty:
        return table
    is_all = table["scope"] == "all"
    return pd.concat([table[is_all], table[~is_all]], ignore_index=True)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet, whole or not at all."""
    write_parquet(path, pa.Table.from_pandas(table, preserve_index=False))


def _measured(
    yardstick: Yardstick,
    stages: dict[str, Lists],
    scorer_of: Callable[[str], Scorer] | None,
    model: str,
    seed: int,
) -> dict[str, pd.DataFrame]:
    """Everything of one model and seed, by name; `scorer_of` scores labelled rows."""
    held_out, shown, run = yardstick.held_out, stages[""], yardstick.run
    results = measure_stages(held_out, stages, model=model, run=run, seed=seed)
    labels = pd.DataFrame()
    rows = yardstick.labelled
    if rows is not None and scorer_of is not None and _scores_pairs(rows, scorer_of):
        p = probabilities(rows, scorer_of)
        labels = measure_labels(rows, p, model=model, run=run, seed=seed)
        fit = user_log_likelihoods(rows, p, yardstick.users, model=model, run=run, seed=seed)
        results = pd.concat([results, fit], ignore_index=True)
    return {
        RESULTS: results,
        LISTS: measure_lists(
            held_out,
            shown,
            model=model,
            run=run,
            seed=seed,
            features_NF=yardstick.features_NF,
            others=yardstick.current,
        ),
        CATALOGUE: measure_catalogue(held_out, shown, model=model, run=run, seed=seed),
        CONVENTIONS_OF: _conventions(held_out, shown, model),
        LABELS: labels,
    } | {
        _slice(name): measure_slice(
            parts,
            lambda part: measure(headline_of(part), shown, model=model, run=run, seed=seed),
        )
        for name, parts in yardstick.slices.items()
    }


def _slice(name: str) -> str:
    """What the table of a slice is called."""
    return f"slice {name}"


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
