"""The main job: train one adapter per segment in one pass, measure, report and publish.

log -> windows -> base -> { pooled full fine-tune, pooled adapter -> per-segment adapters, ... }
    -> results table -> comparison -> report -> release in the store
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.interactions import Interactions, LogSummary
from reclora.splits import WINDOWS, Windows, warm
from reclora.store import AdapterStore, BaseMismatch, Release
from reclora.training import train

from .assessment import Assessment, Yardstick, write_table
from .contenders import POOLED, Ground, choose, contenders, rungs_of, train_contender
from .live import KNOWN_UNTIL
from .prepare import prepare, windows_of
from .pretrain import check_earlier, pretrain
from .progress import step
from .reporting import Measured, write_run_report
from .run import RunFolder, RunSettings
from .yardstick import candidates_of, files_beside_the_log, untrained, yardstick_of


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    folder: RunFolder
    store: Path
    release: int | None
    """The release that was published; None where nothing was better than the base."""
    was_there: bool
    """The same run had been completed before, and was reused."""


def retrain(settings: RunSettings) -> Outcome:
    """Run the main job; a completed run of the same input, settings and versions is reused.

    Raises:
        LogError, SettingsError, BaseError, TrainingError, StoreError, ValueError: what is wrong
            with input or settings; nothing was published.
        OSError: a file cannot be written.
    """
    summary = prepare(settings)
    base = pretrain(settings, summary.inputs)
    check_store(settings, base)
    inputs = summary.inputs | files_beside_the_log(settings)
    folder = RunFolder(settings, base.fingerprint, inputs)
    if folder.is_complete and is_published(settings, folder):
        return Outcome(folder, settings.store_folder, folder.summary()["release"], was_there=True)
    folder.begin()
    whole = windows_of(settings)
    check_earlier(settings, whole)
    base, windows, unknown = onto_base(base, whole, settings)
    measured = measure(settings, base, windows, folder)
    write_table(folder.results, measured.assessment.results)
    quality = data_quality(summary, whole, unknown, measured.assessment.yardstick)
    write_run_report(settings, folder, measured, whole, windows, quality)
    release = publish(settings, measured)
    number = release.number if release else None
    folder.event("published", release=number)
    facts = {"data_quality": quality, "search": measured.searches.to_dict("records")}
    if measured.rungs is not None:
        facts["kinds"] = measured.rungs.to_dict("records")
    folder.complete({"release": number, **facts})
    return Outcome(folder, settings.store_folder, number, was_there=False)


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


def is_published(settings: RunSettings, folder: RunFolder) -> bool:
    """Whether the store has what a complete run published: it may have been for another store."""
    number, store = folder.summary()["release"], AdapterStore(settings.store_folder)
    return number is None or (
        number in store.releases() and store.release(number).reason == _reason(folder.id)
    )


def _reason(run: str) -> str:
    return f"run {run}: better on validation"


def onto_base(
    base: BaseModel, whole: Windows, settings: RunSettings
) -> tuple[BaseModel, Windows, dict[str, int]]:
    """The windows on the base's id maps, grown if asked for, and how many rows each one lost.

    Raises:
        ValueError: ids of the log and of the base are of two types, or a window has no row left.
    """
    users, items = base.users, base.items
    for name, own, its in (("user", users, whole.train.users), ("item", items, whole.train.items)):
        if own.ids.type != its.ids.type:
            raise ValueError(
                f"{name}_id is {its.ids.type} in the log and {own.ids.type} in the base model; "
                "write both as strings or both as integers"
            )
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


def measure(
    settings: RunSettings, base: BaseModel, windows: Windows, folder: RunFolder
) -> Measured:
    """Choose on validation, train every seed, measure on test.

    Raises:
        ValueError: validation or test holds nothing new for anybody, or the adapter's config does
            not fit the base.
    """
    yardstick = yardstick_of(settings, base, windows, folder.id)
    ground = Ground(
        base,
        windows.train,
        windows.validation,
        windows.before_validation,
        settings.evaluation,
        candidates=candidates_of(settings, base.items, windows.train.segment_names),
    )
    choosing, training = ground, dict.fromkeys(settings.seeds, ground)
    _check_adapter(settings, base, windows.train)
    assessment, choices, runs = Assessment(yardstick), [], []
    for model, scorer_of in untrained(base, windows).items():
        assessment.rank(model, scorer_of)
    for contender in contenders(settings):
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
                assessment.rank(contender.model, trained.scorer_of(), seed)
                progress(done, len(settings.seeds))
                folder.event("trained", model=contender.model, seed=seed)
    until = int(windows.validation.timestamps.max()) / 1e6
    return Measured(assessment, until, choices, runs)


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


def publish(settings: RunSettings, measured: Measured) -> Release | None:
    """Publish the first seed's adapters of the segments that validation found better than their
    parent; the other segments are served by the parent, if that was better than the base.

    Without such a parent they have nothing to publish: what is current for them stays.
    """
    subject = measured.subject
    segments = subject.helped
    served = [s for s in subject.bank.segment_names if s not in set(segments)]
    if not measured.parent_helped:
        served = []
    if not segments and not served:
        return None
    scores = subject.training.curves.groupby("segment")["score"]
    best, first = scores.max(), scores.first()
    below = "base" if subject.parent is None else "parent"
    metrics = {
        name: {
            f"validation {measured.measure}": float(best[name]),
            f"validation {measured.measure} of the {below}": float(first[name]),
            KNOWN_UNTIL: measured.known_until,
        }
        for name in [*segments, *served]
        if name in best
    }
    return AdapterStore(settings.store_folder).publish(
        [subject.bank.adapter(name) for name in segments],
        reason=_reason(measured.assessment.yardstick.run),
        author=settings.author or None,
        metrics=metrics,
        serves_parent=served,
        parent=subject.parent,
    )


def data_quality(
    summary: LogSummary, whole: Windows, lost: dict[str, int], yardstick: Yardstick
) -> dict[str, int]:
    """What was read and what was dropped on the way, in rows unless it says users."""
    held_out = yardstick.held_out
    outside = _outside_the_core(summary, whole)
    quarantined = {f"quarantined: {reason}": n for reason, n in summary.quarantined.items()}
    unknown = {f"unknown to the base, {window} window": n for window, n in lost.items() if n}
    return {
        "rows read": summary.rows_read,
        **(quarantined or {"quarantined": 0}),
        "duplicates merged": summary.duplicates,
        "below the least label": summary.below_min_label,
        "rows kept": summary.rows_kept,
        **outside,
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
