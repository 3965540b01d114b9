"""This file is how MovieLens becomes an interaction log: taken, checked, read, cut into segments.

Source: F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS
5(4), article 19, 2015. Terms, sizes and caveats stand in the data card, README.md beside this file.
"""

import difflib
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from reclora.counted import mix
from reclora.files import make_folder, sha256_of, write_bytes, write_parquet

SEGMENT_BY = ("age_group", "gender", "gender_age", "occupation", "all")
"""What a log can be segmented by: an attribute of the user, or nothing (one segment, "all")."""

ORDERS = ("time", "random")
"""What a row's timestamp is: the time of the rating, or a place among its user's rows at random."""

FIRST_POSITION = datetime(2000, 1, 1, tzinfo=UTC)
"""The timestamp of place 0, with order "random"; each place is a microsecond. It stands for no
date, and is one only because a log may hold no time before 1990."""

AGE_GROUPS = ("Under 18", "18-24", "25-34", "35-44", "45-49", "50-55", "56+")
"""The age groups that MovieLens 1M publishes, youngest first."""

OCCUPATIONS = tuple(
    (
        "other|academic/educator|artist|clerical/admin|college/grad student|customer service|"
        "doctor/health care|executive/managerial|farmer|homemaker|K-12 student|lawyer|programmer|"
        "retired|sales/marketing|scientist|self-employed|technician/engineer|"
        "tradesman/craftsman|unemployed|writer"
    ).split("|")
)
"""The occupations of MovieLens 1M; the position is the code in its `users.dat`."""

_PACKAGE = "recbole==1.2.1"
_FOLDER_IN_PACKAGE = "recbole/dataset_example/ml-100k"
_SHA256 = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
}
# The first age of each group but the youngest. They are also the codes that MovieLens 1M has in the
# place of ages (1 for the youngest), so that one rule cuts both.
_AGE_EDGES = np.array([18, 25, 35, 45, 50, 56])
_TYPES = {
    "user_id": pa.int64(),
    "item_id": pa.int64(),
    "rating": pa.float64(),
    "timestamp": pa.int64(),
    "age": pa.int64(),
    "gender": pa.string(),
    "occupation": pa.string(),
    "zip_code": pa.string(),
}
_RATING_COLUMNS = ("user_id", "item_id", "rating", "timestamp")
_PAIR_COLUMNS = ("user_id", "item_id")
_USER_COLUMNS = ("user_id", "age", "gender", "occupation", "zip_code")
_YEAR_2100 = 4_102_444_800
_ONE_SEPARATOR = b"\x1f"


class MovieLensError(ValueError):
    """A MovieLens file is missing, damaged or malformed, or a segmentation is not possible."""


@dataclass(frozen=True)
class _Layout:
    """One text file: its columns in order, what separates them, the header line it must have."""

    name: str
    separator: str
    columns: tuple[str, ...]
    header: str | None = None


@dataclass(frozen=True)
class _Format:
    """One form of MovieLens: a ratings file, and a users file where there is one."""

    ratings: _Layout
    users: _Layout | None


_USERS_1M = _Layout("users.dat", "::", ("user_id", "gender", "age", "occupation", "zip_code"))
_FORMATS = (
    _Format(
        _Layout(
            "ml-100k.inter",
            "\t",
            _RATING_COLUMNS,
            "user_id:token\titem_id:token\trating:float\ttimestamp:float",
        ),
        _Layout(
            "ml-100k.user",
            "\t",
            _USER_COLUMNS,
            "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token",
        ),
    ),
    _Format(_Layout("u.data", "\t", _RATING_COLUMNS), _Layout("u.user", "|", _USER_COLUMNS)),
    _Format(_Layout("ratings.dat", "::", _RATING_COLUMNS), _USERS_1M),
    _Format(_Layout("interactions.parquet", "", _PAIR_COLUMNS), _USERS_1M),
    _Format(_Layout("ratings.csv", ",", _RATING_COLUMNS, "userId,movieId,rating,timestamp"), None),
)


def fetch(folder: Path) -> Path:
    """Put the three files of MovieLens 100K into `folder`, out of the package that ships them.

    Files that are there and right are used as they are, without a network. The package is taken
    with pip and read as an archive; it is neither installed nor imported.

    Returns:
        `folder`, for `read`.

    Raises:
        MovieLensError: a file differs from its sha256, or the package could not be had.
    """
    make_folder(folder)
    missing = []
    for name in _SHA256:
        if (folder / name).exists():
            found = sha256_of(folder / name)
            _check_sha256(name, found, folder / name, "delete it, and it is taken anew")
        else:
            missing.append(name)
    if missing:
        with tempfile.TemporaryDirectory() as scratch:
            _unpack(_download(Path(scratch)), missing, folder)
    return folder


