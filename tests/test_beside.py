"""Two finished runs beside each other: what is compared, and what is refused."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from reclora.comparison import compare
from reclora.evaluation import EvaluationConfig
from reclora.files import read_parquet, write_parquet, write_text
from reclora.pipelines.beside import NotComparable, beside, summary_of
from reclora.pipelines.evaluate_lists import evaluate_files
from reclora.pipelines.retrain import RELEASED, Outcome, retrain
from reclora.report.text import signed
from tests.small_runs import finished


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of one log, the second with a smaller rate and shorter."""
    settings, first = finished(tmp_path_factory)
    folder = tmp_path_factory.mktemp("second")
    training = replace(settings.training, epochs=1)
    other = replace(settings, folder=folder / "work", runs=folder, training=training)
    second: Outcome = retrain(other)
    return first.folder.path, second.folder.path


def results_of(run: Path) -> pd.DataFrame:
    table = read_parquet(run / "results.parquet").to_pandas()
    return table[table["model"] == RELEASED]


def test_what_was_live_at_the_end_of_both_is_compared(two: tuple[Path, Path]) -> None:
    first, second = two
    said = beside(first, second)
    ours, theirs = (f"{RELEASED}, {run.name}" for run in two)
    both = [
        results_of(run).assign(model=name) for run, name in zip(two, (ours, theirs), strict=True)
    ]
    expected = compare(pd.concat(both, ignore_index=True), ours, theirs, metric="ndcg", k=10)
    found = pd.DataFrame(said.about["comparison"])
    assert set(found["model"]) == {ours} and set(found["baseline"]) == {theirs}
    found = found[(found["metric"] == "ndcg") & (found["k"] == 10)].reset_index(drop=True)
    columns = ["scope", "segment", "users", "difference", "low", "high", "verdict"]
    pd.testing.assert_frame_equal(found[columns], expected[columns], check_dtype=False)
    whole = found[found["scope"] == "all"].iloc[0]
    assert whole["difference"] != 0 and f"**{signed(whole['difference'])}**" in said.text
    assert said.page == first / f"beside-{second.name}.html"
    assert said.page.with_suffix(".md").read_text(encoding="utf-8") == said.text
    assert ours in said.page.read_text(encoding="utf-8")


def test_settings_are_shown_where_they_differ(two: tuple[Path, Path]) -> None:
    first, second = two
    settings = beside(first, second).about["settings"]
    epochs = [
        json.loads((run / "run.json").read_text())["settings"]["training"]["epochs"] for run in two
    ]
    assert settings["training.epochs"] == f"{epochs[0]}, 1"
    assert not any(key.startswith("split") for key in settings)


def test_only_users_of_both_are_compared(two: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = two
    whole = read_parquet(second / "results.parquet").to_pandas()
    users = sorted(whole["user_id"].unique())
    fewer = copied(second, whole[~whole["user_id"].isin(users[:7])], tmp_path / "fewer")
    about = beside(first, fewer).about
    measured = results_of(first)
    own = measured[~measured["user_id"].isin(users[:7])]
    assert about["comparison"][0]["users"] == len(own[["segment", "user_id"]].drop_duplicates())
    lost = measured[measured["user_id"].isin(users[:7])][["segment", "user_id"]].drop_duplicates()
    quality = about["data_quality"]
    assert quality[f"users of {first.name} alone, left out"] == len(lost) > 0
    assert quality["users of fewer alone, left out"] == 0


def test_one_run_says_what_it_came_to(two: tuple[Path, Path], tmp_path: Path) -> None:
    first, _ = two
    said = summary_of(first)
    assert said.page == first / "report.html"
    assert said.text == (first / "report.md").read_text(encoding="utf-8")
    found = json.loads(said.as_json())
    compared = read_parquet(first / "comparison.parquet").to_pandas()
    assert len(found["comparison"]) == (compared["scope"] == "all").sum()
    assert found["id"] == first.name and found["decisions"]
    results = read_parquet(first / "results.parquet").to_pandas()
    with pytest.raises(NotComparable, match="has no page"):
        summary_of(copied(first, results, tmp_path / "pageless"))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "events.jsonl").touch()
    with pytest.raises(NotComparable, match="of a run that has begun: end it by the command"):
        summary_of(broken)


def copied(run: Path, results: pd.DataFrame, folder: Path) -> Path:
    """A run's folder with other results."""
    folder.mkdir()
    about = json.loads((run / "run.json").read_text(encoding="utf-8")) | {"id": folder.name}
    write_text(folder / "run.json", json.dumps(about))
    write_parquet(folder / "results.parquet", pa.Table.from_pandas(results, preserve_index=False))
    return folder


