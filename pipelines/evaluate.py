"""Evaluate what is live, or any lists: the same measures, verdicts and page as of a run.

    settings + a store     the releases against the base and against popularity, on the test window
    plain Parquet files    the lists of any other system against each other

Nothing is trained, and nothing published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from reclora.comparison import means
from reclora.evaluation import (
    EvaluationConfig,
    Foreign,
    HeldOut,
    Lists,
    hold_out,
    read_foreign,
    slices_of,
)
from reclora.files import sha256_of
from reclora.popularity import popularity
from reclora.report import Report, write_report
from reclora.splits import LeakageError, Windows, warm
from reclora.store import AdapterStore, Release

from .assessment import Assessment, Yardstick, compare_all, write_table
from .live import KNOWN_UNTIL, scorer_of_release
from .prepare import prepare, windows_of
from .pretrain import check_earlier, pretrain
from .progress import step
from .reporting import pairs_of
from .retrain import data_quality, onto_base
from .run import LogSettings, RunFolder, RunSettings, versions
from .sections import definitions, sections_of
from .settings import SettingsError, resolved
from .yardstick import (
    BASE,
    POPULARITY_ALL,
    files_beside_the_log,
    split_notes,
    untrained,
    yardstick_of,
)


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation."""

    folder: RunFolder
    subject: str
    """The model in question."""
    baseline: str
    """What it is held against; empty where there is nothing."""
    means: pd.DataFrame
    comparison: pd.DataFrame
    slices: pd.DataFrame
    lists: pd.DataFrame
    conventions: pd.DataFrame
    labels: pd.DataFrame
    quality: Mapping[str, int]

    @property
    def headline(self) -> pd.DataFrame:
        """The comparisons of the subject with the baseline on the headline metric."""
        table = self.comparison
        if table.empty:
            return table
        wanted = {"model": self.subject, "baseline": self.baseline}
        wanted |= {"metric": table["metric"].iloc[0], "k": table["k"].iloc[0]}
        chosen = (table[list(wanted)] == pd.Series(wanted)).all(axis=1)
        return table.loc[chosen]

    @property
    def verdict(self) -> str:
        """Better, worse or cannot tell, over all segments; cannot tell without a baseline."""
        headline = self.headline
        return "cannot tell" if headline.empty else str(headline.iloc[0]["verdict"])


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
    releases = [store.release(n) for n in numbers] or [current]
    summary = prepare(settings)
    base = pretrain(settings, summary.inputs)
    inputs = summary.inputs | files_beside_the_log(settings)
    inputs |= {f"release {r.number}": str(r.number) for r in releases}
    named = replace(settings, name=f"{settings.name}-evaluated")
    folder = RunFolder(named, base.fingerprint, inputs)
    folder.begin()
    whole = windows_of(settings)
    check_earlier(settings, whole)
    base, windows, lost = onto_base(base, whole, settings)
    for release in releases:
        _check_release(settings, release, windows)
    live = scorer_of_release(store, current, base)
    assessment = Assessment(yardstick_of(settings, base, windows, folder.id, live))
    models = untrained(base, windows) | {
        f"release {release.number}": scorer_of_release(store, release, base) for release in releases
    }
    with step("ranking and measuring") as progress:
        for done, (model, scorer_of) in enumerate(models.items(), 1):
            assessment.rank(model, scorer_of)
            progress(done, len(models))
    quality = data_quality(summary, whole, lost, assessment.yardstick)
    return _finished(
        folder,
        settings,
        assessment,
        subject=f"release {releases[0].number}",
        baseline=BASE,
        quality=quality,
        split=whole.summary(),
        title=f"Does release {releases[0].number} help? {settings.name}",
        notes=_notes(settings, releases),
    )