def read(folder: Path, segment_by: str, order: str = "time") -> pa.Table:
    """Read the ratings in `folder` as interactions, one row a rating.

    The format is told by the files that are there: `ml-100k.inter` and `ml-100k.user` (RecBole's
    form of 100K), `u.data` and `u.user` (100K), `ratings.dat` and `users.dat` (1M), `ratings.csv`
    (20M and later, "latest"; it says nothing of users), or `interactions.parquet` and `users.dat`:
    1M without its times and ratings, of which user_id and item_id are read.

    With order "random" the rows of a user stand in ascending order of

        mix(mix(user_id) ^ item_id),

    a function of nothing else, so that every form and every order of rows gives the same log. The
    order of the file would not do: in 1M it is nearly one order of films for all users (a film's
    place, as a share of the user's rows, has a standard deviation of .13 over users; by chance
    .29), and a cut by it measures the file: NDCG@10 of a base is .004 after it and .27 after a
    random order, which says nothing of time: neither recency nor drift can be measured on it.

    Args:
        folder: holds the files of one MovieLens data set.
        segment_by: one of `SEGMENT_BY`. "age_group" cuts ages into `AGE_GROUPS`; "gender" is F or
            M; "gender_age" both, such as "F 18-24"; "occupation" is the published name; "all" is
            one segment of that name.
        order: one of `ORDERS`. "time" gives the times of the ratings, in the file's order of rows.
            "random" gives `FIRST_POSITION` plus a microsecond for each row of the same user that
            stands before, in the order of user and place: for data that have lost their times.

    Returns:
        Columns user_id (int64), item_id (int64), timestamp (microseconds, UTC), segment (string)
        and label (float64: the rating, in stars from 0.5 to 5; not from `interactions.parquet`).

    Raises:
        MovieLensError: no format or several are found, a line is malformed (its file and number
            are named), a rating's user is not in the users file, `segment_by` or `order` is
            unknown or asks for what the format does not have, or a user has an item twice and the
            order is random.
    """
    _require_known("segment_by", segment_by, SEGMENT_BY)
    _require_known("order", order, ORDERS)
    form = _format_of(folder)
    path = folder / form.ratings.name
    if form.ratings.columns == _PAIR_COLUMNS:
        if order == "time":
            raise MovieLensError(f'{path} comes without times; use order="random"')
        ratings = _read_pairs(path)
    else:
        ratings = _read_ratings(path, form.ratings)
    if order == "random":
        ratings = _shuffled(path, ratings)
    log = {
        "user_id": ratings["user_id"],
        "item_id": ratings["item_id"],
        "timestamp": _times(ratings) if order == "time" else _places(ratings["user_id"]),
        "segment": _segments(folder, form, segment_by, ratings["user_id"]),
    }
    if "rating" in ratings.column_names:
        log["label"] = ratings["rating"]
    return pa.table(log)


def write_log(folder: Path, out: Path, segment_by: str, order: str = "time") -> Path:
    """Write what `read` gives to the Parquet file `out`, whole or not at all; return `out`.

    Raises:
        MovieLensError: as `read`.
        OSError: `out` cannot be written.
    """
    table = read(folder, segment_by, order)
    make_folder(out.parent)
    write_parquet(out, table)
    return out


def _require_known(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1, cutoff=0.0)[0]
        raise MovieLensError(
            f"expected {name} to be one of {', '.join(known)}, got {value!r}; "
            f"did you mean {near!r}?"
        )


