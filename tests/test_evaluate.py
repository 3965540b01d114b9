"""The verb `evaluate`: releases of a store and lists of other systems, to tables, page and code."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from reclora.base import BaseModel
from reclora.comparison import compare
from reclora.drift import Drift
from reclora.evaluation import EvaluationConfig, ForeignError, hold_out, read_foreign
from reclora.files import read_parquet
from reclora.interactions import Interactions
from reclora.metrics import CONVENTIONS
from reclora.pipelines import evaluated as evaluated_module
from reclora.pipelines.assessment import Assessment, Yardstick
from reclora.pipelines.contenders import SUBJECT
from reclora.pipelines.evaluate import evaluate_releases
from reclora.pipelines.evaluate_lists import evaluate_files
from reclora.pipelines.evaluated import Evaluated
from reclora.pipelines.kept import Kept
from reclora.pipelines.live import KNOWN_UNTIL
from reclora.pipelines.retrain import retrain
from reclora.pipelines.run import RunSettings
from reclora.pipelines.sections import definitions, sections_of, told_of_age
from reclora.pipelines.served import Served
from reclora.pipelines.settings import SettingsError
from reclora.pipelines.summary import as_json
from reclora.pipelines.yardstick import BASE, POPULARITY_ALL, POPULARITY_RECENT
from reclora.splits import LeakageError
from reclora.store import AdapterStore
from tests.small_runs import files_below, finished, random_log, reclora, small_settings, write_toml

TABLES = ("results", "comparison", "slices", "lists", "conventions")


@pytest.fixture
def settings(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> RunSettings:
    made, _ = finished(tmp_path_factory)
    return replace(made, runs=tmp_path / "runs")


def test_a_release_is_measured_as_the_run_that_made_it(
    tmp_path_factory: pytest.TempPathFactory, settings: RunSettings
) -> None:
    """The first seed's adapters are the release, and this run has one seed."""
    _, outcome = finished(tmp_path_factory)
    before = files_below(settings.folder)
    evaluated = evaluate_releases(settings, [])
    assert files_below(settings.folder) == before, "nothing is trained and nothing published"
    mine = read_parquet(evaluated.folder.results).to_pandas()
    ran = read_parquet(outcome.folder.results).to_pandas()
    assert set(mine["model"]) == {POPULARITY_ALL, POPULARITY_RECENT, BASE, "release 1"}
    for name, its in (("release 1", SUBJECT), (BASE, BASE)):
        one, other = (
            table[table["model"] == model]["value"].to_numpy()
            for table, model in ((mine, name), (ran, its))
        )
        np.testing.assert_allclose(one, other)
    assert evaluated.subject == "release 1" and evaluated.baseline == BASE
    page = evaluated.folder.report.read_text()
    assert "Does release 1 help?" in page and "As other systems would report it" in page
    assert evaluated.folder.is_complete


def test_the_tables_agree_with_each_other(settings: RunSettings) -> None:
    evaluated = evaluate_releases(settings, [1])
    tables = {
        name: read_parquet(evaluated.folder.path / f"{name}.parquet").to_pandas() for name in TABLES
    }
    results = tables["results"]
    reported = tables["conventions"].set_index(["model", "convention", "metric", "k"])["value"]
    assert set(tables["conventions"]["convention"]) == set(CONVENTIONS)
    for (model, metric, k), rows in results.groupby(["model", "metric", "k"], observed=True):
        assert reported[model, "comparable", metric, k] == pytest.approx(rows["value"].mean())
    lists = tables["lists"].set_index(["scope", "segment", "model", "metric", "k"])["mean"]
    assert lists["all", "", "release 1", "overlap", 10] == 1
    assert 0 < lists["all", "", "release 1", "coverage", 10] <= 1
    measures = results[["metric", "k"]].drop_duplicates().itertuples(index=False, name=None)
    again = pd.concat(
        [compare(results, "release 1", BASE, metric=metric, k=k) for metric, k in measures],
        ignore_index=True,
    )
    stored = tables["comparison"]
    mine = stored[(stored["model"] == "release 1") & (stored["baseline"] == BASE)]
    pd.testing.assert_frame_equal(mine.reset_index(drop=True), again, check_dtype=False)
    slices = tables["slices"]
    whole = slices[(slices["model"] == "release 1") & (slices["baseline"] == BASE)]
    activity = whole[whole["slice"] == "user activity"]
    headline = evaluated.headline.iloc[0]
    assert activity["users"].sum() == headline["users"]
    means = (activity["model_mean"] * activity["users"]).sum() / activity["users"].sum()
    assert means == pytest.approx(headline["model_mean"])