def evaluate_files(
    recommendations: Mapping[str, Path],
    holdout: Path,
    seen: Path | None,
    config: EvaluationConfig,
    *,
    attributes: Sequence[str] = (),
    runs: Path = Path("runs"),
    repeat: str = "",
) -> Evaluated:
    """Hold the lists of any systems against a held-out log, and the first against each other one.

    With a seen log, its segments' popularity is ranked beside them.

    Args:
        recommendations: model -> file of its lists; the first is the one in question, the second,
            if there is one, its baseline; else that is popularity.
        holdout, seen, attributes: see `reclora.evaluation.read_foreign`.
        runs: gets a folder for the evaluation.

    Raises:
        ForeignError: a file cannot be read as what it should be; it names file, column and row.
        LeakageError: held-out rows that were seen, or come before what their user was seen with.
        ValueError: nobody has anything new held out.
    """
    if seen is not None and POPULARITY_ALL in recommendations:
        raise ValueError(
            f"{POPULARITY_ALL!r} is what the popularity of {seen} is called; name your lists "
            "otherwise"
        )
    foreign = read_foreign(recommendations, holdout, seen, max(config.ks), attributes)
    if max(config.ks) > len(foreign.heldout.items):
        raise ValueError(
            f"k must be at most the number of items, {len(foreign.heldout.items):,}, got "
            f"{max(config.ks):,}"
        )
    held_out = hold_out(foreign.heldout, foreign.seen, config)
    if held_out.num_users == 0:
        raise ValueError(f"{holdout}: every held-out item of every user is in {seen} too")
    files = [*recommendations.values(), holdout, *([seen] if seen else [])]
    settings = RunSettings(
        log=LogSettings((holdout,)), name="lists", runs=runs, evaluation=config, repeat=repeat
    )
    folder = RunFolder(settings, "", {str(path): sha256_of(path) for path in files})
    folder.begin()
    slices = slices_of(held_out, foreign.heldout, foreign.seen) if seen or attributes else {}
    shown = {
        "evaluation": resolved(config),
        "recommendations": {name: str(path) for name, path in recommendations.items()},
        "holdout": str(holdout),
        "seen": str(seen or ""),
        "slices": list(attributes),
    }
    assessment = Assessment(Yardstick(folder.id, held_out, slices, foreign.heldout.users))
    for model, lists in foreign.lists.items():
        assessment.take(model, lists)
    if seen is not None:
        assessment.rank(POPULARITY_ALL, popularity(foreign.seen))
    subject, *others = assessment.models
    counts = held_out.counts()
    return _finished(
        folder,
        settings,
        assessment,
        subject=subject,
        baseline=others[0] if others else "",
        quality={
            "held-out rows": len(foreign.heldout),
            "held-out items that count, not seen before": int(counts["relevant"].sum()),
            "seen rows": len(foreign.seen),
            "users measured": held_out.num_users,
            "users with nothing new to find": int(counts["users_without_relevant"].sum()),
            f"users measured who have no list of {subject}": _without_list(
                held_out, foreign.lists[subject]
            ),
            f"items in lists of {subject} that are in no log": _unknown_items(foreign, subject),
        },
        split=pd.DataFrame(),
        title=f"How good are the lists of {subject}?",
        settings_shown=shown,
        notes=["Lists were taken as they are: what users had seen was not taken out of them."],
    )


def _finished(
    folder: RunFolder,
    settings: RunSettings,
    assessment: Assessment,
    *,
    subject: str,
    baseline: str,
    quality: Mapping[str, int],
    split: pd.DataFrame,
    title: str,
    notes: Sequence[str],
    settings_shown: Mapping[str, object] | None = None,
) -> Evaluated:
    """Compare, write the tables and the page, and say that the folder is complete."""
    results = assessment.results
    pairs = pairs_of(assessment.models, subject, baseline) if baseline else []
    comparison = compare_all(results, pairs)
    slices = assessment.slices(pairs)
    write_table(folder.results, results)
    assessment.write(folder.path, comparison, slices)
    evaluated = Evaluated(
        folder=folder,
        subject=subject,
        baseline=baseline,
        means=means(results),
        comparison=comparison,
        slices=slices,
        lists=assessment.lists,
        conventions=assessment.conventions,
        labels=assessment.labels,
        quality=quality,
    )
    if baseline:
        config, counts = settings.evaluation, assessment.yardstick.held_out.counts()
        write_report(
            folder.report,
            Report(
                title=title,
                run=folder.id,
                subject=subject,
                baseline=baseline,
                metric=config.metrics[0],
                k=config.ks[0],
                means=evaluated.means,
                lifts=comparison,
                segments=counts[counts["users"] + counts["users_without_relevant"] > 0],
                curves=pd.DataFrame(),
                split=split,
                data_quality=quality,
                definitions=definitions(assessment),
                settings=settings_shown or resolved(settings),
                versions=versions(),
                repeat=settings.repeat,
                notes=notes,
                sections=sections_of(assessment, slices, subject, baseline),
            ),
        )
    folder.complete({"data_quality": dict(quality), "subject": subject, "baseline": baseline})
    return evaluated


def _check_release(settings: RunSettings, release: Release, windows: Windows) -> None:
    """Refuse a release that knew rows of the test window (LeakageError)."""
    places = release.segments.values()
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
    if settings.split.by != "global_time":
        notes.append(
            "The split is by each user's own time, so it cannot be checked that no release was "
            "trained on rows of the test window: evaluate releases that runs on this log and split "
            "made."
        )
    return notes + split_notes(settings)


def _without_list(held_out: HeldOut, lists: Lists) -> int:
    return sum(int((lists.of(s, 1)[:, 0] < 0).sum()) for s in held_out.segments)


def _unknown_items(foreign: Foreign, model: str) -> int:
    """Items in a model's lists that neither log has: of another id map, perhaps."""
    known = warm(foreign.heldout)[1] | warm(foreign.seen)[1]
    shown = np.zeros(len(known), bool)
    for lists in foreign.lists[model].segments.values():
        rows = lists.item_rows_UK.numpy()
        shown[rows[rows >= 0]] = True
    return int((shown & ~known).sum())
