"""Tests of reclora/report: what the page says, and that no name can make it do anything."""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plotly.graph_objects import Figure

from reclora.report import (
    TO_TELL,
    Report,
    Section,
    markdown,
    plotly_figures,
    write_csv,
    write_report,
)
from reclora.report.contents import LIFT
from reclora.report.text import interval, label, number, percent, short, shown, signed

MODELS = {
    "per-segment adapters": 0.1234,
    "recent popularity": 0.1229,
    "pooled adapter": 0.1178,
    "frozen base": 0.1100,
    "segment popularity": 0.0712,
}
SUBJECT, BASELINE = "per-segment adapters", "frozen base"
NAMES = ("student", "engineer", "executive", "librarian", "programmer", "retired", "writer")
HOSTILE = (
    "</script><script>document.title='run'</script>",
    "<img src=x onerror=\"document.title='run'\">",
    "{{7*7}}{% raw %}",
    "$\\frac{1}{2}$",
    "\u202eevil\u2066",
    "👩‍🚀 <b>bold</b><a href='javascript:document.title=1'>x</a> %{y} &lt;",
    "\x00\n\t'\"`;--",
    "x" * 4096,
)


def verdict(low: float, high: float) -> str:
    return "better" if low > 0 else "worse" if high < 0 else "cannot tell"


def lift_row(model: str, baseline: str, segment: str | None, **numbers: Any) -> dict[str, Any]:
    row = {"metric": "ndcg", "k": 10, "scope": "segment" if segment else "all", "users": 943}
    row |= {"model": model, "baseline": baseline, "segment": segment, **numbers}
    row.setdefault("difference", row["model_mean"] - row["baseline_mean"])
    row["verdict"] = verdict(row["low"], row["high"])
    told = row["verdict"] != "cannot tell"
    row |= {"q": 0.01 if told else 0.4, "note": "" if told else "could show .0200 and more"}
    return row


def segment_lifts(names: tuple[str, ...]) -> list[dict[str, Any]]:
    random = np.random.default_rng(7)
    rows = []
    for i, name in enumerate(names):
        base, lift = 0.09 + 0.04 * random.random(), 0.02 - 0.006 * (i % 7)
        users = int(random.integers(20, 190))
        half = 0.09 / users**0.5
        bounds = {"low": lift - half, "high": lift + half}
        means = {"baseline_mean": base, "model_mean": base + lift}
        rows.append(lift_row(SUBJECT, BASELINE, name, users=users, **means, **bounds))
    return rows


def overall_lifts() -> list[dict[str, Any]]:
    pairs = [(SUBJECT, other) for other in MODELS if other != SUBJECT]
    pairs += [(model, BASELINE) for model in MODELS if model not in (SUBJECT, BASELINE)]
    rows = []
    for model, baseline in pairs:
        means = {"model_mean": MODELS[model], "baseline_mean": MODELS[baseline]}
        lift = MODELS[model] - MODELS[baseline]
        rows.append(lift_row(model, baseline, None, **means, low=lift - 0.0033, high=lift + 0.0033))
    return rows