def test_candidates_are_measured_beside_what_is_current(
    settings: RunSettings, tmp_path: Path
) -> None:
    """As they are once they are promoted."""
    shutil.copytree(settings.folder, tmp_path / "work")
    mine = replace(settings, folder=tmp_path / "work")
    base, store = BaseModel.load(mine.base_folder), AdapterStore(mine.store_folder)
    fingerprint = base.fingerprint
    old = [store.load(name, base_fingerprint=fingerprint) for name in ("日本", "market 0")]
    swapped = [replace(old[n], segment=old[1 - n].segment) for n in (0, 1)]
    store.publish(swapped[:1], reason="try", canary=0.1)
    waiting = evaluate_releases(mine, [2])
    models = {"release 2", "release 2, candidates"}
    results = read_parquet(waiting.folder.results).to_pandas().set_index("model")
    assert models < set(results.index) and waiting.subject == "release 2"
    pairs = waiting.tables.comparison[["model", "baseline"]].drop_duplicates()
    assert ("release 2, candidates", "release 2") in set(pairs.itertuples(index=False, name=None))
    assert "serves all their users, not only the share of 0.1" in waiting.folder.report.read_text()
    store.promote(reason="it sings")
    promoted = read_parquet(evaluate_releases(mine, [3, 1]).folder.results).to_pandas()
    promoted = promoted.set_index("model")
    for before, after in (("release 2", "release 1"), ("release 2, candidates", "release 3")):
        for column in ("segment", "user_id", "metric", "k", "value"):
            assert results.loc[before, column].tolist() == promoted.loc[after, column].tolist()
    one, other = (promoted.loc[f"release {n}", "value"].tolist() for n in (1, 3))
    assert one != other


def test_a_segment_that_a_release_lacks_has_the_base(settings: RunSettings) -> None:
    store, base = AdapterStore(settings.store_folder), BaseModel.load(settings.base_folder)
    release = store.current()
    assert release is not None
    scorer_of = Served(base, store, release).scorer
    users = torch.arange(3)
    assert torch.equal(scorer_of("nowhere").scores(users), base.scorer().scores(users))
    assert not torch.equal(scorer_of("日本").scores(users), base.scorer().scores(users))


def test_two_stages_have_the_metrics_of_both(settings: RunSettings) -> None:
    config = replace(settings.evaluation, retrieve=20)
    evaluated = evaluate_releases(replace(settings, evaluation=config), [])
    mean = evaluated.tables.means.set_index(["scope", "model", "metric", "k"])["mean"]
    assert mean["all", f"{BASE}, retrieved", "recall", 20] >= mean["all", BASE, "recall", 10]
    assert not any(", retrieved" in name for name in evaluated.tables.comparison["model"])
    # All that the base retrieves of a catalogue as long as this is all there is.
    config = replace(settings.evaluation, retrieve=200)
    whole = evaluate_releases(replace(settings, evaluation=config), [])
    one = evaluate_releases(settings, [])
    own = [
        e.tables.means.set_index(["scope", "segment", "model", "metric", "k"])["mean"]
        for e in (whole, one)
    ]
    pd.testing.assert_series_equal(own[0][own[1].index], own[1])


