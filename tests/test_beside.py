"""Two finished runs beside each other: what is compared, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from reclora.comparison import compare
from reclora.files import read_parquet, write_parquet, write_text
from reclora.pipelines.beside import NotComparable, beside, summary_of
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


def copied(run: Path, results: pd.DataFrame, folder: Path) -> Path:
    """A run's folder with other results."""
    folder.mkdir()
    about = json.loads((run / "run.json").read_text(encoding="utf-8")) | {"id": folder.name}
    write_text(folder / "run.json", json.dumps(about))
    write_parquet(folder / "results.parquet", pa.Table.from_pandas(results, preserve_index=False))
    return folder


def test_what_is_no_run_or_has_nothing_in_common_is_refused(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = two
    with pytest.raises(NotComparable, match=r"complete run, with run.json in it, got .*nowhere"):
        beside(first, tmp_path / "nowhere")
    with pytest.raises(NotComparable, match="expected two runs"):
        beside(first, first)
    whole = read_parquet(second / "results.parquet").to_pandas()
    later = copied(second, whole, tmp_path / "later")
    about = json.loads((later / "run.json").read_text(encoding="utf-8"))
    write_text(later / "run.json", json.dumps(about | {"inputs": {"log.parquet": "0" * 64}}))
    with pytest.raises(NotComparable, match="have another log, so that their test rows differ"):
        beside(first, later)
    others = copied(second, whole.assign(user_id="x" + whole["user_id"]), tmp_path / "others")
    with pytest.raises(NotComparable, match="no user, metric and k in common"):
        beside(first, others)
    other = copied(second, whole[whole["model"] != RELEASED], tmp_path / "without")
    with pytest.raises(NotComparable, match="has no results of 'what is live now'"):
        beside(first, other)