def example_means(lifts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for metric, k, share in (("ndcg", 10, 1.0), ("ndcg", 20, 1.1), ("recall", 10, 0.8)):
        common = {"metric": metric, "k": k}
        for model, mean in MODELS.items():
            whole = {"scope": "all", "segment": "", "users": 943, "mean": mean * share}
            rows.append({**common, "model": model, **whole})
            for lift in lifts:
                part = {"scope": "segment", "segment": lift["segment"], "users": lift["users"]}
                ratio = mean / MODELS[BASELINE] * lift["baseline_mean"]
                rows.append({**common, "model": model, **part, "mean": ratio * share})
    return rows


def example(names: tuple[str, ...] = NAMES) -> Report:
    """A report whose headline is .1234 over .1100: +.0134 [.0101, .0167]."""
    lifts = segment_lifts(names)
    sizes = [
        {"segment": name, "train rows": 900 * (i + 1), "test_users": 9, "best_epoch": i or None}
        for i, name in enumerate(names)
    ]
    curves = [
        {"model": SUBJECT, "segment": name, "epoch": epoch, "value": 0.1 + 0.01 * i + 0.02 / epoch}
        for i, name in enumerate(names[:60])
        for epoch in range(1, 9)
    ]
    windows = ("pretrain", "adapt", "validation", "test")
    days = pd.date_range("1997-09-20", periods=5, freq="40D", tz="UTC")
    return Report(
        title="reclora on MovieLens 100K, a segment an occupation",
        run="1997-ml100k",
        subject=SUBJECT,
        baseline=BASELINE,
        metric="ndcg",
        k=10,
        means=pd.DataFrame(example_means(lifts)),
        lifts=pd.DataFrame(overall_lifts() + lifts),
        segments=pd.DataFrame(sizes),
        curves=pd.DataFrame(curves),
        split=pd.DataFrame(
            {"window": windows, "first": days[:-1], "last": days[1:], "rows": 25_000}
            | {"users": 943, "items": 1682}
        ),
        data_quality={"rows read": 100_000, "duplicates": 0, "quarantine": "none"},
        definitions={"ndcg@k": "binary gain, log2, ideal over min(k, |relevant|)"},
        settings={"training": {"seed": 0, "rank": 8, "rates": [0.003, 0.03]}, "note": None},
        versions={"torch": "2.13.0"},
        repeat="reclora demo --segment occupation",
        notes=["One seed and one cut in time."],
    )


class Page(HTMLParser):
    """The page as a parser sees it: text outside scripts, tags, and contents of scripts."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._inside = ""
        self.feed(source)
        self.close()
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self._inside != "style":
            self.words.append(data)

    def figures(self) -> dict[str, dict[str, Any]]:
        """By what they show."""
        drawn = [(attrs, text) for attrs, text in self.scripts if attrs.get("class") == "figure"]
        return {str(attrs["data-shows"]): json.loads(text) for attrs, text in drawn}

    def words_of_figures(self) -> list[str]:
        return [attrs["aria-label"] or "" for _, attrs in self.tags if attrs.get("role") == "img"]

    def rests(self) -> list[list[list[str]]]:
        """The rows of tables that are not laid out."""
        return [json.loads(text) for attrs, text in self.scripts if attrs.get("class") == "rest"]


def page_of(report: Report, folder: Path) -> Page:
    return Page(write_report(folder / "report.html", report).read_text(encoding="utf-8"))


def with_lift(report: Report, change: Callable[[pd.DataFrame], None]) -> Report:
    lifts = report.lifts.copy()
    change(lifts)
    return replace(report, lifts=lifts)


def test_first_screen_says_whether_where_and_how_sure(tmp_path: Path) -> None:
    text = page_of(example(), tmp_path).text
    assert (
        "NDCG@10 of per-segment adapters is .1234, of frozen base .1100: +.0134 (+12.2 %) "
        "[.0101, .0167] over 943 users: better ." in text
    )
    verdicts = example().lifts.query("scope == 'segment'")["verdict"].value_counts()
    counts = [verdicts[word] for word in ("better", "worse", "cannot tell")]
    assert "{} of 7 segments better , {} worse , {} cannot tell .".format(*counts) in text
    assert "Better than pooled adapter, segment popularity." in text
    assert "Cannot be told apart from recent popularity." in text


def test_a_loss_is_said_as_plainly(tmp_path: Path) -> None:
    report = replace(example(), subject="segment popularity")
    text = page_of(report, tmp_path).text
    assert "−.0388 (−35.3 %) [−.0421, −.0355] over 943 users: worse" in text
    assert "0 of 0 segments better ," in text and "7 more without a measured user" in text


def test_every_segment_and_number_is_in_the_page(tmp_path: Path) -> None:
    report = example()
    text = page_of(report, tmp_path).text
    for lift in report.headline("segment"):
        mark = {"better": "▲", "worse": "▼"}.get(lift["verdict"], "○")
        row = (
            f"{lift['segment']} {signed(lift['difference'])} {mark} {lift['verdict']} "
            f"{interval(lift['low'], lift['high'])} {number(lift['q'])} "
            f"{number(lift['baseline_mean'])} {number(lift['model_mean'])} {lift['users']}"
        )
        assert row in re.sub(r"\s+", " ", text), row
    for words in (
        "1997-09-20 00:00:00+00:00",
        "training.rates 0.003, 0.03",
        "note –",
        "rows read 100,000",
        "torch 2.13.0",
        "reclora demo --segment occupation",
        "binary gain, log2",
        "One seed and one cut in time.",
        "Verdicts are corrected for being",
        "136 900 9 –",  # a count that is missing elsewhere in its column is still a count
        "1,800 9 1",
    ):
        assert words in text, words


def test_cannot_tell_is_never_dressed_as_a_win(tmp_path: Path) -> None:
    page = page_of(example(), tmp_path)
    classes = [attrs["class"] for _, attrs in page.tags if "verdict" in (attrs.get("class") or "")]
    assert {"verdict better", "verdict cannot-tell"} <= set(classes)
    traces = {trace["name"]: trace["marker"] for trace in page.figures()["lift"]["data"]}
    assert traces["cannot tell"]["color"] != traces["better"]["color"]
    assert traces["cannot tell"]["symbol"] != traces["better"]["symbol"]


def test_the_chart_shows_the_lifts(tmp_path: Path) -> None:
    report = example()
    figure = page_of(report, tmp_path).figures()["lift"]
    rows = {y: lab for y, lab in enumerate(figure["layout"]["yaxis"]["ticktext"])}
    drawn = {
        rows[y]: (round(x - low, 9), round(x, 9), round(x + high, 9))
        for trace in figure["data"]
        for x, y, low, high in zip(
            trace["x"],
            trace["y"],
            trace["error_x"]["arrayminus"],
            trace["error_x"]["array"],
            strict=True,
        )
    }
    wanted = {
        lift["segment"]: tuple(round(lift[key], 9) for key in ("low", "difference", "high"))
        for lift in report.headline("segment")
    }
    whole = drawn.pop("<b>All segments</b>")
    assert drawn == wanted and whole == (0.0101, 0.0134, 0.0167)
    assert list(rows.values())[0] == "<b>All segments</b>"


def test_no_interval_is_said_and_drawn_without_one(tmp_path: Path) -> None:
    def lonely(lifts: pd.DataFrame) -> None:
        row = lifts.index[lifts["segment"] == "student"]
        lifts.loc[row, ["low", "high", "users", "verdict"]] = [np.nan, np.nan, 1, "cannot tell"]

    page = page_of(with_lift(example(), lonely), tmp_path)
    assert re.search(r"student \S+ ○ cannot tell no interval \S+ \S+ \S+ 1 ", page.text)
    trace = next(t for t in page.figures()["lift"]["data"] if t["name"] == "cannot tell")
    assert 0 in trace["error_x"]["array"]


def test_hostile_names_are_inert_text(tmp_path: Path) -> None:
    report = replace(example(HOSTILE), title=HOSTILE[0], notes=HOSTILE, repeat=HOSTILE[1])
    report = replace(report, settings={HOSTILE[0]: {HOSTILE[1]: "\ud800"}})
    page, plain = page_of(report, tmp_path), page_of(example(), tmp_path)
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in plain.tags}
    assert len(page.scripts) == len(plain.scripts) == 6
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    for name in HOSTILE:
        assert re.sub(r"\s+", " ", short(shown(name))) in page.text
    assert "\u202e" not in page.text and "\\u202eevil\\u2066" in page.text
    assert "49" not in page.figures()["lift"]["layout"]["yaxis"]["ticktext"]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_a_label_of_a_figure_has_no_markup_and_no_controls(name: str) -> None:
    text = label(name, 28)
    assert "<" not in text and ">" not in text
    assert not re.search(r"&(?!amp;|lt;|gt;)", text)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200e\u200f\x00-\x08]", text)
    text.encode()


def test_nothing_is_fetched_and_only_our_two_scripts_may_run(tmp_path: Path) -> None:
    page = page_of(example(), tmp_path)
    assert not any("src" in attrs for _, attrs in page.tags)
    assert not any(tag in ("link", "img", "iframe", "object", "base") for tag, _ in page.tags)
    assert all(attrs["href"].startswith("#") for _, attrs in page.tags if attrs.get("href"))
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv"))
    assert policy and "default-src 'none'" in policy
    assert re.fullmatch(
        r"('sha256-[^']+') ('sha256-[^']+')", policy.split("script-src ")[1].strip("; ")
    )


def test_many_segments_fold_and_the_chart_says_what_it_shows(tmp_path: Path) -> None:
    names = tuple(f"tenant {i}" for i in range(300))
    page = page_of(example(names), tmp_path)
    lifts, curves, sizes = (page.figures()[name] for name in ("lift", "curves", "sizes"))
    assert len(lifts["layout"]["yaxis"]["ticktext"]) == 41
    assert len(curves["data"]) <= 40 and sum(t["showlegend"] for t in curves["data"]) == 1
    assert "The chart shows the 40 segments with the most users, the table all 300." in page.text
    assert sum(len(trace["x"]) for trace in sizes["data"]) == 300
    # Of the segments, and of every model in them; the first row is that of all together.
    assert [len(rest) for rest in page.rests()] == [251, 250]
    assert page.text.count("50 of 301 rows are shown.") == 1
    fewest = min(
        example(names).headline("segment"), key=lambda lift: (lift["users"], lift["segment"])
    )
    assert fewest["segment"] not in lifts["layout"]["yaxis"]["ticktext"]


def test_a_run_without_curves_has_no_chart_of_them(tmp_path: Path) -> None:
    page = page_of(replace(example(), curves=pd.DataFrame()), tmp_path)
    assert "curves" not in page.figures() and "Validation while training" not in page.text


def test_models_are_sorted_and_appear_once_whatever_the_index(tmp_path: Path) -> None:
    report = example()
    shuffled = report.means.sample(frac=1, random_state=0).set_index(np.zeros(len(report.means)))
    text = page_of(replace(report, means=shuffled), tmp_path).text
    table = text.split("Every model, all segments together")[1].split("One seed")[0]
    assert re.findall(r"943 (\.\d{4}) ", table) == [number(mean) for mean in MODELS.values()]


def drawn_as(report: Report, folder: Path, shows: str) -> dict[str, tuple[str, str]]:
    """Entry of the legend -> (hue, dash) of its lines."""
    data = page_of(report, folder).figures()[shows]["data"]
    found = {(t["name"], t["line"]["color"], t["line"]["dash"]) for t in data}
    assert len(found) == len({name for name, *_ in found}), "one style a name"
    return {name: (hue, dash) for name, hue, dash in found}


def test_a_model_is_drawn_alike_on_every_page(tmp_path: Path) -> None:
    report = example()
    first = drawn_as(report, tmp_path, "by_k")
    assert len(set(first.values())) == len(MODELS)
    # On another page others lead, and some are not there.
    means = report.means[report.means["model"] != "pooled adapter"].copy()
    means["mean"] = -means["mean"]
    other = drawn_as(replace(report, means=means), tmp_path, "by_k")
    assert other == {name: style for name, style in first.items() if name != "pooled adapter"}
    rows = [
        {"model": model, "segment": segment, "epoch": 1, "value": 0.1}
        for model in ("pooled adapter", SUBJECT)
        for segment in ("a", "b")
    ]
    curves = drawn_as(replace(report, curves=pd.DataFrame(rows)), tmp_path, "curves")
    for entry, style in curves.items():
        assert style == first[entry.partition(" · ")[0]]
    # The question's two sides by their role: whatever they are called.
    named = {SUBJECT: "release 7", BASELINE: "what was there"}
    frames = {n: getattr(report, n).replace(named) for n in ("means", "lifts")}
    turned = replace(report, subject=named[SUBJECT], baseline=named[BASELINE], **frames)
    found = drawn_as(turned, tmp_path, "by_k")
    assert [found[named[name]] for name in named] == [first[name] for name in named]


def test_more_models_than_styles_are_all_drawn(tmp_path: Path) -> None:
    report = example()
    more = [
        report.means[report.means["model"] == BASELINE].assign(model=f"model {n}")
        for n in range(40)
    ]
    found = drawn_as(replace(report, means=pd.concat([report.means, *more])), tmp_path, "by_k")
    assert len(found) == 40 + len(MODELS) and len(set(found.values())) == 22


def test_pooled_curves_and_categorical_columns(tmp_path: Path) -> None:
    report = example()
    pooled = pd.DataFrame({"model": "pooled adapter", "segment": [None], "epoch": 1, "value": 0.1})
    report = replace(
        report,
        curves=pd.concat([report.curves, pooled]).astype({"segment": "category"}),
        lifts=report.lifts.astype({"model": "category", "segment": "category"}),
        means=report.means.astype({"model": "category", "segment": "category"}),
    )
    page = page_of(report, tmp_path)
    assert "pooled adapter" in {trace["name"] for trace in page.figures()["curves"]["data"]}
    assert "+.0134" in page.text


@pytest.mark.parametrize(
    ("frame", "column"), [("means", "mean"), ("lifts", "low"), ("split", "rows")]
)
def test_a_missing_column_is_named(frame: str, column: str) -> None:
    report = example()
    changed: dict[str, Any] = {frame: getattr(report, frame).drop(columns=column)}
    with pytest.raises(ValueError, match=rf"{frame} need the columns \['{column}'\]"):
        replace(report, **changed)


def test_a_headline_that_was_not_compared_is_refused() -> None:
    with pytest.raises(
        ValueError, match="headline 'per-segment adapters' over 'frozen base' on ndcg@5"
    ):
        replace(example(), k=5)


def test_a_verdict_against_its_interval_is_refused() -> None:
    def boast(lifts: pd.DataFrame) -> None:
        lifts.loc[lifts["verdict"] == "cannot tell", "verdict"] = "better"

    with pytest.raises(ValueError, match="a verdict must be better \\(only where low > 0\\)"):
        with_lift(example(), boast)


def test_cannot_tell_is_a_verdict_of_any_interval() -> None:
    """A comparison may say so of few users though their interval excludes zero."""

    def doubt(lifts: pd.DataFrame) -> None:
        lifts["verdict"] = "cannot tell"

    with_lift(example(), doubt)


def test_the_same_comparison_twice_is_refused() -> None:
    report = example()
    with pytest.raises(ValueError, match="the same comparison twice"):
        replace(report, lifts=pd.concat([report.lifts, report.lifts.tail(1)]))


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = write_report(tmp_path / "report.html", example())
    before = path.read_bytes()
    broken = replace(example(), settings={"a": Unprintable()})
    with pytest.raises(RuntimeError):
        write_report(path, broken)
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == [
        "report.csv",
        "report.html",
        "report.md",
        "report.parquet",
    ]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("cannot be written")


def test_same_report_same_bytes(tmp_path: Path) -> None:
    first, second = (write_report(tmp_path / name, example()).read_bytes() for name in "ab")
    assert first == second


# Sizes, costs, spectra; every figure in words.


def full(names: tuple[str, ...] = NAMES) -> Report:
    """The example with all that a report may have."""
    spectra = [
        {"segment": name, "delta": delta, "direction": at + 1, "energy": energy}
        for name in names
        for delta in ("user_table.rows", "item_table.rows")
        for at, energy in enumerate((0.6, 0.3, 0.1))
    ]
    costs = {"model": [SUBJECT, BASELINE], "numbers": [66_626, 1_278_942], "seconds": [24.84, None]}
    return replace(
        example(names),
        outcome="Release 7 went live: 5 promoted, 2 fell back.",
        costs=pd.DataFrame(costs),
        spectra=pd.DataFrame(spectra),
    )


def test_what_went_live_and_what_it_costs_stand_on_the_first_screen(tmp_path: Path) -> None:
    text = page_of(full(), tmp_path).text
    before = text.split("One seed and one cut")[0]
    assert "Release 7 went live: 5 promoted, 2 fell back." in before
    assert "943 .1234 66,626 24.8 +.0134" in before
    assert "943 .1100 1,278,942 – –" in before and "943 .1229 – – +.0129" in before


def test_every_figure_says_in_words_what_it_shows(tmp_path: Path) -> None:
    report = full()
    page = page_of(report, tmp_path)
    assert list(page.figures()) == ["lift", "sizes", "by_k", "curves", "spectra"]
    lift, sizes, by_k, curves, spectra = page.words_of_figures()
    best = report.by_segment().iloc[0]
    assert f"Highest: {best['segment']}, {signed(best['difference'])}" in lift
    lifts = report.by_segment().sort_values("train rows")["difference"]
    assert f"mean lift of {signed(lifts[:3].mean())}, the larger half of" in sizes
    assert "length of the list" in by_k and "Highest of each" in curves
    assert "user_table.rows: 60.0 %; item_table.rows: 60.0 %" in spectra


def test_lift_is_drawn_against_size(tmp_path: Path) -> None:
    report = full()
    figure = page_of(report, tmp_path).figures()["sizes"]
    assert figure["layout"]["xaxis"]["type"] == "log"
    drawn = {(x, round(y, 9)) for t in figure["data"] for x, y in zip(t["x"], t["y"], strict=True)}
    table = report.by_segment()
    wanted = zip(table["train rows"], table["difference"].round(9), strict=True)
    assert drawn == set(wanted)
    unsized = replace(report, segments=report.segments.drop(columns="train rows"))
    assert "sizes" not in page_of(unsized, tmp_path).figures()


def test_of_very_many_segments_those_that_say_most_are_drawn(tmp_path: Path) -> None:
    report = full(tuple(f"tenant {i}" for i in range(2500)))
    told = (report.by_segment()["verdict"] != "cannot tell").sum()
    assert 500 < told < 2000
    traces = {t["name"]: len(t["x"]) for t in page_of(report, tmp_path).figures()["sizes"]["data"]}
    assert traces["better"] + traces["worse"] == told and sum(traces.values()) == 2000


def test_spectra_add_up_to_one(tmp_path: Path) -> None:
    figure = page_of(full(), tmp_path).figures()["spectra"]
    assert [t["name"] for t in figure["data"]] == ["user_table.rows", "item_table.rows"]
    for trace in figure["data"]:
        assert trace["x"] == [1, 2, 3] and trace["y"] == pytest.approx([0.6, 0.9, 1.0])


def test_figures_are_plotly_objects() -> None:
    figures = plotly_figures(full())
    assert list(figures) == ["lift", "sizes", "by_k", "curves", "spectra"]
    assert all(isinstance(figure, Figure) for figure in figures.values())
    assert figures["lift"].layout.xaxis.title.text == "lift in NDCG@10"
    assert list(plotly_figures(replace(example(), curves=pd.DataFrame()))) == [
        "lift",
        "sizes",
        "by_k",
    ]


def test_a_segment_is_one_row_of_all_that_is_known(tmp_path: Path) -> None:
    report = example()
    extra = pd.DataFrame({"segment": ["unmeasured"], "train rows": [7], "test_users": [0]})
    segments = pd.concat([report.segments, extra], ignore_index=True)
    table = replace(report, segments=segments).by_segment()
    assert table["segment"].tolist()[-1] == "unmeasured" and len(table) == len(NAMES) + 1
    measured = table.iloc[:-1]
    untold = measured["verdict"] == "cannot tell"
    assert untold.is_monotonic_increasing and 0 < untold.sum() < len(untold)
    assert measured.loc[~untold, "difference"].is_monotonic_decreasing
    assert measured.loc[untold, "users"].is_monotonic_decreasing
    last = table.iloc[-1]
    assert last["users"] == 0 and last["train rows"] == 7 and math.isnan(last["difference"])
    wanted = {lift["segment"]: lift for lift in report.headline("segment")}
    for row in table.iloc[:-1].to_dict("records"):
        assert {key: row[key] for key in LIFT} == {key: wanted[row["segment"]][key] for key in LIFT}


def test_lifts_of_a_section_are_written_as_those_of_segments(tmp_path: Path) -> None:
    report = example()
    rows = [
        {"slice": "users", "value": value} | {name: lift[name] for name in LIFT if name != "note"}
        for value, lift in zip(("cold", "warm"), report.headline("segment"), strict=False)
    ]
    other = pd.DataFrame({"model": [SUBJECT], "novelty": [0.5]})
    sections = [Section("Slices", "Of users.", pd.DataFrame(rows)), Section("Lists", "", other)]
    page = page_of(replace(report, sections=sections), tmp_path)
    text = re.sub(r"\s+", " ", page.text)
    headers = f"lift verdict 95 % interval q {BASELINE} {SUBJECT} users"
    assert f"slice value {headers}" in text and f"segment {headers} could show" in text
    of_slices = text.split("Of users.")[1].split("Lists")[0]
    assert "baseline mean" not in of_slices and "difference" not in of_slices
    for row in rows:
        mark = {"better": "▲", "worse": "▼"}.get(str(row["verdict"]), "○")
        means = number(row["baseline_mean"]), number(row["model_mean"])
        assert (
            f"users {row['value']} {signed(row['difference'])} {mark} {row['verdict']} "
            f"{interval(row['low'], row['high'])} {number(row['q'])} {' '.join(means)} "
            f"{row['users']}"
        ) in of_slices
    assert f"model novelty {SUBJECT} .5000" in text


def test_decisions_stand_in_a_table_of_their_own(tmp_path: Path) -> None:
    report = example()
    why = "cannot tell alone: " + "x" * 60
    segments = report.segments.assign(decision="promoted", reason=why)
    page = page_of(replace(report, segments=segments), tmp_path)
    assert "What became of each, and why" in page.text
    assert f"student promoted {why}" in page.text and page.text.count(why) == len(NAMES)
    assert "What became of each" not in page_of(report, tmp_path).text


def test_sizes_are_marked_at_one_two_and_five(tmp_path: Path) -> None:
    axis = page_of(full(), tmp_path).figures()["sizes"]["layout"]["xaxis"]
    assert axis["tickvals"] == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]


def test_a_column_that_a_lift_has_too_is_that_of_the_lift() -> None:
    report = example()
    segments = report.segments.assign(users=-1, verdict="?")
    table = replace(report, segments=segments).by_segment()
    assert table.equals(report.by_segment())


# Markdown and CSV.


def test_markdown_says_what_the_page_does(tmp_path: Path) -> None:
    report = full()
    write_report(tmp_path / "report.html", report)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text == markdown(report)
    assert "NDCG@10 of `per-segment adapters` is .1234, of `frozen base` .1100" in text
    assert "**+.0134** (+12.2 %) [.0101, .0167] over 943 users: **better**." in text
    assert "Better than `pooled adapter`, `segment popularity`." in text
    assert "Not told from `recent popularity`." in text and "Worse than" not in text
    assert "Release 7 went live" in text and "| `frozen base` | .1100 |" in text
    for row in report.by_segment().to_dict("records"):
        assert f"| `{row['segment']}` | {row['users']} | {signed(row['difference'])} |" in text


def test_what_it_takes_to_tell_a_segment_stands_beside_what_its_users_could_show(
    tmp_path: Path,
) -> None:
    report = example(("de", "fr", "it"))
    untold = report.by_segment().set_index("segment")["verdict"] == "cannot tell"
    said = {s: "about 1,200 more users" if untold[s] else "" for s in ("de", "fr", "it")}
    segments = report.segments.assign(**{TO_TELL: report.segments["segment"].map(said)})
    advised = replace(report, segments=segments)
    text = re.sub(r"\s+", " ", page_of(advised, tmp_path).text)
    assert f"could show {TO_TELL} " in text and f"“{TO_TELL}” how many more" in text
    assert "about 1,200 more users" in text and 0 < untold.sum()
    lines = markdown(advised).splitlines()
    told = {s: next(line for line in lines if line.startswith(f"| `{s}` |")) for s in said}
    for segment, line in told.items():
        needs = " (needs about 1,200 more users) |" if untold[segment] else " |"
        assert line.endswith(
            f"{report.by_segment().set_index('segment').at[segment, 'verdict']}{needs}"
        )
    before = re.sub(r"\s+", " ", page_of(report, tmp_path).text)
    assert TO_TELL not in before and "needs about" not in markdown(report)


def test_markdown_of_many_segments_has_the_ends() -> None:
    report = example(tuple(f"tenant {i}" for i in range(300)))
    text, table = markdown(report), report.by_segment()
    named = re.findall(r"\| `(tenant \d+)` \|", text)
    assert named == [*table["segment"][:5], *table["segment"][-5:]]
    assert "The largest and the smallest lifts of 300 segments." in text


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=60))
def test_no_name_leaves_its_cell_of_markdown(name: str) -> None:
    report = example((name, "other"))
    lines = markdown(report).splitlines()
    (row,) = [line for line in lines if line.startswith("| ") and " | 136 | " in line]
    # A bar in a code span of a table ends the cell unless a backslash is before it.
    assert len(re.findall(r"(?<!\\)\|", row)) == 6
    inside = row[2:].split(" | 136 | ")[0]
    assert inside.startswith("`") and inside.endswith("`") and "`" not in inside[1:-1]


def test_no_cell_of_csv_is_a_formula(tmp_path: Path) -> None:
    names = ("=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "plain", '"=1"')
    report = example(names)
    write_report(tmp_path / "report.html", report)
    raw = (tmp_path / "report.csv").read_bytes()
    read = pd.read_csv(io.BytesIO(raw), keep_default_na=False, lineterminator="\n")
    found = read["segment"].tolist()
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in found)
    assert set(found) == {name if name[0] in 'p"' else f"'{name}" for name in names}
    # Numbers stay numbers, negative ones too.
    assert read["difference"].tolist() == report.by_segment()["difference"].tolist()


def test_a_hostile_header_is_no_formula_either(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", pd.DataFrame({"=1+1": ["x"], "b": [-1.0]}))
    assert path.read_text(encoding="utf-8") == '"\'=1+1","b"\n"x",-1.0\n'


def test_numbers() -> None:
    assert [number(x) for x in (0.1234, -0.5, 0.0, -0.00001, 1.0, 1234.5, float("nan"))] == [
        *(".1234", "−.5000", ".0000", ".0000", "1.0000", "1,234.5000", "–")
    ]
    assert [signed(x) for x in (0.01, -0.01, 0.0, 0.00001)] == [
        "+.0100",
        "−.0100",
        ".0000",
        ".0000",
    ]
    assert interval(-0.01, 0.02) == "[−.0100, .0200]"
    assert interval(float("nan"), 0.02) == "no interval"
    assert percent(-0.01, 0.1) == "−10.0 %" and percent(0.1, 0.0) is None
    assert [shown(x) for x in (None, pd.NaT, True, 12345, np.float32(0.5), np.int64(3))] == [
        *("–", "–", "yes", "12,345", ".5000", "3")
    ]