def _download(folder: Path) -> Path:
    """Take the package's archive into `folder` with pip and return its path."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary"]
    command += [":all:", "--disable-pip-version-check", "--dest", str(folder), _PACKAGE]
    run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    archives = sorted(folder.glob("*.whl"))
    if run.returncode != 0 or not archives:
        said = run.stderr.strip() or run.stdout.strip() or "nothing"
        raise MovieLensError(
            f"MovieLens 100K comes in the package {_PACKAGE}, and it could not be had. Tried: "
            f"{' '.join(command)} (exit code {run.returncode}). pip said: {said}\nTry again with "
            "a network, or name a folder that has the files: a MovieLens data set as published, "
            f"or {', '.join(_SHA256)}."
        )
    return archives[0]


def _unpack(archive: Path, names: list[str], folder: Path) -> None:
    with zipfile.ZipFile(archive) as package:
        held = package.namelist()
        for name in names:
            member = f"{_FOLDER_IN_PACKAGE}/{name}"
            if member not in held:
                raise MovieLensError(f"expected {member} in {archive.name}, and it is not there")
            data = package.read(member)
            advice = "nothing was written; clear pip's cache (pip cache purge) and try again"
            where = f"{member} in {archive.name}"
            _check_sha256(name, hashlib.sha256(data).hexdigest(), where, advice)
            write_bytes(folder / name, data)


def _check_sha256(name: str, found: str, where: Path | str, advice: str) -> None:
    if found != _SHA256[name]:
        raise MovieLensError(
            f"{where} is not the known {name}: expected sha256 {_SHA256[name]}, got {found}; "
            f"{advice}"
        )


def _format_of(folder: Path) -> _Format:
    found = [form for form in _FORMATS if (folder / form.ratings.name).is_file()]
    if len(found) == 1:
        return found[0]
    known = ", ".join(form.ratings.name for form in _FORMATS)
    if not found:
        raise MovieLensError(f"expected one of {known} in {folder}, found none of them")
    several = " and ".join(form.ratings.name for form in found)
    raise MovieLensError(
        f"expected one MovieLens data set in {folder}, found {several}; leave one of them there"
    )


def _read_ratings(path: Path, layout: _Layout) -> pa.Table:
    table = _read_lines(path, layout)
    _require(path, layout, pc.greater(table["user_id"], 0), "a positive user id")
    _require(path, layout, pc.greater(table["item_id"], 0), "a positive item id")
    _require(path, layout, _between(table["rating"], 0.5, 5), "a rating from 0.5 to 5")
    in_time = _between(table["timestamp"], 0, _YEAR_2100)
    _require(path, layout, in_time, "a time in seconds since 1970")
    return table


def _read_pairs(path: Path) -> pa.Table:
    """Read the users and items of a copy without times."""
    try:
        names = pq.read_schema(path).names
        lacking = [name for name in _PAIR_COLUMNS if names.count(name) != 1]
        if lacking:
            raise MovieLensError(
                f"{path}: expected each of {', '.join(_PAIR_COLUMNS)} once, got {', '.join(names)}"
            )
        table = pq.read_table(path, columns=list(_PAIR_COLUMNS))
    except (OSError, pa.ArrowException) as error:
        raise MovieLensError(f"{path}: not a whole Parquet file: {error}") from error
    for name in _PAIR_COLUMNS:
        column = table[name]
        if not pa.types.is_integer(column.type):
            raise MovieLensError(f"{path}: expected integers in {name}, got {column.type}")
        # What is too large for an int64 wraps to a negative number.
        is_positive = pc.greater_equal(column.cast(pa.int64(), safe=False), 1)
        row = pc.index(pc.fill_null(is_positive, False), False).as_py()
        if row >= 0:
            raise MovieLensError(
                f"{path}: row {row + 1}: expected {name} to be from 1 to {2**63 - 1}, "
                f"got {column[row]}"
            )
    if table.num_rows == 0:
        raise MovieLensError(f"{path}: expected rows, found none")
    return table.cast(pa.schema({name: _TYPES[name] for name in _PAIR_COLUMNS}))


def _shuffled(path: Path, ratings: pa.Table) -> pa.Table:
    """Return the rows by user, those of a user in an order that only the user and items decide."""
    user_ids, item_ids = (ratings[name].to_numpy() for name in _PAIR_COLUMNS)
    # mix is one to one, so two items of a user have the same key only if they are one item.
    keys = mix(mix(user_ids.astype(np.uint64)) ^ item_ids.astype(np.uint64))
    order = np.lexsort((keys, user_ids))
    user_ids, keys = user_ids[order], keys[order]
    twice = np.flatnonzero((user_ids[1:] == user_ids[:-1]) & (keys[1:] == keys[:-1]))
    if len(twice):
        row = twice[0]
        raise MovieLensError(
            f"{path}: expected each item of a user once, got item {item_ids[order[row]]} of user "
            f"{user_ids[row]} more than once; keep one of them"
        )
    return ratings.take(pa.array(order))


def _times(ratings: pa.Table) -> pa.ChunkedArray:
    seconds = ratings["timestamp"].cast(pa.timestamp("s", tz="UTC"))
    return seconds.cast(pa.timestamp("us", tz="UTC"))


def _places(user_ids: pa.ChunkedArray) -> pa.Array:
    """Return each row's place, from 0, among the rows of its user, as a time; rows are by user."""
    _, first, counts = np.unique(user_ids.to_numpy(), return_index=True, return_counts=True)
    places = np.arange(len(user_ids)) - np.repeat(first, counts)
    origin = int(FIRST_POSITION.timestamp()) * 1_000_000
    return pa.array(origin + places).cast(pa.timestamp("us", tz="UTC"))


