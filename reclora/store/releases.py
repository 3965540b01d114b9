"""This file is the release: one immutable map segment -> adapter; the highest number is current.

Needs no torch, so that a history is shown at once.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from reclora.files import atomic_write
from reclora.store.reading import (
    FORMAT,
    NEEDS,
    StoreError,
    check_format,
    open_regular,
    parse_json,
    read_into,
)

MAX_BYTES = 2**28
"""Largest release file that is read: about 1.5 million segments."""


@dataclass(frozen=True)
class Placement:
    """Where the adapter of one segment is, and how good it was."""

    pack: str
    """sha256 of the pack that holds it, in hex."""
    index: int
    """Its position in the pack, 0..S-1."""
    metrics: Mapping[str, float]
    """What was measured for it when it was published; NaN where there was nothing to measure."""


@dataclass(frozen=True)
class Release:
    """One immutable map segment -> adapter, complete: every segment that is live in it."""

    number: int
    """1, 2, 3 ... in the order of publishing; clocks decide nothing."""
    time: datetime
    """When it was published, UTC."""
    author: str | None
    """Who published it."""
    reason: str
    """Why."""
    parent: int | None
    """The release that it changed; None for the first."""
    base_fingerprint: str
    """Fingerprint of the base model that all its adapters belong to."""
    segments: Mapping[str, Placement]
    """segment -> where its adapter is."""


def release_numbers(folder: Path) -> list[int]:
    """Return the numbers of the releases in `folder`, ascending; other files do not count."""
    if not folder.is_dir():
        return []
    names = (name for name in os.listdir(folder) if re.fullmatch(r"[0-9]{8,}\.json", name))
    numbers = ((int(name.removesuffix(".json")), name) for name in names)
    return sorted(number for number, name in numbers if name == release_path(folder, number).name)


def release_path(folder: Path, number: int) -> Path:
    """Return the path of release `number`."""
    return folder / f"{number:08d}.json"


def write_release(folder: Path, release: Release) -> None:
    """Write `release`; of several writers of one number one wins.

    Raises:
        FileExistsError: the number is taken.
        StoreError: too many segments for `MAX_BYTES`.
        OSError: the disk refused; nothing is published.
    """
    segments = {
        segment: {"pack": place.pack, "index": place.index, "metrics": _nullable(place.metrics)}
        for segment, place in release.segments.items()
    }
    content = {
        "format": FORMAT,
        "needs": NEEDS,
        "number": release.number,
        "time": release.time.isoformat(timespec="seconds"),
        "author": release.author,
        "reason": release.reason,
        "parent": release.parent,
        "base": release.base_fingerprint,
        "segments": segments,
    }
    # ASCII, so that no editor or normalising file system can turn one segment into its twin.
    text = json.dumps(content, ensure_ascii=True, allow_nan=False)
    if len(text) >= MAX_BYTES:
        raise StoreError(
            f"{len(segments):,} segments need {len(text):,} bytes, a release has at most "
            f"{MAX_BYTES:,}; keep several stores"
        )
    with atomic_write(release_path(folder, release.number), replace=False) as temporary:
        temporary.write_text(text + "\n", encoding="ascii")


def read_release(folder: Path, number: int) -> Release:
    """Read release `number`.

    Raises:
        StoreError: the file is damaged, larger than `MAX_BYTES` or of a newer format.
        FileNotFoundError: there is no such release.
    """
    path = release_path(folder, number)
    with open_regular(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > MAX_BYTES:
            raise StoreError(f"{path} has {size:,} bytes; a release has at most {MAX_BYTES:,}")
        text = bytearray(size)
        read_into(descriptor, memoryview(text), 0, path)
    content = parse_json(text, path)
    check_format(content.get("format"), content.get("needs"), path)
    try:
        release = _release_of(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise StoreError(
            f"{path} is damaged: {type(error).__name__}: {error}; restore it"
        ) from None
    if release.number != number:
        raise StoreError(f"{path} calls itself release {release.number}; files were renamed")
    return release


def _release_of(content: dict[str, Any]) -> Release:
    time = datetime.fromisoformat(content["time"])
    if time.tzinfo is None:
        raise ValueError(f"time {content['time']!r} has no time zone")
    parent, author = content["parent"], content["author"]
    return Release(
        number=_whole(content["number"]),
        time=time,
        author=None if author is None else _text(author),
        reason=_text(content["reason"]),
        parent=None if parent is None else _whole(parent),
        base_fingerprint=_text(content["base"]),
        segments={
            segment: _placement_of(segment, place) for segment, place in content["segments"].items()
        },
    )


def _placement_of(segment: str, place: dict[str, Any]) -> Placement:
    pack, index = place["pack"], place["index"]
    # The pack becomes part of a path: nothing but a hash may.
    if re.fullmatch(r"[0-9a-f]{64}", pack) is None or type(index) is not int or index < 0:
        raise ValueError(f"segment {segment!r}: no place in a pack: {pack!r}, {index!r}")
    metrics = {name: _number(value) for name, value in place["metrics"].items()}
    return Placement(pack, index, metrics)


def _nullable(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}


def _number(value: object) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"expected a finite number or null, got {value!r}")
    return float(value)


def _whole(value: object) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"expected 1, 2, 3 ..., got {value!r}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {value!r}")
    return value
