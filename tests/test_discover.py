"""Segments for a log: hidden tastes are found and pay, where there are none it says so."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import adjusted_rand_score

from reclora.configs import AdapterConfig
from reclora.evaluation import EvaluationConfig
from reclora.factorisation import FactorisationConfig
from reclora.files import read_parquet, write_parquet
from reclora.pipelines import workshop
from reclora.pipelines.base_settings import BaseSearch, BaseSettings
from reclora.pipelines.discover import Discovered, check, discover, files_to_write
from reclora.pipelines.prepare import prepare
from reclora.pipelines.run import LogSettings, RunSettings, Search, WindowFiles
from reclora.pipelines.settings import SettingsError
from reclora.splits import WINDOWS, SplitConfig
from reclora.training import Training, TrainingConfig, train
from tests.small_runs import START, small_settings

ITEMS, EACH = 150, 32


def tastes_log(path: Path, tastes: int, users: int = 120) -> Path:
    """A log whose segments, `left` and `right`, say nothing of its hidden tastes: user n is of
    taste n % tastes.

    Half-way each taste's favourites change, which a base of the first half cannot know. Users take
    turns, and take no item twice.
    """
    rng = np.random.default_rng(0)
    liking = np.where(np.arange(ITEMS) % tastes == np.arange(tastes)[:, None], 4.0, 0.0)
    moved = liking + 2 * rng.standard_normal(liking.shape)
    rows = []
    for user in range(users):
        noise = rng.gumbel(size=(2, ITEMS))
        before = np.argsort(-liking[user % tastes] - noise[0])[: EACH // 2].tolist()
        after = np.argsort(-moved[user % tastes] - noise[1]).tolist()
        after = [item for item in after if item not in before][: EACH // 2]
        rng.shuffle(after)
        rows += [(turn * users + user, user, item) for turn, item in enumerate(before + after)]
    times, of_user, items = np.array(sorted(rows)).T
    table = {
        "user_id": [f"u{user:03}" for user in of_user],
        "item_id": [f"i{item:03}" for item in items],
        "timestamp": pa.array(START + times * 10**8, pa.timestamp("us", "UTC")),
        "segment": ["left" if user % 4 < 2 else "right" for user in of_user],
    }
    write_parquet(path, pa.table(table))
    return path


def bias_settings(folder: Path, log: Path, **changes: object) -> RunSettings:
    """A bias is all that a segment has: a low-rank change could tell tastes apart by itself."""
    tables = FactorisationConfig(embedding_dim=8, epochs=12, batch_users=16, temperature=0.3)
    settings = small_settings(
        folder,
        log,
        base=BaseSettings(tables, search=BaseSearch(()), hidden=()),
        split=SplitConfig("global_time", pretrain=0.5, train=0.3, validation=0.1, test=0.1),
        adapter=AdapterConfig(user_table="none", item_table="none", tower="none"),
        training=TrainingConfig(epochs=10, batch_rows=64, num_negatives=32),
        search=Search((0.05,), (0.3,), (0.01,)),
        parent="none",
    )
    return replace(settings, **changes)  # type: ignore[arg-type]


def taste_of(found: Discovered) -> float:
    """How well the segments are the hidden three: adjusted Rand index."""
    users, segments = (found.segments[name].to_pylist() for name in ("user_id", "segment"))
    return float(adjusted_rand_score([int(user[1:]) % 3 for user in users], segments))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> RunSettings:
    folder = tmp_path_factory.mktemp("discover")
    return bias_settings(folder, tastes_log(folder / "log.parquet", 3))


@pytest.fixture(scope="module")
def found(settings: RunSettings) -> Discovered:
    return discover(settings, (6, 3, 2))


def test_hidden_tastes_are_found_and_pay(found: Discovered) -> None:
    assert found.number == 3 and taste_of(found) > 0.8
    table = found.table.set_index("segments")
    assert [*table.index] == ["1", "2", "3", "6", "given"]
    assert [*table["count"]] == [1, 2, 3, 6, 2] and {*table["users"]} == {120}
    assert table["mean"].idxmax() == "3" and table.loc["3", "verdict"] == "better"
    assert table["chosen"].tolist() == [name == "3" for name in table.index]
    assert table.loc["1", "difference"] == 0 and table.loc["1", ["low", "high"]].isna().all()
    lifts = table["mean"] - table.loc["1", "mean"]
    assert table["difference"].to_numpy(float) == pytest.approx(lifts.to_numpy(float))
    (against,) = found.given.to_dict("records")
    assert (against["model"], against["baseline"], against["verdict"]) == ("3", "given", "better")
    assert "3 segments" in found.outcome and "Against the 2 given segments: +0." in found.outcome
    assert "flatters" in found.outcome and "most of their user" not in found.outcome
    assert sum(found.sizes.values()) == len(found.users) == 120


def test_interrupted_it_goes_on_with_what_was_trained(
    settings: RunSettings, found: Discovered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second call trains what the first one did not come to, says the same, leaves nothing."""
    mine = replace(settings, folder=tmp_path / "work", runs=tmp_path / "runs")
    was_there, stops = list[bool](), 4

    def watched(*given: Any, **named: Any) -> Training:
        found = named["checkpoint"].load()
        was_there.append(found is not None and found[1]["is_done"])
        if len(was_there) == stops:
            raise KeyboardInterrupt
        return train(*given, **named)

    monkeypatch.setattr(workshop, "train", watched)
    with pytest.raises(KeyboardInterrupt):
        discover(mine, (6, 3, 2))
    (left,) = mine.runs.glob("*-segments-*")
    was_there.clear()
    stops = 0
    again = discover(mine, (6, 3, 2))
    # Both folds of the pooled adapter, of each number and of the given segments.
    assert was_there == [True] * 3 + [False] * 9
    pd.testing.assert_frame_equal(again.table, found.table)
    assert not left.exists()


