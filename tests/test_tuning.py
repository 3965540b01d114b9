"""The page of a study: one file, figures with words, inert names."""

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest

from reclora.report.tuning import CURVES, Tuning, charts_of, write_tuning

HOSTILE = "</script><script>alert(1)</script>"


@pytest.fixture
def tuning() -> Tuning:
    states = ["complete", "pruned", "complete", "failed", "complete"]
    trials = pd.DataFrame(
        {
            "trial": range(5),
            "state": states,
            "value": [0.25, float("nan"), 0.375, float("nan"), 0.125],
            "why": ["", HOSTILE, "", "", ""],
            "parent": ["pooled", "none", "none", "none", "pooled"],
            "training.rows_lr": [0.1, 0.00012, 0.01, 0.5, 0.2],
            "adapter.rank": [2, 2, 2, 2, 2],
        }
    )
    curves = [(t, e, 0.1 * t + 0.01 * e) for t in (0, 1, 2, 4) for e in range(3)]
    return Tuning(
        title=f"Tuning {HOSTILE}",
        run="shop-tuning-1f2e",
        measure="ndcg@10",
        outcome="Trial 2 is better than the defaults & all else.",
        defaults=0.3,
        best=2,
        trials=trials,
        curves=pd.DataFrame(curves, columns=["trial", "epoch", "value"]),
        keys={"parent": False, "training.rows_lr": True, "adapter.rank": False},
        importances={"training.rows_lr": 0.75, "parent": 0.25},
        values=pd.DataFrame({"setting": ["parent"], "defaults": ["pooled"], "best": ["none"]}),
        notes=("Two of five.",),
        versions={"reclora": "0.1"},
        repeat="reclora tune 'a b.toml'",
    )


def test_the_figures_are_of_the_trials(tuning: Tuning) -> None:
    charts = charts_of(tuning)
    # Of one rank nothing can be seen.
    headings = ["What matters", "Trial by trial", "While training", "parent", "training.rows_lr"]
    assert list(charts) == headings
    for chart in charts.values():
        assert go.Figure(chart.figure) and chart.words
    dots, best, defaults = charts["Trial by trial"].figure["data"]
    assert (dots["x"], dots["y"]) == ([0, 2, 4], [0.25, 0.375, 0.125])
    assert best["y"] == [0.3, 0.375, 0.375] and defaults["y"] == [0.3, 0.3]
    assert dots["marker"]["symbol"] == ["circle-open", "diamond", "circle-open"]
    assert charts["training.rows_lr"].figure["layout"]["xaxis"]["type"] == "log"
    (parents,) = charts["parent"].figure["data"]
    assert parents["x"] == ["pooled", "none", "pooled"]
    lines = charts["While training"].figure["data"]
    assert [line["name"] for line in lines] == ["complete", "pruned", "complete", "best"]
    assert [line["showlegend"] for line in lines] == [True, True, False, True]
    assert "training.rows_lr 75%; parent 25%" in charts["What matters"].words
    assert "3 trials, a dot each, beside 1 that were pruned" in charts["Trial by trial"].words


def test_many_curves_are_the_latest_and_the_best(tuning: Tuning) -> None:
    many = [(t, 0, 0.5) for t in range(CURVES + 9)]
    curves = pd.DataFrame(many, columns=["trial", "epoch", "value"])
    lines = charts_of(replace(tuning, curves=curves))["While training"].figure["data"]
    drawn = [line["hovertext"][0].split(",")[0] for line in lines]
    assert len(drawn) == CURVES + 1 and drawn[0] == "trial 9" and drawn[-1] == "trial 2"


def test_nothing_is_drawn_of_nothing(tuning: Tuning) -> None:
    pruned = tuning.trials[tuning.trials["state"] == "pruned"]
    bare = replace(tuning, trials=pruned, curves=tuning.curves[:0], importances={}, best=None)
    assert charts_of(bare) == {}


def test_the_page_is_one_file_in_which_names_are_inert(tuning: Tuning, tmp_path: Path) -> None:
    page = write_tuning(tmp_path / "tuning.html", tuning).read_text(encoding="utf-8")
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    own = re.sub(r"(?s)<script>.*?</script>", "", page)
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", own)
    policy = unescape(re.search(r'Policy" content="([^"]*)"', page)[1])  # type: ignore[index]
    assert policy.startswith("default-src 'none'") and policy.count("'sha256-") == 2
    said = re.findall(r'role="img" aria-label="([^"]+)"', page)
    charts = charts_of(tuning)
    assert [unescape(words) for words in said] == [chart.words for chart in charts.values()]
    islands = re.findall(r'(?s)class="figure">(.*?)</script>', page)
    assert [json.loads(island) for island in islands] == [c.figure for c in charts.values()]
    # A small rate keeps its digits, and a count has none behind the point.
    assert (
        '<td class="number">0.00012</td><td class="number">2</td>' in page
        and "reclora tune &#39;a b.toml&#39;" in page
    )
