"""What a verb prints when it is done: the table, the files it wrote, the next command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from reclora.files import read_parquet
from reclora.interactions.summary import LogSummary

from .contenders import SUBJECT
from .prepare import describe
from .reporting import BASE
from .retrain import Outcome

SEGMENTS_SHOWN = 20
VERDICTS = {
    "better": "better than",
    "worse": "worse than",
    "cannot tell": "cannot be told from",
}


def print_log(summary: LogSummary, folder: Path, following: str) -> None:
    """Print what became of the log."""
    print(
        f"{describe(summary)}; {summary.users:,} users, {summary.items:,} items, "
        f"{len(summary.segments):,} segments, {summary.first} to {summary.last}"
    )
    print(f"{folder}\nnext: {following}")


def print_outcome(outcome: Outcome, following: str | None) -> None:
    """Print every model's mean and lift over the base, the files, and what to do next."""
    lifts = read_parquet(outcome.folder.comparison).to_pandas()
    measure = lifts["metric"].iloc[0], lifts["k"].iloc[0]
    headline = lifts[(lifts["metric"] == measure[0]) & (lifts["k"] == measure[1])]
    console = Console()
    console.print(_models(headline, f"{measure[0]}@{measure[1]}"))
    for line in _standing(headline):
        console.print(line, markup=False)
    console.print(_segments(headline, f"{measure[0]}@{measure[1]}"))
    if outcome.was_there:
        print("this run was complete already, with the same log, settings and versions: reused")
    print(f"report    {outcome.folder.report}")
    print(f"results   {outcome.folder.results}")
    print(f"settings  {outcome.folder.path / 'run.json'}")
    if outcome.release is not None:
        print(f"release   {outcome.release} in {outcome.store}")
    else:
        print("release   none: nothing was better than the base on validation")
    if following:
        print(f"next      {following}")


def _models(headline: pd.DataFrame, measure: str) -> Table:
    """Each model's mean and its lift over the base, best first."""
    over_base = headline[(headline["scope"] == "all") & (headline["baseline"] == BASE)]
    base = over_base.iloc[0]
    title = f"{measure} on test, {base['users']:,} users; lift over the {BASE}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in ("model", measure, "lift", "95 % interval", "verdict"):
        table.add_column(column, justify="left" if column in ("model", "verdict") else "right")
    rows = [(row["model_mean"], row["model"], *_lift(row)) for _, row in over_base.iterrows()]
    rows.append((base["baseline_mean"], BASE, "", "", ""))
    for mean, model, *lift in sorted(rows, key=lambda row: -row[0]):
        table.add_row(str(model), _short(f"{mean:.4f}"), *lift)
    return table


def _standing(headline: pd.DataFrame) -> Iterator[str]:
    """What the adapters are better and worse than, and what they cannot be told from."""
    own = headline[(headline["scope"] == "all") & (headline["model"] == SUBJECT)]
    for verdict, words in VERDICTS.items():
        others = own.loc[own["verdict"] == verdict, "baseline"]
        if len(others):
            yield f"{SUBJECT}: {words} {'; '.join(others)}"


def _segments(headline: pd.DataFrame, measure: str) -> Table:
    """The adapters' lift over the base in each segment."""
    chosen = headline[
        (headline["scope"] == "segment")
        & (headline["baseline"] == BASE)
        & (headline["model"] == SUBJECT)
    ]
    title = f"{SUBJECT}: {measure} by segment"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in ("segment", "users", "base", "adapter", "lift", "95 % interval", "verdict"):
        table.add_column(column, justify="left" if column in ("segment", "verdict") else "right")
    for _, row in chosen.head(SEGMENTS_SHOWN).iterrows():
        means = _short(f"{row['baseline_mean']:.4f}"), _short(f"{row['model_mean']:.4f}")
        table.add_row(escape(repr(row["segment"])[1:-1]), f"{row['users']:,}", *means, *_lift(row))
    if len(chosen) > SEGMENTS_SHOWN:
        table.caption = f"{len(chosen) - SEGMENTS_SHOWN:,} more in the report"
    return table


def _lift(row: pd.Series) -> tuple[str, str, str]:
    interval = f"[{row['low']:+.4f}, {row['high']:+.4f}]" if row["low"] == row["low"] else "none"
    return _short(f"{row['difference']:+.4f}"), escape(_short(interval)), str(row["verdict"])


def _short(number: str) -> str:
    """Without the zero before the point, as tables of this field have it."""
    return number.replace("0.", ".")
