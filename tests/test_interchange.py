"""Tests of reclora.interchange: tables made elsewhere come in exactly, or with a clear error."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from reclora.base import BaseModel
from reclora.interchange import BATCH_ROWS, import_base
from reclora.ranking import rank
from reclora.tables import BaseError

INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
UNIQUE_IDS = st.one_of(
    st.lists(TEXT, min_size=1, max_size=9, unique=True),
    st.lists(INT64, min_size=1, max_size=9, unique=True),
)


def write(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def vectors(rows: Any, kind: pa.DataType | None = None) -> pa.Array:
    return pa.array([list(row) for row in rows], kind or pa.list_(pa.float32()))


@pytest.fixture
def users(tmp_path: Path) -> Path:
    return write(tmp_path / "users.parquet", user_id=["a", "b"], vector=vectors([[1, 2], [3, 4]]))


@pytest.fixture
def items(tmp_path: Path) -> Path:
    rows = vectors([[1, 0], [0, 1], [1, 1]])
    return write(tmp_path / "items.parquet", item_id=[7, 5, 6], vector=rows)


@pytest.fixture
def user_ids(tmp_path: Path) -> Path:
    return write(tmp_path / "user_ids.parquet", user_id=["a", "b"])


@pytest.fixture
def item_ids(tmp_path: Path) -> Path:
    return write(tmp_path / "item_ids.parquet", item_id=[7, 5, 6])


def tensors(**other: torch.Tensor) -> dict[str, torch.Tensor]:
    tables = {"user_table": torch.tensor([[1.0, 2], [3, 4]]), "item_table": torch.ones(3, 2)}
    return tables | other


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float32()),
        pa.list_(pa.float64()),
        pa.list_(pa.float16()),
        pa.large_list(pa.float64()),
        pa.list_(pa.float32(), 5),
        pa.list_(pa.float64(), 5),
    ],
    ids=str,
)
def test_vectors_of_any_float_list_come_in_rounded_to_float32(
    tmp_path: Path, kind: pa.DataType
) -> None:
    rng = np.random.default_rng(0)
    number = kind.value_type.to_pandas_dtype()
    user_table, item_table = (rng.standard_normal((n, 5)).astype(number) for n in (4, 6))
    bias = rng.standard_normal(6)
    base = import_base(
        write(tmp_path / "u.parquet", user_id=range(4), vector=vectors(user_table, kind)),
        write(
            tmp_path / "i.parquet", item_id=range(6), vector=vectors(item_table, kind), bias=bias
        ),
    )
    assert np.array_equal(base.user_table.weight_ND, user_table.astype(np.float32))
    assert np.array_equal(base.item_table.weight_ND, item_table.astype(np.float32))
    assert np.array_equal(base.item_bias.weight_ND[:, 0], bias.astype(np.float32))
    assert base.tower is None


def test_scores_and_lists_are_those_of_plain_dot_products(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    user_table, item_table = rng.standard_normal((9, 8)), rng.standard_normal((40, 8))
    bias = rng.standard_normal(40)
    base = import_base(
        write(
            tmp_path / "u.parquet",
            vector=vectors(user_table, pa.list_(pa.float64())),
            user_id=[f"u{i}" for i in range(9)],
        ),
        write(
            tmp_path / "i.parquet",
            bias=bias,
            item_id=np.arange(40)[::-1].copy(),
            vector=vectors(item_table, pa.list_(pa.float64())),
        ),
    )
    expected = user_table @ item_table.T + bias
    asked = torch.from_numpy(base.users.rows_of([f"u{i}" for i in range(9)]))
    assert np.allclose(base.scorer().scores(asked), expected, atol=1e-5)
    lists = rank(base.scorer(), asked, 10)
    best = np.argsort(-expected, axis=1)[:, :10]
    found = base.items.ids_of(lists.item_rows_UK.numpy().ravel()).to_numpy().reshape(9, 10)
    assert np.array_equal(found, 39 - best)


def test_without_a_bias_it_is_zero(users: Path, items: Path) -> None:
    base = import_base(users, items)
    assert not base.item_bias.weight_ND.any()
    assert base.scorer().scores(torch.tensor([0])).tolist() == [[1, 2, 3]]


def test_an_imported_base_saves_and_loads(users: Path, items: Path, tmp_path: Path) -> None:
    base = import_base(users, items)
    base.save(tmp_path / "base")
    loaded = BaseModel.load(tmp_path / "base")
    loaded.verify()
    assert loaded.fingerprint == base.fingerprint


def test_many_batches_and_row_groups_come_in_whole_and_in_order(
    tmp_path: Path, items: Path
) -> None:
    count = 2 * BATCH_ROWS + 77
    table = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    path = tmp_path / "many.parquet"
    content = {"user_id": np.arange(count), "vector": vectors(table)}
    pq.write_table(pa.table(content), path, row_group_size=BATCH_ROWS // 2 + 3)
    assert np.array_equal(import_base(path, items).user_table.weight_ND, table)
    table[BATCH_ROWS + 5, 1] = np.nan
    write(path, user_id=np.arange(count), vector=vectors(table))
    with pytest.raises(BaseError, match=f"row {BATCH_ROWS + 5}: holds NaN"):
        import_base(path, items)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_safetensors_hold_the_same_base_in_any_float(
    user_ids: Path, item_ids: Path, tmp_path: Path, kind: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    user_table, item_table = (torch.randn(n, 4, generator=generator).to(kind) for n in (2, 3))
    item_bias = torch.randn(3, generator=generator).to(kind)
    path = tmp_path / "tables.safetensors"
    given_tensors = {"user_table": user_table, "item_table": item_table, "item_bias": item_bias}
    save_file(given_tensors, path)
    base = import_base(user_ids, item_ids, path)
    parts = user_table.float(), item_table.float(), item_bias.float()
    assert base.fingerprint == BaseModel.of(base.users, base.items, *parts).fingerprint
    assert base.users.rows_of(["b"]).tolist() == [1] and base.items.rows_of([6]).tolist() == [2]


def test_safetensors_and_parquet_give_one_fingerprint(
    users: Path, items: Path, user_ids: Path, item_ids: Path, tmp_path: Path
) -> None:
    base = import_base(users, items)
    path = tmp_path / "tables.safetensors"
    weights = {"user_table": base.user_table.weight_ND, "item_table": base.item_table.weight_ND}
    save_file(weights, path)
    assert import_base(user_ids, item_ids, path).fingerprint == base.fingerprint


@settings(max_examples=40)
@given(UNIQUE_IDS, UNIQUE_IDS, st.booleans())
def test_any_ids_keep_their_vectors(
    tmp_path_factory: pytest.TempPathFactory, ids: list[Any], others: list[Any], packed: bool
) -> None:
    folder = tmp_path_factory.mktemp("ids")
    column = pa.array(ids).dictionary_encode() if packed else pa.array(ids)
    numbers = np.arange(len(ids), dtype=np.float64)[:, None]
    base = import_base(
        write(folder / "u.parquet", user_id=column, vector=vectors(numbers)),
        write(folder / "i.parquet", item_id=others, vector=vectors([[1]] * len(others))),
    )
    asked = list(reversed(ids))
    rows = base.user_table.lookup(torch.from_numpy(base.users.rows_of(asked)))
    assert rows[:, 0].tolist() == [ids.index(one) for one in asked]
    assert base.items.ids.to_pylist() == others


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"User_ID": ["a"], "vector": [[1.0]]}, "rename 'User_ID' to 'user_id'"),
        ({"user_id": ["a"], "vectors": [[1.0]]}, "rename 'vectors' to 'vector'"),
        ({"id": ["a"], "vector": [[1.0]]}, "rename 'id' to 'user_id'"),
        ({"user_id": ["a"]}, "got 'user_id'$"),
        ({"user_id": ["a"], "vector": [[1.0]], "country": ["de"]}, "drop 'country'"),
        ({"user_id": ["a"], "vector": [[1.0]], "bias": [1.0]}, "drop 'bias'"),
        ({"user_id": ["a", None], "vector": [[1.0], [2.0]]}, "'user_id', row 1: expected no nulls"),
        ({"user_id": ["a", "b", "a"], "vector": [[1.0]] * 3}, "'a' occurs 2 times"),
        ({"user_id": pa.array([b"\xff"]).view(pa.string()), "vector": [[1.0]]}, "Invalid UTF8"),
        ({"user_id": [1.5], "vector": [[1.0]]}, "'user_id': ids must be strings or integers"),
        ({"user_id": pa.array([2**63], pa.uint64()), "vector": [[1.0]]}, "'user_id'.*64-bit"),
        ({"user_id": ["a", "b"], "vector": [[1.0], None]}, "'vector', row 1: expected no nulls"),
        ({"user_id": ["a", "b"], "vector": [[1.0, 2], [3, None]]}, "row 1: expected no nulls"),
        ({"user_id": ["a", "b"], "vector": [[1.0, 2], [3.0]]}, "row 1: expected 2 .*, got 1"),
        ({"user_id": ["a", "b"], "vector": [[1.0, 2], [3, np.nan]]}, "row 1: holds NaN"),
        ({"user_id": ["a", "b"], "vector": [[1.0, 2], [-np.inf, 0]]}, "row 1: holds NaN"),
        ({"user_id": ["a"], "vector": [[1e39]]}, "row 0: holds .* beyond float32"),
        ({"user_id": ["a"], "vector": pa.array([[]], pa.list_(pa.float32()))}, "at least one"),
        ({"user_id": ["a"], "vector": [[1, 2]]}, "expected lists of floats, got list<.*int64"),
        ({"user_id": ["a"], "vector": ["1.0 2.0"]}, "expected lists of floats, got string"),
        ({"user_id": ["a"], "vector": [[1.0, 2.0, 3.0]]}, "one length, got 3 .* and 2 in"),
        ({"user_id": pa.array([], pa.string()), "vector": vectors([])}, "holds no rows"),
    ],
)
def test_a_users_file_that_breaks_the_contract_is_refused(
    tmp_path: Path, items: Path, columns: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "broken.parquet", **columns)
    with pytest.raises(BaseError, match=message) as caught:
        import_base(path, items)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        ([0.5, None, 1.0], "'bias', row 1: expected no nulls"),
        ([0.5, 0.5, np.inf], "'bias', row 2: holds NaN"),
        ([1, 2, 3], "'bias': expected floats, got int64"),
    ],
)
def test_a_broken_bias_is_refused(
    tmp_path: Path, users: Path, bias: list[Any], message: str
) -> None:
    path = write(tmp_path / "i.parquet", item_id=[1, 2, 3], vector=[[1.0, 2]] * 3, bias=bias)
    with pytest.raises(BaseError, match=message):
        import_base(users, path)


def test_a_column_given_twice_is_refused(tmp_path: Path, items: Path) -> None:
    columns = [pa.array(["a"]), vectors([[1, 2]]), vectors([[3, 4]])]
    path = tmp_path / "twice.parquet"
    pq.write_table(pa.Table.from_arrays(columns, ["user_id", "vector", "vector"]), path)
    with pytest.raises(BaseError, match="got 'user_id', 'vector', 'vector'"):
        import_base(path, items)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"item_table": torch.ones(3, 2)},
            "expected the tensors .*'user_table'.* got 'item_table'",
        ),
        (tensors(user_tables=torch.ones(2, 2)), "rename 'user_tables' to 'user_table'"),
        (tensors(**{"0.weight": torch.ones(2, 2)}), "drop '0.weight'"),
        (tensors(user_table=torch.ones(3, 2)), r"'user_table': expected shape \(2, D\).*user_ids"),
        (tensors(user_table=torch.ones(2)), r"'user_table': expected shape \(2, D\)"),
        (tensors(user_table=torch.ones(2, 0)), r"expected shape \(2, D\).* got \(2, 0\)"),
        (tensors(user_table=torch.tensor(1.0)), r"'user_table': expected shape \(2, D\)"),
        (tensors(item_bias=torch.ones(3, 1)), r"'item_bias': expected shape \(3,\)"),
        (tensors(item_table=torch.ones(3, 4)), "one length, got 2 .* and 4 in"),
        (tensors(user_table=torch.ones(2, 2).long()), "expected floats .* got torch.int64"),
        (
            tensors(item_table=torch.tensor([[0, 0], [0, torch.nan], [0, 0]])),
            "'item_table', row 1: holds NaN",
        ),
        (tensors(item_bias=torch.tensor([0.0, 0, torch.inf])), "'item_bias', row 2: holds NaN"),
        (tensors(item_bias=torch.tensor([1e39, 0, 0]).double() * 10), "'item_bias', row 0"),
    ],
)
def test_a_safetensors_file_that_does_not_fit_is_refused(
    tmp_path: Path,
    user_ids: Path,
    item_ids: Path,
    content: dict[str, torch.Tensor],
    message: str,
) -> None:
    path = tmp_path / "tables.safetensors"
    save_file(content, path)
    with pytest.raises(BaseError, match=message) as caught:
        import_base(user_ids, item_ids, path)
    assert str(path) in str(caught.value)


def test_names_that_are_no_text_are_refused(tmp_path: Path, items: Path) -> None:
    path = tmp_path / "broken.parquet"
    content = pa.table({"user_id": ["a"], "vector": vectors([[1, 2]])})
    pq.write_table(content, path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"user_id", b"user_\xff\xff"))
    with pytest.raises(BaseError, match="broken.parquet cannot be read as Parquet"):
        import_base(path, items)


def test_vectors_beside_a_safetensors_file_are_refused(
    tmp_path: Path, users: Path, item_ids: Path
) -> None:
    path = tmp_path / "tables.safetensors"
    save_file(tensors(), path)
    with pytest.raises(BaseError, match="users.parquet.*drop 'vector'"):
        import_base(users, item_ids, path)


class Bomb:
    """Makes a folder when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["t.pt", "t.PTH", "t.pkl", "t.npy", "t.bin", "t.safetensors"])
