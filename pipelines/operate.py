"""The verbs on a store: `reclora promote | rollback | history | diff | verify | gc`.

Each takes a store's folder, or the settings of a run, whose store it then is.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .records import records

if TYPE_CHECKING:
    import pandas as pd

    from reclora.store import AdapterStore, Release

verbs = typer.Typer()

SHOWN = 20
"""Of how many segments a verb that changes some shows what has changed."""

UNKNOWN = "unknown"

STORE = "store"
"""In a run's `folder`; as `RunSettings.store_folder` has it."""

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
    _check_candidates(opened)
    made = opened.promote(segments or None, reason=reason, author=author or _user())
    _print_made(opened, made, json)


@verbs.command()
def rollback(
    store: Store,
    reason: Reason,
    author: Author = None,
    to: Annotated[
        int | None,
        typer.Option(
            help="The release to be as; 0: nothing is live, the base serves. Else the newest "
            "that differs from what is live, for each --segment its own.",
            min=0,
        ),
    ] = None,
    segments: Segments = None,
    json: Json = False,
) -> None:
    """Publish a new release in which segments are as they were in an earlier one.

    Example: reclora rollback run.toml --segment de --reason "clicks fell"
    """
    opened = _opened(store)
    names: list[str | None] = [*dict.fromkeys(segments)] if segments else [None]
    sources = {name: opened.earlier(name) if to is None else to for name in names}
    reason = f"{reason} ({_from(sources)})"
    first, *others = dict.fromkeys(sources.values())
    to = None if others else first
    made = opened.rollback(to, segments or None, reason=reason, author=author or _user())
    _print_made(opened, made, json)


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
    moment = None if at is None else _moment(at)
    releases = _opened(store).history(moment)
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
    """Show the segments in which two releases differ: kinds, ranks and metrics. Moments are UTC.

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
        rows = records(table)
        typer.echo(_as_json({"before": older, "after": newer.number, "segments": rows}))
        return
    for line in _differences(table):
        typer.echo(line)
    differ = f"{_counted(len(table), 'segment')} differ{'s' if len(table) == 1 else ''}"
    typer.echo(f"{differ} between release {older} and {newer.number}")


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
            typer.echo(f"unneeded  {_plain(str(path))}: {_counted(size, 'byte')}")
        typer.echo(
            f"{_counted(len(opened.releases()), 'release')}, {len(found.retired):,} of them "
            f"without their packs (gc); {_counted(len(found.problems), 'problem')}, "
            f"{_counted(len(found.unneeded), 'file')} that no release needs"
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
        f"{'would remove' if dry_run else 'removed'} {_counted(len(found.files), 'file')} of "
        f"{_counted(total, 'byte')}; releases that can no longer be loaded: "
        f"{_numbers(found.retired)}; kept because they are read: {_numbers(found.pinned)}"
    )


def _opened(path: Path) -> AdapterStore:
    """The store at `path`, or of the run with these settings; it has a release."""
    from reclora.store import AdapterStore, StoreError

    if path.is_dir():
        store = AdapterStore(path)
    elif not path.exists():
        raise typer.BadParameter(f"{path}: no store's folder and no settings file is there")
    else:
        store = AdapterStore(_folder_of(path))
    if not store.releases():
        raise StoreError(f"{store.root} has no release yet; name a store's folder or publish first")
    return store


def _folder_of(settings: Path) -> Path:
    """Where the store of a run is."""
    from .settings import load, read

    folder = read(settings).get("folder")
    if isinstance(folder, str):
        # All else that a run is told is of no concern here, and checking it takes torch: seconds.
        return Path(folder) / STORE
    from .run import RunSettings

    return load(settings, RunSettings).store_folder


def _check_candidates(store: AdapterStore) -> None:
    from reclora.store import StoreError

    current = store.current()
    if current is not None and current.canary is None:
        raise StoreError(
            f"release {current.number} of {store.root} has no candidate to promote; a retrain with "
            "gate.canary, a share of users such as 0.1, makes some"
        )


def _from(sources: Mapping[str | None, int]) -> str:
    """Which segments are taken from which release, for the history."""
    names: dict[int, list[str]] = {}
    for name, number in sources.items():
        names.setdefault(number, []).append("all" if name is None else name)
    return "; ".join(
        ", ".join(some[:3])
        + (f" and {len(some) - 3:,} more" if len(some) > 3 else "")
        + (f" as in release {number}" if number else " on the base")
        for number, some in names.items()
    )


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


def _print_made(store: AdapterStore, release: Release, json: bool) -> None:
    """Print the release, and what it has changed."""
    if json:
        typer.echo(_as_json(_about(release)))
        return
    typer.echo(_line(release))
    assert release.parent is not None, "it was made from another"
    table = store.diff(release.parent, release)
    for line in _differences(table[:SHOWN]):
        typer.echo(line)
    if len(table) > SHOWN:
        typer.echo(
            f"and {_counted(len(table) - SHOWN, 'segment')} more: reclora diff {store.root} "
            f"{release.parent} {release.number}"
        )


def _line(release: Release) -> str:
    about = [
        f"{release.number:>8}  {release.time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC",
        _plain(release.author or "-"),
        _counted(len(release.segments), "segment"),
    ]
    if release.canary is not None:
        waiting = len(release.canary.segments)
        share = f"{release.canary.share:.3g} of users"
        about.append(f"{_counted(waiting, 'candidate')} for {share}")
    if release.run is not None:
        about.append(f"run {_plain(release.run)}")
    return "  ".join([*about, _plain(release.reason)])


def _differences(table: pd.DataFrame) -> Iterator[str]:
    """Of each segment a line with what it was and is, and below it one for each known metric."""
    names = [name.removesuffix(" before") for name in table.columns[4::2]]
    segments = []
    for _, row in table.iterrows():
        texts = [_plain(row[when]) or "nothing" for when in ("before", "after")]
        change = " -> ".join(dict.fromkeys(texts))
        cells = [
            (
                _plain(name),
                _number(name, row[f"{name} before"]),
                _number(name, row[f"{name} after"]),
            )
            for name in names
        ]
        known = [cell for cell in cells if cell[1:] != (UNKNOWN, UNKNOWN)]
        segments.append((f"{row['change']:<9}  {_plain(row['segment'])}  {change}", known))
    cells = [("", "before", "after"), *(cell for _, known in segments for cell in known)]
    first, second, _ = (max(map(len, column)) for column in zip(*cells, strict=True))
    heads = cells[:1]
    for line, known in segments:
        yield line
        for name, old, new in [*heads, *known] if known else []:
            yield f"    {name:<{first}}  {old:<{second}}  {new}"
        heads = [] if known else heads


def _number(name: str, value: float) -> str:
    from .live import KNOWN_UNTIL

    if value != value:
        return UNKNOWN
    if name == KNOWN_UNTIL:
        return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%dT%H:%M:%SZ}"
    return f"{value:.4f}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _numbers(releases: Sequence[int]) -> str:
    return ", ".join(map(str, releases)) or "none"


def _plain(text: str) -> str:
    """A text without characters that a terminal would obey."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _as_json(found: object) -> str:
    return dumps(found, indent=2, allow_nan=False)
