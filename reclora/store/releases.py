"""This file is the release: what was made current, when, why and by whom.

    releases/00000042.json     small and readable; names its packs, its map, the candidates' map
                               and the table of decisions by their sha256s

The highest number is current.
Needs no torch, so that a history is shown at once.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reclora.files import atomic_write
from reclora.notebook import as_html
from reclora.store.layout import is_hash
from reclora.store.maps import SegmentMap
from reclora.store.reading import (
    FORMAT,
    NEEDS,
    StoreError,
    check_format,
    open_regular,
    parse_json,
    read_into,
)

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

MAX_BYTES = 2**21
"""Largest release file that is read: some thousands of packs."""

MAPS = "maps"
"""The folder of the maps, below that of the releases."""


@dataclass(frozen=True)
class PackSummary:
    """What a history shows of a pack."""

    pack: str
    """Its sha256, in hex."""
    config: Mapping[str, Any]
    """The settings of its adapters, as the pack has them: kinds, rank, alpha."""
    parent: str | None
    """sha256 of the pack of the adapter that its adapters stand on."""


@dataclass(frozen=True)
class Canary:
    """Candidates that wait beside what is current."""

    share: float
    """The share of users that they are for; above 0 and below 1."""
    segments: SegmentMap
    """segment -> `Placement` of its candidate."""

    def is_for(self, user_ids: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
        """Which users get the candidate of their segment, where it has one; bool, shape (U,).

        Always the same ones, by a formula that any system can compute: see
        `reclora.store.canaries.is_in_share`, also for arguments and errors.
        """
        from reclora.store.canaries import is_in_share

        return is_in_share(user_ids, self.share)


@dataclass(frozen=True, repr=False)
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
    packs: tuple[PackSummary, ...]
    """Every pack that holds an adapter or a candidate of it."""
    segments: SegmentMap
    """segment -> `Placement`: where its adapter is; looked up on the disk when it is asked."""
    run: str | None = None
    """Id of the run that made it."""
    decisions: str | None = None
    """sha256 of the table of what was decided on every segment, and why."""
    canary: Canary | None = None
    """Its candidates; None where it has none."""

    def __repr__(self) -> str:
        by = "" if self.author is None else f" by {self.author!r}"
        waits = "" if self.canary is None else f", {len(self.canary.segments):,} candidates"
        return (
            f"Release({self.number}, {self.time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC{by}: "
            f"{self.reason!r}; {len(self.segments):,} segments{waits})"
        )

    def _repr_html_(self) -> str:
        places = dict(self.segments)
        packs = [place.pack[:12] for place in places.values()]
        served = ["parent" if place.serves_parent else "own" for place in places.values()]
        return as_html(self, {"segment": list(places), "adapter": served, "pack": packs})

    @property
    def maps(self) -> tuple[SegmentMap, ...]:
        """Its map, and that of its candidates."""
        return (self.segments,) if self.canary is None else (self.segments, self.canary.segments)


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
    """Write `release`, whose maps are written already; of several writers of one number one wins.

    Raises:
        FileExistsError: the number is taken.
        StoreError: too many packs for `MAX_BYTES`.
        OSError: the disk refused; nothing is published.
    """
    content: dict[str, Any] = {
        "format": FORMAT,
        "needs": NEEDS,
        "number": release.number,
        "time": release.time.isoformat(timespec="seconds"),
        "author": release.author,
        "reason": release.reason,
        "parent": release.parent,
        "base": release.base_fingerprint,
        **_map_to_json(release.segments, release.packs),
    }
    if release.run is not None:
        content["run"] = release.run
    if release.decisions is not None:
        content["decisions"] = release.decisions
    if release.canary is not None:
        candidates = _map_to_json(release.canary.segments, release.packs)
        content["canary"] = {"share": release.canary.share, **candidates}
    # ASCII, so that no editor or normalising file system can turn one text into its twin.
    lines = (f"{json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in content.items())
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    if len(text) >= MAX_BYTES:
        raise StoreError(
            f"{len(release.packs):,} packs need {len(text):,} bytes, a release has at most "
            f"{MAX_BYTES:,}; publish all segments at once, so that old packs are needed no more"
        )
    with atomic_write(release_path(folder, release.number), replace=False) as temporary:
        temporary.write_text(text, encoding="ascii")
        if temporary.stat().st_size != len(text):
            message = "the disk holds other bytes than were written"
            raise OSError(errno.EIO, message, str(temporary))


def read_release(folder: Path, number: int) -> Release:
    """Read release `number`; its map is read later, as far as it is needed.

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
        release = _release_of(content, folder)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise StoreError(
            f"{path} is damaged: {type(error).__name__}: {error}; restore it"
        ) from None
    if release.number != number:
        raise StoreError(f"{path} calls itself release {release.number}; files were renamed")
    return release


def _release_of(content: dict[str, Any], folder: Path) -> Release:
    time = datetime.fromisoformat(content["time"])
    if time.tzinfo is None:
        raise ValueError(f"time {content['time']!r} has no time zone")
    parent, canary = content["parent"], content.get("canary")
    segments, packs = _map_of(content, folder)
    candidates = None
    if canary is not None:
        waiting, more = _map_of(canary, folder)
        candidates = Canary(_share(canary["share"]), waiting)
        packs = tuple({pack.pack: pack for pack in (*packs, *more)}.values())
    decisions = content.get("decisions")
    return Release(
        number=_whole(content["number"]),
        time=time,
        author=_text_or_none(content["author"]),
        reason=_text(content["reason"]),
        parent=None if parent is None else _whole(parent),
        base_fingerprint=_text(content["base"]),
        packs=packs,
        segments=segments,
        run=_text_or_none(content.get("run")),
        decisions=None if decisions is None else _hash(decisions),
        canary=candidates,
    )


def _map_to_json(segments: SegmentMap, packs: Sequence[PackSummary]) -> dict[str, Any]:
    """What names a map and those of `packs` that it points into."""
    known = {pack.pack: pack for pack in packs}
    return {
        "num_segments": len(segments),
        "segments": segments.path.stem,
        "packs": [
            {"pack": name, "parent": known[name].parent, "config": known[name].config}
            for name in segments.packs
        ],
    }


def _map_of(content: dict[str, Any], folder: Path) -> tuple[SegmentMap, tuple[PackSummary, ...]]:
    """Return the map that `_map_to_json` named, and its packs."""
    packs = tuple(_pack_of(pack) for pack in content["packs"])
    names = tuple(pack.pack for pack in packs)
    if len(set(names)) < len(names):
        raise ValueError("a pack is named twice")
    num_segments = content["num_segments"]
    if type(num_segments) is not int or num_segments < 0:
        raise ValueError(f"expected a number of segments, got {num_segments!r}")
    return SegmentMap(folder / MAPS, _hash(content["segments"]), num_segments, names), packs


def _pack_of(content: dict[str, Any]) -> PackSummary:
    config, parent = content["config"], content["parent"]
    if not isinstance(config, dict):
        raise ValueError(f"expected the settings of a pack, got {config!r}")
    return PackSummary(_hash(content["pack"]), config, None if parent is None else _hash(parent))


def _share(value: object) -> float:
    if type(value) is not float or not 0 < value < 1:
        raise ValueError(f"expected a share of users above 0 and below 1, got {value!r}")
    return value


def _hash(value: object) -> str:
    if not isinstance(value, str) or not is_hash(value):
        raise ValueError(f"expected a sha256, got {value!r}")
    return value


def _whole(value: object) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"expected 1, 2, 3 ..., got {value!r}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {value!r}")
    return value


def _text_or_none(value: object) -> str | None:
    return None if value is None else _text(value)
