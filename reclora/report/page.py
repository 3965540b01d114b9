"""The page itself: a report's frames as tables and figures, written whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import math
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from reclora.report.contents import Report
from reclora.report.figures import CHART_SEGMENTS, VERDICTS, curves_figure, lift_figure
from reclora.report.text import interval, metric_at, percent, short, shown, signed


def write_report(path: Path, report: Report) -> Path:
    """Write the page of `report` to `path`, whole or not at all, and return `path`.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; an older page stays.
    """
    temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            file.write(_page(report).encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return path


def _page(report: Report) -> str:
    name = metric_at(report.metric, report.k)
    overall = report.headline("all")[0]
    lifts = sorted(report.headline("segment"), key=_by_difference)
    largest = sorted(lifts, key=lambda lift: -lift["users"])[:CHART_SEGMENTS]
    charted = sorted(largest, key=_by_difference)
    return _template().render(
        report=report,
        name=name,
        overall=overall,
        lifts=lifts,
        counts=Counter(lift["verdict"] for lift in lifts),
        unmeasured=len(set(report.segments["segment"]) - {lift["segment"] for lift in lifts}),
        others=_others(report),
        models=_models(report),
        lift_figure=lift_figure(name, overall, charted),
        num_charted=len(charted),
        by_segment=_by_segment(report),
        by_metric=_by_metric(report),
        comparisons=report.lifts[report.lifts["scope"] == "all"].to_dict("records"),
        segments=_table(report.segments),
        curves_figure=curves_figure(report, {lift["segment"] for lift in charted}),
        split=None if report.split.empty else _table(report.split),
        sections=[(section, _table(section.table)) for section in report.sections],
        settings=list(_flat(report.settings)),
        plotlyjs=Markup(get_plotlyjs()),
    )


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    environment.filters |= {"signed": signed, "short": short, "script_hash": _script_hash}
    environment.globals |= {"interval": interval, "percent": percent, "metric_at": metric_at}
    return environment.get_template("page.html.j2")


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
    return [
        {
            "row": row,
            "over_baseline": over_baseline.get(row["model"]),
            "of_subject": of_subject.get(row["model"]),
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


def _by_difference(lift: Mapping[str, Any]) -> float:
    return math.inf if math.isnan(lift["difference"]) else -float(lift["difference"])


@dataclass(frozen=True)
class _Table:
    headers: Sequence[str]
    numeric: Sequence[bool]
    rows: Sequence[tuple[Any, ...]]


def _table(frame: pd.DataFrame) -> _Table:
    # A count that one segment lacks makes its column float: whole floats become counts again.
    frame = frame.convert_dtypes()
    return _Table(
        headers=[str(column).replace("_", " ") for column in frame.columns],
        numeric=[pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes],
        rows=list(frame.itertuples(index=False, name=None)),
    )


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
    return _Table(
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
