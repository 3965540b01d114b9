"""The verb `reclora tune`."""

from __future__ import annotations

from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from .options import Overrides, SettingsFile, command_line, load_run

verbs = typer.Typer()


@verbs.command()
def tune(
    settings: SettingsFile,
    space: Annotated[
        Path | None,
        typer.Option(
            help="What is tried, a TOML file; else run.space.toml beside run.toml, or, where there "
            "is none, what reclora comes with."
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option(min=1, help="How many are to have ended, earlier ones among them.")
    ] = 50,
    segments: Annotated[
        int, typer.Option(min=1, help="How many segments are trained, of every size.")
    ] = 200,
    workers: Annotated[int, typer.Option(min=1, help="Processes that try at once.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    overrides: Overrides = None,
) -> None:
    """Search for better settings on validation, and write them as a settings file.

    The same command goes on with what an earlier one has tried; run on several machines with one
    disk, they share the trials. Needs Optuna, the extra `tune`.

    Example: reclora tune run.toml --trials 100

    Example: reclora tune run.toml --space wide.toml --segments 50 --workers 4
    """
    from .search_space import Space, space_of
    from .tune import tune as run_tune

    words: list[object] = ["tune", settings, *(["--space", space] if space else [])]
    words += ["--trials", trials, "--segments", segments]
    words += ["--workers", workers] if workers > 1 else []
    loaded = replace(load_run(settings, overrides), repeat=command_line(words, overrides))
    bounds = Space.read(space or space_of(settings), loaded)
    tuned = run_tune(loaded, bounds, trials=trials, segments=segments, workers=workers)
    if json:
        typer.echo(
            dumps(
                {
                    "folder": str(tuned.folder),
                    "settings": str(tuned.best_settings),
                    "best": tuned.best,
                    "values": tuned.values,
                    "compared": tuned.told,
                }
            )
        )
        return
    typer.echo(
        f"{tuned.outcome}\nsettings  {tuned.best_settings}\npage      {tuned.page}\n"
        f"next: {command_line(['retrain', tuned.best_settings], None)}"
    )
