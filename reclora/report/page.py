"""The page itself: a report's frames as tables and figures, written whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from reclora.files import write_text
from reclora.report.contents import LIFT, TO_TELL, Report
from reclora.report.figures import (
    CHART_DOTS,
    CHART_SEGMENTS,
    VERDICTS,
    by_difference,
    figures_of,
)
from reclora.report.markdown import markdown
from reclora.report.saved import SUFFIX, save_report
from reclora.report.sheets import write_csv
from reclora.report.text import interval, metric_at, percent, seconds, shown, signed, written

ROWS = 50
"""So many rows of a table are laid out; the browser holds the others for whoever asks."""
MARKS = {"better": "▲", "worse": "▼", "cannot tell": "○"}
_HERE = Path(__file__).parent


def write_report(path: Path, report: Report) -> Path:
    """Write the page of `report` to `path`, whole or not at all, and return `path`.

    Beside it, with the suffixes `.md`, `.csv` and `.parquet`: what `markdown` says,
    `Report.by_segment`, and the report itself, for `read_report`.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; an older page stays.
    """
    page = _page(report)
    write_text(path.with_suffix(".md"), markdown(report))
    write_csv(path.with_suffix(".csv"), report.by_segment())
    save_report(path.with_suffix(SUFFIX), report)
    write_text(path, page)
    return path


def _page(report: Report) -> str:
    name = metric_at(report.metric, report.k)
    overall = report.headline("all")[0]
    lifts = sorted(report.headline("segment"), key=by_difference)
    return template("page.html.j2").render(
        report=report,
        name=name,
        overall=overall,
        lifts=lifts,
        counts=Counter(lift["verdict"] for lift in lifts),
        unmeasured=len(set(report.segments["segment"]) - {lift["segment"] for lift in lifts}),
        others=_others(report),
        models=_models(report),
        costed=not report.costs.empty,
        charts=figures_of(report),
        num_charted=min(len(lifts), CHART_SEGMENTS),
        max_dots=CHART_DOTS,
        marks=MARKS,
        to_tell=TO_TELL,
        by_segment=_by_segment(report),
        by_metric=_by_metric(report),
        comparisons=_comparisons(report),
        segments=_segments(report, overall),
        decisions=_decisions(report),
        split=None if report.split.empty else _table(report.split),
        sections=[(section, _of_section(report, section.table)) for section in report.sections],
        settings=list(_flat(report.settings)),
        plotlyjs=Markup(get_plotlyjs()),
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((_HERE / "page.js").read_text(encoding="utf-8")),
    )


def template(name: str) -> jinja2.Template:
    """A page's template: what is put into it stays text, and what is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    environment.filters |= {"signed": signed, "script_hash": _script_hash}
    environment.globals |= {"interval": interval, "percent": percent}
    return environment.get_template(name)


def _headline_means(report: Report, scope: str) -> pd.DataFrame:
    """Means on the headline metric, best model overall first."""
    frame = report.means
    frame = frame[(frame["metric"] == report.metric) & (frame["k"] == report.k)]
    overall = frame[frame["scope"] == "all"].set_index("model")["mean"].to_dict()
    frame = frame[frame["scope"] == scope]
    order = frame["model"].map(lambda model: -overall.get(model, -math.inf)).astype(float)
    return frame.iloc[np.argsort(order.to_numpy(), kind="stable")]


def _overall_lifts(report: Report, fixed: str, model: str) -> dict[str, dict[Any, Any]]:
    """Overall lifts on the headline metric where column `fixed` is `model`, by the other model."""
    frame = report.lifts[report.lifts["scope"] == "all"]
    frame = frame[(frame["metric"] == report.metric) & (frame["k"] == report.k)]
    other = "baseline" if fixed == "model" else "model"
    return {row[other]: row for row in frame[frame[fixed] == model].to_dict("records")}


def _models(report: Report) -> list[dict[str, Any]]:
    """One row a model: its mean, its lift over the baseline, and the subject's lift over it."""
    over_baseline = _overall_lifts(report, "baseline", report.baseline)
    of_subject = _overall_lifts(report, "model", report.subject)
    costs = {} if report.costs.empty else report.costs.set_index("model").to_dict("index")
    return [
        {
            "row": row,
            "over_baseline": over_baseline.get(row["model"]),
            "of_subject": of_subject.get(row["model"]),
            "numbers": _whole(costs.get(row["model"], {}).get("numbers")),
            "seconds": seconds(costs.get(row["model"], {}).get("seconds")),
        }
        for row in _headline_means(report, "all").to_dict("records")
    ]


def _others(report: Report) -> dict[str, list[str]]:
    """Verdict -> the models, other than the baseline, over which the subject has it."""
    lifts = _overall_lifts(report, "model", report.subject)
    found: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
    for other, lift in lifts.items():
        if other != report.baseline:
            found[lift["verdict"]].append(other)
    return {verdict: models for verdict, models in found.items() if models}


@dataclass(frozen=True)
class _Table:
    """A table as it is read: every cell a string."""

    headers: Sequence[str]
    numeric: Sequence[bool]
    rows: Sequence[Sequence[str]]

    @property
    def first(self) -> Sequence[Sequence[str]]:
        """The rows that are laid out."""
        return self.rows[:ROWS]

    @property
    def rest(self) -> Sequence[Sequence[str]]:
        """The others."""
        return self.rows[ROWS:]


