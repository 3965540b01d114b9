"""The verb `reclora recommend`."""

from __future__ import annotations

from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Annotated, Literal

import typer

from .options import Overrides, SettingsFile, load_run

verbs = typer.Typer()


@verbs.command()
def recommend(
    settings: SettingsFile,
    into: Annotated[Path, typer.Option(help="The folder of the lists: new, or to go on with.")],
    k: Annotated[int, typer.Option("-k", min=1, help="The length of a list.")] = 10,
    users: Annotated[
        Path | None,
        typer.Option(help="Parquet with user_id, and perhaps segment; else all users."),
    ] = None,
    release: Annotated[int | None, typer.Option(help="A release, instead of the current.")] = None,
    unknown: Annotated[
        Literal["fail", "drop"],
        typer.Option(help="What becomes of users and segments in --users that nobody knows."),
    ] = "fail",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Estimate, write nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    overrides: Overrides = None,
) -> None:
    """Write the top-k new items of all users, or of a list of them, as Parquet.

    Example: reclora recommend run.toml -k 100 --into lists/monday
    """
    from reclora.ranking.parts import MANIFEST

    from .recommend import counted
    from .recommend import recommend as run_recommend

    made = run_recommend(
        load_run(settings, overrides),
        users=users,
        k=k,
        release=release,
        into=into,
        unknown=unknown,
        dry_run=dry_run,
    )
    if json:
        typer.echo(dumps(asdict(made), default=str))
        return
    candidates = f", {made.lists_of_candidates:,} of them of candidates,"
    typer.echo(
        f"{counted(made.lists, 'list')} of release {made.release}"
        f"{candidates if made.lists_of_candidates else ''} in {counted(made.parts, 'part')}, "
        f"{made.reused_parts:,} of them made before; {made.seconds:,.1f} s"
    )
    if made.strangers:
        typer.echo(
            f"left out  {counted(made.strangers, 'user')} of the log, whom neither base nor "
            "adapters know"
        )
    typer.echo(
        "nothing is written: --dry-run" if dry_run else f"manifest  {made.folder / MANIFEST}"
    )
