"""The main job: train one adapter per segment in one pass, measure, decide, publish and report.

log -> windows -> base -> { pooled full fine-tune, pooled adapter -> per-segment adapters, ... }
    -> gate -> release in the store -> results table -> comparison -> report

It can be killed at any time. The same command then goes on: what was trained is kept in the run's
folder, what was published is not published again, and the bytes are those of an unbroken run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.evaluation import Lists
from reclora.files import read_parquet
from reclora.gate import CANDIDATE
from reclora.interactions import Interactions, LogSummary
from reclora.popularity import popularity
from reclora.splits import WINDOWS, Windows, warm
from reclora.store import AdapterStore, BaseMismatch, Release
from reclora.training import train

from .alone import alone_in
from .assessment import Assessment, Yardstick, write_table
from .contenders import POOLED, SUBJECT, Ground, choose, contenders, rungs_of, train_contender
from .gating import Decisions, decide_all
from .live import KNOWN_UNTIL, Live
from .prepare import check_same_ids, prepare, windows_of
from .pretrain import check_earlier, pretrain
from .progress import step
from .reporting import Measured, write_run_report
from .run import RunFolder, RunSettings
from .space import check_space
from .workshop import Workshop, chunks_of
from .yardstick import (
    BASE,
    POPULARITY_RECENT,
    ScorerOf,
    candidates_of,
    files_beside_the_log,
    untrained,
    yardstick_of,
)

CURRENT, RELEASED = "current release", "what is live now"


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    folder: RunFolder
    store: Path
    release: int | None
    """The release that was published; None where nothing went live."""
    decisions: Decisions
    was_there: bool
    """The same run had been completed before, and was reused."""


@dataclass(frozen=True)
class Planned:
    """What a run would do."""

    segments: int
    rows: int
    """Of the train window."""
    begin_with_current: int
    """Segments that begin with their adapter of the current release."""
    chunks: int
    models: tuple[str, ...]
    """What is trained."""
    trainings: int
    current: int | None
    """The current release."""
    quality: dict[str, int]
    bytes_needed: int


def retrain(settings: RunSettings, only: Sequence[str] = (), resume: bool = True) -> Outcome:
    """Run the main job; a completed run of the same input, settings, versions and live release is
    reused, and an interrupted one is gone on with.

    Args:
        only: segments to train; the others stay as they are. Empty: all.
        resume: False throws away what an interrupted run has left.

    Raises:
        LogError, SettingsError, BaseError, TrainingError, StoreError, ValueError: what is wrong
            with input or settings; nothing was published.
        Busy: another run is at work in the same folder.
        OSError: a file cannot be written, or there is not enough room.
        KeyboardInterrupt: it was told to stop; it can be resumed.
    """
    with alone_in(settings.folder):
        _check_writable(settings)
        night = _begin(settings, only)
        folder = night.folder
        if folder.is_complete and _is_published(settings, folder):
            summary = folder.summary()
            decisions = Decisions(read_parquet(folder.decisions).to_pandas())
            return Outcome(folder, settings.store_folder, summary["release"], decisions, True)
        if not resume:
            folder.forget()
        check_space(settings.runs, _bytes_needed(settings, night.windows.train))
        folder.begin()
        return _finish(settings, night)


def plan(settings: RunSettings, only: Sequence[str] = ()) -> Planned:
    """Do all that comes before training, and say what would be; for errors see `retrain`."""
    with alone_in(settings.folder):
        _check_writable(settings)
        night = _begin(settings, only)
    train_log, live = night.windows.train, night.live
    _check_adapter(settings, night.base, train_log)
    needed = _bytes_needed(settings, train_log)
    check_space(settings.runs, needed)
    trained = contenders(settings, has_parent=live.parent is not None)
    grid = 1
    for values in vars(settings.search).values():
        grid *= max(1, len(values))
    return Planned(
        segments=train_log.num_segments,
        rows=len(train_log),
        begin_with_current=len(live.start),
        chunks=len(chunks_of(train_log, settings.chunk_rows)),
        models=tuple(c.model for c in trained),
        trainings=len(trained) * (grid + len(settings.seeds)) + len(rungs_of(settings)),
        current=None if live.release is None else live.release.number,
        quality=night.rows_lost,
        bytes_needed=needed,
    )


@dataclass(frozen=True)
class Cut:
    """What is said of the windows as they were cut; the rows themselves need not be kept."""

    table: pd.DataFrame
    """See `Windows.summary`."""
    outside: dict[str, int]
    """What the k-core left out."""

    @classmethod
    def of(cls, summary: LogSummary, whole: Windows) -> Cut:
        """Of the windows before identifiers that the base does not know were dropped."""
        return cls(whole.summary(), _outside_the_core(summary, whole))


@dataclass(frozen=True)
class _Night:
    """All that is known before anything is trained."""

    folder: RunFolder
    summary: LogSummary
    cut: Cut
    """Before identifiers that the base does not know were dropped."""
    base: BaseModel
    windows: Windows
    unknown: dict[str, int]
    live: Live

    @property
    def rows_lost(self) -> dict[str, int]:
        return {"rows read": self.summary.rows_read, "rows kept": self.summary.rows_kept} | {
            f"unknown to the base, {window} window": n for window, n in self.unknown.items() if n
        }


def _begin(settings: RunSettings, only: Sequence[str]) -> _Night:
    """Read and check everything."""
    store = AdapterStore(settings.store_folder)
    summary = prepare(settings)
    base = pretrain(settings, summary.inputs)
    check_store(settings, base)
    inputs = summary.inputs | files_beside_the_log(settings)
    folder, start = _folder_of(settings, base.fingerprint, inputs, store, only)
    whole = windows_of(settings)
    check_earlier(settings, whole)
    # Identifiers that adapters brought are known from now on.
    live = Live.of(store, start, base, settings, only)
    base, windows, unknown = onto_base(live.base, whole, settings)
    if (base.users, base.items) != (live.base.users, live.base.items):
        live = Live.of(store, start, base, settings, only)
    if only:
        windows = windows.of_segments(only)
    return _Night(folder, summary, Cut.of(summary, whole), base, windows, unknown, live)


def _folder_of(
    settings: RunSettings,
    base: str,
    inputs: dict[str, str],
    store: AdapterStore,
    only: Sequence[str],
) -> tuple[RunFolder, Release | None]:
    """The run's folder, and the release that was live when it began: the current one, or the one
    below it where the current one is this run's own.
    """
    current = store.current()

    def folder_from(start: Release | None) -> RunFolder:
        began = {"release": None if start is None else start.number, "only": sorted(only)}
        return RunFolder(settings, base, inputs, began)

    if current is not None:
        below = None if current.parent is None else store.release(current.parent)
        if current.run == (folder := folder_from(below)).id:
            return folder, below
    return folder_from(current), current


def _finish(settings: RunSettings, night: _Night) -> Outcome:
    """Train, decide, publish, measure and report."""
    folder, windows = night.folder, night.windows
    measured = measure(settings, night)
    with step("the gate: candidates against what is live") as progress:
        decisions = _decide(settings, night, measured)
        progress(1, 1)
    write_table(folder.decisions, decisions.table)
    folder.event("decided", **decisions.counts)
    number = publish(settings, night, measured, decisions)
    folder.event("published", release=number)
    lives = set() if settings.gate.canary else decisions.goes_live
    measured.assessment.take(RELEASED, _live_lists(measured, lives))
    write_table(folder.results, measured.assessment.results)
    quality = data_quality(night.summary, night.cut, night.unknown, measured.assessment.yardstick)
    write_run_report(settings, folder, measured, decisions, night.cut.table, windows, quality)
    facts = {
        "data_quality": quality,
        "search": measured.searches.to_dict("records"),
        "decisions": decisions.counts,
    }
    if measured.rungs is not None:
        facts["kinds"] = measured.rungs.to_dict("records")
    _track(settings, folder, measured, decisions, number)
    folder.complete({"release": number, **facts})
    return Outcome(folder, settings.store_folder, number, decisions, was_there=False)


def _track(
    settings: RunSettings,
    folder: RunFolder,
    measured: Measured,
    decisions: Decisions,
    number: int | None,
) -> None:
    """Tell MLflow of the night, where it is asked for; a server that is down spoils no night."""
    if not settings.tracking:
        return
    from .tracking import Night, track

    results = measured.assessment.results
    wanted = (results["metric"] == settings.evaluation.metrics[0]) & (
        results["k"] == settings.evaluation.ks[0]
    )
    means = results[wanted].groupby("model")["value"].mean()
    night = Night(
        run=folder.id,
        params={"measure": measured.measure},
        metrics={str(model): float(value) for model, value in means.items()}
        | {f"segments {status}": float(n) for status, n in decisions.counts.items()},
        table=decisions.table,
        report=folder.report,
        release=number,
    )
    try:
        track(settings.tracking, settings.name, night)
    except Exception as error:  # noqa: BLE001
        print(f"not tracked at {settings.tracking}: {error}", file=sys.stderr)


def _decide(settings: RunSettings, night: _Night, measured: Measured) -> Decisions:
    """Against what is live, on the validation users who chose no epoch."""
    ground, subject = replace(measured.ground, users="odd"), measured.subject
    frozen = night.base.scorer()
    others: dict[str, ScorerOf] = {
        BASE: lambda segment: frozen,
        POPULARITY_RECENT: popularity(night.windows.train),
    }
    if subject.parent is not None:
        alone = AdapterBank.of(night.base, [subject.parent]).scorer(subject.parent.segment)
        others["parent"] = lambda segment: alone
    return decide_all(
        subject,
        night.windows,
        ground.held_out,
        others,
        night.live.scorer_of,
        set(night.live.start),
        settings.gate,
        measured.parent_helped,
        settings.workers,
    )


def _live_lists(measured: Measured, goes_live: set[str]) -> Lists:
    """The test lists of what serves each segment after the decisions."""
    candidate, live = measured.lists["candidate"].segments, measured.lists["live"].segments
    return Lists({s: candidate[s] if s in goes_live else lists for s, lists in live.items()})


def _check_writable(settings: RunSettings) -> None:
    """Refuse at the start what could not be written at the end (OSError); `alone_in` has written to
    the folder of a store that is yet to be made.
    """
    if settings.store_folder.exists():
        AdapterStore(settings.store_folder).check_writable()


def _is_published(settings: RunSettings, folder: RunFolder) -> bool:
    """Whether the store has what a complete run published: it may have been for another store."""
    number, store = folder.summary()["release"], AdapterStore(settings.store_folder)
    return number is None or (number in store.releases() and store.release(number).run == folder.id)


def check_store(settings: RunSettings, base: BaseModel) -> None:
    """Refuse at the start what publishing would refuse at the end.

    Raises:
        BaseMismatch: the store holds adapters of another base.
    """
    current = AdapterStore(settings.store_folder).current()
    if current is not None and current.base_fingerprint != base.fingerprint:
        raise BaseMismatch(
            f"{settings.store_folder} holds adapters of base {current.base_fingerprint}, the base "
            f"of this run is {base.fingerprint}: name another `folder`, or remove "
            f"{settings.store_folder}"
        )


def _bytes_needed(settings: RunSettings, log: Interactions) -> int:
    """What a run writes at the most, about: numbers, the best of them and the optimizer's, of one
    model at a time; the pack; and results.
    """
    width = settings.adapter.rank + 1 if settings.compared == () else settings.base.embedding_dim
    return 2 * len(log) * width * 4 * 4 + 2**26


def onto_base(
    base: BaseModel, whole: Windows, settings: RunSettings
) -> tuple[BaseModel, Windows, dict[str, int]]:
    """The windows on the base's id maps, grown if asked for, and how many rows each one lost.

    Raises:
        ValueError: ids of the log and of the base are of two types, or a window has no row left.
    """
    users, items = base.users, base.items
    check_same_ids("user_id", whole.train.users, users)
    check_same_ids("item_id", whole.train.items, items)
    if settings.unknown == "grow":
        users = users.extended(whole.train.users.ids_of(np.unique(whole.train.user_rows)))
        items = items.extended(whole.train.items.ids_of(np.unique(whole.train.item_rows)))
    moved = {name: getattr(whole, name).onto(users, items) for name in WINDOWS}
    lost = {name: counts.rows for name, (_, counts) in moved.items()}
    for name in ("train", "validation", "test"):
        if lost[name] == len(getattr(whole, name)):
            raise ValueError(
                f"the base model knows no user with an item of the {name} window: all "
                f"{lost[name]:,} rows would be dropped. Take a base of this log's identifiers, or "
                f'set unknown = "grow" for those of the train window'
            )
    return base.grown(users, items), Windows(**{n: log for n, (log, _) in moved.items()}), lost


def measure(settings: RunSettings, night: _Night) -> Measured:
    """Choose on validation, train every seed, measure on test.

    Raises:
        ValueError: validation or test holds nothing new for anybody, or the adapter's config does
            not fit the base.
    """
    base, windows, folder, live = night.base, night.windows, night.folder, night.live
    yardstick = yardstick_of(settings, base, windows, folder.id)
    ground = Ground(
        base,
        windows.train,
        windows.validation,
        windows.before_validation,
        settings.evaluation,
        Workshop(folder.training, settings.chunk_rows, settings.workers),
        parent=live.parent,
        start=live.start,
        candidates=candidates_of(settings, base.items, windows.train.segment_names),
    )
    choosing, training = ground, dict.fromkeys(settings.seeds, ground)
    _check_adapter(settings, base, windows.train)
    assessment, choices, runs = Assessment(yardstick, settings.workers), [], []
    models = untrained(base, windows)
    if live.release is not None:
        models[CURRENT] = live.scorer_of
    lists: dict[str, Lists] = {}
    for model, scorer_of in models.items():
        with step(f"ranking: {model}") as progress:
            made = assessment.rank(model, scorer_of)
            progress(1, 1)
        if model in (BASE, CURRENT):
            lists["live"] = made
    for contender in contenders(settings, has_parent=live.parent is not None):
        if contender.model == SUBJECT:
            contender = live.with_its_kinds(contender, windows.train.segment_names)
        with step(f"choosing rates: {contender.model}") as progress:
            choice = choose(contender, choosing, settings, progress)
        choices.append(choice)
        if contender.model == POOLED:
            choosing = replace(choosing, parent=choice.stopped.bank.adapters()[0])
        folder.event("chosen", model=contender.model, config=asdict(choice.config))
        with step(f"training and ranking: {contender.model}") as progress:
            for done, seed in enumerate(settings.seeds, 1):
                trained = train_contender(choice.contender, training[seed], choice.config, seed)
                if contender.model == POOLED:
                    parent = trained.bank.adapters()[0]
                    training[seed] = replace(training[seed], parent=parent)
                if seed == settings.seeds[0]:
                    runs.append(trained)
                made = assessment.rank(contender.model, trained.scorer_of(), seed)
                if contender.model == SUBJECT and seed == settings.seeds[0]:
                    lists["candidate"] = made
                progress(done, len(settings.seeds))
                folder.event("trained", model=contender.model, seed=seed)
    until = int(windows.validation.timestamps.max()) / 1e6
    # A new ground: what the old one has cached, all segments as one, is needed no more.
    return Measured(assessment, until, choices, runs, replace(ground), live.parent, lists)


def _check_adapter(settings: RunSettings, base: BaseModel, log: Interactions) -> None:
    """Train on nothing: a config that does not fit is refused before hours of training, not after.

    Raises:
        ValueError: the rank is above the base's embedding_dim, there is no delta to train, or no
            row factor to drop from.
    """
    nothing = log.select(np.zeros(len(log), bool))
    for kinds in rungs_of(settings).values():
        AdapterBank.for_log(base, nothing, kinds)
    train(
        AdapterBank.for_log(base, nothing, settings.adapter), nothing, settings.training, judge=None
    )


def publish(
    settings: RunSettings, night: _Night, measured: Measured, decisions: Decisions
) -> int | None:
    """Publish what passed the gate, in one release with all decisions; None where nothing did.

    What this run has published before, and was killed after, is not published again.
    """
    store, subject = AdapterStore(settings.store_folder), measured.subject
    for number in reversed(store.releases()):
        if store.release(number).run == night.folder.id:
            return number
    promoted, served = decisions.of("promoted"), decisions.of("fell back")
    if not promoted and not served:
        return None
    means = decisions.table.set_index("segment")
    columns = {CANDIDATE: "", "live": " of what was live", BASE: " of the base"}
    metrics = {
        name: {
            f"validation {measured.measure}{of}": float(means[column][name])
            for column, of in columns.items()
        }
        | {KNOWN_UNTIL: measured.known_until}
        for name in (*promoted, *served)
    }
    release = store.publish(
        [subject.bank.adapter(name) for name in promoted],
        reason=f"run {night.folder.id}: better on validation",
        author=settings.author or None,
        metrics=metrics,
        serves_parent=served,
        parent=subject.parent,
        run=night.folder.id,
        decisions=decisions.table,
        canary=settings.gate.canary or None,
    )
    return release.number


def data_quality(
    summary: LogSummary, cut: Cut, lost: dict[str, int], yardstick: Yardstick
) -> dict[str, int]:
    """What was read and what was dropped on the way, in rows unless it says users."""
    held_out = yardstick.held_out
    quarantined = {f"quarantined: {reason}": n for reason, n in summary.quarantined.items()}
    unknown = {f"unknown to the base, {window} window": n for window, n in lost.items() if n}
    return {
        "rows read": summary.rows_read,
        **(quarantined or {"quarantined": 0}),
        "duplicates merged": summary.duplicates,
        "below the least label": summary.below_min_label,
        "rows kept": summary.rows_kept,
        **cut.outside,
        **unknown,
        **(
            {"labelled rows unknown to the base": yardstick.labelled_unknown}
            if yardstick.labelled is not None
            else {}
        ),
        "test users measured": held_out.num_users,
        "test users with nothing new to find": int(
            held_out.counts()["users_without_relevant"].sum()
        ),
    }


def _outside_the_core(summary: LogSummary, whole: Windows) -> dict[str, int]:
    """What the k-core left out; nothing where the log was taken whole."""
    logs = [getattr(whole, name) for name in WINDOWS]
    rows = summary.rows_kept - sum(map(len, logs))
    users, items = (np.any(masks, axis=0) for masks in zip(*map(warm, logs), strict=True))
    if not rows:
        return {}
    return {
        "of those outside the k-core": rows,
        "users outside the k-core": summary.users - int(users.sum()),
        "items outside the k-core": summary.items - int(items.sum()),
    }