def _segments(
    folder: Path, form: _Format, segment_by: str, user_ids: pa.ChunkedArray
) -> pa.Array | pa.ChunkedArray:
    """Return the segment's name of each row."""
    if segment_by == "all":
        return pa.repeat("all", len(user_ids))
    if form.users is None:
        raise MovieLensError(
            f"{folder / form.ratings.name} comes without attributes of users, so it cannot be "
            f'segmented by {segment_by!r}; use segment_by="all", or MovieLens 100K or 1M'
        )
    path = folder / form.users.name
    if not path.is_file():
        raise MovieLensError(
            f'expected {path} to segment by {segment_by!r}; add it, or use segment_by="all"'
        )
    users = _read_lines(path, form.users)
    first_lines = pc.index_in(users["user_id"], users["user_id"])
    is_first = pc.equal(first_lines, np.arange(users.num_rows, dtype=np.int32))
    _require(path, form.users, is_first, "a user that no line before has")
    names = _attribute(path, form.users, users, segment_by)
    rows = pc.index_in(user_ids, users["user_id"])
    if rows.null_count:
        user = user_ids.filter(pc.is_null(rows))[0]
        raise MovieLensError(
            f"user {user} of {folder / form.ratings.name} is not in {path}: the files are not of "
            "one data set, or one of them is cut short"
        )
    return names.take(rows)


def _attribute(
    path: Path, layout: _Layout, users: pa.Table, segment_by: str
) -> pa.Array | pa.ChunkedArray:
    """Return the segment's name of each user."""
    if segment_by == "gender_age":
        genders, ages = (_attribute(path, layout, users, name) for name in ("gender", "age_group"))
        return pc.binary_join_element_wise(genders, ages, " ")
    if segment_by == "age_group":
        _require(path, layout, _between(users["age"], 1, 120), "an age from 1 to 120")
        groups = np.searchsorted(_AGE_EDGES, users["age"].to_numpy(), side="right")
        return pa.array(AGE_GROUPS).take(pa.array(groups))
    values = users[segment_by]
    if segment_by == "gender":
        _require(path, layout, pc.is_in(values, pa.array(["F", "M"])), "a gender of F or M")
    elif layout.name == "users.dat":
        codes = pc.index_in(values, pa.array([str(code) for code in range(len(OCCUPATIONS))]))
        _require(path, layout, pc.is_valid(codes), "an occupation code from 0 to 20")
        return pa.array(OCCUPATIONS).take(codes)
    else:
        _require(path, layout, pc.not_equal(values, ""), "an occupation")
    return values


def _read_lines(path: Path, layout: _Layout) -> pa.Table:
    """Read one text file strictly: every line has every column, and each value its type."""
    data = path.read_bytes()
    if layout.header is not None:
        header, _, data = data.partition(b"\n")
        first = header.rstrip(b"\r").decode("utf-8", "replace")
        if first != layout.header:
            raise MovieLensError(f"{path}:1: expected the header {layout.header!r}, got {first!r}")
    if not data:
        raise MovieLensError(f"{path}: expected lines, found none")
    separator = layout.separator
    if len(separator) > 1:  # Arrow separates columns by one character only: by one of no text.
        data, separator = data.replace(separator.encode(), _ONE_SEPARATOR), _ONE_SEPARATOR.decode()
    try:
        return csv.read_csv(
            pa.py_buffer(data),
            # One thread: only then do Arrow's messages number the row.
            csv.ReadOptions(use_threads=False, column_names=layout.columns),
            csv.ParseOptions(delimiter=separator, quote_char=False, ignore_empty_lines=False),
            csv.ConvertOptions(column_types=_TYPES, null_values=[]),
        )
    except pa.ArrowInvalid as error:
        row = re.search(r"Row #(\d+): (.*)", str(error), re.DOTALL)
        line, why = (int(row[1]) + _header_lines(layout), row[2]) if row else ("?", error)
        columns = layout.separator.join(layout.columns)
        raise MovieLensError(
            f"{path}:{line}: malformed line, expected {columns!r}: {why}"
        ) from error


def _require(path: Path, layout: _Layout, holds: pa.ChunkedArray, expected: str) -> None:
    """Raise, with the line's number, where a line of `path` does not hold what is expected."""
    row = pc.index(holds, False).as_py()
    if row >= 0:
        line = row + 1 + _header_lines(layout)
        raise MovieLensError(f"{path}:{line}: malformed line, expected {expected}")


def _between(values: pa.ChunkedArray, low: float, high: float) -> pa.ChunkedArray:
    return pc.and_(pc.greater_equal(values, low), pc.less_equal(values, high))


def _header_lines(layout: _Layout) -> int:
    return int(layout.header is not None)
