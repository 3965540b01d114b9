"""Two finished runs beside each other, on the users that both have measured.

What each is about is compared: of `retrain` what was live at its end, of `evaluate` its subject.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from reclora.comparison import compare, means
from reclora.files import read_parquet
from reclora.metrics import DEFINITIONS
from reclora.report import Report, markdown, write_report

from .records import records
from .reporting import RELEASED
from .run import window_file
from .settings import flat

_UNIT = ["segment", "user_id", "metric", "k"]


class NotComparable(ValueError):
    """Two runs that have nothing to be compared by; the message says what each has."""


@dataclass(frozen=True)
class Finished:
    """A complete run, as its folder tells it."""

    folder: Path
    about: Mapping[str, Any]
    results: pd.DataFrame
    """Of what it is about alone."""
    name: str

    @classmethod
    def read(cls, folder: Path) -> Finished:
        """Read a run's folder.

        Raises:
            NotComparable: it is none, or the run is not complete.
        """
        about = read_about(folder)
        table = read_parquet(folder / "results.parquet").to_pandas()
        subject = about.get("subject", RELEASED)
        own = table[table["model"] == subject].astype({"segment": str, "metric": str})
        if own.empty:
            raise NotComparable(
                f"{folder} has no results of {subject!r}, only of "
                f"{sorted(map(str, table['model'].unique()))}"
            )
        name = f"{subject}, {about['id']}"
        return cls(folder, about, own.assign(model=name), name)


def read_about(folder: Path) -> dict[str, Any]:
    """What `run.json` of a complete run says.

    Raises:
        NotComparable: the folder is none of a run, or the run is not complete.
    """
    try:
        about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        unfinished = ", of a run that has begun: end it by the command that began it"
        raise NotComparable(
            f"expected the folder of a complete run, with run.json in it, got {folder}"
            + (unfinished if (folder / "events.jsonl").is_file() else "")
        ) from None
    return dict(about)


@dataclass(frozen=True)
class Said:
    """A page, and what it comes to."""

    page: Path
    text: str
    """Markdown."""
    about: Mapping[str, Any]

    def as_json(self) -> str:
        """All of it as one JSON object; what is unknown is null."""
        return json.dumps({"report": str(self.page), **self.about}, indent=2, ensure_ascii=False)


def summary_of(run: Path) -> Said:
    """What a finished run came to, as it said then.

    Raises:
        NotComparable: the folder is none of a complete run, or it has no page.
    """
    about, page = read_about(run), run / "report.html"
    table = read_parquet(run / "comparison.parquet").to_pandas() if page.is_file() else None
    if table is None:
        raise NotComparable(
            f"{run} has no page: an evaluation of one list with nothing to compare with has none"
        )
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    facts = {key: about.get(key) for key in ("id", "release", "decisions", "data_quality")}
    return Said(page, text, facts | {"comparison": records(table[table["scope"] == "all"])})


def beside(first: Path, second: Path) -> Said:
    """Hold the first run against the second, and write the page into the first one's folder.

    Users of both must have been asked for the same items, of the same candidates: what decides that
    (`_asked_for`) is compared by content, wherever the files lie. Only users that both have in the
    same segment are compared, on metrics that both have.

    Raises:
        NotComparable: a folder is none of a complete run, what users were asked for differs, or no
            user, metric or k is common.
        OSError: the page cannot be written.
    """
    ours, theirs = Finished.read(first), Finished.read(second)
    if ours.name == theirs.name:
        raise NotComparable(f"expected two runs, got {ours.about['id']} twice")
    _refuse_other_questions(ours, theirs)
    results, quality = _common(ours, theirs)
    measures = results[["metric", "k"]].drop_duplicates()
    pairs = list(measures.itertuples(index=False, name=None))
    tables = [compare(results, ours.name, theirs.name, metric=m, k=k) for m, k in pairs]
    lifts = pd.concat(tables, ignore_index=True)
    metric, k = pairs[0]
    users = lifts[(lifts["metric"] == metric) & (lifts["k"] == k) & (lifts["scope"] == "segment")]
    differing = _differing(ours.about, theirs.about)
    report = Report(
        title=f"{ours.about['id']} beside {theirs.about['id']}",
        run=str(ours.about["id"]),
        subject=ours.name,
        baseline=theirs.name,
        metric=metric,
        k=int(k),
        means=means(results),
        lifts=lifts,
        segments=users[["segment"]].reset_index(drop=True),
        curves=pd.DataFrame(),
        split=pd.DataFrame(),
        data_quality=quality,
        definitions={m: DEFINITIONS[m] for m in measures["metric"].unique() if m in DEFINITIONS},
        settings=differing or {"settings": "the same"},
        versions=ours.about.get("versions", {}),
        repeat=f"reclora report {first} {second}",
        notes=[
            "Of the settings those are shown in which the two differ: the first, the second.",
            *_of_two_bases(ours.about, theirs.about),
        ],
    )
    page = write_report(first / f"beside-{theirs.about['id']}.html", report)
    facts = {"id": report.run, "beside": theirs.about["id"], "data_quality": quality}
    facts |= {"settings": differing, "comparison": records(lifts)}
    return Said(page, markdown(report), facts)


def _refuse_other_questions(ours: Finished, theirs: Finished) -> None:
    """Where users were asked for other items, no pair of values says anything of the models."""
    one, other = _asked_for(ours.about), _asked_for(theirs.about)
    differ = [name for name in dict.fromkeys((*one, *other)) if one.get(name) != other.get(name)]
    if differ:
        raise NotComparable(
            f"{ours.folder} and {theirs.folder} differ in {', '.join(differ)}, so that users were "
            "asked for other items or of other candidates: give both runs the same; two releases "
            "on the newer log are `reclora evaluate run.toml --release 1 --release 2`"
        )


def _asked_for(about: Mapping[str, Any]) -> dict[str, object]:
    """All that decides which items users were asked for, and of which candidates, by its name.

    Files are their sha256s: of a log cut already each with its window; of lists of another system
    the held-out and the seen log. The base has a say by the rows that it does not know.
    """
    settings, files = about["settings"], about["inputs"]
    given = about.get("began_from")
    if isinstance(given, Mapping) and "holdout" in given:
        return {"the held-out log": given["holdout"], "the seen log": given["seen"]}
    log, contract = settings["log"], settings["log"]["contract"]
    kinds = {name: name.partition(": ")[0] for name in files}
    of_log = [name for name in files if kinds[name] not in ("candidates", "labelled")]
    is_cut = log["windows"] is not None
    return {
        "the log": sorted(
            window_file(kinds[name], files[name]) if is_cut else files[name] for name in of_log
        ),
        **{f"log.contract.{name}": contract[name] for name in _OF_THE_ROWS},
        **{f"split.{name}": value for name, value in settings["split"].items()},
        "evaluation.candidates": settings["evaluation"]["candidates"],
        "the file of candidates": [files[name] for name in files if kinds[name] == "candidates"],
        "unknown": settings["unknown"],
        **{
            f"rows {name}": rows
            for name, rows in about["data_quality"].items()
            if name.startswith("unknown to the base")
        },
    }


_OF_THE_ROWS = ("time_unit", "duplicates", "min_label")
"""Of a log's contract: what decides the rows that are kept."""


