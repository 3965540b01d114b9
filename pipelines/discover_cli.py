"""The verb `reclora segments discover`."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Overrides, SettingsFile, command_line, load_run
from .terminal import table_of

if TYPE_CHECKING:
    from rich.table import Table

    from .discover import Discovered
    from .run import RunSettings

verbs = typer.Typer()
segments = typer.Typer(no_args_is_help=True)
verbs.add_typer(segments, name="segments")


@segments.callback()
def segmenting() -> None:
    """Find segments that a log does not have yet.

    Example: reclora segments discover run.toml
    """


@segments.command()
def discover(
    settings: SettingsFile,
    out: Annotated[
        Path, typer.Option(help="Parquet with user_id and segment; a file there is replaced.")
    ] = Path("segments.parquet"),
    numbers: Annotated[
        str, typer.Option(help="How many segments are tried; 1, all as one, is among them.")
    ] = "1,2,4,8,16",
    write_log: Annotated[
        Path | None,
        typer.Option(help="A folder for the log's files with these segments in their place."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    overrides: Overrides = None,
) -> None:
    """Cluster users, choose the number of segments on validation, and write who is in which.

    Users are clustered by the base's vectors and by what they took in the train window; the number
    is the smallest within a standard error of the best, and may be 1: no segments. The given
    segments are compared beside it. The test window is not read, and nothing is published.

    Example: reclora segments discover run.toml --numbers 1,2,4

    Example: reclora segments discover run.toml --write-log logs/discovered
    """
    from reclora.files import make_folder, temporary_path

    from .discover import check, files_to_write
    from .discover import discover as run_discover
    from .records import records

    loaded, tried = load_run(settings, overrides), _numbers(numbers)
    check(loaded, tried)
    # Now rather than when all is trained.
    make_folder(out.parent)
    probe = temporary_path(out)
    probe.touch()
    probe.unlink()
    if write_log is not None:
        files_to_write(loaded, write_log)
    found = run_discover(loaded, tried)
    found.write(out)
    written = [] if write_log is None else [*found.write_log(loaded, write_log).values()]
    if json:
        given = records(found.given)
        typer.echo(
            dumps(
                {
                    "measure": found.measure,
                    "segments": found.number,
                    "names": found.sizes,
                    "compared": records(found.table),
                    "against_given": given[0] if given else None,
                    "moved": found.moved,
                    "out": str(out),
                    "log": [str(path) for path in written],
                }
            )
        )
        return
    _print(found)
    typer.echo(f"segments  {out}")
    if write_log is not None:
        typer.echo(f"log       {write_log}")
        changes = _changes(loaded, written)
        following = command_line(["retrain", settings], [*(overrides or []), *changes])
        typer.echo(f"next: {following}")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"--numbers must be whole numbers with commas between them, such as 1,2,4, got {text!r}"
        ) from None


def _changes(settings: RunSettings, written: Sequence[Path]) -> list[str]:
    """What a run of the log that was written has other than the settings: also a folder, since a
    base and a store are of one log.
    """
    changes = [f"folder={dumps(f'{settings.folder}-discovered', ensure_ascii=False)}"]
    if settings.log.windows is None:
        files = {"log.files": written}
    else:
        files = {
            f"log.windows.{name}": [path for path in written if path.parent.name == name]
            for name in dict.fromkeys(path.parent.name for path in written)
        }
    for key, paths in files.items():
        changes.append(f"{key}={dumps([*map(str, paths)], ensure_ascii=False)}")
    return changes


def _print(found: Discovered) -> None:
    """The numbers that were tried, what came of it, and the segments."""
    from rich.console import Console

    console = Console()
    console.print(_compared(found))
    typer.echo(found.outcome)
    console.print(_sizes(found))


def _compared(found: Discovered) -> Table:
    users = found.table["users"].iloc[0]
    title = f"{found.measure} on validation, {users:,} users; difference to 1, one segment of all"
    columns = "segments", "mean", "difference", "95 % interval", "verdict", "chosen"
    table = table_of(title, *columns)
    for row in found.table.to_dict("records"):
        name = str(row["segments"])
        name = f"{row['count']:,} {name}" if name == "given" else name
        is_known = row["low"] == row["low"]
        interval = f"\\[{row['low']:+.4f}, {row['high']:+.4f}]" if is_known else ""
        difference = f"{row['difference']:+.4f}" if name != "1" else ""
        chosen = "chosen" if row["chosen"] else ""
        table.add_row(name, f"{row['mean']:.4f}", difference, interval, row["verdict"], chosen)
    return table


def _sizes(found: Discovered) -> Table:
    from rich.markup import escape

    table = table_of("segments", "segment", "users")
    for name, users in found.sizes.items():
        table.add_row(escape(name), f"{users:,}")
    return table