def _table(frame: pd.DataFrame) -> _Table:
    # A count that one segment lacks makes its column float: whole floats become counts again.
    frame = frame.convert_dtypes()
    return _as_table(
        headers=[str(column).replace("_", " ") for column in frame.columns],
        numeric=[pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes],
        rows=frame.itertuples(index=False, name=None),
    )


def _as_table(
    headers: Sequence[str], numeric: Sequence[bool], rows: Iterable[Sequence[Any]]
) -> _Table:
    return _Table(headers, numeric, [[written(value) for value in row] for row in rows])


APART = ("decision", "reason")
"""Columns of `Report.segments` that are sentences: they have a table of their own."""


def _segments(report: Report, overall: Mapping[str, Any]) -> _Table:
    """Every segment, after all of them together; the verdict early, where a narrow screen ends."""
    whole = pd.DataFrame([{"segment": "All segments", **{n: overall[n] for n in LIFT}}])
    frame = pd.concat([whole, report.by_segment().astype({"segment": object})], ignore_index=True)
    known = [name for name in report.segments if name not in ("segment", *LIFT, *APART)]
    # Beside what they could show.
    known.sort(key=lambda name: name != TO_TELL)
    return _of_lifts(report, frame[["segment", *LIFT, *known]])


_LIFTED = [name for name in LIFT if name != "note"]


def _of_section(report: Report, frame: pd.DataFrame) -> _Table:
    """A section's table; lifts in it are written as those of segments are."""
    return _of_lifts(report, frame) if set(_LIFTED) <= set(frame.columns) else _table(frame)


def _of_lifts(report: Report, frame: pd.DataFrame) -> _Table:
    """Lifts of the subject over the baseline, between what stands before and after their columns:
    under one set of headers on the whole page.
    """
    names = list(frame.columns)
    first = min(map(names.index, _LIFTED))
    before, after = ([n for n in part if n not in LIFT] for part in (names[:first], names[first:]))
    lift = {
        "lift": frame["difference"].map(signed),
        "verdict": frame["verdict"],
        "95 % interval": list(map(interval, frame["low"], frame["high"])),
        "q": frame["q"],
        report.baseline: frame["baseline_mean"],
        report.subject: frame["model_mean"],
        "users": frame["users"],
    }
    if "note" in frame:
        lift["could show"] = frame["note"]
    lifts = pd.DataFrame(lift, index=frame.index)
    table = _table(pd.concat([frame[before], lifts, frame[after]], axis=1))
    places = [table.headers.index(name) for name in ("lift", "95 % interval")]
    return replace(table, numeric=[n or at in places for at, n in enumerate(table.numeric)])


def _decisions(report: Report) -> _Table | None:
    """What became of each segment, and why; None where nothing was decided."""
    told = [name for name in APART if name in report.segments]
    return _table(report.by_segment()[["segment", *told]]) if told else None


def _comparisons(report: Report) -> _Table:
    """Every comparison of two models, all segments together."""
    lifts = report.lifts[report.lifts["scope"] == "all"].to_dict("records")
    return _as_table(
        headers=("model", "over", "metric", "users", "lift", "95 % interval", "verdict"),
        numeric=(False, False, False, True, True, True, False),
        rows=[
            (
                *(lift["model"], lift["baseline"], metric_at(lift["metric"], lift["k"])),
                *(lift["users"], signed(lift["difference"])),
                *(interval(lift["low"], lift["high"]), lift["verdict"]),
            )
            for lift in lifts
        ],
    )


def _whole(value: float | None) -> int | None:
    return None if value is None or math.isnan(value) else int(value)


def _by_segment(report: Report) -> _Table:
    """Means on the headline metric: a line a segment, a column a model."""
    means = _headline_means(report, "segment")
    return _wide("segment", means["segment"], means["model"], means["mean"])


def _by_metric(report: Report) -> _Table:
    """Means over all segments: a line a model, a column a metric and list length."""
    means = report.means[report.means["scope"] == "all"].sort_values(["metric", "k"], kind="stable")
    metrics = map(metric_at, means["metric"], means["k"])
    return _wide("model", means["model"], metrics, means["mean"])


def _wide(
    corner: str, rows: Iterable[str], columns: Iterable[str], values: Iterable[float]
) -> _Table:
    """Triples (row, column, value) as a table, rows and columns in order of appearance."""
    lines: dict[str, dict[str, float]] = {}
    headers: dict[str, None] = {}
    for row, column, value in zip(rows, columns, values, strict=True):
        headers[column] = None
        lines.setdefault(row, {})[column] = value
    return _as_table(
        headers=[corner, *headers],
        numeric=[False, *[True] * len(headers)],
        rows=[(row, *map(line.get, headers)) for row, line in lines.items()],
    )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", ", ".join(map(str, value)) or "–"
        else:
            yield f"{prefix}{key}", "–" if value is None else str(value)


def _script_hash(script: str) -> Markup:
    """The expression by which a Content-Security-Policy admits this inline script and no other."""
    digest = hashlib.sha256(str(script).encode()).digest()
    return Markup(f"'sha256-{base64.b64encode(digest).decode()}'")
