"""The page's figures, as plain dictionaries of Plotly's schema, each with what it says in words."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from reclora.report.contents import Report
from reclora.report.text import interval, label, metric_at, number, percent, short, signed, visible

if TYPE_CHECKING:
    from plotly import graph_objects as go

CHART_SEGMENTS = 40  # labels stay readable, and the page opens at once, however many there are
CHART_DOTS = 2_000  # so many are drawn in a tenth of a second
SIZE = "train rows"
"""The column of `Report.segments` that says how much a segment had to train on."""

# Okabe and Ito's hues, toned to reach 3:1 on white and on near-black: one chart serves both themes.
_PALETTE = ("#2b7fc0", "#d55e00", "#009e73", "#c5679b", "#a6761d", "#7b6bc4", "#7d8590")
_DASHES = ("solid", "dash", "dot", "dashdot")
USUAL = (
    *("pooled adapter", "segment popularity, recent", "segment popularity, all time"),
    *("pooled full fine-tune", "live after the run"),
    *("pooled adapter + residual", "per-segment adapters, no parent", "retrained from scratch"),
    *("per-segment full fine-tune", "live before the run"),
    *("per-segment bias", "per-segment map", "per-segment basis"),
)
"""Models that many runs have, each in the place of its style: five hues in a row."""
_SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star")
VERDICTS = {
    "better": ("#2b7fc0", "triangle-up"),
    "cannot tell": ("#7d8590", "circle-open"),
    "worse": ("#d55e00", "triangle-down"),
}


@dataclass(frozen=True)
class Chart:
    """A figure, and what it says in words."""

    figure: dict[str, Any]
    words: str


@dataclass(frozen=True)
class Style:
    """How a model's lines are drawn, wherever they are."""

    colour: str
    dash: str = "solid"
    width: int = 2


def styles_of(report: Report) -> dict[str, Style]:
    """Model -> its style, the same on every page: by its role, else by its name.

    The subject is the first hue and broad, the baseline grey. Of twenty pairs of hue and dash the
    usual models have their own; of another the name's CRC-32 picks one, and where that is taken by
    a usual model or an earlier one in the alphabet, the next.
    """
    first, *hues, grey = _PALETTE
    free = [Style(hue, dash) for dash in _DASHES for hue in hues]
    found = {report.subject: Style(first, width=4), report.baseline: Style(grey)}
    taken: set[int] = set()
    models = {*map(str, report.means["model"]), *map(str, report.curves.get("model", ()))}
    for model in sorted(models - found.keys(), key=lambda name: (name not in USUAL, name)):
        is_usual = model in USUAL
        picked = USUAL.index(model) if is_usual else zlib.crc32(model.encode("utf-8", "replace"))
        places = [(picked + step) % len(free) for step in range(len(free))]
        place = next((place for place in places if place not in taken), places[0])
        taken.add(place)
        found[model] = free[place]
    return found


def figures_of(report: Report) -> dict[str, Chart]:
    """Every figure that there are numbers for, by what it shows."""
    lifts = sorted(report.headline("segment"), key=by_difference)
    largest = sorted(lifts, key=lambda lift: -lift["users"])[:CHART_SEGMENTS]
    charted = sorted(largest, key=by_difference)
    found = {
        "lift": _lift(report, charted),
        "sizes": _sizes(report, lifts),
        "by_k": _by_k(report),
        "curves": _curves(report, {lift["segment"] for lift in charted}),
        "spectra": _spectra(report),
    }
    return {name: chart for name, chart in found.items() if chart is not None}


def plotly_figures(report: Report) -> dict[str, go.Figure]:
    """The page's charts as Plotly figures, by what they show: `lift` of each segment, `sizes` (lift
    against size), `by_k`, `curves` (validation while training), `spectra`; without those that
    nothing is known for.
    """
    from plotly.graph_objects import Figure

    return {name: Figure(chart.figure) for name, chart in figures_of(report).items()}


def by_difference(lift: Mapping[str, Any]) -> float:
    """The largest lift first, unknown ones last."""
    return math.inf if math.isnan(lift["difference"]) else -float(lift["difference"])


def _lift(report: Report, lifts: Sequence[dict[str, Any]]) -> Chart:
    """A dot and an interval for all segments, then for each of `lifts`."""
    name, overall = metric_at(report.metric, report.k), report.headline("all")[0]
    rows = [{**overall, "segment": "All segments"}, *lifts]
    labels = [f"<b>{rows[0]['segment']}</b>", *(label(row["segment"], 28) for row in lifts)]
    traces = []
    for verdict, (colour, symbol) in VERDICTS.items():
        chosen = [i for i, row in enumerate(rows) if row["verdict"] == verdict]
        if chosen:
            shown = [rows[i] for i in chosen]
            traces.append(_dots(verdict, colour, symbol, chosen, shown))
    figure = {
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
            "legend": _LEGEND,
        },
    }
    words = f"Lift of each segment in {name}, with 95 % intervals. All segments: " + _told(overall)
    if lifts:
        words += f". Highest: {_said(lifts[0])}. Lowest: {_said(lifts[-1])}"
    return Chart(figure, f"{words}. The same numbers are in the table of segments.")