def changed(run: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A run's folder whose `run.json` says something else."""
    copied(run, read_parquet(run / "results.parquet").to_pandas(), folder)
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    change(about)
    write_text(folder / "run.json", json.dumps(about))
    return folder


DIFFERENT: dict[str, Callable[[dict[str, Any]], object]] = {
    "the log": lambda about: about.update(inputs={"log.parquet": "0" * 64}),
    "log.contract.duplicates": lambda about: about["settings"]["log"]["contract"].update(
        duplicates="exact"
    ),
    "split.test": lambda about: about["settings"]["split"].update(test=0.2),
    "evaluation.candidates": lambda about: about["settings"]["evaluation"].update(
        candidates="segment"
    ),
    "the file of candidates": lambda about: about["inputs"].update({"candidates: a": "0" * 64}),
    "unknown": lambda about: about["settings"].update(unknown="grow"),
    "rows unknown to the base, test window": lambda about: about["data_quality"].update(
        {"unknown to the base, test window": 7}
    ),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_runs_that_asked_for_other_items_are_refused(
    what: str, two: tuple[Path, Path], tmp_path: Path
) -> None:
    other = changed(two[1], tmp_path / "other", DIFFERENT[what])
    with pytest.raises(NotComparable, match=f"other differ in {what}, so that users were asked"):
        beside(two[0], other)


def test_files_are_compared_by_what_is_in_them(two: tuple[Path, Path], tmp_path: Path) -> None:
    def moved(about: dict[str, Any]) -> None:
        about["inputs"] = {f"/elsewhere/{n}": sha for n, sha in enumerate(about["inputs"].values())}
        # What only a model's scores are held against beside the lists asks nobody for an item.
        about["inputs"]["labelled: rows"] = "0" * 64

    assert beside(two[0], changed(two[1], tmp_path / "moved", moved)).about["comparison"]

    def cut(windows: Sequence[str]) -> Callable[[dict[str, Any]], None]:
        def change(about: dict[str, Any]) -> None:
            about["settings"]["log"]["windows"] = {w: [f"{windows}/{w}"] for w in windows}
            about["inputs"] = {f"{w}: {windows}/{w}": str(n) * 64 for n, w in enumerate(windows)}

        return change

    runs = [
        changed(run, tmp_path / f"{name} {run.name}", cut(order))
        for name, run, order in (
            ("first", two[0], ("train", "test")),
            ("same", two[1], ("train", "test")),
            ("turned", two[1], ("test", "train")),
        )
    ]
    assert beside(*runs[:2]).about["comparison"]
    with pytest.raises(NotComparable, match="differ in the log"):
        beside(runs[0], runs[2])


def test_another_base_is_said(two: tuple[Path, Path], tmp_path: Path) -> None:
    said = "The two stand on different bases"
    other = changed(two[1], tmp_path / "other", lambda about: about.update(base="f" * 64))
    assert said in beside(two[0], other).page.read_text(encoding="utf-8")
    assert said not in beside(*two).page.read_text(encoding="utf-8")


def test_two_evaluations_of_lists_are_compared_by_their_logs(tmp_path: Path) -> None:
    users = [f"u{n}" for n in range(40)]

    def written(name: str, items: list[str], **columns: object) -> Path:
        path = tmp_path / f"{name}.parquet"
        pd.DataFrame({"user_id": users, "item_id": items, **columns}).to_parquet(path)
        return path

    def evaluated(name: str, holdout: Path) -> Path:
        lists = written(name, [f"i{n % (2 if name == 'a' else 3)}" for n in range(40)], rank=1)
        config = EvaluationConfig((1,), ("ndcg",))
        found = evaluate_files({name: lists}, holdout, seen, config, runs=tmp_path)
        return found.folder.path

    seen = written("seen", [f"j{n % 4}" for n in range(40)])
    holdout = written("holdout", [f"i{n % 2}" for n in range(40)])
    first = evaluated("a", holdout)
    found = beside(first, evaluated("b", holdout)).about["comparison"][0]
    assert (found["users"], found["verdict"]) == (40, "better")
    other = written("other", [f"i{n % 5}" for n in range(40)])
    with pytest.raises(NotComparable, match="differ in the held-out log, so that"):
        beside(first, evaluated("b", other))


def test_what_is_no_run_or_has_nothing_in_common_is_refused(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = two
    with pytest.raises(NotComparable, match=r"complete run, with run.json in it, got .*nowhere"):
        beside(first, tmp_path / "nowhere")
    with pytest.raises(NotComparable, match="expected two runs"):
        beside(first, first)
    whole = read_parquet(second / "results.parquet").to_pandas()
    others = copied(second, whole.assign(user_id="x" + whole["user_id"]), tmp_path / "others")
    with pytest.raises(NotComparable, match="no user, metric and k in common"):
        beside(first, others)
    other = copied(second, whole[whole["model"] != RELEASED], tmp_path / "without")
    with pytest.raises(NotComparable, match="has no results of 'live after the run'"):
        beside(first, other)
