"""Recommend in batches: the top-k lists of a release for all users, or for a list of them, as
Parquet parts.

A user has a list in each segment of theirs, made by that segment's adapter, or by its candidate for
those users whom a canary is for; whoever is in no segment has one list of the base's. Parts are
finished one after the other, and a run that was killed goes on where it was.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import torch

from reclora.base import BaseModel
from reclora.files import sha256_of
from reclora.interactions import LogSummary
from reclora.ranking.parts import Part, PartsFolder, parquet_bytes
from reclora.store import AdapterStore, Release

from .candidate_items import CandidateItems
from .prepare import prepare
from .progress import step
from .run import RunSettings, contents, digest, versions
from .served import Chunk, Served, Work, in_order
from .settings import resolved
from .space import check_space
from .wanted import History, Wanted, wanted_of

LISTS_PER_PART = 20_000
_SLICE_CPU_S = 2.0
"""How long the rate is measured."""


def counted(number: int, noun: str) -> str:
    """`1 list`, `2,000 lists`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Estimate:
    """What is left to do, at the rate of the first slice."""

    lists: int
    lists_per_cpu_s: float
    minutes: float
    """Of wall-clock time, while the machine is as busy as it was."""
    bytes: int

    def __str__(self) -> str:
        return (
            f"{counted(self.lists, 'list')} at {self.lists_per_cpu_s:,.0f} lists a CPU-second: "
            f"{self.minutes:,.1f} minutes, {self.bytes / 1e6:,.0f} MB"
        )


@dataclass(frozen=True)
class Recommended:
    """What was made, or with `dry_run` would be."""

    folder: Path
    release: int
    lists: int
    """In all parts."""
    lists_of_candidates: int
    """Of those: made by a candidate."""
    parts: int
    reused_parts: int
    """Of those: finished by an earlier run of the same request."""
    seconds: float
    """Wall-clock."""
    estimate: Estimate | None
    """None where nothing was left to do."""
    strangers: int
    """Users of the log who get no list, since neither base nor adapters know them; 0 where a file
    names the users."""


def recommend(
    settings: RunSettings,
    *,
    users: Path | None = None,
    k: int,
    release: int | None = None,
    into: Path,
    unknown: Literal["fail", "drop"] = "fail",
    dry_run: bool = False,
    lists_per_part: int = LISTS_PER_PART,
) -> Recommended:
    """Write the k best new items of each user in each of their segments to a folder.

    Columns: user_id, segment (null: in none), rank (1 to k), item_id, score, release, candidate
    (whether the segment's candidate made the list: see `Canary.is_for`); sorted by segment, user in
    the order of the base, rank. Items of any row of the log are not new to their user. Which items
    may be recommended is what `evaluation.candidates` says.

    Args:
        users: Parquet with user_id, and perhaps segment; without it the segments are the log's.
            All users of the base, if not given.
        k: list length, at least 1; a list is shorter where its user has fewer candidates.
        release: its number; the current one if not given.
        into: a folder of its own for each release; a killed run of the same request goes on there.
        unknown: rows of `users` whose user or segment nobody knows: `fail`, or `drop` and count.
        dry_run: estimate, and write nothing.
        lists_per_part: at least 1.

    Raises:
        StoreError: the store has no such release, or none yet, or it is damaged or of another base.
        ForeignError: the list is not what it should be, or knows unknown users or segments.
        PartsError: the folder holds the lists of another request, or other files.
        OSError: the disk is too small for what is estimated, or refused.
        LogError, BaseError, ValueError: what is wrong with the log, the base, or scores that are
            NaN (the segment is named).
    """
    began = time.monotonic()
    if k < 1 or lists_per_part < 1:
        raise ValueError(f"k and lists_per_part must be at least 1, got {k} and {lists_per_part}")
    torch.set_num_threads(settings.threads)
    store = AdapterStore(settings.store_folder)
    with store.pin(release) as chosen:
        summary = prepare(settings)
        base = BaseModel.load(settings.base.saved or settings.base_folder)
        with step(f"reading release {chosen.number}"):
            served = Served(base, store, chosen, candidates=True)
        history = History.read(settings, served.base)
        wanted = wanted_of(users, history, served.base, chosen, unknown)
        items = _items(settings, served.base, history, wanted)
        seen = history.seen(len(served.base.users))
        work = Work(served, wanted, seen, items, k, lists_per_part)
        request = _request(settings, summary, chosen, k, lists_per_part, users, unknown)
        folder = PartsFolder(into, request, work.num_parts)
        kept = folder.finished()
        estimate = _make(folder, kept, work, _about(work, history, request), dry_run)
    seconds = time.monotonic() - began
    return Recommended(
        into,
        chosen.number,
        len(wanted),
        work.num_of_candidates,
        work.num_parts,
        len(kept),
        seconds,
        estimate,
        history.unknown_users if users is None else 0,
    )


