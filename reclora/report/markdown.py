"""A report in a few lines of Markdown, for a chat or a pull request."""

from __future__ import annotations

from typing import Any

from reclora.report.contents import TO_TELL, Report
from reclora.report.text import interval, metric_at, number, percent, short, signed, visible

SEGMENTS_SHOWN = 10


def markdown(report: Report) -> str:
    """The report's answer: the headline, what went live, every model, the largest lifts and losses.

    Names stand in code spans, in which nothing mentions, links or formats.
    """
    name, overall = metric_at(report.metric, report.k), report.headline("all")[0]
    relative = percent(overall["difference"], overall["baseline_mean"])
    lines = [
        f"### {_plain(report.title)}",
        "",
        f"{name} of {_code(report.subject)} is {number(overall['model_mean'])}, of "
        f"{_code(report.baseline)} {number(overall['baseline_mean'])}: "
        f"**{signed(overall['difference'])}**{f' ({relative})' if relative else ''} "
        f"{interval(overall['low'], overall['high'])} over {overall['users']:,} users: "
        f"**{overall['verdict']}**.",
    ]
    segments = report.by_segment()
    told = segments["verdict"].value_counts()
    lines.append(
        ", ".join(f"{told.get(word, 0):,} {word}" for word in ("better", "worse", "cannot tell"))
        + f" of {int(told.sum()):,} segments."
    )
    lines += _standing(report)
    lines += [_plain(report.outcome)] if report.outcome else []
    lines += [
        "",
        f"| model | {name} | lift over {_cell(report.baseline)} | 95 % interval | verdict |",
    ]
    lines += ["|---|---:|---:|---|---|", *_models(report)]
    measured = segments[segments["users"] > 0]
    lines += ["", "| segment | users | lift | 95 % interval | verdict |", "|---|---:|---:|---|---|"]
    shown = measured
    if len(measured) > SEGMENTS_SHOWN:
        half = SEGMENTS_SHOWN // 2
        shown = measured.iloc[[*range(half), *range(len(measured) - half, len(measured))]]
    lines += [
        f"| {_cell(row['segment'])} | {row['users']:,} | {_lift(row)}{_to_tell(row)} |"
        for row in shown.to_dict("records")
    ]
    if len(shown) < len(measured):
        lines.append(f"\nThe largest and the smallest lifts of {len(measured):,} segments.")
    lines += ["", f"Run {_code(report.run)}: {_code(report.repeat)}", ""]
    return "\n".join(lines)


def _standing(report: Report) -> list[str]:
    """What else it is better or worse than: a lift over the baseline is half of the answer."""
    frame = report.lifts
    frame = frame[(frame["metric"] == report.metric) & (frame["k"] == report.k)]
    own = frame[(frame["scope"] == "all") & (frame["model"] == report.subject)]
    own = own[own["baseline"] != report.baseline]
    words = {"worse": "Worse than", "cannot tell": "Not told from", "better": "Better than"}
    return [
        f"{said} {', '.join(map(_code, own.loc[own['verdict'] == verdict, 'baseline']))}."
        for verdict, said in words.items()
        if (own["verdict"] == verdict).any()
    ]


def _models(report: Report) -> list[str]:
    frame = report.lifts
    frame = frame[(frame["metric"] == report.metric) & (frame["k"] == report.k)]
    over = frame[(frame["scope"] == "all") & (frame["baseline"] == report.baseline)]
    rows = [(float(row["model_mean"]), row["model"], _lift(row)) for row in over.to_dict("records")]
    base = float(over["baseline_mean"].iloc[0])
    rows.append((base, report.baseline, " | | "))
    return [
        f"| {_cell(model)} | {number(mean)} | {lift} |"
        for mean, model, lift in sorted(rows, key=lambda row: -row[0])
    ]


def _lift(row: dict[Any, Any]) -> str:
    bounds = interval(row["low"], row["high"])
    return f"{signed(row['difference'])} | {bounds} | {row['verdict']}"


def _to_tell(row: dict[Any, Any]) -> str:
    """What it takes to tell a segment, in brackets after its verdict."""
    needs = row.get(TO_TELL)
    return f" (needs {_plain(needs)})" if isinstance(needs, str) and needs else ""


def _code(name: object) -> str:
    """A name in a code span, on one line."""
    text = " ".join(short(visible(str(name))).replace("`", "'").split())
    return f"`{text}`" if text else "` `"


def _cell(name: object) -> str:
    """The same in a cell of a table, where a bar would end the cell."""
    return _code(name).replace("|", "\\|")


def _plain(text: str) -> str:
    """A sentence of ours in which a name may stand: with its marks as they are written."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>#|~@" else c for c in " ".join(visible(text).split()))
