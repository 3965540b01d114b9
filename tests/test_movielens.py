"""MovieLens as a log: taken whole or not at all, read alike from each published form."""

import csv
import random
import subprocess
import sys
import zipfile
from collections import Counter
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reclora.datasets.movielens import (
    AGE_GROUPS,
    FIRST_POSITION,
    OCCUPATIONS,
    SEGMENT_BY,
    MovieLensError,
    fetch,
    read,
    write_log,
)
from reclora.files import read_parquet
from reclora.interactions import LogContract, prepare_log

FILES = ("ml-100k.inter", "ml-100k.user", "ml-100k.item")
AGE_CODES = (1, 18, 25, 35, 45, 50, 56)


@pytest.fixture(scope="session")
def ml_100k() -> Path:
    """The real files, taken once and kept with what else is built."""
    return fetch(Path(__file__).parents[1] / "build" / "movielens")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A sound data set of three users in the form of MovieLens 1M."""
    (tmp_path / "ratings.dat").write_text("1::10::5::978300760\n2::10::3::978300761\n3::7::1::0\n")
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n3::M::25::0::1\n")
    return tmp_path


@pytest.fixture
def timeless(small: Path, tmp_path: Path) -> Path:
    """The same data set without its times and ratings, its rows shuffled."""
    folder = tmp_path / "timeless"
    folder.mkdir()
    (folder / "users.dat").write_bytes((small / "users.dat").read_bytes())
    write_pairs(folder, [3, 1, 2], [7, 10, 10])
    return folder


def write_pairs(folder: Path, users: list[int], items: list[int]) -> None:
    """Write a copy of MovieLens 1M that lost its times and has a column more."""
    columns = {"user_id": users, "more": ["?"] * len(users), "item_id": items}
    pq.write_table(pa.table(columns), folder / "interactions.parquet")


def items_by_user(log: pa.Table) -> dict[int, list[int]]:
    """Each user's items from first to last, by the log's timestamps."""
    found: dict[int, list[int]] = {}
    for row in log.sort_by("timestamp").to_pylist():
        found.setdefault(row["user_id"], []).append(row["item_id"])
    return found


def rows_of(path: Path) -> list[list[str]]:
    """The lines of one of RecBole's files, without their header."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]


def write_rows(path: Path, separator: str, rows: list[list[str]]) -> None:
    path.write_text("".join(separator.join(row) + "\n" for row in rows), encoding="utf-8")


def age_group_of(age: int) -> str:
    for low, name in reversed(list(zip(AGE_CODES, AGE_GROUPS, strict=True))):
        if age >= low:
            return name
    raise ValueError(age)


def use_only(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let pip see no index, only the packages in one folder."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def make_package(folder: Path, contents: dict[str, bytes]) -> None:
    """Make an installable package of the name and version that `fetch` asks for."""
    about = "recbole-1.2.1.dist-info"
    with zipfile.ZipFile(folder / "recbole-1.2.1-py3-none-any.whl", "w") as package:
        for name, data in contents.items():
            package.writestr(f"recbole/dataset_example/ml-100k/{name}", data)
        package.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n"
        )
        package.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        package.writestr(f"{about}/RECORD", "")


def test_the_log_of_the_real_files(ml_100k: Path) -> None:
    table = read(ml_100k, "all")
    assert table.schema.equals(
        pa.schema(
            {
                "user_id": pa.int64(),
                "item_id": pa.int64(),
                "timestamp": pa.timestamp("us", tz="UTC"),
                "segment": pa.string(),
                "label": pa.float64(),
            }
        )
    )
    assert table.num_rows == 100_000
    assert len(table["user_id"].unique()) == 943
    assert len(table["item_id"].unique()) == 1682
    assert set(table["segment"].to_pylist()) == {"all"}
    for row, line in zip(table.to_pylist(), rows_of(ml_100k / "ml-100k.inter"), strict=True):
        found = (row["user_id"], row["item_id"], row["label"], row["timestamp"].timestamp())
        assert found == tuple(float(value) for value in line)


