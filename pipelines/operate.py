"""The verbs on a store: `reclora promote | rollback | history | diff | verify | gc`.

Each takes a store's folder, or the settings of a run, whose store it then is.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from json import dumps, loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

    from reclora.store import AdapterStore, Release

verbs = typer.Typer()

Store = Annotated[
    Path, typer.Argument(metavar="STORE", help="A store's folder, or a run's settings (TOML).")
]
Reason = Annotated[str, typer.Option(help="Why, for the history.")]
Author = Annotated[str | None, typer.Option(help="Who, for the history; else who runs this.")]
Segments = Annotated[
    list[str] | None, typer.Option("--segment", help="This one alone; repeatable. Else all.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@verbs.command()
def promote(
    store: Store,
    reason: Reason,
    author: Author = None,
    segments: Segments = None,
    json: Json = False,
) -> None:
    """Make candidates of the current release the adapters that are live.

    Example: reclora promote run.toml --reason "the canary is better"
    """
    opened = _opened(store)
    made = opened.promote(segments or None, reason=reason, author=author or _user())
    _print_made(made, json)


@verbs.command()
def rollback(
    store: Store,
    reason: Reason,
    author: Author = None,
    to: Annotated[
        int | None,
        typer.Option(help="The release to be as; else the one below the current.", min=1),
    ] = None,
    segments: Segments = None,
    json: Json = False,
) -> None:
    """Publish a new release in which segments are as they were in an earlier one.

    Example: reclora rollback run.toml --to 41 --segment de --reason "clicks fell"
    """
    opened = _opened(store)
    made = opened.rollback(to, segments or None, reason=reason, author=author or _user())
    _print_made(made, json)


@verbs.command()
def history(
    store: Store,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="DATE",
            help="Begin with what was live then: 2026-07-01T09:30+02:00; UTC and 0:00 if not said.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show who published what, when and why, the newest first.

    Example: reclora history run.toml --at 2026-07-01
    """
    releases = _opened(store).history(None if at is None else _moment(at))
    if json:
        typer.echo(_as_json([_about(release) for release in releases]))
        return
    for release in releases:
        typer.echo(_line(release))
    if not releases:
        typer.echo(f"nothing was live at {at}")


@verbs.command()
def diff(
    store: Store,
    before: Annotated[
        int | None, typer.Argument(help="A release; else the one below AFTER.")
    ] = None,
    after: Annotated[int | None, typer.Argument(help="A release; else the current.")] = None,
    json: Json = False,
) -> None:
    """Show the segments in which two releases differ: kinds, ranks and metrics.

    Example: reclora diff run.toml 41 42
    """
    opened = _opened(store)
    newer = opened.current() if after is None else opened.release(after)
    assert newer is not None, "a store that is opened has a release"
    older = newer.parent if before is None else before
    if older is None:
        raise typer.BadParameter(f"release {newer.number} is the first; there is nothing below it")
    table = opened.diff(older, newer)
    if json:
        rows = loads(table.to_json(orient="records", double_precision=15))
        typer.echo(_as_json({"before": older, "after": newer.number, "segments": rows}))
        return
    for _, row in table.iterrows():
        typer.echo(_difference(row))
    typer.echo(f"{len(table):,} segments differ between release {older} and {newer.number}")


@verbs.command()
def verify(store: Store, json: Json = False) -> None:
    """Read every byte of a store; exit with code 1 where something is damaged or missing.

    Example: reclora verify run.toml
    """
    opened = _opened(store)
    found = opened.check()
    if json:
        about = {
            "store": str(opened.root),
            "releases": len(opened.releases()),
            "problems": found.problems,
            "unneeded": {str(path): size for path, size in found.unneeded.items()},
            "retired": found.retired,
        }
        typer.echo(_as_json(about))
    else:
        for problem in found.problems:
            typer.echo(f"problem   {_plain(problem)}")
        for path, size in found.unneeded.items():
            typer.echo(f"unneeded  {_plain(str(path))}: {size:,} bytes")
        typer.echo(
            f"{len(opened.releases()):,} releases, {len(found.retired):,} of them without their "
            f"packs (gc); {len(found.problems):,} problems, {len(found.unneeded):,} files that "
            "no release needs"
        )
    if found.problems:
        raise typer.Exit(1)


