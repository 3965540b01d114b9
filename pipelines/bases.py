"""A study of bases: which loss makes the best plain two-table base of a log that is cut already.

For a log in two parts, train and test, without times or segments. Each model's settings and epochs
are chosen on some of its users' training rows; then it is trained anew on all of them, and looked
at on test once, when every choice is made. What was tried and trained stays, so that a study that
was killed goes on where it was.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from reclora.base import BaseModel, read_provenance
from reclora.comparison import compare, means
from reclora.counted import mix, segment_seed
from reclora.evaluation import evaluate, headline_of
from reclora.files import make_folder, read_parquet, write_text
from reclora.interactions import Interactions, LogContract, LogError, prepare_log
from reclora.popularity import popularity
from reclora.splits import LeakageError

from .assessment import write_table
from .bases_chosen import Bench, Trained, evaluated, judgements
from .bases_settings import POPULARITY, StudySettings
from .figures import FIGURES, Effort, figures_of, read_figures, write_figures
from .held_out import hold_out_some
from .prepare import describe
from .progress import step
from .run import digest, git_commit, versions
from .settings import resolved

NOT_DECIDING = ("train", "test", "folder", "runs", "repeat")
"""Settings that change no number; of the two logs their contents do."""

GIVE_MORE = "give a train log of users with two rows or more, and a test log with rows of theirs"


@dataclass(frozen=True)
class Studied:
    """A finished study.

    Attributes:
        folder: its results.parquet (a row per model, seed, test user, metric and k),
            comparison.parquet (the model that validation likes best against each other),
            validation.parquet (what each tried setting was worth after so many epochs),
            figures.json, and run.json.
        table: every model's figures, for the terminal.
        was_there: it was complete already.
    """

    folder: Path
    table: Table
    was_there: bool


@dataclass(frozen=True)
class _Log:
    """All that is trained on, what is reported on, and the sha256s of the two files."""

    train: Interactions
    test: Interactions
    inputs: dict[str, str]


def study_bases(settings: StudySettings) -> Studied:
    """Choose, train and compare the models of a study; one that is complete is not done again.

    Raises:
        LogError: a log breaks its contract, or none of its rows is left.
        LeakageError: a pair is in both logs.
        ValueError: nobody has anything new on validation or on test.
        FactorisationError: the numbers of a model are not finite.
        OSError: a log is not there, or something cannot be written.
    """
    torch.set_num_threads(settings.threads)
    log = _read(settings)
    decides, commit = resolved(settings) | dict.fromkeys(NOT_DECIDING, ""), git_commit()
    study = f"{settings.name}-{digest(decides, log.inputs, versions(), commit)}"
    folder = settings.runs / study
    if (folder / "run.json").exists():
        return Studied(folder, _table(folder), was_there=True)
    make_folder(folder)
    earlier, later = hold_back(log.train, settings.validation)
    held_out = hold_out_some(
        "the validation rows", later, earlier, settings.evaluation, advice=GIVE_MORE
    )
    chooser = headline_of(held_out)
    bench = Bench(settings, log.train, log.inputs["train"], earlier, chooser, commit)
    trained = {name: bench.trained(name, model) for name, model in settings.models.items()}
    write_table(folder / "validation.parquet", judgements(trained))
    results, efforts = _on_test(trained, log, settings, study)
    write_table(folder / "results.parquet", results)
    best = max(trained, key=lambda name: trained[name].chosen.best[1])
    write_table(folder / "comparison.parquet", _comparison(results, best))
    averages = means(results, segment_intervals=False)
    figures = figures_of(settings.name, averages, efforts, settings.repeat)
    write_figures(folder / FIGURES, figures)
    about = {
        "format": 1,
        "id": study,
        "settings": resolved(settings),
        "versions": versions(),
        "commit": commit,
        "inputs": log.inputs,
        "best": best,
        "bases": {name: [str(path) for path in each.bases] for name, each in trained.items()},
    }
    write_text(folder / "run.json", json.dumps(about, indent=2) + "\n")
    return Studied(folder, _table(folder), was_there=False)


def hold_back(log: Interactions, share: float) -> tuple[Interactions, Interactions]:
    """Cut off some of each user's rows, at random: a user of n rows gives

        min(n - 1, max(1, floor(share n + 1/2)))

    so that one of two rows or more gives one at least and keeps one, and one of a single row gives
    none. Which rows they are is counted from their positions in the log: the same log gives the
    same rows.

    Args:
        log: of one segment.
        share: within 0 to 1.

    Returns:
        What is left, and what was cut off.
    """
    stream = np.uint64(segment_seed(0, "hold back"))
    numbers = mix(np.arange(len(log), dtype=np.uint64) + stream)
    order = np.lexsort((numbers, log.user_rows))
    rows_N = np.bincount(log.user_rows, minlength=len(log.users))
    gives_N = np.minimum(rows_N - 1, np.maximum(1, np.floor(share * rows_N + 0.5)))
    place = np.arange(len(log)) - np.repeat(np.cumsum(rows_N) - rows_N, rows_N)
    is_back: NDArray[np.bool_] = np.zeros(len(log), bool)
    is_back[order] = place < np.repeat(gives_N, rows_N)
    return log.select(~is_back), log.select(is_back)


def _read(settings: StudySettings) -> _Log:
    """Lay out the two logs; the test rows are brought onto the ids of the training rows."""
    inputs, logs = {}, []
    for name, path in (("train", settings.train), ("test", settings.test)):
        folder = settings.folder / name
        with step(f"checking and sorting {name}") as progress:
            summary = prepare_log([path], folder, LogContract(), progress=progress)
        print(f"{name}: {describe(summary)}", file=sys.stderr)
        if summary.rows_kept == 0:
            raise LogError(f"{path}: no row is left: {describe(summary)}")
        (inputs[name],) = summary.inputs.values()
        logs.append(Interactions.read(folder).pooled())
    train, test = logs
    test, unknown = test.onto(train.users, train.items)
    if unknown.rows:
        print(
            f"test: {unknown.rows:,} rows left out, of {unknown.users:,} users and "
            f"{unknown.items:,} items that have no training row",
            file=sys.stderr,
        )
    _refuse_shared(settings, train, test)
    return _Log(train, test, inputs)


def _refuse_shared(settings: StudySettings, train: Interactions, test: Interactions) -> None:
    """Refuse pairs that are trained on and reported on."""
    known, new = (log.user_rows * len(train.items) + log.item_rows for log in (train, test))
    shared = np.intersect1d(known, new)
    if shared.size:
        user, item = divmod(int(shared[0]), len(train.items))
        raise LeakageError(
            f"user {train.users.ids_of([user])[0].as_py()!r} has item "
            f"{train.items.ids_of([item])[0].as_py()!r} in {settings.train} and in "
            f"{settings.test}, with {shared.size:,} such pairs in all: test rows must be new to "
            "their users; take these pairs out of one of the two"
        )


def _on_test(
    trained: dict[str, Trained], log: _Log, settings: StudySettings, study: str
) -> tuple[pd.DataFrame, dict[str, Effort]]:
    """The results of every base on test, popularity's too, and what each cost."""
    held_out = hold_out_some(
        "the test log", log.test, log.train, settings.evaluation, advice=GIVE_MORE
    )
    scorer_of = popularity(log.train)
    tables = [evaluate(held_out, scorer_of, model=POPULARITY, run=study, seed=0)]
    efforts = {POPULARITY: Effort(1, len(log.train.items), math.nan)}
    for name, each in trained.items():
        costs = []
        for seed, path in zip(settings.seeds, each.bases, strict=True):
            base = BaseModel.load(path)
            with step(f"ranking on test: {name}, seed {seed}"):
                tables.append(evaluated(base, held_out, name, study, seed))
            costs.append(read_provenance(path)["seconds"])
        efforts[name] = Effort(len(costs), base.num_numbers, float(np.mean(costs)))
    return pd.concat(tables, ignore_index=True), efforts


