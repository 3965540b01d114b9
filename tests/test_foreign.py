"""Lists and logs of other systems, from real files; what cannot be read names file, column, row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reclora.comparison import means
from reclora.evaluation import (
    EvaluationConfig,
    Foreign,
    ForeignError,
    hold_out,
    measure,
    read_foreign,
)
from reclora.evaluation import read_foreign as read_files
from reclora.splits import LeakageError


def write(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., Any]:
    """Reads tables given as columns: lists by name, holdout, seen."""

    def read(
        lists: dict[str, dict[str, Any]],
        holdout: dict[str, Any],
        seen: dict[str, Any] | None = None,
        k: int = 3,
        attributes: tuple[str, ...] = (),
    ) -> Any:
        return read_foreign(
            {name: write(tmp_path / f"{name}.parquet", c) for name, c in lists.items()},
            write(tmp_path / "test.parquet", holdout),
            None if seen is None else write(tmp_path / "train.parquet", seen),
            k,
            attributes,
        )

    return read


def shown(foreign: Any, model: str, segment: str = "all") -> dict[Any, list[Any]]:
    """User -> list, as identifiers."""
    lists, users, items = foreign.lists[model].segments[segment], *maps(foreign)
    return {
        users.ids_of([user])[0].as_py(): items.ids_of([i for i in row if i >= 0]).to_pylist()
        for user, row in zip(lists.user_rows_U.tolist(), lists.item_rows_UK.tolist(), strict=True)
    }


def maps(foreign: Any) -> tuple[Any, Any]:
    return foreign.heldout.users, foreign.heldout.items


HELD = {"user_id": ["u"], "item_id": ["a"]}
LISTS = HELD | {"rank": [1]}


def test_lists_are_in_the_order_of_rank_or_of_score(files: Callable[..., Any]) -> None:
    columns = {"user_id": ["u", "v", "u", "u", "u"], "item_id": ["c", "a", "a", "b", "d"]}
    foreign = files(
        {
            "ranked": columns | {"rank": [3, 1, 1, 2, 4]},
            "scored": columns | {"score": [0.5, 0.0, -1.0, 0.5, 2.0]},
            # Where both are there, ranks count.
            "both": columns | {"rank": [3, 1, 1, 2, 4], "score": [9.0, 0.0, 1.0, 2.0, 3.0]},
        },
        HELD,
    )
    assert shown(foreign, "ranked") == shown(foreign, "both") == {"u": ["a", "b", "c"], "v": ["a"]}
    # Of equal scores the lower identifier comes first; the fourth place is cut.
    assert shown(foreign, "scored") == {"u": ["d", "b", "c"], "v": ["a"]}


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 3)), min_size=1),
    st.integers(1, 4),
)
def test_any_table_of_scores_equals_a_sort(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, int]], k: int
) -> None:
    rows = list({(user, item): (user, item, score) for user, item, score in rows}.values())
    folder = tmp_path_factory.mktemp("sorted")
    users, items, scores = (list(column) for column in zip(*rows, strict=True))
    path = write(folder / "m.parquet", {"user_id": users, "item_id": items, "score": scores})
    held = write(folder / "test.parquet", {"user_id": [9], "item_id": [9]})
    found = shown(read_foreign({"m": path}, held, None, k), "m")
    assert found == {
        user: [item for _, item in sorted((-s, i) for u, i, s in rows if u == user)][:k]
        for user in users
    }


def test_lists_without_a_segment_serve_every_segment(files: Callable[..., Any]) -> None:
    held = {"user_id": ["u", "u"], "item_id": ["a", "b"], "segment": ["de", "us"]}
    one = {"user_id": ["u", "u"], "item_id": ["a", "b"], "rank": [1, 2]}
    two = one | {"segment": ["de", "us"], "rank": [1, 1]}
    foreign = files({"one": one, "two": two}, held)
    for segment in ("de", "us"):
        assert shown(foreign, "one", segment) == {"u": ["a", "b"]}
    assert shown(foreign, "two", "de") == {"u": ["a"]}
    assert shown(foreign, "two", "us") == {"u": ["b"]}


def test_identifiers_are_integers_or_strings_and_may_be_dictionaries(
    files: Callable[..., Any],
) -> None:
    names = pa.array(["u", "v"]).dictionary_encode()
    foreign = files(
        {"m": {"user_id": names, "item_id": pa.array([2**40, 7]), "rank": [1, 1]}},
        {"user_id": names, "item_id": [7, 2**40], "segment": names},
    )
    assert shown(foreign, "m", "u") == {"u": [2**40], "v": [7]}


def test_the_six_users_come_from_files_too(files: Callable[..., Any]) -> None:
    """u4 has a list and nothing relevant, u5 something relevant and no list."""
    lists = [[1, 0, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2], []]
    relevant = [[1], [0, 1, 2, 3, 4], [4, 5], [1, 2], [], [3]]
    places = [(u, i, place) for u, row in enumerate(lists) for place, i in enumerate(row, 1)]
    held = [(u, i) for u, row in enumerate(relevant) for i in row]
    foreign = files(
        {"m": dict(zip(("user_id", "item_id", "rank"), zip(*places, strict=True), strict=True))},
        dict(zip(("user_id", "item_id"), zip(*held, strict=True), strict=True)),
    )
    held_out = hold_out(foreign.heldout, foreign.seen, EvaluationConfig(ks=(3,)))
    results = measure(held_out, foreign.lists["m"], model="m", run="r", seed=0)
    mean = means(results).set_index(["scope", "metric"])["mean"]
    assert round(mean["all", "recall"], 4) == 0.5200 and round(mean["all", "ndcg"], 4) == 0.5387


def test_attributes_of_the_held_out_table_are_kept(files: Callable[..., Any]) -> None:
    held = {"user_id": ["u", "v"], "item_id": ["a", "a"], "device": ["tv", None]}
    foreign = files({"m": HELD | {"rank": [1]}}, held, attributes=("device",))
    assert list(foreign.heldout.attributes["device"]) == ["tv", "(none)"]


def test_leakage_is_refused_with_the_rows(files: Callable[..., Any]) -> None:
    moments = pd.to_datetime([10, 20, 30], unit="s", utc=True)
    lists = {"m": HELD | {"rank": [1]}}
    seen = {"user_id": ["u", "u", "v"], "item_id": ["a", "b", "c"], "timestamp": moments}
    held = {"user_id": ["u"], "item_id": ["d"], "timestamp": moments[1:2]}
    files(lists, held, seen)
    with pytest.raises(LeakageError, match="user_id 'u', item_id 'd', 1970-01-01 00:00:10"):
        files(lists, held | {"timestamp": moments[:1]}, seen)
    with pytest.raises(LeakageError, match="1 of the 1 held-out rows are among the seen rows too"):
        files(lists, held | {"item_id": ["b"]}, seen)
    with pytest.raises(ForeignError, match="integers in one and Parquet timestamps in the other"):
        files(lists, held | {"timestamp": [10]}, seen)
    # Without times in both nothing is known.
    files(lists, {"user_id": ["u"], "item_id": ["b"]}, seen)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"rank": None}, "m.parquet has neither a column 'rank'"),
        (
            {"item_id": ["a", "a"]},
            r"column item_id, row 1 .*: 'a' is twice in the list of user 'u'",
        ),
        ({"rank": [1, None]}, "m.parquet, column rank, row 1 .*: null"),
        ({"rank": [1.0, float("nan")]}, "column rank, row 1 .*: NaN"),
        ({"rank": ["1", "2"]}, "column rank must be numbers, got string"),
        ({"user_id": ["u", None]}, "m.parquet, column user_id, row 1 .*: null"),
        ({"user_id": [1.5, 2.5]}, "m.parquet, column user_id"),
        ({"user_id": [1, 2]}, "user_id is int64 in .*m.parquet and large_string in .*test.parquet"),
        ({"user_id": None, "userid": ["u", "u"]}, "no column 'user_id'.*rename 'userid'"),
        ({"segment": [1, 2]}, "column segment must be strings, got int64"),
    ],
)
def test_what_cannot_be_read_is_named(
    files: Callable[..., Any], columns: dict[str, Any], message: str
) -> None:
    table = {"user_id": ["u", "u"], "item_id": ["a", "b"], "rank": [1, 2]} | columns
    with pytest.raises(ForeignError, match=message):
        files({"m": {name: c for name, c in table.items() if c is not None}}, HELD)


def test_a_slice_that_is_no_column_is_told_the_near_one(files: Callable[..., Any]) -> None:
    with pytest.raises(ForeignError, match=r"'device'\]; did you mean 'device'\?") as refused:
        files({"m": LISTS}, HELD | {"device": ["tv"]}, attributes=("devise",))
    assert "rename" not in str(refused.value)
    with pytest.raises(ForeignError, match=r"has no column 'page', it has .*'device'\]$"):
        files({"m": LISTS}, HELD | {"device": ["tv"]}, attributes=("page",))


def test_files_that_are_none_are_named(tmp_path: Path, files: Callable[..., Any]) -> None:
    held = write(tmp_path / "held.parquet", HELD)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ForeignError, match=r"broken.parquet is no Parquet file"):
        read_foreign({"m": tmp_path / "broken.parquet"}, held, None, 3)
    with pytest.raises(FileNotFoundError, match=r"missing.parquet"):
        read_foreign({"m": tmp_path / "missing.parquet"}, held, None, 3)
    with pytest.raises(ForeignError, match="column timestamp must be Parquet timestamps or int"):
        files({"m": HELD | {"rank": [1]}}, HELD | {"timestamp": ["soon"]})


def read(
    folder: Path,
    lists: dict[str, Any],
    held: dict[str, Any],
    seen: dict[str, Any] | None = None,
    attributes: tuple[str, ...] = (),
) -> Foreign:
    before = None if seen is None else write(folder / "train.parquet", seen)
    return read_files(
        {"m": write(folder / "m.parquet", lists)},
        write(folder / "test.parquet", held),
        before,
        3,
        attributes,
    )


def test_string_ties_go_by_bytes(tmp_path: Path) -> None:
    items = ["é", "z", "Z", "10", "9"]
    foreign = read_files(
        {
            "m": write(
                tmp_path / "m.parquet", {"user_id": ["u"] * 5, "item_id": items, "score": [0.5] * 5}
            )
        },
        write(tmp_path / "t.parquet", {"user_id": ["u"], "item_id": ["z"]}),
        None,
        5,
    )
    rows = foreign.lists["m"].segments["all"].item_rows_UK[0].tolist()
    assert foreign.heldout.items.ids_of(rows).to_pylist() == ["10", "9", "Z", "z", "é"]


def test_what_was_seen_is_not_relevant(tmp_path: Path) -> None:
    held = {"user_id": ["u", "u"], "item_id": ["a", "b"]}
    foreign = read(tmp_path, LISTS, held, {"user_id": ["u"], "item_id": ["b"]})
    prepared = hold_out(foreign.heldout, foreign.seen, EvaluationConfig((3,), ("recall",)))
    table = measure(prepared, foreign.lists["m"], model="m", run="r", seed=0)
    assert table["value"].tolist() == [1.0]


@pytest.mark.parametrize("name", ["user_id", "item_id"])
def test_a_null_in_a_log_names_the_log(tmp_path: Path, name: str) -> None:
    held = {"user_id": ["u", "u"], "item_id": ["a", "b"]} | {name: ["a", None]}
    with pytest.raises(ForeignError, match=rf"test.parquet, column {name}, row 1 "):
        read(tmp_path, LISTS, held)


def test_item_ids_of_two_kinds_name_both_files(tmp_path: Path) -> None:
    with pytest.raises(ForeignError, match=r"item_id is .*m.parquet and int64 in .*test.parquet"):
        read(tmp_path, LISTS, {"user_id": ["u"], "item_id": [1]})


def test_a_score_that_is_nan_names_the_row(tmp_path: Path) -> None:
    lists = {"user_id": ["u", "u"], "item_id": ["a", "b"], "score": [1.0, float("nan")]}
    with pytest.raises(ForeignError, match=r"m.parquet, column score, row 1 .*NaN"):
        read(tmp_path, lists, HELD)


def test_an_item_may_be_in_the_lists_of_two_segments_but_not_twice_in_one(tmp_path: Path) -> None:
    held = {"user_id": ["u", "u"], "item_id": ["a", "b"], "segment": ["de", "us"]}
    lists = {"user_id": ["u", "u"], "item_id": ["a", "a"], "rank": [1, 2], "segment": ["de", "us"]}
    assert set(read(tmp_path, lists, held).lists["m"].segments) == {"de", "us"}
    with pytest.raises(ForeignError, match="'a' is twice in the list of user 'u'"):
        read(tmp_path, lists | {"segment": ["de", "de"]}, held)


def test_integers_beyond_64_bits_with_a_sign_are_refused(tmp_path: Path) -> None:
    lists = {"user_id": ["u"], "item_id": pa.array([2**63], pa.uint64()), "rank": [1]}
    with pytest.raises(ForeignError, match="m.parquet, column item_id"):
        read(tmp_path, lists, {"user_id": ["u"], "item_id": [1]})


def test_a_held_out_table_without_rows_is_read_or_refused_with_its_name(tmp_path: Path) -> None:
    none = {name: pa.array([], pa.string()) for name in ("user_id", "item_id", "segment")}
    with pytest.raises(ForeignError, match="test.parquet has no rows"):
        read(tmp_path, LISTS, none)


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    arrays = [pa.array(["u"]), pa.array(["a"]), pa.array(["b"]), pa.array([1])]
    path = tmp_path / "m.parquet"
    names = ["user_id", "item_id", "item_id", "rank"]
    pq.write_table(pa.Table.from_arrays(arrays, names=names), path)
    with pytest.raises(ForeignError, match="m.parquet"):
        read_files({"m": path}, write(tmp_path / "test.parquet", HELD), None, 3)


def test_integers_of_an_attribute_stay_integers_beside_a_null(tmp_path: Path) -> None:
    held = {"user_id": ["u", "v"], "item_id": ["a", "a"], "age": pa.array([7, None], pa.int64())}
    foreign = read(tmp_path, LISTS, held, attributes=("age",))
    assert list(foreign.heldout.attributes["age"]) == ["7", "(none)"]


def test_a_held_out_row_is_a_seen_one_whatever_the_segment_of_the_seen_log(tmp_path: Path) -> None:
    row = HELD | {"timestamp": [5]}
    with pytest.raises(LeakageError):
        read(tmp_path, LISTS, row | {"segment": ["de"]}, row)


def test_lists_by_segment_are_not_dropped_unsaid_where_the_held_out_log_has_none(
    tmp_path: Path,
) -> None:
    with pytest.raises(ForeignError, match="name segments alike in both"):
        read(tmp_path, LISTS | {"segment": ["de"]}, HELD)


def test_large_integer_scores_keep_their_order(tmp_path: Path) -> None:
    lists = {"user_id": ["u", "u"], "item_id": ["a", "b"], "score": [2**53, 2**53 + 1]}
    foreign = read(tmp_path, lists, HELD)
    rows = foreign.lists["m"].segments["all"].item_rows_UK[0, :2].tolist()
    assert foreign.heldout.items.ids_of(rows).to_pylist() == ["b", "a"]