@verbs.command()
def gc(
    store: Store,
    keep: Annotated[int, typer.Option(min=1, help="How many releases stay whole.")] = 30,
    grace_days: Annotated[
        int, typer.Option(min=0, max=36_500, help="What is younger in days stays.")
    ] = 7,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing.")] = False,
    json: Json = False,
) -> None:
    """Remove the adapters that only old releases need, and what killed writers left.

    The history stays whole; releases that a reader has pinned stay too.

    Example: reclora gc run.toml --keep 30 --dry-run
    """
    opened = _opened(store)
    found = opened.gc(keep=keep, grace=timedelta(days=grace_days), dry_run=dry_run)
    total = sum(found.files.values())
    if json:
        about = {
            "store": str(opened.root),
            "dry_run": dry_run,
            "files": {str(path): size for path, size in found.files.items()},
            "bytes": total,
            "retired": found.retired,
            "pinned": found.pinned,
        }
        typer.echo(_as_json(about))
        return
    for path in found.files:
        typer.echo(_plain(str(path)))
    typer.echo(
        f"{'would remove' if dry_run else 'removed'} {len(found.files):,} files of {total:,} "
        f"bytes; releases that can no longer be loaded: {_numbers(found.retired)}; kept because "
        f"they are read: {_numbers(found.pinned)}"
    )


def _opened(path: Path) -> AdapterStore:
    """The store at `path`, or of the run with these settings; it has a release."""
    from reclora.store import AdapterStore, StoreError

    if path.is_dir():
        store = AdapterStore(path)
    elif not path.exists():
        raise typer.BadParameter(f"{path}: no store's folder and no settings file is there")
    else:
        from .run import RunSettings
        from .settings import load

        store = AdapterStore(load(path, RunSettings).store_folder)
    if not store.releases():
        raise StoreError(f"{store.root} has no release yet; name a store's folder or publish first")
    return store


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"--at is a date such as 2026-07-01 or 2026-07-01T09:30+02:00, got {text!r}"
        ) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container may run as a number that no name is known of.
        return str(os.getuid())


def _about(release: Release) -> dict[str, Any]:
    return {
        "number": release.number,
        "time": release.time.isoformat(),
        "author": release.author,
        "reason": release.reason,
        "run": release.run,
        "parent": release.parent,
        "base": release.base_fingerprint,
        "segments": len(release.segments),
        "candidates": 0 if release.canary is None else len(release.canary.segments),
        "share": None if release.canary is None else release.canary.share,
        "decisions": release.decisions,
    }


def _print_made(release: Release, json: bool) -> None:
    typer.echo(_as_json(_about(release)) if json else _line(release))


def _line(release: Release) -> str:
    about = [
        f"{release.number:>8}  {release.time.astimezone(UTC):%Y-%m-%d %H:%M:%S}",
        _plain(release.author or "-"),
        f"{len(release.segments):,} segments",
    ]
    if release.canary is not None:
        waiting = len(release.canary.segments)
        about.append(f"{waiting:,} candidates for {release.canary.share:.3g} of users")
    if release.run is not None:
        about.append(f"run {_plain(release.run)}")
    return "  ".join([*about, _plain(release.reason)])


def _difference(row: pd.Series) -> str:
    """One segment: what it was and is, and the metrics of which one is known."""
    names = [name.removesuffix(" before") for name in row.index[4::2]]
    measured = [(name, row[f"{name} before"], row[f"{name} after"]) for name in names]
    numbers = [
        f"{_plain(name)} {_number(old)} -> {_number(new)}"
        for name, old, new in measured
        if old == old or new == new
    ]
    change = f"{_plain(row['before']) or 'none'} -> {_plain(row['after']) or 'none'}"
    return "  ".join([f"{row['change']:<9}", _plain(row["segment"]), change, *numbers])


def _number(value: float) -> str:
    return f"{value:.4f}" if value == value else "unknown"


def _numbers(releases: Sequence[int]) -> str:
    return ", ".join(map(str, releases)) or "none"


def _plain(text: str) -> str:
    """A text without characters that a terminal would obey."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _as_json(found: object) -> str:
    return dumps(found, indent=2, allow_nan=False)
