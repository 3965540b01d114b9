"""This file is how Gowalla, in the split that LightGCN published, becomes two interaction logs.

Source: E. Cho, S. A. Myers and J. Leskovec, "Friendship and Mobility: User Movement in
Location-Based Social Networks", KDD 2011; the split: X. He, K. Deng, X. Wang, Y. Li, Y. Zhang and
M. Wang, "LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation", SIGIR
2020. Terms, sizes and caveats stand in the data card, README.md beside this file.
"""

import gzip
import zlib
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reclora.files import make_folder, write_parquet

TRAIN_TIME = datetime(2000, 1, 1, tzinfo=UTC)
"""The one time of all training rows: not when anything happened."""
TEST_TIME = datetime(2000, 1, 2, tzinfo=UTC)
"""The one time of all test rows."""

# At most 18 digits: such a number fits an int64.
_LINE = r"^\d{1,18}( \d{1,18})+$"


class GowallaError(ValueError):
    """A file of Gowalla's split is missing, damaged or malformed, or the two do not fit."""


def read(folder: Path) -> tuple[pa.Table, pa.Table]:
    """Read `train.txt` and `test.txt` in `folder`, plain or gzipped (`.gz`), as interactions.

    A line is a user and the user's items, whole numbers separated by single spaces. The split was
    drawn at random within each user and published without times, so no order of the rows means
    anything. Rather than invent one, all training rows carry one and the same time, `TRAIN_TIME`,
    and all test rows a later one, `TEST_TIME`: they say which window a row is of, and nothing else.

    Returns:
        The training rows and the test rows, each a table of user_id (int64), item_id (int64),
        timestamp (microseconds, UTC) and segment (string: "all"), sorted by user_id and item_id.

    Raises:
        GowallaError: a file is missing, there twice, damaged or empty; a line is malformed, or its
            user has one before (file and number are named); an item stands twice in a line; or a
            pair of user and item is in both files.
    """
    paths = [_path_of(folder, name) for name in ("train.txt", "test.txt")]
    train, test = (_read_pairs(path) for path in paths)
    _refuse_shared(paths, train, test)
    return _interactions(train, TRAIN_TIME), _interactions(test, TEST_TIME)


def write_logs(source: Path, folder: Path) -> tuple[Path, Path]:
    """Write what `read` gives to `train.parquet` and `test.parquet` in `folder`; return the two.

    Raises:
        GowallaError: as `read`; nothing is written.
        OSError: `folder` cannot be written.
    """
    tables = read(source)
    make_folder(folder)
    train, test = folder / "train.parquet", folder / "test.parquet"
    for path, table in zip((train, test), tables, strict=True):
        write_parquet(path, table)
    return train, test


def _path_of(folder: Path, name: str) -> Path:
    found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise GowallaError(f"expected {name} or {name}.gz in {folder}, found both; leave one there")
    raise GowallaError(f"expected {name} or {name}.gz in {folder}, found neither")


def _read_pairs(path: Path) -> pa.Table:
    """Return the users and items of one file, sorted."""
    lines = _lines_of(path)
    _require(path, pc.match_substring_regex(lines, _LINE), "a user and items, such as '7 120 95'")
    numbers = pc.split_pattern(lines, " ")
    flat = pc.list_flatten(numbers).cast(pa.int64()).to_numpy()
    lengths = pc.list_value_length(numbers).to_numpy()
    is_user = np.zeros(len(flat), dtype=bool)
    is_user[np.cumsum(lengths) - lengths] = True
    users = pa.array(flat[is_user])
    is_new = pc.equal(pc.index_in(users, users), np.arange(len(users), dtype=np.int32))
    _require(path, is_new, "a user that no line before has")
    pairs = pa.table(
        {"user_id": np.repeat(users.to_numpy(), lengths - 1), "item_id": flat[~is_user]}
    ).sort_by([("user_id", "ascending"), ("item_id", "ascending")])
    _refuse_repeats(path, pairs)
    return pairs


def _lines_of(path: Path) -> pa.Array:
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise GowallaError(f"{path}: not a whole gzip file ({error}); get it anew") from error
    try:
        text = data.decode("ascii").replace("\r\n", "\n").removesuffix("\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise GowallaError(f"{path}:{line}: malformed line, expected digits only") from error
    if not text:
        raise GowallaError(f"{path}: expected lines, found none")
    return pc.list_flatten(pc.split_pattern(pa.array([text], pa.large_string()), "\n"))


def _refuse_repeats(path: Path, pairs: pa.Table) -> None:
    users, items = (column.to_numpy() for column in pairs.columns)
    repeats = np.flatnonzero((users[1:] == users[:-1]) & (items[1:] == items[:-1]))
    if len(repeats):
        user, item = users[repeats[0]], items[repeats[0]]
        raise GowallaError(
            f"{path}: expected each item once a user, got item {item} of user {user} twice"
        )


def _refuse_shared(paths: list[Path], train: pa.Table, test: pa.Table) -> None:
    shared = train.join(test, ["user_id", "item_id"], join_type="inner")
    if shared.num_rows:
        pair = min((row["user_id"], row["item_id"]) for row in shared.to_pylist())
        raise GowallaError(
            f"user {pair[0]} has item {pair[1]} in {paths[0]} and in {paths[1]}, with "
            f"{shared.num_rows} such pairs in all: the files are not of one split; get both anew"
        )


def _interactions(pairs: pa.Table, time: datetime) -> pa.Table:
    instant = pa.scalar(time, pa.timestamp("us", "UTC"))
    return pairs.append_column("timestamp", pa.repeat(instant, pairs.num_rows)).append_column(
        "segment", pa.repeat("all", pairs.num_rows)
    )


def _require(path: Path, holds: pa.Array, expected: str) -> None:
    """Raise, with the line's number, where a line of `path` does not hold what is expected."""
    row = pc.index(holds, False).as_py()
    if row >= 0:
        raise GowallaError(f"{path}:{row + 1}: malformed line, expected {expected}")
