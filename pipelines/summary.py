"""What a verb prints when it is done: the table, the files it wrote, the next command."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from reclora.files import read_parquet
from reclora.interactions.summary import LogSummary

from .contenders import SUBJECT
from .reporting import BASE
from .retrain import Outcome

SEGMENTS_SHOWN = 20


def print_log(summary: LogSummary, folder: Path, following: str) -> None:
    """Print what became of the log."""
    dropped = {
        **summary.quarantined,
        "below the least label": summary.below_min_label,
        "duplicate": summary.duplicates,
    }
    console = Console()
    console.print(
        f"{summary.rows_read:,} rows read, {summary.rows_kept:,} kept, {summary.users:,} users, "
        f"{summary.items:,} items, {len(summary.segments):,} segments, "
        f"{summary.first} to {summary.last}",
        markup=False,
    )
    for reason, rows in dropped.items():
        console.print(f"  {rows:,} dropped: {reason}", markup=False)
    print(f"{folder}\nnext: {following}")


def print_outcome(outcome: Outcome, following: str | None) -> None:
    """Print every model's mean and lift over the base, the files, and what to do next."""
    lifts = read_parquet(outcome.folder.comparison).to_pandas()
    measure = lifts["metric"].iloc[0], lifts["k"].iloc[0]
    headline = lifts[(lifts["metric"] == measure[0]) & (lifts["k"] == measure[1])]
    console = Console()
    console.print(_models(headline, f"{measure[0]}@{measure[1]}"))
    console.print(_segments(headline, f"{measure[0]}@{measure[1]}"))
    if outcome.was_there:
        print("this run was complete already, with the same log, settings and versions: reused")
    print(f"report    {outcome.folder.report}")
    print(f"results   {outcome.folder.results}")
    print(f"settings  {outcome.folder.path / 'run.json'}")
    if outcome.release is not None:
        print(f"release   {outcome.release} in {outcome.store}")
    else:
        print("release   none: no segment was better than the base on validation")
    if following:
        print(f"next      {following}")


def _models(headline: pd.DataFrame, measure: str) -> Table:
    """Each model's mean and its lift over the base, best first."""
    over_base = headline[(headline["scope"] == "all") & (headline["baseline"] == BASE)]
    base = over_base.iloc[0]
    table = Table(title=f"{measure} on test, {base['users']:,} users")
    for column in ("model", measure, f"over the {BASE}", "95 % interval", "verdict"):
        table.add_column(column, justify="left" if column in ("model", "verdict") else "right")
    rows = [(row["model_mean"], row["model"], *_lift(row)) for _, row in over_base.iterrows()]
    rows.append((base["baseline_mean"], BASE, "", "", ""))
    for mean, model, *lift in sorted(rows, key=lambda row: -row[0]):
        table.add_row(str(model), f"{mean:.4f}", *lift)
    return table


def _segments(headline: pd.DataFrame, measure: str) -> Table:
    """The adapters' lift over the base in each segment."""
    chosen = headline[
        (headline["scope"] == "segment")
        & (headline["baseline"] == BASE)
        & (headline["model"] == SUBJECT)
    ]
    table = Table(title=f"{SUBJECT}: {measure} by segment")
    for column in ("segment", "users", BASE, "adapter", "lift", "95 % interval", "verdict"):
        table.add_column(column, justify="left" if column in ("segment", "verdict") else "right")
    for _, row in chosen.head(SEGMENTS_SHOWN).iterrows():
        means = f"{row['baseline_mean']:.4f}", f"{row['model_mean']:.4f}"
        table.add_row(escape(repr(row["segment"])[1:-1]), f"{row['users']:,}", *means, *_lift(row))
    if len(chosen) > SEGMENTS_SHOWN:
        table.caption = f"{len(chosen) - SEGMENTS_SHOWN:,} more in the report"
    return table


def _lift(row: pd.Series) -> tuple[str, str, str]:
    interval = f"[{row['low']:+.4f}, {row['high']:+.4f}]" if row["low"] == row["low"] else "none"
    return f"{row['difference']:+.4f}", escape(interval), str(row["verdict"])
