"""What was measured beside relevance in all segments, as sections of a page."""

from __future__ import annotations

import pandas as pd

from reclora.drift import Drift
from reclora.metrics import CONVENTIONS, DEFINITIONS
from reclora.report import Section

from .assessment import Tables


def sections_of(
    tables: Tables, k: int, subject: str, baseline: str, drift: Drift | None = None
) -> list[Section]:
    """What was measured beside relevance in all segments, as the page prints it.

    Args:
        k: the list length that is printed.
        drift: how the subject ages, where that was measured.
    """
    found = []
    slices = tables.slices
    if len(slices):
        shown = slices[(slices["model"] == subject) & (slices["baseline"] == baseline)]
        columns = ["slice", "value", "users", "baseline_mean", "model_mean", "difference"]
        found.append(
            Section(
                "Slices",
                f"{subject} over {baseline}, on the headline metric. Cold: without a row before "
                "the test window; warm: with one. User activity: how many rows the user has there, "
                "0 the cold ones. Item popularity: head, the fewest items that hold half of those "
                "rows; tail, the other warm ones. Of a slice of items only its items count, in the "
                "same lists. Days after: from the last row before the test window to a test row. "
                f"{told_of_age(shown)}q is corrected for the values of a slice.",
                shown[[*columns, "low", "high", "q", "verdict"]],
            )
        )
    if drift is not None:
        found.append(
            Section(
                "How adapters age",
                f"{drift.says} Here {subject} are trained as they would have been so many days "
                "ago: on windows that end so much earlier, all of one length, their epochs chosen "
                "by what came next then, with the run's kinds, rates and base. The same test users "
                f"judge all. Lift: over the {baseline}; change: to the fresh ones, whose window is "
                "shorter than the run's own by the oldest age. Where an older window has fewer "
                "rows, a part of its change may be theirs. The slice of days after follows one "
                "adapter through the test window, whose later rows are other rows; where both ask "
                "for retraining, the shorter time is the safe one. q is corrected for the number "
                "of ages.",
                drift.table,
            )
        )
    lists = tables.lists
    lists = lists[(lists["scope"] == "all") & (lists["k"] == k)]
    found.append(
        Section(
            f"What the lists are like, at {k}",
            "Neither high nor low is good in itself: popular lists are safe, novel ones are not.",
            _wide(lists, "metric", "mean"),
        )
    )
    reported = tables.conventions
    reported = reported[reported["k"] == k]
    names = reported["convention"] + " " + reported["metric"] + f"@{k}"
    found.append(
        Section(
            "As other systems would report it",
            "The same lists under the conventions of other systems. "
            + " ".join(f"{c.name}: {c.says}." for c in CONVENTIONS.values()),
            _wide(reported.assign(column=names), "column", "value"),
        )
    )
    labels = tables.labels
    if len(labels):
        whole = labels[labels["scope"] == "all"]
        means = whole.groupby(["model", "metric"], sort=False)["value"].mean().reset_index()
        found.append(
            Section(
                "Labels",
                f"Scores against {whole['rows'].iloc[0]:,} labelled rows, "
                f"{whole['positives'].iloc[0]:,} of them positive. A model trained to rank orders "
                "(auc); that its numbers are chances (log_loss, calibration_error) nobody asked.",
                _wide(means, "metric", "value"),
            )
        )
    return found


def told_of_age(slices: pd.DataFrame) -> str:
    """How soon a lift grows old, and how often to retrain for it; empty without ages.

    An age is old where the interval of its difference lies below half of the youngest's lower end,
    and that of every later age does.
    """
    ages = slices[slices["slice"] == "days after"]
    if ages.empty:
        return ""
    young = ages.iloc[0]
    if not young["low"] > 0:
        return (
            f"In the first days of the test window ({young['value']}) no lift can be told, so none "
            "that fades. "
        )
    is_old = (ages["high"] < young["low"] / 2)[::-1].cummin()[::-1]
    old = ages[is_old]
    if old.empty:
        last = str(ages.iloc[-1]["value"]).rpartition("-")[2]
        return (
            f"Within the test window, {last} days, the lift is not seen to fall for good below "
            "half of the first days': nothing in it asks for retraining more often. "
        )
    days = str(old.iloc[0]["value"]).partition("-")[0]
    return (
        f"From {days} days into the test window on the lift is below half of the first days': "
        "retrain at least that often. "
    )


def _wide(table: pd.DataFrame, columns: str, values: str) -> pd.DataFrame:
    """A line a model, a column each of the values of a column."""
    wide = table.pivot(index="model", columns=columns, values=values)
    order = [list(dict.fromkeys(table[name].astype(str))) for name in ("model", columns)]
    return wide.loc[order[0], order[1]].rename_axis(columns=None).reset_index()


def definitions(tables: Tables) -> dict[str, str]:
    """The formulas of what was measured."""
    measured = (tables.means, tables.lists, tables.labels)
    names = [name for table in measured if len(table) for name in table["metric"].unique()]
    return {name: DEFINITIONS[name] for name in names}
