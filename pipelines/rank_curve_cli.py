"""The verb `reclora rank-curve`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from json import dumps
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Overrides, SettingsFile, command_line, load_run
from .terminal import number, table_of

if TYPE_CHECKING:
    from rich.table import Table

    from .rank_curve import RankChoice

verbs = typer.Typer()


@verbs.command("rank-curve")
def rank_curve(
    settings: SettingsFile,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    overrides: Overrides = None,
) -> None:
    """Train once at adapter.rank, cut to every rank below, and say which one suffices.

    Judged on validation, by users who chose no epoch: the headline metric by rank, and the smallest
    rank that is behind the best by no more than a standard error. Nothing is searched for: rates
    are the first values in [search]. The test window is not read, and nothing is published.

    Example: reclora rank-curve run.toml

    Example: reclora rank-curve run.toml --set parent=none
    """
    from .rank_curve import choose_rank
    from .records import records

    repeat = command_line(["rank-curve", settings], overrides)
    found = choose_rank(replace(load_run(settings, overrides), repeat=repeat))
    if not json:
        _print(found)
        return
    told = {
        "folder": str(found.folder),
        "measure": found.measure,
        "seed": found.seed,
        "rank": found.rank,
        "ranks": found.ranks,
        "told_apart": found.told_apart,
        "set": found.changes,
        "try": found.higher,
        "curves": records(found.curves),
        "helped": found.helped,
        "quarantined": found.quarantined,
    }
    typer.echo(dumps(told))


def _print(found: RankChoice) -> None:
    """The curves, and what to do about them."""
    from rich.console import Console

    Console().print(_curves(found))
    for line in advice(found):
        typer.echo(line)
    helped = f"{found.helped:,} of {found.segments:,}"
    typer.echo(f"segments  {helped} have an adapter that helps; the others change nothing")
    if found.quarantined:
        typer.echo(f"          {found.quarantined:,} trainings broke: they change nothing")
    typer.echo(f"table     {found.table}")


def _curves(found: RankChoice) -> Table:
    users = found.whole["users"].iat[-1]
    title = f"{found.measure} on validation by rank, {users:,} users, seed {found.seed}"
    table = table_of(title, "model", "rank", "bytes", "mean", "behind best", "error", "")
    # Seven columns are just as wide as most terminals.
    table.pad_edge = False
    for row in found.whole.to_dict("records"):
        figures = (number(row[name]) for name in ("mean", "behind", "error"))
        mark = "chosen" if row["chosen"] else ""
        table.add_row(row["model"], str(row["rank"]), f"{row['bytes']:,}", *figures, mark)
    return table


def advice(found: RankChoice) -> Iterator[str]:
    """What to set, and why, line by line."""
    for model, is_told in found.told_apart.items():
        if not is_told:
            yield f"rank      users cannot tell the {model} of these ranks apart: take the smallest"
    if found.rank == 0:
        if found.changes:
            yield f"set       {_toml(found.changes)}"
            yield "          the kinds that are no product suffice"
        else:
            yield "set       nothing: users cannot tell adapters at these rates from none"
        return
    if found.rank < found.largest:
        yield f"set       {_toml(found.changes)}"
    else:
        yield f"rank      {found.rank} is chosen, the largest that was trained"
    if found.higher:
        words = " ".join(f"--set {key}={value}" for key, value in found.higher.items())
        yield f"          try a higher one: {words}"
    if found.changes or found.higher:
        yield "          alpha goes with it: so the scaling stays, and with it the size of a step"
    else:
        yield "          it is the tables' embedding_dim, above which there is none"
    for model, rank in found.ranks.items():
        if rank < found.rank:
            yield f"          a run has one rank for all; the {model} would do with {rank}"


def _toml(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key} = {dumps(value)}" for key, value in values.items())