def test_segments_of_the_real_files(ml_100k: Path) -> None:
    users = {int(row[0]): row for row in rows_of(ml_100k / "ml-100k.user")}
    expected = {
        "age_group": lambda row: age_group_of(int(row[1])),
        "gender": lambda row: row[2],
        "gender_age": lambda row: f"{row[2]} {age_group_of(int(row[1]))}",
        "occupation": lambda row: row[3],
    }
    for segment_by, segment_of in expected.items():
        table = read(ml_100k, segment_by)
        user_ids = table["user_id"].to_pylist()
        assert table["segment"].to_pylist() == [segment_of(users[user]) for user in user_ids]
    groups = Counter(read(ml_100k, "age_group")["segment"].to_pylist())
    assert groups == {
        "Under 18": 2491,
        "18-24": 24060,
        "25-34": 35444,
        "35-44": 19591,
        "45-49": 6890,
        "50-55": 6534,
        "56+": 4990,
    }


def test_raw_100k_reads_the_same(ml_100k: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "u.data", "\t", rows_of(ml_100k / "ml-100k.inter"))
    write_rows(tmp_path / "u.user", "|", rows_of(ml_100k / "ml-100k.user"))
    for segment_by in SEGMENT_BY:
        assert read(tmp_path, segment_by).equals(read(ml_100k, segment_by))


def test_the_form_of_1m_reads_the_same(ml_100k: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "ratings.dat", "::", rows_of(ml_100k / "ml-100k.inter"))
    users = []
    for number, (user, age, gender, _, zip_code) in enumerate(rows_of(ml_100k / "ml-100k.user")):
        code = AGE_CODES[AGE_GROUPS.index(age_group_of(int(age)))]
        users.append([user, gender, str(code), str(number % len(OCCUPATIONS)), zip_code])
    write_rows(tmp_path / "users.dat", "::", users)
    for segment_by in ("all", "age_group", "gender", "gender_age"):
        assert read(tmp_path, segment_by).equals(read(ml_100k, segment_by))
    table = read(tmp_path, "occupation")
    named = dict(zip(table["user_id"].to_pylist(), table["segment"].to_pylist(), strict=True))
    assert named == {int(row[0]): OCCUPATIONS[int(row[3])] for row in users}


def test_latest_reads_the_same_and_knows_no_users(ml_100k: Path, tmp_path: Path) -> None:
    rows = [["userId", "movieId", "rating", "timestamp"], *rows_of(ml_100k / "ml-100k.inter")]
    write_rows(tmp_path / "ratings.csv", ",", rows)
    assert read(tmp_path, "all").equals(read(ml_100k, "all"))
    for segment_by in SEGMENT_BY[:-1]:
        with pytest.raises(MovieLensError, match='without attributes of users.*segment_by="all"'):
            read(tmp_path, segment_by)


def test_half_stars_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_bytes(
        b"userId,movieId,rating,timestamp\r\n1,2,0.5,964982703\r\n1,3,4.5,964982703"
    )
    assert read(tmp_path, "all")["label"].to_pylist() == [0.5, 4.5]


def test_the_published_codes_and_names(small: Path) -> None:
    assert read(small, "age_group")["segment"].to_pylist() == ["Under 18", "56+", "25-34"]
    both = read(small, "gender_age")["segment"].to_pylist()
    assert both == ["F Under 18", "M 56+", "M 25-34"]
    names = ["K-12 student", "self-employed", "other"]
    assert read(small, "occupation")["segment"].to_pylist() == names
    assert (len(OCCUPATIONS), OCCUPATIONS[1], OCCUPATIONS[20]) == (
        21,
        "academic/educator",
        "writer",
    )


@given(age=st.integers(1, 120))
def test_each_age_falls_into_the_group_that_names_it(
    tmp_path_factory: pytest.TempPathFactory, age: int
) -> None:
    folder = tmp_path_factory.mktemp("age")
    (folder / "u.data").write_text("1\t1\t3\t881250949\n")
    (folder / "u.user").write_text(f"1|{age}|F|writer|0\n")
    assert read(folder, "age_group")["segment"].to_pylist() == [age_group_of(age)]