def _comparison(results: pd.DataFrame, best: str) -> pd.DataFrame:
    """The best model over each other, on every metric."""
    measures = results[["metric", "k"]].drop_duplicates().itertuples(index=False, name=None)
    others = [model for model in results["model"].unique() if model != best]
    tables = [
        compare(results, best, other, metric=metric, k=k)
        for metric, k in measures
        for other in others
    ]
    table = pd.concat(tables, ignore_index=True)
    return table[table["scope"] == "all"].reset_index(drop=True)


def _table(folder: Path) -> Table:
    """Every model's means, best first, and what is between each and the best on validation."""
    figures = read_figures(folder / FIGURES)
    first = figures[0]
    lifts = read_parquet(folder / "comparison.parquet").to_pandas()
    lifts = lifts[(lifts["metric"] == first.metric) & (lifts["k"] == first.k)].set_index("baseline")
    best = str(lifts["model"].iloc[0])
    measures = [f"{metric}@{k}" for metric, k in dict.fromkeys((f.metric, f.k) for f in figures)]
    title = (
        f"{first.log}: {first.users:,} test users; differences are of {best}, validation's choice"
    )
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD)
    table.add_column("model")
    for column in (*measures, f"95 % of {measures[0]}", "CPU-s", "difference"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    models = dict.fromkeys(figure.model for figure in figures)
    own = {model: [f for f in figures if f.model == model] for model in models}
    for model in sorted(models, key=lambda model: -own[model][0].value):
        figure, values = own[model][0], [f"{f.value:.4f}" for f in own[model]]
        seconds = "" if figure.seconds is None else f"{figure.seconds:,.0f}"
        interval = escape(f"[{figure.low:.4f}, {figure.high:.4f}]")
        lift = None if model == best else lifts.loc[model]
        standing = () if lift is None else (f"{lift['difference']:+.4f}", lift["verdict"])
        table.add_row(escape(model), *values, interval, seconds, *standing)
    return table
