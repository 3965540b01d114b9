"""The page's two figures, as plain dictionaries of Plotly's schema."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from reclora.report.contents import Report
from reclora.report.text import interval, label, number, signed

CHART_SEGMENTS = 40  # labels stay readable, and the page opens at once, however many there are

# Okabe and Ito's hues, toned to reach 3:1 on white and on near-black: one chart serves both themes.
_PALETTE = ("#2b7fc0", "#d55e00", "#009e73", "#c5679b", "#a6761d", "#7b6bc4", "#7d8590")
VERDICTS = {
    "better": ("#2b7fc0", "triangle-up"),
    "cannot tell": ("#7d8590", "circle-open"),
    "worse": ("#d55e00", "triangle-down"),
}


def lift_figure(
    name: str, overall: dict[str, Any], lifts: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Lift in metric `name`: a dot and an interval for all segments, then for each of `lifts`."""
    rows = [{**overall, "segment": "All segments"}, *lifts]
    labels = [f"<b>{rows[0]['segment']}</b>", *(label(row["segment"], 28) for row in lifts)]
    traces = []
    for verdict, (colour, symbol) in VERDICTS.items():
        chosen = [i for i, row in enumerate(rows) if row["verdict"] == verdict]
        if chosen:
            shown = [rows[i] for i in chosen]
            traces.append(_dots(verdict, colour, symbol, chosen, shown))
    return {
        "data": traces,
        "layout": {
            "height": 110 + 24 * len(rows),
            "margin": {"l": 10, "r": 10, "t": 40, "b": 50},
            "xaxis": {
                "title": {"text": f"lift in {label(name, 60)}"},
                "zeroline": True,
                "zerolinewidth": 2,
                "tickformat": "+.3~f",
            },
            "yaxis": {
                "tickvals": list(range(len(rows))),
                "ticktext": labels,
                "range": [len(rows) - 0.5, -0.5],
                "automargin": True,
                "showgrid": False,
                "zeroline": False,
            },
            "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        },
    }


def _dots(
    verdict: str, colour: str, symbol: str, y: list[int], lifts: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": verdict,
        "x": [_finite(lift["difference"]) for lift in lifts],
        "y": y,
        "error_x": {
            "type": "data",
            "array": [_finite(lift["high"] - lift["difference"]) or 0 for lift in lifts],
            "arrayminus": [_finite(lift["difference"] - lift["low"]) or 0 for lift in lifts],
            "width": 0,
            "thickness": 2,
            "color": colour,
        },
        "marker": {
            "color": colour,
            "symbol": symbol,
            "size": 11,
            "line": {"width": 2, "color": colour},
        },
        "hovertext": [_hover(lift) for lift in lifts],
        "hoverinfo": "text",
    }


def _hover(lift: Mapping[str, Any]) -> str:
    return (
        f"<b>{label(lift['segment'], 60)}</b><br>{signed(lift['difference'])} "
        f"{interval(lift['low'], lift['high'])}<br>{lift['verdict']}, {lift['users']:,} users"
    )


def curves_figure(report: Report, charted: set[str]) -> dict[str, Any] | None:
    """Validation against epoch, a line a model and segment; of `charted` segments where many."""
    if report.curves.empty:
        return None
    frame = report.curves.astype({"model": str, "segment": object}).fillna({"segment": ""})
    groups = frame.groupby(["model", "segment"], sort=False)
    curves = {(str(model), str(segment)): points for (model, segment), points in groups}
    if len(curves) > CHART_SEGMENTS:
        curves = {key: points for key, points in curves.items() if key[1] in charted | {""}}
    entries = _legend(list(curves))
    colours = dict(zip(dict.fromkeys(entries), itertools.cycle(_PALETTE), strict=False))
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": entry,
            "legendgroup": entry,
            "showlegend": entry not in entries[:i],
            "x": points["epoch"].tolist(),
            "y": [_finite(value) for value in points["value"]],
            "line": {"color": colours[entry], "width": 2},
            "marker": {"size": 5},
            "hovertext": [f"{_curve(*key)}<br>{number(value)}" for value in points["value"]],
            "hoverinfo": "text",
        }
        for i, (entry, (key, points)) in enumerate(zip(entries, curves.items(), strict=True))
    ]
    return {
        "data": traces,
        "layout": {
            "height": 380,
            "margin": {"l": 10, "r": 10, "t": 20, "b": 50},
            "xaxis": {"title": {"text": "epoch"}, "zeroline": False, "showgrid": False},
            "yaxis": {
                "title": {"text": "headline metric on validation"},
                "zeroline": False,
                "automargin": True,
            },
            "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        },
    }


def _legend(curves: list[tuple[str, str]]) -> list[str]:
    """The legend's entry of each (model, segment): of the model alone where colours run out."""
    if len(curves) > len(_PALETTE):
        return [label(model, 40) for model, _ in curves]
    if len({model for model, _ in curves}) == 1 and all(segment for _, segment in curves):
        return [label(segment, 28) for _, segment in curves]
    return [_curve(model, segment) for model, segment in curves]


def _curve(model: str, segment: str) -> str:
    return label(model, 40) + (f" · {label(segment, 28)}" if segment else "")


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None
