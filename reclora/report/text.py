"""How values and names are written on the page: four decimals, and any string as inert text."""

from __future__ import annotations

import html
import math
import unicodedata
from datetime import datetime
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd


def shown(value: Any) -> Any:
    """Any value as the page shows it; text that is markup already passes."""
    if hasattr(value, "__html__"):
        return value
    if value is None or value is pd.NA or value is pd.NaT:
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    if isinstance(value, Real):
        return number(float(value))
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds")
    return visible(str(value))


def written(value: Any) -> str:
    """Any value as a cell of a table: what is very long is cut, markup is text."""
    return str(short(shown(str(value) if hasattr(value, "__html__") else value)))


def seconds(value: float | None) -> str:
    """CPU time: one decimal below a hundred seconds; a dash where it is not known."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def visible(text: str) -> str:
    """Text in which no character can steer its neighbours: controls and bidi marks are spelled out.

    Zero-width joiners stay (emoji and several scripts need them), and so do newline and tab.
    """
    return "".join(
        f"\\u{ord(c):04x}"
        if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\t\u200c\u200d"
        else c
        for c in text
    )


def label(text: object, longest: int) -> str:
    """A name in a figure, where Plotly would read some tags and entities as markup."""
    return html.escape(short(visible(str(text)), longest), quote=False)


def short(value: Any, longest: int = 120) -> Any:
    """The beginning of a string that is longer than `longest`; anything else as it is."""
    too_long = isinstance(value, str) and len(value) > longest
    return value[: longest - 1] + "…" if too_long else value


def metric_at(metric: str, k: int) -> str:
    """The name of a metric at a list length; of one that has none (k = 0), the name alone."""
    name = metric.upper() if metric in ("ndcg", "mrr", "map") else metric
    return f"{name}@{k}" if k else name


def number(value: float) -> str:
    """Four decimals, no zero before the point, as figures of this field are written: .1234."""
    if not math.isfinite(value):
        return "–"
    text = f"{abs(value):,.4f}"
    minus = "−" if value < 0 and float(f"{value:.4f}") else ""
    return minus + (text[1:] if text.startswith("0.") else text)


def signed(value: float) -> str:
    return ("+" if value > 0 and float(f"{value:.4f}") else "") + number(value)


def interval(low: float, high: float) -> str:
    if not (math.isfinite(low) and math.isfinite(high)):
        return "no interval"
    return f"[{number(low)}, {number(high)}]"


def percent(difference: float, baseline_mean: float) -> str | None:
    if not (math.isfinite(difference) and baseline_mean > 0):
        return None
    return f"{100 * difference / baseline_mean:+.1f} %".replace("-", "−")
