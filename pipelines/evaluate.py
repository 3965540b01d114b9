"""Evaluate what is live: releases of a store against the base and popularity, on the test window.

Nothing is trained, and nothing published. What waits in a release's canary is measured beside it:
all users of a segment that has a candidate get the candidate's lists, others what is current.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from reclora.evaluation import ScorerOf
from reclora.splits import LeakageError, Windows
from reclora.store import AdapterStore, Release

from .alone import writing_alone
from .assessment import Assessment
from .evaluated import Evaluated, finished
from .inputs import Cut, data_quality, onto_base
from .kept import Kept
from .live import KNOWN_UNTIL
from .prepare import prepare, windows_of
from .pretrain import check_earlier, pretrain
from .progress import step
from .run import RunFolder, RunSettings
from .served import Served
from .settings import SettingsError
from .yardstick import (
    BASE,
    files_beside_the_log,
    sliced,
    split_notes,
    untrained,
    yardstick_of,
)


def evaluate_releases(settings: RunSettings, numbers: Sequence[int]) -> Evaluated:
    """Hold releases of the run's store against the base and popularity, on the test window.

    Args:
        numbers: of releases; the first is the one in question. Empty: the current one.

    Raises:
        StoreError: the store has no such release.
        SettingsError: the store has nothing published.
        LeakageError: a release was trained or chosen on rows of the test window.
        LogError, BaseError, ValueError: what is wrong with the input, as for a run.
    """
    store = AdapterStore(settings.store_folder)
    current = store.current()
    if current is None:
        raise SettingsError(
            f"{settings.store_folder} has no release to evaluate; `reclora retrain` publishes one"
        )
    releases = [store.release(n) for n in dict.fromkeys(numbers)] or [current]
    summary = prepare(settings)
    base = pretrain(settings, summary.inputs)
    inputs = summary.inputs | files_beside_the_log(settings)
    named = replace(settings, name=f"{settings.name}-evaluated")
    held = {"releases": [*map(store.sha256, releases)], "current": store.sha256(current)}
    folder = RunFolder(named, base.fingerprint, inputs, held)
    with writing_alone(folder.path):
        folder.begin()
        whole = windows_of(settings)
        check_earlier(settings, whole)
        base, windows, lost = onto_base(base, whole, settings)
        for release in releases:
            _check_release(settings, release, windows)
        # Each is read once, the current one too where it is also evaluated.
        distinct = {release.number: release for release in (current, *releases)}
        served = {n: Served(base, store, r, candidates=True) for n, r in distinct.items()}
        live = served[current.number].scorer
        yardstick = sliced(yardstick_of(settings, base, windows, folder.id, live), windows)
        assessment = Assessment(yardstick, Kept(folder.measuring, settings.workers))
        models = untrained(base, windows)
        for release in releases:
            models |= _models(release, served[release.number])
        with step("ranking and measuring") as progress:
            for done, (model, scorer_of) in enumerate(models.items(), 1):
                assessment.rank(model, scorer_of)
                progress(done, len(models))
        cut = Cut.of(summary, whole)
        quality = data_quality(summary, cut, lost, assessment.yardstick)
        return finished(
            folder,
            settings,
            assessment,
            subject=f"release {releases[0].number}",
            baseline=BASE,
            quality=quality,
            split=cut.table,
            title=f"Does release {releases[0].number} help? {settings.name}",
            notes=_notes(settings, releases),
            # What whoever promotes wants to know.
            further=[
                (_candidates(r), f"release {r.number}") for r in releases if r.canary is not None
            ],
        )


def _models(release: Release, served: Served) -> dict[str, ScorerOf]:
    """What is current in a release and, where some wait, its candidates in their place."""
    models: dict[str, ScorerOf] = {f"release {release.number}": served.scorer}
    if release.canary is not None:
        models[_candidates(release)] = partial(served.scorer, candidate=True)
    return models


def _candidates(release: Release) -> str:
    return f"release {release.number}, candidates"


def _check_release(settings: RunSettings, release: Release, windows: Windows) -> None:
    """Refuse a release that knew rows of the test window, it or its candidates (LeakageError)."""
    places = [place for found in release.maps for place in found.values()]
    known = [p.metrics[KNOWN_UNTIL] for p in places if KNOWN_UNTIL in p.metrics]
    begin = int(windows.test.timestamps.min()) / 1e6
    if settings.split.by == "global_time" and known and max(known) >= begin:
        until, begins = (datetime.fromtimestamp(moment, UTC) for moment in (max(known), begin))
        raise LeakageError(
            f"release {release.number} was chosen on rows until {until}, but the test window "
            f"begins at {begins}: evaluate an earlier release, or give a later log"
        )


def _notes(settings: RunSettings, releases: Sequence[Release]) -> list[str]:
    notes = [f"Release {r.number}: {r.reason}; {len(r.segments):,} segments." for r in releases]
    notes += [
        f"Release {r.number}, candidates: {len(r.canary.segments):,} segments have one. Here "
        f"it serves all their users, not only the share of {r.canary.share:.3g} that it is for."
        for r in releases
        if r.canary is not None
    ]
    if settings.split.by != "global_time":
        notes.append(
            "The split is by each user's own time, so it cannot be checked that no release was "
            "trained on rows of the test window: evaluate releases that runs on this log and split "
            "made."
        )
    return notes + split_notes(settings)