def test_given_candidates_and_labels(settings: RunSettings, tmp_path: Path) -> None:
    log = Interactions.read(settings.log_folder)
    items = log.items.ids.to_pylist()
    pd.DataFrame({"item_id": items[:30]}).to_parquet(tmp_path / "candidates.parquet")
    last = log.timestamps.max()
    rng = np.random.default_rng(0)
    users = log.users.ids.to_pylist()
    pd.DataFrame(
        {
            "user_id": rng.choice(users, 200),
            "item_id": rng.choice(items, 200),
            "label": rng.integers(0, 2, 200),
            "segment": rng.choice(["日本", "market 0"], 200),
            "timestamp": pd.to_datetime([last] * 200, unit="us", utc=True),
        }
    ).to_parquet(tmp_path / "labels.parquet")
    given = replace(
        settings,
        evaluation=replace(settings.evaluation, candidates="given"),
        candidates=tmp_path / "candidates.parquet",
        labelled=(tmp_path / "labels.parquet",),
    )
    evaluated = evaluate_releases(given, [])
    coverage = evaluated.tables.lists.set_index(["scope", "model", "metric", "k"])["mean"]
    assert coverage["all", POPULARITY_ALL, "coverage", 10] > 10 / 30
    labels = evaluated.tables.labels
    assert set(labels["model"]) == {BASE, "release 1"}, "popularity gives no chances"
    assert set(labels["metric"]) == {"auc", "log_loss", "calibration_error"}
    (rows,) = labels.loc[labels["scope"] == "all", "rows"].unique()
    assert rows + evaluated.quality["labelled rows unknown to the base"] == 200
    fit = evaluated.tables.comparison[evaluated.tables.comparison["metric"] == "log_likelihood"]
    assert set(zip(fit["model"], fit["baseline"], strict=True)) == {("release 1", BASE)}
    assert "Labels" in evaluated.folder.report.read_text()
    labelled = pd.read_parquet(tmp_path / "labels.parquet")
    labelled.drop(columns="segment").to_parquet(tmp_path / "labels.parquet")
    with pytest.raises(ForeignError, match=r"segments \['all'\], which the log has not"):
        evaluate_releases(given, [])
    labelled.to_parquet(tmp_path / "labels.parquet")
    early = pd.read_parquet(tmp_path / "labels.parquet")
    early["timestamp"] = pd.to_datetime(log.timestamps.min(), unit="us", utc=True)
    early.to_parquet(tmp_path / "labels.parquet")
    with pytest.raises(LeakageError, match="labelled rows begin at .* before the test window"):
        evaluate_releases(given, [])
    pd.DataFrame({"item_id": items[:3], "segment": "日本"}).to_parquet(
        tmp_path / "candidates.parquet"
    )
    with pytest.raises(ForeignError, match=r"segment '.*' has no candidate that the base knows"):
        evaluate_releases(given, [])


def test_a_release_that_knew_the_test_window_is_refused(tmp_path: Path) -> None:
    mine = small_settings(tmp_path, random_log(tmp_path / "log.parquet", {"a": (0, 1)}))
    with pytest.raises(SettingsError, match="has no release to evaluate"):
        evaluate_releases(mine, [])
    outcome = retrain(mine)
    store = AdapterStore(mine.store_folder)
    adapter = (
        store.load("a", base_fingerprint=BaseModel.load(mine.base_folder).fingerprint)
        if (outcome.release)
        else None
    )
    if adapter is None:
        pytest.fail("the run published nothing")
    late = int(Interactions.read(mine.log_folder).timestamps.max()) / 1e6
    store.publish([adapter], reason="later", metrics={"a": {KNOWN_UNTIL: late}})
    with pytest.raises(LeakageError, match="release 2 was chosen on rows until .* evaluate an ear"):
        evaluate_releases(mine, [])
    store.rollback(reason="too early")
    store.publish([adapter], reason="try", canary=0.5, metrics={"a": {KNOWN_UNTIL: late}})
    with pytest.raises(LeakageError, match="release 4 was chosen on rows until"):
        evaluate_releases(mine, [4])
    assert evaluate_releases(mine, [1]).subject == "release 1"


# Lists of other systems.


