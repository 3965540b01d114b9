"""Evaluate the lists of any other system: plain Parquet files, measured as a run is."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from reclora.evaluation import (
    EvaluationConfig,
    Foreign,
    ForeignError,
    HeldOut,
    Lists,
    hold_out,
    read_foreign,
    slices_of,
)
from reclora.evaluation.plain import parts_of
from reclora.files import sha256_of
from reclora.popularity import popularity
from reclora.splits import warm

from .alone import writing_alone
from .assessment import Assessment, Yardstick
from .evaluated import Evaluated, finished
from .kept import Kept
from .run import LogSettings, RunFolder, RunSettings
from .settings import resolved
from .yardstick import (
    POPULARITY_ALL,
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
        ForeignError: a file cannot be read as what it should be; it names file, column and row. Or
            no held-out user has a list in a file.
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
    few = _few_listed(held_out, foreign, recommendations, holdout)
    few += _short(foreign, recommendations, max(config.ks))
    for line in few:
        print(line, file=sys.stderr)
    tables = [*recommendations.values(), holdout, *([seen] if seen else [])]
    settings = RunSettings(
        log=LogSettings((holdout,)), name="lists", runs=runs, evaluation=config, repeat=repeat
    )
    inputs = {str(part): sha256_of(part) for path in tables for part in parts_of(path)}

    def bytes_of(path: Path) -> str:
        return ", ".join(inputs[str(part)] for part in parts_of(path))

    asked = {
        "lists": {name: bytes_of(path) for name, path in recommendations.items()},
        "holdout": bytes_of(holdout),
        "seen": bytes_of(seen) if seen else "",
        "slices": list(attributes),
    }
    folder = RunFolder(settings, "", inputs, asked)
    with writing_alone(folder.path):
        folder.begin()
        slices = slices_of(held_out, foreign.heldout, foreign.seen) if seen or attributes else {}
        shown = {
            "evaluation": resolved(config),
            "recommendations": {name: str(path) for name, path in recommendations.items()},
            "holdout": str(holdout),
            "seen": str(seen or ""),
            "slices": list(attributes),
        }
        yardstick = Yardstick(folder.id, held_out, foreign.heldout.users, slices)
        assessment = Assessment(yardstick, Kept(folder.measuring))
        for model, lists in foreign.lists.items():
            assessment.take(model, lists)
        if seen is not None:
            assessment.rank(POPULARITY_ALL, popularity(foreign.seen))
        subject, *others = assessment.models
        counts = held_out.counts()
        return finished(
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
            notes=[
                "Lists were taken as they are: what users had seen was not taken out of them.",
                *(f"{line}." for line in few),
            ],
        )


def _few_listed(
    held_out: HeldOut, foreign: Foreign, recommendations: Mapping[str, Path], holdout: Path
) -> list[str]:
    """A line for each file in which fewer than half of the held-out users have a list.

    A user without one counts as zero, so that a file of other users would be called bad.

    Raises:
        ForeignError: none of them has one; an example of either file's users is shown.
    """
    few, users = [], held_out.num_users
    for model, path in recommendations.items():
        lists = foreign.lists[model]
        listed = users - _without_list(held_out, lists)
        if not listed:
            theirs, ours = _example_listed(foreign, lists), _example_held_out(held_out)
            alike = "users and segments" if len(held_out.segments) > 1 else "users"
            raise ForeignError(
                f"no held-out user has a list: {path} has, for one, {theirs}, and {holdout} has, "
                f"for one, {ours}. Are these ids of another kind? Name {alike} alike in "
                "both files"
            )
        if 2 * listed < users:
            few.append(
                f"{listed:,} of {users:,} held-out users have a list in {path}; the others count "
                "as zero"
            )
    return few


def _short(foreign: Foreign, recommendations: Mapping[str, Path], k: int) -> list[str]:
    """A line for each file none of whose lists is as long as what is asked for: the places that it
    lacks count as misses, whatever the system would have put there.
    """
    short = []
    for model, path in recommendations.items():
        widths = [
            int((lists.item_rows_UK >= 0).sum(dim=1).max())
            for lists in foreign.lists[model].segments.values()
            if len(lists.user_rows_U)
        ]
        if max(widths) < k:
            short.append(
                f"the lists in {path} hold {max(widths):,} items at the most, and {k:,} places are "
                "asked for: those that they lack count as misses"
            )
    return short


def _example_listed(foreign: Foreign, lists: Lists) -> str:
    name, row = next(
        (name, int(segment.user_rows_U[0]))
        for name, segment in lists.segments.items()
        if len(segment.user_rows_U)
    )
    return _user(foreign.heldout.users.ids_of([row])[0].as_py(), name, len(lists.segments))


def _example_held_out(held_out: HeldOut) -> str:
    segment = next(s for s in held_out.segments if s.num_users)
    return _user(segment.user_ids[0].as_py(), segment.name, len(held_out.segments))


def _user(user: object, segment: str, segments: int) -> str:
    return f"user {user!r}" + (f" in segment {segment!r}" if segments > 1 else "")


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
