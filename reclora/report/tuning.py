"""The page of a study: which settings were tried, what each was worth, and which of them matter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from reclora.files import write_text
from reclora.report.figures import Chart
from reclora.report.page import template
from reclora.report.text import label, number, written

_HERE = Path(__file__).parent
_BLUE, _ORANGE, _GREY = "#2b7fc0", "#d55e00", "#7d8590"
_MARGIN = {"l": 10, "r": 10, "t": 20, "b": 50}
_LEGEND = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"}
CURVES = 60
"""So many trials have a curve, the latest; more cannot be told apart."""


@dataclass(frozen=True, eq=False)
class Tuning:
    """What the page of a study is made of."""

    title: str
    run: str
    """The study's id."""
    measure: str
    """What trials are judged by, such as NDCG@10."""
    outcome: str
    """What came of it, in sentences."""
    defaults: float
    """What the settings were worth before."""
    best: int | None
    """The best trial; None where none is better than the defaults."""
    trials: pd.DataFrame
    """trial, state (`complete`, `pruned` or another), value (NaN where it is not complete), and a
    column for each key; others are printed."""
    curves: pd.DataFrame
    """trial, epoch, value (on validation, of the users who stop); may be empty."""
    keys: Mapping[str, bool]
    """Key -> whether it is drawn on a logarithmic scale."""
    importances: Mapping[str, float]
    """Key -> its share, the largest first; empty where it is not known."""
    values: pd.DataFrame
    """setting, defaults, best."""
    notes: Sequence[str]
    versions: Mapping[str, str]
    repeat: str


def write_tuning(path: Path, tuning: Tuning) -> Path:
    """Write the page of a study to `path`, whole or not at all, and return `path`.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; an older page stays.
    """
    page = template("tuning.html.j2").render(
        tuning=tuning,
        charts=charts_of(tuning),
        values=_cells(tuning.values),
        trials=_cells(tuning.trials),
        plotlyjs=Markup(get_plotlyjs()),
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((_HERE / "page.js").read_text(encoding="utf-8")),
    )
    write_text(path, page)
    return path


def charts_of(tuning: Tuning) -> dict[str, Chart]:
    """Every figure that there are numbers for, by its heading."""
    found = {
        "What matters": _importances(tuning),
        "Trial by trial": _history(tuning),
        "While training": _curves(tuning),
    } | {key: _against(tuning, key) for key in tuning.keys}
    return {name: chart for name, chart in found.items() if chart is not None}


def _complete(tuning: Tuning) -> pd.DataFrame:
    return tuning.trials[tuning.trials["state"] == "complete"]


def _importances(tuning: Tuning) -> Chart | None:
    if not tuning.importances:
        return None
    ordered = list(tuning.importances.items())[::-1]
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [share for _, share in ordered],
        "y": [label(key, 40) for key, _ in ordered],
        "marker": {"color": _BLUE},
        "hoverinfo": "x",
    }
    figure = _figure([bars], "share", "")
    figure["layout"]["height"] = 90 + 28 * len(ordered)
    figure["layout"]["yaxis"] |= {"showgrid": False}
    said = "; ".join(f"{key} {share:.0%}" for key, share in tuning.importances.items())
    return Chart(
        figure,
        "How much of what sets the best trials apart each setting explains (PED-ANOVA), over the "
        f"trials that were not pruned: {said}.",
    )


def _history(tuning: Tuning) -> Chart | None:
    complete = _complete(tuning)
    if complete.empty:
        return None
    numbers, values = complete["trial"].tolist(), complete["value"].tolist()
    best = np.maximum.accumulate([tuning.defaults, *values])[1:].tolist()
    line = {
        "type": "scatter",
        "mode": "lines",
        "name": "best so far",
        "x": numbers,
        "y": best,
        "line": {"color": _BLUE, "width": 2, "shape": "hv"},
        "hoverinfo": "y",
    }
    pruned = int((tuning.trials["state"] == "pruned").sum())
    return Chart(
        _figure(
            [_dots(tuning, complete, "trial", numbers), line, _level(tuning, numbers)],
            "trial",
            tuning.measure,
        ),
        f"{len(values):,} trials, a dot each, beside {pruned:,} that were pruned. From "
        f"{number(min(values))} to {number(max(values))}; the defaults have "
        f"{number(tuning.defaults)}.",
    )


