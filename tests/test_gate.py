"""What goes live, and what does not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from small_runs import finished

from reclora.gate import CANDIDATE, LIVE, GateConfig, decide
from reclora.pipelines.gating import Decisions
from reclora.shrinkage import shrinkage_of


def results(gains: dict[str, list[float]], base: float = 0.2) -> pd.DataFrame:
    """The users of each segment with these gains of the candidate."""
    rows = []
    for segment, each in gains.items():
        for user, gain in enumerate(each):
            for model, value in ((LIVE, base), (CANDIDATE, base + gain)):
                rows.append(("", model, segment, 0, f"{segment} {user}", "ndcg", 10, value))
    columns = ["run", "model", "segment", "seed", "user_id", "metric", "k", "value"]
    return pd.DataFrame(rows, columns=columns)


def noisy(mean: float, users: int, seed: int = 0) -> list[float]:
    return np.random.default_rng(seed).normal(mean, 0.05, users).tolist()


GAINS = {
    "clearly better": noisy(0.05, 200),
    "clearly worse": noisy(-0.05, 200, 1),
    **{f"small {n}": noisy(0.04, 4, n + 2) for n in range(20)},
}


def decided(gains: dict[str, list[float]], config: GateConfig, **others: str) -> pd.DataFrame:
    groups = dict.fromkeys(gains, "own") | others
    return decide(results(gains), groups, config).set_index("segment")


def test_each_segment_must_show_it_alone() -> None:
    found = decided(GAINS, GateConfig(rule="each"), **{"nobody": "own"})
    assert found.index[found["goes_live"]].tolist() == ["clearly better"]
    assert found.loc["clearly better", "reason"].startswith("better: gain +0.0")
    assert found.loc["clearly worse", "reason"].startswith("worse: gain -0.0")
    assert found.loc["small 0", "reason"].startswith("cannot tell alone, by ")
    assert found.loc["nobody", "reason"].startswith("no user to judge by")
    assert found.loc["nobody", "users"] == 0 and np.isnan(found.loc["nobody", "gain"])
    row, own = found.loc["clearly better"], np.array(GAINS["clearly better"])
    assert row["gain"] == pytest.approx(own.mean()) and row["low"] < row["gain"] < row["high"]
    assert row["users"] == 200 and row["live"] == pytest.approx(0.2)


def test_small_segments_are_told_together_but_never_what_is_worse() -> None:
    together = GateConfig(rule="together")
    found = decided(GAINS, together, nobody="own", other="its parent")
    lives = set(found.index[found["goes_live"]])
    assert lives == {*GAINS, "nobody"} - {"clearly worse"}
    assert "the 21 such segments with own are better together" in found.loc["small 3", "reason"]
    # What is of another nature is judged with its like: of those nobody was asked.
    assert not found.loc["other", "goes_live"]
    worse = GAINS | {f"small {n}": noisy(-0.04, 4, n) for n in range(20)}
    found = decided(worse, together)
    assert set(found.index[found["goes_live"]]) == {"clearly better"}


ROWS = {segment: 10 if segment.startswith("small") else 1000 for segment in GAINS}


def of_sizes(gains: dict[str, list[float]], config: GateConfig, **others: str) -> pd.DataFrame:
    """Decided by the default rule, with small segments told from large ones."""
    groups = dict.fromkeys(gains, "own") | others
    rows_of = {name: ROWS.get(name, 10) for name in groups}
    return decide(results(gains), groups, config, rows_of=rows_of).set_index("segment")


def test_segments_of_a_size_lend_each_other_strength() -> None:
    """Twenty of four users, each .04 better: one alone could not be told; one that is a little
    worse among them is believed to be like the others, one that is much worse is not."""
    gains = GAINS | {"small worse": [-0.01] * 4, "small much worse": [-0.5] * 4}
    found = of_sizes(gains, GateConfig(), nobody="own", other="its parent")
    lives = set(found.index[found["goes_live"]])
    assert "clearly better" in lives and "clearly worse" not in lives
    assert "small much worse" not in lives
    found = of_sizes(gains | {"small much worse": [0.04] * 4}, GateConfig(), nobody="own")
    lives = set(found.index[found["goes_live"]])
    assert {f"small {n}" for n in range(20)} | {"small worse", "nobody"} <= lives
    reason = found.loc["small 3", "reason"]
    assert reason.startswith("cannot tell alone, by ") and "with those of its size +0.0" in reason
    assert found.loc["nobody", "reason"].startswith("no user to judge by; with those of its size")
    # Nothing is known of what has no like.
    alone = of_sizes({}, GateConfig(), other="its parent")
    assert not alone.loc["other", "goes_live"]
    too_few = "too few of its size gain or lose to lend it strength"
    assert alone.loc["other", "reason"] == f"no user to judge by; {too_few}"


@pytest.mark.parametrize("segments", [1, 3, 5])
@pytest.mark.parametrize("each", [[0.1], [0.1, 0.1], [0.10, 0.12]])
def test_a_handful_in_all_is_not_enough(segments: int, each: list[float]) -> None:
    """However much they agree: at least six users must gain or lose."""
    gains = {f"small {n}": each + [0.0] * 9 for n in range(segments)}
    found = of_sizes(gains, GateConfig())
    lent = segments >= 4 and segments * len(each) >= 6
    assert found["chance"].notna().all() == lent and found["goes_live"].all() == lent


def test_a_user_is_one_of_however_many_seeds() -> None:
    gains = {f"small {n}": noisy(0.01, 8, n) for n in range(6)}
    once = results(gains)
    many = pd.concat([once.assign(seed=seed) for seed in range(9)], ignore_index=True)
    more_often = pd.concat([once, once[once["model"] == CANDIDATE].assign(seed=1)])
    nobody = once.assign(user_id=once["user_id"] + "?", value=np.nan)
    chances = [
        decide(table, dict.fromkeys(gains, "own"), GateConfig())["chance"].tolist()
        for table in (once, many, more_often, pd.concat([once, nobody]))
    ]
    assert all(each == pytest.approx(chances[0]) for each in chances[1:])


def test_losers_among_winners_do_not_go_live() -> None:
    """Together they are better; half of them harm. Six users each cannot tell one alone."""
    rng = np.random.default_rng(0)
    truth = {f"small {n}": 0.12 if n % 2 else -0.08 for n in range(400)}
    gains = {name: rng.normal(mean, 0.1, 6).tolist() for name, mean in truth.items()}
    wrong = {}
    for rule in ("shrunk", "together"):
        found = of_sizes(gains, GateConfig(rule=rule))  # type: ignore[arg-type]
        lives = found.index[found["goes_live"]]
        wrong[rule] = sum(truth[name] < 0 for name in lives)
        assert len(lives) - wrong[rule] > 150, f"{rule} keeps the winners back"
    assert wrong["shrunk"] <= 0.1 * 200 and wrong["together"] > 100


def test_the_chance_is_that_of_shrinkage_beyond_the_least_gain() -> None:
    config = GateConfig(min_gain=0.01, chance=0.8)
    found = of_sizes(GAINS, config)
    table = results(GAINS)
    live, own = (table[table["model"] == model] for model in (LIVE, CANDIDATE))
    values = {0.0: live, 1.0: own.assign(value=own["value"] - 0.01)}
    told = shrinkage_of(values, ROWS, 0.8).table.set_index("segment")
    assert found["chance"].tolist() == told.loc[found.index, "chance"].tolist()
    assert np.allclose(found["shrunk_gain"], told.loc[found.index, "shrunk_gain"] + 0.01)
    by_itself = ~found["reason"].str.startswith(("better", "worse"))
    small = found[by_itself]
    assert (small["goes_live"] == (small["chance"] >= 0.8)).all() and len(small) > 10
    assert "better by more than 0.01 with a chance of" in small["reason"].iloc[0]


@pytest.mark.parametrize("rule", ["each", "shrunk"])
def test_noise_does_not_pass(rule: str) -> None:
    """Of 200 segments without any gain none should pass, but for one night in twenty."""
    passed = 0
    for seed in range(10):
        gains = {f"s{n}": noisy(0.0, 30, 1000 * seed + n) for n in range(200)}
        passed += int(decided(gains, GateConfig(rule=rule))["goes_live"].any())  # type: ignore[arg-type]
    assert passed <= 3


def test_a_gain_must_be_worth_it() -> None:
    found = decided(GAINS, GateConfig(min_gain=0.049))
    assert not found["goes_live"].any()
    assert found.loc["clearly better", "gain"] == pytest.approx(np.mean(GAINS["clearly better"]))


def test_without_a_gate_all_goes_live() -> None:
    assert decided(GAINS, GateConfig(rule="none"), nobody="own")["goes_live"].all()


def test_guards_veto() -> None:
    guards = pd.DataFrame(
        {
            "segment": ["clearly better", "small 0", "small 1", "small 2"],
            "coverage": [1.0, 0.4, 1.0, np.nan],
            "popularity": [1.0, 1.0, 3.0, np.nan],
            "churn": [0.95, 0.1, 0.1, np.nan],
        }
    )
    limits = GateConfig(rule="together", min_coverage=0.5, max_popularity=2.0, max_churn=0.9)
    found = decide(results(GAINS), dict.fromkeys(GAINS, "own"), limits, guards)
    found = found.set_index("segment")
    for segment, name in (
        ("clearly better", "churn 0.95 against a limit of 0.9"),
        ("small 0", "coverage 0.4 against a limit of 0.5"),
        ("small 1", "popularity 3 against a limit of 2"),
    ):
        assert not found.loc[segment, "goes_live"]
        assert found.loc[segment, "reason"].startswith(f"vetoed: {name}; ")
    assert found.loc["small 2", "goes_live"] and found.loc["small 3", "goes_live"]
    off = decide(results(GAINS), dict.fromkeys(GAINS, "own"), GateConfig(rule="together"), guards)
    assert off["goes_live"].sum() == len(GAINS) - 1


def test_nobody_at_all() -> None:
    for nothing in (results({}), pd.DataFrame()):
        found = decide(nothing, {"a": "own"}, GateConfig())
        assert found["goes_live"].tolist() == [False] and found["chance"].isna().all()


def test_results_of_two_metrics_are_refused() -> None:
    two = pd.concat([results(GAINS), results(GAINS).assign(metric="recall")])
    with pytest.raises(ValueError, match="one metric at one k"):
        decide(two, {"small 0": "own"}, GateConfig())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"confidence": 1.0}, "confidence must be above 0 and below 1"),
        ({"chance": 0.0}, "chance must be above 0 and below 1"),
        ({"min_gain": float("nan")}, "min_gain must be a finite number"),
        ({"min_coverage": -1.0}, "min_coverage must be 0 or more"),
        ({"max_churn": 1.5}, "max_churn must be from 0 to 1"),
        ({"canary": 1.0}, "canary must be at least 0 and below 1"),
    ],
)
def test_a_gate_out_of_range_is_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GateConfig(**values)  # type: ignore[arg-type]


def test_a_run_keeps_its_decisions(tmp_path_factory: pytest.TempPathFactory) -> None:
    """With the numbers of every model on the same users, in the run and in the release."""
    _, outcome = finished(tmp_path_factory)
    table = outcome.decisions.table
    columns = {"segment", "status", "reason", "had_candidate", "users", "gain", "low", "high", "q"}
    assert columns | {"frozen base", "segment popularity, recent", "parent"} <= set(table.columns)
    assert {"coverage", "popularity", "churn"} <= set(table.columns)
    assert outcome.decisions.counts == {"promoted": 2, "fell back": 2}
    assert outcome.decisions.goes_live == set(table["segment"])
    judged = table.dropna(subset=["gain"])
    assert np.allclose(judged["candidate"] - judged["live"], judged["gain"])
    assert np.allclose(judged["live"], judged["frozen base"]), "nothing was live before"


def test_what_others_changed_stays() -> None:
    rows = [
        {"segment": name, "status": status, "reason": "r", "had_candidate": status != "skipped"}
        for name, status in zip(
            "abcd", ["promoted", "fell back", "skipped", "promoted"], strict=True
        )
    ]
    decisions = Decisions(pd.DataFrame(rows))
    left = decisions.without({"a", "b", "c", "z"}, "others")
    assert left.table["status"].tolist() == ["kept", "kept", "skipped", "promoted"]
    assert left.table["reason"].tolist() == ["others", "others", "r", "r"]
    assert left.goes_live == {"d"} and decisions.goes_live == {"a", "b", "d"}


def test_a_margin_below_zero_is_called_what_it_is() -> None:
    table = decided({"a": noisy(-0.02, 400)}, GateConfig(rule="each", min_gain=-0.1))
    row = table.iloc[0]
    assert row["goes_live"] and row["gain"] < 0
    assert row["reason"].startswith("not worse by more than 0.1: gain -0.0")


def decisions(**statuses: str) -> Decisions:
    rows = [{"segment": s, "status": its, "reason": "r"} for s, its in statuses.items()]
    return Decisions(pd.DataFrame(rows))


def test_a_decision_that_flips_between_seeds_is_not_decided() -> None:
    done = decisions(a="promoted", b="kept", c="skipped", d="fell back")
    other = decisions(a="promoted", b="promoted", c="kept", d="quarantined")
    told = done.across({3: done, 7: other})
    assert told.table["across_seeds"].tolist() == ["promoted", "not decided", "kept", "not decided"]
    assert told.table["status"].tolist() == done.table["status"].tolist() and told.not_decided == 2
    assert told.table["reason"].tolist() == [
        "r",
        "not decided: kept under seed 3; promoted under seed 7; r",
        "r",
        "not decided: fell back under seed 3; kept under seed 7; r",
    ]
    assert told.goes_live == done.goes_live == {"a", "d"} and done.not_decided == 0