def test_where_there_are_no_tastes_there_are_no_segments(tmp_path: Path) -> None:
    log = tastes_log(tmp_path / "log.parquet", 1)
    table = pq.read_table(log)
    # A user who is in both segments counts as of the one of most rows.
    names = np.array(table["segment"].to_pylist(), object)
    names[np.flatnonzero(np.array(table["user_id"].to_pylist()) == "u000")[:4]] = "right"
    write_parquet(log, table.set_column(3, "segment", pa.array(names)))
    found = discover(bias_settings(tmp_path, log), (2, 4))
    assert found.number == 1 and {*found.segments["segment"].to_pylist()} == {"all"}
    assert "no segments; no number of them is better" in found.outcome
    assert found.moved == pytest.approx(4 / (120 * EACH * 0.9))
    assert "0.1% of the rows are in another segment" in found.outcome


def test_what_comes_later_clusters_nobody(settings: RunSettings, tmp_path: Path) -> None:
    """Other rows in the test window change nothing, in the validation window no cluster."""
    table = pq.read_table(settings.log.files[0])
    table = table.set_column(3, "segment", pa.array(["one"] * len(table)))
    ends = (np.cumsum([0, 0.5, 0.3, 0.1, 0.1]) * len(table)).round().astype(int)
    found = []
    for night, poisoned in enumerate(((), ("test",), ("validation", "test"))):
        files = {}
        for name, first, last in zip(WINDOWS, ends, ends[1:], strict=False):
            part = table.slice(first, last - first)
            if name in poisoned:
                items = part["item_id"].to_pylist()
                part = part.set_column(1, "item_id", pa.array(items[::-1]))
            files[name] = (tmp_path / str(night) / f"{name}.parquet",)
            files[name][0].parent.mkdir(exist_ok=True)
            write_parquet(files[name][0], part)
        windows = LogSettings(windows=WindowFiles(**files))
        mine = replace(settings, log=windows, folder=tmp_path / "work", parent="pooled")
        found.append(discover(mine, (3,)))
    clean, test, both = found
    pd.testing.assert_frame_equal(clean.table, test.table, check_exact=True)
    assert clean.table["mean"].tolist() != both.table["mean"].tolist()
    for other in (test, both):
        for number in ("1", "3"):
            mine, its = clean.segmentations[number], other.segmentations[number]
            assert np.array_equal(mine.labels_U, its.labels_U) and mine.names == its.names
    assert clean.given.empty and "there are no others to compare with" in clean.outcome
    # What is written of given windows stands in a folder of each.
    written = clean.write_log(mine_of(settings, tmp_path / "0"), tmp_path / "out")
    assert [path.parent.name for path in written.values()] == [*WINDOWS]
    assert sum(read_parquet(path).num_rows for path in written.values()) == len(table)