def test_write_log_writes_the_table(small: Path, tmp_path: Path) -> None:
    out = write_log(small, tmp_path / "logs" / "log.parquet", "gender")
    assert read_parquet(out).equals(read(small, "gender"))
    assert [file.name for file in out.parent.iterdir()] == ["log.parquet"]


def test_the_written_log_keeps_the_contract(ml_100k: Path, tmp_path: Path) -> None:
    log = write_log(ml_100k, tmp_path / "raw.parquet", "occupation")
    summary = prepare_log([log], tmp_path / "log", LogContract())
    assert (summary.rows_kept, summary.quarantined, summary.duplicates) == (100_000, {}, 0)
    assert len(summary.segments) == 21


def test_a_random_order_keeps_the_rows_and_counts_each_users_from_the_first(
    ml_100k: Path,
) -> None:
    table = read(ml_100k, "gender", "random")
    others = ["user_id", "item_id", "segment", "label"]
    by_pair = [("user_id", "ascending"), ("item_id", "ascending")]
    expected = read(ml_100k, "gender").select(others).sort_by(by_pair)
    assert table.select(others).sort_by(by_pair).equals(expected)
    users = table["user_id"].to_pylist()
    assert users == sorted(users)
    seen: Counter[int] = Counter()
    for user, time in zip(users, table["timestamp"].to_pylist(), strict=True):
        assert time == FIRST_POSITION + timedelta(microseconds=seen[user])
        seen[user] += 1


def test_the_random_order_is_the_same_on_every_machine(tmp_path: Path) -> None:
    write_pairs(tmp_path, [1] * 8 + [2] * 8, [1, 2, 3, 4, 5, 6, 7, 8] * 2)
    assert items_by_user(read(tmp_path, "all", "random")) == {
        1: [8, 6, 7, 3, 5, 2, 4, 1],
        2: [7, 5, 2, 3, 4, 6, 1, 8],
    }


def test_each_item_stands_before_each_other_for_half_of_the_users(tmp_path: Path) -> None:
    """A catalogue's order, or one that is alike for neighbours, would show in some pair."""
    num_users, num_items = 2000, 40
    users, items = np.divmod(np.arange(num_users * num_items), num_items)
    write_pairs(tmp_path, (users + 1).tolist(), (items + 1).tolist())
    table = read(tmp_path, "all", "random")
    order = table["item_id"].to_numpy().reshape(num_users, num_items) - 1
    places = np.argsort(order, axis=1)
    before = (places[:, :, None] < places[:, None, :]).mean(axis=0)
    pairs = before[np.triu_indices(num_items, 1)]
    standard_error = 0.5 / num_users**0.5
    assert np.abs(pairs - 0.5).max() < 5 * standard_error
    assert pairs.std() == pytest.approx(standard_error, rel=0.2)
    uniform = ((num_items**2 - 1) / 12) ** 0.5
    assert np.abs(places.std(axis=0) / uniform - 1).max() < 0.07
    likeness = [np.corrcoef(a, b)[0, 1] for a, b in zip(places, places[1:], strict=False)]
    assert abs(np.mean(likeness)) < 5 / (num_items * num_users) ** 0.5


pairs_of_ids = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 2**62)), min_size=1, max_size=30, unique=True
)


@given(pairs=pairs_of_ids, shuffle=st.randoms())
def test_both_forms_give_the_same_log_whatever_their_rows_order(
    tmp_path_factory: pytest.TempPathFactory,
    pairs: list[tuple[int, int]],
    shuffle: random.Random,
) -> None:
    folder, copy = tmp_path_factory.mktemp("file"), tmp_path_factory.mktemp("copy")
    text = "".join(f"{user}::{item}::{1 + item % 5}::9\n" for user, item in pairs)
    (folder / "ratings.dat").write_text(text)
    expected = read(folder, "all", "random")
    assert expected["label"].to_pylist() == [
        1 + item % 5 for item in expected["item_id"].to_pylist()
    ]
    shuffle.shuffle(pairs)
    write_pairs(copy, [user for user, _ in pairs], [item for _, item in pairs])
    assert read(copy, "all", "random").equals(expected.drop_columns("label"))