def _of_two_bases(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What a reader must know where the runs do not stand on one base."""
    if ours.get("base") == theirs.get("base"):
        return []
    return [
        "The two stand on different bases: the difference is that of base and adapters together. "
        "Both bases know the same number of the log's rows; which other items each could have "
        "shown is not compared."
    ]


def _common(ours: Finished, theirs: Finished) -> tuple[pd.DataFrame, dict[str, int]]:
    """The results of both on what both have, and how many users only one has."""
    units = [each.results[_UNIT].drop_duplicates() for each in (ours, theirs)]
    common = units[0].merge(units[1], on=_UNIT)
    if common.empty:
        has = [
            f"{each.folder}: {unit['user_id'].nunique():,} users of {unit['segment'].nunique():,} "
            f"segments, {sorted(unit['metric'].unique())} at {sorted(unit['k'].unique().tolist())}"
            for each, unit in zip((ours, theirs), units, strict=True)
        ]
        raise NotComparable("the runs have no user, metric and k in common: " + "; ".join(has))
    both = pd.concat([each.results.merge(common, on=_UNIT) for each in (ours, theirs)])
    shared = set(map(tuple, common[["segment", "user_id"]].drop_duplicates().to_numpy()))
    quality = {"users of both": len(shared)}
    for each, unit in zip((ours, theirs), units, strict=True):
        own = set(map(tuple, unit[["segment", "user_id"]].drop_duplicates().to_numpy()))
        quality[f"users of {each.about['id']} alone, left out"] = len(own - shared)
    return both.reset_index(drop=True), quality


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, str]:
    """Setting -> its two values, where they differ."""
    one, other = flat(ours["settings"]), flat(theirs["settings"])
    return {
        key: f"{one.get(key, '–')}, {other.get(key, '–')}"
        for key in dict.fromkeys((*one, *other))
        if one.get(key) != other.get(key)
    }