def _curves(tuning: Tuning) -> Chart | None:
    frame = tuning.curves
    if frame.empty:
        return None
    latest = sorted(frame["trial"].unique())[-CURVES:]
    names = [t for t in latest if t != tuning.best]
    # The best comes last, above the others.
    names += [tuning.best] if tuning.best in set(frame["trial"]) else []
    complete = set(_complete(tuning)["trial"])
    traces, entries = [], set[str]()
    for name in names:
        points = frame[frame["trial"] == name]
        kind = "best" if name == tuning.best else "complete" if name in complete else "pruned"
        colour = {"best": _BLUE, "complete": _GREY, "pruned": _ORANGE}[kind]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": kind,
                "legendgroup": kind,
                "showlegend": kind not in entries,
                "x": points["epoch"].tolist(),
                "y": points["value"].tolist(),
                "opacity": 1 if kind == "best" else 0.55,
                "line": {"color": colour, "width": 3 if kind == "best" else 1.2},
                "hovertext": [f"trial {name}, epoch {epoch}" for epoch in points["epoch"]],
                "hoverinfo": "text+y",
            }
        )
        entries.add(kind)
    return Chart(
        _figure(traces, "epoch", f"{tuning.measure}, best so far"),
        f"Validation while training, a line for each of {len(names):,} trials; the highest reaches "
        f"{number(float(frame['value'].max()))}. Trials behind the median of the others are cut "
        "off.",
    )


def _against(tuning: Tuning, key: str) -> Chart | None:
    """What trials are worth, against their value of a key."""
    complete = _complete(tuning).dropna(subset=[key])
    values = complete[key].tolist()
    if len(set(values)) < 2:
        return None
    is_number = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    places = values if is_number else [label(str(value), 28) for value in values]
    figure = _figure([_dots(tuning, complete, key, places)], label(key, 60), tuning.measure)
    if is_number and tuning.keys[key]:
        figure["layout"]["xaxis"]["type"] = "log"
    elif not is_number:
        figure["layout"]["xaxis"]["type"] = "category"
    top = complete.iloc[int(complete["value"].argmax())]
    said = number(float(top[key])) if isinstance(top[key], float) else str(top[key])
    return Chart(
        figure,
        f"{tuning.measure} against {key}, a dot for each of {len(values):,} trials that were not "
        f"pruned. The best of them has {said}.",
    )


def _dots(tuning: Tuning, frame: pd.DataFrame, key: str, places: list[Any]) -> dict[str, Any]:
    is_best = (frame["trial"] == tuning.best).tolist()
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "trial",
        "x": places,
        "y": frame["value"].tolist(),
        "marker": {
            "color": [_BLUE if best else _GREY for best in is_best],
            "size": [13 if best else 8 for best in is_best],
            "symbol": ["diamond" if best else "circle-open" for best in is_best],
            "line": {"width": 2},
        },
        "hovertext": [
            f"trial {trial}<br>{label(key, 40)}: {label(place, 28)}<br>{number(value)}"
            for trial, place, value in zip(frame["trial"], places, frame["value"], strict=True)
        ],
        "hoverinfo": "text",
    }


def _level(tuning: Tuning, places: list[int]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "defaults",
        "x": [min(places), max(places)],
        "y": [tuning.defaults] * 2,
        "line": {"color": _ORANGE, "width": 2, "dash": "dot"},
        "hoverinfo": "y",
    }


def _figure(traces: list[dict[str, Any]], x: str, y: str) -> dict[str, Any]:
    return {
        "data": traces,
        "layout": {
            "height": 360,
            "margin": _MARGIN,
            "xaxis": {"title": {"text": x}, "zeroline": False, "showgrid": False},
            "yaxis": {"title": {"text": y}, "zeroline": False, "automargin": True},
            "legend": _LEGEND,
        },
    }


@dataclass(frozen=True)
class _Cells:
    """A table as it is read."""

    headers: Sequence[str]
    numeric: Sequence[bool]
    rows: Sequence[Sequence[str]]


def _cells(frame: pd.DataFrame) -> _Cells:
    # As objects, so that whole numbers beside others stay whole.
    frame = frame.astype(object)
    numeric = [all(map(_is_number, frame[name])) for name in frame]
    rows = [[_cell(v) for v in row] for row in frame.itertuples(index=False, name=None)]
    return _Cells(list(map(str, frame)), numeric, rows)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real | None) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    # A rate of .00012 has no digit left in four decimals.
    if isinstance(value, float) and math.isfinite(value) and 0 < abs(value) < 0.01:
        return f"{value:.3g}"
    return written(value)