@given(pairs=pairs_of_ids, left_out=st.data())
def test_two_rows_of_a_user_keep_their_order_whatever_else_is_there(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[int, int]], left_out: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("copy")
    write_pairs(folder, [user for user, _ in pairs], [item for _, item in pairs])
    everything = items_by_user(read(folder, "all", "random"))
    kept = left_out.draw(st.lists(st.sampled_from(pairs), min_size=1, unique=True))
    write_pairs(folder, [user for user, _ in kept], [item for _, item in kept])
    for user, items in items_by_user(read(folder, "all", "random")).items():
        assert items == [item for item in everything[user] if (user, item) in kept]


def test_a_copy_without_times_has_segments_and_no_label(
    small: Path, timeless: Path, tmp_path: Path
) -> None:
    for segment_by in SEGMENT_BY:
        expected = read(small, segment_by, "random").drop_columns("label")
        assert read(timeless, segment_by, "random").equals(expected)
    out = write_log(timeless, tmp_path / "logs" / "log.parquet", "gender_age", "random")
    assert read_parquet(out).equals(read(timeless, "gender_age", "random"))
    summary = prepare_log([out], tmp_path / "log", LogContract())
    assert (summary.rows_kept, summary.quarantined) == (3, {})


def test_the_order_of_time_is_refused_where_there_is_no_time(small: Path, timeless: Path) -> None:
    with pytest.raises(MovieLensError, match='without times; use order="random"'):
        read(timeless, "all")
    with pytest.raises(MovieLensError, match="order to be one of time, random, got 'rand'; did"):
        read(small, "all", "rand")
    (small / "interactions.parquet").write_bytes(b"")
    with pytest.raises(MovieLensError, match="found ratings.dat and interactions.parquet"):
        read(small, "all", "random")


def test_a_random_order_of_an_item_that_a_user_has_twice_is_refused(small: Path) -> None:
    with (small / "ratings.dat").open("a") as file:
        file.write("2::7::3::0\n2::10::4::978300799\n")
    assert read(small, "all").num_rows == 5
    with pytest.raises(MovieLensError, match="ratings.dat: .*got item 10 of user 2 more than once"):
        read(small, "all", "random")


@pytest.mark.parametrize(
    ("users", "items", "message"),
    [
        ([1, 0], [5, 5], "row 2: expected user_id to be from 1 to .*, got 0"),
        ([1, None], [5, 5], "row 2: expected user_id to be from 1 to .*, got None"),
        ([1, 2], [-1, 5], "row 1: expected item_id to be from 1 to .*, got -1"),
        ([1, 1], [7, 7], "got item 7 of user 1 more than once"),
        ([1, 2], [5.0, 5.0], "expected integers in item_id, got double"),
        (["1", "2"], [5, 5], "expected integers in user_id, got string"),
        ([1, 9], [5, 5], "user 9 of .*interactions.parquet is not in .*users.dat"),
    ],
)
def test_a_malformed_copy_is_named(
    timeless: Path, users: list[int], items: list[int], message: str
) -> None:
    write_pairs(timeless, users, items)
    with pytest.raises(MovieLensError, match=message):
        read(timeless, "gender", "random")


def test_an_id_of_a_copy_that_no_log_can_hold_is_named(timeless: Path) -> None:
    copies = [
        pa.table({"user_id": [1, 2], "item_id": pa.array([5, largest], pa.uint64())})
        for largest in (2**63 - 1, 2**63)
    ]
    path = timeless / "interactions.parquet"
    pq.write_table(copies[0], path)
    assert read(timeless, "all", "random")["item_id"].to_pylist() == [5, 2**63 - 1]
    pq.write_table(copies[1], path)
    with pytest.raises(MovieLensError, match=f"row 2: expected item_id .* got {2**63}"):
        read(timeless, "all", "random")