def _said(lift: Mapping[str, Any]) -> str:
    return f"{short(visible(str(lift['segment'])), 28)}, {_told(lift)}"


def _told(lift: Mapping[str, Any]) -> str:
    bounds = interval(lift["low"], lift["high"])
    return f"{signed(lift['difference'])} {bounds}, {lift['verdict']}"


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


def _sizes(report: Report, lifts: Sequence[dict[str, Any]]) -> Chart | None:
    """Lift against how much a segment had to train on: where do adapters begin to pay?"""
    if SIZE not in report.segments:
        return None
    sizes = report.segments[SIZE].tolist()
    rows_of = dict(zip(report.segments["segment"].tolist(), sizes, strict=True))
    known = [lift for lift in lifts if rows_of.get(lift["segment"], 0) > 0]
    # What can be told is drawn first where not all are.
    known = [lift for lift in known if math.isfinite(lift["difference"])]
    known.sort(key=lambda lift: (lift["verdict"] == "cannot tell", -lift["users"]))
    drawn = known[:CHART_DOTS]
    if len(drawn) < 2:
        return None
    traces = []
    for verdict, (colour, symbol) in VERDICTS.items():
        its = [lift for lift in drawn if lift["verdict"] == verdict]
        if its:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": verdict,
                    "x": [int(rows_of[lift["segment"]]) for lift in its],
                    "y": [float(lift["difference"]) for lift in its],
                    "marker": {
                        "color": colour,
                        "symbol": symbol,
                        "size": 9,
                        "line": {"width": 2, "color": colour},
                    },
                    "hovertext": [
                        f"{_hover(lift)}<br>{int(rows_of[lift['segment']]):,} {SIZE}"
                        for lift in its
                    ],
                    "hoverinfo": "text",
                }
            )
    name = metric_at(report.metric, report.k)
    figure = {
        "data": traces,
        "layout": {
            "height": 380,
            "margin": _MARGIN,
            "xaxis": {
                "title": {"text": SIZE},
                "type": "log",
                "showgrid": False,
                "tickvals": _decades(rows_of),
            },
            "yaxis": {
                "title": {"text": f"lift in {name}"},
                "zeroline": True,
                "zerolinewidth": 2,
                "tickformat": "+.3~f",
                "automargin": True,
            },
            "legend": _LEGEND,
        },
    }
    return Chart(figure, f"Lift against {SIZE}, a dot a segment. {_by_size(known, rows_of)}")


def _decades(rows_of: Mapping[Any, Any]) -> list[int]:
    """1, 2 and 5 times the powers of ten, as far as the sizes go."""
    last = max(rows_of.values())
    return [m * 10**power for power in range(len(str(int(last)))) for m in (1, 2, 5)]


def _by_size(lifts: Sequence[dict[str, Any]], rows_of: Mapping[Any, Any]) -> str:
    """The mean lift of the smaller and of the larger half of the segments."""
    ordered = sorted(lifts, key=lambda lift: rows_of[lift["segment"]])
    middle = len(ordered) // 2
    halves = [
        np.mean([lift["difference"] for lift in its])
        for its in (ordered[:middle], ordered[middle:])
    ]
    limit = int(rows_of[ordered[middle]["segment"]])
    return (
        f"The smaller half of the segments, below {limit:,} rows, has a mean lift of "
        f"{signed(float(halves[0]))}, the larger half of {signed(float(halves[1]))}."
    )


def _by_k(report: Report) -> Chart | None:
    """The headline metric against the length of the list, a line a model."""
    means = report.means
    means = means[(means["scope"] == "all") & (means["metric"] == report.metric)]
    if means["k"].nunique() < 2:
        return None
    order = means[means["k"] == report.k].sort_values("mean", ascending=False)["model"]
    lines = {str(m): means[means["model"] == m].sort_values("k") for m in dict.fromkeys(order)}
    styles = styles_of(report)
    traces = [
        _line(label(model, 40), model, line["k"].tolist(), line["mean"].tolist(), styles[model])
        for model, line in lines.items()
    ]
    figure = _lines_figure(
        traces, "length of the list", metric_at(report.metric, 0), means["k"].unique().tolist()
    )
    figure["layout"]["yaxis"]["rangemode"] = "tozero"
    return Chart(
        figure,
        f"{metric_at(report.metric, 0)} against the length of the list, a line a model. The same "
        "numbers are in the table of every metric.",
    )