@pytest.fixture
def files(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """A held-out log, what was seen before it, good lists and bad lists."""
    rng = np.random.default_rng(0)
    users, items = [f"u{u}" for u in range(60)], [f"i{i}" for i in range(50)]
    tables: dict[str, list[tuple[Any, ...]]] = {n: [] for n in ("test", "train", "good", "bad")}
    for u, user in enumerate(users):
        mine = rng.permutation(items).tolist()
        segment, device = ("de", "fr")[u % 2], ("tv", "web")[u % 3 == 0]
        tables["test"] += [(user, item, segment, device) for item in mine[:3]]
        tables["train"] += [(user, item, segment) for item in mine[3:8]]
        tables["good"] += [(user, item, p) for p, item in enumerate(mine[:2] + mine[9:17], 1)]
        tables["bad"] += [(user, item, p) for p, item in enumerate(mine[10:20], 1)]
    columns = {"test": ["user_id", "item_id", "segment", "device"]}
    columns |= {"train": ["user_id", "item_id", "segment"]}
    for name, rows in tables.items():
        frame = pd.DataFrame(rows, columns=columns.get(name, ["user_id", "item_id", "rank"]))
        frame.to_parquet(tmp_path / f"{name}.parquet")
    yield {name: tmp_path / f"{name}.parquet" for name in tables}


def test_lists_of_other_systems_are_compared(files: dict[str, Path], tmp_path: Path) -> None:
    evaluated: Evaluated = evaluate_files(
        {"good": files["good"], "bad": files["bad"]},
        files["test"],
        files["train"],
        EvaluationConfig(ks=(10,), metrics=("recall", "mrr")),
        attributes=["device"],
        runs=tmp_path / "runs",
    )
    assert evaluated.verdict == "better"
    row = evaluated.headline.iloc[0]
    assert (row["model_mean"], row["baseline_mean"]) == (pytest.approx(2 / 3), 0)
    assert set(evaluated.tables.means["model"]) == {"good", "bad", POPULARITY_ALL}
    assert set(evaluated.tables.slices["slice"]) >= {"device", "item popularity"}
    assert evaluated.quality["users measured"] == 60
    assert evaluated.quality["held-out items that count, not seen before"] == 180
    assert evaluated.quality["items in lists of good that are in no log"] == 0
    assert "How good are the lists of good?" in evaluated.folder.report.read_text()


def test_a_folder_of_parts_is_one_table(files: dict[str, Path], tmp_path: Path) -> None:
    """As `reclora recommend` writes lists."""
    lists, parts = pd.read_parquet(files["good"]), tmp_path / "lists"
    parts.mkdir()
    for number in range(3):
        lists[number::3].to_parquet(parts / f"part-{number}.parquet")

    def evaluated(path: Path, runs: str) -> Evaluated:
        config = EvaluationConfig(ks=(10,))
        return evaluate_files({"good": path}, files["test"], None, config, runs=tmp_path / runs)

    whole, in_parts = evaluated(files["good"], "whole"), evaluated(parts, "parts")
    pd.testing.assert_frame_equal(whole.tables.means, in_parts.tables.means)
    (tmp_path / "none").mkdir()
    with pytest.raises(ForeignError, match=r"none is a folder without a file \*.parquet in it"):
        evaluated(tmp_path / "none", "parts")


def test_lists_shorter_than_k_are_said(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated = evaluate_files(
        {"good": files["good"]},
        files["test"],
        files["train"],
        EvaluationConfig(ks=(10, 40)),
        runs=tmp_path / "runs",
    )
    line = (
        f"the lists in {files['good']} hold 10 items at the most, and 40 places are asked for: "
        "those that they lack count as misses"
    )
    assert line in capsys.readouterr().err
    assert f"{line}." in evaluated.folder.report.read_text()


def test_an_interrupted_evaluation_lends_nothing_to_another(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same files by other names, or cut into other slices, are another evaluation."""
    config = EvaluationConfig(ks=(10,), metrics=("recall",))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    def run(lists: dict[str, str], slices: tuple[str, ...] = ()) -> Evaluated:
        return evaluate_files(
            {name: files[file] for name, file in lists.items()},
            files["test"],
            files["train"],
            config,
            attributes=slices,
            runs=tmp_path / "runs",
        )

    with monkeypatch.context() as patch:
        patch.setattr(evaluated_module, "write_report", killed)
        with pytest.raises(KeyboardInterrupt):
            run({"mine": "bad", "other": "good"})
    assert run({"mine": "good", "other": "bad"}).verdict == "better"
    assert run({"mine": "bad", "other": "good"}).verdict == "worse"
    cut = run({"mine": "bad", "other": "good"}, ("device",))
    assert "device" in set(cut.tables.slices["slice"])


def test_the_overlap_is_with_what_is_current(
    settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(settings.folder, tmp_path / "work")
    mine = replace(settings, folder=tmp_path / "work", runs=tmp_path / "runs")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluated_module, "write_report", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate_releases(mine, [1])
    store = AdapterStore(mine.store_folder)
    store.publish([], reason="none", remove=[*store.release(1).segments])
    tables = evaluate_releases(mine, [1]).tables.lists
    overlap = tables[(tables["metric"] == "overlap") & (tables["scope"] == "all")]
    means = overlap.set_index(["model", "k"])["mean"]
    assert means["frozen base", 10] == 1 and means["release 1", 10] < 1


def test_sections_say_what_was_measured(files: dict[str, Path], tmp_path: Path) -> None:
    lists = {"good": files["good"], "bad": files["bad"]}
    foreign = read_foreign(lists, files["test"], files["train"], 10)
    config = EvaluationConfig(ks=(10, 5), metrics=("recall",))
    held_out = hold_out(foreign.heldout, foreign.seen, config)
    yardstick = Yardstick("r", held_out, foreign.heldout.users)
    assessment = Assessment(yardstick, Kept(tmp_path))
    for model, its in foreign.lists.items():
        assessment.take(model, its)
    tables = assessment.tables([("good", "bad")], sliced=[("good", "bad")])
    assert set(definitions(tables)) == {"recall", "novelty", "popularity", "coverage", "gini"}
    lists_alike, reported = sections_of(tables, 10, "good", "bad")
    drift = Drift(pd.DataFrame({"age": [0.0, 7.0]}), "Retrain every 7 days.")
    ageing, *rest = sections_of(tables, 10, "good", "bad", drift)
    assert ageing.title == "How adapters age" and ageing.table is drift.table
    assert ageing.text.startswith("Retrain every 7 days. Here good are trained as")
    assert [section.title for section in rest] == [lists_alike.title, reported.title]
    assert lists_alike.table["model"].tolist() == ["good", "bad"]
    whole = tables.lists.set_index(["scope", "model", "metric", "k"])["mean"]
    assert lists_alike.table["gini"].tolist() == [
        whole["all", model, "gini", 10] for model in ("good", "bad")
    ]
    own = tables.comparison.iloc[0]
    table = reported.table.set_index("model")
    assert table.loc["good", "comparable recall@10"] == pytest.approx(own["model_mean"])


def test_one_list_alone_has_means_and_no_verdict(files: dict[str, Path], tmp_path: Path) -> None:
    evaluated = evaluate_files(
        {"good": files["good"]}, files["test"], None, EvaluationConfig(), runs=tmp_path / "runs"
    )
    assert evaluated.tables.comparison.empty and evaluated.verdict == "cannot tell"
    assert not evaluated.folder.report.exists()
    assert json.loads(as_json(evaluated))["baseline"] is None
    # What was seen is the baseline, where it is known.
    with_seen = evaluate_files(
        {"good": files["good"]},
        files["test"],
        files["train"],
        EvaluationConfig(),
        runs=tmp_path / "runs",
    )
    assert (with_seen.baseline, with_seen.verdict) == (POPULARITY_ALL, "better")


def test_lists_of_another_id_map_are_counted(files: dict[str, Path], tmp_path: Path) -> None:
    lists = pd.read_parquet(files["good"])
    lists["item_id"] = "other " + lists["item_id"]
    lists.to_parquet(files["good"])
    evaluated = evaluate_files(
        {"good": files["good"]}, files["test"], files["train"], EvaluationConfig(), runs=tmp_path
    )
    unknown = evaluated.quality["items in lists of good that are in no log"]
    assert unknown == lists["item_id"].nunique()


def renamed(path: Path, kept: int) -> None:
    """Call all users but the first few otherwise."""
    lists = pd.read_parquet(path)
    others = ~lists["user_id"].isin([f"u{u}" for u in range(kept)])
    lists.loc[others, "user_id"] = lists["user_id"].str.removeprefix("u")
    lists.to_parquet(path)


def test_lists_of_no_held_out_user_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    renamed(files["bad"], kept=0)
    with pytest.raises(ForeignError) as refused:
        evaluate_files(
            {"good": files["good"], "bad": files["bad"]},
            files["test"],
            None,
            EvaluationConfig(),
            runs=tmp_path / "runs",
        )
    assert str(refused.value) == (
        f"no held-out user has a list: {files['bad']} has, for one, user '0' in segment 'de', and "
        f"{files['test']} has, for one, user 'u0' in segment 'de'. Are these ids of another kind? "
        "Name users and segments alike in both files"
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("kept", [29, 30])
def test_lists_of_few_held_out_users_are_said(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: int
) -> None:
    renamed(files["bad"], kept)
    evaluated = evaluate_files(
        {"good": files["good"], "bad": files["bad"]},
        files["test"],
        None,
        EvaluationConfig(),
        runs=tmp_path / "runs",
    )
    line = f"{kept} of 60 held-out users have a list in {files['bad']}; the others count as zero"
    assert capsys.readouterr().err.splitlines().count(line) == (kept < 30)
    assert (f"{line}." in evaluated.folder.report.read_text()) == (kept < 30)
    whole = evaluated.tables.means
    assert whole.loc[whole["model"] == "bad", "users"].max() == 60


def test_nothing_new_held_out_is_an_error(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every held-out item of every user is in"):
        evaluate_files(
            {"good": files["good"]},
            files["train"],
            files["train"],
            EvaluationConfig(),
            runs=tmp_path,
        )


# The command.


def test_the_command_prints_tables_json_and_codes(files: dict[str, Path], tmp_path: Path) -> None:
    good, bad = f"good={files['good']}", f"bad={files['bad']}"
    rest = ["--holdout", files["test"], "--seen", files["train"], "-k", 10]
    done = reclora(
        "evaluate", "--recommendations", good, "--recommendations", bad, *rest, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "good: better than bad" in done.stdout and "coverage" in done.stdout
    required = [*rest, "--metric", "nDCG", "--json", "--require"]
    done = reclora(
        "evaluate",
        "--recommendations",
        bad,
        "--recommendations",
        good,
        *required,
        "not-worse",
        cwd=tmp_path,
    )
    assert done.returncode == 3 and "required: not-worse; bad over good: worse" in done.stderr
    found = json.loads(done.stdout)
    assert found["verdict"] == "worse" and found["subject"] == "bad"
    assert {row["metric"] for row in found["lists"]} == {
        "novelty",
        "popularity",
        "coverage",
        "gini",
    }
    folder = tmp_path / found["folder"]
    command = json.loads((folder / "run.json").read_text())["settings"]["repeat"]
    assert command.startswith("reclora evaluate --recommendations bad=")
    for wrong, message in (
        (["evaluate"], "give a settings file, or --recommendations and --holdout"),
        (["evaluate", "--recommendations", good], "give a settings file"),
        (["evaluate", "--recommendations", good, *rest, "--metric", "nDGC"], "did you mean 'ndcg'"),
        (["evaluate", *["--recommendations", files["good"]] * 2, *rest], "two lists are called"),
    ):
        done = reclora(*wrong, cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr + done.stdout
    alone = ["evaluate", "--recommendations", good, "--holdout", files["test"]]
    for wrong, message in (
        (["evaluate", tmp_path / "run.toml", "-k", 3], "with a settings file these are settings"),
        ([*alone, "--set", "seeds=[1]"], "--release and --set go with a settings file"),
        ([*alone, "--require", "better"], "--require needs something to compare with"),
        (["evaluate", "--recommendations", f"={files['good']}", *rest], "lists need a name"),
    ):
        done = reclora(*wrong, cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr + done.stdout
    done = reclora(*alone, "-k", 1_000_000, cwd=tmp_path)
    assert done.returncode == 1 and "k must be at most the number of items" in done.stderr
    done = reclora("evaluate", "--recommendations", files["test"], *rest, cwd=tmp_path)
    assert done.returncode == 1 and "has neither a column 'rank'" in done.stderr


def test_the_command_evaluates_what_is_live(settings: RunSettings, tmp_path: Path) -> None:
    path = write_toml(tmp_path / "run.toml", settings)
    done = reclora("evaluate", path, "--require", "better", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "release 1: better than frozen base" in done.stdout
    done = reclora("evaluate", path, "--release", 7, cwd=tmp_path)
    assert done.returncode == 1 and "has no release 7" in done.stderr


@pytest.mark.parametrize(
    ("lifts", "told"),
    [
        ([], ""),
        (
            [("0-1", -0.01, 0.02, 0.05)],
            "In the first days of the test window (0-1) no lift can be told",
        ),
        (
            [("0-1", 0.02, 0.03, 0.04), ("2-3", 0.0, 0.01, 0.02)],
            "Within the test window, 3 days, the lift is not seen to fall for good below half",
        ),
        (
            [("0-1", 0.02, 0.03, 0.04), ("2-3", -0.1, -0.05, 0.0), ("4-7", 0.01, 0.02, 0.03)],
            "Within the test window, 7 days, the lift is not seen to fall for good below half",
        ),
        (
            [("0-1", 0.03, 0.04, 0.05), ("2-3", 0.0, 0.01, 0.02), ("4-7", -0.01, 0.0, 0.01)],
            "From 4 days into the test window on the lift is below half of the first days': "
            "retrain at least that often",
        ),
    ],
)
def test_a_page_says_how_soon_a_lift_grows_old(
    lifts: list[tuple[str, float, float, float]], told: str
) -> None:
    rows = [
        {"slice": "days after", "value": value, "low": low, "difference": mean, "high": high}
        for value, low, mean, high in lifts
    ]
    others = {"slice": "users", "value": "cold", "low": -1.0, "difference": 0.0, "high": 1.0}
    said = told_of_age(pd.DataFrame([others, *rows]))
    assert said.startswith(told) and bool(said) == bool(told)