def mine_of(settings: RunSettings, folder: Path) -> RunSettings:
    """The settings with the windows in a folder."""
    files = {name: (folder / f"{name}.parquet",) for name in WINDOWS}
    return replace(settings, log=LogSettings(windows=WindowFiles(**files)))


def test_who_is_in_which_segment_is_written(found: Discovered, tmp_path: Path) -> None:
    found.write(tmp_path / "new folder" / "segments.parquet")
    table = read_parquet(tmp_path / "new folder" / "segments.parquet")
    assert table.column_names == ["user_id", "segment"] and table.equals(found.segments)
    assert [*found.sizes] == [*found.chosen.names]
    assert found.sizes == table["segment"].to_pandas().value_counts().to_dict()


def test_the_log_is_written_with_them(
    settings: RunSettings, found: Discovered, tmp_path: Path
) -> None:
    """Row group by row group; all else stays."""
    table = pq.read_table(settings.log.files[0])
    more = {
        "user_id": ["nobody", None],
        "item_id": ["i000", "i001"],
        "timestamp": table["timestamp"][:2],
        "segment": ["left", "left"],
    }
    table = pa.concat_tables([table, pa.table(more, table.schema)])
    table = table.append_column("page", pa.array(np.arange(len(table))))
    frame = table.to_pandas().astype({"segment": "category"})
    named = [tmp_path / name / "log.parquet" for name in ("a", "b")]
    for path in named:
        path.parent.mkdir()
    pq.write_table(pa.Table.from_pandas(frame), named[0], row_group_size=1000)
    pq.write_table(table.slice(0, 0), named[1])
    mine = replace(settings, log=LogSettings(tuple(named)), folder=tmp_path / "work")
    written = found.write_log(mine, tmp_path / "out")
    assert [path.name for path in written.values()] == ["0-log.parquet", "1-log.parquet"]
    first, second = map(read_parquet, written.values())
    assert second.num_rows == 0 and second.column_names == table.column_names
    with pq.ParquetFile(written[named[0]]) as file:
        assert file.metadata.num_row_groups == 4
    for name in ("user_id", "item_id", "timestamp", "page"):
        assert first[name].to_pylist() == table[name].to_pylist()
    segments = dict(
        zip(*(found.segments[n].to_pylist() for n in ("user_id", "segment")), strict=True)
    )
    # Whom the base does not know is of the largest; who is nobody is of none.
    segments |= {"nobody": found.chosen.names[0], None: None}
    assert first["segment"].to_pylist() == [segments[user] for user in first["user_id"].to_pylist()]
    own = replace(mine, log=replace(mine.log, files=tuple(written.values())))
    assert {*prepare(own).segments} == {*found.chosen.names}
    with pytest.raises(FileExistsError, match="0-log.parquet is there already; name a new folder"):
        found.write_log(mine, tmp_path / "out")


def test_what_cannot_be_compared_is_refused_at_once(
    settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = replace(settings, log=LogSettings((tmp_path / "none.parquet",)))
    for numbers in ((), (1,), (0, 2)):
        with pytest.raises(ValueError, match="one of them at least 2, got .*; such as 1,2,4,8,16"):
            discover(nowhere, numbers)
    own = replace(nowhere, evaluation=EvaluationConfig(candidates="segment"))
    with pytest.raises(SettingsError, match="set evaluation.candidates = 'catalogue'"):
        check(own, (2,))
    with pytest.raises(FileNotFoundError):
        files_to_write(nowhere, tmp_path)
    with pytest.raises(ValueError, match="num_clusters must be at most 120, .* got 500; ask for"):
        discover(settings, (500,))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")
    with pytest.raises(SettingsError, match="in one process: start it without torchrun"):
        check(settings, (2,))
