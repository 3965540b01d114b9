"""What a verb prints when it is done: the table, the files it wrote, the next command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from reclora.files import read_parquet
from reclora.interactions.summary import LogSummary

from .bases import Studied
from .contenders import SUBJECT
from .evaluated import Evaluated
from .plan import Planned
from .prepare import describe
from .records import records
from .retrain import Outcome
from .yardstick import BASE

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
    _print_lifts(read_parquet(outcome.folder.comparison).to_pandas(), SUBJECT, BASE)
    if outcome.was_there:
        print("this run was complete already, with the same log, settings and versions: reused")
    print(f"report    {outcome.folder.report}")
    print(f"results   {outcome.folder.results}")
    print(f"settings  {outcome.folder.path / 'run.json'}")
    counts = ", ".join(f"{n:,} {status}" for status, n in outcome.decisions.counts.items())
    print(f"segments  {counts}")
    if outcome.canary and outcome.release is not None:
        waiting = len(outcome.decisions.goes_live)
        print(
            f"canary    {waiting:,} of them are candidates, for {outcome.canary:.3g} of the users, "
            "until `reclora promote`"
        )
    if outcome.release is not None:
        print(f"release   {outcome.release} in {outcome.store}")
    else:
        print("release   none: what was live stays")
    if following:
        print(f"next      {following}")


def print_studied(studied: Studied) -> None:
    """Print every base's figures, and where they stand."""
    Console().print(studied.table)
    if studied.was_there:
        print("this study was complete already, with the same logs, settings and versions: reused")
    print(f"results   {studied.folder}")


def outcome_as_json(outcome: Outcome) -> str:
    """A finished run as one JSON object; what is unknown is null."""
    folder = outcome.folder
    found = {
        "run": folder.id,
        "folder": str(folder.path),
        "report": str(folder.report),
        "store": str(outcome.store),
        "release": outcome.release,
        "reused": outcome.was_there,
        "segments": outcome.decisions.counts,
        "decisions": records(outcome.decisions.table),
        "comparison": records(read_parquet(folder.comparison).to_pandas().query("scope == 'all'")),
    }
    return json.dumps(found, indent=2, allow_nan=False, ensure_ascii=False)


def print_plan(planned: Planned) -> None:
    """Print what a run would do."""
    for name, rows in planned.quality.items():
        print(f"{name}: {rows:,}")
    current = "nothing is live" if planned.current is None else f"release {planned.current} is live"
    print(
        f"segments: {planned.segments:,}, with {planned.rows:,} rows, in chunks: "
        f"{planned.chunks:,}; {current}, segments that begin with its adapters: "
        f"{planned.begin_with_current:,}"
    )
    if planned.reused:
        print(
            f"{planned.run} is complete already, with the same log, settings and versions: it "
            "would be reused, and nothing trained"
        )
        return
    print(f"{planned.trainings:,} trainings of: {', '.join(planned.models)}")
    print(f"about {planned.bytes_needed:,} bytes are needed; nothing was trained")


def plan_as_json(planned: Planned) -> str:
    """What a run would do, as one JSON object."""
    return json.dumps(asdict(planned), indent=2, ensure_ascii=False)


def print_evaluated(evaluated: Evaluated) -> None:
    """Print what an evaluation found, and its files."""
    console = Console()
    if evaluated.tables.comparison.empty:
        console.print(_means(evaluated))
    else:
        _print_lifts(evaluated.tables.comparison, evaluated.subject, evaluated.baseline)
    if len(evaluated.tables.slices):
        console.print(_slices(evaluated))
    console.print(_lists(evaluated))
    folder = evaluated.folder
    if folder.report.exists():
        print(f"report    {folder.report}")
    print(f"results   {folder.results}")
    print(f"tables    {folder.path}")


def as_json(evaluated: Evaluated) -> str:
    """What an evaluation found, as one JSON object; what is unknown is null."""
    tables = {"means": evaluated.tables.means, **evaluated.tables.of_run()}
    found = {
        "folder": str(evaluated.folder.path),
        "subject": evaluated.subject,
        "baseline": evaluated.baseline or None,
        "verdict": evaluated.verdict,
        "data_quality": dict(evaluated.quality),
        **{name: records(table) for name, table in tables.items()},
    }
    return json.dumps(found, indent=2, allow_nan=False, ensure_ascii=False)


def _print_lifts(lifts: pd.DataFrame, subject: str, baseline: str) -> None:
    measure = lifts["metric"].iloc[0], lifts["k"].iloc[0]
    headline = lifts[(lifts["metric"] == measure[0]) & (lifts["k"] == measure[1])]
    console = Console()
    console.print(_models(headline, baseline, f"{measure[0]}@{measure[1]}"))
    for line in _standing(headline, subject):
        console.print(line, markup=False)
    console.print(_segments(headline, subject, baseline, f"{measure[0]}@{measure[1]}"))