def _items(
    settings: RunSettings, base: BaseModel, history: History, wanted: Wanted
) -> CandidateItems:
    """The items that `evaluation.candidates` allows."""
    if settings.candidates is not None:
        return CandidateItems.read(settings.candidates, base.items, wanted.segments)
    if settings.evaluation.candidates == "catalogue":
        return CandidateItems.catalogue(len(base.items))
    return CandidateItems.of_log(history, len(base.items))


def _make(
    folder: PartsFolder, kept: dict[int, Part], work: Work, about: dict[str, object], dry_run: bool
) -> Estimate | None:
    """Write the parts that are missing, and the manifest; estimate before anything is written."""
    missing = [number for number in range(work.num_parts) if number not in kept]
    begun, rest, estimate = list[Chunk](), iter(tuple[Chunk, ...]()), None
    if missing:
        work.warm_up()
        rest = work.chunks(missing[0])
        begun, busy = _first_slice(rest)
        estimate = _estimate(work, missing, begun, busy)
        there = f"; {len(kept)} of {work.num_parts} parts are there" if kept else ""
        print(f"estimate: {estimate}{there}", file=sys.stderr)
        if not dry_run:
            check_space(folder.path, estimate.bytes)
    if dry_run:
        return estimate
    with folder.begun(kept) as write, step("recommending") as progress:
        parts = dict(kept)
        for done, number in enumerate(missing, 1):
            chunks = chain(begun, rest) if number == missing[0] else work.chunks(number)
            parts[number] = write(number, in_order(list(chunks)))
            progress(done, len(missing))
        folder.complete([parts[number] for number in range(work.num_parts)], about)
    return estimate


def _first_slice(chunks: Iterator[Chunk]) -> tuple[list[Chunk], float]:
    """The first chunks, until the clock has something to tell; and CPU-seconds a second."""
    cpu, wall, begun = time.process_time(), time.perf_counter(), list[Chunk]()
    for chunk in chunks:
        begun.append(chunk)
        if sum(each.ranking_cpu_s for each in begun) >= _SLICE_CPU_S:
            break
    return begun, (time.process_time() - cpu) / (time.perf_counter() - wall)


def _estimate(work: Work, missing: Sequence[int], begun: Sequence[Chunk], busy: float) -> Estimate:
    """What the missing parts take, at the rate of the first slice.

    Lists and scorers are counted apart: segments are of very unequal size.
    """
    began = time.process_time()
    slice_bytes = parquet_bytes(in_order(begun))
    writing = time.process_time() - began
    lists = sum(chunk.lists for chunk in begun)
    openings = [chunk.opening_cpu_s for chunk in begun if chunk.opening_cpu_s is not None]
    list_s = (writing + sum(chunk.ranking_cpu_s for chunk in begun)) / lists
    todo = [work.lists(number) for number in missing]
    num_lists = sum(each.stop - each.start for each in todo)
    num_openings = sum(1 for number in missing for _ in work.by_scorer(number))
    cpu_s = num_lists * list_s + num_openings * sum(openings) / len(openings)
    return Estimate(
        num_lists, num_lists / cpu_s, cpu_s / busy / 60, slice_bytes * num_lists // lists
    )


def _about(work: Work, history: History, request: dict[str, str | int]) -> dict[str, object]:
    """What the manifest says beside the request."""
    wanted = work.wanted
    without = [s for s in wanted.segments if not work.served.has_adapter(s)]
    return {
        "settings": digest(request),
        "users": wanted.num_users,
        "lists": len(wanted),
        "lists_of_candidates": work.num_of_candidates,
        "lists_without_segment": wanted.num_without_segment,
        "segments": len(wanted.segments),
        "segments_served_by_the_base": len(without),
        "dropped": dict(wanted.dropped),
        "users_of_the_log_unknown": history.unknown_users,
    }


def _request(
    settings: RunSettings,
    summary: LogSummary,
    release: Release,
    k: int,
    lists_per_part: int,
    users: Path | None,
    unknown: str,
) -> dict[str, str | int]:
    """All that decides the bytes of the parts."""
    asked = settings.evaluation.candidates
    canary = release.canary
    given = "" if settings.candidates is None else f" {sha256_of(settings.candidates)}"
    return {
        "release": release.number,
        "map of the release": release.segments.path.stem,
        "canary": "none" if canary is None else f"{canary.share} {canary.segments.path.stem}",
        "base": release.base_fingerprint,
        "k": k,
        "users": "all" if users is None else sha256_of(users),
        "unknown": unknown,
        "log": digest(contents(settings.log, summary.inputs), resolved(settings.log.contract)),
        "candidates": f"{asked}{given}",
        "lists a part": lists_per_part,
        "threads": settings.threads,
        **{f"version of {name}": version for name, version in versions().items()},
    }