def test_a_copy_of_another_kind_is_named(timeless: Path) -> None:
    path = timeless / "interactions.parquet"
    pq.write_table(pq.read_table(path).drop_columns("item_id"), path)
    with pytest.raises(MovieLensError, match="each of user_id, item_id once, got user_id, more"):
        read(timeless, "all", "random")
    write_pairs(timeless, [1], [5])
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(MovieLensError, match="interactions.parquet: expected rows, found none"):
        read(timeless, "all", "random")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(MovieLensError, match="interactions.parquet: not a whole Parquet file"):
        read(timeless, "all", "random")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ratings.dat", "1::10::5::978300760\n2::10::3\n", "ratings.dat:2: malformed line"),
        ("ratings.dat", "1::10::5::978300760\n2::x::3::9\n", "ratings.dat:2: .*invalid value 'x'"),
        ("ratings.dat", "1::10::5::978300760\n\n2::1::3::9\n", "ratings.dat:2: malformed line"),
        ("ratings.dat", "1::10::::978300760\n", "ratings.dat:1: malformed line"),
        ("ratings.dat", "1:10:5:978300760\n", "ratings.dat:1: malformed line"),
        ("ratings.dat", "1\t10::5::978300760\n", "ratings.dat:1: malformed line"),
        ("users.dat", "1::F\t1::10::1\n", "users.dat:1: malformed line"),
        ("ratings.dat", "1::10::nan::978300760\n", "ratings.dat:1: .*rating from 0.5 to 5"),
        ("ratings.dat", "1::10::5::9\n2::10::6::9\n", "ratings.dat:2: .*rating from 0.5 to 5"),
        ("ratings.dat", "0::10::5::9\n", "ratings.dat:1: .*positive user id"),
        ("ratings.dat", "1::-1::5::9\n", "ratings.dat:1: .*positive item id"),
        ("ratings.dat", "1::1::5::978300760000\n", "ratings.dat:1: .*seconds since 1970"),
        ("ratings.dat", "1::1::5::-1\n", "ratings.dat:1: .*seconds since 1970"),
        ("ratings.dat", "", "ratings.dat: expected lines, found none"),
        ("ratings.dat", "4::1::5::9\n", "user 4 of .*ratings.dat is not in .*users.dat"),
        ("users.dat", "1::F::1::10::1\n2::M::56::16\n", "users.dat:2: malformed line"),
        ("users.dat", "1::F::1::10::1\n1::M::56::16::1\n", "users.dat:2: .*a user that no line"),
        ("users.dat", "1::F::1::21::48067\n", "users.dat:1: .*occupation code from 0 to 20"),
    ],
)
def test_a_malformed_line_is_named(small: Path, name: str, text: str, message: str) -> None:
    (small / name).write_text(text)
    with pytest.raises(MovieLensError, match=message):
        read(small, "occupation")


@pytest.mark.parametrize(
    ("user", "segment_by", "message"),
    [
        ("1|0|F|writer|1", "age_group", "u.user:1: .*age from 1 to 120"),
        ("1|30|X|writer|1", "gender", "u.user:1: .*gender of F or M"),
        ("1|30|F||1", "occupation", "u.user:1: .*an occupation"),
        ("1|30|F|writer|1|9", "gender", "u.user:1: malformed line"),
    ],
)
def test_a_malformed_user_is_named(
    tmp_path: Path, user: str, segment_by: str, message: str
) -> None:
    (tmp_path / "u.data").write_text("1\t1\t3\t881250949\n")
    (tmp_path / "u.user").write_text(user + "\n")
    with pytest.raises(MovieLensError, match=message):
        read(tmp_path, segment_by)


@pytest.mark.parametrize("name", ["ml-100k.inter", "ratings.csv"])
def test_a_line_is_counted_with_the_header(tmp_path: Path, name: str) -> None:
    separator, header = {
        "ml-100k.inter": ("\t", "user_id:token\titem_id:token\trating:float\ttimestamp:float"),
        "ratings.csv": (",", "userId,movieId,rating,timestamp"),
    }[name]
    good = separator.join("1 2 3 881250949".split())
    for bad in ("1", separator.join("1 2 9 881250949".split())):
        (tmp_path / name).write_text("\n".join([header, good, bad, good]))
        with pytest.raises(MovieLensError, match=f"{name}:3: malformed line"):
            read(tmp_path, "all")
    (tmp_path / name).write_text(good + "\n")
    with pytest.raises(MovieLensError, match=f"{name}:1: expected the header"):
        read(tmp_path, "all")
    for end in ("", "\n"):
        (tmp_path / name).write_text(header + end)
        with pytest.raises(MovieLensError, match=f"{name}: expected lines, found none"):
            read(tmp_path, "all")


