"""From results to the report: which pairs are compared, and what became of each segment."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch

from reclora.arithmetic import singular_values
from reclora.bank import AdapterBank
from reclora.comparison import compare
from reclora.configs import FULL, AdapterConfig
from reclora.files import read_parquet
from reclora.ladder import rungs
from reclora.pipelines.contenders import SUBJECT, Contender, Trained, contenders
from reclora.pipelines.gating import Decisions
from reclora.pipelines.reporting import (
    CURRENT,
    RELEASED,
    before_and_after,
    describe,
    pairs_of,
    segment_states,
    spectra_of,
    with_advice,
)
from reclora.pipelines.run import Compared
from reclora.pipelines.scratch import SCRATCH
from reclora.pipelines.yardstick import BASE, POPULARITY_ALL, POPULARITY_RECENT
from reclora.report import TO_TELL
from reclora.report.figures import USUAL
from reclora.report.text import interval, number, signed
from reclora.splits import Windows
from reclora.training import Training
from tests.small_runs import finished, small_settings
from tests.small_worlds import KINDS, make_base, make_log


def compare_all(results: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    measures = results[["metric", "k"]].drop_duplicates().itertuples(index=False, name=None)
    tables = [
        compare(results, model, baseline, metric=metric, k=k)
        for metric, k in measures
        for model, baseline in pairs
    ]
    return pd.concat(tables, ignore_index=True)


def test_every_model_is_held_against_the_base_and_the_adapters_against_every_model(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    _, outcome = finished(tmp_path_factory)
    results = read_parquet(outcome.folder.results).to_pandas()
    models = set(results["model"])
    found = compare_all(results, pairs_of(list(results["model"].unique()), SUBJECT, BASE))
    pairs = set(zip(found["model"], found["baseline"], strict=True))
    assert pairs == {(model, BASE) for model in models - {BASE}} | {
        (SUBJECT, model) for model in models - {SUBJECT}
    }
    assert not found.duplicated(["model", "baseline", "metric", "k", "scope", "segment"]).any()
    measures = found[["metric", "k"]].drop_duplicates().to_numpy().tolist()
    assert measures == [["ndcg", 10], ["ndcg", 5], ["recall", 10], ["recall", 5]]
    one = compare(results, SUBJECT, "pooled adapter", metric="recall", k=5)
    chosen = found[
        (found["model"] == SUBJECT)
        & (found["baseline"] == "pooled adapter")
        & (found["metric"] == "recall")
        & (found["k"] == 5)
    ]
    pd.testing.assert_frame_equal(chosen.reset_index(drop=True), one)
    stored = read_parquet(outcome.folder.comparison).to_pandas()
    pd.testing.assert_frame_equal(stored, found, check_dtype=False)


def test_the_page_holds_the_headline(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings, outcome = finished(tmp_path_factory)
    page = outcome.folder.report.read_text()
    compared = read_parquet(outcome.folder.comparison).to_pandas()
    headline = compared[
        (compared["model"] == SUBJECT)
        & (compared["baseline"] == BASE)
        & (compared["metric"] == "ndcg")
        & (compared["k"] == 10)
    ]
    assert set(headline["scope"]) == {"all", "segment"}
    for _, row in headline.iterrows():
        assert signed(row["difference"]) in page and number(row["model_mean"]) in page
        assert interval(row["low"], row["high"]) in page
        assert row["verdict"] in page
    assert outcome.folder.id in page and "NDCG@10" in page
    assert "Each trained model is of one seed;" in page
    assert "chosen on validation" in page and settings.name in page


def test_the_page_has_a_style_for_each_model_of_a_run() -> None:
    settings = small_settings(Path("."), Path("log.parquet"), compared=get_args(Compared))
    named = {each.model for each in contenders(settings)} - {SUBJECT}
    named |= {CURRENT, RELEASED, POPULARITY_ALL, POPULARITY_RECENT, SCRATCH}
    assert named == set(USUAL) and len(USUAL) == len(named)


def test_the_page_says_which_row_is_before_and_which_after(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    settings, outcome = finished(tmp_path_factory)
    table = outcome.decisions.table
    (said,) = before_and_after(settings, outcome.decisions, [RELEASED])
    assert len(table) == 4 and len(outcome.decisions.goes_live) == 4
    assert said == (
        f"Nothing was live before the run; “{RELEASED}” is what it published in 4 of 4 segments."
    )
    assert said in outcome.folder.report.read_text(encoding="utf-8")
    some = Decisions(table.assign(status=["promoted", "kept", "fell back", "skipped"]))
    (said,) = before_and_after(settings, some, [RELEASED])
    assert said.endswith("what it published in 2 of 4 segments, and the frozen base in the others.")
    both = [CURRENT, RELEASED]
    (said,) = before_and_after(settings, some, both)
    assert said == (
        f"“{RELEASED}” is what it published in 2 of 4 segments, and “{CURRENT}” in the others."
    )
    none = Decisions(table.assign(status="kept"))
    (said,) = before_and_after(settings, none, both)
    assert said == f"“{RELEASED}” is “{CURRENT}”, as nothing went live."
    canary = replace(settings, gate=replace(settings.gate, canary=0.1))
    (said,) = before_and_after(canary, some, both)
    assert said == f"“{RELEASED}” is “{CURRENT}”, as candidates wait."


SIZES = {
    "pretrain": {"better": 1, "no rows": 9, "nothing to judge": 9, "not better": 9, "small": 9},
    "train": {"better": 20, "no rows": 0, "nothing to judge": 9, "not better": 7, "small": 5},
    "validation": {"better": 6, "no rows": 5, "nothing to judge": 0, "not better": 4, "small": 3},
    "test": {"better": 3, "no rows": 2, "nothing to judge": 1, "not better": 0, "small": 1},
}
"""Rows of each segment in each window."""


def made(hidden: tuple[int, ...] = (12,)) -> tuple[Windows, Trained]:
    """Windows, and adapters of which one helped; `small` has none of its own."""
    base = make_base(hidden=hidden)
    logs = {name: make_log(base, of) for name, of in SIZES.items()}
    top = AdapterConfig(rank=2)
    configs = [rungs(top)["parent"] if name == "small" else top for name in SIZES["train"]]
    bank = AdapterBank.for_log(base, logs["train"], configs)
    curves = pd.DataFrame({"segment": [], "epoch": [], "training_loss": [], "score": []})
    epochs = dict.fromkeys(SIZES["train"], 0) | {"better": 3}
    contender = Contender(SUBJECT, tuple(configs), is_pooled=False)
    return Windows(**logs), Trained(contender, bank, Training(curves, epochs, 1), "")


DECISIONS = Decisions(
    pd.DataFrame(
        [
            ("better", "promoted", "gain"),
            ("no rows", "fell back", "together"),
            ("nothing to judge", "kept", "no user"),
            ("not better", "skipped", "no epoch"),
            ("small", "quarantined", "the loss is not finite"),
        ],
        columns=["segment", "status", "reason"],
    )
)


def test_a_segment_says_what_became_of_it() -> None:
    windows, trained = made()
    found = segment_states(windows, trained, DECISIONS).set_index("segment")
    assert found["train rows"].to_dict() == SIZES["train"]
    assert found["validation rows"].to_dict() == SIZES["validation"]
    assert found["test rows"].to_dict() == SIZES["test"]
    rows = windows.train.user_rows[:20]
    assert found.at["better", "train users"] == len(np.unique(rows))
    told = DECISIONS.table.set_index("segment")
    assert found["decision"].to_dict() == told["status"].to_dict()
    assert found["reason"].to_dict() == told["reason"].to_dict()
    adapter = trained.bank.adapter("better")
    assert found["bytes"].tolist() == [sum(t.nbytes for t in adapter.tensors.values()), 0, 0, 0, 0]
    assert found.at["better", "numbers"] == trained.bank.adapter("better").num_numbers
    assert found["numbers"].tolist()[1:] == [0, 0, 0, 0]
    kinds = "bias, rows of users and items, low_rank of the tower"
    assert found["deltas"].tolist() == [kinds] * 4 + ["none"]


def test_spectra_are_those_of_the_adapters_that_helped() -> None:
    windows, trained = made()
    with torch.no_grad():
        for _, delta in trained.bank.deltas():
            for parameter in delta.parameters():
                parameter.normal_()
    found = spectra_of(trained, windows)
    assert set(found["segment"]) == {"better"}
    values = singular_values(trained.bank.adapter("better"))
    assert set(found["delta"]) == set(values) and len(values) > 1
    for name, own in found.groupby("delta"):
        energy = values[str(name)].square()
        assert own["energy"].tolist() == pytest.approx((energy / energy.sum()).tolist())
        assert own["direction"].tolist() == list(range(1, len(energy) + 1))


def test_a_base_without_a_tower_has_no_delta_of_it() -> None:
    windows, trained = made(hidden=())
    found = segment_states(windows, trained, DECISIONS)
    assert found["deltas"].tolist() == ["bias, rows of users and items"] * 4 + ["none"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (FULL, "bias, full of users and items, full of the tower"),
        (KINDS["bias"], "bias"),
        (KINDS["items"], "rows of items"),
        (KINDS["tower"], "low_rank of the tower"),
        (KINDS["magnitude"], "map + rows of users, rows of items"),
        (rungs(AdapterConfig())["parent"], "none"),
    ],
)
def test_kinds_in_words(config: AdapterConfig, words: str) -> None:
    assert describe(config) == words


def test_an_untold_segment_says_how_many_more_users_it_takes() -> None:
    """As many as the comparison counts, to two digits; nothing where there is nothing to say."""
    rng = np.random.default_rng(0)
    gains = {
        "told": rng.normal(0.3, 0.2, 80),
        "noisy": np.r_[rng.normal(0.03, 0.3, 60), 0.4],
        "alike": np.zeros(20),
        "few": np.array([0.2, 0.2, 0.3]),
    }
    rows = [
        ("r", model, segment, 0, f"u{n}", "ndcg", k, gain * own)
        for segment, its in gains.items()
        for n, gain in enumerate(its.tolist())
        for model, own in ((SUBJECT, 1.0), (BASE, 0.0), (POPULARITY_ALL, 0.5))
        for k in (5, 10)
    ]
    columns = ["run", "model", "segment", "seed", "user_id", "metric", "k", "value"]
    pairs = pairs_of([BASE, SUBJECT, POPULARITY_ALL], SUBJECT, BASE)
    comparison = compare_all(pd.DataFrame(rows, columns=columns), pairs)
    states = pd.DataFrame({"segment": [*gains, "unmeasured"], "train rows": range(5)})
    found = with_advice(states, comparison, "ndcg", 10)
    assert found.drop(columns=TO_TELL).equals(states)
    own = comparison[
        (comparison["baseline"] == BASE)
        & (comparison["model"] == SUBJECT)
        & (comparison["k"] == 10)
    ].set_index("segment")
    more = own.at["noisy", "users_needed"] - 61
    said = dict(zip(found["segment"], found[TO_TELL], strict=True))
    assert own.at["noisy", "verdict"] == "cannot tell" and more > 100
    assert said["noisy"] == f"about {float(f'{more:.1e}'):,.0f} more users"
    # The few agree: their number alone is too small, and the note says so.
    assert own.at["few", "users_needed"] < 3 and own.at["few", "note"].startswith("only 3 of 3")
    assert {said[s] for s in ("told", "alike", "few", "unmeasured")} == {""}
