"""The verb `reclora stability`."""

from __future__ import annotations

from dataclasses import replace
from json import dumps
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Overrides, SettingsFile, command_line, load_run
from .terminal import number, table_of

if TYPE_CHECKING:
    from rich.table import Table

    from .stability import Stability

verbs = typer.Typer()

SEGMENTS_SHOWN = 20


@verbs.command()
def stability(
    settings: SettingsFile,
    seeds: Annotated[int, typer.Option(min=2, help="How many; the settings' own come first.")] = 5,
    average: Annotated[
        bool, typer.Option("--average", help="Measure the average of the seeds' adapters, too.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    overrides: Overrides = None,
) -> None:
    """Train under several seeds in one pass, and say what depends on the seed.

    Judged on validation, by users who chose no epoch: how far the headline metric differs, how much
    of the lists stays, and where the gate would decide otherwise. Nothing is searched for: rates
    are the first values in [search]. The test window is not read, and nothing is published.

    Example: reclora stability run.toml --seeds 5

    Example: reclora stability run.toml --average --set parent=none
    """
    from .records import records
    from .stability import stability as run_stability

    words: list[object] = ["stability", settings, "--seeds", seeds]
    words += ["--average"] if average else []
    loaded = replace(load_run(settings, overrides), repeat=command_line(words, overrides))
    found = run_stability(loaded, seeds=seeds, average=average)
    if not json:
        _print(found)
        return
    told = {
        "folder": str(found.folder),
        "measure": found.measure,
        "seeds": found.seeds,
        "models": records(found.models),
        "averages": records(found.averages),
        "segments": records(found.segments),
        "decisions": found.decisions,
        "quarantined": found.quarantined,
    }
    typer.echo(dumps(told))


def _print(found: Stability) -> None:
    """The models, the averages, the segments, and what the gate says of them."""
    from rich.console import Console

    console = Console()
    console.print(_models(found))
    if len(found.averages):
        console.print(_averages(found))
    console.print(_segments(found))
    counts = ", ".join(f"{n:,} {decision}" for decision, n in found.decisions.items())
    typer.echo(f"segments  {counts}")
    if found.quarantined:
        typer.echo(f"          {found.quarantined:,} trainings broke: they change nothing")
    typer.echo(f"table     {found.table}")


def _models(found: Stability) -> Table:
    users = found.models["users"].iloc[-1]
    title = (
        f"{found.measure} on validation, {users:,} users, seeds {', '.join(map(str, found.seeds))}"
    )
    table = table_of(title, "model", "mean", "sd of seeds", "least", "largest", "lists in common")
    for row in found.models.to_dict("records"):
        figures = (row[name] for name in ("mean", "sd", "low", "high"))
        table.add_row(row["model"], *map(number, figures), _share(row["overlap"]))
    return table


def _averages(found: Stability) -> Table:
    columns = "average", found.measure, "over one seed", "95 % interval", "verdict"
    table = table_of("the seeds' adapters averaged, against one seed", *columns)
    for row in found.averages.to_dict("records"):
        interval = f"\\[{row['low']:+.4f}, {row['high']:+.4f}]"
        lift = f"{row['difference']:+.4f}"
        table.add_row(row["model"], number(row["model_mean"]), lift, interval, row["verdict"])
    return table


def _segments(found: Stability) -> Table:
    """Those that are not decided first."""
    from rich.markup import escape

    from reclora.stability import NOT_DECIDED

    from .stability import STATUSES

    segments = found.segments
    order = (segments["decision"] != NOT_DECIDED).argsort(kind="stable")
    each = [word for word in STATUSES if word in segments]
    columns = ["segment", "rows", "users", "mean", "sd", "lists in common", "decision", *each]
    table = table_of("by segment, and what the gate says under how many seeds", *columns)
    for row in segments.iloc[order].head(SEGMENTS_SHOWN).to_dict("records"):
        table.add_row(
            escape(repr(row["segment"])[1:-1]),
            f"{row['rows']:,}",
            f"{row['users']:,}",
            *(number(row[name]) for name in ("mean", "sd")),
            _share(row["overlap"]),
            row["decision"],
            *(str(row[word]) for word in each),
        )
    if len(segments) > SEGMENTS_SHOWN:
        table.caption = f"{len(segments) - SEGMENTS_SHOWN:,} more in {found.table.name}"
    return table


def _share(value: float) -> str:
    return f"{value:.0%}" if value == value else ""