def test_an_unknown_segmentation_is_refused_with_the_nearest(small: Path) -> None:
    with pytest.raises(MovieLensError, match="got 'age'; did you mean 'age_group'"):
        read(small, "age")


def test_a_folder_without_or_with_two_data_sets_is_refused(small: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(MovieLensError, match="expected one of ml-100k.inter, .*found none"):
        read(empty, "all")
    (small / "u.data").write_text("1\t1\t3\t881250949\n")
    with pytest.raises(MovieLensError, match="found u.data and ratings.dat; leave one"):
        read(small, "all")


def test_users_are_needed_only_for_segments_of_users(small: Path) -> None:
    (small / "users.dat").unlink()
    assert read(small, "all").num_rows == 3
    with pytest.raises(MovieLensError, match="users.dat to segment by 'gender'"):
        read(small, "gender")


def test_fetch_reuses_files_without_a_network(
    ml_100k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_only(monkeypatch, tmp_path)
    before = {name: (ml_100k / name).stat().st_mtime_ns for name in FILES}
    assert fetch(ml_100k) == ml_100k
    assert {name: (ml_100k / name).stat().st_mtime_ns for name in FILES} == before


def test_fetch_takes_only_what_is_missing(
    ml_100k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages, folder = tmp_path / "packages", tmp_path / "new" / "ml-100k"
    packages.mkdir()
    make_package(packages, {name: (ml_100k / name).read_bytes() for name in FILES})
    use_only(monkeypatch, packages)
    fetch(folder)
    assert sorted(file.name for file in folder.iterdir()) == sorted(FILES)
    assert read(folder, "gender").equals(read(ml_100k, "gender"))
    kept = (folder / "ml-100k.inter").stat().st_mtime_ns
    (folder / "ml-100k.user").unlink()
    fetch(folder)
    assert (folder / "ml-100k.user").read_bytes() == (ml_100k / "ml-100k.user").read_bytes()
    assert (folder / "ml-100k.inter").stat().st_mtime_ns == kept


def test_fetch_refuses_a_changed_file(ml_100k: Path, tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_bytes((ml_100k / name).read_bytes())
    changed = tmp_path / "ml-100k.user"
    changed.write_bytes(changed.read_bytes().replace(b"technician", b"Technician", 1))
    with pytest.raises(MovieLensError, match="ml-100k.user is not .*4f6700.*, got .*; delete it"):
        fetch(tmp_path)


@pytest.mark.parametrize("lacking", [False, True])
def test_fetch_refuses_a_changed_package(
    ml_100k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: bool
) -> None:
    packages, folder = tmp_path / "packages", tmp_path / "new"
    packages.mkdir()
    contents = {name: (ml_100k / name).read_bytes() for name in FILES}
    if lacking:
        del contents["ml-100k.inter"]
    else:
        contents["ml-100k.inter"] += b"1\t1\t1\t1\n"
    make_package(packages, contents)
    use_only(monkeypatch, packages)
    message = "ml-100k.inter in .* not there" if lacking else "ml-100k.inter in .*4edb74e.*got"
    with pytest.raises(MovieLensError, match=message):
        fetch(folder)
    assert list(folder.iterdir()) == []


def test_fetch_without_a_network_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_only(monkeypatch, tmp_path)
    with pytest.raises(MovieLensError) as caught:
        fetch(tmp_path / "new")
    message = str(caught.value)
    for part in (
        "pip download",
        "recbole==1.2.1",
        "exit code 1",
        "name a folder that has the files",
    ):
        assert part in message


def test_reading_a_log_imports_no_torch() -> None:
    program = "import sys, reclora.datasets.movielens; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