def _curves(report: Report, charted: set[str]) -> Chart | None:
    """Validation against epoch, a line a model and segment; of `charted` segments where many."""
    if report.curves.empty:
        return None
    frame = report.curves.astype({"model": str, "segment": object}).fillna({"segment": ""})
    groups = frame.groupby(["model", "segment"], sort=False)
    curves = {(str(model), str(segment)): points for (model, segment), points in groups}
    if len(curves) > CHART_SEGMENTS:
        curves = {key: points for key, points in curves.items() if key[1] in charted | {""}}
    entries, of = _legend(list(curves)), styles_of(report)
    symbols = dict(zip(dict.fromkeys(entries), itertools.cycle(_SYMBOLS), strict=False))
    styles = {entry: of[model] for entry, (model, _) in zip(entries, curves, strict=True)}
    if len({model for model, _ in curves}) == 1:
        # Then hues are free to tell segments apart.
        styles = dict(zip(symbols, map(Style, itertools.cycle(_PALETTE)), strict=False))
    traces = [
        _line(
            entry,
            _curve(model, segment),
            points["epoch"].tolist(),
            points["value"].tolist(),
            replace(styles[entry], width=2),
            symbols[entry],
        )
        | {"showlegend": entry not in entries[:i]}
        for i, (entry, ((model, segment), points)) in enumerate(
            zip(entries, curves.items(), strict=True)
        )
    ]
    best = frame.groupby("model", sort=False)["value"].max()
    heights = "; ".join(f"{model} {number(value)}" for model, value in best.items())
    return Chart(
        _lines_figure(traces, "epoch", "headline metric on validation"),
        "Validation while training, a line for each model and segment. Highest of each: "
        f"{heights}.",
    )


def _spectra(report: Report) -> Chart | None:
    """How much of a delta's energy its first directions hold, the mean over segments."""
    if report.spectra.empty:
        return None
    held = report.spectra.sort_values("direction")
    held = held.assign(energy=held.groupby(["segment", "delta"], sort=False)["energy"].cumsum())
    means = held.groupby(["delta", "direction"], sort=False)["energy"].mean().reset_index()
    lines = {str(name): line for name, line in means.groupby("delta", sort=False)}
    traces = [
        _line(
            label(name, 40),
            name,
            line["direction"].tolist(),
            line["energy"].tolist(),
            Style(colour),
        )
        for (name, line), colour in zip(lines.items(), itertools.cycle(_PALETTE), strict=False)
    ]
    figure = _lines_figure(
        traces, "directions", "share of the energy", means["direction"].unique().tolist()
    )
    figure["layout"]["yaxis"]["range"] = [0, 1.02]
    firsts = "; ".join(
        f"{name}: {percent(line['energy'].iloc[0], 1.0)}".replace("+", "")
        for name, line in lines.items()
    )
    return Chart(
        figure,
        "The share of a delta's energy (squared singular values) in its first directions, the mean "
        "over segments. A line that is near one early says that a lower rank would do. In the "
        f"first direction: {firsts}.",
    )


_LEGEND = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"}
_MARGIN = {"l": 10, "r": 10, "t": 20, "b": 50}


def _line(
    entry: str, hover: str, x: list[Any], y: list[float], style: Style, symbol: str = "circle"
) -> dict[str, Any]:
    """A line with its entry in the legend."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": entry,
        "legendgroup": entry,
        "x": x,
        "y": [_finite(value) for value in y],
        "line": {"color": style.colour, "dash": style.dash, "width": style.width},
        "marker": {"size": 5 if symbol == "circle" else 7, "symbol": symbol},
        "hovertext": [
            f"{label(hover, 80)}<br>{at}: {number(value)}" for at, value in zip(x, y, strict=True)
        ],
        "hoverinfo": "text",
    }


def _lines_figure(
    traces: list[dict[str, Any]], x: str, y: str, ticks: list[int] | None = None
) -> dict[str, Any]:
    xaxis: dict[str, Any] = {"title": {"text": x}, "zeroline": False, "showgrid": False}
    return {
        "data": traces,
        "layout": {
            "height": 380,
            "margin": _MARGIN,
            "xaxis": xaxis | ({} if ticks is None else {"tickvals": ticks}),
            "yaxis": {"title": {"text": y}, "zeroline": False, "automargin": True},
            "legend": _LEGEND,
        },
    }


def _legend(curves: list[tuple[str, str]]) -> list[str]:
    """The legend's entry of each (model, segment): of the model alone where symbols run out."""
    if len(curves) > len(_SYMBOLS):
        return [label(model, 40) for model, _ in curves]
    if len({model for model, _ in curves}) == 1 and all(segment for _, segment in curves):
        return [label(segment, 28) for _, segment in curves]
    return [label(_curve(model, segment), 80) for model, segment in curves]


def _curve(model: str, segment: str) -> str:
    of = f" · {short(visible(segment), 28)}" if segment else ""
    return f"{short(visible(model), 40)}{of}"


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None