def _means(evaluated: Evaluated) -> Table:
    """Every metric's mean, where there is nothing to compare with."""
    table = Table("metric", "mean", "95 % interval", "users", box=SIMPLE_HEAD)
    table.title = escape(evaluated.subject)
    means = evaluated.tables.means
    for _, row in means[means["scope"] == "all"].iterrows():
        interval = f"[{row['low']:.4f}, {row['high']:.4f}]" if row["low"] == row["low"] else "none"
        name = f"{row['metric']}@{row['k']}"
        table.add_row(name, f"{row['mean']:.4f}", escape(interval), f"{row['users']:,}")
    return table


def _slices(evaluated: Evaluated) -> Table:
    """The subject's lift over the baseline in each value of each slice."""
    table = evaluated.tables.slices
    mine = (table["model"] == evaluated.subject) & (table["baseline"] == evaluated.baseline)
    shown = Table(title="slices", title_justify="left", box=SIMPLE_HEAD)
    for column in ("slice", "value", "users", "lift", "95 % interval", "verdict"):
        left = column in ("slice", "value", "verdict")
        shown.add_column(column, justify="left" if left else "right")
    for _, row in table[mine].head(SEGMENTS_SHOWN).iterrows():
        names = (escape(repr(str(row[name]))[1:-1]) for name in ("slice", "value"))
        shown.add_row(*names, f"{row['users']:,}", *_lift(row))
    if mine.sum() > SEGMENTS_SHOWN:
        shown.caption = f"{mine.sum() - SEGMENTS_SHOWN:,} more in the report"
    return shown


def _lists(evaluated: Evaluated) -> Table:
    """What lists are like at the headline's length: a line a model."""
    lists = evaluated.tables.lists
    k = lists["k"].iloc[0]
    lists = lists[(lists["scope"] == "all") & (lists["k"] == k)]
    metrics = list(dict.fromkeys(lists["metric"]))
    table = Table("model", *metrics, box=SIMPLE_HEAD, title=f"what lists are like, at {k}")
    table.title_justify = "left"
    for model, rows in lists.groupby("model", sort=False):
        values = rows.set_index("metric")["mean"]
        table.add_row(escape(str(model)), *(f"{values[metric]:.3f}" for metric in metrics))
    return table


def _models(headline: pd.DataFrame, baseline: str, measure: str) -> Table:
    """Each model's mean and its lift over the baseline, best first."""
    over_base = headline[(headline["scope"] == "all") & (headline["baseline"] == baseline)]
    base = over_base.iloc[0]
    title = f"{measure} on test, {base['users']:,} users; lift over the {escape(baseline)}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in ("model", measure, "lift", "95 % interval", "verdict"):
        table.add_column(column, justify="left" if column in ("model", "verdict") else "right")
    rows = [(row["model_mean"], row["model"], *_lift(row)) for _, row in over_base.iterrows()]
    rows.append((base["baseline_mean"], baseline, "", "", ""))
    for mean, model, *lift in sorted(rows, key=lambda row: -row[0]):
        table.add_row(escape(str(model)), _short(f"{mean:.4f}"), *lift)
    return table


def _standing(headline: pd.DataFrame, subject: str) -> Iterator[str]:
    """What the subject is better and worse than, and what it cannot be told from."""
    own = headline[(headline["scope"] == "all") & (headline["model"] == subject)]
    for verdict, words in VERDICTS.items():
        others = own.loc[own["verdict"] == verdict, "baseline"]
        if len(others):
            yield f"{subject}: {words} {'; '.join(others)}"


def _segments(headline: pd.DataFrame, subject: str, baseline: str, measure: str) -> Table:
    """The subject's lift over the baseline in each segment."""
    chosen = headline[
        (headline["scope"] == "segment")
        & (headline["baseline"] == baseline)
        & (headline["model"] == subject)
    ]
    title = f"{escape(subject)}: {measure} by segment"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in ("segment", "users", "base", "model", "lift", "95 % interval", "verdict"):
        table.add_column(column, justify="left" if column in ("segment", "verdict") else "right")
    if len(chosen) > SEGMENTS_SHOWN:
        chosen = chosen.sort_values("users", ascending=False, kind="stable")
        table.caption = f"{len(chosen) - SEGMENTS_SHOWN:,} more in the report, of fewer users"
    for _, row in chosen.head(SEGMENTS_SHOWN).iterrows():
        means = _short(f"{row['baseline_mean']:.4f}"), _short(f"{row['model_mean']:.4f}")
        table.add_row(escape(repr(row["segment"])[1:-1]), f"{row['users']:,}", *means, *_lift(row))
    return table


def _lift(row: pd.Series) -> tuple[str, str, str]:
    interval = f"[{row['low']:+.4f}, {row['high']:+.4f}]" if row["low"] == row["low"] else "none"
    return _short(f"{row['difference']:+.4f}"), escape(_short(interval)), str(row["verdict"])


def _short(number: str) -> str:
    """Without the zero before the point, as tables of this field have it."""
    return number.replace("0.", ".")