def test_a_pickle_is_never_run(
    tmp_path: Path, user_ids: Path, item_ids: Path, users: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    unsafe = not name.endswith(".safetensors")
    message = "safetensors.torch.save_file" if unsafe else "cannot be read as safetensors"
    with pytest.raises(BaseError, match=message):
        import_base(user_ids, item_ids, path)
    with pytest.raises(BaseError, match=message if unsafe else "cannot be read as Parquet"):
        import_base(users, path)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_file_is_refused(tmp_path: Path, users: Path, user_ids: Path) -> None:
    with pytest.raises(BaseError, match="found nothing"):
        import_base(users, tmp_path / "missing.parquet")
    with pytest.raises(BaseError, match="found a folder"):
        import_base(users, tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BaseError, match="found something else"):
        import_base(user_ids, user_ids, tmp_path / "pipe")


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_file_is_refused_or_gives_a_finite_base(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    users = write(folder / "u.parquet", user_id=["a", "b"], vector=vectors([[1, 2], [3, 4]]))
    items = write(folder / "i.parquet", item_id=[1], vector=vectors([[1, 2]]), bias=[0.5])
    user_ids = write(folder / "ui.parquet", user_id=["a", "b"])
    item_ids = write(folder / "ii.parquet", item_id=[7, 5, 6])
    tables = folder / "t.safetensors"
    save_file(tensors(), tables)
    damaged = data.draw(st.sampled_from([users, items, user_ids, tables]))
    content = bytearray(damaged.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    whole = damaged in (users, items)
    try:
        base = import_base(users, items) if whole else import_base(user_ids, item_ids, tables)
    except BaseError as error:
        assert str(folder) in str(error)
    else:
        for table in (base.user_table, base.item_table, base.item_bias):
            assert table.weight_ND.isfinite().all()
